//! A turn: what one pass over the sockets has staged for the log, with the acknowledgements that it owes.
//!
//! The log only reads the rows, so their memory is used again as soon as a turn is submitted; what flies with
//! the log are six bytes a message. Turns are acknowledged in the order of their submission, those without
//! rows too, and so PUBACKs keep the order of the PUBLISH packets.

use std::time::Instant;

use crate::decode::Decoded;
use crate::log::Log;
use crate::mqtt::ReasonCode;
use crate::rows::{Cell, Rows, Words};
use crate::schema::{Partition, SchemaRef};
use crate::sessions::{Change, sessions_schema};

use super::binding::{Bindings, dead_letters_schema, raw_schema};
use super::clock::now_us;
use super::fanout::Deliveries;
use super::journal::MessageIds;
use super::wills::Departed;

/// What became of a message, as the books count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fate {
    Decoded = 0,
    RawOnly = 1,
    LiveOnly = 2,
    DeadLettered = 3,
    Refused = 4,
    /// A QoS 2 message that came again before its release: it counts once.
    Repeated = 5,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Staged {
    /// 0: QoS 0, no acknowledgement.
    pub packet_id: u16,
    pub code: ReasonCode,
    pub fate: Fate,
    /// QoS 2: its answer is PUBREC.
    pub exactly_once: bool,
}

/// Messages of one connection, read together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub slot: u32,
    /// Of the session, and of the network connection.
    pub generation: u32,
    pub link: u32,
    /// One past its last message.
    pub end: u32,
    pub read_at: Instant,
}

/// The acknowledgements of a turn.
#[derive(Debug, Default)]
pub(super) struct Acks {
    pub messages: Vec<Staged>,
    pub runs: Vec<Run>,
    /// Texts for codes that are errors: index of the message, text.
    pub notes: Vec<(u32, String)>,
    /// Messages that count as none.
    pub repeated: u64,
    /// Rows of streams, reserved ones not counted.
    pub rows: u64,
    /// Roughly the size of the staged rows.
    pub bytes: usize,
    /// Those of changes of sessions.
    pub session_bytes: usize,
    /// The changes of sessions themselves, for the case that the log does not take them.
    pub changes: Option<Rows>,
    /// Connections, by slot and link, with bytes that leave when the turn is durable.
    pub gated: Vec<(u32, u32)>,
    /// For durable sessions, by thread: what goes to them when the turn is durable.
    pub later: Vec<Deliveries>,
    /// Of the downlink: offset behind the messages that wait in sessions when the turn is durable.
    pub downlink: u64,
    /// Index of each message that durable sessions wait for, and its id.
    pub waited_for: Vec<(u32, u64)>,
    /// Wills among the messages, for the case that the log does not take them.
    pub wills: Vec<(u32, Departed)>,
}

impl Acks {
    pub fn clear(&mut self) {
        self.messages.clear();
        self.runs.clear();
        self.notes.clear();
        self.repeated = 0;
        self.rows = 0;
        self.bytes = 0;
        self.session_bytes = 0;
        self.changes.iter_mut().for_each(Rows::clear);
        self.downlink = 0;
        self.gated.clear();
        self.later.clear();
        self.waited_for.clear();
        self.wills.clear();
    }

    /// Messages as the books count them.
    pub fn counted(&self) -> u64 {
        self.messages.len() as u64 - self.repeated
    }

    pub fn note(&self, message: usize) -> Option<&str> {
        let at = self.notes.binary_search_by_key(&(message as u32), |(index, _)| *index).ok()?;
        Some(&self.notes[at].1)
    }
}

/// Rows of one stream and partition.
#[derive(Debug)]
struct Table {
    rows: Rows,
    /// The message that each row came from.
    messages: Vec<u32>,
    partition: Partition,
}

#[derive(Debug)]
pub(super) struct Staging {
    /// By stream times partitions plus partition; the last are raw messages, dead letters and changes of sessions.
    tables: Vec<Option<Table>>,
    /// Tables that hold rows.
    used: Vec<usize>,
    partitions: usize,
    streams: usize,
    raw: SchemaRef,
    dead_letters: SchemaRef,
    sessions: SchemaRef,
    pub acks: Acks,
    /// The number of the turn that is being staged.
    pub turn: u64,
    pub message_ids: MessageIds,
    change: Vec<u8>,
    /// The connection whose messages are being staged.
    run: Option<(u32, u32, u32, Instant)>,
}

/// Owner of rows that belong to no message.
const NO_MESSAGE: u32 = u32::MAX;

/// Tables whose memory is kept; a turn that touches more of them gives the rest back.
const KEPT_TABLES: usize = 64;

