//! Retained messages: the last one of each topic, in memory, bounded.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;

use super::message::{Message, Outgoing, aged};
use crate::mqtt::properties::{Place, Properties};
use crate::mqtt::{PacketType, QoS, topic};

/// A message that was retained before the start.
#[derive(Clone, Debug, Default)]
pub struct StoredMessage {
    pub topic: String,
    /// Encoded MQTT 5 properties, without their length.
    pub properties: Vec<u8>,
    pub payload: Vec<u8>,
    pub qos: u8,
    /// Since its arrival; its expiry interval counts from there.
    pub age_s: u32,
}

/// The table has its most messages or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
pub(super) struct Retained {
    table: RwLock<Table>,
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Table {
    // Sorted, so that a filter reads only the topics that begin as it does.
    messages: BTreeMap<Box<str>, Arc<Message>>,
    bytes: usize,
}

impl Retained {
    pub fn new(max_messages: usize, max_bytes: usize) -> Retained {
        Retained { table: RwLock::default(), max_messages, max_bytes }
    }

    /// Replaces the topic's message; at the bound the old one stays.
    pub fn set(&self, message: Outgoing<'_>, qos: QoS, tick: u32) -> Result<(), Full> {
        let message = Message::new(message, qos, true, tick);
        let mut table = self.table.write();
        let topic = message.outgoing().topic;
        let old = table.messages.get(topic).map(|old| old.len());
        let bytes = table.bytes - old.unwrap_or(0) + message.len();
        let messages = table.messages.len() + usize::from(old.is_none());
        if messages > self.max_messages || bytes > self.max_bytes {
            return Err(Full);
        }
        table.bytes = bytes;
        let topic = topic.into();
        table.messages.insert(topic, Arc::new(message));
        Ok(())
    }

    /// Takes over what was retained before; why not, where that cannot be. What has expired is left out.
    pub fn restore(&self, stored: &StoredMessage, tick: u32) -> Result<(), &'static str> {
        let StoredMessage { topic, payload, .. } = stored;
        if !topic::is_name(topic) || payload.is_empty() {
            return Err("it has no topic name or no payload");
        }
        if Properties::check(&stored.properties, Place::In(PacketType::Publish)).is_err() {
            return Err("its properties are damaged");
        }
        let Some(properties) = aged(&stored.properties, stored.age_s) else { return Ok(()) };
        let qos = match stored.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let full = "the table is full (retained_max_messages, retained_max_bytes)";
        self.set(Outgoing { topic, properties: &properties, payload }, qos, tick).map_err(|Full| full)
    }

    pub fn clear(&self, topic: &str) {
        let mut table = self.table.write();
        if let Some(old) = table.messages.remove(topic) {
            table.bytes -= old.len();
        }
    }

    /// Messages whose topics match, in the order of their topics.
    pub fn matching(&self, filter: &str) -> Vec<Arc<Message>> {
        let table = self.table.read();
        if table.messages.is_empty() {
            return Vec::new();
        }
        if !topic::has_wildcard(filter) {
            return table.messages.get(filter).cloned().into_iter().collect();
        }
        let prefix = literal_prefix(filter);
        let from = (Bound::Included(prefix), Bound::Unbounded);
        table
            .messages
            .range::<str, _>(from)
            .take_while(|(topic, _)| topic.starts_with(prefix))
            .filter(|(topic, _)| topic::matches(filter, topic))
            .map(|(_, message)| Arc::clone(message))
            .collect()
    }

    /// Number and bytes of messages.
    pub fn size(&self) -> (usize, usize) {
        let table = self.table.read();
        (table.messages.len(), table.bytes)
    }
}

/// What every topic that matches begins with: `a/b` for `a/b/#`, which also matches `a/b` itself.
fn literal_prefix(filter: &str) -> &str {
    let wildcard = filter.find(['+', '#']).unwrap_or(filter.len());
    let prefix = &filter[..wildcard];
    if filter[wildcard..].starts_with('#') { prefix.strip_suffix('/').unwrap_or(prefix) } else { prefix }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(retained: &Retained, topic: &str, payload: &str) -> Result<(), Full> {
        let message = Outgoing { topic, properties: &[], payload: payload.as_bytes() };
        retained.set(message, QoS::AtLeastOnce, 0)
    }

    fn topics(retained: &Retained, filter: &str) -> Vec<String> {
        retained.matching(filter).iter().map(|message| message.outgoing().topic.to_owned()).collect()
    }

    #[test]
    fn filters_find_their_topics() {
        let retained = Retained::new(100, 10_000);
        for topic in ["a", "a/b", "a/b/c", "ab", "$x/b", "/b"] {
            set(&retained, topic, "p").unwrap();
        }
        assert_eq!(topics(&retained, "a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(topics(&retained, "#"), ["/b", "a", "a/b", "a/b/c", "ab"]);
        assert_eq!(topics(&retained, "+/b"), ["/b", "a/b"]);
        assert_eq!(topics(&retained, "$x/+"), ["$x/b"]);
        assert_eq!(topics(&retained, "ab"), ["ab"]);
        retained.clear("a/b");
        assert_eq!(topics(&retained, "a/+"), [""; 0]);
    }

    #[test]
    fn at_the_bound_new_topics_are_refused_and_old_ones_stay() {
        let retained = Retained::new(2, 100);
        set(&retained, "a", "1").unwrap();
        set(&retained, "b", "1").unwrap();
        assert_eq!(set(&retained, "c", "1"), Err(Full));
        set(&retained, "a", "22").unwrap();
        assert_eq!(retained.size(), (2, 5));
        assert_eq!(set(&retained, "b", &"x".repeat(99)), Err(Full));
        assert_eq!(retained.matching("b")[0].outgoing().payload, b"1");
        retained.clear("a");
        assert_eq!(retained.size(), (1, 2));
        retained.clear("a");
        assert_eq!(retained.size(), (1, 2));
    }

    #[test]
    fn what_was_retained_before_the_start_ages_and_is_checked() {
        use crate::mqtt::properties::{Property, PropertyId, Value, encode};

        let retained = Retained::new(2, 1000);
        let interval = Property { id: PropertyId::MessageExpiryInterval, value: Value::FourByte(10) };
        let stored = |topic: &str, properties: &[u8], age_s| StoredMessage {
            topic: topic.to_owned(),
            properties: properties.to_vec(),
            payload: b"p".to_vec(),
            qos: 1,
            age_s,
        };
        let expiring = encode(&[interval]);
        assert_eq!(retained.restore(&stored("gone", &expiring, 10), 5), Ok(()));
        assert_eq!(retained.restore(&stored("left", &expiring, 7), 5), Ok(()));
        assert_eq!(topics(&retained, "#"), ["left"]);
        let mut left = None;
        retained.matching("left")[0].send_at(5, |out| {
            left = Properties::from_checked(out.properties).number(PropertyId::MessageExpiryInterval);
        });
        assert_eq!(left, Some(3));
        assert!(retained.restore(&stored("a/+", &[], 0), 5).is_err());
        assert!(retained.restore(&stored("a", &[0xFF], 0), 5).is_err());
        assert_eq!(retained.restore(&stored("a", &[], 0), 5), Ok(()));
        assert!(retained.restore(&stored("b", &[], 0), 5).is_err());
    }
}
