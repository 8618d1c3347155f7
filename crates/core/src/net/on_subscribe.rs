//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a new subscription gets.

use std::sync::atomic::Ordering;

use super::connection::Connection;
use super::fanout::{Reading, Subscriber};
use super::lane::{Lane, Shared};
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{
    Properties, QoS, ReasonCode, Suback, Subscribe, SubscriptionOptions, Unsuback, Unsubscribe, Version,
    topic,
};

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
    let subscriber = lane.id(slot, conn.generation);
    let identified = subscribe.properties.get(PropertyId::SubscriptionIdentifier).is_some();
    let highest = QoS::from_bits(shared.options.maximum_qos).unwrap_or(QoS::AtMostOnce);
    let mut codes = Vec::new();
    // Filters whose retained messages are wanted.
    let mut replays: Vec<(&str, SubscriptionOptions)> = Vec::new();
    let mut trie = shared.subscriptions.write();
    for (filter, mut options) in subscribe.filters() {
        if let Some(refusal) = refusal(shared, conn, filter, identified) {
            codes.push(refusal);
            continue;
        }
        options.qos = options.qos.min(highest);
        match trie.insert(filter, Subscriber::new(subscriber, options)) {
            Ok((node, replaced)) => {
                if replaced.is_none() {
                    conn.subscriptions.push(node);
                    lane.counters.subscriptions += 1;
                }
                let wanted =
                    options.retain_handling == 0 || (options.retain_handling == 1 && replaced.is_none());
                if wanted {
                    replays.push((filter, options));
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
    let suback = Suback { packet_id: subscribe.packet_id, properties: Properties::NONE, codes: &codes };
    suback.encode(conn.version, &mut conn.out(&mut lane.pool).bytes);
    lane.counters.packets_out += 1;
    for (filter, options) in replays {
        for message in shared.retained.matching(filter) {
            message.send_at(lane.tick, |outgoing| {
                conn.deliver(outgoing, options.qos.min(message.qos), true, &mut lane.delivery());
            });
        }
    }
    lane.touch(conn, slot);
}

/// Why this filter is not granted, if so.
fn refusal(shared: &Shared, conn: &Connection, filter: &str, identified: bool) -> Option<ReasonCode> {
    if identified {
        Some(ReasonCode::SubscriptionIdentifiersNotSupported)
    } else if topic::is_shared(filter) {
        Some(ReasonCode::SharedSubscriptionsNotSupported)
    } else if topic::levels(filter) > shared.options.max_topic_levels {
        Some(ReasonCode::TopicFilterInvalid)
    } else if conn.subscriptions.len() >= shared.options.max_subscriptions_per_client {
        Some(ReasonCode::QuotaExceeded)
    } else {
        None
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
    let id = lane.id(slot, conn.generation);
    let subscriber = Subscriber::new(id, SubscriptionOptions::new(QoS::AtMostOnce));
    let mut codes = Vec::new();
    let mut trie = shared.subscriptions.write();
    for filter in unsubscribe.filters() {
        let removed = trie.find(filter).filter(|node| trie.remove_at(*node, &subscriber).is_some());
        codes.push(match removed {
            Some(node) => {
                conn.subscriptions.retain(|held| *held != node);
                lane.counters.subscriptions -= 1;
                ReasonCode::Success as u8
            }
            None => ReasonCode::NoSubscriptionExisted as u8,
        });
    }
    shared.subscribed.store(trie.len(), Ordering::Relaxed);
    drop(trie);
    let unsuback = Unsuback { packet_id: unsubscribe.packet_id, properties: Properties::NONE, codes: &codes };
    unsuback.encode(conn.version, &mut conn.out(&mut lane.pool).bytes);
    lane.counters.packets_out += 1;
    lane.touch(conn, slot);
}

/// Takes all subscriptions of a connection that ends.
pub(super) fn unsubscribe_all(lane: &mut Lane, conn: &mut Connection, slot: u32) {
    if conn.subscriptions.is_empty() {
        return;
    }
    let id = lane.id(slot, conn.generation);
    let subscriber = Subscriber::new(id, SubscriptionOptions::new(QoS::AtMostOnce));
    let mut trie = lane.shared.subscriptions.write();
    for node in conn.subscriptions.drain(..) {
        if trie.remove_at(node, &subscriber).is_some() {
            lane.counters.subscriptions -= 1;
        }
    }
    lane.shared.subscribed.store(trie.len(), Ordering::Relaxed);
}
