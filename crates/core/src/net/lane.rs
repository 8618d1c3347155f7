//! What an event loop has beside its connections: staging, turns in flight, counters, scratch memory.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::binding::{Bindings, Held};
use super::closes::Closes;
use super::connection::Connection;
use super::counters::{Counters, Shown};
use super::events::{EventKind, Events};
use super::fanout::{Fanout, Subscriptions};
use super::flapping::Flapping;
use super::inbox::{Inbox, Mail};
use super::journal::MessageIds;
use super::lifecycle::Lifecycle;
use super::listener::Listener;
use super::options::GatewayOptions;
use super::outbound::{Delivery, Pool};
use super::pressure::{Level, Pressure};
use super::rebind::Rebind;
use super::registry::{ConnId, Registry};
use super::replay::Replays;
use super::retained::Retained;
use super::sparkplug::EdgeNodes;
use super::sys::SysValues;
use super::trace::Traces;
use super::turn::{Acks, Staging};
use super::unmatched::UnmatchedTopics;
use super::unsaid::Unsaid;
use super::wills::Wills;
use crate::decode::{Decoded, Plain};
use crate::log::{Log, LogError};
use crate::mqtt::properties::{self, Property, PropertyId, Value};
use crate::mqtt::{PacketError, ReasonCode};
use crate::sessions::SessionStore;

/// What all threads share.
pub(super) struct Shared {
    pub options: GatewayOptions,
    pub log: Log,
    /// When the ticks of all threads begin; see `pace`.
    pub started: Instant,
    /// Loops that do not wait.
    pub working: AtomicUsize,
    /// The newest; each thread has its own.
    pub bindings: parking_lot::Mutex<Arc<Bindings>>,
    pub edge_nodes: EdgeNodes,
    pub subscriptions: Subscriptions,
    /// Number of subscriptions; while it is 0 nobody looks for subscribers.
    pub subscribed: AtomicUsize,
    pub retained: Retained,
    pub registry: Registry,
    pub flapping: Flapping,
    pub events: Events,
    pub unmatched: UnmatchedTopics,
    pub closes: Closes,
    pub traces: Traces,
    pub sys: SysValues,
    /// Somebody has subscribed to lifecycle events since the start.
    pub lifecycle_wanted: AtomicBool,
    pub listeners: Vec<Arc<Listener>>,
    pub inboxes: Vec<Inbox>,
    /// By thread, and one more for the acceptor.
    pub shown: Vec<parking_lot::Mutex<Shown>>,
    /// The acceptor and the downlink end when it is set.
    pub stopping: AtomicBool,
    /// Sessions whose clients are away.
    pub parked: AtomicUsize,
    /// Of the hashes that tell shared subscriptions apart.
    pub group_seed: u64,
    /// Offset of `_downlink` behind the messages that were posted to the loops that have somebody for them.
    pub downlink_read: AtomicU64,
    /// Bytes of messages that wait for clients, over all of them.
    pub queued: Arc<AtomicUsize>,
    /// Where sessions outlive the process.
    pub sessions: Option<Durable>,
}

/// Sessions that outlive the process.
#[derive(Debug)]
pub(super) struct Durable {
    pub store: SessionStore,
    pub epoch: u32,
    /// Of the next session.
    pub next_id: AtomicU64,
}

impl Shared {
    /// The sum over all threads, each of which shows its books as of its last pass, balanced.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for shown in &self.shown {
            sum += &shown.lock().counters;
        }
        let (retained, retained_bytes) = self.retained.size();
        sum.sessions = self.parked.load(Ordering::Relaxed) as u64;
        sum.retained = retained as u64;
        sum.retained_bytes = retained_bytes as u64;
        sum.events_lost = self.events.lost();
        sum.queued_bytes = self.queued.load(Ordering::Relaxed) as u64;
        sum.session_snapshots = self.sessions.as_ref().map_or(0, |sessions| sessions.store.snapshots());
        sum
    }

    /// Counters of the acceptor, behind those of the threads.
    pub fn accepting(&self) -> Option<&parking_lot::Mutex<Shown>> {
        self.shown.get(self.inboxes.len())
    }
}

/// Why the gateway ends a connection.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub reason: ReasonCode,
    pub why: Cow<'static, str>,
}

impl End {
    pub fn new(reason: ReasonCode, why: impl Into<Cow<'static, str>>) -> End {
        End { reason, why: why.into() }
    }

    pub fn protocol(why: &'static str) -> End {
        End::new(ReasonCode::ProtocolError, why)
    }
}

impl From<PacketError> for End {
    fn from(error: PacketError) -> End {
        End::new(error.reason, error.what)
    }
}

/// How a connection goes on after a packet.
#[derive(Clone, Debug)]
pub(super) enum Flow {
    On,
    /// The client has said goodbye; false: its will is to be published all the same.
    Bye(bool),
    /// The client id belongs to this connection or session, whose thread goes on with the CONNECT.
    Join(ConnId),
    /// The CONNECT waits for somebody to say who the client is.
    Asked,
    /// What is left waits until the client's rate allows it.
    Paused,
    /// A CONNACK with an error is written; the connection ends without DISCONNECT.
    Refused,
}

