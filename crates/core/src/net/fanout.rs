//! From one message to the connections that subscribed to it, on whichever thread they live.

use parking_lot::{RwLock, RwLockReadGuard};

use super::message::Outgoing;
use super::registry::ConnId;
use crate::mqtt::{QoS, SubscriptionOptions, Trie};

/// One connection's subscription to one filter. Equality is that of the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscriber {
    pub conn: ConnId,
    /// As in the SUBSCRIBE packet, with the granted QoS.
    options: u8,
}

const NO_LOCAL: u8 = 0x04;
const RETAIN_AS_PUBLISHED: u8 = 0x08;

impl Subscriber {
    pub fn new(conn: ConnId, options: SubscriptionOptions) -> Subscriber {
        Subscriber { conn, options: options.to_byte() & 0x0f }
    }

    fn qos(self) -> u8 {
        self.options & 3
    }

    /// Overlapping filters of one client: one copy, at the highest QoS (section 3.3.4).
    fn merge(&mut self, other: Subscriber) {
        let qos = self.qos().max(other.qos());
        let no_local = self.options & other.options & NO_LOCAL;
        let retain = (self.options | other.options) & RETAIN_AS_PUBLISHED;
        self.options = qos | no_local | retain;
    }
}

impl PartialEq for Subscriber {
    fn eq(&self, other: &Subscriber) -> bool {
        self.conn == other.conn
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
        self.conn.cmp(&other.conn)
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
    /// The message of the fan-out under way that was added last.
    serial: u64,
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
    pub qos: QoS,
    pub retain: bool,
}

impl Deliveries {
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
        self.targets.clear();
    }

    /// Memory that waits in an inbox.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.targets.len() * size_of::<Target>()
    }

    fn add(&mut self, serial: u64, outgoing: Outgoing<'_>, target: Target) {
        if self.serial != serial || self.messages.is_empty() {
            self.serial = serial;
            let start = self.bytes.len();
            self.bytes.extend_from_slice(outgoing.topic.as_bytes());
            self.bytes.extend_from_slice(outgoing.properties);
            self.bytes.extend_from_slice(outgoing.payload);
            let (topic, properties) = (outgoing.topic.len(), outgoing.properties.len());
            self.messages.push(Range { start, topic, properties, payload: outgoing.payload.len() });
        }
        self.targets.push(Target { message: self.messages.len() as u32 - 1, ..target });
    }

    pub fn each(&self) -> impl Iterator<Item = (Target, Outgoing<'_>)> {
        self.targets.iter().filter_map(|target| {
            let range = self.messages.get(target.message as usize)?;
            let bytes = self.bytes.get(range.start..)?;
            let (topic, rest) = bytes.split_at_checked(range.topic)?;
            let (properties, rest) = rest.split_at_checked(range.properties)?;
            let payload = rest.get(..range.payload)?;
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
    hits: Vec<Subscriber>,
    serial: u64,
}

impl Fanout {
    pub fn new(threads: usize) -> Fanout {
        Fanout {
            deliveries: (0..threads).map(|_| Deliveries::default()).collect(),
            hits: Vec::new(),
            serial: 0,
        }
    }

    /// Adds a live message for everyone who subscribed to its topic; `from`: the publisher, for No Local.
    pub fn add(
        &mut self,
        subscriptions: &mut Reading<'_>,
        outgoing: Outgoing<'_>,
        qos: QoS,
        retain: bool,
        from: Option<ConnId>,
    ) {
        let hits = &mut self.hits;
        hits.clear();
        let filters = subscriptions.get().matches(outgoing.topic, |subscriber| hits.push(*subscriber));
        if filters > 1 {
            hits.sort_unstable();
            hits.dedup_by(|later, kept| {
                let same = later == kept;
                if same {
                    kept.merge(*later);
                }
                same
            });
        }
        self.serial += 1;
        for hit in hits.iter() {
            if hit.options & NO_LOCAL != 0 && from == Some(hit.conn) {
                continue;
            }
            let Some(deliveries) = self.deliveries.get_mut(usize::from(hit.conn.thread)) else { continue };
            let granted = QoS::from_bits(hit.qos()).unwrap_or(QoS::AtMostOnce);
            deliveries.add(
                self.serial,
                outgoing,
                Target {
                    message: 0,
                    slot: hit.conn.slot,
                    generation: hit.conn.generation,
                    qos: granted.min(qos),
                    // A live message carries the retain flag only to those who asked for it (section 3.3.1.3).
                    retain: retain && hit.options & RETAIN_AS_PUBLISHED != 0,
                },
            );
        }
    }
}
