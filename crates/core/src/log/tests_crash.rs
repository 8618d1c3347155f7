//! The log on a storage that forgets: torn tails, damage, and random schedules against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::forgetful::Forgetful;
use super::segment::segment_name;
use super::storage::Storage;
use super::tests::{Row, STREAM, all_rows, open, options, read_rows, rows};
use super::*;
use crate::rows::{Cell, Rows};
use crate::schema::{Column, ColumnType, SchemaId};

/// A closed log of `commits` commits of two rows each, and where each commit ends in segment 1.
fn small_log(commits: i64) -> (Forgetful, Vec<Row>, Vec<u64>) {
    let storage = Forgetful::new();
    let log = open(&storage, options()).unwrap();
    let mut ends = vec![4096];
    for n in 0..commits {
        let device = format!("device-{n}");
        log.append(&[&rows(&[("a", 2 * n, 0.1 + n as f64), (&device, 2 * n + 1, -0.0)])]).unwrap();
        ends.push(4096 + log.stats().bytes);
    }
    let rows = all_rows(&log).unwrap();
    log.close();
    (storage.kill(), rows, ends)
}

#[test]
fn a_log_cut_at_any_byte_keeps_the_commits_before_it_and_no_part_of_another() {
    let (storage, rows, ends) = small_log(6);
    let name = segment_name(1);
    let bytes = storage.bytes(&name);
    for cut in ends[3]..=ends[6] {
        let complete = ends.iter().filter(|end| **end <= cut).count() - 1;
        for is_preallocated in [true, false] {
            let storage = storage.copy();
            let mut torn = bytes[..cut as usize].to_vec();
            if is_preallocated {
                torn.resize(bytes.len(), 0);
            }
            storage.set_bytes(&name, &torn);
            let log = open(&storage, options()).unwrap();
            assert_eq!(all_rows(&log).unwrap(), rows[..complete * 2], "cut at {cut}");
            let told = log.recovery().torn.as_ref().map(|torn| (torn.byte, torn.commit));
            // Fewer bytes than magic and salt cannot be told from space that was never used.
            let is_visible = cut >= ends[complete] + 12;
            assert_eq!(told, is_visible.then_some((ends[complete], complete as u64 + 1)), "cut at {cut}");
            let receipt = log.append(&[&tests::rows(&[("a", 99, 9.9)])]).unwrap();
            assert_eq!(receipt.commit, complete as u64 + 1);
            log.close();
            let log = open(&storage.kill(), options()).unwrap();
            assert_eq!(all_rows(&log).unwrap().len(), complete * 2 + 1, "cut at {cut}, opened again");
            assert_eq!(log.recovery().torn, None);
        }
    }
}

/// Reads as far as the log lets us; damage met on the way is an error that is met again.
fn readable_rows(log: &Log) -> Vec<Row> {
    let mut reader = log.reader(STREAM, &log.start(STREAM)).unwrap();
    let mut rows = Vec::new();
    loop {
        match reader.read(1) {
            Ok(Some(batch)) => rows.extend(tests::batch_rows(&batch)),
            Ok(None) => return rows,
            Err(error) => {
                assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
                assert_eq!(reader.read(1), Err(error));
                return rows;
            }
        }
    }
}

