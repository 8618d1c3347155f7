//! Who is let in, what a CONNECT that waits may do, and what policies refuse.

use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, connect, publish};
use super::*;
use crate::mqtt::{Packet, QoS, ReasonCode, SubscriptionOptions, Version};
use crate::net::{Login, LoginOptions, Logins, Principal};
use crate::policy::{Policies, Policy};

const POLICY: &str = r#"{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "iot:Connect", "Resource": ["client/d*", "client/hw-*"]},
    {"Effect": "Allow", "Action": ["iot:Publish", "iot:Receive"], "Resource": "topic/t/${tenant}/*"},
    {"Effect": "Deny", "Action": "iot:Receive", "Resource": "topic/t/*/secret"},
    {"Effect": "Allow", "Action": "iot:Subscribe", "Resource": "topicfilter/t/${tenant}/*"}]}"#;

pub(super) fn guarded() -> (Fixture, Arc<Logins>) {
    let logins = Arc::new(Logins::new(LoginOptions {
        max_waiting: 3,
        max_waiting_bytes: 10_000,
        timeout: Duration::from_secs(5),
        policies: Policies::new(vec![Policy::parse("p", POLICY).unwrap()]),
    }));
    let fixture = Fixture::with(|options| options.logins = Some(Arc::clone(&logins)));
    (fixture, logins)
}

pub(super) fn principal() -> Principal {
    Principal {
        user: "u".to_owned(),
        tenant: "acme".to_owned(),
        policies: vec!["p".to_owned()],
        ..Principal::default()
    }
}

/// The next login that waits.
pub(super) fn next(logins: &Logins) -> Login {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(login) = logins.take(1, Duration::from_millis(50)).pop() {
            return login;
        }
        assert!(Instant::now() < deadline, "no login came");
    }
}

/// The code of the CONNACK.
pub(super) fn connack(client: &mut Client) -> u8 {
    let received = client.receive();
    match received.packet() {
        Packet::Connack(connack) => connack.code,
        other => panic!("{other:?} instead of CONNACK"),
    }
}

/// A client that has been let in.
pub(super) fn admitted(fixture: &Fixture, logins: &Logins, version: Version, client_id: &str) -> Client {
    let mut client = fixture.raw();
    client.send_connect(&connect(version, client_id));
    assert!(logins.allow(next(logins).id, &principal()));
    assert_eq!(connack(&mut client), 0);
    client
}

#[test]
fn a_login_says_what_the_connect_said() {
    let (fixture, logins) = guarded();
    let mut client = fixture.raw();
    let connect = super::client::connect(Version::V5, "d1");
    client.send_connect(&crate::mqtt::Connect {
        user_name: Some("ann"),
        password: Some(b"\xffpw"),
        ..connect
    });
    let login = next(&logins);
    assert_eq!((login.client_id.as_str(), login.user_name.as_deref()), ("d1", Some("ann")));
    assert_eq!(login.password.as_deref(), Some(&b"\xffpw"[..]));
    assert_eq!(login.peer, Some(client.socket.local_addr().unwrap()));
    assert_eq!((login.certificate, login.listener.as_str()), (None, "mqtt"));
    logins.deny(login.id, ReasonCode::BadUserNameOrPassword, "wrong");
    assert_eq!(connack(&mut client), 0x86);
    assert!(client.try_receive().is_none());
    // It is answered once.
    assert!(!logins.allow(login.id, &principal()));
    assert_eq!(logins.waiting(), 0);
}

#[test]
fn nothing_behind_a_connect_is_read_before_its_answer() {
    let (fixture, logins) = guarded();
    let mut client = fixture.raw();
    let mut bytes = Vec::new();
    connect(Version::V5, "d1").encode(&mut bytes);
    publish("t/acme/x", b"{}", 1).encode(Version::V5, &mut bytes);
    client.send(&bytes);
    client.version = Version::V5;
    let login = next(&logins);
    client.send_publish(&publish("t/acme/y", b"{}", 2));
    assert_eq!(fixture.gateway().counters().received, 0);
    assert!(logins.allow(login.id, &principal()));
    assert_eq!(connack(&mut client), 0);
    assert_eq!((client.puback(1), client.puback(2)), (ReasonCode::Success, ReasonCode::Success));
}

#[test]
fn an_assigned_client_id_is_the_one_that_was_asked_about() {
    let (fixture, logins) = guarded();
    let mut client = fixture.raw();
    client.send_connect(&connect(Version::V5, ""));
    let login = next(&logins);
    assert!(logins.allow(login.id, &principal()));
    let received = client.receive();
    let Packet::Connack(connack) = received.packet() else { panic!("no CONNACK") };
    let told = connack.properties.text(crate::mqtt::properties::PropertyId::AssignedClientIdentifier);
    assert_eq!(told, Some(login.client_id.as_str()));
}

