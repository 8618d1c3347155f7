//! Sessions that outlive the process: what was said before a kill or a power cut holds after it.

use std::collections::BTreeSet;
use std::io::Write;

use rand::SeedableRng;
use rand_pcg::Pcg64;

use super::client::{Client, Received, connect, publish};
use super::*;
use crate::log::forgetful::Forgetful;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{
    Ack, Connect, Disconnect, Packet, PacketType, Properties, Publish, QoS, ReasonCode, SubscriptionOptions,
    Version, Will,
};
use crate::sessions::SessionFiles;

/// A server whose files forget, which is killed and starts again.
pub(super) struct Server {
    pub log_files: Forgetful,
    files: Forgetful,
    pub fixture: Fixture,
}

fn start(log_files: &Forgetful, files: &Forgetful, change: impl FnOnce(&mut GatewayOptions)) -> Fixture {
    let log = Log::open_on(Arc::new(log_files.clone()), log_options(), schemas()).unwrap();
    Fixture::on_log(log, |options| {
        options.sessions = Some(Arc::new(SessionFiles::new(Arc::new(files.clone()))));
        change(options);
    })
}

impl Server {
    /// With one thread, so that what is acknowledged to one client says that all before it is written.
    pub fn new() -> Server {
        Server::with(|options| options.threads = 1)
    }

    fn with(change: impl FnOnce(&mut GatewayOptions)) -> Server {
        let (log_files, files) = (Forgetful::new(), Forgetful::new());
        Server { fixture: start(&log_files, &files, change), log_files, files }
    }

    /// What was written stays, whether it was synced or not.
    pub fn killed(self) -> Server {
        self.killed_with(|options| options.threads = 1)
    }

    fn killed_with(self, change: impl FnOnce(&mut GatewayOptions)) -> Server {
        let (log_files, files) = (self.log_files.kill(), self.files.kill());
        drop(self.fixture);
        Server { fixture: start(&log_files, &files, change), log_files, files }
    }

    /// What was not synced is gone, or not, or half of it.
    fn cut(self, random: &mut Pcg64) -> Server {
        let (log_files, files) = (self.log_files.cut(random), self.files.cut(random));
        drop(self.fixture);
        Server { fixture: start(&log_files, &files, |_| ()), log_files, files }
    }

    fn stopped(mut self) -> Server {
        self.fixture.gateway.take().unwrap().stop(Duration::from_secs(5));
        self.killed()
    }

    /// Connects and gives the client and whether there was a session.
    pub fn resumed(&self, connect: &Connect<'_>) -> (Client, bool) {
        let mut client = self.fixture.raw();
        let (_, session_present) = client.resume(connect);
        (client, session_present)
    }
}

pub(super) fn expiry(seconds: u32) -> Vec<u8> {
    encode(&[Property { id: PropertyId::SessionExpiryInterval, value: Value::FourByte(seconds) }])
}

/// A CONNECT of MQTT 5 that goes on with its session.
pub(super) fn lasting<'a>(client_id: &'a str, raw: &'a [u8]) -> Connect<'a> {
    let properties = Properties::check(raw, Place::In(PacketType::Connect)).unwrap();
    Connect { clean_start: false, properties, ..connect(Version::V5, client_id) }
}

pub(super) fn exactly_once<'a>(topic: &'a str, payload: &'a [u8], packet_id: u16) -> Publish<'a> {
    Publish { qos: QoS::ExactlyOnce, ..publish(topic, payload, packet_id) }
}

