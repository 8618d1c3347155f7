//! Properties of all packets: encoding and parsing are inverse, any cut is waited out, no bytes panic.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::properties::{self, Place};
use super::*;

const MAX: usize = 1 << 20;

fn text() -> impl Strategy<Value = String> {
    "[a-zäß€𝄞 /]{0,12}"
}

fn topic_name() -> impl Strategy<Value = String> {
    "[a-zé0-9$]{1,6}(/[a-z0-9]{0,6}){0,4}"
}

fn filter() -> impl Strategy<Value = String> {
    "([a-z0-9]{0,5}|\\+)(/([a-z0-9]{1,5}|\\+)){0,3}(/#)?"
        .prop_filter("no empty filter", |filter| !filter.is_empty())
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

/// Properties that `place` may carry, encoded.
fn properties_of(place: Place) -> impl Strategy<Value = Vec<u8>> {
    let numbers = (any::<u8>(), any::<u16>(), any::<u32>());
    vec((0u8..0x2b, numbers, text(), text(), topic_name(), bytes()), 0..5).prop_map(move |wanted| {
        let mut raw = Vec::new();
        for (code, (byte, two, four), text, other, name, data) in wanted {
            // Each possible value type is tried, and what the rules refuse is left out.
            for value in [
                Value::Byte(byte & 1),
                Value::TwoByte(two),
                Value::FourByte(four),
                Value::Variable(four % (wire::VARIABLE_MAX + 1)),
                Value::Text(&text),
                Value::Text(&name),
                Value::Binary(&data),
                Value::Pair(&text, &other),
            ] {
                let mut longer = raw.clone();
                longer.push(code);
                let mut encoded = Vec::new();
                Property { id: PropertyId::UserProperty, value }.put(&mut encoded);
                longer.extend_from_slice(&encoded[1..]);
                if Properties::check(&longer, place).is_ok() {
                    raw = longer;
                    break;
                }
            }
        }
        raw
    })
}

fn options() -> impl Strategy<Value = SubscriptionOptions> {
    (0u8..3, any::<bool>(), any::<bool>(), 0u8..3).prop_map(
        |(qos, no_local, retain_as_published, retain_handling)| {
            let qos = QoS::from_bits(qos).unwrap();
            SubscriptionOptions { qos, no_local, retain_as_published, retain_handling }
        },
    )
}

fn codes(of: PacketType) -> Vec<ReasonCode> {
    ReasonCode::ALL.iter().copied().filter(|code| code.allowed_in(of)).collect()
}

fn version() -> impl Strategy<Value = Version> {
    select(vec![Version::V311, Version::V5])
}

/// A property block as the version has it: none in 3.1.1.
fn block(version: Version, raw: &[u8], place: Place) -> Properties<'_> {
    match version {
        Version::V311 => Properties::NONE,
        Version::V5 => Properties::check(raw, place).unwrap(),
    }
}

