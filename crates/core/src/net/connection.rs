//! One connection: small while idle, since buffers and queues exist only while they hold something.

use std::collections::VecDeque;
use std::io::{self, Write};

use mio::net::TcpStream;

use super::clock::ticks;
use super::counters::Counters;
use super::message::{Message, Outgoing};
use super::options::GatewayOptions;
use crate::mqtt::packet::PINGRESP;
use crate::mqtt::{NodeId, QoS, Version};

/// QoS 1 messages on their way to one client, whatever receive maximum it allows. Ours.
const MAX_INFLIGHT: usize = 1024;
/// Emptied boxes kept for the next connection that writes.
const POOL: usize = 64;
/// Buffers above this size are not kept.
const KEEP_BYTES: usize = 256 << 10;
/// How long a connection that was ended may take to read the reason.
const LINGER_TICKS: u32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// CONNECT has not come.
    Opened,
    /// The CONNACK is written but waits until an older connection of the client id is closed.
    TakingOver,
    Up,
    /// Ended by us: what still comes is discarded until the peer closes or time is up, because closing with
    /// unread bytes would reset the connection and could destroy the reason on its way.
    Lingering,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub socket: TcpStream,
    pub generation: u32,
    pub state: State,
    pub version: Version,
    /// In the list of connections that may have something to read.
    pub ready: bool,
    /// May have something to read, but must not be read until something else has happened.
    pub parked: bool,
    /// In the list of connections that have something to write.
    pub dirty: bool,
    /// The peer has shut down its side.
    pub ended: bool,
    /// The client wants reason strings on every packet.
    pub problem_information: bool,
    /// CONNECT asked for a session expiry above 0.
    pub wanted_session: bool,
    /// PINGREQ packets of this pass; they are answered at its end, behind the messages that came before them.
    pub pings: u16,
    /// Client's receive maximum.
    pub receive_maximum: u16,
    /// Ours, as its CONNACK told.
    pub granted: u16,
    /// Client's maximum packet size.
    pub max_packet_bytes: u32,
    /// QoS 1 PUBLISH packets read and not yet acknowledged.
    pub unacknowledged: u32,
    /// Ticks of silence that end the connection; 0: none.
    pub silence: u32,
    /// Tick of the last byte from the client, or of the state's begin where that sets the timeout.
    pub heard: u32,
    /// Tick of this connection's valid entry in the wheel.
    pub timer: u32,
    pub client_id: Box<str>,
    /// Bytes of a packet that has not ended.
    pub partial: Vec<u8>,
    pub subscriptions: Vec<NodeId>,
    pub out: Option<Box<Outbound>>,
}

/// What waits to be written, and what was written and waits for its PUBACK.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub bytes: Vec<u8>,
    /// Written so far.
    at: usize,
    inflight: VecDeque<u16>,
    last_id: u16,
    queue: VecDeque<Message>,
    queued_bytes: usize,
}

pub(super) type Pool = Vec<Box<Outbound>>;

/// What a delivery needs to know beside the connection.
pub(super) struct Delivery<'a> {
    pub pool: &'a mut Pool,
    pub counters: &'a mut Counters,
    pub options: &'a GatewayOptions,
    pub tick: u32,
}

impl Connection {
    pub fn new(socket: TcpStream, generation: u32, tick: u32) -> Connection {
        Connection {
            socket,
            generation,
            state: State::Opened,
            version: Version::V311,
            ready: false,
            parked: false,
            dirty: false,
            ended: false,
            problem_information: true,
            wanted_session: false,
            pings: 0,
            receive_maximum: u16::MAX,
            granted: u16::MAX,
            max_packet_bytes: u32::MAX,
            unacknowledged: 0,
            silence: 0,
            heard: tick,
            timer: 0,
            client_id: Box::default(),
            partial: Vec::new(),
            subscriptions: Vec::new(),
            out: None,
        }
    }

    /// The tick at which this connection has been silent for too long.
    pub fn deadline(&self, options: &GatewayOptions) -> Option<u32> {
        let after = match self.state {
            State::Opened | State::TakingOver => ticks(options.first_packet_timeout_s.into()),
            State::Up if self.silence == 0 => return None,
            State::Up => self.silence,
            State::Lingering => LINGER_TICKS,
        };
        Some(self.heard.saturating_add(after).saturating_add(1))
    }

    /// Where to append packets; the caller puts the connection into the list of those to flush.
    #[inline]
    pub fn out(&mut self, pool: &mut Pool) -> &mut Outbound {
        self.out.get_or_insert_with(|| pool.pop().unwrap_or_default())
    }

    /// Bytes that the socket has not taken.
    pub fn pending(&self) -> usize {
        self.out.as_ref().map_or(0, |out| out.bytes.len() - out.at)
    }

    /// Puts the answers to this pass's PINGREQ packets behind what waits.
    pub fn answer_pings(&mut self, pool: &mut Pool, counters: &mut Counters) {
        let pings = std::mem::take(&mut self.pings);
        if pings > 0 && self.state == State::Up {
            let bytes = &mut self.out(pool).bytes;
            (0..pings).for_each(|_| bytes.extend_from_slice(&PINGRESP));
            counters.packets_out += u64::from(pings);
        }
    }

