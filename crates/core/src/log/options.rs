//! Settings of the log, with the ranges in which they make sense.

use std::time::Duration;

use super::error::LogError;

/// When a submission counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// After the `fdatasync` that covers it has returned.
    #[default]
    Sync,
    /// After the write; `fdatasync` follows within [`ASYNC_SYNC_INTERVAL`]. A power loss can take what
    /// was acknowledged since then. Readers still see only what has been synced.
    Async,
}

/// Longest time between write and `fdatasync` with [`Durability::Async`]. Ours: half of the 100 ms
/// within which a reading must be queryable.
pub const ASYNC_SYNC_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Fixed when the data directory is created.
    pub partitions: u16,
    /// Size of a segment file, preallocated.
    pub segment_bytes: u64,
    /// A commit starts at once when this much is queued; also the most that one commit takes from the
    /// queue, unless a single submission is larger. 4 MB appends are far slower than four of 1 MB.
    pub commit_bytes: usize,
    /// Shortest time between the starts of two commits that are not full. An idle log commits at once.
    pub commit_interval: Duration,
    pub durability: Durability,
    /// Most keys in one partition.
    pub max_keys: u32,
    /// Most bytes queued and in the running commit.
    pub queue_bytes: usize,
    /// Segments that no reader holds are kept up to this size of the log.
    pub retention_bytes: u64,
    /// Most bytes of segment files. When held segments fill it, submissions fail with `DiskBound`.
    pub disk_max_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            partitions: 4,
            segment_bytes: 128 << 20,
            commit_bytes: 1 << 20,
            commit_interval: Duration::from_micros(300),
            durability: Durability::Sync,
            max_keys: 4_000_000,
            queue_bytes: 32 << 20,
            retention_bytes: 1 << 30,
            disk_max_bytes: 16 << 30,
        }
    }
}

/// Most partitions: the offsets of each stand in every segment header.
pub const MAX_PARTITIONS: u16 = 1024;
/// Positions in a segment are u32 in the commit header.
pub const MAX_SEGMENT_BYTES: u64 = 2 << 30;
pub const MIN_SEGMENT_BYTES: u64 = 32 << 10;

impl LogOptions {
    /// Errors name the setting, the value found and the range.
    pub fn check(&self) -> Result<(), LogError> {
        let range = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(LogError::Invalid(format!("{name} = {value} is out of range, it must be {low} to {high}")))
        };
        range("partitions", self.partitions.into(), 1, MAX_PARTITIONS.into())?;
        range("segment_bytes", self.segment_bytes, MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES)?;
        range("commit_bytes", self.commit_bytes as u64, 1, self.segment_bytes)?;
        range("queue_bytes", self.queue_bytes as u64, 1, 1 << 40)?;
        // A key's number over all partitions, id * partitions + partition, is a u32.
        range("max_keys", self.max_keys.into(), 1, u64::from(u32::MAX) / u64::from(self.partitions) - 1)?;
        range("disk_max_bytes", self.disk_max_bytes, 2 * self.segment_bytes, u64::MAX)
    }
}
