//! What is aggregated, and where in a key's record each partial result lies.
//!
//! A record is a run of u64 words, zero until its first row:
//! - word 0: rows in bits 0..46; bit 46: changed since the last early result; bit 47: changed since the last checkpoint; in
//!   bit 48 + i whether input i (i < 16) has had a value that is not NULL;
//! - for each input that some aggregate reads, the words it needs, in this order: count, sum, min, max, moments (number,
//!   mean, sum of squared distances from it), first (time, value), last (time, value), distinct, quantiles. The last two, and
//!   the values of first and last of a text, are handles of `Cells`; 0: none yet.
//!
//! Minima and maxima are kept as integers of the same order, so that doubles compare as Java's `Double.compare` does:
//! -0.0 below 0.0, NaN above everything.

use super::cells::Cells;
use super::fold::merge_moments;
use super::grid::Shape;

/// Rows of one record; the bits above say what has changed and which inputs have had values.
pub(super) const ROWS_MASK: u64 = (1 << 46) - 1;
/// The record is not in an early result as it is now.
pub(super) const UNSEEN: u64 = 1 << 46;
/// The record is not in a checkpoint as it is now.
pub(super) const CHANGED: u64 = 1 << 47;
const ANY_BITS: usize = 16;
/// Bound of a record: 64 lines of 64 bytes.
const MAX_WORDS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    Double,
    Bigint,
    /// For COUNT, COUNT(DISTINCT x), FIRST_VALUE and LAST_VALUE.
    Text,
}

/// The aggregate functions. All but `CountStar` skip NULL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `COUNT(x)`: values that are not NULL; 0 if there are none.
    Count,
    /// `COUNT(*)`: rows.
    CountStar,
    /// Type of the input; a bigint sum wraps around as Flink's does.
    Sum,
    /// Type of the input; a bigint average is cut toward zero as Flink's is.
    Avg,
    Min,
    Max,
    /// Variance and standard deviation, doubles; those of a sample are NULL for a single value.
    VarPop,
    VarSamp,
    StddevPop,
    StddevSamp,
    /// Value of the least event time; of equal times the first row.
    First,
    /// Value of the greatest event time; of equal times the last row.
    Last,
    /// Different values: exact to a bound, then estimated (`Distinct`).
    CountDistinct,
    /// Value below which so many of a million values lie: interpolated between estimated neighbours (`Quantiles`).
    Percentile {
        millionths: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregate {
    pub function: Function,
    /// Index of the inputs; `None` for `CountStar` alone.
    pub input: Option<usize>,
}

/// One query over aligned windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlignedOptions {
    pub shape: Shape,
    pub aggregates: Vec<Aggregate>,
    pub inputs: Vec<InputType>,
    /// Bound of the state; one batch may take distinct values and quantiles beyond it.
    pub max_bytes: usize,
    /// Bound of the panes held.
    pub max_panes: usize,
}

/// The options contradict themselves: a mistake of the planner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("window options: {0}")]
pub struct OptionsError(pub String);

/// Words of one input's partial results.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputLayout {
    pub input: usize,
    pub ty: InputType,
    /// Bit of word 0 that says that a value has been seen; 0: the count says so.
    pub any: u64,
    /// Which of the simple words are kept: bits `COUNT`, `SUM`, `MIN`, `MAX`.
    pub kept: u8,
    /// The first of them.
    pub first_word: usize,
    /// Places of the others, where they are kept.
    pub moments: Option<usize>,
    pub first: Option<usize>,
    pub last: Option<usize>,
    pub distinct: Option<usize>,
    pub quantiles: Option<usize>,
}

pub(super) const COUNT: u8 = 1;
pub(super) const SUM: u8 = 2;
pub(super) const MIN: u8 = 4;
pub(super) const MAX: u8 = 8;

/// Place of a kept word among the kept ones: those of lower bits come before it.
#[inline(always)]
pub(super) const fn rank(kept: u8, word: u8) -> usize {
    (kept & (word - 1)).count_ones() as usize
}

#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub inputs: Vec<InputLayout>,
    /// Index of `inputs` for each aggregate; `None`: counts rows.
    pub aggregates: Vec<(Function, Option<usize>)>,
    /// A record before its first row.
    pub template: Vec<u64>,
    /// Words that are handles of `Cells`.
    pub cells: Vec<usize>,
    /// Those of them whose cells merge; others go with the word before them.
    merged: Vec<usize>,
    /// How each word of a record takes in that of another one; word 0 apart.
    merges: Vec<Merge>,
}

