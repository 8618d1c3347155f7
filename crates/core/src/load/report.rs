//! What a fleet did so far.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::faults::Label;

/// One thread's books, published as a whole once per pass, so that at every snapshot
/// `sent = acked + refused + in_flight` at QoS 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub sent: u64,
    pub acked: u64,
    pub refused: u64,
    pub resent: u64,
    pub left_out: u64,
    pub bytes: u64,
    pub connections_up: u64,
    pub connections_behind: u64,
    pub reconnects: u64,
    pub refused_connections: u64,
    pub protocol_errors: u64,
    pub received: u64,
    pub bytes_received: u64,
}

/// What went wrong, by packet or step and reason code (0 where there is none).
pub(super) type Errors = BTreeMap<(&'static str, u8), u64>;

/// What a thread shows to `Fleet::report`.
pub(super) struct Shown {
    pub counters: Counters,
    /// Microseconds from the write of a PUBLISH (its last one, if resent) to its PUBACK.
    pub ack_latency_us: Histogram<u64>,
    /// Microseconds from the start of a TCP handshake to CONNACK, or SUBACK for a subscriber.
    pub connect_us: Histogram<u64>,
    /// Microseconds from the time that a payload states to its arrival at a subscriber.
    pub delivery_us: Histogram<u64>,
    pub errors: Errors,
    /// Readings touched by each fault, by index of the label.
    pub fault_readings: Vec<u64>,
    pub last_error: Option<String>,
    /// Time since the start at which everything was sent and acknowledged.
    pub finished_at: Option<Duration>,
}

/// A snapshot of the whole fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetReport {
    /// Messages sent, each counted once however often it was sent again.
    pub sent: u64,
    /// QoS 1 messages whose PUBACK said success.
    pub acked: u64,
    /// QoS 1 messages whose PUBACK carried a reason code of 0x80 or more.
    pub refused: u64,
    /// QoS 1 messages sent and not yet answered. At QoS 1 sent = acked + refused + in_flight.
    pub in_flight: u64,
    /// Repetitions with DUP after a reconnect.
    pub resent: u64,
    /// Readings that dropouts left out.
    pub left_out: u64,
    /// Bytes of PUBLISH packets, repetitions included.
    pub bytes: u64,
    pub connections: u64,
    pub connections_up: u64,
    /// Connections that have readings due which the window or the server's absence holds back.
    pub connections_behind: u64,
    /// Connections that came up again after they had been up.
    pub reconnects: u64,
    /// CONNACKs that refused.
    pub refused_connections: u64,
    /// Connections given up because the server broke the protocol.
    pub protocol_errors: u64,
    /// Messages and payload bytes that subscribers were sent.
    pub received: u64,
    pub bytes_received: u64,
    /// From PUBLISH to PUBACK.
    pub ack: Latency,
    /// From the start of a TCP handshake to CONNACK, or SUBACK for a subscriber.
    pub connect: Latency,
    /// From the time that a payload states to its arrival at a subscriber.
    pub delivery: Latency,
    /// How often each went wrong: `PUBACK 0x97`, `CONNACK 0x05`, `connecting`.
    pub errors: Vec<(String, u64)>,
    /// From the start to now, or to the end of the last thread that finished.
    pub elapsed: Duration,
    /// Everything asked for was sent and, at QoS 1, answered.
    pub finished: bool,
    /// Why a connection was last lost or refused.
    pub last_error: Option<String>,
    pub labels: Vec<Label>,
}

impl FleetReport {
    /// Sums what the threads show.
    pub(super) fn new<'a>(
        qos: u8,
        connections: u32,
        labels: &[Label],
        now: Duration,
        threads: impl Iterator<Item = &'a Shown>,
    ) -> FleetReport {
        let mut sum = Counters::default();
        let (mut ack, mut connect, mut delivery) = (new_histogram(), new_histogram(), new_histogram());
        let mut errors = Errors::new();
        let (mut labels, mut last_error) = (labels.to_vec(), None);
        let mut finished_at = Some(Duration::ZERO);
        for shown in threads {
            sum.add(&shown.counters);
            // Threads share one set of bounds, for which adding cannot fail.
            let _ = ack.add(&shown.ack_latency_us);
            let _ = connect.add(&shown.connect_us);
            let _ = delivery.add(&shown.delivery_us);
            for (&error, count) in &shown.errors {
                *errors.entry(error).or_default() += count;
            }
            for (label, &readings) in labels.iter_mut().zip(&shown.fault_readings) {
                label.readings += readings;
            }
            last_error = last_error.or_else(|| shown.last_error.clone());
            finished_at = finished_at.zip(shown.finished_at).map(|(one, other)| one.max(other));
        }
        FleetReport {
            sent: sum.sent,
            acked: sum.acked,
            refused: sum.refused,
            in_flight: if qos == 0 { 0 } else { sum.sent - sum.acked - sum.refused },
            resent: sum.resent,
            left_out: sum.left_out,
            bytes: sum.bytes,
            connections: u64::from(connections),
            connections_up: sum.connections_up,
            connections_behind: sum.connections_behind,
            reconnects: sum.reconnects,
            refused_connections: sum.refused_connections,
            protocol_errors: sum.protocol_errors,
            received: sum.received,
            bytes_received: sum.bytes_received,
            ack: Latency::of(&ack),
            connect: Latency::of(&connect),
            delivery: Latency::of(&delivery),
            errors: errors.into_iter().map(|(error, count)| (name_of(error), count)).collect(),
            elapsed: finished_at.unwrap_or(now),
            finished: finished_at.is_some(),
            last_error,
            labels,
        }
    }
}

impl Counters {
    fn add(&mut self, other: &Counters) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.refused += other.refused;
        self.resent += other.resent;
        self.left_out += other.left_out;
        self.bytes += other.bytes;
        self.connections_up += other.connections_up;
        self.connections_behind += other.connections_behind;
        self.reconnects += other.reconnects;
        self.refused_connections += other.refused_connections;
        self.protocol_errors += other.protocol_errors;
        self.received += other.received;
        self.bytes_received += other.bytes_received;
    }
}

/// Percentiles of a latency, microseconds; all 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    pub count: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        Latency {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

fn name_of((what, code): (&str, u8)) -> String {
    if code == 0 { what.to_owned() } else { format!("{what} 0x{code:02x}") }
}

/// 1 us to 10 minutes with three digits; longer is recorded as 10 minutes.
pub(super) fn new_histogram() -> Histogram<u64> {
    #[allow(clippy::expect_used, reason = "the bounds are constants within what the type allows")]
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("constant bounds")
}
