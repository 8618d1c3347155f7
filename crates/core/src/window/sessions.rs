//! Session windows: per key, rows no further apart than a gap. Rows in any order join, extend and merge open sessions.
//!
//! A session lasts from its first event time to its last one plus the gap, and as in Flink a row exactly a gap away still
//! joins. It closes when the watermark reaches its end. Each row comes with the watermark of the rows before it: what is
//! open to it depends on the order of rows alone, wherever batches are cut. A closed session never changes, so its result
//! is final; a row that could only join or make a closed one is dropped.
//!
//! Open sessions of a key are a list in order of time. Closed ones wait in order of (end, key, start); whichever way they are
//! taken, they leave in that order.
//!
//! source: Akidau et al. 2015, The Dataflow Model, section 2.2.2 (window merging)

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use super::aligned::{AddError, Added};
use super::cells::Cells;
use super::fold::{self, Input, Records};
use super::layout::{Aggregate, InputType, Layout, OptionsError, ROWS_MASK};
use super::panes::{PAGE_BYTES, Place, Pool};
use super::results::{self, Rows};

/// One query over session windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Microseconds, > 0.
    pub gap_us: i64,
    pub aggregates: Vec<Aggregate>,
    pub inputs: Vec<InputType>,
    /// Bound of the state; one batch may take distinct values and quantiles beyond it.
    pub max_bytes: usize,
}

/// End of a list of sessions.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub key: u32,
    /// First and last event time.
    pub first_us: i64,
    pub last_us: i64,
    /// The next open session of the key.
    next: u32,
    pub(super) state: State,
    /// Whether it is in `SessionWindows::changed`.
    pub(super) changed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// It waits to come out.
    Closed,
    /// The slot waits for another session.
    Free,
}

/// Aggregates per session. Cloning copies the state.
#[derive(Clone)]
pub struct SessionWindows {
    pub(super) options: SessionOptions,
    pub(super) layout: Layout,
    /// The record of session i is at `Place(i)`.
    pub(super) pool: Pool,
    pub(super) cells: Cells,
    pub(super) sessions: Vec<Session>,
    free: Vec<u32>,
    /// The first open session of each key.
    heads: Vec<u32>,
    /// Sessions that wait to come out, the next one last once they are sorted.
    pub(super) closed: Vec<u32>,
    sorted: bool,
    /// No open session ends before it.
    earliest_end_us: i64,
    /// Whether the lists follow the sessions: of a snapshot they are made when they are needed.
    linked: bool,
    /// Slots that are not in a checkpoint as they are now, each once.
    pub(super) changed: Vec<u32>,
    places: Vec<Place>,
}

impl SessionWindows {
    pub fn new(options: SessionOptions) -> Result<SessionWindows, OptionsError> {
        if options.gap_us <= 0 {
            return Err(OptionsError(format!("the gap is {} us, but must be above 0", options.gap_us)));
        }
        let layout = Layout::new(&options.aggregates, &options.inputs)?;
        Ok(SessionWindows {
            pool: Pool::new(layout.lines_log2()),
            layout,
            options,
            cells: Cells::default(),
            sessions: Vec::new(),
            free: Vec::new(),
            heads: Vec::new(),
            closed: Vec::new(),
            sorted: true,
            earliest_end_us: i64::MAX,
            linked: true,
            changed: Vec::new(),
            places: Vec::new(),
        })
    }

    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Sessions held, open and closed.
    pub fn sessions(&self) -> usize {
        self.sessions.len() - self.free.len()
    }

    /// Size of the state as the bound counts it.
    pub fn bytes(&self) -> usize {
        let lists = self.sessions.len() * size_of::<Session>() + (self.heads.len() + self.closed.len()) * 4;
        self.pool.live() * PAGE_BYTES + lists + self.cells.bytes()
    }

    /// Columns of what `close` gives.
    pub fn output_schema(&self) -> SchemaRef {
        results::schema(&self.layout)
    }

