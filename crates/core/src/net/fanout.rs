//! From one message to the connections that subscribed to it, on whichever thread they live.

use std::collections::HashMap;

use parking_lot::{RwLock, RwLockReadGuard};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::message::{Message, Outgoing};
use super::outbound::Manner;
use super::registry::ConnId;
use crate::mqtt::properties::{Property, PropertyId, Value};
use crate::mqtt::{QoS, SubscriptionOptions, Trie};
use crate::sessions::Target as SessionTarget;

/// One connection's subscription to one filter. Equality is that of connection and shared subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscriber {
    pub conn: ConnId,
    /// Subscription identifier; 0: none.
    identifier: u32,
    /// In the lowest byte the options of the SUBSCRIBE packet, with the granted QoS; above it the id of a durable session in
    /// the log, 0 for any other.
    meta: u64,
    /// The shared subscription that it is a member of; 0: none. See [`group`].
    group: u64,
}

/// Of the options, those that count after SUBSCRIBE.
const OPTIONS: u8 = 0x0f;
const NO_LOCAL: u64 = 0x04;
const RETAIN_AS_PUBLISHED: u64 = 0x08;
/// The client is away: other members of its shared subscription come first.
const AWAY: u64 = 0x80;
const SESSION: u64 = !0xff;

/// What tells shared subscriptions apart: a hash of share name and filter under a seed, never 0.
pub(super) fn group(shared_filter: &str, seed: u64) -> u64 {
    xxh3_64_with_seed(shared_filter.as_bytes(), seed).max(1)
}

impl Subscriber {
    /// session: the id of its durable session, or 0
    pub fn new(
        conn: ConnId,
        options: SubscriptionOptions,
        identifier: u32,
        group: u64,
        session: u64,
    ) -> Subscriber {
        Subscriber::restored(conn, options.to_byte(), identifier, group, session)
    }

    /// As it was written down; see [`SubscriptionOptions::to_byte`].
    pub fn restored(conn: ConnId, options: u8, identifier: u32, group: u64, session: u64) -> Subscriber {
        Subscriber { conn, meta: session << 8 | u64::from(options & OPTIONS), identifier, group }
    }

    /// What finds the subscription of this connection, whatever its options are.
    pub fn of(conn: ConnId, group: u64) -> Subscriber {
        Subscriber { conn, meta: 0, identifier: 0, group }
    }

    pub fn away(self, away: bool) -> Subscriber {
        let meta = if away { self.meta | AWAY } else { self.meta & !AWAY };
        Subscriber { meta, ..self }
    }

    pub fn qos(self) -> QoS {
        QoS::from_bits(self.meta as u8 & 3).unwrap_or(QoS::AtMostOnce)
    }

    /// Options of the SUBSCRIBE packet with the granted QoS, and the subscription identifier.
    pub fn granted(self) -> (u8, u32) {
        (self.meta as u8 & OPTIONS, self.identifier)
    }

    fn session(self) -> u64 {
        self.meta >> 8
    }

    /// Overlapping filters of one client: one copy, at the highest QoS (section 3.3.4).
    fn merge(&mut self, other: Subscriber) {
        let qos = self.qos().max(other.qos()) as u64;
        let retain = (self.meta | other.meta) & RETAIN_AS_PUBLISHED;
        self.meta = self.meta & SESSION | qos | retain;
    }

    fn key(&self) -> (u64, ConnId) {
        (self.group, self.conn)
    }
}

impl PartialEq for Subscriber {
    fn eq(&self, other: &Subscriber) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Subscriber {}
impl PartialOrd for Subscriber {
    fn partial_cmp(&self, other: &Subscriber) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Subscriber {
    fn cmp(&self, other: &Subscriber) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

pub(super) type Subscriptions = RwLock<Trie<Subscriber>>;

/// Reads the subscriptions with one lock for many messages. Must be released before they are changed.
pub(super) struct Reading<'a> {
    lock: &'a Subscriptions,
    guard: Option<RwLockReadGuard<'a, Trie<Subscriber>>>,
}

impl<'a> Reading<'a> {
    pub fn new(lock: &'a Subscriptions) -> Reading<'a> {
        Reading { lock, guard: None }
    }

    fn get(&mut self) -> &Trie<Subscriber> {
        let lock = self.lock;
        self.guard.get_or_insert_with(|| lock.read())
    }

    pub fn release(&mut self) {
        self.guard = None;
    }
}

/// Messages for the connections of one thread.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    bytes: Vec<u8>,
    messages: Vec<Range>,
    targets: Vec<Target>,
    /// Subscription identifiers of the targets that have some.
    identifiers: Vec<u32>,
    /// The message of the fan-out under way that was added last.
    serial: u64,
    /// Ids of messages that were refused after all.
    refused: Vec<u64>,
    /// From the downlink: the offset behind its messages; else 0.
    pub downlink: u64,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: usize,
    topic: usize,
    properties: usize,
    payload: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    message: u32,
    pub slot: u32,
    pub generation: u32,
    pub manner: Manner,
    /// Its stretch of the identifiers.
    identifiers: (u32, u32),
}

impl Deliveries {
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
        self.targets.clear();
        self.identifiers.clear();
        self.refused.clear();
        self.downlink = 0;
    }

