//! Formats beside JSON and inferred fields: vectors of the standards, every refusal by name, then what holds for any bytes.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::rows::{Cell, Rows};
use crate::schema::{Column, ColumnType, Schema, SchemaId, SchemaRef, StreamId};

const ARRIVAL_US: i64 = 1_700_000_000_000_000;

fn spec(format: Format, fields: &[(&str, ColumnType, &str)], infer: bool) -> StreamSpec {
    let field = |(name, ty, path): &(&str, ColumnType, &str)| FieldSpec {
        name: (*name).into(),
        ty: *ty,
        path: (*path).into(),
    };
    StreamSpec {
        name: "telemetry".into(),
        topic: "dt/{device}".into(),
        format,
        time: Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }),
        fields: fields.iter().map(field).collect(),
        captures: vec!["device".into()],
        infer,
        protobuf: None,
    }
}

fn schema(spec: &StreamSpec) -> SchemaRef {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let mut columns = vec![column("device", ColumnType::String)];
    columns.extend(["ts", "received_at"].map(|name| column(name, ColumnType::Timestamp)));
    columns.extend(spec.infer.then(|| column(EXTRA, ColumnType::String)));
    columns.extend(spec.fields.iter().map(|field| column(&field.name, field.ty)));
    Arc::new(Schema::new(SchemaId(16), StreamId(16), &spec.name, columns, Some("device")).unwrap())
}

/// Columns t, h (double), n (bigint), b, s and `radio.rssi`.
fn plan(format: Format) -> StreamPlan {
    use ColumnType::*;
    let fields = [
        ("t", Double, "t"),
        ("h", Double, "h"),
        ("n", Bigint, "n"),
        ("b", Boolean, "b"),
        ("s", String, "s"),
        ("rssi", Bigint, "radio.rssi"),
    ];
    let spec = spec(format, &fields, false);
    StreamPlan::new(&spec, schema(&spec)).unwrap()
}

fn show(cell: Cell<'_>) -> String {
    match cell {
        Cell::Null => "-".into(),
        Cell::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        Cell::Double(value) => value.to_string(),
        Cell::Bigint(value) => value.to_string(),
        Cell::Boolean(value) => value.to_string(),
        Cell::Timestamp(value) if value == ARRIVAL_US => "now".into(),
        Cell::Timestamp(value) => value.to_string(),
    }
}

