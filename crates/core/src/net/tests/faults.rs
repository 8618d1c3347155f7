//! The disk fails, fills up or is slow: no acknowledgement without durable rows, and the books balance.

use super::client::publish;
use super::*;
use crate::log::forgetful::Forgetful;
use crate::mqtt::properties::PropertyId;
use crate::mqtt::{Packet, QoS, ReasonCode, Version};

fn on_forgetful(change: impl FnOnce(&mut LogOptions)) -> (Fixture, Forgetful) {
    on_forgetful_with(|_| (), change)
}

fn on_forgetful_with(
    gateway: impl FnOnce(&mut GatewayOptions),
    log: impl FnOnce(&mut LogOptions),
) -> (Fixture, Forgetful) {
    let storage = Forgetful::new();
    let mut options = log_options();
    log(&mut options);
    let log = Log::open_on(Arc::new(storage.clone()), options, schemas()).unwrap();
    (Fixture::on_log(log, gateway), storage)
}

#[test]
fn a_failed_sync_is_told_and_the_next_message_is_stored() {
    let (fixture, storage) = on_forgetful(|_| ());
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("dt/s/d/telemetry", PAYLOAD), ReasonCode::Success);
    storage.fail_syncs(1);
    client.send_publish(&publish("dt/s/d/telemetry", PAYLOAD, 7));
    let received = client.receive();
    let Packet::Ack(ack) = received.packet() else { panic!("no PUBACK") };
    assert_eq!((ack.packet_id, ack.reason), (7, ReasonCode::UnspecifiedError));
    assert_eq!(client.publish("dt/s/d/telemetry", PAYLOAD), ReasonCode::Success);
    let counters = fixture.until("books", |c| c.received == 3 && c.in_flight == 0);
    assert_eq!((counters.decoded, counters.refused, counters.log_failures), (2, 1, 1));
    assert_eq!(fixture.row_count(TELEMETRY), 2);
    let events = fixture.gateway().events();
    assert!(events.iter().any(|event| event.kind == EventKind::LogFailed), "{events:?}");
}

#[test]
fn a_failed_sync_closes_a_3_1_1_connection_and_sheds_qos_0() {
    let (fixture, storage) = on_forgetful(|_| ());
    let mut best_effort = fixture.v3("q0");
    storage.fail_syncs(1);
    best_effort.send_publish(&publish("dt/s/d/telemetry", PAYLOAD, 0));
    fixture.until("shed", |c| c.shed == 1);
    assert!(best_effort.ping().is_empty());
    let mut client = fixture.v3("a");
    storage.fail_syncs(1);
    client.send_publish(&publish("dt/s/d/telemetry", PAYLOAD, 1));
    assert!(client.try_receive().is_none(), "no PUBACK, the client sends again on its next connection");
    let mut again = fixture.v3("a");
    assert_eq!(again.publish("dt/s/d/telemetry", PAYLOAD), ReasonCode::Success);
    fixture.until("books", |c| (c.shed, c.refused, c.decoded) == (1, 1, 1));
}

#[test]
fn on_a_full_disk_acknowledgements_wait_and_live_messages_go_on() {
    let (fixture, storage) = on_forgetful(|_| ());
    let (mut client, mut listener) = (fixture.v5("a"), fixture.v5("b"));
    listener.subscribed("live", QoS::AtMostOnce);
    assert_eq!(client.publish("dt/s/d/telemetry", PAYLOAD), ReasonCode::Success);
    storage.set_capacity(Some(0));
    storage.fail_writes(1);
    // What the disk failed for another reason than space is told.
    assert_eq!(client.publish("dt/s/d/telemetry", PAYLOAD), ReasonCode::UnspecifiedError);
    client.send_publish(&publish("dt/s/d/telemetry", PAYLOAD, 7));
    client.send_publish(&publish("live", b"x", 0));
    assert_eq!(listener.receive().publish().payload, b"x");
    assert!(client.ping().is_empty());
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fixture.log.stats().full {
        assert!(Instant::now() < deadline, "the log does not say that it is full");
        std::thread::yield_now();
    }
    storage.set_capacity(None);
    assert_eq!(client.puback(7), ReasonCode::Success);
    fixture.until("books", |c| (c.decoded, c.live_only, c.refused) == (2, 1, 1));
}

