//! Cost of a windowed row: COUNT(*), SUM, MIN, MAX of two doubles over 5 minutes, 100k-row batches, 0.5 % of rows 10 to 20 minutes late.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::window::{Aggregate, Function, Input, InputType, Tumble, TumbleOptions, Values};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

const ROWS: usize = 100_000;
const MINUTE_US: i64 = 60_000_000;

fn options() -> TumbleOptions {
    let each = [Function::Sum, Function::Min, Function::Max];
    let columns = (0..2).flat_map(|input| each.map(|function| Aggregate { function, input: Some(input) }));
    let count = Aggregate { function: Function::CountStar, input: None };
    TumbleOptions {
        size_us: 5 * MINUTE_US,
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

fn add(tumble: &mut Tumble, batch: &Batch) -> u64 {
    let inputs = [0, 1].map(|at| Input { values: Values::Doubles(&batch.values[at]), valid: None });
    tumble.add(&batch.keys, &batch.ts, &inputs, None, i64::MIN).expect("fits").rows
}

fn window(c: &mut Criterion) {
    let mut random = Pcg64Mcg::seed_from_u64(7);
    let mut group = c.benchmark_group("window");
    for devices in [10_000, 1_000_000] {
        let batches: Vec<Batch> = (0..20).map(|_| batch(&mut random, devices, ROWS)).collect();
        let mut tumble = Tumble::new(options()).expect("options");
        batches.iter().for_each(|batch| {
            add(&mut tumble, batch);
        });
        let mut next = 0;
        group.throughput(Throughput::Elements(ROWS as u64));
        group.bench_function(format!("add_{devices}_keys"), |b| {
            b.iter(|| {
                next = (next + 1) % batches.len();
                black_box(add(&mut tumble, &batches[next]))
            });
        });
    }
    let mut full = Tumble::new(options()).expect("options");
    let devices: Vec<u32> = (0..1_000_000).collect();
    let inputs = vec![1.0; devices.len()];
    let input = Input { values: Values::Doubles(&inputs), valid: None };
    full.add(&devices, &vec![0; devices.len()], &[input, input], None, i64::MIN).expect("fits");
    group.sample_size(10).throughput(Throughput::Elements(1_000_000));
    group.bench_function("close_1000000_keys_by_100k", |b| {
        b.iter_batched_ref(
            || full.clone(),
            |tumble| {
                let mut rows = 0;
                while let Some(batch) = tumble.close(i64::MAX, 100_000) {
                    rows += batch.num_rows();
                }
                assert_eq!(rows, 1_000_000);
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("encode_1000000_keys", |b| b.iter(|| black_box(full.encode().len())));
    group.finish();
}

criterion_group!(benches, window);
criterion_main!(benches);
