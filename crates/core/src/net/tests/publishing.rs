//! PUBLISH: rows, dead letters, raw messages, acknowledgements and the books.

use std::io::Write;

use super::client::{connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{Packet, PacketType, Properties, Publish, QoS, ReasonCode, SubscriptionOptions, Version};
use crate::schema::{DEAD_LETTERS, RAW};

#[test]
fn an_acknowledged_reading_is_a_durable_row() {
    let fixture = Fixture::new();
    let mut client = fixture.v3("a");
    assert_eq!(client.publish("dt/s1/d7/telemetry", PAYLOAD), ReasonCode::Success);
    assert_eq!(fixture.strings(TELEMETRY, "site"), ["s1"]);
    assert_eq!(fixture.strings(TELEMETRY, "device"), ["d7"]);
    let two = br#"[{"temperature":1},{"temperature":2}]"#;
    assert_eq!(client.publish("dt/s1/d7/telemetry", two), ReasonCode::Success);
    let counters = fixture.until("decoded", |c| c.decoded == 2);
    assert_eq!((counters.rows, counters.received, counters.acks), (3, 2, 2));
    assert_eq!(fixture.row_count(TELEMETRY), 3);
    let latency = fixture.gateway().ack_latency();
    assert_eq!((latency.since_start.count, latency.window.count), (2, 2));
    fixture.gateway().reset_latency_window();
    assert_eq!(fixture.gateway().ack_latency().window.count, 0);
}

#[test]
fn qos_0_is_stored_too() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    client.send_publish(&publish("dt/s/d/telemetry", PAYLOAD, 0));
    fixture.until("decoded", |c| c.decoded == 1);
    assert!(client.ping().is_empty(), "no acknowledgement");
    assert_eq!(fixture.row_count(TELEMETRY), 1);
}

#[test]
fn small_writes_to_many_connections_arrive_with_and_without_io_uring() {
    // More of them than one call takes, and one that goes without a word.
    const CLIENTS: usize = 300;
    const MESSAGES: u16 = 10;
    for io_uring in [true, false] {
        let fixture = Fixture::with(|options| (options.threads, options.io_uring) = (1, io_uring));
        let mut clients: Vec<_> = (0..CLIENTS).map(|at| fixture.v5(&format!("c{at}"))).collect();
        for client in &mut clients {
            client.subscribed("all/#", QoS::AtMostOnce);
        }
        let gone = clients.pop();
        for id in 1..=MESSAGES {
            for client in &mut clients {
                client.send_publish(&publish("dt/s/d/telemetry", PAYLOAD, id));
            }
            for (at, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.puback(id), ReasonCode::Success, "{at}, io_uring = {io_uring}");
            }
        }
        drop(gone);
        let mut sender = fixture.v3("sender");
        for id in 1..=MESSAGES {
            sender.send_publish(&publish("all/x", &[id as u8; 40], id));
            assert_eq!(sender.puback(id), ReasonCode::Success);
        }
        for client in &mut clients {
            for id in 1..=MESSAGES {
                let received = client.receive();
                assert_eq!(received.publish().payload, [id as u8; 40], "io_uring = {io_uring}");
            }
        }
        fixture.until("the one that went", |c| c.sockets == CLIENTS as u64);
        assert_eq!(fixture.row_count(TELEMETRY), (CLIENTS - 1) * usize::from(MESSAGES));
    }
}

#[test]
fn acknowledgements_keep_the_order_of_publish_packets() {
    let fixture = Fixture::new();
    for version in [Version::V311, Version::V5] {
        let mut client = client::Client::connected(fixture.gateway().address(), version, "a");
        let mut bytes = Vec::new();
        // Rows, live only, dead letters and raw messages in turn.
        let topics = ["dt/s/d/telemetry", "live", "dt/s/d2/telemetry", "$aws/things/t/shadow/update"];
        for id in 1..=1000u16 {
            let payload = if id % 4 == 2 { &b"no json"[..] } else { PAYLOAD };
            publish(topics[usize::from(id) % 4], payload, id).encode(version, &mut bytes);
        }
        client.send(&bytes);
        for id in 1..=1000u16 {
            let dead = version == Version::V5 && id % 4 == 2;
            let wanted = if dead { ReasonCode::PayloadFormatInvalid } else { ReasonCode::Success };
            assert_eq!(client.puback(id), wanted, "{id}");
        }
    }
    let counters = fixture.until("all", |c| c.received == 2000 && c.in_flight == 0);
    assert_eq!(
        (counters.decoded, counters.live_only, counters.dead_lettered, counters.raw_only),
        (500, 500, 500, 500)
    );
    assert_eq!((fixture.row_count(DEAD_LETTERS), fixture.row_count(RAW)), (500, 500));
}

