//! What a client is sent: packets that wait for the socket, messages that wait for its acknowledgement or its window.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::access::{self, Access};
use super::acknowledge::put_ack;
use super::counters::Counters;
use super::inflight::{Inflight, Step, WrongAck};
use super::message::{Message, Outgoing};
use super::options::GatewayOptions;
use super::session::{Alias, GivenAliases};
use super::turn::Staging;
use crate::mqtt::properties::{Properties, Property, PropertyId, Value};
use crate::mqtt::{PacketType, Publish, QoS, ReasonCode, Version};
use crate::sessions::{self, Change};

/// Emptied boxes kept for the next connection that writes.
pub(super) type Pool = Vec<Box<Outbound>>;

/// What a delivery needs to know beside the connection.
pub(super) struct Delivery<'a> {
    pub pool: &'a mut Pool,
    pub counters: &'a mut Counters,
    pub options: &'a GatewayOptions,
    pub tick: u32,
    pub staging: &'a mut Staging,
    /// Of the connection.
    pub slot: u32,
    /// Bytes of messages that wait for clients, over all of them.
    pub queued: &'a Arc<AtomicUsize>,
}

impl Delivery<'_> {
    /// A message is not kept for its client any more.
    pub fn done(&mut self, session: u64, message: u64) {
        if message != 0 {
            self.staging.session(session, &Change::Done { message });
        }
    }

    /// A message is dropped at a bound.
    pub fn dropped(&mut self, session: u64, message: u64) {
        self.counters.dropped_deliveries += 1;
        self.done(session, message);
    }
}

#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub bytes: Vec<u8>,
    /// Written so far.
    pub at: usize,
    /// Bytes from the place on leave when the turn of that number is durable; oldest first.
    gates: Vec<(u64, usize)>,
    /// Shown to those who watch, up to here; beyond the end: not from a packet's begin on.
    pub traced: usize,
    inflight: Inflight,
    queue: VecDeque<Message>,
    /// The messages that are kept here: queued, or in flight and kept.
    held: Held,
}

/// Messages sent and not acknowledged, messages queued, and the bytes of those that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub inflight: usize,
    pub queued: usize,
    pub bytes: usize,
}

/// Bytes of kept messages, which count among those of all clients.
#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    all: Option<Arc<AtomicUsize>>,
}

impl Held {
    fn add(&mut self, bytes: usize, all: &Arc<AtomicUsize>) {
        self.bytes += bytes;
        self.all.get_or_insert_with(|| Arc::clone(all)).fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if let Some(all) = &self.all {
            all.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sub(self.bytes);
    }
}

/// How a message comes to a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub qos: QoS,
    pub retain: bool,
    /// The shared subscription that it comes by; 0: none.
    pub group: u64,
    /// Its id in the log, where its session is durable and it waits for it there; else 0.
    pub id: u64,
}

/// How packets are written for one client.
pub(super) struct Wording<'a> {
    pub version: Version,
    /// The client's maximum packet size.
    pub max_packet_bytes: usize,
    /// What it may receive now, which what waited for it is held against.
    pub access: &'a mut Option<Box<Access>>,
    pub aliases: Option<&'a mut GivenAliases>,
    /// At most so many messages in flight.
    pub window: usize,
    /// Messages in flight are kept, since their session outlives the connection.
    pub keep: bool,
    /// The session's id in the log; 0: it has none.
    pub session: u64,
    pub link: u32,
}

/// Bytes that a topic alias adds to a packet at most: the property, and one for each of two lengths.
const ALIAS_BYTES: usize = 5;

impl Wording<'_> {
    fn may_receive(&mut self, topic: &str, counters: &mut Counters) -> bool {
        let may = access::may_receive(self.access, topic);
        counters.denied_receive += u64::from(!may);
        may
    }

    /// Section 3.1.2.11.4: what is larger than the client takes is not sent, as if it had been.
    fn fits(&self, publish: &Publish<'_>) -> bool {
        publish.encoded_len(self.version) <= self.max_packet_bytes
    }

    fn write(&mut self, publish: Publish<'_>, bytes: &mut Vec<u8>) {
        let room = self.max_packet_bytes.saturating_sub(ALIAS_BYTES);
        let alias = match &mut self.aliases {
            Some(aliases) if self.version == Version::V5 && publish.encoded_len(self.version) <= room => {
                aliases.of(publish.topic)
            }
            _ => Alias::None,
        };
        let (topic, alias) = match alias {
            Alias::None => return publish.encode(self.version, bytes),
            Alias::New(alias) => (publish.topic, alias),
            Alias::Known(alias) => ("", alias),
        };
        let mut properties = publish.properties.raw().to_vec();
        Property { id: PropertyId::TopicAlias, value: Value::TwoByte(alias) }.put(&mut properties);
        let properties = Properties::from_checked(&properties);
        Publish { topic, properties, ..publish }.encode(self.version, bytes);
    }
}

