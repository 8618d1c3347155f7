//! SUBSCRIBE, live messages, retained messages and the downlink.

use super::client::{connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{Connect, PacketType, Properties, Publish, QoS, ReasonCode, SubscriptionOptions, Version};
use crate::rows::{Cell, Rows};

fn qos(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions::new(qos)
}

fn retained<'a>(topic: &'a str, payload: &'a [u8], packet_id: u16) -> Publish<'a> {
    Publish { retain: true, ..publish(topic, payload, packet_id) }
}

/// Payloads that came before the answer to a ping.
fn payloads(client: &mut client::Client) -> Vec<Vec<u8>> {
    client.ping().iter().map(|received| received.publish().payload.to_vec()).collect()
}

#[test]
fn live_messages_come_at_the_lower_of_both_qos() {
    let fixture = Fixture::new();
    let mut subscriber = fixture.v3("s");
    subscriber.subscribed("a/+", QoS::AtLeastOnce);
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("a/b", b"1"), ReasonCode::Success);
    client.send_publish(&publish("a/c", b"0", 0));
    let first = subscriber.receive();
    assert_eq!((first.publish().qos, first.publish().topic), (QoS::AtLeastOnce, "a/b"));
    assert_ne!(first.publish().packet_id, 0);
    let second = subscriber.receive();
    assert_eq!((second.publish().qos, second.publish().payload), (QoS::AtMostOnce, &b"0"[..]));
    subscriber.send_puback(first.publish().packet_id);
    assert_eq!(fixture.until("deliveries", |c| c.delivered == 2).dropped_deliveries, 0);
}

#[test]
fn overlapping_filters_give_one_copy_at_the_highest_qos() {
    let fixture = Fixture::new();
    let mut subscriber = fixture.v5("s");
    let filters =
        [("a/#", qos(QoS::AtMostOnce)), ("a/b", qos(QoS::AtLeastOnce)), ("+/b", qos(QoS::AtMostOnce))];
    assert_eq!(subscriber.subscribe(&filters), [0, 1, 0]);
    let mut other = fixture.v5("other");
    other.subscribed("#", QoS::AtMostOnce);
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("a/b", b"x"), ReasonCode::Success);
    let received = subscriber.receive();
    assert_eq!(received.publish().qos, QoS::AtLeastOnce);
    assert!(subscriber.ping().is_empty());
    assert_eq!(payloads(&mut other), [b"x"]);
}

#[test]
fn unsubscribe_ends_one_filter_and_tells() {
    let fixture = Fixture::new();
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("a/#", QoS::AtMostOnce);
    subscriber.subscribed("b", QoS::AtMostOnce);
    assert_eq!(subscriber.unsubscribe(&["a/#", "never"]), [0x00, 0x11]);
    let mut client = fixture.v5("a");
    client.publish("a/b", b"1");
    client.publish("b", b"2");
    assert_eq!(payloads(&mut subscriber), [b"2"]);
    assert_eq!(fixture.v3("o").unsubscribe(&["x"]), [0u8; 0]);
}

#[test]
fn a_wildcard_in_front_does_not_reach_dollar_topics() {
    let fixture = Fixture::new();
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("#", QoS::AtMostOnce);
    let mut things = fixture.v5("t");
    things.subscribed("$aws/things/+/shadow/update/#", QoS::AtMostOnce);
    let mut client = fixture.v5("a");
    client.publish("$aws/things/t/shadow/update/delta", b"d");
    assert!(subscriber.ping().is_empty());
    assert_eq!(payloads(&mut things), [b"d"]);
}

