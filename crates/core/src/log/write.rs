//! One commit as bytes of the active segment: written, synced, shown to readers.
//!
//! A failed write or sync ends the segment: its commit fails, the next segment's header states where the failed one
//! validly ends, and no sync is ever tried twice.

use std::sync::Arc;
use std::time::Instant;

use super::Receipt;
use super::block::{Block, BlockKind, COMMIT_HEADER_BYTES, CommitHeader, MAX_ENTRY_BYTES};
use super::error::LogError;
use super::options::{ASYNC_SYNC_INTERVAL, Durability};
use super::segment::{Ends, Segment};
use super::segments::Segments;
use super::shared::{Shared, Submission};
use crate::schema::{Offset, Partition, SchemaId, StreamId};

pub struct Writer {
    shared: Arc<Shared>,
    segments: Segments,
    active: Option<Active>,
    /// Offsets and commit number including what is written but not yet synced.
    next: Ends,
    commit: u64,
    /// Keys per partition that are in commits written so far, and in synced ones.
    keys_written: Vec<u32>,
    keys_durable: Vec<u32>,
    /// Since the last publication.
    changed: Vec<(StreamId, Partition, Offset)>,
    unsynced_rows: u64,
    synced_at: Instant,
    buffer: Vec<u8>,
    bodies: Vec<u8>,
    /// A segment of the reserve may begin.
    pub reserve: bool,
}

/// Zeros written behind a commit that comes to blocks which were never written. One commit in many then pays for
/// the file system's change of its metadata, and the others are synced in half the time.
const AHEAD: u64 = 1 << 20;

/// The segment being written.
struct Active {
    segment: Arc<Segment>,
    /// Where the next commit goes.
    at: u64,
    /// Up to here it is synced.
    durable: u64,
    /// Up to here its blocks have been written before.
    written: u64,
    /// Begun in the reserve.
    reserved: bool,
}

impl Active {
    fn new(segment: Arc<Segment>, reserved: bool) -> Active {
        let at = segment.end();
        // Not knowing it makes commits slower, not wrong.
        let written = segment.file.written().unwrap_or(u64::MAX);
        Active { segment, at, durable: at, written, reserved }
    }

    /// Bytes to write for a commit of `bytes` bytes: it, or it and zeros behind it.
    fn padded(&self, bytes: usize) -> usize {
        let end = self.at + bytes as u64;
        if end <= self.written { bytes } else { (self.segment.allocated.min(end + AHEAD) - self.at) as usize }
    }
}

impl Writer {
    /// See `Committer::new`.
    pub fn new(
        shared: Arc<Shared>,
        segments: Segments,
        active: Option<Arc<Segment>>,
        keys: Vec<u32>,
    ) -> Writer {
        let (commit, next) = {
            let published = shared.published.lock();
            (published.commit, published.ends.clone())
        };
        Writer {
            shared,
            segments,
            active: active.map(|segment| Active::new(segment, false)),
            next,
            commit,
            keys_written: keys.clone(),
            keys_durable: keys,
            changed: Vec::new(),
            unsynced_rows: 0,
            synced_at: Instant::now(),
            buffer: Vec::new(),
            bodies: Vec::new(),
            reserve: false,
        }
    }

    /// Recycles segments that nobody reads any more.
    pub fn trim(&mut self) {
        self.segments.trim(false);
    }

    /// When what is written has to be synced; none: it is.
    pub fn sync_due(&self) -> Option<Instant> {
        (!self.changed.is_empty()).then(|| self.synced_at + ASYNC_SYNC_INTERVAL)
    }

    /// New keys first: those that the submissions use were added before these were queued, so reading
    /// the dictionaries now, after taking the queue, finds them all.
    pub fn write_all(&mut self, submissions: &[Submission]) -> Result<Vec<Receipt>, LogError> {
        let budget = (1 << 20).min(self.shared.options.segment_bytes as usize / 4);
        loop {
            let (key_blocks, complete) = self.gather_keys(budget);
            if complete {
                return self.write(&key_blocks, submissions);
            }
            self.write(&key_blocks, &[])?;
        }
    }

    /// Blocks of new keys, their bodies in `self.bodies`; false: more are left than `budget` bytes.
    fn gather_keys(&mut self, budget: usize) -> (Vec<Block>, bool) {
        let mut blocks = Vec::new();
        self.bodies.clear();
        for (at, keys) in self.shared.keys.iter().enumerate() {
            let keys = keys.read();
            let from = self.keys_written[at];
            let mut to = from;
            let start = self.bodies.len();
            while to < keys.len() && self.bodies.len() < budget {
                keys.put_entries(to, to + 1, &mut self.bodies);
                to += 1;
            }
            if to > from {
                let body = &self.bodies[start..];
                blocks.push(Block {
                    kind: BlockKind::Keys,
                    stream: StreamId(0),
                    partition: Partition(at as u16),
                    schema: SchemaId(0),
                    base: Offset(from.into()),
                    rows: to - from,
                    body_bytes: body.len() as u32,
                    body_crc: crc32c::crc32c(body),
                    ts_min: 0,
                    ts_span: 0,
                });
            }
            if to < keys.len() {
                return (blocks, false);
            }
        }
        (blocks, true)
    }

