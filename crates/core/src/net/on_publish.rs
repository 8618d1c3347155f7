//! PUBLISH: from a topic to streams, raw messages, the retained table and live subscribers.

use std::sync::atomic::Ordering;

use super::access;
use super::acknowledge::code_of;
use super::binding::capture;
use super::connection::Connection;
use super::events::EventKind;
use super::fanout::Reading;
use super::lane::{End, Lane, Shared, shortened};
use super::levels::Levels;
use super::lifecycle::EVENTS;
use super::limits::Limit;
use super::message::Outgoing;
use super::options::GatewayOptions;
use super::pressure::Level;
use super::registry::ConnId;
use super::turn::{Fate, Staging};
use crate::decode::{DecodeError, Decoded, SparkplugContext, SparkplugTopic, StreamPlan, sparkplug_rebirth};
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{Publish, QoS, ReasonCode, Version, topic};
use crate::rows::Cell;
use crate::sessions::Change;

/// Who a message comes from.
pub(super) struct Sender<'a> {
    pub client_id: &'a str,
    pub version: Version,
    /// For No Local.
    pub conn: ConnId,
    /// Its durable session, or 0.
    pub session: u64,
}

/// A PUBLISH packet: stages its message, passes it to live subscribers, and leaves its acknowledgement to the turn.
pub(super) fn on_publish(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    publish: &Publish<'_>,
    subscriptions: &mut Reading<'_>,
) -> Result<(), End> {
    if publish.qos == QoS::ExactlyOnce && conn.session().incoming.contains(&publish.packet_id) {
        // Section 4.3.3: until its PUBREL the same id is the same message. The answer waits for the first copy's.
        lane.staging.message(publish.packet_id, ReasonCode::Success, Fate::Repeated, true);
        return Ok(());
    }
    lane.counters.received += 1;
    if let Err(end) = check(shared, conn, publish) {
        lane.counters.refused += 1;
        return Err(end);
    }
    if publish.qos == QoS::AtMostOnce {
        if lane.pressure.level == Level::Shedding {
            lane.counters.shed += 1;
            return Ok(());
        }
    } else {
        conn.unacknowledged += 1;
    }
    if let Some((code, why)) = refusal(&shared.options, publish.topic, publish.payload) {
        return refuse(lane, conn, publish, code, why);
    }
    if !access::may_publish(&mut conn.access, publish.topic, publish.retain) {
        lane.counters.denied_publish += 1;
        return refuse(lane, conn, publish, ReasonCode::NotAuthorized, access::PUBLISH_DENIED);
    }
    let mut retained = publish.retain;
    if publish.retain && !retain(lane, shared, publish) {
        // Who cannot be told would send the message again and again, so there it is delivered and logged.
        let why = "the table of retained messages is full (retained_max_messages, retained_max_bytes)";
        if conn.version == Version::V5 && publish.qos != QoS::AtMostOnce {
            return refuse(lane, conn, publish, ReasonCode::QuotaExceeded, why);
        }
        let detail = format!("topic {:?} is not retained: {why}", publish.topic);
        shared.events.add(EventKind::PublishRefused, &conn.client_id, ReasonCode::QuotaExceeded, detail);
        retained = false;
    }
    if publish.qos == QoS::ExactlyOnce {
        conn.session().incoming.insert(publish.packet_id);
    }
    let (id, session) = (lane.id(slot, conn.generation), conn.durable());
    let sender = Sender { client_id: &conn.client_id, version: conn.version, conn: id, session };
    accept(lane, shared, &sender, publish, retained, subscriptions);
    Ok(())
}

