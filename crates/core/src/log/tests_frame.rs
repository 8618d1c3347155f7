//! Every frame gives back what was put into it, and damaged ones are errors.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef};
use proptest::prelude::*;

use super::columns::{ColumnBuilder, View};
use super::frame::{Scratch, encode, tag};
use super::keys::Keys;
use super::varint::{Cursor, Malformed};
use crate::rows::{Cell, Rows};
use crate::schema::{Column, ColumnType, Schema, SchemaId, StreamId};

fn rows_of(ty: ColumnType, cells: &[Cell<'_>]) -> Rows {
    let columns = vec![Column { name: "x".into(), ty }];
    let mut rows = Rows::new(Arc::new(Schema::new(SchemaId(1), StreamId(1), "t", columns, None).unwrap()));
    cells.iter().for_each(|cell| rows.push([*cell]).unwrap());
    rows
}

fn encoded(rows: &Rows, ts_min: i64) -> Vec<u8> {
    let mut out = Vec::new();
    encode(rows, &[], ts_min, &mut out, &mut Scratch::default());
    out
}

fn decode(
    ty: ColumnType,
    body: &[u8],
    rows: usize,
    cuts: &[usize],
    ts_min: i64,
) -> Result<ArrayRef, Malformed> {
    let mut cursor = Cursor::new(body);
    let view = View::parse(&mut cursor, rows)?;
    if !cursor.is_empty() {
        return Err(Malformed("bytes follow the column"));
    }
    let mut column = ColumnBuilder::new(ty, rows);
    let mut from = 0;
    for to in cuts.iter().copied().chain([rows]).filter(|to| *to <= rows) {
        let to = to.max(from);
        column.append(&view, from..to, ts_min, &Keys::new(0, 1))?;
        from = to;
    }
    column.finish().map_err(|_| Malformed("not UTF-8"))
}

/// Bits of doubles, so that NaN and -0.0 compare.
fn cell_at(ty: ColumnType, array: &ArrayRef, row: usize) -> String {
    if array.is_null(row) {
        return "NULL".into();
    }
    match ty {
        ColumnType::Double => format!("{:016x}", array.as_primitive::<Float64Type>().value(row).to_bits()),
        ColumnType::Bigint => array.as_primitive::<Int64Type>().value(row).to_string(),
        ColumnType::Timestamp => array.as_primitive::<TimestampMicrosecondType>().value(row).to_string(),
        ColumnType::Boolean => array.as_boolean().value(row).to_string(),
        ColumnType::String => format!("{:?}", array.as_string::<i32>().value(row).as_bytes()),
        ColumnType::Binary => format!("{:?}", array.as_binary::<i32>().value(row)),
    }
}

fn text(cell: Cell<'_>) -> String {
    match cell {
        Cell::Null => "NULL".into(),
        Cell::Double(value) => format!("{:016x}", value.to_bits()),
        Cell::Bigint(value) | Cell::Timestamp(value) => value.to_string(),
        Cell::Boolean(value) => value.to_string(),
        Cell::Bytes(bytes) => format!("{bytes:?}"),
    }
}

fn assert_round_trip(ty: ColumnType, cells: &[Cell<'_>], cuts: &[usize], ts_min: i64) -> usize {
    let rows = rows_of(ty, cells);
    let body = encoded(&rows, ts_min);
    let array = decode(ty, &body, cells.len(), cuts, ts_min).unwrap();
    assert_eq!(array.len(), cells.len());
    for (row, cell) in cells.iter().enumerate() {
        assert_eq!(cell_at(ty, &array, row), text(*cell), "row {row}");
    }
    body.len()
}

#[test]
fn sensor_readings_take_two_bytes_each() {
    let cells: Vec<_> = (0..1000).map(|n| Cell::Double(f64::from(2000 + n * 7 % 500) / 100.0)).collect();
    assert!(assert_round_trip(ColumnType::Double, &cells, &[], 0) <= 2006);
}

#[test]
fn whole_seconds_take_less_than_microseconds() {
    let start = 1_700_000_000_000_000;
    let cells: Vec<_> = (0..200).map(|n| Cell::Timestamp(start + n * 1_000_000)).collect();
    assert!(assert_round_trip(ColumnType::Timestamp, &cells, &[], start) <= 203);
}

#[test]
fn one_value_for_all_rows_takes_no_place_in_the_rows() {
    assert!(assert_round_trip(ColumnType::String, &[Cell::Bytes(b"site-1"); 500], &[3], 0) <= 9);
    assert!(assert_round_trip(ColumnType::Double, &[Cell::Double(21.5); 500], &[3], 0) <= 4);
    assert_eq!(assert_round_trip(ColumnType::Boolean, &[Cell::Boolean(true); 500], &[3], 0), 1);
    assert_eq!(assert_round_trip(ColumnType::Bigint, &[Cell::Null; 500], &[3], 0), 1);
}

#[test]
fn the_widest_range_of_integers_does_not_overflow() {
    let cells = [i64::MIN, i64::MAX, 0, -1, 1].map(Cell::Bigint);
    assert_round_trip(ColumnType::Bigint, &cells, &[], 0);
    let cells = [i64::MIN, i64::MAX].map(Cell::Timestamp);
    assert_round_trip(ColumnType::Timestamp, &cells, &[], i64::MIN);
}

#[test]
fn wrong_shapes_are_errors() {
    for (body, why) in [
        (&[][..], "ends too early"),
        (&[0x7f], "a column has an unknown layout"),
        (&[tag::INTS, 9, 0], "an integer column is wider than 8 bytes"),
        (&[tag::INTS, 0x30, 0], "an integer column has an unknown scale"),
        (&[tag::DECIMALS, 0xa0, 0], "a double column has too many decimals"),
        (&[tag::DICTIONARY, 0], "an index is not in its dictionary"),
        (&[tag::DICTIONARY, 2, 1, b'a', 1, b'b', 2], "an index is not in its dictionary"),
        (&[tag::BYTES, 0, 1], "ends too early"),
        (&[tag::BYTES, 0, 2], "ends too early"),
        (&[tag::NULLS, 0], "bytes follow the column"),
        (&[tag::TRUE], "a column's layout does not fit its type"),
        (&[tag::KEYS, 0, 0], "a key id is not in the partition's dictionary"),
    ] {
        let error = decode(ColumnType::String, body, 1, &[], 0).map(|_| ()).unwrap_err();
        assert_eq!(error.0, why, "{body:?}");
    }
}

fn doubles() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (-100_000..100_000_i32, 0..4_i32).prop_map(|(int, places)| f64::from(int) / 10_f64.powi(places)),
        1 => any::<f64>(),
        1 => any::<u64>().prop_map(f64::from_bits),
        1 => prop::sample::select(vec![0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e-324, f64::MAX, 1e15, 0.1 + 0.2]),
    ]
}

