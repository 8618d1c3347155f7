//! Limits: each at its bound, what the client is told, what is counted, who is named.

use super::client::{connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{
    Connect, Disconnect, Packet, PacketType, Properties, QoS, ReasonCode, SubscriptionOptions, Version,
};

fn limited(limits: ListenerLimits) -> Fixture {
    Fixture::with(|options| options.limits = limits)
}

/// How often the plain listener reached a limit.
fn reached(fixture: &Fixture, limit: Limit) -> u64 {
    let listeners = fixture.gateway().listeners();
    listeners[0].limits.iter().find(|(each, _)| *each == limit).map_or(0, |(_, count)| *count)
}

/// The code of the CONNACK that refuses this client.
fn refused(fixture: &Fixture, version: Version, client_id: &str) -> u8 {
    let mut client = fixture.raw();
    client.send_connect(&connect(version, client_id));
    let received = client.receive();
    let Packet::Connack(connack) = received.packet() else { panic!("{:?}", received.packet()) };
    assert!(client.try_receive().is_none(), "nothing follows a CONNACK of refusal");
    connack.code
}

fn goodbye(client: &mut client::Client) {
    let mut out = Vec::new();
    let disconnect = Disconnect { reason: ReasonCode::Success, properties: Properties::NONE };
    disconnect.encode(client.version, &mut out);
    client.send(&out);
    assert!(client.try_receive().is_none());
}

#[test]
fn a_client_is_read_no_faster_than_its_message_rate_and_others_are_not_held_back() {
    let fixture = limited(ListenerLimits { message_rate: 10, ..ListenerLimits::default() });
    let (mut fast, mut other) = (fixture.v5("fast"), fixture.v5("other"));
    let mut burst = Vec::new();
    (1..=25).for_each(|id| publish("a", b"x", id).encode(Version::V5, &mut burst));
    fast.send(&burst);
    fixture.until("the first second's messages", |counters| counters.received == 10);
    assert_eq!(other.publish("a", b"x"), ReasonCode::Success);
    assert_eq!(fixture.gateway().counters().received, 11);
    fixture.clock.advance(Duration::from_secs(1));
    fixture.until("those of the next second", |counters| counters.received == 21);
    fixture.clock.advance(Duration::from_secs(1));
    for id in 1..=25 {
        assert_eq!(fast.puback(id), ReasonCode::Success);
    }
    fast.ping();
    assert!(reached(&fixture, Limit::MaxMessageRate) >= 2);
    let events = fixture.gateway().events();
    let told: Vec<_> = events.iter().filter(|event| event.kind == EventKind::LimitReached).collect();
    assert_eq!(told.len(), 1, "once in a while is enough: {told:?}");
    assert_eq!(told[0].client, "fast");
    assert!(told[0].detail.contains("max_message_rate") && told[0].origin.contains("127.0.0.1"));
}

#[test]
fn a_client_that_waits_for_its_rate_is_not_taken_for_silent_and_its_end_is_seen() {
    let fixture = limited(ListenerLimits { message_rate: 1, ..ListenerLimits::default() });
    let mut client = fixture.raw();
    client.connect(&Connect { keep_alive_s: 2, ..connect(Version::V5, "a") });
    let mut burst = Vec::new();
    (1..=4).for_each(|id| publish("a", b"x", id).encode(Version::V5, &mut burst));
    client.send(&burst);
    fixture.until("one message", |counters| counters.received == 1);
    for received in 2..=4 {
        fixture.clock.advance(Duration::from_millis(1100));
        fixture.until("one more", |counters| counters.received == received);
    }
    (1..=4).for_each(|id| assert_eq!(client.puback(id), ReasonCode::Success));
    client.send(&burst);
    drop(client);
    for _ in 0..5 {
        fixture.clock.advance(Duration::from_secs(2));
        std::thread::sleep(Duration::from_millis(150));
    }
    fixture.until("the end", |counters| counters.sockets == 0);
}

#[test]
fn bytes_are_paid_off_before_more_are_read() {
    let fixture = limited(ListenerLimits { byte_rate: 1000, ..ListenerLimits::default() });
    let mut client = fixture.v5("a");
    client.send_publish(&publish("a", &[b'x'; 3000], 1));
    assert_eq!(client.puback(1), ReasonCode::Success);
    client.send_publish(&publish("a", b"y", 2));
    fixture.clock.advance(Duration::from_secs(1));
    fixture.until("a count", |_| reached(&fixture, Limit::MaxByteRate) > 0);
    assert_eq!(fixture.gateway().counters().received, 1);
    fixture.clock.advance(Duration::from_secs(2));
    assert_eq!(client.puback(2), ReasonCode::Success);
}

#[test]
fn who_connects_again_and_again_is_refused_for_a_time() {
    let fixture = limited(ListenerLimits { flapping_connects: 3, ..ListenerLimits::default() });
    for _ in 0..3 {
        goodbye(&mut fixture.v5("a"));
    }
    assert_eq!(refused(&fixture, Version::V5, "a"), ReasonCode::ConnectionRateExceeded as u8);
    assert_eq!(refused(&fixture, Version::V311, "a"), 3);
    fixture.v5("b").ping();
    // Every one of them has another name.
    (0..5).for_each(|_| goodbye(&mut fixture.v5("")));
    assert_eq!(reached(&fixture, Limit::FlappingConnects), 2);
    let events = fixture.gateway().events();
    let refusal = events.iter().find(|event| event.kind == EventKind::ConnectionRefused).unwrap();
    assert_eq!((refusal.client.as_str(), refusal.reason), ("a", ReasonCode::ConnectionRateExceeded));
    assert!(refusal.detail.contains("flapping_connects = 3"), "{}", refusal.detail);
    fixture.clock.advance(Duration::from_secs(301));
    // The loops have seen the new time.
    fixture.v5("b").ping();
    goodbye(&mut fixture.v5("a"));
    let status = &fixture.gateway().listeners()[0];
    assert_eq!(status.refusals, [(ReasonCode::ConnectionRateExceeded, 2)]);
}

#[test]
fn clients_that_take_an_id_from_each_other_are_stopped() {
    let fixture = limited(ListenerLimits { max_takeovers: 2, ..ListenerLimits::default() });
    let mut first = fixture.v5("a");
    let mut second = fixture.v5("a");
    assert_eq!(first.ended(), Some(ReasonCode::SessionTakenOver));
    let mut third = fixture.v3("a");
    assert_eq!(second.ended(), Some(ReasonCode::SessionTakenOver));
    assert_eq!(refused(&fixture, Version::V5, "a"), ReasonCode::ConnectionRateExceeded as u8);
    assert_eq!(refused(&fixture, Version::V311, "a"), 3);
    third.ping();
    assert_eq!(reached(&fixture, Limit::MaxTakeovers), 2);
    let events = fixture.gateway().events();
    let told: Vec<_> = events.iter().filter(|event| event.kind == EventKind::LimitReached).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].detail.contains("it stays with 127.0.0.1"), "{}", told[0].detail);
    // When the winner has gone the id is free, whatever the time.
    goodbye(&mut third);
    fixture.v5("a").ping();
}