    /// Does without the messages of these ids.
    pub fn refuse(&mut self, ids: &[u64]) {
        self.refused.extend_from_slice(ids);
    }

    /// Memory that waits in an inbox.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.targets.len() * size_of::<Target>()
    }

    /// The subscription identifiers that the target is told.
    pub fn identifiers(&self, target: &Target) -> &[u32] {
        let (start, end) = target.identifiers;
        self.identifiers.get(start as usize..end as usize).unwrap_or_default()
    }

    fn add(&mut self, serial: u64, outgoing: Outgoing<'_>, mut target: Target, identifiers: &[u32]) {
        if self.serial != serial || self.messages.is_empty() {
            self.serial = serial;
            let start = self.bytes.len();
            self.bytes.extend_from_slice(outgoing.topic.as_bytes());
            self.bytes.extend_from_slice(outgoing.properties);
            self.bytes.extend_from_slice(outgoing.payload);
            let (topic, properties) = (outgoing.topic.len(), outgoing.properties.len());
            self.messages.push(Range { start, topic, properties, payload: outgoing.payload.len() });
        }
        target.message = self.messages.len() as u32 - 1;
        let start = self.identifiers.len() as u32;
        self.identifiers.extend_from_slice(identifiers);
        target.identifiers = (start, self.identifiers.len() as u32);
        self.targets.push(target);
    }

    pub fn each(&self) -> impl Iterator<Item = (Target, Outgoing<'_>)> {
        self.targets.iter().filter_map(|target| {
            let range = self.messages.get(target.message as usize)?;
            let bytes = self.bytes.get(range.start..)?;
            let (topic, rest) = bytes.split_at_checked(range.topic)?;
            let (properties, rest) = rest.split_at_checked(range.properties)?;
            let payload = rest.get(..range.payload)?;
            if !self.refused.is_empty() && self.refused.contains(&target.manner.id) {
                return None;
            }
            // The topic was a string when it was added.
            Some((*target, Outgoing { topic: std::str::from_utf8(topic).ok()?, properties, payload }))
        })
    }
}

/// Collects what goes to each thread; memory is kept from message to message.
#[derive(Debug)]
pub(super) struct Fanout {
    /// By thread.
    pub deliveries: Vec<Deliveries>,
    /// By thread: for durable sessions, when the message is durable.
    pub later: Vec<Deliveries>,
    /// The durable sessions that wait for the message that was added last.
    pub waiting: Vec<SessionTarget>,
    /// Others than durable sessions get nothing.
    pub only_durable: bool,
    /// The id of the message under way; 0: nobody waits for it in the log.
    id: u64,
    hits: Vec<Subscriber>,
    identifiers: Vec<u32>,
    serial: u64,
    /// By shared subscription: whose turn it is.
    turns: HashMap<u64, u32>,
}

/// Shared subscriptions whose turns are remembered; beyond it all begin anew.
const MAX_TURNS: usize = 65_536;

impl Fanout {
    pub fn new(threads: usize) -> Fanout {
        Fanout {
            deliveries: (0..threads).map(|_| Deliveries::default()).collect(),
            later: (0..threads).map(|_| Deliveries::default()).collect(),
            waiting: Vec::new(),
            only_durable: false,
            id: 0,
            hits: Vec::new(),
            identifiers: Vec::new(),
            serial: 0,
            turns: HashMap::new(),
        }
    }

