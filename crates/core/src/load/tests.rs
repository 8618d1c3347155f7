//! The fleet against a small MQTT server that keeps everything it was sent and misbehaves on request.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::mqtt::Version;

/// What the server does; the default acknowledges everything.
#[derive(Clone, Default)]
struct Behaviour {
    connack: u8,
    /// Properties of CONNACK (MQTT 5) for connections beyond `cut_after`.
    properties: Vec<u8>,
    /// The k-th connection is closed after so many PUBLISH, with the acknowledgements of its last read
    /// unsent; connections beyond the list live.
    cut_after: Vec<u64>,
    /// Reason of the PUBACK for the n-th PUBLISH of a connection.
    reason: Option<fn(u64) -> u8>,
    never_ack: bool,
    /// Connections that will be cut get no acknowledgement at all.
    cut_unanswered: bool,
    /// Acknowledges only once so many are outstanding.
    ack_at: Option<usize>,
    /// Adds this to the first packet id that it acknowledges.
    wrong_id: u16,
    byte_by_byte: bool,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    /// (topic, payload) -> how often, and how often without DUP.
    messages: HashMap<(String, String), (u32, u32)>,
    /// Payloads of each topic in order of first arrival.
    order: HashMap<String, Vec<String>>,
    outstanding_max: usize,
    connects: Vec<Vec<u8>>,
}

struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
    accept: Option<JoinHandle<()>>,
}

impl Server {
    fn start(behaviour: Behaviour) -> Server {
        Server::at("127.0.0.1:0".parse().unwrap(), behaviour, Arc::default())
    }

    fn at(address: SocketAddr, behaviour: Behaviour, seen: Arc<Mutex<Seen>>) -> Server {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (their_seen, their_stop, their_sockets) = (seen.clone(), stop.clone(), sockets.clone());
        let accept = std::thread::spawn(move || {
            let mut serving = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if their_stop.load(Ordering::Acquire) {
                    break;
                }
                let (seen, behaviour) = (their_seen.clone(), behaviour.clone());
                their_sockets.lock().push(stream.try_clone().unwrap());
                let number = serving.len();
                // A socket that the fleet or the test closed ends its thread, whatever the error.
                serving.push(std::thread::spawn(move || drop(serve(stream, number, &behaviour, &seen))));
            }
            drop(listener);
            for thread in serving {
                thread.join().unwrap();
            }
        });
        Server { address, seen, stop, sockets, accept: Some(accept) }
    }

    /// Closes the listener and all connections; returns what was seen.
    fn stop(mut self) -> Arc<Mutex<Seen>> {
        self.halt();
        self.seen.clone()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        for socket in self.sockets.lock().iter() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        if let Some(accept) = self.accept.take() {
            accept.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.accept.is_some() {
            self.halt();
        }
    }
}

/// The first packet of `bytes`: first byte, body, length. Written apart from `mqtt`, to check it.
fn packet(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (mut length, mut shift) = (0, 0);
    for at in 1..bytes.len() {
        length += usize::from(bytes[at] & 127) << shift;
        shift += 7;
        if bytes[at] < 128 {
            return bytes.get(at + 1..at + 1 + length).map(|body| (bytes[0], body, at + 1 + length));
        }
    }
    None
}

