//! The file that a start begins with: sessions and their messages in blocks, each with its checksum.

use std::io;
use std::sync::Arc;

use super::store::SessionsError;
use super::stored::{Stored, StoredMessage};
use super::table::{Header, Kept};
use crate::log::{Cursor, Malformed, Storage, StorageFile, put_varint};

const MAGIC: &[u8; 4] = b"HWSN";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 56;
const BLOCK_HEADER_BYTES: usize = 12;
/// A block is closed when it has so many bytes.
const BLOCK_BYTES: usize = 1 << 20;
const STOPPED: u16 = 1;
const SUFFIX: &str = ".snapshot";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sessions = 1,
    Messages = 2,
}

pub(super) fn name_of(offset: u64) -> String {
    format!("{offset:016x}{SUFFIX}")
}

/// The offset of a snapshot's name.
pub(super) fn offset_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// As the file begins.
impl Header {
    fn put(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(if self.stopped { STOPPED } else { 0 }).to_le_bytes());
        for number in [self.offset, self.bytes, self.sessions, self.messages, self.downlink] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.epoch.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&out);
        header
    }

    fn parse(raw: &[u8; HEADER_BYTES]) -> Result<Header, String> {
        let mut from = Cursor::new(raw);
        let mut parse = || -> Result<(Header, u16, u32), Malformed> {
            let _ = from.take(MAGIC.len())?;
            let (version, flags) = (from.u16()?, from.u16()?);
            let (offset, bytes, sessions, messages) = (from.u64()?, from.u64()?, from.u64()?, from.u64()?);
            let (downlink, epoch, stopped) = (from.u64()?, from.u32()?, flags & STOPPED != 0);
            let header = Header { offset, bytes, sessions, messages, downlink, epoch, stopped };
            Ok((header, version, from.u32()?))
        };
        let (header, version, crc) = parse().map_err(|why| why.to_string())?;
        if raw[..MAGIC.len()] != MAGIC[..] {
            return Err("it does not begin as a snapshot does".to_owned());
        }
        if version != VERSION {
            return Err(format!("its version is {version}, this program reads {VERSION}"));
        }
        if crc32c::crc32c(&raw[..HEADER_BYTES - 4]) != crc {
            return Err("the checksum of its header is wrong".to_owned());
        }
        Ok(header)
    }
}

/// Writes sessions, then messages.
pub(super) struct Writer {
    file: Arc<dyn StorageFile>,
    at: u64,
    block: Vec<u8>,
    record: Vec<u8>,
    kind: Kind,
    header: Header,
}

impl Writer {
    pub fn new(file: Arc<dyn StorageFile>, header: Header) -> Writer {
        let (block, record) = (Vec::new(), Vec::new());
        Writer { file, at: HEADER_BYTES as u64, block, record, kind: Kind::Sessions, header }
    }

    pub fn session(&mut self, stored: &Stored) -> io::Result<()> {
        self.header.sessions += 1;
        self.record.clear();
        stored.put(&mut self.record);
        self.add(Kind::Sessions)
    }

    pub fn message(&mut self, message: &StoredMessage) -> io::Result<()> {
        self.header.messages += 1;
        self.record.clear();
        message.put(&mut self.record);
        self.add(Kind::Messages)
    }