#[test]
fn subscriptions_and_messages_of_both_versions_survive_a_kill() {
    let mut server = Server::with(|_| ());
    let hour = expiry(3600);
    let v3 = Connect { clean_start: false, ..connect(Version::V311, "a3") };
    for connect in [&lasting("a5", &hour), &v3] {
        let (mut client, present) = server.resumed(connect);
        assert!(!present);
        client.subscribed("news", QoS::ExactlyOnce);
    }
    let mut sender = server.fixture.v5("sender");
    server.fixture.until("both are away", |c| c.connections == 1);
    sender.publish("news", b"1");
    sender.send_publish(&exactly_once("news", b"2", 2));
    sender.ack(PacketType::Pubrec, 2);
    server = server.killed_with(|_| ());
    assert_eq!(server.fixture.until("sessions", |c| c.sessions == 2).subscriptions, 2);
    // Neither session was looked at since.
    let mut sender = server.fixture.v5("sender");
    sender.publish("news", b"3");
    for connect in [&lasting("a5", &hour), &v3] {
        let (mut client, present) = server.resumed(connect);
        assert!(present);
        for (qos, payload) in [(QoS::AtLeastOnce, b"1"), (QoS::ExactlyOnce, b"2"), (QoS::AtLeastOnce, b"3")] {
            let received = client.receive();
            let publish = received.publish();
            assert_eq!((publish.qos, publish.payload, publish.dup), (qos, &payload[..], false));
        }
        assert!(client.ping().iter().all(|each| each.publish().payload == b"live"));
        sender.publish("news", b"live");
        assert_eq!(client.receive().publish().payload, b"live");
        client.send(&[0xe0, 0]);
        client.ended();
    }
}

#[test]
fn what_a_client_owes_is_asked_for_again_under_the_same_packet_ids() {
    let mut server = Server::new();
    let hour = expiry(3600);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.subscribed("#", QoS::ExactlyOnce);
    let mut sender = server.fixture.v5("sender");
    for id in 1..=4 {
        sender.send_publish(&exactly_once("t", &[id as u8], id));
        sender.ack(PacketType::Pubrec, id);
    }
    sender.publish("t", &[5]);
    let ids: Vec<u16> = (0..5).map(|_| client.receive().publish().packet_id).collect();
    // The first is done, the second is released, the third is received.
    for id in &ids[..2] {
        client.send_ack(PacketType::Pubrec, *id, ReasonCode::Success);
        client.ack(PacketType::Pubrel, *id);
    }
    client.send_ack(PacketType::Pubcomp, ids[0], ReasonCode::Success);
    // What comes back through the log says that all before it is written.
    client.publish("$nobody", b"");
    for _ in 0..2 {
        server = server.killed();
        let (mut client, present) = server.resumed(&lasting("a", &hour));
        assert!(present);
        assert_eq!(client.ack(PacketType::Pubrel, ids[1]), ReasonCode::Success);
        for (at, qos) in [(2, QoS::ExactlyOnce), (3, QoS::ExactlyOnce), (4, QoS::AtLeastOnce)] {
            let received = client.receive();
            let publish = received.publish();
            assert_eq!((publish.packet_id, publish.qos, publish.dup), (ids[at], qos, true));
            assert_eq!(publish.payload, [at as u8 + 1]);
        }
        assert!(client.ping().is_empty());
    }
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.ack(PacketType::Pubrel, ids[1]);
    (0..3).for_each(|_| drop(client.receive()));
    client.send_ack(PacketType::Pubcomp, ids[1], ReasonCode::Success);
    for id in &ids[2..4] {
        client.send_ack(PacketType::Pubrec, *id, ReasonCode::Success);
        client.ack(PacketType::Pubrel, *id);
        client.send_ack(PacketType::Pubcomp, *id, ReasonCode::Success);
    }
    client.send_puback(ids[4]);
    client.publish("$nobody", b"");
    let server = server.killed();
    let (mut client, present) = server.resumed(&lasting("a", &hour));
    assert!(present);
    assert!(client.ping().is_empty());
}

