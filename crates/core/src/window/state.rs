//! Snapshots: every byte is drawn in docs/formats/window-state.md. A snapshot is whole or refused.

use super::aligned::AlignedWindows;
use super::cells::{Cell, Cells};
use super::distinct::Distinct;
use super::grid::Shape;
use super::layout::{Aggregate, AlignedOptions, Function, InputType, OptionsError, ROWS_MASK};
use super::panes::{NO_PAGE, Window};
use super::quantiles::Quantiles;
use super::sessions::{SessionOptions, SessionWindows};

const MAGIC: &[u8; 8] = b"HWTUMBLE";
const SESSIONS: &[u8; 8] = b"HWSESSNS";
/// Version 1 knew TUMBLE alone: a pane was a window.
const VERSION: u16 = 2;
const NO_INPUT: u16 = u16::MAX;

/// A snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error(
        "reading a {what} snapshot: it is cut short or damaged (checksum {found:08x}, computed {computed:08x})"
    )]
    Damaged { what: &'static str, found: u32, computed: u32 },
    #[error("reading a {what} snapshot: {found} is none of this format; versions up to {newest} are read")]
    Version { what: &'static str, found: String, newest: u16 },
    #[error(
        "reading a {what} snapshot: it was taken by another query (different windows, aggregates or inputs)"
    )]
    OtherQuery { what: &'static str },
    #[error("reading a {what} snapshot: its checksum holds, but its content is contradictory at byte {at}")]
    Contradiction { what: &'static str, at: usize },
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl AlignedWindows {
    /// The whole state; its size is that of the keys in use, not of the pages.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        to.extend_from_slice(MAGIC);
        to.extend_from_slice(&VERSION.to_le_bytes());
        put_shape(&self.options.shape, &mut to);
        put_aggregates(&self.options.aggregates, &self.options.inputs, &mut to);
        to.extend_from_slice(&self.forgotten_us.to_le_bytes());
        to.extend_from_slice(&(self.panes.by_number.len() as u32).to_le_bytes());
        for (number, slot) in &self.panes.by_number {
            to.extend_from_slice(&number.to_le_bytes());
            self.put_records(&self.panes.slots[*slot].pages, &mut to);
        }
        to.extend_from_slice(&(self.windows.len() as u32).to_le_bytes());
        for (number, window) in &self.windows {
            to.extend_from_slice(&number.to_le_bytes());
            put_window(window, &mut to);
        }
        seal(to)
    }

    /// The state that `encode` wrote, under options of the same query; only the bounds may differ.
    pub fn decode(bytes: &[u8], options: AlignedOptions) -> Result<AlignedWindows, StateError> {
        let (version, mut from) = unseal(bytes, MAGIC, "window", VERSION)?;
        let mut found = AlignedWindows::new(options)?;
        if version == 1 {
            found.read_version_1(&mut from)?;
            return from.finish().map(|()| found);
        }
        let mut query = Vec::new();
        put_shape(&found.options.shape, &mut query);
        put_aggregates(&found.options.aggregates, &found.options.inputs, &mut query);
        from.expect(&query)?;
        found.forgotten_us = from.i64()?;
        for _ in 0..from.u32()? {
            let slot = found.read_pane_number(&mut from)?;
            let records = from.u32()?;
            found.read_records(slot, records, &mut from)?;
        }
        for _ in 0..from.u32()? {
            let number = from.i64()?;
            if found.windows.last_key_value().is_some_and(|(last, _)| *last >= number) {
                return from.contradiction();
            }
            let emitted = from.u64()?;
            let (amended, revisions) = (from.u32()?, from.u32()?);
            let window = read_window(emitted, amended, revisions, &mut from)?;
            found.windows.insert(number, window);
        }
        from.finish()?;
        Ok(found)
    }

    fn read_pane_number(&mut self, from: &mut Reader<'_>) -> Result<usize, StateError> {
        let number = from.i64()?;
        if self.panes.by_number.last_key_value().is_some_and(|(last, _)| *last >= number) {
            return from.contradiction();
        }
        Ok(self.panes.insert(number))
    }

    /// A pane of version 1 holds what has come out of it, too.
    fn read_version_1(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        let Shape::Tumble { size_us } = self.options.shape else { return from.other_query() };
        let mut query = Vec::from(size_us.to_le_bytes());
        put_aggregates_1(&self.options.aggregates, &self.options.inputs, &mut query);
        from.expect(&query)?;
        self.forgotten_us = from.i64()?;
        for _ in 0..from.u32()? {
            let slot = self.read_pane_number(from)?;
            let number = self.panes.by_number.last_key_value().map_or(0, |(number, _)| *number);
            let emitted = from.u64()?;
            let (records, amended, revisions) = (from.u32()?, from.u32()?, from.u32()?);
            self.read_records(slot, records, from)?;
            let window = read_window(emitted, amended, revisions, from)?;
            if emitted > 0 || amended + revisions > 0 {
                self.windows.insert(number, window);
            }
        }
        Ok(())
    }

    /// Number of records, keys, records, cells.
    fn put_records(&self, pages: &[u32], to: &mut Vec<u8>) {
        let bits = self.pool.key_bits();
        let pages = pages.iter().zip(0u32..).filter(|(page, _)| **page != NO_PAGE);
        let places = pages.flat_map(|(page, index)| {
            (0..1 << bits).map(move |low| (index << bits | low, self.pool.place(*page, low)))
        });
        let used: Vec<_> = places.filter(|(_, place)| self.pool.record(*place)[0] & ROWS_MASK > 0).collect();
        to.extend_from_slice(&(used.len() as u32).to_le_bytes());
        to.reserve(used.len() * (4 + 8 * self.layout.words()));
        used.iter().for_each(|(key, _)| to.extend_from_slice(&key.to_le_bytes()));
        for (_, place) in &used {
            let record = &self.pool.record(*place)[..self.layout.words()];
            put_record(record, &self.layout.cells, &self.cells, to);
        }
    }

    fn read_records(&mut self, slot: usize, records: u32, from: &mut Reader<'_>) -> Result<(), StateError> {
        let bits = self.pool.key_bits();
        let pane = &mut self.panes.slots[slot];
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
            read_record(
                &mut record[..self.layout.template.len()],
                &self.layout.cells,
                &mut self.cells,
                from,
            )?;
        }
        Ok(())
    }
}