    fn add(&mut self, kind: Kind) -> io::Result<()> {
        if self.kind != kind {
            self.flush()?;
            self.kind = kind;
        }
        put_varint(&mut self.block, self.record.len() as u64);
        self.block.extend_from_slice(&self.record);
        if self.block.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut head = [0; BLOCK_HEADER_BYTES];
        head[..4].copy_from_slice(&(self.block.len() as u32).to_le_bytes());
        head[4..8].copy_from_slice(&crc32c::crc32c(&self.block).to_le_bytes());
        head[8..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        self.file.write_at(self.at, &head)?;
        self.file.write_at(self.at + BLOCK_HEADER_BYTES as u64, &self.block)?;
        self.at += (BLOCK_HEADER_BYTES + self.block.len()) as u64;
        self.block.clear();
        Ok(())
    }

    /// Writes the header and syncs the file.
    pub fn finish(mut self) -> io::Result<Header> {
        self.flush()?;
        self.header.bytes = self.at;
        self.file.write_at(0, &self.header.put())?;
        self.file.sync()?;
        Ok(self.header)
    }
}

/// A snapshot that is there; blocks are read, and checked, when they are asked for.
pub(super) struct Snapshot {
    file: Arc<dyn StorageFile>,
    /// For errors.
    path: String,
    pub header: Header,
    /// Place of each block.
    blocks: Vec<(u64, BlockHeader)>,
}

#[derive(Clone, Copy, Debug)]
struct BlockHeader {
    length: u32,
    crc: u32,
    kind: Kind,
}

impl Snapshot {
    pub fn open(storage: &dyn Storage, name: &str) -> Result<Snapshot, SessionsError> {
        let path = format!("{}/{name}", storage.path());
        let file = storage.open(name).map_err(|error| SessionsError::io("open", &path, &error))?;
        let mut snapshot = Snapshot { file, path, header: Header::default(), blocks: Vec::new() };
        let mut raw = [0; HEADER_BYTES];
        snapshot.read(0, &mut raw)?;
        snapshot.header = Header::parse(&raw).map_err(|found| snapshot.damaged(0, found))?;
        if offset_of(name) != Some(snapshot.header.offset) {
            return Err(snapshot.damaged(0, "its offset is not that of its name"));
        }
        let (mut at, end) = (HEADER_BYTES as u64, snapshot.header.bytes);
        while at < end {
            let mut head = [0; BLOCK_HEADER_BYTES];
            snapshot.read(at, &mut head)?;
            let number = |from: usize| {
                u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]])
            };
            let kind = match number(8) {
                1 => Kind::Sessions,
                2 => Kind::Messages,
                other => return Err(snapshot.damaged(at, format!("a block of kind {other}"))),
            };
            let block = BlockHeader { length: number(0), crc: number(4), kind };
            let begin = at + BLOCK_HEADER_BYTES as u64;
            at = begin + u64::from(block.length);
            if at > end {
                return Err(snapshot.damaged(begin, "a block is longer than the file"));
            }
            snapshot.blocks.push((begin, block));
        }
        Ok(snapshot)
    }

    fn records<T>(
        &self,
        block: usize,
        kind: Kind,
        parse: impl Fn(&mut Cursor<'_>) -> Result<T, Malformed>,
        mut each: impl FnMut(T),
    ) -> Result<(), SessionsError> {
        let Some((at, header)) = self.blocks.get(block).filter(|(_, header)| header.kind == kind) else {
            return Ok(());
        };
        // The file is as long: `open` has looked.
        let mut bytes = vec![0; header.length as usize];
        self.read(*at, &mut bytes)?;
        if crc32c::crc32c(&bytes) != header.crc {
            return Err(self.damaged(*at, "the checksum of a block is wrong"));
        }
        let mut rest = Cursor::new(&bytes);
        let record = |rest: &mut Cursor<'_>| {
            let length = rest.narrow()?;
            let mut record = Cursor::new(rest.take(length)?);
            let record = &mut record;
            let value = parse(record)?;
            if record.is_empty() { Ok(value) } else { Err(Malformed("a record is longer than its fields")) }
        };
        while !rest.is_empty() {
            each(record(&mut rest).map_err(|why| self.damaged(*at, why.to_string()))?);
        }
        Ok(())
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), SessionsError> {
        match self.file.read_at(at, into) {
            Ok(taken) if taken == into.len() => Ok(()),
            Ok(_) => Err(self.damaged(at, "the file ends too early")),
            Err(error) => Err(SessionsError::io("read", &self.path, &error)),
        }
    }

    fn damaged(&self, byte: u64, found: impl Into<String>) -> SessionsError {
        SessionsError::Damaged { path: self.path.clone(), byte, found: found.into() }
    }
}

/// A part is a block, of either kind.
impl Kept for Snapshot {
    fn header(&self) -> Header {
        self.header
    }

    fn parts(&self) -> usize {
        self.blocks.len()
    }

    fn sessions(&self, part: usize, each: &mut dyn FnMut(Stored)) -> Result<(), SessionsError> {
        self.records(part, Kind::Sessions, Stored::parse, each)
    }

    fn messages(&self, part: usize, each: &mut dyn FnMut(StoredMessage)) -> Result<(), SessionsError> {
        self.records(part, Kind::Messages, StoredMessage::parse, each)
    }
}
