//! Lifecycle events: who came, who went and why, who subscribed to what, as messages on `$aws/events/...` in the form
//! that AWS IoT gives them. They go to live subscribers and nowhere else.
//!
//! A pass notes them and publishes them at its end, since the place that notes one may hold the subscriptions' lock.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::access::Access;
use super::clock::now_us;
use super::connection::Connection;
use super::ending::Ending;
use super::fanout::Reading;
use super::lane::Lane;
use super::message::Outgoing;
use crate::mqtt::{QoS, ReasonCode};

/// Topics that only we publish to.
pub(super) const EVENTS: &str = "$aws/events/";
/// Events of one pass; further ones are dropped and counted with those of the operator.
const MAX_EVENTS: usize = 10_000;
/// Filters that one event names.
const MAX_TOPICS: usize = 100;

/// Events of this pass, topic and payload.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    noted: Vec<(String, Vec<u8>)>,
}

/// Whether a filter may match lifecycle events.
pub(super) fn concerns(filter: &str) -> bool {
    ["$aws/events", "$aws/+", "$aws/#"].iter().any(|begin| filter.starts_with(begin))
}

/// How a client left, in the words of AWS; the second: whether that was its own wish.
fn reason_of(ending: &Ending) -> (&'static str, bool) {
    let Ending::Ours(end) = ending else {
        return match ending {
            Ending::Goodbye(_) => ("CLIENT_INITIATED_DISCONNECT", true),
            _ => ("CONNECTION_LOST", false),
        };
    };
    let reason = match end.reason {
        ReasonCode::SessionTakenOver => "DUPLICATE_CLIENTID",
        ReasonCode::KeepAliveTimeout => "MQTT_KEEP_ALIVE_TIMEOUT",
        ReasonCode::NotAuthorized => "FORBIDDEN_ACCESS",
        // AWS has this word for tokens alone; certificates that expire while connected it does not mention.
        ReasonCode::MaximumConnectTime => "CUSTOMAUTH_TTL_EXPIRATION",
        ReasonCode::AdministrativeAction => "API_INITIATED_DISCONNECT",
        ReasonCode::MessageRateTooHigh | ReasonCode::ReceiveMaximumExceeded | ReasonCode::QuotaExceeded => {
            "THROTTLED"
        }
        ReasonCode::ServerShuttingDown | ReasonCode::ServerBusy => "SERVER_INITIATED_DISCONNECT",
        ReasonCode::UnspecifiedError | ReasonCode::ImplementationSpecificError => "SERVER_ERROR",
        _ => "CLIENT_ERROR",
    };
    (reason, false)
}

impl Lane {
    pub fn note_connected(&mut self, conn: &Connection, slot: u32) {
        let address = conn.socket.as_ref().and_then(|socket| socket.peer());
        let address = address.map(|address| address.ip().to_string());
        self.note(conn, slot, "presence", "connected", |event| {
            event["ipAddress"] = json!(address);
            event["versionNumber"] = json!(conn.since_ms);
        });
    }

    pub fn note_disconnected(&mut self, conn: &Connection, slot: u32, ending: &Ending) {
        let (reason, wanted) = reason_of(ending);
        self.note(conn, slot, "presence", "disconnected", |event| {
            event["clientInitiatedDisconnect"] = json!(wanted);
            event["disconnectReason"] = json!(reason);
            event["versionNumber"] = json!(conn.since_ms);
        });
    }

    /// kind: `subscribed` or `unsubscribed`
    pub fn note_subscriptions<'a>(
        &mut self,
        conn: &Connection,
        slot: u32,
        kind: &str,
        filters: impl Iterator<Item = &'a str>,
    ) {
        let topics: Vec<&str> = filters.take(MAX_TOPICS).collect();
        if !topics.is_empty() {
            self.note(conn, slot, "subscriptions", kind, |event| event["topics"] = json!(topics));
        }
    }

    fn note(
        &mut self,
        conn: &Connection,
        slot: u32,
        family: &str,
        kind: &str,
        more: impl FnOnce(&mut Value),
    ) {
        // AWS gives none for such ids, which would be no topic names.
        let wanted = self.shared.lifecycle_wanted.load(Ordering::Relaxed);
        if !wanted || conn.client_id.is_empty() || conn.client_id.contains(['+', '#']) {
            return;
        }
        if self.lifecycle.noted.len() >= MAX_EVENTS {
            self.counters.lifecycle_dropped += 1;
            return;
        }
        let mut event = json!({
            "clientId": &*conn.client_id,
            "timestamp": now_us() / 1000,
            "eventType": kind,
            "sessionIdentifier": self.session_identifier(conn, slot),
            "principalIdentifier": principal(conn),
        });
        more(&mut event);
        let topic = format!("{EVENTS}{family}/{kind}/{}", conn.client_id);
        self.lifecycle.noted.push((topic, event.to_string().into_bytes()));
    }

    /// Of one network connection; another one has another.
    fn session_identifier(&self, conn: &Connection, slot: u32) -> String {
        let mut bytes = [0; 18];
        bytes[..2].copy_from_slice(&self.thread.to_le_bytes());
        bytes[2..6].copy_from_slice(&slot.to_le_bytes());
        bytes[6..10].copy_from_slice(&conn.link.to_le_bytes());
        bytes[10..].copy_from_slice(&conn.since_ms.to_le_bytes());
        let hash = xxh3_128_with_seed(&bytes, self.shared.group_seed).to_be_bytes();
        let mut text = String::with_capacity(36);
        for (at, byte) in hash.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Passes what was noted on to its subscribers. No lock of the subscriptions may be held.
    pub fn publish_lifecycle(&mut self) {
        if self.lifecycle.noted.is_empty() {
            return;
        }
        let noted = std::mem::take(&mut self.lifecycle.noted);
        let shared = Arc::clone(&self.shared);
        let mut subscriptions = Reading::new(&shared.subscriptions);
        for (topic, payload) in &noted {
            let outgoing = Outgoing { topic, properties: &[], payload };
            self.fanout.add(&mut subscriptions, outgoing, QoS::AtLeastOnce, false, None, 0);
        }
    }
}

/// The certificate's id, else the user, else that nobody knows.
fn principal(conn: &Connection) -> String {
    let identity = conn.socket.as_ref().and_then(|socket| socket.identity());
    match (identity, conn.access.as_deref()) {
        (Some(identity), _) => identity.fingerprint.clone(),
        (None, Some(Access::Granted(granted))) => granted.principal.user.clone(),
        _ => "anonymous".to_owned(),
    }
}
