//! What the gateway counts. Each thread keeps plain integers and shows them once per pass, all at a time,
//! so that every snapshot balances: received = decoded + raw_only + live_only + dead_lettered + shed +
//! refused + in_flight.

use std::ops::AddAssign;

use hdrhistogram::Histogram;

use crate::mqtt::ReasonCode;

/// Longest latency that the histogram tells apart, µs.
const MAX_LATENCY_US: u64 = 60_000_000;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Messages and connections since start, except those that say otherwise.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
            /// Refused CONNECTs by reason.
            pub refused_connections: ByReason,
            /// Connections that the gateway ended, by reason.
            pub ended_connections: ByReason,
        }

        impl Counters {
            /// Every plain counter with its name.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }

        impl AddAssign<&Counters> for Counters {
            fn add_assign(&mut self, other: &Counters) {
                $(self.$name += other.$name;)+
                self.refused_connections += &other.refused_connections;
                self.ended_connections += &other.ended_connections;
            }
        }
    };
}

counters! {
    /// PUBLISH packets from clients.
    received,
    /// Durable with all their readings.
    decoded,
    /// Durable as raw messages, wanted by no stream.
    raw_only,
    /// Wanted by no stream, rule or shadow: delivered to live subscribers alone.
    live_only,
    /// Durable as dead letters.
    dead_lettered,
    /// QoS 0 messages dropped because the loop was behind its log for long, or lost because the log failed; nobody
    /// could be told.
    shed,
    /// Not accepted, and the client was told by reason code or by closing.
    refused,
    /// Staged or on their way to the disk now.
    in_flight,
    /// Durable rows of streams.
    rows,
    /// PUBACK packets written, whatever their code.
    acks,
    /// Connections with a CONNACK of success, now.
    connections,
    /// Sockets accepted, now: also those without a CONNECT so far.
    sockets,
    connections_total,
    /// Closed on accept, because `max_connections` were open.
    over_max_connections,
    /// Ended by the client without DISCONNECT.
    lost_connections,
    /// Sessions that wait for their clients, now.
    sessions,
    /// Clients that asked for a session beyond the connection and did not get it, because `max_sessions` wait already.
    sessions_not_kept,
    packets_in,
    packets_out,
    bytes_in,
    bytes_out,
    /// PUBLISH packets to subscribers.
    delivered,
    /// Deliveries dropped at a bound: slow reader, or above the client's maximum packet size.
    dropped_deliveries,
    /// Of those, the ones dropped because `max_total_queued_bytes` waited for all clients together.
    dropped_total_queued,
    /// Bytes of messages of QoS 1 and 2 that wait for clients or their acknowledgements, now.
    queued_bytes,
    /// Snapshots of durable sessions written.
    session_snapshots,
    /// Retained messages not retained, because the table was full.
    retained_refused,
    subscriptions,
    retained,
    retained_bytes,
    /// Refused by a policy: CONNECT packets, PUBLISH packets (wills among them), filters, deliveries.
    denied_connect,
    denied_publish,
    denied_subscribe,
    denied_receive,
    /// Connections ended because the client's token or certificate has expired, and because it counts no more: a line
    /// that is gone or has changed, a revocation, other policies.
    access_expired,
    access_revoked,
    /// Turns that the log refused or failed to make durable.
    log_failures,
    /// Times that a connection which sends much beside others was left unwatched.
    unwatched,
    /// Passes in which sockets were left unread because the log was behind.
    throttled,
    /// Milliseconds in which sockets with something to read were left unread, summed over the loops.
    unread_ms,
    /// Loops that leave sockets unread now, or shed.
    loops_unread,
    loops_shedding,
    /// Lifecycle events that were not published, because a pass had too many.
    lifecycle_dropped,
    /// Events lost at the bound of the event ring.
    events_lost,
}

impl Counters {
    /// What the books say is wrong, if anything.
    pub fn imbalance(&self) -> i128 {
        let parts = [
            self.decoded,
            self.raw_only,
            self.live_only,
            self.dead_lettered,
            self.shed,
            self.refused,
            self.in_flight,
        ];
        i128::from(self.received) - parts.iter().map(|&part| i128::from(part)).sum::<i128>()
    }
}

/// A counter for each reason code of the standard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByReason([u64; ReasonCode::ALL.len()]);

impl Default for ByReason {
    fn default() -> ByReason {
        ByReason([0; ReasonCode::ALL.len()])
    }
}

impl ByReason {
    pub(super) fn count(&mut self, reason: ReasonCode) {
        if let Ok(at) = ReasonCode::ALL.binary_search(&reason) {
            self.0[at] += 1;
        }
    }

    /// Reasons that occurred, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (ReasonCode, u64)> {
        ReasonCode::ALL.iter().copied().zip(self.0).filter(|(_, count)| *count > 0)
    }

    pub fn get(&self, reason: ReasonCode) -> u64 {
        ReasonCode::ALL.binary_search(&reason).map_or(0, |at| self.0[at])
    }
}

impl AddAssign<&ByReason> for ByReason {
    fn add_assign(&mut self, other: &ByReason) {
        self.0.iter_mut().zip(&other.0).for_each(|(to, from)| *to += from);
    }
}

/// Time from reading a QoS 1 PUBLISH to writing its PUBACK.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// What one thread shows to others, under one lock.
#[derive(Debug)]
pub(super) struct Shown {
    pub counters: Counters,
    pub since_start: Histogram<u64>,
    pub window: Histogram<u64>,
}

impl Shown {
    pub fn new() -> Shown {
        Shown { counters: Counters::default(), since_start: histogram(), window: histogram() }
    }

    pub fn record(&mut self, latency_us: u64, messages: u64) {
        self.since_start.saturating_record_n(latency_us.max(1), messages);
        self.window.saturating_record_n(latency_us.max(1), messages);
    }
}

pub(super) fn histogram() -> Histogram<u64> {
    // Two digits and these bounds are valid by hdrhistogram's documentation; the fallback never runs.
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 2)
        .unwrap_or_else(|_| Histogram::new(1).expect("one digit is valid"))
}

pub(super) fn latency(of: &Histogram<u64>) -> Latency {
    if of.is_empty() {
        return Latency::default();
    }
    let ms = |us: u64| us as f64 / 1000.0;
    Latency {
        count: of.len(),
        p50_ms: ms(of.value_at_quantile(0.5)),
        p99_ms: ms(of.value_at_quantile(0.99)),
        max_ms: ms(of.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_by_name() {
        let mut by = ByReason::default();
        by.count(ReasonCode::QuotaExceeded);
        by.count(ReasonCode::QuotaExceeded);
        by.count(ReasonCode::Success);
        assert_eq!(by.iter().collect::<Vec<_>>(), [(ReasonCode::Success, 1), (ReasonCode::QuotaExceeded, 2)]);
        assert_eq!(by.get(ReasonCode::QuotaExceeded), 2);
    }

    #[test]
    fn latency_of_nothing_is_zero_and_of_something_is_within_its_digits() {
        let mut shown = Shown::new();
        assert_eq!(latency(&shown.window), Latency::default());
        shown.record(1000, 99);
        shown.record(50_000, 1);
        let latency = latency(&shown.window);
        assert_eq!(latency.count, 100);
        assert!((latency.p50_ms - 1.0).abs() < 0.02 && (latency.max_ms - 50.0).abs() < 0.5, "{latency:?}");
    }
}