fn ints() -> impl Strategy<Value = i64> {
    prop_oneof![
        3 => -300..300_i64,
        1 => any::<i64>(),
        1 => prop::sample::select(vec![i64::MIN, i64::MAX, 0, -1]),
        1 => (0..1000_i64).prop_map(|n| 1_700_000_000_000_000 + n * 1000),
    ]
}

/// Columns of one kind mostly, since a single odd value changes the layout.
fn column<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<Option<T>>> {
    let nulls = prop::sample::select(vec![0.0, 0.0, 0.2, 1.0]);
    (nulls, prop::collection::vec((value, 0.0..1.0), 1..80)).prop_map(|(nulls, cells)| {
        cells.into_iter().map(|(value, drawn)| (drawn >= nulls).then_some(value)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn doubles_round_trip_bit_for_bit(values in column(doubles()), cut in 0..80_usize) {
        let cells: Vec<_> = values.iter().map(|value| value.map_or(Cell::Null, Cell::Double)).collect();
        assert_round_trip(ColumnType::Double, &cells, &[cut], 0);
    }

    #[test]
    fn plain_decimals_round_trip(values in column((-10_000..10_000_i32, 0..3_i32)), cut in 0..80_usize) {
        let value = |(int, places): (i32, i32)| Cell::Double(f64::from(int) / 10_f64.powi(places));
        let cells: Vec<_> = values.iter().map(|pair| pair.map_or(Cell::Null, value)).collect();
        assert_round_trip(ColumnType::Double, &cells, &[cut], 0);
    }

    #[test]
    fn ints_round_trip(values in column(ints()), cut in 0..80_usize, ts_min: i64) {
        let cells: Vec<_> = values.iter().map(|value| value.map_or(Cell::Null, Cell::Bigint)).collect();
        assert_round_trip(ColumnType::Bigint, &cells, &[cut], 0);
        let cells: Vec<_> = values.iter().map(|value| value.map_or(Cell::Null, Cell::Timestamp)).collect();
        assert_round_trip(ColumnType::Timestamp, &cells, &[cut], ts_min);
    }

    #[test]
    fn booleans_round_trip(values in column(any::<bool>()), cut in 0..80_usize) {
        let cells: Vec<_> = values.iter().map(|value| value.map_or(Cell::Null, Cell::Boolean)).collect();
        assert_round_trip(ColumnType::Boolean, &cells, &[cut], 0);
    }

    #[test]
    fn strings_round_trip(
        values in prop_oneof![column("[ab]{0,2}"), column("\\PC{0,12}"), column("[a-z]{5,40}")],
        cut in 0..80_usize,
    ) {
        let cell = |value: &Option<String>| value.clone();
        let owned: Vec<_> = values.iter().map(cell).collect();
        let cells: Vec<_> =
            owned.iter().map(|value| value.as_ref().map_or(Cell::Null, |text| Cell::Bytes(text.as_bytes()))).collect();
        assert_round_trip(ColumnType::String, &cells, &[cut], 0);
        assert_round_trip(ColumnType::Binary, &cells, &[cut], 0);
    }

    #[test]
    fn binaries_round_trip(values in column(prop::collection::vec(any::<u8>(), 0..20)), cut in 0..80_usize) {
        let cells: Vec<_> =
            values.iter().map(|value| value.as_ref().map_or(Cell::Null, |bytes| Cell::Bytes(bytes))).collect();
        assert_round_trip(ColumnType::Binary, &cells, &[cut], 0);
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..60), rows in 1..70_usize, cut in 0..70_usize) {
        for ty in ColumnType::ALL {
            let _ = decode(ty, &body, rows, &[cut], 0);
        }
    }
}
