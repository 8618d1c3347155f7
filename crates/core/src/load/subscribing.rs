//! Connections of a thread that subscribe and take messages in.

use super::connection::{Io, State};
use super::generator::sent_us;
use super::worker::{Worker, wall_us};
use crate::mqtt::ack::puback;
use crate::mqtt::{Properties, Publish, QoS, Suback, Subscribe, SubscriptionOptions};

impl Worker {
    /// CONNACK has come: asks for the filter.
    pub(super) fn subscribe(&mut self, c: usize) {
        let now_ns = self.now_ns();
        let generator = &self.options.generator;
        let qos = if generator.subscribe_qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let filters = [(generator.filter.as_str(), SubscriptionOptions::new(qos))];
        self.batch.clear();
        Subscribe::encode(1, Properties::NONE, &filters, self.options.protocol, &mut self.batch);
        self.connections[c].enter(State::Subscribing, now_ns);
        self.write_batch(c, now_ns);
    }

    /// SUBACK has come: up, or refused.
    pub(super) fn subscribed(&mut self, c: usize, suback: &Suback<'_>) {
        if let Some(&code) = suback.codes.iter().find(|&&code| code >= 0x80) {
            self.note("SUBACK", code);
            return self.lose(c, format!("SUBACK refused the filter with code 0x{code:02x}"));
        }
        self.stand_up(c);
    }

    /// A message for a subscriber.
    pub(super) fn take_message(&mut self, publish: &Publish<'_>) {
        self.counters.received += 1;
        self.counters.bytes_received += publish.payload.len() as u64;
        let mark = &self.options.generator.timestamp_after;
        if !mark.is_empty()
            && let Some(sent_us) = sent_us(publish.payload, mark)
        {
            self.delivery_us.push(wall_us().saturating_sub(sent_us));
        }
        if publish.qos == QoS::AtLeastOnce {
            self.acks.extend_from_slice(&puback(publish.packet_id));
        }
    }

    /// The acknowledgements of one read, in one write.
    pub(super) fn write_acks(&mut self, c: usize, now_ns: u64) {
        if self.acks.is_empty() {
            return;
        }
        let acks = std::mem::take(&mut self.acks);
        if let Io::Lost(error) = self.connections[c].write(&acks, now_ns) {
            self.lose_io(c, "writing", &error);
        }
        self.acks = acks;
        self.acks.clear();
    }
}
