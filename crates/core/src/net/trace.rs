//! Packets as they come and go, of one client or one topic, for somebody who watches.
//!
//! While nobody watches a read costs one look at a number. Each watcher has a bounded ring: when it is too slow the
//! oldest lines go and are counted.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::clock::now_us;
use super::connection::Connection;
use super::gateway::Gateway;
use super::lane::{Lane, Shared, shortened};
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{Connect, Frame, Packet, PacketType, Properties, Publish, Version, frame, topic};

/// Watchers at a time.
const MAX_TRACES: usize = 8;
/// Lines that wait for one watcher.
const MAX_LINES: usize = 1000;
/// Bytes of a payload that a line shows.
const SHOWN_BYTES: usize = 64;
/// Filters of one packet that a line shows.
const SHOWN_FILTERS: usize = 8;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceFilter {
    /// All packets of this client id.
    Client(String),
    /// PUBLISH packets, from and to anybody, whose topic this filter matches.
    Topic(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceLine {
    /// Microseconds since the Unix epoch, UTC.
    pub at_us: i64,
    pub client: String,
    /// false: to the client.
    pub from_client: bool,
    /// As the standard names it.
    pub packet: &'static str,
    /// Of the whole packet.
    pub bytes: usize,
    pub detail: String,
}

#[derive(Debug, Default)]
pub(super) struct Traces {
    active: AtomicUsize,
    taps: RwLock<Vec<Arc<Tap>>>,
}

#[derive(Debug)]
struct Tap {
    filter: TraceFilter,
    ring: Mutex<Ring>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<TraceLine>,
    lost: u64,
}

/// Watches until it is dropped.
pub struct Trace {
    shared: Arc<Shared>,
    tap: Arc<Tap>,
}

impl Gateway {
    /// Begins to watch. Errors name the filter, or say that too many watch already.
    pub fn trace(&self, filter: TraceFilter) -> Result<Trace, String> {
        if let TraceFilter::Topic(text) = &filter
            && !topic::is_filter(text)
        {
            return Err(format!("{text:?} is no topic filter"));
        }
        let traces = &self.shared.traces;
        let mut taps = traces.taps.write();
        if taps.len() >= MAX_TRACES {
            return Err(format!("{MAX_TRACES} traces run already; end one of them"));
        }
        let tap = Arc::new(Tap { filter, ring: Mutex::default(), arrived: Condvar::new() });
        taps.push(Arc::clone(&tap));
        traces.active.store(taps.len(), Ordering::Relaxed);
        Ok(Trace { shared: Arc::clone(&self.shared), tap })
    }
}

impl Trace {
    /// Lines that have come, oldest first, as soon as there is one, and how many were lost at the bound before them;
    /// none when time is up.
    pub fn take(&self, patience: Duration) -> (Vec<TraceLine>, u64) {
        let mut ring = self.tap.ring.lock();
        if ring.lines.is_empty() {
            self.tap.arrived.wait_for(&mut ring, patience);
        }
        (ring.lines.drain(..).collect(), std::mem::take(&mut ring.lost))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let traces = &self.shared.traces;
        let mut taps = traces.taps.write();
        taps.retain(|tap| !Arc::ptr_eq(tap, &self.tap));
        traces.active.store(taps.len(), Ordering::Relaxed);
    }
}

impl Traces {
    #[inline]
    pub fn is_on(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }
}

impl TraceFilter {
    fn wants(&self, client: &str, topic_name: Option<&str>) -> bool {
        match self {
            TraceFilter::Client(wanted) => wanted == client,
            TraceFilter::Topic(filter) => topic_name.is_some_and(|name| topic::matches(filter, name)),
        }
    }
}

impl Tap {
    fn add(&self, line: TraceLine) {
        let mut ring = self.ring.lock();
        if ring.lines.len() == MAX_LINES {
            ring.lines.pop_front();
            ring.lost += 1;
        }
        ring.lines.push_back(line);
        self.arrived.notify_one();
    }
}

/// Shows a packet from the client to those who watch.
pub(super) fn trace_in(lane: &Lane, conn: &Connection, ty: PacketType, flags: u8, body: &[u8]) {
    let traces = &lane.shared.traces;
    if !traces.is_on() {
        return;
    }
    // The CONNECT itself says whose it is.
    let connect = (ty == PacketType::Connect).then(|| Connect::parse(body).ok()).flatten();
    let client = connect.as_ref().map_or(&*conn.client_id, |connect| connect.client_id);
    let name = (ty == PacketType::Publish).then(|| topic_of(conn, flags, body)).flatten();
    show(traces, client, conn.version, true, (ty, flags, body), name);
}

/// Shows what is about to be written to the client.
pub(super) fn trace_out(lane: &Lane, conn: &mut Connection) {
    let Some(out) = &mut conn.out else { return };
    let Some(mut bytes) = out.bytes.get(out.traced..) else { return };
    while let Ok(Frame::Complete { ty, flags, body, total }) = frame(bytes, usize::MAX) {
        let name = match ty {
            PacketType::Publish => {
                Publish::parse(flags, body, conn.version).ok().map(|publish| publish.topic)
            }
            _ => None,
        };
        show(&lane.shared.traces, &conn.client_id, conn.version, false, (ty, flags, body), name);
        bytes = &bytes[total..];
    }
    out.traced = out.bytes.len();
}

fn show(
    traces: &Traces,
    client: &str,
    version: Version,
    from_client: bool,
    (ty, flags, body): (PacketType, u8, &[u8]),
    topic_name: Option<&str>,
) {
    let taps = traces.taps.read();
    let mut line = None;
    for tap in taps.iter().filter(|tap| tap.filter.wants(client, topic_name)) {
        let line = line.get_or_insert_with(|| TraceLine {
            at_us: now_us(),
            client: client.to_owned(),
            from_client,
            packet: name(ty),
            bytes: body.len() + 1 + length_bytes(body.len()),
            detail: detail(ty, flags, body, version, topic_name),
        });
        tap.add(line.clone());
    }
}

/// The topic of a PUBLISH from the client, also where an alias stands for it.
fn topic_of<'a>(conn: &'a Connection, flags: u8, body: &'a [u8]) -> Option<&'a str> {
    let publish = Publish::parse(flags, body, conn.version).ok()?;
    if !publish.topic.is_empty() {
        return Some(publish.topic);
    }
    let alias = publish.properties.number(PropertyId::TopicAlias)? as usize;
    conn.session.as_ref()?.aliases.get(alias.checked_sub(1)?)?.as_deref()
}

/// Bytes of a remaining length (section 1.5.5).
fn length_bytes(length: usize) -> usize {
    match length {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

fn name(ty: PacketType) -> &'static str {
    match ty {
        PacketType::Connect => "CONNECT",
        PacketType::Connack => "CONNACK",
        PacketType::Publish => "PUBLISH",
        PacketType::Puback => "PUBACK",
        PacketType::Pubrec => "PUBREC",
        PacketType::Pubrel => "PUBREL",
        PacketType::Pubcomp => "PUBCOMP",
        PacketType::Subscribe => "SUBSCRIBE",
        PacketType::Suback => "SUBACK",
        PacketType::Unsubscribe => "UNSUBSCRIBE",
        PacketType::Unsuback => "UNSUBACK",
        PacketType::Pingreq => "PINGREQ",
        PacketType::Pingresp => "PINGRESP",
        PacketType::Disconnect => "DISCONNECT",
        PacketType::Auth => "AUTH",
    }
}

/// The packet in words. A password is never among them.
fn detail(ty: PacketType, flags: u8, body: &[u8], version: Version, topic_name: Option<&str>) -> String {
    let packet = match Packet::from_frame(ty, flags, body, version) {
        Ok(packet) => packet,
        Err(error) => return format!("malformed: {error}"),
    };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match &packet {
        Packet::Connect(connect) => describe_connect(&mut text, connect),
        Packet::Connack(connack) => {
            write!(text, "code 0x{:02x}, session present {}", connack.code, connack.session_present)
        }
        Packet::Publish(publish) => {
            let topic = topic_name.unwrap_or(publish.topic);
            let shown = &publish.payload[..publish.payload.len().min(SHOWN_BYTES)];
            write!(
                text,
                "topic {:?}, QoS {}{}{}, id {}, {} bytes: {}",
                shortened(topic),
                publish.qos as u8,
                if publish.retain { ", retain" } else { "" },
                if publish.dup { ", dup" } else { "" },
                publish.packet_id,
                publish.payload.len(),
                String::from_utf8_lossy(shown).escape_debug(),
            )
        }
        Packet::Ack(ack) => write!(text, "id {}, reason 0x{:02x}", ack.packet_id, ack.reason as u8),
        Packet::Subscribe(subscribe) => {
            let filters = subscribe.filters().take(SHOWN_FILTERS);
            let filters: Vec<_> = filters
                .map(|(filter, options)| format!("{:?} QoS {}", shortened(filter), options.qos as u8))
                .collect();
            write!(text, "id {}: {}", subscribe.packet_id, filters.join(", "))
        }
        Packet::Unsubscribe(unsubscribe) => {
            let filters = unsubscribe.filters().take(SHOWN_FILTERS);
            let filters: Vec<_> = filters.map(|filter| format!("{:?}", shortened(filter))).collect();
            write!(text, "id {}: {}", unsubscribe.packet_id, filters.join(", "))
        }
        Packet::Suback(suback) => write!(text, "id {}: {}", suback.packet_id, codes(suback.codes)),
        Packet::Unsuback(unsuback) => write!(text, "id {}: {}", unsuback.packet_id, codes(unsuback.codes)),
        Packet::Disconnect(disconnect) => write!(text, "reason 0x{:02x}", disconnect.reason as u8),
        Packet::Pingreq | Packet::Pingresp | Packet::Auth(_) => Ok(()),
    };
    if let Some(why) = reason_string(&packet) {
        let _ = write!(text, ": {}", shortened(why));
    }
    text
}

fn describe_connect(text: &mut String, connect: &Connect<'_>) -> std::fmt::Result {
    let version = if connect.version == Version::V5 { "5.0" } else { "3.1.1" };
    write!(
        text,
        "MQTT {version}, clean start {}, keep alive {} s",
        connect.clean_start, connect.keep_alive_s
    )?;
    if let Some(user) = connect.user_name {
        write!(text, ", user {:?}", shortened(user))?;
    }
    if let Some(will) = &connect.will {
        write!(text, ", will {:?}", shortened(will.topic))?;
    }
    Ok(())
}

fn codes(codes: &[u8]) -> String {
    let shown: Vec<_> = codes.iter().take(SHOWN_FILTERS).map(|code| format!("0x{code:02x}")).collect();
    shown.join(" ")
}

fn reason_string<'a>(packet: &Packet<'a>) -> Option<&'a str> {
    let properties: Properties<'a> = match packet {
        Packet::Connack(connack) => connack.properties,
        Packet::Ack(ack) => ack.properties,
        Packet::Disconnect(disconnect) => disconnect.properties,
        _ => return None,
    };
    properties.text(PropertyId::ReasonString)
}
