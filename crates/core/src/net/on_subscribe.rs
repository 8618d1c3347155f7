//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a new subscription gets.

use std::sync::atomic::Ordering;

use super::access;
use super::connection::{Connection, Subscribed};
use super::events::EventKind;
use super::fanout::{Reading, Subscriber, group, with_identifiers};
use super::lane::{Lane, Shared, shortened};
use super::lifecycle;
use super::limits::Limit;
use super::message::Outgoing;
use super::outbound::Manner;
use super::replay::{self, Replay};
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{
    NodeId, Properties, QoS, ReasonCode, Suback, Subscribe, SubscriptionOptions, Unsuback, Unsubscribe,
    Version, topic,
};
use crate::sessions::Change;

pub(super) fn on_subscribe(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    subscribe: &Subscribe<'_>,
    subscriptions: &mut Reading<'_>,
) {
    // One lock for the whole packet, and none of ours may be held for reading meanwhile.
    subscriptions.release();
    let (subscriber, session) = (lane.id(slot, conn.generation), conn.durable());
    let identifier = subscribe.properties.number(PropertyId::SubscriptionIdentifier).unwrap_or(0);
    let highest = QoS::from_bits(shared.options.maximum_qos).unwrap_or(QoS::AtMostOnce);
    let mut codes = Vec::new();
    let mut told = false;
    // Filters whose retained messages are wanted.
    let mut replays: Vec<(&str, SubscriptionOptions, NodeId)> = Vec::new();
    let mut trie = shared.subscriptions.write();
    for (filter, mut options) in subscribe.filters() {
        if !access::may_subscribe(&mut conn.access, filter) {
            lane.counters.denied_subscribe += 1;
            // One packet may name thousands.
            if !std::mem::replace(&mut told, true) {
                let why = access::subscribe_denied(&conn.access, filter);
                let code = ReasonCode::NotAuthorized;
                shared.events.add(EventKind::SubscribeRefused, &conn.client_id, code, why);
            }
            codes.push(ReasonCode::NotAuthorized);
            continue;
        }
        if let Some((limit, code)) = refusal(shared, conn, filter) {
            conn.limited(limit);
            if !std::mem::replace(&mut told, true) {
                let why = format!("filter {:?} is beyond {}", shortened(filter), limit.name());
                shared.events.add_from(
                    EventKind::SubscribeRefused,
                    &conn.client_id,
                    code,
                    why,
                    conn.origin(),
                );
            }
            codes.push(code);
            continue;
        }
        options.qos = options.qos.min(highest);
        let (plain, group) = unshared(filter, shared.group_seed);
        match trie.insert(plain, Subscriber::new(subscriber, options, identifier, group, session)) {
            Ok((node, replaced)) => {
                if session != 0 {
                    lane.staging.subscribed(session, filter, options.to_byte(), identifier);
                }
                if lifecycle::concerns(plain) {
                    shared.lifecycle_wanted.store(true, Ordering::Relaxed);
                }
                if replaced.is_none() {
                    conn.subscriptions.push(Subscribed { node, group });
                    lane.counters.subscriptions += 1;
                }
                // Section 4.8.2: a shared subscription gets no retained messages.
                let wanted = group == 0
                    && (options.retain_handling == 0 || (options.retain_handling == 1 && replaced.is_none()));
                if wanted {
                    replays.push((filter, options, node));
                }
                codes.push(match options.qos {
                    QoS::AtMostOnce => ReasonCode::Success,
                    QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
                    QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
                });
            }
            Err(_) => codes.push(ReasonCode::TopicFilterInvalid),
        }
    }
    shared.subscribed.store(trie.len(), Ordering::Relaxed);
    drop(trie);

    let v5 = conn.version == Version::V5;
    let codes: Vec<u8> =
        codes.into_iter().map(|code| if !v5 && code.is_error() { 0x80 } else { code as u8 }).collect();
    conn.gate(lane, slot);
    let suback = Suback { packet_id: subscribe.packet_id, properties: Properties::NONE, codes: &codes };
    conn.put_within(&mut lane.pool, |version, out| suback.encode(version, out));
    lane.counters.packets_out += 1;
    let granted = subscribe.filters().zip(&codes).filter(|(_, code)| **code < 0x80);
    lane.note_subscriptions(conn, slot, "subscribed", granted.map(|((filter, _), _)| filter));
    for (filter, options, node) in replays {
        for (topic, value) in shared.sys.matching(filter) {
            let mut properties = Vec::new();
            with_identifiers(&[], &[identifier], &mut properties);
            let outgoing = Outgoing { topic, properties: &properties, payload: value.as_bytes() };
            let manner = Manner { qos: options.qos.min(QoS::AtLeastOnce), retain: true, group: 0, id: 0 };
            conn.deliver(outgoing, manner, &mut lane.delivery(slot));
        }
        let (filter, qos, upto) = (filter.into(), options.qos, shared.retained.serial());
        let replay = Replay { node, filter, qos, identifier, upto, after: None };
        replay::begin(lane, shared, conn, slot, replay);
    }
    lane.touch(conn, slot);
}

