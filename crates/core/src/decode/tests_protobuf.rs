//! Protocol Buffers by descriptor: what each kind of field becomes, refusals by name, then what holds for any bytes.
//! The differential test against Google's library is in tests/gateway/test_protobuf.py.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::rows::Cell;
use crate::schema::{Column, ColumnType, Schema, SchemaId, SchemaRef, StreamId};

const ARRIVAL_US: i64 = 1_700_000_000_000_000;

/// A field of length `bytes`.
fn part(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 16_384);
    let (low, high) = ((bytes.len() & 0x7f) as u8 | 0x80, (bytes.len() >> 7) as u8);
    [&[number << 3 | 2, low, high], bytes].concat()
}

fn number(number: u8, value: u8) -> Vec<u8> {
    assert!(value < 0x80);
    vec![number << 3, value]
}

/// FieldDescriptorProto; label 3 repeats.
fn field(name: &str, at: u8, label: u8, ty: u8, of: &str, oneof: Option<u8>) -> Vec<u8> {
    let mut field = [part(1, name.as_bytes()), number(3, at), number(4, label), number(5, ty)].concat();
    if !of.is_empty() {
        field.extend(part(6, of.as_bytes()));
    }
    if let Some(oneof) = oneof {
        field.extend(number(9, oneof));
    }
    part(2, &field)
}

/// proto3: t double = 1, n int64 = 2, s string = 3, b bool = 4, e enum = 5, in Inner = 6 (with x sint32 = 1),
/// labels map<string, int32> = 7, list repeated double = 8, oneof of p double = 9 and q string = 10, ts int64 = 11,
/// raw bytes = 12.
fn descriptor() -> Arc<[u8]> {
    let inner = [part(1, b"Inner"), field("x", 1, 1, 17, "", None)].concat();
    let entry = [
        part(1, b"LabelsEntry"),
        field("key", 1, 1, 9, "", None),
        field("value", 2, 1, 5, "", None),
        part(7, &number(7, 1)),
    ]
    .concat();
    let message = [
        part(1, b"M"),
        field("t", 1, 1, 1, "", None),
        field("n", 2, 1, 3, "", None),
        field("s", 3, 1, 9, "", None),
        field("b", 4, 1, 8, "", None),
        field("e", 5, 1, 14, ".p.E", None),
        field("in", 6, 1, 11, ".p.Inner", None),
        field("labels", 7, 3, 11, ".p.M.LabelsEntry", None),
        field("list", 8, 3, 1, "", None),
        field("p", 9, 1, 1, "", Some(0)),
        field("q", 10, 1, 9, "", Some(0)),
        field("ts", 11, 1, 3, "", None),
        field("raw", 12, 1, 12, "", None),
        part(3, &entry),
    ]
    .concat();
    let value = |name: &str, at| part(2, &[part(1, name.as_bytes()), number(2, at)].concat());
    let labels = [part(1, b"E"), value("OFF", 0), value("ON", 1)].concat();
    let file =
        [part(2, b"p"), part(4, &inner), part(4, &message), part(5, &labels), part(12, b"proto3")].concat();
    part(1, &file).into()
}

fn spec(fields: &[(&str, ColumnType)]) -> StreamSpec {
    let field = |(path, ty): &(&str, ColumnType)| FieldSpec {
        name: path.replace('.', "_"),
        ty: *ty,
        path: (*path).into(),
    };
    StreamSpec {
        name: "m".into(),
        topic: "m".into(),
        format: Format::Protobuf,
        time: Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }),
        fields: fields.iter().map(field).collect(),
        captures: vec![],
        infer: false,
        protobuf: Some(ProtobufSpec { descriptor: descriptor(), message: "p.M".into() }),
    }
}

fn schema(spec: &StreamSpec) -> SchemaRef {
    let times = ["ts", "received_at"].map(|name| (name.to_owned(), ColumnType::Timestamp));
    let fields = spec.fields.iter().map(|field| (field.name.clone(), field.ty));
    let columns = times.into_iter().chain(fields).map(|(name, ty)| Column { name, ty }).collect();
    Arc::new(Schema::new(SchemaId(16), StreamId(16), &spec.name, columns, None).unwrap())
}

