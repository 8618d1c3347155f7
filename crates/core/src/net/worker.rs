//! The event loop of one thread: poll, read, stage, submit, acknowledge, write.
//!
//! One pass takes what is ready, then the turn goes to the log, and at the end each connection that has something
//! to write is written to once. Nothing here waits for the log: its answers come as mail.

use std::io::{self, Read};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::clock::{TICK_MS, now_us};
use super::connection::{Connection, State};
use super::events::EventKind;
use super::fanout::{Deliveries, Reading};
use super::inbox::{Inbox, Mail};
use super::lane::{End, Flow, Lane, Shared, reason_properties};
use super::on_connect::on_connect;
use super::on_publish::on_publish;
use super::on_subscribe::{on_subscribe, on_unsubscribe, unsubscribe_all};
use super::registry::ConnId;
use super::turn::{Acks, Fate};
use super::wheel::{Entry, Wheel};
use crate::log::LogError;
use crate::mqtt::packet::PINGRESP;
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{
    Ack, Disconnect, Frame, Packet, PacketType, Properties, Publish, ReasonCode, Version, ack, frame,
};

/// Read from one connection before another has its turn.
const READ_BYTES: usize = 128 << 10;
/// Turns with the log at a time; more wait in staging and make bigger blocks.
const MAX_FLIGHTS: usize = 2;
/// Pass over fewer bytes than this while the log is busy, and the loop waits for the log before the next one.
const SMALL_PASS_BYTES: u64 = 64 << 10;
/// Longest such wait: about a commit.
const NAP: Duration = Duration::from_millis(1);
/// Deliveries waiting in another thread's inbox above which this one stops reading.
const MAX_INBOX_BYTES: usize = 32 << 20;
/// Token of the inbox's waker; connections have their slot.
pub(super) const WAKE: Token = Token(usize::MAX);

pub(super) struct Worker {
    poll: Poll,
    conns: Slab<Connection>,
    lane: Lane,
    generation: u32,
    wheel: Wheel,
    due: Vec<Entry>,
    /// Connections that may have something to read.
    ready: Vec<u32>,
    buffer: Vec<u8>,
    /// `bytes_in` when the last pass began.
    bytes_in: u64,
    mail: Vec<Mail>,
    stop: Option<Instant>,
}

/// How a connection ends.
enum Ending {
    /// The client said DISCONNECT.
    Goodbye,
    /// The socket ended or failed.
    Lost,
    /// We end it for this reason.
    Ours(End),
    /// A CONNACK with an error is on its way.
    Refused,
}

