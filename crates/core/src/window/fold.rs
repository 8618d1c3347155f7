//! Rows into records: one pass per input over a block of rows whose records are in the first-level cache.

use arrow_array::{Array, StringArray};
use arrow_buffer::NullBuffer;

use super::aligned::AddError;
use super::cells::Cells;
use super::distinct::hash_text;
use super::layout::{
    CHANGED, COUNT, InputLayout, InputType, Layout, MAX, MIN, ROWS_MASK, SUM, UNSEEN, ordered, rank,
};
use super::panes::{Place, Pool};

/// Rows updated together.
const BLOCK: usize = 32;

/// One input column of a batch.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub values: Values<'a>,
    /// `None`: no NULL.
    pub valid: Option<&'a NullBuffer>,
}

#[derive(Clone, Copy)]
pub enum Values<'a> {
    Doubles(&'a [f64]),
    Bigints(&'a [i64]),
    Texts(&'a StringArray),
}

/// Whether the columns fit each other and the query.
pub(super) fn check(
    rows: usize,
    lengths: &[usize],
    inputs: &[Input<'_>],
    types: &[InputType],
) -> Result<(), AddError> {
    let shape = |problem: String| Err(AddError::Shape(problem));
    if lengths.iter().any(|length| *length != rows) {
        return shape(format!("{rows} keys, but other columns of {lengths:?}"));
    }
    if inputs.len() != types.len() {
        return shape(format!("{} input columns, of {}", inputs.len(), types.len()));
    }
    for (at, (input, ty)) in inputs.iter().zip(types).enumerate() {
        let (found, len) = match input.values {
            Values::Doubles(values) => (InputType::Double, values.len()),
            Values::Bigints(values) => (InputType::Bigint, values.len()),
            Values::Texts(values) => (InputType::Text, values.len()),
        };
        if found != *ty || len != rows || input.valid.is_some_and(|valid| valid.len() != rows) {
            return shape(format!(
                "input {at} is {found:?} with {len} values, but {ty:?} with {rows} is wanted"
            ));
        }
    }
    Ok(())
}

/// Where records lie.
pub(super) struct Records<'s> {
    pub layout: &'s Layout,
    pub pool: &'s mut Pool,
    pub cells: &'s mut Cells,
}

impl Records<'_> {
    /// Adds the rows from `first` on, one per place, each to the record at its place.
    pub fn update(&mut self, places: &[Place], first: usize, ts_us: &[i64], inputs: &[Input<'_>]) {
        places.iter().take(BLOCK).for_each(|place| self.pool.prefetch(*place));
        let words = self.layout.words();
        for (block, at) in places.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            let next = places.get(at + BLOCK..).unwrap_or_default();
            next.iter().take(BLOCK).for_each(|place| self.pool.prefetch(*place));
            for place in block.iter().filter(|place| **place != Place::NONE) {
                let record = self.pool.record_mut(*place);
                if record[0] & ROWS_MASK == 0 {
                    record[..words].copy_from_slice(&self.layout.template);
                }
                record[0] = (record[0] + 1) | UNSEEN | CHANGED;
            }
            let at = first + at;
            for layout in &self.layout.inputs {
                let input = &inputs[layout.input];
                let rows = at..at + block.len();
                match input.values {
                    Values::Doubles(values) => {
                        update_input::<Double>(
                            self.pool,
                            layout,
                            block,
                            &values[rows.clone()],
                            input.valid,
                            at,
                        );
                        if layout.has_more() {
                            let values = &values[rows.clone()];
                            self.update_more::<Double>(layout, block, values, input.valid, at, &ts_us[rows]);
                        }
                    }
                    Values::Texts(values) => {
                        self.update_texts(layout, block, values, input.valid, at, &ts_us[rows]);
                    }
                    Values::Bigints(values) => {
                        update_input::<Bigint>(
                            self.pool,
                            layout,
                            block,
                            &values[rows.clone()],
                            input.valid,
                            at,
                        );
                        if layout.has_more() {
                            let values = &values[rows.clone()];
                            self.update_more::<Bigint>(layout, block, values, input.valid, at, &ts_us[rows]);
                        }
                    }
                }
            }
        }
    }

    fn update_texts(
        &mut self,
        layout: &InputLayout,
        block: &[Place],
        values: &StringArray,
        valid: Option<&NullBuffer>,
        first: usize,
        ts_us: &[i64],
    ) {
        for ((place, row), &ts) in block.iter().zip(first..).zip(ts_us) {
            if *place == Place::NONE || valid.is_some_and(|valid| valid.is_null(row)) {
                continue;
            }
            let (record, text) = (self.pool.record_mut(*place), values.value(row));
            record[0] |= layout.any;
            if let Some(at) = layout.count() {
                record[at] += 1;
            }
            if let Some(at) = layout.first
                && comes_first(ts, record[at])
            {
                record[at] = ts as u64;
                self.cells.set_text(&mut record[at + 1], text);
            }
            if let Some(at) = layout.last
                && ts >= record[at] as i64
            {
                record[at] = ts as u64;
                self.cells.set_text(&mut record[at + 1], text);
            }
            if let Some(at) = layout.distinct {
                self.cells.add_distinct(&mut record[at], hash_text(text));
            }
        }
    }

    /// The words beyond count, sum, min and max.
    fn update_more<N: Number>(
        &mut self,
        layout: &InputLayout,
        block: &[Place],
        values: &[N::Value],
        valid: Option<&NullBuffer>,
        first: usize,
        ts_us: &[i64],
    ) {
        for (row, ((place, &value), &ts)) in block.iter().zip(values).zip(ts_us).enumerate() {
            if *place == Place::NONE || valid.is_some_and(|valid| valid.is_null(first + row)) {
                continue;
            }
            let record = self.pool.record_mut(*place);
            if let Some(at) = layout.moments {
                add_moment(&mut record[at..at + 3], N::double(value));
            }
            if let Some(at) = layout.first
                && comes_first(ts, record[at])
            {
                (record[at], record[at + 1]) = (ts as u64, N::bits(value));
            }
            if let Some(at) = layout.last
                && ts >= record[at] as i64
            {
                (record[at], record[at + 1]) = (ts as u64, N::bits(value));
            }
            if let Some(at) = layout.distinct {
                self.cells.add_distinct(&mut record[at], N::ordered(value) as u64);
            }
            if let Some(at) = layout.quantiles {
                self.cells.add_quantile(&mut record[at], N::double(value));
            }
        }
    }
}

/// Whether a time is before the one that a record has, where it has one.
fn comes_first(ts: i64, word: u64) -> bool {
    ts < word as i64 || word == i64::MAX as u64
}

/// Welford's update of (number, mean, sum of squared distances).
///
/// source: Welford 1962, Note on a method for calculating corrected sums of squares and products
fn add_moment(words: &mut [u64], value: f64) {
    let number = words[0] + 1;
    let (mean, squares) = (f64::from_bits(words[1]), f64::from_bits(words[2]));
    let distance = value - mean;
    let mean = mean + distance / number as f64;
    words[0] = number;
    words[1] = mean.to_bits();
    words[2] = (squares + distance * (value - mean)).to_bits();
}

/// source: Chan, Golub, LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances
pub(super) fn merge_moments(to: &mut [u64], from: &[u64]) {
    if from[0] == 0 {
        return;
    }
    if to[0] == 0 {
        return to.copy_from_slice(from);
    }
    let (a, b) = (to[0] as f64, from[0] as f64);
    let (mean, other) = (f64::from_bits(to[1]), f64::from_bits(from[1]));
    let (distance, all) = (other - mean, a + b);
    let squares = f64::from_bits(to[2]) + f64::from_bits(from[2]) + distance * distance * (a * b / all);
    to[0] += from[0];
    to[1] = (mean + distance * (b / all)).to_bits();
    to[2] = squares.to_bits();
}

/// How one type adds and compares.
trait Number {
    type Value: Copy;
    fn add(sum: u64, value: Self::Value) -> u64;
    fn ordered(value: Self::Value) -> i64;
    fn bits(value: Self::Value) -> u64;
    fn double(value: Self::Value) -> f64;
}

struct Double;
struct Bigint;

impl Number for Double {
    type Value = f64;
    #[inline(always)]
    fn add(sum: u64, value: f64) -> u64 {
        (f64::from_bits(sum) + value).to_bits()
    }
    #[inline(always)]
    fn ordered(value: f64) -> i64 {
        ordered(value)
    }
    #[inline(always)]
    fn bits(value: f64) -> u64 {
        value.to_bits()
    }
    #[inline(always)]
    fn double(value: f64) -> f64 {
        value
    }
}

impl Number for Bigint {
    type Value = i64;
    #[inline(always)]
    fn add(sum: u64, value: i64) -> u64 {
        sum.wrapping_add(value as u64)
    }
    #[inline(always)]
    fn ordered(value: i64) -> i64 {
        value
    }
    #[inline(always)]
    fn bits(value: i64) -> u64 {
        value as u64
    }
    #[inline(always)]
    fn double(value: i64) -> f64 {
        value as f64
    }
}

/// One input's pass over a block, compiled for each set of words that an input can keep.
fn update_input<N: Number>(
    pool: &mut Pool,
    layout: &InputLayout,
    block: &[Place],
    values: &[N::Value],
    valid: Option<&NullBuffer>,
    first: usize,
) {
    let pass = match layout.kept & 15 {
        0 => update_words::<N, 0>,
        1 => update_words::<N, 1>,
        2 => update_words::<N, 2>,
        3 => update_words::<N, 3>,
        4 => update_words::<N, 4>,
        5 => update_words::<N, 5>,
        6 => update_words::<N, 6>,
        7 => update_words::<N, 7>,
        8 => update_words::<N, 8>,
        9 => update_words::<N, 9>,
        10 => update_words::<N, 10>,
        11 => update_words::<N, 11>,
        12 => update_words::<N, 12>,
        13 => update_words::<N, 13>,
        14 => update_words::<N, 14>,
        _ => update_words::<N, 15>,
    };
    pass(pool, layout, block, values, valid, first);
}

fn update_words<N: Number, const KEPT: u8>(
    pool: &mut Pool,
    layout: &InputLayout,
    block: &[Place],
    values: &[N::Value],
    valid: Option<&NullBuffer>,
    first: usize,
) {
    for (row, (place, value)) in block.iter().zip(values).enumerate() {
        if *place == Place::NONE || valid.is_some_and(|valid| valid.is_null(first + row)) {
            continue;
        }
        let record = pool.record_mut(*place);
        record[0] |= layout.any;
        let words = &mut record[layout.first_word..layout.first_word + KEPT.count_ones() as usize];
        if KEPT & COUNT != 0 {
            words[rank(KEPT, COUNT)] += 1;
        }
        if KEPT & SUM != 0 {
            let sum = &mut words[rank(KEPT, SUM)];
            *sum = N::add(*sum, *value);
        }
        let key = N::ordered(*value);
        if KEPT & MIN != 0 {
            let min = &mut words[rank(KEPT, MIN)];
            *min = (*min as i64).min(key) as u64;
        }
        if KEPT & MAX != 0 {
            let max = &mut words[rank(KEPT, MAX)];
            *max = (*max as i64).max(key) as u64;
        }
    }
}
