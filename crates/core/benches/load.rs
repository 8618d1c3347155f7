//! What the generator itself costs: a reading's payload, and the whole PUBLISH.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::load::{Fault, FaultKind, FleetOptions, Payloads};
use headwater_core::mqtt::{Properties, Publish, QoS, Version};

fn payloads(c: &mut Criterion) {
    let clean =
        FleetOptions { devices: 10_000, start_time_us: Some(1_767_225_600_000_000), ..Default::default() };
    let shifted = |device| Fault {
        kind: FaultKind::Shift,
        device,
        field: Some("temperature".to_owned()),
        start_s: 0.0,
        duration_s: 1e6,
        magnitude: None,
    };
    let faulty = FleetOptions { faults: (0..10_000).map(shifted).collect(), ..clean.clone() };
    let mut group = c.benchmark_group("load");
    group.throughput(Throughput::Elements(1));
    for (name, options) in [("payload", &clean), ("payload of a faulty device", &faulty)] {
        let payloads = Payloads::new(options).expect("playable options");
        let (mut out, mut at) = (Vec::with_capacity(256), 0u64);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                at += 1;
                out.clear();
                payloads.write((at % 10_000) as u32, at / 10_000, &mut out);
                black_box(&out);
            });
        });
    }
    let payloads = Payloads::new(&clean).expect("playable options");
    let (mut topic, mut payload, mut out, mut at) = (String::new(), Vec::new(), Vec::new(), 0u64);
    group.bench_function("publish", |bench| {
        bench.iter(|| {
            at += 1;
            let device = (at % 10_000) as u32;
            topic.clear();
            payload.clear();
            out.clear();
            payloads.write_topic(device, &mut topic);
            payloads.write(device, at / 10_000, &mut payload);
            let publish = Publish {
                dup: false,
                qos: QoS::AtLeastOnce,
                retain: false,
                topic: &topic,
                packet_id: 1,
                properties: Properties::NONE,
                payload: &payload,
            };
            publish.encode(Version::V5, &mut out);
            black_box(&out);
        });
    });
    group.finish();
}

criterion_group!(benches, payloads);
criterion_main!(benches);
