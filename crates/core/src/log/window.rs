//! Reading a segment front to back: a buffer that reads ahead, and the commits found in it.

use std::sync::Arc;

use super::block::{Block, COMMIT_HEADER_BYTES, CommitHeader};
use super::error::LogError;
use super::segment::Segment;

/// Bytes read at once: large enough that a catching-up reader is not bound by system calls.
const READ_AHEAD_BYTES: u64 = 256 << 10;
/// A buffer that one large commit has grown is given back.
const KEEP_BYTES: usize = 4 << 20;

/// A part of one segment in memory.
pub struct Window {
    segment: Arc<Segment>,
    start: u64,
    /// What follows `start`; only the first `filled` bytes are the segment's.
    bytes: Vec<u8>,
    filled: usize,
}

impl Window {
    pub fn new(segment: Arc<Segment>) -> Window {
        Window { segment, start: 0, bytes: Vec::new(), filled: 0 }
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Bytes `at..at + length`; `limit` is how far the segment may be read, `at + length` at most that.
    pub fn get(&mut self, at: u64, length: usize, limit: u64) -> Result<&[u8], LogError> {
        let end = at + length as u64;
        let filled = self.start..self.start + self.filled as u64;
        if at < filled.start || end > filled.end {
            self.read(at, length, limit)?;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + length])
    }

    /// Moves the window to `at`; what it has of it is not read again.
    fn read(&mut self, at: u64, length: usize, limit: u64) -> Result<(), LogError> {
        let ahead = READ_AHEAD_BYTES.max(length as u64).min(limit.saturating_sub(at)) as usize;
        let known =
            at.checked_sub(self.start).map_or(0..0, |from| (from as usize).min(self.filled)..self.filled);
        let kept = known.len();
        if self.bytes.len() < ahead || self.bytes.len() > KEEP_BYTES {
            let mut bytes = vec![0; ahead.max(kept)];
            bytes[..kept].copy_from_slice(&self.bytes[known]);
            self.bytes = bytes;
        } else {
            self.bytes.copy_within(known, 0);
        }
        (self.start, self.filled) = (at, kept);
        let Segment { file, name, .. } = &*self.segment;
        if let Some(into) = self.bytes.get_mut(kept..ahead) {
            let read = file.read_at(at + kept as u64, into);
            self.filled += read.map_err(|error| LogError::io(format!("read {name} at byte {at}"), &error))?;
        }
        if self.filled < length {
            let what = "the file ends before its last commit";
            return Err(LogError::corrupt(name, at + self.filled as u64, what));
        }
        Ok(())
    }

    /// The header and, into `blocks`, the directory of the commit at byte `at`. The inner error says
    /// why there is no valid one. Bodies are not looked at.
    pub fn commit(
        &mut self,
        at: u64,
        limit: u64,
        blocks: &mut Vec<Block>,
    ) -> Result<Result<CommitHeader, String>, LogError> {
        blocks.clear();
        let salt = self.segment.salt;
        if limit - at < COMMIT_HEADER_BYTES as u64 {
            return Ok(Err("fewer bytes are left than a commit's header has".into()));
        }
        let Some(header) = CommitHeader::read(self.get(at, COMMIT_HEADER_BYTES, limit)?, salt) else {
            return Ok(Err("no commit of this segment begins here".into()));
        };
        if header.head_bytes() as u64 > limit - at {
            return Ok(Err("the commit's directory exceeds the segment".into()));
        }
        if let Err(error) = header.check(self.get(at, header.head_bytes(), limit)?, blocks) {
            return Ok(Err(error.to_string()));
        }
        if u64::from(header.bytes) > limit - at {
            return Ok(Err(format!("commit {} exceeds the segment", header.number)));
        }
        Ok(Ok(header))
    }

    /// The body of `block`, which begins at byte `at`; the inner error says what is wrong with it.
    pub fn body(&mut self, at: u64, block: &Block, limit: u64) -> Result<Result<&[u8], String>, LogError> {
        let body = self.get(at, block.body_bytes as usize, limit)?;
        if crc32c::crc32c(body) != block.body_crc {
            let Block { stream, partition, base, rows, .. } = block;
            let to = base.0 + u64::from(*rows);
            return Ok(Err(format!(
                "the CRC of a block is wrong; it held stream {}, partition {}, offsets {}..{to}",
                stream.0, partition.0, base.0
            )));
        }
        Ok(Ok(body))
    }
}