impl Staging {
    pub fn new(bindings: &Bindings, partitions: u16, message_ids: MessageIds) -> Staging {
        let (streams, partitions) = (bindings.streams.len(), usize::from(partitions.max(1)));
        Staging {
            tables: (0..streams * partitions + 3).map(|_| None).collect(),
            used: Vec::new(),
            partitions,
            streams,
            raw: SchemaRef::new(raw_schema()),
            dead_letters: SchemaRef::new(dead_letters_schema()),
            sessions: SchemaRef::new(sessions_schema()),
            acks: Acks::default(),
            turn: 1,
            message_ids,
            change: Vec::new(),
            run: None,
        }
    }

    /// Stages for other streams from now on. Only while it is empty; what waits for its turn goes on waiting.
    pub fn rebind(&mut self, bindings: &Bindings) {
        self.streams = bindings.streams.len();
        self.tables = (0..self.streams * self.partitions + 3).map(|_| None).collect();
    }

    pub fn is_empty(&self) -> bool {
        self.acks.messages.is_empty() && self.used.is_empty()
    }

    pub fn has_rows(&self) -> bool {
        !self.used.is_empty()
    }

    /// Messages staged from here on belong to this connection.
    pub fn open_run(&mut self, slot: u32, generation: u32, link: u32, read_at: Instant) {
        self.run = Some((slot, generation, link, read_at));
    }

    pub fn close_run(&mut self) {
        let end = self.acks.messages.len() as u32;
        let begun = self.acks.runs.last().map_or(0, |run| run.end);
        if let Some((slot, generation, link, read_at)) = self.run.filter(|_| end > begun) {
            self.acks.runs.push(Run { slot, generation, link, end, read_at });
        }
    }

    #[inline]
    pub fn message(&mut self, packet_id: u16, code: ReasonCode, fate: Fate, exactly_once: bool) {
        self.acks.repeated += u64::from(fate == Fate::Repeated);
        self.acks.messages.push(Staged { packet_id, code, fate, exactly_once });
    }

    /// The text for the message that is added next.
    pub fn note(&mut self, text: String) {
        self.acks.notes.push((self.acks.messages.len() as u32, text));
    }

    /// Adds all rows that the payload gave to `stream`.
    ///
    /// key: the key when it is the same for all rows (a capture), else it is taken from each row
    #[inline]
    pub fn decoded(
        &mut self,
        log: &Log,
        stream: usize,
        schema: &SchemaRef,
        decoded: &Decoded,
        key: Option<&[u8]>,
    ) {
        let shared = match (key, schema.key) {
            (Some(key), _) => Some(log.partition_of(key)),
            (None, None) => Some(Partition(0)),
            (None, Some(_)) => None,
        };
        for row in 0..decoded.rows() {
            let partition = shared.unwrap_or_else(|| {
                let key = match schema.key.and_then(|at| decoded.cells(row).nth(at)) {
                    Some(Cell::Bytes(key)) => key,
                    _ => &[],
                };
                log.partition_of(key)
            });
            let at = stream * self.partitions + usize::from(partition.0) % self.partitions;
            self.push(at, schema, partition, decoded.cells(row));
        }
        self.acks.rows += decoded.rows() as u64;
        // Captures and strings come on top with the payload's size.
        self.acks.bytes += decoded.rows() * schema.columns.len() * 8;
    }

    /// Adds one row.
    #[inline]
    pub fn plain(&mut self, log: &Log, stream: usize, schema: &SchemaRef, row: &Words<'_>) {
        let partition = schema.key.map_or(Partition(0), |at| log.partition_of(row.bytes(at)));
        let at = stream * self.partitions + usize::from(partition.0) % self.partitions;
        let message = self.acks.messages.len() as u32;
        let Some(table) = self.table(at, schema, partition) else { return };
        table.rows.push_words(row);
        table.messages.push(message);
        self.acks.rows += 1;
        self.acks.bytes += schema.columns.len() * 8;
    }

