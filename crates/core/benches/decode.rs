//! Cost of decoding one payload: the smallest real one, a nested 1 kB object, an array and a wide reading.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::decode::{Decoded, FieldSpec, Format, StreamPlan, StreamSpec, TimeSpec, TimeUnit};
use headwater_core::schema::{Column, ColumnType, Schema, SchemaId, StreamId};

fn plan(fields: &[(&str, ColumnType, &str)]) -> StreamPlan {
    let spec = StreamSpec {
        name: "telemetry".into(),
        topic: "dt/{site}/{device}/telemetry".into(),
        format: Format::Json,
        time: Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }),
        fields: fields
            .iter()
            .map(|(name, ty, path)| FieldSpec { name: (*name).into(), ty: *ty, path: (*path).into() })
            .collect(),
        captures: vec!["site".into(), "device".into()],
        infer: false,
    };
    let captures = ["site", "device"].map(|name| (name.to_owned(), ColumnType::String));
    let times = ["ts", "received_at"].map(|name| (name.to_owned(), ColumnType::Timestamp));
    let declared = spec.fields.iter().map(|field| (field.name.clone(), field.ty));
    let columns = captures.into_iter().chain(times).chain(declared).map(|(name, ty)| Column { name, ty });
    let schema = Schema::new(SchemaId(16), StreamId(16), "telemetry", columns.collect(), Some("device"));
    StreamPlan::new(&spec, Arc::new(schema.expect("schema"))).expect("plan")
}

const TELEMETRY: &str =
    r#"{"device_id":"d000001","ts":1732000000123,"temperature":21.5,"humidity":40.2,"battery":3.712}"#;

/// About 1 kB: three levels, four declared fields among many others.
fn nested() -> String {
    let sensors: Vec<String> = (0..12)
        .map(|at| {
            format!(r#""s{at}":{{"value":{}.{at},"unit":"mm/s","quality":"good","tags":[1,2,3]}}"#, at * 37)
        })
        .collect();
    format!(
        r#"{{"meta":{{"fw":"2.14.3-rc1","model":"HX-200","uptime_s":123456}},"ts":"2024-11-19T07:06:40.123Z","radio":{{"rssi":-71,"snr":9.25,"gateway":"gw-0017"}},"sensors":{{{}}}}}"#,
        sensors.join(",")
    )
}

fn decode(c: &mut Criterion) {
    let double = ColumnType::Double;
    let three = [
        ("temperature", double, "temperature"),
        ("humidity", double, "humidity"),
        ("battery", double, "battery"),
    ];
    let wide_names: Vec<String> = (0..20).map(|at| format!("field_{at}")).collect();
    let wide: Vec<_> = wide_names.iter().map(|name| (name.as_str(), double, name.as_str())).collect();
    let wide_members: Vec<String> =
        (0..20).map(|at| format!("\"field_{at}\":{}.{:02}", at * 7, at * 3)).collect();
    let nested_fields = [
        ("rssi", ColumnType::Bigint, "radio.rssi"),
        ("gateway", ColumnType::String, "radio.gateway"),
        ("fw", ColumnType::String, "meta.fw"),
        ("s7", double, "sensors.s7.value"),
    ];
    let cases = [
        ("telemetry", plan(&three), TELEMETRY.to_owned()),
        ("nested_1kB", plan(&nested_fields), nested()),
        ("array_of_100", plan(&three), format!("[{}]", vec![TELEMETRY; 100].join(","))),
        ("wide_20_fields", plan(&wide), format!("{{\"ts\":1732000000123,{}}}", wide_members.join(","))),
    ];
    let mut group = c.benchmark_group("decode");
    for (name, plan, payload) in &cases {
        let mut decoded = Decoded::new();
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(*name, |b| {
            b.iter(|| {
                let payload = black_box(payload.as_bytes());
                plan.decode(payload, &[b"plant7", b"d000001"], 1_732_000_000_000_000, &mut decoded)
                    .expect("valid");
                black_box(decoded.rows())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
