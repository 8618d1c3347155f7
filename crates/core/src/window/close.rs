//! Closed windows leave as Arrow batches, in order of window and key, in slices as large as the caller wants.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow_buffer::{BooleanBufferBuilder, NullBuffer, ScalarBuffer};
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

    /// The next results of windows that end at or before `watermark_us`, at most `max_rows` of them; `None`: no more.
    ///
    /// Columns: `_key` uint32, `window_start` and `window_end` timestamp (us, UTC), `aggregate_0`, `aggregate_1`, ... in declared order, `revision`
    /// int64: 0 for the first result of a (window, key), one more each time a late row has changed it since.
    /// Rows are in order of window, then key. Call again until `None`: a large window comes out piece by piece.
    pub fn close(&mut self, watermark_us: i64, max_rows: usize) -> Option<RecordBatch> {
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
        let batch = (!rows.keys.is_empty()).then(|| self.batch(&rows));
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

    fn batch(&self, rows: &Rows) -> RecordBatch {
        let time = |values: &Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values.clone()).with_timezone("UTC"))
        };
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(UInt32Array::from(rows.keys.clone())), time(&rows.starts), time(&rows.ends)];
        for (function, input) in &self.layout.aggregates {
            columns.push(self.column(*function, input.map(|input| &self.layout.inputs[input]), &rows.places));
        }
        columns.push(Arc::new(Int64Array::from(rows.revisions.clone())));
        RecordBatch::try_new(self.output_schema(), columns).unwrap_or_else(|error| {
            // Lengths and types are those of the schema above.
            unreachable!("window results do not fit their own schema: {error}")
        })
    }

    fn column(&self, function: Function, input: Option<&InputLayout>, places: &[Place]) -> ArrayRef {
        let records = places.iter().map(|place| self.pool.record(*place));
        let Some(input) = input else {
            return int64(records.map(|record| (record[0] & ROWS_MASK) as i64).collect(), None);
        };
        let mut valid = BooleanBufferBuilder::new(places.len());
        records.clone().for_each(|record| valid.append(input.has_value(record)));
        let valid = Some(NullBuffer::new(valid.finish())).filter(|valid| valid.null_count() > 0);
        let word = |at: Option<usize>, record: &[u64]| at.map_or(0, |at| record[at]);
        let bigint = input.ty == InputType::Bigint;
        match function {
            Function::Count | Function::CountStar => {
                int64(records.map(|record| word(input.count, record) as i64).collect(), None)
            }
            Function::Sum if bigint => {
                int64(records.map(|record| word(input.sum, record) as i64).collect(), valid)
            }
            Function::Sum => {
                double(records.map(|record| f64::from_bits(word(input.sum, record))).collect(), valid)
            }
            Function::Avg if bigint => {
                let average = |record: &[u64]| {
                    // i64::MIN / 1 is the only division near overflow, and does not: a count is never -1.
                    (word(input.sum, record) as i64)
                        .checked_div(word(input.count, record) as i64)
                        .unwrap_or(0)
                };
                int64(records.map(average).collect(), valid)
            }
            Function::Avg => {
                let average = |record: &[u64]| {
                    f64::from_bits(word(input.sum, record)) / word(input.count, record) as f64
                };
                double(records.map(average).collect(), valid)
            }
            Function::Min | Function::Max => {
                let at = if function == Function::Min { input.min } else { input.max };
                let keys = records.map(|record| word(at, record) as i64);
                if bigint {
                    int64(keys.collect(), valid)
                } else {
                    double(keys.map(from_ordered).collect(), valid)
                }
            }
        }
    }
}

fn int64(values: Vec<i64>, valid: Option<NullBuffer>) -> ArrayRef {
    Arc::new(Int64Array::new(ScalarBuffer::from(values), valid))
}

fn double(values: Vec<f64>, valid: Option<NullBuffer>) -> ArrayRef {
    Arc::new(Float64Array::new(ScalarBuffer::from(values), valid))
}