#[test]
fn a_received_id_of_qos_2_is_one_message_over_restarts_until_it_is_completed() {
    let mut server = Server::new();
    let hour = expiry(3600);
    let topic = "dt/s/d/telemetry";
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.send_publish(&exactly_once(topic, PAYLOAD, 9));
    client.ack(PacketType::Pubrec, 9);
    server = server.killed();
    let (mut client, present) = server.resumed(&lasting("a", &hour));
    assert!(present);
    client.send_publish(&Publish { dup: true, ..exactly_once(topic, PAYLOAD, 9) });
    assert_eq!(client.ack(PacketType::Pubrec, 9), ReasonCode::Success);
    assert_eq!(server.fixture.row_count(TELEMETRY), 1);
    client.send_ack(PacketType::Pubrel, 9, ReasonCode::Success);
    assert_eq!(client.ack(PacketType::Pubcomp, 9), ReasonCode::Success);
    server = server.killed();
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.send_ack(PacketType::Pubrel, 9, ReasonCode::Success);
    assert_eq!(client.ack(PacketType::Pubcomp, 9), ReasonCode::PacketIdentifierNotFound);
    // The id is a new message.
    client.send_publish(&exactly_once(topic, PAYLOAD, 9));
    assert_eq!(client.ack(PacketType::Pubrec, 9), ReasonCode::Success);
    assert_eq!(server.fixture.row_count(TELEMETRY), 2);
    // A dead letter of MQTT 5 is told by its PUBREC, which frees the id.
    client.send_publish(&exactly_once(topic, b"no json", 10));
    assert_eq!(client.ack(PacketType::Pubrec, 10), ReasonCode::PayloadFormatInvalid);
    let server = server.killed();
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.send_publish(&exactly_once(topic, PAYLOAD, 10));
    assert_eq!(client.ack(PacketType::Pubrec, 10), ReasonCode::Success);
    assert_eq!(server.fixture.row_count(TELEMETRY), 3);
}

#[test]
fn options_of_subscriptions_survive() {
    let mut server = Server::new();
    let hour = expiry(3600);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    let identified =
        encode(&[Property { id: PropertyId::SubscriptionIdentifier, value: Value::Variable(77) }]);
    let mut options = SubscriptionOptions::new(QoS::AtLeastOnce);
    (options.no_local, options.retain_as_published) = (true, true);
    let mut packet = Vec::new();
    let properties = Properties::check(&identified, Place::In(PacketType::Subscribe)).unwrap();
    crate::mqtt::Subscribe::encode(1, properties, &[("t", options)], Version::V5, &mut packet);
    client.send(&packet);
    client.receive();
    client.subscribed("gone", QoS::AtLeastOnce);
    assert_eq!(client.unsubscribe(&["gone"]), [0]);
    server = server.killed();
    let mut sender = server.fixture.v5("sender");
    sender.send_publish(&Publish { retain: true, ..publish("t", b"before", 1) });
    sender.puback(1);
    sender.publish("gone", b"x");
    server = server.killed();
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    let received = client.receive();
    let found = received.publish();
    assert_eq!((found.payload, found.retain), (&b"before"[..], true));
    assert_eq!(found.properties.number(PropertyId::SubscriptionIdentifier), Some(77));
    client.publish("t", b"from itself");
    assert!(client.ping().is_empty(), "No Local");
}

