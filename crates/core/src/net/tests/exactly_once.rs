//! QoS 2 in both directions (section 4.3.3), and topic aliases.

use super::client::{connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{Connect, Packet, PacketType, Properties, Publish, QoS, ReasonCode, Version};

fn exactly_once<'a>(topic: &'a str, payload: &'a [u8], packet_id: u16) -> Publish<'a> {
    Publish { qos: QoS::ExactlyOnce, ..publish(topic, payload, packet_id) }
}

#[test]
fn the_same_id_before_its_release_is_one_message() {
    let fixture = Fixture::new();
    for version in [Version::V311, Version::V5] {
        let mut client = client::Client::connected(fixture.gateway().address(), version, "a");
        client.send_publish(&exactly_once("dt/s/d/telemetry", PAYLOAD, 7));
        client.send_publish(&Publish { dup: true, ..exactly_once("dt/s/d/telemetry", PAYLOAD, 7) });
        assert_eq!(client.ack(PacketType::Pubrec, 7), ReasonCode::Success);
        assert_eq!(client.ack(PacketType::Pubrec, 7), ReasonCode::Success);
        client.send_ack(PacketType::Pubrel, 7, ReasonCode::Success);
        assert_eq!(client.ack(PacketType::Pubcomp, 7), ReasonCode::Success);
        // Released, the id is a new message; a second release finds nothing.
        client.send_publish(&exactly_once("dt/s/d/telemetry", PAYLOAD, 7));
        assert_eq!(client.ack(PacketType::Pubrec, 7), ReasonCode::Success);
        client.send_ack(PacketType::Pubrel, 7, ReasonCode::Success);
        client.send_ack(PacketType::Pubrel, 7, ReasonCode::Success);
        assert_eq!(client.ack(PacketType::Pubcomp, 7), ReasonCode::Success);
        let unknown =
            if version == Version::V5 { ReasonCode::PacketIdentifierNotFound } else { ReasonCode::Success };
        assert_eq!(client.ack(PacketType::Pubcomp, 7), unknown);
    }
    let counters = fixture.until("decoded", |c| c.decoded == 4);
    assert_eq!(counters.received, 4);
    assert_eq!(fixture.row_count(TELEMETRY), 4);
}

#[test]
fn an_error_frees_the_id() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    for _ in 0..2 {
        client.send_publish(&exactly_once("dt/s/d/telemetry", b"no json", 7));
        assert_eq!(client.ack(PacketType::Pubrec, 7), ReasonCode::PayloadFormatInvalid);
    }
    fixture.until("dead letters", |c| c.dead_lettered == 2);
    // MQTT 3.1.1 has no word for it: the exchange goes on, and the second copy is the first.
    let mut client = fixture.v3("b");
    for _ in 0..2 {
        client.send_publish(&exactly_once("dt/s/d/telemetry", b"no json", 7));
        client.ack(PacketType::Pubrec, 7);
    }
    client.send_ack(PacketType::Pubrel, 7, ReasonCode::Success);
    client.ack(PacketType::Pubcomp, 7);
    assert_eq!(fixture.until("dead letters", |c| c.dead_lettered == 3).received, 3);
}

#[test]
fn a_subscriber_gets_each_message_through_all_four_packets() {
    let fixture = Fixture::new();
    for version in [Version::V311, Version::V5] {
        let mut subscriber = client::Client::connected(fixture.gateway().address(), version, "s");
        subscriber.subscribed("a", QoS::ExactlyOnce);
        let mut client = fixture.v5("a");
        client.send_publish(&exactly_once("a", b"x", 1));
        let received = subscriber.receive();
        let publish = received.publish();
        assert_eq!((publish.qos, publish.payload), (QoS::ExactlyOnce, &b"x"[..]));
        let id = publish.packet_id;
        subscriber.send_ack(PacketType::Pubrec, id, ReasonCode::Success);
        assert_eq!(subscriber.ack(PacketType::Pubrel, id), ReasonCode::Success);
        // Again: it is still ours to release.
        subscriber.send_ack(PacketType::Pubrec, id, ReasonCode::Success);
        assert_eq!(subscriber.ack(PacketType::Pubrel, id), ReasonCode::Success);
        subscriber.send_ack(PacketType::Pubcomp, id, ReasonCode::Success);
        assert!(subscriber.ping().is_empty());
        subscriber.send_ack(PacketType::Pubrec, id, ReasonCode::Success);
        let unknown =
            if version == Version::V5 { ReasonCode::PacketIdentifierNotFound } else { ReasonCode::Success };
        assert_eq!(subscriber.ack(PacketType::Pubrel, id), unknown);
    }
}

