//! A commit on disk: header, directory of its blocks, then the blocks' bodies.
//!
//! All block headers stand together at the front, so that one CRC binds them and the commit header,
//! each entry carries its body's CRC, and a reader hops over bodies of other streams without reading
//! them. A commit is valid only as a whole. Every byte is drawn in `docs/formats/log.md`.

use super::varint::{Cursor, Malformed, put_varint, put_zigzag};
use crate::schema::{Offset, Partition, SchemaId, StreamId};

pub const COMMIT_MAGIC: [u8; 4] = *b"HWcm";
pub const COMMIT_VERSION: u8 = 1;
pub const COMMIT_HEADER_BYTES: usize = 40;
/// The CRC covers what follows it; magic and salt before it are compared.
const CRC_AT: usize = 12;
const CRC_FROM: usize = 16;
/// Longest directory entry: see `put`.
pub const MAX_ENTRY_BYTES: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Rows of one (stream, partition) in the frame layout.
    Rows = 1,
    /// New keys of one partition: `base` is the first id, `rows` their number.
    Keys = 2,
}

/// One entry of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub kind: BlockKind,
    pub stream: StreamId,
    pub partition: Partition,
    pub schema: SchemaId,
    /// Offset of the first row.
    pub base: Offset,
    pub rows: u32,
    pub body_bytes: u32,
    /// CRC32C of the body.
    pub body_crc: u32,
    /// Lowest event time, µs; 0 without a `ts` column. The frame's timestamps are relative to it.
    pub ts_min: i64,
    /// Highest event time - lowest.
    pub ts_span: u64,
}

