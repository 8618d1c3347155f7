//! One connection of the fleet: its socket, and the QoS 1 messages it owes an acknowledgement for.
//!
//! A message in flight is kept as (device, n), never as bytes: `Payloads` makes it again for a resend.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::net::TcpStream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No socket; waits for its turn to connect.
    Down,
    /// TCP handshake under way.
    Connecting,
    /// CONNECT sent, CONNACK awaited.
    Greeting,
    /// SUBSCRIBE sent, SUBACK awaited.
    Subscribing,
    Up,
}

/// A message sent and not yet answered.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    pub device: u32,
    pub n: u64,
    pub sent_ns: u64,
    answered: bool,
}

/// The messages in flight, oldest first, under consecutive packet ids from `first_id` on.
#[derive(Debug)]
pub struct Window {
    messages: VecDeque<InFlight>,
    first_id: u16,
    /// How many of the oldest were sent on the present connection; the others wait for their resend.
    sent_here: usize,
    /// Most messages on the way at once, at least 1.
    pub size: usize,
}

impl Window {
    pub fn new(size: u16) -> Window {
        Window { messages: VecDeque::new(), first_id: 1, sent_here: 0, size: usize::from(size.max(1)) }
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether a new message may be sent: all older ones were sent here, and there is room.
    pub fn has_room(&self) -> bool {
        !self.has_resends() && self.messages.len() < self.size
    }

    /// Whether messages of an earlier connection wait for their resend.
    pub fn has_resends(&self) -> bool {
        self.sent_here < self.messages.len()
    }

    /// Whether it is worth a write flat out: a quarter of the window is free.
    pub fn is_worth_filling(&self) -> bool {
        self.messages.len() <= self.size * 3 / 4
    }

    /// Takes a new message; returns its packet id. Only after `has_room`.
    pub fn push(&mut self, device: u32, n: u64, sent_ns: u64) -> u16 {
        self.messages.push_back(InFlight { device, n, sent_ns, answered: false });
        self.sent_here = self.messages.len();
        self.id(self.messages.len() - 1)
    }

    /// The connection is new: nothing was sent on it.
    pub fn restart(&mut self) {
        self.sent_here = 0;
    }

    /// The next message to send again and its packet id; marks it as sent at `now_ns`.
    pub fn next_resend(&mut self, now_ns: u64) -> Option<(InFlight, u16)> {
        while self.sent_here < self.messages.len() && self.sent_here < self.size {
            let at = self.sent_here;
            self.sent_here += 1;
            let id = self.id(at);
            if let Some(message) = self.messages.get_mut(at).filter(|message| !message.answered) {
                message.sent_ns = now_ns;
                return Some((*message, id));
            }
        }
        None
    }

    /// The message that a PUBACK answers; None if the server may not answer that id now.
    pub fn answer(&mut self, packet_id: u16) -> Option<InFlight> {
        if packet_id == 0 {
            return None;
        }
        let at = (i64::from(packet_id) - i64::from(self.first_id)).rem_euclid(65_535) as usize;
        if at >= self.sent_here {
            return None;
        }
        let message = self.messages.get_mut(at).filter(|message| !message.answered)?;
        message.answered = true;
        let answered = *message;
        while self.messages.front().is_some_and(|oldest| oldest.answered) {
            self.messages.pop_front();
            // Those that were answered before the last reconnect are not sent again.
            self.sent_here = self.sent_here.saturating_sub(1);
            self.first_id = self.id(1);
        }
        Some(answered)
    }

    /// Packet ids run from 1 to 65,535 and around; the window is never larger, so none is used twice.
    fn id(&self, at: usize) -> u16 {
        ((usize::from(self.first_id) - 1 + at) % 65_535 + 1) as u16
    }
}

/// What came of writing or reading.
#[derive(Debug)]
pub enum Io {
    /// All written, or all there was is read.
    Done,
    /// The socket takes no more now.
    Blocked,
    Lost(io::Error),
}

pub struct Connection {
    pub state: State,
    pub stream: Option<TcpStream>,
    /// Takes messages in instead of publishing.
    pub subscribes: bool,
    /// Number in the fleet, from 0.
    pub number: u32,
    pub first_device: u32,
    pub devices: u32,
    pub window: Window,
    /// Encoded bytes that the socket has not taken; at most one batch.
    unsent: Vec<u8>,
    unsent_from: usize,
    /// The beginning of a packet that has not fully arrived; at most one read and one packet.
    pub partial: Vec<u8>,
    /// Device to look at first, so that all devices of a connection get their turn.
    pub next_device: u32,
    /// Some device has a reading due that could not be sent yet.
    pub behind: bool,
    /// Stands in the thread's queue of connections that can go on.
    pub queued: bool,
    /// Waits until the thread may send again (`Allowance`).
    pub rests: bool,
    pub was_up: bool,
    /// Failures since the connection was last up for a while.
    pub failures: u32,
    pub state_since_ns: u64,
    /// When the last TCP handshake began.
    pub connect_ns: u64,
    pub last_sent_ns: u64,
    pub last_received_ns: u64,
    pub ping_sent_ns: Option<u64>,
    /// PINGREQ that no PINGRESP has answered.
    pub pings: u32,
    /// The ping behind the last QoS 0 message was sent; with `pings` 0 it has been answered.
    pub asked: bool,
    pub keep_alive_s: u16,
}

impl Connection {
    pub fn new(number: u32, first_device: u32, devices: u32, window: u16, keep_alive_s: u16) -> Connection {
        Connection {
            state: State::Down,
            stream: None,
            subscribes: false,
            number,
            first_device,
            devices,
            window: Window::new(window),
            unsent: Vec::new(),
            unsent_from: 0,
            partial: Vec::new(),
            next_device: 0,
            behind: false,
            queued: false,
            rests: false,
            was_up: false,
            failures: 0,
            state_since_ns: 0,
            connect_ns: 0,
            last_sent_ns: 0,
            last_received_ns: 0,
            ping_sent_ns: None,
            pings: 0,
            asked: false,
            keep_alive_s,
        }
    }

