//! What the handles of one log, its commit thread and its readers share, and the locks around it.
//!
//! Lock order where two are held: `queue` before nothing; `published` before a segment's marks;
//! `keys` of one partition alone. No lock is held during a write or a sync.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use super::block::Block;
use super::dedupe::{Deduping, Entered};
use super::error::LogError;
use super::inferred::Inferred;
use super::keys::Keys;
use super::meta::Meta;
use super::options::LogOptions;
use super::schemas::Schemas;
use super::segment::{Ends, Segment};
use super::stats::Counters;
use super::storage::Storage;
use super::{Done, Receipt};
use crate::schema::{Offset, StreamId};

pub struct Shared {
    pub options: LogOptions,
    pub meta: Meta,
    pub epoch: u32,
    pub storage: Arc<dyn Storage>,
    pub schemas: RwLock<Schemas>,
    pub deduping: Deduping,
    /// Held while a field is added, which takes a sync: rare, and never with another lock but `schemas`.
    pub inferred: Mutex<Inferred>,
    /// One dictionary per partition: read locks to look up, a write lock only for new keys.
    pub keys: Vec<RwLock<Keys>>,
    pub queue: Mutex<Queue>,
    /// The commit thread waits here for work.
    pub work: Condvar,
    /// `append` waits here for room in the queue.
    pub room: Condvar,
    pub published: Mutex<Published>,
    /// `wait` waits here for the next commit.
    pub committed: Condvar,
    pub holds: Mutex<Holds>,
    pub counters: Mutex<Counters>,
    /// Bytes queued and in the running commit; a hint that saves encoding when the queue is full.
    pub pending_bytes: AtomicUsize,
    /// Patient submissions wait for space.
    pub full: AtomicBool,
    pub busy: AtomicU64,
    pub key_refused: AtomicU64,
}

#[derive(Default)]
pub struct Queue {
    pub submissions: VecDeque<Submission>,
    /// Bytes of `submissions`.
    pub bytes: usize,
    /// Bytes of the running commit.
    pub in_flight: usize,
    /// The commit thread waits for work.
    pub idle: bool,
    /// It waits for the time of its next commit.
    pub gathering: bool,
    /// The next commit need not gather: nothing more is on its way.
    pub hurry: bool,
    pub closing: bool,
    /// Space was missing: when the commit thread tries again; see `commit`.
    pub retry_at: Option<Instant>,
    /// A reader advanced: see what can be recycled.
    pub trim: bool,
}

/// Encoded rows on their way to a commit.
pub struct Submission {
    /// Blocks whose `base` the commit thread fills in.
    pub blocks: Vec<Block>,
    /// Their bodies, one after the other.
    pub bodies: Vec<u8>,
    /// What its rows entered into the tables of `dedupe`.
    pub entered: Entered,
    pub done: Done,
    /// Waits for space on the disk, instead of an error.
    pub patient: bool,
    pub queued_at: Instant,
}

impl Submission {
    /// What it takes in a commit, at most.
    pub fn bytes(&self) -> usize {
        self.bodies.len() + self.blocks.len() * super::block::MAX_ENTRY_BYTES
    }

    pub fn finish(self, result: Result<Receipt, LogError>) {
        let done = self.done;
        // A caller's panic must not stop the log for everybody else.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || done(result)));
    }
}

/// What readers may see: it changes only after a sync has returned.
pub struct Published {
    /// Number of the last durable commit; 0: none yet.
    pub commit: u64,
    pub ends: Ends,
    /// Oldest first; the last one is being written, unless a failure has ended it.
    pub segments: VecDeque<Arc<Segment>>,
    pub closed: bool,
    /// Who waits for rows of one stream; few, and each stream once.
    pub waiting: Vec<(StreamId, Arc<Condvar>)>,
}

impl Published {
    /// Whoever waits for rows of this stream wakes up when rows of it are published.
    pub fn changes_of(&mut self, stream: StreamId) -> Arc<Condvar> {
        if let Some((_, changed)) = self.waiting.iter().find(|(waited_for, _)| *waited_for == stream) {
            return changed.clone();
        }
        let changed = Arc::new(Condvar::new());
        self.waiting.push((stream, changed.clone()));
        changed
    }

    pub fn starts(&self, stream: StreamId, partitions: u16) -> Vec<Offset> {
        match self.segments.front() {
            Some(oldest) => oldest.first().ends.of(stream, partitions),
            None => self.ends.of(stream, partitions),
        }
    }

    pub fn allocated(&self) -> u64 {
        self.segments.iter().map(|segment| segment.allocated).sum()
    }
}

/// From where each reader still needs rows.
#[derive(Default)]
pub struct Holds {
    readers: HashMap<(String, StreamId), Vec<u64>>,
    /// Who needs every row of every stream.
    all: BTreeSet<String>,
}

impl Holds {
    pub fn hold(&mut self, reader: &str, stream: StreamId, offsets: &[Offset]) {
        self.readers.insert((reader.to_owned(), stream), offsets.iter().map(|offset| offset.0).collect());
    }

    pub fn release(&mut self, reader: &str, stream: StreamId) {
        self.readers.remove(&(reader.to_owned(), stream));
    }

    pub fn hold_all(&mut self, reader: &str) {
        self.all.insert(reader.to_owned());
    }

    pub fn release_all(&mut self, reader: &str) {
        self.all.remove(reader);
    }

    /// A reader that needs rows between `start` and `next`, the offsets around a segment.
    pub fn holder(&self, start: &Ends, next: &Ends) -> Option<String> {
        if let Some(reader) = self.all.first() {
            return Some(format!("{reader:?} holds everything"));
        }
        let needs = |stream: StreamId, offsets: &[u64]| {
            offsets.iter().enumerate().any(|(at, offset)| {
                let partition = crate::schema::Partition(at as u16);
                // A hold of rows that are gone already must not hold the rest for ever.
                next.get(stream, partition).0 > start.get(stream, partition).0.max(*offset)
            })
        };
        let blocking = self.readers.iter().filter(|((_, stream), offsets)| needs(*stream, offsets));
        blocking.map(|((reader, stream), _)| format!("{reader:?} holds stream {}", stream.0)).min()
    }
}
