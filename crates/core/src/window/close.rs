//! Closed windows leave as Arrow batches, in order of window and key, in slices as large as the caller wants.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::layout::{Function, InputLayout, InputType, ROWS_MASK, from_ordered};
use super::panes::{ALL_KEYS, NO_PAGE, Place};
use super::tumble::Tumble;

/// Rows on their way out.
#[derive(Default)]
struct Rows {
    keys: Vec<u32>,
    starts: Vec<i64>,
    ends: Vec<i64>,
    revisions: Vec<i64>,
    places: Vec<Place>,
}

impl Tumble {
    /// Columns of what `close` gives.
    pub fn output_schema(&self) -> SchemaRef {
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let mut fields = vec![
            Field::new("_key", DataType::UInt32, false),
            Field::new("window_start", time.clone(), false),
            Field::new("window_end", time, false),
        ];
        for (at, (function, input)) in self.layout.aggregates.iter().enumerate() {
            let counts = matches!(function, Function::Count | Function::CountStar);
            let ty = match input.map(|input| self.options.inputs[input]) {
                Some(InputType::Double) if !counts => DataType::Float64,
                _ => DataType::Int64,
            };
            fields.push(Field::new(format!("aggregate_{at}"), ty, !counts));
        }
        fields.push(Field::new("revision", DataType::Int64, false));
        Arc::new(Schema::new(fields))
    }

    /// The next results of windows that end at or before `watermark_us`, at most `max_rows` (and at least one) of them; `None`: no more.
    ///
    /// Columns: `_key` uint32, `window_start` and `window_end` timestamp (us, UTC), `aggregate_0`, `aggregate_1`, ... in declared order, `revision`
    /// int64: 0 for the first result of a (window, key), one more each time a late row has changed it since.
    /// Rows are in order of window, then key. Call again until `None`: a large window comes out piece by piece.
    pub fn close(&mut self, watermark_us: i64, max_rows: usize) -> Option<RecordBatch> {
        // A slice of nothing would read as the end.
        let max_rows = max_rows.max(1);
        let mut rows = Rows::default();
        let closed: Vec<i64> = self
            .panes
            .by_number
            .keys()
            .copied()
            .take_while(|number| self.window(*number).1 <= watermark_us)
            .collect();
        for number in closed {
            if rows.keys.len() >= max_rows {
                break;
            }
            self.take_pane(number, max_rows, &mut rows);
        }
        let batch = (!rows.keys.is_empty()).then(|| self.batch(rows));
        // Windows that were to be forgotten as soon as they had come out.
        if self.forgotten_us > i64::MIN {
            self.forget(self.forgotten_us);
        }
        batch
    }

    /// Appends what a closed pane still has to say: amended keys, which lie below those never emitted, then the rest.
    fn take_pane(&mut self, number: i64, max_rows: usize, rows: &mut Rows) {
        let (start, end) = self.window(number);
        let Some(slot) = self.panes.by_number.get(&number) else { return };
        let pane = &mut self.panes.slots[*slot];
        let bits = self.pool.key_bits();
        let mut push = |key: u32, revision: i64, place: Place| {
            rows.keys.push(key);
            rows.starts.push(start);
            rows.ends.push(end);
            rows.revisions.push(revision);
            rows.places.push(place);
            rows.keys.len() < max_rows
        };
        // `add` leaves the list sorted and without repetition.
        let mut taken = 0;
        let mut room = true;
        for &key in pane.amended.iter() {
            if !room {
                break;
            }
            taken += 1;
            let revision = pane.revisions.entry(key).or_insert(0);
            *revision += 1;
            let page = pane.pages.get((key >> bits) as usize).copied().unwrap_or(NO_PAGE);
            if page != NO_PAGE {
                room = push(key, *revision, self.pool.place(page, key));
            }
        }
        pane.amended.drain(..taken);
        if pane.emitted == ALL_KEYS || !room {
            return;
        }
        let first = (pane.emitted >> bits) as usize;
        for (index, &page) in pane.pages.iter().enumerate().skip(first).filter(|(_, page)| **page != NO_PAGE)
        {
            let base = (index as u64) << bits;
            for key in base.max(pane.emitted)..base + (1 << bits) {
                let place = self.pool.place(page, key as u32);
                if self.pool.record(place)[0] & ROWS_MASK == 0 {
                    continue;
                }
                if !push(key as u32, 0, place) {
                    pane.emitted = key + 1;
                    return;
                }
            }
        }
        pane.emitted = ALL_KEYS;
    }

    fn batch(&self, rows: Rows) -> RecordBatch {
        let mut results: Vec<Results> =
            self.layout.aggregates.iter().map(|_| Results::with_capacity(rows.places.len())).collect();
        // Block by block, so that the records are read from memory once and not once per aggregate.
        for block in rows.places.chunks(RECORDS) {
            for ((function, input), to) in self.layout.aggregates.iter().zip(&mut results) {
                let input = input.map(|input| &self.layout.inputs[input]);
                for place in block {
                    let record = self.pool.record(*place);
                    to.values.push(result(*function, input, record));
                    if let Some(input) = input {
                        to.valid.append(input.has_value(record));
                    }
                }
            }
        }
        let schema = self.output_schema();
        let time = |values: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(UInt32Array::from(rows.keys)), time(rows.starts), time(rows.ends)];
        for (at, results) in results.into_iter().enumerate() {
            columns.push(results.finish(schema.field(3 + at)));
        }
        columns.push(Arc::new(Int64Array::from(rows.revisions)));
        RecordBatch::try_new(schema, columns).unwrap_or_else(|error| {
            // Lengths and types are those of the schema above.
            unreachable!("window results do not fit their own schema: {error}")
        })
    }
}

/// Records of one pass: they stay in the second-level cache.
const RECORDS: usize = 1024;

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

/// An aggregate of one record, as the bits of its type; meaningless where the input has had no value.
#[inline]
fn result(function: Function, input: Option<&InputLayout>, record: &[u64]) -> u64 {
    let Some(input) = input else { return record[0] & ROWS_MASK };
    let word = |at: Option<usize>| at.map_or(0, |at| record[at]);
    let ordered = |at| match input.ty {
        InputType::Bigint => word(at),
        InputType::Double => from_ordered(word(at) as i64).to_bits(),
    };
    match (function, input.ty) {
        (Function::Count | Function::CountStar, _) => word(input.count()),
        (Function::Sum, _) => word(input.sum()),
        // A count is never -1, so only a count of 0 has no quotient.
        (Function::Avg, InputType::Bigint) => {
            (word(input.sum()) as i64).checked_div(word(input.count()) as i64).unwrap_or(0) as u64
        }
        (Function::Avg, InputType::Double) => {
            (f64::from_bits(word(input.sum())) / word(input.count()) as f64).to_bits()
        }
        (Function::Min, _) => ordered(input.min()),
        (Function::Max, _) => ordered(input.max()),
    }
}
