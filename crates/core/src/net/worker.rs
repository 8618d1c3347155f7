//! The event loop of one thread: poll, read, stage, submit, acknowledge, write.
//!
//! One pass takes what is ready, then the turn goes to the log, and at the end each connection that has something
//! to write is written to once. Nothing here waits for the log: its answers come as mail.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::clock::{TICK_MS, now_us};
use super::connection::{Connection, State};
use super::crowd::Crowd;
use super::ending::Ending;
use super::events::EventKind;
use super::fanout::Reading;
use super::hot::Hot;
use super::inbox::Mail;
use super::lane::{End, Flow, Lane, Shared};
use super::pace::{Pace, Rest};
use super::packets::packets;
use super::rate::Rates;
use super::review::Review;
use super::sends::Sends;
use super::transport::Transport;
use super::watch::{Turn, is_watched};
use super::wheel::{Entry, Wheel};
use crate::mqtt::ReasonCode;

/// Read from one connection before another has its turn.
const READ_BYTES: usize = 128 << 10;
/// Turns with the log at a time; more wait in staging and make bigger blocks.
pub(super) const MAX_FLIGHTS: usize = 2;
/// Longest wait for the log's answer alone: about a commit.
const NAP: Duration = Duration::from_millis(1);
/// Bytes queued in the log from which their commit begins when all loops wait: some hundreds of messages, which is
/// worth a commit of their own.
const HURRY_BYTES: usize = 4 << 10;
/// Deliveries waiting in another thread's inbox above which this one stops reading.
const MAX_INBOX_BYTES: usize = 32 << 20;
/// Token of the inbox's waker; connections have their slot.
pub(super) const WAKE: Token = Token(usize::MAX);

pub(super) struct Worker {
    pub(super) poll: Poll,
    pub(super) conns: Slab<Connection>,
    pub(super) lane: Lane,
    last_number: u32,
    pub(super) wheel: Wheel,
    pub(super) due: Vec<Entry>,
    /// Connections that may have something to read.
    pub(super) ready: Vec<u32>,
    /// Those among them that have not been greeted yet or whose peers have hung up: they come behind the others.
    pub(super) behind: VecDeque<u32>,
    /// Accepted and not taken over yet.
    pub(super) accepted: VecDeque<Transport>,
    /// Connections that are not read until their rates allow it, and their links.
    pub(super) paused: Vec<(u32, u32)>,
    /// The last tick at which they were looked at.
    unpaused: u32,
    buffer: Vec<u8>,
    pub(super) sends: Sends,
    pub(super) hot: Hot,
    crowd: Crowd,
    /// When the pass began to read.
    pub(super) read_at: Instant,
    pace: Pace,
    /// Reads that found something.
    reads: u64,
    pub(super) mail: Vec<Mail>,
    pub(super) review: Review,
    pub(super) stop: Option<Instant>,
}

