//! Duplicates are stored once, by whatever way they come, and nobody is told that a lost row is stored.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::forgetful::Forgetful;
use super::tests::options;
use super::*;
use crate::rows::{Cell, Rows};
use crate::schema::{Column, ColumnType, SchemaId};

const WINDOW_US: i64 = 1_000;

fn schema() -> SchemaRef {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let columns = vec![
        column("device", ColumnType::String),
        column("ts", ColumnType::Timestamp),
        column("received_at", ColumnType::Timestamp),
        column("value", ColumnType::Double),
    ];
    Arc::new(Schema::new(SchemaId(100), StreamId(16), "t", columns, Some("device")).unwrap())
}

fn dedupe(columns: &[&str]) -> DedupeOptions {
    let columns = columns.iter().map(|name| (*name).to_owned()).collect();
    DedupeOptions { columns, window_us: WINDOW_US, max_keys: 1_000_000 }
}

fn open(storage: &Forgetful, now_us: i64) -> Log {
    let log = Log::open_on(Arc::new(storage.clone()), options(), vec![(*schema()).clone()]).unwrap();
    log.dedupe(&schema(), dedupe(&["device", "ts"]), now_us).unwrap();
    log
}

/// (device, ts, received_at, value)
type Reading<'a> = (&'a str, i64, i64, f64);

