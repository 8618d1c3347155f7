//! The MQTT a publisher needs: writes CONNECT, PUBLISH, PINGREQ, DISCONNECT; reads CONNACK, PUBACK,
//! PINGRESP, DISCONNECT. Bytes in, values out: no socket, no clock.
//!
//! Sections are those of MQTT 5.0 (OASIS, 2019); 3.1.1 differs only where `Protocol` is asked.

use super::options::Protocol;

/// Packets from the server are small; more is refused rather than buffered (ours).
pub const PACKET_MAX_BYTES: usize = 64 * 1024;

pub const PINGREQ: [u8; 2] = [0xc0, 0];
/// Without a reason code it means normal disconnection in both versions (section 3.14).
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

/// What a client says of itself in CONNECT. The session is always clean.
pub struct Connect<'a> {
    pub protocol: Protocol,
    pub client_id: &'a [u8],
    pub keep_alive_s: u16,
    pub user_name: Option<&'a [u8]>,
    pub password: Option<&'a [u8]>,
}

/// Section 3.1.
pub fn write_connect(connect: &Connect<'_>, out: &mut Vec<u8>) {
    let v5 = connect.protocol == Protocol::V5;
    let mut flags = 0b10;
    let mut length = 10 + usize::from(v5) + 2 + connect.client_id.len();
    for (text, flag) in [(connect.user_name, 0x80), (connect.password, 0x40)] {
        if let Some(text) = text {
            flags |= flag;
            length += 2 + text.len();
        }
    }
    out.push(0x10);
    write_length(length, out);
    write_text(b"MQTT", out);
    out.push(if v5 { 5 } else { 4 });
    out.push(flags);
    out.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
    if v5 {
        out.push(0);
    }
    write_text(connect.client_id, out);
    for text in [connect.user_name, connect.password].into_iter().flatten() {
        write_text(text, out);
    }
}

/// Section 3.3. `packet_id` None is QoS 0; `duplicate` marks a QoS 1 message sent before.
pub fn write_publish(
    protocol: Protocol,
    topic: &[u8],
    packet_id: Option<u16>,
    duplicate: bool,
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let properties = usize::from(protocol == Protocol::V5);
    let id_bytes = if packet_id.is_some() { 2 } else { 0 };
    out.push(0x30 | u8::from(duplicate) << 3 | u8::from(packet_id.is_some()) << 1);
    write_length(2 + topic.len() + id_bytes + properties + payload.len(), out);
    write_text(topic, out);
    if let Some(id) = packet_id {
        out.extend_from_slice(&id.to_be_bytes());
    }
    if protocol == Protocol::V5 {
        out.push(0);
    }
    out.extend_from_slice(payload);
}

/// Section 1.5.5, Variable Byte Integer.
fn write_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        if length == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

