//! Results of windows that are still open, as far as they have come.
//!
//! A window has early results from the time on that the watermark has reached its start. A key is in them where a row has
//! changed it since those before.

use arrow_array::RecordBatch;

use super::aligned::AlignedWindows;
use super::layout::{CHANGED, ROWS_MASK, UNSEEN};
use super::panes::NO_PAGE;
use super::results::Rows;

impl AlignedWindows {
    /// The next early results at this watermark, at most `max_rows` (and at least one) of them; `None`: no more, and what came out is
    /// noted. No row may be added between two calls until then.
    ///
    /// Columns and order are those of `close`; `revision` is 0.
    pub fn early(&mut self, watermark_us: i64, max_rows: usize) -> Option<RecordBatch> {
        let mut rows = Rows::new(max_rows.max(1));
        let first = self.grid.first_open(watermark_us);
        let (mut window, mut from) = self.early_from.unwrap_or((first, 0));
        while self.grid.bounds(window).0 <= watermark_us && window <= self.grid.last_window(first) {
            match self.take_early(window, from, &mut rows) {
                Some(next) => from = next,
                None => (window, from) = (window + 1, 0),
            }
            if rows.is_full() {
                self.early_from = Some((window, from));
                return Some(rows.finish(&self.layout));
            }
        }
        if !rows.is_empty() {
            self.early_from = Some((window, from));
            return Some(rows.finish(&self.layout));
        }
        self.early_from = None;
        self.note_seen(first, watermark_us);
        None
    }

    /// Appends changed keys of a window from one on; where to go on, `None` when there are no more.
    fn take_early(&self, window: i64, from: u64, rows: &mut Rows) -> Option<u64> {
        let bounds = self.grid.bounds(window);
        let bits = self.pool.key_bits();
        let slots = self.panes.by_number.range(self.grid.first_pane(window)..=window);
        let tables: Vec<&[u32]> = slots.map(|(_, slot)| &self.panes.slots[*slot].pages[..]).collect();
        let end = tables.iter().map(|pages| pages.len()).max().unwrap_or(0);
        let mut records: Vec<&[u64]> = Vec::with_capacity(tables.len());
        for index in (from >> bits) as usize..end {
            let pages = tables.iter().filter_map(|pages| pages.get(index)).filter(|page| **page != NO_PAGE);
            let pages: Vec<u32> = pages.copied().collect();
            let base = (index as u64) << bits;
            for key in base.max(from)..base + (1 << bits) {
                records.clear();
                let found = pages.iter().map(|page| self.pool.record(self.pool.place(*page, key as u32)));
                records.extend(found.filter(|record| record[0] & ROWS_MASK > 0));
                if !records.iter().any(|record| record[0] & UNSEEN > 0) {
                    continue;
                }
                rows.push(&self.layout, &self.cells, key as u32, bounds, 0, &records);
                if rows.is_full() {
                    return Some(key + 1);
                }
            }
        }
        None
    }

    /// Notes of panes all of whose open windows have early results that these hold their records as they are.
    fn note_seen(&mut self, first: i64, watermark_us: i64) {
        let last = self.grid.pane(watermark_us);
        let panes: Vec<usize> =
            self.panes.by_number.range(self.grid.first_pane(first)..=last).map(|(_, slot)| *slot).collect();
        for slot in panes {
            for &page in self.panes.slots[slot].pages.iter().filter(|page| **page != NO_PAGE) {
                for low in 0..1 << self.pool.key_bits() {
                    let place = self.pool.place(page, low);
                    if self.pool.record(place)[0] & UNSEEN > 0 {
                        let record = self.pool.record_mut(place);
                        record[0] = record[0] & !UNSEEN | CHANGED;
                    }
                }
            }
        }
    }
}
