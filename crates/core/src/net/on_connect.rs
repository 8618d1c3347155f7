//! CONNECT: who is it, what may they have, who must give way.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use super::access::{self, Access};
use super::clock::{TICK_MS, now_us, ticks};
use super::connection::{Connection, State, Wishes};
use super::events::EventKind;
use super::flapping::Verdict;
use super::lane::{Flow, Lane, reason_properties};
use super::limits::Limit;
use super::logins::{Answer, Origin};
use super::on_publish::refusal;
use super::session::{FOREVER, GivenAliases, Testament};
use crate::mqtt::properties::{Property, PropertyId, Value, encode};
use crate::mqtt::{Connack, Connect, Properties, ReasonCode, Version, Will, connect};

/// Longest client id. Ours: section 3.1.3.1 asks for 23 at least.
const MAX_CLIENT_ID_BYTES: usize = 1024;

/// What the CONNACK needs to know of the CONNECT, which another thread may write.
#[derive(Debug)]
pub(super) struct Hello {
    pub clean_start: bool,
    assigned: bool,
    server_keep_alive_s: Option<u16>,
    /// Where it is not what the client asked for.
    session_expiry_s: Option<u32>,
    v31: bool,
}

pub(super) fn on_connect(lane: &mut Lane, conn: &mut Connection, slot: u32, body: &[u8]) -> Flow {
    let connect = match Connect::parse(body) {
        Ok(connect) => connect,
        Err(error) => {
            conn.version = connect::asked_version(body);
            return refuse(lane, conn, slot, error.reason, error.what);
        }
    };
    conn.version = connect.version;
    let (v5, v31) = (connect.version == Version::V5, connect::is_v31(body));
    let number = |id| connect.properties.number(id);
    conn.receive_maximum = number(PropertyId::ReceiveMaximum).map_or(u16::MAX, |value| value as u16);
    conn.granted = lane.pressure.receive_maximum(lane.shared.options.receive_maximum);
    conn.max_packet_bytes = number(PropertyId::MaximumPacketSize).unwrap_or(u32::MAX);
    conn.wishes = Wishes::new(connect.clean_start, false);
    conn.problem_information = number(PropertyId::RequestProblemInformation) != Some(0);
    let before = std::mem::replace(&mut conn.client_id, connect.client_id.into());

    if connect.properties.get(PropertyId::AuthenticationMethod).is_some() {
        let why = "enhanced authentication is not supported";
        return refuse(lane, conn, slot, ReasonCode::BadAuthenticationMethod, why);
    }
    if connect.client_id.len() > MAX_CLIENT_ID_BYTES {
        let why = "the client identifier has more than 1024 bytes";
        return refuse(lane, conn, slot, ReasonCode::ClientIdentifierNotValid, why);
    }
    let assigned = connect.client_id.is_empty();
    if assigned {
        if !v5 && (!connect.clean_start || v31) {
            let why = "an empty client identifier needs a clean session, and MQTT 3.1.1 or later";
            return refuse(lane, conn, slot, ReasonCode::ClientIdentifierNotValid, why);
        }
        // After the answer the one that was asked about.
        conn.client_id = if conn.access.is_some() { before } else { new_client_id().into() };
    }
    if conn.access.is_none()
        && !assigned
        && let Some(why) = comes_too_often(lane, conn)
    {
        return refuse(lane, conn, slot, ReasonCode::ConnectionRateExceeded, &why);
    }
    if conn.access.is_none() && lane.shared.options.logins.is_some() {
        return ask(lane, conn, slot, body);
    }
    if let Some(will) = &connect.will {
        if let Some((reason, why)) = will_refusal(lane, will) {
            return refuse(lane, conn, slot, reason, why);
        }
        if !access::may_publish(&mut conn.access, will.topic, will.retain) {
            lane.counters.denied_publish += 1;
            return refuse(lane, conn, slot, ReasonCode::NotAuthorized, access::PUBLISH_DENIED);
        }
        conn.session().will = Some(Box::new(Testament::new(will, lane.tick)));
    }
    if let Some(most) = number(PropertyId::TopicAliasMaximum).filter(|most| *most > 0) {
        conn.session().given = GivenAliases::new(most as u16);
    }
    // MQTT 3.1.1: a session that is not clean lasts, which here ends at the longest expiry that is set.
    let asked = if v5 { number(PropertyId::SessionExpiryInterval).unwrap_or(0) } else { FOREVER };
    let asked = if !v5 && connect.clean_start { 0 } else { asked };
    let mut expiry_s = asked.min(lane.shared.options.max_session_expiry_s);
    if expiry_s > 0 && lane.shared.parked.load(Ordering::Relaxed) >= lane.shared.options.max_sessions {
        lane.counters.sessions_not_kept += 1;
        let why = "max_sessions are kept already; the session ends with the connection";
        lane.shared.events.add(EventKind::SessionNotKept, &conn.client_id, ReasonCode::QuotaExceeded, why);
        expiry_s = 0;
    }
    conn.wishes = Wishes::new(connect.clean_start, asked > 0);
    if expiry_s > 0 {
        conn.session().expiry_s = expiry_s;
    }

    let mut keep_alive_s = connect.keep_alive_s;
    let longest = lane.shared.options.max_keep_alive_s;
    let server_keep_alive = v5 && longest != 0 && (keep_alive_s == 0 || keep_alive_s > longest);
    if server_keep_alive {
        keep_alive_s = longest;
    }
    conn.until = access_ends(conn, lane.tick);
    // Section 3.1.2.10: one and a half times the keep alive.
    conn.silence = ticks(u32::from(keep_alive_s)).saturating_mul(3) / 2;
    let hello = Hello {
        clean_start: connect.clean_start,
        assigned,
        server_keep_alive_s: server_keep_alive.then_some(keep_alive_s),
        session_expiry_s: (expiry_s != asked).then_some(expiry_s),
        v31,
    };
    if v5 && connack(lane, conn, &hello, false).len() > conn.max_packet_bytes as usize {
        let why = "the CONNACK is larger than the client's maximum packet size";
        return refuse(lane, conn, slot, ReasonCode::ImplementationSpecificError, why);
    }
    let id = lane.id(slot, conn.generation);
    match lane.shared.registry.claim(&conn.client_id, id) {
        Ok(()) => {
            welcome(lane, conn, slot, &hello, false);
            Flow::On
        }
        Err(owner) => {
            conn.hello = Some(Box::new(hello));
            Flow::Join(owner)
        }
    }
}

