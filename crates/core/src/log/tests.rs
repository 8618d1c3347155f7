//! Examples of the log as its callers use it. Power cuts, damage and random schedules: `tests_crash.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMicrosecondType, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};

use super::forgetful::Forgetful;
use super::*;
use crate::rows::{Cell, Rows};
use crate::schema::{Column, ColumnType, SchemaId};

pub const STREAM: StreamId = StreamId(16);

pub fn options() -> LogOptions {
    LogOptions {
        partitions: 4,
        segment_bytes: 64 << 10,
        commit_bytes: 16 << 10,
        commit_interval: Duration::ZERO,
        max_keys: 1000,
        queue_bytes: 1 << 20,
        retention_bytes: u64::MAX,
        disk_max_bytes: u64::MAX,
        ..LogOptions::default()
    }
}

pub fn schema() -> Schema {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let columns = vec![
        column("device", ColumnType::String),
        column("ts", ColumnType::Timestamp),
        column("temperature", ColumnType::Double),
    ];
    Schema::new(SchemaId(100), STREAM, "telemetry", columns, Some("device")).unwrap()
}

pub fn open(storage: &Forgetful, options: LogOptions) -> Result<Log, LogError> {
    Log::open_on(Arc::new(storage.clone()), options, vec![schema()])
}

pub fn rows(readings: &[(&str, i64, f64)]) -> Rows {
    let mut rows = Rows::new(Arc::new(schema()));
    for (device, ts, temperature) in readings {
        let cells = [Cell::Bytes(device.as_bytes()), Cell::Timestamp(*ts), Cell::Double(*temperature)];
        rows.push(cells).unwrap();
    }
    rows
}

/// All rows from the start: (partition, offset, key number, device, ts, temperature).
pub type Row = (u16, u64, u32, String, i64, f64);

pub fn read_rows(reader: &mut Reader, max_rows: usize) -> Result<Vec<Row>, LogError> {
    let mut rows = Vec::new();
    while let Some(batch) = reader.read(max_rows)? {
        assert!(batch.num_rows() <= max_rows);
        rows.extend(batch_rows(&batch));
    }
    Ok(rows)
}

pub fn batch_rows(batch: &RecordBatch) -> Vec<Row> {
    let column = |name: &str| batch.column_by_name(name).unwrap().clone();
    let (device, ts) = (column("device"), column("ts"));
    let (temperature, key) = (column("temperature"), column("_key"));
    let (partition, offset) = (column("_partition"), column("_offset"));
    let row = |row: usize| {
        (
            partition.as_primitive::<UInt16Type>().value(row),
            offset.as_primitive::<UInt64Type>().value(row),
            key.as_primitive::<UInt32Type>().value(row),
            device.as_string::<i32>().value(row).to_owned(),
            ts.as_primitive::<TimestampMicrosecondType>().value(row),
            temperature.as_primitive::<Float64Type>().value(row),
        )
    };
    (0..batch.num_rows()).map(row).collect()
}

pub fn all_rows(log: &Log) -> Result<Vec<Row>, LogError> {
    read_rows(&mut log.reader(STREAM, &log.start(STREAM))?, 7)
}

fn ignore() -> Done {
    Box::new(|_| {})
}

#[test]
fn appended_rows_come_back_typed_and_in_order() {
    let log = open(&Forgetful::new(), options()).unwrap();
    let receipt = log.append(&[&rows(&[("a", 1, 1.5), ("b", 2, -0.0), ("a", 3, 2.5)])]).unwrap();
    assert_eq!(receipt.commit, 1);
    assert_eq!(receipt.ranges.iter().map(|range| range.3).sum::<u32>(), 3);
    let rows = all_rows(&log).unwrap();
    assert_eq!(rows.len(), 3);
    let of_a: Vec<_> = rows.iter().filter(|row| row.3 == "a").collect();
    assert_eq!((of_a[0].4, of_a[0].5, of_a[1].4, of_a[1].5), (1, 1.5, 3, 2.5));
    assert_eq!(of_a[0].2, of_a[1].2);
    let key = of_a[0].2;
    let (id, partition) = (key / 4, (key % 4) as u16);
    assert_eq!(partition, log.partition_of(b"a").0);
    assert_eq!(log.key_bytes(Partition(partition), id).unwrap(), b"a");
    let b = rows.iter().find(|row| row.3 == "b").unwrap();
    assert_eq!(b.5.to_bits(), (-0.0_f64).to_bits());
}

