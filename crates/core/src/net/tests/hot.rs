//! A connection that sends much beside others is not watched: nothing of it is lost, and its end is noticed.

use std::sync::atomic::{AtomicBool, Ordering};

use super::client::{Client, publish};
use super::*;
use crate::mqtt::{ReasonCode, Version};

/// Sends ten messages a millisecond until told to stop, or as many as the machine lets it; gives the client and how many.
fn send(mut client: Client, stop: &AtomicBool) -> (Client, u16) {
    let (mut bytes, mut id) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) && id < u16::MAX - 10 {
        bytes.clear();
        for _ in 0..10 {
            id += 1;
            publish("dt/s/hot/telemetry", PAYLOAD, id).encode(Version::V311, &mut bytes);
        }
        client.send(&bytes);
        // Its pace, not a wait for anything.
        std::thread::sleep(Duration::from_millis(1));
    }
    (client, id)
}

#[test]
fn all_of_an_unwatched_connection_is_acknowledged_in_order_and_stored() {
    let fixture = Fixture::with(|options| options.threads = 1);
    let mut other = fixture.v5("other");
    let (client, stop) = (fixture.v3("hot"), AtomicBool::new(false));
    let (mut client, sent) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(client, &stop));
        fixture.until("a connection that is not watched", |c| c.unwatched > 0);
        assert_eq!(other.publish("dt/s/other/telemetry", PAYLOAD), ReasonCode::Success);
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    for id in 1..=sent {
        assert_eq!(client.puback(id), ReasonCode::Success);
    }
    assert_eq!(fixture.row_count(TELEMETRY), usize::from(sent) + 1);
    // It has become silent: what it says now is read as well, at the latest when it is watched again.
    client.send_publish(&publish("dt/s/hot/telemetry", PAYLOAD, 1));
    assert_eq!(client.puback(1), ReasonCode::Success);
    drop(client);
    fixture.until("its end", |c| c.sockets == 1 && c.lost_connections == 1);
}

#[test]
fn an_unwatched_client_is_taken_over_by_its_next_connection() {
    let fixture = Fixture::with(|options| options.threads = 1);
    let _other = fixture.v5("other");
    let (client, stop) = (fixture.v3("hot"), AtomicBool::new(false));
    let (_client, _) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(client, &stop));
        fixture.until("a connection that is not watched", |c| c.unwatched > 0);
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    let mut again = fixture.v3("hot");
    assert_eq!(again.publish("dt/s/hot/telemetry", PAYLOAD), ReasonCode::Success);
    assert!(again.ping().is_empty());
    fixture.until("the old connection's end", |c| c.connections == 2);
}

#[test]
fn a_client_that_waits_for_each_acknowledgement_stays_watched() {
    let fixture = Fixture::with(|options| options.threads = 1);
    let (_other, mut client) = (fixture.v5("other"), fixture.v5("a"));
    for _ in 0..2000 {
        assert_eq!(client.publish("dt/s/a/telemetry", PAYLOAD), ReasonCode::Success);
    }
    assert_eq!(fixture.until("all of them", |c| c.decoded == 2000).unwatched, 0);
}
