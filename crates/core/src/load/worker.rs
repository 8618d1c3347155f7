//! One thread of the fleet: what its devices send, and when.
//!
//! With a rate, a cursor runs over the thread's devices in the order in which they are due, one message
//! per write as real devices do it. Flat out, each connection fills its window in batches. A device that
//! could not send when it was due keeps only the number of its next reading and catches up later. `links`
//! holds the other half: connections that come, answer and go.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::{Events, Poll, Token};

use super::connection::{Connection, Io, State};
use super::fleet::{ABANDON, RUN, Shared};
use super::options::FleetOptions;
use super::pace::{Allowance, Device, Lineup};
use super::payloads::Payloads;
use super::report::{Counters, Errors};
use super::schedule::phase;
use super::template::Filling;
use crate::mqtt::{Properties, Publish, QoS};

pub const WAKER: Token = Token(usize::MAX);

/// Bytes encoded before a write when flat out; also the most that waits for one socket.
const BATCH_BYTES: usize = 64 * 1024;
pub(super) const READ_BYTES: usize = 64 * 1024;
/// Messages of one connection before the others get their turn.
const TURN_MESSAGES: usize = 4_096;

pub struct Worker {
    pub(super) options: Arc<FleetOptions>,
    pub(super) payloads: Arc<Payloads>,
    pub(super) shared: Arc<Shared>,
    pub(super) poll: Poll,
    pub(super) started: Instant,
    pub(super) connections: Vec<Connection>,
    /// Those of connection c begin at c * devices_per_connection.
    pub(super) devices: Vec<Device>,
    pub(super) devices_left: usize,
    /// None: flat out.
    pub(super) lineup: Option<Lineup>,
    /// None: no bound on sending flat out.
    allowance: Option<Allowance>,
    /// Connections that wait for their share of it, in turn.
    resting: VecDeque<u32>,
    pub(super) generating: bool,
    pub(super) in_flight: u64,
    pub(super) connect_now: VecDeque<u32>,
    pub(super) retries: BinaryHeap<Reverse<(u64, u32)>>,
    pub(super) connecting: usize,
    /// Connections that can go on: something was acknowledged, flushed, or is left of their turn.
    pub(super) ready: VecDeque<u32>,
    pub(super) next_sweep_ns: u64,
    pub(super) counters: Counters,
    pub(super) latencies_us: Vec<u64>,
    pub(super) connects_us: Vec<u64>,
    pub(super) delivery_us: Vec<u64>,
    pub(super) errors: Errors,
    pub(super) errors_changed: bool,
    /// Connections begun so far, and the threads that share `connects_per_s`.
    pub(super) connects: u64,
    pub(super) threads: usize,
    /// When sending began, nanoseconds after the start; None while it waits for the others (`Gate`).
    pub(super) origin_ns: Option<u64>,
    /// Time of sending that payloads state.
    pub(super) wall_us: u64,
    /// Acknowledgements of the messages of one read.
    pub(super) acks: Vec<u8>,
    pub(super) fault_readings: Vec<(usize, u64)>,
    pub(super) last_error: Option<String>,
    /// Flat out: the duration is over.
    pub(super) time_is_up: bool,
    pub(super) finished_at: Option<Duration>,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) batch: Vec<u8>,
    pub(super) read_buffer: Vec<u8>,
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
        let (mut connections, mut devices, mut phases) = (Vec::new(), Vec::new(), Vec::new());
        for number in (at as u32..options.connections()).step_by(count) {
            let first = number * options.devices_per_connection;
            let end = first.saturating_add(options.devices_per_connection).min(options.devices);
            let (window, keep_alive_s) = (options.window, options.keep_alive_s);
            connections.push(Connection::new(number, first, end - first, window, keep_alive_s));
            devices.extend((first..end).map(|d| Device::new(&options, d)));
            phases.extend((first..end).map(phase));
        }
        let subscribers = options.connections()..options.all_connections();
        for number in subscribers.skip(at).step_by(count) {
            let mut connection = Connection::new(number, 0, 0, 1, options.keep_alive_s);
            connection.subscribes = true;
            connections.push(connection);
        }
        let rate = options.rate_per_device;
        let shared_origin_ns = shared.gate.opened_ns();
        Worker {
            devices_left: devices.iter().filter(|device| !device.is_done()).count(),
            connect_now: (0..connections.len() as u32).collect(),
            lineup: (rate > 0.0).then(|| Lineup::new(&phases, rate)),
            allowance: Allowance::new(options.generator.at_most_per_s, count),
            resting: VecDeque::new(),
            options,
            payloads,
            shared,
            poll,
            started,
            connections,
            devices,
            generating: true,
            in_flight: 0,
            retries: BinaryHeap::new(),
            connecting: 0,
            ready: VecDeque::new(),
            next_sweep_ns: 0,
            counters: Counters::default(),
            latencies_us: Vec::new(),
            connects_us: Vec::new(),
            delivery_us: Vec::new(),
            errors: Errors::new(),
            errors_changed: false,
            connects: 0,
            threads: count,
            origin_ns: shared_origin_ns,
            wall_us: 0,
            acks: Vec::new(),
            fault_readings: Vec::new(),
            last_error: None,
            time_is_up: false,
            finished_at: None,
            topic: String::new(),
            payload: Vec::new(),
            batch: Vec::with_capacity(BATCH_BYTES),
            read_buffer: vec![0; READ_BYTES],
        }
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
            self.pass_gate();
            if self.is_paced() {
                self.send_due(now_ns);
            } else if self.end_ns().is_some_and(|end_ns| now_ns >= end_ns) {
                (self.generating, self.time_is_up) = (false, true);
            }
            self.end_rest(now_ns);
            self.ask_for_the_end();
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

    pub(super) fn is_paced(&self) -> bool {
        self.options.rate_per_device > 0.0
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    // ---- when devices are due

    /// Readings of device `j` that are due, whether or not they were sent.
    fn due(&self, j: usize) -> u64 {
        match &self.lineup {
            Some(lineup) => lineup.due(j),
            None if self.generating => u64::MAX,
            None => 0,
        }
    }

    /// The connection of device `j` and the device's place on it.
    fn owner(&self, j: usize) -> (usize, u32) {
        let dpc = self.options.devices_per_connection as usize;
        (j / dpc, (j % dpc) as u32)
    }

    /// Sends what is due by `now_ns`.
    fn send_due(&mut self, now_ns: u64) {
        let Some(origin_ns) = self.origin_ns else { return };
        let now_ns = now_ns.saturating_sub(origin_ns);
        while self.generating && self.devices_left > 0 {
            let Some(j) = self.lineup.as_mut().and_then(|lineup| lineup.pass(now_ns)) else { return };
            let (c, _) = self.owner(j);
            if self.connections[c].behind {
                continue;
            }
            if !self.can_send(c) {
                self.set_behind(c, !self.devices[j].is_done());
            } else if let Some(n) = self.next_reading(j) {
                self.send_one(c, j, n);
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
        self.origin_ns.is_some()
            && connection.is_clear()
            && (self.options.qos == 0 || connection.window.has_room())
    }

    pub(super) fn set_behind(&mut self, c: usize, behind: bool) {
        let connection = &mut self.connections[c];
        match (connection.behind, behind) {
            (false, true) => self.counters.connections_behind += 1,
            (true, false) => self.counters.connections_behind -= 1,
            _ => {}
        }
        connection.behind = behind;
    }

    /// Appends the PUBLISH of reading `n` of device `d` to the batch. `packet_id` None: QoS 0.
    pub(super) fn encode(&mut self, d: u32, n: u64, packet_id: Option<u16>, dup: bool) {
        self.topic.clear();
        self.payload.clear();
        self.payloads.write_topic(d, &mut self.topic);
        match &self.options.generator.payload {
            None => self.payloads.write(d, n, &mut self.payload),
            Some(template) => {
                let random = self.payloads.random(d, n);
                let filling = Filling { device: d, seq: n, now_us: self.wall_us, random };
                template.write(&filling, &mut self.payload);
            }
        }
        let publish = Publish {
            dup,
            qos: if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
            retain: false,
            topic: &self.topic,
            packet_id: packet_id.unwrap_or(0),
            properties: Properties::NONE,
            payload: &self.payload,
        };
        let before = self.batch.len();
        publish.encode(self.options.protocol, &mut self.batch);
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
        self.wall_us = wall_us();
        self.batch.clear();
        self.encode_new(c, j, n, now_ns);
        self.write_batch(c, now_ns);
    }

    pub(super) fn write_batch(&mut self, c: usize, now_ns: u64) {
        if let Io::Lost(error) = self.connections[c].write(&self.batch, now_ns) {
            self.lose_io(c, "writing", &error);
        }
    }

    /// Lets connection `c` send what it can: the rest of the last batch, resends, then new readings.
    fn go_on(&mut self, c: usize) {
        if self.connections[c].state != State::Up {
            return;
        }
        if let Io::Lost(error) = self.connections[c].flush() {
            return self.lose_io(c, "writing", &error);
        }
        if self.connections[c].subscribes {
            return;
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
            self.wall_us = wall_us();
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
        let one_per_write = self.options.generator.one_per_write;
        if self.options.qos > 0 && !one_per_write && !self.connections[c].window.is_worth_filling() {
            // The acknowledgements of the rest bring it back here; small writes would cost more than they carry.
            return;
        }
        if self.connections[c].rests {
            return;
        }
        let turn_max = if one_per_write { 1 } else { TURN_MESSAGES };
        let batch_max = if one_per_write { 1 } else { BATCH_BYTES };
        let (mut turn, mut passed) = (0, 0);
        while self.generating && passed < devices && self.can_send(c) {
            if turn >= turn_max {
                return self.make_ready(c);
            }
            let now_ns = self.now_ns();
            let share = self.share(now_ns);
            if share == 0 {
                return self.rest(c);
            }
            self.wall_us = wall_us();
            self.batch.clear();
            let mut sent = 0;
            while passed < devices && self.batch.len() < batch_max && sent < share && self.can_send(c) {
                let at = self.connections[c].next_device;
                self.connections[c].next_device = (at + 1) % devices;
                match self.next_reading(first + at as usize) {
                    Some(n) => {
                        self.encode_new(c, first + at as usize, n, now_ns);
                        (turn, passed, sent) = (turn + 1, 0, sent + 1);
                    }
                    None => passed += 1,
                }
            }
            self.write_batch(c, now_ns);
            if let Some(allowance) = &mut self.allowance {
                allowance.spend(sent);
                return self.rest(c);
            }
        }
    }

    /// Messages that a connection may send flat out at `now_ns`.
    fn share(&self, now_ns: u64) -> u64 {
        match (&self.allowance, self.origin_ns) {
            (Some(allowance), Some(origin_ns)) => allowance.share(now_ns.saturating_sub(origin_ns)),
            _ => u64::MAX,
        }
    }

    /// Connection `c` waits behind the others for its next share.
    fn rest(&mut self, c: usize) {
        self.connections[c].rests = true;
        self.resting.push_back(c as u32);
    }

    /// Lets those go on whose share has come, one after the other.
    fn end_rest(&mut self, now_ns: u64) {
        while self.share(now_ns) > 0
            && let Some(c) = self.resting.pop_front()
        {
            self.connections[c as usize].rests = false;
            self.go_on(c as usize);
        }
    }

    /// When the next connection has its share, nanoseconds after the start.
    pub(super) fn rest_ends_ns(&self) -> Option<u64> {
        let (allowance, origin_ns) = (self.allowance.as_ref()?, self.origin_ns?);
        (!self.resting.is_empty()).then(|| allowance.next_ns().saturating_add(origin_ns))
    }

    pub(super) fn make_ready(&mut self, c: usize) {
        if !self.connections[c].queued {
            self.connections[c].queued = true;
            self.ready.push_back(c as u32);
        }
    }
}

/// Microseconds since the Unix epoch.
pub(super) fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}
