//! Cost of a windowed row: COUNT(*), SUM, MIN, MAX of two doubles over 5 minutes, 100k-row batches, 0.5 % of rows 10 to 20 minutes late;
//! the same hopping by a minute and in sessions, and one double under each of the other aggregates.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::window::{
    Aggregate, AlignedOptions, AlignedWindows, Function, Input, InputType, SessionOptions, SessionWindows,
    Shape, Values,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

const ROWS: usize = 100_000;
const MINUTE_US: i64 = 60_000_000;

const TUMBLE: Shape = Shape::Tumble { size_us: 5 * MINUTE_US };
const HOP: Shape = Shape::Hop { slide_us: MINUTE_US, size_us: 5 * MINUTE_US };

fn options(shape: Shape) -> AlignedOptions {
    let each = [Function::Sum, Function::Min, Function::Max];
    let columns = (0..2).flat_map(|input| each.map(|function| Aggregate { function, input: Some(input) }));
    let count = Aggregate { function: Function::CountStar, input: None };
    AlignedOptions {
        shape,
        aggregates: std::iter::once(count).chain(columns).collect(),
        inputs: vec![InputType::Double, InputType::Double],
        max_bytes: 2 << 30,
        max_panes: 64,
    }
}

struct Batch {
    keys: Vec<u32>,
    ts: Vec<i64>,
    values: [Vec<f64>; 2],
}

/// Readings of random devices around minute 30, jittered by 5 s.
fn batch(random: &mut Pcg64Mcg, devices: u32, rows: usize) -> Batch {
    let late = |random: &mut Pcg64Mcg| random.random_range(10 * MINUTE_US..20 * MINUTE_US);
    Batch {
        keys: (0..rows).map(|_| random.random_range(0..devices)).collect(),
        ts: (0..rows)
            .map(|_| {
                let behind = if random.random_bool(0.005) { late(random) } else { 0 };
                30 * MINUTE_US + random.random_range(0..5_000_000) - behind
            })
            .collect(),
        values: [0, 1].map(|_| (0..rows).map(|_| random.random_range(-50.0..50.0)).collect()),
    }
}

fn add(windows: &mut AlignedWindows, batch: &Batch) -> u64 {
    let inputs = [0, 1].map(|at| Input { values: Values::Doubles(&batch.values[at]), valid: None });
    let inputs = &inputs[..windows.options().inputs.len()];
    windows.add(&batch.keys, &batch.ts, inputs, None, i64::MIN).expect("fits").rows
}

/// One double under one function.
fn single(function: Function) -> AlignedOptions {
    let aggregates = vec![Aggregate { function, input: Some(0) }];
    AlignedOptions { aggregates, inputs: vec![InputType::Double], ..options(TUMBLE) }
}

/// Adds 20 batches again and again.
fn bench_add(c: &mut Criterion, name: &str, options: AlignedOptions, devices: u32) {
    let mut random = Pcg64Mcg::seed_from_u64(7);
    let batches: Vec<Batch> = (0..20).map(|_| batch(&mut random, devices, ROWS)).collect();
    let mut windows = AlignedWindows::new(options).expect("options");
    batches.iter().for_each(|batch| {
        add(&mut windows, batch);
    });
    let mut next = 0;
    let mut group = c.benchmark_group("window");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function(format!("{name}_{devices}_keys"), |b| {
        b.iter(|| {
            next = (next + 1) % batches.len();
            black_box(add(&mut windows, &batches[next]))
        });
    });
    group.finish();
}

/// All results of the windows at their end, 100k rows at a time.
fn close_all(windows: &mut AlignedWindows, watermark_us: i64) -> usize {
    std::iter::from_fn(|| windows.close(watermark_us, 100_000)).map(|batch| batch.num_rows()).sum()
}