#[test]
fn any_flipped_byte_is_detected_or_in_the_torn_tail_and_never_gives_wrong_rows() {
    let (storage, rows, _) = small_log(3);
    let log = open(&storage, options()).unwrap();
    log.append(&[&tests::rows(&[("a", 100, 1e300)])]).unwrap();
    log.append(&[&tests::rows(&[("b", 101, 0.5)])]).unwrap();
    let mut all = rows.clone();
    all.extend(all_rows(&log).unwrap().split_off(rows.len()));
    let last_commit = 4096 + log.stats().bytes;
    log.close();
    let storage = storage.kill();
    // Small files open faster, and nothing of them is unused.
    let used = [
        (segment_name(1), 0),
        (segment_name(2), last_commit as usize),
        ("keys-0000".into(), 0),
        ("meta".into(), 0),
    ];
    let (mut detected, mut cut) = (0, 0);
    for (name, length) in used {
        let mut bytes = storage.bytes(&name);
        if length > 0 {
            bytes.truncate(length);
        }
        for at in 0..bytes.len() {
            let storage = storage.copy();
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            storage.set_bytes(&name, &damaged);
            let Ok(log) = open(&storage, options()) else {
                detected += 1;
                continue;
            };
            let read = readable_rows(&log);
            assert_eq!(read, all[..read.len()], "{name} byte {at}");
            if read.len() == all.len() {
                continue;
            }
            if log.recovery().torn.is_some() || name == segment_name(2) {
                assert_eq!(
                    read.len(),
                    all.len() - 1,
                    "only the last commit may be taken for torn: {name} byte {at}"
                );
                cut += 1;
            } else {
                detected += 1;
            }
        }
    }
    assert!(detected > 500 && cut > 50, "{detected} {cut}");
}

#[test]
fn damage_before_a_later_commit_is_named_and_opening_refuses() {
    let (storage, _, ends) = small_log(5);
    let name = segment_name(1);
    let mut bytes = storage.bytes(&name);
    bytes[ends[2] as usize - 1] ^= 1;
    storage.set_bytes(&name, &bytes);
    let error = open(&storage, options()).err().unwrap();
    let LogError::Corrupt { file, byte, found } = &error else { panic!("{error}") };
    assert_eq!((file, *byte), (&name, ends[1]));
    assert!(found.contains("offsets") && found.contains("commit 5"), "{found}");
}

#[test]
fn damage_in_an_older_segment_is_named_when_it_is_read_and_not_served() {
    let (storage, rows, ends) = small_log(5);
    drop(open(&storage, options()).unwrap().append(&[&tests::rows(&[("a", 100, 1.0)])]).unwrap());
    let storage = storage.kill();
    let name = segment_name(1);
    let mut bytes = storage.bytes(&name);
    bytes[ends[3] as usize - 1] ^= 1;
    storage.set_bytes(&name, &bytes);
    let log = open(&storage, options()).unwrap();
    let mut reader = log.reader(STREAM, &log.start(STREAM)).unwrap();
    let first = reader.read(100).unwrap().unwrap();
    assert!((4..6).contains(&first.num_rows()), "commits 1 and 2, and of 3 what is in a good block");
    assert_eq!(tests::batch_rows(&first), rows[..first.num_rows()]);
    let error = reader.read(100).unwrap_err();
    assert!(error.to_string().contains("stream 16, partition"), "{error}");
    assert_eq!(reader.read(100), Err(error));
}

#[test]
fn a_missing_segment_or_meta_file_is_refused() {
    let (storage, ..) = small_log(2);
    for n in 0..2 {
        open(&storage, options()).unwrap().append(&[&rows(&[("a", n, 1.0)])]).unwrap();
    }
    let storage = storage.kill();
    let without = |name: &str| {
        let storage = storage.copy();
        storage.remove(name).unwrap();
        open(&storage, options()).err().unwrap().to_string()
    };
    assert!(without(&segment_name(2)).contains("segment-000000000001 is there"));
    assert!(without("meta").contains("absent although there are segments"));
    assert!(without("keys-0000").contains("valid keys of"));
}