impl Outbound {
    /// Bytes that the socket has not taken.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Something waits for its turn.
    pub fn is_gated(&self) -> bool {
        !self.gates.is_empty()
    }

    /// End of the bytes that may leave now.
    pub fn open_to(&self) -> usize {
        self.gates.first().map_or(self.bytes.len(), |(_, at)| *at)
    }

    /// What is added from here on leaves when the turn is durable. True: nothing waited for this turn so far.
    pub fn gate(&mut self, turn: u64) -> bool {
        if self.gates.last().is_some_and(|(last, _)| *last == turn) {
            return false;
        }
        self.gates.push((turn, self.bytes.len()));
        true
    }

    /// The turn is durable.
    pub fn open_gate(&mut self, turn: u64) {
        self.gates.retain(|(waits_for, _)| *waits_for > turn);
    }

    /// What waits for its turn is not said at all.
    pub fn cut_gated(&mut self) {
        self.bytes.truncate(self.open_to());
        self.gates.clear();
    }

    /// Forgets the bytes that were written.
    pub fn drop_written(&mut self) {
        self.bytes.drain(..self.at);
        self.gates.iter_mut().for_each(|(_, at)| *at -= self.at);
        // What was not traced and is cut begins in the middle of a packet.
        self.traced = self.traced.checked_sub(self.at).unwrap_or(usize::MAX);
        self.at = 0;
    }

    /// What waits for the client or its acknowledgement.
    pub fn waiting(&self) -> Waiting {
        Waiting { inflight: self.inflight.len(), queued: self.queue.len(), bytes: self.held.bytes }
    }

    /// How far a message of this id in the log has come, and its packet id; none: it is not kept any more.
    pub fn step_of(&self, id: u64) -> Option<(sessions::Step, u16)> {
        let sent = self.inflight.sent.iter().find(|sent| sent.id == id).map(|sent| match sent.step {
            Step::Pubcomp => (sessions::Step::Released, sent.packet_id),
            Step::Puback | Step::Pubrec => (sessions::Step::Sent, sent.packet_id),
        });
        let waits = || self.queue.iter().any(|message| message.id == id);
        sent.or_else(|| waits().then_some((sessions::Step::Waits, 0)))
    }

    /// Nothing waits for the client, so the memory can serve another.
    pub fn is_idle(&self) -> bool {
        self.inflight.is_empty() && self.queue.is_empty()
    }

