//! Snapshots: every byte is drawn in docs/formats/window-state.md. A snapshot is whole or refused.

use super::layout::{Aggregate, Function, InputType, OptionsError, ROWS_MASK, TumbleOptions};
use super::panes::{NO_PAGE, Pane};
use super::tumble::Tumble;

const MAGIC: &[u8; 8] = b"HWTUMBLE";
const VERSION: u16 = 1;
const NO_INPUT: u16 = u16::MAX;

/// A snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error(
        "reading a {what} snapshot: it is cut short or damaged (checksum {found:08x}, computed {computed:08x})"
    )]
    Damaged { what: &'static str, found: u32, computed: u32 },
    #[error("reading a {what} snapshot: {found} is not version {VERSION} of its format")]
    Version { what: &'static str, found: String },
    #[error(
        "reading a window snapshot: it was taken by another query (different window size, aggregates or inputs)"
    )]
    OtherQuery,
    #[error("reading a {what} snapshot: its checksum holds, but its content is contradictory at byte {at}")]
    Contradiction { what: &'static str, at: usize },
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl Tumble {
    /// The whole state; its size is that of the keys in use, not of the pages.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        to.extend_from_slice(MAGIC);
        to.extend_from_slice(&VERSION.to_le_bytes());
        put_query(&self.options, &mut to);
        to.extend_from_slice(&self.forgotten_us.to_le_bytes());
        to.extend_from_slice(&(self.panes.by_number.len() as u32).to_le_bytes());
        for (number, slot) in &self.panes.by_number {
            to.extend_from_slice(&number.to_le_bytes());
            self.put_pane(&self.panes.slots[*slot], &mut to);
        }
        seal(to)
    }

    /// The state that `encode` wrote, under options of the same query; only the bounds may differ.
    pub fn decode(bytes: &[u8], options: TumbleOptions) -> Result<Tumble, StateError> {
        let mut from = unseal(bytes, MAGIC, "window")?;
        let mut tumble = Tumble::new(options)?;
        let mut query = Vec::new();
        put_query(&tumble.options, &mut query);
        if from.bytes.get(from.at..from.at + query.len()) != Some(&query) {
            return Err(StateError::OtherQuery);
        }
        from.at += query.len();
        tumble.forgotten_us = from.i64()?;
        for _ in 0..from.u32()? {
            let number = from.i64()?;
            if tumble.panes.by_number.last_key_value().is_some_and(|(last, _)| *last >= number) {
                return from.contradiction();
            }
            let slot = tumble.panes.insert(number);
            tumble.read_pane(slot, &mut from)?;
        }
        from.finish()?;
        Ok(tumble)
    }

    fn put_pane(&self, pane: &Pane, to: &mut Vec<u8>) {
        let bits = self.pool.key_bits();
        let words = self.layout.template.len();
        let pages = pane.pages.iter().zip(0u32..).filter(|(page, _)| **page != NO_PAGE);
        let places = pages.flat_map(|(page, index)| {
            (0..1 << bits).map(move |low| (index << bits | low, self.pool.place(*page, low)))
        });
        let used: Vec<_> = places.filter(|(_, place)| self.pool.record(*place)[0] & ROWS_MASK > 0).collect();
        to.extend_from_slice(&pane.emitted.to_le_bytes());
        to.extend_from_slice(&(used.len() as u32).to_le_bytes());
        to.extend_from_slice(&(pane.amended.len() as u32).to_le_bytes());
        to.extend_from_slice(&(pane.revisions.len() as u32).to_le_bytes());
        to.reserve(used.len() * (4 + 8 * words));
        used.iter().for_each(|(key, _)| to.extend_from_slice(&key.to_le_bytes()));
        for (_, place) in &used {
            self.pool.record(*place)[..words]
                .iter()
                .for_each(|word| to.extend_from_slice(&word.to_le_bytes()));
        }
        pane.amended.iter().for_each(|key| to.extend_from_slice(&key.to_le_bytes()));
        let mut revisions: Vec<_> = pane.revisions.iter().collect();
        revisions.sort_unstable();
        for (key, revision) in revisions {
            to.extend_from_slice(&key.to_le_bytes());
            to.extend_from_slice(&revision.to_le_bytes());
        }
    }

    fn read_pane(&mut self, slot: usize, from: &mut Reader<'_>) -> Result<(), StateError> {
        let bits = self.pool.key_bits();
        let words = self.layout.template.len();
        let pane = &mut self.panes.slots[slot];
        pane.emitted = from.u64()?;
        let (records, amended, revisions) = (from.u32()?, from.u32()?, from.u32()?);
        let mut keys = Vec::new();
        for _ in 0..records {
            let key = from.u32()?;
            if keys.last().is_some_and(|last| *last >= key) {
                return from.contradiction();
            }
            keys.push(key);
        }
        for key in keys {
            let index = (key >> bits) as usize;
            if index >= pane.pages.len() {
                pane.pages.resize(index + 1, NO_PAGE);
            }
            if pane.pages[index] == NO_PAGE {
                pane.pages[index] = self.pool.take();
            }
            let record = self.pool.record_mut(self.pool.place(pane.pages[index], key));
            for word in &mut record[..words] {
                *word = from.u64()?;
            }
        }
        for _ in 0..amended {
            pane.amended.push(from.u32()?);
        }
        for _ in 0..revisions {
            pane.revisions.insert(from.u32()?, from.i64()?);
        }
        Ok(())
    }
}

