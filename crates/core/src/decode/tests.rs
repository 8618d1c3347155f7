//! Every outcome of a payload by name, then what must hold for all of them.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::rows::{Cell, Rows};
use crate::schema::{Column, ColumnType, Schema, SchemaId, SchemaRef, StreamId};

const ARRIVAL_US: i64 = 1_700_000_000_000_000;

fn spec(fields: &[(&str, ColumnType, &str)]) -> StreamSpec {
    let fields = fields.iter().map(|(name, ty, path)| FieldSpec {
        name: (*name).into(),
        ty: *ty,
        path: (*path).into(),
    });
    StreamSpec {
        name: "telemetry".into(),
        topic: "dt/{site}/{device}/telemetry".into(),
        format: Format::Json,
        time: Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }),
        fields: fields.collect(),
        captures: vec!["site".into(), "device".into()],
        infer: false,
        protobuf: None,
    }
}

fn schema(spec: &StreamSpec) -> SchemaRef {
    let captures = spec.captures.iter().map(|name| (name.clone(), ColumnType::String));
    let times = ["ts", "received_at"].map(|name| (name.to_owned(), ColumnType::Timestamp));
    let fields = spec.fields.iter().map(|field| (field.name.clone(), field.ty));
    let columns = captures.chain(times).chain(fields).map(|(name, ty)| Column { name, ty }).collect();
    let key = spec.captures.last().map(String::as_str);
    Arc::new(Schema::new(SchemaId(16), StreamId(16), &spec.name, columns, key).unwrap())
}

fn plan(fields: &[(&str, ColumnType, &str)]) -> StreamPlan {
    let spec = spec(fields);
    StreamPlan::new(&spec, schema(&spec)).unwrap()
}

/// Columns d, i, b, s, t of each type and `radio.rssi`.
fn all_types() -> StreamPlan {
    plan(&[
        ("d", ColumnType::Double, "d"),
        ("i", ColumnType::Bigint, "i"),
        ("b", ColumnType::Boolean, "b"),
        ("s", ColumnType::String, "s"),
        ("t", ColumnType::Timestamp, "t"),
        ("rssi", ColumnType::Bigint, "radio.rssi"),
    ])
}

fn decode(plan: &StreamPlan, payload: &[u8]) -> Result<Decoded, DecodeError> {
    let mut decoded = Decoded::new();
    let result = plan.decode(payload, &[b"plant", b"d1"], ARRIVAL_US, &mut decoded);
    // Every payload of these tests goes the short way too: what it takes has the same outcome.
    if let Some(row) = plain_row(plan, payload) {
        assert_eq!(decoded.rows(), 1, "{}: {result:?}", String::from_utf8_lossy(payload));
        let expected: Vec<Cell> = decoded.cells(0).collect();
        let found: Vec<Cell> = row.cells(0).collect();
        assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{}", String::from_utf8_lossy(payload));
    }
    result.map(|()| decoded)
}

/// The row that `decode_plain` makes of a payload, if it takes it.
fn plain_row(plan: &StreamPlan, payload: &[u8]) -> Option<Rows> {
    let mut plain = Plain::default();
    if !plan.decode_plain(payload, ARRIVAL_US, &mut plain) {
        return None;
    }
    let mut rows = Rows::new(plan.schema.clone());
    let captures = [&b"plant"[..], b"d1"];
    rows.push_words(&plain.row(&captures, payload));
    Some(rows)
}

#[test]
fn ordinary_readings_go_the_short_way_and_no_others() {
    for payload in [
        r#"{"device_id":"d1","ts":1732000000123,"d":21.5,"i":-3,"b":true,"s":"on","t":1732000000,"radio":{"x":1,"rssi":-70}}"#,
        r#"{"d":1 }"#,
        r#"{"d":null,"s":"é","t":"2024-11-19T07:06:40Z","x":["\n",{}]}"#,
        r#"{"d":null,"d":1}"#,
        "{}",
    ] {
        decode(&all_types(), payload.as_bytes()).unwrap();
        assert!(plain_row(&all_types(), payload.as_bytes()).is_some(), "{payload}");
    }
    for payload in [
        r#"{"d":1,"d":2}"#,
        r#"{"d":1,"d":null}"#,
        r#"{"radio":{"rssi":1},"radio":{}}"#,
        r#"{"radio":null}"#,
        r#"{"s":"\n"}"#,
        r#"{"\u0064":1}"#,
        r#"[{"d":1}]"#,
        r#"{"d":"1"}"#,
        r#"{"d":1}}"#,
        r#"{"i":1.5}"#,
    ] {
        assert!(plain_row(&all_types(), payload.as_bytes()).is_none(), "{payload}");
        let _ = decode(&all_types(), payload.as_bytes());
    }
}

