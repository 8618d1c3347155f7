//! How long a client may stay: to the end of its token, and as long as who it is and what policies say holds.

use std::collections::HashMap;

use super::access::{admitted, connack, guarded, next, principal};
use super::client::{Client, connect, publish};
use super::*;
use crate::mqtt::properties::{Property, PropertyId, Value, encode};
use crate::mqtt::{Connect, Properties, QoS, ReasonCode, Version, Will};
use crate::net::{Line, Principal};
use crate::policy::{Policies, Policy};

fn from_now(seconds: u64) -> u64 {
    (std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + seconds) * 1000
}

/// Who came by this line of the file, as it was in version 1.
fn by_line(mark: u64) -> Principal {
    let line = Line { source: "password".to_owned(), name: "u".to_owned(), version: 1, mark };
    Principal { line: Some(line), ..principal() }
}

/// A client of this identity; `raw`: properties of its CONNECT.
fn let_in(
    fixture: &Fixture,
    logins: &Logins,
    principal: &Principal,
    connect: &Connect<'_>,
) -> (Client, bool) {
    let mut client = fixture.raw();
    client.send_connect(connect);
    assert!(logins.allow(next(logins).id, principal));
    let received = client.receive();
    let crate::mqtt::Packet::Connack(connack) = received.packet() else { panic!("no CONNACK") };
    assert_eq!(connack.code, 0);
    let present = connack.session_present;
    (client, present)
}

fn expiry(seconds: u32) -> Vec<u8> {
    encode(&[Property { id: PropertyId::SessionExpiryInterval, value: Value::FourByte(seconds) }])
}

/// The policy of these tests, with other statements about `topic/...`.
fn policies(receive: &str) -> Policies {
    let document = format!(
        r#"{{"Version": "2012-10-17", "Statement": [
            {{"Effect": "Allow", "Action": "iot:Connect", "Resource": "client/*"}},
            {{"Effect": "Allow", "Action": "iot:Publish", "Resource": "topic/t/acme/a*"}},
            {{"Effect": "Allow", "Action": "iot:Receive", "Resource": "{receive}"}},
            {{"Effect": "Allow", "Action": "iot:Subscribe", "Resource": "topicfilter/t/acme/*"}}]}}"#
    );
    Policies::new(vec![Policy::parse("p", &document).unwrap()])
}

#[test]
fn a_connection_ends_with_its_token_and_its_session_does_not() {
    let (fixture, logins) = guarded();
    let lasting = Principal { until_ms: Some(from_now(100)), ..principal() };
    let raw = expiry(1000);
    let said = Connect { properties: Properties::from_checked(&raw), ..connect(Version::V5, "d1") };
    let (mut client, _) = let_in(&fixture, &logins, &lasting, &said);
    client.subscribed("t/acme/x", QoS::AtLeastOnce);
    let (mut old, _) = let_in(&fixture, &logins, &lasting, &connect(Version::V311, "d2"));
    let mut unlimited = admitted(&fixture, &logins, Version::V5, "d3");
    fixture.clock.advance(Duration::from_secs(95));
    assert!(client.ping().is_empty() && old.ping().is_empty());
    // Not even one that is never silent stays.
    client.send_publish(&publish("t/acme/y", b"1", 9));
    assert_eq!(client.puback(9), ReasonCode::Success);
    fixture.clock.advance(Duration::from_secs(10));
    assert_eq!(client.ended(), Some(ReasonCode::MaximumConnectTime));
    assert_eq!(old.ended(), None);
    assert!(unlimited.ping().is_empty());
    let counters = fixture.until("both are counted", |counters| counters.access_expired == 2);
    assert_eq!(counters.ended_connections.get(ReasonCode::MaximumConnectTime), 2);
    assert_eq!(unlimited.publish("t/acme/x", b"2"), ReasonCode::Success);
    let again = Connect { clean_start: false, ..said };
    let (mut client, present) = let_in(&fixture, &logins, &principal(), &again);
    assert!(present);
    assert_eq!(client.receive().publish().payload, b"2");
}

#[test]
fn keep_alive_and_token_end_what_is_over_first() {
    let (fixture, logins) = guarded();
    let until = |seconds| Principal { until_ms: Some(from_now(seconds)), ..principal() };
    let said = |client_id| Connect { keep_alive_s: 20, ..connect(Version::V5, client_id) };
    let (mut silent, _) = let_in(&fixture, &logins, &until(100), &said("d1"));
    let (mut short, _) = let_in(&fixture, &logins, &until(10), &said("d2"));
    fixture.clock.advance(Duration::from_secs(15));
    assert_eq!(short.ended(), Some(ReasonCode::MaximumConnectTime));
    fixture.clock.advance(Duration::from_secs(20));
    assert_eq!(silent.ended(), Some(ReasonCode::KeepAliveTimeout));
}

