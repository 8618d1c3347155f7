//! Cost of decoding one payload, as the gateway does it: each format with the same reading, and JSON of several shapes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::decode::{
    Decoded, EXTRA, FieldSpec, Format, Plain, ProtobufSpec, SparkplugContext, SparkplugKind,
    SparkplugMetrics, StreamPlan, StreamSpec, TimeSpec, TimeUnit,
};
use headwater_core::schema::{Column, ColumnType, Schema, SchemaId, StreamId};

const DOUBLE: ColumnType = ColumnType::Double;
const THREE: [(&str, ColumnType, &str); 3] = [
    ("temperature", DOUBLE, "temperature"),
    ("humidity", DOUBLE, "humidity"),
    ("battery", DOUBLE, "battery"),
];

fn plan(format: Format, fields: &[(&str, ColumnType, &str)], infer: bool) -> StreamPlan {
    let spec = StreamSpec {
        name: "telemetry".into(),
        topic: "dt/{site}/{device}/telemetry".into(),
        format,
        time: Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }),
        fields: fields
            .iter()
            .map(|(name, ty, path)| FieldSpec { name: (*name).into(), ty: *ty, path: (*path).into() })
            .collect(),
        captures: vec!["site".into(), "device".into()],
        infer,
        protobuf: (format == Format::Protobuf).then(|| protobuf().0),
    };
    let captures = ["site", "device"].map(|name| (name.to_owned(), ColumnType::String));
    let times = ["ts", "received_at"].map(|name| (name.to_owned(), ColumnType::Timestamp));
    let extra = infer.then(|| (EXTRA.to_owned(), ColumnType::String));
    let declared = spec.fields.iter().map(|field| (field.name.clone(), field.ty));
    let columns = captures.into_iter().chain(times).chain(extra).chain(declared);
    let columns = columns.map(|(name, ty)| Column { name, ty }).collect();
    let schema = Schema::new(SchemaId(16), StreamId(16), "telemetry", columns, Some("device"));
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

/// The reading of `TELEMETRY` as CBOR or MessagePack: heads of map, short text, 64-bit integer and double.
fn binary(map: u8, text: u8, integer: u8, double: u8) -> Vec<u8> {
    let mut out = vec![map | 5];
    let put = |out: &mut Vec<u8>, value: &str| {
        out.push(text | value.len() as u8);
        out.extend_from_slice(value.as_bytes());
    };
    put(&mut out, "device_id");
    put(&mut out, "d000001");
    put(&mut out, "ts");
    out.push(integer);
    out.extend_from_slice(&1_732_000_000_123u64.to_be_bytes());
    for (name, value) in [("temperature", 21.5f64), ("humidity", 40.2), ("battery", 3.712)] {
        put(&mut out, name);
        out.push(double);
        out.extend_from_slice(&value.to_be_bytes());
    }
    out
}

/// SenML labels of bn, bt, n and v in CBOR, and three records.
fn senml_cbor() -> Vec<u8> {
    let mut out = vec![0x83];
    for (at, (name, value)) in
        [("temperature", 21.5f64), ("humidity", 40.2), ("battery", 3.712)].into_iter().enumerate()
    {
        out.push(if at == 0 { 0xa4 } else { 0xa2 });
        if at == 0 {
            out.extend_from_slice(&[0x21, 0x68]);
            out.extend_from_slice(b"d000001:");
            out.extend_from_slice(&[0x22, 0xfb]);
            out.extend_from_slice(&1_732_000_000.123f64.to_be_bytes());
        }
        out.extend_from_slice(&[0x00, 0x60 | name.len() as u8]);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&[0x02, 0xfb]);
        out.extend_from_slice(&value.to_be_bytes());
    }
    out
}

/// A message with the same reading, and the descriptor of its type.
fn protobuf() -> (ProtobufSpec, Vec<u8>) {
    let part = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let names = ["device_id", "ts", "temperature", "humidity", "battery"];
    let mut message = part(1, b"Telemetry");
    for (at, (name, ty)) in names.into_iter().zip([9, 3, 1, 1, 1]).enumerate() {
        let field = [part(1, name.as_bytes()), vec![0x18, at as u8 + 1, 0x20, 1, 0x28, ty]].concat();
        message.extend(part(2, &field));
    }
    let message = [[0x22, 0x80 | (message.len() & 0x7f) as u8, (message.len() >> 7) as u8].to_vec(), message];
    let file = [message.concat(), part(12, b"proto3")].concat();
    let head = [0x0a, 0x80 | (file.len() & 0x7f) as u8, (file.len() >> 7) as u8].to_vec();
    let mut payload = part(1, b"d000001");
    payload.extend([0x10, 0xfb, 0xf8, 0xc4, 0xe1, 0xb3, 0x32]);
    for (number, value) in [(3u8, 21.5f64), (4, 40.2), (5, 3.712)] {
        payload.push(number << 3 | 1);
        payload.extend_from_slice(&value.to_le_bytes());
    }
    let descriptor = [head, file].concat().into();
    (ProtobufSpec { descriptor, message: "Telemetry".into() }, payload)
}

