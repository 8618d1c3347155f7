//! Rules of the standards at the level of single packets, each test named after its rule.

use super::*;

const MAX: usize = 1 << 20;

fn parsed(bytes: &[u8], version: Version) -> Result<Packet<'_>, PacketError> {
    match parse(bytes, version, MAX)? {
        Parsed::Packet(packet, used) => {
            assert_eq!(used, bytes.len());
            Ok(packet)
        }
        Parsed::Incomplete => panic!("{bytes:02x?} is incomplete"),
    }
}

fn reason(bytes: &[u8], version: Version) -> ReasonCode {
    parsed(bytes, version).expect_err("must be refused").reason
}

/// A packet with first byte `first` and this body.
fn raw(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    header::put_packet(&mut out, first, |out| out.extend_from_slice(body));
    out
}

fn connect(level: u8, flags: u8, after: &[u8]) -> Vec<u8> {
    let mut body = b"\0\x04MQTT".to_vec();
    body.extend_from_slice(&[level, flags, 0, 60]);
    body.extend_from_slice(after);
    raw(0x10, &body)
}

fn both(bytes: &[u8], expected: ReasonCode) {
    for version in [Version::V311, Version::V5] {
        assert_eq!(reason(bytes, version), expected, "{version:?} {bytes:02x?}");
    }
}

use ReasonCode::{MalformedPacket, ProtocolError};

#[test]
fn packet_id_0_is_a_protocol_error() {
    for (first, body) in [
        (0x32, &b"\0\x01a\0\0\0"[..]),
        (0x40, b"\0\0"),
        (0x50, b"\0\0"),
        (0x62, b"\0\0"),
        (0x70, b"\0\0"),
        (0x82, b"\0\0\0\0\x01a\0"),
        (0xa2, b"\0\0\0\0\x01a"),
    ] {
        both(&raw(first, body), ProtocolError);
    }
}

#[test]
fn fixed_header_flags_are_exact() {
    for ty in [1u8, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
        let right = if matches!(ty, 6 | 8 | 10) { 2 } else { 0 };
        for flags in (0..16u8).filter(|flags| *flags != right) {
            both(&[ty << 4 | flags, 0], MalformedPacket);
        }
    }
    both(&[0x00, 0], MalformedPacket);
}

#[test]
fn dup_with_qos_0_and_qos_3_are_malformed() {
    both(&raw(0x38, b"\0\x01a"), MalformedPacket);
    both(&raw(0x36, b"\0\x01a\0\x01"), MalformedPacket);
    both(&raw(0x3e, b"\0\x01a\0\x01"), MalformedPacket);
}

#[test]
fn empty_subscribe_and_unsubscribe_are_protocol_errors() {
    assert_eq!(reason(&raw(0x82, b"\0\x01"), Version::V311), ProtocolError);
    assert_eq!(reason(&raw(0x82, b"\0\x01\0"), Version::V5), ProtocolError);
    assert_eq!(reason(&raw(0xa2, b"\0\x01"), Version::V311), ProtocolError);
    assert_eq!(reason(&raw(0xa2, b"\0\x01\0"), Version::V5), ProtocolError);
}

#[test]
fn reserved_subscription_option_bits_are_malformed() {
    for bit in [0x40, 0x80] {
        assert_eq!(reason(&raw(0x82, &[0, 1, 0, 0, 1, b'a', bit]), Version::V5), MalformedPacket);
    }
    assert_eq!(reason(&raw(0x82, &[0, 1, 0, 0, 1, b'a', 3]), Version::V5), ProtocolError);
    assert_eq!(reason(&raw(0x82, &[0, 1, 0, 0, 1, b'a', 0x30]), Version::V5), ProtocolError);
}

#[test]
fn mqtt_5_subscribe_option_bits_are_malformed_in_3_1_1() {
    for bit in [0x04, 0x08, 0x10, 0x20, 0x40, 0x80] {
        assert_eq!(reason(&raw(0x82, &[0, 1, 0, 1, b'a', bit]), Version::V311), MalformedPacket);
    }
}

#[test]
fn surrogates_overlong_utf8_and_nul_are_malformed_in_every_string() {
    for bad in [&b"\xed\xa0\x80"[..], b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"a\0b", b"\xf4\x90\x80\x80"]
    {
        let mut field = Vec::new();
        wire::put_binary(&mut field, bad);
        both(&raw(0x30, &field), MalformedPacket);
        assert_eq!(
            reason(&raw(0x82, &[b"\0\x01", &field[..], b"\0"].concat()), Version::V311),
            MalformedPacket
        );
        assert_eq!(
            reason(&raw(0x82, &[b"\0\x01\0", &field[..], b"\0"].concat()), Version::V5),
            MalformedPacket
        );
        assert_eq!(reason(&connect(4, 2, &field), Version::V311), MalformedPacket);
        assert_eq!(reason(&connect(5, 2, &[b"\0", &field[..]].concat()), Version::V5), MalformedPacket);
        let will = [b"\0\x01c", &field[..], b"\0\0"].concat();
        assert_eq!(reason(&connect(4, 6, &will), Version::V311), MalformedPacket);
        let user = [b"\0\x01c", &field[..]].concat();
        assert_eq!(reason(&connect(4, 0x82, &user), Version::V311), MalformedPacket);
    }
}

