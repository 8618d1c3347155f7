//! Sessions between processes: the state that their table keeps and the rows behind it, and the next state.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use parking_lot::Mutex;

use super::change::Change;
use super::fold::Fold;
use super::stored::{Stored, StoredMessage};
use super::table::{Header, Kept, SessionTable};
use crate::log::{Log, LogError};
use crate::schema::{Offset, SESSIONS};

/// Who holds the rows behind the snapshot.
const READER: &str = "sessions";
const BATCH_ROWS: usize = 16_384;
/// Bytes of rows behind a snapshot, at least, before there is another.
const LEAST_BYTES: u64 = 32 << 20;
/// Bytes of everything in the log behind a snapshot, at least, before there is another: the log keeps them all for the rows of
/// ours among them.
const LEAST_LOG_BYTES: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    #[error("cannot {what} {path}: {error}")]
    Io { what: &'static str, path: String, error: io::Error },
    #[error(
        "the sessions in {path} are damaged at byte {byte}: {found}; restore the file, or move the directory away to \
         begin without sessions"
    )]
    Damaged { path: String, byte: u64, found: String },
    #[error(
        "the row {offset} of stream _sessions cannot be read: {why}; a later program may have written it, or move the \
         directory of sessions and the log away to begin without sessions"
    )]
    Row { offset: u64, why: String },
    #[error(
        "the snapshot of sessions in {path} ends at row {offset} and the log has the rows {start} to {end}: they are \
         not of one data directory; restore both, or move {path} away to begin without its sessions"
    )]
    Gap { path: String, offset: u64, start: u64, end: u64 },
    #[error(
        "the state of the sessions in {path} was not replaced: it is {} meanwhile and was {}; the next attempt goes on \
         from there",
        state(*.found), state(*.over)
    )]
    Overtaken { path: String, over: Option<u64>, found: Option<u64> },
    #[error("cannot read or write the changes of sessions: {0}")]
    Log(#[from] LogError),
}

impl SessionsError {
    pub(super) fn io(what: &'static str, path: &str, error: &io::Error) -> SessionsError {
        let error = io::Error::new(error.kind(), error.to_string());
        SessionsError::Io { what, path: path.to_owned(), error }
    }
}

fn state(offset: Option<u64>) -> String {
    offset.map_or_else(|| "none".to_owned(), |offset| format!("that before row {offset}"))
}

/// What the rows lie behind. Without a state, what the log does not have any more is not known.
fn base(kept: Option<&dyn Kept>, log: &Log) -> Header {
    let begin = || Header { offset: log.start(SESSIONS)[0].0, ..Header::default() };
    kept.map_or_else(begin, Kept::header)
}

/// What the running gateway keeps of it.
pub struct SessionStore {
    table: Arc<dyn SessionTable>,
    log: Log,
    /// Of the state that was read or put last.
    last: Mutex<Header>,
    /// Bytes of rows behind it, about.
    grown: AtomicU64,
    /// What had been logged since the start when it was written.
    logged: AtomicU64,
    snapshots: AtomicU64,
}

/// All sessions as the last process left them.
pub struct Recovered {
    kept: Option<Box<dyn Kept>>,
    fold: Fold,
    messages: HashMap<u64, StoredMessage>,
}

impl std::fmt::Debug for SessionStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.table.fmt(f)
    }
}

impl SessionStore {
    /// Reads what is there, and holds the rows in the log that it still needs.
    pub fn open(table: Arc<dyn SessionTable>, log: Log) -> Result<(SessionStore, Recovered), SessionsError> {
        let kept = table.kept()?;
        let base = base(kept.as_deref(), &log);
        let store = SessionStore {
            table,
            log,
            last: Mutex::new(base),
            grown: AtomicU64::new(0),
            logged: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
        };
        store.hold(base.offset);
        let (fold, _, bytes) = store.gather(&base)?;
        store.grown.store(bytes, Ordering::Relaxed);
        let mut messages = HashMap::new();
        if let Some(kept) = &kept {
            for part in 0..kept.parts() {
                kept.messages(part, &mut |message| {
                    messages.insert(message.id, message);
                })?;
            }
        }
        messages.extend(fold.messages().map(|message| (message.id, message.clone())));
        Ok((store, Recovered { kept, fold, messages }))
    }

    fn hold(&self, offset: u64) {
        let mut offsets = vec![Offset(0); usize::from(self.log.partitions())];
        offsets[0] = Offset(offset);
        self.log.hold(READER, SESSIONS, &offsets);
    }