/// The tick at which the client's token or its certificate counts no more, whichever is first.
fn access_ends(conn: &Connection, tick: u32) -> u32 {
    let token = match conn.access.as_deref() {
        Some(Access::Granted(granted)) => granted.principal.until_ms,
        _ => None,
    };
    let certificate = conn.socket.as_ref().and_then(|socket| Some(socket.identity()?.until_ms()));
    let Some(until_ms) = token.into_iter().chain(certificate).min() else { return u32::MAX };
    let ahead_ms = until_ms.saturating_sub((now_us() / 1000).unsigned_abs());
    tick.saturating_add(u32::try_from(ahead_ms.div_ceil(TICK_MS)).unwrap_or(u32::MAX))
}

/// Why a client that connects again and again is refused for a while. Before anybody is asked who it is, since that costs
/// more than this; by address too, so that nobody is locked out by a stranger who uses its client id.
fn comes_too_often(lane: &Lane, conn: &Connection) -> Option<String> {
    let most = conn.limits().flapping_connects;
    if most == 0 {
        return None;
    }
    let address = conn.socket.as_ref().and_then(|socket| socket.peer()).map(|peer| peer.ip());
    let flapping = &lane.shared.flapping;
    let verdict = flapping.count(flapping.client(&conn.client_id, address), most, lane.tick);
    let options = &lane.shared.options;
    let (window, ban) = (options.flapping_window_s, options.flapping_ban_s);
    let why = match verdict {
        Verdict::Fine => return None,
        Verdict::TooMany => {
            format!("more than flapping_connects = {most} connections within {window} s; refused for {ban} s")
        }
        Verdict::KeptOut => {
            format!("refused for {ban} s after more than {most} connections within {window} s")
        }
    };
    conn.limited(Limit::FlappingConnects);
    Some(why)
}

/// Leaves the CONNECT to those who know who the client is.
fn ask(lane: &mut Lane, conn: &mut Connection, slot: u32, body: &[u8]) -> Flow {
    let id = lane.id(slot, conn.generation);
    let origin = conn.socket.as_ref().map(Origin::of).unwrap_or_default();
    let asked =
        lane.shared.options.logins.as_ref().map(|logins| logins.ask(id, &conn.client_id, body, origin));
    let Some(Some(number)) = asked else {
        let why = "too many clients wait to be identified (auth.max_waiting, auth.max_waiting_bytes)";
        return refuse(lane, conn, slot, ReasonCode::ServerBusy, why);
    };
    conn.access = Some(Box::new(Access::Asked(number)));
    conn.state = State::Asked;
    conn.heard = lane.tick;
    Flow::Asked
}

/// Goes on with a CONNECT whose answer has come.
pub(super) fn on_answer(lane: &mut Lane, conn: &mut Connection, slot: u32, answer: Answer) -> Flow {
    match answer.result {
        Ok(granted) => {
            conn.access = Some(Box::new(Access::Granted(granted)));
            on_connect(lane, conn, slot, &answer.body)
        }
        Err((reason, why)) => {
            lane.counters.denied_connect += u64::from(reason == ReasonCode::NotAuthorized);
            refuse(lane, conn, slot, reason, &why)
        }
    }
}

