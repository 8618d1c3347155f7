//! Retained messages on their way to new subscriptions.
//!
//! A filter may match a million of them, so they go a page at a time, as the client takes them, behind live traffic.
//! While those of before the start are still being loaded, a subscription waits; what is published meanwhile reaches it
//! live, and is not sent again. Bound: one replay for each subscription.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::connection::{Connection, State};
use super::fanout::with_identifiers;
use super::lane::{Lane, Shared};
use super::message::Outgoing;
use super::outbound::Manner;
use super::worker::Worker;
use crate::mqtt::{NodeId, QoS};

/// Connections that get a page in one pass.
const PER_PASS: usize = 64;

/// What a subscription is still to be sent.
#[derive(Debug)]
pub(super) struct Replay {
    pub node: NodeId,
    pub filter: Box<str>,
    /// Granted to the subscription.
    pub qos: QoS,
    /// Subscription identifier; 0: none.
    pub identifier: u32,
    /// Serial of the newest message that was retained when it subscribed.
    pub upto: u64,
    /// The topic that was sent last.
    pub after: Option<Box<str>>,
}

/// Those of one thread, by connection.
#[derive(Debug, Default)]
pub(super) struct Replays {
    waiting: BTreeMap<u32, Waiting>,
    /// The slot whose turn it was last.
    turn: u32,
    /// Some can go on at once.
    pub ready: bool,
}

#[derive(Debug)]
struct Waiting {
    generation: u32,
    replays: Vec<Replay>,
}

enum Step {
    Done,
    /// Others have their turn first.
    Page,
    /// The client has to take what it has been sent.
    Full,
}

impl Replays {
    fn add(&mut self, slot: u32, generation: u32, replay: Replay) {
        let waiting = self.waiting.entry(slot).or_insert_with(|| Waiting { generation, replays: Vec::new() });
        if waiting.generation != generation {
            *waiting = Waiting { generation, replays: Vec::new() };
        }
        waiting.replays.retain(|other| other.node != replay.node);
        waiting.replays.push(replay);
    }

    /// The subscription is gone.
    pub fn forget(&mut self, slot: u32, node: NodeId) {
        if let Some(waiting) = self.waiting.get_mut(&slot) {
            waiting.replays.retain(|replay| replay.node != node);
        }
    }

    /// All of the connection's subscriptions are gone.
    pub fn forget_all(&mut self, slot: u32) {
        self.waiting.remove(&slot);
    }

    /// The next connection in turn, with what it waits for.
    fn next(&mut self) -> Option<(u32, Waiting)> {
        let behind = (Bound::Excluded(self.turn), Bound::Unbounded);
        let slot = self.waiting.range(behind).chain(&self.waiting).next().map(|(slot, _)| *slot)?;
        self.turn = slot;
        self.waiting.remove(&slot).map(|waiting| (slot, waiting))
    }
}

/// Sends a new subscription the first of its retained messages; the others follow.
pub(super) fn begin(lane: &mut Lane, shared: &Shared, conn: &mut Connection, slot: u32, mut replay: Replay) {
    let step = if shared.retained.is_loading() {
        Step::Full
    } else {
        advance(lane, shared, conn, slot, &mut replay)
    };
    if !matches!(step, Step::Done) {
        lane.replays.ready |= matches!(step, Step::Page);
        lane.replays.add(slot, conn.generation, replay);
    }
}

/// Sends a page, as far as the client's buffer and queue have room.
fn advance(lane: &mut Lane, shared: &Shared, conn: &mut Connection, slot: u32, replay: &mut Replay) -> Step {
    if !conn.has_room(0, &mut lane.delivery(slot)) {
        return Step::Full;
    }
    let page = shared.retained.page(&replay.filter, replay.after.as_deref(), replay.upto);
    for message in page.messages {
        let topic = message.outgoing().topic;
        if !conn.has_room(message.len(), &mut lane.delivery(slot)) {
            return Step::Full;
        }
        message.send_at(lane.tick, |outgoing| {
            let mut properties = std::mem::take(&mut lane.properties);
            with_identifiers(outgoing.properties, &[replay.identifier], &mut properties);
            let outgoing = Outgoing { properties: &properties, ..outgoing };
            let manner = Manner { qos: replay.qos.min(message.qos), retain: true, group: 0, id: 0 };
            conn.deliver(outgoing, manner, &mut lane.delivery(slot));
            lane.properties = properties;
        });
        replay.after = Some(topic.into());
    }
    match page.next {
        None => Step::Done,
        next => {
            replay.after = next;
            Step::Page
        }
    }
}

impl Worker {
    /// Goes on with what subscriptions are still to be sent.
    pub(super) fn replay(&mut self) {
        self.lane.replays.ready = false;
        if self.lane.replays.waiting.is_empty() || self.lane.shared.retained.is_loading() {
            return;
        }
        let shared = Arc::clone(&self.lane.shared);
        for _ in 0..self.lane.replays.waiting.len().min(PER_PASS) {
            let Some((slot, mut waiting)) = self.lane.replays.next() else { break };
            let conn = self.conns.get_mut(slot as usize);
            let conn = conn.filter(|conn| conn.generation == waiting.generation);
            let Some(conn) = conn.filter(|conn| matches!(conn.state, State::Up | State::Parked)) else {
                continue;
            };
            let Some(replay) = waiting.replays.first_mut() else { continue };
            match advance(&mut self.lane, &shared, conn, slot, replay) {
                Step::Done => {
                    waiting.replays.remove(0);
                    self.lane.replays.ready |= !waiting.replays.is_empty();
                }
                Step::Page => self.lane.replays.ready = true,
                Step::Full => {}
            }
            if conn.state == State::Up {
                self.lane.touch(conn, slot);
            }
            if !waiting.replays.is_empty() {
                self.lane.replays.waiting.insert(slot, waiting);
            }
        }
    }
}