#[test]
fn no_pubrel_follows_a_pubrec_of_refusal_and_its_place_is_free() {
    let fixture = Fixture::new();
    let one = encode(&[Property { id: PropertyId::ReceiveMaximum, value: Value::TwoByte(1) }]);
    let mut subscriber = fixture.raw();
    let asked = Properties::check(&one, Place::In(PacketType::Connect)).unwrap();
    subscriber.connect(&Connect { properties: asked, ..connect(Version::V5, "s") });
    subscriber.subscribed("a", QoS::ExactlyOnce);
    let mut client = fixture.v5("a");
    client.send_publish(&exactly_once("a", b"1", 1));
    client.send_publish(&exactly_once("a", b"2", 2));
    let first = subscriber.receive().publish().packet_id;
    assert!(subscriber.ping().is_empty(), "the window is one message");
    subscriber.send_ack(PacketType::Pubrec, first, ReasonCode::QuotaExceeded);
    assert_eq!(subscriber.receive().publish().payload, b"2");
    assert!(subscriber.ping().is_empty());
}

#[test]
fn unreleased_messages_count_against_the_receive_maximum() {
    let fixture = Fixture::with(|options| options.receive_maximum = 2);
    let mut client = fixture.v5("a");
    for id in 1..=2 {
        client.send_publish(&exactly_once("a", b"x", id));
        client.ack(PacketType::Pubrec, id);
    }
    client.send_ack(PacketType::Pubrel, 1, ReasonCode::Success);
    client.ack(PacketType::Pubcomp, 1);
    client.send_publish(&exactly_once("a", b"x", 3));
    client.ack(PacketType::Pubrec, 3);
    client.send_publish(&exactly_once("a", b"x", 4));
    assert_eq!(client.ended(), Some(ReasonCode::ReceiveMaximumExceeded));
}

#[test]
fn a_maximum_qos_is_told_and_kept() {
    let fixture = Fixture::with(|options| options.maximum_qos = 1);
    let mut client = fixture.raw();
    let received = client.connect(&connect(Version::V5, "a"));
    let Packet::Connack(connack) = received.packet() else { unreachable!() };
    assert_eq!(connack.properties.number(PropertyId::MaximumQoS), Some(1));
    client.send_publish(&exactly_once("a", b"x", 1));
    assert_eq!(client.ended(), Some(ReasonCode::QoSNotSupported));
}

fn aliased<'a>(topic: &'a str, properties: &'a [u8]) -> Publish<'a> {
    let properties = Properties::check(properties, Place::In(PacketType::Publish)).unwrap();
    Publish { properties, ..publish(topic, b"x", 0) }
}

#[test]
fn an_alias_stands_for_its_topic_and_is_not_passed_on() {
    let fixture = Fixture::new();
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("#", QoS::AtMostOnce);
    let one = encode(&[
        Property { id: PropertyId::ContentType, value: Value::Text("t") },
        Property { id: PropertyId::TopicAlias, value: Value::TwoByte(1) },
    ]);
    let mut client = fixture.v5("a");
    for topic in ["first", "", "second", ""] {
        client.send_publish(&aliased(topic, &one));
    }
    for topic in ["first", "first", "second", "second"] {
        let received = subscriber.receive();
        assert_eq!(received.publish().topic, topic);
        assert_eq!(received.publish().properties.number(PropertyId::TopicAlias), None);
        assert_eq!(received.publish().properties.text(PropertyId::ContentType), Some("t"));
    }
    // Aliases are the connection's own.
    let mut other = fixture.v5("a");
    other.send_publish(&aliased("", &one));
    assert_eq!(other.ended(), Some(ReasonCode::ProtocolError));
}

#[test]
fn an_alias_above_the_maximum_is_an_error() {
    let fixture = Fixture::with(|options| options.topic_alias_maximum = 5);
    let raw = encode(&[Property { id: PropertyId::TopicAlias, value: Value::TwoByte(6) }]);
    let mut client = fixture.v5("a");
    client.send_publish(&aliased("a", &raw));
    assert_eq!(client.ended(), Some(ReasonCode::TopicAliasInvalid));
}

#[test]
fn a_subscriber_that_allows_aliases_gets_them() {
    let fixture = Fixture::new();
    let two = encode(&[Property { id: PropertyId::TopicAliasMaximum, value: Value::TwoByte(2) }]);
    let mut subscriber = fixture.raw();
    let asked = Properties::check(&two, Place::In(PacketType::Connect)).unwrap();
    subscriber.connect(&Connect { properties: asked, ..connect(Version::V5, "s") });
    subscriber.subscribed("#", QoS::AtMostOnce);
    let mut client = fixture.v5("a");
    for topic in ["a", "a", "b", "c", "b"] {
        client.send_publish(&publish(topic, b"x", 0));
    }
    for (topic, alias) in [("a", Some(1)), ("", Some(1)), ("b", Some(2)), ("c", None), ("", Some(2))] {
        let received = subscriber.receive();
        let publish = received.publish();
        assert_eq!((publish.topic, publish.properties.number(PropertyId::TopicAlias)), (topic, alias));
    }
}
