//! Changes of durable sessions whose commit has failed are said again, as things stand by then.
//!
//! Memory is ahead of the log after such a commit: a session has a subscription that a restart would not find, or has
//! completed a packet id that a restart would bring back. So it is kept what the lost rows were about, and before anything
//! more is read a turn says how that stands in memory. This includes what turns in between have changed, so it need
//! not come in their order, and saying it once more does no harm. If that turn fails too, its rows are lost in the same way.
//!
//! Messages and the packet ids that came with them are not said again: their clients were told that they are not stored. Wills are
//! (`wills`): nobody could be told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::connection::{Connection, State};
use super::fanout::Subscriber;
use super::lane::Lane;
use super::on_subscribe::unshared;
use super::worker::Worker;
use crate::rows::{Cell, Rows};
use crate::sessions::{Change, Step};

/// What lost rows were about, by session. It is bounded as the sessions are: of one that has ended there is one row.
#[derive(Debug, Default)]
pub(super) struct Unsaid {
    sessions: BTreeMap<u64, BTreeSet<About>>,
    /// The tick at which it was said again last.
    tick: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    /// Whether there is a session, whose, with what will, and whether its client is there.
    Standing,
    /// The subscription to this filter.
    Filter(Box<str>),
    /// How far this message to the client has come.
    Message(u64),
    /// Whether a QoS 2 message of the client is under way under this id.
    PacketId(u16),
}

impl About {
    fn of(change: &Change<'_>) -> Option<About> {
        match change {
            Change::Open(_) | Change::Close { .. } | Change::End | Change::WillDone => Some(About::Standing),
            Change::Subscribe(subscription) => Some(About::Filter(subscription.filter.clone())),
            Change::Unsubscribe(filter) => Some(About::Filter((*filter).into())),
            Change::Sent { message, .. } | Change::Released { message } | Change::Done { message } => {
                Some(About::Message(*message))
            }
            Change::Received(packet_id) | Change::Completed(packet_id) => Some(About::PacketId(*packet_id)),
            Change::Message(..) | Change::Started { .. } | Change::Stopped | Change::Downlink { .. } => None,
        }
    }
}

impl Unsaid {
    /// These changes are not in the log.
    pub fn add(&mut self, changes: &Rows) {
        for row in 0..changes.len() {
            let mut cells = changes.cells(row).skip(1);
            let (Some(Cell::Bigint(session)), Some(Cell::Bytes(change))) = (cells.next(), cells.next())
            else {
                continue;
            };
            // It was put by this process.
            if let Some(about) = Change::parse(change).ok().as_ref().and_then(About::of) {
                self.sessions.entry(session as u64).or_default().insert(about);
            }
        }
    }
}

impl Worker {
    /// Stages how things stand that lost rows were about: before something is read that may rest on them, else at most
    /// once a tick, for a disk that goes on failing.
    pub(super) fn say_again(&mut self) {
        let unsaid = &mut self.lane.unsaid;
        if (unsaid.sessions.is_empty() && self.lane.wills.is_empty()) || self.lane.stalled {
            return;
        }
        let reads = !self.ready.is_empty() || !self.behind.is_empty() || self.lane.staging.has_rows();
        if !reads && unsaid.tick == self.lane.tick {
            return;
        }
        unsaid.tick = self.lane.tick;
        // Before their sessions say that they have no will any more.
        self.lane.publish_wills_again();
        if !self.lane.wills.is_empty() {
            return;
        }
        let unsaid = &self.lane.unsaid;
        let durable = self.conns.iter().map(|(slot, conn)| (conn.durable(), slot as u32));
        let slots: HashMap<u64, u32> =
            durable.filter(|(session, _)| unsaid.sessions.contains_key(session)).collect();
        while self.lane.staging.acks.bytes < self.lane.shared.options.turn_bytes
            && let Some((session, abouts)) = self.lane.unsaid.sessions.pop_first()
        {
            let slot = slots.get(&session).copied();
            match slot.and_then(|slot| Some((slot, self.conns.get(slot as usize)?))) {
                Some((slot, conn)) => abouts.iter().for_each(|about| self.lane.state(conn, slot, about)),
                None => self.lane.staging.session(session, &Change::End),
            }
        }
    }
}

impl Lane {
    /// Stages how this stands in a durable session.
    fn state(&mut self, conn: &Connection, slot: u32, about: &About) {
        let session = conn.durable();
        match about {
            About::Standing => {
                let epoch = self.shared.log.epoch();
                self.staging.opened(conn, epoch);
                if let Some(session) = conn.session.as_ref().filter(|_| conn.state == State::Parked) {
                    self.staging.closed(session);
                }
            }
            About::Filter(filter) => {
                let (plain, group) = unshared(filter, self.shared.group_seed);
                let subscriber = Subscriber::of(self.id(slot, conn.generation), group);
                let trie = self.shared.subscriptions.read();
                let held = trie.find(plain).and_then(|node| trie.value_at(node, &subscriber)).copied();
                drop(trie);
                match held.map(Subscriber::granted) {
                    Some((options, identifier)) => {
                        self.staging.subscribed(session, filter, options, identifier);
                    }
                    None => self.staging.session(session, &Change::Unsubscribe(filter)),
                }
            }
            About::Message(id) => {
                let (message, packet) = (*id, conn.out.as_ref().and_then(|out| out.step_of(*id)));
                let Some((step, packet_id)) = packet else {
                    return self.staging.session(session, &Change::Done { message });
                };
                if step != Step::Waits {
                    self.staging.session(session, &Change::Sent { message, packet_id });
                }
                if step == Step::Released {
                    self.staging.session(session, &Change::Released { message });
                }
            }
            About::PacketId(packet_id) => {
                // One that is under way again has a row of its own.
                if !conn.session.as_ref().is_some_and(|session| session.incoming.contains(packet_id)) {
                    self.staging.session(session, &Change::Completed(*packet_id));
                }
            }
        }
    }
}
