//! Shared subscriptions (section 4.8.2) and subscription identifiers (section 3.8.2.1.2).

use super::client::{Client, connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{
    Connect, Packet, PacketType, Properties, Publish, QoS, ReasonCode, Subscribe, SubscriptionOptions,
    Version,
};

fn options(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions::new(qos)
}

/// Payloads that have come, each acknowledged.
fn taken(client: &mut Client) -> Vec<u8> {
    let received = client.ping();
    let mut payloads = Vec::new();
    for each in &received {
        payloads.extend_from_slice(each.publish().payload);
        if each.publish().packet_id != 0 {
            client.send_puback(each.publish().packet_id);
        }
    }
    payloads
}

#[test]
fn each_message_goes_to_one_member_in_turns() {
    let fixture = Fixture::new();
    let mut members: Vec<Client> = (0..4)
        .map(|n| {
            let version = if n % 2 == 0 { Version::V5 } else { Version::V311 };
            let mut client = Client::connected(fixture.gateway().address(), version, &format!("m{n}"));
            client.subscribed("$share/g/a/+", QoS::AtLeastOnce);
            client
        })
        .collect();
    let mut other = fixture.v5("other");
    other.subscribed("$share/h/a/+", QoS::AtMostOnce);
    let mut alone = fixture.v5("alone");
    alone.subscribed("a/b", QoS::AtMostOnce);
    let mut sender = fixture.v5("sender");
    for n in 0..40u8 {
        sender.publish("a/b", &[n]);
    }
    let shares: Vec<Vec<u8>> = members.iter_mut().map(taken).collect();
    assert!(shares.iter().all(|share| share.len() == 10), "{shares:?}");
    let mut all = shares.concat();
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<u8>>());
    assert_eq!(taken(&mut other).len(), 40, "every share gets its own copy");
    assert_eq!(taken(&mut alone).len(), 40);
}

#[test]
fn a_member_that_leaves_takes_no_turn_and_leaves_its_messages_to_the_others() {
    let fixture = Fixture::new();
    let mut stays = fixture.v5("stays");
    stays.subscribed("$share/g/a", QoS::AtLeastOnce);
    let mut leaves = fixture.v5("leaves");
    leaves.subscribed("$share/g/a", QoS::AtLeastOnce);
    let mut sender = fixture.v5("sender");
    for n in 0..10u8 {
        sender.publish("a", &[n]);
    }
    assert_eq!(leaves.ping().len(), 5, "received and not acknowledged");
    drop(leaves);
    fixture.until("the end", |c| c.connections == 2);
    for n in 10..20u8 {
        sender.publish("a", &[n]);
    }
    let mut all = taken(&mut stays);
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<u8>>());
}

#[test]
fn a_member_that_is_away_gets_messages_only_when_all_are() {
    let fixture = Fixture::new();
    let raw = encode(&[Property { id: PropertyId::SessionExpiryInterval, value: Value::FourByte(3600) }]);
    let properties = Properties::check(&raw, Place::In(PacketType::Connect)).unwrap();
    let lasting = |client_id| Connect { clean_start: false, properties, ..connect(Version::V5, client_id) };
    let mut away = fixture.raw();
    away.resume(&lasting("away"));
    away.subscribed("$share/g/a", QoS::AtLeastOnce);
    drop(away);
    let mut here = fixture.v5("here");
    here.subscribed("$share/g/a", QoS::AtLeastOnce);
    fixture.until("one is away", |c| c.connections == 1);
    let mut sender = fixture.v5("sender");
    for n in 0..6u8 {
        sender.publish("a", &[n]);
    }
    assert_eq!(taken(&mut here).len(), 6);
    here.unsubscribe(&["$share/g/a"]);
    sender.publish("a", b"x");
    let mut away = fixture.raw();
    assert!(away.resume(&lasting("away")).1);
    assert_eq!(taken(&mut away), b"x");
}

#[test]
fn retained_messages_are_not_replayed_to_a_share_and_no_local_is_an_error() {
    let fixture = Fixture::new();
    let mut sender = fixture.v5("sender");
    sender.send_publish(&Publish { retain: true, ..publish("a", b"kept", 1) });
    sender.puback(1);
    let mut member = fixture.v5("member");
    member.subscribed("$share/g/a", QoS::AtLeastOnce);
    assert!(member.ping().is_empty());
    let mut bytes = Vec::new();
    let no_local = SubscriptionOptions { no_local: true, ..options(QoS::AtMostOnce) };
    Subscribe::encode(9, Properties::NONE, &[("$share/g/b", no_local)], Version::V5, &mut bytes);
    member.send(&bytes);
    assert_eq!(member.ended(), Some(ReasonCode::ProtocolError));
}

/// Subscribes with an identifier.
fn identified(client: &mut Client, filter: &str, identifier: u32) {
    let raw =
        encode(&[Property { id: PropertyId::SubscriptionIdentifier, value: Value::Variable(identifier) }]);
    let properties = Properties::check(&raw, Place::In(PacketType::Subscribe)).unwrap();
    let id = client.next_id();
    let mut bytes = Vec::new();
    Subscribe::encode(id, properties, &[(filter, options(QoS::AtLeastOnce))], Version::V5, &mut bytes);
    client.send(&bytes);
    // Retained messages may come behind it.
    let received = client.receive();
    assert!(matches!(received.packet(), Packet::Suback(suback) if suback.codes == [1]));
}

fn identifiers(received: &client::Received) -> Vec<u32> {
    let properties = received.publish().properties;
    properties
        .iter()
        .filter(|property| property.id == PropertyId::SubscriptionIdentifier)
        .map(|property| match property.value {
            Value::Variable(identifier) => identifier,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_message_names_every_subscription_that_it_comes_by() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    identified(&mut client, "a/#", 7);
    identified(&mut client, "a/b", 268_435_455);
    client.subscribed("+/b", QoS::AtMostOnce);
    let mut sender = fixture.v5("sender");
    sender.publish("a/b", b"x");
    let mut found = identifiers(&client.receive());
    found.sort_unstable();
    assert_eq!(found, [7, 268_435_455]);
    sender.publish("a/c", b"x");
    assert_eq!(identifiers(&client.receive()), [7]);
    sender.publish("c/b", b"x");
    assert_eq!(identifiers(&client.receive()), [0; 0]);
    // A new SUBSCRIBE replaces the identifier.
    identified(&mut client, "a/#", 8);
    sender.publish("a/c", b"x");
    assert_eq!(identifiers(&client.receive()), [8]);
}

#[test]
fn retained_and_shared_messages_carry_the_identifier() {
    let fixture = Fixture::new();
    let mut sender = fixture.v5("sender");
    sender.send_publish(&Publish { retain: true, ..publish("kept", b"x", 1) });
    sender.puback(1);
    let mut client = fixture.v5("a");
    identified(&mut client, "kept", 3);
    assert_eq!(identifiers(&client.receive()), [3]);
    identified(&mut client, "$share/g/live", 4);
    sender.publish("live", b"x");
    assert_eq!(identifiers(&client.receive()), [4]);
}
