//! Sessions of an earlier process: each becomes what it would be if its client had gone away in this one.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::access::Access;
use super::clock::{now_us, ticks};
use super::connection::{Connection, State, Subscribed};
use super::events::EventKind;
use super::fanout::{Subscriber, with_identifiers};
use super::gateway::GatewayError;
use super::lane::Shared;
use super::lifecycle;
use super::message::{Message, Outgoing, aged, with_expiry};
use super::on_subscribe::unshared;
use super::session::{Session, Testament};
use super::worker::Worker;
use crate::log::{Log, LogError};
use crate::mqtt::{QoS, ReasonCode, Version};
use crate::rows::{Cell, Rows};
use crate::schema::SchemaRef;
use crate::sessions::{
    Change, Queued, Recovered, SessionsError, Step, Stored, StoredMessage, StoredSubscription, StoredWill,
    sessions_schema,
};

/// Rows of one commit at a start.
const APPENDED: usize = 65_536;
/// How often it is looked whether a snapshot is due, and how long after one that failed.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Sessions whose subscriptions are added under one lock.
const BATCH: usize = 4096;

/// Takes sessions back on one thread.
pub(super) struct Restore<'a> {
    pub recovered: &'a Recovered,
    pub now_us: i64,
    /// The server before this one had stopped in order.
    pub stopped: bool,
    subscriptions: Vec<(u32, StoredSubscription)>,
    /// What the log does not know yet.
    pub changes: Vec<(u64, Change<'static>)>,
}

impl<'a> Restore<'a> {
    pub fn new(recovered: &'a Recovered, now_us: i64) -> Restore<'a> {
        let (stopped, subscriptions, changes) = (recovered.stopped(), Vec::new(), Vec::new());
        Restore { recovered, now_us, stopped, subscriptions, changes }
    }

    /// Sessions of one part of the snapshot.
    pub fn part(&mut self, worker: &mut Worker, part: usize, parts: usize) -> Result<(), SessionsError> {
        let recovered = self.recovered;
        recovered.part(part, parts, |stored| self.session(worker, stored))?;
        self.subscribe(worker);
        Ok(())
    }

    /// Sessions that the snapshot does not have.
    pub fn rest(&mut self, worker: &mut Worker) {
        self.recovered.rest().for_each(|stored| self.session(worker, stored));
        self.subscribe(worker);
    }

    fn session(&mut self, worker: &mut Worker, stored: Stored) {
        let shared = Arc::clone(&worker.lane.shared);
        let number = worker.next_number();
        let tick = worker.lane.tick;
        let slot = worker.conns.vacant_key() as u32;
        let id = worker.lane.id(slot, number);
        if shared.registry.claim(&stored.client_id, id).is_err() {
            let detail = "two sessions of one client identifier were stored; one of them has ended";
            let code = ReasonCode::ImplementationSpecificError;
            shared.events.add(EventKind::SessionNotKept, &stored.client_id, code, detail);
            self.changes.push((stored.id, Change::End));
            return;
        }
        let mut conn = Connection::parked(number, tick);
        conn.state = State::Parked;
        conn.version = if stored.version == Version::V5 as u8 { Version::V5 } else { Version::V311 };
        conn.access = stored.owner.map(|owner| Box::new(Access::Away(Box::new(owner))));
        let will = stored.will.filter(|_| stored.closed_us.is_some() || !self.stopped);
        let waited_s = stored.closed_us.map_or(0, |closed_us| seconds(self.now_us - closed_us));
        conn.session = Some(Box::new(Session {
            expiry_s: stored.expiry_s,
            durable: stored.id,
            // One that was to end with its connection has ended.
            waited: ticks(waited_s).max(1),
            will: will.map(|will| Box::new(testament(&will, tick))),
            incoming: stored.incoming.into_iter().collect(),
            ..Session::default()
        }));
        if !stored.queue.is_empty() {
            self.queue(&mut conn, stored.id, &stored.queue, worker);
        }
        conn.client_id = stored.client_id;
        worker.conns.insert(conn);
        shared.parked.fetch_add(1, Ordering::Relaxed);
        worker.set_timer(slot);
        self.subscriptions.extend(stored.subscriptions.into_iter().map(|each| (slot, each)));
        if self.subscriptions.len() >= BATCH {
            self.subscribe(worker);
        }
    }

    fn queue<'q>(
        &mut self,
        conn: &mut Connection,
        session: u64,
        queue: impl IntoIterator<Item = &'q Queued>,
        worker: &mut Worker,
    ) {
        let total = Arc::clone(&worker.lane.shared.queued);
        let tick = worker.lane.tick;
        let out = conn.out(&mut worker.lane.pool);
        for Queued { message: id, step, packet_id, target } in queue {
            if *step == Step::Released {
                out.restore_sent(*packet_id, *id, None, &total);
                continue;
            }
            let message = self.recovered.message(*id);
            let waits = *step == Step::Waits;
            let message =
                message.and_then(|stored| message_of(stored, self.now_us, tick, !waits, &target.identifiers));
            let Some(mut message) = message else {
                // It has expired.
                self.changes.push((session, Change::Done { message: *id }));
                continue;
            };
            message.qos = qos_of(target.qos);
            (message.retain, message.group, message.id) = (target.retain, target.group, *id);
            match waits {
                true => out.restore_queued(message, &total),
                false => out.restore_sent(*packet_id, *id, Some(message), &total),
            }
        }
        out.restored();
    }

