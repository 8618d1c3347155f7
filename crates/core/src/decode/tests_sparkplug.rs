//! Sparkplug B payloads, by themselves and with what births have declared. The differential test against Google's library
//! with the specification's schema is in tests/gateway/test_sparkplug.py.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::rows::Cell;
use crate::schema::{Column, ColumnType, Schema, SchemaId, StreamId};

const ARRIVAL_US: i64 = 1_700_000_000_000_000;

fn plan() -> StreamPlan {
    let fields = [
        ("temperature", ColumnType::Double, "Inputs/Temperature"),
        ("count", ColumnType::Bigint, "count"),
        ("state", ColumnType::String, "state"),
    ];
    let field =
        |(name, ty, path): (&str, ColumnType, &str)| FieldSpec { name: name.into(), ty, path: path.into() };
    let spec = StreamSpec {
        name: "s".into(),
        topic: "spBv1.0/g/+/e".into(),
        format: Format::SparkplugB,
        time: None,
        fields: fields.into_iter().map(field).collect(),
        captures: vec![],
        infer: false,
        protobuf: None,
    };
    let times = ["ts", "received_at"].map(|name| (name.to_owned(), ColumnType::Timestamp));
    let own = spec.fields.iter().map(|field| (field.name.clone(), field.ty));
    let columns = times.into_iter().chain(own).map(|(name, ty)| Column { name, ty }).collect();
    let schema = Schema::new(SchemaId(16), StreamId(16), "s", columns, None).unwrap();
    StreamPlan::new(&spec, Arc::new(schema)).unwrap()
}

/// A metric with these fields.
fn metric(fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    [&[0x12, body.len() as u8], &body[..]].concat()
}

fn name(name: &str) -> Vec<u8> {
    [&[0x0a, name.len() as u8], name.as_bytes()].concat()
}

fn double(value: f64) -> Vec<u8> {
    [&[0x69], &value.to_le_bytes()[..]].concat()
}

/// timestamp 1000 ms, seq 3; three metrics with aliases 1 to 3.
fn birth() -> Vec<u8> {
    [
        vec![0x08, 0xe8, 0x07],
        metric(&[&name("Inputs/Temperature"), &[0x10, 1, 0x20, 10], &double(21.5)]),
        metric(&[&name("count"), &[0x10, 2, 0x20, 1, 0x50, 0xff, 1]]),
        metric(&[&name("state"), &[0x10, 3, 0x20, 12, 0x38, 1]]),
        vec![0x18, 3],
    ]
    .concat()
}

fn rows(kind: SparkplugKind, known: &SparkplugMetrics, payload: &[u8]) -> String {
    let mut decoded = Decoded::new();
    let context = SparkplugContext { kind, device: "", known };
    if let Err(error) = plan().decode_sparkplug(payload, &[], ARRIVAL_US, context, &mut decoded) {
        return error.reason().into();
    }
    let line = |row| {
        let cells = decoded.cells(row).map(|cell| match cell {
            Cell::Timestamp(ARRIVAL_US) => "now".into(),
            Cell::Timestamp(value) => value.to_string(),
            Cell::Null => "-".into(),
            Cell::Double(value) => value.to_string(),
            Cell::Bigint(value) => value.to_string(),
            other => format!("{other:?}"),
        });
        let cells: Vec<String> = cells.collect();
        format!("{} {}", cells[0], cells[2..].join(" "))
    };
    let mut lines: Vec<String> = (0..decoded.rows()).map(line).collect();
    lines.extend(decoded.incomplete().map(|error| error.to_string()));
    lines.join("\n")
}

