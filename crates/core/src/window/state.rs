//! Snapshots of aligned windows: every byte is drawn in docs/formats/window-state.md. A snapshot is read to its end or refused.

use super::aligned::AlignedWindows;
use super::cells::{Cell, Cells};
use super::distinct::Distinct;
use super::frozen::{Frozen, Part, put_records, put_words};
use super::grid::Shape;
use super::layout::{Aggregate, AlignedOptions, Function, InputType, OptionsError, ROWS_MASK};
use super::panes::{NO_PAGE, Window};
use super::quantiles::Quantiles;

const MAGIC: &[u8; 8] = b"HWTUMBLE";
/// Version 1 knew TUMBLE alone: a pane was a window. Version 2 had no changes, only whole states.
const VERSION: u16 = 3;
pub(super) const NO_INPUT: u16 = u16::MAX;

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
    #[error(
        "reading a {what} snapshot: changes stand where a whole state is needed, or a whole state where changes are"
    )]
    Part { what: &'static str },
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl AlignedWindows {
    /// The state as it is now: all of it, or with `whole` false what has changed since `freeze` was called last. Its size is that of
    /// the keys in use, not of the pages.
    pub fn freeze(&mut self, whole: bool) -> Frozen {
        let mut head = Vec::new();
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.push(u8::from(!whole));
        put_shape(&self.options.shape, &mut head);
        put_aggregates(&self.options.aggregates, &self.options.inputs, &mut head);
        head.extend_from_slice(&self.forgotten_us.to_le_bytes());
        put_numbers(self.panes.by_number.keys(), &mut head);
        let changed = |slot: &usize| {
            let mut pages = self.panes.slots[*slot].pages.iter().filter(|page| **page != NO_PAGE);
            whole || pages.any(|page| self.pool.has_changed(*page))
        };
        let panes = self.panes.by_number.iter().filter(|(_, slot)| changed(slot));
        let panes: Vec<(i64, usize)> = panes.map(|(number, slot)| (*number, *slot)).collect();
        head.extend_from_slice(&(panes.len() as u32).to_le_bytes());
        let mut frozen = Frozen::new(&self.layout);
        frozen.push(Part::Bytes(head));
        for (number, slot) in panes {
            frozen.push(Part::Bytes(number.to_le_bytes().to_vec()));
            self.freeze_pane(slot, whole, &mut frozen);
            frozen.push(Part::Bytes(0u32.to_le_bytes().to_vec()));
        }
        let mut tail = Vec::new();
        put_numbers(self.windows.keys(), &mut tail);
        let changed = self.windows.iter_mut().filter(|(_, window)| whole || window.changed);
        let changed: Vec<_> = changed.collect();
        tail.extend_from_slice(&(changed.len() as u32).to_le_bytes());
        for (number, window) in changed {
            tail.extend_from_slice(&number.to_le_bytes());
            put_window(window, &mut tail);
            window.changed = false;
        }
        frozen.push(Part::Bytes(tail));
        frozen
    }

    fn freeze_pane(&mut self, slot: usize, whole: bool, frozen: &mut Frozen) {
        let (lines_log2, bits) = (self.pool.lines_log2(), self.pool.key_bits());
        for (&page, index) in self.panes.slots[slot].pages.iter().zip(0u32..) {
            if page == NO_PAGE || !(whole || self.pool.has_changed(page)) {
                continue;
            }
            let (page, first_key) = (self.pool.freeze(page), index << bits);
            if self.layout.cells.is_empty() {
                frozen.push(Part::Records { page, first_key, all: whole });
                continue;
            }
            // Cells are not shared: they are written down now.
            let mut bytes = Vec::new();
            put_records(&page, lines_log2, first_key, whole, &mut bytes, |record, to| {
                put_record(&record[..self.layout.words()], &self.layout.cells, &self.cells, to);
            });
            frozen.push(Part::Bytes(bytes));
        }
    }

    /// The state that `freeze` wrote whole, under options of the same query; only the bounds may differ.
    pub fn decode(bytes: &[u8], options: AlignedOptions) -> Result<AlignedWindows, StateError> {
        let (version, mut from) = unseal(bytes, MAGIC, "window", VERSION)?;
        let mut found = AlignedWindows::new(options)?;
        match version {
            1 => found.read_version_1(&mut from)?,
            2 => found.read_version_2(&mut from)?,
            _ => {
                from.expect_whole(true)?;
                found.read_version_3(&mut from)?;
            }
        }
        from.finish()?;
        Ok(found)
    }

    /// Takes in what `freeze` wrote of the changes since the state that this is. After an error the state is not to be used.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let (version, mut from) = unseal(bytes, MAGIC, "window", VERSION)?;
        if version < 3 {
            return from.contradiction();
        }
        from.expect_whole(false)?;
        self.read_version_3(&mut from)?;
        from.finish()
    }

    fn read_version_3(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        self.read_query(from)?;
        let panes = read_numbers(from)?;
        let gone = self.panes.by_number.keys().filter(|number| panes.binary_search(number).is_err());
        let gone: Vec<i64> = gone.copied().collect();
        gone.into_iter().for_each(|number| self.drop_pane(number));
        for _ in 0..from.u32()? {
            let number = from.i64()?;
            if panes.binary_search(&number).is_err() {
                return from.contradiction();
            }
            let slot = match self.panes.by_number.get(&number) {
                Some(slot) => *slot,
                None => self.panes.insert(number),
            };
            loop {
                let records = from.u32()?;
                if records == 0 {
                    break;
                }
                self.read_records(slot, records, from)?;
            }
        }
        let windows = read_numbers(from)?;
        self.windows.retain(|number, _| windows.binary_search(number).is_ok());
        for _ in 0..from.u32()? {
            let number = from.i64()?;
            let emitted = from.u64()?;
            let (amended, revisions) = (from.u32()?, from.u32()?);
            let window = read_window(emitted, amended, revisions, from)?;
            self.windows.insert(number, window);
        }
        if panes.len() != self.panes.by_number.len() || !self.windows.keys().eq(windows.iter()) {
            return from.contradiction();
        }
        Ok(())
    }

    /// Which query it is, and the windows that are forgotten.
    pub(super) fn read_query(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        let mut query = Vec::new();
        put_shape(&self.options.shape, &mut query);
        put_aggregates(&self.options.aggregates, &self.options.inputs, &mut query);
        from.expect(&query)?;
        self.forgotten_us = from.i64()?;
        Ok(())
    }

    pub(super) fn read_records(
        &mut self,
        slot: usize,
        records: u32,
        from: &mut Reader<'_>,
    ) -> Result<(), StateError> {
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
            read_record(&mut record[..self.layout.words()], &self.layout.cells, &mut self.cells, from)?;
        }
        Ok(())
    }
}

