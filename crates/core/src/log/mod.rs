//! The log: rows of all streams, durable before anybody is told so, read back in batches.
//!
//! One physical log per process, so one `fdatasync` covers a commit of all streams. `submit` encodes
//! on the caller's thread (`keys`, `frame`), the commit thread gathers (`commit`), writes and syncs (`write`), readers
//! (`reader`) see what a sync has covered. The files are those of `storage`; `recovery` opens them.
//! The log is a buffer behind its readers, not the archive. Every byte: `docs/formats/log.md`.

mod block;
mod columns;
mod commit;
mod dedupe;
mod error;
#[cfg(test)]
pub(crate) mod forgetful;
pub mod frame;
mod inferred;
mod keyfile;
pub mod keys;
mod meta;
mod options;
mod reader;
mod recovery;
mod schemas;
mod segment;
mod segments;
mod shared;
mod stats;
mod storage;
mod submit;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_commit;
#[cfg(test)]
mod tests_crash;
#[cfg(test)]
mod tests_dedupe;
#[cfg(test)]
mod tests_frame;
mod varint;
mod window;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use self::commit::Committer;
use self::dedupe::Deduping;
pub use self::dedupe::{DedupeOptions, DedupeStats};
pub use self::error::LogError;
use self::inferred::Inferred;
pub use self::inferred::InferredField;
pub use self::options::{ASYNC_SYNC_INTERVAL, Durability, LogOptions};
pub use self::reader::Reader;
use self::recovery::{Recovered, recover};
pub use self::recovery::{Recovery, TornTail};
use self::schemas::Schemas;
use self::segments::Segments;
use self::shared::{Holds, Published, Queue, Shared};
use self::stats::Counters;
pub use self::stats::{Latency, LogStats};
pub use self::storage::{Disk, Storage, StorageFile};
pub(crate) use self::varint::{Cursor, Malformed, put_varint, put_zigzag};
use crate::schema::{Offset, Partition, Schema, SchemaRef, StreamId};

/// Called once, on the commit thread: it must be short, and must not call `append` or `close`.
pub type Done = Box<dyn FnOnce(Result<Receipt, LogError>) + Send>;

/// Where rows have come to lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Number of the commit; readers see it once `wait` has returned it.
    pub commit: u64,
    /// Stream, partition, offset of the first row and number of rows, of each non-empty part in order.
    pub ranges: Vec<(StreamId, Partition, Offset, u32)>,
}

