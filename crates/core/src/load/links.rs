//! Connections of a thread as they come up, answer, and are lost and tried again.

use std::cmp::Reverse;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Token};
use socket2::{Domain, Socket, Type};

use super::connection::{Io, State};
use super::fleet::RUN;
use super::options::FleetOptions;
use super::schedule::phase;
use super::worker::{READ_BYTES, Worker};
use crate::mqtt::packet::PINGREQ;
use crate::mqtt::{Connect, Packet, PacketType, Parsed, Properties, PropertyId, ReasonCode, Version, parse};

/// Connections of one thread between TCP handshake and CONNACK, so that no listen queue overflows.
const CONNECTING_MAX: usize = 64;
/// Connections of one source address (see `source_address`).
const CONNECTIONS_PER_SOURCE: u32 = 4_096;
const CONNECT_TIMEOUT_NS: u64 = 10_000_000_000;
const RETRY_FIRST_NS: u64 = 100_000_000;
const RETRY_MAX_NS: u64 = 10_000_000_000;
/// A connection that was up this long starts its back-off anew.
const STABLE_NS: u64 = 1_000_000_000;
const SWEEP_NS: u64 = 1_000_000_000;
/// What a server sends to a publisher is small; more is refused rather than buffered.
const PACKET_MAX_BYTES: usize = 64 * 1024;
/// A subscriber is sent payloads.
const MESSAGE_MAX_BYTES: usize = 17 << 20;

/// Limits that an MQTT 5 server states in CONNACK (section 3.2.2.3); 3.1.1 servers state none.
struct Limits {
    receive_maximum: u16,
    maximum_qos: u8,
    maximum_packet_bytes: u32,
    /// Replaces the keep alive that the client asked for.
    keep_alive_s: Option<u16>,
}

impl Limits {
    fn of(properties: &Properties<'_>) -> Limits {
        let number = |id, default| properties.number(id).unwrap_or(default);
        let keep_alive_s = properties.number(PropertyId::ServerKeepAlive);
        Limits {
            receive_maximum: number(PropertyId::ReceiveMaximum, 65_535) as u16,
            maximum_qos: number(PropertyId::MaximumQoS, 2) as u8,
            maximum_packet_bytes: number(PropertyId::MaximumPacketSize, u32::MAX),
            keep_alive_s: keep_alive_s.map(|keep_alive_s| keep_alive_s as u16),
        }
    }
}

impl Worker {
    pub(super) fn connect_some(&mut self, now_ns: u64) {
        while let Some(&Reverse((at_ns, c))) = self.retries.peek() {
            if at_ns > now_ns {
                break;
            }
            self.retries.pop();
            self.connect_now.push_back(c);
        }
        let mut allowed = self.connects_allowed(now_ns);
        while self.connecting < CONNECTING_MAX && allowed > 0 {
            allowed -= 1;
            let Some(c) = self.connect_now.pop_front() else { return };
            let c = c as usize;
            if self.shared.stop.load(Ordering::Acquire) != RUN && self.connections[c].window.is_empty() {
                continue;
            }
            self.connecting += 1;
            self.connects += 1;
            self.connections[c].enter(State::Connecting, now_ns);
            let both = Interest::READABLE | Interest::WRITABLE;
            let source = source_address(&self.options, self.connections[c].number);
            let opened = connect(self.options.address, source).and_then(|mut stream| {
                self.poll.registry().register(&mut stream, Token(c), both)?;
                Ok(stream)
            });
            match opened {
                Ok(stream) => self.connections[c].stream = Some(stream),
                Err(error) => self.lose_io(c, "connecting", &error),
            }
        }
    }

