//! What can be seen from outside: clients, kicks, `$SYS`, lifecycle events, traces.

use super::client::{connect, publish};
use super::*;
use crate::mqtt::properties::{Place, Property, PropertyId, Value, encode};
use crate::mqtt::{Connect, PacketType, Properties, QoS, ReasonCode, SubscriptionOptions, Version, Will};

fn all(fixture: &Fixture, search: &str, connected: Option<bool>, most: usize) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let page = fixture.gateway().clients(search, connected, after, most).unwrap();
        assert!(page.clients.len() <= most);
        found.extend(page.clients.into_iter().map(|each| each.client_id));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    found.sort();
    found
}

/// A v5 client whose session lasts for so many seconds.
fn lasting(fixture: &Fixture, client_id: &str) -> client::Client {
    let mut client = fixture.raw();
    let expiry = encode(&[Property { id: PropertyId::SessionExpiryInterval, value: Value::FourByte(600) }]);
    let properties = Properties::check(&expiry, Place::In(PacketType::Connect)).unwrap();
    client.connect(&Connect { properties, keep_alive_s: 60, ..connect(Version::V5, client_id) });
    client
}

#[test]
fn clients_are_found_by_prefix_and_pattern_page_by_page() {
    let fixture = Fixture::new();
    let _others: Vec<_> = (0..20).map(|n| fixture.v5(&format!("dev-{n:02}"))).collect();
    let _old = fixture.v3("old");
    drop(lasting(&fixture, "dev-away"));
    fixture.until("one session", |counters| counters.sessions == 1);
    let _nobody = fixture.raw();
    for most in [1, 3, 1000] {
        assert_eq!(all(&fixture, "", None, most).len(), 22);
        assert_eq!(all(&fixture, "dev-", None, most).len(), 21);
        assert_eq!(all(&fixture, "dev-?7", None, most), ["dev-07", "dev-17"]);
        assert_eq!(all(&fixture, "*away", Some(false), most), ["dev-away"]);
        assert_eq!(all(&fixture, "o", Some(true), most), ["old"]);
        assert_eq!(all(&fixture, "x", None, most), Vec::<String>::new());
    }
}

#[test]
fn one_client_is_shown_with_what_waits_for_it() {
    let fixture = Fixture::new();
    assert_eq!(fixture.gateway().client("a").unwrap(), None);
    let mut client = lasting(&fixture, "a");
    let options = SubscriptionOptions::new(QoS::AtLeastOnce);
    client.subscribe(&[("x/+", options), ("$share/g/y", SubscriptionOptions::new(QoS::AtMostOnce))]);
    let mut publisher = fixture.v3("p");
    (0..3).for_each(|_| assert_eq!(publisher.publish("x/1", b"12345"), ReasonCode::Success));
    client.ping();
    let found = fixture.gateway().client("a").unwrap().unwrap();
    assert_eq!((found.summary.connected, found.summary.listener.as_str()), (true, "mqtt"));
    assert_eq!(found.summary.address.map(|address| address.ip().is_loopback()), Some(true));
    assert_eq!((found.keep_alive_s, found.clean_start, found.session_expiry_s), (60, true, 600));
    assert_eq!((found.inflight, found.queued, found.subscription_count), (3, 0, 2));
    let subscriptions: Vec<_> =
        found.subscriptions.iter().map(|each| (each.filter.as_str(), each.shared, each.qos)).collect();
    assert_eq!(subscriptions, [("x/+", false, 1), ("y", true, 0)]);
    drop(client);
    fixture.until("one session", |counters| counters.sessions == 1);
    publisher.publish("x/2", b"12345");
    let found = fixture.gateway().client("a").unwrap().unwrap();
    assert!(!found.summary.connected && found.summary.address.is_none());
    assert_eq!((found.inflight, found.queued), (3, 1));
    assert_eq!(fixture.gateway().last_close("a").unwrap().0, Close::Lost);
    assert_eq!(fixture.gateway().last_close("p"), None);
}