impl SessionWindows {
    /// The whole state.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        to.extend_from_slice(SESSIONS);
        to.extend_from_slice(&1u16.to_le_bytes());
        to.extend_from_slice(&self.options.gap_us.to_le_bytes());
        put_aggregates(&self.options.aggregates, &self.options.inputs, &mut to);
        let open = self.sessions.iter().zip(0u32..).filter(|(session, _)| session.open);
        let mut held: Vec<u32> = open.map(|(_, at)| at).chain(self.closed.iter().copied()).collect();
        held.sort_unstable_by_key(|at| {
            let session = &self.sessions[*at as usize];
            (session.key, session.first_us)
        });
        to.extend_from_slice(&(held.len() as u32).to_le_bytes());
        for at in held {
            let session = &self.sessions[at as usize];
            to.extend_from_slice(&session.key.to_le_bytes());
            to.extend_from_slice(&session.first_us.to_le_bytes());
            to.extend_from_slice(&session.last_us.to_le_bytes());
            to.push(u8::from(!session.open));
            let record = &self.pool.record(super::panes::Place(at))[..self.layout.words()];
            put_record(record, &self.layout.cells, &self.cells, &mut to);
        }
        seal(to)
    }

    /// The state that `encode` wrote, under options of the same query; only the bound may differ.
    pub fn decode(bytes: &[u8], options: SessionOptions) -> Result<SessionWindows, StateError> {
        let (_, mut from) = unseal(bytes, SESSIONS, "session", 1)?;
        let mut found = SessionWindows::new(options)?;
        let mut query = Vec::from(found.options.gap_us.to_le_bytes());
        put_aggregates(&found.options.aggregates, &found.options.inputs, &mut query);
        from.expect(&query)?;
        let mut before: Option<(u32, i64)> = None;
        let mut last_open = None;
        for _ in 0..from.u32()? {
            let (key, first_us, last_us) = (from.u32()?, from.i64()?, from.i64()?);
            let closed = from.u8()?;
            if before.is_some_and(|before| before >= (key, first_us)) || last_us < first_us || closed > 1 {
                return from.contradiction();
            }
            before = Some((key, first_us));
            let follows = last_open.filter(|(of, _)| *of == key).map(|(_, at)| at);
            let at = found.restore(key, (first_us, last_us), follows, closed == 1);
            if closed == 0 {
                last_open = Some((key, at));
            }
            let words = found.layout.template.len();
            let record = &mut found.pool.record_mut(super::panes::Place(at))[..words];
            read_record(record, &found.layout.cells, &mut found.cells, &mut from)?;
        }
        from.finish()?;
        Ok(found)
    }
}