#[test]
fn shared_subscriptions_wait_for_members_that_are_away() {
    let mut server = Server::new();
    let hour = expiry(3600);
    for client_id in ["a", "b"] {
        let (mut client, _) = server.resumed(&lasting(client_id, &hour));
        client.subscribed("$share/g/t", QoS::AtLeastOnce);
    }
    server = server.killed();
    let mut sender = server.fixture.v5("sender");
    for number in 0..6_u8 {
        sender.publish("t", &[number]);
    }
    server = server.killed();
    let mut got = Vec::new();
    let (mut first, _) = server.resumed(&lasting("a", &hour));
    for received in first.ping() {
        got.push(received.publish().payload[0]);
    }
    assert_eq!(got.len(), 3, "both take turns: {got:?}");
    // The other one's session ends: what waits for it goes to the first.
    let (_, present) = server.resumed(&Connect { clean_start: true, ..lasting("b", &hour) });
    assert!(!present);
    while got.len() < 6 {
        got.push(first.receive().publish().payload[0]);
    }
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn clean_start_and_expiry_zero_end_a_session_for_good() {
    let mut server = Server::new();
    let hour = expiry(3600);
    for client_id in ["a", "b", "c"] {
        let (mut client, _) = server.resumed(&lasting(client_id, &hour));
        client.subscribed("t", QoS::AtLeastOnce);
        if client_id == "c" {
            let zero = expiry(0);
            let properties = Properties::check(&zero, Place::In(PacketType::Disconnect)).unwrap();
            let mut out = Vec::new();
            Disconnect { reason: ReasonCode::Success, properties }.encode(Version::V5, &mut out);
            client.send(&out);
            client.ended();
        }
    }
    let (mut client, present) = server.resumed(&Connect { clean_start: true, ..lasting("a", &hour) });
    assert!(!present);
    client.publish("$nobody", b"");
    server = server.killed();
    assert_eq!(server.fixture.until("sessions", |c| c.sessions == 2).subscriptions, 1);
    assert!(server.resumed(&lasting("b", &hour)).1);
    assert!(server.resumed(&lasting("a", &hour)).1);
    assert!(!server.resumed(&lasting("c", &hour)).1);
}

/// A CONNECT with a will that is published after `delay_s`.
fn with_will<'a>(client_id: &'a str, raw: &'a [u8], will: &'a [u8]) -> Connect<'a> {
    let properties = Properties::check(will, Place::Will).unwrap();
    let will = Will {
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: "wills",
        properties,
        payload: client_id.as_bytes(),
    };
    Connect { will: Some(will), ..lasting(client_id, raw) }
}

fn delay(seconds: u32) -> Vec<u8> {
    encode(&[Property { id: PropertyId::WillDelayInterval, value: Value::FourByte(seconds) }])
}

#[test]
fn wills_wait_for_their_delay_over_a_kill_and_are_published_once() {
    let mut server = Server::new();
    let (hour, minute, none) = (expiry(3600), delay(60), delay(0));
    let (mut watcher, _) = server.resumed(&lasting("watcher", &hour));
    watcher.subscribed("wills", QoS::AtLeastOnce);
    // One has gone and its will waits; one is there when the server dies; one says goodbye.
    drop(server.resumed(&with_will("gone", &hour, &minute)));
    server.fixture.until("it has gone", |c| c.sessions == 1);
    let (_there, _) = server.resumed(&with_will("there", &hour, &none));
    let (mut bye, _) = server.resumed(&with_will("bye", &hour, &none));
    bye.send(&[0xe0, 0]);
    bye.ended();
    watcher.publish("$nobody", b"");
    server = server.killed();
    let (mut watcher, _) = server.resumed(&lasting("watcher", &hour));
    server.fixture.clock.advance(Duration::from_secs(1));
    let received = watcher.receive();
    assert_eq!(received.publish().payload, b"there");
    watcher.send_puback(received.publish().packet_id);
    assert!(watcher.ping().is_empty());
    server.fixture.clock.advance(Duration::from_secs(61));
    let received = watcher.receive();
    assert_eq!(received.publish().payload, b"gone");
    watcher.send_puback(received.publish().packet_id);
    watcher.publish("$nobody", b"");
    let server = server.killed();
    let (mut watcher, _) = server.resumed(&lasting("watcher", &hour));
    server.fixture.clock.advance(Duration::from_secs(120));
    server.fixture.until("time has passed", |c| c.connections == 1);
    assert!(watcher.ping().is_empty(), "each was published once");
}

#[test]
fn a_server_that_stops_in_order_publishes_no_wills_and_keeps_sessions() {
    let server = Server::new();
    let (hour, none) = (expiry(3600), delay(0));
    let (mut watcher, _) = server.resumed(&lasting("watcher", &hour));
    watcher.subscribed("wills", QoS::AtLeastOnce);
    let (_there, _) = server.resumed(&with_will("there", &hour, &none));
    let server = server.stopped();
    let (mut watcher, present) = server.resumed(&lasting("watcher", &hour));
    assert!(present);
    server.fixture.clock.advance(Duration::from_secs(10));
    assert!(watcher.ping().is_empty());
    assert!(server.resumed(&lasting("there", &hour)).1);
}