/// A minute of hopping windows over a million keys: a row per key, then the window that ends there comes out.
fn bench_hop(c: &mut Criterion) {
    let devices: Vec<u32> = (0..1_000_000).collect();
    let values = vec![1.0; devices.len()];
    let input = Input { values: Values::Doubles(&values), valid: None };
    let mut windows = AlignedWindows::new(options(HOP)).expect("options");
    let mut minute = 0;
    let mut a_minute = |windows: &mut AlignedWindows| {
        let watermark = minute * MINUTE_US;
        windows
            .add(&devices, &vec![watermark; devices.len()], &[input, input], None, watermark)
            .expect("fits");
        minute += 1;
        let rows = close_all(windows, minute * MINUTE_US);
        windows.forget(minute * MINUTE_US);
        rows
    };
    (0..6).for_each(|_| assert_eq!(a_minute(&mut windows), 1_000_000));
    let mut group = c.benchmark_group("window");
    group.sample_size(10).throughput(Throughput::Elements(1_000_000));
    group.bench_function("hop_add_and_close_1000000_keys", |b| b.iter(|| black_box(a_minute(&mut windows))));
    group.finish();
}

/// Sessions with a gap of 30 s, rows of random devices a batch a second.
fn bench_sessions(c: &mut Criterion, devices: u32) {
    let of = options(TUMBLE);
    let options = SessionOptions {
        gap_us: MINUTE_US / 2,
        aggregates: of.aggregates,
        inputs: of.inputs,
        max_bytes: 2 << 30,
    };
    let mut random = Pcg64Mcg::seed_from_u64(7);
    let batches: Vec<Batch> = (0..20).map(|_| batch(&mut random, devices, ROWS)).collect();
    let mut windows = SessionWindows::new(options).expect("options");
    let mut second = 0;
    let mut a_second = |windows: &mut SessionWindows| {
        let batch = &batches[second as usize % batches.len()];
        let shift = second * 1_000_000;
        let ts: Vec<i64> = batch.ts.iter().map(|ts| ts + shift).collect();
        let watermark = 30 * MINUTE_US + shift - 5_000_000;
        let inputs = [0, 1].map(|at| Input { values: Values::Doubles(&batch.values[at]), valid: None });
        windows.add(&batch.keys, &ts, &inputs, None, &vec![watermark; ts.len()]).expect("fits");
        second += 1;
        std::iter::from_fn(|| windows.close(watermark, 100_000)).map(|batch| batch.num_rows()).sum::<usize>()
    };
    (0..60).for_each(|_| {
        a_second(&mut windows);
    });
    let mut group = c.benchmark_group("window");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function(format!("session_add_and_close_{devices}_keys"), |b| {
        b.iter(|| black_box(a_second(&mut windows)))
    });
    group.finish();
}

fn window(c: &mut Criterion) {
    for devices in [10_000, 1_000_000] {
        bench_add(c, "add", options(TUMBLE), devices);
        bench_add(c, "hop_add", options(HOP), devices);
    }
    for (name, function) in [
        ("avg", Function::Avg),
        ("stddev", Function::StddevSamp),
        ("last_value", Function::Last),
        ("count_distinct", Function::CountDistinct),
        ("percentile", Function::Percentile { millionths: 950_000 }),
    ] {
        bench_add(c, name, single(function), 10_000);
    }
    bench_hop(c);
    bench_sessions(c, 10_000);
    bench_sessions(c, 1_000_000);
    let mut group = c.benchmark_group("window");
    let mut full = AlignedWindows::new(options(TUMBLE)).expect("options");
    let devices: Vec<u32> = (0..1_000_000).collect();
    let inputs = vec![1.0; devices.len()];
    let input = Input { values: Values::Doubles(&inputs), valid: None };
    full.add(&devices, &vec![0; devices.len()], &[input, input], None, i64::MIN).expect("fits");
    group.sample_size(10).throughput(Throughput::Elements(1_000_000));
    group.bench_function("close_1000000_keys_by_100k", |b| {
        b.iter_batched_ref(
            || full.clone(),
            |windows| assert_eq!(close_all(windows, i64::MAX), 1_000_000),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("encode_1000000_keys", |b| b.iter(|| black_box(full.freeze(true).to_bytes().len())));
    group.finish();
}

criterion_group!(benches, window);
criterion_main!(benches);