#[test]
fn one_byte_per_write() {
    let fixture = Fixture::new();
    let mut bytes = Vec::new();
    connect(Version::V5, "slow").encode(&mut bytes);
    publish("dt/s/d/telemetry", PAYLOAD, 1).encode(Version::V5, &mut bytes);
    publish("dt/s/d/telemetry", PAYLOAD, 2).encode(Version::V5, &mut bytes);
    let mut client = fixture.raw();
    for byte in bytes {
        client.send(&[byte]);
    }
    assert!(matches!(client.receive().packet(), Packet::Connack(_)));
    assert_eq!((client.puback(1), client.puback(2)), (ReasonCode::Success, ReasonCode::Success));
}

#[test]
fn a_conversation_cut_anywhere_is_the_same_conversation() {
    let fixture = Fixture::new();
    let mut bytes = Vec::new();
    connect(Version::V311, "").encode(&mut bytes);
    publish("dt/s/d/telemetry", br#"{"temperature":1}"#, 1).encode(Version::V311, &mut bytes);
    publish("x", &[7; 200], 2).encode(Version::V311, &mut bytes);
    let cuts = bytes.len();
    for cut in 1..cuts {
        let mut client = fixture.raw();
        client.version = Version::V311;
        client.send(&bytes[..cut]);
        // The first part is taken in before the second is sent.
        let taken = fixture.gateway().counters().bytes_in;
        fixture.until("the first part", |c| c.bytes_in > 0 && c.bytes_in >= taken);
        client.send(&bytes[cut..]);
        assert!(matches!(client.receive().packet(), Packet::Connack(_)), "cut at {cut}");
        assert_eq!((client.puback(1), client.puback(2)), (ReasonCode::Success, ReasonCode::Success));
    }
    fixture.until("all", |c| c.decoded == cuts as u64 - 1 && c.live_only == cuts as u64 - 1);
}

#[test]
fn a_large_packet_crosses_many_reads() {
    let fixture = Fixture::with(|options| {
        options.max_packet_bytes = 4 << 20;
        options.max_payload_bytes = 4 << 20;
        options.outbound_max_bytes = 8 << 20;
    });
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("big", QoS::AtLeastOnce);
    let mut client = fixture.v5("a");
    let payload: Vec<u8> = (0..3_000_000u32).map(|at| at as u8).collect();
    assert_eq!(client.publish("big", &payload), ReasonCode::Success);
    assert_eq!(subscriber.receive().publish().payload, payload);
}

#[test]
fn an_undecodable_payload_is_a_dead_letter_and_still_goes_live() {
    let fixture = Fixture::new();
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("dt/#", QoS::AtLeastOnce);
    let mut client = fixture.v5("a");
    client.send_publish(&publish("dt/s/d/telemetry", b"{\"temperature\":\"hot\"}", 9));
    let received = client.receive();
    let Packet::Ack(ack) = received.packet() else { panic!("no PUBACK") };
    assert_eq!((ack.packet_id, ack.reason), (9, ReasonCode::PayloadFormatInvalid));
    let text = ack.properties.text(PropertyId::ReasonString).unwrap();
    assert!(text.contains("type-conflict") && text.contains("temperature"), "{text}");
    assert_eq!(subscriber.receive().publish().payload, b"{\"temperature\":\"hot\"}");
    assert_eq!(fixture.strings(DEAD_LETTERS, "reason"), ["type-conflict"]);
    assert_eq!(fixture.strings(DEAD_LETTERS, "stream"), ["telemetry"]);
    assert_eq!(fixture.strings(DEAD_LETTERS, "client"), ["a"]);

    let mut old = fixture.v3("b");
    assert_eq!(old.publish("dt/s/d/telemetry", b""), ReasonCode::Success);
    assert_eq!(fixture.strings(DEAD_LETTERS, "reason"), ["type-conflict", "empty-payload"]);
    assert_eq!(fixture.until("books", |c| c.dead_lettered == 2).decoded, 0);
}

#[test]
fn reason_strings_are_left_out_when_unwanted_or_too_long() {
    let fixture = Fixture::new();
    let unwanted = Property { id: PropertyId::RequestProblemInformation, value: Value::Byte(0) };
    let small = Property { id: PropertyId::MaximumPacketSize, value: Value::FourByte(20) };
    for asked in [encode(&[unwanted]), encode(&[small])] {
        let properties = Properties::check(&asked, Place::In(PacketType::Connect)).unwrap();
        let mut client = fixture.raw();
        client.connect(&crate::mqtt::Connect { properties, ..connect(Version::V5, "a") });
        client.send_publish(&publish("dt/s/d/telemetry", b"x", 1));
        let received = client.receive();
        let Packet::Ack(ack) = received.packet() else { panic!("no PUBACK") };
        assert_eq!(ack.reason, ReasonCode::PayloadFormatInvalid);
        assert!(ack.properties.is_empty());
    }
}

#[test]
fn raw_filters_and_retained_messages_are_logged_raw() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("thing");
    assert_eq!(client.publish("$aws/things/t1/shadow/update", b"{}"), ReasonCode::Success);
    let retained = Publish { retain: true, ..publish("dt/s/d/telemetry", PAYLOAD, 50) };
    client.send_publish(&retained);
    assert_eq!(client.puback(50), ReasonCode::Success);
    assert_eq!(fixture.strings(RAW, "topic"), ["$aws/things/t1/shadow/update", "dt/s/d/telemetry"]);
    assert_eq!(fixture.strings(RAW, "request"), ["NULL", "NULL"]);
    let counters = fixture.until("books", |c| c.received == 2 && c.in_flight == 0);
    assert_eq!((counters.raw_only, counters.decoded, counters.retained), (1, 1, 1));
}