/// A handle of the open log; clones share it. The last one to go closes it.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    recovery: Recovery,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Opens or creates the log in `directory`, which is locked until the log is closed.
    ///
    /// `schemas`: every version that stored rows may carry, in order of version. Register what readers
    /// hold (`hold`) before the first submission, since segments nobody holds are recycled.
    pub fn open(directory: &Path, options: LogOptions, schemas: Vec<Schema>) -> Result<Log, LogError> {
        let disk = Disk::open(directory).map_err(|error| {
            let path = directory.display().to_string();
            match error.kind() {
                std::io::ErrorKind::WouldBlock => LogError::Locked { path },
                _ => LogError::io(format!("open the log in {path}"), &error),
            }
        })?;
        Log::open_on(Arc::new(disk), options, schemas)
    }

    /// As `open`, on any storage.
    pub fn open_on(
        storage: Arc<dyn Storage>,
        options: LogOptions,
        schemas: Vec<Schema>,
    ) -> Result<Log, LogError> {
        options.check()?;
        let mut known = Schemas::default();
        let inferred = Inferred::load(&*storage)?;
        for schema in inferred.schemas()?.into_iter().chain(schemas) {
            known.register(schema)?;
        }
        let recovered = recover(&*storage, &options)?;
        let Recovered { meta, keys, logged_keys, key_files, segments, ends, commit, epoch, .. } = recovered;
        let mut counters = Counters::new();
        counters.stats.epoch = epoch;
        let shared = Arc::new(Shared {
            options,
            meta,
            epoch,
            storage: storage.clone(),
            schemas: RwLock::new(known),
            inferred: Mutex::new(inferred),
            deduping: Deduping::default(),
            keys: keys.into_iter().map(RwLock::new).collect(),
            queue: Mutex::new(Queue::default()),
            work: Condvar::new(),
            room: Condvar::new(),
            published: Mutex::new(Published { commit, ends, segments, closed: false, waiting: Vec::new() }),
            committed: Condvar::new(),
            holds: Mutex::new(Holds::default()),
            counters: Mutex::new(counters),
            pending_bytes: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            busy: AtomicU64::new(0),
            key_refused: AtomicU64::new(0),
        });
        let mut segments = Segments::new(
            shared.clone(),
            key_files,
            recovered.spares,
            recovered.last_number,
            recovered.previous,
        );
        let active = match segments.make(&logged_keys) {
            Ok(segment) => {
                // The new segment's header now says where the last one ends, so its tail may go; if it
                // cannot, it only takes space.
                if let Some(tail) = recovered.cut {
                    let _ = tail.file.set_len(tail.end());
                }
                for name in recovered.obsolete {
                    let _ = storage.remove(&name);
                }
                Some(segment)
            }
            // A full disk stops acknowledgements, not a process that has something to serve.
            Err(error @ LogError::DiskFull { .. }) if !shared.published.lock().segments.is_empty() => {
                shared.counters.lock().stats.last_error = Some(error.to_string());
                None
            }
            Err(error) => return Err(error),
        };
        let committer = Committer::new(shared.clone(), segments, active, logged_keys);
        let thread = std::thread::Builder::new().name("log-commit".into()).spawn(move || committer.run());
        let thread = thread.map_err(|error| LogError::io("start the commit thread", &error))?;
        let handle = Handle { shared, recovery: recovered.report, thread: Mutex::new(Some(thread)) };
        Ok(Log { handle: Arc::new(handle) })
    }

    /// What opening found; a torn tail is to be told to the operator.
    pub fn recovery(&self) -> &Recovery {
        &self.handle.recovery
    }

    /// Makes a schema known, and the one that readers give; see `SchemaConflict` for what is refused.
    pub fn register(&self, schema: Schema) -> Result<SchemaRef, LogError> {
        self.shared().schemas.write().register(schema)
    }

    pub fn partitions(&self) -> u16 {
        self.shared().meta.partitions
    }

    /// Most bytes that are submitted together, as they are encoded.
    pub fn most_bytes(&self) -> usize {
        self.shared().options.segment_bytes as usize / 2
    }

    /// Rises at each opening.
    pub fn epoch(&self) -> u32 {
        self.shared().epoch
    }

    /// A random number of the data directory, the same for all its life.
    pub fn seed(&self) -> u64 {
        self.shared().meta.seed
    }

    /// Stable for the life of the data directory. The empty key is in partition 0.
    #[inline]
    pub fn partition_of(&self, key: &[u8]) -> Partition {
        self.shared().partition_of(key)
    }

    /// First kept offset of each partition.
    pub fn start(&self, stream: StreamId) -> Vec<Offset> {
        self.shared().published.lock().starts(stream, self.partitions())
    }

    /// Durable end of each partition: the offset that its next row gets or has got.
    pub fn end(&self, stream: StreamId) -> Vec<Offset> {
        self.shared().published.lock().ends.of(stream, self.partitions())
    }

    /// Rows of `stream` from these offsets on, one per partition.
    pub fn reader(&self, stream: StreamId, offsets: &[Offset]) -> Result<Reader, LogError> {
        Reader::new(self.shared().clone(), stream, offsets)
    }

    /// `reader` needs rows from these offsets on: what lies before them may go, the rest stays. Holds
    /// do not outlive the process.
    pub fn hold(&self, reader: &str, stream: StreamId, offsets: &[Offset]) {
        self.shared().holds.lock().hold(reader, stream, offsets);
        self.trim_soon();
    }

    pub fn release(&self, reader: &str, stream: StreamId) {
        self.shared().holds.lock().release(reader, stream);
        self.trim_soon();
    }

    /// `reader` needs every row of every stream until `release_all`: for a start, where one reader after the other says
    /// what it holds, and the first must not let go what the last needs.
    pub fn hold_all(&self, reader: &str) {
        self.shared().holds.lock().hold_all(reader);
    }

    pub fn release_all(&self, reader: &str) {
        self.shared().holds.lock().release_all(reader);
        self.trim_soon();
    }

    fn trim_soon(&self) {
        let shared = self.shared();
        let over = {
            let published = shared.published.lock();
            published.segments.len() > 1 && published.allocated() > shared.options.retention_bytes
        };
        if over {
            shared.queue.lock().trim = true;
            shared.work.notify_one();
        }
    }

    /// Number of the last durable commit, as soon as it is higher than `seen`, at the latest after
    /// `timeout` or when the log is closed.
    pub fn wait(&self, seen: u64, timeout: Duration) -> u64 {
        let shared = self.shared();
        let deadline = Instant::now() + timeout;
        let mut published = shared.published.lock();
        while published.commit <= seen && !published.closed {
            if shared.committed.wait_until(&mut published, deadline).timed_out() {
                break;
            }
        }
        published.commit
    }

    /// Waits until the stream has durable rows behind these offsets, one for each partition; at the latest until
    /// `timeout` is over or the log is closed. Commits of other streams wake nobody here. True: it has.
    pub fn wait_rows(&self, stream: StreamId, seen: &[Offset], timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let seen: Vec<u64> = seen.iter().map(|offset| offset.0).collect();
        let mut published = self.shared().published.lock();
        let changed = published.changes_of(stream);
        while published.ends.at_or_before(stream, &seen) {
            if published.closed || changed.wait_until(&mut published, deadline).timed_out() {
                return !published.ends.at_or_before(stream, &seen);
            }
        }
        true
    }

    /// The key with this id in its partition.
    pub fn key_bytes(&self, partition: Partition, id: u32) -> Option<Vec<u8>> {
        let keys = self.shared().keys.get(usize::from(partition.0))?.read();
        keys.get(id).map(<[u8]>::to_vec)
    }

    /// The partition and id of a key, if there are rows of it.
    pub fn key_id(&self, key: &[u8]) -> Option<(Partition, u32)> {
        let partition = self.shared().partition_of(key);
        let keys = self.shared().keys.get(usize::from(partition.0))?.read();
        Some((partition, keys.find(key)?))
    }

    pub fn stats(&self) -> LogStats {
        let shared = self.shared();
        // Before the counters, which then have the reason.
        let full = shared.full.load(Ordering::Acquire);
        let mut stats = shared.counters.lock().snapshot();
        stats.full = full;
        {
            let published = shared.published.lock();
            stats.commit = published.commit;
            stats.segments = published.segments.len() as u64;
            stats.disk_bytes = stats.disk_bytes.max(published.allocated());
        }
        {
            let queue = shared.queue.lock();
            stats.queued_bytes = (queue.bytes + queue.in_flight) as u64;
        }
        stats.busy = shared.busy.load(Ordering::Relaxed);
        stats.key_refused = shared.key_refused.load(Ordering::Relaxed);
        stats.keys = shared.keys.iter().map(|keys| u64::from(keys.read().len())).sum();
        stats
    }

    /// Commits what is queued, then stops. Submissions after this are `Closed`.
    pub fn close(&self) {
        self.handle.close();
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Handle {
    fn close(&self) {
        self.shared.queue.lock().closing = true;
        self.shared.work.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // The last handle may go inside a `done`; the thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    #[inline]
    fn partition_of(&self, key: &[u8]) -> Partition {
        if key.is_empty() {
            return Partition(0);
        }
        let hash = keys::hash(key, self.meta.seed);
        Partition(keys::partition_of_hash(hash, self.meta.partitions))
    }
}