#[test]
fn a_reader_goes_on_where_it_stopped_also_inside_a_block() {
    let log = open(&Forgetful::new(), options()).unwrap();
    let readings: Vec<_> = (0..100).map(|n| ("a", n, n as f64)).collect();
    log.append(&[&rows(&readings)]).unwrap();
    let mut reader = log.reader(STREAM, &log.start(STREAM)).unwrap();
    let first = reader.read(30).unwrap().unwrap();
    assert_eq!(first.num_rows(), 30);
    let offsets = reader.offsets();
    drop(reader);
    let mut reader = log.reader(STREAM, &offsets).unwrap();
    let rest = read_rows(&mut reader, 1000).unwrap();
    assert_eq!(rest.iter().map(|row| row.4).collect::<Vec<_>>(), (30..100).collect::<Vec<_>>());
    assert_eq!(reader.offsets(), log.end(STREAM));
    assert_eq!(reader.read(10).unwrap(), None);
    log.append(&[&rows(&[("a", 100, 0.0)])]).unwrap();
    assert_eq!(reader.read(10).unwrap().unwrap().num_rows(), 1);
}

#[test]
fn projection_keeps_the_log_s_own_columns() {
    let log = open(&Forgetful::new(), options()).unwrap();
    log.append(&[&rows(&[("a", 1, 1.5)])]).unwrap();
    let mut reader = log.reader(STREAM, &log.start(STREAM)).unwrap();
    reader.project(&["temperature"]).unwrap();
    let batch = reader.read(10).unwrap().unwrap();
    let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["temperature", "_key", "_partition", "_offset"]);
    assert!(reader.project(&["nonsense"]).unwrap_err().to_string().contains("no column \"nonsense\""));
}

#[test]
fn a_later_schema_adds_a_column_that_older_rows_have_as_null() {
    let log = open(&Forgetful::new(), options()).unwrap();
    log.append(&[&rows(&[("a", 1, 1.5)])]).unwrap();
    let mut columns = schema().columns;
    columns.insert(0, Column { name: "ok".into(), ty: ColumnType::Boolean });
    let later = Schema::new(SchemaId(101), STREAM, "telemetry", columns, Some("device")).unwrap();
    let later = log.register(later).unwrap();
    let mut rows = Rows::new(later);
    let cells = [Cell::Boolean(true), Cell::Bytes(b"a"), Cell::Timestamp(2), Cell::Null];
    rows.push(cells).unwrap();
    log.append(&[&rows]).unwrap();
    let batch = log.reader(STREAM, &log.start(STREAM)).unwrap().read(10).unwrap().unwrap();
    let ok = batch.column_by_name("ok").unwrap().as_boolean().clone();
    assert_eq!((ok.is_null(0), ok.is_valid(1), ok.value(1)), (true, true, true));
    let temperature = batch.column_by_name("temperature").unwrap();
    assert_eq!((temperature.is_null(0), temperature.is_null(1)), (false, true));
}

#[test]
fn rows_and_key_ids_survive_reopening_in_a_new_epoch() {
    let storage = Forgetful::new();
    let log = open(&storage, options()).unwrap();
    log.append(&[&rows(&[("a", 1, 1.0), ("b", 2, 2.0)])]).unwrap();
    let before = all_rows(&log).unwrap();
    log.close();
    assert_eq!(log.append(&[&rows(&[("a", 9, 9.0)])]), Err(LogError::Closed));
    let log = open(&storage.kill(), options()).unwrap();
    assert_eq!(log.recovery().epoch, 2);
    assert_eq!(log.recovery().torn, None);
    assert_eq!(all_rows(&log).unwrap(), before);
    let end = log.end(STREAM);
    let receipt = log.append(&[&rows(&[("a", 3, 3.0)])]).unwrap();
    assert_eq!(receipt.commit, 2);
    let last = all_rows(&log).unwrap().pop().unwrap();
    let key_before = before.iter().find(|row| row.3 == "a").unwrap().2;
    assert_eq!((Offset(last.1), last.2), (end[usize::from(last.0)], key_before));
}

