//! Windows that begin at the same times for every key: TUMBLE, HOP, CUMULATE and calendar windows.
//!
//! `add` works in two passes. The first finds every row's record and makes missing pages, and is the only one that can
//! fail: then nothing has changed. The second updates the records block by block while the next block's are prefetched.

use std::collections::BTreeMap;

use super::cells::Cells;
use super::fold::{self, Input, Records};
use super::grid::Grid;
use super::layout::{AlignedOptions, Layout, OptionsError, ROWS_MASK};
use super::panes::{NO_PAGE, PAGE_BYTES, Panes, Place, Pool, Window};

/// Panes whose slots are remembered during one `add`.
const REMEMBERED: usize = 8;

/// Aggregates per (window, key id). Cloning copies the state.
#[derive(Clone)]
pub struct AlignedWindows {
    pub(super) options: AlignedOptions,
    pub(super) grid: Grid,
    pub(super) layout: Layout,
    pub(super) pool: Pool,
    pub(super) cells: Cells,
    pub(super) panes: Panes,
    /// Windows that have begun to come out and are still held.
    pub(super) windows: BTreeMap<i64, Window>,
    /// Windows that end at or before this are gone; rows for them alone are dropped.
    pub(super) forgotten_us: i64,
    /// Windows up to here that hold a pane are in `windows`, or gone.
    pub(super) begun: i64,
    adds: u64,
    /// Where early results go on: window and key.
    pub(super) early_from: Option<(i64, u64)>,
    places: Vec<Place>,
    marks: Vec<Mark>,
}

/// A late row's key in a window whose result has come out.
#[derive(Clone, Copy)]
struct Mark {
    window: i64,
    key: u32,
}

/// What became of a batch's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Rows aggregated, late ones included.
    pub rows: u64,
    /// Rows with a window that had ended at the watermark and is still held: where its result has come out, an amended one will.
    pub late_rows: u64,
    /// Rows none of whose windows is held any more; they changed nothing.
    pub dropped_rows: u64,
    /// Windows forgotten early to stay within the bounds; all had come out.
    pub evicted_windows: u64,
}

/// Nothing was added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    #[error(
        "the windows hold {bytes} bytes in {panes} panes and none may be dropped; bounds are {max_bytes} bytes, {max_panes} panes: \
         close or forget windows first, or raise the bounds"
    )]
    Full { bytes: usize, panes: usize, max_bytes: usize, max_panes: usize },
    #[error(
        "{sessions} sessions hold {bytes} bytes and {rows} rows may need more; the bound is {max_bytes} bytes"
    )]
    SessionsFull { bytes: usize, sessions: usize, rows: usize, max_bytes: usize },
    #[error("batch does not fit the query: {0}")]
    Shape(String),
}

/// Where rows of the pane of the row before go: nearly always that of the next one.
#[derive(Clone, Copy)]
struct Now {
    start_us: i64,
    end_us: i64,
    /// `usize::MAX`: nowhere.
    slot: usize,
    /// Closed windows that are still held: (first, last); none where first > last.
    closed: (i64, i64),
}

impl AlignedWindows {
    pub fn new(options: AlignedOptions) -> Result<AlignedWindows, OptionsError> {
        let grid = Grid::new(&options.shape)?;
        let layout = Layout::new(&options.aggregates, &options.inputs)?;
        if options.max_panes == 0 {
            return Err(OptionsError("max_panes is 0, which leaves no window to aggregate into".into()));
        }
        Ok(AlignedWindows {
            pool: Pool::new(layout.lines_log2()),
            options,
            grid,
            layout,
            cells: Cells::default(),
            panes: Panes::default(),
            windows: BTreeMap::new(),
            forgotten_us: i64::MIN,
            begun: i64::MIN,
            adds: 0,
            early_from: None,
            places: Vec::new(),
            marks: Vec::new(),
        })
    }

    pub fn options(&self) -> &AlignedOptions {
        &self.options
    }