/// A turn that the log has, or that waits behind one.
#[derive(Debug)]
pub(super) struct Flight {
    pub turn: u64,
    pub acks: Acks,
    pub result: Option<Result<(), LogError>>,
}

pub(super) struct Lane {
    pub thread: u16,
    pub shared: Arc<Shared>,
    pub bindings: Arc<Bindings>,
    /// Bindings that wait for the end of the turn; see `rebind`.
    pub next: Option<Rebind>,
    pub staging: Staging,
    pub flights: VecDeque<Flight>,
    pub flying_bytes: usize,
    pub flying_messages: u64,
    /// The log's queue was full; the turn stays staged.
    pub stalled: bool,
    pub spare: Vec<Acks>,
    /// Changes of sessions that the log has not taken.
    pub unsaid: Unsaid,
    pub wills: Wills,
    pub fanout: Fanout,
    pub plain: Plain,
    pub decoded: Decoded,
    /// Encoded properties of the message at hand, where they are not those that came.
    pub properties: Vec<u8>,
    pub streams: Vec<u16>,
    /// Name of an edge node.
    pub edge_node: String,
    /// By stream, for those whose fields are inferred.
    pub held: Vec<Option<Held>>,
    pub counters: Counters,
    pub pressure: Pressure,
    /// (latency in µs, messages) of what was acknowledged since counters were shown.
    pub latencies: Vec<(u64, u64)>,
    pub pool: Pool,
    pub lifecycle: Lifecycle,
    /// Retained messages that subscriptions are still to be sent.
    pub replays: Replays,
    /// Connections with something to write.
    pub dirty: Vec<u32>,
    /// Tick at which a slow reader was named last.
    pub told_slow: u32,
    pub tick: u32,
    /// Time of arrival for what is being read, µs since the Unix epoch.
    pub received_at_us: i64,
}

impl Lane {
    pub fn new(thread: u16, shared: Arc<Shared>) -> Lane {
        let bindings = Arc::clone(&shared.bindings.lock());
        let epoch = shared.sessions.as_ref().map(|sessions| sessions.epoch);
        let ids = MessageIds::new(epoch, thread, shared.inboxes.len());
        Lane {
            thread,
            staging: Staging::new(&bindings, shared.log.partitions(), ids),
            held: vec![None; bindings.streams.len()],
            bindings,
            next: None,
            flights: VecDeque::new(),
            flying_bytes: 0,
            flying_messages: 0,
            stalled: false,
            spare: Vec::new(),
            unsaid: Unsaid::default(),
            wills: Wills::default(),
            fanout: Fanout::new(shared.inboxes.len()),
            plain: Plain::default(),
            decoded: Decoded::new(),
            properties: Vec::new(),
            streams: Vec::new(),
            edge_node: String::new(),
            counters: Counters::default(),
            pressure: Pressure::new(shared.started, shared.options.shed_after),
            latencies: Vec::new(),
            pool: Pool::new(),
            lifecycle: Lifecycle::default(),
            replays: Replays::default(),
            dirty: Vec::new(),
            told_slow: 0,
            tick: shared.options.clock.tick(),
            received_at_us: 0,
            shared,
        }
    }

    pub fn id(&self, slot: u32, generation: u32) -> ConnId {
        ConnId { thread: self.thread, slot, generation }
    }

