//! Token buckets: how many in a second, counted in the ticks of the event loop, in plain integers.
//!
//! A bucket holds the tokens of one second. What is taken may lead into debt, by the one message or the one read that
//! took it, and is paid off before the next: so the rate holds over any longer time.

use super::clock::TICK_MS;
use super::limits::{Limit, ListenerLimits};

/// Ticks in a second; a token is so many parts, so that each tick adds a whole number.
const PARTS: i64 = (1000 / TICK_MS) as i64;
/// A client that is held back is named at most once in this many ticks.
const TOLD_TICKS: u32 = 600;
/// Least and most that is read of a client with a bounded rate at a time: what is read beyond its rate waits in memory.
const LEAST_READ: usize = 4 << 10;
/// Guess at the size of a message.
const MESSAGE_BYTES: usize = 256;

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    parts: i64,
    tick: u32,
}

impl Bucket {
    pub fn full(rate: u32, tick: u32) -> Bucket {
        Bucket { parts: i64::from(rate) * PARTS, tick }
    }

    /// Adds what the time since the last call gives.
    pub fn refill(&mut self, rate: u32, tick: u32) {
        let passed = i64::from(tick.saturating_sub(self.tick));
        let full = i64::from(rate) * PARTS;
        self.parts = self.parts.saturating_add(passed * i64::from(rate)).min(full);
        self.tick = tick.max(self.tick);
    }

    pub fn take(&mut self, tokens: usize) {
        let parts = i64::try_from(tokens).unwrap_or(i64::MAX / PARTS).saturating_mul(PARTS);
        self.parts = self.parts.saturating_sub(parts);
    }

    pub fn is_empty(&self) -> bool {
        self.parts <= 0
    }

    fn tokens(&self) -> usize {
        usize::try_from(self.parts / PARTS).unwrap_or(0)
    }
}

/// What one client has left. Only connections of listeners with such limits have it.
#[derive(Debug)]
pub(super) struct Rates {
    message_rate: u32,
    byte_rate: u32,
    messages: Bucket,
    bytes: Bucket,
    told: Option<u32>,
    /// In the list of those that wait for their time.
    pub paused: bool,
    /// The connection's partial packet is what was read and not handled: whole packets too.
    pub stashed: bool,
}

impl Rates {
    pub fn new(limits: &ListenerLimits, tick: u32) -> Option<Box<Rates>> {
        let ListenerLimits { message_rate, byte_rate, .. } = *limits;
        (message_rate > 0 || byte_rate > 0).then(|| {
            Box::new(Rates {
                message_rate,
                byte_rate,
                messages: Bucket::full(message_rate, tick),
                bytes: Bucket::full(byte_rate, tick),
                told: None,
                paused: false,
                stashed: false,
            })
        })
    }

    pub fn refill(&mut self, tick: u32) {
        self.messages.refill(self.message_rate, tick);
        self.bytes.refill(self.byte_rate, tick);
    }

    /// The limit that the client has reached, if any.
    #[inline]
    pub fn exceeded(&self) -> Option<Limit> {
        if self.message_rate > 0 && self.messages.is_empty() {
            Some(Limit::MaxMessageRate)
        } else if self.byte_rate > 0 && self.bytes.is_empty() {
            Some(Limit::MaxByteRate)
        } else {
            None
        }
    }

    #[inline]
    pub fn message(&mut self) {
        self.messages.take(1);
    }

    pub fn read(&mut self, bytes: usize) {
        self.bytes.take(bytes);
    }

    /// How much to read at a time.
    pub fn read_bytes(&self) -> usize {
        let by_messages = match self.message_rate {
            0 => usize::MAX,
            _ => self.messages.tokens().saturating_mul(MESSAGE_BYTES),
        };
        let by_bytes = if self.byte_rate == 0 { usize::MAX } else { self.bytes.tokens() };
        by_messages.min(by_bytes).max(LEAST_READ)
    }

    /// Whether it is time to name the client again.
    pub fn tell(&mut self, tick: u32) -> bool {
        let due = self.told.is_none_or(|told| tick.saturating_sub(told) >= TOLD_TICKS);
        if due {
            self.told = Some(tick);
        }
        due
    }

    pub fn rate(&self, limit: Limit) -> u32 {
        if limit == Limit::MaxMessageRate { self.message_rate } else { self.byte_rate }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_holds_one_second_and_pays_its_debt_first() {
        let mut bucket = Bucket::full(3, 100);
        bucket.take(3);
        assert!(bucket.is_empty());
        bucket.refill(3, 103);
        assert!(!bucket.is_empty(), "nine tenths of a token let one through");
        bucket.take(1);
        assert!(bucket.is_empty());
        bucket.refill(3, 1_000_000);
        assert_eq!(bucket.tokens(), 3);
        bucket.take(30);
        bucket.refill(3, 1_000_090);
        assert!(bucket.is_empty());
        bucket.refill(3, 1_000_091);
        assert!(!bucket.is_empty());
    }

    #[test]
    fn no_limit_means_no_bucket_and_one_limit_leaves_the_other_open() {
        assert!(Rates::new(&ListenerLimits::default(), 0).is_none());
        let mut rates =
            Rates::new(&ListenerLimits { message_rate: 1, ..ListenerLimits::default() }, 0).unwrap();
        rates.read(usize::MAX);
        assert_eq!(rates.exceeded(), None);
        rates.message();
        assert_eq!(rates.exceeded(), Some(Limit::MaxMessageRate));
        assert!(rates.tell(0) && !rates.tell(TOLD_TICKS - 1) && rates.tell(TOLD_TICKS));
    }

    proptest! {
        /// Whatever comes whenever: no more than a second's tokens beyond the rate, and one that leads into debt.
        #[test]
        fn the_rate_holds_over_any_time(rate in 1u32..1000, steps in prop::collection::vec(0u32..30, 1..200)) {
            let mut bucket = Bucket::full(rate, 0);
            let (mut tick, mut taken) = (0, 0u64);
            for step in steps {
                tick += step;
                bucket.refill(rate, tick);
                while !bucket.is_empty() {
                    bucket.take(1);
                    taken += 1;
                }
            }
            let most = u64::from(rate) + u64::from(rate) * u64::from(tick) / PARTS as u64 + 1;
            prop_assert!(taken <= most, "{taken} of {most}");
        }
    }
}