#[test]
fn who_waits_too_long_is_refused_and_a_later_answer_finds_nobody() {
    let (fixture, logins) = guarded();
    for (version, code) in [(Version::V5, 0x88), (Version::V311, 3)] {
        let mut client = fixture.raw();
        client.send_connect(&connect(version, "d1"));
        let login = next(&logins);
        fixture.clock.advance(Duration::from_secs(6));
        assert_eq!(connack(&mut client), code);
        assert!(client.try_receive().is_none());
        assert!(!logins.allow(login.id, &principal()));
    }
    assert_eq!(logins.waiting(), 0);
    assert_eq!(fixture.gateway().counters().connections_total, 0);
}

#[test]
fn how_many_and_how_much_waits_is_bounded() {
    let (fixture, logins) = guarded();
    let mut waiting: Vec<Client> = (0..3).map(|_| fixture.raw()).collect();
    for (number, client) in waiting.iter_mut().enumerate() {
        client.send_connect(&connect(Version::V5, &format!("d{number}")));
    }
    let logged: Vec<Login> = (0..3).map(|_| next(&logins)).collect();
    let mut further = fixture.raw();
    further.send_connect(&connect(Version::V5, "d9"));
    assert_eq!(connack(&mut further), 0x89);
    for login in logged {
        logins.deny(login.id, ReasonCode::NotAuthorized, "no");
    }
    let mut large = fixture.raw();
    let password = vec![1; 10_000];
    let said = connect(Version::V5, "d9");
    large.send_connect(&crate::mqtt::Connect { user_name: Some("u"), password: Some(&password), ..said });
    assert_eq!(connack(&mut large), 0x89);
    admitted(&fixture, &logins, Version::V5, "d9");
}

#[test]
fn a_client_id_that_no_policy_allows_is_refused() {
    let (fixture, logins) = guarded();
    let mut client = fixture.raw();
    client.send_connect(&connect(Version::V5, "x"));
    assert!(!logins.allow(next(&logins).id, &principal()));
    assert_eq!(connack(&mut client), 0x87);
    let nobody = Principal { policies: vec!["absent".to_owned()], ..principal() };
    let mut client = fixture.raw();
    client.send_connect(&connect(Version::V311, "d1"));
    assert!(!logins.allow(next(&logins).id, &nobody));
    assert_eq!(connack(&mut client), 5);
    fixture.until("both are counted", |counters| counters.denied_connect == 2);
}

#[test]
fn policies_refuse_publish_subscribe_and_delivery() {
    let (fixture, logins) = guarded();
    let mut client = admitted(&fixture, &logins, Version::V5, "d1");
    let filter = |name| (name, SubscriptionOptions::new(QoS::AtLeastOnce));
    assert_eq!(client.subscribe(&[filter("t/acme/#"), filter("t/#"), filter("#")]), [1, 0x87, 0x87]);
    let mut other = admitted(&fixture, &logins, Version::V5, "d2");
    assert_eq!(other.publish("t/beta/x", b"1"), ReasonCode::NotAuthorized);
    assert_eq!(other.publish("t/acme/secret", b"2"), ReasonCode::Success);
    assert_eq!(other.publish("t/acme/x", b"3"), ReasonCode::Success);
    let received = client.receive();
    assert_eq!((received.publish().topic, received.publish().payload), ("t/acme/x", &b"3"[..]));
    let counters = fixture.until("all are counted", |counters| counters.denied_receive == 1);
    assert_eq!((counters.denied_publish, counters.denied_subscribe, counters.refused), (1, 2, 1));
    // MQTT 3.1.1 has no word for a refused message.
    let mut old = admitted(&fixture, &logins, Version::V311, "d3");
    assert_eq!(old.subscribe(&[filter("#")]), [0x80]);
    old.send_publish(&publish("t/beta/x", b"4", 9));
    assert!(old.try_receive().is_none());
    // Nor has QoS 0, but there the connection's end can say it.
    let mut fast = admitted(&fixture, &logins, Version::V5, "d4");
    fast.send_publish(&publish("t/beta/x", b"5", 0));
    assert_eq!(fast.ended(), Some(ReasonCode::NotAuthorized));
}

#[test]
fn a_will_is_a_publish() {
    let (fixture, logins) = guarded();
    for (topic, denied) in [("t/beta/x", true), ("t/acme/x", false)] {
        let mut client = fixture.raw();
        let (payload, properties) = (&b"gone"[..], crate::mqtt::Properties::NONE);
        let will = crate::mqtt::Will { topic, payload, qos: QoS::AtMostOnce, retain: false, properties };
        client.send_connect(&crate::mqtt::Connect { will: Some(will), ..connect(Version::V5, "d1") });
        assert!(logins.allow(next(&logins).id, &principal()));
        assert_eq!(connack(&mut client) == 0x87, denied, "{topic}");
    }
}

#[test]
fn a_stopped_gateway_waits_for_no_answer() {
    let (mut fixture, logins) = guarded();
    let mut client = fixture.raw();
    client.send_connect(&connect(Version::V5, "d1"));
    let login = next(&logins);
    fixture.gateway.take().unwrap().stop(Duration::from_secs(5));
    assert!(client.try_receive().is_none());
    logins.deny(login.id, ReasonCode::NotAuthorized, "late");
}