#[test]
fn a_loop_that_does_not_come_through_gives_less_and_then_sheds_qos_0() {
    let (fixture, storage) = on_forgetful_with(
        |options| {
            options.threads = 1;
            options.turn_bytes = 1024;
            options.inflight_bytes = 1024;
            options.receive_maximum = 400;
            options.shed_after = Duration::from_millis(1200);
        },
        |options| options.queue_bytes = 4096,
    );
    let mut client = fixture.v5("a");
    assert_eq!(client.publish("dt/s/d/telemetry", PAYLOAD), ReasonCode::Success);
    storage.set_capacity(Some(0));
    storage.fail_writes(1);
    assert!(client.publish("dt/s/d/telemetry", PAYLOAD).is_error());
    let mut bytes = Vec::new();
    (1..=200).for_each(|id| publish("dt/s/d/telemetry", PAYLOAD, id).encode(Version::V5, &mut bytes));
    client.send(&bytes);
    fixture.until("read", |c| c.received == 202);
    // More, which stays unread; and a client that is not welcomed before there is space.
    client.send(&bytes);
    fixture.until("stopped reading", |c| c.loops_unread == 1 && c.loops_shedding == 0);
    let mut late = client::Client::open(fixture.gateway().address());
    late.send_connect(&client::connect(Version::V5, "late"));
    fixture.until("shedding", |c| c.loops_shedding == 1);
    let mut best_effort = client::Client::open(fixture.gateway().address());
    best_effort.send_connect(&client::connect(Version::V5, "q0"));
    best_effort.send_publish(&publish("dt/s/d/telemetry", PAYLOAD, 0));
    storage.set_capacity(None);
    for _ in 0..2 {
        (1..=200).for_each(|id| assert_eq!(client.puback(id), ReasonCode::Success));
    }
    let received = late.receive();
    let Packet::Connack(connack) = received.packet() else { panic!("no CONNACK") };
    assert_eq!(connack.properties.number(PropertyId::ReceiveMaximum), Some(25));
    let counters = fixture.until("over", |c| c.loops_unread == 0 && c.shed == 1);
    assert_eq!((counters.decoded, counters.received, counters.in_flight), (401, 403, 0));
    assert!(counters.unread_ms >= 1200);
    let told =
        fixture.gateway().events().into_iter().filter(|event| event.kind == EventKind::Pressure).count();
    assert_eq!(told, 3, "unread, shedding, read again");
}

#[test]
fn keys_that_cannot_be_added_refuse_their_own_messages_only() {
    let (fixture, _storage) = on_forgetful(|options| {
        options.partitions = 1;
        // The empty key of streams without a key is one of them.
        options.max_keys = 3;
    });
    let mut client = fixture.v5("a");
    let mut bytes = Vec::new();
    for (id, device) in [(1, "d1"), (2, "d2"), (3, "d3"), (4, "d1"), (5, "d4"), (6, "d2")] {
        publish(&format!("dt/s/{device}/telemetry"), PAYLOAD, id).encode(Version::V5, &mut bytes);
    }
    client.send(&bytes);
    let codes: Vec<u8> = (1..=6).map(|id| client.puback(id) as u8).collect();
    assert_eq!(codes, [0, 0, 0x97, 0, 0x97, 0]);
    let counters = fixture.until("books", |c| c.received == 6 && c.in_flight == 0);
    assert_eq!((counters.decoded, counters.refused, counters.rows), (4, 2, 4));
    let mut devices = fixture.strings(TELEMETRY, "device");
    devices.sort();
    assert_eq!(devices, ["d1", "d1", "d2", "d2"]);
}

#[test]
fn a_log_that_is_behind_stops_the_reading_and_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let small = LogOptions { queue_bytes: 4096, ..log_options() };
    let log = Log::open(directory.path(), small, schemas()).unwrap();
    let fixture = Fixture::on_log(log, |options| {
        options.turn_bytes = 4096;
        options.inflight_bytes = 8192;
    });
    let address = fixture.gateway().address();
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            std::thread::spawn(move || {
                let mut client = client::Client::connected(address, Version::V5, &format!("p{publisher}"));
                let topic = format!("dt/s/d{publisher}/telemetry");
                for _ in 0..20 {
                    let mut bytes = Vec::new();
                    (1..=200).for_each(|id| publish(&topic, PAYLOAD, id).encode(Version::V5, &mut bytes));
                    client.send(&bytes);
                    (1..=200).for_each(|id| assert_eq!(client.puback(id), ReasonCode::Success));
                }
            })
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    let counters = fixture.until("all", |c| c.decoded == 16_000);
    assert_eq!((counters.in_flight, counters.refused, counters.shed), (0, 0, 0));
    assert_eq!(fixture.row_count(TELEMETRY), 16_000);
}

#[test]
fn a_closed_log_refuses_and_nothing_hangs() {
    let fixture = Fixture::new();
    let mut client = fixture.v5("a");
    fixture.log.close();
    assert!(client.publish("dt/s/d/telemetry", PAYLOAD).is_error());
    assert_eq!(client.publish("live", b""), ReasonCode::Success);
}
