//! Sessions in a table with keys and transactions, as a database has them: what says that the protocol asks for no files.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::fold::Fold;
use super::store::SessionsError;
use super::stored::{Stored, StoredMessage};
use super::table::{Header, Kept, SessionTable};
use crate::log::Cursor;

/// Parts that a state is read in.
const PARTS: usize = 3;

/// A connection to the database; clones are others to the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Keyed {
    database: Arc<Mutex<Database>>,
}

#[derive(Debug, Default)]
struct Database {
    committed: Rows,
    breaks: Option<Break>,
}

/// Records by id.
#[derive(Clone, Debug, Default)]
struct Rows {
    header: Option<Header>,
    sessions: BTreeMap<u64, Vec<u8>>,
    messages: BTreeMap<u64, Vec<u8>>,
}

/// When the connection breaks in the next transaction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Break {
    BeforeCommit,
    /// The commit has happened, its answer is lost.
    AfterCommit,
}

impl Keyed {
    pub fn breaks(&self, at: Break) {
        self.database.lock().breaks = Some(at);
    }

    /// A connection that does not break.
    pub fn connected(&self) -> Keyed {
        self.database.lock().breaks = None;
        self.clone()
    }

    fn broken(&self) -> SessionsError {
        SessionsError::io("write", &self.place(), &std::io::ErrorKind::ConnectionReset.into())
    }
}

fn record(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes);
    bytes
}

impl SessionTable for Keyed {
    fn kept(&self) -> Result<Option<Box<dyn Kept>>, SessionsError> {
        let rows = self.database.lock().committed.clone();
        Ok(rows.header.map(|_| Box::new(rows) as Box<dyn Kept>))
    }

    fn merge(&self, over: Option<u64>, fold: &Fold, offset: u64) -> Result<Header, SessionsError> {
        let mut database = self.database.lock();
        let mut rows = database.committed.clone();
        let found = rows.header.map(|header| header.offset);
        if found != over {
            return Err(SessionsError::Overtaken { path: self.place(), over, found });
        }
        rows.sessions.retain(|_, bytes| {
            let merged = fold.over(Stored::parse(&mut Cursor::new(bytes)).unwrap());
            merged.is_some_and(|stored| {
                *bytes = record(|out| stored.put(out));
                true
            })
        });
        rows.sessions.extend(fold.rest().map(|stored| (stored.id, record(|out| stored.put(out)))));
        let sessions = rows.sessions.values().map(|bytes| Stored::parse(&mut Cursor::new(bytes)).unwrap());
        let wanted: HashSet<u64> =
            sessions.flat_map(|stored| stored.queue).map(|each| each.message).collect();
        rows.messages.extend(fold.messages().map(|message| (message.id, record(|out| message.put(out)))));
        rows.messages.retain(|id, _| wanted.contains(id));
        let header = Header {
            offset,
            bytes: rows.sessions.values().chain(rows.messages.values()).map(|bytes| bytes.len() as u64).sum(),
            sessions: rows.sessions.len() as u64,
            messages: rows.messages.len() as u64,
            downlink: fold.downlink,
            epoch: fold.epoch,
            stopped: fold.stopped,
        };
        rows.header = Some(header);
        match database.breaks.take() {
            Some(Break::BeforeCommit) => return Err(self.broken()),
            at => {
                database.committed = rows;
                if at.is_some() {
                    return Err(self.broken());
                }
            }
        }
        Ok(header)
    }

    fn place(&self) -> String {
        "a database in memory".to_owned()
    }
}

impl Rows {
    fn part<T>(
        records: &BTreeMap<u64, Vec<u8>>,
        part: usize,
        parse: impl Fn(&mut Cursor<'_>) -> T,
        each: &mut dyn FnMut(T),
    ) {
        let mine = records.iter().filter(|(id, _)| **id % PARTS as u64 == part as u64);
        mine.for_each(|(_, bytes)| each(parse(&mut Cursor::new(bytes))));
    }
}

impl Kept for Rows {
    fn header(&self) -> Header {
        self.header.unwrap_or_default()
    }

    fn parts(&self) -> usize {
        PARTS
    }

    fn sessions(&self, part: usize, each: &mut dyn FnMut(Stored)) -> Result<(), SessionsError> {
        Rows::part(&self.sessions, part, |from| Stored::parse(from).unwrap(), each);
        Ok(())
    }

    fn messages(&self, part: usize, each: &mut dyn FnMut(StoredMessage)) -> Result<(), SessionsError> {
        Rows::part(&self.messages, part, |from| StoredMessage::parse(from).unwrap(), each);
        Ok(())
    }
}