    /// Aggregates a batch, or changes nothing.
    ///
    /// keys:          dense key id of each row
    /// ts_us:         event time of each row, microseconds since the Unix epoch, UTC
    /// inputs:        one column per `SessionOptions::inputs`, as long as `keys`
    /// select:        rows that count (`WHERE`); `None`: all
    /// watermarks_us: the watermark before each row, ascending: a session that ends at or before it is closed
    pub fn add(
        &mut self,
        keys: &[u32],
        ts_us: &[i64],
        inputs: &[Input<'_>],
        select: Option<&[bool]>,
        watermarks_us: &[i64],
    ) -> Result<Added, AddError> {
        let lengths = [ts_us.len(), watermarks_us.len(), select.map_or(keys.len(), <[bool]>::len)];
        fold::check(keys.len(), &lengths, inputs, &self.options.inputs)?;
        self.link_all();
        self.reserve(keys)?;
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        let mut added = Added::default();
        // Rows from here on have a place and are not in its record yet.
        let mut waiting = 0;
        for (row, (&key, &ts)) in keys.iter().zip(ts_us).enumerate() {
            if select.is_some_and(|select| !select[row]) {
                places.push(Place::NONE);
                continue;
            }
            let Touched { before, one, other } = self.touched(key, ts, watermarks_us[row]);
            if one == NONE && ts.saturating_add(self.options.gap_us) <= watermarks_us[row] {
                added.dropped_rows += 1;
                places.push(Place::NONE);
                continue;
            }
            if other != NONE {
                self.fold(&places[waiting..], waiting, ts_us, inputs);
                waiting = row;
                self.merge(one, other);
            }
            let at = if one == NONE { self.insert(key, ts, before) } else { one };
            self.note(at);
            let session = &mut self.sessions[at as usize];
            session.first_us = session.first_us.min(ts);
            session.last_us = session.last_us.max(ts);
            places.push(Place(at));
            added.rows += 1;
        }
        self.fold(&places[waiting..], waiting, ts_us, inputs);
        self.places = places;
        Ok(added)
    }

    /// The next results of sessions that end at or before `watermark_us`, at most `max_rows` (and at least one) of them; `None`: no
    /// more. Columns as those of aligned windows; `revision` is 0. Rows are in order of (end, key, start).
    pub fn close(&mut self, watermark_us: i64, max_rows: usize) -> Option<RecordBatch> {
        self.link_all();
        if watermark_us >= self.earliest_end_us {
            self.close_until(watermark_us);
        }
        if !self.sorted {
            let order = |at: &u32| {
                let session = &self.sessions[*at as usize];
                std::cmp::Reverse((session.last_us, session.key, session.first_us))
            };
            self.closed.sort_unstable_by_key(order);
            self.sorted = true;
        }
        let mut rows = Rows::new(max_rows.max(1));
        while !rows.is_full() {
            let Some(at) = self.closed.pop() else { break };
            let session = self.sessions[at as usize];
            let bounds = (session.first_us, self.end(&session));
            rows.push(&self.layout, &self.cells, session.key, bounds, 0, &[self.pool.record(Place(at))]);
            self.release(at);
        }
        (!rows.is_empty()).then(|| rows.finish(&self.layout))
    }

    fn end(&self, session: &Session) -> i64 {
        session.last_us.saturating_add(self.options.gap_us)
    }

    /// Room for a session per row, or nothing is added.
    fn reserve(&mut self, keys: &[u32]) -> Result<(), AddError> {
        let heads = keys.iter().max().map_or(0, |key| *key as usize + 1);
        let record = (64 << self.layout.lines_log2()) + size_of::<Session>() + 4;
        let more = keys.len().saturating_sub(self.free.len()) * record
            + heads.saturating_sub(self.heads.len()) * size_of::<u32>();
        if self.bytes() + more > self.options.max_bytes {
            return Err(AddError::SessionsFull {
                bytes: self.bytes(),
                sessions: self.sessions(),
                rows: keys.len(),
                max_bytes: self.options.max_bytes,
            });
        }
        if heads > self.heads.len() {
            self.heads.resize(heads, NONE);
        }
        Ok(())
    }

    fn fold(&mut self, places: &[Place], first: usize, ts_us: &[i64], inputs: &[Input<'_>]) {
        let mut records = Records { layout: &self.layout, pool: &mut self.pool, cells: &mut self.cells };
        records.update(places, first, ts_us, inputs);
    }

    /// Open sessions that a row at `ts` joins: at most two, since between two of them is more than a gap.
    fn touched(&mut self, key: u32, ts: i64, watermark_us: i64) -> Touched {
        let gap = self.options.gap_us;
        let mut found = Touched { before: NONE, one: NONE, other: NONE };
        let mut at = self.heads[key as usize];
        while at != NONE {
            let session = self.sessions[at as usize];
            if self.end(&session) <= watermark_us {
                self.unlink(key, found.before, at);
                at = session.next;
                continue;
            }
            if session.first_us > ts.saturating_add(gap) {
                break;
            }
            if self.end(&session) >= ts {
                if found.one == NONE {
                    found.one = at;
                } else {
                    found.other = at;
                }
            }
            found.before = at;
            at = session.next;
        }
        found
    }

    /// Takes an open session out of its key's list; it waits to come out.
    fn unlink(&mut self, key: u32, before: u32, at: u32) {
        let next = self.sessions[at as usize].next;
        self.link(key, before, next);
        self.sessions[at as usize].state = State::Closed;
        self.note(at);
        self.closed.push(at);
        self.sorted = false;
    }

    /// The session is not in a checkpoint as it is now.
    #[inline]
    fn note(&mut self, at: u32) {
        let session = &mut self.sessions[at as usize];
        if !session.changed {
            session.changed = true;
            self.changed.push(at);
        }
    }

    fn link(&mut self, key: u32, before: u32, next: u32) {
        if before == NONE {
            self.heads[key as usize] = next;
        } else {
            self.sessions[before as usize].next = next;
        }
    }

    /// A new open session after `before`.
    fn insert(&mut self, key: u32, ts: i64, before: u32) -> u32 {
        let next =
            if before == NONE { self.heads[key as usize] } else { self.sessions[before as usize].next };
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let at = self.sessions.len() as u32;
                self.make_room(at);
                at
            }
        };
        let session = &mut self.sessions[at as usize];
        *session =
            Session { key, first_us: ts, last_us: ts, next, state: State::Open, changed: session.changed };
        self.link(key, before, at);
        self.earliest_end_us = self.earliest_end_us.min(ts.saturating_add(self.options.gap_us));
        at
    }