/// Decodes and stages an accepted message and passes it on. Packet id 0: nobody is answered.
///
/// retained: the table of retained messages took it, as far as there is one
pub(super) fn accept(
    lane: &mut Lane,
    shared: &Shared,
    sender: &Sender<'_>,
    publish: &Publish<'_>,
    retained: bool,
    subscriptions: &mut Reading<'_>,
) {
    let Lane { bindings, staging, plain, decoded, streams, held, received_at_us, edge_node, fanout, .. } =
        lane;
    let received_at_us = *received_at_us;
    // Noted once, whichever streams the message belongs to: the sequence is that of the edge node.
    let edge = bindings.sparkplug.then_some(&shared.edge_nodes).and_then(|nodes| {
        let topic = SparkplugTopic::parse(publish.topic)?;
        Some((nodes, topic, nodes.hear(topic, publish.payload, received_at_us, edge_node)))
    });
    let mut ask = edge.as_ref().is_some_and(|(_, _, heard)| heard.ask);
    let mut fate = Fate::LiveOnly;
    let mut code = ReasonCode::Success;
    let clearing = publish.retain && publish.payload.is_empty();
    let mut failed = None;
    let levels = Levels::new(publish.topic);
    bindings.streams_of(publish.topic, &levels, streams);
    if !clearing {
        'streams: for &index in streams.iter() {
            let Some(binding) = bindings.streams.get(usize::from(index)) else { continue };
            let captured = capture(&levels, &binding.captures);
            let captures = &captured[..binding.captures.len()];
            let own = held.get_mut(usize::from(index));
            let mut version = binding.newest(own);
            if version.plan.decode_plain(publish.payload, received_at_us, plain) {
                let row = plain.row(captures, publish.payload);
                staging.plain(&shared.log, usize::from(index), &version.schema, &row);
                if fate == Fate::LiveOnly {
                    fate = Fate::Decoded;
                }
                continue;
            }
            let decode = |plan: &StreamPlan, decoded: &mut Decoded| match &edge {
                Some((_, topic, heard)) if plan.is_sparkplug() => {
                    let (device, known) = (topic.device.unwrap_or_default(), &*heard.metrics);
                    let context = SparkplugContext { kind: topic.kind, device, known };
                    plan.decode_sparkplug(publish.payload, captures, received_at_us, context, decoded)
                }
                _ => plan.decode(publish.payload, captures, received_at_us, decoded),
            };
            let mut result = decode(&version.plan, decoded);
            // Fields that no column has yet; another thread may add some of them meanwhile.
            while result.is_ok() && !decoded.undeclared().is_empty() {
                let own = held.get_mut(usize::from(index));
                if let Err(error) = binding.grow(&shared.log, own.as_deref(), decoded) {
                    failed = Some(error);
                    continue 'streams;
                }
                version = binding.newest(own);
                result = decode(&version.plan, decoded);
            }
            let letter = |error: &DecodeError, detail: &str, staging: &mut Staging| {
                staging.dead_letter([
                    Cell::Timestamp(received_at_us),
                    Cell::Bytes(binding.name.as_bytes()),
                    Cell::Bytes(publish.topic.as_bytes()),
                    Cell::Bytes(sender.client_id.as_bytes()),
                    Cell::Bytes(error.reason().as_bytes()),
                    Cell::Bytes(detail.as_bytes()),
                    Cell::Bytes(publish.payload),
                ]);
            };
            match result {
                Ok(()) => {
                    let key = version.schema.key.and_then(|at| captures.get(at)).copied();
                    staging.decoded(&shared.log, usize::from(index), &version.schema, decoded, key);
                    if fate == Fate::LiveOnly {
                        fate = Fate::Decoded;
                    }
                    if let Some(error) = decoded.incomplete() {
                        // What is named is stored, and sending it again would store it twice: no error for the client.
                        letter(&error, &error.to_string(), staging);
                        fate = Fate::DeadLettered;
                        if let Some((nodes, topic, _)) = &edge {
                            ask = ask || nodes.missed(*topic, received_at_us, edge_node);
                        }
                    }
                }
                Err(error) => {
                    let detail = error.to_string();
                    letter(&error, &detail, staging);
                    if fate != Fate::DeadLettered && sender.version == Version::V5 && publish.packet_id != 0 {
                        staging.note(format!("stream {}: {}: {detail}", binding.name, error.reason()));
                    }
                    (fate, code) = (Fate::DeadLettered, ReasonCode::PayloadFormatInvalid);
                }
            }
        }
    }
    if shared.subscribed.load(Ordering::Relaxed) > 0 {
        let (outgoing, from) = (Outgoing::of(publish), Some(sender.conn));
        // What is refused waits for nobody in the log.
        let id = if failed.is_none() { staging.message_ids.next() } else { 0 };
        fanout.add(subscriptions, outgoing, publish.qos, publish.retain, from, id);
        if !fanout.waiting.is_empty() {
            staging.waited_for(outgoing, publish.qos, &mut fanout.waiting, true);
            if fate == Fate::LiveOnly {
                fate = Fate::RawOnly;
            }
        }
    }
    if publish.retain || bindings.is_raw(publish.topic) {
        staging.raw([
            Cell::Timestamp(received_at_us),
            Cell::Bytes(publish.topic.as_bytes()),
            Cell::Bytes(sender.client_id.as_bytes()),
            Cell::Bigint(publish.qos as i64),
            Cell::Boolean(retained && shared.options.retain_available),
            Cell::Bytes(publish.payload),
            Cell::Null,
            if publish.properties.is_empty() { Cell::Null } else { Cell::Bytes(publish.properties.raw()) },
        ]);
        if fate == Fate::LiveOnly {
            fate = Fate::RawOnly;
        }
    }
    if let Some(error) = failed {
        let why = format!("adding the message's new fields to its stream: {error}");
        staging.note(why);
        (fate, code) = (Fate::Refused, code_of(&error));
    }
    if fate == Fate::LiveOnly {
        shared.unmatched.note(lane.tick, publish.topic, publish.payload);
    } else {
        staging.acks.bytes += publish.payload.len() + publish.topic.len();
    }
    let exactly_once = publish.qos == QoS::ExactlyOnce && publish.packet_id != 0;
    if exactly_once && sender.session != 0 && !frees_id(code, sender.version, fate) {
        staging.session_with_message(sender.session, &Change::Received(publish.packet_id));
    }
    staging.message(publish.packet_id, code, fate, exactly_once);

    if let Some((_, SparkplugTopic { group, edge, .. }, _)) = edge.as_ref().filter(|_| ask) {
        let topic = format!("{}{group}/NCMD/{edge}", SparkplugTopic::NAMESPACE);
        let payload = sparkplug_rebirth(u64::try_from(received_at_us / 1000).unwrap_or(0));
        let request = Outgoing { topic: &topic, properties: &[], payload: &payload };
        lane.fanout.add(subscriptions, request, QoS::AtMostOnce, false, None, 0);
    }
}