#[test]
fn a_session_whose_time_is_up_ends_and_the_log_knows_it() {
    let mut server = Server::new();
    let minute = expiry(60);
    let (mut client, _) = server.resumed(&lasting("a", &minute));
    client.subscribed("t", QoS::AtLeastOnce);
    server = server.killed();
    server.fixture.until("it waits", |c| c.sessions == 1);
    server.fixture.clock.advance(Duration::from_secs(61));
    server.fixture.until("it has ended", |c| c.sessions == 0 && c.subscriptions == 0);
    // A commit behind that of its end.
    server.fixture.v5("b").publish("dt/s/d/telemetry", PAYLOAD);
    let server = server.killed();
    assert!(!server.resumed(&lasting("a", &minute)).1);
}

#[test]
fn at_the_bounds_new_messages_are_dropped_for_good_and_counted() {
    let bounded = |options: &mut GatewayOptions| {
        options.threads = 1;
        options.max_queued_messages = 2;
        options.max_total_queued_bytes = 1024;
    };
    let mut server = Server::new().killed_with(bounded);
    let hour = expiry(3600);
    for client_id in ["a", "b"] {
        let (mut client, _) = server.resumed(&lasting(client_id, &hour));
        client.subscribed(client_id, QoS::AtLeastOnce);
    }
    server.fixture.until("both are away", |c| c.connections == 0);
    let mut sender = server.fixture.v5("sender");
    for number in 0..4_u8 {
        sender.publish("a", &[number]);
    }
    sender.publish("b", &[0; 600]);
    sender.publish("b", &[1; 600]);
    let counters = server.fixture.until("drops", |c| c.dropped_deliveries == 3);
    assert_eq!((counters.dropped_total_queued, counters.queued_bytes), (1, 605));
    sender.publish("dt/s/d/telemetry", PAYLOAD);
    server = server.killed();
    assert_eq!(server.fixture.gateway().counters().queued_bytes, 605);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    let got: Vec<_> = client.ping().iter().map(|each| each.publish().payload.to_vec()).collect();
    assert_eq!(got, [[0], [1]]);
    let (mut client, _) = server.resumed(&lasting("b", &hour));
    assert_eq!(client.ping().len(), 1);
}

#[test]
fn a_message_of_the_server_waits_too() {
    let mut server = Server::new();
    let hour = expiry(3600);
    let mut sender = server.fixture.v5("sender");
    sender.send_publish(&Publish { retain: true, ..publish("t", b"retained", 1) });
    sender.puback(1);
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    client.subscribed("t", QoS::AtLeastOnce);
    let first = client.receive();
    assert_eq!(first.publish().payload, b"retained");
    server = server.killed();
    let (mut client, _) = server.resumed(&lasting("a", &hour));
    let again = client.receive();
    let (first, again) = (first.publish(), again.publish());
    assert_eq!((again.payload, again.packet_id, again.dup), (first.payload, first.packet_id, true));
    assert!(client.ping().is_empty());
}

/// A subscriber of QoS 2 as the standard wants it, with what it remembers.
#[derive(Default)]
struct Receiver {
    /// Packet ids between PUBLISH and PUBREL.
    ids: BTreeSet<u16>,
    received: Vec<u16>,
}

impl Receiver {
    /// Takes packets until it has the message of this number and has completed it; false: the connection has ended before.
    fn until(&mut self, client: &mut Client, wanted: u16) -> bool {
        while !(self.received.contains(&wanted) && self.ids.is_empty()) {
            let Some(packet) = client.try_receive() else { return false };
            if !self.take(client, &packet) {
                return false;
            }
        }
        true
    }