#[test]
fn no_local_and_retain_as_published_are_honoured() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("self");
    let no_local = SubscriptionOptions { no_local: true, ..qos(QoS::AtMostOnce) };
    let as_published = SubscriptionOptions { retain_as_published: true, ..qos(QoS::AtMostOnce) };
    assert_eq!(client.subscribe(&[("a", no_local)]), [0]);
    let mut other = fixture.v5("other");
    assert_eq!(other.subscribe(&[("a", as_published), ("b", no_local)]), [0, 0]);
    client.send_publish(&retained("a", b"r", 90));
    assert_eq!(client.puback(90), ReasonCode::Success);
    assert!(client.ping().is_empty(), "not to myself");
    assert!(other.receive().publish().retain);
    client.publish("a", b"plain");
    assert!(!other.receive().publish().retain);
}

#[test]
fn retained_messages_are_replayed_with_the_flag_and_live_ones_come_without() {
    let fixture = Fixture::new();
    let mut live = fixture.v3("live");
    live.subscribed("state/#", QoS::AtLeastOnce);
    let mut client = fixture.v5("a");
    client.send_publish(&retained("state/1", b"on", 1));
    client.send_publish(&retained("state/2", b"off", 2));
    assert_eq!((client.puback(1), client.puback(2)), (ReasonCode::Success, ReasonCode::Success));
    assert!(!live.receive().publish().retain);
    let mut late = fixture.v3("late");
    late.subscribed("state/+", QoS::AtMostOnce);
    let replay = late.ping();
    let seen: Vec<_> =
        replay.iter().map(|r| (r.publish().topic, r.publish().payload, r.publish().retain)).collect();
    assert_eq!(seen, [("state/1", &b"on"[..], true), ("state/2", &b"off"[..], true)]);
}

#[test]
fn an_empty_retained_payload_clears_goes_live_and_is_no_reading() {
    let fixture = Fixture::new();
    let topic = "dt/s/d/telemetry";
    let mut client = fixture.v5("a");
    client.send_publish(&retained(topic, PAYLOAD, 1));
    assert_eq!(client.puback(1), ReasonCode::Success);
    let mut live = fixture.v5("live");
    live.subscribed(topic, QoS::AtMostOnce);
    assert_eq!(live.receive().publish().payload, PAYLOAD);
    client.send_publish(&retained(topic, b"", 2));
    assert_eq!(client.puback(2), ReasonCode::Success);
    assert_eq!(live.receive().publish().payload, b"");
    let mut late = fixture.v5("late");
    late.subscribed(topic, QoS::AtMostOnce);
    assert!(late.ping().is_empty());
    let counters = fixture.until("books", |c| c.received == 2 && c.in_flight == 0);
    assert_eq!(
        (counters.decoded, counters.raw_only, counters.dead_lettered, counters.retained),
        (1, 1, 0, 0)
    );
}

#[test]
fn retain_handling_says_when_retained_messages_are_sent() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    client.send_publish(&retained("r", b"x", 1));
    client.puback(1);
    let handling = |retain_handling| SubscriptionOptions { retain_handling, ..qos(QoS::AtMostOnce) };
    let mut subscriber = fixture.v5("s");
    let mut replayed = |retain_handling| {
        subscriber.subscribe(&[("r", handling(retain_handling))]);
        subscriber.ping().len()
    };
    assert_eq!([replayed(1), replayed(1), replayed(0), replayed(2)], [1, 0, 1, 0]);
}

#[test]
fn retained_messages_beyond_the_bound_are_refused_with_0x97() {
    let fixture = Fixture::with(|options| options.retained_max_messages = 1);
    let mut client = fixture.v5("a");
    client.send_publish(&retained("r1", b"x", 1));
    client.send_publish(&retained("r2", b"x", 2));
    assert_eq!((client.puback(1), client.puback(2)), (ReasonCode::Success, ReasonCode::QuotaExceeded));
    // MQTT 3.1.1 cannot be told, so there the message is delivered and logged.
    let mut old = fixture.v3("b");
    old.send_publish(&retained("r2", b"x", 1));
    assert_eq!(old.puback(1), ReasonCode::Success);
    let counters = fixture.until("books", |c| c.received == 3 && c.in_flight == 0);
    assert_eq!((counters.retained, counters.retained_refused), (1, 2));
    assert_eq!((counters.raw_only, counters.refused), (2, 1));
}