impl Block {
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        put_varint(out, self.stream.0.into());
        put_varint(out, self.partition.0.into());
        put_varint(out, self.schema.0.into());
        put_varint(out, self.base.0);
        put_varint(out, self.rows.into());
        put_varint(out, self.body_bytes.into());
        put_zigzag(out, self.ts_min);
        put_varint(out, self.ts_span);
    }

    fn take(from: &mut Cursor<'_>) -> Result<Block, Malformed> {
        let kind = match from.u8()? {
            1 => BlockKind::Rows,
            2 => BlockKind::Keys,
            _ => return Err(Malformed("a block is of unknown kind")),
        };
        Ok(Block {
            kind,
            body_crc: from.u32()?,
            stream: StreamId(from.narrow()?),
            partition: Partition(from.narrow()?),
            schema: SchemaId(from.narrow()?),
            base: Offset(from.varint()?),
            rows: from.narrow()?,
            body_bytes: from.narrow()?,
            ts_min: from.zigzag()?,
            ts_span: from.varint()?,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// Of the segment: tells this commit from those that a recycled file held before, and cannot be
    /// guessed by a device that sends bytes which look like a commit.
    pub salt: u64,
    pub number: u64,
    /// Whole commit: header, directory and bodies.
    pub bytes: u32,
    pub directory_bytes: u32,
    /// Up to here the segment was synced when this commit was written.
    pub durable: u32,
    pub blocks: u16,
}

impl CommitHeader {
    /// Writes the header into the first bytes of `commit`, whose directory is already in place.
    pub fn seal(&self, commit: &mut [u8]) {
        let mut header = [0_u8; COMMIT_HEADER_BYTES];
        header[0..4].copy_from_slice(&COMMIT_MAGIC);
        header[4..12].copy_from_slice(&self.salt.to_le_bytes());
        header[16..24].copy_from_slice(&self.number.to_le_bytes());
        header[24..28].copy_from_slice(&self.bytes.to_le_bytes());
        header[28..32].copy_from_slice(&self.directory_bytes.to_le_bytes());
        header[32..36].copy_from_slice(&self.durable.to_le_bytes());
        header[36..38].copy_from_slice(&self.blocks.to_le_bytes());
        header[38] = COMMIT_VERSION;
        commit[..COMMIT_HEADER_BYTES].copy_from_slice(&header);
        let covered = COMMIT_HEADER_BYTES + self.directory_bytes as usize;
        let crc = crc32c::crc32c(&commit[CRC_FROM..covered]);
        commit[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the fixed part. `None`: no commit of this segment begins here.
    pub fn read(header: &[u8], salt: u64) -> Option<CommitHeader> {
        let header: &[u8; COMMIT_HEADER_BYTES] = header.first_chunk()?;
        if header[0..4] != COMMIT_MAGIC || header[4..12] != salt.to_le_bytes() {
            return None;
        }
        let mut cursor = Cursor::new(&header[CRC_FROM..]);
        Some(CommitHeader {
            salt,
            number: cursor.u64().ok()?,
            bytes: cursor.u32().ok()?,
            directory_bytes: cursor.u32().ok()?,
            durable: cursor.u32().ok()?,
            blocks: cursor.u16().ok()?,
        })
    }

    /// Header and directory, which may not be believed before `check` has passed.
    pub fn head_bytes(&self) -> usize {
        COMMIT_HEADER_BYTES.saturating_add(self.directory_bytes as usize)
    }

    /// Checks `head` (header and directory) and appends its blocks, in the order of their bodies.
    pub fn check(&self, head: &[u8], blocks: &mut Vec<Block>) -> Result<(), Malformed> {
        let stored: [u8; 4] = *head[CRC_AT..].first_chunk().ok_or(Malformed("ends too early"))?;
        if u32::from_le_bytes(stored) != crc32c::crc32c(&head[CRC_FROM..]) {
            return Err(Malformed("the CRC of the commit's header is wrong"));
        }
        if head[38] != COMMIT_VERSION {
            return Err(Malformed("the commit has a format version that this program does not know"));
        }
        let mut cursor = Cursor::new(&head[COMMIT_HEADER_BYTES..]);
        let mut bytes = head.len() as u64;
        for _ in 0..self.blocks {
            let block = Block::take(&mut cursor)?;
            bytes += u64::from(block.body_bytes);
            blocks.push(block);
        }
        if !cursor.is_empty() || bytes != u64::from(self.bytes) {
            return Err(Malformed("the commit's directory and its length disagree"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Block = Block {
        kind: BlockKind::Rows,
        stream: StreamId(u16::MAX),
        partition: Partition(u16::MAX),
        schema: SchemaId(u32::MAX),
        base: Offset(u64::MAX),
        rows: u32::MAX,
        body_bytes: 3,
        body_crc: u32::MAX,
        ts_min: i64::MIN,
        ts_span: u64::MAX,
    };

    fn commit() -> (CommitHeader, Vec<u8>) {
        let mut commit = vec![0; COMMIT_HEADER_BYTES];
        BLOCK.put(&mut commit);
        Block { kind: BlockKind::Keys, body_bytes: 0, ts_min: 5, ..BLOCK }.put(&mut commit);
        let directory_bytes = (commit.len() - COMMIT_HEADER_BYTES) as u32;
        commit.extend_from_slice(b"abc");
        let header = CommitHeader {
            salt: 9,
            number: 8,
            bytes: commit.len() as u32,
            directory_bytes,
            durable: 7,
            blocks: 2,
        };
        header.seal(&mut commit);
        (header, commit)
    }

    #[test]
    fn round_trip_at_the_limits() {
        let (header, commit) = commit();
        let read = CommitHeader::read(&commit, 9).unwrap();
        assert_eq!(read, header);
        let mut blocks = Vec::new();
        read.check(&commit[..read.head_bytes()], &mut blocks).unwrap();
        assert_eq!(blocks[0], BLOCK);
        assert_eq!((blocks[1].kind, blocks[1].ts_min), (BlockKind::Keys, 5));
        assert!(CommitHeader::read(&commit, 10).is_none(), "another life of the file");
    }

    #[test]
    fn an_entry_is_never_longer_than_stated() {
        let mut out = Vec::new();
        Block { body_bytes: u32::MAX, ..BLOCK }.put(&mut out);
        assert!(out.len() <= MAX_ENTRY_BYTES, "{}", out.len());
    }

    #[test]
    fn any_flipped_bit_of_the_head_is_seen() {
        let (header, commit) = commit();
        for bit in 0..header.head_bytes() * 8 {
            let mut damaged = commit.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let seen = match CommitHeader::read(&damaged, 9) {
                None => true,
                Some(read) if read.head_bytes() > damaged.len() => true,
                Some(read) => read.check(&damaged[..read.head_bytes()], &mut Vec::new()).is_err(),
            };
            assert!(seen, "bit {bit}");
        }
    }
}