/// A line for each row: ts, then the fields, separated by spaces; or the reason of the refusal.
fn rows(plan: &StreamPlan, payload: &[u8]) -> String {
    let mut decoded = Decoded::new();
    match plan.decode(payload, &[b"d1"], ARRIVAL_US, &mut decoded) {
        Err(error) => {
            assert_eq!(decoded.rows(), 0);
            error.reason().into()
        }
        Ok(()) => {
            let line = |row| {
                let cells: Vec<String> = decoded.cells(row).map(show).collect();
                format!("{} {}", cells[1], cells[3..].join(" "))
            };
            (0..decoded.rows()).map(line).collect::<Vec<_>>().join("\n")
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn cbor_values_of_every_kind() {
    let plan = plan(Format::Cbor);
    // {"t": 21.5 (half), "n": -500, "b": true, "s": "é", "radio": {"rssi": -71}}
    let all = hex("a5 6174 f94d60 616e 3901f3 6162 f5 6173 62c3a9 65726164696f a1 6472737369 3846");
    assert_eq!(rows(&plan, &all), "now 21.5 - -500 true é -71");
    // Indefinite map, chunked text, float32, an unknown key with an array, null.
    let lengths = hex("bf 6173 7f 6161 6162 ff 6174 fa47c35000 6178 83 01 02 03 6162 f6 ff");
    assert_eq!(rows(&plan, &lengths), "now 100000 - - - ab -");
    // ts by tag 1 (integer, double) and tag 0; tag 55799 around all.
    assert_eq!(rows(&plan, &hex("d9d9f7 a1 627473 c1 1a514b67b0")), "1363896240000000 - - - - - -");
    assert_eq!(rows(&plan, &hex("a1 627473 c1 fb41d452d9ec200000")), "1363896240500000 - - - - - -");
    let text = hex("a1 627473 c0 74 323031332d30332d32315432303a30343a30305a");
    assert_eq!(rows(&plan, &text), "1363896240000000 - - - - - -");
    // Two readings; integers for a double; the last of two equal keys counts.
    assert_eq!(rows(&plan, &hex("82 a1 6174 01 a2 6174 02 6174 03")), "now 1 - - - - -\nnow 3 - - - - -");
    assert_eq!(rows(&plan, &hex("80")), "");
}

#[test]
fn cbor_refusals() {
    let plan = plan(Format::Cbor);
    for (payload, reason) in [
        ("a1 6174", "invalid-cbor"),
        ("a1 6174 01 00", "invalid-cbor"),
        ("a1 6174 1c", "invalid-cbor"),
        ("a1 6173 61ff", "invalid-cbor"),
        ("a1 6174 ff", "invalid-cbor"),
        ("bf 6174", "invalid-cbor"),
        ("a1 6174 f810", "invalid-cbor"),
        ("a1 627473 c0 01", "invalid-cbor"),
        ("a1 80 01", "invalid-cbor"),
        ("9b ffffffffffffffff", "invalid-cbor"),
        ("7b ffffffffffffffff 61", "invalid-cbor"),
        ("01", "not-an-object"),
        ("82 a0 01", "not-an-object"),
        ("a1 6174 6131", "type-conflict"),
        ("a1 616e f93e00", "type-conflict"),
        ("a1 616e 1bffffffffffffffff", "number-out-of-range"),
        ("a1 6174 43 010203", "type-conflict"),
        ("a1 65726164696f 01", "type-conflict"),
        ("a1 627473 c1 1bffffffffffffffff", "time-out-of-range"),
        ("", "empty-payload"),
    ] {
        assert_eq!(rows(&plan, &hex(payload)), reason, "{payload}");
    }
    // Nesting, of containers and of tags, is bounded before it can exhaust the stack.
    assert_eq!(rows(&plan, &[0x81; 100_000]), "too-deep");
    let deep: Vec<u8> = [0xa1, 0x61, b'x'].into_iter().chain([0x81; 100_000]).collect();
    assert_eq!(rows(&plan, &deep), "too-deep");
    for tag in [0xc0, 0xc1, 0xc6] {
        let tags: Vec<u8> = [0xa1, 0x61, b't'].into_iter().chain(vec![tag; 100_000]).collect();
        assert_eq!(rows(&plan, &tags), "invalid-cbor");
    }
}

#[test]
fn msgpack_values_of_every_kind() {
    let plan = plan(Format::Msgpack);
    let all = hex("85 a174 ca41ac0000 a16e d1fe0c a162 c3 a173 d902c3a9 a5726164696f 81 a472737369 d0b9");
    assert_eq!(rows(&plan, &all), "now 21.5 - -500 true é -71");
    assert_eq!(rows(&plan, &hex("de0002 a174 cb3ff8000000000000 a168 c0")), "now 1.5 - - - - -");
    // Timestamps of 32, 64 and 96 bits.
    assert_eq!(rows(&plan, &hex("81 a27473 d6ff 514b67b0")), "1363896240000000 - - - - - -");
    assert_eq!(rows(&plan, &hex("81 a27473 d7ff 77359400514b67b0")), "1363896240500000 - - - - - -");
    assert_eq!(
        rows(&plan, &hex("81 a27473 c70cff 1dcd6500 00000000514b67b0")),
        "1363896240500000 - - - - - -"
    );
    assert_eq!(rows(&plan, &hex("dc0002 81 a174 01 81 a16e e0")), "now 1 - - - - -\nnow - - -32 - - -");
    for (payload, reason) in [
        ("81 a174", "invalid-msgpack"),
        ("c1", "invalid-msgpack"),
        ("81 a173 a1ff", "invalid-msgpack"),
        ("80 00", "invalid-msgpack"),
        ("dd ffffffff 80", "invalid-msgpack"),
        ("81 a27473 d4ff00", "invalid-msgpack"),
        ("81 90 01", "invalid-msgpack"),
        ("81 a174 c403010203", "type-conflict"),
        ("81 a174 a131", "type-conflict"),
        ("01", "not-an-object"),
    ] {
        assert_eq!(rows(&plan, &hex(payload)), reason, "{payload}");
    }
}

#[test]
fn senml_of_the_rfc() {
    use ColumnType::Double;
    let fields = [
        ("voltage", Double, "voltage"),
        ("current", Double, "current"),
        ("label", ColumnType::String, "label"),
    ];
    let spec = spec(Format::SenmlJson, &fields, false);
    let plan = StreamPlan::new(&spec, schema(&spec)).unwrap();
    // RFC 8428 section 5.1.2, shortened: relative times become rows of their own.
    let pack = br#"[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,"bu":"A","bver":5,
        "n":"voltage","u":"V","v":120.1},{"n":"current","t":-5,"v":1.2},{"n":"current","t":-4,"v":1.3},
        {"n":"current","v":1.7},{"n":"label","vs":"x","t":-5}]"#;
    assert_eq!(
        rows(&plan, pack),
        "1276020076001000 120.1 1.7 -\n1276020071001000 - 1.2 x\n1276020072001000 - 1.3 -"
    );
    // A base value, a sum, a time relative to now, and a name that only the base gives.
    assert_eq!(
        rows(&plan, br#"[{"bn":"vol","bv":100,"n":"tage","v":0.5,"t":-10}]"#),
        "1699999990000000 100.5 - -"
    );
    assert_eq!(rows(&plan, br#"[{"bn":"voltage","s":7,"bs":3}]"#), "now 10 - -");
    for (payload, reason) in [
        (&b"{}"[..], "invalid-senml"),
        (br#"[{"n":"voltage","v":"1"}]"#, "invalid-senml"),
        (br#"[{"v":1}]"#, "invalid-senml"),
        (br#"[{"bver":11,"n":"voltage","v":1}]"#, "invalid-senml"),
        (br#"[{"n":"voltage","v":1,"must_":1}]"#, "invalid-senml"),
        (br#"[{"n":"voltage","v":1,"t":1e300}]"#, "invalid-senml"),
        (br#"[{"n":"voltage","vs":"a"}]"#, "type-conflict"),
        (b"[1]", "not-an-object"),
        (b"[", "invalid-json"),
    ] {
        assert_eq!(rows(&plan, payload), reason, "{}", String::from_utf8_lossy(payload));
    }
    let cbor = StreamSpec { format: Format::SenmlCbor, ..spec };
    let plan = StreamPlan::new(&cbor, schema(&cbor)).unwrap();
    // [{-2: "d:", -3: 1276020076.0, 0: "voltage", 2: 120.5}, {0: "current", 6: -5, 2: 1}]
    let pack = hex(
        "82 a4 21 62643a 22 fb41d3 03a4 5b00 0000 00 67766f6c74616765 02 f95788 a3 00 6763757272656e74 06 24 02 01",
    );
    let found = rows(&plan, &pack);
    assert!(found.ends_with("- 1 -") && found.contains("120.5 - -"), "{found}");
}

#[test]
fn influx_lines() {
    let plan = plan(Format::Influx);
    let text = b"# comment\nweather,s=Paris,x=1 t=21.5,n=3i,b=t 1465839830100400200\n\nweather t=+2.,h=.5,n=4u,radio.rssi=-71i 1465839830\r\n";
    assert_eq!(rows(&plan, text), "1465839830100400 21.5 - 3 true Paris -\n1465839830000000 2 0.5 4 - - -71");
    assert_eq!(rows(&plan, br#"my\ m,a\,b=c\=d s="say \"hi\"\\",t=1e3"#), "now 1000 - - - say \"hi\"\\ -");
    for (payload, reason) in [
        ("weather", "invalid-influx"),
        ("weather t=", "invalid-influx"),
        ("weather t", "invalid-influx"),
        ("weather,s t=1", "invalid-influx"),
        (",s=a t=1", "invalid-influx"),
        ("weather t=abc", "invalid-influx"),
        ("weather n=1.5i", "invalid-influx"),
        ("weather n=99999999999999999999i", "invalid-influx"),
        ("weather s=\"a", "invalid-influx"),
        ("weather t=1 1.5", "invalid-influx"),
        ("weather t=1 1 1", "invalid-influx"),
        ("# only this", "invalid-influx"),
        ("weather t=nan", "invalid-influx"),
        ("weather t=t", "type-conflict"),
        ("weather n=18446744073709551615u", "number-out-of-range"),
        ("weather t=1 999999999999999999999999999999", "time-out-of-range"),
    ] {
        assert_eq!(rows(&plan, payload.as_bytes()), reason, "{payload}");
    }
}

#[test]
fn csv_with_and_without_header() {
    let plan = plan(Format::Csv);
    let text = b"s,ts,t,other\r\n\"a,\"\"b\"\"\",1465839830,1.5,x\n,2016-06-13T17:43:50Z,,y\n";
    assert_eq!(rows(&plan, text), "1465839830000000 1.5 - - - a,\"b\" -\n1465839830000000 - - - - - -");
    assert_eq!(rows(&plan, b"1465839830,1,2,3,true,x,-71"), "1465839830000000 1 2 3 true x -71");
    assert_eq!(rows(&plan, b"1465839830,1"), "1465839830000000 1 - - - - -");
    for (payload, reason) in [
        (&b"\n\n"[..], "invalid-csv"),
        (b"1465839830,\"1", "invalid-csv"),
        (b"1465839830,\"1\"2", "invalid-csv"),
        (b"1465839830,1\"2", "invalid-csv"),
        (b"1465839830,1\r2", "invalid-csv"),
        (b"1,2,3,4,true,x,7,8", "invalid-csv"),
        (b"t\nabc", "type-conflict"),
        (b"n\n1.5", "type-conflict"),
        (b"ts\nyesterday", "invalid-time"),
        (b"t\n\xff", "invalid-utf8"),
    ] {
        assert_eq!(rows(&plan, payload), reason, "{}", String::from_utf8_lossy(payload));
    }
}

/// Decodes as the gateway does: fields that a payload shows are added and it is decoded again. Rows with their columns.
fn infer(spec: &mut StreamSpec, payload: &[u8]) -> Result<Vec<Vec<(String, String)>>, DecodeError> {
    let mut decoded = Decoded::new();
    loop {
        let schema = schema(spec);
        let plan = StreamPlan::new(spec, schema.clone()).unwrap();
        plan.decode(payload, &[b"d1"], ARRIVAL_US, &mut decoded)?;
        let new = plan.columns_for(&decoded, &spec.fields);
        if new.is_empty() {
            let mut pushed = Rows::new(schema.clone());
            for row in 0..decoded.rows() {
                pushed.push(decoded.cells(row)).unwrap();
            }
            let named = |row| {
                let cells = decoded.cells(row).map(show).zip(&schema.columns).skip(3);
                cells
                    .filter(|(cell, _)| cell != "-")
                    .map(|(cell, column)| (column.name.clone(), cell))
                    .collect()
            };
            return Ok((0..decoded.rows()).map(named).collect());
        }
        spec.fields.extend(new);
    }
}

fn pairs(row: &[(String, String)]) -> Vec<(&str, &str)> {
    row.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn fields_come_from_the_messages() {
    let mut spec = spec(Format::Json, &[], true);
    let found = infer(&mut spec, br#"{"Temperature":21,"radio":{"rssi":-71,"up":true},"unit":"C","x":null}"#)
        .unwrap();
    assert_eq!(
        pairs(&found[0]),
        [("temperature", "21"), ("radio_rssi", "-71"), ("radio_up", "true"), ("unit", "C")]
    );
    let types: Vec<ColumnType> = spec.fields.iter().map(|field| field.ty).collect();
    use ColumnType as Ty;
    assert_eq!(types, [Ty::Double, Ty::Double, Ty::Boolean, Ty::String]);
    // Another type than before, an array, an object where a value was and the reverse: kept in `_extra`.
    let found = infer(
        &mut spec,
        br#"{"Temperature":"hot","radio":5,"unit":{"a":[1,{"b":"\n"}]},"list":[1.50,true],"new":1e400}"#,
    )
    .unwrap();
    let extra =
        r#"{"Temperature":"hot","radio":5,"unit":{"a":[1,{"b":"\u000a"}]},"list":[1.50,true],"new":1e400}"#;
    assert_eq!(pairs(&found[0]), [("_extra", extra)]);
    // A path that is a value in one reading and an object in the next; names that meet; reserved names.
    let found = infer(&mut spec, br#"[{"a":1},{"a":{"b":2}},{"A":3,"received_at":4,"hour":5,"device":"q"}]"#)
        .unwrap();
    assert_eq!(pairs(&found[0]), [("a", "1")]);
    assert_eq!(pairs(&found[1]), [("_extra", r#"{"a":{"b":2}}"#)]);
    assert_eq!(pairs(&found[2]), [("a_2", "3"), ("received_at_2", "4"), ("hour_2", "5"), ("device_2", "q")]);
}

#[test]
fn every_format_infers() {
    for (format, payload) in [
        (Format::Cbor, hex("a2 6174 f94d60 6178 82 01 43 0a0b0c")),
        (Format::Msgpack, hex("82 a174 ca41ac0000 a178 92 01 c4030a0b0c")),
        (Format::SenmlJson, br#"[{"bn":"d:","n":"t","v":21.5},{"n":"u","vs":"C"}]"#.to_vec()),
        (Format::Influx, b"m t=21.5,u=\"C\"".to_vec()),
        (Format::Csv, b"t,u\n21.5,C".to_vec()),
    ] {
        let mut spec = spec(format, &[], true);
        let found = infer(&mut spec, &payload).unwrap();
        let second = match format {
            Format::Cbor | Format::Msgpack => ("_extra", r#"{"x":[1,"0a0b0c"]}"#),
            _ => ("u", "C"),
        };
        let mut row = pairs(&found[0]);
        row.sort_by_key(|(name, _)| *name != "t");
        assert_eq!(row, [("t", "21.5"), second], "{format:?}");
    }
}

#[test]
fn columns_are_bounded_and_nothing_is_lost() {
    let mut spec = spec(Format::Json, &[], true);
    let members: Vec<String> = (0..300).map(|at| format!("\"f{at}\":{at}")).collect();
    let found = infer(&mut spec, format!("{{{}}}", members.join(",")).as_bytes()).unwrap();
    assert_eq!(spec.fields.len(), MAX_INFERRED);
    let extra: serde_json::Value = serde_json::from_str(&found[0][0].1).unwrap();
    for at in 0..300 {
        let (name, value) = (format!("f{at}"), at.to_string());
        let column = found[0].iter().any(|(column, cell)| *column == name && *cell == value);
        assert!(column || extra[&name] == at, "{name}");
    }
}

/// Those that need no descriptor.
const FORMATS: [Format; 7] = [
    Format::Json,
    Format::Cbor,
    Format::Msgpack,
    Format::SenmlJson,
    Format::SenmlCbor,
    Format::Influx,
    Format::Csv,
];

fn valid(format: Format) -> Vec<u8> {
    match format {
        Format::Json => {
            br#"[{"t":21.5,"n":3,"b":true,"s":"\u00e9","radio":{"rssi":-71},"ts":1465839830}]"#.to_vec()
        }
        Format::Cbor => {
            hex("a5 6174 f94d60 616e 3901f3 6162 f5 6173 7f 62c3a9 ff 65726164696f bf 6472737369 3846 ff")
        }
        Format::Msgpack => {
            hex("85 a174 ca41ac0000 a16e d1fe0c a162 c3 a173 d902c3a9 a5726164696f 81 a472737369 d0b9")
        }
        Format::SenmlJson => {
            br#"[{"bn":"t","bt":1.2e9,"v":1,"bver":5},{"n":"x","t":-5,"vs":"a","s":1}]"#.to_vec()
        }
        Format::SenmlCbor => hex("82 a3 21 6174 22 1a514b67b0 02 f95788 a3 00 6178 06 24 03 6161"),
        Format::Influx => b"m,s=a\\ b t=1.5,n=3i,b=t,x=\"q\\\"\" 1465839830\nm t=1".to_vec(),
        Format::Csv => b"ts,t,s,x\n1465839830,1.5,\"a\"\"b\",\n,,c,d\r\n".to_vec(),
        Format::Protobuf | Format::SparkplugB => Vec::new(),
    }
}

proptest! {
    /// No bytes panic, and what is accepted has cells that fit the schema.
    #[test]
    fn any_bytes(payload in proptest::collection::vec(any::<u8>(), 0..200), format in 0..FORMATS.len()) {
        let mut inferring = spec(FORMATS[format], &[], true);
        let _ = infer(&mut inferring, &payload);
        let _ = rows(&plan(FORMATS[format]), &payload);
    }

    /// The same for payloads that are nearly right.
    #[test]
    fn nearly_valid(
        format in 0..FORMATS.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let mut payload = valid(FORMATS[format]);
        prop_assert!(!rows(&plan(FORMATS[format]), &payload).starts_with("invalid"));
        for (place, byte, how) in edits {
            let at = place.index(payload.len().max(1)).min(payload.len().saturating_sub(1));
            match how {
                _ if payload.is_empty() => payload.push(byte),
                0 => payload[at] = byte,
                1 => payload.insert(at, byte),
                _ => _ = payload.remove(at),
            }
        }
        let mut inferring = spec(FORMATS[format], &[], true);
        let _ = infer(&mut inferring, &payload);
        let _ = rows(&plan(FORMATS[format]), &payload);
    }

    /// Every number of a JSON object comes back, in a column or in `_extra`.
    #[test]
    fn inferred_numbers_are_found_again(
        readings in proptest::collection::vec(
            proptest::collection::btree_map("[a-cA-C._ é\"]{1,4}", -1000i32..1000, 0..8), 1..4),
    ) {
        let payload = serde_json::to_vec(&readings).unwrap();
        let mut inferring = spec(Format::Json, &[], true);
        let found = infer(&mut inferring, &payload).unwrap();
        for (reading, row) in readings.iter().zip(&found) {
            let extra = row.iter().find(|(name, _)| name == "_extra");
            let extra: serde_json::Value =
                extra.map_or(serde_json::Value::Null, |(_, text)| serde_json::from_str(text).unwrap());
            for (key, value) in reading {
                let mut path = String::new();
                super::plan::push_step(&mut path, key);
                let field = inferring.fields.iter().find(|field| field.path == path);
                let column = field.and_then(|field| row.iter().find(|(name, _)| *name == field.name));
                prop_assert!(
                    column.is_some_and(|(_, cell)| *cell == value.to_string()) || extra[&path] == *value,
                    "{key:?} of {row:?}"
                );
            }
        }
    }
}
