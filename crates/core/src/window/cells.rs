//! State of aggregates that has no fixed size, beside the records; a record holds a handle of each.

use super::distinct::Distinct;
use super::quantiles::Quantiles;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Distinct(Distinct),
    Quantiles(Quantiles),
    /// Of FIRST_VALUE or LAST_VALUE.
    Text(String),
}

impl Cell {
    fn bytes(&self) -> usize {
        size_of::<Option<Cell>>()
            + match self {
                Cell::Distinct(distinct) => distinct.bytes(),
                Cell::Quantiles(quantiles) => quantiles.bytes(),
                Cell::Text(text) => text.capacity(),
            }
    }

    /// Adds what another one of the same kind has seen.
    pub fn merge(&mut self, other: &Cell) {
        match (self, other) {
            (Cell::Distinct(own), Cell::Distinct(other)) => own.merge(other),
            (Cell::Quantiles(own), Cell::Quantiles(other)) => own.merge(other),
            // A word of a record is a handle of one kind.
            (own, other) => unreachable!("merging {other:?} into {own:?}"),
        }
    }
}

/// Handles are 1, 2, ...; those of cells that are gone are given again.
#[derive(Clone, Default)]
pub(super) struct Cells {
    cells: Vec<Option<Cell>>,
    free: Vec<usize>,
    bytes: usize,
}

impl Cells {
    /// Memory of all.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The cell of a handle; `None` for 0.
    pub fn get(&self, handle: u64) -> Option<&Cell> {
        self.cells.get((handle as usize).checked_sub(1)?)?.as_ref()
    }

    pub fn put(&mut self, cell: Cell) -> u64 {
        self.bytes += cell.bytes();
        let at = self.free.pop().unwrap_or_else(|| {
            self.cells.push(None);
            self.cells.len() - 1
        });
        self.cells[at] = Some(cell);
        at as u64 + 1
    }

    /// The cell of a handle, which is given up.
    pub fn take(&mut self, handle: u64) -> Option<Cell> {
        let at = (handle as usize).checked_sub(1)?;
        let cell = self.cells.get_mut(at)?.take()?;
        self.free.push(at);
        self.bytes -= cell.bytes();
        Some(cell)
    }

    /// Moves the second cell into the first; the handle of the result.
    pub fn merge(&mut self, to: u64, from: u64) -> u64 {
        let Some(from) = self.take(from) else { return to };
        if to == 0 {
            return self.put(from);
        }
        self.change(to, |cell| cell.merge(&from));
        to
    }

    pub fn add_distinct(&mut self, handle: &mut u64, bits: u64) {
        if *handle == 0 {
            *handle = self.put(Cell::Distinct(Distinct::default()));
        }
        self.change(*handle, |cell| {
            if let Cell::Distinct(distinct) = cell {
                distinct.add(bits);
            }
        });
    }

    pub fn add_quantile(&mut self, handle: &mut u64, value: f64) {
        if *handle == 0 {
            *handle = self.put(Cell::Quantiles(Quantiles::default()));
        }
        self.change(*handle, |cell| {
            if let Cell::Quantiles(quantiles) = cell {
                quantiles.add(value);
            }
        });
    }

    pub fn set_text(&mut self, handle: &mut u64, text: &str) {
        if *handle == 0 {
            *handle = self.put(Cell::Text(String::new()));
        }
        self.change(*handle, |cell| {
            if let Cell::Text(own) = cell {
                own.clear();
                own.push_str(text);
            }
        });
    }

    fn change(&mut self, handle: u64, how: impl FnOnce(&mut Cell)) {
        if let Some(Some(cell)) = self.cells.get_mut(handle as usize - 1) {
            let before = cell.bytes();
            how(cell);
            self.bytes = self.bytes + cell.bytes() - before;
        }
    }
}