    pub fn enter(&mut self, state: State, now_ns: u64) {
        self.state = state;
        self.state_since_ns = now_ns;
    }

    /// Whether the socket takes new packets: it is up and nothing waits before them.
    pub fn is_clear(&self) -> bool {
        self.state == State::Up && self.is_flushed()
    }

    pub fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Writes `bytes`; what the socket does not take is kept for `flush`.
    pub fn write(&mut self, bytes: &[u8], now_ns: u64) -> Io {
        self.last_sent_ns = now_ns;
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return self.flush();
        }
        match write_some(self.stream.as_mut(), bytes) {
            Ok(written) if written == bytes.len() => Io::Done,
            Ok(written) => {
                self.unsent.extend_from_slice(bytes.get(written..).unwrap_or_default());
                Io::Blocked
            }
            Err(error) => Io::Lost(error),
        }
    }

    pub fn flush(&mut self) -> Io {
        let waiting = self.unsent.get(self.unsent_from..).unwrap_or_default();
        match write_some(self.stream.as_mut(), waiting) {
            Ok(written) if written == waiting.len() => {
                self.unsent.clear();
                self.unsent_from = 0;
                Io::Done
            }
            Ok(written) => {
                self.unsent_from += written;
                Io::Blocked
            }
            Err(error) => Io::Lost(error),
        }
    }