#[test]
fn a_kick_ends_the_connection_and_a_session_where_it_is_asked_for() {
    let fixture = Fixture::new();
    let gateway = fixture.gateway();
    assert_eq!(gateway.kick("a", true).unwrap(), Kicked::Unknown);
    let mut client = lasting(&fixture, "a");
    assert_eq!(gateway.kick("a", false).unwrap(), Kicked::Connection);
    assert_eq!(client.ended(), Some(ReasonCode::AdministrativeAction));
    assert_eq!(gateway.last_close("a").unwrap().0, Close::Gateway(ReasonCode::AdministrativeAction));
    assert_eq!(gateway.kick("a", false).unwrap(), Kicked::Away);
    assert_eq!(gateway.kick("a", true).unwrap(), Kicked::Session);
    assert_eq!(gateway.kick("a", true).unwrap(), Kicked::Unknown);
    let mut client = lasting(&fixture, "a");
    assert_eq!(gateway.kick("a", true).unwrap(), Kicked::Connection);
    assert_eq!(client.ended(), Some(ReasonCode::AdministrativeAction));
    assert_eq!(gateway.client("a").unwrap(), None);
    let mut old = fixture.v3("old");
    assert_eq!(gateway.kick("old", false).unwrap(), Kicked::Connection);
    assert!(old.try_receive().is_none());
}

#[test]
fn sys_topics_come_at_subscribe_and_every_interval_and_not_by_a_bare_wildcard() {
    let fixture = Fixture::with(|options| options.sys_interval = Duration::from_millis(20));
    let mut all = fixture.v5("all");
    all.subscribed("#", QoS::AtMostOnce);
    all.subscribed("+/broker/uptime", QoS::AtMostOnce);
    let mut client = fixture.v5("a");
    fixture.until("a client's connection", |counters| counters.connections == 2);
    client.subscribed("$SYS/broker/clients/connected", QoS::AtLeastOnce);
    let mut values = Vec::new();
    while values.last().is_none_or(|value| value != "2") || values.len() < 3 {
        let received = client.receive();
        let publish = received.publish();
        assert_eq!(publish.topic, "$SYS/broker/clients/connected");
        values.push(String::from_utf8(publish.payload.to_vec()).unwrap());
    }
    let mut late = fixture.v5("late");
    late.subscribed("$SYS/broker/version", QoS::AtMostOnce);
    let received = late.receive();
    assert!(received.publish().retain && received.publish().payload.starts_with(b"headwater "));
    assert!(all.ping().is_empty(), "a wildcard in front does not match $SYS");
    assert_eq!(client.publish("$SYS/broker/uptime", b"x"), ReasonCode::NotAuthorized);
}

#[test]
fn who_comes_goes_and_subscribes_is_told_on_lifecycle_topics() {
    let fixture = Fixture::new();
    let mut watcher = fixture.v5("watcher");
    watcher.subscribed("$aws/events/presence/+/d1", QoS::AtLeastOnce);
    watcher.subscribed("$aws/events/subscriptions/#", QoS::AtMostOnce);
    let mut event = |topic: &str| {
        let received = watcher.receive();
        let publish = received.publish();
        assert_eq!(publish.topic, topic);
        serde_json::from_slice::<serde_json::Value>(publish.payload).unwrap()
    };
    // The watcher's own second subscription; before it nobody wanted these.
    let own = event("$aws/events/subscriptions/subscribed/watcher");
    assert_eq!(own["topics"], serde_json::json!(["$aws/events/subscriptions/#"]));
    let mut client = fixture.v5("d1");
    let connected = event("$aws/events/presence/connected/d1");
    assert_eq!((&connected["clientId"], &connected["eventType"]), (&"d1".into(), &"connected".into()));
    assert_eq!(
        (&connected["ipAddress"], &connected["principalIdentifier"]),
        (&"127.0.0.1".into(), &"anonymous".into())
    );
    assert!(connected["timestamp"].as_u64().unwrap() > 1_700_000_000_000);
    client.subscribed("x/#", QoS::AtMostOnce);
    let subscribed = event("$aws/events/subscriptions/subscribed/d1");
    assert_eq!(subscribed["topics"], serde_json::json!(["x/#"]));
    assert_eq!(subscribed["sessionIdentifier"], connected["sessionIdentifier"]);
    client.unsubscribe(&["x/#"]);
    assert_eq!(event("$aws/events/subscriptions/unsubscribed/d1")["topics"], serde_json::json!(["x/#"]));
    drop(client);
    let gone = event("$aws/events/presence/disconnected/d1");
    assert_eq!(
        (&gone["disconnectReason"], &gone["clientInitiatedDisconnect"]),
        (&"CONNECTION_LOST".into(), &false.into())
    );
    assert_eq!(gone["sessionIdentifier"], connected["sessionIdentifier"]);
    assert_eq!(gone["versionNumber"], connected["versionNumber"]);
    let _client = fixture.v5("d1");
    event("$aws/events/presence/connected/d1");
    fixture.gateway().kick("d1", false).unwrap();
    let gone = event("$aws/events/presence/disconnected/d1");
    assert_eq!(gone["disconnectReason"], "API_INITIATED_DISCONNECT");
    // Ids that would be no topic names have none.
    drop(fixture.v5("d+1"));
    assert_eq!(watcher.publish("$aws/events/presence/connected/d1", b"x"), ReasonCode::NotAuthorized);
}

