//! Tumbling windows: rows in any order are added to the record of their window and key.
//!
//! `add` works in two passes. The first finds every row's record and makes missing pages, and is the only one that can
//! fail: then nothing has changed. The second updates the records block by block while the next block's are prefetched.

use arrow_buffer::NullBuffer;

use super::layout::{
    COUNT, InputLayout, InputType, Layout, MAX, MIN, OptionsError, ROWS_MASK, SUM, TumbleOptions, ordered,
    rank,
};
use super::panes::{NO_PAGE, PAGE_BYTES, Panes, Place, Pool};

/// Rows updated together: their records stay in the first-level cache while each input passes over them.
const BLOCK: usize = 32;
/// Panes whose slots are remembered during one `add`.
const REMEMBERED: usize = 8;

/// Aggregates per (window, key id). Cloning copies the state.
#[derive(Clone)]
pub struct Tumble {
    pub(super) options: TumbleOptions,
    pub(super) layout: Layout,
    pub(super) pool: Pool,
    pub(super) panes: Panes,
    /// Windows that end at or before this are gone; rows for them are dropped.
    pub(super) forgotten_us: i64,
    adds: u64,
    places: Vec<Place>,
    marks: Vec<(usize, u32, Place)>,
}

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
}

/// What became of a batch's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Rows aggregated, late ones included.
    pub rows: u64,
    /// Rows whose window had ended at the watermark and is still held: where its result has come out, an amended one will.
    pub late_rows: u64,
    /// Rows whose window is no longer held; they changed nothing.
    pub dropped_rows: u64,
    /// Windows forgotten early to stay within the bounds; all had come out.
    pub evicted_panes: u64,
}

/// Nothing was added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    #[error(
        "the windows hold {bytes} bytes in {panes} panes and none may be dropped; bounds are {max_bytes} bytes, {max_panes} panes: \
         close or forget windows first, or raise the bounds"
    )]
    Full { bytes: usize, panes: usize, max_bytes: usize, max_panes: usize },
    #[error("batch does not fit the query: {0}")]
    Shape(String),
}

impl Tumble {
    pub fn new(options: TumbleOptions) -> Result<Tumble, OptionsError> {
        let layout = Layout::new(&options)?;
        let pool = Pool::new(layout.lines_log2());
        Ok(Tumble {
            options,
            layout,
            pool,
            panes: Panes::default(),
            forgotten_us: i64::MIN,
            adds: 0,
            places: Vec::new(),
            marks: Vec::new(),
        })
    }

    pub fn options(&self) -> &TumbleOptions {
        &self.options
    }

    /// Windows held, open and closed.
    pub fn panes(&self) -> usize {
        self.panes.by_number.len()
    }

    /// Size of the state as the bound counts it.
    pub fn bytes(&self) -> usize {
        let panes = self.panes.by_number.values().map(|slot| self.panes.slots[*slot].bytes());
        self.pool.live() * PAGE_BYTES + panes.sum::<usize>()
    }