#[test]
fn retain_unavailable_is_0x9a() {
    let fixture = Fixture::with(|options| options.retain_available = false);
    let mut client = fixture.v5("a");
    client.send_publish(&retained("r", b"x", 1));
    assert_eq!(client.ended(), Some(ReasonCode::RetainNotSupported));
}

#[test]
fn a_retained_messages_expiry_counts_down() {
    let fixture = Fixture::new();
    let raw = encode(&[Property { id: PropertyId::MessageExpiryInterval, value: Value::FourByte(10) }]);
    let properties = Properties::check(&raw, Place::In(PacketType::Publish)).unwrap();
    let mut client = fixture.v5("a");
    client.send_publish(&Publish { properties, ..retained("r", b"x", 1) });
    client.puback(1);
    fixture.clock.advance(Duration::from_secs(4));
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("r", QoS::AtMostOnce);
    let received = subscriber.receive();
    assert_eq!(received.publish().properties.number(PropertyId::MessageExpiryInterval), Some(6));
    fixture.clock.advance(Duration::from_secs(6));
    subscriber.subscribed("r", QoS::AtMostOnce);
    assert!(subscriber.ping().is_empty());
}

#[test]
fn what_is_too_much_is_refused_in_suback_and_the_connection_lives() {
    let fixture = Fixture::with(|options| {
        options.max_subscriptions_per_client = 2;
        options.max_topic_levels = 3;
    });
    let mut client = fixture.v5("a");
    let once = qos(QoS::AtMostOnce);
    let filters = [("a/b/c/d", once), ("a", once), ("b", once), ("c", once)];
    assert_eq!(client.subscribe(&filters), [0x8f, 0, 0, 0x97]);
    let mut old = fixture.v3("b");
    assert_eq!(old.subscribe(&filters), [0x80, 0, 0, 0x80]);
    assert!(old.ping().is_empty());
}

#[test]
fn the_clients_receive_maximum_is_honoured_and_the_rest_waits() {
    let fixture = Fixture::new();
    let raw = encode(&[Property { id: PropertyId::ReceiveMaximum, value: Value::TwoByte(2) }]);
    let properties = Properties::check(&raw, Place::In(PacketType::Connect)).unwrap();
    let mut subscriber = fixture.raw();
    subscriber.connect(&Connect { properties, ..connect(Version::V5, "s") });
    subscriber.subscribed("a", QoS::AtLeastOnce);
    let mut client = fixture.v5("a");
    for at in 0..6u8 {
        client.publish("a", &[at]);
    }
    let first = subscriber.ping();
    let ids: Vec<u16> = first.iter().map(|received| received.publish().packet_id).collect();
    assert_eq!(ids.len(), 2);
    subscriber.send_puback(ids[1]);
    let third = subscriber.receive();
    assert_eq!(third.publish().payload, [2]);
    assert!(!ids[..1].contains(&third.publish().packet_id), "an id in flight is not used again");
    assert!(subscriber.ping().is_empty());
    subscriber.send_puback(ids[0]);
    subscriber.send_puback(third.publish().packet_id);
    let (fourth, fifth) = (subscriber.receive(), subscriber.receive());
    assert_eq!((fourth.publish().payload, fifth.publish().payload), (&[3u8][..], &[4u8][..]));
    assert!(subscriber.ping().is_empty());
}

#[test]
fn a_packet_above_the_clients_maximum_is_dropped_for_that_client() {
    let fixture = Fixture::new();
    let raw = encode(&[Property { id: PropertyId::MaximumPacketSize, value: Value::FourByte(50) }]);
    let properties = Properties::check(&raw, Place::In(PacketType::Connect)).unwrap();
    let mut small = fixture.raw();
    small.connect(&Connect { properties, ..connect(Version::V5, "small") });
    small.subscribed("a", QoS::AtLeastOnce);
    let mut large = fixture.v5("large");
    large.subscribed("a", QoS::AtLeastOnce);
    let mut client = fixture.v5("a");
    client.publish("a", &[1; 100]);
    client.publish("a", &[2; 10]);
    assert_eq!(small.receive().publish().payload, [2; 10]);
    assert_eq!(payloads(&mut large).len(), 2);
    fixture.until("the drop", |c| c.dropped_deliveries == 1);
}