    /// One commit: all of it, or an error and nothing of it.
    fn write(&mut self, key_blocks: &[Block], submissions: &[Submission]) -> Result<Vec<Receipt>, LogError> {
        if key_blocks.is_empty() && submissions.iter().all(|submission| submission.blocks.is_empty()) {
            // Nothing but a place in the order of answers.
            let receipt = Receipt { commit: self.commit, ranges: Vec::new() };
            return Ok(vec![receipt; submissions.len()]);
        }
        let most = COMMIT_HEADER_BYTES
            + self.bodies.len()
            + key_blocks.len() * MAX_ENTRY_BYTES
            + submissions.iter().map(Submission::bytes).sum::<usize>();
        self.make_room(most as u64)?;
        let Some(active) = &mut self.active else {
            return Err(LogError::Closed);
        };
        let changed = self.changed.len();
        let number = self.commit + 1;
        let mut receipts = Vec::with_capacity(submissions.len());
        let mut rows = 0;
        let out = &mut self.buffer;
        out.clear();
        out.resize(COMMIT_HEADER_BYTES, 0);
        key_blocks.iter().for_each(|block| block.put(out));
        for submission in submissions {
            let mut ranges = Vec::with_capacity(submission.blocks.len());
            for block in &submission.blocks {
                let base = self.next.get(block.stream, block.partition);
                Block { base, ..*block }.put(out);
                let next = Offset(base.0 + u64::from(block.rows));
                self.next.set(block.stream, block.partition, next);
                self.changed.push((block.stream, block.partition, next));
                ranges.push((block.stream, block.partition, base, block.rows));
                rows += u64::from(block.rows);
            }
            receipts.push(Receipt { commit: number, ranges });
        }
        let directory_bytes = (out.len() - COMMIT_HEADER_BYTES) as u32;
        out.extend_from_slice(&self.bodies);
        submissions.iter().for_each(|submission| out.extend_from_slice(&submission.bodies));
        let blocks =
            key_blocks.len() + submissions.iter().map(|submission| submission.blocks.len()).sum::<usize>();
        let header = CommitHeader {
            salt: active.segment.salt,
            number,
            bytes: out.len() as u32,
            directory_bytes,
            durable: active.durable as u32,
            blocks: blocks as u16,
        };
        header.seal(out);
        let bytes = out.len();
        out.resize(active.padded(bytes), 0);
        if let Err(error) = active.segment.file.write_at(active.at, out) {
            // Nothing of this commit counts, but in async mode earlier commits wait for their sync.
            let what = format!("write commit {number} to {} at byte {}", active.segment.name, active.at);
            self.changed.truncate(changed);
            self.sync_if_due(true);
            self.shared.counters.lock().stats.write_errors += 1;
            return Err(self.end_segment(LogError::io(what, &error)));
        }
        active.written = active.written.max(active.at + out.len() as u64);
        active.at += bytes as u64;
        self.commit = number;
        for block in key_blocks {
            self.keys_written[usize::from(block.partition.0)] += block.rows;
        }
        self.unsynced_rows += rows;
        {
            let mut counters = self.shared.counters.lock();
            counters.stats.commits += 1;
            counters.stats.bytes += bytes as u64;
        }
        if self.shared.options.durability == Durability::Sync {
            self.unsynced_rows = 0;
            self.sync()?;
        }
        Ok(receipts)
    }

    /// Begins a new segment if the commit does not fit into this one, or this one has failed.
    fn make_room(&mut self, bytes: u64) -> Result<(), LogError> {
        if let Some(active) = &mut self.active {
            if active.reserved && !self.reserve {
                self.segments.check_reserve()?;
                active.reserved = false;
            }
            if active.at + bytes <= active.segment.allocated {
                return Ok(());
            }
            if active.durable < active.at {
                self.sync()?;
            }
        }
        let segment = self.segments.begin(&self.keys_durable, self.reserve)?;
        self.active = Some(Active::new(segment, self.reserve));
        Ok(())
    }

    pub fn sync_if_due(&mut self, now: bool) {
        let unsynced = self.active.as_ref().is_some_and(|active| active.durable < active.at);
        if unsynced && (now || self.synced_at.elapsed() >= ASYNC_SYNC_INTERVAL) {
            // The error is counted and told in `stats`; who was acknowledged early chose that.
            let _ = self.sync();
        }
    }

    /// Syncs what is written and shows it to readers.
    fn sync(&mut self) -> Result<(), LogError> {
        let Some(active) = &mut self.active else {
            return Err(LogError::Closed);
        };
        self.synced_at = Instant::now();
        if let Err(error) = active.segment.file.sync() {
            let what = format!("sync commit {} of {}", self.commit, active.segment.name);
            let error = self.end_segment(LogError::io(what, &error));
            self.shared.counters.lock().stats.sync_errors += 1;
            return Err(error);
        }
        active.durable = active.at;
        self.unsynced_rows = 0;
        self.keys_durable.clone_from(&self.keys_written);
        {
            let mut published = self.shared.published.lock();
            published.commit = self.commit;
            for (stream, partition, next) in self.changed.drain(..) {
                published.ends.set(stream, partition, next);
                if let Some((_, changed)) = published.waiting.iter().find(|(waits, _)| *waits == stream) {
                    changed.notify_all();
                }
            }
            active.segment.set_end(active.durable);
            active.segment.mark(active.durable, &published.ends);
        }
        self.shared.committed.notify_all();
        self.shared.counters.lock().stats.syncs += 1;
        Ok(())
    }

    /// Goes back to what is published, and leaves the segment: whatever was written after it is void.
    fn end_segment(&mut self, error: LogError) -> LogError {
        self.active = None;
        self.changed.clear();
        {
            let published = self.shared.published.lock();
            self.commit = published.commit;
            self.next.clone_from(&published.ends);
        }
        self.keys_written.clone_from(&self.keys_durable);
        {
            let mut counters = self.shared.counters.lock();
            counters.stats.lost_rows += std::mem::take(&mut self.unsynced_rows);
            counters.stats.last_error = Some(error.to_string());
        }
        // At once, so that a crash now does not bring back what has just failed. If it cannot be, the
        // next commit tries again.
        if let Ok(segment) = self.segments.begin(&self.keys_durable, false) {
            self.active = Some(Active::new(segment, false));
        }
        error
    }
}