/// How a word is merged; a run of several at its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    AddInteger,
    AddDouble,
    Min,
    Max,
    Moments,
    First,
    Last,
    FirstText,
    LastText,
    /// It belongs to the run before, or is a handle.
    Not,
}

impl Layout {
    pub fn new(aggregates: &[Aggregate], inputs: &[InputType]) -> Result<Layout, OptionsError> {
        let refuse = |problem: String| Err(OptionsError(problem));
        let mut layout = Layout {
            inputs: Vec::new(),
            aggregates: Vec::new(),
            template: vec![0],
            cells: Vec::new(),
            merged: Vec::new(),
            merges: Vec::new(),
        };
        for (at, ty) in inputs.iter().enumerate() {
            let functions = aggregates.iter().filter(|one| one.input == Some(at)).map(|one| one.function);
            let functions: Vec<Function> = functions.collect();
            layout.add_input(at, *ty, &functions);
        }
        for aggregate in aggregates {
            match (aggregate.function, aggregate.input) {
                (Function::CountStar, None) => {}
                (Function::CountStar, Some(_)) => return refuse("COUNT(*) reads no input".into()),
                (Function::Percentile { millionths }, _) if millionths > 1_000_000 => {
                    return refuse(format!("a percentile of {millionths} millionths is above 1"));
                }
                (function, Some(input)) if inputs.get(input) == Some(&InputType::Text) => {
                    use Function as F;
                    if !matches!(function, F::Count | F::CountDistinct | F::First | F::Last) {
                        return refuse(format!("{function:?} takes numbers, and input {input} is text"));
                    }
                }
                (_, Some(input)) if input < inputs.len() => {}
                (function, input) => {
                    return refuse(format!("{function:?} reads input {input:?}, of {}", inputs.len()));
                }
            }
            layout.aggregates.push((aggregate.function, aggregate.input));
        }
        if layout.template.len() > MAX_WORDS {
            return refuse(format!("{} words a record; at most {MAX_WORDS} work", layout.template.len()));
        }
        Ok(layout)
    }

    fn add_input(&mut self, at: usize, ty: InputType, functions: &[Function]) {
        use Function as F;
        let needs = |wanted: &dyn Fn(Function) -> bool| functions.iter().any(|function| wanted(*function));
        let any = if at < ANY_BITS { 1 << (48 + at) } else { 0 };
        let first_word = self.template.len();
        let mut kept = 0;
        let merges = &mut self.merges;
        let mut keep = |template: &mut Vec<u64>, word: u8, needed: bool, initial: u64| {
            if needed {
                kept |= word;
                template.push(initial);
                merges.push(match (word, ty) {
                    (MIN, _) => Merge::Min,
                    (MAX, _) => Merge::Max,
                    (SUM, InputType::Double) => Merge::AddDouble,
                    _ => Merge::AddInteger,
                });
            }
        };
        let to = &mut self.template;
        keep(to, COUNT, any == 0 || needs(&|f| matches!(f, F::Count | F::Avg)), 0);
        // The sum of no value is never shown; -0.0 is the zero that changes no sum, not even one of -0.0.
        keep(to, SUM, needs(&|f| matches!(f, F::Sum | F::Avg)), sum_of_nothing(ty));
        keep(to, MIN, needs(&|f| f == F::Min), i64::MAX as u64);
        keep(to, MAX, needs(&|f| f == F::Max), i64::MIN as u64);
        let mut more = |needed: bool, initial: &[u64], merge: Merge| {
            needed.then(|| {
                to.extend_from_slice(initial);
                self.merges.push(merge);
                self.merges.resize(to.len() - 1, Merge::Not);
                to.len() - initial.len()
            })
        };
        let spreads = |f| matches!(f, F::VarPop | F::VarSamp | F::StddevPop | F::StddevSamp);
        let moments = more(needs(&spreads), &[0, 0, 0], Merge::Moments);
        let text = ty == InputType::Text;
        let (of_first, of_last) =
            if text { (Merge::FirstText, Merge::LastText) } else { (Merge::First, Merge::Last) };
        let first = more(needs(&|f| f == F::First), &[i64::MAX as u64, 0], of_first);
        let last = more(needs(&|f| f == F::Last), &[i64::MIN as u64, 0], of_last);
        let distinct = more(needs(&|f| f == F::CountDistinct), &[0], Merge::Not);
        let quantiles = more(needs(&|f| matches!(f, F::Percentile { .. })), &[0], Merge::Not);
        if text {
            self.cells.extend(first.into_iter().chain(last).map(|at| at + 1));
        }
        self.cells.extend(distinct.into_iter().chain(quantiles));
        self.merged.extend(distinct.into_iter().chain(quantiles));
        self.inputs.push(InputLayout {
            input: at,
            ty,
            any,
            kept,
            first_word,
            moments,
            first,
            last,
            distinct,
            quantiles,
        });
    }

