//! A bounded record of what an operator should see: refusals, takeovers, protocol errors, log failures.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::clock::now_us;
use crate::mqtt::ReasonCode;

/// Events kept until they are taken; the oldest go first and are counted.
const MAX_EVENTS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A CONNECT was answered with an error code.
    ConnectionRefused,
    /// A connection gave way to a newer one with the same client id.
    SessionTakenOver,
    /// The gateway ended a connection.
    ConnectionEnded,
    /// A message was not accepted.
    PublishRefused,
    /// A filter was not granted.
    SubscribeRefused,
    /// A session beyond the connection was asked for, and `max_sessions` wait already.
    SessionNotKept,
    /// A limit holds a client or a listener back.
    LimitReached,
    /// The log did not take a turn.
    LogFailed,
    /// An event loop leaves its sockets unread, sheds QoS 0, or reads again.
    Pressure,
    /// A connection did not come as far as MQTT.
    HandshakeFailed,
    /// A listener has read its certificates anew, or could not.
    Certificates,
    /// The process has no more descriptors, or accepting fails otherwise.
    AcceptFailed,
}

impl EventKind {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::ConnectionRefused => "connection-refused",
            EventKind::SessionTakenOver => "session-taken-over",
            EventKind::ConnectionEnded => "connection-ended",
            EventKind::PublishRefused => "publish-refused",
            EventKind::SubscribeRefused => "subscribe-refused",
            EventKind::SessionNotKept => "session-not-kept",
            EventKind::LimitReached => "limit-reached",
            EventKind::LogFailed => "log-failed",
            EventKind::Pressure => "pressure",
            EventKind::HandshakeFailed => "handshake-failed",
            EventKind::Certificates => "certificates",
            EventKind::AcceptFailed => "accept-failed",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Event {
    /// Microseconds since the Unix epoch, UTC.
    pub at_us: i64,
    pub kind: EventKind,
    /// Empty when no CONNECT has told it.
    pub client: String,
    pub reason: ReasonCode,
    pub detail: String,
    /// Address, listener and certificate of the connection; empty when it is about none.
    pub origin: String,
}

#[derive(Debug, Default)]
pub(super) struct Events {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    lost: u64,
}

impl Events {
    pub fn add(&self, kind: EventKind, client: &str, reason: ReasonCode, detail: impl Into<String>) {
        self.add_from(kind, client, reason, detail, String::new());
    }

    /// What happened to one connection.
    pub fn add_from(
        &self,
        kind: EventKind,
        client: &str,
        reason: ReasonCode,
        detail: impl Into<String>,
        origin: String,
    ) {
        let (client, detail) = (client.to_owned(), detail.into());
        let event = Event { at_us: now_us(), kind, client, reason, detail, origin };
        let mut ring = self.ring.lock();
        if ring.events.len() == MAX_EVENTS {
            ring.events.pop_front();
            ring.lost += 1;
        }
        ring.events.push_back(event);
    }

    pub fn take(&self) -> Vec<Event> {
        self.ring.lock().events.drain(..).collect()
    }

    /// Events lost at the bound, since start.
    pub fn lost(&self) -> u64 {
        self.ring.lock().lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_bound_the_oldest_go_and_are_counted() {
        let events = Events::default();
        for at in 0..MAX_EVENTS + 3 {
            events.add(EventKind::ConnectionEnded, &at.to_string(), ReasonCode::ProtocolError, "x");
        }
        assert_eq!(events.lost(), 3);
        let taken = events.take();
        assert_eq!((taken.len(), taken[0].client.as_str()), (MAX_EVENTS, "3"));
        assert!(events.take().is_empty());
    }
}
