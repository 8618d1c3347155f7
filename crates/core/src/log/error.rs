//! What can go wrong in the log, and what the caller can do about it.

use std::io;

use crate::schema::{Partition, SchemaId, StreamId};

/// Cloneable, because one failed commit fails every submission in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Back-pressure: try again when commits have returned. Nothing was queued.
    #[error(
        "the log's queue is full: {queued} bytes wait for their commit, the bound is queue_bytes = {bound}"
    )]
    Busy { queued: usize, bound: usize },
    #[error("the log is closed")]
    Closed,
    /// Back-pressure until the named reader advances. Nothing was made durable.
    #[error(
        "the log has reached disk_max_bytes: {used} of {bound} bytes are used and {holder}; \
         let that reader advance, remove it, or raise disk_max_bytes"
    )]
    DiskBound { used: u64, bound: u64, holder: String },
    /// The file system is full. Later submissions try again.
    #[error("the disk is full: cannot {what}: {error}; free some space, the log goes on by itself")]
    DiskFull { what: String, error: String },
    #[error("cannot {what}: {error}")]
    Io { what: String, kind: io::ErrorKind, error: String },
    #[error("another process uses the log in {path}; stop it or choose another data directory")]
    Locked { path: String },
    /// Stored bytes are not those that were written. Never served.
    #[error("the log is damaged in {file} at byte {byte}: {found}")]
    Corrupt { file: String, byte: u64, found: String },
    #[error("{file} has format version {found}, this program reads version {known}; use a later program")]
    Version { file: String, found: u16, known: u16 },
    /// New keys over the bound, or keys that are too long. Nothing was queued; without the named
    /// (index of part, row) pairs the submission passes.
    #[error(
        "{} rows have a key that cannot be added, the first one in {partition:?}: {why}",
        refused.len()
    )]
    KeyRefused { partition: Partition, refused: Vec<(usize, u32)>, why: String },
    #[error("a submission of {bytes} bytes does not fit into a segment, which holds {bound}; split it")]
    TooLarge { bytes: usize, bound: usize },
    #[error("schema {0:?} is not registered; register it before rows of it are written or read")]
    UnknownSchema(SchemaId),
    #[error("stream {0:?} has no registered schema")]
    UnknownStream(StreamId),
    #[error("schema {id:?} of stream {name:?} cannot be registered: {why}")]
    SchemaConflict { id: SchemaId, name: String, why: String },
    /// The reader fell behind the retention (it did not hold what it needs).
    #[error("rows {wanted}.. of {stream:?} {partition:?} are gone, the log starts at {start}")]
    Trimmed { stream: StreamId, partition: Partition, wanted: u64, start: u64 },
    /// A mistake of the caller, for example an option out of its range.
    #[error("{0}")]
    Invalid(String),
}

impl LogError {
    /// Space is missing, which may come back.
    pub fn is_full(&self) -> bool {
        matches!(self, LogError::DiskFull { .. } | LogError::DiskBound { .. })
    }

    /// `what` completes "cannot ...", for example "write commit 7 to segment 3".
    pub fn io(what: impl Into<String>, error: &io::Error) -> LogError {
        let (what, text) = (what.into(), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                LogError::DiskFull { what, error: text }
            }
            kind => LogError::Io { what, kind, error: text },
        }
    }

    pub fn corrupt(file: impl Into<String>, byte: u64, found: impl Into<String>) -> LogError {
        LogError::Corrupt { file: file.into(), byte, found: found.into() }
    }
}