/// A record's words, each handle replaced by the length of its cell; then the cells.
fn put_record(record: &[u64], handles: &[usize], cells: &Cells, to: &mut Vec<u8>) {
    let start = to.len();
    record.iter().for_each(|word| to.extend_from_slice(&word.to_le_bytes()));
    for at in handles {
        let before = to.len();
        match cells.get(record[*at]) {
            Some(Cell::Distinct(distinct)) => {
                to.push(1);
                distinct.encode(to);
            }
            Some(Cell::Quantiles(quantiles)) => {
                to.push(2);
                quantiles.encode(to);
            }
            None => {}
        }
        let length = (to.len() - before) as u64;
        to[start + at * 8..start + at * 8 + 8].copy_from_slice(&length.to_le_bytes());
    }
}

fn read_record(
    record: &mut [u64],
    handles: &[usize],
    cells: &mut Cells,
    from: &mut Reader<'_>,
) -> Result<(), StateError> {
    for word in record.iter_mut() {
        *word = from.u64()?;
    }
    if record[0] & ROWS_MASK == 0 {
        return from.contradiction();
    }
    for at in handles {
        let length = usize::try_from(record[*at]).unwrap_or(usize::MAX);
        record[*at] = 0;
        if length == 0 {
            continue;
        }
        let cell = match from.slice(length)?.split_first() {
            Some((1, bytes)) => Distinct::decode(bytes).map(Cell::Distinct),
            Some((2, bytes)) => Quantiles::decode(bytes).map(Cell::Quantiles),
            _ => None,
        };
        match cell {
            Some(cell) => record[*at] = cells.put(cell),
            None => return from.contradiction(),
        }
    }
    Ok(())
}

fn put_window(window: &Window, to: &mut Vec<u8>) {
    to.extend_from_slice(&window.emitted.to_le_bytes());
    to.extend_from_slice(&(window.amended.len() as u32).to_le_bytes());
    to.extend_from_slice(&(window.revisions.len() as u32).to_le_bytes());
    window.amended.iter().for_each(|key| to.extend_from_slice(&key.to_le_bytes()));
    let mut revisions: Vec<_> = window.revisions.iter().collect();
    revisions.sort_unstable();
    for (key, revision) in revisions {
        to.extend_from_slice(&key.to_le_bytes());
        to.extend_from_slice(&revision.to_le_bytes());
    }
}

fn read_window(
    emitted: u64,
    amended: u32,
    revisions: u32,
    from: &mut Reader<'_>,
) -> Result<Window, StateError> {
    let mut window = Window { emitted, ..Window::default() };
    for _ in 0..amended {
        window.amended.push(from.u32()?);
    }
    for _ in 0..revisions {
        window.revisions.insert(from.u32()?, from.i64()?);
    }
    Ok(window)
}

fn put_shape(shape: &Shape, to: &mut Vec<u8>) {
    let (kind, pane_us, size_us): (u8, i64, i64) = match shape {
        Shape::Tumble { size_us } => (1, *size_us, *size_us),
        Shape::Hop { slide_us, size_us } => (2, *slide_us, *size_us),
        Shape::Cumulate { step_us, size_us } => (3, *step_us, *size_us),
        Shape::Calendar { .. } => (4, 0, 0),
    };
    to.push(kind);
    to.extend_from_slice(&pane_us.to_le_bytes());
    to.extend_from_slice(&size_us.to_le_bytes());
}

