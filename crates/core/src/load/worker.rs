//! One thread of the fleet: its connections, when their devices are due, and what the server answers.
//!
//! With a rate, a cursor runs over the thread's devices in the order in which they are due, one message
//! per write as real devices do it. Flat out, each connection fills its window in batches. A device that
//! could not send when it was due keeps only the number of its next reading and catches up later.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::client::{self, Connect, Limits, Parsed, ServerPacket};
use super::connection::{Connection, Io, State};
use super::fleet::{ABANDON, RUN, Shared};
use super::options::{FleetOptions, Protocol};
use super::payloads::{Payloads, phase};
use super::report::Counters;

pub const WAKER: Token = Token(usize::MAX);

/// Bytes encoded before a write when flat out; also the most that waits for one socket.
const BATCH_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// Messages of one connection before the others get their turn.
const TURN_MESSAGES: usize = 4_096;
/// Connections of one thread between TCP handshake and CONNACK, so that no listen queue overflows.
const CONNECTING_MAX: usize = 64;
const CONNECT_TIMEOUT_NS: u64 = 10_000_000_000;
const RETRY_FIRST_NS: u64 = 100_000_000;
const RETRY_MAX_NS: u64 = 10_000_000_000;
/// A connection that was up this long starts its back-off anew.
const STABLE_NS: u64 = 1_000_000_000;
const SWEEP_NS: u64 = 1_000_000_000;

struct Device {
    /// Number of the next reading.
    next: u64,
    /// The reading at which the device's time is over.
    end: u64,
    /// Messages it may still send.
    left: u64,
}

impl Device {
    fn is_done(&self) -> bool {
        self.left == 0 || self.next >= self.end
    }
}

pub struct Worker {
    options: Arc<FleetOptions>,
    payloads: Arc<Payloads>,
    shared: Arc<Shared>,
    poll: Poll,
    started: Instant,
    connections: Vec<Connection>,
    /// Those of connection c begin at c * devices_per_connection.
    devices: Vec<Device>,
    devices_left: usize,
    /// Devices in the order in which they are due within one interval, and where each stands in it.
    order: Vec<u32>,
    place: Vec<u32>,
    /// Readings before `round` are due of all devices, reading `round` of those before `cursor` in `order`.
    cursor: usize,
    round: u64,
    generating: bool,
    in_flight: u64,
    connect_now: VecDeque<u32>,
    retries: BinaryHeap<Reverse<(u64, u32)>>,
    connecting: usize,
    /// Connections that can go on: something was acknowledged, flushed, or is left of their turn.
    ready: VecDeque<u32>,
    next_sweep_ns: u64,
    counters: Counters,
    latencies_us: Vec<u64>,
    fault_readings: Vec<(usize, u64)>,
    last_error: Option<String>,
    /// Flat out: the duration is over.
    time_is_up: bool,
    finished_at: Option<Duration>,
    topic: Vec<u8>,
    payload: Vec<u8>,
    batch: Vec<u8>,
    read_buffer: Vec<u8>,
}

impl Worker {
    /// Thread `at` of `count` takes every `count`-th connection.
    pub fn new(
        options: Arc<FleetOptions>,
        payloads: Arc<Payloads>,
        shared: Arc<Shared>,
        poll: Poll,
        started: Instant,
        at: usize,
        count: usize,
    ) -> Worker {
        let (mut connections, mut devices) = (Vec::new(), Vec::new());
        for number in (at as u32..options.connections()).step_by(count) {
            let first = number * options.devices_per_connection;
            let end = first.saturating_add(options.devices_per_connection).min(options.devices);
            let (window, keep_alive_s) = (options.window, options.keep_alive_s);
            connections.push(Connection::new(number, first, end - first, window, keep_alive_s));
            for d in first..end {
                devices.push(Device { next: 0, end: readings(&options, d), left: options.quota(d) });
            }
        }
        let mut worker = Worker {
            devices_left: devices.iter().filter(|device| !device.is_done()).count(),
            connect_now: (0..connections.len() as u32).collect(),
            order: Vec::new(),
            place: Vec::new(),
            options,
            payloads,
            shared,
            poll,
            started,
            connections,
            devices,
            cursor: 0,
            round: 0,
            generating: true,
            in_flight: 0,
            retries: BinaryHeap::new(),
            connecting: 0,
            ready: VecDeque::new(),
            next_sweep_ns: SWEEP_NS,
            counters: Counters::default(),
            latencies_us: Vec::new(),
            fault_readings: Vec::new(),
            last_error: None,
            time_is_up: false,
            finished_at: None,
            topic: Vec::new(),
            payload: Vec::new(),
            batch: Vec::with_capacity(BATCH_BYTES),
            read_buffer: vec![0; READ_BYTES],
        };
        if worker.is_paced() {
            worker.line_up();
        }
        worker
    }

