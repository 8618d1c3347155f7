//! A state as it was at one moment: it can be written while the windows go on changing.
//!
//! What is small is encoded at that moment. Pages of records are shared, and copied only where a row changes one before it is
//! written. The bytes are those of docs/formats/window-state.md; the last four are the CRC32C of all before.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::layout::{CHANGED, Layout, ROWS_MASK};
use super::panes::{FrozenPage, Page};

/// Bytes written together.
const BUFFER: usize = 1 << 20;
/// A session of a snapshot before its record: slot, key, first and last event time, state.
pub(super) type SessionHead = [u8; 25];
/// State of a session that is gone: no record follows.
pub(super) const GONE: u8 = 2;

/// One snapshot, whole or of what has changed since the one before.
pub struct Frozen {
    words: usize,
    lines_log2: u32,
    parts: Vec<Part>,
}

pub(super) enum Part {
    Bytes(Vec<u8>),
    /// Records of a run of keys: all, or those that have changed.
    Records {
        page: FrozenPage,
        first_key: u32,
        all: bool,
    },
    /// Sessions whose records lie in one page, with their places in it.
    Sessions {
        page: FrozenPage,
        heads: Vec<(usize, SessionHead)>,
    },
}

impl Frozen {
    pub(super) fn new(layout: &Layout) -> Frozen {
        Frozen { words: layout.words(), lines_log2: layout.lines_log2(), parts: Vec::new() }
    }

    /// One that holds nothing but these bytes.
    pub(super) fn of_bytes(bytes: Vec<u8>) -> Frozen {
        Frozen { words: 0, lines_log2: 0, parts: vec![Part::Bytes(bytes)] }
    }

    pub(super) fn push(&mut self, part: Part) {
        match (self.parts.last_mut(), part) {
            (Some(Part::Bytes(before)), Part::Bytes(more)) => before.extend(more),
            (_, part) => self.parts.push(part),
        }
    }

    /// Bytes that `write` writes.
    pub fn length(&self) -> u64 {
        let record = self.words * 8;
        let length = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len(),
            Part::Records { page, all, .. } => {
                match page.records(self.lines_log2).filter(|record| is_wanted(record, *all)).count() {
                    0 => 0,
                    count => 4 + count * (4 + record),
                }
            }
            Part::Sessions { heads, .. } => {
                let kept = heads.iter().filter(|(_, head)| !is_gone(head)).count();
                heads.len() * size_of::<SessionHead>() + kept * record
            }
        };
        self.parts.iter().map(length).sum::<usize>() as u64 + 4
    }

    /// All bytes, the checksum last.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (mut sum, mut buffer) = (0, Vec::new());
        for part in &self.parts {
            buffer.clear();
            let bytes = match part {
                Part::Bytes(bytes) => bytes,
                Part::Records { page, first_key, all } => {
                    put_records(page, self.lines_log2, *first_key, *all, &mut buffer, |record, to| {
                        put_words(&record[..self.words], to);
                    });
                    &buffer
                }
                Part::Sessions { page, heads } => {
                    for (at, head) in heads {
                        buffer.extend_from_slice(head);
                        if !is_gone(head)
                            && let Some(record) = page.records(self.lines_log2).nth(*at)
                        {
                            put_words(&record[..self.words], &mut buffer);
                        }
                    }
                    &buffer
                }
            };
            sum = crc32c::crc32c_append(sum, bytes);
            to.write_all(bytes)?;
        }
        to.write_all(&sum.to_le_bytes())
    }

    /// Writes to the end of a file. What it holds is then with the operating system, not yet on disk.
    pub fn append_to(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().append(true).open(path)?;
        let mut to = BufWriter::with_capacity(BUFFER, file);
        self.write(&mut to)?;
        to.flush()
    }

    /// What `write` writes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.length() as usize);
        // A vector takes everything.
        self.write(&mut bytes).unwrap_or_default();
        bytes
    }
}

/// The records of a page that are wanted: their number, their keys, then each as `put` writes it; nothing where there is none.
pub(super) fn put_records(
    page: &Page,
    lines_log2: u32,
    first_key: u32,
    all: bool,
    to: &mut Vec<u8>,
    mut put: impl FnMut(&[u64], &mut Vec<u8>),
) {
    let wanted =
        || page.records(lines_log2).zip(first_key..).filter(move |(record, _)| is_wanted(record, all));
    let count = wanted().count() as u32;
    if count == 0 {
        return;
    }
    to.extend_from_slice(&count.to_le_bytes());
    wanted().for_each(|(_, key)| to.extend_from_slice(&key.to_le_bytes()));
    wanted().for_each(|(record, _)| put(record, to));
}

/// A record's words, without the mark that it has changed.
pub(super) fn put_words(record: &[u64], to: &mut Vec<u8>) {
    let Some((first, others)) = record.split_first() else { return };
    to.extend_from_slice(&(first & !CHANGED).to_le_bytes());
    others.iter().for_each(|word| to.extend_from_slice(&word.to_le_bytes()));
}

fn is_wanted(record: &[u64], all: bool) -> bool {
    record[0] & ROWS_MASK > 0 && (all || record[0] & CHANGED > 0)
}

fn is_gone(head: &SessionHead) -> bool {
    head[head.len() - 1] == GONE
}