#[test]
fn wildcards_in_a_topic_name_are_refused() {
    for topic in ["a/+", "#", "a+b"] {
        let mut body = Vec::new();
        wire::put_binary(&mut body, topic.as_bytes());
        both(&raw(0x30, &body), MalformedPacket);
    }
}

#[test]
fn filters_with_misplaced_wildcards_are_refused() {
    for filter in ["", "a#", "#/a", "a/b+", "$share/g"] {
        let mut body = vec![0, 1];
        wire::put_binary(&mut body, filter.as_bytes());
        body.push(0);
        assert_eq!(reason(&raw(0x82, &body), Version::V311), MalformedPacket);
    }
}

#[test]
fn will_bits_without_the_will_flag_are_malformed() {
    for flags in [0x0a, 0x12, 0x22] {
        assert_eq!(reason(&connect(4, flags, b"\0\x01c"), Version::V311), MalformedPacket);
        assert_eq!(reason(&connect(5, flags, b"\0\0\x01c"), Version::V5), MalformedPacket);
    }
    assert_eq!(reason(&connect(4, 0x1e, b"\0\x01c\0\x01t\0\0"), Version::V311), MalformedPacket);
}

#[test]
fn connect_reserved_flag_is_malformed() {
    assert_eq!(reason(&connect(4, 0x03, b"\0\x01c"), Version::V311), MalformedPacket);
    assert_eq!(reason(&connect(5, 0x03, b"\0\0\x01c"), Version::V5), MalformedPacket);
}

#[test]
fn password_without_user_name_is_malformed_in_3_1_1_and_allowed_in_5() {
    assert_eq!(reason(&connect(4, 0x42, b"\0\x01c\0\x01p"), Version::V311), MalformedPacket);
    let bytes = connect(5, 0x42, b"\0\0\x01c\0\x01p");
    let Ok(Packet::Connect(connect)) = parsed(&bytes, Version::V5) else { panic!("must be accepted") };
    assert_eq!((connect.user_name, connect.password), (None, Some(&b"p"[..])));
}

#[test]
fn wrong_protocol_level_and_name_are_unsupported_versions() {
    for level in [0, 3, 6, 0x84] {
        assert_eq!(
            reason(&connect(level, 2, b"\0\x01c"), Version::V311),
            ReasonCode::UnsupportedProtocolVersion
        );
    }
    let old = raw(0x10, b"\0\x06MQIsdp\x04\x02\0\x3c\0\x01c");
    assert_eq!(reason(&old, Version::V311), ReasonCode::UnsupportedProtocolVersion);
    let old = raw(0x10, b"\0\x06MQIsdp\x03\x02\0\x3c\0\x01c");
    assert!(matches!(parsed(&old, Version::V5), Ok(Packet::Connect(Connect { version: Version::V311, .. }))));
    assert_eq!(ReasonCode::UnsupportedProtocolVersion.connect_return_code(), Some(1));
    assert_eq!(connect::asked_version(b"\0\x04MQTT\x06"), Version::V5);
    assert_eq!(connect::asked_version(b"\0\x04MQTT\x03"), Version::V311);
    assert_eq!(connect::asked_version(b"\0\x04MQTT\x84"), Version::V311);
    assert_eq!(connect::asked_version(b""), Version::V311);
}

#[test]
fn bytes_after_the_last_field_are_malformed() {
    assert_eq!(reason(&connect(4, 2, b"\0\x01cx"), Version::V311), MalformedPacket);
    both(&raw(0x40, b"\0\x01\0\0\0"), MalformedPacket);
    both(&raw(0xc0, b"x"), MalformedPacket);
    assert_eq!(reason(&raw(0xe0, b"\0"), Version::V311), MalformedPacket);
}

#[test]
fn remaining_length_has_four_bytes_at_most() {
    both(&[0x30, 0xff, 0xff, 0xff, 0xff], MalformedPacket);
    both(&[0x30, 0x80, 0x00], MalformedPacket);
}

