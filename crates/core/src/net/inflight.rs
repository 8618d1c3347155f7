//! The messages that were sent to a client and are not acknowledged, in order of sending, and their packet ids.

use std::collections::VecDeque;

use super::message::Message;
use crate::mqtt::QoS;

/// Messages of QoS 1 and 2 on their way to one client, whatever receive maximum it allows. Ours.
pub(super) const MAX_INFLIGHT: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Inflight {
    pub sent: VecDeque<Sent>,
    /// Those that have not been sent over this connection yet.
    pub unsent: usize,
    /// Packet ids: the last one given, and the next one that is 0 or in flight.
    last_id: u16,
    barred_id: u16,
}

#[derive(Debug)]
pub(super) struct Sent {
    pub packet_id: u16,
    /// Its id in the log; 0: none.
    pub id: u64,
    pub step: Step,
    /// Over this connection.
    pub sent: bool,
    /// Kept where it may have to be sent again.
    pub message: Option<Box<Message>>,
}

/// What the client owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Puback,
    Pubrec,
    Pubcomp,
}

impl Step {
    fn first(qos: QoS) -> Step {
        if qos == QoS::ExactlyOnce { Step::Pubrec } else { Step::Puback }
    }
}

/// An acknowledgement of another kind than the QoS of its message asks for (section 3.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongAck;

impl Inflight {
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// A message is about to be sent.
    pub fn push(&mut self, packet_id: u16, id: u64, qos: QoS, message: Option<Box<Message>>) {
        self.sent.push_back(Sent { packet_id, id, step: Step::first(qos), sent: true, message });
    }

    /// Where the message is that the acknowledgement ends; an unknown packet id: nowhere.
    pub fn find(&self, packet_id: u16, step: Step) -> Result<Option<usize>, WrongAck> {
        let at = self.position(packet_id);
        if at.is_some_and(|at| self.sent[at].step != step) { Err(WrongAck) } else { Ok(at) }
    }

    pub fn position(&self, packet_id: u16) -> Option<usize> {
        // Acknowledgements come in order, as a rule, so it is the first one.
        self.sent.iter().position(|sent| sent.packet_id == packet_id)
    }

    pub fn remove(&mut self, at: usize) -> Option<Sent> {
        let sent = self.sent.remove(at)?;
        self.unsent -= usize::from(!sent.sent);
        Some(sent)
    }

    /// The client has another network connection, over which nothing was sent.
    pub fn reconnected(&mut self) {
        // What was not kept had a session that ended with its connection.
        self.sent.retain(|sent| sent.message.is_some() || sent.step == Step::Pubcomp);
        self.sent.iter_mut().for_each(|sent| sent.sent = false);
        self.unsent = self.sent.len();
    }

    /// Takes back what an earlier process had sent; no message: PUBREC has come.
    pub fn restore(&mut self, packet_id: u16, id: u64, message: Option<Message>) {
        let step = message.as_ref().map_or(Step::Pubcomp, |message| Step::first(message.qos));
        self.sent.push_back(Sent { packet_id, id, step, sent: false, message: message.map(Box::new) });
    }

    /// All has been taken back: puts it into the order of sending, in which it is sent again (section 4.6). Packet ids
    /// rise in that order and run round, so the first one is the one behind the widest gap.
    pub fn restored(&mut self) {
        let sent = self.sent.make_contiguous();
        sent.sort_unstable_by_key(|sent| sent.packet_id);
        let before = |at: usize| sent[at.checked_sub(1).unwrap_or(sent.len() - 1)].packet_id;
        let gap = |at: &usize| sent[*at].packet_id.wrapping_sub(before(*at));
        if let Some(first) = (0..sent.len()).max_by_key(gap) {
            sent.rotate_left(first);
        }
        self.last_id = self.sent.back().map_or(self.last_id, |last| last.packet_id);
        self.bar();
    }

    /// The next packet id that is neither 0 nor in flight; the window is far smaller than the range of ids.
    pub fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != self.barred_id {
                return self.last_id;
            }
            self.bar();
        }
    }

    /// Finds the first id behind the last one that may not be given. Until it is reached only ids before it are given, so
    /// none that comes into flight meanwhile lies there.
    fn bar(&mut self) {
        let ahead = self.sent.iter().map(|sent| sent.packet_id).chain([0]);
        let ahead = ahead.filter(|id| *id != self.last_id);
        self.barred_id = ahead.min_by_key(|id| id.wrapping_sub(self.last_id)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64_with_seed;

    use super::*;

    fn restored(packet_ids: impl IntoIterator<Item = u16>) -> Inflight {
        let mut inflight = Inflight::default();
        packet_ids.into_iter().for_each(|id| inflight.restore(id, 0, None));
        inflight.restored();
        inflight
    }

    #[test]
    fn packet_ids_wrap_and_skip_those_in_use() {
        let mut inflight = restored([1, 65_533, 65_535]);
        assert_eq!(inflight.next_id(), 2);
        inflight.last_id = 65_532;
        inflight.bar();
        assert_eq!(inflight.next_id(), 65_534);
        assert_eq!(inflight.next_id(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever a client leaves unacknowledged, and over more than one round of ids.
        #[test]
        fn no_packet_id_is_given_twice(window in 1..=7_usize, left in btree_set(1..=u16::MAX, 0..50)) {
            let mut inflight = Inflight::default();
            for _ in 0..100_000 {
                let packet_id = inflight.next_id();
                prop_assert!(packet_id != 0 && inflight.position(packet_id).is_none());
                inflight.push(packet_id, 0, QoS::AtLeastOnce, None);
                if inflight.len() > left.len() + window {
                    let done = inflight.sent.iter().position(|sent| !left.contains(&sent.packet_id));
                    done.and_then(|at| inflight.remove(at));
                }
            }
        }

        /// Some were acknowledged before the server stopped, and what was stored knows no order of sending.
        #[test]
        fn what_is_taken_back_is_in_order_of_sending(
            first in 1..=u16::MAX,
            acknowledged in vec(any::<bool>(), 1..=MAX_INFLIGHT),
            order in any::<u64>(),
        ) {
            let mut before = Inflight { last_id: first - 1, ..Inflight::default() };
            let ids = acknowledged.iter().map(|gone| (before.next_id(), gone));
            let ids: Vec<u16> = ids.filter_map(|(id, gone)| (!gone).then_some(id)).collect();
            let mut stored = ids.clone();
            stored.sort_by_key(|id| xxh3_64_with_seed(&id.to_le_bytes(), order));
            let back = restored(stored);
            let sent: Vec<u16> = back.sent.iter().map(|sent| sent.packet_id).collect();
            prop_assert_eq!(&sent, &ids);
        }
    }
}
