//! MQTT sessions beyond the process: their changes are rows of the log, their state is a fold of them.
//!
//! A [`Change`] is a row of the stream `_sessions` in the commit of what it belongs to. [`fold`] gathers the rows behind a
//! state that a [`table`] keeps and lays them over it, session by session; [`store`] does so at a start, and for the next
//! state. The table is a swap point; [`files`] is the embedded one, of [`snapshot`]s. Nothing here knows sockets or threads of the gateway. Every byte: `docs/formats/sessions.md`.

mod change;
#[cfg(test)]
mod conformance;
mod files;
mod fold;
#[cfg(test)]
mod keyed;
#[cfg(test)]
mod proptests;
mod snapshot;
mod store;
mod stored;
mod table;
#[cfg(test)]
mod tests;

pub use change::{Change, MessageRef, Open, Target, WillRef};
pub use files::SessionFiles;
pub use fold::Fold;
pub use store::{Recovered, SessionStore, SessionsError};
pub use stored::{Owner, Queued, Step, Stored, StoredMessage, StoredSubscription, StoredWill};
pub use table::{Header, Kept, SessionTable};

use crate::schema::{Column, ColumnType, SESSIONS, Schema, SchemaId};

/// `_sessions`: changes of durable sessions.
pub fn sessions_schema() -> Schema {
    let columns =
        [("ts", ColumnType::Timestamp), ("session", ColumnType::Bigint), ("change", ColumnType::Binary)];
    let columns = columns.map(|(name, ty)| Column { name: name.to_owned(), ty }).to_vec();
    Schema {
        id: SchemaId(7),
        stream: SESSIONS,
        name: "_sessions".to_owned(),
        columns,
        key: None,
        ts: Some(0),
    }
}