fn rows(readings: &[Reading<'_>]) -> Rows {
    let mut rows = Rows::new(schema());
    for (device, ts, received, value) in readings {
        let ts = if *ts == 0 { Cell::Null } else { Cell::Timestamp(*ts) };
        rows.push([Cell::Bytes(device.as_bytes()), ts, Cell::Timestamp(*received), Cell::Double(*value)])
            .unwrap();
    }
    rows
}

fn stored(log: &Log) -> u64 {
    log.end(StreamId(16)).iter().map(|offset| offset.0).sum()
}

#[test]
fn a_reading_that_comes_again_is_stored_once() {
    let log = open(&Forgetful::new(), 0);
    log.append(&[&rows(&[("a", 1, 10, 1.0), ("a", 2, 10, 1.0), ("b", 1, 10, 1.0), ("a", 1, 10, 9.0)])])
        .unwrap();
    assert_eq!(stored(&log), 3);
    log.append(&[&rows(&[("a", 1, 20, 1.0), ("c", 1, 20, 1.0)])]).unwrap();
    // All of it duplicates: still answered.
    log.append(&[&rows(&[("a", 1, 20, 1.0)])]).unwrap();
    assert_eq!(stored(&log), 4);
    // NULL is a value of its own.
    log.append(&[&rows(&[("a", 0, 20, 1.0), ("a", 0, 20, 1.0)])]).unwrap();
    assert_eq!((stored(&log), log.dedupe_stats(StreamId(16)).duplicates), (5, 4));
}

#[test]
fn after_the_window_a_reading_is_new() {
    let log = open(&Forgetful::new(), 0);
    for (received, rows_stored) in
        [(5_000, 1), (6_000, 1), (6_001, 2), (7_001, 2), (7_002, 3), (50_000, 4), (50_001, 4)]
    {
        log.append(&[&rows(&[("a", 1, received, 1.0)])]).unwrap();
        assert_eq!(stored(&log), rows_stored, "at {received}");
    }
}

#[test]
fn opening_again_remembers_the_window() {
    let storage = Forgetful::new();
    let log = open(&storage, 0);
    log.append(&[&rows(&[("a", 1, 5_000, 1.0), ("b", 1, 5_900, 1.0)])]).unwrap();
    drop(log);
    let log = open(&storage.kill(), 6_500);
    log.append(&[&rows(&[("b", 1, 6_500, 1.0)])]).unwrap();
    assert_eq!(stored(&log), 2);
    log.append(&[&rows(&[("a", 1, 6_501, 1.0)])]).unwrap();
    assert_eq!(stored(&log), 3);
}

#[test]
fn keys_are_bounded_and_what_goes_early_is_counted() {
    let log = Log::open_on(Arc::new(Forgetful::new()), options(), vec![(*schema()).clone()]).unwrap();
    log.dedupe(&schema(), DedupeOptions { max_keys: 80, ..dedupe(&["device", "ts"]) }, 0).unwrap();
    for ts in 1..=200 {
        log.append(&[&rows(&[("a", ts, 5_000, 1.0)])]).unwrap();
    }
    let stats = log.dedupe_stats(StreamId(16));
    // One device is in one of four partitions, which has its share.
    assert!(stats.keys <= 20 && stats.evicted >= 160, "{stats:?}");
    log.append(&[&rows(&[("a", 200, 5_000, 1.0)])]).unwrap();
    assert_eq!((stored(&log), log.dedupe_stats(StreamId(16)).duplicates), (200, 1));
}

#[test]
fn a_declaration_that_cannot_work_is_refused() {
    let log = Log::open_on(Arc::new(Forgetful::new()), options(), vec![(*schema()).clone()]).unwrap();
    let refusal = |columns| log.dedupe(&schema(), dedupe(columns), 0).unwrap_err().to_string();
    assert!(refusal(&["device", "time"]).contains("\"time\", which is no column"));
    assert!(refusal(&["ts"]).contains("must name its key \"device\""));
}

#[test]
fn a_duplicate_of_a_row_that_is_lost_fails_with_it() {
    let storage = Forgetful::new();
    let log = open(&storage, 0);
    let answers = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let partition = log.partition_of(b"a");
    storage.fail_syncs(1);
    for at in 0..3 {
        let (answers, one) = (answers.clone(), rows(&[("a", 1, 10, 1.0)]));
        let done =
            Box::new(move |result: Result<Receipt, LogError>| answers.lock().push((at, result.is_ok())));
        log.submit(&[(partition, &one)], done).unwrap();
    }
    // Behind them in the queue; how many of the three shared the failed commit is a matter of time.
    while log.append(&[&rows(&[("z", 9, 10, 1.0)])]).is_err() {}
    let answers = answers.lock().clone();
    let acknowledged = answers.iter().any(|(_, ok)| *ok);
    let again = log.append(&[&rows(&[("a", 1, 11, 1.0)])]);
    again.unwrap();
    // Stored exactly once whoever was acknowledged, and the first was not.
    assert_eq!(stored(&log), 2, "{answers:?}");
    assert!(!answers[0].1 && (!acknowledged || answers.len() == 3), "{answers:?}");
}

#[test]
fn a_reading_is_not_acknowledged_for_an_original_that_is_refused() {
    let log = open(&Forgetful::new(), 0);
    let partition = log.partition_of(b"a");
    for round in 0..20i64 {
        let first = 1 + round * 1_000_000;
        // Values that do not compress, more than a segment takes: refused after all of it has been encoded.
        let large: Vec<Reading<'_>> =
            (0..40_000).map(|at| ("a", first + at, 10, 1.0 / (first + at) as f64)).collect();
        let (large, small) = (rows(&large), rows(&[("a", first, 10, 1.0)]));
        let before = stored(&log);
        let keys = log.dedupe_stats(StreamId(16)).keys;
        let (refused, acknowledged) = std::thread::scope(|scope| {
            let refused = scope.spawn(|| log.submit(&[(partition, &large)], Box::new(|_| ())));
            while log.dedupe_stats(StreamId(16)).keys == keys && !refused.is_finished() {
                std::thread::yield_now();
            }
            let acknowledged = log.append(&[&small]);
            (refused.join().unwrap(), acknowledged)
        });
        assert!(matches!(refused, Err(LogError::TooLarge { .. })), "{refused:?}");
        acknowledged.unwrap();
        assert_eq!(stored(&log), before + 1, "round {round}");
    }
}

proptest! {
    /// Any readings in any submissions, with failing commits and restarts: what is stored and acknowledged is what a plain
    /// set would let through.
    #[test]
    fn as_a_plain_set_of_keys(
        steps in proptest::collection::vec(
            (proptest::collection::vec((0..4u8, 1..4i64), 1..6), 0..400i64, 0..12u8), 1..30),
    ) {
        let mut storage = Forgetful::new();
        let mut log = open(&storage, 0);
        let mut seen: HashMap<(u8, i64), i64> = HashMap::new();
        let (mut now, mut expected) = (1_000_000, 0);
        for (readings, pause, event) in steps {
            now += pause;
            let names: Vec<String> = readings.iter().map(|(device, _)| format!("d{device}")).collect();
            let sent: Vec<Reading<'_>> =
                readings.iter().zip(&names).map(|((_, ts), name)| (name.as_str(), *ts, now, 1.0)).collect();
            if event == 0 {
                storage.fail_syncs(1);
            }
            let mut fresh = Vec::new();
            for reading in &readings {
                let is_new = seen.get(reading).is_none_or(|at| now - at > WINDOW_US) && !fresh.contains(reading);
                if is_new {
                    fresh.push(*reading);
                }
            }
            match log.append(&[&rows(&sent)]) {
                Ok(_) => {
                    expected += fresh.len() as u64;
                    seen.extend(fresh.into_iter().map(|reading| (reading, now)));
                    prop_assert!(event != 0 || expected == stored(&log));
                }
                Err(error) => prop_assert!(event == 0, "{error}"),
            }
            storage.fail_syncs(0);
            prop_assert_eq!(stored(&log), expected);
            if event == 1 {
                drop(log);
                storage = storage.kill();
                log = open(&storage, now);
            }
        }
    }
}