#[test]
fn bytes_of_a_device_that_look_like_a_commit_are_not_taken_for_one() {
    let (storage, _, ends) = small_log(3);
    let first = storage.bytes(&segment_name(1))[ends[0] as usize..ends[1] as usize].to_vec();
    let columns = vec![Column { name: "payload".into(), ty: ColumnType::Binary }];
    let raw = Schema::new(SchemaId(1), StreamId(1), "_raw", columns, None).unwrap();
    let log = open(&storage, options()).unwrap();
    let mut payload = Rows::new(log.register(raw).unwrap());
    payload.push([Cell::Bytes(&first)]).unwrap();
    log.append(&[&payload]).unwrap();
    let used = 4096 + log.stats().bytes as usize;
    log.close();
    let storage = storage.kill();
    // Tear the commit that holds the payload: the image inside it is whole, but of another life.
    let name = segment_name(2);
    let mut bytes = storage.bytes(&name);
    bytes[4096 + 20] ^= 1;
    bytes.truncate(used);
    storage.set_bytes(&name, &bytes);
    let log = open(&storage, options()).unwrap();
    assert_eq!(log.recovery().torn.as_ref().unwrap().commit, 4);
    assert_eq!(all_rows(&log).unwrap().len(), 6);
}

/// What a run of the model knows for sure.
#[derive(Default)]
struct Model {
    /// Time (unique per row) to device, of everything ever submitted.
    submitted: BTreeMap<i64, String>,
    /// Time to place, of rows whose `done` was `Ok`.
    acknowledged: BTreeMap<i64, (u16, u64)>,
    /// Partition and offset to time, of rows that a reader has seen.
    visible: BTreeMap<(u16, u64), i64>,
    /// What the one reader still needs, per partition; what is before may be trimmed.
    held: Vec<Offset>,
    key_numbers: BTreeMap<String, u32>,
}

