//! Closed windows leave as Arrow batches, in order of window and key, in slices as large as the caller wants.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use super::aligned::AlignedWindows;
use super::layout::ROWS_MASK;
use super::panes::{ALL_KEYS, NO_PAGE, Window};
use super::results::{self, Rows};

impl AlignedWindows {
    /// Columns of what `close` gives.
    pub fn output_schema(&self) -> SchemaRef {
        results::schema(&self.layout)
    }

    /// The next results of windows that end at or before `watermark_us`, at most `max_rows` (and at least one) of them; `None`: no more.
    ///
    /// Columns: `_key` uint32, `window_start` and `window_end` timestamp (us, UTC), `aggregate_0`, `aggregate_1`, ... in declared order, `revision`
    /// int64: 0 for the first result of a (window, key), one more each time a late row has changed it since.
    /// Rows are in order of window, then key; amended ones of a window before others. Call again until `None`: a large window comes out
    /// piece by piece.
    pub fn close(&mut self, watermark_us: i64, max_rows: usize) -> Option<RecordBatch> {
        // A slice of nothing would read as the end.
        let mut rows = Rows::new(max_rows.max(1));
        let end = self.grid.first_open(watermark_us);
        let mut number = i64::MIN;
        while !rows.is_full() {
            let held = self.windows.range(number..end).find(|(_, window)| !window.is_done());
            let held = held.map(|(number, _)| *number);
            let next = self.next_window().filter(|window| *window < end);
            number = match (held, next) {
                (Some(held), Some(next)) if next < held => next,
                (Some(held), _) => held,
                (None, Some(next)) => next,
                (None, None) => break,
            };
            if Some(number) == next {
                self.begin(number);
            }
            let Some(mut window) = self.windows.remove(&number) else { break };
            self.take_window(number, &mut window, &mut rows);
            self.windows.insert(number, window);
        }
        let batch = (!rows.is_empty()).then(|| rows.finish(&self.layout));
        // Windows that were to be forgotten as soon as they had come out.
        if self.forgotten_us > i64::MIN {
            self.forget(self.forgotten_us);
        }
        batch
    }

    /// Appends what a closed window still has to say: amended keys, which lie below those never emitted, then the rest.
    fn take_window(&self, number: i64, window: &mut Window, rows: &mut Rows) {
        window.changed = true;
        let bounds = self.grid.bounds(number);
        let range = self.panes.by_number.range(self.grid.first_pane(number)..=number);
        let slots: Vec<usize> = range.map(|(_, slot)| *slot).collect();
        let mut taken = 0;
        for &key in window.amended.iter() {
            if rows.is_full() {
                break;
            }
            taken += 1;
            let revision = window.revisions.entry(key).or_insert(0);
            *revision += 1;
            let records = slots.iter().filter_map(|slot| self.record(*slot, key));
            let records: Vec<&[u64]> = records.filter(|record| record[0] & ROWS_MASK > 0).collect();
            if !records.is_empty() {
                rows.push(&self.layout, &self.cells, key, bounds, *revision, &records);
            }
        }
        window.amended.drain(..taken);
        if window.emitted != ALL_KEYS && !rows.is_full() {
            window.emitted = self.take_new(&slots, window.emitted, bounds, rows);
        }
    }

    /// Appends keys from `from` on; where to go on, `ALL_KEYS` when there are no more.
    fn take_new(&self, slots: &[usize], from: u64, bounds: (i64, i64), rows: &mut Rows) -> u64 {
        let bits = self.pool.key_bits();
        let tables: Vec<&[u32]> = slots.iter().map(|slot| &self.panes.slots[*slot].pages[..]).collect();
        let end = tables.iter().map(|pages| pages.len()).max().unwrap_or(0);
        let mut pages: Vec<u32> = Vec::with_capacity(slots.len());
        let mut records: Vec<&[u64]> = Vec::with_capacity(slots.len());
        for index in (from >> bits) as usize..end {
            pages.clear();
            pages.extend(tables.iter().filter_map(|pages| pages.get(index)).filter(|page| **page != NO_PAGE));
            if pages.is_empty() {
                continue;
            }
            let base = (index as u64) << bits;
            for key in base.max(from)..base + (1 << bits) {
                records.clear();
                let found = pages.iter().map(|page| self.pool.record(self.pool.place(*page, key as u32)));
                records.extend(found.filter(|record| record[0] & ROWS_MASK > 0));
                if records.is_empty() {
                    continue;
                }
                rows.push(&self.layout, &self.cells, key as u32, bounds, 0, &records);
                if rows.is_full() {
                    return key + 1;
                }
            }
        }
        ALL_KEYS
    }
}