fn serve(mut stream: TcpStream, number: usize, how: &Behaviour, seen: &Mutex<Seen>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut buffer, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
    let (mut v5, mut publishes, mut outstanding) = (false, 0u64, Vec::<u16>::new());
    let mut wrong_id = how.wrong_id;
    let cut = how.cut_after.get(number).copied();
    let properties: &[u8] = if cut.is_none() { &how.properties } else { &[] };
    loop {
        let size = stream.read(&mut chunk)?;
        if size == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(&chunk[..size]);
        let (mut answer, mut at) = (Vec::new(), 0);
        while let Some((first, body, length)) = packet(&buffer[at..]) {
            at += length;
            match first >> 4 {
                1 => {
                    v5 = body[6] == 5;
                    seen.lock().connects.push(body.to_vec());
                    seen.lock().connections += 1;
                    answer.push(0x20);
                    answer.push(if v5 { 3 + properties.len() as u8 } else { 2 });
                    answer.extend([0, how.connack]);
                    if v5 {
                        answer.push(properties.len() as u8);
                        answer.extend(properties);
                    }
                }
                3 => {
                    if cut == Some(publishes) {
                        return stream.shutdown(std::net::Shutdown::Both);
                    }
                    publishes += 1;
                    let (duplicate, qos) = (first & 8 != 0, first >> 1 & 3);
                    let topic_end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
                    let topic = String::from_utf8(body[2..topic_end].to_vec()).unwrap();
                    let id_end = topic_end + if qos > 0 { 2 } else { 0 };
                    let payload_at = id_end + usize::from(v5);
                    let payload = String::from_utf8(body[payload_at..].to_vec()).unwrap();
                    let mut seen = seen.lock();
                    let count = seen.messages.entry((topic.clone(), payload.clone())).or_default();
                    count.0 += 1;
                    count.1 += u32::from(!duplicate);
                    if count.0 == 1 {
                        seen.order.entry(topic).or_default().push(payload);
                    }
                    if qos > 0 && !how.never_ack && cut.is_none_or(|_| !how.cut_unanswered) {
                        outstanding.push(u16::from_be_bytes([body[topic_end], body[topic_end + 1]]));
                        seen.outstanding_max = seen.outstanding_max.max(outstanding.len());
                    }
                    if outstanding.len() < how.ack_at.unwrap_or(1) {
                        continue;
                    }
                    for id in outstanding.drain(..) {
                        let [high, low] = id.wrapping_add(std::mem::take(&mut wrong_id)).to_be_bytes();
                        match how.reason.map_or(0, |reason| reason(publishes)) {
                            0 => answer.extend([0x40, 2, high, low]),
                            reason => answer.extend([0x40, 3, high, low, reason]),
                        }
                    }
                }
                12 => answer.extend([0xd0, 0]),
                14 => return Ok(()),
                other => panic!("the fleet sent a packet of type {other}"),
            }
        }
        buffer.drain(..at);
        let size = if how.byte_by_byte { 1 } else { answer.len().max(1) };
        for part in answer.chunks(size) {
            stream.write_all(part)?;
        }
    }
}

const START: i64 = 1_767_225_600_000_000;

fn options(server: &Server) -> FleetOptions {
    FleetOptions {
        address: server.address,
        devices: 6,
        devices_per_connection: 2,
        sites: 2,
        rate_per_device: 0.0,
        threads: 2,
        start_time_us: Some(START),
        messages: Some(600),
        ..FleetOptions::default()
    }
}

/// Waits for a condition that must come true; the bound only keeps a failing test from hanging.
fn wait_for(fleet: &Fleet, what: &str, condition: impl Fn(&FleetReport) -> bool) -> FleetReport {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let report = fleet.report();
        if condition(&report) {
            return report;
        }
        assert!(Instant::now() < until, "never came: {what}; {report:?}");
        std::thread::yield_now();
    }
}

fn assert_balanced(report: &FleetReport) {
    assert_eq!(report.sent, report.acked + report.refused + report.in_flight, "{report:?}");
}

/// Every reading of every device arrived, byte for byte, in order, and no other.
fn assert_all_arrived(options: &FleetOptions, seen: &Seen) {
    let payloads = Payloads::new(options).unwrap();
    let mut total = 0;
    for d in 0..options.devices {
        let (mut topic, mut expected) = (String::new(), Vec::new());
        payloads.write_topic(d, &mut topic);
        for n in 0..options.quota(d) {
            let mut payload = Vec::new();
            payloads.write(d, n, &mut payload);
            expected.push(String::from_utf8(payload).unwrap());
        }
        total += expected.len();
        assert_eq!(seen.order.get(&topic), Some(&expected), "{topic}");
    }
    assert_eq!(seen.messages.len(), total);
}

#[test]
fn every_reading_arrives_once_and_is_acknowledged() {
    for (protocol, rate_per_device, qos) in [
        (Version::V5, 0.0, 1),
        (Version::V311, 0.0, 1),
        (Version::V5, 1_000.0, 1),
        (Version::V311, 1_000.0, 0),
        (Version::V5, 0.0, 0),
    ] {
        let server = Server::start(Behaviour::default());
        let options = FleetOptions { protocol, rate_per_device, qos, ..options(&server) };
        let fleet = Fleet::start(options.clone()).unwrap();
        let report = wait_for(&fleet, "the end", |report| report.finished);
        assert_eq!((report.sent, report.in_flight, report.resent), (600, 0, 0));
        assert_eq!(report.acked, if qos == 1 { 600 } else { 0 });
        assert_eq!((report.connections, report.connections_up), (3, 3));
        assert_eq!(fleet.stop().sent, 600);
        // The fleet said goodbye behind its last message, so the server reads all of them before it ends.
        let until = Instant::now() + Duration::from_secs(60);
        while server.seen.lock().messages.len() < 600 && Instant::now() < until {
            std::thread::yield_now();
        }
        let seen = server.stop();
        assert_all_arrived(&options, &seen.lock());
        assert!(seen.lock().messages.values().all(|&count| count == (1, 1)));
    }
}