#[test]
fn who_is_gone_from_the_file_or_has_changed_is_closed() {
    let (fixture, logins) = guarded();
    let kept = Will {
        topic: "t/acme/w",
        payload: b"gone",
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: Properties::NONE,
    };
    let (mut watcher, _) = let_in(&fixture, &logins, &principal(), &connect(Version::V5, "d9"));
    watcher.subscribed("t/acme/w", QoS::AtLeastOnce);
    // More than one pass looks at.
    let mut clients: Vec<Client> = (0..300)
        .map(|n| let_in(&fixture, &logins, &by_line(7), &connect(Version::V5, &format!("d1{n}"))).0)
        .collect();
    let said = Connect { will: Some(kept), ..connect(Version::V311, "d2") };
    let (mut other, _) = let_in(&fixture, &logins, &by_line(8), &said);
    logins.set_lines("password", 2, HashMap::from([("u".to_owned(), 7)]));
    assert_eq!(other.ended(), None);
    assert_eq!(watcher.receive().publish().payload, b"gone");
    fixture.until("one has gone", |counters| counters.access_revoked == 1);
    assert!(clients.iter_mut().all(|client| client.ping().is_empty()));
    logins.set_lines("password", 3, HashMap::new());
    assert!(clients.iter_mut().all(|client| client.ended() == Some(ReasonCode::NotAuthorized)));
    fixture.until("all have gone", |counters| counters.access_revoked == 301);
    assert!(watcher.ping().is_empty());
    // Who has read the former file meanwhile does not come in any more.
    let mut late = fixture.raw();
    late.send_connect(&connect(Version::V5, "d1"));
    assert!(!logins.allow(next(&logins).id, &by_line(7)));
    assert_eq!(connack(&mut late), 0x87);
}

#[test]
fn other_policies_hold_for_who_is_connected() {
    let (fixture, logins) = guarded();
    let mut client = admitted(&fixture, &logins, Version::V5, "d1");
    client.subscribed("t/acme/#", QoS::AtLeastOnce);
    let will = Will {
        topic: "t/acme/will",
        payload: b"gone",
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: Properties::NONE,
    };
    let said = Connect { will: Some(will), ..connect(Version::V5, "d2") };
    let (mut other, _) = let_in(&fixture, &logins, &principal(), &said);
    assert_eq!(other.publish("t/acme/z", b"1"), ReasonCode::Success);
    let received = client.receive();
    assert_eq!(received.publish().payload, b"1");
    client.send_puback(received.publish().packet_id);
    logins.set_policies(policies("topic/t/acme/a"));
    let refused = |other: &mut Client| other.publish("t/acme/z", b"2") == ReasonCode::NotAuthorized;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !refused(&mut other) {
        assert!(Instant::now() < deadline, "the former policy holds");
    }
    // Its will, which it may not publish any more, is not published for it, and what it may is.
    assert_eq!(other.publish("t/acme/a", b"3"), ReasonCode::Success);
    drop(other);
    while client.receive().publish().payload != b"3" {}
    fixture.until("the will is denied", |counters| counters.connections == 1 && counters.denied_publish > 1);
    assert!(client.ping().is_empty());
    // Nobody may connect.
    logins.set_policies(Policies::new(Vec::new()));
    assert_eq!(client.ended(), Some(ReasonCode::NotAuthorized));
}

#[test]
fn what_waits_is_held_against_the_policies_of_its_delivery() {
    let (fixture, logins) = guarded();
    let raw =
        [expiry(1000), encode(&[Property { id: PropertyId::ReceiveMaximum, value: Value::TwoByte(1) }])]
            .concat();
    let said = Connect {
        clean_start: false,
        properties: Properties::from_checked(&raw),
        ..connect(Version::V5, "d1")
    };
    let (mut client, _) = let_in(&fixture, &logins, &principal(), &said);
    client.subscribed("t/acme/#", QoS::AtLeastOnce);
    let mut other = admitted(&fixture, &logins, Version::V5, "d2");
    // In flight, behind its window, and while it is away.
    for topic in ["t/acme/a0", "t/acme/b0", "t/acme/a1"] {
        assert_eq!(other.publish(topic, topic.as_bytes()), ReasonCode::Success);
    }
    assert_eq!(client.receive().publish().payload, b"t/acme/a0");
    drop(client);
    fixture.until("it is away", |counters| counters.sessions == 1);
    assert_eq!(other.publish("t/acme/b1", b"b1"), ReasonCode::Success);
    assert_eq!(other.publish("t/acme/a2", b"a2"), ReasonCode::Success);
    let before = fixture.gateway().counters().denied_receive;
    logins.set_policies(policies("topic/t/acme/a*"));
    let (mut client, present) = let_in(&fixture, &logins, &principal(), &said);
    assert!(present);
    for payload in ["t/acme/a0", "t/acme/a1", "a2"] {
        let received = client.receive();
        assert_eq!(received.publish().payload, payload.as_bytes());
        client.send_puback(received.publish().packet_id);
    }
    assert!(client.ping().is_empty());
    fixture.until("the others are counted", |counters| counters.denied_receive == before + 2);
    // What was sent and not acknowledged is held against them too.
    assert_eq!(other.publish("t/acme/a3", b"a3"), ReasonCode::Success);
    assert_eq!(client.receive().publish().payload, b"a3");
    drop(client);
    fixture.until("it is away again", |counters| counters.sessions == 1);
    logins.set_policies(policies("topic/t/acme/c"));
    let (mut client, _) = let_in(&fixture, &logins, &principal(), &said);
    assert!(client.ping().is_empty());
    fixture.until("it is counted", |counters| counters.denied_receive == before + 3);
}