/// What makes the state that of this query: window size, aggregates and inputs.
fn put_query(options: &TumbleOptions, to: &mut Vec<u8>) {
    to.extend_from_slice(&options.size_us.to_le_bytes());
    to.extend_from_slice(&(options.aggregates.len() as u16).to_le_bytes());
    to.extend_from_slice(&(options.inputs.len() as u16).to_le_bytes());
    for Aggregate { function, input } in &options.aggregates {
        let code: u16 = match function {
            Function::Count => 1,
            Function::CountStar => 2,
            Function::Sum => 3,
            Function::Avg => 4,
            Function::Min => 5,
            Function::Max => 6,
        };
        to.extend_from_slice(&code.to_le_bytes());
        to.extend_from_slice(&input.map_or(NO_INPUT, |input| input as u16).to_le_bytes());
    }
    to.extend(options.inputs.iter().map(|ty| match ty {
        InputType::Double => 1u8,
        InputType::Bigint => 2,
    }));
}

/// Ends a snapshot with the CRC32C of what is before.
pub(super) fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Checks checksum, magic and version, and gives what follows.
pub(super) fn unseal<'b>(
    bytes: &'b [u8],
    magic: &[u8; 8],
    what: &'static str,
) -> Result<Reader<'b>, StateError> {
    let (body, sum) = bytes.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
    let (found, computed) = (u32::from_le_bytes(*sum), crc32c::crc32c(body));
    if found != computed || body.is_empty() {
        return Err(StateError::Damaged { what, found, computed });
    }
    let mut reader = Reader { bytes: body, at: 0, what };
    let (found, version) = (reader.take::<8>()?, reader.u16()?);
    if found != *magic || version != VERSION {
        let found = format!("{:?} version {version}", String::from_utf8_lossy(&found));
        return Err(StateError::Version { what, found });
    }
    Ok(reader)
}

/// Reads little-endian numbers one after the other.
pub(super) struct Reader<'b> {
    pub bytes: &'b [u8],
    pub at: usize,
    what: &'static str,
}

impl<'b> Reader<'b> {
    pub fn contradiction<T>(&self) -> Result<T, StateError> {
        Err(StateError::Contradiction { what: self.what, at: self.at })
    }

    pub fn slice(&mut self, length: usize) -> Result<&'b [u8], StateError> {
        let Some(found) = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end)) else {
            return self.contradiction();
        };
        self.at += length;
        Ok(found)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let mut found = [0; N];
        found.copy_from_slice(self.slice(N)?);
        Ok(found)
    }

    pub fn u16(&mut self) -> Result<u16, StateError> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, StateError> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, StateError> {
        self.take().map(u64::from_le_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, StateError> {
        self.take().map(i64::from_le_bytes)
    }

    pub fn finish(&self) -> Result<(), StateError> {
        if self.at == self.bytes.len() { Ok(()) } else { self.contradiction() }
    }
}