impl Worker {
    pub fn new(poll: Poll, thread: u16, shared: Arc<Shared>) -> Worker {
        let lane = Lane::new(thread, shared);
        Worker {
            poll,
            conns: Slab::new(),
            generation: 0,
            wheel: Wheel::new(lane.tick),
            due: Vec::new(),
            lane,
            ready: Vec::new(),
            buffer: vec![0; READ_BYTES],
            bytes_in: 0,
            mail: Vec::new(),
            stop: None,
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let mut timeout = self.timeout();
            if self.may_nap() {
                if let Some(inbox) = self.inbox() {
                    inbox.wait(NAP);
                }
                timeout = Duration::ZERO;
            }
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    let detail = format!("cannot wait for sockets: {error}");
                    self.lane.shared.events.add(
                        EventKind::AcceptFailed,
                        "",
                        ReasonCode::UnspecifiedError,
                        detail,
                    );
                    std::thread::sleep(Duration::from_millis(TICK_MS));
                }
                _ => {}
            }
            self.lane.tick = self.lane.shared.options.clock.tick();
            self.read_mail();
            events.iter().for_each(|event| self.on_event(event));
            self.read_ready();
            self.turn();
            self.deliver_own();
            self.lane.dispatch();
            // Shown before it is written: who has an acknowledgement finds its message in the books.
            self.lane.show();
            self.flush_dirty();
            self.expire();
            self.lane.show();
            if self.stop.is_some_and(|deadline| self.may_stop(deadline)) {
                return self.close_all();
            }
        }
    }

    fn inbox(&self) -> Option<&Inbox> {
        self.lane.shared.inboxes.get(usize::from(self.lane.thread))
    }

    fn timeout(&self) -> Duration {
        if self.throttled() {
            // The log's answer wakes the loop, except when its queue is full of others' turns.
            Duration::from_millis(1)
        } else if !self.ready.is_empty() {
            Duration::ZERO
        } else {
            Duration::from_millis(TICK_MS)
        }
    }

    /// Devices that send one message at a time wake the loop for each of them. While a turn is with the log, nothing
    /// read could be acknowledged sooner, so the loop lets messages gather until the log answers and takes
    /// them in one pass. Under full load there is enough to do at once, and reading overlaps with the disk.
    fn may_nap(&mut self) -> bool {
        let passed = self.lane.counters.bytes_in - self.bytes_in;
        self.bytes_in = self.lane.counters.bytes_in;
        !self.lane.flights.is_empty() && self.ready.is_empty() && passed < SMALL_PASS_BYTES
    }

    /// Whether sockets stay unread because what was read is not through yet.
    fn throttled(&self) -> bool {
        let shared = &self.lane.shared;
        let share = shared.options.inflight_bytes / shared.inboxes.len().max(1);
        self.stop.is_some()
            || self.lane.stalled
            || self.lane.flying_bytes + self.lane.staging.acks.bytes > share.max(shared.options.turn_bytes)
            || shared
                .inboxes
                .iter()
                .any(|inbox| inbox.delivery_bytes.load(Ordering::Relaxed) > MAX_INBOX_BYTES)
    }

    fn read_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        if let Some(inbox) = self.inbox() {
            inbox.take(&mut mail);
        }
        for letter in mail.drain(..) {
            match letter {
                Mail::Accepted(socket) => self.open(socket),
                Mail::Committed { turn, result } => self.lane.committed(turn, result),
                Mail::Deliver(deliveries) => {
                    if let Some(inbox) = self.inbox() {
                        inbox.delivery_bytes.fetch_sub(deliveries.len(), Ordering::Relaxed);
                    }
                    self.deliver(&deliveries);
                }
                Mail::TakeOver { old, new } => {
                    self.give_way(old);
                    if let Some(inbox) = self.lane.shared.inboxes.get(usize::from(new.thread)) {
                        inbox.post(Mail::TakenOver { new });
                    }
                }
                Mail::TakenOver { new } => self.welcome(new),
                Mail::Stop { deadline } => self.stop = Some(deadline),
            }
        }
        self.mail = mail;
    }

    fn open(&mut self, mut socket: TcpStream) {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.conns.vacant_entry();
        let slot = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut socket, Token(slot), interest).is_err() {
            // The peer has gone already.
            if let Some(inbox) = self.inbox() {
                inbox.sockets.fetch_sub(1, Ordering::Relaxed);
            }
            return;
        }
        entry.insert(Connection::new(socket, self.generation, self.lane.tick));
        self.lane.counters.sockets += 1;
        self.set_timer(slot as u32);
        if self.stop.is_some() {
            self.remove(slot as u32);
        }
    }

    fn on_event(&mut self, event: &Event) {
        if event.token() == WAKE {
            return;
        }
        let slot = event.token().0;
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            conn.ended |= event.is_read_closed();
            if !conn.ready {
                conn.ready = true;
                self.ready.push(slot as u32);
            }
        }
        if event.is_writable() && conn.out.is_some() && conn.state != State::TakingOver {
            self.lane.touch(conn, slot as u32);
        }
    }

    fn read_ready(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        if self.throttled() {
            self.lane.counters.throttled += 1;
            return;
        }
        self.lane.received_at_us = now_us();
        let mut ready = std::mem::take(&mut self.ready);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = 0;
        while let Some(&slot) = ready.get(at) {
            at += 1;
            if self.read(slot, &mut buffer) {
                self.ready.push(slot);
            }
            if self.lane.staging.acks.bytes >= self.lane.shared.options.turn_bytes && !self.lane.submit() {
                break;
            }
        }
        self.buffer = buffer;
        // Those that were not reached keep their place in the line.
        ready.drain(..at);
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    /// Reads once from a connection. True: there may be more.
    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> bool {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return false };
        if !conn.ready {
            return false;
        }
        // What comes before the CONNACK has to wait for `welcome`; and a client that does not take its
        // acknowledgements is owed no new ones until it does.
        let full = conn.pending() > self.lane.shared.options.outbound_max_bytes;
        if conn.state == State::TakingOver || (conn.state == State::Up && full) {
            conn.ready = false;
            conn.parked = true;
            return false;
        }
        let taken = match conn.socket.read(buffer) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                conn.ready = false;
                return false;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(_) => {
                self.end(slot, Ending::Lost);
                return false;
            }
        };
        if taken == 0 {
            conn.ready = false;
            conn.ended = true;
            // Its messages are acknowledged first: it may have shut down only its own side.
            if conn.state != State::Up || conn.unacknowledged == 0 {
                self.end(slot, Ending::Lost);
            }
            return false;
        }
        self.lane.counters.bytes_in += taken as u64;
        // A short read has emptied the socket, and the next bytes will be announced.
        let more = taken == buffer.len() || conn.ended;
        conn.ready = more;
        if conn.state == State::Lingering {
            return more;
        }
        if conn.state == State::Up {
            conn.heard = self.lane.tick;
        }
        self.consume(slot, &buffer[..taken]);
        more && self.conns.contains(slot as usize)
    }

    /// Handles all packets in `bytes`, joined to what was left of the last read, and keeps what is left now.
    fn consume(&mut self, slot: u32, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let shared = Arc::clone(&self.lane.shared);
        let mut subscriptions = Reading::new(&shared.subscriptions);
        self.lane.staging.open_run(slot, conn.generation, Instant::now());
        let outcome = packets(&mut self.lane, &shared, conn, slot, bytes, &mut subscriptions);
        self.lane.staging.close_run();
        drop(subscriptions);
        match outcome {
            Ok(Flow::On) => {}
            Ok(Flow::Bye) => self.end(slot, Ending::Goodbye),
            Ok(Flow::Refused) => self.end(slot, Ending::Refused),
            Ok(Flow::TakeOver(old)) => self.take_over(slot, old),
            Err(end) => self.end(slot, Ending::Ours(end)),
        }
        if self.conns.get(slot as usize).is_some_and(|conn| conn.state == State::Up && conn.timer == 0) {
            self.set_timer(slot);
        }
    }

    /// Closes the older connection of a client id, here or by mail, before the newer one is welcomed.
    fn take_over(&mut self, slot: u32, old: ConnId) {
        let Some(conn) = self.conns.get(slot as usize) else { return };
        let new = self.lane.id(slot, conn.generation);
        if old.thread == self.lane.thread {
            self.give_way(old);
            self.welcome(new);
        } else if let Some(inbox) = self.lane.shared.inboxes.get(usize::from(old.thread)) {
            inbox.post(Mail::TakeOver { old, new });
        }
    }

    fn give_way(&mut self, old: ConnId) {
        let current = self.conns.get(old.slot as usize);
        if current.is_some_and(|conn| conn.generation == old.generation && conn.state != State::Lingering) {
            let why = "another connection uses the same client identifier";
            self.end(old.slot, Ending::Ours(End::new(ReasonCode::SessionTakenOver, why)));
        }
    }

    fn welcome(&mut self, new: ConnId) {
        let Some(conn) = self.conns.get_mut(new.slot as usize) else { return };
        if conn.generation != new.generation || conn.state != State::TakingOver {
            return;
        }
        conn.state = State::Up;
        conn.heard = self.lane.tick;
        self.lane.touch(conn, new.slot);
        // Packets that came along with the CONNECT.
        let partial = std::mem::take(&mut conn.partial);
        conn.parked = false;
        if !conn.ready {
            conn.ready = true;
            self.ready.push(new.slot);
        }
        self.set_timer(new.slot);
        if !partial.is_empty() {
            self.lane.received_at_us = now_us();
            self.consume(new.slot, &partial);
        }
    }

    /// Submits what is staged, as far as that makes sense now, and acknowledges what the log is through with.
    fn turn(&mut self) {
        self.settle();
        let staged = &self.lane.staging;
        let full = staged.acks.bytes >= self.lane.shared.options.turn_bytes;
        if !staged.is_empty() && (self.lane.flights.len() < MAX_FLIGHTS || full) {
            self.lane.submit();
            self.settle();
        }
    }

    fn settle(&mut self) {
        while let Some((mut acks, result)) = self.lane.settled() {
            self.acknowledge(&acks, &result);
            acks.clear();
            if self.lane.spare.len() < 2 * MAX_FLIGHTS {
                self.lane.spare.push(acks);
            }
        }
    }

    fn acknowledge(&mut self, acks: &Acks, result: &Result<(), LogError>) {
        let failure = result.as_ref().err().map(|error| {
            self.lane.counters.log_failures += 1;
            let code = code_of(error);
            let detail = format!("{} messages are not stored: {error}", acks.messages.len());
            self.lane.shared.events.add(EventKind::LogFailed, "", code, detail);
            (code, error.to_string())
        });
        if failure.is_none() {
            self.lane.counters.rows += acks.rows;
        }
        let now = Instant::now();
        let mut begin = 0;
        for run in &acks.runs {
            let end = (run.end as usize).min(acks.messages.len());
            let range = begin.min(end)..end;
            begin = end;
            let mut conn = self
                .conns
                .get_mut(run.slot as usize)
                .filter(|conn| conn.generation == run.generation && conn.state == State::Up);
            let mut acknowledged = 0u64;
            let mut closing = None;
            for at in range {
                let message = acks.messages[at];
                let stored = matches!(message.fate, Fate::Decoded | Fate::RawOnly | Fate::DeadLettered);
                let failed = failure.as_ref().filter(|_| stored);
                self.lane.count(message.fate, failed.is_some(), message.packet_id);
                let Some(conn) = conn.as_mut().filter(|_| message.packet_id != 0 && closing.is_none()) else {
                    continue;
                };
                let code = failed.map_or(message.code, |(code, _)| *code);
                acknowledged += 1;
                if code == ReasonCode::Success {
                    conn.out(&mut self.lane.pool).bytes.extend_from_slice(&ack::puback(message.packet_id));
                } else if conn.version == Version::V5 {
                    let why = failed.map(|(_, why)| why.as_str()).or_else(|| acks.note(at)).unwrap_or("");
                    let raw = reason_properties(conn, false, 6, why);
                    let properties = Properties::from_checked(&raw);
                    let (ty, packet_id, reason) = (PacketType::Puback, message.packet_id, code);
                    let ack = Ack { ty, packet_id, reason, properties };
                    ack.encode(Version::V5, &mut conn.out(&mut self.lane.pool).bytes);
                } else if message.fate == Fate::DeadLettered && failed.is_none() {
                    // MQTT 3.1.1 has no word for it, and the payload is safe as a dead letter.
                    conn.out(&mut self.lane.pool).bytes.extend_from_slice(&ack::puback(message.packet_id));
                } else {
                    acknowledged -= 1;
                    closing = Some(End::new(
                        code,
                        "a message could not be stored, and MQTT 3.1.1 can only be told by closing",
                    ));
                }
            }
            if acknowledged == 0 && closing.is_none() {
                continue;
            }
            self.lane.counters.acks += acknowledged;
            self.lane.counters.packets_out += acknowledged;
            let latency_us = now.duration_since(run.read_at).as_micros() as u64;
            self.lane.latencies.push((latency_us, acknowledged));
            if let Some(conn) = conn {
                conn.unacknowledged = conn.unacknowledged.saturating_sub(acknowledged as u32);
                self.lane.touch(conn, run.slot);
            }
            if let Some(end) = closing {
                self.end(run.slot, Ending::Ours(end));
            }
        }
    }

    fn deliver_own(&mut self) {
        let own = usize::from(self.lane.thread);
        let Some(deliveries) = self.lane.fanout.deliveries.get_mut(own).filter(|own| !own.is_empty()) else {
            return;
        };
        let mut deliveries = std::mem::take(deliveries);
        self.deliver(&deliveries);
        deliveries.clear();
        if let Some(own) = self.lane.fanout.deliveries.get_mut(own) {
            *own = deliveries;
        }
    }

    fn deliver(&mut self, deliveries: &Deliveries) {
        for (target, outgoing) in deliveries.each() {
            let conn = self.conns.get_mut(target.slot as usize);
            let Some(conn) =
                conn.filter(|conn| conn.generation == target.generation && conn.state == State::Up)
            else {
                continue;
            };
            conn.deliver(outgoing, target.qos, target.retain, &mut self.lane.delivery());
            self.lane.touch(conn, target.slot);
        }
    }

    fn flush_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.lane.dirty);
        for slot in dirty.drain(..) {
            let Some(conn) = self.conns.get_mut(slot as usize).filter(|conn| conn.dirty) else { continue };
            conn.dirty = false;
            let lane = &mut self.lane;
            let flushed = conn.flush(&mut lane.pool, &mut lane.counters).and_then(|mut empty| {
                // Room for messages that waited for it.
                while empty && conn.send_queued(&mut lane.delivery()) {
                    empty = conn.flush(&mut lane.pool, &mut lane.counters)?;
                }
                Ok(empty)
            });
            match flushed {
                Err(_) => self.end(slot, Ending::Lost),
                Ok(true) if conn.state == State::Lingering => {
                    let _ = conn.socket.shutdown(Shutdown::Write);
                }
                Ok(true) if conn.ended && conn.unacknowledged == 0 && !conn.ready => {
                    self.end(slot, Ending::Lost)
                }
                Ok(_) => {
                    if conn.parked && conn.pending() <= self.lane.shared.options.outbound_max_bytes {
                        conn.parked = false;
                        conn.ready = true;
                        self.ready.push(slot);
                    }
                }
            }
        }
        // Ending a connection may have put others on the list; they are next.
        if self.lane.dirty.is_empty() {
            self.lane.dirty = dirty;
        }
    }

    fn set_timer(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        match conn.deadline(&self.lane.shared.options) {
            Some(deadline) => {
                conn.timer = self.wheel.insert(deadline, Entry { slot, generation: conn.generation });
            }
            None => conn.timer = u32::MAX,
        }
    }

    /// Ends connections whose time is up.
    fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(self.lane.tick, &mut due);
        for Entry { slot, generation } in due.drain(..) {
            let Some(conn) = self.conns.get(slot as usize).filter(|conn| conn.generation == generation)
            else {
                continue;
            };
            // Another entry counts.
            if conn.timer > self.lane.tick {
                continue;
            }
            match conn.deadline(&self.lane.shared.options) {
                Some(deadline) if deadline <= self.lane.tick => match conn.state {
                    State::Lingering => self.remove(slot),
                    State::Up => {
                        let why = "nothing was heard for one and a half times the keep alive";
                        self.end(slot, Ending::Ours(End::new(ReasonCode::KeepAliveTimeout, why)));
                    }
                    State::Opened | State::TakingOver => {
                        let why = "no CONNECT came in time";
                        self.end(slot, Ending::Ours(End::new(ReasonCode::MaximumConnectTime, why)));
                    }
                },
                _ => self.set_timer(slot),
            }
        }
        self.due = due;
    }

    /// Ends a connection: its client id and subscriptions are free at once, its socket as soon as what we have to
    /// say has been read.
    fn end(&mut self, slot: u32, ending: Ending) {
        let thread = self.lane.thread;
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let was = conn.state;
        if was == State::Lingering {
            return self.remove(slot);
        }
        let id = ConnId { thread, slot, generation: conn.generation };
        let lane = &mut self.lane;
        unsubscribe_all(lane, conn, slot);
        if matches!(was, State::Up | State::TakingOver) {
            lane.shared.registry.release(&conn.client_id, id);
            lane.counters.connections -= 1;
        }
        match ending {
            Ending::Goodbye | Ending::Lost => {
                lane.counters.lost_connections += u64::from(matches!(ending, Ending::Lost));
                self.last_words(slot);
                self.remove(slot);
            }
            Ending::Refused => self.linger(slot),
            Ending::Ours(end) => {
                lane.counters.ended_connections.count(end.reason);
                let kind = match end.reason {
                    ReasonCode::SessionTakenOver => EventKind::SessionTakenOver,
                    _ => EventKind::ConnectionEnded,
                };
                if end.reason != ReasonCode::ServerShuttingDown {
                    lane.shared.events.add(kind, &conn.client_id, end.reason, end.why.clone());
                }
                // Nothing may precede the CONNACK, and MQTT 3.1.1 servers have no DISCONNECT.
                if was == State::Up && conn.version == Version::V5 {
                    let raw = reason_properties(conn, true, 4, &end.why);
                    let told = end.reason.allowed_in(PacketType::Disconnect);
                    let reason = if told { end.reason } else { ReasonCode::UnspecifiedError };
                    let disconnect = Disconnect { reason, properties: Properties::from_checked(&raw) };
                    disconnect.encode(Version::V5, &mut conn.out(&mut lane.pool).bytes);
                    lane.counters.packets_out += 1;
                } else if was == State::TakingOver {
                    conn.out = None;
                }
                self.linger(slot);
            }
        }
    }

    /// Writes what waits, once.
    fn last_words(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot as usize) {
            let _ = conn.flush(&mut self.lane.pool, &mut self.lane.counters);
        }
    }

    fn linger(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        conn.state = State::Lingering;
        conn.partial = Vec::new();
        conn.heard = self.lane.tick;
        match conn.flush(&mut self.lane.pool, &mut self.lane.counters) {
            Ok(true) if !conn.ended => {
                let _ = conn.socket.shutdown(Shutdown::Write);
                // Bytes that came already must not wait for an event that will not come.
                if !conn.ready {
                    conn.ready = true;
                    self.ready.push(slot);
                }
                self.set_timer(slot);
            }
            Ok(false) if !conn.ended => self.set_timer(slot),
            _ => self.remove(slot),
        }
    }

    fn remove(&mut self, slot: u32) {
        let Some(mut conn) = self.conns.try_remove(slot as usize) else { return };
        let _ = self.poll.registry().deregister(&mut conn.socket);
        self.lane.counters.sockets -= 1;
        if let Some(inbox) = self.inbox() {
            inbox.sockets.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Nothing is staged or flying any more, or time is up.
    fn may_stop(&mut self, deadline: Instant) -> bool {
        let idle = self.lane.staging.is_empty() && self.lane.flights.is_empty();
        idle || Instant::now() >= deadline
    }

    fn close_all(mut self) {
        let slots: Vec<u32> = self.conns.iter().map(|(slot, _)| slot as u32).collect();
        for slot in slots {
            self.end(
                slot,
                Ending::Ours(End::new(ReasonCode::ServerShuttingDown, "the server is shutting down")),
            );
            self.remove(slot);
        }
        self.lane.show();
    }
}

impl Lane {
    fn count(&mut self, fate: Fate, failed: bool, packet_id: u16) {
        let counters = &mut self.counters;
        let counter = match fate {
            // QoS 0 is best effort: nobody could be told.
            _ if failed && packet_id == 0 => &mut counters.shed,
            _ if failed => &mut counters.refused,
            Fate::Decoded => &mut counters.decoded,
            Fate::RawOnly => &mut counters.raw_only,
            Fate::LiveOnly => &mut counters.live_only,
            Fate::DeadLettered => &mut counters.dead_lettered,
            Fate::Refused => &mut counters.refused,
        };
        *counter += 1;
    }
}

/// What a client is told when the log did not take its message.
fn code_of(error: &LogError) -> ReasonCode {
    match error {
        LogError::DiskFull { .. } | LogError::DiskBound { .. } | LogError::TooLarge { .. } => {
            ReasonCode::QuotaExceeded
        }
        _ => ReasonCode::UnspecifiedError,
    }
}

/// Handles the packets in `bytes`, of which the first may have begun in `conn.partial`.
fn packets(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    mut bytes: &[u8],
    subscriptions: &mut Reading<'_>,
) -> Result<Flow, End> {
    let limit = shared.options.max_packet_bytes;
    if !conn.partial.is_empty() {
        // Only as much as the packet needs is copied, and it is looked at again only when that much is there.
        let mut partial = std::mem::take(&mut conn.partial);
        loop {
            match frame(&partial, limit)? {
                Frame::Incomplete { needed } => {
                    let missing = needed.saturating_sub(partial.len()).max(1);
                    let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
                    partial.extend_from_slice(taken);
                    bytes = rest;
                    if taken.len() < missing {
                        conn.partial = partial;
                        return Ok(Flow::On);
                    }
                }
                Frame::Complete { ty, flags, body, .. } => {
                    let flow = one(lane, shared, conn, slot, ty, flags, body, subscriptions)?;
                    if !matches!(flow, Flow::On) {
                        conn.partial = bytes.to_vec();
                        return Ok(flow);
                    }
                    break;
                }
            }
        }
    }
    while !bytes.is_empty() {
        match frame(bytes, limit)? {
            Frame::Complete { ty, flags, body, total } => {
                let flow = one(lane, shared, conn, slot, ty, flags, body, subscriptions)?;
                bytes = &bytes[total..];
                if !matches!(flow, Flow::On) {
                    conn.partial = bytes.to_vec();
                    return Ok(flow);
                }
            }
            Frame::Incomplete { .. } => {
                conn.partial = bytes.to_vec();
                break;
            }
        }
    }
    Ok(Flow::On)
}

/// Handles one packet.
#[allow(clippy::too_many_arguments)]
#[inline]
fn one(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    ty: PacketType,
    flags: u8,
    body: &[u8],
    subscriptions: &mut Reading<'_>,
) -> Result<Flow, End> {
    lane.counters.packets_in += 1;
    if conn.state == State::Opened {
        if ty != PacketType::Connect {
            return Err(End::protocol("the first packet is not CONNECT"));
        }
        return Ok(on_connect(lane, conn, slot, body));
    }
    // The path of nearly every packet does without the enum of all of them.
    if ty == PacketType::Publish {
        let publish = Publish::parse(flags, body, conn.version)?;
        on_publish(lane, shared, conn, slot, &publish, subscriptions)?;
        return Ok(Flow::On);
    }
    if ty == PacketType::Connect {
        return Err(End::protocol("a second CONNECT"));
    }
    match Packet::from_frame(ty, flags, body, conn.version)? {
        Packet::Ack(ack) => on_ack(lane, conn, slot, &ack),
        Packet::Subscribe(subscribe) => on_subscribe(lane, shared, conn, slot, &subscribe, subscriptions),
        Packet::Unsubscribe(unsubscribe) => {
            on_unsubscribe(lane, shared, conn, slot, &unsubscribe, subscriptions)
        }
        Packet::Pingreq => {
            conn.out(&mut lane.pool).bytes.extend_from_slice(&PINGRESP);
            lane.counters.packets_out += 1;
            lane.touch(conn, slot);
        }
        Packet::Disconnect(disconnect) => {
            let raised =
                disconnect.properties.number(PropertyId::SessionExpiryInterval).is_some_and(|s| s > 0);
            if raised && !conn.wanted_session {
                return Err(End::protocol("DISCONNECT raises a session expiry interval that was 0"));
            }
            if disconnect.properties.get(PropertyId::ServerReference).is_some() {
                return Err(End::protocol("a client's DISCONNECT carries a server reference"));
            }
            return Ok(Flow::Bye);
        }
        Packet::Auth(_) => return Err(End::protocol("AUTH without an authentication method in CONNECT")),
        Packet::Connect(_) | Packet::Publish(_) => {}
        Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
            return Err(End::protocol("a packet that only servers send"));
        }
    }
    Ok(Flow::On)
}

fn on_ack(lane: &mut Lane, conn: &mut Connection, slot: u32, ack: &Ack<'_>) {
    let answer = match ack.ty {
        PacketType::Puback => {
            conn.acknowledged(ack.packet_id);
            if conn.send_queued(&mut lane.delivery()) {
                lane.touch(conn, slot);
            }
            return;
        }
        // We know no QoS 2 message, of either direction: the id is not found.
        PacketType::Pubrel => PacketType::Pubcomp,
        PacketType::Pubrec => PacketType::Pubrel,
        _ => return,
    };
    let reason = ReasonCode::PacketIdentifierNotFound;
    let answer = Ack { ty: answer, packet_id: ack.packet_id, reason, properties: Properties::NONE };
    answer.encode(conn.version, &mut conn.out(&mut lane.pool).bytes);
    lane.counters.packets_out += 1;
    lane.touch(conn, slot);
}
