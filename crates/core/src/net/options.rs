//! Settings and limits of the gateway. Every bound has a stated behaviour where it is reached.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::limits::ListenerLimits;
use super::listener::ListenerOptions;
use super::logins::Logins;
use crate::mqtt::topic;
use crate::sessions::SessionTable;

/// Name of the listener that is always there.
pub(super) const PLAIN: &str = "mqtt";

#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Of the plain listener `mqtt`. Port 0 picks a free one; `Gateway::address` tells which.
    pub address: SocketAddr,
    /// Listeners beside it.
    pub listeners: Vec<ListenerOptions>,
    /// Event loops. Connections are dealt to the loop that has the fewest.
    pub threads: usize,
    /// Small writes to many connections leave in one system call where the kernel allows io_uring.
    pub io_uring: bool,
    /// Above it a new connection is closed at once and counted.
    pub max_connections: usize,
    /// Whole packet, header included. Above it: DISCONNECT 0x95, in 3.1.1 the connection closes.
    pub max_packet_bytes: usize,
    /// Payload of one PUBLISH. Above it: PUBACK 0x97; QoS 0 and 3.1.1: the connection ends.
    pub max_payload_bytes: usize,
    /// Longest keep alive; an MQTT 5 client that asks for more (or for none) is told this one. 0: no limit.
    pub max_keep_alive_s: u16,
    /// PUBLISH packets of QoS 1 and 2 that an MQTT 5 client may have unacknowledged; more ends the connection with 0x93. While
    /// sockets stay unread, new clients get a quarter of it or less.
    pub receive_maximum: u16,
    /// 0, 1 or 2. A PUBLISH above it ends the connection with 0x9B.
    pub maximum_qos: u8,
    pub retain_available: bool,
    /// What was retained before the start comes by [`super::Gateway::restore`], until `retained_loaded`.
    pub loads_retained: bool,
    /// Topic aliases that an MQTT 5 client may set; a higher one ends the connection with 0x94. 0: none.
    pub topic_alias_maximum: u16,
    /// Longest time that a session outlives its connection; `u32::MAX`: no bound. An MQTT 5 client that asks for more
    /// is told, an MQTT 3.1.1 session that is not clean gets it. 0: none does.
    pub max_session_expiry_s: u32,
    /// Sessions kept while their clients are away. Beyond it a session ends with its connection; the CONNACK says so.
    pub max_sessions: usize,
    /// Above it a filter is refused with 0x97 (0x80 in 3.1.1).
    pub max_subscriptions_per_client: usize,
    /// Levels of topics and filters, at most [`topic::MAX_LEVELS`].
    pub max_topic_levels: usize,
    /// Length of topics and filters. Beyond it as beyond the levels: 0x90 for a name, 0x8F for a filter.
    pub max_topic_bytes: usize,
    /// Retained messages kept in memory: their number, and bytes of topics, properties and payloads. A new one
    /// beyond either is refused with 0x97; in 3.1.1 it is delivered but not retained.
    pub retained_max_messages: usize,
    pub retained_max_bytes: usize,
    /// What may wait for one slow or absent reader, once as encoded packets and once as messages of QoS 1 and 2. Above
    /// it deliveries to that client are dropped and counted.
    pub outbound_max_bytes: usize,
    /// Messages of QoS 1 and 2 that may wait for one subscriber or its return. Above it deliveries to it are dropped and
    /// counted.
    pub max_queued_messages: usize,
    /// Bytes of messages of QoS 1 and 2 that may wait for all subscribers together. Above it deliveries that would have to
    /// wait are dropped and counted.
    pub max_total_queued_bytes: usize,
    /// Where sessions outlive the process. None: they end with it.
    pub sessions: Option<Arc<dyn SessionTable>>,
    /// A connection that has not sent its CONNECT by then is closed.
    pub first_packet_timeout_s: u16,
    /// Of the plain listener.
    pub limits: ListenerLimits,
    /// Time within which connections of one client id, and takeovers of it, are counted.
    pub flapping_window_s: u32,
    /// How long a client that came too often is refused with 0x9F (3 in 3.1.1).
    pub flapping_ban_s: u32,
    /// A turn of staged rows of this size goes to the log before the pass over the sockets ends. Less where segments of the
    /// log are small.
    pub turn_bytes: usize,
    /// Bytes on their way to the disk, over all threads. Above it no socket is read.
    pub inflight_bytes: usize,
    /// How often `$SYS` is published. Zero: never.
    pub sys_interval: Duration,
    /// Sockets left unread for so long: QoS 0 messages are dropped and counted. Zero: never.
    pub shed_after: Duration,
    /// Where CONNECT packets wait until somebody says who the client is. None: all are anonymous and may do everything.
    pub logins: Option<Arc<Logins>>,
    pub clock: Clock,
}