    pub fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut drain_until_ns = None;
        loop {
            let now_ns = self.now_ns();
            match self.shared.stop.load(Ordering::Acquire) {
                RUN => {}
                ABANDON => break,
                _ => {
                    self.generating = false;
                    let drain_ns = self.options.drain.as_nanos().min(u128::from(u64::MAX / 2)) as u64;
                    let until_ns = *drain_until_ns.get_or_insert(now_ns + drain_ns);
                    if self.is_drained() || now_ns >= until_ns {
                        break;
                    }
                }
            }
            self.connect_some(now_ns);
            if self.is_paced() {
                self.send_due(now_ns);
            } else if self.end_ns().is_some_and(|end_ns| now_ns >= end_ns) {
                (self.generating, self.time_is_up) = (false, true);
            }
            for _ in 0..self.ready.len() {
                if let Some(c) = self.ready.pop_front() {
                    self.connections[c as usize].queued = false;
                    self.go_on(c as usize);
                }
            }
            self.sweep(now_ns);
            self.publish();
            let timeout = self.timeout(drain_until_ns);
            if let Err(error) = self.poll.poll(&mut events, Some(timeout)) {
                if error.kind() == std::io::ErrorKind::Interrupted {
                    continue;
                }
                self.last_error = Some(format!("waiting for sockets: {error}"));
                break;
            }
            for event in events.iter().filter(|event| event.token() != WAKER) {
                self.on_event(event);
            }
        }
        self.say_goodbye();
        self.publish();
    }

    fn is_paced(&self) -> bool {
        self.options.rate_per_device > 0.0
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn end_ns(&self) -> Option<u64> {
        self.options.duration.map(|duration| duration.as_nanos().min(u128::from(u64::MAX)) as u64)
    }

    // ---- when devices are due

    fn line_up(&mut self) {
        let dpc = self.options.devices_per_connection as usize;
        let phases: Vec<f64> = (0..self.devices.len())
            .map(|j| phase(self.connections[j / dpc].first_device + (j % dpc) as u32))
            .collect();
        self.order = (0..self.devices.len() as u32).collect();
        self.order.sort_by(|&one, &other| phases[one as usize].total_cmp(&phases[other as usize]));
        self.place = vec![0; self.order.len()];
        for (place, &j) in self.order.iter().enumerate() {
            self.place[j as usize] = place as u32;
        }
    }

    /// Time at which the device under the cursor is due.
    fn next_due_ns(&self) -> u64 {
        let Some(&j) = self.order.get(self.cursor) else { return u64::MAX };
        let (c, at) = self.owner(j as usize);
        let intervals = self.round as f64 + phase(self.connections[c].first_device + at);
        (intervals / self.options.rate_per_device * 1e9) as u64
    }

    /// Readings of device `j` that are due, whether or not they were sent.
    fn due(&self, j: usize) -> u64 {
        if self.is_paced() {
            self.round + u64::from((self.place[j] as usize) < self.cursor)
        } else if self.generating {
            u64::MAX
        } else {
            0
        }
    }

    /// The connection of device `j` and the device's place on it.
    fn owner(&self, j: usize) -> (usize, u32) {
        let dpc = self.options.devices_per_connection as usize;
        (j / dpc, (j % dpc) as u32)
    }

    /// Moves the cursor to `now_ns` and sends what it passes.
    fn send_due(&mut self, now_ns: u64) {
        while self.generating && self.devices_left > 0 && self.next_due_ns() <= now_ns {
            let Some(&j) = self.order.get(self.cursor) else { return };
            self.cursor += 1;
            if self.cursor == self.order.len() {
                self.cursor = 0;
                self.round += 1;
            }
            let (c, _) = self.owner(j as usize);
            if self.connections[c].behind || !self.can_send(c) {
                self.set_behind(c, !self.devices[j as usize].is_done() || self.connections[c].behind);
            } else if let Some(n) = self.next_reading(j as usize) {
                self.send_one(c, j as usize, n);
            }
        }
    }

    /// The next reading that device `j` sends, if it is due: leaves out what dropouts swallow.
    fn next_reading(&mut self, j: usize) -> Option<u64> {
        let (c, at) = self.owner(j);
        let d = self.connections[c].first_device + at;
        let due = self.due(j);
        loop {
            let device = self.devices.get_mut(j)?;
            if device.is_done() || device.next >= due {
                return None;
            }
            match self.payloads.next_sent(d, device.next) {
                (n, None) => return Some(n),
                (end, Some(fault)) => {
                    // Flat out the whole gap is passed at once: nothing else tells its time.
                    let next = end.min(device.end).min(due.max(device.next + 1));
                    let left_out = next - device.next;
                    device.next = next;
                    self.devices_left -= usize::from(device.is_done());
                    self.counters.left_out += left_out;
                    self.fault_readings.push((fault, left_out));
                }
            }
        }
    }

    // ---- sending

    fn can_send(&self, c: usize) -> bool {
        let connection = &self.connections[c];
        connection.is_clear() && (self.options.qos == 0 || connection.window.has_room())
    }

    fn set_behind(&mut self, c: usize, behind: bool) {
        let connection = &mut self.connections[c];
        match (connection.behind, behind) {
            (false, true) => self.counters.connections_behind += 1,
            (true, false) => self.counters.connections_behind -= 1,
            _ => {}
        }
        connection.behind = behind;
    }

    /// Appends the PUBLISH of reading `n` of device `d` to the batch.
    fn encode(&mut self, d: u32, n: u64, packet_id: Option<u16>, duplicate: bool) {
        self.topic.clear();
        self.payload.clear();
        self.payloads.write_topic(d, &mut self.topic);
        self.payloads.write(d, n, &mut self.payload);
        let (before, protocol) = (self.batch.len(), self.options.protocol);
        client::write_publish(protocol, &self.topic, packet_id, duplicate, &self.payload, &mut self.batch);
        self.counters.bytes += (self.batch.len() - before) as u64;
    }

    /// Encodes reading `n` of device `j` for the first time and books it as sent.
    fn encode_new(&mut self, c: usize, j: usize, n: u64, now_ns: u64) {
        let (_, at) = self.owner(j);
        let connection = &mut self.connections[c];
        let d = connection.first_device + at;
        let packet_id = (self.options.qos > 0).then(|| connection.window.push(d, n, now_ns));
        self.in_flight += u64::from(packet_id.is_some());
        self.encode(d, n, packet_id, false);
        self.counters.sent += 1;
        self.fault_readings.extend(self.payloads.touching(d, n).map(|fault| (fault, 1)));
        if let Some(device) = self.devices.get_mut(j) {
            device.next = n + 1;
            device.left -= 1;
            self.devices_left -= usize::from(device.is_done());
        }
    }

    fn send_one(&mut self, c: usize, j: usize, n: u64) {
        let now_ns = self.now_ns();
        self.batch.clear();
        self.encode_new(c, j, n, now_ns);
        self.write_batch(c, now_ns);
    }

    fn write_batch(&mut self, c: usize, now_ns: u64) {
        if let Io::Lost(error) = self.connections[c].write(&self.batch, now_ns) {
            self.lose(c, format!("writing: {error}"));
        }
    }

    /// Lets connection `c` send what it can: the rest of the last batch, resends, then new readings.
    fn go_on(&mut self, c: usize) {
        if self.connections[c].state != State::Up {
            return;
        }
        if let Io::Lost(error) = self.connections[c].flush() {
            return self.lose(c, format!("writing: {error}"));
        }
        self.resend(c);
        if self.is_paced() {
            self.catch_up(c);
        } else {
            self.fill(c);
        }
    }

    fn resend(&mut self, c: usize) {
        while self.connections[c].is_clear() {
            let now_ns = self.now_ns();
            self.batch.clear();
            while self.batch.len() < BATCH_BYTES {
                let Some((message, id)) = self.connections[c].window.next_resend(now_ns) else { break };
                self.encode(message.device, message.n, Some(id), true);
                self.counters.resent += 1;
            }
            if self.batch.is_empty() {
                return;
            }
            self.write_batch(c, now_ns);
        }
    }

    /// Sends what became due while the connection was down or its window full, one message per write.
    fn catch_up(&mut self, c: usize) {
        let devices = self.connections[c].devices;
        let first = c * self.options.devices_per_connection as usize;
        let mut turn = 0;
        for _ in 0..devices {
            if !self.connections[c].behind {
                return;
            }
            let at = self.connections[c].next_device;
            while self.generating && !self.devices[first + at as usize].is_done() {
                if turn == TURN_MESSAGES {
                    return self.make_ready(c);
                }
                if !self.can_send(c) {
                    return;
                }
                let Some(n) = self.next_reading(first + at as usize) else { break };
                self.send_one(c, first + at as usize, n);
                turn += 1;
            }
            self.connections[c].next_device = (at + 1) % devices;
        }
        self.set_behind(c, false);
    }

    /// Flat out: batches until the window or the socket is full.
    fn fill(&mut self, c: usize) {
        let devices = self.connections[c].devices;
        let first = c * self.options.devices_per_connection as usize;
        let (mut turn, mut passed) = (0, 0);
        while self.generating && passed < devices && self.can_send(c) {
            if turn >= TURN_MESSAGES {
                return self.make_ready(c);
            }
            let now_ns = self.now_ns();
            self.batch.clear();
            while passed < devices && self.batch.len() < BATCH_BYTES && self.can_send(c) {
                let at = self.connections[c].next_device;
                self.connections[c].next_device = (at + 1) % devices;
                match self.next_reading(first + at as usize) {
                    Some(n) => {
                        self.encode_new(c, first + at as usize, n, now_ns);
                        (turn, passed) = (turn + 1, 0);
                    }
                    None => passed += 1,
                }
            }
            self.write_batch(c, now_ns);
        }
    }

    fn make_ready(&mut self, c: usize) {
        if !self.connections[c].queued {
            self.connections[c].queued = true;
            self.ready.push_back(c as u32);
        }
    }

    // ---- connecting and losing

    fn connect_some(&mut self, now_ns: u64) {
        while let Some(&Reverse((at_ns, c))) = self.retries.peek() {
            if at_ns > now_ns {
                break;
            }
            self.retries.pop();
            self.connect_now.push_back(c);
        }
        while self.connecting < CONNECTING_MAX {
            let Some(c) = self.connect_now.pop_front() else { return };
            let c = c as usize;
            if self.shared.stop.load(Ordering::Acquire) != RUN && self.connections[c].window.is_empty() {
                continue;
            }
            self.connecting += 1;
            self.connections[c].enter(State::Connecting, now_ns);
            let both = Interest::READABLE | Interest::WRITABLE;
            let opened = TcpStream::connect(self.options.address).and_then(|mut stream| {
                self.poll.registry().register(&mut stream, Token(c), both)?;
                Ok(stream)
            });
            match opened {
                Ok(stream) => self.connections[c].stream = Some(stream),
                Err(error) => self.lose(c, format!("connecting: {error}")),
            }
        }
    }

    /// The TCP handshake ended, well or not.
    fn greet(&mut self, c: usize) {
        let failed = match self.connections[c].stream.as_ref() {
            Some(stream) => match (stream.take_error(), stream.peer_addr()) {
                (Ok(Some(error)), _) | (Err(error), _) => Some(error),
                (Ok(None), Ok(_)) => None,
                (Ok(None), Err(error)) if error.kind() == std::io::ErrorKind::NotConnected => return,
                (Ok(None), Err(error)) => Some(error),
            },
            None => return,
        };
        if let Some(error) = failed {
            return self.lose(c, format!("connecting: {error}"));
        }
        let now_ns = self.now_ns();
        let connection = &mut self.connections[c];
        // One message per write means one per segment, too.
        let _ = connection.stream.as_ref().map(|stream| stream.set_nodelay(true));
        connection.enter(State::Greeting, now_ns);
        connection.last_received_ns = now_ns;
        self.batch.clear();
        let client_id = format!("{}{}", self.options.client_prefix, connection.number);
        let connect = Connect {
            protocol: self.options.protocol,
            client_id: client_id.as_bytes(),
            keep_alive_s: self.options.keep_alive_s,
            user_name: self.options.user_name.as_deref().map(str::as_bytes),
            password: self.options.password.as_deref(),
        };
        client::write_connect(&connect, &mut self.batch);
        self.write_batch(c, now_ns);
    }

    fn come_up(&mut self, c: usize, limits: Limits) {
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
        let now_ns = self.now_ns();
        self.connecting -= 1;
        self.counters.connections_up += 1;
        self.counters.reconnects += u64::from(self.connections[c].was_up);
        let connection = &mut self.connections[c];
        connection.enter(State::Up, now_ns);
        connection.was_up = true;
        connection.window.size = usize::from(self.options.window.min(limits.receive_maximum));
        connection.keep_alive_s = limits.keep_alive_s.unwrap_or(self.options.keep_alive_s);
        self.set_behind(c, self.is_paced());
        self.make_ready(c);
    }

    /// Gives the connection up and plans the next attempt, each failure twice as far away, up to 10 s.
    fn lose(&mut self, c: usize, why: String) {
        let now_ns = self.now_ns();
        let connection = &mut self.connections[c];
        match connection.state {
            State::Down => return,
            State::Connecting | State::Greeting => self.connecting -= 1,
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
    fn sweep(&mut self, now_ns: u64) {
        if now_ns < self.next_sweep_ns {
            return;
        }
        self.next_sweep_ns = now_ns + SWEEP_NS;
        for c in 0..self.connections.len() {
            let connection = &mut self.connections[c];
            let keep_alive_ns = u64::from(connection.keep_alive_s) * 1_000_000_000;
            let quiet_ns = now_ns.saturating_sub(connection.last_sent_ns.min(connection.last_received_ns));
            match connection.state {
                State::Connecting | State::Greeting
                    if now_ns.saturating_sub(connection.state_since_ns) > CONNECT_TIMEOUT_NS =>
                {
                    self.lose(c, "no CONNACK within 10 s".to_owned());
                }
                State::Up if keep_alive_ns > 0 => match connection.ping_sent_ns {
                    Some(sent_ns) if now_ns.saturating_sub(sent_ns) > keep_alive_ns => {
                        let limit = connection.keep_alive_s;
                        self.lose(c, format!("no answer to PINGREQ within the keep alive of {limit} s"));
                    }
                    None if quiet_ns * 4 > keep_alive_ns * 3 => {
                        connection.ping_sent_ns = Some(now_ns);
                        if let Io::Lost(error) = connection.write(&client::PINGREQ, now_ns) {
                            self.lose(c, format!("writing: {error}"));
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }

    // ---- what sockets say

    fn on_event(&mut self, event: &Event) {
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
                return self.lose(c, format!("writing: {error}"));
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
                Err(error) => self.lose(c, format!("reading: {error}")),
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
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.connections[c].partial = rest.to_vec();
        }
        if self.connections[c].state == State::Up && (self.connections[c].behind || !self.is_paced()) {
            self.make_ready(c);
        }
    }

    /// Handles all whole packets; returns what is left, None when the connection is lost.
    fn take_packets<'a>(&mut self, c: usize, mut bytes: &'a [u8], now_ns: u64) -> Option<&'a [u8]> {
        while !bytes.is_empty() {
            match client::parse(bytes, self.options.protocol) {
                Parsed::Incomplete => break,
                Parsed::Malformed(what) => {
                    self.accuse(c, format!("the server sent {what}"));
                    return None;
                }
                Parsed::Packet(packet, size) => {
                    bytes = bytes.get(size..).unwrap_or_default();
                    self.take_packet(c, packet, now_ns);
                    if self.connections[c].state == State::Down {
                        return None;
                    }
                }
            }
        }
        Some(bytes)
    }

    fn take_packet(&mut self, c: usize, packet: ServerPacket, now_ns: u64) {
        match (packet, self.connections[c].state) {
            (ServerPacket::ConnAck { reason: 0, limits }, State::Greeting) => self.come_up(c, limits),
            (ServerPacket::ConnAck { reason, .. }, State::Greeting) => {
                self.counters.refused_connections += 1;
                self.lose(c, format!("CONNACK refused it with reason 0x{reason:02x}"));
            }
            (ServerPacket::PubAck { packet_id, reason }, State::Up) => {
                let Some(message) = self.connections[c].window.answer(packet_id) else {
                    return self.accuse(c, format!("PUBACK for packet id {packet_id}, which awaits none"));
                };
                self.in_flight -= 1;
                if reason < 0x80 {
                    self.counters.acked += 1;
                } else {
                    self.counters.refused += 1;
                }
                self.latencies_us.push(now_ns.saturating_sub(message.sent_ns) / 1_000);
            }
            (ServerPacket::PingResp, State::Up) => self.connections[c].ping_sent_ns = None,
            (ServerPacket::Disconnect { reason }, State::Up) => {
                let version = if self.options.protocol == Protocol::V5 { "MQTT 5" } else { "MQTT 3.1.1" };
                self.lose(c, format!("the server disconnected ({version} reason 0x{reason:02x})"));
            }
            (packet, state) => self.accuse(c, format!("{packet:?} while the connection was {state:?}")),
        }
    }

    /// The server broke the protocol.
    fn accuse(&mut self, c: usize, what: String) {
        self.counters.protocol_errors += 1;
        self.lose(c, what);
    }

    // ---- ending and telling

    fn is_drained(&self) -> bool {
        self.in_flight == 0 && self.connections.iter().all(Connection::is_flushed)
    }

    fn say_goodbye(&mut self) {
        for c in 0..self.connections.len() {
            if self.connections[c].is_clear() {
                let now_ns = self.now_ns();
                // The end of the connection says the same if this cannot be written.
                let _ = self.connections[c].write(&client::DISCONNECT, now_ns);
            }
            let connection = &mut self.connections[c];
            self.counters.connections_up -= u64::from(connection.state == State::Up);
            connection.state = State::Down;
            connection.stream = None;
        }
    }

    fn publish(&mut self) {
        let over = self.devices_left == 0 || self.time_is_up;
        if self.finished_at.is_none() && over && self.is_drained() {
            self.finished_at = Some(self.started.elapsed());
        }
        let mut shown = self.shared.shown.lock();
        shown.counters = self.counters;
        for latency_us in self.latencies_us.drain(..) {
            shown.ack_latency_us.saturating_record(latency_us);
        }
        for (fault, readings) in self.fault_readings.drain(..) {
            if let Some(sum) = shown.fault_readings.get_mut(fault) {
                *sum += readings;
            }
        }
        if let Some(error) = self.last_error.take() {
            shown.last_error = Some(error);
        }
        shown.finished_at = self.finished_at;
    }

    fn timeout(&self, drain_until_ns: Option<u64>) -> Duration {
        if !self.ready.is_empty() {
            return Duration::ZERO;
        }
        let mut wake_ns = self.next_sweep_ns.min(drain_until_ns.unwrap_or(u64::MAX));
        if self.generating && self.devices_left > 0 {
            let due_ns = if self.is_paced() { Some(self.next_due_ns()) } else { self.end_ns() };
            wake_ns = wake_ns.min(due_ns.unwrap_or(u64::MAX));
        }
        if let Some(&Reverse((at_ns, _))) = self.retries.peek() {
            wake_ns = wake_ns.min(at_ns);
        }
        Duration::from_nanos(wake_ns.saturating_sub(self.now_ns()))
    }
}

/// Readings of device `d` that are due before the fleet's duration is over. Flat out the clock decides.
fn readings(options: &FleetOptions, d: u32) -> u64 {
    match options.duration {
        Some(duration) if options.rate_per_device > 0.0 => {
            (duration.as_secs_f64() * options.rate_per_device - phase(d)).ceil().max(0.0) as u64
        }
        _ => u64::MAX,
    }
}