#[test]
fn a_topic_without_a_stream_is_shown() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("site/x", b"{\"a\":1}"), ReasonCode::Success);
    let unmatched = fixture.gateway().unmatched();
    assert_eq!((unmatched[0].topic.as_str(), &unmatched[0].example[..]), ("site/x", &b"{\"a\":1}"[..]));
    fixture.until("books", |c| c.live_only == 1);
}

#[test]
fn sys_topics_are_not_for_clients() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("$SYS/broker/load", b"1"), ReasonCode::NotAuthorized);
    assert_eq!(client.publish("$SYSTEM", b"1"), ReasonCode::Success);
    let mut old = fixture.v3("b");
    old.send_publish(&publish("$SYS/x", b"1", 1));
    assert_eq!(old.ended(), None);
    fixture.until("books", |c| c.refused == 2 && c.live_only == 1);
}

#[test]
fn limits_of_a_message_are_told() {
    let fixture = Fixture::with(|options| {
        options.max_payload_bytes = 100;
        options.max_topic_levels = 4;
    });
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("a", &[0; 101]), ReasonCode::QuotaExceeded);
    assert_eq!(client.publish("a/b/c/d/e", b""), ReasonCode::TopicNameInvalid);
    assert_eq!(client.publish("a/b/c/d", &[0; 100]), ReasonCode::Success);
    client.send_publish(&publish("a", &[0; 101], 0));
    assert_eq!(client.ended(), Some(ReasonCode::QuotaExceeded));
}

#[test]
fn a_packet_id_of_qos_2_that_nobody_knows_is_not_found() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    client.send(&[0x62, 2, 0, 7]);
    let received = client.receive();
    let Packet::Ack(ack) = received.packet() else { panic!("no PUBCOMP") };
    assert_eq!(
        (ack.ty, ack.packet_id, ack.reason),
        (PacketType::Pubcomp, 7, ReasonCode::PacketIdentifierNotFound)
    );
}

#[test]
fn a_publishers_subscription_identifier_is_an_error() {
    let fixture = Fixture::new();
    let raw = encode(&[Property { id: PropertyId::SubscriptionIdentifier, value: Value::Variable(1) }]);
    let properties = Properties::check(&raw, Place::In(PacketType::Publish)).unwrap();
    let mut client = fixture.v5("a");
    client.send_publish(&Publish { properties, ..publish("a", b"", 1) });
    assert_eq!(client.ended(), Some(ReasonCode::ProtocolError));
}

#[test]
fn more_than_the_receive_maximum_is_0x93() {
    let fixture = Fixture::with(|options| options.receive_maximum = 10);
    let burst = |version| {
        let mut bytes = Vec::new();
        (1..=11).for_each(|id| publish("dt/s/d/telemetry", PAYLOAD, id).encode(version, &mut bytes));
        bytes
    };
    let mut client = fixture.v5("a");
    client.send(&burst(Version::V5));
    assert_eq!(client.ended(), Some(ReasonCode::ReceiveMaximumExceeded));
    // MQTT 3.1.1 knows no such bound.
    let mut client = fixture.v3("b");
    client.send(&burst(Version::V311));
    (1..=11).for_each(|id| assert_eq!(client.puback(id), ReasonCode::Success));
}