#[test]
fn submissions_in_the_queue_share_a_commit_and_a_sync() {
    let storage = Forgetful::new();
    let log = open(&storage, LogOptions { commit_interval: Duration::from_secs(3600), ..options() }).unwrap();
    // The first one goes at once; what follows waits for 16 KiB, here until the log is closed.
    log.append(&[&rows(&[("a", 0, 0.0)])]).unwrap();
    let (to, from) = mpsc::channel();
    let part = rows(&[("a", 1, 1.0)]);
    for _ in 0..50 {
        let to = to.clone();
        let done = Box::new(move |result: Result<Receipt, LogError>| to.send(result.unwrap()).unwrap());
        log.submit(&[(log.partition_of(b"a"), &part)], done).unwrap();
    }
    let syncs = storage.syncs();
    log.close();
    let receipts: Vec<Receipt> = from.try_iter().collect();
    assert_eq!(receipts.len(), 50);
    assert!(receipts.iter().all(|receipt| receipt.commit == 2));
    let offsets: Vec<u64> = receipts.iter().map(|receipt| receipt.ranges[0].2.0).collect();
    assert_eq!(offsets, (1..51).collect::<Vec<u64>>());
    assert_eq!(storage.syncs() - syncs, 1);
    assert_eq!(log.stats().commits, 2);
}

#[test]
fn a_full_queue_is_busy_and_takes_nothing() {
    let bound = LogOptions { queue_bytes: 1000, commit_interval: Duration::from_secs(3600), ..options() };
    let log = open(&Forgetful::new(), bound).unwrap();
    log.append(&[&rows(&[("a", 0, 0.0)])]).unwrap();
    let called = Arc::new(AtomicUsize::new(0));
    let part = rows(&[("a", 1, 1.0)]);
    let mut accepted = 0;
    let error = loop {
        let count = called.clone();
        let done = Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        match log.submit(&[(log.partition_of(b"a"), &part)], done) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::Busy { bound: 1000, .. }), "{error}");
    assert_eq!(log.stats().busy, 1);
    log.close();
    assert_eq!(called.load(Ordering::SeqCst), accepted);
    assert_eq!(all_rows(&log).unwrap().len(), accepted + 1);
}

#[test]
fn keys_over_the_bound_are_named_by_part_and_row() {
    let log = open(&Forgetful::new(), LogOptions { max_keys: 2, partitions: 1, ..options() }).unwrap();
    let part = rows(&[("a", 1, 1.0), ("b", 2, 2.0), ("a", 3, 3.0), ("c", 4, 4.0)]);
    let error = log.submit(&[(Partition(0), &part)], ignore()).unwrap_err();
    // The empty key of streams without a key counts too.
    let LogError::KeyRefused { refused, why, .. } = &error else { panic!("{error}") };
    assert_eq!(refused, &[(0, 1), (0, 3)]);
    assert!(why.contains("max_keys = 2"), "{why}");
    log.append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
    assert_eq!(all_rows(&log).unwrap().len(), 1);
}

#[test]
fn rows_that_could_not_be_read_back_are_refused() {
    let log = open(&Forgetful::new(), options()).unwrap();
    let text = |rows: &Rows, partition| log.submit(&[(partition, rows)], ignore()).unwrap_err().to_string();
    let mut bad = rows(&[]);
    bad.push([Cell::Bytes(b"\xff"), Cell::Null, Cell::Null]).unwrap();
    assert!(text(&bad, log.partition_of(b"\xff")).contains("is not UTF-8"));
    let good = rows(&[("a", 1, 1.0)]);
    let other = Partition((log.partition_of(b"a").0 + 1) % 4);
    assert!(text(&good, other).contains("belongs to partition"));
    assert!(text(&good, Partition(99)).contains("no partition 99 of 4"));
    let unknown = Schema { id: SchemaId(7), ..schema() };
    assert_eq!(
        log.append(&[&{
            let mut rows = Rows::new(Arc::new(unknown));
            rows.push([]).unwrap();
            rows
        }]),
        Err(LogError::UnknownSchema(SchemaId(7)))
    );
}

