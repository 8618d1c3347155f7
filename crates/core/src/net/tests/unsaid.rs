//! The disk fails while a session changes, works again, and then the process is killed: what memory had told its clients
//! meanwhile still holds.

use super::client::{Client, connect};
use super::durable::{Server, exactly_once, expiry, lasting, success};
use super::*;
use crate::mqtt::{
    Connect, PacketType, Properties, QoS, ReasonCode, Subscribe, SubscriptionOptions, Version, Will,
};
use crate::schema::SESSIONS;

const TOPIC: &str = "dt/s/d/telemetry";

/// The next sync fails, which ends the connection of a client that waits for it.
fn fails(server: &Server, client: &mut Client, send: impl FnOnce(&mut Client)) {
    let before = server.fixture.gateway().counters().log_failures;
    server.log_files.fail_syncs(1);
    send(client);
    while client.try_receive().is_some() {}
    server.fixture.until("the failure", |c| c.log_failures > before);
}

fn subscribe(client: &mut Client, filter: &str) {
    client.send_subscribe(&[(filter, SubscriptionOptions::new(QoS::AtLeastOnce))]);
}

/// Connects, and what comes back through the log says that all before it is written.
fn settled(server: &Server, connect: &Connect<'_>) -> Client {
    let (mut client, present) = server.resumed(connect);
    assert!(present);
    client.publish("$nobody", b"");
    client
}

#[test]
fn a_subscription_that_a_client_finds_in_its_session_survives_a_kill() {
    let server = Server::new();
    let hour = expiry(3600);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    fails(&server, &mut client, |client| subscribe(client, "mine"));
    let mut client = settled(&server, &lasting("a", &hour));
    client.publish("mine", b"1");
    assert_eq!(client.receive().publish().payload, b"1");
    let server = server.killed();
    let (mut client, present) = server.resumed(&lasting("a", &hour));
    assert!(present);
    server.fixture.v5("sender").publish("mine", b"2");
    assert!(client.ping().iter().any(|each| each.publish().payload == b"2"));
}

#[test]
fn a_subscription_that_has_gone_stays_away() {
    let server = Server::new();
    let hour = expiry(3600);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.subscribed("mine", QoS::AtLeastOnce);
    client.subscribed("$share/group/shared", QoS::AtLeastOnce);
    for filter in ["mine", "$share/group/shared"] {
        fails(&server, &mut client, |client| {
            client.send_unsubscribe(&[filter]);
        });
        client = settled(&server, &lasting("a", &hour));
    }
    let server = server.killed();
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    assert_eq!(server.fixture.gateway().counters().subscriptions, 0);
    client.publish("mine", b"1");
    assert!(client.ping().is_empty());
}

#[test]
fn a_packet_id_that_was_completed_is_free_after_a_kill() {
    let server = Server::new();
    let hour = expiry(3600);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.send_publish(&exactly_once(TOPIC, PAYLOAD, 9));
    client.ack(PacketType::Pubrec, 9);
    fails(&server, &mut client, |client| client.send_ack(PacketType::Pubrel, 9, ReasonCode::Success));
    let mut client = settled(&server, &lasting("a", &hour));
    client.send_ack(PacketType::Pubrel, 9, ReasonCode::Success);
    assert_eq!(client.ack(PacketType::Pubcomp, 9), ReasonCode::PacketIdentifierNotFound);
    let server = server.killed();
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.send_publish(&exactly_once(TOPIC, PAYLOAD, 9));
    assert_eq!(client.ack(PacketType::Pubrec, 9), ReasonCode::Success);
    assert_eq!(server.fixture.row_count(TELEMETRY), 2);
}

#[test]
fn a_packet_id_whose_message_was_not_stored_is_free() {
    let server = Server::new();
    // A dead letter, which MQTT 3.1.1 is told to be stored.
    let v3 = Connect { clean_start: false, ..connect(Version::V311, "a") };
    let (mut client, _) = server.resumed(&v3);
    fails(&server, &mut client, |client| client.send_publish(&exactly_once(TOPIC, b"?", 9)));
    let (mut client, _) = server.resumed(&v3);
    client.send_publish(&exactly_once(TOPIC, PAYLOAD, 9));
    client.ack(PacketType::Pubrec, 9);
    assert_eq!(server.fixture.row_count(TELEMETRY), 1);
}

