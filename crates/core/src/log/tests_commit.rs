//! When a commit begins, what it writes, and what a reader need not read.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::forgetful::Forgetful;
use super::tests::{STREAM, open, options, read_rows, rows, schema};
use super::*;
use crate::rows::{Cell, Rows};
use crate::schema::{SchemaId, StreamId};

const OTHER: StreamId = StreamId(17);

#[test]
fn what_is_queued_waits_for_begin_and_goes_along_with_what_is_submitted() {
    let log = open(&Forgetful::new(), options()).unwrap();
    let (to, from) = mpsc::channel();
    let rows = rows(&[("a", 1, 1.5)]);
    let part = [(log.partition_of(b"a"), &rows)];
    let done = |name: &'static str| -> Done {
        let to = to.clone();
        Box::new(move |result| to.send((name, result.unwrap().commit)).unwrap())
    };
    // The commit thread may still be on its way to its first sleep, and then takes what it finds.
    log.append(&[&rows]).unwrap();
    while !log.shared().queue.lock().idle {
        std::thread::yield_now();
    }
    log.queue(&part, done("queued")).unwrap();
    assert!(log.shared().queue.lock().idle, "nothing has woken the commit thread");
    log.queue(&part, done("queued too")).unwrap();
    log.begin();
    let wait = Duration::from_secs(10);
    assert_eq!(from.recv_timeout(wait).unwrap(), ("queued", 2));
    assert_eq!(from.recv_timeout(wait).unwrap(), ("queued too", 2));
    log.begin();
    log.submit(&part, done("submitted")).unwrap();
    assert_eq!(from.recv_timeout(wait).unwrap(), ("submitted", 3));
}

#[test]
fn a_hurried_commit_does_not_gather_any_longer_if_it_is_large_enough() {
    let options = LogOptions { commit_interval: Duration::from_secs(3600), ..options() };
    let log = open(&Forgetful::new(), options).unwrap();
    let rows = rows(&[("a", 1, 1.5)]);
    log.append(&[&rows]).unwrap();
    let (to, from) = mpsc::channel();
    let done = Box::new(move |result: Result<Receipt, LogError>| to.send(result.unwrap().commit).unwrap());
    log.submit(&[(log.partition_of(b"a"), &rows)], done).unwrap();
    log.hurry(1 << 20);
    assert!(!log.shared().queue.lock().hurry);
    log.hurry(1);
    assert_eq!(from.recv_timeout(Duration::from_secs(10)), Ok(2));
}

#[test]
fn closing_commits_what_nobody_has_begun() {
    let storage = Forgetful::new();
    let log = open(&storage, options()).unwrap();
    let rows = rows(&[("a", 1, 1.5)]);
    let (to, from) = mpsc::channel();
    let done = Box::new(move |result: Result<Receipt, LogError>| to.send(result.is_ok()).unwrap());
    log.queue(&[(log.partition_of(b"a"), &rows)], done).unwrap();
    log.close();
    assert!(from.recv().unwrap());
}

#[test]
fn a_commit_into_blocks_never_written_takes_zeros_along_and_the_next_ones_do_not() {
    let storage = Forgetful::new();
    let options = LogOptions { segment_bytes: 4 << 20, ..options() };
    let log = open(&storage, options).unwrap();
    let written = || storage.open("segment-000000000001").unwrap().written().unwrap();
    assert_eq!(written(), 4096, "the header");
    let end = || {
        log.append(&[&rows(&[("a", 1, 1.5)])]).unwrap();
        log.shared().published.lock().segments.back().unwrap().end()
    };
    let first = end();
    assert_eq!(written(), first + (1 << 20));
    let second = end();
    assert_eq!(written(), first + (1 << 20));
    let bytes = storage.bytes("segment-000000000001");
    assert!(bytes[second as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_reader_passes_over_commits_of_others_and_misses_none_of_its_own() {
    let storage = Forgetful::new();
    let other = Schema { id: SchemaId(101), stream: OTHER, name: "other".into(), ..schema() };
    let log = Log::open_on(Arc::new(storage), options(), vec![schema(), other.clone()]).unwrap();
    let mut others = Rows::new(Arc::new(other));
    for n in 0..600 {
        others.push([Cell::Bytes(b"x"), Cell::Timestamp(n), Cell::Double(n as f64 / 7.0)]).unwrap();
    }
    let mut reader = log.reader(STREAM, &log.end(STREAM)).unwrap();
    for round in 0..40 {
        log.append(&[&others]).unwrap();
        if round % 2 == 0 {
            assert!(reader.read(10).unwrap().is_none());
        }
        if round % 3 == 0 {
            log.append(&[&rows(&[("a", round, 1.5)])]).unwrap();
            log.append(&[&others]).unwrap();
            let read: Vec<i64> = read_rows(&mut reader, 10).unwrap().iter().map(|row| row.4).collect();
            assert_eq!(read, [round]);
        }
    }
    assert!(log.stats().segments > 2);
    assert_eq!(read_rows(&mut log.reader(OTHER, &log.start(OTHER)).unwrap(), 1000).unwrap().len(), 54 * 600);
}