#[test]
fn wait_returns_with_the_commit_and_at_the_timeout() {
    let log = open(&Forgetful::new(), options()).unwrap();
    assert_eq!(log.wait(0, Duration::ZERO), 0);
    let waiting = log.clone();
    let waiter = std::thread::spawn(move || waiting.wait(0, Duration::from_secs(60)));
    log.append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
    assert_eq!(waiter.join().unwrap(), 1);
    let waiting = log.clone();
    let waiter = std::thread::spawn(move || waiting.wait(1, Duration::from_secs(60)));
    log.close();
    assert_eq!(waiter.join().unwrap(), 1);
}

#[test]
fn who_waits_for_rows_of_a_stream_gets_them_or_the_end() {
    const OTHER: StreamId = StreamId(99);
    let log = open(&Forgetful::new(), options()).unwrap();
    let waits = |stream: StreamId, seen: u64| {
        let log = log.clone();
        let minute = Duration::from_secs(60);
        std::thread::spawn(move || log.wait_rows(stream, &[Offset(seen); 4], minute))
    };
    assert!(!log.wait_rows(STREAM, &[Offset(0); 4], Duration::ZERO));
    let (two, other) = ([waits(STREAM, 0), waits(STREAM, 0)], waits(OTHER, 0));
    log.append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
    assert!(two.into_iter().all(|waiter| waiter.join().unwrap()));
    assert!(log.wait_rows(STREAM, &[Offset(0); 4], Duration::ZERO));
    let behind = waits(STREAM, 1);
    assert!(!other.is_finished() && !behind.is_finished());
    log.close();
    assert!(!other.join().unwrap() && !behind.join().unwrap());
}

#[test]
fn at_a_start_nothing_goes_before_the_last_reader_has_said_what_it_holds() {
    let storage = Forgetful::new();
    let options = LogOptions { retention_bytes: 128 << 10, ..options() };
    let part = rows(&(0..500).map(|n| ("a", n, (n as f64).sqrt())).collect::<Vec<_>>());
    let log = open(&storage, options.clone()).unwrap();
    log.hold("late", STREAM, &[Offset(0); 4]);
    for _ in 0..80 {
        log.append(&[&part]).unwrap();
    }
    assert!(log.stats().segments > 4, "{:?}", log.stats());
    drop(log);
    // Holds do not outlive the process, so the next one begins with none.
    let log = open(&storage, options).unwrap();
    log.hold_all("start");
    log.hold("early", StreamId(99), &[Offset(0); 4]);
    log.append(&[&part]).unwrap();
    log.hold("late", STREAM, &[Offset(0); 4]);
    log.release_all("start");
    log.append(&[&part]).unwrap();
    assert_eq!(log.start(STREAM), [Offset(0); 4]);
    log.hold("late", STREAM, &log.end(STREAM));
    log.append(&[&part]).unwrap();
    log.append(&[&part]).unwrap();
    assert!(log.stats().segments <= 3, "{:?}", log.stats());
}

