//! A message on its way to subscribers: borrowed while it is passed on, owned while it waits.

use std::borrow::Cow;

use crate::mqtt::properties::{Properties, Property, PropertyId, Value};
use crate::mqtt::{Publish, QoS};

/// What subscribers get of a PUBLISH. Properties are forwarded as they came: of the only two that must not be, a topic
/// alias is taken out and a subscription identifier is refused on arrival.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    pub topic: &'a str,
    /// Encoded MQTT 5 properties, checked, without their length.
    pub properties: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> Outgoing<'a> {
    pub fn of(publish: &Publish<'a>) -> Outgoing<'a> {
        Outgoing { topic: publish.topic, properties: publish.properties.raw(), payload: publish.payload }
    }

    pub fn publish(self, qos: QoS, retain: bool, packet_id: u16) -> Publish<'a> {
        let properties = Properties::from_checked(self.properties);
        Publish { dup: false, qos, retain, topic: self.topic, packet_id, properties, payload: self.payload }
    }

    pub fn len(&self) -> usize {
        self.topic.len() + self.properties.len() + self.payload.len()
    }
}

/// A message that waits: retained, or queued for a client whose receive maximum is used up.
#[derive(Debug)]
pub(super) struct Message {
    topic: Box<str>,
    /// Properties, then payload.
    body: Box<[u8]>,
    properties: usize,
    pub qos: QoS,
    pub retain: bool,
    /// Of the shared subscription that it came by; 0: none.
    pub group: u64,
    /// Its id in the log, where a durable session waits for it; else 0.
    pub id: u64,
    /// Tick of arrival and message expiry interval in seconds.
    expiry: Option<(u32, u32)>,
}

impl Message {
    pub fn new(from: Outgoing<'_>, qos: QoS, retain: bool, tick: u32) -> Message {
        let properties = Properties::from_checked(from.properties);
        let expiry = match from.properties {
            [] => None,
            _ => properties.number(PropertyId::MessageExpiryInterval).map(|seconds| (tick, seconds)),
        };
        let body = [from.properties, from.payload].concat().into_boxed_slice();
        Message {
            topic: from.topic.into(),
            body,
            properties: from.properties.len(),
            qos,
            retain,
            group: 0,
            id: 0,
            expiry,
        }
    }

    pub fn outgoing(&self) -> Outgoing<'_> {
        let (properties, payload) = self.body.split_at(self.properties);
        Outgoing { topic: &self.topic, properties, payload }
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.topic.len() + self.body.len()
    }

    /// The same for a message that has been sent before: it is sent however long ago that was (section 4.4).
    pub fn resend_at(&self, tick: u32, send: impl FnOnce(Outgoing<'_>)) {
        let Some((arrived, interval_s)) = self.expiry else {
            return send(self.outgoing());
        };
        let waited_s = tick.saturating_sub(arrived) / super::clock::ticks(1);
        let properties = with_expiry(self.outgoing().properties, interval_s.saturating_sub(waited_s));
        send(Outgoing { properties: &properties, ..self.outgoing() });
    }

    /// Gives the message to `send`, its expiry interval less the time it has waited (section 3.3.2.3.3); not at
    /// all once that has passed.
    pub fn send_at(&self, tick: u32, send: impl FnOnce(Outgoing<'_>)) {
        let Some((arrived, interval_s)) = self.expiry else {
            return send(self.outgoing());
        };
        let waited_s = tick.saturating_sub(arrived) / super::clock::ticks(1);
        if waited_s == 0 {
            return send(self.outgoing());
        }
        if waited_s < interval_s {
            let properties = with_expiry(self.outgoing().properties, interval_s - waited_s);
            send(Outgoing { properties: &properties, ..self.outgoing() });
        }
    }
}

/// `properties` of a message that has waited elsewhere; None once it has expired.
pub(super) fn aged(properties: &[u8], waited_s: u32) -> Option<Cow<'_, [u8]>> {
    match Properties::from_checked(properties).number(PropertyId::MessageExpiryInterval) {
        None => Some(Cow::Borrowed(properties)),
        Some(interval_s) if waited_s >= interval_s => None,
        Some(interval_s) => Some(Cow::Owned(with_expiry(properties, interval_s - waited_s))),
    }
}

pub(super) fn with_expiry(properties: &[u8], interval_s: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(properties.len());
    for mut property in Properties::from_checked(properties).iter() {
        if property.id == PropertyId::MessageExpiryInterval {
            property = Property { id: property.id, value: Value::FourByte(interval_s) };
        }
        property.put(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::properties::encode;

    #[test]
    fn expiry_counts_down_while_a_message_waits() {
        let properties = encode(&[
            Property { id: PropertyId::ContentType, value: Value::Text("t") },
            Property { id: PropertyId::MessageExpiryInterval, value: Value::FourByte(10) },
        ]);
        let outgoing = Outgoing { topic: "a", properties: &properties, payload: b"p" };
        let message = Message::new(outgoing, QoS::AtLeastOnce, true, 1000);
        let left = |tick| {
            let mut left = None;
            message.send_at(tick, |out| {
                let properties = Properties::from_checked(out.properties);
                assert_eq!(properties.text(PropertyId::ContentType), Some("t"));
                left = properties.number(PropertyId::MessageExpiryInterval);
            });
            left
        };
        assert_eq!((left(1000), left(1039), left(1099), left(1100)), (Some(10), Some(7), Some(1), None));
    }
}