    /// Writes what waits. True: all of it; false: the socket is full and will tell when it is not.
    pub fn flush(&mut self, pool: &mut Pool, counters: &mut Counters) -> io::Result<bool> {
        let Some(out) = &mut self.out else { return Ok(true) };
        while out.at < out.bytes.len() {
            match self.socket.write(&out.bytes[out.at..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    out.at += written;
                    counters.bytes_out += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The written half goes, so that the buffer stays within its bound.
                    if out.at > out.bytes.len() / 2 {
                        out.bytes.drain(..out.at);
                        out.at = 0;
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.bytes.clear();
        out.at = 0;
        if out.inflight.is_empty()
            && out.queue.is_empty()
            && let Some(out) = self.out.take()
            && pool.len() < POOL
            && out.bytes.capacity() <= KEEP_BYTES
        {
            pool.push(out);
        }
        Ok(true)
    }

    /// Writes a message to the client's buffer, queues it behind its receive maximum, or drops and counts it.
    pub fn deliver(&mut self, outgoing: Outgoing<'_>, qos: QoS, retain: bool, with: &mut Delivery<'_>) {
        let version = self.version;
        let len = outgoing.publish(qos, retain, 1).encoded_len(version);
        // Section 3.1.2.11.4: as if it had been sent.
        if len > self.max_packet_bytes as usize {
            with.counters.dropped_deliveries += 1;
            return;
        }
        if self.pending() + len > with.options.outbound_max_bytes {
            // Perhaps the reader is not slow but the pass is long. An error shows again when the pass flushes.
            let _ = self.flush(with.pool, with.counters);
        }
        let fits = self.pending() + len <= with.options.outbound_max_bytes;
        let window = self.window();
        let out = self.out(with.pool);
        if qos == QoS::AtMostOnce {
            if !fits {
                with.counters.dropped_deliveries += 1;
                return;
            }
            outgoing.publish(qos, retain, 0).encode(version, &mut out.bytes);
        } else if fits && out.queue.is_empty() && out.inflight.len() < window {
            let packet_id = out.next_id();
            outgoing.publish(qos, retain, packet_id).encode(version, &mut out.bytes);
        } else if out.queue.len() < with.options.max_queued_messages
            && out.queued_bytes + outgoing.len() <= with.options.outbound_max_bytes
        {
            let message = Message::new(outgoing, qos, retain, with.tick);
            out.queued_bytes += message.len();
            out.queue.push_back(message);
            return;
        } else {
            with.counters.dropped_deliveries += 1;
            return;
        }
        with.counters.delivered += 1;
        with.counters.packets_out += 1;
    }

    fn window(&self) -> usize {
        usize::from(self.receive_maximum).min(MAX_INFLIGHT)
    }

    /// The client has acknowledged a message. An unknown id is of no consequence.
    pub fn acknowledged(&mut self, packet_id: u16) {
        if let Some(out) = &mut self.out {
            // Acknowledgements come in order, as a rule.
            if out.inflight.front() == Some(&packet_id) {
                out.inflight.pop_front();
            } else if let Some(at) = out.inflight.iter().position(|id| *id == packet_id) {
                out.inflight.remove(at);
            }
        }
    }

    /// Sends queued messages as far as window and buffer allow. True: something was written.
    pub fn send_queued(&mut self, with: &mut Delivery<'_>) -> bool {
        let (version, window) = (self.version, self.window());
        let Some(out) = &mut self.out else { return false };
        let before = out.bytes.len();
        while out.inflight.len() < window && out.bytes.len() - out.at < with.options.outbound_max_bytes {
            let Some(message) = out.queue.pop_front() else { break };
            out.queued_bytes -= message.len();
            let Outbound { bytes, inflight, last_id, .. } = &mut **out;
            message.send_at(with.tick, |outgoing| {
                let packet_id = next_id(inflight, last_id);
                outgoing.publish(message.qos, message.retain, packet_id).encode(version, bytes);
                with.counters.delivered += 1;
                with.counters.packets_out += 1;
            });
        }
        out.bytes.len() > before
    }
}

impl Outbound {
    fn next_id(&mut self) -> u16 {
        next_id(&mut self.inflight, &mut self.last_id)
    }
}

/// The next packet id that is neither 0 nor in flight; the window is far smaller than the range of ids.
fn next_id(inflight: &mut VecDeque<u16>, last: &mut u16) -> u16 {
    loop {
        *last = last.wrapping_add(1);
        if *last != 0 && !inflight.contains(last) {
            inflight.push_back(*last);
            return *last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_ids_wrap_and_skip_those_in_use() {
        let mut inflight = VecDeque::from([65_535, 1]);
        let mut last = 65_533;
        assert_eq!(next_id(&mut inflight, &mut last), 65_534);
        assert_eq!(next_id(&mut inflight, &mut last), 2);
        assert_eq!(inflight, [65_535, 1, 65_534, 2]);
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 160, "{}", size_of::<Connection>());
    }
}
