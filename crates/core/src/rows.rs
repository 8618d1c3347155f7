//! Rows being collected: typed columns that grow row by row and are emptied without giving memory back.
//!
//! The gateway stages decoded readings here, `append` stages what Python hands over, and the log
//! encodes them into a block. There is no per-row allocation once the vectors have grown.

use crate::schema::{ColumnType, SchemaRef};

/// One value on its way into a column. Strings are valid UTF-8 (the decoder has checked).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    Null,
    Double(f64),
    Bigint(i64),
    Boolean(bool),
    /// Microseconds since the Unix epoch, UTC.
    Timestamp(i64),
    /// A string or binary value.
    Bytes(&'a [u8]),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    Double(Vec<f64>),
    /// Bigint and timestamp.
    Int(Vec<i64>),
    Boolean(Vec<bool>),
    /// String and binary: row i is `data[ends[i-1]..ends[i]]`.
    Bytes {
        ends: Vec<u32>,
        data: Vec<u8>,
    },
}

/// One column: values (a default stands in for NULL) and validity.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnRows {
    pub values: Values,
    /// Empty while no row is NULL; else one entry per row, true where the value counts.
    pub valid: Vec<bool>,
}

/// One row whose values are bare words: a double's bits, an integer, 0 or 1, a range of `text` (`text_word`).
/// The column that a word goes to says which, so that no value carries its type along.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// Strings of the first columns.
    pub captures: &'a [&'a [u8]],
    /// By column behind the captures.
    pub words: &'a [u64; 64],
    /// Which of them count, lowest bit first; the others are NULL.
    pub valid: u64,
    pub text: &'a [u8],
}

/// The word of a string: its range in the row's text.
#[inline]
pub fn text_word(start: u32, end: u32) -> u64 {
    u64::from(end) << 32 | u64::from(start)
}

impl<'a> Words<'a> {
    /// The string of column `at`; empty for NULL.
    #[inline]
    pub fn bytes(&self, at: usize) -> &'a [u8] {
        if let Some(capture) = self.captures.get(at) {
            return capture;
        }
        let at = at - self.captures.len();
        if at < 64 && self.valid >> at & 1 == 1 { self.range(self.words[at]) } else { &[] }
    }

    #[inline]
    fn range(&self, word: u64) -> &'a [u8] {
        self.text.get(word as u32 as usize..(word >> 32) as usize).unwrap_or_default()
    }
}

/// Rows of one schema.
#[derive(Clone, Debug)]
pub struct Rows {
    pub schema: SchemaRef,
    pub columns: Vec<ColumnRows>,
    len: usize,
}

/// A cell's type is not its column's: a mistake of ours, never of a device.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("cell {cell} does not fit column {column:?} of type {ty}")]
pub struct CellMismatch {
    pub column: String,
    pub ty: ColumnType,
    pub cell: String,
}

impl ColumnRows {
    fn new(ty: ColumnType) -> ColumnRows {
        let values = match ty {
            ColumnType::Double => Values::Double(Vec::new()),
            ColumnType::Bigint | ColumnType::Timestamp => Values::Int(Vec::new()),
            ColumnType::Boolean => Values::Boolean(Vec::new()),
            ColumnType::String | ColumnType::Binary => Values::Bytes { ends: Vec::new(), data: Vec::new() },
        };
        ColumnRows { values, valid: Vec::new() }
    }

    pub fn is_valid(&self, row: usize) -> bool {
        self.valid.is_empty() || self.valid[row]
    }

    /// Bytes of row `row` of a string or binary column; empty for NULL and for other types.
    pub fn bytes(&self, row: usize) -> &[u8] {
        match &self.values {
            Values::Bytes { ends, data } => {
                let start = if row == 0 { 0 } else { ends[row - 1] as usize };
                &data[start..ends[row] as usize]
            }
            _ => &[],
        }
    }