impl Default for GatewayOptions {
    fn default() -> GatewayOptions {
        GatewayOptions {
            address: SocketAddr::from(([127, 0, 0, 1], 1883)),
            listeners: Vec::new(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            io_uring: true,
            max_connections: 1_000_000,
            max_packet_bytes: 1 << 20,
            max_payload_bytes: 256 << 10,
            max_keep_alive_s: 0,
            receive_maximum: 1024,
            maximum_qos: 2,
            retain_available: true,
            loads_retained: false,
            topic_alias_maximum: 32,
            max_session_expiry_s: 7 * 86_400,
            max_sessions: 1_000_000,
            max_subscriptions_per_client: 1000,
            max_topic_levels: 32,
            max_topic_bytes: u16::MAX.into(),
            retained_max_messages: 100_000,
            retained_max_bytes: 64 << 20,
            outbound_max_bytes: 1 << 20,
            max_queued_messages: 10_000,
            max_total_queued_bytes: 256 << 20,
            sessions: None,
            first_packet_timeout_s: 10,
            limits: ListenerLimits::default(),
            flapping_window_s: 60,
            flapping_ban_s: 300,
            turn_bytes: 1 << 20,
            inflight_bytes: 64 << 20,
            sys_interval: Duration::ZERO,
            shed_after: Duration::from_secs(5),
            logins: None,
            clock: Clock::Real,
        }
    }
}

impl GatewayOptions {
    /// Errors name the setting, the value found and the range.
    pub fn check(&self) -> Result<(), String> {
        let range = |name: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(format!("{name} = {value} is out of range, it must be {low} to {high}"))
        };
        range("threads", self.threads, 1, 1024)?;
        for (at, listener) in self.listeners.iter().enumerate() {
            let name = &listener.name;
            if name == PLAIN || self.listeners[..at].iter().any(|other| other.name == *name) {
                return Err(format!("two listeners have the name {name:?}"));
            }
        }
        range("max_connections", self.max_connections, 1, u32::MAX as usize)?;
        range("max_packet_bytes", self.max_packet_bytes, 256, 256 << 20)?;
        range("max_payload_bytes", self.max_payload_bytes, 1, 256 << 20)?;
        range("receive_maximum", self.receive_maximum.into(), 1, u16::MAX.into())?;
        range("maximum_qos", self.maximum_qos.into(), 0, 2)?;
        range("max_subscriptions_per_client", self.max_subscriptions_per_client, 1, 1_000_000)?;
        range("max_topic_levels", self.max_topic_levels, 1, topic::MAX_LEVELS)?;
        range("max_topic_bytes", self.max_topic_bytes, 1, u16::MAX.into())?;
        range("flapping_window_s", self.flapping_window_s as usize, 1, 86_400)?;
        range("flapping_ban_s", self.flapping_ban_s as usize, 1, 86_400)?;
        range("outbound_max_bytes", self.outbound_max_bytes, 1024, 1 << 30)?;
        range("max_queued_messages", self.max_queued_messages, 1, 1 << 24)?;
        range("max_total_queued_bytes", self.max_total_queued_bytes, 1024, 1 << 40)?;
        range("first_packet_timeout_s", self.first_packet_timeout_s.into(), 1, u16::MAX.into())?;
        range("turn_bytes", self.turn_bytes, 1024, 1 << 30)?;
        range("inflight_bytes", self.inflight_bytes, self.turn_bytes, 1 << 40)
    }
}