    /// Aggregates a batch, or changes nothing.
    ///
    /// keys:         dense key id of each row
    /// ts_us:        event time of each row, microseconds since the Unix epoch, UTC
    /// inputs:       one column per `TumbleOptions::inputs`, as long as `keys`
    /// select:       rows that count (`WHERE`); `None`: all
    /// watermark_us: a row is late if its window ends at or before it
    pub fn add(
        &mut self,
        keys: &[u32],
        ts_us: &[i64],
        inputs: &[Input<'_>],
        select: Option<&[bool]>,
        watermark_us: i64,
    ) -> Result<Added, AddError> {
        self.check(keys, ts_us, inputs, select)?;
        let mut added = Added::default();
        self.adds += 1;
        self.marks.clear();
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        let mut made = Vec::new();
        let found = self.find_places(keys, ts_us, select, watermark_us, &mut places, &mut added, &mut made);
        match found {
            Ok(()) => {
                self.mark_amended();
                self.update(&places, inputs);
            }
            Err(_) => self.undo(made),
        }
        self.places = places;
        found.map(|()| added)
    }

    /// Drops windows that end at or before `before_us` once their results have come out; rows for such windows are dropped from now on.
    pub fn forget(&mut self, before_us: i64) {
        self.forgotten_us = self.forgotten_us.max(before_us);
        let gone: Vec<i64> = self
            .panes
            .by_number
            .iter()
            .take_while(|(number, _)| self.window(**number).1 <= before_us)
            .filter(|(_, slot)| self.panes.slots[**slot].is_done())
            .map(|(number, _)| *number)
            .collect();
        gone.into_iter().for_each(|number| self.panes.remove(number, &mut self.pool));
    }

    /// Start and end of a pane in microseconds; times at the ends of i64 saturate.
    #[inline]
    pub(super) fn window(&self, number: i64) -> (i64, i64) {
        let start = number.saturating_mul(self.options.size_us);
        (start, start.saturating_add(self.options.size_us))
    }

    fn check(
        &self,
        keys: &[u32],
        ts_us: &[i64],
        inputs: &[Input<'_>],
        select: Option<&[bool]>,
    ) -> Result<(), AddError> {
        let rows = keys.len();
        let shape = |problem: String| Err(AddError::Shape(problem));
        if ts_us.len() != rows || select.is_some_and(|select| select.len() != rows) {
            return shape(format!(
                "{rows} keys, {} times, {:?} selected",
                ts_us.len(),
                select.map(<[bool]>::len)
            ));
        }
        if inputs.len() != self.options.inputs.len() {
            return shape(format!("{} input columns, of {}", inputs.len(), self.options.inputs.len()));
        }
        for (at, (input, ty)) in inputs.iter().zip(&self.options.inputs).enumerate() {
            let (found, len) = match input.values {
                Values::Doubles(values) => (InputType::Double, values.len()),
                Values::Bigints(values) => (InputType::Bigint, values.len()),
            };
            if found != *ty || len != rows || input.valid.is_some_and(|valid| valid.len() != rows) {
                return shape(format!(
                    "input {at} is {found:?} with {len} values, but {ty:?} with {rows} is wanted"
                ));
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn find_places(
        &mut self,
        keys: &[u32],
        ts_us: &[i64],
        select: Option<&[bool]>,
        watermark_us: i64,
        places: &mut Vec<Place>,
        added: &mut Added,
        made: &mut Vec<(i64, Option<usize>)>,
    ) -> Result<(), AddError> {
        places.reserve(keys.len());
        let key_bits = self.pool.key_bits();
        let mut remembered = [(0i64, usize::MAX); REMEMBERED];
        // The window of the row before: nearly always that of the next one.
        let mut window = (0, 0);
        let mut slot = usize::MAX;
        let mut late = false;
        for (row, (&key, &ts)) in keys.iter().zip(ts_us).enumerate() {
            if select.is_some_and(|select| !select[row]) {
                places.push(Place::NONE);
                continue;
            }
            if ts < window.0 || ts >= window.1 {
                let number = ts.div_euclid(self.options.size_us);
                window = self.window(number);
                late = window.1 <= watermark_us;
                let memory = &mut remembered[number.rem_euclid(REMEMBERED as i64) as usize];
                if window.1 <= self.forgotten_us {
                    slot = usize::MAX;
                } else if memory.1 != usize::MAX && memory.0 == number {
                    slot = memory.1;
                } else {
                    slot = self.pane(number, added, made)?;
                    *memory = (number, slot);
                }
            }
            if slot == usize::MAX {
                added.dropped_rows += 1;
                places.push(Place::NONE);
                continue;
            }
            let index = (key >> key_bits) as usize;
            let page = match self.panes.slots[slot].pages.get(index) {
                Some(&page) if page != NO_PAGE => page,
                _ => self.make_page(slot, index, ts, added, made)?,
            };
            let place = self.pool.place(page, key);
            places.push(place);
            if late {
                added.late_rows += 1;
                if (key as u64) < self.panes.slots[slot].emitted {
                    self.marks.push((slot, key, place));
                }
            }
        }
        added.rows = keys.len() as u64 - places.iter().filter(|place| **place == Place::NONE).count() as u64;
        Ok(())
    }

    /// Slot of the pane, new if need be.
    fn pane(
        &mut self,
        number: i64,
        added: &mut Added,
        made: &mut Vec<(i64, Option<usize>)>,
    ) -> Result<usize, AddError> {
        let slot = match self.panes.by_number.get(&number) {
            Some(slot) => *slot,
            None => {
                while self.panes.by_number.len() >= self.options.max_panes {
                    self.evict(added)?;
                }
                made.push((number, None));
                self.panes.insert(number)
            }
        };
        self.panes.slots[slot].touched = self.adds;
        Ok(slot)
    }

    /// A page of zeros for a run of keys of a pane.
    #[inline(never)]
    fn make_page(
        &mut self,
        slot: usize,
        index: usize,
        ts: i64,
        added: &mut Added,
        made: &mut Vec<(i64, Option<usize>)>,
    ) -> Result<u32, AddError> {
        let table = (index + 1).saturating_sub(self.panes.slots[slot].pages.len()) * 4;
        while self.bytes() + PAGE_BYTES + table > self.options.max_bytes {
            self.evict(added)?;
        }
        let page = self.pool.take();
        let pages = &mut self.panes.slots[slot].pages;
        if index >= pages.len() {
            pages.resize(index + 1, NO_PAGE);
        }
        pages[index] = page;
        made.push((ts.div_euclid(self.options.size_us), Some(index)));
        Ok(page)
    }

    /// Forgets the oldest window whose results have all come out and that this batch does not touch.
    fn evict(&mut self, added: &mut Added) -> Result<(), AddError> {
        let done = |slot: &usize| {
            let pane = &self.panes.slots[*slot];
            pane.is_done() && pane.touched != self.adds
        };
        let Some(number) =
            self.panes.by_number.iter().find(|(_, slot)| done(slot)).map(|(number, _)| *number)
        else {
            return Err(AddError::Full {
                bytes: self.bytes(),
                panes: self.panes(),
                max_bytes: self.options.max_bytes,
                max_panes: self.options.max_panes,
            });
        };
        self.panes.remove(number, &mut self.pool);
        self.forgotten_us = self.forgotten_us.max(self.window(number).1);
        added.evicted_panes += 1;
        Ok(())
    }

    /// Takes back the panes and pages of a batch that did not fit, last first.
    fn undo(&mut self, made: Vec<(i64, Option<usize>)>) {
        for (number, index) in made.into_iter().rev() {
            let Some(index) = index else {
                self.panes.remove(number, &mut self.pool);
                continue;
            };
            if let Some(slot) = self.panes.by_number.get(&number) {
                let pages = &mut self.panes.slots[*slot].pages;
                self.pool.give_back(std::mem::replace(&mut pages[index], NO_PAGE));
                while pages.last() == Some(&NO_PAGE) {
                    pages.pop();
                }
            }
        }
    }

    /// Notes which results that have come out are about to change; before the update, since a key without rows has none.
    fn mark_amended(&mut self) {
        for &(slot, key, place) in &self.marks {
            let pane = &mut self.panes.slots[slot];
            if self.pool.record(place)[0] == 0 {
                pane.revisions.entry(key).or_insert(-1);
            }
            if pane.amended.last() != Some(&key) {
                pane.amended.push(key);
            }
        }
        // However many late rows come between two calls of `close`, the list is no longer than twice the keys.
        let mut slots: Vec<usize> = self.marks.iter().map(|(slot, _, _)| *slot).collect();
        slots.sort_unstable();
        slots.dedup();
        for slot in slots {
            let amended = &mut self.panes.slots[slot].amended;
            amended.sort_unstable();
            amended.dedup();
        }
    }

    fn update(&mut self, places: &[Place], inputs: &[Input<'_>]) {
        places.iter().take(BLOCK).for_each(|place| self.pool.prefetch(*place));
        let words = self.layout.template.len();
        for (block, at) in places.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            let next = places.get(at + BLOCK..).unwrap_or_default();
            next.iter().take(BLOCK).for_each(|place| self.pool.prefetch(*place));
            for place in block.iter().filter(|place| **place != Place::NONE) {
                let record = self.pool.record_mut(*place);
                if record[0] & ROWS_MASK == 0 {
                    record[..words].copy_from_slice(&self.layout.template);
                }
                record[0] += 1;
            }
            for layout in &self.layout.inputs {
                let input = &inputs[layout.input];
                let rows = at..at + block.len();
                match input.values {
                    Values::Doubles(values) => {
                        update_input::<Double>(&mut self.pool, layout, block, &values[rows], input.valid, at);
                    }
                    Values::Bigints(values) => {
                        update_input::<Bigint>(&mut self.pool, layout, block, &values[rows], input.valid, at);
                    }
                }
            }
        }
    }
}

/// How one type adds and compares.
trait Number {
    type Value: Copy;
    fn add(sum: u64, value: Self::Value) -> u64;
    fn ordered(value: Self::Value) -> i64;
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
        let words = &mut record[layout.first..layout.first + KEPT.count_ones() as usize];
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