    /// Makes slots up to this one.
    fn make_room(&mut self, at: u32) {
        let nobody =
            Session { key: 0, first_us: 0, last_us: 0, next: NONE, state: State::Free, changed: false };
        self.sessions.resize(at as usize + 1, nobody);
        while self.pool.live() <= (at >> self.pool.key_bits()) as usize {
            self.pool.take();
        }
    }

    /// A session of a snapshot, in the place of what is in its slot.
    pub(super) fn put(&mut self, at: u32, key: u32, times: (i64, i64), state: State) {
        self.linked = false;
        if at as usize >= self.sessions.len() {
            self.make_room(at);
        }
        if state == State::Free {
            self.empty(at);
        }
        let session = &mut self.sessions[at as usize];
        (session.key, session.first_us, session.last_us, session.state) = (key, times.0, times.1, state);
    }

    /// Makes the lists that follow from the sessions, where a snapshot has put some.
    fn link_all(&mut self) {
        if self.linked {
            return;
        }
        self.linked = true;
        let keys = self.sessions.iter().map(|session| session.key as usize + 1).max().unwrap_or(0);
        self.heads.clear();
        self.heads.resize(keys, NONE);
        self.earliest_end_us = i64::MAX;
        self.sorted = false;
        let slots = |wanted: State| {
            let all = self.sessions.iter().zip(0u32..);
            all.filter(move |(session, _)| session.state == wanted).map(|(_, at)| at).collect()
        };
        let mut open: Vec<u32> = slots(State::Open);
        (self.closed, self.free) = (slots(State::Closed), slots(State::Free));
        // Each becomes the first of its key, the latest first.
        open.sort_unstable_by_key(|at| std::cmp::Reverse(self.sessions[*at as usize].first_us));
        for at in open {
            let session = self.sessions[at as usize];
            self.sessions[at as usize].next = self.heads[session.key as usize];
            self.heads[session.key as usize] = at;
            self.earliest_end_us = self.earliest_end_us.min(self.end(&session));
        }
    }

    /// Moves the second session, which follows the first in its list, into the first.
    fn merge(&mut self, one: u32, other: u32) {
        let from = self.sessions[other as usize];
        self.note(one);
        let to = &mut self.sessions[one as usize];
        to.next = from.next;
        to.last_us = to.last_us.max(from.last_us);
        let words = self.layout.words();
        let record = self.pool.record(Place(other))[..words].to_vec();
        self.layout.merge(self.pool.record_mut(Place(one)), &record, Some(&mut self.cells));
        self.layout.cells.iter().for_each(|word| self.pool.record_mut(Place(other))[*word] = 0);
        self.release(other);
    }

    fn release(&mut self, at: u32) {
        self.empty(at);
        self.sessions[at as usize].state = State::Free;
        self.note(at);
        self.free.push(at);
    }

    /// Drops what a session has aggregated.
    fn empty(&mut self, at: u32) {
        let record = self.pool.record_mut(Place(at));
        if record[0] & ROWS_MASK > 0 {
            for word in &self.layout.cells {
                self.cells.take(record[*word]);
            }
        }
        record[0] = 0;
    }

    fn close_until(&mut self, watermark_us: i64) {
        let mut earliest_end_us = i64::MAX;
        for at in 0..self.sessions.len() as u32 {
            let session = self.sessions[at as usize];
            if session.state != State::Open {
                continue;
            }
            let end = self.end(&session);
            if end > watermark_us {
                earliest_end_us = earliest_end_us.min(end);
                continue;
            }
            let (mut before, mut here) = (NONE, self.heads[session.key as usize]);
            while here != at {
                (before, here) = (here, self.sessions[here as usize].next);
            }
            self.unlink(session.key, before, at);
        }
        self.earliest_end_us = earliest_end_us;
    }
}

/// What a row finds in its key's list.
struct Touched {
    /// The last session that begins no later than a gap after the row.
    before: u32,
    /// Sessions that the row joins, in order of time.
    one: u32,
    other: u32,
}
