//! Segments: preallocated files of commits, each with a header that says where its predecessor ends.
//!
//! A segment belongs to one run of the process (epoch). Its header also states the next offset of
//! every (stream, partition), so opening the log and seeking in it read headers, not rows. The header
//! is durable before the file gets its name; the fields are drawn in `docs/formats/log.md`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::error::LogError;
use super::storage::{Storage, StorageFile};
use super::varint::{Cursor, Malformed};
use crate::schema::{Offset, Partition, StreamId};

pub const SEGMENT_MAGIC: [u8; 8] = *b"HWlogseg";
pub const SEGMENT_VERSION: u16 = 1;
/// Commits begin at a multiple of this.
pub const PAGE_BYTES: u32 = 4096;
const FIXED_BYTES: usize = 80;
const CRC_FROM: usize = 16;

/// Next offset per stream and partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends(BTreeMap<StreamId, Vec<u64>>);

impl Ends {
    /// Next offset; 0 for a stream never written.
    pub fn get(&self, stream: StreamId, partition: Partition) -> Offset {
        let ends = self.0.get(&stream).and_then(|ends| ends.get(usize::from(partition.0)));
        Offset(ends.copied().unwrap_or(0))
    }

    pub fn of(&self, stream: StreamId, partitions: u16) -> Vec<Offset> {
        (0..partitions).map(|partition| self.get(stream, Partition(partition))).collect()
    }

    pub fn set(&mut self, stream: StreamId, partition: Partition, next: Offset) {
        let ends = self.0.entry(stream).or_default();
        let at = usize::from(partition.0);
        if ends.len() <= at {
            ends.resize(at + 1, 0);
        }
        ends[at] = next.0;
    }

    /// Whether every offset of `stream` here is at or before the wanted one.
    pub fn at_or_before(&self, stream: StreamId, wanted: &[u64]) -> bool {
        let ends = self.0.get(&stream).map_or(&[][..], Vec::as_slice);
        ends.iter().zip(wanted).all(|(end, wanted)| end <= wanted)
    }

    fn entries(&self) -> impl Iterator<Item = (StreamId, u16, u64)> + '_ {
        self.0.iter().flat_map(|(stream, ends)| {
            ends.iter().enumerate().filter(|(_, end)| **end > 0).map(|(at, end)| (*stream, at as u16, *end))
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub number: u64,
    /// Random, new with every life of the file; see `CommitHeader::salt`.
    pub salt: u64,
    /// Counts the opens of this data directory.
    pub epoch: u32,
    /// Number of the first commit, one more than the last one before it.
    pub first_commit: u64,
    /// The segment before this one and where it validly ends; (0, 0): none.
    pub previous: u64,
    pub previous_end: u64,
    /// When it was written, µs since the Unix epoch, UTC; for people.
    pub created_us: i64,
    /// Keys that the key files hold at least, per partition.
    pub keys: Vec<u32>,
    pub ends: Ends,
}

impl SegmentHeader {
    /// Whole pages.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIXED_BYTES];
        for keys in &self.keys {
            out.extend_from_slice(&keys.to_le_bytes());
        }
        let mut entries = 0_u32;
        for (stream, partition, end) in self.ends.entries() {
            out.extend_from_slice(&stream.0.to_le_bytes());
            out.extend_from_slice(&partition.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
            entries += 1;
        }
        let used = out.len();
        out.resize(used.next_multiple_of(PAGE_BYTES as usize), 0);
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &SEGMENT_MAGIC);
        put(8, &SEGMENT_VERSION.to_le_bytes());
        put(10, &(self.keys.len() as u16).to_le_bytes());
        put(16, &(used as u32).to_le_bytes());
        put(20, &entries.to_le_bytes());
        put(24, &self.number.to_le_bytes());
        put(32, &self.salt.to_le_bytes());
        put(40, &self.first_commit.to_le_bytes());
        put(48, &self.previous.to_le_bytes());
        put(56, &self.previous_end.to_le_bytes());
        put(64, &self.created_us.to_le_bytes());
        put(72, &self.epoch.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..12]), &out[CRC_FROM..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of `file`; errors name it `name`.
    pub fn load(file: &dyn StorageFile, name: &str) -> Result<SegmentHeader, LogError> {
        let read = |bytes: &mut [u8]| {
            let count = file.read_at(0, bytes);
            count.map_err(|error| LogError::io(format!("read the header of {name}"), &error))
        };
        let damaged = |found: &str| LogError::corrupt(name, 0, format!("the segment's header: {found}"));
        let mut page = vec![0; PAGE_BYTES as usize];
        if read(&mut page)? < page.len() || page[..8] != SEGMENT_MAGIC {
            return Err(damaged("it does not begin with the magic of a segment"));
        }
        let used = u32::from_le_bytes([page[16], page[17], page[18], page[19]]) as usize;
        // Bounds what a damaged length can make us read; the CRC then tells.
        if used > 64 << 20 {
            return Err(damaged("its length is out of range"));
        }
        page.resize(used.next_multiple_of(PAGE_BYTES as usize).max(PAGE_BYTES as usize), 0);
        if read(&mut page)? < page.len() {
            return Err(damaged("the file is shorter than it"));
        }
        let stored = u32::from_le_bytes([page[12], page[13], page[14], page[15]]);
        if stored != crc32c::crc32c_append(crc32c::crc32c(&page[..12]), &page[CRC_FROM..]) {
            return Err(damaged("its CRC is wrong"));
        }
        let version = u16::from_le_bytes([page[8], page[9]]);
        if version != SEGMENT_VERSION {
            return Err(LogError::Version { file: name.into(), found: version, known: SEGMENT_VERSION });
        }
        let partitions = u16::from_le_bytes([page[10], page[11]]);
        SegmentHeader::parse(&page[20..used.max(20)], partitions).map_err(|error| damaged(error.0))
    }

    fn parse(bytes: &[u8], partitions: u16) -> Result<SegmentHeader, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let entries = cursor.u32()?;
        let mut header = SegmentHeader {
            number: cursor.u64()?,
            salt: cursor.u64()?,
            first_commit: cursor.u64()?,
            previous: cursor.u64()?,
            previous_end: cursor.u64()?,
            created_us: cursor.u64()? as i64,
            epoch: cursor.u32()?,
            keys: Vec::new(),
            ends: Ends::default(),
        };
        cursor.u32()?;
        for _ in 0..partitions {
            header.keys.push(cursor.u32()?);
        }
        for _ in 0..entries {
            header.ends.set(StreamId(cursor.u16()?), Partition(cursor.u16()?), Offset(cursor.u64()?));
        }
        if cursor.is_empty() { Ok(header) } else { Err(Malformed("bytes follow its last entry")) }
    }
}

/// A point from which reading may start: all rows before it have offsets below `ends`.
#[derive(Clone, Debug)]
pub struct Mark {
    pub byte: u64,
    pub ends: Arc<Ends>,
}

/// A segment in use.
pub struct Segment {
    pub name: String,
    /// When it was begun, µs since the Unix epoch.
    pub created_us: i64,
    pub number: u64,
    pub salt: u64,
    pub file: Arc<dyn StorageFile>,
    /// Bytes that the file takes on disk.
    pub allocated: u64,
    /// Durable, readable bytes. Written under the lock of the log's published state.
    end: AtomicU64,
    /// In order; the first is the segment's beginning, the others are known while the process lives.
    marks: Mutex<Vec<Mark>>,
}

/// Marks of one segment: bounds both their memory and what a seek has to skip.
const MAX_MARKS: u64 = 32;

impl Segment {
    pub fn new(
        header: &SegmentHeader,
        header_bytes: u64,
        file: Arc<dyn StorageFile>,
        allocated: u64,
    ) -> Segment {
        let first = Mark { byte: header_bytes, ends: Arc::new(header.ends.clone()) };
        Segment {
            name: segment_name(header.number),
            number: header.number,
            salt: header.salt,
            created_us: header.created_us,
            file,
            allocated,
            end: AtomicU64::new(header_bytes),
            marks: Mutex::new(vec![first]),
        }
    }

    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    pub fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Relaxed);
    }

    pub fn first(&self) -> Mark {
        self.marks.lock()[0].clone()
    }

    /// Notes that commits up to `byte` are durable and lead to `ends`, if the last mark is far enough.
    pub fn mark(&self, byte: u64, ends: &Ends) {
        let mut marks = self.marks.lock();
        let last = marks.last().map_or(0, |mark| mark.byte);
        if byte >= last + (self.allocated / MAX_MARKS).max(64 << 10) {
            marks.push(Mark { byte, ends: Arc::new(ends.clone()) });
        }
    }

    /// The latest mark from which a reader at `wanted` sees every row it wants.
    pub fn seek(&self, stream: StreamId, wanted: &[u64]) -> Option<Mark> {
        let marks = self.marks.lock();
        marks.iter().rev().find(|mark| mark.ends.at_or_before(stream, wanted)).cloned()
    }
}