    pub fn raw<'a>(&mut self, cells: impl IntoIterator<Item = Cell<'a>>) {
        let schema = self.raw.clone();
        self.push(self.streams * self.partitions, &schema, Partition(0), cells);
    }

    pub fn dead_letter<'a>(&mut self, cells: impl IntoIterator<Item = Cell<'a>>) {
        let schema = self.dead_letters.clone();
        self.push(self.streams * self.partitions + 1, &schema, Partition(0), cells);
    }

    /// A change of a session.
    pub fn session(&mut self, session: u64, change: &Change<'_>) {
        self.push_change(session, change, NO_MESSAGE);
    }

    /// A change that goes with the message which is added next, and is nothing without it.
    pub fn session_with_message(&mut self, session: u64, change: &Change<'_>) {
        let message = self.acks.messages.len() as u32;
        self.push_change(session, change, message);
    }

    fn push_change(&mut self, session: u64, change: &Change<'_>, message: u32) {
        let mut bytes = std::mem::take(&mut self.change);
        bytes.clear();
        change.put(&mut bytes);
        self.acks.bytes += bytes.len();
        self.acks.session_bytes += bytes.len() + size_of::<u64>() * 2;
        let cells = [Cell::Timestamp(now_us()), Cell::Bigint(session as i64), Cell::Bytes(&bytes)];
        let schema = self.sessions.clone();
        self.push_of(self.streams * self.partitions + 2, &schema, Partition(0), cells, message);
        self.change = bytes;
    }

    #[inline]
    fn push<'a>(
        &mut self,
        at: usize,
        schema: &SchemaRef,
        partition: Partition,
        cells: impl IntoIterator<Item = Cell<'a>>,
    ) {
        let message = self.acks.messages.len() as u32;
        self.push_of(at, schema, partition, cells, message);
    }

    #[inline]
    fn push_of<'a>(
        &mut self,
        at: usize,
        schema: &SchemaRef,
        partition: Partition,
        cells: impl IntoIterator<Item = Cell<'a>>,
        message: u32,
    ) {
        let Some(table) = self.table(at, schema, partition) else { return };
        // The plan was checked against this schema, so the cells fit.
        let pushed = table.rows.push(cells);
        debug_assert!(pushed.is_ok(), "{pushed:?}");
        table.messages.push(message);
    }

    /// The table at `at`, which gets a row now.
    #[inline]
    fn table(&mut self, at: usize, schema: &SchemaRef, partition: Partition) -> Option<&mut Table> {
        let table = self.tables.get_mut(at)?.get_or_insert_with(|| Table {
            rows: Rows::new(schema.clone()),
            messages: Vec::new(),
            partition,
        });
        if table.rows.is_empty() {
            self.used.push(at);
        }
        if table.rows.schema.id != schema.id {
            table.rows.widen(schema.clone());
        }
        Some(table)
    }

    /// What the log gets.
    pub fn parts(&self) -> Vec<(Partition, &Rows)> {
        self.used
            .iter()
            .filter_map(|&at| self.tables.get(at)?.as_ref())
            .map(|table| (table.partition, &table.rows))
            .collect()
    }

    /// Takes the acknowledgements of a turn that was submitted, leaves `empty` in their place and clears the rows.
    pub fn submitted(&mut self, mut empty: Acks) -> Acks {
        let keep = self.used.len() <= KEPT_TABLES;
        if let Some(table) =
            self.tables.last_mut().and_then(Option::as_mut).filter(|table| !table.rows.is_empty())
        {
            let rows = empty.changes.take().unwrap_or_else(|| Rows::new(self.sessions.clone()));
            self.acks.changes = Some(std::mem::replace(&mut table.rows, rows));
        }
        for at in self.used.drain(..) {
            match self.tables.get_mut(at) {
                Some(Some(table)) if keep => {
                    table.rows.clear();
                    table.messages.clear();
                }
                Some(table) => *table = None,
                None => {}
            }
        }
        std::mem::replace(&mut self.acks, empty)
    }

    /// Takes out all messages that own one of these rows (index of part, row), because the log cannot add their
    /// keys, so that the other messages of the turn pass.
    pub fn refuse(&mut self, refused: &[(usize, u32)], code: ReasonCode, why: &str) {
        let mut messages: Vec<u32> = refused
            .iter()
            .filter_map(|&(part, row)| {
                let table = self.tables.get(*self.used.get(part)?)?.as_ref()?;
                table.messages.get(row as usize).copied()
            })
            .collect();
        messages.sort_unstable();
        messages.dedup();
        for &message in &messages {
            if let Some(staged) = self.acks.messages.get_mut(message as usize) {
                (staged.code, staged.fate) = (code, Fate::Refused);
            }
        }
        // An earlier text of a message stays: it says what was wrong first.
        for &message in &messages {
            if let Err(at) = self.acks.notes.binary_search_by_key(&message, |(index, _)| *index) {
                self.acks.notes.insert(at, (message, why.to_owned()));
            }
        }
        let (tables, streams) = (&mut self.tables, self.streams * self.partitions);
        let mut removed = 0;
        self.used.retain(|&at| {
            let Some(Some(table)) = tables.get_mut(at) else { return false };
            let mut kept = Rows::new(table.rows.schema.clone());
            let mut kept_messages = Vec::new();
            for (row, &message) in table.messages.iter().enumerate() {
                if messages.binary_search(&message).is_err() && kept.push(table.rows.cells(row)).is_ok() {
                    kept_messages.push(message);
                }
            }
            if at < streams {
                removed += table.rows.len() - kept.len();
            }
            (table.rows, table.messages) = (kept, kept_messages);
            !table.rows.is_empty()
        });
        self.acks.rows -= removed as u64;
    }
}
