//! Limits that a listener holds its clients to: their names, what they count, and what one message may be.
//!
//! Each limit has a setting, a count by listener, an event that says who and why, and, where there is somebody to tell,
//! a reason code.

use std::sync::atomic::{AtomicU64, Ordering};

use super::options::GatewayOptions;
use crate::mqtt::{ReasonCode, topic};

/// A limit that was reached. The name is that of its setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Of the listener or of all; closed on accept.
    MaxConnections,
    /// New connections wait in the kernel.
    MaxConnectRate,
    /// No CONNECT in time.
    FirstPacketTimeout,
    /// Too many CONNECTs of one client id from one address.
    FlappingConnects,
    /// Clients that take one client id from each other.
    MaxTakeovers,
    /// The client is not read for a while.
    MaxMessageRate,
    MaxByteRate,
    MaxPacketBytes,
    MaxPayloadBytes,
    MaxTopicLevels,
    MaxTopicBytes,
    MaxSubscriptions,
    /// Deliveries to a slow reader were dropped.
    MaxQueuedBytes,
}

impl Limit {
    pub const ALL: [Limit; 13] = [
        Limit::MaxConnections,
        Limit::MaxConnectRate,
        Limit::FirstPacketTimeout,
        Limit::FlappingConnects,
        Limit::MaxTakeovers,
        Limit::MaxMessageRate,
        Limit::MaxByteRate,
        Limit::MaxPacketBytes,
        Limit::MaxPayloadBytes,
        Limit::MaxTopicLevels,
        Limit::MaxTopicBytes,
        Limit::MaxSubscriptions,
        Limit::MaxQueuedBytes,
    ];

    /// The name in settings, metrics and events.
    pub fn name(self) -> &'static str {
        match self {
            Limit::MaxConnections => "max_connections",
            Limit::MaxConnectRate => "max_connect_rate",
            Limit::FirstPacketTimeout => "first_packet_timeout_s",
            Limit::FlappingConnects => "flapping_connects",
            Limit::MaxTakeovers => "max_takeovers",
            Limit::MaxMessageRate => "max_message_rate",
            Limit::MaxByteRate => "max_byte_rate",
            Limit::MaxPacketBytes => "max_packet_bytes",
            Limit::MaxPayloadBytes => "max_payload_bytes",
            Limit::MaxTopicLevels => "max_topic_levels",
            Limit::MaxTopicBytes => "max_topic_bytes",
            Limit::MaxSubscriptions => "max_subscriptions",
            Limit::MaxQueuedBytes => "max_queued_bytes",
        }
    }

    /// The limit behind the end of a connection, if that is what ended it.
    pub(super) fn of_end(reason: ReasonCode) -> Option<Limit> {
        match reason {
            ReasonCode::PacketTooLarge => Some(Limit::MaxPacketBytes),
            ReasonCode::MaximumConnectTime => Some(Limit::FirstPacketTimeout),
            _ => None,
        }
    }

    /// The limit that one message is beyond, if any.
    #[inline]
    pub(super) fn of_message(options: &GatewayOptions, topic: &str, payload: &[u8]) -> Option<Limit> {
        if payload.len() > options.max_payload_bytes {
            return Some(Limit::MaxPayloadBytes);
        }
        Limit::of_topic(options, topic)
    }

    /// The limit that a topic name or filter is beyond, if any.
    #[inline]
    pub(super) fn of_topic(options: &GatewayOptions, topic: &str) -> Option<Limit> {
        if topic.len() > options.max_topic_bytes {
            return Some(Limit::MaxTopicBytes);
        }
        // A topic has no more levels than bytes and one.
        let deep = topic.len() >= options.max_topic_levels && topic::levels(topic) > options.max_topic_levels;
        deep.then_some(Limit::MaxTopicLevels)
    }

    /// What a message beyond it is told.
    pub(super) fn refusal(self) -> (ReasonCode, &'static str) {
        match self {
            Limit::MaxPayloadBytes => {
                (ReasonCode::QuotaExceeded, "the payload is larger than max_payload_bytes")
            }
            Limit::MaxTopicBytes => {
                (ReasonCode::TopicNameInvalid, "the topic is longer than max_topic_bytes")
            }
            _ => (ReasonCode::TopicNameInvalid, "the topic has more than max_topic_levels levels"),
        }
    }
}

/// What a listener's clients are held to beside the limits of all; 0: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Connections accepted in a second; beyond it they wait in the kernel's queue.
    pub connect_rate: u32,
    /// PUBLISH packets of one client in a second; beyond it the client is not read until its time has come.
    pub message_rate: u32,
    /// The same in bytes.
    pub byte_rate: u32,
    /// CONNECT packets of one client id from one address within the window; beyond it they are refused for a time.
    pub flapping_connects: u32,
    /// How often a client id may be taken over within the window; beyond it who is connected stays.
    pub max_takeovers: u32,
}

/// Counts by kind, written by any thread.
#[derive(Debug)]
pub(super) struct Tally<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Tally<N> {
    fn default() -> Tally<N> {
        Tally([const { AtomicU64::new(0) }; N])
    }
}

impl<const N: usize> Tally<N> {
    pub fn count<T: PartialEq>(&self, all: &[T], kind: T) {
        let at = all.iter().position(|each| *each == kind);
        if let Some(count) = at.and_then(|at| self.0.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Kinds that occurred.
    pub fn list<T: Copy>(&self, all: &[T]) -> Vec<(T, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        all.iter().copied().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_is_beyond_the_first_limit_that_it_breaks() {
        let options = GatewayOptions {
            max_payload_bytes: 4,
            max_topic_levels: 3,
            max_topic_bytes: 8,
            ..GatewayOptions::default()
        };
        let beyond = |topic, payload| Limit::of_message(&options, topic, payload);
        assert_eq!(beyond("a/b/c", b"1234"), None);
        assert_eq!(beyond("a/b/c", b"12345"), Some(Limit::MaxPayloadBytes));
        assert_eq!(beyond("a/b/c/d", b""), Some(Limit::MaxTopicLevels));
        assert_eq!(beyond("12345678", b""), None);
        assert_eq!(beyond("123456789", b""), Some(Limit::MaxTopicBytes));
    }

    #[test]
    fn names_are_unique_and_counted() {
        let tally = Tally::<{ Limit::ALL.len() }>::default();
        for (count, limit) in Limit::ALL.into_iter().enumerate() {
            (0..count).for_each(|_| tally.count(&Limit::ALL, limit));
        }
        let wanted: Vec<_> = Limit::ALL.into_iter().zip(0..).skip(1).collect();
        assert_eq!(tally.list(&Limit::ALL), wanted);
        let mut names: Vec<_> = Limit::ALL.iter().map(|limit| limit.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Limit::ALL.len());
    }
}
