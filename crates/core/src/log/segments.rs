//! The list of segments: begins new ones, trims old ones behind the readers, keeps spare files.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::LogError;
use super::keyfile::KeyFile;
use super::meta::random;
use super::segment::{Segment, SegmentHeader, create_segment, spare_name};
use super::shared::Shared;

/// Trimmed files kept for the next segments; more would only take space.
pub const MAX_SPARES: usize = 2;
/// Segments below `disk_max_bytes` that devices do not fill: results of the readers that hold the log go there, so
/// that these advance. A quarter of the bound where that is less.
const RESERVE: u64 = 4;

/// Owned by the commit thread.
pub struct Segments {
    shared: Arc<Shared>,
    key_files: Vec<KeyFile>,
    /// Names and sizes of files to take over.
    spares: Vec<(String, u64)>,
    /// Highest number that a segment ever had, also one that failed on the way.
    last_number: u64,
    /// What the next segment states as its predecessor and its end, until there is a published one.
    previous: (u64, u64),
}

impl Segments {
    pub fn new(
        shared: Arc<Shared>,
        key_files: Vec<KeyFile>,
        spares: Vec<(String, u64)>,
        last_number: u64,
        previous: (u64, u64),
    ) -> Segments {
        Segments { shared, key_files, spares, last_number, previous }
    }

    /// Makes a new segment, durable and listed as the last one, if the bounds allow it. `keys`: durable
    /// keys per partition.
    ///
    /// reserve: also in the last segments below the bound, which are kept for those whose reading makes room
    pub fn begin(&mut self, keys: &[u32], reserve: bool) -> Result<Arc<Segment>, LogError> {
        self.trim(false);
        let bound = if reserve { self.shared.options.disk_max_bytes } else { self.unreserved() };
        self.check_bound(self.shared.options.segment_bytes, bound)?;
        let made = self.make(keys);
        if matches!(made, Err(LogError::DiskFull { .. })) {
            // Rows that no reader needs are worth less than new ones.
            self.trim(true);
            return self.make(keys);
        }
        made
    }

    /// As `begin`, without trimming: while the log is being opened no reader has said what it holds.
    pub fn make(&mut self, keys: &[u32]) -> Result<Arc<Segment>, LogError> {
        let shared = self.shared.clone();
        let bytes = shared.options.segment_bytes;
        // With the keys in their files, opening needs only the new segment's.
        for (file, (upto, keys)) in self.key_files.iter_mut().zip(keys.iter().zip(&shared.keys)) {
            if file.keys() < *upto {
                file.flush(&*shared.storage, &keys.read(), *upto)?;
            }
        }
        let (first_commit, ends, previous) = {
            let published = shared.published.lock();
            let previous = published.segments.back().map(|last| (last.number, last.end()));
            (published.commit + 1, published.ends.clone(), previous.unwrap_or(self.previous))
        };
        self.last_number += 1;
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        let header = SegmentHeader {
            number: self.last_number,
            salt: random(),
            epoch: shared.epoch,
            first_commit,
            previous: previous.0,
            previous_end: previous.1,
            created_us: created.map_or(0, |time| time.as_micros() as i64),
            keys: self.key_files.iter().map(KeyFile::keys).collect(),
            ends,
        };
        if header.encode().len() as u64 > bytes / 8 {
            return Err(LogError::Invalid(format!(
                "segment_bytes = {bytes} is too small for the offsets of all streams and partitions, raise it"
            )));
        }
        let spare = self.spares.pop().map(|(name, _)| name);
        let segment =
            create_segment(&*shared.storage, &header, bytes, spare.as_deref()).map_err(|error| {
                LogError::io(format!("begin segment {} of {bytes} bytes", header.number), &error)
            })?;
        let segment = Arc::new(segment);
        shared.published.lock().segments.push_back(segment.clone());
        shared.counters.lock().stats.segments_created += 1;
        Ok(segment)
    }

    /// Whether everything that is there leaves the reserve free.
    pub fn check_reserve(&mut self) -> Result<(), LogError> {
        self.check_bound(0, self.unreserved())
    }

    fn unreserved(&self) -> u64 {
        let options = &self.shared.options;
        options.disk_max_bytes - (RESERVE * options.segment_bytes).min(options.disk_max_bytes / 4)
    }

    /// Whether one more segment of `bytes` (0: none) stays within `bound`, trimming what it takes and may.
    fn check_bound(&mut self, bytes: u64, bound: u64) -> Result<(), LogError> {
        let after = |this: &Segments| {
            let spare = this.spares.last().map_or(0, |(_, size)| (*size).min(bytes));
            this.disk_bytes() - spare + bytes
        };
        if after(self) > bound {
            self.trim(true);
        }
        let used = self.disk_bytes();
        if after(self) <= bound {
            return Ok(());
        }
        let holder = self.oldest_holder().unwrap_or_else(|| "no older segment is left".into());
        Err(LogError::DiskBound { used, bound, holder })
    }

    fn disk_bytes(&self) -> u64 {
        let spares: u64 = self.spares.iter().map(|(_, size)| size).sum();
        self.shared.published.lock().allocated() + spares
    }

    fn oldest_holder(&self) -> Option<String> {
        let published = self.shared.published.lock();
        let (oldest, next) = (published.segments.front()?.first(), published.segments.get(1)?.first());
        self.shared.holds.lock().holder(&oldest.ends, &next.ends)
    }

    /// Recycles the oldest segments that no reader holds, while there is more than `retention_bytes`;
    /// with `all` every one that no reader holds.
    pub fn trim(&mut self, all: bool) {
        loop {
            let oldest = {
                let mut published = self.shared.published.lock();
                let over = all || published.allocated() > self.shared.options.retention_bytes;
                let (Some(oldest), Some(next)) = (published.segments.front(), published.segments.get(1))
                else {
                    break;
                };
                let held =
                    self.shared.holds.lock().holder(&oldest.first().ends, &next.first().ends).is_some();
                // Rows of the longest dedupe window are needed after a restart, but less than new ones.
                let now =
                    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as i64);
                let keep_us = self.shared.deduping.keep_us.load(Ordering::Relaxed);
                let young = keep_us > 0 && next.created_us > now.saturating_sub(keep_us);
                if !over || held || (young && !all) {
                    break;
                }
                published.segments.pop_front()
            };
            let Some(oldest) = oldest else { break };
            if let Err(error) = self.recycle(oldest) {
                // The file stays until the log is opened the next time.
                self.shared.counters.lock().stats.last_error = Some(error.to_string());
            }
        }
        let disk_bytes = self.disk_bytes();
        self.shared.counters.lock().stats.disk_bytes = disk_bytes;
    }

    /// One directory sync per file, so that segments always vanish oldest first.
    fn recycle(&mut self, segment: Arc<Segment>) -> Result<(), LogError> {
        let storage = &*self.shared.storage;
        let failed = |error| LogError::io(format!("recycle {}", segment.name), &error);
        let full_size = segment.allocated == self.shared.options.segment_bytes;
        // A reader in the middle of the file keeps its bytes: then the name goes, not the content.
        // The segment is no longer listed, so no new reader can come.
        if full_size && self.spares.len() < MAX_SPARES && Arc::strong_count(&segment) == 1 {
            let spare = spare_name(segment.number);
            storage.rename(&segment.name, &spare).map_err(failed)?;
            storage.sync_directory().map_err(failed)?;
            self.spares.push((spare, segment.allocated));
        } else {
            storage.remove(&segment.name).map_err(failed)?;
            storage.sync_directory().map_err(failed)?;
        }
        self.shared.counters.lock().stats.segments_trimmed += 1;
        Ok(())
    }
}
