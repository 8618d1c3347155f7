//! `$SYS`: what the broker counts, as messages, in the names that mosquitto gave them.
//!
//! A thread publishes all of them every interval. The last values wait here for new subscribers; they are no retained
//! messages and take no place among them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::counters::Counters;
use super::fanout::{Fanout, Reading};
use super::inbox::Mail;
use super::lane::Shared;
use super::message::Outgoing;
use crate::mqtt::{QoS, topic};

pub(super) const ROOT: &str = "$SYS/";
/// Bytes in an inbox above which this round's values do not go there.
const MAX_INBOX_BYTES: usize = 16 << 20;

/// The last values, topic and payload.
#[derive(Debug, Default)]
pub(super) struct SysValues(Mutex<Vec<(&'static str, String)>>);

impl SysValues {
    /// Those that a filter matches.
    pub fn matching(&self, filter: &str) -> Vec<(&'static str, String)> {
        if !filter.starts_with(ROOT) {
            return Vec::new();
        }
        self.0.lock().iter().filter(|(name, _)| topic::matches(filter, name)).cloned().collect()
    }
}

pub(super) struct Sys {
    shared: Arc<Shared>,
    fanout: Fanout,
    started: Instant,
    most_connected: u64,
}

impl Sys {
    pub fn new(shared: Arc<Shared>) -> Sys {
        let fanout = Fanout::new(shared.inboxes.len());
        Sys { shared, fanout, started: Instant::now(), most_connected: 0 }
    }

    /// Runs until the gateway stops; whoever stops it unparks the thread.
    pub fn run(mut self, interval: Duration) {
        let mut next = Instant::now();
        while !self.shared.stopping.load(Ordering::SeqCst) {
            let now = Instant::now();
            if now < next {
                std::thread::park_timeout(next - now);
                continue;
            }
            self.publish();
            next = now + interval;
        }
    }

    fn publish(&mut self) {
        let values = self.values(&self.shared.counters());
        if self.shared.subscribed.load(Ordering::Relaxed) > 0 {
            let shared = Arc::clone(&self.shared);
            let mut subscriptions = Reading::new(&shared.subscriptions);
            for (topic, payload) in &values {
                let outgoing = Outgoing { topic, properties: &[], payload: payload.as_bytes() };
                self.fanout.add(&mut subscriptions, outgoing, QoS::AtLeastOnce, false, None, 0);
            }
            drop(subscriptions);
            for (inbox, deliveries) in shared.inboxes.iter().zip(&mut self.fanout.deliveries) {
                if deliveries.is_empty() {
                    continue;
                }
                let deliveries = std::mem::take(deliveries);
                // The next round has newer values.
                if inbox.delivery_bytes.load(Ordering::Relaxed) <= MAX_INBOX_BYTES {
                    inbox.post(Mail::Deliver(Box::new(deliveries)));
                }
            }
        }
        *self.shared.sys.0.lock() = values;
    }

    fn values(&mut self, counters: &Counters) -> Vec<(&'static str, String)> {
        let uptime_s = self.started.elapsed().as_secs();
        self.most_connected = self.most_connected.max(counters.connections);
        let number = |value: u64| value.to_string();
        vec![
            ("$SYS/broker/version", concat!("headwater ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("$SYS/broker/uptime", format!("{uptime_s} seconds")),
            ("$SYS/broker/clients/connected", number(counters.connections)),
            ("$SYS/broker/clients/disconnected", number(counters.sessions)),
            ("$SYS/broker/clients/total", number(counters.connections + counters.sessions)),
            ("$SYS/broker/clients/maximum", number(self.most_connected)),
            ("$SYS/broker/messages/received", number(counters.packets_in)),
            ("$SYS/broker/messages/sent", number(counters.packets_out)),
            ("$SYS/broker/publish/messages/received", number(counters.received)),
            ("$SYS/broker/publish/messages/sent", number(counters.delivered)),
            ("$SYS/broker/publish/messages/dropped", number(counters.dropped_deliveries + counters.shed)),
            ("$SYS/broker/bytes/received", number(counters.bytes_in)),
            ("$SYS/broker/bytes/sent", number(counters.bytes_out)),
            ("$SYS/broker/subscriptions/count", number(counters.subscriptions)),
            ("$SYS/broker/retained messages/count", number(counters.retained)),
        ]
    }
}