#[test]
fn segments_nobody_holds_are_recycled_and_offsets_go_on() {
    let storage = Forgetful::new();
    let log = open(&storage, LogOptions { retention_bytes: 128 << 10, ..options() }).unwrap();
    let readings: Vec<_> = (0..500).map(|n| ("a", n, (n as f64).sqrt())).collect();
    let part = rows(&readings);
    let held = vec![Offset(0); 4];
    log.hold("store", STREAM, &held);
    for _ in 0..80 {
        log.append(&[&part]).unwrap();
    }
    let full = log.stats();
    assert!(full.segments > 4 && full.segments_trimmed == 0, "{full:?}");
    assert_eq!(log.start(STREAM), held);
    log.hold("store", STREAM, &log.end(STREAM));
    log.append(&[&part]).unwrap();
    log.append(&[&part]).unwrap();
    let trimmed = log.stats();
    assert!(trimmed.segments <= 3 && trimmed.segments_trimmed >= full.segments - 2, "{trimmed:?}");
    let partition = log.partition_of(b"a");
    let start = log.start(STREAM)[usize::from(partition.0)];
    assert!(start > Offset(0));
    let error = log.reader(STREAM, &held).err().unwrap();
    assert_eq!(error, LogError::Trimmed { stream: STREAM, partition, wanted: 0, start: start.0 });
    assert_eq!(all_rows(&log).unwrap().first().unwrap().1, start.0);
    log.close();
    let log = open(&storage.kill(), options()).unwrap();
    assert_eq!(log.end(STREAM)[usize::from(partition.0)], Offset(82 * 500));
    assert_eq!(log.start(STREAM)[usize::from(partition.0)], start);
    assert_eq!(all_rows(&log).unwrap().len() as u64, 82 * 500 - start.0);
}

#[test]
fn a_reader_in_a_recycled_segment_reads_it_to_its_end() {
    let log = open(&Forgetful::new(), LogOptions { retention_bytes: 0, ..options() }).unwrap();
    let readings: Vec<_> = (0..500).map(|n| ("a", n, (n as f64).sqrt())).collect();
    let part = rows(&readings);
    log.hold("store", STREAM, &[Offset(0); 4]);
    for _ in 0..8 {
        log.append(&[&part]).unwrap();
    }
    let mut reader = log.reader(STREAM, &[Offset(0); 4]).unwrap();
    assert_eq!(reader.read(10).unwrap().unwrap().num_rows(), 10);
    log.release("store", STREAM);
    for _ in 0..60 {
        log.append(&[&part]).unwrap();
    }
    let mut read = 10;
    let error = loop {
        match reader.read(100) {
            Ok(Some(batch)) => {
                let offsets = batch.column_by_name("_offset").unwrap().clone();
                assert_eq!(offsets.as_primitive::<UInt64Type>().value(0), read);
                read += batch.num_rows() as u64;
            }
            Ok(None) => panic!("the rows after its segment are gone"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, LogError::Trimmed { wanted, .. } if wanted == read && read > 1000),
        "{error} {read}"
    );
}

#[test]
fn held_segments_at_the_disk_bound_stop_submissions_until_the_reader_advances() {
    let log = open(&Forgetful::new(), LogOptions { disk_max_bytes: 256 << 10, ..options() }).unwrap();
    log.hold("slow", STREAM, &[Offset(0); 4]);
    let readings: Vec<_> = (0..500).map(|n| ("a", n, (n as f64).sqrt())).collect();
    let part = rows(&readings);
    let mut accepted = 0;
    let error = loop {
        match log.append(&[&part]) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("\"slow\" holds stream 16"), "{error}");
    assert!(matches!(log.append(&[&part]), Err(LogError::DiskBound { .. })));
    assert_eq!(log.stats().disk_bound, 2);
    assert_eq!(all_rows(&log).unwrap().len(), accepted * 500);
    log.hold("slow", STREAM, &log.end(STREAM));
    log.append(&[&part]).unwrap();
}

#[test]
fn devices_wait_for_space_while_results_of_services_find_the_reserve() {
    let log = open(&Forgetful::new(), LogOptions { disk_max_bytes: 1 << 20, ..options() }).unwrap();
    log.hold("slow", STREAM, &[Offset(0); 4]);
    let readings: Vec<_> = (0..500).map(|n| ("a", n, (n as f64).sqrt())).collect();
    let part = rows(&readings);
    let (to, answers) = mpsc::channel();
    let mut queued = 0;
    let queue = |n: usize| {
        let to = to.clone();
        let done = Box::new(move |result: Result<_, _>| to.send((n, result.is_ok())).unwrap());
        log.queue(&[(log.partition_of(b"a"), &part)], done).unwrap();
        log.begin();
    };
    let mut answered = Vec::new();
    while !log.stats().full {
        queue(queued);
        queued += 1;
        while answered.len() < queued && !log.stats().full {
            answered.extend(answers.try_recv());
        }
    }
    let before = log.stats();
    assert!(before.last_error.unwrap().contains("\"slow\" holds stream 16"));
    queue(queued);
    // Who does not wait gets the reserve, and then an error, soon and without an end of the others' waiting.
    let mut appended = 0;
    let error = loop {
        match log.append(&[&part]) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::DiskBound { .. }), "{error}");
    assert!(appended > 10, "{appended}");
    assert!(log.stats().full && log.stats().disk_bytes <= 1 << 20);
    // Then there is room, and all are answered in their order.
    log.hold("slow", STREAM, &log.end(STREAM));
    while answered.len() <= queued {
        answered.push(answers.recv().unwrap());
    }
    assert_eq!(answered, (0..=queued).map(|n| (n, true)).collect::<Vec<_>>());
    assert!(!log.stats().full);
}

