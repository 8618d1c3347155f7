//! When a thread of the fleet begins to send, when it is done, what it shows of itself, and how long it sleeps.

use std::cmp::Reverse;
use std::time::Duration;

use super::connection::{Connection, Io, State};
use super::worker::Worker;
use crate::mqtt::disconnect::Disconnect;
use crate::mqtt::packet::PINGREQ;
use crate::mqtt::{Properties, ReasonCode};

impl Worker {
    pub(super) fn end_ns(&self) -> Option<u64> {
        let origin_ns = self.origin_ns?;
        let duration = self.options.duration?;
        Some(origin_ns.saturating_add(duration.as_nanos().min(u128::from(u64::MAX)) as u64))
    }

    /// Sending begins when the gate is open.
    pub(super) fn pass_gate(&mut self) {
        if self.origin_ns.is_none() {
            self.origin_ns = self.shared.gate.opened_ns();
            if self.origin_ns.is_some() {
                (0..self.connections.len()).for_each(|c| self.make_ready(c));
            }
        }
    }

    /// Whether all was sent that there is to send.
    pub(super) fn is_over(&self) -> bool {
        let holds = self.options.generator.idle || self.options.devices == 0;
        (self.devices_left == 0 && !holds) || self.time_is_up
    }

    /// A load generator ends QoS 0 with a ping on each connection: its answer says that the server has taken in what
    /// came before, where else socket buffers would be counted.
    pub(super) fn ask_for_the_end(&mut self) {
        let asks = self.options.generator.start_together && self.options.qos == 0;
        if !asks || (self.generating && !self.is_over()) {
            return;
        }
        let now_ns = self.now_ns();
        for c in 0..self.connections.len() {
            let connection = &mut self.connections[c];
            if connection.asked || connection.subscribes || !connection.is_clear() {
                continue;
            }
            connection.asked = true;
            connection.pings += 1;
            if let Io::Lost(error) = connection.write(&PINGREQ, now_ns) {
                self.lose_io(c, "writing", &error);
            }
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        let asks = self.options.generator.start_together && self.options.qos == 0;
        let answered = |connection: &Connection| {
            !asks
                || connection.subscribes
                || connection.state != State::Up
                || (connection.asked && connection.pings == 0)
        };
        self.in_flight == 0
            && self.connections.iter().all(|connection| connection.is_flushed() && answered(connection))
    }

    pub(super) fn say_goodbye(&mut self) {
        let mut goodbye = Vec::new();
        let normal = Disconnect { reason: ReasonCode::Success, properties: Properties::NONE };
        normal.encode(self.options.protocol, &mut goodbye);
        for c in 0..self.connections.len() {
            if self.connections[c].is_clear() {
                let now_ns = self.now_ns();
                // The end of the connection says the same if this cannot be written.
                let _ = self.connections[c].write(&goodbye, now_ns);
            }
            let connection = &mut self.connections[c];
            self.counters.connections_up -= u64::from(connection.state == State::Up);
            connection.state = State::Down;
            connection.stream = None;
        }
    }

    pub(super) fn publish(&mut self) {
        if self.finished_at.is_none() && self.is_over() && self.is_drained() {
            let origin = Duration::from_nanos(self.origin_ns.unwrap_or_default());
            self.finished_at = Some(self.started.elapsed().saturating_sub(origin));
        }
        let mut shown = self.shared.shown.lock();
        shown.counters = self.counters;
        for latency_us in self.latencies_us.drain(..) {
            shown.ack_latency_us.saturating_record(latency_us);
        }
        for connect_us in self.connects_us.drain(..) {
            shown.connect_us.saturating_record(connect_us);
        }
        for delivery_us in self.delivery_us.drain(..) {
            shown.delivery_us.saturating_record(delivery_us);
        }
        if self.errors_changed {
            shown.errors.clone_from(&self.errors);
            self.errors_changed = false;
        }
        for (fault, readings) in self.fault_readings.drain(..) {
            if let Some(sum) = shown.fault_readings.get_mut(fault) {
                *sum += readings;
            }
        }
        if let Some(error) = self.last_error.take() {
            shown.last_error = Some(error);
        }
        shown.finished_at = self.finished_at;
    }

    pub(super) fn timeout(&self, drain_until_ns: Option<u64>) -> Duration {
        if !self.ready.is_empty() {
            return Duration::ZERO;
        }
        let mut wake_ns = self.next_sweep_ns.min(drain_until_ns.unwrap_or(u64::MAX));
        if self.generating
            && self.devices_left > 0
            && let Some(origin_ns) = self.origin_ns
        {
            let due_ns = self.lineup.as_ref().map(|lineup| lineup.next_ns().saturating_add(origin_ns));
            let due_ns = due_ns.or(self.end_ns());
            wake_ns = wake_ns.min(due_ns.unwrap_or(u64::MAX));
        }
        if let Some(&Reverse((at_ns, _))) = self.retries.peek() {
            wake_ns = wake_ns.min(at_ns);
        }
        let comes_later = self.options.generator.connects_per_s > 0.0 && !self.connect_now.is_empty();
        if self.origin_ns.is_none() || comes_later {
            // While connections come up; the gate may be opened by another thread.
            wake_ns = wake_ns.min(self.now_ns() + 1_000_000);
        }
        if self.generating && !self.is_paced() {
            wake_ns = wake_ns.min(self.end_ns().unwrap_or(u64::MAX));
            wake_ns = wake_ns.min(self.rest_ends_ns().unwrap_or(u64::MAX));
        }
        Duration::from_nanos(wake_ns.saturating_sub(self.now_ns()))
    }
}
