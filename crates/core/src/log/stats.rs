//! The log's own figures, for metrics.

use std::time::Duration;

use hdrhistogram::Histogram;

/// A snapshot; counters count since the log was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    pub epoch: u32,
    /// Number of the last durable commit, over the life of the data directory.
    pub commit: u64,
    pub commits: u64,
    pub submissions: u64,
    pub rows: u64,
    /// Bytes of commits, headers included.
    pub bytes: u64,
    pub syncs: u64,
    /// Submissions refused because the queue was full.
    pub busy: u64,
    /// Submissions refused because of a key.
    pub key_refused: u64,
    /// Submissions failed with each of these.
    pub failed: u64,
    pub disk_full: u64,
    pub disk_bound: u64,
    /// Nothing from devices is accepted now, because space is missing.
    pub full: bool,
    /// Writes and syncs of segments that failed; each ended its segment. An alarm belongs here.
    pub write_errors: u64,
    pub sync_errors: u64,
    /// Acknowledged with `Durability::Async` and then lost to a failed sync.
    pub lost_rows: u64,
    pub segments_created: u64,
    pub segments_trimmed: u64,
    pub segments: u64,
    /// Segment files including spare ones.
    pub disk_bytes: u64,
    /// Bytes queued and in the running commit.
    pub queued_bytes: u64,
    pub keys: u64,
    /// Write and sync of a commit.
    pub commit_time: Latency,
    /// From `submit` to durable, of the oldest submission in each commit.
    pub submit_time: Latency,
    /// The last failure, in words.
    pub last_error: Option<String>,
}

/// Microseconds, to about 1 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// Written by the commit thread, once per commit.
pub struct Counters {
    pub stats: LogStats,
    pub commit_time: Timing,
    pub submit_time: Timing,
}

pub struct Timing(Option<Histogram<u64>>);

const MAX_US: u64 = 3_600_000_000;

impl Timing {
    fn new() -> Timing {
        // The bounds are valid, so this is never None; a figure less is no reason to fail.
        Timing(Histogram::new_with_bounds(1, MAX_US, 2).ok())
    }

    pub fn record(&mut self, time: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record((time.as_micros() as u64).clamp(1, MAX_US));
        }
    }

    fn latency(&self) -> Latency {
        self.0.as_ref().map_or(Latency::default(), |times| Latency {
            count: times.len(),
            p50_us: times.value_at_quantile(0.5),
            p99_us: times.value_at_quantile(0.99),
            max_us: times.max(),
        })
    }
}

impl Counters {
    pub fn new() -> Counters {
        Counters { stats: LogStats::default(), commit_time: Timing::new(), submit_time: Timing::new() }
    }

    pub fn snapshot(&self) -> LogStats {
        let mut stats = self.stats.clone();
        stats.commit_time = self.commit_time.latency();
        stats.submit_time = self.submit_time.latency();
        stats
    }
}