#[test]
fn connections_beyond_the_rate_wait_and_live_ones_do_not() {
    let fixture = limited(ListenerLimits { connect_rate: 2, ..ListenerLimits::default() });
    let (mut one, mut two) = (fixture.v5("1"), fixture.v5("2"));
    let mut third = fixture.raw();
    third.send_connect(&connect(Version::V5, "3"));
    (0..100).for_each(|_| {
        one.ping();
        two.ping();
    });
    assert_eq!(fixture.gateway().listeners()[0].accepted, 2);
    fixture.clock.advance(Duration::from_secs(1));
    let received = third.receive();
    assert!(matches!(received.packet(), Packet::Connack(connack) if connack.code == 0));
    assert!(reached(&fixture, Limit::MaxConnectRate) > 0);
    let events = fixture.gateway().events();
    assert!(events.iter().any(|event| event.detail.contains("max_connect_rate")));
}

#[test]
fn long_topics_and_filters_are_invalid() {
    let fixture = Fixture::with(|options| options.max_topic_bytes = 8);
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("12345678", b"x"), ReasonCode::Success);
    assert_eq!(client.publish("123456789", b"x"), ReasonCode::TopicNameInvalid);
    let options = SubscriptionOptions::new(QoS::AtMostOnce);
    assert_eq!(client.subscribe(&[("12345678", options), ("123456789", options)]), [0, 0x8f]);
    assert_eq!(reached(&fixture, Limit::MaxTopicBytes), 2);
    let mut old = fixture.v3("b");
    old.send_publish(&publish("123456789", b"x", 1));
    assert!(old.try_receive().is_none());
    let events = fixture.gateway().events();
    assert!(events.iter().any(|event| event.client == "a" && event.kind == EventKind::SubscribeRefused));
}

#[test]
fn one_subscription_too_many_is_told_and_counted() {
    let fixture = Fixture::with(|options| options.max_subscriptions_per_client = 1);
    let mut client = fixture.v5("a");
    let options = SubscriptionOptions::new(QoS::AtMostOnce);
    assert_eq!(client.subscribe(&[("a", options), ("b", options)]), [0, 0x97]);
    assert_eq!(fixture.v3("b").subscribe(&[("a", options), ("b", options)]), [0, 0x80]);
    assert_eq!(reached(&fixture, Limit::MaxSubscriptions), 2);
    let events = fixture.gateway().events();
    assert!(events.iter().any(|event| event.client == "a" && event.detail.contains("max_subscriptions")));
}

#[test]
fn a_packet_too_large_is_counted_by_listener() {
    let fixture = Fixture::with(|options| options.max_packet_bytes = 300);
    let mut client = fixture.v5("a");
    client.send_publish(&publish("a", &[0; 400], 1));
    assert_eq!(client.ended(), Some(ReasonCode::PacketTooLarge));
    assert_eq!(reached(&fixture, Limit::MaxPacketBytes), 1);
    assert_eq!(fixture.gateway().listeners()[0].endings, [(ReasonCode::PacketTooLarge, 1)]);
}

#[test]
fn a_slow_reader_is_named() {
    let fixture = Fixture::with(|options| options.max_queued_messages = 1);
    let mut slow = fixture.raw();
    let one = encode(&[Property { id: PropertyId::ReceiveMaximum, value: Value::TwoByte(1) }]);
    let properties = Properties::check(&one, Place::In(PacketType::Connect)).unwrap();
    slow.connect(&Connect { properties, ..connect(Version::V5, "slow") });
    slow.subscribed("a", QoS::AtLeastOnce);
    let mut publisher = fixture.v5("p");
    fixture.clock.advance(Duration::from_secs(1));
    // The first is in flight, the second waits, the rest is dropped.
    (0..4).for_each(|_| assert_eq!(publisher.publish("a", b"x"), ReasonCode::Success));
    fixture.until("drops", |counters| counters.dropped_deliveries == 2);
    assert_eq!(reached(&fixture, Limit::MaxQueuedBytes), 2);
    let events = fixture.gateway().events();
    assert!(events.iter().any(|event| event.client == "slow" && event.kind == EventKind::LimitReached));
}
