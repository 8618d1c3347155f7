//! The gateway: sockets and threads around the pure parts (`mqtt`, `decode`) and the log.
//!
//! The way of a message: [`worker`] reads bytes and finds packets, [`on_publish`] decodes a PUBLISH into the
//! thread's [`turn`], the turn goes to the log at the end of the pass, and when the log has made it durable
//! the worker writes the PUBACKs and PUBRECs. Live subscribers get their copies through [`fanout`] at once; what a
//! client has beyond its connection is in [`session`], [`outbound`] and [`inflight`], and [`joining`] gives it back. Of durable sessions
//! [`journal`] puts each change into the turn and [`restore`] gives them back after a restart; a message reaches them when its turn is durable.
//!
//! Invariants: a PUBACK or PUBREC of success leaves only after the log has said that its turn is durable; PUBACKs keep the
//! order of their PUBLISH packets; no thread waits for the log or for another thread; every buffer has a bound;
//! locks, system calls and allocations belong to a pass, a connection or a turn, never to a message; a connection
//! is written to once in a pass ([`pace`] says when passes begin, [`sends`] writes to many in one call, and what is in
//! [`hot`] does not wake its loop).

mod acceptor;
mod access;
mod acknowledge;
mod binding;
mod clock;
mod closes;
mod connection;
mod counters;
mod crowd;
mod delivering;
mod downlink;
mod ending;
mod events;
mod fanout;
mod flapping;
mod gateway;
mod glob;
mod handshake;
mod hot;
mod inbox;
mod inflight;
mod inspect;
mod joining;
mod journal;
mod lane;
mod levels;
mod lifecycle;
mod limits;
mod listener;
mod logins;
mod mail;
mod message;
mod on_connect;
mod on_publish;
mod on_subscribe;
mod options;
mod outbound;
mod pace;
mod packets;
mod pressure;
mod proxy_protocol;
mod rate;
mod rebind;
mod registry;
mod reload;
mod replay;
mod restore;
mod retained;
mod review;
mod sends;
mod session;
mod sparkplug;
mod standing;
mod sys;
mod tls;
mod trace;
mod transport;
mod turn;
mod unmatched;
mod unsaid;
mod upgrade;
mod watch;
mod websocket;
mod wheel;
mod wills;
mod worker;

#[cfg(test)]
mod tests;

pub use binding::{StreamBinding, dead_letters_schema, downlink_schema, raw_schema};
pub use clock::Clock;
pub use closes::Close;
pub use counters::{ByReason, Counters, Latency};
pub use events::{Event, EventKind};
pub use gateway::{AckLatency, Gateway, GatewayError};
pub use inspect::{ClientDetail, ClientPage, ClientSubscription, ClientSummary, Kicked, LoopBusy};
pub use limits::{Limit, ListenerLimits};
pub use listener::{
    ClientCertificates, Failure, ListenerOptions, ListenerStatus, TlsFiles, WebSocketOptions,
};
pub use logins::{Certificate, Line, Login, LoginOptions, Logins, Principal};
pub use options::GatewayOptions;
pub use retained::StoredMessage;
pub use trace::{Trace, TraceFilter, TraceLine};
pub use unmatched::Unmatched;