    /// Adds a live message for everyone who subscribed to its topic.
    ///
    /// from: the publisher, for No Local
    /// id:   under which durable sessions wait for it: they are in `waiting` then, and get it `later`; 0: they get it at
    ///       once, and see to it themselves
    pub fn add(
        &mut self,
        subscriptions: &mut Reading<'_>,
        outgoing: Outgoing<'_>,
        qos: QoS,
        retain: bool,
        from: Option<ConnId>,
        id: u64,
    ) {
        self.begin(id);
        let mut hits = std::mem::take(&mut self.hits);
        hits.clear();
        let filters = subscriptions.get().matches(outgoing.topic, |subscriber| hits.push(*subscriber));
        if filters > 1 {
            // By shared subscription, none first, then by connection.
            hits.sort_unstable();
        }
        self.serial += 1;
        let mut at = 0;
        while let Some(&hit) = hits.get(at) {
            let rest = &hits[at..];
            if hit.group != 0 {
                let members = rest.iter().take_while(|other| other.group == hit.group).count();
                let chosen = self.choose(&rest[..members]);
                self.put(chosen, &[chosen.identifier], outgoing, qos, retain);
                at += members;
                continue;
            }
            let copies = rest.iter().take_while(|other| **other == hit).count();
            let mut merged: Option<Subscriber> = None;
            let mut identifiers = std::mem::take(&mut self.identifiers);
            identifiers.clear();
            for copy in &rest[..copies] {
                if copy.meta & NO_LOCAL != 0 && from == Some(copy.conn) {
                    continue;
                }
                merged.get_or_insert(*copy).merge(*copy);
                identifiers.push(copy.identifier);
            }
            if let Some(merged) = merged {
                self.put(merged, &identifiers, outgoing, qos, retain);
            }
            self.identifiers = identifiers;
            at += copies;
        }
        self.hits = hits;
    }

    fn begin(&mut self, id: u64) {
        self.id = id;
        self.waiting.clear();
    }

    /// Adds a message that a member of a shared subscription has left unacknowledged for another one of its members.
    /// For `id` see `add`.
    pub fn add_again(
        &mut self,
        subscriptions: &mut Reading<'_>,
        message: &Message,
        tick: u32,
        but: ConnId,
        id: u64,
    ) {
        self.begin(id);
        let mut members = Vec::new();
        subscriptions.get().matches(message.outgoing().topic, |subscriber| {
            if subscriber.group == message.group && subscriber.conn != but {
                members.push(*subscriber);
            }
        });
        if members.is_empty() {
            return;
        }
        self.serial += 1;
        let chosen = self.choose(&members);
        message.send_at(tick, |outgoing| self.put(chosen, &[], outgoing, message.qos, message.retain));
    }

    /// The member whose turn it is, of those that are there if some are.
    fn choose(&mut self, members: &[Subscriber]) -> Subscriber {
        let present = members.iter().filter(|member| member.meta & AWAY == 0).count();
        if self.turns.len() >= MAX_TURNS {
            self.turns.clear();
        }
        let turn = self.turns.entry(members[0].group).or_default();
        *turn = turn.wrapping_add(1);
        if present == 0 {
            return members[*turn as usize % members.len()];
        }
        let wanted = *turn as usize % present;
        let mut there = members.iter().filter(|member| member.meta & AWAY == 0);
        *there.nth(wanted).unwrap_or(&members[0])
    }

    fn put(&mut self, hit: Subscriber, identifiers: &[u32], outgoing: Outgoing<'_>, qos: QoS, retain: bool) {
        let identifiers =
            if identifiers.iter().all(|identifier| *identifier == 0) { &[] } else { identifiers };
        let (session, granted) = (hit.session(), hit.qos().min(qos));
        // A live message carries the retain flag only to those who asked for it (section 3.3.1.3).
        let retain = retain && hit.meta & RETAIN_AS_PUBLISHED != 0;
        let waits = session != 0 && self.id != 0 && granted != QoS::AtMostOnce;
        // Who is also a member of a shared subscription may get a second copy, which waits for it in memory alone.
        let first = waits && (hit.group == 0 || self.waiting.iter().all(|each| each.session != session));
        if first {
            let (qos, group, identifiers) = (granted as u8, hit.group, identifiers.to_vec());
            self.waiting.push(SessionTarget { session, qos, retain, group, identifiers });
        }
        if self.only_durable && (session == 0 || granted == QoS::AtMostOnce) {
            return;
        }
        let to = if waits { &mut self.later } else { &mut self.deliveries };
        let Some(deliveries) = to.get_mut(usize::from(hit.conn.thread)) else { return };
        let target = Target {
            message: 0,
            slot: hit.conn.slot,
            generation: hit.conn.generation,
            manner: Manner { qos: granted, retain, group: hit.group, id: if first { self.id } else { 0 } },
            identifiers: (0, 0),
        };
        deliveries.add(self.serial, outgoing, target, identifiers);
    }
}

/// A message's properties with the identifiers of the subscriptions that it comes by (section 3.3.2.3.8).
pub(super) fn with_identifiers(properties: &[u8], identifiers: &[u32], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(properties);
    for &identifier in identifiers.iter().filter(|identifier| **identifier != 0) {
        let value = Value::Variable(identifier);
        Property { id: PropertyId::SubscriptionIdentifier, value }.put(out);
    }
}