/// A record's words, each handle replaced by the length of its cell; then the cells.
pub(super) fn put_record(record: &[u64], handles: &[usize], cells: &Cells, to: &mut Vec<u8>) {
    let start = to.len();
    put_words(record, to);
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
            Some(Cell::Text(text)) => {
                to.push(3);
                to.extend_from_slice(text.as_bytes());
            }
            None => {}
        }
        let length = (to.len() - before) as u64;
        to[start + at * 8..start + at * 8 + 8].copy_from_slice(&length.to_le_bytes());
    }
}

/// The record that `put_record` wrote, in the place of the one that is there.
pub(super) fn read_record(
    record: &mut [u64],
    handles: &[usize],
    cells: &mut Cells,
    from: &mut Reader<'_>,
) -> Result<(), StateError> {
    if record[0] & ROWS_MASK > 0 {
        handles.iter().for_each(|at| drop(cells.take(record[*at])));
    }
    let (words, _) = from.slice(record.len() * 8)?.as_chunks::<8>();
    record.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
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
            Some((3, bytes)) => str::from_utf8(bytes).ok().map(|text| Cell::Text(text.to_owned())),
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

pub(super) fn read_window(
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

/// How many, then each.
fn put_numbers<'n>(numbers: impl ExactSizeIterator<Item = &'n i64>, to: &mut Vec<u8>) {
    to.extend_from_slice(&(numbers.len() as u32).to_le_bytes());
    numbers.for_each(|number| to.extend_from_slice(&number.to_le_bytes()));
}

/// Numbers that ascend.
fn read_numbers(from: &mut Reader<'_>) -> Result<Vec<i64>, StateError> {
    let mut numbers = Vec::new();
    for _ in 0..from.u32()? {
        let number = from.i64()?;
        if numbers.last().is_some_and(|last| *last >= number) {
            return from.contradiction();
        }
        numbers.push(number);
    }
    Ok(numbers)
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

pub(super) fn put_aggregates(aggregates: &[Aggregate], inputs: &[InputType], to: &mut Vec<u8>) {
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

pub(super) fn put_inputs(inputs: &[InputType], to: &mut Vec<u8>) {
    to.extend(inputs.iter().map(|ty| match ty {
        InputType::Double => 1u8,
        InputType::Bigint => 2,
        InputType::Text => 3,
    }));
}

pub(super) fn code(function: Function) -> u16 {
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
pub fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Whether these bytes end with the CRC32C of what is before it.
pub fn is_sealed(bytes: &[u8]) -> bool {
    let body = bytes.split_last_chunk::<4>();
    body.is_some_and(|(body, sum)| u32::from_le_bytes(*sum) == crc32c::crc32c(body))
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

    /// Passes the byte that says whether this is a whole state or what has changed.
    pub fn expect_whole(&mut self, whole: bool) -> Result<(), StateError> {
        if self.u8()? == u8::from(!whole) { Ok(()) } else { Err(StateError::Part { what: self.what }) }
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

    /// Bytes that are left.
    pub fn length(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn finish(&self) -> Result<(), StateError> {
        if self.at == self.bytes.len() { Ok(()) } else { self.contradiction() }
    }
}