/// Parses what was encoded, after every cut and with other bytes behind it; gives the packet to `check`.
fn round_trip(encoded: &[u8], version: Version, check: impl Fn(Packet<'_>)) {
    for cut in 0..encoded.len() {
        assert_eq!(parse(&encoded[..cut], version, MAX), Ok(Parsed::Incomplete), "cut at {cut}");
        let Ok(Frame::Incomplete { needed }) = frame(&encoded[..cut], MAX) else { panic!("cut at {cut}") };
        assert!(needed > cut && needed <= encoded.len(), "cut at {cut}: needs {needed} of {}", encoded.len());
    }
    let longer = [encoded, b"\xff\0more"].concat();
    match parse(&longer, version, MAX) {
        Ok(Parsed::Packet(packet, used)) => {
            assert_eq!(used, encoded.len());
            check(packet);
        }
        other => panic!("{other:?} from {encoded:02x?}"),
    }
}

const fn within(ty: PacketType) -> Place {
    Place::In(ty)
}

proptest! {
    #[test]
    fn connect_round_trip(
        version in version(),
        (clean_start, keep_alive_s, client_id) in (any::<bool>(), any::<u16>(), text()),
        raw in properties_of(within(PacketType::Connect)),
        will in option::of((topic_name(), bytes(), 0u8..3, any::<bool>(), properties_of(Place::Will))),
        user_name in option::of(text()),
        password in option::of(bytes()),
    ) {
        let connect = Connect {
            version,
            clean_start,
            keep_alive_s,
            client_id: &client_id,
            will: will.as_ref().map(|(topic, payload, qos, retain, raw)| Will {
                topic,
                payload,
                qos: QoS::from_bits(*qos).unwrap(),
                retain: *retain,
                properties: block(version, raw, Place::Will),
            }),
            user_name: user_name.as_deref(),
            password: password.as_deref().filter(|_| user_name.is_some() || version == Version::V5),
            properties: block(version, &raw, within(PacketType::Connect)),
        };
        let mut out = Vec::new();
        connect.encode(&mut out);
        round_trip(&out, version, |packet| assert_eq!(packet, Packet::Connect(connect)));
    }

    #[test]
    fn connack_round_trip(
        version in version(),
        session_present in any::<bool>(),
        reason in select(codes(PacketType::Connack)),
        raw in properties_of(within(PacketType::Connack)),
    ) {
        let code = if version == Version::V5 { reason as u8 } else { reason.connect_return_code().unwrap_or(0) };
        let properties = block(version, &raw, within(PacketType::Connack));
        let connack = Connack { session_present, code, properties };
        let mut out = Vec::new();
        connack.encode(version, &mut out);
        round_trip(&out, version, |packet| assert_eq!(packet, Packet::Connack(connack)));
    }

    #[test]
    fn publish_round_trip(
        version in version(),
        (dup, qos, retain, id) in (any::<bool>(), 0u8..3, any::<bool>(), 1u16..),
        topic in topic_name(),
        raw in properties_of(within(PacketType::Publish)),
        payload in vec(any::<u8>(), 0..300),
    ) {
        let publish = Publish {
            dup: dup && qos > 0,
            qos: QoS::from_bits(qos).unwrap(),
            retain,
            topic: &topic,
            packet_id: if qos == 0 { 0 } else { id },
            properties: block(version, &raw, within(PacketType::Publish)),
            payload: &payload,
        };
        let mut out = Vec::new();
        publish.encode(version, &mut out);
        prop_assert_eq!(out.len(), publish.encoded_len(version));
        round_trip(&out, version, |packet| assert_eq!(packet, Packet::Publish(publish)));
    }

    #[test]
    fn acknowledgement_round_trip(
        version in version(),
        (ty, reason) in select(vec![PacketType::Puback, PacketType::Pubrec, PacketType::Pubrel, PacketType::Pubcomp])
            .prop_flat_map(|ty| (Just(ty), select(codes(ty)))),
        packet_id in 1u16..,
        raw in properties_of(within(PacketType::Puback)),
    ) {
        let reason = if version == Version::V5 { reason } else { ReasonCode::Success };
        let ack = Ack { ty, packet_id, reason, properties: block(version, &raw, within(ty)) };
        let mut out = Vec::new();
        ack.encode(version, &mut out);
        round_trip(&out, version, |packet| assert_eq!(packet, Packet::Ack(ack)));
    }

    #[test]
    fn subscribe_round_trip(
        version in version(),
        packet_id in 1u16..,
        raw in properties_of(within(PacketType::Subscribe)),
        filters in vec((filter(), options()), 1..5),
    ) {
        let filters: Vec<(&str, SubscriptionOptions)> = filters
            .iter()
            .map(|(filter, options)| match version {
                Version::V5 => (filter.as_str(), *options),
                Version::V311 => (filter.as_str(), SubscriptionOptions::new(options.qos)),
            })
            .collect();
        let properties = block(version, &raw, within(PacketType::Subscribe));
        let mut out = Vec::new();
        Subscribe::encode(packet_id, properties, &filters, version, &mut out);
        round_trip(&out, version, |packet| {
            let Packet::Subscribe(subscribe) = packet else { panic!("{packet:?}") };
            assert_eq!((subscribe.packet_id, subscribe.properties), (packet_id, properties));
            assert_eq!(subscribe.filters().collect::<Vec<_>>(), filters);
        });
    }

    #[test]
    fn unsubscribe_round_trip(
        version in version(),
        packet_id in 1u16..,
        raw in properties_of(within(PacketType::Unsubscribe)),
        filters in vec(filter(), 1..5),
    ) {
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        let properties = block(version, &raw, within(PacketType::Unsubscribe));
        let mut out = Vec::new();
        Unsubscribe::encode(packet_id, properties, &filters, version, &mut out);
        round_trip(&out, version, |packet| {
            let Packet::Unsubscribe(unsubscribe) = packet else { panic!("{packet:?}") };
            assert_eq!((unsubscribe.packet_id, unsubscribe.properties), (packet_id, properties));
            assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), filters);
        });
    }

    #[test]
    fn suback_and_unsuback_round_trip(
        version in version(),
        packet_id in 1u16..,
        raw in properties_of(within(PacketType::Suback)),
        granted in vec(select(codes(PacketType::Suback)), 1..5),
        gone in vec(select(codes(PacketType::Unsuback)), 1..5),
    ) {
        let properties = block(version, &raw, within(PacketType::Suback));
        let granted: Vec<u8> = granted
            .iter()
            .map(|code| if version == Version::V311 && code.is_error() { 0x80 } else { *code as u8 })
            .collect();
        let suback = Suback { packet_id, properties, codes: &granted };
        let mut out = Vec::new();
        suback.encode(version, &mut out);
        round_trip(&out, version, |packet| assert_eq!(packet, Packet::Suback(suback)));

        let gone: Vec<u8> = gone.iter().map(|code| *code as u8).collect();
        let codes = if version == Version::V5 { &gone[..] } else { &[] };
        let unsuback = Unsuback { packet_id, properties, codes };
        let mut out = Vec::new();
        unsuback.encode(version, &mut out);
        round_trip(&out, version, |packet| assert_eq!(packet, Packet::Unsuback(unsuback)));
    }

    #[test]
    fn disconnect_and_auth_round_trip(
        version in version(),
        reason in select(codes(PacketType::Disconnect)),
        raw in properties_of(within(PacketType::Disconnect)),
        auth_reason in select(codes(PacketType::Auth)),
        auth_raw in properties_of(within(PacketType::Auth)),
    ) {
        let disconnect = Disconnect {
            reason: if version == Version::V5 { reason } else { ReasonCode::Success },
            properties: block(version, &raw, within(PacketType::Disconnect)),
        };
        let mut out = Vec::new();
        disconnect.encode(version, &mut out);
        round_trip(&out, version, |packet| assert_eq!(packet, Packet::Disconnect(disconnect)));

        let auth = Auth { reason: auth_reason, properties: block(Version::V5, &auth_raw, within(PacketType::Auth)) };
        let mut out = Vec::new();
        auth.encode(&mut out);
        round_trip(&out, Version::V5, |packet| assert_eq!(packet, Packet::Auth(auth)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(first in any::<u8>(), body in bytes(), version in version()) {
        let _ = parse(&[&[first], &body[..]].concat(), version, MAX);
        // With a right length, so that the body is reached.
        let mut out = Vec::new();
        header::put_packet(&mut out, first, |out| out.extend_from_slice(&body));
        match parse(&out, version, MAX) {
            Ok(Parsed::Packet(Packet::Subscribe(subscribe), _)) => assert!(subscribe.filters().count() > 0),
            Ok(Parsed::Packet(Packet::Unsubscribe(unsubscribe), _)) => assert!(unsubscribe.filters().count() > 0),
            Ok(Parsed::Incomplete) => panic!("the whole packet is there"),
            _ => {}
        }
    }

    #[test]
    fn a_valid_packet_with_one_byte_changed_never_panics(
        at in any::<prop::sample::Index>(), to in any::<u8>(), raw in properties_of(within(PacketType::Connect)),
    ) {
        let connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: 9,
            client_id: "client",
            will: Some(Will {
                topic: "t",
                payload: b"p",
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: Properties::NONE,
            }),
            user_name: Some("u"),
            password: None,
            properties: block(Version::V5, &raw, within(PacketType::Connect)),
        };
        let mut out = Vec::new();
        connect.encode(&mut out);
        let at = at.index(out.len());
        out[at] = to;
        let _ = parse(&out, Version::V5, MAX);
    }

    #[test]
    fn properties_come_back_as_they_were_put(raw in properties_of(within(PacketType::Connack))) {
        let checked = Properties::check(&raw, within(PacketType::Connack)).unwrap();
        let listed: Vec<_> = checked.iter().collect();
        prop_assert_eq!(properties::encode(&listed), raw.clone());
        for property in &listed {
            prop_assert!(checked.get(property.id).is_some());
        }
    }
}