impl Model {
    /// `may_lose`: acknowledged rows need not be there (async), or their answers are still on the way.
    fn check(&mut self, log: &Log, may_lose: bool, seed: u64) {
        let rows = log.reader(STREAM, &self.held).and_then(|mut reader| read_rows(&mut reader, 7));
        let rows = match rows {
            Ok(rows) => rows,
            // With the power off nothing can be read.
            Err(LogError::Io { .. }) if may_lose => return,
            Err(error) => panic!("{error}, seed {seed}"),
        };
        let start = &self.held;
        let kept = |partition: u16, offset: u64| offset >= start[usize::from(partition)].0;
        let mut next: Vec<u64> = start.iter().map(|offset| offset.0).collect();
        let (mut read, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for (partition, offset, key, device, ts, _) in rows {
            assert_eq!(offset, next[usize::from(partition)], "offsets are dense, seed {seed}");
            next[usize::from(partition)] += 1;
            read.insert((partition, offset), ts);
            assert!(seen.insert(ts), "row {ts} is there twice, seed {seed}");
            assert_eq!(self.submitted.get(&ts), Some(&device), "seed {seed}");
            let known = *self.key_numbers.entry(device).or_insert(key);
            assert_eq!(known, key, "key ids are stable, seed {seed}");
            assert_eq!(
                log.key_bytes(Partition(partition), key / 4).as_deref(),
                Some(self.submitted[&ts].as_bytes())
            );
        }
        for (place, ts) in self.visible.iter().filter(|(place, _)| kept(place.0, place.1)) {
            assert_eq!(read.get(place), Some(ts), "rows once visible stay where they are, seed {seed}");
        }
        if !may_lose {
            for (ts, place) in self.acknowledged.iter().filter(|(_, place)| kept(place.0, place.1)) {
                assert_eq!(read.get(place), Some(ts), "an acknowledged row is missing, seed {seed}");
            }
        }
        self.visible = read;
    }
}

/// Partition and time of each row of a submission, and what became of it.
type Answer = (Vec<(u16, i64)>, Result<Receipt, LogError>);

fn collect(model: &mut Model, answers: &mpsc::Receiver<Answer>) {
    for (rows, result) in answers.try_iter() {
        let Ok(receipt) = result else { continue };
        let mut places = BTreeMap::new();
        for (_, partition, base, _) in receipt.ranges {
            places.insert(partition.0, base.0);
        }
        for (partition, ts) in rows {
            let next = places.get_mut(&partition).unwrap();
            model.acknowledged.insert(ts, (partition, *next));
            *next += 1;
        }
    }
}

fn random_schedule(seed: u64, durability: Durability) {
    let random = &mut Pcg64::seed_from_u64(seed);
    // Every other run is long enough to fill segments and to trim them.
    let most_rows = if seed.is_multiple_of(2) { 8 } else { 300 };
    let options = LogOptions {
        durability,
        commit_bytes: 300,
        retention_bytes: 0,
        segment_bytes: 32 << 10,
        ..options()
    };
    let is_async = durability == Durability::Async;
    let (mut storage, mut ts) = (Forgetful::new(), 0);
    let mut model = Model { held: vec![Offset(0); 4], ..Model::default() };
    for _ in 0..random.random_range(2..6) {
        let log = match open(&storage, options.clone()) {
            Ok(log) => log,
            Err(error) => panic!("cannot open: {error}, seed {seed}"),
        };
        log.hold("model", STREAM, &model.held);
        model.check(&log, is_async, seed);
        if random.random_bool(0.7) {
            storage.cut_after(random.random_range(0..60));
        }
        let (to, answers) = mpsc::channel();
        for _ in 0..random.random_range(0..30) {
            match random.random_range(0..20) {
                0 => storage.fail_syncs(random.random_range(1..3)),
                1 => storage.fail_writes(1),
                2 => storage.set_capacity(Some(random.random_range(0..300 << 10))),
                3 | 4 => storage.set_capacity(None),
                5 => {
                    log.wait(u64::MAX, Duration::from_micros(200));
                    model.check(&log, true, seed);
                }
                6 | 7 => {
                    model.check(&log, true, seed);
                    model.held = log.end(STREAM);
                    log.hold("model", STREAM, &model.held);
                }
                _ => submit_some(&log, random, &mut ts, &mut model, most_rows, to.clone()),
            }
            collect(&mut model, &answers);
        }
        if random.random_bool(0.5) {
            log.close();
        }
        let next = if random.random_bool(0.5) { storage.cut(random) } else { storage.kill() };
        log.close();
        collect(&mut model, &answers);
        storage = next;
        storage.set_capacity(None);
    }
    let log = open(&storage, options).unwrap();
    log.hold("model", STREAM, &model.held);
    model.check(&log, is_async, seed);
    log.append(&[&rows(&[("last", -1, 0.0)])]).unwrap();
}

fn submit_some(
    log: &Log,
    random: &mut Pcg64,
    ts: &mut i64,
    model: &mut Model,
    most_rows: u32,
    to: mpsc::Sender<Answer>,
) {
    let mut parts: BTreeMap<Partition, Rows> = BTreeMap::new();
    let mut places = Vec::new();
    for _ in 0..random.random_range(1..most_rows) {
        let device = format!("device-{}", random.random_range(0..40));
        let partition = log.partition_of(device.as_bytes());
        *ts += 1;
        model.submitted.insert(*ts, device.clone());
        places.push((partition.0, *ts));
        let part = parts.entry(partition).or_insert_with(|| rows(&[]));
        let cells = [Cell::Bytes(device.as_bytes()), Cell::Timestamp(*ts), Cell::Double(random.random())];
        part.push(cells).unwrap();
    }
    let parts: Vec<(Partition, &Rows)> = parts.iter().map(|(partition, rows)| (*partition, rows)).collect();
    let done = Box::new(move |result| {
        let _ = to.send((places, result));
    });
    match log.submit(&parts, done) {
        Ok(()) | Err(LogError::Busy { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn random_schedules_lose_nothing_acknowledged_and_double_nothing() {
    (0..400).for_each(|seed| random_schedule(seed, Durability::Sync));
}

#[test]
fn random_schedules_in_async_mode_lose_nothing_visible() {
    (0..150).for_each(|seed| random_schedule(seed, Durability::Async));
}