#[test]
fn a_trace_shows_the_packets_of_one_client_both_ways_and_no_password() {
    let fixture = Fixture::new();
    let trace = fixture.gateway().trace(TraceFilter::Client("a".into())).unwrap();
    let mut other = fixture.v5("b");
    let mut client = fixture.raw();
    let will = Will {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "bye",
        payload: b"",
        properties: Properties::NONE,
    };
    client.connect(&Connect {
        user_name: Some("me"),
        password: Some(b"secret"),
        will: Some(will),
        ..connect(Version::V5, "a")
    });
    client.subscribed("x/#", QoS::AtLeastOnce);
    other.publish("x/1", b"hello");
    client.ping();
    let mut lines = Vec::new();
    while lines.len() < 7 {
        let (more, lost) = trace.take(Duration::from_secs(20));
        assert!(lost == 0 && !more.is_empty());
        lines.extend(more);
    }
    let shown: Vec<_> = lines.iter().map(|line| (line.from_client, line.packet)).collect();
    let wanted = [
        (true, "CONNECT"),
        (false, "CONNACK"),
        (true, "SUBSCRIBE"),
        (false, "SUBACK"),
        (false, "PUBLISH"),
        (true, "PINGREQ"),
        (false, "PINGRESP"),
    ];
    assert_eq!(shown, wanted);
    assert!(lines.iter().all(|line| line.client == "a" && !line.detail.contains("secret")));
    assert!(lines[0].detail.contains("user \"me\"") && lines[0].detail.contains("will \"bye\""));
    assert!(lines[4].detail.contains("topic \"x/1\", QoS 1") && lines[4].detail.ends_with("5 bytes: hello"));
    assert!(lines[2].bytes > 6);
}

#[test]
fn a_trace_of_a_topic_shows_messages_of_anybody_within_its_bound() {
    let fixture = Fixture::new();
    let trace = fixture.gateway().trace(TraceFilter::Topic("x/+".into())).unwrap();
    let (mut reader, mut writer) = (fixture.v5("r"), fixture.v3("w"));
    reader.subscribed("#", QoS::AtMostOnce);
    writer.publish("y", b"1");
    writer.publish("x/1", b"2");
    reader.ping();
    let mut lines = Vec::new();
    while lines.len() < 2 {
        lines.extend(trace.take(Duration::from_secs(20)).0);
    }
    let mut shown: Vec<_> = lines.iter().map(|line| (line.client.as_str(), line.from_client)).collect();
    shown.sort_unstable();
    assert_eq!(shown, [("r", false), ("w", true)]);
    for _ in 0..1500 {
        writer.send_publish(&publish("x/2", b"3", 0));
    }
    fixture.until("all", |counters| counters.received == 1502);
    let (lines, lost) = trace.take(Duration::ZERO);
    assert!(lines.len() <= 1000 && lines.len() as u64 + lost >= 1500, "{} {lost}", lines.len());
    assert!(fixture.gateway().trace(TraceFilter::Topic("a/#/b".into())).is_err());
    let more: Vec<_> =
        (0..7).map(|_| fixture.gateway().trace(TraceFilter::Client("a".into())).unwrap()).collect();
    assert!(fixture.gateway().trace(TraceFilter::Client("a".into())).is_err());
    drop(more);
    drop(trace);
    assert!(!fixture.gateway().shared.traces.is_on());
}