impl Worker {
    pub fn new(poll: Poll, thread: u16, shared: Arc<Shared>) -> Worker {
        let lane = Lane::new(thread, shared);
        Worker {
            poll,
            conns: Slab::new(),
            last_number: 0,
            wheel: Wheel::new(lane.tick),
            pace: Pace::new(lane.shared.started),
            hot: Hot::default(),
            crowd: Crowd::new(lane.shared.started),
            read_at: lane.shared.started,
            reads: 0,
            due: Vec::new(),
            ready: Vec::new(),
            behind: VecDeque::new(),
            accepted: VecDeque::new(),
            paused: Vec::new(),
            unpaused: 0,
            buffer: vec![0; READ_BYTES],
            sends: Sends::new(lane.shared.options.io_uring),
            mail: Vec::new(),
            review: Review::default(),
            stop: None,
            lane,
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.wait(&mut events) {
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
            if self.lane.tick != self.unpaused {
                self.unpaused = self.lane.tick;
                self.unpause();
            }
            // First: mail and new sockets give slots to other connections than those the events are about.
            events.iter().for_each(|event| self.on_event(event));
            self.read_mail();
            self.release();
            self.open_some();
            self.look_at_unwatched();
            self.say_again();
            self.read_ready();
            self.turn();
            self.deliver_own();
            self.lane.dispatch();
            self.replay();
            self.lane.show();
            self.flush_dirty();
            self.expire();
            self.go_on_reviewing();
            self.lane.show();
            if self.stop.is_some_and(|deadline| self.may_stop(deadline)) {
                return self.close_all();
            }
        }
    }

    fn timeout(&self) -> Duration {
        if self.throttled() {
            // The log's answer wakes the loop, except when its queue is full of others' turns.
            Duration::from_millis(1)
        } else if self.has_work() {
            Duration::ZERO
        } else if self.is_crowded() {
            self.crowd.patience(Instant::now()).min(Duration::from_millis(TICK_MS))
        } else {
            Duration::from_millis(TICK_MS)
        }
    }

    /// Whether somebody waits to be greeted or to be let go.
    fn is_crowded(&self) -> bool {
        !self.behind.is_empty() || !self.accepted.is_empty()
    }

    /// Whether the next pass has something to do, whatever happens meanwhile.
    fn has_work(&self) -> bool {
        !self.ready.is_empty() || self.lane.replays.ready || self.review.is_under_way() || self.owes_turn()
    }

    /// Whether something was staged after the pass had submitted its turn.
    fn owes_turn(&self) -> bool {
        let may = self.lane.flights.len() < MAX_FLIGHTS && !self.lane.stalled;
        may && !self.lane.staging.is_empty() && !self.rides()
    }

    /// Waits until a pass has something to do.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let counters = &self.lane.counters;
        let now = Instant::now();
        let watched = counters.received - self.hot.messages;
        let rest = self.pace.rest(now, watched, counters.acks, self.reads, counters.bytes_in);
        let timeout = self
            .hot
            .patience(self.lane.staging.turn, now)
            .map_or(self.timeout(), |patience| patience.min(self.timeout()));
        let shared = Arc::clone(&self.lane.shared);
        let inbox = shared.inboxes.get(usize::from(self.lane.thread)).filter(|_| !timeout.is_zero());
        let Some(inbox) = inbox else { return self.poll.poll(events, Some(timeout)) };
        let last = shared.working.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && rest == Rest::Mail {
            // All loops wait, so no other turn is about to join the next commit.
            shared.log.hurry(HURRY_BYTES);
        }
        let polled = match rest {
            Rest::Mail if self.lane.flights.is_empty() => self.poll.poll(events, Some(timeout)),
            Rest::Mail => match self.poll.poll(events, Some(Duration::ZERO)) {
                // What is there is read while the log writes: its answer and the next turn are ready together.
                Ok(()) if events.is_empty() => {
                    inbox.wait(NAP);
                    self.poll.poll(events, Some(Duration::ZERO))
                }
                polled => polled,
            },
            Rest::Sleep { until, tick, answers } => {
                inbox.join(tick);
                if answers && !self.lane.flights.is_empty() {
                    // What came to the sockets meanwhile is left for the pass.
                    inbox.wait(until.saturating_duration_since(Instant::now()));
                    self.read_mail();
                    self.release();
                }
                inbox.sleep(until.saturating_duration_since(Instant::now()));
                self.poll.poll(events, Some(Duration::ZERO))
            }
        };
        shared.working.fetch_add(1, Ordering::SeqCst);
        polled
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

    /// Of a connection or session, unique on this thread for a long time.
    pub(super) fn next_number(&mut self) -> u32 {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    fn open_some(&mut self) {
        let counters = &self.lane.counters;
        if self.is_crowded() {
            self.crowd.pass(counters.received + counters.delivered, Instant::now());
        }
        for _ in 0..self.crowd.admitted {
            let Some(socket) = self.accepted.pop_front() else { break };
            self.open(socket);
        }
    }

    fn open(&mut self, mut socket: Transport) {
        let number = self.next_number();
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
        let mut conn = Connection::new(socket, number, self.lane.tick);
        conn.rates = Rates::new(&conn.limits(), self.lane.tick);
        entry.insert(conn);
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
                if conn.state == State::Up && !conn.ended {
                    self.ready.push(slot as u32);
                } else {
                    self.behind.push_back(slot as u32);
                }
            }
        }
        let unwritten = conn.out.is_some() || conn.socket.as_ref().is_some_and(Transport::wants_write);
        if event.is_writable() && unwritten {
            self.lane.touch(conn, slot as u32);
        }
    }