#[test]
fn a_message_that_was_released_is_not_sent_again() {
    let mut server = Server::new();
    let hour = expiry(3600);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.subscribed("t", QoS::ExactlyOnce);
    let mut sender = server.fixture.v5("sender");
    sender.send_publish(&exactly_once("t", b"1", 1));
    sender.ack(PacketType::Pubrec, 1);
    let id = client.receive().publish().packet_id;
    fails(&server, &mut client, |client| client.send_ack(PacketType::Pubrec, id, ReasonCode::Success));
    // It has forgotten the message when it has said PUBCOMP, of which the server need not know.
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.ack(PacketType::Pubrel, id);
    server = server.killed();
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.ack(PacketType::Pubrel, id);
    fails(&server, &mut client, |client| {
        // Together, so that one turn has both; the SUBACK would wait for it.
        let mut both = Vec::new();
        success(PacketType::Pubcomp, id).encode(Version::V5, &mut both);
        let filters = [("other", SubscriptionOptions::new(QoS::AtLeastOnce))];
        Subscribe::encode(1, Properties::NONE, &filters, Version::V5, &mut both);
        client.send(&both);
    });
    let mut client = settled(&server, &lasting("a", &hour));
    assert!(client.ping().is_empty());
    let server = server.killed();
    let (mut client, present) = server.resumed(&lasting("a", &hour));
    assert!(present);
    assert!(client.ping().is_empty());
}

#[test]
fn a_session_whose_begin_or_end_was_not_stored_is_what_its_client_finds() {
    let server = Server::new();
    let hour = expiry(3600);
    let mut client = Client::open(server.fixture.gateway().address());
    fails(&server, &mut client, |client| client.send_connect(&lasting("new", &hour)));
    settled(&server, &lasting("new", &hour)).subscribed("new", QoS::AtLeastOnce);
    let (mut client, _) = server.resumed(&lasting("old", &hour));
    client.subscribed("old", QoS::AtLeastOnce);
    let afresh = Connect { clean_start: true, ..lasting("old", &hour) };
    let mut client = Client::open(server.fixture.gateway().address());
    fails(&server, &mut client, |client| client.send_connect(&afresh));
    drop(settled(&server, &lasting("old", &hour)));
    let server = server.killed();
    let counters = server.fixture.until("sessions", |c| c.sessions == 2);
    assert_eq!(counters.subscriptions, 1);
    server.fixture.v5("sender").publish("new", b"1");
    let (mut client, present) = server.resumed(&lasting("new", &hour));
    assert!(present);
    assert_eq!(client.receive().publish().payload, b"1");
}

#[test]
fn what_a_client_that_is_away_would_find_is_said_without_it() {
    let server = Server::new();
    let for_ever = expiry(u32::MAX);
    let (mut client, _) = server.resumed(&lasting("a", &for_ever));
    fails(&server, &mut client, |client| subscribe(client, "mine"));
    let events = server.fixture.gateway().events();
    assert!(events.iter().any(|event| event.detail.contains("changes of sessions")), "{events:?}");
    // Started, open, close and the subscription: nobody says anything, only time passes.
    server.fixture.until("the row", |_| {
        server.fixture.clock.advance(Duration::from_secs(1));
        server.fixture.row_count(SESSIONS) >= 4
    });
    let server = server.killed();
    server.fixture.v5("sender").publish("mine", b"1");
    let (mut client, present) = server.resumed(&lasting("a", &for_ever));
    assert!(present);
    assert_eq!(client.receive().publish().payload, b"1");
}

#[test]
fn a_will_that_was_not_stored_is_published_again() {
    let server = Server::new();
    let hour = expiry(3600);
    let (mut watcher, _) = server.resumed(&lasting("watcher", &hour));
    watcher.subscribed(TOPIC, QoS::AtLeastOnce);
    let mut live = server.fixture.v5("live");
    live.subscribed(TOPIC, QoS::AtLeastOnce);
    let will = Will {
        topic: TOPIC,
        payload: PAYLOAD,
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: Properties::NONE,
    };
    let (mut stored, left) = (0, Connect { will: Some(will), ..connect(Version::V5, "brief") });
    for connect in [left, Connect { client_id: "lasting", ..lasting("lasting", &hour) }] {
        let connect = Connect { will: Some(will), ..connect };
        for failures in [1, 5] {
            watcher.publish("$nobody", b"");
            let (client, _) = server.resumed(&connect);
            let before = server.fixture.gateway().counters().log_failures;
            server.log_files.fail_syncs(failures);
            drop(client);
            server.fixture.until("the failures", |counters| {
                server.fixture.clock.advance(Duration::from_secs(1));
                counters.log_failures > before
            });
            stored += 1;
            server.fixture.until("the row", |_| {
                server.fixture.clock.advance(Duration::from_secs(1));
                server.fixture.row_count(TELEMETRY) >= stored
            });
            assert_eq!(watcher.receive().publish().payload, PAYLOAD);
            assert_eq!(live.receive().publish().payload, PAYLOAD);
        }
    }
    assert!(watcher.ping().is_empty() && live.ping().is_empty());
    assert_eq!(server.fixture.row_count(TELEMETRY), stored);
}
