//! What one PUBLISH costs before its payload is looked at: framing, parsing, matching.
//!
//! `cargo bench -p headwater-core --bench mqtt`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::mqtt::{Frame, Properties, Publish, QoS, Trie, Version, frame};

const MESSAGES: usize = 500;

/// A read's worth of PUBLISH packets as the devices of one connection send them.
fn packets(version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    let payload =
        br#"{"device_id":"d000001","ts":1732000000123,"temperature":21.5,"humidity":40.2,"battery":3.712}"#;
    for id in 0..MESSAGES {
        let topic = format!("dt/demo/d{id:06}/telemetry");
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: &topic,
            packet_id: id as u16 + 1,
            properties: Properties::NONE,
            payload,
        };
        publish.encode(version, &mut out);
    }
    out
}

fn each_publish(bytes: &[u8], version: Version, mut visit: impl FnMut(Publish<'_>)) {
    let mut at = 0;
    while let Ok(Frame::Complete { flags, body, total, .. }) = frame(&bytes[at..], 1 << 20) {
        if let Ok(publish) = Publish::parse(flags, body, version) {
            visit(publish);
        }
        at += total;
    }
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    for version in [Version::V311, Version::V5] {
        let bytes = packets(version);
        group.bench_function(format!("parse/{version:?}"), |b| {
            b.iter(|| {
                each_publish(&bytes, version, |publish| {
                    black_box(publish);
                });
            });
        });
    }

    let mut streams = Trie::new(1);
    for (stream, filter) in ["dt/+/+/telemetry", "dt/+/+/events", "cmd/+/ack"].iter().enumerate() {
        streams.insert(filter, stream).expect("three levels");
    }
    let bytes = packets(Version::V311);
    group.bench_function("parse and match 3 streams", |b| {
        b.iter(|| {
            let mut hits = 0;
            each_publish(&bytes, Version::V311, |publish| {
                hits += streams.matches(publish.topic, |stream| {
                    black_box(stream);
                });
            });
            assert_eq!(hits, MESSAGES);
        });
    });

    for (name, filter) in
        [("exact", "cmd/{}/set"), ("below", "cmd/{}/#"), ("one level", "$aws/things/{}/shadow/+")]
    {
        let mut subscriptions = Trie::new(1);
        for client in 0..1_000_000u32 {
            let filter = filter.replace("{}", &format!("d{client:06}"));
            subscriptions.insert(&filter, client).expect("few levels");
        }
        let topics: Vec<String> = (0..MESSAGES)
            .map(|id| {
                filter.replace("{}", &format!("d{:06}", (id * 7919) % 1_000_000)).replace(['#', '+'], "set")
            })
            .collect();
        group.bench_function(format!("match 1M subscriptions, {name}"), |b| {
            b.iter(|| {
                let hits: usize = topics
                    .iter()
                    .map(|topic| {
                        subscriptions.matches(topic, |client| {
                            black_box(client);
                        })
                    })
                    .sum();
                assert_eq!(hits, MESSAGES);
            });
        });
        group.bench_function(format!("match nothing of 1M subscriptions, {name}"), |b| {
            b.iter(|| {
                each_publish(&bytes, Version::V311, |publish| {
                    assert_eq!(subscriptions.matches(publish.topic, |_| ()), 0);
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
