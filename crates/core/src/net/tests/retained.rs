//! Retained messages: those of before the start, which come in while clients are connected, and more than a client takes
//! at once.

use super::client::publish;
use super::*;
use crate::mqtt::{Publish, QoS};

fn loading() -> Fixture {
    Fixture::with(|options| options.loads_retained = true)
}

fn stored<'a>(topic: &'a str, payload: &'a [u8]) -> StoredMessage<'a> {
    StoredMessage { topic, payload, qos: 1, ..StoredMessage::default() }
}

fn retain(client: &mut Client, topic: &str, payload: &[u8]) {
    let packet_id = client.next_id();
    client.send_publish(&Publish { retain: true, ..publish(topic, payload, packet_id) });
    assert!(!client.puback(packet_id).is_error());
}

/// Topic, payload and retain flag of what came before the answer to a ping.
fn heard(client: &mut Client) -> Vec<(String, Vec<u8>, bool)> {
    let told = client.ping();
    let told = told.iter().map(|received| received.publish());
    told.map(|publish| (publish.topic.to_owned(), publish.payload.to_vec(), publish.retain)).collect()
}

fn message(topic: &str, payload: &[u8], retain: bool) -> (String, Vec<u8>, bool) {
    (topic.to_owned(), payload.to_vec(), retain)
}

#[test]
fn a_subscription_made_while_messages_come_in_gets_all_of_them_at_the_end() {
    let fixture = loading();
    let mut device = fixture.v5("device");
    // Newer than what is still to come.
    retain(&mut device, "r/before", b"new");
    retain(&mut device, "r/cleared", b"new");
    retain(&mut device, "r/cleared", b"");
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("r/+", QoS::AtMostOnce);
    fixture.gateway().restore(stored("r/before", b"old"));
    fixture.gateway().restore(stored("r/cleared", b"old"));
    fixture.gateway().restore(stored("r/old", b"old"));
    assert_eq!(heard(&mut subscriber), []);
    // It hears of these as they are published, and not again.
    retain(&mut device, "r/meanwhile", b"new");
    retain(&mut device, "r/old/other", b"no match");
    assert_eq!(heard(&mut subscriber), [message("r/meanwhile", b"new", false)]);
    fixture.gateway().restore(stored("r/meanwhile", b"old"));
    fixture.gateway().restore(stored("r/then", b"old"));
    fixture.gateway().retained_loaded();
    let wanted =
        [message("r/before", b"new", true), message("r/old", b"old", true), message("r/then", b"old", true)];
    for wanted in wanted {
        let received = subscriber.receive();
        let publish = received.publish();
        assert_eq!(message(publish.topic, publish.payload, publish.retain), wanted);
    }
    assert_eq!(heard(&mut subscriber), []);
    let mut late = fixture.v3("late");
    late.subscribed("r/meanwhile", QoS::AtLeastOnce);
    assert_eq!(heard(&mut late), [message("r/meanwhile", b"new", true)]);
}

#[test]
fn who_unsubscribes_or_goes_before_the_end_gets_nothing_and_who_comes_back_does() {
    let fixture = loading();
    let mut away = fixture.v5("away");
    away.subscribed("r", QoS::AtLeastOnce);
    let mut subscriber = fixture.v5("s");
    subscriber.subscribed("r", QoS::AtLeastOnce);
    subscriber.subscribed("other", QoS::AtLeastOnce);
    assert_eq!(subscriber.unsubscribe(&["r"]), [0]);
    drop(away);
    fixture.until("the end of a connection", |counters| counters.sockets == 1);
    let mut back = fixture.v5("away");
    fixture.gateway().restore(stored("other", b"2"));
    fixture.gateway().restore(stored("r", b"1"));
    fixture.gateway().retained_loaded();
    let received = subscriber.receive();
    assert_eq!(received.publish().topic, "other");
    assert_eq!(heard(&mut back), [], "its session was clean");
    back.subscribed("r", QoS::AtMostOnce);
    assert_eq!(heard(&mut back), [message("r", b"1", true)]);
}

#[test]
fn a_session_gets_what_its_subscription_waits_for_on_its_next_connection() {
    let fixture = loading();
    let kept = |client_id| client::connect(crate::mqtt::Version::V311, client_id);
    let mut subscriber = fixture.raw();
    subscriber.resume(&crate::mqtt::Connect { clean_start: false, ..kept("s") });
    subscriber.subscribed("r/#", QoS::AtLeastOnce);
    drop(subscriber);
    fixture.until("the end of the connection", |counters| counters.sockets == 0);
    fixture.gateway().restore(stored("r/1", b"1"));
    fixture.gateway().retained_loaded();
    let mut subscriber = fixture.raw();
    let (_, present) = subscriber.resume(&crate::mqtt::Connect { clean_start: false, ..kept("s") });
    assert!(present);
    let received = subscriber.receive();
    assert_eq!((received.publish().topic, received.publish().retain), ("r/1", true));
}

#[test]
fn more_messages_than_may_wait_for_a_client_all_reach_it() {
    const COUNT: usize = 3000;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let fixture = Fixture::with(|options| {
            options.loads_retained = true;
            options.outbound_max_bytes = 64 << 10;
            options.max_queued_messages = 16;
        });
        let payload = [b'x'; 1000];
        for n in 0..COUNT {
            fixture.gateway().restore(stored(&format!("many/{n:05}"), &payload));
        }
        fixture.gateway().retained_loaded();
        let mut subscriber = fixture.v5("s");
        subscriber.subscribed("many/#", qos);
        // Beside it another one is served.
        let mut other = fixture.v5("other");
        assert_eq!(other.publish("other", b"x"), crate::mqtt::ReasonCode::Success);
        for n in 0..COUNT {
            let received = subscriber.receive();
            let publish = received.publish();
            assert_eq!((publish.topic, publish.payload), (&*format!("many/{n:05}"), &payload[..]));
            if publish.packet_id != 0 {
                subscriber.send_puback(publish.packet_id);
            }
        }
        assert!(subscriber.ping().is_empty());
        assert_eq!(fixture.gateway().counters().dropped_deliveries, 0);
    }
}
