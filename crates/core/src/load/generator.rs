//! What makes a load generator of a fleet: a payload of the user's, subscribers, connections that do nothing, and a
//! start that waits until all are up. A fleet that plays devices has none of it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::options::FleetError;
use super::template::Template;

/// The default is a fleet that plays devices.
#[derive(Clone, Debug, Default)]
pub struct GeneratorOptions {
    /// Sent instead of the fields' JSON; there are no faults then.
    pub payload: Option<Template>,
    /// Nothing is sent before every connection is up, and time counts from then on.
    pub start_together: bool,
    /// Flat out: one PUBLISH per write, connections in turn, instead of as many as fit.
    pub one_per_write: bool,
    /// Flat out, but so many messages per second over all threads at most. 0: no bound.
    pub at_most_per_s: f64,
    /// Connections are held open and publish nothing.
    pub idle: bool,
    /// New connections per second, over all threads. 0: as fast as the server takes them.
    pub connects_per_s: f64,
    /// Connections that subscribe to `filter`, beside those that publish.
    pub subscribers: u32,
    pub filter: String,
    pub subscribe_qos: u8,
    /// What stands before the time of sending in a received payload, such as `"ts":`. Empty: no latency is taken.
    pub timestamp_after: Vec<u8>,
}

impl GeneratorOptions {
    /// Refuses what cannot be run.
    pub fn check(&self) -> Result<(), FleetError> {
        let refuse = |text: String| Err(FleetError::Options(text));
        if !(0.0..=1e6).contains(&self.connects_per_s) {
            return refuse(format!("connects_per_s is {}: give 0 (no bound) to 1e6", self.connects_per_s));
        }
        if !(0.0..=1e9).contains(&self.at_most_per_s) {
            return refuse(format!("at_most_per_s is {}: give 0 (no bound) to 1e9", self.at_most_per_s));
        }
        if self.subscribers > 1_000_000 {
            return refuse(format!("subscribers is {}: at most 1,000,000", self.subscribers));
        }
        if self.subscribers > 0 && (self.filter.is_empty() || self.filter.len() > 60_000) {
            return refuse("filter: subscribers need a topic filter of 1 to 60,000 bytes".to_owned());
        }
        if self.subscribe_qos > 1 {
            return refuse(format!("subscribe_qos is {}: 0 or 1", self.subscribe_qos));
        }
        Ok(())
    }
}

/// Opens when all connections are up; until then nobody sends.
pub struct Gate {
    expected: u32,
    up: AtomicU32,
    /// Time of opening, nanoseconds after the fleet's start; `CLOSED` before.
    opened_ns: AtomicU64,
}

const CLOSED: u64 = u64::MAX;

impl Gate {
    /// `expected`: connections to wait for; 0: open from the start.
    pub fn new(expected: u32) -> Gate {
        let opened_ns = AtomicU64::new(if expected == 0 { 0 } else { CLOSED });
        Gate { expected, up: AtomicU32::new(0), opened_ns }
    }

    /// One more connection came up for the first time.
    pub fn arrive(&self, now_ns: u64) {
        if self.up.fetch_add(1, Ordering::AcqRel) + 1 == self.expected {
            self.open(now_ns);
        }
    }

    /// Opens it for those that are up; the first opening counts.
    pub fn open(&self, now_ns: u64) {
        let _ = self.opened_ns.compare_exchange(CLOSED, now_ns, Ordering::AcqRel, Ordering::Acquire);
    }

    /// When it was opened.
    pub fn opened_ns(&self) -> Option<u64> {
        Some(self.opened_ns.load(Ordering::Acquire)).filter(|&at| at != CLOSED)
    }
}

/// Time of sending that a payload states after `mark`, microseconds since the epoch: digits, maybe quoted, whose
/// magnitude tells seconds, milliseconds and microseconds apart.
pub fn sent_us(payload: &[u8], mark: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(payload, mark)? + mark.len();
    let mut number = 0u64;
    let mut digits = 0;
    for &byte in payload.get(at..)?.iter().skip_while(|byte| matches!(byte, b' ' | b'"')) {
        if !byte.is_ascii_digit() || digits == 19 {
            break;
        }
        number = number * 10 + u64::from(byte - b'0');
        digits += 1;
    }
    match digits {
        9..=11 => Some(number * 1_000_000),
        12..=14 => Some(number * 1_000),
        15..=17 => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_opens_with_the_last_connection_and_once() {
        let gate = Gate::new(2);
        gate.arrive(5);
        assert_eq!(gate.opened_ns(), None);
        gate.arrive(7);
        gate.open(9);
        assert_eq!(gate.opened_ns(), Some(7));
        assert_eq!(Gate::new(0).opened_ns(), Some(0));
    }

    #[test]
    fn a_time_of_sending_is_told_by_its_magnitude() {
        let found = |text: &str| sent_us(text.as_bytes(), b"\"ts\":");
        assert_eq!(found(r#"{"a":1,"ts":1732000000123,"b":2}"#), Some(1_732_000_000_123_000));
        assert_eq!(found(r#"{"ts": "1732000000"}"#), Some(1_732_000_000_000_000));
        assert_eq!(found(r#"{"ts":1732000000123456}"#), Some(1_732_000_000_123_456));
        for text in
            [r#"{"ts":12}"#, r#"{"ts":x}"#, r#"{"t":1732000000}"#, r#"{"ts":99999999999999999999999}"#, ""]
        {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