/// Cells of a payload of one reading, without captures and times.
fn fields(payload: &str) -> Vec<String> {
    let decoded = decode(&all_types(), payload.as_bytes()).unwrap();
    assert_eq!(decoded.rows(), 1);
    decoded.cells(0).skip(4).map(|cell| format!("{cell:?}")).collect()
}

fn ts(payload: &str) -> Cell<'static> {
    match decode(&all_types(), payload.as_bytes()).unwrap().cells(0).nth(2).unwrap() {
        Cell::Timestamp(micros) => Cell::Timestamp(micros),
        other => panic!("{other:?}"),
    }
}

/// The reason and the text of a refused payload.
fn refused(payload: impl AsRef<[u8]>) -> (&'static str, String) {
    let mut decoded = Decoded::new();
    let error = all_types()
        .decode(payload.as_ref(), &[b"plant", b"d1"], ARRIVAL_US, &mut decoded)
        .expect_err(&String::from_utf8_lossy(payload.as_ref()));
    assert_eq!(decoded.rows(), 0);
    assert!(DecodeError::REASONS.contains(&error.reason()));
    (error.reason(), error.to_string())
}

#[test]
fn one_reading_in_schema_order() {
    let payload = br#"{"device_id":"d1","ts":1732000000123,"d":21.5,"i":-3,"b":true,"s":"on","t":1732000000,"radio":{"x":1,"rssi":-70}}"#;
    let decoded = decode(&all_types(), payload).unwrap();
    let cells: Vec<Cell> = decoded.cells(0).collect();
    assert_eq!(
        cells,
        [
            Cell::Bytes(b"plant"),
            Cell::Bytes(b"d1"),
            Cell::Timestamp(1_732_000_000_123_000),
            Cell::Timestamp(ARRIVAL_US),
            Cell::Double(21.5),
            Cell::Bigint(-3),
            Cell::Boolean(true),
            Cell::Bytes(b"on"),
            Cell::Timestamp(1_732_000_000_000_000),
            Cell::Bigint(-70),
        ]
    );
    assert_eq!(decoded.cells(1).count(), 0);
}

#[test]
fn an_array_is_many_readings() {
    let decoded = decode(&all_types(), b" [ {\"d\":1} , {\"d\":2,\"ts\":5},{} ] ").unwrap();
    let column = |at: usize| (0..3).map(|row| decoded.cells(row).nth(at).unwrap()).collect::<Vec<_>>();
    assert_eq!(column(4), [Cell::Double(1.0), Cell::Double(2.0), Cell::Null]);
    assert_eq!(
        column(2),
        [Cell::Timestamp(ARRIVAL_US), Cell::Timestamp(5_000_000), Cell::Timestamp(ARRIVAL_US)]
    );
    assert_eq!(column(1), [Cell::Bytes(b"d1"); 3]);
}

#[test]
fn an_empty_array_is_zero_readings() {
    assert_eq!(decode(&all_types(), b"[ ]").unwrap().rows(), 0);
}

#[test]
fn an_empty_object_is_a_reading_of_nulls() {
    assert_eq!(fields("{}"), ["Null"; 6]);
}

