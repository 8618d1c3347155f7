//! The rows behind a snapshot, gathered by session and laid over what the snapshot has.
//!
//! What cancels out inside the rows is dropped as it is read (a message that came and was acknowledged leaves nothing, a
//! session that ended its id), so this takes memory for what has changed, not for how often.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::change::{Change, MessageRef, Open, Target};
use super::stored::{Queued, Step, Stored, StoredMessage, StoredSubscription, StoredWill};

/// A start of the server: who was connected under a lower epoch has lost its connection here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub epoch: u32,
    pub ts: i64,
    /// The server before it had stopped in order.
    pub clean: bool,
}

/// Of the rows behind a state.
#[derive(Debug, Default)]
pub struct Fold {
    /// None: it has ended. Rows that come late find nobody.
    sessions: HashMap<u64, Option<Box<Overlay>>>,
    messages: HashMap<u64, Waiting>,
    starts: Vec<Start>,
    /// The last start is that of this epoch, and whether a `stopped` came after it.
    pub epoch: u32,
    pub stopped: bool,
    /// Messages of `_downlink` before it less one wait where they are to wait; 0: that was never said.
    pub downlink: u64,
}

/// A message of the rows and the sessions of the rows that have it.
#[derive(Debug)]
struct Waiting {
    message: StoredMessage,
    sessions: usize,
}

/// What the rows say of one session.
#[derive(Debug, Default)]
struct Overlay {
    open: Option<Opened>,
    /// Since it was opened last: when it was closed, its expiry then, and whether its will stays.
    closed: Option<(i64, u32, bool)>,
    will_done: bool,
    /// By filter; none: unsubscribed.
    subscriptions: BTreeMap<Box<str>, Option<(u8, u32)>>,
    received: Vec<u16>,
    /// Packet ids that the snapshot has.
    completed: HashSet<u16>,
    queue: std::collections::VecDeque<Queued>,
    /// Messages that the snapshot has.
    steps: HashMap<u64, (Step, Option<u16>)>,
    done: HashSet<u64>,
    /// The snapshot has this session.
    based: AtomicBool,
}

#[derive(Debug)]
struct Opened {
    epoch: u32,
    version: u8,
    expiry_s: u32,
    client_id: Box<str>,
    owner: Option<super::stored::Owner>,
    will: Option<Box<StoredWill>>,
}

impl Fold {
    /// epoch, stopped, downlink: as the snapshot has them
    pub(super) fn new(epoch: u32, stopped: bool, downlink: u64) -> Fold {
        Fold { epoch, stopped, downlink, ..Fold::default() }
    }

    /// ts: of the row, µs UTC; session: its column, 0 for changes of no session
    pub(super) fn apply(&mut self, ts: i64, session: u64, change: &Change<'_>) {
        match change {
            Change::Message(message, targets) => self.wait(ts, message, targets),
            Change::Started { epoch } => {
                let clean = std::mem::take(&mut self.stopped);
                self.epoch = *epoch;
                self.starts.push(Start { epoch: *epoch, ts, clean });
            }
            Change::Stopped => self.stopped = true,
            Change::Downlink { offset } => self.downlink = self.downlink.max(*offset + 1),
            Change::End => {
                let ended = self.sessions.insert(session, None).flatten();
                for queued in ended.into_iter().flat_map(|overlay| overlay.queue) {
                    leave(&mut self.messages, queued.message);
                }
            }
            change => {
                let left = self.overlay(session).and_then(|overlay| overlay.apply(ts, change));
                if let Some(message) = left {
                    leave(&mut self.messages, message);
                }
            }
        }
    }

    /// What the rows say of a session that has not ended.
    fn overlay(&mut self, session: u64) -> Option<&mut Overlay> {
        self.sessions.entry(session).or_insert_with(|| Some(Box::default())).as_deref_mut()
    }

    fn wait(&mut self, ts: i64, message: &MessageRef<'_>, targets: &[Target]) {
        let mut sessions = 0;
        for target in targets {
            let Some(overlay) = self.overlay(target.session) else { continue };
            let (message, step) = (message.id, Step::Waits);
            overlay.queue.push_back(Queued { message, step, packet_id: 0, target: target.clone() });
            sessions += 1;
        }
        if sessions > 0 {
            let message = StoredMessage::new(message, ts);
            self.messages.insert(message.id, Waiting { message, sessions });
        }
    }

    /// A session of the snapshot with the rows laid over it; none: it has ended.
    pub fn over(&self, base: Stored) -> Option<Stored> {
        let Some(overlay) = self.sessions.get(&base.id) else { return Some(self.settled(base)) };
        let overlay = overlay.as_ref()?;
        overlay.based.store(true, Ordering::Relaxed);
        Some(self.settled(overlay.over(base)))
    }

    /// Sessions that the snapshot does not have, once `over` has seen all that it has.
    pub fn rest(&self) -> impl Iterator<Item = Stored> + '_ {
        self.sessions.iter().filter_map(|(id, overlay)| {
            let overlay = overlay.as_ref()?;
            let open = overlay.open.as_ref().filter(|_| !overlay.based.load(Ordering::Relaxed))?;
            let empty = Stored {
                id: *id,
                epoch: open.epoch,
                closed_us: None,
                version: open.version,
                expiry_s: open.expiry_s,
                client_id: open.client_id.clone(),
                owner: None,
                will: None,
                subscriptions: Vec::new(),
                incoming: Vec::new(),
                queue: Default::default(),
            };
            Some(self.settled(overlay.over(empty)))
        })
    }

    /// Messages of the rows; those of the snapshot come beside them.
    pub fn messages(&self) -> impl Iterator<Item = &StoredMessage> {
        self.messages.values().map(|waiting| &waiting.message)
    }

    /// Who was connected when the server ended lost its connection at the start that followed.
    fn settled(&self, mut stored: Stored) -> Stored {
        if stored.closed_us.is_none()
            && let Some(start) = self.starts.iter().find(|start| start.epoch > stored.epoch)
        {
            stored.closed_us = Some(start.ts);
            if start.clean {
                stored.will = None;
            }
        }
        stored
    }
}

