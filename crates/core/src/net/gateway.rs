//! Start, stop and what can be seen from outside.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Poll, Waker};
use parking_lot::{Mutex, RwLock};

use super::acceptor::Acceptor;
use super::binding::{Bindings, StreamBinding};
use super::clock::ticks;
use super::closes::{Close, Closes};
use super::counters::{Counters, Latency, Shown, histogram, latency};
use super::downlink::Downlink;
use super::events::{Event, EventKind, Events};
use super::flapping::Flapping;
use super::inbox::{Inbox, Mail};
use super::journal::first_session;
use super::lane::{Durable, Shared};
use super::listener::{Listener, ListenerOptions, ListenerStatus, listen};
use super::options::{GatewayOptions, PLAIN};
use super::registry::Registry;
use super::reload::reload_all;
use super::restore::{append, keep_sessions, restore_all};
use super::retained::{Retained, StoredMessage};
use super::sparkplug::EdgeNodes;
use super::sys::{Sys, SysValues};
use super::tls::{HTTP_PROTOCOLS, MQTT_PROTOCOLS, TlsContext};
use super::trace::Traces;
use super::unmatched::{Unmatched, UnmatchedTopics};
use super::worker::{WAKE, Worker};
use crate::log::{Log, LogError};
use crate::mqtt::{ReasonCode, Trie};
use crate::sessions::{Change, Recovered, SessionStore, SessionsError};

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("listener {name}: cannot listen on {address}: {error}; is another program using the port?")]
    Listen { name: String, address: SocketAddr, error: io::Error },
    #[error("listener {name}: {why}")]
    Certificates { name: String, why: String },
    #[error("an event loop has not taken the changed streams yet: the log accepts nothing from it")]
    Busy,
    /// A setting, a stream or a raw filter.
    #[error("{0}")]
    Config(String),
    #[error("cannot start the gateway's threads: {0}")]
    Start(#[from] io::Error),
    #[error("cannot read the stream of messages for devices: {0}")]
    Downlink(#[from] LogError),
    #[error("{0}")]
    Sessions(#[from] SessionsError),
}

/// A running gateway. Dropping it stops it without draining.
pub struct Gateway {
    pub(super) shared: Arc<Shared>,
    /// Tells the acceptor to look at `stopping`.
    acceptor: Waker,
    threads: Vec<JoinHandle<()>>,
}

/// Latency of acknowledgements since start and since the window was reset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AckLatency {
    pub since_start: Latency,
    pub window: Latency,
}

impl Gateway {
    /// Opens the listener and starts the threads; returns once connections are accepted.
    ///
    /// The log must know the schemas of `streams` and the reserved ones ([`super::raw_schema`],
    /// [`super::dead_letters_schema`], [`super::downlink_schema`]). Messages on topics that match one of
    /// `raw_filters` are logged to `_raw` too.
    pub fn start(
        log: Log,
        mut options: GatewayOptions,
        streams: Vec<StreamBinding>,
        raw_filters: Vec<String>,
    ) -> Result<Gateway, GatewayError> {
        options.check().map_err(GatewayError::Config)?;
        // A turn is longer by a last read, and a message of it may be a row of its stream, a raw one and one of sessions.
        options.turn_bytes = options.turn_bytes.min(log.most_bytes() / 8);
        let seed = RandomState::new().hash_one(0);
        let bindings = Bindings::new(streams, &raw_filters, seed).map_err(GatewayError::Config)?;
        let limits = options.limits;
        let plain = ListenerOptions { limits, ..ListenerOptions::plain(PLAIN, options.address) };
        let mut sockets = Vec::new();
        let mut listeners = Vec::new();
        for options in std::iter::once(&plain).chain(&options.listeners) {
            let (socket, listener) = open(options)?;
            sockets.push(socket);
            listeners.push(Arc::new(listener));
        }

        let polls = (0..options.threads).map(|_| Poll::new()).collect::<io::Result<Vec<Poll>>>()?;
        let inboxes = polls
            .iter()
            .map(|poll| Ok(Inbox::new(Waker::new(poll.registry(), WAKE)?)))
            .collect::<io::Result<Vec<Inbox>>>()?;
        let (sessions, recovered) = match options.sessions.take() {
            Some(table) => {
                let (store, recovered) = SessionStore::open(table, log.clone())?;
                let epoch = log.epoch();
                (Some(Durable { store, epoch, next_id: first_session(epoch).into() }), Some(recovered))
            }
            None => (None, None),
        };
        // A group of a stored message is known again.
        let group_seed = log.seed().rotate_left(29);
        let shared = Arc::new(Shared {
            log,
            started: Instant::now(),
            working: AtomicUsize::new(options.threads),
            edge_nodes: EdgeNodes::new(),
            bindings: Mutex::new(Arc::new(bindings)),
            subscriptions: RwLock::new(Trie::new(seed.rotate_left(17))),
            subscribed: AtomicUsize::new(0),
            retained: Retained::new(
                options.retained_max_messages,
                options.retained_max_bytes,
                options.loads_retained,
            ),
            registry: Registry::new(seed.rotate_left(41)),
            flapping: Flapping::new(
                ticks(options.flapping_window_s),
                ticks(options.flapping_ban_s),
                seed.rotate_left(53),
            ),
            events: Events::default(),
            unmatched: UnmatchedTopics::default(),
            closes: Closes::new(seed.rotate_left(7)),
            traces: Traces::default(),
            sys: SysValues::default(),
            lifecycle_wanted: AtomicBool::new(false),
            listeners,
            shown: (0..=inboxes.len()).map(|_| Mutex::new(Shown::new())).collect(),
            inboxes,
            stopping: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            group_seed,
            downlink_read: AtomicU64::new(0),
            queued: Arc::default(),
            sessions,
            options,
        });
        if let Some(logins) = &shared.options.logins {
            logins.serve(&shared);
        }
        let downlink = Downlink::new(Arc::clone(&shared), recovered.as_ref().and_then(Recovered::downlink))?;
        let accept_poll = Poll::new()?;
        let acceptor = Waker::new(accept_poll.registry(), WAKE)?;
        let accepting = Acceptor::new(accept_poll, sockets, Arc::clone(&shared))?;

        let mut gateway = Gateway { shared, acceptor, threads: Vec::new() };
        let workers = polls.into_iter().enumerate();
        let mut workers: Vec<Worker> = workers
            .map(|(thread, poll)| Worker::new(poll, thread as u16, Arc::clone(&gateway.shared)))
            .collect();
        if let Some(recovered) = recovered {
            restore_all(&gateway.shared, &mut workers, &recovered)?;
            let shared = Arc::clone(&gateway.shared);
            gateway.spawn("sessions".to_owned(), move || keep_sessions(&shared))?;
        }
        for (thread, worker) in workers.into_iter().enumerate() {
            gateway.spawn(format!("gateway-{thread}"), move || worker.run())?;
        }
        gateway.spawn("downlink".to_owned(), move || downlink.run())?;
        let interval = gateway.shared.options.sys_interval;
        if !interval.is_zero() {
            let sys = Sys::new(Arc::clone(&gateway.shared));
            gateway.spawn("sys".to_owned(), move || sys.run(interval))?;
        }
        gateway.spawn("acceptor".to_owned(), move || accepting.run())?;
        Ok(gateway)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let body = move || {
            // A panic is a broken invariant of ours. A process that goes on without one of its threads would
            // hold connections that nobody serves, so it stops, and the log's recovery starts clean.
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                eprintln!("a thread of the gateway has panicked; this is a defect, the process stops");
                std::process::abort();
            }
        };
        self.threads.push(std::thread::Builder::new().name(name).spawn(body)?);
        Ok(())
    }

    /// Host and port of the plain listener, as bound.
    pub fn address(&self) -> SocketAddr {
        self.shared.listeners.first().map_or(self.shared.options.address, |listener| listener.address)
    }

    /// Takes over a message that was retained before the start, where `loads_retained` says that some come. What devices
    /// have retained or cleared on its topic since then is newer and stays.
    pub fn restore(&self, stored: StoredMessage<'_>) {
        let shared = &self.shared;
        if let Err(why) = shared.retained.restore(stored, shared.options.clock.tick()) {
            let detail = format!("the stored message of topic {:?} is not retained: {why}", stored.topic);
            shared.events.add(EventKind::PublishRefused, "", ReasonCode::QuotaExceeded, detail);
        }
    }

    /// All of them have come: subscriptions that wait get theirs.
    pub fn retained_loaded(&self) {
        self.shared.retained.loaded();
        self.shared.inboxes.iter().for_each(|inbox| inbox.post(Mail::RetainedLoaded));
    }

    /// Every listener, the plain one first.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.shared.listeners.iter().map(|listener| listener.status()).collect()
    }

    /// Reads certificates, keys, authorities and revocation lists anew; gives each TLS listener with what was wrong with
    /// its files, if anything, in which case it goes on with those it has.
    ///
    /// Connections live on, except those of clients whose certificates are good no more. Files that change are read by
    /// themselves, within seconds.
    pub fn reload(&self) -> Vec<(String, Result<(), String>)> {
        reload_all(&self.shared)
    }

    /// The sum over all threads, each of which shows its books as of its last pass, balanced.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// From reading a PUBLISH to handing its PUBACK to the socket.
    pub fn ack_latency(&self) -> AckLatency {
        let (mut since_start, mut window) = (histogram(), histogram());
        for shown in &self.shared.shown {
            let shown = shown.lock();
            // Equal bounds and digits, so nothing can be out of range.
            let _ = since_start.add(&shown.since_start);
            let _ = window.add(&shown.window);
        }
        AckLatency { since_start: latency(&since_start), window: latency(&window) }
    }

    pub fn reset_latency_window(&self) {
        self.shared.shown.iter().for_each(|shown| shown.lock().window.reset());
    }

    /// Topics that no stream, shadow or rule wants, those seen most first; at most 1,000.
    pub fn unmatched(&self) -> Vec<Unmatched> {
        self.shared.unmatched.list()
    }

    /// Whether a client of this id is connected, or has a session that waits for it.
    pub fn connected(&self, client_id: &str) -> bool {
        self.shared.registry.knows(client_id)
    }

    /// How the client's last connection ended, and when, in milliseconds since the Unix epoch; of the 65,536 clients that
    /// went last, about.
    pub fn last_close(&self, client_id: &str) -> Option<(Close, u64)> {
        self.shared.closes.last(client_id)
    }

    /// What happened since the last call, oldest first. Events lost at the bound are counted in `events_lost`.
    pub fn events(&self) -> Vec<Event> {
        self.shared.events.take()
    }

    /// Accepts and reads nothing more, acknowledges what becomes durable within `drain`, says goodbye (DISCONNECT 0x8B
    /// in MQTT 5), closes all connections and ends the threads.
    pub fn stop(mut self, drain: Duration) -> Counters {
        self.end(drain);
        self.counters()
    }

    fn end(&mut self, drain: Duration) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = self.acceptor.wake();
        let deadline = Instant::now() + drain;
        self.shared.inboxes.iter().for_each(|inbox| inbox.post(Mail::Stop { deadline }));
        for thread in self.threads.drain(..) {
            // It may sleep until its interval is over.
            thread.thread().unpark();
            // The body catches panics.
            let _ = thread.join();
        }
        if self.shared.sessions.is_some() {
            // Without it the next start takes this for a crash, and publishes the wills of those who were connected.
            let downlink = Change::Downlink { offset: self.shared.downlink() };
            let _ = append(&self.shared.log, &[(0, downlink), (0, Change::Stopped)]);
        }
    }
}

fn open(options: &ListenerOptions) -> Result<(TcpListener, Listener), GatewayError> {
    let (name, address) = (options.name.clone(), options.address);
    let tls = options.tls.clone().map(|files| {
        let protocols = if options.websocket.is_some() { &HTTP_PROTOCOLS[..] } else { &MQTT_PROTOCOLS };
        TlsContext::new(files, protocols)
    });
    let tls = tls.transpose().map_err(|why| GatewayError::Certificates { name: name.clone(), why })?;
    let bound = listen(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
    let (bound, socket) = bound.map_err(|error| GatewayError::Listen { name, address, error })?;
    Ok((socket, Listener::new(options.clone(), bound, tls)))
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end(Duration::ZERO);
        }
    }
}