/// Why this filter is not granted, if so.
fn refusal(shared: &Shared, conn: &Connection, filter: &str) -> Option<(Limit, ReasonCode)> {
    if let Some(limit) = Limit::of_topic(&shared.options, filter) {
        return Some((limit, ReasonCode::TopicFilterInvalid));
    }
    let full = conn.subscriptions.len() >= shared.options.max_subscriptions_per_client;
    full.then_some((Limit::MaxSubscriptions, ReasonCode::QuotaExceeded))
}

/// The filter below `$share/NAME/`, and what tells the shared subscription (0: it is none).
pub(super) fn unshared(filter: &str, seed: u64) -> (&str, u64) {
    match topic::shared(filter) {
        Some((_, plain)) => (plain, group(filter, seed)),
        None => (filter, 0),
    }
}

pub(super) fn on_unsubscribe(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    unsubscribe: &Unsubscribe<'_>,
    subscriptions: &mut Reading<'_>,
) {
    subscriptions.release();
    let (id, session) = (lane.id(slot, conn.generation), conn.durable());
    let mut codes = Vec::new();
    let mut trie = shared.subscriptions.write();
    for filter in unsubscribe.filters() {
        let (plain, group) = unshared(filter, shared.group_seed);
        let subscriber = Subscriber::of(id, group);
        let removed = trie.find(plain).filter(|node| trie.remove_at(*node, &subscriber).is_some());
        codes.push(match removed {
            Some(node) => {
                conn.subscriptions.retain(|held| *held != Subscribed { node, group });
                lane.replays.forget(slot, node);
                lane.counters.subscriptions -= 1;
                if session != 0 {
                    lane.staging.session(session, &Change::Unsubscribe(filter));
                }
                ReasonCode::Success as u8
            }
            None => ReasonCode::NoSubscriptionExisted as u8,
        });
    }
    shared.subscribed.store(trie.len(), Ordering::Relaxed);
    drop(trie);
    conn.gate(lane, slot);
    let unsuback = Unsuback { packet_id: unsubscribe.packet_id, properties: Properties::NONE, codes: &codes };
    conn.put_within(&mut lane.pool, |version, out| unsuback.encode(version, out));
    lane.counters.packets_out += 1;
    lane.note_subscriptions(conn, slot, "unsubscribed", unsubscribe.filters());
    lane.touch(conn, slot);
}

/// Says whether the client is there, to those who choose among the members of its shared subscriptions.
pub(super) fn mark_away(lane: &Lane, conn: &Connection, slot: u32, away: bool) {
    if conn.subscriptions.iter().all(|held| held.group == 0) {
        return;
    }
    let id = lane.id(slot, conn.generation);
    let mut trie = lane.shared.subscriptions.write();
    for Subscribed { node, group } in conn.subscriptions.iter().filter(|held| held.group != 0) {
        trie.change_at(*node, &Subscriber::of(id, *group), |subscriber| subscriber.away(away));
    }
}

/// Takes all subscriptions of a connection that ends.
pub(super) fn unsubscribe_all(lane: &mut Lane, conn: &mut Connection, slot: u32) {
    lane.replays.forget_all(slot);
    if conn.subscriptions.is_empty() {
        return;
    }
    let id = lane.id(slot, conn.generation);
    let mut trie = lane.shared.subscriptions.write();
    for Subscribed { node, group } in conn.subscriptions.drain(..) {
        if trie.remove_at(node, &Subscriber::of(id, group)).is_some() {
            lane.counters.subscriptions -= 1;
        }
    }
    lane.shared.subscribed.store(trie.len(), Ordering::Relaxed);
}
