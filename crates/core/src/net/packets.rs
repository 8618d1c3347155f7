//! From bytes to packets, and from each packet to its handler.

use super::acknowledge::put_ack;
use super::connection::{Connection, State};
use super::fanout::Reading;
use super::inflight::WrongAck;
use super::lane::{End, Flow, Lane, Shared};
use super::on_connect::on_connect;
use super::on_publish::on_publish;
use super::on_subscribe::{on_subscribe, on_unsubscribe};
use super::session::without_alias;
use super::watch;
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{Ack, Frame, Packet, PacketType, Properties, Publish, ReasonCode, frame};
use crate::sessions::Change;

/// Handles the packets in `bytes`, of which the first may have begun in `conn.partial`.
///
/// WATCHED: each packet is looked at before it is handled; see [`watch`]
pub(super) fn packets<const WATCHED: bool>(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    mut bytes: &[u8],
    subscriptions: &mut Reading<'_>,
) -> Result<Flow, End> {
    let limit = shared.options.max_packet_bytes;
    if !conn.partial.is_empty() {
        // Only as much as the packet needs is copied, and it is looked at again only when that much is there.
        let mut partial = std::mem::take(&mut conn.partial);
        loop {
            match frame(&partial, limit)? {
                Frame::Incomplete { needed } => {
                    let missing = needed.saturating_sub(partial.len()).max(1);
                    let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
                    partial.extend_from_slice(taken);
                    bytes = rest;
                    if taken.len() < missing {
                        conn.partial = partial;
                        return Ok(Flow::On);
                    }
                }
                Frame::Complete { ty, flags, body, .. } => {
                    if WATCHED && !watch::may_handle(lane, conn, ty, flags, body) {
                        partial.extend_from_slice(bytes);
                        watch::stash(conn, partial);
                        return Ok(Flow::Paused);
                    }
                    let flow = one(lane, shared, conn, slot, ty, flags, body, subscriptions)?;
                    if !matches!(flow, Flow::On) {
                        conn.partial = bytes.to_vec();
                        return Ok(flow);
                    }
                    break;
                }
            }
        }
    }
    while !bytes.is_empty() {
        match frame(bytes, limit)? {
            Frame::Complete { ty, flags, body, total } => {
                if WATCHED && !watch::may_handle(lane, conn, ty, flags, body) {
                    watch::stash(conn, bytes.to_vec());
                    return Ok(Flow::Paused);
                }
                let flow = one(lane, shared, conn, slot, ty, flags, body, subscriptions)?;
                bytes = &bytes[total..];
                if !matches!(flow, Flow::On) {
                    conn.partial = bytes.to_vec();
                    return Ok(flow);
                }
            }
            Frame::Incomplete { .. } => {
                conn.partial = bytes.to_vec();
                break;
            }
        }
    }
    Ok(Flow::On)
}

/// Handles one packet.
#[allow(clippy::too_many_arguments)]
#[inline]
fn one(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    ty: PacketType,
    flags: u8,
    body: &[u8],
    subscriptions: &mut Reading<'_>,
) -> Result<Flow, End> {
    lane.counters.packets_in += 1;
    if conn.state == State::Opened {
        if ty != PacketType::Connect {
            return Err(End::protocol("the first packet is not CONNECT"));
        }
        return Ok(on_connect(lane, conn, slot, body));
    }
    // The path of nearly every packet does without the enum of all of them.
    if ty == PacketType::Publish {
        let publish = Publish::parse(flags, body, conn.version)?;
        if publish.topic.is_empty() || publish.properties.get(PropertyId::TopicAlias).is_some() {
            on_aliased(lane, shared, conn, slot, &publish, subscriptions)?;
        } else {
            on_publish(lane, shared, conn, slot, &publish, subscriptions)?;
        }
        return Ok(Flow::On);
    }
    if ty == PacketType::Connect {
        return Err(End::protocol("a second CONNECT"));
    }
    match Packet::from_frame(ty, flags, body, conn.version)? {
        Packet::Ack(ack) => on_ack(lane, conn, slot, &ack)?,
        Packet::Subscribe(subscribe) => on_subscribe(lane, shared, conn, slot, &subscribe, subscriptions),
        Packet::Unsubscribe(unsubscribe) => {
            on_unsubscribe(lane, shared, conn, slot, &unsubscribe, subscriptions)
        }
        Packet::Pingreq => {
            conn.pings = conn.pings.saturating_add(1);
            lane.touch(conn, slot);
        }
        Packet::Disconnect(disconnect) => {
            if let Some(expiry_s) = disconnect.properties.number(PropertyId::SessionExpiryInterval) {
                if expiry_s > 0 && !conn.wishes.session() {
                    return Err(End::protocol("DISCONNECT raises a session expiry interval that was 0"));
                }
                if let Some(session) = &mut conn.session {
                    // A session that could not be granted is not granted now.
                    let most = if session.expiry_s == 0 { 0 } else { shared.options.max_session_expiry_s };
                    session.expiry_s = expiry_s.min(most);
                }
            }
            if disconnect.properties.get(PropertyId::ServerReference).is_some() {
                return Err(End::protocol("a client's DISCONNECT carries a server reference"));
            }
            return Ok(Flow::Bye(disconnect.reason == ReasonCode::Success));
        }
        Packet::Auth(_) => return Err(End::protocol("AUTH without an authentication method in CONNECT")),
        Packet::Connect(_) | Packet::Publish(_) => {}
        Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
            return Err(End::protocol("a packet that only servers send"));
        }
    }
    Ok(Flow::On)
}

