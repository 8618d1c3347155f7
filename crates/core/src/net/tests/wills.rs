//! Wills (section 3.1.2.5): when they are published, with what, and when not.

use super::client::connect;
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{Connect, Disconnect, PacketType, Properties, QoS, ReasonCode, Version, Will};

fn will(raw: &[u8]) -> Will<'_> {
    let properties = Properties::check(raw, Place::Will).unwrap();
    Will { topic: "wills/a", payload: b"gone", qos: QoS::AtLeastOnce, retain: false, properties }
}

fn watcher(fixture: &Fixture) -> client::Client {
    let mut watcher = fixture.v5("watcher");
    watcher.subscribed("wills/#", QoS::AtLeastOnce);
    watcher
}

fn with_will(fixture: &Fixture, connect: Connect<'_>, raw: &[u8]) -> client::Client {
    let mut client = fixture.raw();
    client.resume(&Connect { will: Some(will(raw)), ..connect });
    client
}

fn delay(seconds: u32) -> Vec<u8> {
    encode(&[Property { id: PropertyId::WillDelayInterval, value: Value::FourByte(seconds) }])
}

fn expiry(seconds: u32) -> Vec<u8> {
    encode(&[Property { id: PropertyId::SessionExpiryInterval, value: Value::FourByte(seconds) }])
}

fn lasting(raw: &[u8]) -> Connect<'_> {
    let properties = Properties::check(raw, Place::In(PacketType::Connect)).unwrap();
    Connect { clean_start: false, properties, ..connect(Version::V5, "a") }
}

#[test]
fn a_lost_connection_publishes_its_will_and_a_normal_disconnect_does_not() {
    let fixture = Fixture::new();
    let mut watcher = watcher(&fixture);
    for version in [Version::V311, Version::V5] {
        let mut client = with_will(&fixture, connect(version, "a"), &[]);
        client.send(&[0xe0, 0]);
        assert_eq!(client.ended(), None);
        drop(with_will(&fixture, connect(version, "a"), &[]));
        let received = watcher.receive();
        let publish = received.publish();
        assert_eq!((publish.topic, publish.payload, publish.retain), ("wills/a", &b"gone"[..], false));
        watcher.send_puback(publish.packet_id);
        assert!(watcher.ping().is_empty(), "one will, of the lost connection");
    }
    assert_eq!(fixture.until("wills", |c| c.live_only == 2).received, 2);
}

#[test]
fn disconnect_with_will_publishes_it() {
    let fixture = Fixture::new();
    let mut watcher = watcher(&fixture);
    let mut client = with_will(&fixture, connect(Version::V5, "a"), &[]);
    let mut bytes = Vec::new();
    Disconnect { reason: ReasonCode::DisconnectWithWillMessage, properties: Properties::NONE }
        .encode(Version::V5, &mut bytes);
    client.send(&bytes);
    assert_eq!(watcher.receive().publish().payload, b"gone");
}

#[test]
fn an_error_of_the_client_and_its_silence_publish_the_will() {
    let fixture = Fixture::new();
    let mut watcher = watcher(&fixture);
    let mut client = with_will(&fixture, connect(Version::V5, "a"), &[]);
    client.send(&[0x30, 0]);
    client.ended();
    assert_eq!(watcher.receive().publish().topic, "wills/a");
    let _silent = with_will(&fixture, Connect { keep_alive_s: 10, ..connect(Version::V5, "a") }, &[]);
    fixture.clock.advance(Duration::from_secs(16));
    assert_eq!(watcher.receive().publish().topic, "wills/a");
}

#[test]
fn a_takeover_publishes_the_will_of_the_one_that_gives_way() {
    let fixture = Fixture::new();
    let mut watcher = watcher(&fixture);
    let mut old = with_will(&fixture, connect(Version::V5, "a"), &[]);
    let _new = fixture.v5("a");
    assert_eq!(old.ended(), Some(ReasonCode::SessionTakenOver));
    assert_eq!(watcher.receive().publish().payload, b"gone");
}

#[test]
fn a_will_waits_for_its_delay_and_a_return_cancels_it() {
    let fixture = Fixture::new();
    let mut watcher = watcher(&fixture);
    let (hour, ten) = (expiry(3600), delay(10));
    drop(with_will(&fixture, lasting(&hour), &ten));
    fixture.until("the session waits", |c| c.connections == 1);
    fixture.clock.advance(Duration::from_secs(9));
    assert!(watcher.ping().is_empty());
    // Back in time, with another will; then away for longer.
    drop(with_will(&fixture, lasting(&hour), &ten));
    fixture.until("the session waits again", |c| c.connections == 1 && c.connections_total == 3);
    assert!(watcher.ping().is_empty());
    fixture.clock.advance(Duration::from_secs(11));
    let received = watcher.receive();
    assert_eq!(received.publish().properties.number(PropertyId::WillDelayInterval), None);
    watcher.send_puback(received.publish().packet_id);
    fixture.clock.advance(Duration::from_secs(3700));
    assert!(watcher.ping().is_empty(), "published once");
}

#[test]
fn the_end_of_the_session_comes_before_a_longer_delay() {
    let fixture = Fixture::new();
    let mut watcher = watcher(&fixture);
    let (five, hour) = (expiry(5), delay(3600));
    drop(with_will(&fixture, lasting(&five), &hour));
    fixture.until("the session waits", |c| c.connections == 1);
    fixture.clock.advance(Duration::from_secs(6));
    assert_eq!(watcher.receive().publish().payload, b"gone");
    // Without a session beyond the connection both ends are one.
    drop(with_will(&fixture, connect(Version::V5, "b"), &hour));
    assert_eq!(watcher.receive().publish().payload, b"gone");
}

#[test]
fn a_will_is_decoded_and_retained_like_any_message() {
    let fixture = Fixture::new();
    let mut client = fixture.raw();
    let will = Will {
        topic: "dt/s/d/telemetry",
        payload: PAYLOAD,
        qos: QoS::AtMostOnce,
        retain: true,
        properties: Properties::NONE,
    };
    client.connect(&Connect { will: Some(will), ..connect(Version::V311, "a") });
    drop(client);
    fixture.until("decoded", |c| c.decoded == 1);
    assert_eq!(fixture.row_count(TELEMETRY), 1);
    let mut late = fixture.v5("late");
    late.subscribed("dt/#", QoS::AtMostOnce);
    assert!(late.receive().publish().retain);
}

#[test]
fn a_will_that_would_be_refused_is_refused_at_once() {
    let fixture = Fixture::with(|options| {
        options.maximum_qos = 1;
        options.max_payload_bytes = 10;
    });
    let base = will(&[]);
    let cases = [
        (Will { qos: QoS::ExactlyOnce, ..base }, 0x9b),
        (Will { topic: "$SYS/x", ..base }, 0x87),
        (Will { payload: b"eleven byte", ..base }, 0x97),
    ];
    for (will, code) in cases {
        let mut client = fixture.raw();
        client.send_connect(&Connect { will: Some(will), ..connect(Version::V5, "a") });
        let received = client.receive();
        let crate::mqtt::Packet::Connack(connack) = received.packet() else { panic!("no CONNACK") };
        assert_eq!(connack.code, code);
        assert!(client.try_receive().is_none());
    }
}