    /// The TCP handshake ended, well or not.
    fn greet(&mut self, c: usize) {
        let failed = match self.connections[c].stream.as_ref() {
            Some(stream) => match (stream.take_error(), stream.peer_addr()) {
                (Ok(Some(error)), _) | (Err(error), _) => Some(error),
                (Ok(None), Ok(_)) => None,
                (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => return,
                (Ok(None), Err(error)) => Some(error),
            },
            None => return,
        };
        if let Some(error) = failed {
            return self.lose_io(c, "connecting", &error);
        }
        let now_ns = self.now_ns();
        let connection = &mut self.connections[c];
        // One message per write means one per segment, too.
        let _ = connection.stream.as_ref().map(|stream| stream.set_nodelay(true));
        connection.connect_ns = connection.state_since_ns;
        connection.enter(State::Greeting, now_ns);
        connection.last_received_ns = now_ns;
        self.batch.clear();
        let client_id = format!("{}{}", self.options.client_prefix, connection.number);
        let connect = Connect {
            version: self.options.protocol,
            clean_start: true,
            keep_alive_s: self.options.keep_alive_s,
            client_id: &client_id,
            will: None,
            user_name: self.options.user_name.as_deref(),
            password: self.options.password.as_deref(),
            properties: Properties::NONE,
        };
        connect.encode(&mut self.batch);
        self.write_batch(c, now_ns);
    }

    fn come_up(&mut self, c: usize, limits: &Limits) {
        self.connections[c].keep_alive_s = limits.keep_alive_s.unwrap_or(self.options.keep_alive_s);
        if self.connections[c].subscribes {
            return self.subscribe(c);
        }
        // An example of what will be sent: other readings differ in a few digits.
        let d = self.connections[c].first_device;
        self.batch.clear();
        let bytes = self.counters.bytes;
        self.encode(d, 0, Some(1), false);
        self.counters.bytes = bytes;
        let size = self.batch.len() + 16;
        if limits.maximum_qos < self.options.qos {
            return self.lose(c, "the server allows QoS 0 only, the fleet publishes at QoS 1".to_owned());
        }
        if (limits.maximum_packet_bytes as usize) < size {
            let most = limits.maximum_packet_bytes;
            return self.lose(c, format!("the server takes packets of {most} bytes, a reading needs {size}"));
        }
        let connection = &mut self.connections[c];
        connection.window.size = usize::from(self.options.window.min(limits.receive_maximum));
        self.stand_up(c);
    }

    /// All greetings are over.
    pub(super) fn stand_up(&mut self, c: usize) {
        let now_ns = self.now_ns();
        self.connecting -= 1;
        self.counters.connections_up += 1;
        self.counters.reconnects += u64::from(self.connections[c].was_up);
        let connection = &mut self.connections[c];
        self.connects_us.push(now_ns.saturating_sub(connection.connect_ns) / 1_000);
        if !connection.was_up {
            self.shared.gate.arrive(now_ns);
        }
        connection.enter(State::Up, now_ns);
        connection.was_up = true;
        if connection.subscribes {
            return;
        }
        self.set_behind(c, self.is_paced());
        self.make_ready(c);
    }

    /// Gives the connection up and plans the next attempt, each failure twice as far away, up to 10 s.
    pub(super) fn lose(&mut self, c: usize, why: String) {
        let now_ns = self.now_ns();
        let connection = &mut self.connections[c];
        match connection.state {
            State::Down => return,
            State::Connecting | State::Greeting | State::Subscribing => self.connecting -= 1,
            State::Up => {
                self.counters.connections_up -= 1;
                if now_ns - connection.state_since_ns >= STABLE_NS {
                    connection.failures = 0;
                }
            }
        }
        connection.close(now_ns);
        let whole_ns = (RETRY_FIRST_NS << connection.failures.min(7)).min(RETRY_MAX_NS);
        connection.failures = connection.failures.saturating_add(1);
        // Half of it spread over the connections, so that they do not come back all at once.
        let wait_ns = whole_ns / 2 + (whole_ns as f64 / 2.0 * phase(connection.number)) as u64;
        self.retries.push(Reverse((now_ns + wait_ns, c as u32)));
        let (number, address) = (connection.number, self.options.address);
        self.last_error = Some(format!("connection {number} to {address}: {why}"));
    }

    /// Once a second: connections that hang, and keep alive in both directions (section 3.1.2.10).
    pub(super) fn sweep(&mut self, now_ns: u64) {
        if now_ns < self.next_sweep_ns {
            return;
        }
        self.next_sweep_ns = now_ns + SWEEP_NS;
        for c in 0..self.connections.len() {
            let connection = &mut self.connections[c];
            let keep_alive_ns = u64::from(connection.keep_alive_s) * 1_000_000_000;
            let quiet_ns = now_ns.saturating_sub(connection.last_sent_ns.min(connection.last_received_ns));
            match connection.state {
                State::Connecting | State::Greeting | State::Subscribing
                    if now_ns.saturating_sub(connection.state_since_ns) > CONNECT_TIMEOUT_NS =>
                {
                    self.note("no CONNACK", 0);
                    self.lose(c, "no CONNACK within 10 s".to_owned());
                }
                State::Up if keep_alive_ns > 0 => match connection.ping_sent_ns {
                    Some(sent_ns) if now_ns.saturating_sub(sent_ns) > keep_alive_ns => {
                        let limit = connection.keep_alive_s;
                        self.note("no PINGRESP", 0);
                        self.lose(c, format!("no answer to PINGREQ within the keep alive of {limit} s"));
                    }
                    None if quiet_ns * 4 > keep_alive_ns * 3 => {
                        connection.ping_sent_ns = Some(now_ns);
                        connection.pings += 1;
                        if let Io::Lost(error) = connection.write(&PINGREQ, now_ns) {
                            self.lose_io(c, "writing", &error);
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }

    // ---- what sockets say

    pub(super) fn on_event(&mut self, event: &Event) {
        let c = event.token().0;
        if c >= self.connections.len() || self.connections[c].stream.is_none() {
            return;
        }
        if self.connections[c].state == State::Connecting {
            if event.is_writable() || event.is_error() {
                self.greet(c);
            }
        } else if event.is_writable() && !self.connections[c].is_flushed() {
            if let Io::Lost(error) = self.connections[c].flush() {
                return self.lose_io(c, "writing", &error);
            }
            self.make_ready(c);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(c, event.is_read_closed() || event.is_error());
        }
    }

    /// Reads what there is. A short read leaves nothing behind, except the end of a closed stream.
    fn read(&mut self, c: usize, to_the_end: bool) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        while self.connections[c].stream.is_some() {
            match self.connections[c].read(&mut buffer) {
                Ok(Some(size)) => {
                    self.take_in(c, buffer.get(..size).unwrap_or_default());
                    if size < READ_BYTES && !to_the_end {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => self.lose_io(c, "reading", &error),
            }
        }
        self.read_buffer = buffer;
    }

    fn take_in(&mut self, c: usize, bytes: &[u8]) {
        let now_ns = self.now_ns();
        self.connections[c].last_received_ns = now_ns;
        let mut partial = std::mem::take(&mut self.connections[c].partial);
        let rest = if partial.is_empty() {
            self.take_packets(c, bytes, now_ns)
        } else {
            partial.extend_from_slice(bytes);
            self.take_packets(c, &partial, now_ns)
        };
        self.write_acks(c, now_ns);
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.connections[c].partial = rest.to_vec();
        }
        let connection = &self.connections[c];
        let sends = !connection.subscribes;
        let waits = connection.behind || connection.window.has_resends() || !self.is_paced();
        if sends && connection.state == State::Up && waits {
            self.make_ready(c);
        }
    }

    /// Handles all whole packets; returns what is left, None when the connection is lost.
    fn take_packets<'a>(&mut self, c: usize, mut bytes: &'a [u8], now_ns: u64) -> Option<&'a [u8]> {
        while !bytes.is_empty() {
            // Nearly all that a publisher reads: PUBACK without a reason (section 3.4), taken without the parser.
            if let [0x40, 2, high, low, rest @ ..] = bytes
                && self.connections[c].state == State::Up
            {
                self.take_puback(c, u16::from_be_bytes([*high, *low]), ReasonCode::Success, now_ns);
                bytes = rest;
                if self.connections[c].state == State::Down {
                    return None;
                }
                continue;
            }
            let most = if self.connections[c].subscribes { MESSAGE_MAX_BYTES } else { PACKET_MAX_BYTES };
            match parse(bytes, self.options.protocol, most) {
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Packet(packet, size)) => {
                    bytes = bytes.get(size..).unwrap_or_default();
                    self.take_packet(c, &packet, now_ns);
                    if self.connections[c].state == State::Down {
                        return None;
                    }
                }
                Err(error) => {
                    self.accuse(c, format!("the server sent a wrong packet: {error}"));
                    return None;
                }
            }
        }
        Some(bytes)
    }

    fn take_packet(&mut self, c: usize, packet: &Packet<'_>, now_ns: u64) {
        match (packet, self.connections[c].state) {
            (Packet::Connack(connack), State::Greeting) if connack.code == 0 => {
                self.come_up(c, &Limits::of(&connack.properties));
            }
            (Packet::Connack(connack), State::Greeting) => {
                self.counters.refused_connections += 1;
                self.note("CONNACK", connack.code);
                let said = connack.properties.text(PropertyId::ReasonString).unwrap_or_default();
                self.lose(c, format!("CONNACK refused it with code 0x{:02x} {said}", connack.code));
            }
            (Packet::Ack(ack), State::Up) if ack.ty == PacketType::Puback => {
                self.take_puback(c, ack.packet_id, ack.reason, now_ns);
            }
            (Packet::Publish(publish), State::Up | State::Subscribing) if self.connections[c].subscribes => {
                self.take_message(publish);
            }
            (Packet::Suback(suback), State::Subscribing) => self.subscribed(c, suback),
            (Packet::Pingresp, State::Up) => {
                let connection = &mut self.connections[c];
                connection.ping_sent_ns = None;
                connection.pings = connection.pings.saturating_sub(1);
            }
            (Packet::Disconnect(disconnect), State::Up) if self.options.protocol == Version::V5 => {
                let reason = disconnect.reason;
                self.note("DISCONNECT", reason as u8);
                self.lose(c, format!("the server disconnected: {reason:?} (0x{:02x})", reason as u8));
            }
            (packet, state) => self.accuse(c, format!("{packet:?} while the connection was {state:?}")),
        }
    }

    fn take_puback(&mut self, c: usize, packet_id: u16, reason: ReasonCode, now_ns: u64) {
        let Some(message) = self.connections[c].window.answer(packet_id) else {
            return self.accuse(c, format!("PUBACK for packet id {packet_id}, which awaits none"));
        };
        self.in_flight -= 1;
        if reason.is_error() {
            self.counters.refused += 1;
            self.note("PUBACK", reason as u8);
        } else {
            self.counters.acked += 1;
        }
        self.latencies_us.push(now_ns.saturating_sub(message.sent_ns) / 1_000);
    }

    /// How many connections may begin now, for those who want them to come one after the other.
    fn connects_allowed(&self, now_ns: u64) -> u64 {
        let per_s = self.options.generator.connects_per_s / self.threads as f64;
        if per_s == 0.0 {
            return u64::MAX;
        }
        ((now_ns as f64 / 1e9 * per_s) as u64 + 1).saturating_sub(self.connects)
    }

    pub(super) fn note(&mut self, what: &'static str, code: u8) {
        *self.errors.entry((what, code)).or_default() += 1;
        self.errors_changed = true;
    }

    /// Gives a connection up for what its socket said.
    pub(super) fn lose_io(&mut self, c: usize, doing: &'static str, error: &io::Error) {
        self.note(doing, 0);
        self.lose(c, format!("{doing}: {error}"));
    }

    /// The server broke the protocol.
    fn accuse(&mut self, c: usize, what: String) {
        self.counters.protocol_errors += 1;
        self.note("protocol error", 0);
        self.lose(c, what);
    }
}

/// Where connection `number` of a large fleet comes from, if the server is on loopback; None: the system chooses.
///
/// One source address has 28,000 ports by default, and those of the last run stay taken for a minute; finding
/// a free one then costs more than all the rest of a connection. Each process takes addresses of its own.
fn source_address(options: &FleetOptions, number: u32) -> Option<SocketAddr> {
    let loopback = matches!(options.address.ip(), IpAddr::V4(server) if server.is_loopback());
    if !loopback || options.all_connections() <= CONNECTIONS_PER_SOURCE {
        return None;
    }
    let block = 1 + std::process::id() % 60_000;
    let host = 0x7f00_0001 + block * 256 + number / CONNECTIONS_PER_SOURCE;
    Some(SocketAddr::from((Ipv4Addr::from(host), 0)))
}

/// Begins a TCP handshake; the socket becomes writable when it ends.
fn connect(server: SocketAddr, source: Option<SocketAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(server) };
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&source.into())?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_fleet_on_loopback_takes_addresses_of_its_own() {
        let small = FleetOptions { devices: 4_096, ..FleetOptions::default() };
        assert_eq!(source_address(&small, 0), None);
        let large = FleetOptions { devices: 100_000, ..FleetOptions::default() };
        let (first, last) = (source_address(&large, 0), source_address(&large, 99_999));
        assert!(first.is_some_and(|source| source.ip().is_loopback()));
        assert!(last.is_some_and(|source| source.ip().is_loopback()) && first != last);
        assert_eq!(first, source_address(&large, 4_095));
        let far = FleetOptions { address: SocketAddr::from(([192, 0, 2, 1], 1883)), ..large };
        assert_eq!(source_address(&far, 0), None);
    }
}