pub fn segment_name(number: u64) -> String {
    format!("segment-{number:012}")
}

/// A trimmed segment whose disk space the next one takes over.
pub fn spare_name(number: u64) -> String {
    format!("spare-{number:012}")
}

pub fn parse_name(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix).filter(|digits| digits.len() == 12)?.parse().ok()
}

const NEW: &str = "segment.new";

/// Makes a segment of `bytes` bytes under its name, from `spare` if there is one. Header and name are
/// durable when this returns; until then the file is called `segment.new`, which opening removes.
pub fn create_segment(
    storage: &dyn Storage,
    header: &SegmentHeader,
    bytes: u64,
    spare: Option<&str>,
) -> std::io::Result<Segment> {
    let file = match spare {
        Some(spare) => {
            storage.rename(spare, NEW)?;
            storage.open(NEW)?
        }
        None => storage.create(NEW)?,
    };
    let encoded = header.encode();
    let made = (|| {
        if file.size()? > bytes {
            file.set_len(bytes)?;
        }
        file.allocate(bytes)?;
        file.write_at(0, &encoded)?;
        file.sync()?;
        storage.rename(NEW, &segment_name(header.number))?;
        storage.sync_directory()
    })();
    if let Err(error) = made {
        // Gives back the space; on a full disk the next attempt needs it. Failing here changes nothing.
        let _ = storage.remove(NEW);
        return Err(error);
    }
    Ok(Segment::new(header, encoded.len() as u64, file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_default_to_zero_and_compare_per_partition() {
        let mut ends = Ends::default();
        ends.set(StreamId(3), Partition(1), Offset(5));
        assert_eq!(ends.of(StreamId(3), 3), [Offset(0), Offset(5), Offset(0)]);
        assert!(ends.at_or_before(StreamId(3), &[0, 5, 0]));
        assert!(!ends.at_or_before(StreamId(3), &[9, 4, 9]));
        assert!(ends.at_or_before(StreamId(4), &[0, 0, 0]));
    }

    #[test]
    fn names_sort_by_number_and_parse_back() {
        assert_eq!(parse_name(&segment_name(7), "segment-"), Some(7));
        assert!(segment_name(9) < segment_name(10));
        assert_eq!(parse_name("segment-7", "segment-"), None);
        assert_eq!(parse_name("segment.new", "segment-"), None);
    }
}