#[test]
fn a_server_that_drops_connections_loses_nothing() {
    for rate_per_device in [0.0, 1_000.0] {
        let cut_after = vec![0, 7, 50, 1, 120, 33, 90];
        let server = Server::start(Behaviour { cut_after, ..Behaviour::default() });
        let options = FleetOptions { rate_per_device, ..options(&server) };
        let fleet = Fleet::start(options.clone()).unwrap();
        let report = wait_for(&fleet, "the end", |report| {
            assert_balanced(report);
            report.finished
        });
        assert_eq!((report.sent, report.acked, report.in_flight), (600, 600, 0));
        assert!(report.reconnects >= 3, "{report:?}");
        assert!(report.last_error.is_some());
        drop(fleet);
        let seen = server.stop();
        let seen = seen.lock();
        assert_all_arrived(&options, &seen);
        let again: u32 = seen.messages.values().map(|&(all, _)| all - 1).sum();
        assert!(u64::from(again) <= report.resent);
        assert!(seen.messages.values().all(|&(_, first)| first <= 1), "a repetition without DUP");
    }
}

#[test]
fn a_server_that_was_away_gets_what_became_due_meanwhile() {
    let server = Server::start(Behaviour::default());
    let options = FleetOptions { rate_per_device: 200.0, messages: Some(1_200), ..options(&server) };
    let fleet = Fleet::start(options.clone()).unwrap();
    wait_for(&fleet, "the first acknowledgements", |report| report.acked > 50);
    let address = server.address;
    let seen = server.stop();
    wait_for(&fleet, "the loss", |report| report.connections_up == 0 && report.connections_behind == 3);
    let server = Server::at(address, Behaviour::default(), seen);
    let report = wait_for(&fleet, "the end", |report| report.finished);
    assert_eq!((report.sent, report.acked, report.connections_behind), (1_200, 1_200, 0));
    assert_eq!(report.reconnects, 3);
    drop(fleet);
    assert_all_arrived(&options, &server.stop().lock());
}

#[test]
fn refused_readings_are_counted_apart() {
    let third = |n: u64| if n.is_multiple_of(3) { 0x99 } else { 0x10 };
    let server = Server::start(Behaviour { reason: Some(third), byte_by_byte: true, ..Behaviour::default() });
    let fleet = Fleet::start(options(&server)).unwrap();
    let report = wait_for(&fleet, "the end", |report| report.finished);
    assert_balanced(&report);
    assert!(report.refused > 0 && report.acked > report.refused, "{report:?}");
    assert!(report.ack.p50_us <= report.ack.p99_us && report.ack.p99_us <= report.ack.max_us);
}

#[test]
fn the_receive_maximum_of_the_server_holds() {
    // Receive Maximum 3; acknowledgements come only once 3 are outstanding.
    let behaviour = Behaviour { properties: vec![0x21, 0, 3], ack_at: Some(3), ..Behaviour::default() };
    let server = Server::start(behaviour);
    // 198 for each connection, a multiple of 3.
    let fleet = Fleet::start(FleetOptions { messages: Some(594), ..options(&server) }).unwrap();
    wait_for(&fleet, "the end", |report| report.finished);
    drop(fleet);
    assert_eq!(server.stop().lock().outstanding_max, 3);
}

#[test]
fn a_receive_maximum_that_shrinks_with_a_reconnect_holds_for_resends() {
    for rate_per_device in [0.0, 1_000.0] {
        // 20 in flight are lost with the first connection, the next one takes 3 at a time.
        let behaviour = Behaviour {
            cut_after: vec![20],
            cut_unanswered: true,
            properties: vec![0x21, 0, 3],
            ..Behaviour::default()
        };
        let server = Server::start(behaviour);
        let options = FleetOptions { rate_per_device, devices: 2, messages: Some(21), ..options(&server) };
        let fleet = Fleet::start(options.clone()).unwrap();
        let report = wait_for(&fleet, "the end", |report| report.finished);
        assert_eq!((report.sent, report.acked), (21, 21));
        assert!(report.resent >= 20, "{report:?}");
        drop(fleet);
        let seen = server.stop();
        assert!(seen.lock().outstanding_max <= 3);
        assert_all_arrived(&options, &seen.lock());
    }
}