#[test]
fn a_packet_above_the_maximum_is_refused_by_its_length_alone() {
    let promise = [0x30, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(frame(&promise, MAX).unwrap_err().reason, ReasonCode::PacketTooLarge);
    assert_eq!(frame(&promise[..4], MAX), Ok(Frame::Incomplete { needed: 5 }));
    // The maximum counts all bytes, header included.
    let exact = raw(0x30, &[b"\0\x01a", &[7; 200][..]].concat());
    assert!(matches!(frame(&exact, exact.len()), Ok(Frame::Complete { .. })));
    assert_eq!(frame(&exact, exact.len() - 1).unwrap_err().reason, ReasonCode::PacketTooLarge);
}

#[test]
fn duplicate_single_use_properties_are_protocol_errors() {
    let publish =
        |properties: &[u8]| raw(0x30, &[&b"\0\x01a"[..], &[properties.len() as u8], properties].concat());
    for property in
        [&[0x01, 0][..], &[0x02, 0, 0, 0, 9], &[0x03, 0, 1, b't'], &[0x08, 0, 1, b't'], &[0x09, 0, 0]]
    {
        assert!(parsed(&publish(property), Version::V5).is_ok(), "{property:02x?}");
        assert_eq!(reason(&publish(&property.repeat(2)), Version::V5), ProtocolError, "{property:02x?}");
    }
    let user = [0x26, 0, 1, b'k', 0, 1, b'v'];
    assert!(parsed(&publish(&user.repeat(3)), Version::V5).is_ok());
}

#[test]
fn properties_wrong_for_their_packet_are_malformed() {
    // Session expiry interval in PUBLISH, topic alias in CONNECT, will delay outside of a will, unknown 0x05.
    assert_eq!(reason(&raw(0x30, b"\0\x01a\x05\x11\0\0\0\x01"), Version::V5), MalformedPacket);
    assert_eq!(reason(&connect(5, 2, b"\x03\x23\0\x01\0\x01c"), Version::V5), MalformedPacket);
    assert_eq!(reason(&connect(5, 2, b"\x05\x18\0\0\0\x01\0\x01c"), Version::V5), MalformedPacket);
    assert_eq!(reason(&raw(0x30, b"\0\x01a\x02\x05\0"), Version::V5), MalformedPacket);
}

#[test]
fn property_values_out_of_range_are_protocol_errors() {
    let connect =
        |properties: &[u8]| connect(5, 2, &[&[properties.len() as u8], properties, b"\0\x01c"].concat());
    for bad in [
        &[0x21, 0, 0][..],   // receive maximum 0
        &[0x27, 0, 0, 0, 0], // maximum packet size 0
        &[0x17, 2],          // request problem information
        &[0x19, 2],          // request response information
        &[0x16, 0, 1, 7],    // authentication data without a method
    ] {
        assert_eq!(reason(&connect(bad), Version::V5), ProtocolError, "{bad:02x?}");
    }
    assert_eq!(reason(&raw(0x30, b"\0\x01a\x02\x01\x02"), Version::V5), ProtocolError);
    assert_eq!(reason(&raw(0x82, b"\0\x01\x02\x0b\0\0\x01a\0"), Version::V5), ProtocolError);
}

#[test]
fn topic_alias_0_is_an_error_and_an_empty_topic_needs_an_alias() {
    assert_eq!(reason(&raw(0x30, b"\0\x01a\x03\x23\0\0"), Version::V5), ReasonCode::TopicAliasInvalid);
    assert_eq!(reason(&raw(0x30, b"\0\0\0"), Version::V5), ProtocolError);
    assert_eq!(reason(&raw(0x30, b"\0\0"), Version::V311), ProtocolError);
    assert!(parsed(&raw(0x30, b"\0\0\x03\x23\0\x01"), Version::V5).is_ok());
}

#[test]
fn no_local_on_a_shared_subscription_is_a_protocol_error() {
    let body = [b"\0\x01\0\0\x0a$share/g/a", &[0x05][..]].concat();
    assert_eq!(reason(&raw(0x82, &body), Version::V5), ProtocolError);
}

#[test]
fn a_response_topic_holds_no_wildcards() {
    assert_eq!(reason(&raw(0x30, b"\0\x01a\x06\x08\0\x03a/+"), Version::V5), ProtocolError);
}

#[test]
fn reason_codes_belong_to_their_packets() {
    assert_eq!(reason(&raw(0x40, b"\0\x01\x92"), Version::V5), MalformedPacket);
    assert_eq!(reason(&raw(0x62, b"\0\x01\x80"), Version::V5), MalformedPacket);
    assert_eq!(reason(&raw(0xe0, b"\x01"), Version::V5), MalformedPacket);
    let bytes = raw(0x50, b"\0\x01\x92");
    assert_eq!(reason(&bytes, Version::V5), MalformedPacket);
    let bytes = raw(0x62, b"\0\x01\x92");
    let Ok(Packet::Ack(ack)) = parsed(&bytes, Version::V5) else { panic!("PUBREL 0x92 is fine") };
    assert_eq!(ack.reason, ReasonCode::PacketIdentifierNotFound);
}

#[test]
fn auth_is_reserved_in_3_1_1() {
    assert_eq!(reason(&[0xf0, 0], Version::V311), MalformedPacket);
    assert!(parsed(&[0xf0, 0], Version::V5).is_ok());
}

#[test]
fn a_successful_puback_is_four_bytes_in_both_versions() {
    for version in [Version::V311, Version::V5] {
        let ack = Ack {
            ty: PacketType::Puback,
            packet_id: 0x1234,
            reason: ReasonCode::Success,
            properties: Properties::NONE,
        };
        let mut out = Vec::new();
        ack.encode(version, &mut out);
        assert_eq!(out, ack::puback(0x1234));
    }
}