#[test]
fn names_types_and_times_come_from_the_birth() {
    let mut known = SparkplugMetrics::default();
    assert_eq!(rows(SparkplugKind::NodeBirth, &known, &birth()), "1000000 21.5 -1 -");
    assert!(known.declare("", &birth(), usize::MAX).unwrap().1);
    let data = [
        metric(&[&[0x10, 1, 0x18, 0xe9, 0x07], &double(22.5)]),
        metric(&[&[0x10, 2, 0x50, 0xfe, 0xff, 0xff, 0xff, 0x0f]]),
        metric(&[&[0x10, 9, 0x50, 1]]),
        metric(&[&name("count"), &[0x50, 1]]),
        vec![0x08, 0xe8, 0x07, 0x18, 4],
    ]
    .concat();
    assert_eq!(
        rows(SparkplugKind::NodeData, &known, &data),
        "1001000 22.5 - -\n1000000 - -2 -\n2 metrics have no name or type, since no birth has declared them; the first is at byte 27"
    );
    // Without the context nothing of such a payload is taken.
    let mut decoded = Decoded::new();
    let error = plan().decode(&data, &[], ARRIVAL_US, &mut decoded).unwrap_err();
    assert_eq!((error.reason(), decoded.rows()), ("unknown-metric", 0));
}

#[test]
fn deaths_are_rows_and_commands_are_none() {
    let known = SparkplugMetrics::default();
    let bd_seq = metric(&[&name("bdSeq"), &[0x20, 8, 0x58, 4]]);
    assert_eq!(rows(SparkplugKind::NodeDeath, &known, &bd_seq), "now - - -");
    assert_eq!(rows(SparkplugKind::DeviceDeath, &known, &[0x08, 0xe8, 0x07, 0x18, 4]), "1000000 - - -");
    assert_eq!(rows(SparkplugKind::NodeData, &known, &[0x18, 4]), "");
    assert_eq!(rows(SparkplugKind::Command, &known, &sparkplug_rebirth(1_700_000_000_000)), "");
    let head = SparkplugHead::read(&[bd_seq, vec![0x18, 7]].concat(), true).unwrap();
    assert_eq!(head, SparkplugHead { seq: Some(7), bd_seq: Some(4) });
}

#[test]
fn refusals() {
    let known = SparkplugMetrics::default();
    let data = |payload: &[u8]| rows(SparkplugKind::NodeData, &known, payload);
    assert_eq!(data(b""), "empty-payload");
    assert_eq!(data(&[0x12, 5, 0]), "invalid-protobuf");
    assert_eq!(data(&metric(&[&[0x0a, 1, 0xff]])), "invalid-protobuf");
    assert_eq!(data(&metric(&[&name("state"), &double(1.0)])), "type-conflict");
    // Bytes, data sets and templates fit no column.
    assert_eq!(data(&metric(&[&name("state"), &[0x82, 1, 1, 0]])), "type-conflict");
    assert_eq!(
        data(&metric(&[&name("count"), &[0x20, 8, 0x58, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]])),
        "number-out-of-range"
    );
    let late = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(data(&late), "time-out-of-range");
}

#[test]
fn topics() {
    let kind = |topic| SparkplugTopic::parse(topic).map(|topic| topic.kind);
    assert_eq!(kind("spBv1.0/g/NDATA/e"), Some(SparkplugKind::NodeData));
    assert_eq!(kind("spBv1.0/g/DBIRTH/e/d"), Some(SparkplugKind::DeviceBirth));
    for topic in [
        "spBv1.0/STATE/host",
        "spBv1.0/g/NDATA/e/d",
        "spBv1.0/g/DDATA/e",
        "spBv1.0/g/DDATA/e/d/x",
        "x/g/NDATA/e",
    ] {
        assert_eq!(kind(topic), None, "{topic}");
    }
}

proptest! {
    /// Nothing panics, and what is remembered is bounded by the payload and by the room, not by its lengths.
    #[test]
    fn nearly_valid(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        noise in proptest::collection::vec(any::<u8>(), 0..60),
        room in 0..400usize,
    ) {
        let mut payload = birth();
        for (place, byte) in edits {
            let at = place.index(payload.len());
            payload[at] = byte;
        }
        for payload in [&payload, &noise] {
            let mut known = SparkplugMetrics::default();
            if let Ok((taken, _)) = known.declare("", payload, room) {
                prop_assert!(taken <= room && taken <= payload.len() * 65);
            }
            let _ = SparkplugHead::read(payload, true);
            let _ = rows(SparkplugKind::NodeData, &known, payload);
        }
    }
}
