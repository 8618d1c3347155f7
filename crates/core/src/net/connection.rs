//! One connection: small while idle, since buffers and queues exist only while they hold something.

use std::io;
use std::os::fd::RawFd;

use super::access::{self, Access};
use super::clock::ticks;
use super::counters::Counters;
use super::inflight::MAX_INFLIGHT;
use super::lane::Lane;
use super::limits::{Limit, ListenerLimits};
use super::message::Outgoing;
use super::on_connect::Hello;
use super::on_publish::frees_id;
use super::options::GatewayOptions;
use super::outbound::{Delivery, Manner, Outbound, Pool, Wording};
use super::rate::Rates;
use super::sends::LITTLE;
use super::session::Session;
use super::transport::Transport;
use super::turn::Fate;
use crate::mqtt::packet::PINGRESP;
use crate::mqtt::{NodeId, QoS, ReasonCode, Version};
use crate::sessions::Target;

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
    /// The CONNECT waits for somebody to say who the client is.
    Asked,
    Up,
    /// The session of a client that is away: no socket, subscriptions go on, messages wait.
    Parked,
    /// Ended by us: what still comes is discarded until the peer closes or time is up, because closing with
    /// unread bytes would reset the connection and could destroy the reason on its way.
    Lingering,
}

#[derive(Debug)]
pub(super) struct Connection {
    /// None: parked.
    pub socket: Option<Transport>,
    /// Of the session: what is delivered to an earlier one is not for this one.
    pub generation: u32,
    /// Of the network connection: acknowledgements and timeouts of an earlier one are not for this one.
    pub link: u32,
    pub state: State,
    pub version: Version,
    /// In the list of connections that may have something to read.
    pub ready: bool,
    /// May have something to read, but must not be read until something else has happened.
    pub held_back: bool,
    /// In the list of connections that have something to write.
    pub dirty: bool,
    /// The peer has shut down its side.
    pub ended: bool,
    /// The client wants reason strings on every packet.
    pub problem_information: bool,
    pub wishes: Wishes,
    /// PINGREQ packets of this pass; they are answered at its end, behind the messages that came before them.
    pub pings: u16,
    /// Client's receive maximum.
    pub receive_maximum: u16,
    /// Ours, as its CONNACK told.
    pub granted: u16,
    /// Client's maximum packet size.
    pub max_packet_bytes: u32,
    /// PUBLISH packets of QoS 1 and 2 read and not yet answered.
    pub unacknowledged: u32,
    /// Of this network connection: QoS 2 messages that were answered and not released.
    pub unreleased: u16,
    /// Ticks of silence that end the connection; 0: none.
    pub silence: u32,
    /// Tick of the last byte from the client, or of the state's begin where that sets the timeout.
    pub heard: u32,
    /// Tick of this connection's valid entry in the wheel.
    pub timer: u32,
    /// Tick at which the client's token or certificate ends, and with it the connection; `u32::MAX`: never.
    pub until: u32,
    /// Of the CONNACK, milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// What it may do; none: everything.
    pub access: Option<Box<Access>>,
    pub client_id: Box<str>,
    /// Bytes of a packet that has not ended.
    pub partial: Vec<u8>,
    pub subscriptions: Vec<Subscribed>,
    pub session: Option<Box<Session>>,
    /// Until the CONNACK is written, where another connection or session has the client id.
    pub hello: Option<Box<Hello>>,
    pub out: Option<Box<Outbound>>,
    /// Where the listener bounds the rates of its clients.
    pub rates: Option<Box<Rates>>,
}

/// What a CONNECT asked for, in a byte: connections are many.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wishes(u8);

impl Wishes {
    /// session: an expiry above 0, so DISCONNECT may change it
    pub fn new(clean_start: bool, session: bool) -> Wishes {
        Wishes(u8::from(clean_start) | u8::from(session) << 1)
    }

    pub fn clean_start(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn session(self) -> bool {
        self.0 & 2 != 0
    }
}

/// A subscription's place in the trie, and its shared subscription (0: none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscribed {
    pub node: NodeId,
    pub group: u64,
}

impl Connection {
    pub fn new(socket: Transport, generation: u32, tick: u32) -> Connection {
        Connection { socket: Some(socket), ..Connection::parked(generation, tick) }
    }

    /// Without a socket, for a session that waits for its client; the state is for the caller to set.
    pub fn parked(generation: u32, tick: u32) -> Connection {
        Connection {
            socket: None,
            generation,
            link: generation,
            state: State::Opened,
            version: Version::V311,
            ready: false,
            held_back: false,
            dirty: false,
            ended: false,
            problem_information: true,
            wishes: Wishes::default(),
            pings: 0,
            receive_maximum: u16::MAX,
            granted: u16::MAX,
            max_packet_bytes: u32::MAX,
            unacknowledged: 0,
            unreleased: 0,
            silence: 0,
            heard: tick,
            timer: 0,
            until: u32::MAX,
            since_ms: 0,
            access: None,
            client_id: Box::default(),
            partial: Vec::new(),
            subscriptions: Vec::new(),
            session: None,
            hello: None,
            out: None,
            rates: None,
        }
    }