    /// slot: of the connection that is delivered to
    pub fn delivery(&mut self, slot: u32) -> Delivery<'_> {
        Delivery {
            pool: &mut self.pool,
            counters: &mut self.counters,
            options: &self.shared.options,
            tick: self.tick,
            staging: &mut self.staging,
            slot,
            queued: &self.shared.queued,
        }
    }

    /// Puts the connection on the list of those that are flushed when the pass ends.
    #[inline]
    pub fn touch(&mut self, conn: &mut Connection, slot: u32) {
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Gives the staged turn to the log, which `begin` wakes. False: the log's queue is full and the turn stays.
    pub fn submit(&mut self) -> bool {
        self.staging.close_run();
        self.stalled = false;
        if self.staging.is_empty() {
            return true;
        }
        let turn = self.staging.turn;
        let result = loop {
            if !self.staging.has_rows() {
                break Some(Ok(()));
            }
            let (shared, thread) = (Arc::clone(&self.shared), usize::from(self.thread));
            let done = Box::new(move |result: Result<_, LogError>| {
                let result = result.map(|_| ());
                if let Some(inbox) = shared.inboxes.get(thread) {
                    inbox.post(Mail::Committed { turn, result });
                }
            });
            match self.shared.log.queue(&self.staging.parts(), done) {
                Ok(()) => break None,
                Err(LogError::Busy { .. }) => {
                    self.stalled = true;
                    return false;
                }
                // One device's keys are no reason to refuse another's readings.
                Err(LogError::KeyRefused { refused, why, .. }) if !refused.is_empty() => {
                    let why = format!("the reading's key cannot be added: {why}");
                    self.staging.refuse(&refused, ReasonCode::QuotaExceeded, &why);
                }
                Err(error) => break Some(Err(error)),
            }
        };
        self.staging.turn += 1;
        let mut acks = self.staging.submitted(self.spare.pop().unwrap_or_default());
        if self.fanout.later.iter().any(|later| !later.is_empty()) {
            acks.later.extend(self.fanout.later.iter_mut().map(std::mem::take));
        }
        if let Some(sessions) = self.shared.sessions.as_ref().filter(|_| acks.session_bytes > 0) {
            sessions.store.grown(acks.session_bytes);
        }
        self.flying_bytes += acks.bytes;
        self.flying_messages += acks.counted();
        self.flights.push_back(Flight { turn, acks, result });
        true
    }

    /// Lets the commit begin, unless another thread is about to add its turn to it.
    pub fn begin(&self) {
        let inboxes = &self.shared.inboxes;
        match inboxes.get(usize::from(self.thread)).and_then(Inbox::passed) {
            Some(tick) if inboxes.iter().any(|inbox| inbox.owes(tick)) => {}
            Some(_) => self.shared.log.hurry(1),
            None => self.shared.log.begin(),
        }
    }

    pub fn committed(&mut self, turn: u64, result: Result<(), LogError>) {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.turn == turn) {
            flight.result = Some(result);
        }
    }

    /// The oldest turn, its number and acknowledgements, if the log is through with it.
    pub fn settled(&mut self) -> Option<(u64, Acks, Result<(), LogError>)> {
        self.flights.front()?.result.as_ref()?;
        let flight = self.flights.pop_front()?;
        self.flying_bytes -= flight.acks.bytes;
        self.flying_messages -= flight.acks.counted();
        Some((flight.turn, flight.acks, flight.result?))
    }

    /// Messages of the downlink before this offset have been delivered here: those that wait are in the turn under way.
    pub fn took_downlink(&mut self, offset: u64) {
        if !self.staging.is_empty() {
            self.staging.acks.downlink = offset;
        } else if let Some(flight) = self.flights.back_mut() {
            flight.acks.downlink = offset;
        } else {
            self.downlink_is_durable(offset);
        }
    }

    pub fn downlink_is_durable(&self, offset: u64) {
        if let Some(inbox) = self.shared.inboxes.get(usize::from(self.thread)) {
            inbox.downlink_durable.fetch_max(offset, Ordering::Relaxed);
        }
    }

    /// Sends other threads what their connections get.
    pub fn dispatch(&mut self) {
        for (thread, deliveries) in self.fanout.deliveries.iter_mut().enumerate() {
            if thread != usize::from(self.thread)
                && !deliveries.is_empty()
                && let Some(inbox) = self.shared.inboxes.get(thread)
            {
                inbox.post(Mail::Deliver(Box::new(std::mem::take(deliveries))));
            }
        }
    }

    /// Notes whether the pass leaves sockets unread, and says so when that becomes or ceases to be a state.
    pub fn note_pressure(&mut self, unread: bool) {
        self.counters.throttled += u64::from(unread);
        if !self.pressure.pass(Instant::now(), unread) {
            return;
        }
        let level = self.pressure.level;
        self.counters.unread_ms = self.pressure.unread.as_millis() as u64;
        self.counters.loops_unread = u64::from(level != Level::Flowing);
        self.counters.loops_shedding = u64::from(level == Level::Shedding);
        let detail = match level {
            Level::Flowing => "sockets are read again",
            Level::Unread => "sockets stay unread: the log or a subscriber does not keep up",
            Level::Shedding => "QoS 0 messages are dropped: sockets stayed unread for mqtt.shed_after",
        };
        let (thread, shed) = (self.thread, self.counters.shed);
        let detail = format!("event loop {thread}: {detail}; {shed} messages shed since the start");
        let reason = if level == Level::Flowing { ReasonCode::Success } else { ReasonCode::ServerBusy };
        self.shared.events.add(EventKind::Pressure, "", reason, detail);
    }

    /// Shows the counters of this pass to those who ask.
    pub fn show(&mut self) {
        self.counters.in_flight = self.flying_messages + self.staging.acks.counted();
        let Some(shown) = self.shared.shown.get(usize::from(self.thread)) else { return };
        let mut shown = shown.lock();
        shown.counters.clone_from(&self.counters);
        for (latency_us, messages) in self.latencies.drain(..) {
            shown.record(latency_us, messages);
        }
    }
}

/// Encoded properties with a reason string, or none if it would not fit or is not wanted.
///
/// without: size of the packet without it
pub(super) fn reason_properties(conn: &Connection, always: bool, without: usize, why: &str) -> Vec<u8> {
    // Long texts are cut: a reason string is for a person's eye.
    let mut end = why.len().min(256);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    // Lengths of packet, properties and string grow by some bytes.
    let size = without + end + 12;
    if why.is_empty() || !(conn.problem_information || always) || size > conn.max_packet_bytes as usize {
        return Vec::new();
    }
    properties::encode(&[Property { id: PropertyId::ReasonString, value: Value::Text(&why[..end]) }])
}

/// A text of a client as an event shows it: not as long as the client likes.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    const MOST: usize = 256;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}