fn plan() -> StreamPlan {
    use ColumnType::*;
    let fields = [
        ("t", Double),
        ("n", Bigint),
        ("s", String),
        ("b", Boolean),
        ("e", String),
        ("in.x", Bigint),
        ("labels.a", Bigint),
        ("p", Double),
    ];
    let spec = spec(&fields);
    StreamPlan::new(&spec, schema(&spec)).unwrap()
}

/// ts, then the fields, separated by spaces; or the reason of the refusal.
fn row(payload: &[u8]) -> String {
    let mut decoded = Decoded::new();
    if let Err(error) = plan().decode(payload, &[], ARRIVAL_US, &mut decoded) {
        assert_eq!(decoded.rows(), 0);
        return error.reason().into();
    }
    assert_eq!(decoded.rows(), 1);
    let show = |cell: Cell<'_>| match cell {
        Cell::Null => "-".into(),
        Cell::Bytes(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        Cell::Double(value) => value.to_string(),
        Cell::Bigint(value) => value.to_string(),
        Cell::Boolean(value) => value.to_string(),
        Cell::Timestamp(ARRIVAL_US) => "now".into(),
        Cell::Timestamp(value) => value.to_string(),
    };
    let cells: Vec<String> = decoded.cells(0).map(show).collect();
    format!("{} {}", cells[0], cells[2..].join(" "))
}

fn double(number: u8, value: f64) -> Vec<u8> {
    [&[number << 3 | 1], &value.to_le_bytes()[..]].concat()
}

