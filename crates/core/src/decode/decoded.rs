//! The readings of one payload as rows of cells: scratch that keeps its memory from payload to payload.

use std::collections::HashMap;

use crate::rows::Cell;

use super::{DecodeError, MAX_READINGS, Undeclared};

/// Memory above which `clear` gives back what an unusually large payload needed.
const KEEP_CELLS: usize = 256 * 1024;
const KEEP_BYTES: usize = 4 << 20;

#[derive(Clone, Copy, Debug)]
pub(super) enum Stored {
    Null,
    Double(f64),
    Bigint(i64),
    Boolean(bool),
    Timestamp(i64),
    /// Range of the arena.
    Bytes {
        start: u32,
        end: u32,
    },
    /// Entry of `faults`: the value does not fit its column, unless a later duplicate replaces it.
    Fault(u32),
}

/// Rows of the last payload decoded; `StreamPlan::decode` replaces them, and leaves none on error.
#[derive(Debug, Default)]
pub struct Decoded {
    pub(super) cells: Vec<Stored>,
    /// A row before its payload is read: captures, arrival time (also as event time), NULLs.
    pub(super) template: Vec<Stored>,
    /// Captures and strings of all rows.
    pub(super) arena: Vec<u8>,
    pub(super) faults: Vec<DecodeError>,
    /// A key or text without its escapes.
    pub(super) unescaped: Vec<u8>,
    /// Where fields are inferred: the row's `_extra` so far.
    pub(super) extra: Vec<u8>,
    /// Fields that the payload shows and the plan does not know.
    pub(super) undeclared: Vec<Undeclared>,
    /// First cell of the row of each event time, where records are gathered by time.
    pub(super) rows_at: HashMap<i64, usize>,
    /// Position of the first metric that nothing names, and how many there are.
    unnamed: Option<(usize, u32)>,
    rows: usize,
}

impl Decoded {
    pub fn new() -> Decoded {
        Decoded::default()
    }

    /// Where fields are inferred: those that the payload shows and no column has. While there are any, the rows lack
    /// their values: see `StreamPlan::columns_for`.
    pub fn undeclared(&self) -> &[Undeclared] {
        &self.undeclared
    }

    /// Where a part of the payload could not be read for want of an earlier message: the rows are the rest.
    pub fn incomplete(&self) -> Option<DecodeError> {
        self.unnamed.map(|(at, count)| DecodeError::UnknownMetric { at, count })
    }

    pub(super) fn unnamed(&mut self, at: usize) {
        let (_, count) = self.unnamed.get_or_insert((at, 0));
        *count += 1;
    }

    /// Number of readings.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Cells of row `row`, in the order of the schema's columns; none if there is no such row.
    #[inline]
    pub fn cells(&self, row: usize) -> impl Iterator<Item = Cell<'_>> {
        let width = self.template.len();
        let range = if row < self.rows { row * width..(row + 1) * width } else { 0..0 };
        self.cells[range].iter().map(|cell| match *cell {
            Stored::Null | Stored::Fault(_) => Cell::Null,
            Stored::Double(value) => Cell::Double(value),
            Stored::Bigint(value) => Cell::Bigint(value),
            Stored::Boolean(value) => Cell::Boolean(value),
            Stored::Timestamp(value) => Cell::Timestamp(value),
            Stored::Bytes { start, end } => Cell::Bytes(&self.arena[start as usize..end as usize]),
        })
    }

    /// Empties the rows and keeps the memory, up to a bound.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.unnamed = None;
        self.cells.clear();
        self.arena.clear();
        self.faults.clear();
        self.template.clear();
        self.extra.clear();
        self.undeclared.clear();
        self.rows_at.clear();
        if self.cells.capacity() > KEEP_CELLS {
            self.cells.shrink_to(KEEP_CELLS);
        }
        if self.arena.capacity() + self.unescaped.capacity() > KEEP_BYTES {
            self.arena.shrink_to(KEEP_BYTES / 2);
            self.unescaped = Vec::new();
        }
    }

    /// Starts a row as a copy of the template and gives the index of its first cell.
    #[inline]
    pub(super) fn push_row(&mut self) -> Result<usize, DecodeError> {
        if self.rows == MAX_READINGS {
            return Err(DecodeError::TooLarge);
        }
        let base = self.cells.len();
        self.cells.extend_from_slice(&self.template);
        self.rows += 1;
        Ok(base)
    }

    /// Appends to the arena what `write` appends, as a cell.
    #[inline]
    pub(super) fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<Stored, DecodeError> {
        let start = self.arena.len();
        write(&mut self.arena);
        match (u32::try_from(start), u32::try_from(self.arena.len())) {
            (Ok(start), Ok(end)) => Ok(Stored::Bytes { start, end }),
            _ => Err(DecodeError::TooLarge),
        }
    }

    /// Whether a value of the row at `base` does not fit: the earliest in the payload, if so.
    pub(super) fn row_fault(&self, base: usize) -> Option<DecodeError> {
        let row = &self.cells[base..base + self.template.len()];
        let first = row.iter().filter_map(|cell| match cell {
            Stored::Fault(at) => Some(*at),
            _ => None,
        });
        first.min().and_then(|at| self.faults.get(at as usize).cloned())
    }
}