    /// One read. Returns the number of bytes, None when there are none now.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(stream) = self.stream.as_mut() else { return Ok(None) };
        loop {
            match stream.read(buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it")),
                Ok(size) => return Ok(Some(size)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the socket. Messages in flight stay, to be sent again.
    pub fn close(&mut self, now_ns: u64) {
        self.stream = None;
        self.unsent = Vec::new();
        self.unsent_from = 0;
        self.partial = Vec::new();
        self.ping_sent_ns = None;
        self.pings = 0;
        self.asked = false;
        self.window.restart();
        self.enter(State::Down, now_ns);
    }
}

/// Writes until the socket is full; returns how much it took.
fn write_some(stream: Option<&mut TcpStream>, bytes: &[u8]) -> io::Result<usize> {
    let Some(stream) = stream else { return Err(io::ErrorKind::NotConnected.into()) };
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(size) => written += size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn acknowledgements_out_of_order_free_the_window_in_order() {
        let mut window = Window::new(3);
        let ids: Vec<u16> = (0..3).map(|n| window.push(0, n, 0)).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert!(!window.has_room());
        assert_eq!(window.answer(2).map(|message| message.n), Some(1));
        assert!(!window.has_room(), "the oldest is still in flight");
        assert!(window.answer(2).is_none(), "answered twice");
        assert_eq!(window.answer(1).map(|message| message.n), Some(0));
        assert!(window.has_room());
        assert_eq!(window.push(0, 3, 0), 4);
    }

    #[test]
    fn a_new_connection_resends_what_is_unanswered_under_the_same_ids() {
        let mut window = Window::new(10);
        for n in 0..4 {
            window.push(0, n, 0);
        }
        window.answer(2);
        window.restart();
        assert!(!window.has_room(), "new messages wait for the resends");
        assert!(window.answer(1).is_none(), "not yet sent on this connection");
        let again: Vec<(u64, u16)> =
            std::iter::from_fn(|| window.next_resend(5)).map(|(message, id)| (message.n, id)).collect();
        assert_eq!(again, [(0, 1), (2, 3), (3, 4)]);
        assert!(window.has_room());
    }

    #[test]
    fn a_smaller_window_after_a_reconnect_holds() {
        let mut window = Window::new(10);
        for n in 0..5 {
            window.push(0, n, 0);
        }
        window.restart();
        window.size = 2;
        assert_eq!(std::iter::from_fn(|| window.next_resend(0)).count(), 2);
        assert!(!window.has_room());
        window.answer(1);
        assert_eq!(window.next_resend(0).map(|(message, id)| (message.n, id)), Some((2, 3)));
        assert!(window.next_resend(0).is_none());
    }

    #[test]
    fn what_was_answered_before_a_reconnect_leaves_behind_the_resend_before_it() {
        let mut window = Window::new(10);
        for n in 0..3 {
            window.push(0, n, 0);
        }
        window.answer(2);
        window.restart();
        assert_eq!(window.next_resend(0).map(|(_, id)| id), Some(1));
        assert_eq!(window.answer(1).map(|message| message.n), Some(0));
        assert_eq!(window.next_resend(0).map(|(_, id)| id), Some(3));
    }

    proptest! {
        /// Whatever is answered, dropped and sent again: every message is answered exactly once and packet
        /// ids in flight are distinct and not 0.
        #[test]
        fn every_message_is_answered_once(
            size in 1u16..20,
            start in 1u16..=65_535,
            steps in prop::collection::vec((0u8..10, any::<prop::sample::Index>()), 1..300),
        ) {
            let mut window = Window::new(size);
            window.first_id = start;
            let mut sent = 0u64;
            let mut here: Vec<(u16, u64)> = Vec::new();
            let mut answered = Vec::new();
            for (step, index) in steps {
                match step {
                    0 => {
                        window.restart();
                        here.clear();
                    }
                    1..5 if window.has_room() => {
                        let id = window.push(0, sent, 0);
                        prop_assert!(id != 0 && here.iter().all(|&(other, _)| other != id));
                        here.push((id, sent));
                        sent += 1;
                    }
                    1..5 => {
                        if let Some((message, id)) = window.next_resend(0) {
                            here.push((id, message.n));
                        }
                    }
                    _ if !here.is_empty() => {
                        let (id, n) = here.remove(index.index(here.len()));
                        prop_assert_eq!(window.answer(id).map(|message| message.n), Some(n));
                        answered.push(n);
                    }
                    _ => {}
                }
                prop_assert!(window.messages.len() <= usize::from(size));
            }
            answered.sort_unstable();
            answered.dedup();
            let open = window.messages.iter().filter(|message| !message.answered).count();
            prop_assert_eq!(answered.len() + open, sent as usize);
        }
    }
}