/// Whether the client may use the packet id of its QoS 2 message again. MQTT 3.1.1 knows no error, but a dead letter is
/// stored.
pub(super) fn frees_id(code: ReasonCode, version: Version, fate: Fate) -> bool {
    code.is_error() && !(version == Version::V311 && fate == Fate::DeadLettered)
}

/// What ends the connection.
#[inline]
fn check(shared: &Shared, conn: &Connection, publish: &Publish<'_>) -> Result<(), End> {
    let options = &shared.options;
    if publish.qos as u8 > options.maximum_qos {
        return Err(End::new(ReasonCode::QoSNotSupported, "PUBLISH above the maximum QoS told in CONNACK"));
    }
    if conn.version == Version::V5 {
        if publish.qos != QoS::AtMostOnce
            && conn.unacknowledged + u32::from(conn.unreleased) >= u32::from(conn.granted)
        {
            let why = "more messages unacknowledged than the receive maximum told in CONNACK";
            return Err(End::new(ReasonCode::ReceiveMaximumExceeded, why));
        }
        if publish.retain && !options.retain_available {
            return Err(End::new(ReasonCode::RetainNotSupported, "retained messages are not available"));
        }
        if publish.properties.get(PropertyId::SubscriptionIdentifier).is_some() {
            return Err(End::protocol("a client's PUBLISH carries a subscription identifier"));
        }
    }
    Ok(())
}

/// Why this one message is not accepted, if so.
#[inline]
pub(super) fn refusal(
    options: &GatewayOptions,
    topic: &str,
    payload: &[u8],
) -> Option<(ReasonCode, &'static str)> {
    if let Some(limit) = Limit::of_message(options, topic, payload) {
        return Some(limit.refusal());
    }
    if topic.as_bytes().first() == Some(&b'$') {
        return reserved(topic);
    }
    None
}

/// Why a client does not publish to a topic of ours.
fn reserved(topic: &str) -> Option<(ReasonCode, &'static str)> {
    if topic.starts_with("$SYS") && matches!(topic.as_bytes().get(4), None | Some(b'/')) {
        return Some((ReasonCode::NotAuthorized, "clients do not publish to $SYS"));
    }
    if topic.starts_with(EVENTS) {
        return Some((ReasonCode::NotAuthorized, "clients do not publish lifecycle events"));
    }
    if topic::is_shared(topic) {
        return Some((
            ReasonCode::NotAuthorized,
            "$share is not the name of topics but of shared subscriptions",
        ));
    }
    None
}

/// Sets or clears the topic's retained message. False: the table is full.
pub(super) fn retain(lane: &mut Lane, shared: &Shared, publish: &Publish<'_>) -> bool {
    if !shared.options.retain_available {
        return true;
    }
    let retained = if publish.payload.is_empty() {
        shared.retained.clear(publish.topic).is_ok()
    } else {
        shared.retained.set(Outgoing::of(publish), publish.qos, lane.tick).is_ok()
    };
    lane.counters.retained_refused += u64::from(!retained);
    retained
}

/// MQTT 5 QoS 1 and 2 are told by PUBACK and PUBREC. Elsewhere nothing but the connection's end can tell.
fn refuse(
    lane: &mut Lane,
    conn: &mut Connection,
    publish: &Publish<'_>,
    code: ReasonCode,
    why: &'static str,
) -> Result<(), End> {
    if let Some(limit) = Limit::of_message(&lane.shared.options, publish.topic, publish.payload) {
        conn.limited(limit);
    }
    let detail = format!("topic {:?}: {why}", shortened(publish.topic));
    lane.shared.events.add(EventKind::PublishRefused, &conn.client_id, code, detail);
    if conn.version == Version::V5 && publish.qos != QoS::AtMostOnce {
        lane.staging.note(why.to_owned());
        let exactly_once = publish.qos == QoS::ExactlyOnce;
        lane.staging.message(publish.packet_id, code, Fate::Refused, exactly_once);
        return Ok(());
    }
    lane.counters.refused += 1;
    Err(End::new(code, why))
}