#[test]
fn a_client_that_shuts_its_side_down_still_gets_its_acknowledgements() {
    let fixture = Fixture::new();
    let mut client = fixture.v3("a");
    let mut bytes = Vec::new();
    (1..=100).for_each(|id| publish("dt/s/d/telemetry", PAYLOAD, id).encode(Version::V311, &mut bytes));
    client.send(&bytes);
    client.shutdown_write();
    (1..=100).for_each(|id| assert_eq!(client.puback(id), ReasonCode::Success));
    assert!(client.try_receive().is_none());
    fixture.until("the end", |c| c.connections == 0 && c.sockets == 0);
}

#[test]
fn stop_acknowledges_what_was_read() {
    let mut fixture = Fixture::new();
    let mut client = fixture.v5("a");
    let mut bytes = Vec::new();
    (1..=500).for_each(|id| publish("dt/s/d/telemetry", PAYLOAD, id).encode(Version::V5, &mut bytes));
    client.send(&bytes);
    fixture.until("some to be read", |c| c.received > 0);
    let counters = fixture.gateway.take().unwrap().stop(Duration::from_secs(10));
    let mut acknowledged = 0;
    while let Some(received) = client.try_receive() {
        match received.packet() {
            Packet::Ack(_) => acknowledged += 1,
            Packet::Disconnect(end) => assert_eq!(end.reason, ReasonCode::ServerShuttingDown),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((counters.in_flight, counters.imbalance()), (0, 0));
    assert_eq!((acknowledged, counters.acks), (counters.decoded, counters.decoded));
    assert_eq!(fixture.row_count(TELEMETRY) as u64, counters.decoded);
}

#[test]
fn a_client_that_takes_no_acknowledgements_is_not_read() {
    let fixture = Fixture::with(|options| options.outbound_max_bytes = 1024);
    let mut client = fixture.v3("deaf");
    let mut bytes = Vec::new();
    (1..=2000).for_each(|id| publish("live", b"", id).encode(Version::V311, &mut bytes));
    client.socket.set_nonblocking(true).unwrap();
    let mut sent = 0;
    // Until both directions are full: the kernel's buffers hold some megabytes.
    let quiet = Instant::now();
    let mut last = quiet;
    while last.elapsed() < Duration::from_millis(500) && quiet.elapsed() < Duration::from_secs(20) {
        match client.socket.write(&bytes[sent % bytes.len()..]) {
            Ok(taken) => {
                sent += taken;
                last = Instant::now();
            }
            Err(_) => std::thread::yield_now(),
        }
    }
    assert!(quiet.elapsed() < Duration::from_secs(20), "the gateway never stopped reading");
    let mut other = fixture.v3("other");
    assert_eq!(other.publish("live", b""), ReasonCode::Success);
    // Once it reads, it goes on.
    client.socket.set_nonblocking(false).unwrap();
    let acknowledged = fixture.gateway().counters().acks;
    for at in 0..acknowledged {
        client.puback((at % 2000) as u16 + 1);
    }
    fixture.until("progress", |c| c.acks > acknowledged);
}

#[test]
fn properties_are_forwarded_to_mqtt_5_subscribers() {
    let fixture = Fixture::new();
    let raw = encode(&[
        Property { id: PropertyId::PayloadFormatIndicator, value: Value::Byte(1) },
        Property { id: PropertyId::ContentType, value: Value::Text("text/plain") },
        Property { id: PropertyId::ResponseTopic, value: Value::Text("reply/to") },
        Property { id: PropertyId::CorrelationData, value: Value::Binary(b"42") },
        Property { id: PropertyId::MessageExpiryInterval, value: Value::FourByte(60) },
        Property { id: PropertyId::UserProperty, value: Value::Pair("k", "v") },
        Property { id: PropertyId::UserProperty, value: Value::Pair("k", "w") },
    ]);
    let properties = Properties::check(&raw, Place::In(PacketType::Publish)).unwrap();
    let (mut new, mut old) = (fixture.v5("s5"), fixture.v3("s3"));
    new.subscribe(&[("a", SubscriptionOptions::new(QoS::AtLeastOnce))]);
    old.subscribed("a", QoS::AtMostOnce);
    let mut client = fixture.v5("a");
    client.send_publish(&Publish { properties, ..publish("a", b"p", 1) });
    assert_eq!(client.puback(1), ReasonCode::Success);
    let received = new.receive();
    assert_eq!(received.publish().properties, properties);
    let received = old.receive();
    assert_eq!((received.publish().payload, received.publish().properties), (&b"p"[..], Properties::NONE));
}