#[test]
fn a_server_that_acknowledges_what_was_not_sent_is_given_up_and_tried_again() {
    let server = Server::start(Behaviour { wrong_id: 1_000, ..Behaviour::default() });
    let fleet = Fleet::start(FleetOptions { window: 5, ..options(&server) }).unwrap();
    let report = wait_for(&fleet, "a protocol error", |report| report.protocol_errors > 0);
    assert!(report.last_error.is_some_and(|error| error.contains("which awaits none")));
    assert_balanced(&fleet.stop());
}

#[test]
fn a_refused_connection_says_why_and_is_tried_again() {
    for (behaviour, text) in [
        (Behaviour { connack: 0x87, ..Behaviour::default() }, "code 0x87"),
        (Behaviour { properties: vec![0x24, 0], ..Behaviour::default() }, "QoS 0 only"),
        (Behaviour { properties: vec![0x27, 0, 0, 0, 40], ..Behaviour::default() }, "packets of 40 bytes"),
    ] {
        let server = Server::start(behaviour);
        let fleet = Fleet::start(options(&server)).unwrap();
        wait_for(&fleet, text, |report| report.last_error.as_ref().is_some_and(|error| error.contains(text)));
        let tried = server.seen.clone();
        wait_for(&fleet, "another attempt", |_| tried.lock().connections > 3);
        assert_eq!(fleet.stop().sent, 0);
    }
}

#[test]
fn stopping_waits_for_acknowledgements_no_longer_than_asked() {
    let server = Server::start(Behaviour { never_ack: true, ..Behaviour::default() });
    let drain = Duration::from_millis(50);
    let fleet = Fleet::start(FleetOptions { window: 10, drain, ..options(&server) }).unwrap();
    wait_for(&fleet, "full windows", |report| report.in_flight == 30);
    let report = fleet.stop();
    assert_eq!((report.sent, report.acked, report.in_flight, report.finished), (30, 0, 30, false));
}

#[test]
fn without_a_server_the_report_says_so() {
    let server = Server::start(Behaviour::default());
    let options = options(&server);
    drop(server);
    let fleet = Fleet::start(options).unwrap();
    let report = wait_for(&fleet, "an error", |report| report.last_error.is_some());
    assert_eq!((report.sent, report.connections_up), (0, 0));
    assert!(report.last_error.is_some_and(|error| error.contains("connecting")));
}

#[test]
fn a_duration_plays_exactly_the_readings_due_in_it() {
    let server = Server::start(Behaviour::default());
    let duration = Some(Duration::from_millis(400));
    let options = FleetOptions { rate_per_device: 50.0, duration, messages: None, ..options(&server) };
    let fleet = Fleet::start(options).unwrap();
    let report = wait_for(&fleet, "the end", |report| report.finished);
    assert_eq!((report.sent, report.acked), (6 * 20, 6 * 20));
}

#[test]
fn a_duration_ends_a_fleet_that_runs_flat_out() {
    let server = Server::start(Behaviour::default());
    let duration = Some(Duration::from_millis(100));
    let fleet = Fleet::start(FleetOptions { duration, messages: None, ..options(&server) }).unwrap();
    let report = wait_for(&fleet, "the end", |report| report.finished);
    assert!(report.sent > 0 && report.sent == report.acked, "{report:?}");
}

#[test]
fn a_dropout_leaves_a_gap_and_labels_count_what_was_touched() {
    let server = Server::start(Behaviour::default());
    let fault = |kind: FaultKind, device| Fault {
        kind,
        device,
        field: kind.has_field().then(|| "battery".to_owned()),
        start_s: 0.010,
        duration_s: 0.005,
        magnitude: None,
    };
    let faults = vec![fault(FaultKind::Dropout, 1), fault(FaultKind::Shift, 2), fault(FaultKind::Spike, 3)];
    let fleet = Fleet::start(FleetOptions { faults, ..options(&server) }).unwrap();
    let report = wait_for(&fleet, "the end", |report| report.finished);
    drop(fleet);
    assert_eq!((report.sent, report.acked, report.left_out), (600, 600, 5));
    let readings: Vec<u64> = report.labels.iter().map(|label| label.readings).collect();
    assert_eq!(readings, [5, 5, 1]);
    let seen = server.stop();
    let gap = report.labels[0].start_us / 1_000..report.labels[0].end_us / 1_000;
    for payload in &seen.lock().order["dt/s001/d000001/telemetry"] {
        let reading: serde_json::Value = serde_json::from_str(payload).unwrap();
        assert!(!gap.contains(&reading["ts"].as_i64().unwrap()), "{payload}");
    }
}