fn leave(messages: &mut HashMap<u64, Waiting>, message: u64) {
    if let Some(waiting) = messages.get_mut(&message) {
        waiting.sessions -= 1;
        if waiting.sessions == 0 {
            messages.remove(&message);
        }
    }
}

impl Overlay {
    /// Gives the message of the rows that the session has no more.
    fn apply(&mut self, ts: i64, change: &Change<'_>) -> Option<u64> {
        match change {
            Change::Open(open) => self.open(open),
            Change::Close { expiry_s, will } => self.closed = Some((ts, *expiry_s, *will)),
            Change::Subscribe(StoredSubscription { options, identifier, filter }) => {
                self.subscriptions.insert(filter.clone(), Some((*options, *identifier)));
            }
            Change::Unsubscribe(filter) => {
                self.subscriptions.insert((*filter).into(), None);
            }
            Change::Sent { message, packet_id } => self.step(*message, Step::Sent, Some(*packet_id)),
            Change::Released { message } => self.step(*message, Step::Released, None),
            Change::Done { message } => match self.queue.iter().position(|each| each.message == *message) {
                Some(at) => {
                    self.queue.remove(at);
                    return Some(*message);
                }
                None => {
                    self.steps.remove(message);
                    self.done.insert(*message);
                }
            },
            Change::Received(packet_id) => self.received.push(*packet_id),
            Change::Completed(packet_id) => match self.received.iter().position(|each| each == packet_id) {
                Some(at) => {
                    self.received.swap_remove(at);
                }
                None => {
                    self.completed.insert(*packet_id);
                }
            },
            Change::WillDone => self.will_done = true,
            Change::End
            | Change::Message(..)
            | Change::Started { .. }
            | Change::Stopped
            | Change::Downlink { .. } => {}
        }
        None
    }

    fn open(&mut self, open: &Open<'_>) {
        if self.open.as_ref().is_some_and(|last| last.epoch > open.epoch) {
            return;
        }
        self.open = Some(Opened {
            epoch: open.epoch,
            version: open.version,
            expiry_s: open.expiry_s,
            client_id: open.client_id.into(),
            owner: open.owner.clone(),
            will: open.will.as_ref().map(|will| Box::new(StoredWill::new(will))),
        });
        (self.closed, self.will_done) = (None, false);
    }

    fn step(&mut self, message: u64, step: Step, packet_id: Option<u16>) {
        match self.queue.iter_mut().find(|each| each.message == message) {
            Some(queued) => {
                queued.step = step;
                queued.packet_id = packet_id.unwrap_or(queued.packet_id);
            }
            None => {
                let last = self.steps.entry(message).or_insert((step, packet_id));
                *last = (step, packet_id.or(last.1));
            }
        }
    }

    fn over(&self, mut base: Stored) -> Stored {
        if let Some(open) = self.open.as_ref().filter(|open| open.epoch >= base.epoch) {
            (base.epoch, base.version, base.expiry_s) = (open.epoch, open.version, open.expiry_s);
            base.client_id.clone_from(&open.client_id);
            base.owner.clone_from(&open.owner);
            base.will.clone_from(&open.will);
            base.closed_us = None;
        }
        if let Some((ts, expiry_s, will)) = self.closed {
            (base.closed_us, base.expiry_s) = (Some(ts), expiry_s);
            if !will {
                base.will = None;
            }
        }
        if self.will_done {
            base.will = None;
        }
        if !self.subscriptions.is_empty() {
            base.subscriptions.retain(|each| !self.subscriptions.contains_key(&each.filter));
            base.subscriptions.extend(self.subscriptions.iter().filter_map(|(filter, granted)| {
                granted.map(|(options, identifier)| StoredSubscription {
                    options,
                    identifier,
                    filter: filter.clone(),
                })
            }));
        }
        base.incoming.retain(|id| !self.completed.contains(id));
        base.incoming.extend_from_slice(&self.received);
        base.queue.retain(|queued| !self.done.contains(&queued.message));
        if !self.steps.is_empty() {
            for queued in &mut base.queue {
                if let Some((step, packet_id)) = self.steps.get(&queued.message) {
                    queued.step = *step;
                    queued.packet_id = packet_id.unwrap_or(queued.packet_id);
                }
            }
        }
        base.queue.extend(self.queue.iter().cloned());
        base
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{message, open};
    use super::*;

    #[test]
    fn a_session_that_has_ended_leaves_its_id() {
        let mut fold = Fold::default();
        let subscription = || StoredSubscription { options: 1, identifier: 0, filter: "its/filter".into() };
        let rows = || {
            let subscribed = Change::Subscribe(subscription());
            [(10, open("its-client", 1)), (10, subscribed), (0, message(100, b"m", &[10]))]
        };
        rows().iter().for_each(|(session, change)| fold.apply(1, *session, change));
        assert_eq!((fold.rest().count(), fold.messages().count()), (1, 1));
        fold.apply(2, 10, &Change::End);
        // Late ones, too.
        rows().iter().for_each(|(session, change)| fold.apply(3, *session, change));
        assert_eq!((fold.rest().count(), fold.messages().count()), (0, 0));
        let left = format!("{fold:?}");
        assert!(!left.contains("its"), "{left}");
    }
}