    fn take(&mut self, client: &mut Client, packet: &Received) -> bool {
        let answer = match packet.packet() {
            Packet::Publish(publish) => {
                if self.ids.insert(publish.packet_id) {
                    self.received.push(u16::from_le_bytes([publish.payload[0], publish.payload[1]]));
                }
                (PacketType::Pubrec, publish.packet_id)
            }
            Packet::Ack(ack) if ack.ty == PacketType::Pubrel => {
                self.ids.remove(&ack.packet_id);
                (PacketType::Pubcomp, ack.packet_id)
            }
            _ => return false,
        };
        tell(client, &Packet::Ack(success(answer.0, answer.1)));
        true
    }
}

pub(super) fn success(ty: PacketType, packet_id: u16) -> Ack<'static> {
    Ack { ty, packet_id, reason: ReasonCode::Success, properties: Properties::NONE }
}

/// Says something to a server that may be gone.
fn tell(client: &mut Client, packet: &Packet<'_>) {
    let mut out = Vec::new();
    match packet {
        Packet::Publish(publish) => publish.encode(Version::V5, &mut out),
        Packet::Ack(ack) => ack.encode(Version::V5, &mut out),
        _ => unreachable!("nothing else is said"),
    }
    let _ = client.socket.write_all(&out);
}

/// Whether the next packet is this acknowledgement of success.
fn hears(client: &mut Client, ty: PacketType, packet_id: u16) -> bool {
    client.try_receive().is_some_and(|received| received.packet() == Packet::Ack(success(ty, packet_id)))
}

#[test]
fn whenever_the_power_goes_nothing_acknowledged_is_missing_and_no_qos_2_message_is_doubled() {
    const LAST: u16 = 12;
    let hour = expiry(3600);
    for seed in 0..40 {
        let mut random = Pcg64::seed_from_u64(seed);
        let server = Server::with(|_| ());
        let (mut subscriber, _) = server.resumed(&lasting("s", &hour));
        subscriber.subscribed("t", QoS::ExactlyOnce);
        let (mut sender, _) = server.resumed(&lasting("p", &hour));
        let mut receiver = Receiver::default();
        server.log_files.cut_after(1 + seed * 2);
        // The number that is under way, and whether it has its PUBREC.
        let (mut number, mut recorded) = (1, false);
        while number <= LAST {
            tell(&mut sender, &Packet::Publish(exactly_once("t", &number.to_le_bytes(), number)));
            recorded = hears(&mut sender, PacketType::Pubrec, number);
            if !recorded || !receiver.until(&mut subscriber, number) {
                break;
            }
            tell(&mut sender, &Packet::Ack(success(PacketType::Pubrel, number)));
            if !hears(&mut sender, PacketType::Pubcomp, number) {
                break;
            }
            (number, recorded) = (number + 1, false);
        }
        drop((sender, subscriber));
        let server = server.cut(&mut random);
        // The publisher goes on with what has no PUBREC, or with the PUBREL, and says the rest.
        let (mut sender, present) = server.resumed(&lasting("p", &hour));
        assert!(present, "seed {seed}");
        while number <= LAST {
            if !recorded {
                let payload = number.to_le_bytes();
                let again = exactly_once("t", &payload, number);
                tell(&mut sender, &Packet::Publish(Publish { dup: true, ..again }));
                assert!(hears(&mut sender, PacketType::Pubrec, number), "seed {seed}");
            }
            tell(&mut sender, &Packet::Ack(success(PacketType::Pubrel, number)));
            sender.ack(PacketType::Pubcomp, number);
            (number, recorded) = (number + 1, false);
        }
        let (mut subscriber, present) = server.resumed(&lasting("s", &hour));
        assert!(present, "seed {seed}");
        assert!(receiver.until(&mut subscriber, LAST), "seed {seed}");
        for packet in subscriber.ping() {
            assert!(receiver.take(&mut subscriber, &packet), "seed {seed}");
        }
        assert_eq!(receiver.received, (1..=LAST).collect::<Vec<_>>(), "seed {seed}");
    }
}
