//! Where the fold of the sessions lies between processes: the swap point `sessions.kind`.
//!
//! Their changes go to the log, which is a swap point of its own. A [`SessionTable`] keeps what they come to up to an offset, so that
//! a start reads little and the log may trim. It holds the sessions of one log, or of one partition where several processes
//! share them. It knows nothing of sockets; every kind passes `conformance`.

use super::fold::Fold;
use super::store::SessionsError;
use super::stored::{Stored, StoredMessage};

/// Keeps sessions and the messages that they wait for.
///
/// A state is a fold of rows of the log and of nothing else, so it does not matter which process puts it. `merge` names the
/// state that it lays the rows over, and is refused ([`SessionsError::Overtaken`]) where that is not the one which is kept.
pub trait SessionTable: std::fmt::Debug + Send + Sync {
    /// The last state; none: nothing was ever put.
    fn kept(&self) -> Result<Option<Box<dyn Kept>>, SessionsError>;

    /// Lays the fold over the state of the offset `over` (none: there is none); `offset` is that of the first row which the fold
    /// does not have. One step: after an error or a crash the state before it is there, or the new one, whole. It is
    /// durable when this returns.
    fn merge(&self, over: Option<u64>, fold: &Fold, offset: u64) -> Result<Header, SessionsError>;

    /// Where it is, for messages.
    fn place(&self) -> String;
}

/// A state as it was when it was asked for; several threads may read their parts side by side.
pub trait Kept: Send + Sync {
    fn header(&self) -> Header;

    /// Parts of about the same size; each session and each message is in one of them.
    fn parts(&self) -> usize;

    fn sessions(&self, part: usize, each: &mut dyn FnMut(Stored)) -> Result<(), SessionsError>;

    /// Messages that a session waits for.
    fn messages(&self, part: usize, each: &mut dyn FnMut(StoredMessage)) -> Result<(), SessionsError>;
}

/// What a state is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The first row that is not in it.
    pub offset: u64,
    /// What it takes.
    pub bytes: u64,
    pub sessions: u64,
    pub messages: u64,
    /// One more than the highest offset of `_downlink` that was said, 0: none was.
    pub downlink: u64,
    /// Of the last start, and whether the server has stopped since in order.
    pub epoch: u32,
    pub stopped: bool,
}