    /// Takes what the socket has not taken; messages stay.
    pub fn take_bytes(&mut self) -> Outbound {
        self.cut_gated();
        let (bytes, at) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.at));
        Outbound { bytes, at, ..Outbound::default() }
    }

    /// Writes a message, queues it behind the window, or drops and counts it.
    ///
    /// fits: the buffer has room for it
    pub fn add(
        &mut self,
        outgoing: Outgoing<'_>,
        manner: Manner,
        fits: bool,
        wording: &mut Wording<'_>,
        with: &mut Delivery<'_>,
    ) {
        let Manner { qos, retain, group, id } = manner;
        if qos == QoS::AtMostOnce {
            if !fits {
                with.counters.dropped_deliveries += 1;
                return;
            }
            wording.write(outgoing.publish(qos, retain, 0), &mut self.bytes);
        } else if fits
            && self.queue.is_empty()
            && self.inflight.unsent == 0
            && self.inflight.len() < wording.window
        {
            let keep = wording.keep || group != 0;
            if keep && !self.has_room(outgoing.len(), with) {
                return with.dropped(wording.session, id);
            }
            let kept = keep.then(|| Box::new(owned(outgoing, manner, with.tick)));
            self.held.add(kept.as_ref().map_or(0, |message| message.len()), with.queued);
            let packet_id = self.inflight.next_id();
            self.inflight.push(packet_id, id, qos, kept);
            self.has_sent(id, packet_id, qos, wording, with);
            wording.write(outgoing.publish(qos, retain, packet_id), &mut self.bytes);
        } else if self.queue.len() < with.options.max_queued_messages && self.has_room(outgoing.len(), with) {
            let message = owned(outgoing, manner, with.tick);
            self.held.add(message.len(), with.queued);
            self.queue.push_back(message);
            return;
        } else {
            return with.dropped(wording.session, id);
        }
        with.counters.delivered += 1;
        with.counters.packets_out += 1;
    }

    /// Whether another message may be kept, for this client and over all.
    fn has_room(&self, bytes: usize, with: &mut Delivery<'_>) -> bool {
        if self.held.bytes + bytes > with.options.outbound_max_bytes {
            return false;
        }
        let room = with.queued.load(Ordering::Relaxed) + bytes <= with.options.max_total_queued_bytes;
        with.counters.dropped_total_queued += u64::from(!room);
        room
    }

    /// Notes that a message of a durable session is about to be written. One of QoS 2 leaves when its packet id is durable:
    /// under another one its client would take it for another message.
    fn has_sent(
        &mut self,
        id: u64,
        packet_id: u16,
        qos: QoS,
        wording: &Wording<'_>,
        with: &mut Delivery<'_>,
    ) {
        if id != 0 {
            with.staging.session(wording.session, &Change::Sent { message: id, packet_id });
            if qos == QoS::ExactlyOnce {
                with.staging.gate(with.slot, wording.link, self);
            }
        }
    }

    /// Sends queued messages as far as window and buffer allow. True: something was written.
    pub fn send_queued(&mut self, wording: &mut Wording<'_>, with: &mut Delivery<'_>) -> bool {
        let before = self.bytes.len();
        if self.inflight.unsent > 0 {
            self.send_again(wording, with);
        }
        while self.inflight.len() < wording.window && self.pending() < with.options.outbound_max_bytes {
            let Some(message) = self.queue.pop_front() else { break };
            self.held.sub(message.len());
            // Policies may have changed while it waited.
            if !wording.may_receive(message.outgoing().topic, with.counters) {
                with.done(wording.session, message.id);
                continue;
            }
            let (qos, retain, id) = (message.qos, message.retain, message.id);
            let mut packet_id = None;
            message.send_at(with.tick, |outgoing| {
                if wording.fits(&outgoing.publish(qos, retain, 1)) {
                    let next = self.inflight.next_id();
                    packet_id = Some(next);
                    self.has_sent(id, next, qos, wording, with);
                    wording.write(outgoing.publish(qos, retain, next), &mut self.bytes);
                } else {
                    with.counters.dropped_deliveries += 1;
                }
            });
            // None: it expired while it waited, or the client has come back with a smaller maximum packet size.
            let Some(packet_id) = packet_id else {
                with.done(wording.session, id);
                continue;
            };
            with.counters.delivered += 1;
            with.counters.packets_out += 1;
            let kept = (wording.keep || message.group != 0).then(|| Box::new(message));
            self.held.add(kept.as_ref().map_or(0, |message| message.len()), with.queued);
            self.inflight.push(packet_id, id, qos, kept);
        }
        self.bytes.len() > before
    }

    /// On a new network connection: what was in flight, in its order (section 4.4).
    pub fn resend(&mut self, wording: &mut Wording<'_>, with: &mut Delivery<'_>) {
        self.inflight.reconnected();
        self.send_again(wording, with);
    }

    /// Of what was in flight before this connection: each PUBREL, and as many messages as its window allows.
    fn send_again(&mut self, wording: &mut Wording<'_>, with: &mut Delivery<'_>) {
        let mut at = 0;
        while self.inflight.unsent > 0
            && let Some(sent) = self.inflight.sent.get_mut(at)
        {
            at += 1;
            if sent.sent {
                continue;
            }
            let mut fits = true;
            match &sent.message {
                Some(message) if sent.step != Step::Pubcomp => {
                    if at > wording.window {
                        continue;
                    }
                    if !wording.may_receive(message.outgoing().topic, with.counters) {
                        at -= 1;
                        let id = self.removed(at);
                        with.done(wording.session, id);
                        continue;
                    }
                    message.resend_at(with.tick, |outgoing| {
                        let publish = outgoing.publish(message.qos, message.retain, sent.packet_id);
                        fits = wording.fits(&publish);
                        if fits {
                            wording.write(Publish { dup: true, ..publish }, &mut self.bytes);
                        }
                    });
                }
                _ => put_ack(
                    PacketType::Pubrel,
                    sent.packet_id,
                    ReasonCode::Success,
                    wording.version,
                    &mut self.bytes,
                ),
            }
            if !fits {
                at -= 1;
                let id = self.removed(at);
                with.dropped(wording.session, id);
                continue;
            }
            sent.sent = true;
            self.inflight.unsent -= 1;
            with.counters.packets_out += 1;
        }
    }

    /// PUBACK: gives the message's id in the log. An unknown packet id is of no consequence.
    pub fn puback(&mut self, packet_id: u16) -> Result<u64, WrongAck> {
        let at = self.inflight.find(packet_id, Step::Puback)?;
        Ok(at.map_or(0, |at| self.removed(at)))
    }

    /// PUBREC: gives the reason code of the PUBREL that follows, none follows an error; and the message's id in the log.
    pub fn pubrec(&mut self, packet_id: u16, error: bool) -> Result<(Option<ReasonCode>, u64), WrongAck> {
        let Some(at) = self.inflight.position(packet_id) else {
            return Ok(((!error).then_some(ReasonCode::PacketIdentifierNotFound), 0));
        };
        let sent = &mut self.inflight.sent[at];
        if sent.step == Step::Puback {
            return Err(WrongAck);
        }
        if error {
            return Ok((None, self.removed(at)));
        }
        sent.step = Step::Pubcomp;
        let id = sent.id;
        if let Some(message) = sent.message.take() {
            self.held.sub(message.len());
        }
        Ok((Some(ReasonCode::Success), id))
    }

    /// PUBCOMP: gives the message's id in the log.
    pub fn pubcomp(&mut self, packet_id: u16) -> Result<u64, WrongAck> {
        let at = self.inflight.find(packet_id, Step::Pubcomp)?;
        Ok(at.map_or(0, |at| self.removed(at)))
    }

    /// A message is not in flight any more: gives its id in the log.
    fn removed(&mut self, at: usize) -> u64 {
        let Some(sent) = self.inflight.remove(at) else { return 0 };
        self.held.sub(sent.message.map_or(0, |message| message.len()));
        sent.id
    }

    /// Takes back a message of an earlier process that waits.
    pub fn restore_queued(&mut self, message: Message, queued: &Arc<AtomicUsize>) {
        self.held.add(message.len(), queued);
        self.queue.push_back(message);
    }

    /// Takes back a message of an earlier process that was in flight; none: PUBREC has come.
    pub fn restore_sent(
        &mut self,
        packet_id: u16,
        id: u64,
        message: Option<Message>,
        queued: &Arc<AtomicUsize>,
    ) {
        self.held.add(message.as_ref().map_or(0, Message::len), queued);
        self.inflight.restore(packet_id, id, message);
    }

    /// All that waited in an earlier process has been taken back.
    pub fn restored(&mut self) {
        self.inflight.restored();
    }

    /// Takes out the messages of shared subscriptions that another member has to get now. One of QoS 2 that was sent is
    /// this client's alone (section 4.8.2).
    pub fn take_shared(&mut self) -> Vec<Message> {
        self.held.sub(self.held.bytes);
        let sent = std::mem::take(&mut self.inflight).sent.into_iter();
        let sent = sent.filter(|sent| sent.step == Step::Puback).filter_map(|sent| Some(*sent.message?));
        sent.chain(std::mem::take(&mut self.queue)).filter(|message| message.group != 0).collect()
    }
}

fn owned(outgoing: Outgoing<'_>, manner: Manner, tick: u32) -> Message {
    let mut message = Message::new(outgoing, manner.qos, manner.retain, tick);
    (message.group, message.id) = (manner.group, manner.id);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_of_another_kind_frees_nothing() {
        let mut out = Outbound::default();
        out.inflight.push(1, 0, QoS::AtLeastOnce, None);
        assert_eq!(out.pubcomp(1), Err(WrongAck));
        assert_eq!(out.pubrec(1, false), Err(WrongAck));
        assert_eq!(out.puback(2), Ok(0));
        assert_eq!(out.pubrec(2, false), Ok((Some(ReasonCode::PacketIdentifierNotFound), 0)));
        assert!(!out.is_idle());
        assert_eq!(out.puback(1), Ok(0));
        assert!(out.is_idle());
    }
}
