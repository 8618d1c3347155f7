//! What the log costs: encode and decode per row, key lookup, commit, bytes per row, key file load.
//!
//! `cargo bench -p headwater-core --bench log`. The sizes are printed first; they are no timings.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::log::frame::{Scratch, encode};
use headwater_core::log::keys::Keys;
use headwater_core::log::{DedupeOptions, Log, LogOptions};
use headwater_core::rows::{Cell, Rows};
use headwater_core::schema::{Column, ColumnType, Offset, Partition, Schema, SchemaId, SchemaRef, StreamId};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

const DEVICES: u32 = 1_000_000;
const STREAM: StreamId = StreamId(16);

fn schema() -> Schema {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let columns = vec![
        column("site", ColumnType::String),
        column("device", ColumnType::String),
        column("ts", ColumnType::Timestamp),
        column("received_at", ColumnType::Timestamp),
        column("temperature", ColumnType::Double),
        column("humidity", ColumnType::Double),
        column("battery", ColumnType::Double),
    ];
    Schema::new(SchemaId(100), STREAM, "telemetry", columns, Some("device")).unwrap()
}

fn device(n: u32) -> String {
    format!("device-{n:07}")
}

/// Readings of random devices: values with two decimals, or with every bit in use.
fn readings(schema: &SchemaRef, count: usize, is_noisy: bool, random: &mut Pcg64) -> Rows {
    let mut rows = Rows::new(schema.clone());
    let arrival = 1_790_000_000_000_000_i64;
    for _ in 0..count {
        let name = device(random.random_range(0..DEVICES));
        let late_us = random.random_range(0..5_000_i64) * 1000;
        let mut value = |low: f64, high: f64| {
            let value = random.random_range(low..high);
            Cell::Double(if is_noisy { value } else { (value * 100.0).round() / 100.0 })
        };
        let (temperature, humidity, battery) = (value(-20.0, 45.0), value(0.0, 100.0), value(2.8, 4.2));
        rows.push([
            Cell::Bytes(b"plant-7"),
            Cell::Bytes(name.as_bytes()),
            Cell::Timestamp(arrival - late_us),
            Cell::Timestamp(arrival + random.random_range(0..2_000)),
            temperature,
            humidity,
            battery,
        ])
        .unwrap();
    }
    rows
}

fn full_dictionary() -> Keys {
    let mut keys = Keys::new(1, DEVICES);
    for n in 0..DEVICES {
        keys.insert(device(n).as_bytes()).unwrap();
    }
    keys
}

fn options() -> LogOptions {
    LogOptions { partitions: 4, commit_interval: Duration::from_millis(2), ..LogOptions::default() }
}

/// Bytes per row as stored, commit and block headers included.
fn print_sizes() {
    println!("{:>16} {:>12} {:>12}", "rows per block", "2 decimals", "noisy");
    let schema = Arc::new(schema());
    for count in [1, 2, 50, 200, 10_000] {
        let sizes = [false, true].map(|is_noisy| {
            let directory = tempfile::tempdir().unwrap();
            let log = Log::open(
                directory.path(),
                LogOptions { partitions: 1, ..options() },
                vec![(*schema).clone()],
            );
            let log = log.unwrap();
            let random = &mut Pcg64::seed_from_u64(1);
            // The keys are known already, as on any but a device's first reading.
            let blocks: Vec<Rows> = (0..20).map(|_| readings(&schema, count, is_noisy, random)).collect();
            log.append(&blocks.iter().collect::<Vec<_>>()).unwrap();
            let before = log.stats().bytes;
            blocks.iter().for_each(|rows| drop(log.append(&[rows]).unwrap()));
            (log.stats().bytes - before) as f64 / (20 * count) as f64
        });
        println!("{count:>16} {:>12.1} {:>12.1}", sizes[0], sizes[1]);
    }
}

/// CPU time of this thread: the machine may be shared, and its neighbours are not what is measured.
fn cpu_time(iterations: u64, mut run: impl FnMut()) -> Duration {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes the one timespec it is given, which lives on this stack.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        assert_eq!(failed, 0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let began = now();
    (0..iterations).for_each(|_| run());
    now() - began
}

fn frame(c: &mut Criterion) {
    print_sizes();
    let schema = Arc::new(schema());
    let keys = full_dictionary();
    let mut group = c.benchmark_group("submit path: key lookup and encode");
    for (name, is_noisy) in [("2 decimals", false), ("noisy", true)] {
        for count in [50, 1_000] {
            let random = &mut Pcg64::seed_from_u64(2);
            // The gateway's rows were decoded a moment ago; those of this bench are in the cache, too.
            let blocks: Vec<Rows> =
                (0..50_000 / count).map(|_| readings(&schema, count, is_noisy, random)).collect();
            let (mut scratch, mut out, mut ids, mut next) = (Scratch::default(), Vec::new(), Vec::new(), 0);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("{name}, {count} rows"), |b| {
                b.iter_custom(|iterations| {
                    cpu_time(iterations, || {
                        next = (next + 1) % blocks.len();
                        let rows = &blocks[next];
                        out.clear();
                        ids.clear();
                        keys.resolve(rows.len(), |row| rows.columns[1].bytes(row), &mut ids);
                        encode(rows, &ids, 1_790_000_000_000_000, &mut out, &mut scratch);
                        black_box(crc32c::crc32c(&out));
                    })
                });
            });
        }
    }
    group.finish();
}