#[test]
fn absent_is_zero_without_presence_and_null_with_it() {
    assert_eq!(row(b""), r#"now 0 0 "" false "OFF" - - -"#);
    assert_eq!(row(&part(6, b"")), r#"now 0 0 "" false "OFF" 0 - -"#);
    assert_eq!(row(&part(7, &part(1, b"a"))), r#"now 0 0 "" false "OFF" - 0 -"#);
}

#[test]
fn values_of_every_kind() {
    let all = [
        double(1, 21.5),
        vec![0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        part(3, "é".as_bytes()),
        number(4, 1),
        number(5, 1),
        part(6, &number(1, 3)),
        part(7, &[part(1, b"a"), number(2, 7)].concat()),
        part(8, &[0; 16]),
        double(9, 1.5),
        vec![0x58, 0x80, 0xa8, 0xf1, 0xb9, 0x06],
        part(12, b"\xff"),
    ];
    assert_eq!(row(&all.concat()), r#"1732006912000000 21.5 -1 "é" true "ON" -2 7 1.5"#);
    // Unknown fields of every wire type, a group in a group, and an enum without a name.
    let unknown =
        [number(13, 1), double(14, 0.0), part(15, b"x"), vec![0x6b, 0x73, 0x74, 0x6c], number(5, 9)];
    assert_eq!(row(&unknown.concat()), r#"now 0 0 "" false "9" - - -"#);
    // The last of several counts; a nested message goes on; another wire type is an unknown field.
    let twice = [double(1, 1.0), double(1, 2.0), part(6, &number(1, 2)), part(6, b""), part(4, b"x")];
    assert_eq!(row(&twice.concat()), r#"now 2 0 "" false "OFF" 1 - -"#);
    // Another member of a oneof unsets this one, though it is not declared.
    assert_eq!(row(&[double(9, 1.5), part(10, b"x")].concat()), r#"now 0 0 "" false "OFF" - - -"#);
}

#[test]
fn refusals() {
    for (payload, reason) in [
        (&b"\x09\0"[..], "invalid-protobuf"),
        (b"\x10\x80", "invalid-protobuf"),
        (b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "invalid-protobuf"),
        (b"\x1a\xff\xff\xff\xff\x0fab", "invalid-protobuf"),
        (b"\x1a\x01\xff", "invalid-protobuf"),
        (b"\x32\x02\x08\x80", "invalid-protobuf"),
        (b"\0\0", "invalid-protobuf"),
        (b"\x0e", "invalid-protobuf"),
        (b"\x6c", "invalid-protobuf"),
        (b"\x6b\x74", "invalid-protobuf"),
        (b"\x6b", "invalid-protobuf"),
        (b"\x58\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "time-out-of-range"),
    ] {
        assert_eq!(row(payload), reason, "{payload:x?}");
    }
    assert_eq!(row(&[0x6b; 100_000]), "too-deep");
}

#[test]
fn declarations_that_do_not_fit() {
    use ColumnType::*;
    for (fields, wanted) in [
        (&[("missing", Double)][..], "no field \"missing\"; it has t, n,"),
        (&[("in.y", Double)], "message \"p.Inner\" has no field \"y\""),
        (&[("list", Double)], "is repeated"),
        (&[("labels", Double)], "is a map"),
        (&[("raw", String)], "is bytes"),
        (&[("in", String)], "is p.Inner"),
        (&[("t.x", Double)], "has no fields of its own"),
        (&[("t", Bigint)], "is double, but its column wants a whole number"),
        (&[("b", Double)], "is bool, but"),
    ] {
        let spec = spec(fields);
        let error = StreamPlan::new(&spec, schema(&spec)).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    let mut spec = spec(&[("t", Double)]);
    spec.protobuf = Some(ProtobufSpec { descriptor: descriptor(), message: "p.N".into() });
    let error = StreamPlan::new(&spec, schema(&spec)).unwrap_err();
    assert!(error.contains("no message \"p.N\"; it has p.Inner, p.M"), "{error}");
    spec.protobuf = Some(ProtobufSpec { descriptor: b"syntax".to_vec().into(), message: "p.M".into() });
    assert!(StreamPlan::new(&spec, schema(&spec)).unwrap_err().contains("is no FileDescriptorSet"));
}

#[test]
fn columns_of_a_message() {
    let spec = ProtobufSpec { descriptor: descriptor(), message: "p.M".into() };
    let time = TimeSpec { path: "ts".into(), unit: TimeUnit::Auto };
    let fields = protobuf_fields(&spec, &["s".into()], Some(&time)).unwrap();
    let found: Vec<(&str, &str)> =
        fields.iter().map(|field| (field.name.as_str(), field.ty.name())).collect();
    assert_eq!(
        found,
        [
            ("t", "double"),
            ("n", "bigint"),
            ("s_2", "string"),
            ("b", "boolean"),
            ("e", "string"),
            ("in_x", "bigint"),
            ("p", "double"),
            ("q", "string")
        ]
    );
}

proptest! {
    /// No bytes panic, as a payload or as a descriptor.
    #[test]
    fn any_bytes(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = row(&payload);
        let mut spec = spec(&[("t", ColumnType::Double)]);
        spec.protobuf = Some(ProtobufSpec { descriptor: payload.into(), message: "p.M".into() });
        prop_assert!(StreamPlan::new(&spec, schema(&spec)).is_err());
    }

    /// The same for what is nearly right; and what is held is bounded by the payload, not by its lengths.
    #[test]
    fn nearly_valid(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut payload = [double(1, 21.5), part(3, b"text"), part(6, &number(1, 3)), number(5, 1)].concat();
        let mut changed = descriptor().to_vec();
        for (place, byte) in &edits {
            let at = place.index(payload.len());
            payload[at] = *byte;
            let at = place.index(changed.len());
            changed[at] = *byte;
        }
        let mut decoded = Decoded::new();
        let _ = plan().decode(&payload, &[], ARRIVAL_US, &mut decoded);
        prop_assert!(decoded.arena.len() <= payload.len() + 16);
        let mut spec = spec(&[("t", ColumnType::Double)]);
        spec.protobuf = Some(ProtobufSpec { descriptor: changed.into(), message: "p.M".into() });
        let _ = StreamPlan::new(&spec, schema(&spec));
    }
}