/// A PUBLISH that sets a topic alias, or uses one in place of its topic (section 3.3.2.3.4).
fn on_aliased(
    lane: &mut Lane,
    shared: &Shared,
    conn: &mut Connection,
    slot: u32,
    publish: &Publish<'_>,
    subscriptions: &mut Reading<'_>,
) -> Result<(), End> {
    let most = shared.options.topic_alias_maximum;
    let alias = publish.properties.number(PropertyId::TopicAlias).unwrap_or(0);
    if alias == 0 || alias > u32::from(most) {
        let why = format!("topic alias {alias}, the topic alias maximum is {most}");
        return Err(End::new(ReasonCode::TopicAliasInvalid, why));
    }
    let at = alias as usize - 1;
    let aliases = &mut conn.session().aliases;
    if aliases.len() <= at {
        aliases.resize(at + 1, None);
    }
    if !publish.topic.is_empty() && aliases[at].as_deref() != Some(publish.topic) {
        aliases[at] = Some(publish.topic.into());
    }
    // Taken out while the message is handled, since the table is part of the connection.
    let Some(topic) = aliases[at].take() else {
        return Err(End::protocol("a topic alias that was never set stands in place of a topic name"));
    };
    let mut properties = std::mem::take(&mut lane.properties);
    without_alias(publish.properties, &mut properties);
    let named = Publish { topic: &topic, properties: Properties::from_checked(&properties), ..*publish };
    let result = on_publish(lane, shared, conn, slot, &named, subscriptions);
    lane.properties = properties;
    if let Some(place) = conn.session().aliases.get_mut(at) {
        *place = Some(topic);
    }
    result
}

fn on_ack(lane: &mut Lane, conn: &mut Connection, slot: u32, ack: &Ack<'_>) -> Result<(), End> {
    let (id, version, session) = (ack.packet_id, conn.version, conn.durable());
    // What a durable session is told next rests on this.
    let mut change = None;
    let wrong = |WrongAck| End::protocol("an acknowledgement is not the one that its message's QoS asks for");
    let answer = match ack.ty {
        PacketType::Puback => {
            if let Some(out) = &mut conn.out {
                let message = out.puback(id).map_err(wrong)?;
                change = (message != 0).then_some(Change::Done { message });
            }
            None
        }
        PacketType::Pubrec => {
            let error = ack.reason.is_error();
            let (reason, message) = match &mut conn.out {
                Some(out) => out.pubrec(id, error).map_err(wrong)?,
                None => ((!error).then_some(ReasonCode::PacketIdentifierNotFound), 0),
            };
            if message != 0 {
                change = Some(if error { Change::Done { message } } else { Change::Released { message } });
            }
            reason.map(|reason| (PacketType::Pubrel, reason))
        }
        PacketType::Pubcomp => {
            if let Some(out) = &mut conn.out {
                let message = out.pubcomp(id).map_err(wrong)?;
                change = (message != 0).then_some(Change::Done { message });
            }
            None
        }
        PacketType::Pubrel => {
            let known = conn.session.as_mut().is_some_and(|session| session.incoming.remove(&id));
            conn.unreleased = conn.unreleased.saturating_sub(u16::from(known));
            change = known.then_some(Change::Completed(id));
            let reason = if known { ReasonCode::Success } else { ReasonCode::PacketIdentifierNotFound };
            Some((PacketType::Pubcomp, reason))
        }
        _ => None,
    };
    if let Some(change) = change.filter(|_| session != 0) {
        lane.staging.session(session, &change);
    }
    if let Some((ty, reason)) = answer {
        conn.gate(lane, slot);
        put_ack(ty, id, reason, version, &mut conn.out(&mut lane.pool).bytes);
        lane.counters.packets_out += 1;
    }
    if conn.send_queued(&mut lane.delivery(slot)) || answer.is_some() {
        lane.touch(conn, slot);
    }
    Ok(())
}
