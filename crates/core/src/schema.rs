//! The vocabulary of typed tables: column types, schemas and the ids that name them.
//!
//! A stream is a named table. A schema is one version of its columns; every block of the log
//! carries the id of the schema its rows were written with, and a declared column never changes type.

use std::fmt;
use std::sync::Arc;

/// A stream (table) of this data directory, handed out by the registry and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u16);

/// One version of one stream's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchemaId(pub u32);

/// `hash(stream key) mod P`: rows of one key always share a partition and keep their order in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(pub u16);

/// Position of a row inside its (stream, partition): 0, 1, 2, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset(pub u64);

/// Messages as they came, for those readers that need the payload: shadows, rules, retained messages.
pub const RAW: StreamId = StreamId(1);
/// Payloads that could not be decoded, with the reason.
pub const DEAD_LETTERS: StreamId = StreamId(2);
/// Messages for devices, which the gateway delivers.
pub const DOWNLINK: StreamId = StreamId(3);
/// Changes of durable MQTT sessions.
pub const SESSIONS: StreamId = StreamId(6);

/// The SQL types of a declared field; the numbers are those of the log's block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ColumnType {
    Double = 1,
    Bigint = 2,
    Boolean = 3,
    String = 4,
    /// Microseconds since 1970-01-01T00:00:00Z.
    Timestamp = 5,
    Binary = 6,
}

impl ColumnType {
    pub const ALL: [ColumnType; 6] = [
        ColumnType::Double,
        ColumnType::Bigint,
        ColumnType::Boolean,
        ColumnType::String,
        ColumnType::Timestamp,
        ColumnType::Binary,
    ];

    /// The name used in configuration and error messages.
    pub fn name(self) -> &'static str {
        match self {
            ColumnType::Double => "double",
            ColumnType::Bigint => "bigint",
            ColumnType::Boolean => "boolean",
            ColumnType::String => "string",
            ColumnType::Timestamp => "timestamp",
            ColumnType::Binary => "binary",
        }
    }

    pub fn from_name(name: &str) -> Option<ColumnType> {
        ColumnType::ALL.into_iter().find(|ty| ty.name() == name)
    }

    pub fn from_code(code: u8) -> Option<ColumnType> {
        ColumnType::ALL.into_iter().find(|ty| *ty as u8 == code)
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: ColumnType,
}

/// One version of a stream's columns, in the order in which rows hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    pub id: SchemaId,
    pub stream: StreamId,
    /// The stream's name, for error messages and metrics.
    pub name: String,
    pub columns: Vec<Column>,
    /// Index of the key column, a string; `None`: every row has the empty key and partition 0.
    pub key: Option<usize>,
    /// Index of the event time column `ts`, whose range each block states.
    pub ts: Option<usize>,
}

pub type SchemaRef = Arc<Schema>;

impl Schema {
    /// `ts` is found by its name and type; `key` must name a string column.
    pub fn new(
        id: SchemaId,
        stream: StreamId,
        name: &str,
        columns: Vec<Column>,
        key: Option<&str>,
    ) -> Result<Schema, String> {
        let find = |wanted: &str| columns.iter().position(|column| column.name == wanted);
        let key = match key {
            None => None,
            Some(wanted) => match find(wanted) {
                Some(at) if columns[at].ty == ColumnType::String => Some(at),
                Some(at) => {
                    return Err(format!(
                        "key column {wanted:?} of stream {name:?} is {}, but a key must be a string",
                        columns[at].ty
                    ));
                }
                None => return Err(format!("key column {wanted:?} of stream {name:?} does not exist")),
            },
        };
        let ts = find("ts").filter(|&at| columns[at].ty == ColumnType::Timestamp);
        Ok(Schema { id, stream, name: name.to_owned(), columns, key, ts })
    }
}
