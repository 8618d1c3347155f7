//! What is aggregated, and where in a key's record each partial result lies.
//!
//! A record is a run of u64 words, zero until its first row:
//! - word 0: rows in bits 0..48, and in bit 48 + i whether input i (i < 16) has had a value that is not NULL;
//! - for each input that some aggregate reads, the words it needs: count, sum, min, max, in this order.
//!
//! Minima and maxima are kept as integers of the same order, so that doubles compare as Java's `Double.compare` does:
//! -0.0 below 0.0, NaN above everything.

/// Rows of one record; the bits above say which inputs have had values.
pub(super) const ROWS_MASK: u64 = (1 << 48) - 1;
const ANY_BITS: usize = 16;
/// Bound of a record: 64 lines of 64 bytes.
const MAX_WORDS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    Double,
    Bigint,
}

/// The aggregate functions of Flink SQL that work here. All but `CountStar` skip NULL.
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregate {
    pub function: Function,
    /// Index of `TumbleOptions::inputs`; `None` for `CountStar` alone.
    pub input: Option<usize>,
}

/// One tumbling-window query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TumbleOptions {
    /// Window length in microseconds, > 0; windows are aligned to the Unix epoch.
    pub size_us: i64,
    pub aggregates: Vec<Aggregate>,
    pub inputs: Vec<InputType>,
    /// Bound of the state.
    pub max_bytes: usize,
    /// Bound of the windows held, open and closed.
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
    /// Which words are kept: bits `COUNT`, `SUM`, `MIN`, `MAX`.
    pub kept: u8,
    /// The first of them.
    pub first: usize,
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
}

impl Layout {
    pub fn new(options: &TumbleOptions) -> Result<Layout, OptionsError> {
        let refuse = |problem: String| Err(OptionsError(problem));
        if options.size_us <= 0 {
            return refuse(format!("the window size is {} us, but must be above 0", options.size_us));
        }
        if options.max_panes == 0 {
            return refuse("max_panes is 0, which leaves no window to aggregate into".into());
        }
        let mut layout = Layout { inputs: Vec::new(), aggregates: Vec::new(), template: vec![0] };
        for (at, ty) in options.inputs.iter().enumerate() {
            let needs = |functions: &[Function]| {
                options
                    .aggregates
                    .iter()
                    .any(|one| one.input == Some(at) && functions.contains(&one.function))
            };
            let any = if at < ANY_BITS { 1 << (48 + at) } else { 0 };
            let first = layout.template.len();
            let mut kept = 0;
            let mut keep = |word: u8, needed: bool, initial: u64| {
                if needed {
                    kept |= word;
                    layout.template.push(initial);
                }
            };
            keep(COUNT, any == 0 || needs(&[Function::Count, Function::Avg]), 0);
            // The sum of no value is never shown; -0.0 is the zero that changes no sum, not even one of -0.0.
            keep(SUM, needs(&[Function::Sum, Function::Avg]), sum_of_nothing(*ty));
            keep(MIN, needs(&[Function::Min]), i64::MAX as u64);
            keep(MAX, needs(&[Function::Max]), i64::MIN as u64);
            let found = InputLayout { input: at, ty: *ty, any, kept, first };
            layout.inputs.push(found);
        }
        for aggregate in &options.aggregates {
            match (aggregate.function, aggregate.input) {
                (Function::CountStar, None) => {}
                (Function::CountStar, Some(_)) => return refuse("COUNT(*) reads no input".into()),
                (_, Some(input)) if input < options.inputs.len() => {}
                (function, input) => {
                    return refuse(format!(
                        "{function:?} reads input {input:?}, of {}",
                        options.inputs.len()
                    ));
                }
            }
            layout.aggregates.push((aggregate.function, aggregate.input));
        }
        if layout.template.len() > MAX_WORDS {
            return refuse(format!("{} words a record; at most {MAX_WORDS} work", layout.template.len()));
        }
        Ok(layout)
    }

    /// 64-byte lines of a record, as a power of two.
    pub fn lines_log2(&self) -> u32 {
        self.template.len().div_ceil(8).next_power_of_two().trailing_zeros()
    }
}

fn sum_of_nothing(ty: InputType) -> u64 {
    match ty {
        InputType::Double => (-0.0f64).to_bits(),
        InputType::Bigint => 0,
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
        (self.kept & word != 0).then(|| self.first + rank(self.kept, word))
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

    /// Whether the record has seen a value of this input.
    #[inline]
    pub fn has_value(&self, record: &[u64]) -> bool {
        match self.count() {
            Some(count) => record[count] > 0,
            None => record[0] & self.any != 0,
        }
    }
}
