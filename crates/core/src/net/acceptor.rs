//! The listening sockets: accepts, and deals connections out to the event loop that has the fewest.
//!
//! One acceptor instead of one socket for each loop (SO_REUSEPORT): the kernel deals by hash, which gives two
//! loops 31 and 19 of 50 connections as easily as 25 each, and the fuller loop sets the pace.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};

use super::clock::TICK_MS;
use super::events::EventKind;
use super::inbox::Mail;
use super::lane::Shared;
use super::limits::Limit;
use super::listener::Listener;
use super::rate::Bucket;
use super::reload::reload_changed;
use super::transport::Transport;
use crate::mqtt::ReasonCode;

/// How often certificates are looked at.
const WATCH: Duration = Duration::from_secs(1);
/// It is said at most once in this many ticks that connections wait to be accepted.
const TOLD_TICKS: u32 = 100;
/// Connections of a second are spread over it, since live clients wait for those that come together; a bound below 100 a
/// second holds over the second alone.
const LONGEST_GAP: Duration = Duration::from_millis(10);
/// So much of that is made up for where nobody came, or the acceptor came late.
const LATE: Duration = Duration::from_millis(10);
/// The shortest wait for the next one.
const STEP: Duration = Duration::from_millis(1);

pub(super) struct Acceptor {
    poll: Poll,
    /// In the order of `shared.listeners`.
    sockets: Vec<TcpListener>,
    paces: Vec<Pace>,
    shared: Arc<Shared>,
}

/// How fast a listener accepts where that is bounded.
#[derive(Clone, Copy, Debug)]
struct Pace {
    bucket: Bucket,
    /// When the next connection is due.
    next: Instant,
    /// It stopped at its bound, so who is accepted next has waited.
    held: bool,
    /// Tick at which it was said last that connections wait.
    told: Option<u32>,
}

impl Acceptor {
    /// `poll` already knows the waker that announces the end.
    pub fn new(poll: Poll, mut sockets: Vec<TcpListener>, shared: Arc<Shared>) -> io::Result<Acceptor> {
        for (at, socket) in sockets.iter_mut().enumerate() {
            poll.registry().register(socket, Token(at), Interest::READABLE)?;
        }
        let tick = shared.options.clock.tick();
        let pace = |listener: &Arc<Listener>| {
            let bucket = Bucket::full(listener.options.limits.connect_rate, tick);
            Pace { bucket, next: shared.started, held: false, told: None }
        };
        let paces = shared.listeners.iter().map(pace).collect();
        Ok(Acceptor { poll, sockets, paces, shared })
    }

    pub fn run(mut self) {
        let mut events = Events::with_capacity(8);
        let watching = self.shared.listeners.iter().any(|listener| listener.tls.is_some());
        let mut watched = Instant::now();
        // While accepting fails, the listeners are tried again without an event.
        let mut retry = None;
        while !self.shared.stopping.load(Ordering::SeqCst) {
            let _ = self.poll.poll(&mut events, retry.or(watching.then_some(WATCH)));
            retry = self.accept_all();
            if watching && watched.elapsed() >= WATCH {
                reload_changed(&self.shared);
                watched = Instant::now();
            }
        }
    }

    /// Accepts what waits. When that fails it gives the time after which to try again.
    fn accept_all(&mut self) -> Option<Duration> {
        let mut paces = std::mem::take(&mut self.paces);
        let listeners = self.sockets.iter().zip(&self.shared.listeners).zip(&mut paces);
        let retry =
            listeners.filter_map(|((socket, listener), pace)| self.accept(socket, listener, pace)).min();
        self.paces = paces;
        retry
    }

    fn accept(&self, socket: &TcpListener, listener: &Arc<Listener>, pace: &mut Pace) -> Option<Duration> {
        let rate = listener.options.limits.connect_rate;
        let tick = self.shared.options.clock.tick();
        pace.bucket.refill(rate, tick);
        let now = Instant::now();
        let gap = Duration::from_secs(1).checked_div(rate).unwrap_or_default().min(LONGEST_GAP);
        pace.next = pace.next.max(now.checked_sub(LATE).unwrap_or(now));
        loop {
            if rate > 0 && (pace.next > now || pace.bucket.is_empty()) {
                pace.held = true;
                let least = if pace.bucket.is_empty() { LONGEST_GAP } else { STEP };
                return Some(pace.next.saturating_duration_since(now).max(least));
            }
            match socket.accept() {
                Ok((socket, _)) => {
                    pace.next += gap;
                    pace.bucket.take(1);
                    if std::mem::take(&mut pace.held) {
                        self.held_back(listener, pace, tick);
                    }
                    let _ = socket.set_nodelay(true);
                    let sockets = |thread: usize| {
                        self.shared
                            .inboxes
                            .get(thread)
                            .map_or(usize::MAX, |inbox| inbox.sockets.load(Ordering::Relaxed))
                    };
                    let threads = 0..self.shared.inboxes.len();
                    let total: usize = threads.clone().map(sockets).sum();
                    if total >= self.shared.options.max_connections || listener.is_full() {
                        self.refuse(listener);
                        continue;
                    }
                    let fewest = threads.min_by_key(|thread| sockets(*thread));
                    if let Some(inbox) = fewest.and_then(|thread| self.shared.inboxes.get(thread)) {
                        inbox.sockets.fetch_add(1, Ordering::Relaxed);
                        inbox.post(Mail::Accepted(Transport::new(socket, listener)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    pace.held = false;
                    return None;
                }
                // The peer has gone before we came to it.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    let detail =
                        format!("cannot accept connections: {error}; is the limit of open files too low?");
                    self.shared.events.add(EventKind::AcceptFailed, "", ReasonCode::ServerBusy, detail);
                    return Some(Duration::from_millis(TICK_MS));
                }
            }
        }
    }

    /// A connection had to wait for its turn.
    fn held_back(&self, listener: &Listener, pace: &mut Pace, tick: u32) {
        listener.limited(Limit::MaxConnectRate);
        if pace.told.is_some_and(|told| tick.saturating_sub(told) < TOLD_TICKS) {
            return;
        }
        pace.told = Some(tick);
        let (name, rate) = (&listener.options.name, listener.options.limits.connect_rate);
        let detail = format!(
            "max_connect_rate: listener {name} accepts {rate} connections a second; more wait in the kernel's queue"
        );
        self.shared.events.add(EventKind::LimitReached, "", ReasonCode::ConnectionRateExceeded, detail);
    }

    fn refuse(&self, listener: &Listener) {
        listener.refused();
        listener.limited(Limit::MaxConnections);
        if let Some(shown) = self.shared.accepting() {
            shown.lock().counters.over_max_connections += 1;
        }
        let (name, own) = (&listener.options.name, listener.options.max_connections);
        let detail = if listener.is_full() {
            format!("max_connections = {own} of listener {name} are open")
        } else {
            format!("max_connections = {} are open", self.shared.options.max_connections)
        };
        self.shared.events.add(EventKind::ConnectionRefused, "", ReasonCode::ServerBusy, detail);
    }
}