/// Writes the CONNACK of success; from here on the connection is up.
pub(super) fn welcome(
    lane: &mut Lane,
    conn: &mut Connection,
    slot: u32,
    hello: &Hello,
    session_present: bool,
) {
    conn.state = State::Up;
    conn.heard = lane.tick;
    // The timeout of the first packet counts no more.
    conn.timer = 0;
    open_session(lane, conn);
    conn.gate(lane, slot);
    let connack = connack(lane, conn, hello, session_present);
    conn.out(&mut lane.pool).bytes.extend_from_slice(&connack);
    lane.counters.packets_out += 1;
    lane.counters.connections += 1;
    lane.counters.connections_total += 1;
    conn.since_ms = (now_us() / 1000).unsigned_abs();
    lane.note_connected(conn, slot);
    lane.touch(conn, slot);
}

/// Writes down that a session which outlives its connection begins, or goes on.
fn open_session(lane: &mut Lane, conn: &mut Connection) {
    let Some(sessions) = &lane.shared.sessions else { return };
    let Some(session) = conn.session.as_mut() else { return };
    if session.durable == 0 {
        if session.expiry_s == 0 {
            return;
        }
        session.durable = sessions.next_id.fetch_add(1, Ordering::Relaxed);
    }
    lane.staging.opened(conn, sessions.epoch);
}

fn connack(lane: &Lane, conn: &Connection, hello: &Hello, session_present: bool) -> Vec<u8> {
    let properties = if conn.version == Version::V5 { told(lane, conn, hello) } else { Vec::new() };
    let session_present = session_present && !hello.v31;
    let connack = Connack { session_present, code: 0, properties: Properties::from_checked(&properties) };
    let mut bytes = Vec::with_capacity(32);
    connack.encode(conn.version, &mut bytes);
    bytes
}

/// What CONNACK tells an MQTT 5 client: only where we differ from the standard's defaults.
fn told(lane: &Lane, conn: &Connection, hello: &Hello) -> Vec<u8> {
    let options = &lane.shared.options;
    let mut told = Vec::with_capacity(8);
    let mut tell = |id, value| told.push(Property { id, value });
    if let Some(expiry_s) = hello.session_expiry_s {
        tell(PropertyId::SessionExpiryInterval, Value::FourByte(expiry_s));
    }
    if conn.granted != u16::MAX {
        tell(PropertyId::ReceiveMaximum, Value::TwoByte(conn.granted));
    }
    if options.maximum_qos < 2 {
        tell(PropertyId::MaximumQoS, Value::Byte(options.maximum_qos));
    }
    if !options.retain_available {
        tell(PropertyId::RetainAvailable, Value::Byte(0));
    }
    tell(PropertyId::MaximumPacketSize, Value::FourByte(options.max_packet_bytes as u32));
    if hello.assigned {
        tell(PropertyId::AssignedClientIdentifier, Value::Text(&conn.client_id));
    }
    if options.topic_alias_maximum > 0 {
        tell(PropertyId::TopicAliasMaximum, Value::TwoByte(options.topic_alias_maximum));
    }
    if let Some(keep_alive_s) = hello.server_keep_alive_s {
        tell(PropertyId::ServerKeepAlive, Value::TwoByte(keep_alive_s));
    }
    encode(&told)
}

/// Why a will is not accepted, if so: what would be refused at the end of the connection is refused now.
fn will_refusal(lane: &Lane, will: &Will<'_>) -> Option<(ReasonCode, &'static str)> {
    let options = &lane.shared.options;
    if will.qos as u8 > options.maximum_qos {
        return Some((ReasonCode::QoSNotSupported, "the will's QoS is above maximum_qos"));
    }
    if will.retain && !options.retain_available {
        return Some((
            ReasonCode::RetainNotSupported,
            "a retained will, and retained messages are not available",
        ));
    }
    refusal(options, will.topic, will.payload)
}

/// Answers with the error, where the version has a word for it, and ends the connection.
pub(super) fn refuse(
    lane: &mut Lane,
    conn: &mut Connection,
    slot: u32,
    reason: ReasonCode,
    why: &str,
) -> Flow {
    lane.counters.refused_connections.count(reason);
    if let Some(socket) = &conn.socket {
        socket.listener().refused_connect(reason);
    }
    let (kind, origin) = (EventKind::ConnectionRefused, conn.origin());
    lane.shared.events.add_from(kind, &conn.client_id, reason, why, origin);
    let (code, properties) = match conn.version {
        Version::V5 => (Some(reason as u8), reason_properties(conn, true, 5, why)),
        Version::V311 => (reason.connect_return_code(), Vec::new()),
    };
    // The smallest CONNACK of MQTT 5.
    if let Some(code) = code.filter(|_| conn.max_packet_bytes >= 5) {
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