fn key_lookup(c: &mut Criterion) {
    let keys = full_dictionary();
    let mut names: Vec<String> = (0..DEVICES).map(device).collect();
    names.shuffle(&mut Pcg64::seed_from_u64(3));
    // Copied in this order, so that the names themselves are read in sequence, as those of rows are.
    let names: Vec<String> = names.iter().map(|name| name.as_str().to_owned()).collect();
    let mut group = c.benchmark_group("keys");
    group.throughput(Throughput::Elements(1000));
    let (mut ids, mut at) = (Vec::new(), 0);
    group.bench_function("lookup, 1M random keys", |b| {
        b.iter_custom(|iterations| {
            cpu_time(iterations, || {
                at = (at + 1000) % names.len();
                ids.clear();
                black_box(keys.resolve(1000, |row| names[at + row].as_bytes(), &mut ids));
            })
        });
    });
    group.throughput(Throughput::Elements(u64::from(DEVICES)));
    group.sample_size(10);
    group.bench_function("insert 1M keys", |b| {
        b.iter_batched(
            || Keys::new(1, DEVICES),
            |mut keys| {
                for name in &names {
                    keys.insert(name.as_bytes()).unwrap();
                }
                keys
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn whole_log(c: &mut Criterion) {
    let schema = Arc::new(schema());
    let mut group = c.benchmark_group("log");
    for (name, is_noisy) in [("2 decimals", false), ("noisy", true)] {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), options(), vec![(*schema).clone()]).unwrap();
        let random = &mut Pcg64::seed_from_u64(4);
        for _ in 0..100 {
            log.append(&[&readings(&schema, 5_000, is_noisy, random)]).unwrap();
        }
        group.sample_size(10);
        group.throughput(Throughput::Elements(500_000));
        for (columns, project) in [("all columns", false), ("temperature only", true)] {
            group.bench_function(format!("read, {name}, {columns}"), |b| {
                b.iter_custom(|iterations| {
                    cpu_time(iterations, || {
                        let mut reader = log.reader(STREAM, &[Offset(0); 4]).unwrap();
                        if project {
                            reader.project(&["temperature"]).unwrap();
                        }
                        let mut rows = 0;
                        while let Some(batch) = reader.read(20_000).unwrap() {
                            rows += batch.num_rows();
                        }
                        assert_eq!(rows, 500_000);
                    })
                });
            });
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(directory.path(), LogOptions { partitions: 1, ..options() }, vec![(*schema).clone()])
        .unwrap();
    let rows = readings(&schema, 1_000, false, &mut Pcg64::seed_from_u64(5));
    group.throughput(Throughput::Elements(1_000));
    group.sample_size(50);
    group.bench_function("submit 1,000 rows, known keys", |b| {
        b.iter_custom(|iterations| {
            cpu_time(iterations, || {
                while log.submit(&[(Partition(0), &rows)], Box::new(|_| {})).is_err() {
                    log.wait(log.stats().commit, Duration::from_millis(100));
                }
            })
        });
    });
    group.finish();
}

/// Readings that come again, among a million remembered: hash, look-up, and what is left of the submission.
fn dedupe(c: &mut Criterion) {
    let schema = Arc::new(schema());
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(directory.path(), LogOptions { partitions: 1, ..options() }, vec![(*schema).clone()])
        .unwrap();
    let columns = vec!["device".to_owned(), "ts".to_owned()];
    let options = DedupeOptions { columns, window_us: i64::MAX, max_keys: 8_000_000 };
    log.dedupe(&schema, options, 0).unwrap();
    let random = &mut Pcg64::seed_from_u64(6);
    let batches: Vec<Rows> = (0..1_000).map(|_| readings(&schema, 1_000, false, random)).collect();
    batches.iter().for_each(|rows| drop(log.append(&[rows]).unwrap()));
    let mut group = c.benchmark_group("dedupe");
    group.throughput(Throughput::Elements(1_000));
    let mut at = 0;
    group.bench_function("submit 1,000 duplicates, 1M remembered", |b| {
        b.iter_custom(|iterations| {
            cpu_time(iterations, || {
                at = (at + 1) % batches.len();
                while log.submit(&[(Partition(0), &batches[at])], Box::new(|_| {})).is_err() {
                    log.wait(log.stats().commit, Duration::from_millis(1));
                }
            })
        });
    });
    group.finish();
}

/// Opening a data directory that knows a million devices.
fn open_with_a_million_keys(c: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let schema = Arc::new(schema());
    let open = || Log::open(directory.path(), options(), vec![(*schema).clone()]).unwrap();
    let log = open();
    let mut rows = Rows::new(schema.clone());
    for from in (0..DEVICES).step_by(50_000) {
        rows.clear();
        for n in from..from + 50_000 {
            rows.push([Cell::Null, Cell::Bytes(device(n).as_bytes())]).unwrap();
        }
        log.append(&[&rows]).unwrap();
    }
    drop(log);
    drop(open());
    let mut group = c.benchmark_group("open");
    group.sample_size(10);
    group.bench_function("1M keys", |b| {
        b.iter_custom(|iterations| {
            cpu_time(iterations, || assert!(open().recovery().keys >= u64::from(DEVICES)))
        })
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = frame, key_lookup, whole_log, dedupe, open_with_a_million_keys
}
criterion_main!(benches);