#[test]
fn a_slow_reader_is_bounded_and_slows_nobody() {
    let fixture = Fixture::with(|options| options.outbound_max_bytes = 64 << 10);
    let mut slow = [fixture.v5("slow0"), fixture.v5("slow1")];
    slow[0].subscribed("flood", QoS::AtMostOnce);
    slow[1].subscribed("flood", QoS::AtLeastOnce);
    let mut client = fixture.v5("a");
    let payload = vec![7; 50_000];
    // The kernel's buffers take some megabytes first.
    let mut sent = 0;
    while fixture.gateway().counters().dropped_deliveries < 200 {
        assert_eq!(client.publish("flood", &payload), ReasonCode::Success);
        sent += 1;
        assert!(sent < 5000, "deliveries are never dropped");
    }
    let mut fast = fixture.v5("fast");
    fast.subscribed("flood", QoS::AtMostOnce);
    client.publish("flood", b"last");
    assert_eq!(payloads(&mut fast), [b"last"]);
    for slow in &mut slow {
        assert!(!slow.receive().publish().payload.is_empty(), "it goes on when it reads");
    }
    let counters = fixture.gateway().counters();
    assert_eq!(counters.live_only + counters.in_flight, counters.received);
}

#[test]
fn the_downlink_reaches_live_subscribers_and_the_retained_table() {
    let fixture = Fixture::new();
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("cmd/#", QoS::AtLeastOnce);
    let mut rows = Rows::new(SchemaRef::new(downlink_schema()));
    for (topic, payload, qos, retain) in [
        ("cmd/1", "a", 1, false),
        ("cmd/2", "b", 0, true),
        ("bad/#", "c", 0, false),
        ("cmd/3", "d", 1, false),
    ] {
        rows.push([
            Cell::Timestamp(1),
            Cell::Bytes(topic.as_bytes()),
            Cell::Bytes(payload.as_bytes()),
            Cell::Bigint(qos),
            Cell::Boolean(retain),
        ])
        .unwrap();
    }
    fixture.log.append(&[&rows]).unwrap();
    for (topic, payload, qos) in
        [("cmd/1", "a", QoS::AtLeastOnce), ("cmd/2", "b", QoS::AtMostOnce), ("cmd/3", "d", QoS::AtLeastOnce)]
    {
        let received = subscriber.receive();
        let publish = received.publish();
        assert_eq!((publish.topic, publish.payload, publish.qos), (topic, payload.as_bytes(), qos));
        assert!(!publish.retain);
    }
    let mut late = fixture.v5("late");
    late.subscribed("cmd/+", QoS::AtMostOnce);
    assert!(late.receive().publish().retain);
    let events = fixture.gateway().events();
    assert!(events.iter().any(|event| event.detail.contains("bad/#")), "{events:?}");
}

#[test]
fn subscriptions_end_with_their_connection() {
    let fixture = Fixture::new();
    for round in 0..3 {
        let mut clients: Vec<_> = (0..10).map(|id| fixture.v5(&format!("{id}"))).collect();
        for client in &mut clients {
            client.subscribed("shared/topic", QoS::AtMostOnce);
            client.subscribed(&format!("own/{round}/+"), QoS::AtMostOnce);
        }
        fixture.until("subscriptions", |c| c.subscriptions == 20);
        drop(clients);
        fixture.until("none", |c| c.subscriptions == 0 && c.connections == 0);
    }
    assert!(fixture.gateway().shared.subscriptions.read().is_empty());
}