/// At most 65,535 bytes, which the options have checked.
fn write_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// Limits that an MQTT 5 server states in CONNACK; 3.1.1 servers state none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub receive_maximum: u16,
    pub maximum_qos: u8,
    pub maximum_packet_bytes: u32,
    /// Replaces the keep alive that the client asked for.
    pub keep_alive_s: Option<u16>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            receive_maximum: u16::MAX,
            maximum_qos: 2,
            maximum_packet_bytes: u32::MAX,
            keep_alive_s: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerPacket {
    /// Reason 0 is success; 3.1.1 return codes are 1 to 5, reasons of MQTT 5 from 0x80 on.
    ConnAck {
        reason: u8,
        limits: Limits,
    },
    PubAck {
        packet_id: u16,
        reason: u8,
    },
    PingResp,
    Disconnect {
        reason: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The packet continues in bytes not yet here.
    Incomplete,
    /// A packet and its length in bytes.
    Packet(ServerPacket, usize),
    /// What the server did wrong; the connection is of no more use.
    Malformed(&'static str),
}

/// The first packet of `bytes`.
pub fn parse(bytes: &[u8], protocol: Protocol) -> Parsed {
    let (mut length, mut at) = (0usize, 1);
    loop {
        let Some(&byte) = bytes.get(at) else { return Parsed::Incomplete };
        length |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if at == 5 {
            return Parsed::Malformed("a remaining length of more than four bytes");
        }
    }
    if length > PACKET_MAX_BYTES {
        return Parsed::Malformed("a packet of more than 64 KiB");
    }
    let Some(body) = bytes.get(at..at + length) else { return Parsed::Incomplete };
    let v5 = protocol == Protocol::V5;
    let packet = match (bytes[0], body) {
        (0x20, [_, reason]) if !v5 => {
            Some(ServerPacket::ConnAck { reason: *reason, limits: Limits::default() })
        }
        (0x20, [_, reason, properties @ ..]) if v5 => {
            limits(properties).map(|limits| ServerPacket::ConnAck { reason: *reason, limits })
        }
        // A PUBACK of two bytes means success (section 3.4.2.1).
        (0x40, [high, low]) => {
            Some(ServerPacket::PubAck { packet_id: u16::from_be_bytes([*high, *low]), reason: 0 })
        }
        (0x40, [high, low, reason, ..]) if v5 => {
            Some(ServerPacket::PubAck { packet_id: u16::from_be_bytes([*high, *low]), reason: *reason })
        }
        (0xd0, []) => Some(ServerPacket::PingResp),
        (0xe0, body) if v5 => Some(ServerPacket::Disconnect { reason: body.first().copied().unwrap_or(0) }),
        _ => None,
    };
    match packet {
        Some(packet) => Parsed::Packet(packet, at + length),
        None => Parsed::Malformed("a packet that no server sends to a publisher"),
    }
}

/// Section 3.2.2.3. None: the properties do not add up.
fn limits(bytes: &[u8]) -> Option<Limits> {
    let (length, used) = read_length(bytes)?;
    let mut rest = bytes.get(used..used + length)?;
    let mut limits = Limits::default();
    while let Some((&id, after)) = rest.split_first() {
        let number = |size: usize| {
            after.get(..size).map(|value| value.iter().fold(0u32, |sum, &byte| sum << 8 | u32::from(byte)))
        };
        let text_at = |at: usize| {
            let size = after.get(at..at + 2)?;
            Some(at + 2 + usize::from(u16::from_be_bytes([size[0], size[1]])))
        };
        let size = match id {
            0x24 => {
                limits.maximum_qos = number(1)? as u8;
                1
            }
            0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x21 => {
                limits.receive_maximum = number(2)? as u16;
                2
            }
            0x13 => {
                limits.keep_alive_s = Some(number(2)? as u16);
                2
            }
            0x22 => 2,
            0x27 => {
                limits.maximum_packet_bytes = number(4)?;
                4
            }
            0x11 => 4,
            0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => text_at(0)?,
            0x26 => text_at(text_at(0)?)?,
            _ => return None,
        };
        rest = after.get(size..)?;
    }
    // Both are protocol errors of the server (sections 3.2.2.3.3 and 3.2.2.3.6).
    (limits.receive_maximum > 0 && limits.maximum_packet_bytes > 0).then_some(limits)
}

fn read_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0usize;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((length, at + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn connect_is_as_the_standard_draws_it() {
        let mut out = Vec::new();
        let connect = Connect {
            protocol: Protocol::V5,
            client_id: b"c1",
            keep_alive_s: 60,
            user_name: Some(b"u"),
            password: Some(b"pw"),
        };
        write_connect(&connect, &mut out);
        assert_eq!(out, b"\x10\x16\0\x04MQTT\x05\xc2\0\x3c\0\0\x02c1\0\x01u\0\x02pw");
        out.clear();
        let connect = Connect { protocol: Protocol::V311, user_name: None, password: None, ..connect };
        write_connect(&connect, &mut out);
        assert_eq!(out, b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02c1");
    }

    #[test]
    fn publish_carries_the_packet_id_only_at_qos_1() {
        let mut out = Vec::new();
        write_publish(Protocol::V5, b"a/b", Some(258), true, b"{}", &mut out);
        assert_eq!(out, b"\x3a\x0a\0\x03a/b\x01\x02\0{}");
        out.clear();
        write_publish(Protocol::V311, b"a/b", None, false, b"{}", &mut out);
        assert_eq!(out, b"\x30\x07\0\x03a/b{}");
        out.clear();
        write_publish(Protocol::V311, b"a", None, false, &[b'x'; 125], &mut out);
        assert_eq!(out[..3], *b"\x30\x80\x01");
    }

    #[test]
    fn connack_of_mqtt_5_states_the_limits() {
        let bytes = b"\x20\x19\0\0\x16\x21\0\x0a\x24\0\x13\0\x1e\x27\0\0\x10\0\x26\0\x01k\0\x01v\x25\0";
        let limits = Limits {
            receive_maximum: 10,
            maximum_qos: 0,
            maximum_packet_bytes: 4096,
            keep_alive_s: Some(30),
        };
        assert_eq!(
            parse(bytes, Protocol::V5),
            Parsed::Packet(ServerPacket::ConnAck { reason: 0, limits }, bytes.len())
        );
    }

    #[test]
    fn acknowledgements_of_both_versions() {
        let ack = |packet_id, reason, size| Parsed::Packet(ServerPacket::PubAck { packet_id, reason }, size);
        assert_eq!(parse(b"\x40\x02\x01\x02", Protocol::V311), ack(258, 0, 4));
        assert_eq!(parse(b"\x40\x03\x01\x02\x99", Protocol::V5), ack(258, 0x99, 5));
        assert_eq!(parse(b"\x40\x04\x01\x02\x10\0rest", Protocol::V5), ack(258, 0x10, 6));
        assert!(matches!(parse(b"\x40\x03\x01\x02\x99", Protocol::V311), Parsed::Malformed(_)));
        assert_eq!(
            parse(b"\x20\x02\0\x05", Protocol::V311),
            Parsed::Packet(ServerPacket::ConnAck { reason: 5, limits: Limits::default() }, 4)
        );
        assert_eq!(
            parse(b"\xe0\x01\x8b", Protocol::V5),
            Parsed::Packet(ServerPacket::Disconnect { reason: 0x8b }, 3)
        );
    }

    #[test]
    fn a_server_that_breaks_the_protocol_is_named() {
        assert!(matches!(parse(b"\x20\xff\xff\xff\xff\x01", Protocol::V5), Parsed::Malformed(_)));
        assert!(matches!(parse(b"\x20\x80\x80\x7f", Protocol::V5), Parsed::Malformed(_)));
        assert!(matches!(parse(b"\x30\x02ab", Protocol::V5), Parsed::Malformed(_)));
        // Receive Maximum 0.
        assert!(matches!(parse(b"\x20\x06\0\0\x03\x21\0\0", Protocol::V5), Parsed::Malformed(_)));
    }

    proptest! {
        #[test]
        fn a_cut_packet_is_incomplete_at_every_byte(id in 1u16.., reason in any::<u8>()) {
            let [high, low] = id.to_be_bytes();
            let packet = [0x40, 3, high, low, reason];
            for cut in 0..packet.len() {
                prop_assert_eq!(parse(&packet[..cut], Protocol::V5), Parsed::Incomplete);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64), v5 in any::<bool>()) {
            let protocol = if v5 { Protocol::V5 } else { Protocol::V311 };
            if let Parsed::Packet(_, size) = parse(&bytes, protocol) {
                prop_assert!(size <= bytes.len());
            }
        }
    }
}