    fn cell(&self, row: usize, ty: ColumnType) -> Cell<'_> {
        if !self.is_valid(row) {
            return Cell::Null;
        }
        match &self.values {
            Values::Double(values) => Cell::Double(values[row]),
            Values::Int(values) if ty == ColumnType::Timestamp => Cell::Timestamp(values[row]),
            Values::Int(values) => Cell::Bigint(values[row]),
            Values::Boolean(values) => Cell::Boolean(values[row]),
            Values::Bytes { .. } => Cell::Bytes(self.bytes(row)),
        }
    }

    #[inline]
    fn push(&mut self, len: usize, cell: Cell<'_>) -> bool {
        let valid = !matches!(cell, Cell::Null);
        if !valid && self.valid.is_empty() {
            self.valid.resize(len, true);
            self.valid.push(false);
        } else if !self.valid.is_empty() || !valid {
            self.valid.push(valid);
        }
        match (&mut self.values, cell) {
            (Values::Double(to), Cell::Double(value)) => to.push(value),
            (Values::Double(to), Cell::Null) => to.push(0.0),
            (Values::Int(to), Cell::Bigint(value) | Cell::Timestamp(value)) => to.push(value),
            (Values::Int(to), Cell::Null) => to.push(0),
            (Values::Boolean(to), Cell::Boolean(value)) => to.push(value),
            (Values::Boolean(to), Cell::Null) => to.push(false),
            (Values::Bytes { ends, data }, Cell::Bytes(bytes)) => {
                data.extend_from_slice(bytes);
                ends.push(data.len() as u32);
            }
            (Values::Bytes { ends, data }, Cell::Null) => ends.push(data.len() as u32),
            _ => return false,
        }
        true
    }

    #[inline(always)]
    fn push_word(&mut self, len: usize, valid: bool, word: u64, row: &Words<'_>) {
        if !valid {
            self.push(len, Cell::Null);
            return;
        }
        if !self.valid.is_empty() {
            self.valid.push(true);
        }
        match &mut self.values {
            Values::Double(to) => to.push(f64::from_bits(word)),
            Values::Int(to) => to.push(word as i64),
            Values::Boolean(to) => to.push(word != 0),
            Values::Bytes { ends, data } => {
                data.extend_from_slice(row.range(word));
                ends.push(data.len() as u32);
            }
        }
    }

    fn clear(&mut self) {
        self.valid.clear();
        match &mut self.values {
            Values::Double(values) => values.clear(),
            Values::Int(values) => values.clear(),
            Values::Boolean(values) => values.clear(),
            Values::Bytes { ends, data } => {
                ends.clear();
                data.clear();
            }
        }
    }
}

impl Rows {
    pub fn new(schema: SchemaRef) -> Rows {
        let columns = schema.columns.iter().map(|column| ColumnRows::new(column.ty)).collect();
        Rows { schema, columns, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends one row, `cells` in the order of the schema's columns.
    ///
    /// Panics in no case; a cell of the wrong type is an error and leaves the rows unusable, since
    /// only a mistake in our own code can produce one.
    #[inline]
    pub fn push<'a>(&mut self, cells: impl IntoIterator<Item = Cell<'a>>) -> Result<(), CellMismatch> {
        let mut cells = cells.into_iter();
        for (at, column) in self.columns.iter_mut().enumerate() {
            let cell = cells.next().unwrap_or(Cell::Null);
            if !column.push(self.len, cell) {
                let declared = &self.schema.columns[at];
                return Err(CellMismatch {
                    column: declared.name.clone(),
                    ty: declared.ty,
                    cell: format!("{cell:?}"),
                });
            }
        }
        self.len += 1;
        Ok(())
    }

    /// Appends one row of a plan that was made for this schema.
    #[inline]
    pub fn push_words(&mut self, row: &Words<'_>) {
        let captures = row.captures.len().min(self.columns.len());
        let (first, rest) = self.columns.split_at_mut(captures);
        for (column, bytes) in first.iter_mut().zip(row.captures) {
            column.push(self.len, Cell::Bytes(bytes));
        }
        for (at, column) in rest.iter_mut().enumerate() {
            let word = row.words.get(at).copied().unwrap_or(0);
            column.push_word(self.len, at < 64 && row.valid >> at & 1 == 1, word, row);
        }
        self.len += 1;
    }

    /// Gives all rows the columns that `schema` has behind the present ones; they are NULL.
    pub fn widen(&mut self, schema: SchemaRef) {
        for column in schema.columns.iter().skip(self.columns.len()) {
            let mut rows = ColumnRows::new(column.ty);
            (0..self.len).for_each(|row| _ = rows.push(row, Cell::Null));
            self.columns.push(rows);
        }
        self.schema = schema;
    }

    /// The cells of row `row`, in the order of the schema's columns: what `push` takes.
    pub fn cells(&self, row: usize) -> impl Iterator<Item = Cell<'_>> {
        self.columns
            .iter()
            .zip(&self.schema.columns)
            .map(move |(column, declared)| column.cell(row, declared.ty))
    }

