//! Streams that come, change and go under load: every message goes by the streams of its moment, none is lost.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::mqtt::ReasonCode;

const OTHER: StreamId = StreamId(17);

/// `other`, of the same columns, on another topic.
fn other(topic: &str) -> StreamBinding {
    let StreamBinding { mut spec, schema } = telemetry();
    (spec.name, spec.topic) = ("other".into(), topic.into());
    let columns = schema.columns.clone();
    let schema = Schema::new(SchemaId(17), OTHER, "other", columns, Some("device")).unwrap();
    StreamBinding { spec, schema: SchemaRef::new(schema) }
}

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.log.register(other("x").schema.as_ref().clone()).unwrap();
    fixture
}

#[test]
fn a_connected_client_fills_a_stream_that_comes_and_no_more_one_that_goes() {
    let fixture = fixture();
    let mut client = fixture.v3("a");
    let mut publish = |topic: &str| assert_eq!(client.publish(topic, PAYLOAD), ReasonCode::Success);
    publish("new/s1/d1");
    assert_eq!(fixture.row_count(OTHER), 0);
    fixture.gateway().rebind(vec![other("new/{site}/{device}")], &[]).unwrap();
    publish("new/s2/d2");
    publish("dt/s3/d3/telemetry");
    // In place of its namesake.
    fixture.gateway().rebind(vec![other("moved/{site}/{device}")], &[]).unwrap();
    publish("new/s4/d4");
    publish("moved/s5/d5");
    fixture.gateway().rebind(vec![], &["other".to_owned()]).unwrap();
    publish("moved/s6/d6");
    assert_eq!(fixture.strings(OTHER, "site"), ["s2", "s5"]);
    assert_eq!(fixture.strings(TELEMETRY, "site"), ["s3"]);
    let counters = fixture.until("all", |c| c.received == 6 && c.in_flight == 0);
    assert_eq!((counters.decoded, counters.live_only), (3, 3));
}

#[test]
fn a_stream_that_cannot_be_is_refused_and_changes_nothing() {
    let fixture = fixture();
    let error = fixture.gateway().rebind(vec![other("a/#/{device}")], &["telemetry".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("other"), "{error}");
    assert_eq!(fixture.v3("a").publish("dt/s1/d1/telemetry", PAYLOAD), ReasonCode::Success);
    assert_eq!(fixture.row_count(TELEMETRY), 1);
}

#[test]
fn streams_that_stay_lose_nothing_while_others_come_and_go() {
    const MESSAGES: usize = 4000;
    let fixture = fixture();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in ["a", "b"] {
            let (fixture, done) = (&fixture, &done);
            scope.spawn(move || {
                let mut publisher = fixture.v3(client);
                for _ in 0..MESSAGES / 2 {
                    let code = publisher.publish("dt/s/d/telemetry", PAYLOAD);
                    assert_eq!(code, ReasonCode::Success);
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        while !done.load(Ordering::Relaxed) {
            // Before and behind `telemetry`, so that its place changes, too.
            fixture.gateway().rebind(vec![other("dt/{site}/{device}/telemetry"), telemetry()], &[]).unwrap();
            fixture.gateway().rebind(vec![], &["other".to_owned()]).unwrap();
        }
    });
    let counters = fixture.until("all", |c| c.received == MESSAGES as u64 && c.in_flight == 0);
    assert_eq!(counters.decoded, MESSAGES as u64);
    assert_eq!(fixture.row_count(TELEMETRY), MESSAGES);
    assert_eq!(counters.rows as usize, MESSAGES + fixture.row_count(OTHER));
}