    /// Words of a record.
    pub fn words(&self) -> usize {
        self.template.len()
    }

    /// 64-byte lines of a record, as a power of two.
    pub fn lines_log2(&self) -> u32 {
        self.template.len().div_ceil(8).next_power_of_two().trailing_zeros()
    }

    /// Adds the rows of a later record to a record; both have rows. With `cells`, those of the second go over to the first or are
    /// given up; without, handles of texts are those of the one that counts and others are left as they are.
    pub fn merge(&self, to: &mut [u64], from: &[u64], mut cells: Option<&mut Cells>) {
        to[0] = ((to[0] & ROWS_MASK) + (from[0] & ROWS_MASK)) | ((to[0] | from[0]) & !ROWS_MASK);
        for (at, merge) in (1..).zip(&self.merges) {
            match merge {
                Merge::AddInteger => to[at] = to[at].wrapping_add(from[at]),
                Merge::AddDouble => to[at] = (f64::from_bits(to[at]) + f64::from_bits(from[at])).to_bits(),
                Merge::Min => to[at] = (to[at] as i64).min(from[at] as i64) as u64,
                Merge::Max => to[at] = (to[at] as i64).max(from[at] as i64) as u64,
                Merge::Moments => merge_moments(&mut to[at..at + 3], &from[at..at + 3]),
                Merge::First | Merge::FirstText | Merge::Last | Merge::LastText => {
                    let (own, other) = (to[at] as i64, from[at] as i64);
                    let is_first = matches!(merge, Merge::First | Merge::FirstText);
                    let counts = if is_first { other < own } else { other >= own };
                    let is_text = matches!(merge, Merge::FirstText | Merge::LastText);
                    if let Some(cells) = cells.as_deref_mut().filter(|_| is_text) {
                        cells.take(if counts { to[at + 1] } else { from[at + 1] });
                    }
                    if counts {
                        to[at..at + 2].copy_from_slice(&from[at..at + 2]);
                    }
                }
                Merge::Not => {}
            }
        }
        if let Some(cells) = cells {
            self.merged.iter().for_each(|at| to[*at] = cells.merge(to[*at], from[*at]));
        }
    }
}

fn sum_of_nothing(ty: InputType) -> u64 {
    match ty {
        InputType::Double => (-0.0f64).to_bits(),
        InputType::Bigint | InputType::Text => 0,
    }
}

/// An integer whose order is that of `Double.compare`.
#[inline(always)]
pub(super) fn ordered(value: f64) -> i64 {
    let bits = if value.is_nan() { f64::NAN.to_bits() & !(1 << 63) } else { value.to_bits() } as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

pub(super) fn from_ordered(key: i64) -> f64 {
    f64::from_bits((key ^ ((key >> 63) as u64 >> 1) as i64) as u64)
}

impl InputLayout {
    /// Index of one of `COUNT`, `SUM`, `MIN`, `MAX` in the record, if it is kept.
    fn word(&self, word: u8) -> Option<usize> {
        (self.kept & word != 0).then(|| self.first_word + rank(self.kept, word))
    }

    pub fn count(&self) -> Option<usize> {
        self.word(COUNT)
    }

    pub fn sum(&self) -> Option<usize> {
        self.word(SUM)
    }

    pub fn min(&self) -> Option<usize> {
        self.word(MIN)
    }

    pub fn max(&self) -> Option<usize> {
        self.word(MAX)
    }

    /// Whether more than the simple words is kept.
    pub fn has_more(&self) -> bool {
        self.moments.or(self.first).or(self.last).or(self.distinct).or(self.quantiles).is_some()
    }

    /// Whether the record has seen a value of this input.
    #[inline]
    pub fn has_value(&self, record: &[u64]) -> bool {
        match self.count() {
            Some(count) => record[count] > 0,
            None => record[0] & self.any != 0,
        }
    }
}
