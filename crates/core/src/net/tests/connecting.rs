//! CONNECT, keep alive, takeover and what ends a connection.

use super::client::{connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{
    Connect, Disconnect, Packet, PacketType, Properties, QoS, ReasonCode, SubscriptionOptions, Version,
};

fn properties(raw: &[u8]) -> Properties<'_> {
    Properties::check(raw, Place::In(PacketType::Connect)).unwrap()
}

/// Sends a CONNECT and gives the code of the CONNACK, after which the connection must end.
fn refused(fixture: &Fixture, connect: &Connect<'_>) -> u8 {
    let mut client = fixture.raw();
    client.send_connect(connect);
    let received = client.receive();
    let Packet::Connack(connack) = received.packet() else { panic!("{:?}", received.packet()) };
    assert!(client.try_receive().is_none(), "nothing follows a CONNACK of refusal");
    connack.code
}

#[test]
fn connack_tells_an_mqtt_5_client_what_there_is() {
    let fixture = Fixture::with(|options| options.max_keep_alive_s = 100);
    let mut client = fixture.raw();
    let received = client.connect(&Connect { keep_alive_s: 300, ..connect(Version::V5, "") });
    let Packet::Connack(connack) = received.packet() else { unreachable!() };
    let told = connack.properties;
    assert_eq!(told.number(PropertyId::ReceiveMaximum), Some(1024));
    assert_eq!(told.number(PropertyId::MaximumPacketSize), Some(1 << 20));
    assert_eq!(told.number(PropertyId::ServerKeepAlive), Some(100));
    assert_eq!(told.number(PropertyId::TopicAliasMaximum), Some(32));
    // Absent is the standard's default: QoS 2, identifiers, shared subscriptions, and the expiry that was asked for.
    for absent in [
        PropertyId::MaximumQoS,
        PropertyId::SubscriptionIdentifierAvailable,
        PropertyId::SharedSubscriptionAvailable,
        PropertyId::SessionExpiryInterval,
    ] {
        assert!(told.get(absent).is_none(), "{absent:?}");
    }
    let assigned = told.text(PropertyId::AssignedClientIdentifier).unwrap();
    assert!(assigned.len() > 10, "{assigned}");
}

#[test]
fn enhanced_authentication_is_refused_with_0x8c() {
    let fixture = Fixture::new();
    let asked = encode(&[Property { id: PropertyId::AuthenticationMethod, value: Value::Text("SCRAM") }]);
    let connect = Connect { properties: properties(&asked), ..connect(Version::V5, "a") };
    assert_eq!(refused(&fixture, &connect), 0x8c);
}

#[test]
fn an_empty_client_id_without_clean_session_is_refused_with_2_in_3_1_1() {
    let fixture = Fixture::new();
    assert_eq!(refused(&fixture, &Connect { clean_start: false, ..connect(Version::V311, "") }), 2);
    fixture.v3("");
}

#[test]
fn a_wrong_protocol_level_is_refused_in_the_words_of_its_version() {
    let fixture = Fixture::new();
    for (level, code, len) in [(3u8, 1u8, 4usize), (6, 0x84, 0)] {
        let mut client = fixture.raw();
        client.version = if level == 6 { Version::V5 } else { Version::V311 };
        client.send(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', level, 2, 0, 0, 0, 1, b'a']);
        let received = client.receive();
        let Packet::Connack(connack) = received.packet() else { panic!("no CONNACK") };
        assert_eq!(connack.code, code);
        assert!(len == 0 || received.len() == len);
        assert!(client.try_receive().is_none());
    }
}

#[test]
fn a_malformed_connect_gets_0x81_in_5_and_silence_in_3_1_1() {
    let fixture = Fixture::new();
    let mut client = fixture.raw();
    client.send(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 5, 3, 0, 0, 0, 0, 0]);
    let received = client.receive();
    let Packet::Connack(connack) = received.packet() else { panic!("no CONNACK") };
    assert_eq!(connack.code, 0x81);
    let mut client = fixture.raw();
    client.send(&[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 3, 0, 0, 0, 0]);
    assert!(client.try_receive().is_none());
}

#[test]
fn user_name_and_password_are_accepted() {
    let fixture = Fixture::new();
    let mut client = fixture.raw();
    client.connect(&Connect {
        user_name: Some("?SDK=Python"),
        password: Some(b"x"),
        ..connect(Version::V311, "a")
    });
}

#[test]
fn the_first_packet_must_be_connect_and_there_is_only_one() {
    let fixture = Fixture::new();
    let mut client = fixture.raw();
    client.send(&[0xc0, 0]);
    assert!(client.try_receive().is_none(), "nothing precedes CONNACK");

    let mut again = Vec::new();
    connect(Version::V5, "a").encode(&mut again);
    let mut client = fixture.v5("a");
    client.send(&again);
    assert_eq!(client.ended(), Some(ReasonCode::ProtocolError));
    let mut again = Vec::new();
    connect(Version::V311, "a").encode(&mut again);
    let mut client = fixture.v3("a");
    client.send(&again);
    assert_eq!(client.ended(), None);
}