#[test]
fn labels_are_lines_of_json() {
    let faults = vec![Fault {
        kind: FaultKind::Spike,
        device: 4,
        field: Some("temperature".to_owned()),
        start_s: 30.0,
        duration_s: 1.0,
        magnitude: None,
    }];
    let options = FleetOptions { faults, start_time_us: Some(START), ..FleetOptions::default() };
    let label: serde_json::Value =
        serde_json::from_str(&Payloads::new(&options).unwrap().labels()[0].json()).unwrap();
    assert_eq!((&label["device"], &label["field"]), (&"d000004".into(), &"temperature".into()));
    assert_eq!((&label["kind"], &label["magnitude"]), (&"spike".into(), &6.0.into()));
    assert_eq!((&label["unit"], &label["readings"]), (&"sigma".into(), &0.into()));
    assert_eq!(label["end_us"].as_i64().unwrap() - label["start_us"].as_i64().unwrap(), 1_000_000);
}

#[test]
fn client_ids_are_distinct_and_carry_the_prefix() {
    let server = Server::start(Behaviour::default());
    let fleet = Fleet::start(FleetOptions { client_prefix: "west-".to_owned(), ..options(&server) }).unwrap();
    wait_for(&fleet, "the end", |report| report.finished);
    drop(fleet);
    let seen = server.stop();
    let ids: HashSet<Vec<u8>> = seen.lock().connects.iter().map(|body| body[13..].to_vec()).collect();
    assert_eq!(ids, (0..3).map(|number| format!("west-{number}").into_bytes()).collect());
}

#[test]
fn options_that_cannot_be_played_are_refused() {
    let cases: Vec<(FleetOptions, &str)> = vec![
        (FleetOptions { devices: 0, ..FleetOptions::default() }, "devices is 0"),
        (FleetOptions { rate_per_device: f64::NAN, ..FleetOptions::default() }, "rate_per_device"),
        (FleetOptions { qos: 2, ..FleetOptions::default() }, "qos is 2"),
        (FleetOptions { window: 0, ..FleetOptions::default() }, "window is 0"),
        (FleetOptions { topic: "a/+/b".to_owned(), ..FleetOptions::default() }, "no wildcard"),
        (
            FleetOptions { topic: "a/{room}".to_owned(), ..FleetOptions::default() },
            "only {site} and {device}",
        ),
        (FleetOptions { fields: Vec::new(), ..FleetOptions::default() }, "0 fields"),
        (
            FleetOptions { fields: vec![FieldModel::new("ts", 0.0, 1.0, 0.0, 1)], ..FleetOptions::default() },
            "already in every reading",
        ),
        (FleetOptions { time_scale: 0.0, ..FleetOptions::default() }, "time_scale"),
        (
            FleetOptions { protocol: Version::V311, password: Some(vec![1]), ..FleetOptions::default() },
            "password only together",
        ),
    ];
    for (options, text) in cases {
        let error = Fleet::start(options).err().expect(text).to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn faults_that_cannot_be_planted_are_refused() {
    let fault = Fault {
        kind: FaultKind::Shift,
        device: 1,
        field: Some("temperature".to_owned()),
        start_s: 1.0,
        duration_s: 5.0,
        magnitude: None,
    };
    let dropout = Fault { kind: FaultKind::Dropout, field: None, start_s: 3.0, ..fault.clone() };
    let cases = [
        (vec![Fault { device: 1_000, ..fault.clone() }], "device d001000 is not in this fleet"),
        (vec![Fault { field: Some("x".to_owned()), ..fault.clone() }], "the fields are temperature"),
        (vec![Fault { field: None, ..fault.clone() }], "none is named"),
        (vec![Fault { field: fault.field.clone(), ..dropout.clone() }], "the whole device"),
        (vec![Fault { duration_s: 0.0, ..fault.clone() }], "never from 1 s to 1 s"),
        (vec![Fault { start_s: -1.0, ..fault.clone() }], "start -1 s"),
        (vec![Fault { magnitude: Some(0.0), ..fault.clone() }], "change nothing"),
        (vec![fault.clone(), dropout.clone()], "overlap from 3 s"),
    ];
    for (faults, text) in cases {
        let options = FleetOptions { faults, start_time_us: Some(START), ..FleetOptions::default() };
        let error = Payloads::new(&options).expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    }
    let apart = Fault { start_s: 6.0, ..dropout };
    let options = FleetOptions { faults: vec![fault, apart], ..FleetOptions::default() };
    assert_eq!(Payloads::new(&options).unwrap().labels().len(), 2);
}
