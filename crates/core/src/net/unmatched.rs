//! Topics that no stream matched, with an example each, for a person to declare a stream from.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::clock::now_us;

/// Topics in the table; beyond it new topics are not taken in.
const MAX_TOPICS: usize = 1000;
/// Longest example kept; longer payloads are cut.
const MAX_EXAMPLE_BYTES: usize = 4096;
/// Messages looked at per tick by all threads: the cost does not grow with traffic.
const SAMPLES_PER_TICK: u32 = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    pub topic: String,
    /// Messages seen. Above some thousand messages a second only samples are looked at, so it is a lower bound.
    pub count: u64,
    /// The last payload seen, at most 4,096 bytes of it.
    pub example: Vec<u8>,
    /// Microseconds since the Unix epoch, UTC.
    pub last_seen_us: i64,
}

#[derive(Debug, Default)]
pub(super) struct UnmatchedTopics {
    topics: Mutex<HashMap<Box<str>, Seen>>,
    /// Tick in the upper part of what has been sampled; resets when the tick moves on.
    sampled: AtomicU32,
    tick: AtomicU32,
}

#[derive(Debug)]
struct Seen {
    count: u64,
    example: Vec<u8>,
    last_seen_us: i64,
}

impl UnmatchedTopics {
    /// Notes a message, if this tick's samples are not used up.
    #[inline]
    pub fn note(&self, tick: u32, topic: &str, payload: &[u8]) {
        // The numbers are advisory: a race lets a few samples more or less through.
        if self.tick.load(Ordering::Relaxed) != tick {
            self.tick.store(tick, Ordering::Relaxed);
            self.sampled.store(0, Ordering::Relaxed);
        }
        if self.sampled.load(Ordering::Relaxed) < SAMPLES_PER_TICK {
            self.sampled.fetch_add(1, Ordering::Relaxed);
            self.take_in(topic, payload);
        }
    }

    #[cold]
    fn take_in(&self, topic: &str, payload: &[u8]) {
        let example = &payload[..payload.len().min(MAX_EXAMPLE_BYTES)];
        let mut topics = self.topics.lock();
        if let Some(seen) = topics.get_mut(topic) {
            seen.count += 1;
            seen.last_seen_us = now_us();
            seen.example.clear();
            seen.example.extend_from_slice(example);
        } else if topics.len() < MAX_TOPICS {
            let seen = Seen { count: 1, example: example.to_vec(), last_seen_us: now_us() };
            topics.insert(topic.into(), seen);
        }
    }

    /// All topics in the table, those seen most first.
    pub fn list(&self) -> Vec<Unmatched> {
        let mut list: Vec<Unmatched> = self
            .topics
            .lock()
            .iter()
            .map(|(topic, seen)| Unmatched {
                topic: topic.to_string(),
                count: seen.count,
                example: seen.example.clone(),
                last_seen_us: seen.last_seen_us,
            })
            .collect();
        list.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.topic.cmp(&b.topic)));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_counted_with_their_last_payload_cut() {
        let table = UnmatchedTopics::default();
        table.note(1, "a", b"first");
        table.note(1, "b", &[7; 9000]);
        table.note(1, "a", b"second");
        let list = table.list();
        assert_eq!((list[0].topic.as_str(), list[0].count, &list[0].example[..]), ("a", 2, &b"second"[..]));
        assert_eq!((list[1].topic.as_str(), list[1].example.len()), ("b", MAX_EXAMPLE_BYTES));
    }

    #[test]
    fn samples_and_topics_are_bounded() {
        let table = UnmatchedTopics::default();
        for tick in 0..100 {
            for at in 0..1000 {
                table.note(tick, &format!("{tick}/{at}"), b"");
            }
        }
        assert_eq!(table.list().len(), MAX_TOPICS);
        let table = UnmatchedTopics::default();
        (0..1_000_000).for_each(|_| table.note(5, "a", b""));
        assert_eq!(table.list()[0].count, u64::from(SAMPLES_PER_TICK));
    }
}