/// Names by alias, and data by alias with the same reading.
fn sparkplug() -> (SparkplugMetrics, Vec<u8>) {
    let metric = |body: Vec<u8>| [vec![0x12, body.len() as u8], body].concat();
    let mut known = SparkplugMetrics::default();
    let mut data = vec![0x08, 0xfb, 0xf8, 0xc4, 0xe1, 0xb3, 0x32];
    for (alias, (name, value)) in
        [("temperature", 21.5f64), ("humidity", 40.2), ("battery", 3.712)].into_iter().enumerate()
    {
        let value = [&[0x69], &value.to_le_bytes()[..]].concat();
        let named = [&[0x0a, name.len() as u8], name.as_bytes(), &[0x10, alias as u8, 0x20, 10]].concat();
        known.declare("", &metric([named, value.clone()].concat()), usize::MAX).expect("a birth");
        data.extend(metric([vec![0x10, alias as u8], value].concat()));
    }
    data.extend([0x18, 7]);
    (known, data)
}

fn cases() -> Vec<(&'static str, StreamPlan, Vec<u8>)> {
    let wide_names: Vec<String> = (0..20).map(|at| format!("field_{at}")).collect();
    let wide: Vec<_> = wide_names.iter().map(|name| (name.as_str(), DOUBLE, name.as_str())).collect();
    let wide_members: Vec<String> =
        (0..20).map(|at| format!("\"field_{at}\":{}.{:02}", at * 7, at * 3)).collect();
    let nested_fields = [
        ("rssi", ColumnType::Bigint, "radio.rssi"),
        ("gateway", ColumnType::String, "radio.gateway"),
        ("fw", ColumnType::String, "meta.fw"),
        ("s7", DOUBLE, "sensors.s7.value"),
    ];
    let text = ColumnType::String;
    let strings = [("state", text, "state"), ("note", text, "note"), ("path", text, "path")];
    let said = r#"{"ts":1732000000123,"state":"running","note":"door \"B\" opened \u2014 see log","path":"C:\\plant\\7"}"#;
    let senml = r#"[{"bn":"d000001:","bt":1732000000.123,"n":"temperature","v":21.5},{"n":"humidity","v":40.2},{"n":"battery","v":3.712}]"#;
    let line = "telemetry,device_id=d000001 temperature=21.5,humidity=40.2,battery=3.712 1732000000123";
    let record = "ts,temperature,humidity,battery\n1732000000123,21.5,40.2,3.712\n";
    let json = |fields: &[_], payload: String| (plan(Format::Json, fields, false), payload.into_bytes());
    let mut cases = Vec::new();
    let mut add = |name, (plan, payload)| cases.push((name, plan, payload));
    add("json", json(&THREE, TELEMETRY.to_owned()));
    add("json_nested_1kB", json(&nested_fields, nested()));
    add("json_array_of_100", json(&THREE, format!("[{}]", vec![TELEMETRY; 100].join(","))));
    add("json_20_fields", json(&wide, format!("{{\"ts\":1732000000123,{}}}", wide_members.join(","))));
    add("json_strings", json(&strings, said.to_owned()));
    let with_device = [&[("device_id", text, "device_id")][..], &THREE[..]].concat();
    add("json_inferred", (plan(Format::Json, &with_device, true), TELEMETRY.into()));
    let three = |format| plan(format, &THREE, false);
    add("cbor", (three(Format::Cbor), binary(0xa0, 0x60, 0x1b, 0xfb)));
    add("msgpack", (three(Format::Msgpack), binary(0x80, 0xa0, 0xcf, 0xcb)));
    add("senml_json", (three(Format::SenmlJson), senml.into()));
    add("senml_cbor", (three(Format::SenmlCbor), senml_cbor()));
    add("influx", (three(Format::Influx), line.into()));
    add("csv", (three(Format::Csv), record.into()));
    add("protobuf", (three(Format::Protobuf), protobuf().1));
    add("sparkplug_b", (three(Format::SparkplugB), sparkplug().1));
    cases
}

fn decode(c: &mut Criterion) {
    let captures = [&b"plant7"[..], b"d000001"];
    let (known, _) = sparkplug();
    let context = SparkplugContext { kind: SparkplugKind::DeviceData, device: "d", known: &known };
    let mut group = c.benchmark_group("decode");
    for (name, plan, payload) in &cases() {
        let (mut decoded, mut plain) = (Decoded::new(), Plain::default());
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(*name, |b| {
            b.iter(|| {
                let payload = black_box(payload.as_slice());
                if plan.decode_plain(payload, 1_732_000_000_000_000, &mut plain) {
                    black_box(plain.row(&captures, payload));
                    return 1;
                }
                let now_us = 1_732_000_000_000_000;
                let result = match plan.is_sparkplug() {
                    true => plan.decode_sparkplug(payload, &captures, now_us, context, &mut decoded),
                    false => plan.decode(payload, &captures, now_us, &mut decoded),
                };
                result.expect("valid");
                assert!(decoded.undeclared().is_empty());
                black_box(decoded.rows())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