    /// Counts a limit that this connection has reached.
    pub fn limited(&self, limit: Limit) {
        if let Some(socket) = &self.socket {
            socket.listener().limited(limit);
        }
    }

    /// What its listener holds it to.
    pub fn limits(&self) -> ListenerLimits {
        self.socket.as_ref().map_or_else(ListenerLimits::default, |socket| socket.listener().options.limits)
    }

    /// Whether it is not read until its time has come.
    pub fn is_paused(&self) -> bool {
        self.rates.as_ref().is_some_and(|rates| rates.paused)
    }

    /// The tick at which this connection has been silent for too long, or its client's access ends.
    pub fn deadline(&self, options: &GatewayOptions) -> Option<u32> {
        let after = match self.state {
            State::Parked => {
                let session = self.session.as_ref()?;
                let will = session.will.as_ref().map(|will| ticks(will.delay_s));
                let after = match (session.expiry_ticks(), will) {
                    (Some(expiry), Some(will)) => expiry.min(will),
                    (one, other) => one.or(other)?,
                };
                after.saturating_sub(session.waited)
            }
            State::Opened => ticks(options.first_packet_timeout_s.into()),
            State::Asked => options.logins.as_ref().map_or(0, |logins| logins.ticks()),
            State::Up => {
                let silent = (self.silence > 0).then(|| self.after(self.silence));
                let over = (self.until != u32::MAX).then_some(self.until);
                return silent.into_iter().chain(over).min();
            }
            State::Lingering => LINGER_TICKS,
        };
        Some(self.after(after))
    }

    /// The tick at which it has not been heard for more than so many.
    fn after(&self, silence: u32) -> u32 {
        self.heard.saturating_add(silence).saturating_add(1)
    }

    /// Whether it is a session that has waited for its client longer than it may.
    pub fn has_expired(&self, tick: u32) -> bool {
        self.session.as_ref().filter(|_| self.state == State::Parked).is_some_and(|session| {
            let waited = tick.saturating_sub(self.heard).saturating_add(session.waited);
            session.expiry_ticks().is_some_and(|ticks| waited > ticks)
        })
    }

    /// Where to append packets; the caller puts the connection into the list of those to flush.
    #[inline]
    pub fn out(&mut self, pool: &mut Pool) -> &mut Outbound {
        self.out.get_or_insert_with(|| pool.pop().unwrap_or_default())
    }

    /// Appends a packet, if the client's maximum packet size allows it (section 3.1.2.11.4).
    pub fn put_within(&mut self, pool: &mut Pool, encode: impl FnOnce(Version, &mut Vec<u8>)) {
        let (version, most) = (self.version, self.max_packet_bytes as usize);
        let bytes = &mut self.out(pool).bytes;
        let before = bytes.len();
        encode(version, bytes);
        if bytes.len() - before > most {
            bytes.truncate(before);
        }
    }

    /// Bytes that the socket has not taken.
    pub fn pending(&self) -> usize {
        self.out.as_ref().map_or(0, |out| out.pending())
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

    /// Says that nothing more is written.
    pub fn shutdown_write(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.shutdown();
        }
    }

    /// Address, listener and certificate in words; empty while parked.
    pub fn origin(&self) -> String {
        self.socket.as_ref().map_or_else(String::new, Transport::origin)
    }

    /// What waits, and its socket, where it is little and goes there as it is.
    pub fn little(&self) -> Option<(RawFd, &[u8])> {
        let (out, fd) = (self.out.as_ref()?, self.socket.as_ref()?.plain()?);
        let bytes = &out.bytes[out.at..out.open_to()];
        (1..=LITTLE).contains(&bytes.len()).then_some((fd, bytes))
    }

    /// Of `little` the socket has taken so many bytes; none: nobody knows, so nothing more can be written.
    pub fn took(&mut self, bytes: Option<usize>, counters: &mut Counters) {
        match (&mut self.out, bytes) {
            (Some(out), Some(bytes)) => {
                out.at += bytes;
                counters.bytes_out += bytes as u64;
            }
            (_, None) => self.shutdown_write(),
            (None, Some(_)) => {}
        }
    }