    fn read_ready(&mut self) {
        let idle = self.ready.is_empty() && self.behind.is_empty();
        let unread = !idle && self.throttled();
        self.lane.note_pressure(unread);
        if idle || unread {
            return;
        }
        self.ready.extend(self.behind.drain(..self.behind.len().min(self.crowd.admitted)));
        self.lane.received_at_us = now_us();
        self.read_at = Instant::now();
        let mut ready = std::mem::take(&mut self.ready);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = 0;
        while let Some(&slot) = ready.get(at) {
            at += 1;
            if self.read(slot, &mut buffer) {
                self.ready.push(slot);
            }
            if self.lane.staging.acks.bytes >= self.lane.shared.options.turn_bytes {
                if !self.lane.submit() {
                    break;
                }
                self.lane.begin();
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
        // A client that does not take its acknowledgements is owed no new ones until it does.
        let full = conn.pending() > self.lane.shared.options.outbound_max_bytes;
        // What comes behind a CONNECT has to wait for its answer.
        if conn.state == State::Asked || (conn.state == State::Up && full) {
            conn.ready = false;
            conn.held_back = true;
            return false;
        }
        let mut most = buffer.len().min(self.hot.slice((slot, conn.link)));
        if conn.rates.is_some() && conn.state == State::Up {
            match self.turn_of(slot) {
                Turn::Waits => return false,
                Turn::Handled => {
                    return self.conns.get(slot as usize).is_some_and(|conn| conn.ready && !conn.is_paused());
                }
                Turn::Reads(bytes) => most = bytes.min(most),
            }
        }
        let Some(conn) = self.conns.get_mut(slot as usize) else { return false };
        let Some(socket) = &mut conn.socket else {
            conn.ready = false;
            return false;
        };
        let (taken, more) = match socket.read(buffer, most) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                conn.ready = false;
                return false;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(_) => {
                self.broken(slot);
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
        self.reads += 1;
        self.lane.counters.bytes_in += taken as u64;
        // When the socket was emptied, the next bytes will be announced.
        let more = more || conn.ended;
        conn.ready = more;
        if conn.state == State::Lingering {
            return more;
        }
        if conn.state == State::Up {
            conn.heard = self.lane.tick;
        }
        let received = self.lane.counters.received;
        self.consume(slot, &buffer[..taken]);
        match self.lane.counters.received - received {
            0 => {}
            messages => self.measure(slot, messages),
        }
        let Some(conn) = self.conns.get_mut(slot as usize) else { return false };
        if let Some(rates) = &mut conn.rates {
            // What was read is handled; its price is paid before the next read.
            rates.read(taken);
        }
        more && !conn.is_paused()
    }

    /// Handles all packets in `bytes`, joined to what was left of the last read, and keeps what is left now.
    pub(super) fn consume(&mut self, slot: u32, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let shared = Arc::clone(&self.lane.shared);
        let mut subscriptions = Reading::new(&shared.subscriptions);
        self.lane.staging.open_run(slot, conn.generation, conn.link, Instant::now());
        let lane = &mut self.lane;
        let outcome = if is_watched(lane, conn) {
            packets::<true>(lane, &shared, conn, slot, bytes, &mut subscriptions)
        } else {
            packets::<false>(lane, &shared, conn, slot, bytes, &mut subscriptions)
        };
        self.lane.staging.close_run();
        drop(subscriptions);
        match outcome {
            Ok(flow) => self.follow(slot, flow),
            Err(end) => self.end(slot, Ending::Ours(end)),
        }
        if self.conns.get(slot as usize).is_some_and(|conn| conn.state == State::Up && conn.timer == 0) {
            self.set_timer(slot);
        }
    }

    pub(super) fn follow(&mut self, slot: u32, flow: Flow) {
        match flow {
            Flow::On => {}
            Flow::Asked => self.set_timer(slot),
            Flow::Paused => self.pause(slot),
            Flow::Bye(normal) => self.end(slot, Ending::Goodbye(normal)),
            Flow::Refused => self.end(slot, Ending::Refused),
            Flow::Join(owner) => self.join_owner(slot, owner),
        }
    }

    /// Writes what the log has released, before more is read: who waits for its acknowledgements sends again.
    fn release(&mut self) {
        self.settle();
        if !self.lane.dirty.is_empty() {
            // Shown before it is written: who has an acknowledgement finds its message in the books.
            self.lane.show();
            self.flush_dirty();
        }
    }

    /// Submits what is staged, as far as that makes sense now, and acknowledges what the log is through with.
    fn turn(&mut self) {
        self.settle();
        let staged = &self.lane.staging;
        let full = staged.acks.bytes >= self.lane.shared.options.turn_bytes;
        let last = self.lane.next.is_some();
        let may = self.lane.flights.len() < MAX_FLIGHTS && !self.rides();
        if !staged.is_empty() && (may || full || last) {
            self.lane.submit();
            self.settle();
        }
        self.lane.rebind();
        self.lane.begin();
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
