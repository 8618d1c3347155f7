//! Records to result rows: the aggregates' values, and the Arrow batch that they leave in.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::cells::{Cell, Cells};
use super::layout::{Function, InputLayout, InputType, Layout, ROWS_MASK, from_ordered};

/// Records of one pass: they stay in the second-level cache.
const BLOCK: usize = 1024;

/// Rows for which there is room at first.
const ROOM: usize = 4096;

/// Columns of result rows.
pub(super) fn schema(layout: &Layout) -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new("_key", DataType::UInt32, false),
        Field::new("window_start", time.clone(), false),
        Field::new("window_end", time, false),
    ];
    for (at, (function, input)) in layout.aggregates.iter().enumerate() {
        use Function as F;
        let counts = matches!(function, F::Count | F::CountStar | F::CountDistinct);
        let of_input = matches!(function, F::Sum | F::Avg | F::Min | F::Max | F::First | F::Last);
        let of_type = input.map_or(InputType::Bigint, |input| layout.inputs[input].ty);
        let ty = match of_type {
            _ if counts => DataType::Int64,
            InputType::Bigint if of_input => DataType::Int64,
            InputType::Text => DataType::Utf8,
            _ => DataType::Float64,
        };
        fields.push(Field::new(format!("aggregate_{at}"), ty, !counts));
    }
    fields.push(Field::new("revision", DataType::Int64, false));
    Arc::new(Schema::new(fields))
}

/// Rows on their way out.
pub(super) struct Rows {
    limit: usize,
    keys: Vec<u32>,
    starts: Vec<i64>,
    ends: Vec<i64>,
    revisions: Vec<i64>,
    /// Merged records one after the other; their handles mean nothing.
    records: Vec<u64>,
    /// Values of the aggregates that read cells, row by row.
    of_cells: Vec<u64>,
    /// Values of the aggregates that are texts, one column each.
    texts: Vec<StringBuilder>,
}

