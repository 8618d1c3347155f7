//! Sessions that outlive their connection (section 4.1), and the one connection of a client id (section 3.1.4).

use super::client::{Client, Received, connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{Connect, Disconnect, Packet, PacketType, Properties, Publish, QoS, ReasonCode, Version};

fn expiry(seconds: u32) -> Vec<u8> {
    encode(&[Property { id: PropertyId::SessionExpiryInterval, value: Value::FourByte(seconds) }])
}

/// A CONNECT of MQTT 5 that goes on with its session.
fn lasting<'a>(client_id: &'a str, raw: &'a [u8]) -> Connect<'a> {
    let properties = Properties::check(raw, Place::In(PacketType::Connect)).unwrap();
    Connect { clean_start: false, properties, ..connect(Version::V5, client_id) }
}

/// Connects and gives the client and whether there was a session.
fn resumed(fixture: &Fixture, connect: &Connect<'_>) -> (Client, bool) {
    let mut client = fixture.raw();
    let (_, session_present) = client.resume(connect);
    (client, session_present)
}

fn gone(fixture: &Fixture, client: Client, left: u64) {
    drop(client);
    fixture.until("the connection's end", |c| c.connections == left);
}

fn exactly_once<'a>(topic: &'a str, payload: &'a [u8], packet_id: u16) -> Publish<'a> {
    Publish { qos: QoS::ExactlyOnce, ..publish(topic, payload, packet_id) }
}

#[test]
fn a_session_keeps_subscriptions_and_what_came_meanwhile() {
    let fixture = Fixture::new();
    let mut sender = fixture.v5("sender");
    let hour = expiry(3600);
    let v3 = Connect { clean_start: false, ..connect(Version::V311, "a3") };
    for connect in [lasting("a5", &hour), v3] {
        let (mut client, present) = resumed(&fixture, &connect);
        assert!(!present);
        client.subscribed("news", QoS::ExactlyOnce);
        gone(&fixture, client, 1);
        for (qos, payload) in [(1, b"1"), (0, b"0"), (2, b"2")] {
            let qos = QoS::from_bits(qos).unwrap();
            sender.send_publish(&Publish { qos, ..publish("news", payload, qos as u16) });
        }
        sender.ack(PacketType::Puback, 1);
        sender.ack(PacketType::Pubrec, 2);
        sender.send_ack(PacketType::Pubrel, 2, ReasonCode::Success);
        sender.ack(PacketType::Pubcomp, 2);
        let (mut client, present) = resumed(&fixture, &connect);
        assert!(present);
        for (qos, payload) in [(QoS::AtLeastOnce, b"1"), (QoS::ExactlyOnce, b"2")] {
            let received = client.receive();
            let publish = received.publish();
            assert_eq!((publish.qos, publish.payload, publish.dup), (qos, &payload[..], false));
        }
        assert!(client.ping().is_empty(), "QoS 0 is for those who are there");
        sender.publish("news", b"live");
        assert_eq!(client.receive().publish().payload, b"live");
        gone(&fixture, client, 1);
        let (client, _) = resumed(&fixture, &Connect { clean_start: true, ..connect });
        gone(&fixture, client, 1);
        let mut client = fixture.raw();
        assert!(!client.resume(&Connect { clean_start: true, ..connect }).1, "clean start ends the session");
        assert!(client.ping().is_empty());
        client.send(&[0xe0, 0]);
        client.ended();
    }
}

#[test]
fn the_end_of_the_old_connection_is_not_that_of_the_new_one() {
    let fixture = Fixture::new();
    let hour = expiry(3600);
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    client.subscribed("t", QoS::AtLeastOnce);
    for _ in 0..100 {
        client.send_publish(&publish("t", b"x", 1));
        let received: Vec<Received> = (0..2).map(|_| client.receive()).collect();
        let packet_id = received.iter().find_map(|received| match received.packet() {
            Packet::Publish(publish) => Some(publish.packet_id),
            _ => None,
        });
        client.send_puback(packet_id.unwrap());
        drop(client);
        // Its thread rests while the log writes, and learns of the old end and of the new CONNECT in one pass.
        let (next, present) = resumed(&fixture, &lasting("a", &hour));
        assert!(present);
        client = next;
        client.ping();
    }
}

#[test]
fn what_was_not_acknowledged_is_sent_again_in_order() {
    let fixture = Fixture::new();
    let hour = expiry(3600);
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    client.subscribed("#", QoS::ExactlyOnce);
    let mut sender = fixture.v5("sender");
    for id in 1..=4 {
        sender.send_publish(&exactly_once("t", &[id as u8], id));
        sender.ack(PacketType::Pubrec, id);
    }
    sender.publish("t", b"five");
    let ids: Vec<u16> = (0..5).map(|_| client.receive().publish().packet_id).collect();
    // The first is done, the second is released, the third is received.
    for id in &ids[..2] {
        client.send_ack(PacketType::Pubrec, *id, ReasonCode::Success);
        client.ack(PacketType::Pubrel, *id);
    }
    client.send_ack(PacketType::Pubcomp, ids[0], ReasonCode::Success);
    assert!(client.ping().is_empty());
    gone(&fixture, client, 1);
    let (mut client, present) = resumed(&fixture, &lasting("a", &hour));
    assert!(present);
    assert_eq!(client.ack(PacketType::Pubrel, ids[1]), ReasonCode::Success);
    for (at, qos) in [(2, QoS::ExactlyOnce), (3, QoS::ExactlyOnce), (4, QoS::AtLeastOnce)] {
        let received = client.receive();
        let publish = received.publish();
        assert_eq!((publish.packet_id, publish.qos, publish.dup), (ids[at], qos, true));
    }
    assert!(client.ping().is_empty());
}

#[test]
fn received_ids_of_qos_2_outlive_the_connection() {
    let fixture = Fixture::new();
    let hour = expiry(3600);
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    client.send_publish(&exactly_once("dt/s/d/telemetry", PAYLOAD, 9));
    client.ack(PacketType::Pubrec, 9);
    gone(&fixture, client, 0);
    let (mut client, present) = resumed(&fixture, &lasting("a", &hour));
    assert!(present);
    client.send_publish(&Publish { dup: true, ..exactly_once("dt/s/d/telemetry", PAYLOAD, 9) });
    assert_eq!(client.ack(PacketType::Pubrec, 9), ReasonCode::Success);
    client.send_ack(PacketType::Pubrel, 9, ReasonCode::Success);
    assert_eq!(client.ack(PacketType::Pubcomp, 9), ReasonCode::Success);
    assert_eq!(fixture.row_count(TELEMETRY), 1);
}

#[test]
fn a_session_ends_at_its_expiry_and_frees_all() {
    let fixture = Fixture::new();
    let ten = expiry(10);
    let (mut client, _) = resumed(&fixture, &lasting("a", &ten));
    client.subscribed("a", QoS::AtLeastOnce);
    gone(&fixture, client, 0);
    assert_eq!(fixture.until("a subscription", |c| c.subscriptions == 1).sessions, 1);
    fixture.clock.advance(Duration::from_secs(11));
    assert_eq!(fixture.until("no subscription", |c| c.subscriptions == 0).sessions, 0);
    assert!(!fixture.gateway().connected("a"));
    let (_client, present) = resumed(&fixture, &lasting("a", &ten));
    assert!(!present);
}

#[test]
fn disconnect_may_change_the_expiry_but_not_from_0() {
    let fixture = Fixture::new();
    let (hour, none) = (expiry(3600), expiry(0));
    let disconnect = |raw: &[u8]| {
        let mut bytes = Vec::new();
        let properties = Properties::check(raw, Place::In(PacketType::Disconnect)).unwrap();
        Disconnect { reason: ReasonCode::Success, properties }.encode(Version::V5, &mut bytes);
        bytes
    };
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    client.send(&disconnect(&none));
    client.ended();
    let (mut client, present) = resumed(&fixture, &lasting("a", &none));
    assert!(!present);
    client.send(&disconnect(&hour));
    assert_eq!(client.ended(), Some(ReasonCode::ProtocolError));
}

#[test]
fn a_longer_expiry_than_allowed_is_told() {
    let fixture = Fixture::with(|options| options.max_session_expiry_s = 100);
    let asked = expiry(u32::MAX);
    let mut client = fixture.raw();
    let (received, _) = client.resume(&lasting("a", &asked));
    let Packet::Connack(connack) = received.packet() else { unreachable!() };
    assert_eq!(connack.properties.number(PropertyId::SessionExpiryInterval), Some(100));
}

#[test]
fn beyond_the_most_sessions_a_new_one_ends_with_its_connection_and_is_told() {
    let fixture = Fixture::with(|options| options.max_sessions = 1);
    let hour = expiry(3600);
    let (client, _) = resumed(&fixture, &lasting("a", &hour));
    gone(&fixture, client, 0);
    let mut client = fixture.raw();
    let (received, _) = client.resume(&lasting("b", &hour));
    let Packet::Connack(connack) = received.packet() else { unreachable!() };
    assert_eq!(connack.properties.number(PropertyId::SessionExpiryInterval), Some(0));
    gone(&fixture, client, 0);
    assert_eq!(fixture.until("the count", |c| c.sessions_not_kept == 1).sessions, 1);
    assert!(resumed(&fixture, &lasting("a", &hour)).1);
}

#[test]
fn messages_beyond_the_bound_of_a_session_are_dropped_and_counted() {
    let fixture = Fixture::with(|options| options.max_queued_messages = 3);
    let hour = expiry(3600);
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    client.subscribed("a", QoS::AtLeastOnce);
    gone(&fixture, client, 0);
    let mut sender = fixture.v5("sender");
    for n in 0..5u8 {
        sender.publish("a", &[n]);
    }
    fixture.until("drops", |c| c.dropped_deliveries == 2);
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    let kept: Vec<Vec<u8>> = client.ping().iter().map(|each| each.publish().payload.to_vec()).collect();
    assert_eq!(kept, [[0], [1], [2]], "the oldest are kept");
}

#[test]
fn a_message_that_expires_while_it_waits_is_not_sent() {
    let fixture = Fixture::new();
    let hour = expiry(3600);
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    client.subscribed("a", QoS::AtLeastOnce);
    gone(&fixture, client, 0);
    let mut sender = fixture.v5("sender");
    for (seconds, id) in [(10, 1), (100, 2)] {
        let raw =
            encode(&[Property { id: PropertyId::MessageExpiryInterval, value: Value::FourByte(seconds) }]);
        let properties = Properties::check(&raw, Place::In(PacketType::Publish)).unwrap();
        sender.send_publish(&Publish { properties, ..publish("a", b"x", id) });
        sender.puback(id);
    }
    fixture.clock.advance(Duration::from_secs(30));
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    let waited = client.ping();
    assert_eq!(waited.len(), 1);
    let left = waited[0].publish().properties.number(PropertyId::MessageExpiryInterval).unwrap();
    assert!((69..=71).contains(&left), "{left}");
}

#[test]
fn a_takeover_goes_on_with_the_session_whichever_thread_it_is_on() {
    let fixture = Fixture::with(|options| options.threads = 4);
    let hour = expiry(3600);
    let mut sender = fixture.v5("sender");
    let (mut client, _) = resumed(&fixture, &lasting("a", &hour));
    client.subscribed("a", QoS::AtLeastOnce);
    for n in 0..20u8 {
        sender.publish("a", &[n]);
        let (mut newer, present) = resumed(&fixture, &lasting("a", &hour));
        assert!(present, "{n}");
        // It may have been sent to the older connection, or not; here it comes.
        let received = newer.receive();
        assert_eq!(received.publish().payload, [n]);
        newer.send_puback(received.publish().packet_id);
        assert!(newer.ping().is_empty());
        assert_eq!(client.ended(), Some(ReasonCode::SessionTakenOver));
        client = newer;
    }
    assert_eq!(fixture.until("one", |c| c.connections == 2).subscriptions, 1);
}

#[test]
fn packets_behind_a_connect_that_moves_are_handled_there() {
    let fixture = Fixture::with(|options| options.threads = 4);
    let hour = expiry(3600);
    for n in 0..8u16 {
        let mut bytes = Vec::new();
        lasting("a", &hour).encode(&mut bytes);
        publish("dt/s/d/telemetry", PAYLOAD, n + 1).encode(Version::V5, &mut bytes);
        let mut client = fixture.raw();
        client.send(&bytes);
        let received = client.receive();
        let Packet::Connack(connack) = received.packet() else { panic!("no CONNACK") };
        assert_eq!(connack.session_present, n > 0);
        assert_eq!(client.puback(n + 1), ReasonCode::Success);
    }
    assert_eq!(fixture.until("rows", |c| c.decoded == 8).in_flight, 0);
}

#[test]
fn many_clients_that_fight_for_one_id_leave_one_winner() {
    let fixture = Fixture::with(|options| options.threads = 4);
    let address = fixture.gateway().address();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for round in 0..50 {
                    let mut client = Client::open(address);
                    client.send_connect(&Connect {
                        clean_start: round % 2 == 0,
                        ..connect(Version::V311, "one")
                    });
                    // A CONNACK, or nothing when somebody else was faster.
                    client.try_receive();
                }
            });
        }
    });
    let mut last = fixture.v5("one");
    assert!(last.ping().is_empty());
    let counters = fixture.until("one connection", |c| c.connections == 1 && c.sockets == 1);
    assert_eq!((counters.sessions, counters.subscriptions), (0, 0));
}
