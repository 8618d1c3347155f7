//! CONNECT: who is it, what may they have, who must give way.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::ticks;
use super::connection::{Connection, State};
use super::events::EventKind;
use super::lane::{Flow, Lane, reason_properties};
use crate::mqtt::properties::{Property, PropertyId, Value, encode};
use crate::mqtt::{Connack, Connect, Properties, ReasonCode, Version, connect};

/// Longest client id. Ours: section 3.1.3.1 asks for 23 at least.
const MAX_CLIENT_ID_BYTES: usize = 1024;

pub(super) fn on_connect(lane: &mut Lane, conn: &mut Connection, slot: u32, body: &[u8]) -> Flow {
    let connect = match Connect::parse(body) {
        Ok(connect) => connect,
        Err(error) => {
            conn.version = connect::asked_version(body);
            return refuse(lane, conn, slot, error.reason, error.what);
        }
    };
    conn.version = connect.version;
    let v5 = connect.version == Version::V5;
    let number = |id| connect.properties.number(id);
    conn.receive_maximum = number(PropertyId::ReceiveMaximum).map_or(u16::MAX, |value| value as u16);
    conn.granted = lane.pressure.receive_maximum(lane.shared.options.receive_maximum);
    conn.max_packet_bytes = number(PropertyId::MaximumPacketSize).unwrap_or(u32::MAX);
    conn.problem_information = number(PropertyId::RequestProblemInformation) != Some(0);
    conn.wanted_session = number(PropertyId::SessionExpiryInterval).is_some_and(|seconds| seconds > 0);
    conn.client_id = connect.client_id.into();

    if connect.properties.get(PropertyId::AuthenticationMethod).is_some() {
        let why = "enhanced authentication is not supported";
        return refuse(lane, conn, slot, ReasonCode::BadAuthenticationMethod, why);
    }
    if connect.will.is_some() {
        let why = "wills are not supported yet; connect without one";
        return refuse(lane, conn, slot, ReasonCode::ImplementationSpecificError, why);
    }
    if connect.client_id.len() > MAX_CLIENT_ID_BYTES {
        let why = "the client identifier has more than 1024 bytes";
        return refuse(lane, conn, slot, ReasonCode::ClientIdentifierNotValid, why);
    }
    if connect.client_id.is_empty() {
        if !v5 && !connect.clean_start {
            let why = "an empty client identifier needs a clean session";
            return refuse(lane, conn, slot, ReasonCode::ClientIdentifierNotValid, why);
        }
        conn.client_id = new_client_id().into();
    }
    // Refusing a session would lock out clients that ask for one by default, so it ends with the connection.
    if conn.wanted_session || (!v5 && !connect.clean_start) {
        lane.counters.sessions_not_kept += 1;
        if !lane.shared.session_told.swap(true, Ordering::Relaxed) {
            let why = "a session beyond the connection was asked for; sessions end with their connections \
                       (told once, counted in sessions_not_kept)";
            lane.shared.events.add(EventKind::SessionNotKept, &conn.client_id, ReasonCode::Success, why);
        }
    }

    let mut keep_alive_s = connect.keep_alive_s;
    let longest = lane.shared.options.max_keep_alive_s;
    let server_keep_alive = v5 && longest != 0 && (keep_alive_s == 0 || keep_alive_s > longest);
    if server_keep_alive {
        keep_alive_s = longest;
    }
    // Section 3.1.2.10: one and a half times the keep alive.
    conn.silence = ticks(u32::from(keep_alive_s)).saturating_mul(3) / 2;
    conn.heard = lane.tick;
    // The timeout of the first packet counts no more.
    conn.timer = 0;

    let assigned = connect.client_id.is_empty();
    let properties = if v5 {
        welcome(lane, conn, assigned, server_keep_alive.then_some(keep_alive_s))
    } else {
        Vec::new()
    };
    let connack =
        Connack { session_present: false, code: 0, properties: Properties::from_checked(&properties) };
    connack.encode(conn.version, &mut conn.out(&mut lane.pool).bytes);
    lane.counters.packets_out += 1;
    lane.counters.connections += 1;
    lane.counters.connections_total += 1;
    let id = lane.id(slot, conn.generation);
    match lane.shared.registry.claim(&conn.client_id, id) {
        Some(old) if old != id => {
            conn.state = State::TakingOver;
            Flow::TakeOver(old)
        }
        _ => {
            conn.state = State::Up;
            lane.touch(conn, slot);
            Flow::On
        }
    }
}

/// What CONNACK tells an MQTT 5 client: only where we differ from the standard's defaults. Topic aliases
/// are absent, which is a maximum of 0.
fn welcome(lane: &Lane, conn: &Connection, assigned: bool, server_keep_alive_s: Option<u16>) -> Vec<u8> {
    let options = &lane.shared.options;
    let mut told = Vec::with_capacity(8);
    let mut tell = |id, value| told.push(Property { id, value });
    if conn.wanted_session {
        tell(PropertyId::SessionExpiryInterval, Value::FourByte(0));
    }
    if conn.granted != u16::MAX {
        tell(PropertyId::ReceiveMaximum, Value::TwoByte(conn.granted));
    }
    tell(PropertyId::MaximumQoS, Value::Byte(options.maximum_qos.min(1)));
    if !options.retain_available {
        tell(PropertyId::RetainAvailable, Value::Byte(0));
    }
    tell(PropertyId::MaximumPacketSize, Value::FourByte(options.max_packet_bytes as u32));
    if assigned {
        tell(PropertyId::AssignedClientIdentifier, Value::Text(&conn.client_id));
    }
    tell(PropertyId::SubscriptionIdentifierAvailable, Value::Byte(0));
    tell(PropertyId::SharedSubscriptionAvailable, Value::Byte(0));
    if let Some(keep_alive_s) = server_keep_alive_s {
        tell(PropertyId::ServerKeepAlive, Value::TwoByte(keep_alive_s));
    }
    encode(&told)
}

/// Answers with the error, where the version has a word for it, and ends the connection.
fn refuse(lane: &mut Lane, conn: &mut Connection, slot: u32, reason: ReasonCode, why: &str) -> Flow {
    lane.counters.refused_connections.count(reason);
    lane.shared.events.add(EventKind::ConnectionRefused, &conn.client_id, reason, why);
    let (code, properties) = match conn.version {
        Version::V5 => (Some(reason as u8), reason_properties(conn, true, 5, why)),
        Version::V311 => (reason.connect_return_code(), Vec::new()),
    };
    if let Some(code) = code {
        let properties = Properties::from_checked(&properties);
        let connack = Connack { session_present: false, code, properties };
        connack.encode(conn.version, &mut conn.out(&mut lane.pool).bytes);
        lane.counters.packets_out += 1;
        lane.touch(conn, slot);
    }
    Flow::Refused
}

/// Unique in this process, and not to be guessed.
fn new_client_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let random = RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
    format!("hw-{random:016x}")
}