    /// Panes held, of open and closed windows.
    pub fn panes(&self) -> usize {
        self.panes.by_number.len()
    }

    /// Size of the state as the bound counts it.
    pub fn bytes(&self) -> usize {
        let tables: usize =
            self.panes.by_number.values().map(|slot| self.panes.slots[*slot].pages.len()).sum();
        let windows: usize = self.windows.values().map(Window::bytes).sum();
        self.pool.live() * PAGE_BYTES + tables * 4 + windows + self.cells.bytes()
    }

    /// Aggregates a batch, or changes nothing.
    ///
    /// keys:         dense key id of each row
    /// ts_us:        event time of each row, microseconds since the Unix epoch, UTC
    /// inputs:       one column per `AlignedOptions::inputs`, as long as `keys`
    /// select:       rows that count (`WHERE`); `None`: all
    /// watermark_us: a window is closed if it ends at or before it
    pub fn add(
        &mut self,
        keys: &[u32],
        ts_us: &[i64],
        inputs: &[Input<'_>],
        select: Option<&[bool]>,
        watermark_us: i64,
    ) -> Result<Added, AddError> {
        let lengths = [ts_us.len(), select.map_or(keys.len(), <[bool]>::len)];
        fold::check(keys.len(), &lengths, inputs, &self.options.inputs)?;
        let mut added = Added::default();
        self.adds += 1;
        self.marks.clear();
        while self.cells.bytes() > 0 && self.bytes() > self.options.max_bytes {
            self.evict(&mut added)?;
        }
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        let mut made = Vec::new();
        let found = self.find_places(keys, ts_us, select, watermark_us, &mut places, &mut added, &mut made);
        match found {
            Ok(()) => {
                self.mark_amended();
                let mut records =
                    Records { layout: &self.layout, pool: &mut self.pool, cells: &mut self.cells };
                records.update(&places, 0, ts_us, inputs);
            }
            Err(_) => self.undo(made),
        }
        self.places = places;
        found.map(|()| added)
    }

    /// Drops windows that end at or before `before_us` once their results have come out; rows for such windows alone are dropped
    /// from now on.
    pub fn forget(&mut self, before_us: i64) {
        self.refuse_before(before_us);
        let end = self.grid.first_open(self.forgotten_us);
        self.windows.retain(|number, window| *number >= end || !window.is_done());
        let old: Vec<i64> = self.panes.by_number.keys().copied().take_while(|pane| *pane < end).collect();
        old.into_iter().for_each(|pane| self.drop_pane_unless_needed(pane));
    }

    /// From here on rows for windows that end at or before this are dropped; what is there comes out, although none may join.
    fn refuse_before(&mut self, before_us: i64) {
        while let Some(window) = self.next_window().filter(|window| self.grid.end(*window) <= before_us) {
            self.begin(window);
        }
        self.forgotten_us = self.forgotten_us.max(before_us);
    }

    /// The next window that has a pane and has not begun to come out.
    pub(super) fn next_window(&self) -> Option<i64> {
        let after = self.begun.max(self.grid.first_open(self.forgotten_us).saturating_sub(1));
        let from = self.grid.first_pane(after.saturating_add(1));
        // Panes before `from` are in no later window; the first that is in one decides, since later ones are in later ones.
        self.panes.by_number.range(from..).find_map(|(pane, _)| {
            let window = (*pane).max(after.saturating_add(1));
            (window <= self.grid.last_window(*pane)).then_some(window)
        })
    }

    /// From here on there is a record of what comes out of this window, the next one.
    pub(super) fn begin(&mut self, window: i64) {
        self.begun = window;
        self.windows.entry(window).or_default().changed = true;
    }

    /// Drops a pane whose windows are all gone.
    fn drop_pane_unless_needed(&mut self, pane: i64) {
        let last = self.grid.last_window(pane);
        let gone = last < self.grid.first_open(self.forgotten_us);
        if !gone || self.windows.range(pane..=last).next().is_some() {
            return;
        }
        self.drop_pane(pane);
    }

    pub(super) fn drop_pane(&mut self, pane: i64) {
        for page in self.panes.remove(pane, &mut self.pool) {
            if self.layout.cells.is_empty() {
                continue;
            }
            for low in 0..1 << self.pool.key_bits() {
                let record = self.pool.record(self.pool.place(page, low));
                if record[0] & ROWS_MASK > 0 {
                    let handles: Vec<u64> = self.layout.cells.iter().map(|at| record[*at]).collect();
                    handles.into_iter().for_each(|handle| drop(self.cells.take(handle)));
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn find_places(
        &mut self,
        keys: &[u32],
        ts_us: &[i64],
        select: Option<&[bool]>,
        watermark_us: i64,
        places: &mut Vec<Place>,
        added: &mut Added,
        made: &mut Vec<(i64, Option<usize>)>,
    ) -> Result<(), AddError> {
        places.reserve(keys.len());
        let key_bits = self.pool.key_bits();
        let last_closed = self.grid.first_open(watermark_us).saturating_sub(1);
        let mut remembered = [(0i64, usize::MAX); REMEMBERED];
        let mut now = Now { start_us: 0, end_us: 0, slot: usize::MAX, closed: (0, -1) };
        for (row, (&key, &ts)) in keys.iter().zip(ts_us).enumerate() {
            if select.is_some_and(|select| !select[row]) {
                places.push(Place::NONE);
                continue;
            }
            if ts < now.start_us || ts >= now.end_us {
                let pane = self.grid.pane(ts);
                let last = self.grid.last_window(pane);
                let first = pane.max(self.grid.first_open(self.forgotten_us));
                (now.start_us, now.end_us) = (self.grid.start(pane), self.grid.start(pane.saturating_add(1)));
                now.closed = (first, last.min(last_closed));
                let memory = &mut remembered[pane.rem_euclid(REMEMBERED as i64) as usize];
                if first > last || !self.grid.holds(pane) {
                    now.slot = usize::MAX;
                } else if memory.1 != usize::MAX && memory.0 == pane {
                    now.slot = memory.1;
                } else {
                    now.slot = self.pane(pane, added, made)?;
                    *memory = (pane, now.slot);
                }
            }
            if now.slot == usize::MAX {
                added.dropped_rows += 1;
                places.push(Place::NONE);
                continue;
            }
            let index = (key >> key_bits) as usize;
            let page = match self.panes.slots[now.slot].pages.get(index) {
                Some(&page) if page != NO_PAGE => page,
                _ => self.make_page(now.slot, index, ts, added, made)?,
            };
            places.push(self.pool.place(page, key));
            if now.closed.0 <= now.closed.1 {
                added.late_rows += 1;
                for (window, held) in self.windows.range(now.closed.0..=now.closed.1) {
                    if (key as u64) < held.emitted {
                        self.marks.push(Mark { window: *window, key });
                    }
                }
            }
        }
        added.rows = keys.len() as u64 - places.iter().filter(|place| **place == Place::NONE).count() as u64;
        Ok(())
    }

    /// Slot of the pane, new if need be.
    fn pane(
        &mut self,
        number: i64,
        added: &mut Added,
        made: &mut Vec<(i64, Option<usize>)>,
    ) -> Result<usize, AddError> {
        let slot = match self.panes.by_number.get(&number) {
            Some(slot) => *slot,
            None => {
                while self.panes.by_number.len() >= self.options.max_panes {
                    self.evict(added)?;
                }
                made.push((number, None));
                // Windows of this pane may not have begun, though later ones have.
                self.begun = self.begun.min(number.saturating_sub(1));
                self.panes.insert(number)
            }
        };
        self.panes.slots[slot].touched = self.adds;
        Ok(slot)
    }

    /// A page of zeros for a run of keys of a pane.
    #[inline(never)]
    fn make_page(
        &mut self,
        slot: usize,
        index: usize,
        ts: i64,
        added: &mut Added,
        made: &mut Vec<(i64, Option<usize>)>,
    ) -> Result<u32, AddError> {
        let table = (index + 1).saturating_sub(self.panes.slots[slot].pages.len()) * 4;
        while self.bytes() + PAGE_BYTES + table > self.options.max_bytes {
            self.evict(added)?;
        }
        let page = self.pool.take();
        let pages = &mut self.panes.slots[slot].pages;
        if index >= pages.len() {
            pages.resize(index + 1, NO_PAGE);
        }
        pages[index] = page;
        made.push((self.grid.pane(ts), Some(index)));
        Ok(page)
    }

    /// Forgets the oldest window whose results have all come out and whose panes this batch does not touch.
    fn evict(&mut self, added: &mut Added) -> Result<(), AddError> {
        let untouched = |window: i64| {
            let panes = self.panes.by_number.range(self.grid.first_pane(window)..=window);
            panes.into_iter().all(|(_, slot)| self.panes.slots[*slot].touched != self.adds)
        };
        let mut done = self.windows.iter().filter(|(number, window)| window.is_done() && untouched(**number));
        let Some(number) = done.next().map(|(number, _)| *number) else {
            return Err(AddError::Full {
                bytes: self.bytes(),
                panes: self.panes(),
                max_bytes: self.options.max_bytes,
                max_panes: self.options.max_panes,
            });
        };
        self.windows.remove(&number);
        self.refuse_before(self.grid.end(number));
        let panes = self.panes.by_number.range(self.grid.first_pane(number)..=number);
        let panes: Vec<i64> = panes.map(|(pane, _)| *pane).collect();
        panes.into_iter().for_each(|pane| self.drop_pane_unless_needed(pane));
        added.evicted_windows += 1;
        Ok(())
    }

    /// Takes back the panes and pages of a batch that did not fit, last first.
    fn undo(&mut self, made: Vec<(i64, Option<usize>)>) {
        for (number, index) in made.into_iter().rev() {
            let Some(index) = index else {
                self.panes.remove(number, &mut self.pool);
                continue;
            };
            if let Some(slot) = self.panes.by_number.get(&number) {
                let pages = &mut self.panes.slots[*slot].pages;
                self.pool.give_back(std::mem::replace(&mut pages[index], NO_PAGE));
                while pages.last() == Some(&NO_PAGE) {
                    pages.pop();
                }
            }
        }
    }

    /// Notes which results that have come out are about to change; before the update, since a key without rows has none.
    fn mark_amended(&mut self) {
        let mut marks = std::mem::take(&mut self.marks);
        marks.sort_unstable_by_key(|mark| (mark.window, mark.key));
        marks.dedup_by_key(|mark| (mark.window, mark.key));
        for run in marks.chunk_by(|a, b| a.window == b.window) {
            let number = run[0].window;
            let fresh: Vec<u32> =
                run.iter().map(|mark| mark.key).filter(|key| !self.has_rows(number, *key)).collect();
            let Some(window) = self.windows.get_mut(&number) else { continue };
            window.changed = true;
            for key in fresh {
                window.revisions.entry(key).or_insert(-1);
            }
            window.amended.extend(run.iter().map(|mark| mark.key));
            // However many late rows come between two calls of `close`, the list is no longer than the keys.
            window.amended.sort_unstable();
            window.amended.dedup();
        }
        self.marks = marks;
    }

    fn has_rows(&self, window: i64, key: u32) -> bool {
        self.panes
            .by_number
            .range(self.grid.first_pane(window)..=window)
            .any(|(_, slot)| self.record(*slot, key).is_some_and(|record| record[0] & ROWS_MASK > 0))
    }

    /// A key's record in a pane's slot, `None` where there is no page.
    pub(super) fn record(&self, slot: usize, key: u32) -> Option<&[u64]> {
        let page = *self.panes.slots[slot].pages.get((key >> self.pool.key_bits()) as usize)?;
        (page != NO_PAGE).then(|| self.pool.record(self.pool.place(page, key)))
    }
}