    /// The rows behind a state, the offset behind them, and their bytes.
    fn gather(&self, base: &Header) -> Result<(Fold, u64, u64), SessionsError> {
        let mut fold = Fold::new(base.epoch, base.stopped, base.downlink);
        let mut offsets = self.log.start(SESSIONS);
        let (start, end) = (offsets[0].0, self.log.end(SESSIONS)[0].0);
        if base.offset < start || base.offset > end {
            let path = self.table.place();
            return Err(SessionsError::Gap { path, offset: base.offset, start, end });
        }
        offsets[0] = Offset(base.offset);
        let mut reader = self.log.reader(SESSIONS, &offsets)?;
        let mut bytes = 0;
        let mut at = base.offset;
        while let Some(batch) = reader.read(BATCH_ROWS)? {
            bytes += apply(&batch, &mut fold, at)?;
            at = reader.offsets()[0].0;
        }
        Ok((fold, at, bytes))
    }

    /// So many bytes of rows were added.
    pub fn grown(&self, bytes: usize) {
        self.grown.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether there is reason for another snapshot.
    pub fn is_due(&self) -> bool {
        let base = *self.last.lock();
        if self.grown.load(Ordering::Relaxed) > (base.bytes / 2).max(LEAST_BYTES) {
            return true;
        }
        let logged = self.log.stats().bytes.saturating_sub(self.logged.load(Ordering::Relaxed));
        logged > (base.bytes * 4).max(LEAST_LOG_BYTES) && self.log.end(SESSIONS)[0].0 > base.offset
    }

    /// Snapshots written since the start.
    pub fn snapshots(&self) -> u64 {
        self.snapshots.load(Ordering::Relaxed)
    }

    /// Merges the durable rows into the state that is kept, and lets the log trim them. One thread at a time.
    ///
    /// Whoever put the state, it is a fold of the same rows; so this goes on from what is there.
    pub fn compact(&self) -> Result<(), SessionsError> {
        let kept = self.table.kept()?;
        let (base, over) = (base(kept.as_deref(), &self.log), kept.map(|kept| kept.header().offset));
        let (grown, logged) = (self.grown.load(Ordering::Relaxed), self.log.stats().bytes);
        let (fold, offset, _) = self.gather(&base)?;
        if offset == base.offset {
            return Ok(());
        }
        *self.last.lock() = self.table.merge(over, &fold, offset)?;
        self.grown.fetch_sub(grown, Ordering::Relaxed);
        self.logged.store(logged, Ordering::Relaxed);
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        self.hold(offset);
        Ok(())
    }
}

impl Recovered {
    /// Every session of one part of `parts`; threads may take their parts side by side. `rest` comes after all of them.
    pub fn part(&self, part: usize, parts: usize, mut each: impl FnMut(Stored)) -> Result<(), SessionsError> {
        let Some(kept) = &self.kept else { return Ok(()) };
        for part in (part..kept.parts()).step_by(parts.max(1)) {
            kept.sessions(part, &mut |stored| {
                if let Some(stored) = self.fold.over(stored) {
                    each(stored);
                }
            })?;
        }
        Ok(())
    }

    /// Sessions that began after the state that is kept. All parts must have been taken before.
    pub fn rest(&self) -> impl Iterator<Item = Stored> + '_ {
        self.fold.rest()
    }

    /// The server that wrote it had stopped in order.
    pub fn stopped(&self) -> bool {
        self.fold.stopped
    }

    /// Messages of `_downlink` before this offset wait where they are to wait.
    pub fn downlink(&self) -> Option<u64> {
        self.fold.downlink.checked_sub(1)
    }

    /// A message that a queue names.
    pub fn message(&self, id: u64) -> Option<&StoredMessage> {
        self.messages.get(&id)
    }

    /// About how many sessions there are.
    pub fn len(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.header().sessions as usize)
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_none() && self.fold.rest().next().is_none()
    }
}

/// Adds the rows of a batch; gives their bytes. `at`: the offset of its first row.
fn apply(batch: &RecordBatch, fold: &mut Fold, at: u64) -> Result<u64, SessionsError> {
    let column = |name: &str| batch.column_by_name(name);
    let times = column("ts").and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>());
    let sessions = column("session").and_then(|array| array.as_primitive_opt::<Int64Type>());
    let changes = column("change").and_then(|array| array.as_binary_opt::<i32>());
    let (Some(times), Some(sessions), Some(changes)) = (times, sessions, changes) else {
        return Err(SessionsError::Row { offset: at, why: "its columns are others".to_owned() });
    };
    let mut bytes = 0;
    for row in 0..batch.num_rows() {
        let change = changes.value(row);
        bytes += change.len() as u64 + ROW_BYTES;
        let parsed = Change::parse(change)
            .map_err(|why| SessionsError::Row { offset: at + row as u64, why: why.to_string() })?;
        fold.apply(times.value(row), sessions.value(row) as u64, &parsed);
    }
    Ok(bytes)
}

/// What a row takes beside its change.
pub(super) const ROW_BYTES: u64 = 16;