    /// Writes what waits. True: all of it; false: the socket is full and will tell when it is not.
    pub fn flush(&mut self, pool: &mut Pool, counters: &mut Counters) -> io::Result<bool> {
        let Some(socket) = &mut self.socket else { return Ok(true) };
        let Some(out) = &mut self.out else { return socket.flush() };
        let end = out.open_to();
        while out.at < end {
            match socket.write(&out.bytes[out.at..end]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    out.at += written;
                    counters.bytes_out += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The written half goes, so that the buffer stays within its bound.
                    if out.at > out.bytes.len() / 2 {
                        out.drop_written();
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if out.is_gated() {
            // What waits for its turn comes later.
            out.drop_written();
            return socket.flush();
        }
        out.bytes.clear();
        (out.at, out.traced) = (0, 0);
        if out.is_idle()
            && let Some(out) = self.out.take()
            && pool.len() < POOL
            && out.bytes.capacity() <= KEEP_BYTES
        {
            pool.push(out);
        }
        socket.flush()
    }

    /// Whether `len` more bytes leave half of what may wait for the client to live messages. Tries to make room.
    pub fn has_room(&mut self, len: usize, with: &mut Delivery<'_>) -> bool {
        let most = with.options.outbound_max_bytes / 2;
        if self.pending() > 0 && self.pending() + len > most {
            // An error shows again when the pass flushes.
            let _ = self.flush(with.pool, with.counters);
        }
        let waiting = self.out.as_ref().map(|out| out.waiting()).unwrap_or_default();
        let fits = |bytes: usize| bytes == 0 || bytes + len <= most;
        let queues = waiting.queued == 0 || waiting.queued < with.options.max_queued_messages / 2;
        fits(self.pending()) && fits(waiting.bytes) && queues
    }

    /// Writes a message to the client's buffer, queues it behind its window, or drops and counts it.
    pub fn deliver(&mut self, outgoing: Outgoing<'_>, mut manner: Manner, with: &mut Delivery<'_>) {
        let session = self.durable();
        if self.state == State::Parked && manner.qos == QoS::AtMostOnce {
            // Section 4.1: what a session keeps while its client is away is QoS 1 and 2.
            return;
        }
        if !access::may_receive(&mut self.access, outgoing.topic) {
            with.counters.denied_receive += 1;
            return with.done(session, manner.id);
        }
        let len = outgoing.publish(manner.qos, manner.retain, 1).encoded_len(self.version);
        // Section 3.1.2.11.4: as if it had been sent.
        if len > self.max_packet_bytes as usize {
            return with.dropped(session, manner.id);
        }
        if session != 0 && manner.id == 0 && manner.qos != QoS::AtMostOnce {
            let (qos, retain, group) = (manner.qos as u8, manner.retain, manner.group);
            let target = Target { session, qos, retain, group, identifiers: Vec::new() };
            manner.id = with.staging.adopted(outgoing, manner.qos, target);
        }
        if self.pending() + len > with.options.outbound_max_bytes {
            // Perhaps the reader is not slow but the pass is long. An error shows again when the pass flushes.
            let _ = self.flush(with.pool, with.counters);
        }
        let fits = self.pending() + len <= with.options.outbound_max_bytes;
        self.out(with.pool);
        let Some((out, mut wording)) = self.words() else { return };
        out.add(outgoing, manner, fits, &mut wording, with);
    }

    /// Sends queued messages as far as window and buffer allow. True: something was written.
    pub fn send_queued(&mut self, with: &mut Delivery<'_>) -> bool {
        self.words().is_some_and(|(out, mut wording)| out.send_queued(&mut wording, with))
    }

    /// On a new network connection: what the last one left unacknowledged, then what has waited.
    pub fn resume(&mut self, with: &mut Delivery<'_>) {
        if let Some((out, mut wording)) = self.words() {
            out.resend(&mut wording, with);
            out.send_queued(&mut wording, with);
        }
    }

    /// What waits for the client, if anything does, and how to write it.
    fn words(&mut self) -> Option<(&mut Outbound, Wording<'_>)> {
        let out = self.out.as_mut()?;
        let session = self.session.as_mut();
        // Nobody acknowledges while nobody is there.
        let window =
            if self.state == State::Parked { 0 } else { usize::from(self.receive_maximum).min(MAX_INFLIGHT) };
        let keep = session.as_ref().is_some_and(|session| session.expiry_s > 0);
        let durable = session.as_ref().map_or(0, |session| session.durable);
        let aliases = session.map(|session| &mut session.given);
        let (access, max_packet_bytes) = (&mut self.access, self.max_packet_bytes as usize);
        let (version, link) = (self.version, self.link);
        let wording =
            Wording { version, max_packet_bytes, access, aliases, window, keep, session: durable, link };
        Some((out, wording))
    }

    /// What is written from here on leaves when the turn is durable, where the session is.
    pub fn gate(&mut self, lane: &mut Lane, slot: u32) {
        if self.durable() != 0 {
            let link = self.link;
            let out = self.out.get_or_insert_with(|| lane.pool.pop().unwrap_or_default());
            lane.staging.gate(slot, link, out);
        }
    }

    /// The id of its session in the log; 0: it is in memory alone.
    #[inline]
    pub fn durable(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.durable)
    }

    /// A QoS 2 message is through the log, or it has failed: gives the code of its PUBREC.
    pub fn settle_incoming(
        &mut self,
        packet_id: u16,
        fate: Fate,
        code: ReasonCode,
        failed: bool,
    ) -> ReasonCode {
        let version = self.version;
        let Some(session) = &mut self.session else { return code };
        if fate == Fate::Repeated {
            // Its first copy may have failed meanwhile.
            let known = session.incoming.contains(&packet_id);
            return if known { ReasonCode::Success } else { ReasonCode::UnspecifiedError };
        }
        if failed || frees_id(code, version, fate) {
            session.incoming.remove(&packet_id);
        }
        code
    }

    /// The part that few clients need.
    pub fn session(&mut self) -> &mut Session {
        self.session.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 192, "{}", size_of::<Connection>());
    }
}