    /// The key of row `row`: bytes of the key column, empty when the schema has none.
    pub fn key(&self, row: usize) -> &[u8] {
        self.schema.key.map_or(&[], |at| self.columns[at].bytes(row))
    }

    /// Event times of all rows (µs), if the schema has a `ts` column.
    pub fn ts(&self) -> Option<&[i64]> {
        match &self.columns[self.schema.ts?].values {
            Values::Int(values) => Some(values),
            _ => None,
        }
    }

    /// Rough size in memory of the values held, for bounds and for closing a commit.
    pub fn bytes(&self) -> usize {
        self.columns
            .iter()
            .map(|column| match &column.values {
                Values::Double(values) => values.len() * 8,
                Values::Int(values) => values.len() * 8,
                Values::Boolean(values) => values.len(),
                Values::Bytes { ends, data } => ends.len() * 4 + data.len(),
            })
            .sum()
    }

    /// Empties the rows and keeps the memory for the next batch.
    pub fn clear(&mut self) {
        self.len = 0;
        self.columns.iter_mut().for_each(ColumnRows::clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, Schema, SchemaId, StreamId};
    use std::sync::Arc;

    fn rows() -> Rows {
        let column = |name: &str, ty| Column { name: name.into(), ty };
        let columns = vec![
            column("device", ColumnType::String),
            column("ts", ColumnType::Timestamp),
            column("temperature", ColumnType::Double),
        ];
        Rows::new(Arc::new(Schema::new(SchemaId(1), StreamId(16), "t", columns, Some("device")).unwrap()))
    }

    #[test]
    fn null_after_values_marks_only_itself() {
        let mut rows = rows();
        rows.push([Cell::Bytes(b"a"), Cell::Timestamp(1), Cell::Double(1.5)]).unwrap();
        rows.push([Cell::Bytes(b"bc"), Cell::Timestamp(2), Cell::Null]).unwrap();
        rows.push([Cell::Bytes(b""), Cell::Timestamp(3), Cell::Double(2.5)]).unwrap();
        assert_eq!(rows.columns[2].valid, [true, false, true]);
        assert_eq!((rows.key(0), rows.key(1), rows.key(2)), (&b"a"[..], &b"bc"[..], &b""[..]));
        assert_eq!(rows.ts(), Some(&[1, 2, 3][..]));
    }

    #[test]
    fn cells_of_a_row_can_be_pushed_again() {
        let mut from = rows();
        from.push([Cell::Bytes(b"a"), Cell::Timestamp(1), Cell::Null]).unwrap();
        from.push([Cell::Bytes(b"b"), Cell::Null, Cell::Double(2.5)]).unwrap();
        let mut to = rows();
        to.push(from.cells(0)).unwrap();
        to.push(from.cells(1)).unwrap();
        assert_eq!(from.columns, to.columns);
    }

    #[test]
    fn wider_rows_are_null_where_they_were_not() {
        let mut rows = rows();
        rows.push([Cell::Bytes(b"a"), Cell::Timestamp(1), Cell::Double(1.5)]).unwrap();
        let mut wider = (*rows.schema).clone();
        wider.columns.push(Column { name: "unit".into(), ty: ColumnType::String });
        rows.widen(Arc::new(wider));
        rows.push([Cell::Bytes(b"b"), Cell::Timestamp(2), Cell::Null, Cell::Bytes(b"C")]).unwrap();
        assert_eq!(rows.cells(0).last(), Some(Cell::Null));
        assert_eq!(rows.cells(1).last(), Some(Cell::Bytes(b"C")));
    }

    #[test]
    fn wrong_cell_names_the_column() {
        let error = rows().push([Cell::Bytes(b"a"), Cell::Double(1.0)]).unwrap_err();
        assert_eq!(error.to_string(), "cell Double(1.0) does not fit column \"ts\" of type timestamp");
    }
}