fn put_aggregates(aggregates: &[Aggregate], inputs: &[InputType], to: &mut Vec<u8>) {
    to.extend_from_slice(&(aggregates.len() as u16).to_le_bytes());
    to.extend_from_slice(&(inputs.len() as u16).to_le_bytes());
    for Aggregate { function, input } in aggregates {
        to.extend_from_slice(&code(*function).to_le_bytes());
        to.extend_from_slice(&input.map_or(NO_INPUT, |input| input as u16).to_le_bytes());
        let parameter = if let Function::Percentile { millionths } = function { *millionths } else { 0 };
        to.extend_from_slice(&parameter.to_le_bytes());
    }
    put_inputs(inputs, to);
}

/// As version 1 had them, without parameters.
fn put_aggregates_1(aggregates: &[Aggregate], inputs: &[InputType], to: &mut Vec<u8>) {
    to.extend_from_slice(&(aggregates.len() as u16).to_le_bytes());
    to.extend_from_slice(&(inputs.len() as u16).to_le_bytes());
    for Aggregate { function, input } in aggregates {
        to.extend_from_slice(&code(*function).to_le_bytes());
        to.extend_from_slice(&input.map_or(NO_INPUT, |input| input as u16).to_le_bytes());
    }
    put_inputs(inputs, to);
}

fn put_inputs(inputs: &[InputType], to: &mut Vec<u8>) {
    to.extend(inputs.iter().map(|ty| match ty {
        InputType::Double => 1u8,
        InputType::Bigint => 2,
    }));
}

fn code(function: Function) -> u16 {
    match function {
        Function::Count => 1,
        Function::CountStar => 2,
        Function::Sum => 3,
        Function::Avg => 4,
        Function::Min => 5,
        Function::Max => 6,
        Function::VarPop => 7,
        Function::VarSamp => 8,
        Function::StddevPop => 9,
        Function::StddevSamp => 10,
        Function::First => 11,
        Function::Last => 12,
        Function::CountDistinct => 13,
        Function::Percentile { .. } => 14,
    }
}

/// Ends a snapshot with the CRC32C of what is before.
pub(super) fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Checks checksum, magic and version; the version, and what follows.
pub(super) fn unseal<'b>(
    bytes: &'b [u8],
    magic: &[u8; 8],
    what: &'static str,
    newest: u16,
) -> Result<(u16, Reader<'b>), StateError> {
    let (body, sum) = bytes.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
    let (found, computed) = (u32::from_le_bytes(*sum), crc32c::crc32c(body));
    if found != computed || body.is_empty() {
        return Err(StateError::Damaged { what, found, computed });
    }
    let mut reader = Reader { bytes: body, at: 0, what };
    let (found, version) = (reader.take::<8>()?, reader.u16()?);
    if found != *magic || !(1..=newest).contains(&version) {
        let found = format!("{:?} version {version}", String::from_utf8_lossy(&found));
        return Err(StateError::Version { what, found, newest });
    }
    Ok((version, reader))
}

/// Reads little-endian numbers one after the other.
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    what: &'static str,
}

impl<'b> Reader<'b> {
    pub fn contradiction<T>(&self) -> Result<T, StateError> {
        Err(StateError::Contradiction { what: self.what, at: self.at })
    }

    pub fn other_query<T>(&self) -> Result<T, StateError> {
        Err(StateError::OtherQuery { what: self.what })
    }

    /// Passes these bytes, which say which query the state is of.
    pub fn expect(&mut self, query: &[u8]) -> Result<(), StateError> {
        if !self.bytes[self.at..].starts_with(query) {
            return self.other_query();
        }
        self.at += query.len();
        Ok(())
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

    pub fn u8(&mut self) -> Result<u8, StateError> {
        self.take::<1>().map(|[found]| found)
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