impl Rows {
    /// limit: rows at most
    pub fn new(limit: usize) -> Rows {
        let room = limit.min(ROOM);
        Rows {
            limit,
            keys: Vec::with_capacity(room),
            starts: Vec::with_capacity(room),
            ends: Vec::with_capacity(room),
            revisions: Vec::with_capacity(room),
            records: Vec::new(),
            of_cells: Vec::new(),
            texts: Vec::new(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.keys.len() >= self.limit
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Appends the result of a key's records, at least one, oldest first.
    pub fn push(
        &mut self,
        layout: &Layout,
        cells: &Cells,
        key: u32,
        bounds: (i64, i64),
        revision: i64,
        records: &[&[u64]],
    ) {
        self.keys.push(key);
        self.starts.push(bounds.0);
        self.ends.push(bounds.1);
        self.revisions.push(revision);
        let at = self.records.len();
        self.records.extend_from_slice(&records[0][..layout.words()]);
        for record in &records[1..] {
            layout.merge(&mut self.records[at..], record, None);
        }
        if !layout.cells.is_empty() {
            self.push_of_cells(layout, cells, records);
            let texts = layout.aggregates.iter().filter_map(|(function, input)| {
                text_word(*function, input.map(|input| &layout.inputs[input]))
            });
            for (column, word) in texts.enumerate() {
                if column == self.texts.len() {
                    self.texts.push(StringBuilder::new());
                }
                match cells.get(self.records[at + word]) {
                    Some(Cell::Text(text)) => self.texts[column].append_value(text),
                    _ => self.texts[column].append_null(),
                }
            }
        }
    }

    fn push_of_cells(&mut self, layout: &Layout, cells: &Cells, records: &[&[u64]]) {
        let mut merged: Option<(usize, Cow<'_, Cell>)> = None;
        for (function, input) in &layout.aggregates {
            let Some(word) = cell_word(*function, input.map(|input| &layout.inputs[input])) else { continue };
            if merged.as_ref().is_none_or(|(of, _)| *of != word) {
                let mut found = records.iter().filter_map(|record| cells.get(record[word]));
                merged = found.next().map(|first| (word, Cow::Borrowed(first)));
                if let Some((_, all)) = &mut merged {
                    found.for_each(|cell| all.to_mut().merge(cell));
                }
            }
            let value = match (function, merged.as_ref().map(|(_, cell)| cell.as_ref())) {
                (_, Some(Cell::Distinct(distinct))) => distinct.count() as u64,
                (Function::Percentile { millionths }, Some(Cell::Quantiles(quantiles))) => {
                    quantiles.value(f64::from(*millionths) / 1e6).to_bits()
                }
                _ => 0,
            };
            self.of_cells.push(value);
        }
    }

    pub fn finish(self, layout: &Layout) -> RecordBatch {
        let rows = self.keys.len();
        let words = layout.words();
        let of_cells = self.of_cells.len() / rows.max(1);
        let mut results: Vec<Results> =
            layout.aggregates.iter().map(|_| Results::with_capacity(rows)).collect();
        for first in (0..rows).step_by(BLOCK) {
            let block = first..rows.min(first + BLOCK);
            let mut cell = 0;
            for ((function, input), to) in layout.aggregates.iter().zip(&mut results) {
                let input = input.map(|input| &layout.inputs[input]);
                let reads_cell = cell_word(*function, input).is_some();
                for row in block.clone() {
                    let record = &self.records[row * words..(row + 1) * words];
                    to.values.push(if reads_cell {
                        self.of_cells[row * of_cells + cell]
                    } else {
                        result(*function, input, record)
                    });
                    if let Some(input) = input {
                        to.valid.append(has_result(*function, input, record));
                    }
                }
                cell += usize::from(reads_cell);
            }
        }
        let schema = schema(layout);
        let time = |values: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(UInt32Array::from(self.keys)), time(self.starts), time(self.ends)];
        let mut texts = self.texts.into_iter();
        for (at, results) in results.into_iter().enumerate() {
            let field = schema.field(3 + at);
            columns.push(match field.data_type() {
                DataType::Utf8 => Arc::new(
                    texts.next().map_or_else(|| StringArray::new_null(rows), |mut column| column.finish()),
                ),
                _ => results.finish(field),
            });
        }
        columns.push(Arc::new(Int64Array::from(self.revisions)));
        RecordBatch::try_new(schema, columns).unwrap_or_else(|error| {
            // Lengths and types are those of the schema above.
            unreachable!("window results do not fit their own schema: {error}")
        })
    }
}

/// One aggregate's column on its way out.
struct Results {
    /// Bits of an i64 or f64.
    values: Vec<u64>,
    valid: BooleanBufferBuilder,
}

impl Results {
    fn with_capacity(rows: usize) -> Results {
        Results { values: Vec::with_capacity(rows), valid: BooleanBufferBuilder::new(rows) }
    }

    fn finish(mut self, field: &Field) -> ArrayRef {
        let rows = self.values.len();
        let valid =
            (field.is_nullable() && self.valid.len() == rows).then(|| NullBuffer::new(self.valid.finish()));
        let valid = valid.filter(|valid| valid.null_count() > 0);
        let values = Buffer::from_vec(self.values);
        match field.data_type() {
            DataType::Float64 => Arc::new(Float64Array::new(ScalarBuffer::new(values, 0, rows), valid)),
            _ => Arc::new(Int64Array::new(ScalarBuffer::new(values, 0, rows), valid)),
        }
    }
}

/// The word of the cell that the function reads.
fn cell_word(function: Function, input: Option<&InputLayout>) -> Option<usize> {
    match function {
        Function::CountDistinct => input?.distinct,
        Function::Percentile { .. } => input?.quantiles,
        _ => None,
    }
}

/// The word of the text that the function reads.
fn text_word(function: Function, input: Option<&InputLayout>) -> Option<usize> {
    let input = input.filter(|input| input.ty == InputType::Text)?;
    match function {
        Function::First => input.first.map(|at| at + 1),
        Function::Last => input.last.map(|at| at + 1),
        _ => None,
    }
}

#[inline]
fn has_result(function: Function, input: &InputLayout, record: &[u64]) -> bool {
    match function {
        Function::VarSamp | Function::StddevSamp => input.moments.is_some_and(|at| record[at] > 1),
        _ => input.has_value(record),
    }
}

/// An aggregate of one record, as the bits of its type; meaningless where it has no result.
#[inline]
fn result(function: Function, input: Option<&InputLayout>, record: &[u64]) -> u64 {
    let Some(input) = input else { return record[0] & ROWS_MASK };
    let word = |at: Option<usize>| at.map_or(0, |at| record[at]);
    let ordered = |at| match input.ty {
        InputType::Bigint | InputType::Text => word(at),
        InputType::Double => from_ordered(word(at) as i64).to_bits(),
    };
    // Squared distances from the mean, over the number of values or one less.
    let spread = |less: f64| {
        let squares = f64::from_bits(word(input.moments.map(|at| at + 2)));
        squares / (word(input.moments) as f64 - less)
    };
    match (function, input.ty) {
        (Function::Count | Function::CountStar, _) => word(input.count()),
        (Function::Sum, _) => word(input.sum()),
        // A count is never -1, so only a count of 0 has no quotient.
        (Function::Avg, InputType::Bigint | InputType::Text) => {
            (word(input.sum()) as i64).checked_div(word(input.count()) as i64).unwrap_or(0) as u64
        }
        (Function::Avg, InputType::Double) => {
            (f64::from_bits(word(input.sum())) / word(input.count()) as f64).to_bits()
        }
        (Function::Min, _) => ordered(input.min()),
        (Function::Max, _) => ordered(input.max()),
        (Function::VarPop, _) => spread(0.0).to_bits(),
        (Function::VarSamp, _) => spread(1.0).to_bits(),
        (Function::StddevPop, _) => spread(0.0).sqrt().to_bits(),
        (Function::StddevSamp, _) => spread(1.0).sqrt().to_bits(),
        (Function::First, _) => word(input.first.map(|at| at + 1)),
        (Function::Last, _) => word(input.last.map(|at| at + 1)),
        (Function::CountDistinct | Function::Percentile { .. }, _) => 0,
    }
}