#[test]
fn a_full_disk_fails_submissions_and_the_log_goes_on_when_there_is_space() {
    let storage = Forgetful::new();
    let log = open(&storage, options()).unwrap();
    storage.set_capacity(Some(200 << 10));
    let readings: Vec<_> = (0..500).map(|n| ("a", n, (n as f64).sqrt())).collect();
    let part = rows(&readings);
    log.hold("store", STREAM, &[Offset(0); 4]);
    let mut accepted = 0;
    let error = loop {
        match log.append(&[&part]) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::DiskFull { .. }), "{error}");
    assert!(log.append(&[&part]).is_err());
    assert_eq!(log.stats().disk_full, 2);
    storage.set_capacity(None);
    log.append(&[&part]).unwrap();
    assert_eq!(all_rows(&log).unwrap().len(), (accepted + 1) * 500);
}

#[test]
fn a_full_disk_does_not_keep_the_log_from_opening() {
    let storage = Forgetful::new();
    let log = open(&storage, options()).unwrap();
    log.append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
    log.close();
    let storage = storage.kill();
    storage.set_capacity(Some(1));
    let log = open(&storage, options()).unwrap();
    assert_eq!(all_rows(&log).unwrap().len(), 1);
    assert!(matches!(log.append(&[&rows(&[("b", 2, 2.0)])]), Err(LogError::DiskFull { .. })));
    storage.set_capacity(None);
    log.append(&[&rows(&[("c", 3, 3.0)])]).unwrap();
    log.close();
    let log = open(&storage.kill(), options()).unwrap();
    assert_eq!(all_rows(&log).unwrap().iter().map(|row| row.4).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_new_log_without_space_says_so() {
    let storage = Forgetful::new();
    storage.set_capacity(Some(32 << 10));
    let error = open(&storage, options()).err().unwrap();
    assert!(matches!(error, LogError::DiskFull { .. }), "{error}");
    storage.set_capacity(None);
    open(&storage, options()).unwrap().append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
}

#[test]
fn a_failed_sync_ends_the_segment_and_is_never_tried_again() {
    for write_fails in [false, true] {
        let storage = Forgetful::new();
        let log = open(&storage, options()).unwrap();
        log.append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
        if write_fails {
            storage.fail_writes(1);
        } else {
            storage.fail_syncs(1);
        }
        let error = log.append(&[&rows(&[("a", 2, 2.0), ("new", 2, 2.0)])]).unwrap_err();
        assert!(
            matches!(&error, LogError::Io { what, .. } if what.contains("segment-000000000001")),
            "{error}"
        );
        let stats = log.stats();
        assert_eq!(
            (stats.sync_errors, stats.write_errors),
            (u64::from(!write_fails), u64::from(write_fails))
        );
        assert_eq!(stats.failed, 1);
        assert_eq!(all_rows(&log).unwrap().len(), 1);
        let receipt = log.append(&[&rows(&[("a", 3, 3.0)])]).unwrap();
        assert_eq!(receipt.commit, 2);
        log.append(&[&rows(&[("new", 4, 4.0)])]).unwrap();
        // What failed does not come back, although the system may still have it in its cache.
        let after_kill = storage.kill();
        for storage in [after_kill.copy(), after_kill.cut(&mut rand_pcg::Pcg64::new(1, 1))] {
            let log = open(&storage, options()).unwrap();
            assert_eq!(all_rows(&log).unwrap().iter().map(|row| row.4).collect::<Vec<_>>(), [1, 3, 4]);
        }
    }
}

#[test]
fn async_acknowledges_after_the_write_and_shows_rows_after_the_sync() {
    let storage = Forgetful::new();
    let log = open(&storage, LogOptions { durability: Durability::Async, ..options() }).unwrap();
    let receipt = log.append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
    assert_eq!(log.wait(receipt.commit - 1, Duration::from_secs(60)), receipt.commit);
    assert_eq!(all_rows(&log).unwrap().len(), 1);
    storage.fail_syncs(1);
    log.append(&[&rows(&[("a", 2, 2.0)])]).unwrap();
    while log.stats().sync_errors == 0 {
        std::thread::yield_now();
    }
    assert_eq!(log.stats().lost_rows, 1);
    log.append(&[&rows(&[("a", 3, 3.0)])]).unwrap();
    log.close();
    assert_eq!(all_rows(&log).unwrap().iter().map(|row| row.4).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(directory.path(), options(), vec![schema()]).unwrap();
    let error = Log::open(directory.path(), options(), vec![schema()]).err().unwrap();
    assert!(matches!(error, LogError::Locked { .. }), "{error}");
    log.append(&[&rows(&[("a", 1, 1.0)])]).unwrap();
    drop(log);
    let log = Log::open(directory.path(), options(), vec![schema()]).unwrap();
    assert_eq!(all_rows(&log).unwrap().len(), 1);
    let error = {
        log.close();
        drop(log);
        Log::open(directory.path(), LogOptions { partitions: 5, ..options() }, vec![schema()]).err().unwrap()
    };
    assert!(error.to_string().contains("was created with 4"), "{error}");
}

#[test]
fn a_block_whose_keys_are_all_null_reads_back() {
    let log = open(&Forgetful::new(), options()).unwrap();
    let mut nulls = Rows::new(Arc::new(schema()));
    nulls.push([Cell::Null, Cell::Timestamp(1), Cell::Double(1.0)]).unwrap();
    nulls.push([Cell::Null, Cell::Timestamp(2), Cell::Double(2.0)]).unwrap();
    log.append(&[&nulls]).unwrap();
    log.append(&[&rows(&[("a", 3, 3.0)])]).unwrap();
    let mut reader = log.reader(STREAM, &[Offset(0); 4]).unwrap();
    let mut seen = Vec::new();
    while let Some(batch) = reader.read(100).unwrap() {
        let device = batch.column_by_name("device").unwrap().clone();
        seen.extend(device.as_string::<i32>().iter().map(|key| key.map(str::to_owned)));
    }
    assert_eq!(seen, [None, None, Some("a".to_owned())]);
}

#[test]
fn a_stream_without_a_key_lies_in_partition_zero_under_key_zero() {
    let columns = vec![Column { name: "topic".into(), ty: ColumnType::String }];
    let plain = Schema::new(SchemaId(1), StreamId(1), "_raw", columns, None).unwrap();
    let log = open(&Forgetful::new(), options()).unwrap();
    let mut rows = Rows::new(log.register(plain).unwrap());
    rows.push([Cell::Bytes(b"x/y")]).unwrap();
    assert_eq!(log.append(&[&rows]).unwrap().ranges, [(StreamId(1), Partition(0), Offset(0), 1)]);
    let batch = log.reader(StreamId(1), &log.start(StreamId(1))).unwrap().read(5).unwrap().unwrap();
    assert_eq!(batch.column_by_name("_key").unwrap().as_primitive::<UInt32Type>().value(0), 0);
    assert_eq!(log.key_bytes(Partition(0), 0), Some(Vec::new()));
    assert_eq!(log.append(&[]).unwrap().ranges, []);
}