#[test]
fn packets_that_only_servers_send_end_the_connection() {
    let fixture = Fixture::new();
    for bytes in
        [&[0x20, 3, 0, 0, 0][..], &[0x90, 4, 0, 1, 0, 0], &[0xb0, 4, 0, 1, 0, 0], &[0xd0, 0], &[0xf0, 0]]
    {
        let mut client = fixture.v5("a");
        client.send(bytes);
        assert_eq!(client.ended(), Some(ReasonCode::ProtocolError), "{bytes:02x?}");
    }
    let mut client = fixture.v3("a");
    client.send(&[0x20, 2, 0, 0]);
    assert_eq!(client.ended(), None);
}

#[test]
fn malformed_packets_are_told_their_reason() {
    let fixture = Fixture::new();
    for (bytes, reason) in [
        (&[0x32, 5, 0, 1, b'a', 0, 0][..], ReasonCode::ProtocolError),
        (&[0x36, 6, 0, 1, b'a', 0, 1, 0], ReasonCode::MalformedPacket),
        (&[0x30, 5, 0, 2, b'a', b'#', 0], ReasonCode::MalformedPacket),
        (&[0x82, 6, 0, 1, 0, 0, 0, 0], ReasonCode::MalformedPacket),
        (&[0x30, 0xff, 0xff, 0xff, 0xff], ReasonCode::MalformedPacket),
        (&[0x30, 0xff, 0xff, 0xff, 0x7f], ReasonCode::PacketTooLarge),
        (&[0x00, 0], ReasonCode::MalformedPacket),
    ] {
        let mut client = fixture.v5("a");
        client.send(bytes);
        assert_eq!(client.ended(), Some(reason), "{bytes:02x?}");
    }
    let counters = fixture.until("the ends", |c| c.ended_connections.get(ReasonCode::MalformedPacket) == 5);
    assert_eq!(counters.connections, 0);
}

#[test]
fn the_reason_reaches_a_client_that_is_still_sending() {
    let fixture = Fixture::with(|options| options.max_packet_bytes = 1000);
    let mut client = fixture.v5("a");
    let mut out = Vec::new();
    publish("a/b", &[7; 200_000], 0).encode(Version::V5, &mut out);
    // The rest of the packet is under way when the gateway has judged its first bytes.
    client.send(&out);
    assert_eq!(client.ended(), Some(ReasonCode::PacketTooLarge));
}

#[test]
fn session_expiry_cannot_rise_from_0_at_disconnect() {
    let fixture = Fixture::new();
    let raised = encode(&[Property { id: PropertyId::SessionExpiryInterval, value: Value::FourByte(5) }]);
    let mut out = Vec::new();
    let properties = Properties::check(&raised, Place::In(PacketType::Disconnect)).unwrap();
    Disconnect { reason: ReasonCode::Success, properties }.encode(Version::V5, &mut out);
    let mut client = fixture.v5("a");
    client.send(&out);
    assert_eq!(client.ended(), Some(ReasonCode::ProtocolError));
}

#[test]
fn takeover_closes_the_old_connection_with_0x8e() {
    let fixture = Fixture::new();
    // Old and new connections meet on the same thread and on different ones.
    let mut old = fixture.v5("same");
    let mut bystanders = Vec::new();
    for round in 0..20 {
        if round % 3 == 0 {
            bystanders.push(fixture.v3(&format!("bystander {round}")));
        }
        let mut new = fixture.v5("same");
        assert_eq!(old.ended(), Some(ReasonCode::SessionTakenOver));
        assert_eq!(new.publish("x", b"1"), ReasonCode::Success);
        old = new;
    }
    let counters =
        fixture.until("takeovers", |c| c.ended_connections.get(ReasonCode::SessionTakenOver) == 20);
    assert_eq!(counters.connections, 1 + bystanders.len() as u64);
}

#[test]
fn packets_sent_along_with_a_connect_that_takes_over_are_served() {
    let fixture = Fixture::new();
    for round in 0..10 {
        let mut old = fixture.v3("same");
        let mut bytes = Vec::new();
        connect(Version::V311, "same").encode(&mut bytes);
        publish("dt/s/d/telemetry", PAYLOAD, 1).encode(Version::V311, &mut bytes);
        publish("dt/s/d/telemetry", PAYLOAD, 2).encode(Version::V311, &mut bytes);
        let mut new = fixture.raw();
        new.version = Version::V311;
        new.send(&bytes);
        assert!(matches!(new.receive().packet(), Packet::Connack(_)), "round {round}");
        assert_eq!((new.puback(1), new.puback(2)), (ReasonCode::Success, ReasonCode::Success));
        assert_eq!(old.ended(), None);
    }
}

