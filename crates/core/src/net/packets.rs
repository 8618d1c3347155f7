//! From bytes to packets, and from each packet to its handler.

use super::connection::{Connection, State};
use super::fanout::Reading;
use super::lane::{End, Flow, Lane, Shared};
use super::on_connect::on_connect;
use super::on_publish::on_publish;
use super::on_subscribe::{on_subscribe, on_unsubscribe};
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{Ack, Frame, Packet, PacketType, Properties, Publish, ReasonCode, frame};

/// Handles the packets in `bytes`, of which the first may have begun in `conn.partial`.
pub(super) fn packets(
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
        on_publish(lane, shared, conn, slot, &publish, subscriptions)?;
        return Ok(Flow::On);
    }
    if ty == PacketType::Connect {
        return Err(End::protocol("a second CONNECT"));
    }
    match Packet::from_frame(ty, flags, body, conn.version)? {
        Packet::Ack(ack) => on_ack(lane, conn, slot, &ack),
        Packet::Subscribe(subscribe) => on_subscribe(lane, shared, conn, slot, &subscribe, subscriptions),
        Packet::Unsubscribe(unsubscribe) => {
            on_unsubscribe(lane, shared, conn, slot, &unsubscribe, subscriptions)
        }
        Packet::Pingreq => {
            conn.pings = conn.pings.saturating_add(1);
            lane.touch(conn, slot);
        }
        Packet::Disconnect(disconnect) => {
            let raised =
                disconnect.properties.number(PropertyId::SessionExpiryInterval).is_some_and(|s| s > 0);
            if raised && !conn.wanted_session {
                return Err(End::protocol("DISCONNECT raises a session expiry interval that was 0"));
            }
            if disconnect.properties.get(PropertyId::ServerReference).is_some() {
                return Err(End::protocol("a client's DISCONNECT carries a server reference"));
            }
            return Ok(Flow::Bye);
        }
        Packet::Auth(_) => return Err(End::protocol("AUTH without an authentication method in CONNECT")),
        Packet::Connect(_) | Packet::Publish(_) => {}
        Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
            return Err(End::protocol("a packet that only servers send"));
        }
    }
    Ok(Flow::On)
}

fn on_ack(lane: &mut Lane, conn: &mut Connection, slot: u32, ack: &Ack<'_>) {
    let answer = match ack.ty {
        PacketType::Puback => {
            conn.acknowledged(ack.packet_id);
            if conn.send_queued(&mut lane.delivery()) {
                lane.touch(conn, slot);
            }
            return;
        }
        // We know no QoS 2 message, of either direction: the id is not found.
        PacketType::Pubrel => PacketType::Pubcomp,
        PacketType::Pubrec => PacketType::Pubrel,
        _ => return,
    };
    let reason = ReasonCode::PacketIdentifierNotFound;
    let answer = Ack { ty: answer, packet_id: ack.packet_id, reason, properties: Properties::NONE };
    answer.encode(conn.version, &mut conn.out(&mut lane.pool).bytes);
    lane.counters.packets_out += 1;
    lane.touch(conn, slot);
}