    /// Puts the subscriptions into the trie.
    fn subscribe(&mut self, worker: &mut Worker) {
        let shared = Arc::clone(&worker.lane.shared);
        let mut trie = shared.subscriptions.write();
        for (slot, StoredSubscription { options, identifier, filter }) in self.subscriptions.drain(..) {
            let Some(conn) = worker.conns.get_mut(slot as usize) else { continue };
            let id = worker.lane.id(slot, conn.generation);
            let (plain, group) = unshared(&filter, shared.group_seed);
            let subscriber = Subscriber::restored(id, options, identifier, group, conn.durable()).away(true);
            let Ok((node, replaced)) = trie.insert(plain, subscriber) else { continue };
            if replaced.is_none() {
                conn.subscriptions.push(Subscribed { node, group });
                worker.lane.counters.subscriptions += 1;
            }
            if lifecycle::concerns(plain) {
                shared.lifecycle_wanted.store(true, Ordering::Relaxed);
            }
        }
        shared.subscribed.store(trie.len(), Ordering::Relaxed);
    }
}

fn seconds(us: i64) -> u32 {
    u32::try_from(us.max(0) / 1_000_000).unwrap_or(u32::MAX)
}

fn qos_of(bits: u8) -> QoS {
    QoS::from_bits(bits).unwrap_or(QoS::ExactlyOnce)
}

fn testament(will: &StoredWill, tick: u32) -> Testament {
    let StoredMessage { qos, topic, properties, payload, .. } = &will.message;
    let outgoing = Outgoing { topic, properties, payload };
    Testament { message: Message::new(outgoing, qos_of(*qos), will.retain, tick), delay_s: will.delay_s }
}

/// The message as it comes to a session; none where it has expired and was not sent before.
fn message_of(
    stored: &StoredMessage,
    now_us: i64,
    tick: u32,
    sent: bool,
    identifiers: &[u32],
) -> Option<Message> {
    let waited_s = seconds(now_us - stored.ts);
    let properties = match aged(&stored.properties, waited_s) {
        Some(properties) => properties.into_owned(),
        None if sent => with_expiry(&stored.properties, 0),
        None => return None,
    };
    let mut all = Vec::new();
    with_identifiers(&properties, identifiers, &mut all);
    let outgoing = Outgoing { topic: &stored.topic, properties: &all, payload: &stored.payload };
    Some(Message::new(outgoing, QoS::AtLeastOnce, false, tick))
}

/// Takes all sessions back, one thread for each event loop, and notes the start.
pub(super) fn restore_all(
    shared: &Arc<Shared>,
    workers: &mut [Worker],
    recovered: &Recovered,
) -> Result<(), GatewayError> {
    let (now_us, parts) = (now_us(), workers.len());
    shared.subscriptions.write().reserve(recovered.len());
    let mut changes = vec![(0, Change::Started { epoch: shared.log.epoch() })];
    let taken: Vec<Result<_, SessionsError>> = std::thread::scope(|scope| {
        let threads = workers.iter_mut().enumerate().map(|(part, worker)| {
            scope.spawn(move || -> Result<Vec<(u64, Change<'static>)>, SessionsError> {
                let mut restore = Restore::new(recovered, now_us);
                restore.part(worker, part, parts)?;
                Ok(restore.changes)
            })
        });
        let threads: Vec<_> = threads.collect();
        // A panic of one is a panic of all.
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    for taken in taken {
        changes.extend(taken?);
    }
    if let Some(worker) = workers.first_mut() {
        let mut restore = Restore::new(recovered, now_us);
        restore.rest(worker);
        changes.extend(restore.changes);
    }
    workers.iter_mut().for_each(|worker| worker.lane.show());
    match append(&shared.log, &changes) {
        // The next start says the same again, and that is soon enough.
        Err(error) if error.is_full() => {
            let detail = format!("the start is not noted: {error}");
            shared.events.add(EventKind::LogFailed, "", ReasonCode::QuotaExceeded, detail);
            Ok(())
        }
        result => result.map_err(|error| GatewayError::Sessions(error.into())),
    }
}

/// Adds changes to the log; they are durable when this returns.
pub(super) fn append(log: &Log, changes: &[(u64, Change<'_>)]) -> Result<(), LogError> {
    for changes in changes.chunks(APPENDED) {
        let mut rows = Rows::new(SchemaRef::new(sessions_schema()));
        let mut bytes = Vec::new();
        for (session, change) in changes {
            bytes.clear();
            change.put(&mut bytes);
            let cells = [Cell::Timestamp(now_us()), Cell::Bigint(*session as i64), Cell::Bytes(&bytes)];
            rows.push(cells).map_err(|error| LogError::Invalid(error.to_string()))?;
        }
        log.append(&[&rows])?;
    }
    Ok(())
}

/// Writes snapshots when they are due, until the gateway stops.
pub(super) fn keep_sessions(shared: &Shared) {
    let Some(sessions) = &shared.sessions else { return };
    let mut pause = LOOK;
    while !shared.stopping.load(Ordering::SeqCst) {
        std::thread::park_timeout(pause);
        pause = LOOK;
        if !shared.stopping.load(Ordering::SeqCst)
            && sessions.store.is_due()
            && let Err(error) = sessions.store.compact()
        {
            let detail = format!("the changes of sessions stay in the log: {error}");
            shared.events.add(EventKind::LogFailed, "", ReasonCode::UnspecifiedError, detail);
            pause = LOOK_AGAIN;
        }
    }
}