#[test]
fn many_clients_fight_for_one_id_and_one_wins() {
    let fixture = Fixture::new();
    let address = fixture.gateway().address();
    let fighters: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                for _ in 0..20 {
                    let mut client = super::client::Client::open(address);
                    client.send_connect(&connect(Version::V5, "one"));
                    // Another may take over at any moment, before the CONNACK too.
                    let _ = client.try_receive();
                }
            })
        })
        .collect();
    fighters.into_iter().for_each(|fighter| fighter.join().unwrap());
    fixture.until("all to leave", |c| c.connections == 0);
    let mut last = fixture.v5("one");
    assert_eq!(last.publish("a", b""), ReasonCode::Success);
    assert_eq!(fixture.until("one", |c| c.connections == 1).subscriptions, 0);
}

#[test]
fn keep_alive_ends_at_one_and_a_half_times() {
    let fixture = Fixture::new();
    let keep_alive = |version, keep_alive_s| {
        let mut client = fixture.raw();
        client.connect(&Connect { keep_alive_s, ..connect(version, "") });
        client
    };
    let mut silent = keep_alive(Version::V5, 10);
    let mut silent_v3 = keep_alive(Version::V311, 10);
    let mut pinging = keep_alive(Version::V5, 10);
    let mut endless = keep_alive(Version::V5, 0);
    for _ in 0..14 {
        fixture.clock.advance(Duration::from_secs(1));
        pinging.ping();
    }
    assert_eq!(fixture.gateway().counters().connections, 4);
    fixture.clock.advance(Duration::from_millis(1200));
    pinging.ping();
    assert_eq!(silent.ended(), Some(ReasonCode::KeepAliveTimeout));
    assert_eq!(silent_v3.ended(), None);
    fixture.until("two left", |c| c.connections == 2);
    fixture.clock.advance(Duration::from_secs(100_000));
    assert_eq!(pinging.ended(), Some(ReasonCode::KeepAliveTimeout));
    endless.ping();
}

#[test]
fn a_keep_alive_shorter_than_the_first_packet_timeout_counts() {
    let fixture = Fixture::new();
    let mut client = fixture.raw();
    client.connect(&Connect { keep_alive_s: 1, ..connect(Version::V5, "a") });
    fixture.clock.advance(Duration::from_millis(1700));
    assert_eq!(client.ended(), Some(ReasonCode::KeepAliveTimeout));
}

#[test]
fn a_connect_that_never_ends_is_closed_in_time() {
    let fixture = Fixture::new();
    let mut trickling = fixture.raw();
    let mut mute = fixture.raw();
    fixture.until("two sockets", |c| c.sockets == 2);
    for byte in [0x10u8, 0x7f, 0, 4, b'M', b'Q'] {
        trickling.send(&[byte]);
        fixture.clock.advance(Duration::from_secs(1));
    }
    fixture.clock.advance(Duration::from_secs(5));
    assert!(trickling.try_receive().is_none());
    assert!(mute.try_receive().is_none());
    drop((trickling, mute));
    fixture.until("no sockets", |c| c.sockets == 0);
}

#[test]
fn connections_above_the_bound_are_closed_and_counted() {
    let fixture = Fixture::with(|options| options.max_connections = 2);
    let _kept = [fixture.v3("a"), fixture.v3("b")];
    let mut third = fixture.raw();
    assert!(third.try_receive().is_none());
    fixture.until("the refusal", |c| c.over_max_connections == 1);
}

#[test]
fn connections_are_dealt_evenly() {
    let fixture = Fixture::new();
    let _clients: Vec<_> = (0..10).map(|id| fixture.v3(&id.to_string())).collect();
    let by_thread: Vec<u64> =
        fixture.gateway().shared.shown.iter().map(|shown| shown.lock().counters.connections).collect();
    assert_eq!(by_thread, [5, 5, 0]);
}

#[test]
fn a_taken_port_is_told() {
    let fixture = Fixture::new();
    let options = GatewayOptions { address: fixture.gateway().address(), ..options() };
    let error = Gateway::start(fixture.log.clone(), options, vec![telemetry()], vec![]).err().unwrap();
    assert!(error.to_string().contains("is another program using the port?"), "{error}");
}

#[test]
fn stop_says_goodbye() {
    let mut fixture = Fixture::new();
    let (mut v5, mut v3) = (fixture.v5("a"), fixture.v3("b"));
    v5.subscribe(&[("x", SubscriptionOptions::new(QoS::AtMostOnce))]);
    let counters = fixture.gateway.take().unwrap().stop(Duration::from_secs(5));
    assert_eq!(v5.ended(), Some(ReasonCode::ServerShuttingDown));
    assert_eq!(v3.ended(), None);
    assert_eq!((counters.connections, counters.sockets, counters.subscriptions), (0, 0, 0));
}