#[test]
fn one_bad_reading_refuses_the_whole_payload() {
    assert_eq!(refused(r#"[{"d":1},{"d":"x"},{"d":2}]"#).0, "type-conflict");
}

#[test]
fn empty_payload() {
    assert_eq!(refused("").0, "empty-payload");
    assert_eq!(refused("  ").0, "invalid-json");
}

#[test]
fn invalid_utf8() {
    assert_eq!(refused(b"{\"s\":\"a\xff\"}"), ("invalid-utf8", "byte 7 is not valid UTF-8".into()));
    // Also where no field would see it, and when it is half a surrogate pair or overlong.
    assert_eq!(refused(b"{\"extra\":\"\xed\xa0\x80\"}").0, "invalid-utf8");
    assert_eq!(refused(b"{\"\xc0\xaf\":1}").0, "invalid-utf8");
}

#[test]
fn invalid_json() {
    for payload in [
        "{",
        "}",
        "{\"d\"",
        "{\"d\":",
        "{\"d\":1",
        "{\"d\":1,",
        "{\"d\":1,}",
        "{d:1}",
        "{'d':1}",
        "{\"d\" 1}",
        "{\"d\":1 \"i\":2}",
        "[{}",
        "[{},]",
        "[,]",
        "{\"d\":01}",
        "{\"d\":1.}",
        "{\"d\":.5}",
        "{\"d\":+1}",
        "{\"d\":1e}",
        "{\"d\":-}",
        "{\"b\":tru}",
        "{\"b\":True}",
        "{\"d\":nul}",
        "{\"x\":[1 2]}",
        "{\"x\":[1}}",
        "{\"x\":{1:2}}",
        "{\"x\":\"\\x\"}",
        "{\"x\":\"\\u12g4\"}",
        "{\"x\":\"a\tb\"}",
        "{\"x\":\"a\0b\"}",
        "{\"x\":\"abc",
        "{\"x\":\"abc\\",
        "\u{feff}{}",
        "{\"x\":/*c*/1}",
        "{,}",
        "{\"x\"::1}",
        "nul",
    ] {
        assert_eq!(refused(payload).0, "invalid-json", "{payload}");
    }
}

#[test]
fn trailing_garbage_is_invalid_json() {
    for payload in ["{} x", "{}{}", "{}\0", "[]]", "{},"] {
        assert_eq!(refused(payload).0, "invalid-json", "{payload}");
    }
    assert_eq!(
        refused("{}}"),
        ("invalid-json", "not JSON at byte 2: expected the end of the payload".into())
    );
}

#[test]
fn nan_and_infinity_are_invalid_json() {
    for literal in ["NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"] {
        for field in ["d", "extra"] {
            assert_eq!(refused(format!("{{\"{field}\":{literal}}}")).0, "invalid-json", "{field} {literal}");
        }
    }
}

#[test]
fn a_number_too_large_is_refused_only_where_declared() {
    let (reason, text) = refused(r#"{"d":1e400}"#);
    assert_eq!(
        (reason, text.as_str()),
        ("number-out-of-range", "field \"d\": the number at byte 5 does not fit a double")
    );
    assert_eq!(refused(r#"{"d":-1e400}"#).0, "number-out-of-range");
    assert_eq!(refused(r#"{"i":9223372036854775808}"#).0, "number-out-of-range");
    assert_eq!(fields(r#"{"extra":1e400,"d":1}"#)[0], "Double(1.0)");
    assert_eq!(fields(r#"{"d":1e-400}"#)[0], "Double(0.0)");
    assert_eq!(fields(r#"{"d":-0}"#)[0], "Double(-0.0)");
}

#[test]
fn whole_numbers_however_written_are_bigints() {
    for (text, value) in
        [("3.0", "3"), ("3e2", "300"), ("-0.0", "0"), ("9223372036854775807", "9223372036854775807")]
    {
        assert_eq!(fields(&format!("{{\"i\":{text}}}"))[1], format!("Bigint({value})"));
    }
    let (reason, text) = refused(r#"{"i":3.5}"#);
    assert_eq!(reason, "type-conflict");
    assert_eq!(text, "field \"i\" wants a bigint, but byte 5 starts a number with a fraction");
}

#[test]
fn a_value_of_another_type_is_a_type_conflict() {
    for payload in [
        r#"{"d":"21.5"}"#,
        r#"{"d":true}"#,
        r#"{"d":{}}"#,
        r#"{"d":[1]}"#,
        r#"{"i":"1"}"#,
        r#"{"b":1}"#,
        r#"{"b":"true"}"#,
        r#"{"s":1}"#,
        r#"{"s":false}"#,
        r#"{"t":true}"#,
        r#"{"ts":{}}"#,
        r#"{"radio":5}"#,
        r#"{"radio":[{"rssi":1}]}"#,
        r#"{"radio":{"rssi":"x"}}"#,
    ] {
        assert_eq!(refused(payload).0, "type-conflict", "{payload}");
    }
    assert_eq!(refused(r#"{"s":"a","d":"x"}"#).1, "field \"d\" wants a number, but byte 13 starts a string");
}

#[test]
fn a_reading_that_is_no_object() {
    for payload in ["42", "\"x\"", "null", "true", "[1]", "[{},[]]", "[null]"] {
        assert_eq!(refused(payload).0, "not-an-object", "{payload}");
    }
    assert_eq!(refused("[{},7]").1, "a reading must be an object, but byte 4 starts a number");
}

#[test]
fn missing_and_null_are_null() {
    assert_eq!(fields(r#"{"d":null,"radio":null}"#), ["Null"; 6]);
    assert_eq!(fields(r#"{"radio":{"rssi":null}}"#), ["Null"; 6]);
}

#[test]
fn extra_fields_are_ignored() {
    let payload = r#"{"a":[1,{"d":9}],"radio":{"deep":{"rssi":1}},"D":3,"dd":4,"":5,"d":1}"#;
    assert_eq!(fields(payload), ["Double(1.0)", "Null", "Null", "Null", "Null", "Null"]);
}

#[test]
fn of_duplicate_keys_the_last_counts() {
    assert_eq!(fields(r#"{"d":1,"d":2}"#)[0], "Double(2.0)");
    assert_eq!(fields(r#"{"d":1,"d":null}"#)[0], "Null");
    assert_eq!(fields(r#"{"radio":{"rssi":1},"radio":{"x":2}}"#)[5], "Null");
    assert_eq!(fields(r#"{"d":"bad","radio":7,"d":2,"radio":null}"#)[0], "Double(2.0)");
    assert_eq!(refused(r#"{"d":2,"d":"bad"}"#).0, "type-conflict");
    assert_eq!(ts(r#"{"ts":5,"ts":null}"#), Cell::Timestamp(ARRIVAL_US));
}

#[test]
fn a_key_with_escapes_matches() {
    assert_eq!(fields(r#"{"\u0064":1,"r\u0061dio":{"rss\u0069":2}}"#)[0], "Double(1.0)");
    assert_eq!(fields(r#"{"r\u0061dio":{"rss\u0069":2}}"#)[5], "Bigint(2)");
    assert_eq!(fields(r#"{"\ud800":1,"d\\":2,"d\"":3}"#), ["Null"; 6]);
}

#[test]
fn strings_lose_their_escapes() {
    let payload = br#"{"s":"a\"\\\/\b\f\n\r\t\u0000\u00e9\ud83d\ude00\u20ac z"}"#;
    let decoded = decode(&all_types(), payload).unwrap();
    let expected = "a\"\\/\u{8}\u{c}\n\r\t\0é😀€ z";
    assert_eq!(decoded.cells(0).nth(7), Some(Cell::Bytes(expected.as_bytes())));
}

#[test]
fn half_a_surrogate_pair_is_invalid_json_only_where_declared() {
    for escape in [r"\ud800", r"\udc00", r"\ud800\u0041", r"\ud800x", r"\ud800\n", r"\ud800\ud800"] {
        assert_eq!(refused(format!("{{\"s\":\"{escape}\"}}")).0, "invalid-json", "{escape}");
        assert_eq!(fields(&format!("{{\"x\":\"{escape}\"}}")), ["Null"; 6]);
    }
}

#[test]
fn too_deep() {
    let nested = |levels: usize| format!("{{\"x\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert_eq!(fields(&nested(63)), ["Null"; 6]);
    assert_eq!(refused(nested(64)), ("too-deep", "nested deeper than 64 levels at byte 68".into()));
    assert_eq!(refused("[".repeat(1_000_000)).0, "too-deep");
    assert_eq!(refused("{\"x\":".repeat(1_000_000)).0, "too-deep");
    assert_eq!(refused(format!("{{\"d\":{}", "[".repeat(100))).0, "too-deep");
    assert_eq!(refused(format!("[{}]", nested(63))).0, "too-deep");
}

#[test]
fn too_large() {
    let array = |readings: usize| format!("[{}{{}}]", "{},".repeat(readings - 1));
    assert_eq!(decode(&all_types(), array(MAX_READINGS).as_bytes()).unwrap().rows(), MAX_READINGS);
    assert_eq!(refused(array(MAX_READINGS + 1)).0, "too-large");
}

#[test]
fn syntax_comes_before_meaning() {
    assert_eq!(refused(r#"{"d":"x","i":}"#).0, "invalid-json");
    assert_eq!(refused(r#"[1,{"d":"x"}"#).0, "invalid-json");
    assert_eq!(refused(r#"[{"d":"x"},1]"#).0, "type-conflict");
}

#[test]
fn numeric_time_is_told_by_its_magnitude() {
    for (text, micros) in [
        ("1732000000", 1_732_000_000_000_000),
        ("1732000000.1234567", 1_732_000_000_123_456),
        ("1.732e9", 1_732_000_000_000_000),
        ("1732000000123", 1_732_000_000_123_000),
        ("1732000000123.4567", 1_732_000_000_123_456),
        ("1732000000123456", 1_732_000_000_123_456),
        ("1732000000123456.9", 1_732_000_000_123_456),
        ("99999999999.999999", 99_999_999_999_999_999),
        ("100000000000", 100_000_000_000_000),
        ("99999999999999", 99_999_999_999_999_000),
        ("100000000000000", 100_000_000_000_000),
        ("99999999999999999", 99_999_999_999_999_999),
        ("0", 0),
        ("-1.5", -1_500_000),
        ("-62135596800", -62_135_596_800_000_000),
    ] {
        assert_eq!(ts(&format!("{{\"ts\":{text}}}")), Cell::Timestamp(micros), "{text}");
    }
}

#[test]
fn time_out_of_range() {
    for text in ["1e17", "100000000000000000", "-62135596801", "1e400", "-1e17", "\"0000-01-01\""] {
        assert_eq!(refused(format!("{{\"ts\":{text}}}")).0, "time-out-of-range", "{text}");
        assert_eq!(refused(format!("{{\"t\":{text}}}")).0, "time-out-of-range", "{text}");
    }
}

#[test]
fn time_as_text_is_iso_8601() {
    assert_eq!(ts(r#"{"ts":"2024-11-19T07:06:40.123Z"}"#), Cell::Timestamp(1_732_000_000_123_000));
    assert_eq!(ts(r#"{"ts":"2024-11-19\u002007:06:40"}"#), Cell::Timestamp(1_732_000_000_000_000));
    assert_eq!(refused(r#"{"ts":"yesterday"}"#).0, "invalid-time");
    assert_eq!(refused(r#"{"ts":"1732000000"}"#).0, "invalid-time");
    assert_eq!(refused(r#"{"ts":"\ud800"}"#).0, "invalid-time");
}

#[test]
fn a_stated_time_unit_is_kept() {
    let with = |unit, payload: &str| {
        let spec = StreamSpec { time: Some(TimeSpec { path: "ts".into(), unit }), ..spec(&[]) };
        let plan = StreamPlan::new(&spec, schema(&spec)).unwrap();
        decode(&plan, payload.as_bytes()).map(|decoded| format!("{:?}", decoded.cells(0).nth(2).unwrap()))
    };
    assert_eq!(with(TimeUnit::Ms, r#"{"ts":1000}"#).unwrap(), "Timestamp(1000000)");
    assert_eq!(with(TimeUnit::Us, r#"{"ts":1000}"#).unwrap(), "Timestamp(1000)");
    assert_eq!(with(TimeUnit::S, r#"{"ts":200000000000}"#).unwrap(), "Timestamp(200000000000000000)");
    assert_eq!(with(TimeUnit::S, r#"{"ts":"2024-01-01"}"#).unwrap_err().reason(), "type-conflict");
    assert_eq!(with(TimeUnit::Iso, r#"{"ts":1}"#).unwrap_err().reason(), "type-conflict");
    assert_eq!(with(TimeUnit::Iso, r#"{"ts":"1970-01-02"}"#).unwrap(), "Timestamp(86400000000)");
}

#[test]
fn a_missing_time_is_that_of_arrival() {
    for payload in ["{}", r#"{"ts":null}"#, r#"{"TS":1}"#] {
        assert_eq!(ts(payload), Cell::Timestamp(ARRIVAL_US), "{payload}");
    }
}

#[test]
fn one_payload_field_can_feed_several_columns() {
    let plan = plan(&[("raw", ColumnType::Bigint, "ts"), ("copy", ColumnType::Double, "ts")]);
    let decoded = decode(&plan, br#"{"ts": 1732000000}"#).unwrap();
    let cells: Vec<Cell> = decoded.cells(0).skip(2).collect();
    assert_eq!(cells[0], Cell::Timestamp(1_732_000_000_000_000));
    assert_eq!(cells[2..], [Cell::Bigint(1_732_000_000), Cell::Double(1_732_000_000.0)]);
}

#[test]
fn a_declaration_that_cannot_work_is_refused() {
    let error = |spec: &StreamSpec| StreamPlan::new(spec, schema(spec)).unwrap_err();
    let one = |path: &str, ty| error(&spec(&[("f", ty, path)]));
    assert!(one("f", ColumnType::Binary).contains("binary"));
    assert!(one("", ColumnType::Double).contains("empty step"));
    assert!(one("a..b", ColumnType::Double).contains("empty step"));
    assert!(one("a\\b", ColumnType::Double).contains("backslash"));
    assert!(one("ts.x", ColumnType::Double).contains("another path"));
    let both = [("f", ColumnType::Double, "a.b"), ("g", ColumnType::Double, "a")];
    assert!(error(&spec(&both)).contains("field \"g\""));
    assert!(error(&spec(&[("ts", ColumnType::Double, "x")])).contains("two columns"));
    let mut captures = spec(&[]);
    captures.topic = "dt/{a}/x".into();
    assert!(error(&captures).contains("captures [\"a\"]"));
    let wrong = StreamPlan::new(&spec(&[("f", ColumnType::Double, "f")]), schema(&spec(&[]))).unwrap_err();
    assert!(wrong.contains("its schema has"));
    assert_eq!(
        Format::from_name("avro").unwrap_err(),
        "payload format \"avro\" is not built; formats that work: json, cbor, msgpack, senml-json, senml-cbor, influx, csv, protobuf, sparkplug-b"
    );
    assert!(TimeUnit::from_name("ns").unwrap_err().contains("auto, s, ms, us, iso"));
    assert!(topic_captures("a/x{b}").is_err() && topic_captures("{a}/{a}").is_err());
}

#[test]
fn a_dot_of_a_key_is_escaped_in_the_path() {
    let plan = plan(&[("f", ColumnType::Double, "a\\.b.c")]);
    assert_eq!(decode(&plan, br#"{"a.b":{"c":7}}"#).unwrap().cells(0).nth(4), Some(Cell::Double(7.0)));
}

#[test]
fn many_fields_in_any_order_are_found() {
    let names: Vec<String> = (0..300).map(|at| format!("field_{at}")).collect();
    let declared: Vec<_> =
        names.iter().map(|name| (name.as_str(), ColumnType::Double, name.as_str())).collect();
    let plan = plan(&declared);
    let members: Vec<String> = (0..300).rev().map(|at| format!("\"x{at}\":0,\"field_{at}\":{at}")).collect();
    let decoded = decode(&plan, format!("{{{}}}", members.join(",")).as_bytes()).unwrap();
    let expected: Vec<Cell> = (0..300).map(|at| Cell::Double(at as f64)).collect();
    assert_eq!(decoded.cells(0).skip(4).collect::<Vec<_>>(), expected);
}

/// What the payload should become, by way of a tree: serde_json keeps the last of duplicate keys, and its
/// feature `float_roundtrip` makes doubles correctly rounded. It takes numbers beyond a double for errors.
fn oracle(payload: &[u8]) -> Result<Vec<Vec<Cell<'static>>>, &'static str> {
    let tree: Value = serde_json::from_slice(payload).map_err(|_| "syntax")?;
    let readings = match tree {
        Value::Array(readings) => readings,
        one => vec![one],
    };
    let bytes = |text: &str| Cell::Bytes(text.to_owned().into_bytes().leak());
    readings
        .iter()
        .map(|reading| {
            let object = reading.as_object().ok_or("not-an-object")?;
            let get = |key: &str| object.get(key).filter(|value| !value.is_null());
            let radio = match get("radio") {
                None => None,
                Some(value) => {
                    value.as_object().ok_or("type-conflict")?.get("rssi").filter(|value| !value.is_null())
                }
            };
            let bigint = |value: Option<&Value>| match value {
                None => Ok(Cell::Null),
                Some(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
                    (Some(value), _) => Ok(Cell::Bigint(value)),
                    (_, Some(value)) if value.fract() != 0.0 => Err("type-conflict"),
                    (_, Some(value)) if value.abs() < 9e15 => Ok(Cell::Bigint(value as i64)),
                    (_, Some(value)) if value.abs() < 1e19 => Err(INEXACT),
                    _ => Err("number-out-of-range"),
                },
                Some(_) => Err("type-conflict"),
            };
            Ok(vec![
                match get("d") {
                    None => Cell::Null,
                    Some(value) => Cell::Double(value.as_f64().ok_or("type-conflict")?),
                },
                bigint(get("i"))?,
                match get("b") {
                    None => Cell::Null,
                    Some(value) => Cell::Boolean(value.as_bool().ok_or("type-conflict")?),
                },
                match get("s") {
                    None => Cell::Null,
                    Some(value) => bytes(value.as_str().ok_or("type-conflict")?),
                },
                bigint(radio)?,
            ])
        })
        .collect()
}

/// The oracle knows such an integer only as a double.
const INEXACT: &str = "inexact";

/// Ours against the oracle. Allowed differences, all stated in the module's documents:
/// - nesting beyond 64 levels (serde_json: 127) is `too-deep`;
/// - an integer with an exponent that a double does not hold exactly is exact for us;
/// - a number with a fraction stays one for us where a double has no room for the fraction;
/// - half a surrogate pair, and a number beyond a double, matter to us only in declared fields;
/// - of two errors of meaning either may be named.
fn compare(payload: &[u8]) -> Result<(), TestCaseError> {
    let fields = [
        ("d", ColumnType::Double, "d"),
        ("i", ColumnType::Bigint, "i"),
        ("b", ColumnType::Boolean, "b"),
        ("s", ColumnType::String, "s"),
        ("rssi", ColumnType::Bigint, "radio.rssi"),
    ];
    let spec = StreamSpec { time: None, ..spec(&fields) };
    let plan = StreamPlan::new(&spec, schema(&spec)).map_err(TestCaseError::fail)?;
    let shown = String::from_utf8_lossy(payload);
    let exponent =
        payload.windows(2).any(|pair| pair[0].is_ascii_digit() && pair[1].eq_ignore_ascii_case(&b'e'));
    let lenient = exponent || shown.contains("\\ud") || shown.contains("\\uD");
    match (decode(&plan, payload), oracle(payload)) {
        (_, Err(INEXACT)) => {}
        (Ok(decoded), Ok(rows)) => {
            prop_assert_eq!(decoded.rows(), rows.len());
            for (row, expected) in rows.iter().enumerate() {
                let found: Vec<Cell> = decoded.cells(row).skip(4).collect();
                // Debug text tells -0.0 from 0.0; equality of the cells alone does not.
                prop_assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{}", shown);
                prop_assert_eq!(&found, expected, "{}", shown);
            }
        }
        (Ok(_), Err("syntax")) => prop_assert!(lenient, "we accept {shown}"),
        (Ok(_), Err(reason)) => prop_assert!(false, "we accept {shown}, which is {reason}"),
        (Err(DecodeError::TooDeep { .. }), _) => {}
        (Err(error), Ok(_)) if error.reason() == "type-conflict" && rounds_to_whole(&shown) => {}
        (Err(error), Ok(_)) => prop_assert!(false, "we refuse {shown}: {error}"),
        (Err(error), Err("syntax")) => prop_assert!(
            matches!(error.reason(), "invalid-json" | "invalid-utf8" | "empty-payload") || lenient,
            "{shown}: {error}"
        ),
        (Err(error), Err(_)) => prop_assert!(
            matches!(error.reason(), "type-conflict" | "number-out-of-range" | "not-an-object"),
            "{shown}: {error}"
        ),
    }
    Ok(())
}

/// Whether some number has a fraction that the double nearest to it has not.
fn rounds_to_whole(text: &str) -> bool {
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.');
    numbers.filter(|number| number.parse().is_ok_and(|value: f64| value.fract() == 0.0)).any(|number| {
        number.split_once('.').is_some_and(|(_, fraction)| fraction.bytes().any(|digit| digit != b'0'))
    })
}

/// JSON as text, with declared keys, escapes, odd whitespace and numbers of all forms.
fn json() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        "-?(0|[1-9][0-9]{0,3})",
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?",
        "-?[1-9](\\.[0-9]{1,5})?[eE][-+]?[0-9]{1,2}",
        any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value}")),
        any::<i64>().prop_map(|value| value.to_string()),
    ];
    let text = prop_oneof![
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        "\"([a-z é😀]|\\\\[\"\\\\/bfnrt]|\\\\u00[0-7][0-9a-fA-F]|\\\\ud83d\\\\ude0[0-9])*\"",
    ];
    let leaf =
        prop_oneof![number, text, Just("null".to_owned()), Just("true".to_owned()), Just("false".to_owned())];
    let key = prop_oneof![
            prop::sample::select(
                &[
                    "\"d\"",
                    "\"i\"",
                    "\"b\"",
                    "\"s\"",
                    "\"radio\"",
                    "\"rssi\"",
                    "\"\\u0064\"",
                    "\"d \"",
                    "\"\""
                ][..]
            )
            .prop_map(str::to_owned),
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ];
    let space = prop::sample::select(&["", "", "", " ", "\n\t", "\r\n  "][..]);
    let value = leaf.prop_recursive(4, 40, 8, move |inner| {
        let member = (key.clone(), space.clone(), inner.clone(), space.clone())
            .prop_map(|(key, before, value, after)| format!("{before}{key}{after}:{before}{value}{after}"));
        prop_oneof![
            3 => prop::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(","))),
            1 => prop::collection::vec(inner, 0..5).prop_map(|values| format!("[{}]", values.join(" ,"))),
        ]
    });
    // Well-typed members make readings that are accepted.
    let typed = ("-?[0-9]\\.[0-9]{1,17}", any::<i32>(), any::<bool>(), any::<String>(), value.clone(), any::<i16>()).prop_map(
        |(d, i, b, s, x, rssi)| {
            let s = serde_json::to_string(&s).unwrap();
            format!("{{\"radio\":{{\"x\":{x},\"rssi\":{rssi}}},\"x\":{x},\"s\":{s}, \"b\":{b},\"d\":{d},\"i\":{i}.0}}")
        },
    );
    prop_oneof![value, typed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn documents_are_read_as_serde_json_does(text in json()) {
        compare(text.as_bytes())?;
    }

    #[test]
    fn mutated_documents_are_accepted_or_refused_as_serde_json_does(
        text in json(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, prop_oneof![any::<u8>(), prop::sample::select(&b"{}[]\",:\\-0123456789.eEnul tf"[..])]), 1..4),
    ) {
        let mut bytes = text.into_bytes();
        for (index, kind, byte) in edits {
            if bytes.is_empty() { break; }
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => { bytes.remove(at); }
                _ => bytes.truncate(at),
            }
        }
        compare(&bytes)?;
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        compare(&bytes)?;
        let _ = suggest("a/b/c1", &bytes);
    }

    #[test]
    fn arbitrary_tokens_never_panic(bytes in prop::collection::vec(prop::sample::select(&b"{}[]\",:\\-0159.eEnultrufas\"dis"[..]), 0..60)) {
        compare(&bytes)?;
    }

    #[test]
    fn a_suggested_stream_reads_the_message_it_came_from(text in json()) {
        let Ok(suggestion) = suggest("dt/plant/d7/telemetry", text.as_bytes()) else { return Ok(()) };
        let spec = StreamSpec {
            name: suggestion.name,
            topic: suggestion.topic,
            format: suggestion.format,
            time: suggestion.time,
            fields: suggestion.fields,
            captures: suggestion.captures,
            infer: false,
            protobuf: None,
        };
        let plan = StreamPlan::new(&spec, schema(&spec)).map_err(TestCaseError::fail)?;
        let mut decoded = Decoded::new();
        let captures = vec![&b"x"[..]; spec.captures.len()];
        // Readings of an array may disagree on a type; one reading agrees with itself.
        if let Err(error) = plan.decode(text.as_bytes(), &captures, 0, &mut decoded) {
            prop_assert!(text.trim_start().starts_with('['), "{}: {}", text, error);
        }
    }
}
