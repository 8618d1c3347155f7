//! Examples of each rule, then any sequence of calls against a plain map.

use std::collections::{BTreeMap, HashMap};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType, UInt32Type};
use arrow_array::{Array, RecordBatch};
use arrow_buffer::NullBuffer;
use proptest::prelude::*;

use super::layout::{from_ordered, ordered};
use super::*;

const SIZE: i64 = 10;
const TUMBLE: Shape = Shape::Tumble { size_us: SIZE };

fn aggregate(function: Function, input: usize) -> Aggregate {
    Aggregate { function, input: Some(input) }
}

/// All functions over a double (0) and a bigint (1).
fn options() -> AlignedOptions {
    let each = [Function::Count, Function::Sum, Function::Avg, Function::Min, Function::Max];
    let mut aggregates = vec![Aggregate { function: Function::CountStar, input: None }];
    aggregates.extend((0..2).flat_map(|input| each.map(|function| aggregate(function, input))));
    let inputs = vec![InputType::Double, InputType::Bigint];
    AlignedOptions { shape: TUMBLE, aggregates, inputs, max_bytes: 64 << 20, max_panes: 100 }
}

fn minimum() -> AlignedOptions {
    let aggregates = vec![aggregate(Function::Min, 0)];
    AlignedOptions { aggregates, inputs: vec![InputType::Double], ..options() }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    key: u32,
    ts: i64,
    double: Option<f64>,
    bigint: Option<i64>,
    selected: bool,
}

fn row(key: u32, ts: i64, double: f64) -> Row {
    Row { key, ts, double: Some(double), bigint: Some(double as i64), selected: true }
}

fn add(windows: &mut AlignedWindows, rows: &[Row], watermark: i64) -> Result<Added, AddError> {
    let keys: Vec<u32> = rows.iter().map(|row| row.key).collect();
    let ts: Vec<i64> = rows.iter().map(|row| row.ts).collect();
    let doubles: Vec<f64> = rows.iter().map(|row| row.double.unwrap_or(77.0)).collect();
    let bigints: Vec<i64> = rows.iter().map(|row| row.bigint.unwrap_or(77)).collect();
    let valid = [
        NullBuffer::from_iter(rows.iter().map(|row| row.double.is_some())),
        NullBuffer::from_iter(rows.iter().map(|row| row.bigint.is_some())),
    ];
    let all = [
        Input {
            values: Values::Doubles(&doubles),
            valid: Some(&valid[0]).filter(|valid| valid.null_count() > 0),
        },
        Input {
            values: Values::Bigints(&bigints),
            valid: Some(&valid[1]).filter(|valid| valid.null_count() > 0),
        },
    ];
    let select: Vec<bool> = rows.iter().map(|row| row.selected).collect();
    let select = select.contains(&false).then_some(&select[..]);
    windows.add(&keys, &ts, &all[..windows.options().inputs.len()], select, watermark)
}

/// One result as text: (window start, key, aggregates..., revision).
pub(super) fn lines(batch: &RecordBatch) -> Vec<String> {
    texts(batch, false)
}

/// As `lines`, with the window's end after its start.
pub(super) fn texts(batch: &RecordBatch, with_end: bool) -> Vec<String> {
    let time = |at: usize| batch.column(at).as_primitive::<TimestampMicrosecondType>();
    let keys = batch.column(0).as_primitive::<UInt32Type>();
    (0..batch.num_rows())
        .map(|row| {
            let values = batch.columns()[3..].iter().map(|column| {
                if column.is_null(row) {
                    "NULL".to_owned()
                } else if let Some(doubles) = column.as_primitive_opt::<Float64Type>() {
                    format!("{:?}", doubles.value(row))
                } else if let Some(strings) = column.as_string_opt::<i32>() {
                    strings.value(row).to_owned()
                } else {
                    column.as_primitive::<Int64Type>().value(row).to_string()
                }
            });
            let end = if with_end { format!(" {}", time(2).value(row)) } else { String::new() };
            let start = format!("{}{end} {}", time(1).value(row), keys.value(row));
            std::iter::once(start).chain(values).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn closed(windows: &mut AlignedWindows, watermark: i64, max_rows: usize) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(batch) = windows.close(watermark, max_rows) {
        assert!(batch.num_rows() <= max_rows);
        all.extend(lines(&batch));
    }
    all
}

#[test]
fn all_functions_over_one_window() {
    let mut windows = AlignedWindows::new(options()).unwrap();
    let rows = [
        Row { key: 3, ts: 1, double: Some(1.5), bigint: Some(-7), selected: true },
        Row { key: 3, ts: 9, double: None, bigint: Some(2), selected: true },
        Row { key: 3, ts: 0, double: Some(-4.0), bigint: None, selected: true },
        Row { key: 3, ts: 5, double: Some(100.0), bigint: Some(100), selected: false },
    ];
    let added = add(&mut windows, &rows, i64::MIN).unwrap();
    assert_eq!(added, Added { rows: 3, ..Added::default() });
    assert_eq!(closed(&mut windows, 9, 10), [""; 0]);
    assert_eq!(closed(&mut windows, 10, 10), ["0 3 3 2 -2.5 -1.25 -4.0 1.5 2 -5 -2 -7 2 0"]);
    assert_eq!(closed(&mut windows, 10, 10), [""; 0]);
}

#[test]
fn no_value_but_null_gives_null_and_count_zero() {
    let mut windows = AlignedWindows::new(options()).unwrap();
    add(&mut windows, &[Row { double: None, bigint: None, ..row(0, 0, 0.0) }], i64::MIN).unwrap();
    assert_eq!(closed(&mut windows, 10, 10), ["0 0 1 0 NULL NULL NULL NULL 0 NULL NULL NULL NULL 0"]);
}

#[test]
fn a_record_without_counts_knows_null_too() {
    let mut windows = AlignedWindows::new(minimum()).unwrap();
    add(&mut windows, &[Row { double: None, ..row(0, 0, 0.0) }, row(1, 0, f64::INFINITY)], i64::MIN).unwrap();
    assert_eq!(closed(&mut windows, 10, 10), ["0 0 NULL 0", "0 1 inf 0"]);
}

#[test]
fn bigints_wrap_and_averages_are_cut_toward_zero() {
    let mut windows = AlignedWindows::new(options()).unwrap();
    let bigint = |key, value| Row { bigint: Some(value), ..row(key, 0, 0.0) };
    add(&mut windows, &[bigint(0, i64::MAX), bigint(0, 1), bigint(1, -3), bigint(1, 0)], i64::MIN).unwrap();
    let lines = closed(&mut windows, 10, 10);
    assert!(
        lines[0].ends_with(" 2 -9223372036854775808 -4611686018427387904 1 9223372036854775807 0"),
        "{lines:?}"
    );
    assert!(lines[1].ends_with(" 2 -3 -1 -3 0 0"), "{lines:?}");
}

#[test]
fn nan_is_the_largest_and_minus_zero_below_zero() {
    let mut windows = AlignedWindows::new(options()).unwrap();
    let rows = [row(0, 0, f64::NAN), row(0, 0, 1.0), row(1, 0, 0.0), row(1, 0, -0.0), row(2, 0, -f64::NAN)];
    add(&mut windows, &rows, i64::MIN).unwrap();
    let lines = closed(&mut windows, 10, 10);
    assert!(lines[0].starts_with("0 0 2 2 NaN NaN 1.0 NaN "), "{lines:?}");
    assert!(lines[1].starts_with("0 1 2 2 0.0 0.0 -0.0 0.0 "), "{lines:?}");
    assert!(lines[2].starts_with("0 2 1 1 NaN NaN NaN NaN "), "{lines:?}");
}

#[test]
fn windows_are_aligned_to_the_epoch_also_before_it() {
    let mut windows = AlignedWindows::new(minimum()).unwrap();
    add(&mut windows, &[row(0, -1, 1.0), row(0, -10, 2.0), row(0, -11, 3.0), row(0, 10, 4.0)], i64::MIN)
        .unwrap();
    assert_eq!(closed(&mut windows, 20, 10), ["-20 0 3.0 0", "-10 0 1.0 0", "10 0 4.0 0"]);
}

#[test]
fn a_late_row_amends_what_came_out() {
    let mut windows = AlignedWindows::new(minimum()).unwrap();
    add(&mut windows, &[row(0, 0, 5.0), row(2, 0, 5.0)], i64::MIN).unwrap();
    assert_eq!(closed(&mut windows, 10, 10), ["0 0 5.0 0", "0 2 5.0 0"]);
    let added =
        add(&mut windows, &[row(2, 1, 4.0), row(1, 1, 9.0), row(2, 1, 3.0), row(0, 12, 1.0)], 10).unwrap();
    assert_eq!(added, Added { rows: 4, late_rows: 3, ..Added::default() });
    assert_eq!(closed(&mut windows, 10, 10), ["0 1 9.0 0", "0 2 3.0 1"]);
    add(&mut windows, &[row(1, 2, 10.0)], 10).unwrap();
    assert_eq!(closed(&mut windows, 20, 10), ["0 1 9.0 1", "10 0 1.0 0"]);
}

#[test]
fn a_late_row_into_a_window_half_out_amends_only_the_half() {
    let mut windows = AlignedWindows::new(minimum()).unwrap();
    add(&mut windows, &[row(0, 0, 5.0), row(1, 0, 5.0), row(2, 0, 5.0)], i64::MIN).unwrap();
    assert_eq!(lines(&windows.close(10, 2).unwrap()), ["0 0 5.0 0", "0 1 5.0 0"]);
    add(&mut windows, &[row(1, 0, 1.0), row(2, 0, 1.0)], 10).unwrap();
    assert_eq!(closed(&mut windows, 10, 1), ["0 1 1.0 1", "0 2 1.0 0"]);
}

#[test]
fn rows_for_a_forgotten_window_are_dropped() {
    let mut windows = AlignedWindows::new(minimum()).unwrap();
    add(&mut windows, &[row(0, 0, 5.0), row(0, 10, 5.0)], i64::MIN).unwrap();
    // Not yet out: kept until it is.
    windows.forget(10);
    assert_eq!(windows.panes(), 2);
    assert_eq!(closed(&mut windows, 10, 10), ["0 0 5.0 0"]);
    assert_eq!(windows.panes(), 1);
    let added = add(&mut windows, &[row(0, 3, 1.0), row(0, 10, 2.0)], 10).unwrap();
    assert_eq!(added, Added { rows: 1, dropped_rows: 1, ..Added::default() });
    assert_eq!(closed(&mut windows, 20, 10), ["10 0 2.0 0"]);
}

#[test]
fn at_the_bound_old_results_go_first_then_nothing_is_added() {
    let page = super::panes::PAGE_BYTES;
    let mut windows = AlignedWindows::new(AlignedOptions { max_bytes: 2 * page + 100, ..minimum() }).unwrap();
    add(&mut windows, &[row(0, 0, 1.0), row(0, 10, 1.0)], i64::MIN).unwrap();
    let before = windows.freeze(true).to_bytes();
    let error = add(&mut windows, &[row(0, 10, 0.5), row(0, 20, 1.0)], i64::MIN).unwrap_err();
    assert!(matches!(error, AddError::Full { panes: 3, .. }), "{error}");
    assert_eq!(windows.freeze(true).to_bytes(), before);
    closed(&mut windows, 10, 10);
    // The batch's own late row keeps the only window that could go.
    assert!(add(&mut windows, &[row(0, 0, 0.5), row(0, 20, 1.0)], 10).is_err());
    let added = add(&mut windows, &[row(0, 20, 1.0)], 10).unwrap();
    assert_eq!(added, Added { rows: 1, evicted_windows: 1, ..Added::default() });
    assert_eq!(add(&mut windows, &[row(0, 0, 1.0)], 10).unwrap().dropped_rows, 1);
}

#[test]
fn the_number_of_windows_is_bounded() {
    let mut windows = AlignedWindows::new(AlignedOptions { max_panes: 2, ..minimum() }).unwrap();
    let error = add(&mut windows, &[row(0, 0, 1.0), row(0, 10, 1.0), row(0, 20, 1.0)], i64::MIN).unwrap_err();
    assert!(error.to_string().contains("2 panes"), "{error}");
    assert_eq!((windows.panes(), windows.bytes()), (0, 0));
}

#[test]
fn few_keys_of_many_are_small() {
    let mut windows = AlignedWindows::new(minimum()).unwrap();
    add(&mut windows, &[row(5_000_000, 0, 1.0)], i64::MIN).unwrap();
    assert!(windows.bytes() < 100_000, "{}", windows.bytes());
    assert_eq!(closed(&mut windows, 10, 10), ["0 5000000 1.0 0"]);
}

#[test]
fn options_and_batches_that_do_not_fit_are_refused() {
    let bad = |options: AlignedOptions| AlignedWindows::new(options).err().unwrap().to_string();
    assert!(bad(AlignedOptions { shape: Shape::Tumble { size_us: 0 }, ..options() }).contains("above 0"));
    assert!(bad(AlignedOptions { inputs: vec![], ..options() }).contains("reads input Some(0), of 0"));
    assert!(bad(AlignedOptions { max_panes: 0, ..options() }).contains("max_panes"));
    let mut windows = AlignedWindows::new(minimum()).unwrap();
    let doubles = [1.0];
    let input = Input { values: Values::Doubles(&doubles), valid: None };
    assert!(matches!(windows.add(&[0, 1], &[0, 0], &[input], None, 0), Err(AddError::Shape(_))));
    assert!(matches!(windows.add(&[0], &[0], &[], None, 0), Err(AddError::Shape(_))));
    let input = Input { values: Values::Bigints(&[1]), valid: None };
    assert!(matches!(windows.add(&[0], &[0], &[input], None, 0), Err(AddError::Shape(_))));
}

#[test]
fn many_inputs_have_counts_instead_of_bits() {
    let inputs = 20;
    let options = AlignedOptions {
        aggregates: (0..inputs).map(|at| aggregate(Function::Max, at)).collect(),
        inputs: vec![InputType::Bigint; inputs],
        ..options()
    };
    let mut windows = AlignedWindows::new(options.clone()).unwrap();
    for key in [0u32, 1, 511, 512, 70_000] {
        let values: Vec<[i64; 1]> = (0..inputs as i64).map(|at| [at + key as i64]).collect();
        let null = NullBuffer::new_null(1);
        let columns: Vec<Input> = values
            .iter()
            .enumerate()
            .map(|(at, value)| Input {
                values: Values::Bigints(value),
                valid: (at % 7 == 3).then_some(&null),
            })
            .collect();
        windows.add(&[key], &[0], &columns, None, 0).unwrap();
    }
    let mut windows = AlignedWindows::decode(&windows.freeze(true).to_bytes(), options).unwrap();
    let lines = closed(&mut windows, 10, 2);
    assert_eq!(lines.len(), 5);
    assert!(lines[4].starts_with("0 70000 70000 70001 70002 NULL 70004"), "{lines:?}");
    assert!(lines[4].ends_with("70015 70016 NULL 70018 70019 0"), "{lines:?}");
}

#[test]
fn hopping_windows_merge_their_panes() {
    let shape = Shape::Hop { slide_us: 5, size_us: 10 };
    let mut windows = AlignedWindows::new(AlignedOptions { shape, ..minimum() }).unwrap();
    add(&mut windows, &[row(0, 0, 3.0), row(1, 3, 4.0), row(0, 7, 1.0)], i64::MIN).unwrap();
    assert_eq!(all_texts(&mut windows, 5, 10), ["-5 5 0 3.0 0", "-5 5 1 4.0 0"]);
    // Late for one window, not for the next.
    let added = add(&mut windows, &[row(1, 4, 2.0)], 5).unwrap();
    assert_eq!(added, Added { rows: 1, late_rows: 1, ..Added::default() });
    assert_eq!(all_texts(&mut windows, 10, 10), ["-5 5 1 2.0 1", "0 10 0 1.0 0", "0 10 1 2.0 0"]);
    windows.forget(10);
    assert_eq!(windows.panes(), 1);
    let added = add(&mut windows, &[row(2, 4, 9.0), row(2, 9, 8.0)], 10).unwrap();
    assert_eq!(added, Added { rows: 1, dropped_rows: 1, ..Added::default() });
    assert_eq!(all_texts(&mut windows, 15, 10), ["5 15 0 1.0 0", "5 15 2 8.0 0"]);
}

#[test]
fn cumulating_windows_grow_by_steps() {
    let shape = Shape::Cumulate { step_us: 5, size_us: 15 };
    let mut windows = AlignedWindows::new(AlignedOptions { shape, ..minimum() }).unwrap();
    add(&mut windows, &[row(0, 1, 3.0), row(0, 6, 5.0), row(0, 14, 1.0), row(0, 15, 0.5)], i64::MIN).unwrap();
    let expected = ["0 5 0 3.0 0", "0 10 0 3.0 0", "0 15 0 1.0 0", "15 20 0 0.5 0"];
    assert_eq!(all_texts(&mut windows, 20, 1), expected);
}

#[test]
fn rows_outside_of_a_calendar_are_dropped() {
    let shape = Shape::Calendar { starts_us: vec![0, 10, 25].into() };
    let mut windows = AlignedWindows::new(AlignedOptions { shape, ..minimum() }).unwrap();
    let added =
        add(&mut windows, &[row(0, -1, 1.0), row(0, 0, 2.0), row(0, 24, 3.0), row(0, 25, 4.0)], i64::MIN);
    assert_eq!(added.unwrap(), Added { rows: 2, dropped_rows: 2, ..Added::default() });
    assert_eq!(all_texts(&mut windows, 25, 10), ["0 10 0 2.0 0", "10 25 0 3.0 0"]);
}

#[test]
fn spreads_first_and_last_values_distinct_values_and_percentiles() {
    let functions = [
        Function::VarPop,
        Function::VarSamp,
        Function::StddevPop,
        Function::StddevSamp,
        Function::First,
        Function::Last,
        Function::CountDistinct,
        Function::Percentile { millionths: 500_000 },
        Function::Percentile { millionths: 1_000_000 },
    ];
    for shape in [TUMBLE, Shape::Hop { slide_us: 2, size_us: 10 }] {
        for input in [0, 1] {
            let aggregates = functions.map(|function| aggregate(function, input)).to_vec();
            let options = AlignedOptions { shape: shape.clone(), aggregates, ..options() };
            let mut windows = AlignedWindows::new(options.clone()).unwrap();
            let rows = [
                row(0, 3, 4.0),
                row(0, 8, 2.0),
                row(0, 3, 7.0),
                row(0, 8, 4.0),
                Row { double: None, bigint: None, ..row(0, 0, 0.0) },
                row(1, 5, 6.0),
                Row { double: None, bigint: None, ..row(2, 5, 0.0) },
            ];
            add(&mut windows, &rows, i64::MIN).unwrap();
            windows = AlignedWindows::decode(&windows.freeze(true).to_bytes(), options).unwrap();
            let found = closed(&mut windows, 10, 10);
            let number = |text: &str| text.parse::<f64>().unwrap();
            let fields: Vec<&str> =
                found.iter().find(|line| line.starts_with("0 0 ")).unwrap().split(' ').collect();
            assert!((number(fields[2]) - 3.1875).abs() < 1e-12, "{fields:?}");
            assert!((number(fields[3]) - 4.25).abs() < 1e-12, "{fields:?}");
            assert!((number(fields[4]) - 3.1875f64.sqrt()).abs() < 1e-12, "{fields:?}");
            assert!((number(fields[5]) - 4.25f64.sqrt()).abs() < 1e-12, "{fields:?}");
            let first_last = if input == 0 { ["4.0", "4.0"] } else { ["4", "4"] };
            assert_eq!([fields[6], fields[7], fields[8]], [first_last[0], first_last[1], "3"]);
            assert!((number(fields[9]) - 4.0).abs() < 0.041, "{fields:?}");
            assert_eq!(number(fields[10]), 7.0);
            let one = if input == 0 { "6.0 6.0" } else { "6 6" };
            assert!(found.contains(&format!("0 1 0.0 NULL 0.0 NULL {one} 1 6.0 6.0 0")), "{found:?}");
            assert!(
                found.contains(&"0 2 NULL NULL NULL NULL NULL NULL 0 NULL NULL 0".to_owned()),
                "{found:?}"
            );
        }
    }
}

#[test]
fn the_cells_of_dropped_panes_are_freed() {
    let aggregates = vec![aggregate(Function::CountDistinct, 1)];
    let mut windows = AlignedWindows::new(AlignedOptions { aggregates, ..options() }).unwrap();
    let rows: Vec<Row> = (0..2000).map(|value| row(0, value % 10, value as f64)).collect();
    add(&mut windows, &rows, i64::MIN).unwrap();
    assert!(windows.cells.bytes() > 4000);
    closed(&mut windows, 10, 10);
    windows.forget(10);
    assert_eq!((windows.cells.bytes(), windows.bytes()), (0, 0));
}

#[test]
fn a_snapshot_of_version_1_is_read() {
    // COUNT(*) and MIN(double) over 10 us: pane 0 with key 7 (two rows, least 1.5), which has come out, then was amended.
    let mut bytes = b"HWTUMBLE\x01\0".to_vec();
    bytes.extend(10i64.to_le_bytes());
    bytes.extend([2u16, 1].map(u16::to_le_bytes).concat());
    bytes.extend([2u16, 0xffff, 5, 0].map(u16::to_le_bytes).concat());
    bytes.push(1);
    bytes.extend((-10i64).to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(0i64.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend([1u32, 1, 1, 7].map(u32::to_le_bytes).concat());
    bytes.extend([2 | 1 << 48, ordered(1.5) as u64].map(u64::to_le_bytes).concat());
    bytes.extend(7u32.to_le_bytes());
    bytes.extend(7u32.to_le_bytes());
    bytes.extend(3i64.to_le_bytes());
    let bytes = seal(bytes);
    let aggregates =
        vec![Aggregate { function: Function::CountStar, input: None }, aggregate(Function::Min, 0)];
    let options = AlignedOptions { aggregates, inputs: vec![InputType::Double], ..options() };
    let mut windows = AlignedWindows::decode(&bytes, options.clone()).unwrap();
    windows = AlignedWindows::decode(&windows.freeze(true).to_bytes(), options.clone()).unwrap();
    assert_eq!(closed(&mut windows, 10, 10), ["0 7 2 1.5 4"]);
    let hop = AlignedOptions { shape: Shape::Hop { slide_us: 10, size_us: 10 }, ..options };
    assert!(matches!(AlignedWindows::decode(&bytes, hop), Err(StateError::OtherQuery { .. })));
}

#[test]
fn a_snapshot_of_version_2_is_read() {
    // MIN(double) over 10 us: pane 0 with key 7 (two rows, least 1.5), which has come out as revision 3 and was amended.
    let mut bytes = b"HWTUMBLE\x02\0\x01".to_vec();
    bytes.extend([10i64, 10].map(i64::to_le_bytes).concat());
    bytes.extend([1u16, 1, 5, 0, 0, 0].map(u16::to_le_bytes).concat());
    bytes.push(1);
    bytes.extend((-10i64).to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(0i64.to_le_bytes());
    bytes.extend([1u32, 7].map(u32::to_le_bytes).concat());
    bytes.extend([2 | 1 << 48, ordered(1.5) as u64].map(u64::to_le_bytes).concat());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(0i64.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend([1u32, 1, 7, 7].map(u32::to_le_bytes).concat());
    bytes.extend(3i64.to_le_bytes());
    let bytes = seal(bytes);
    let mut windows = AlignedWindows::decode(&bytes, minimum()).unwrap();
    assert!(windows.apply(&bytes).is_err());
    windows = AlignedWindows::decode(&windows.freeze(true).to_bytes(), minimum()).unwrap();
    assert_eq!(closed(&mut windows, 10, 10), ["0 7 1.5 4"]);
}

#[test]
fn a_snapshot_of_another_query_is_refused() {
    let bytes = AlignedWindows::new(minimum()).unwrap().freeze(true).to_bytes();
    assert!(matches!(AlignedWindows::decode(&bytes, options()), Err(StateError::OtherQuery { .. })));
    assert!(AlignedWindows::decode(&bytes, AlignedOptions { max_bytes: 1, ..minimum() }).is_ok());
    assert!(matches!(AlignedWindows::decode(b"", minimum()), Err(StateError::Damaged { .. })));
    let groups = KeyInterner::new(vec![], 1).freeze(true).to_bytes();
    assert!(matches!(AlignedWindows::decode(&groups, minimum()), Err(StateError::Version { .. })));
}

/// Start and end of each window that holds a time, by the definitions.
fn windows_of(shape: &Shape, ts: i64) -> Vec<(i64, i64)> {
    match shape {
        Shape::Tumble { size_us } => vec![ts.div_euclid(*size_us) * size_us]
            .into_iter()
            .map(|start| (start, start + size_us))
            .collect(),
        Shape::Hop { slide_us, size_us } => {
            let last = ts.div_euclid(*slide_us) * slide_us;
            let starts = (0..size_us / slide_us).map(|back| last - back * slide_us);
            starts.map(|start| (start, start + size_us)).collect()
        }
        Shape::Cumulate { step_us, size_us } => {
            let start = ts.div_euclid(*size_us) * size_us;
            let ends = (1..=size_us / step_us).map(|steps| start + steps * step_us);
            ends.filter(|end| *end > ts).map(|end| (start, end)).collect()
        }
        Shape::Calendar { starts_us } => {
            let inside = |pair: &&[i64]| pair[0] <= ts && ts < pair[1];
            starts_us.windows(2).filter(inside).map(|pair| (pair[0], pair[1])).collect()
        }
    }
}

/// The same rules by way of one map of lists; windows by (end, start, key).
struct Oracle {
    shape: Shape,
    windows: BTreeMap<(i64, i64, u32), Vec<Row>>,
    /// Revision that came out last, and whether the rows have changed since.
    emitted: HashMap<(i64, i64, u32), (i64, bool)>,
    forgotten: Option<i64>,
}

impl Oracle {
    fn new(shape: &Shape) -> Oracle {
        Oracle { shape: shape.clone(), windows: BTreeMap::new(), emitted: HashMap::new(), forgotten: None }
    }

    fn add(&mut self, rows: &[Row], watermark: i64) -> Added {
        let mut added = Added::default();
        for row in rows.iter().filter(|row| row.selected) {
            let mut held = windows_of(&self.shape, row.ts);
            held.retain(|(_, end)| self.forgotten.is_none_or(|before| *end > before));
            if held.is_empty() {
                added.dropped_rows += 1;
                continue;
            }
            added.rows += 1;
            added.late_rows += held.iter().any(|(_, end)| *end <= watermark) as u64;
            for (start, end) in held {
                self.windows.entry((end, start, row.key)).or_default().push(*row);
                if let Some((_, changed)) = self.emitted.get_mut(&(end, start, row.key)) {
                    *changed = true;
                }
            }
        }
        added
    }

    fn close(&mut self, watermark: i64) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, rows) in &self.windows {
            let (end, start, key) = *name;
            if end > watermark {
                continue;
            }
            let revision = match self.emitted.get(name) {
                Some((_, false)) => continue,
                Some((revision, true)) => revision + 1,
                None => 0,
            };
            self.emitted.insert(*name, (revision, false));
            lines.push(format!("{start} {end} {key} {} {revision}", aggregates(rows)));
        }
        lines
    }

    fn forget(&mut self, before: i64) {
        self.forgotten = Some(self.forgotten.map_or(before, |known| known.max(before)));
    }
}

fn aggregates(rows: &[Row]) -> String {
    let doubles: Vec<f64> = rows.iter().filter_map(|row| row.double).collect();
    let bigints: Vec<i64> = rows.iter().filter_map(|row| row.bigint).collect();
    let total = |a: &f64, b: &f64| {
        if a.is_nan() || b.is_nan() { a.is_nan().cmp(&b.is_nan()) } else { a.total_cmp(b) }
    };
    let sum = doubles.iter().copied().reduce(|sum, value| sum + value);
    let wrapped = bigints.iter().copied().reduce(i64::wrapping_add);
    let show = |value: Option<f64>| value.map_or("NULL".into(), |value| format!("{value:?}"));
    let show_int = |value: Option<i64>| value.map_or("NULL".into(), |value| value.to_string());
    [
        rows.len().to_string(),
        doubles.len().to_string(),
        show(sum),
        show(sum.map(|sum| sum / doubles.len() as f64)),
        show(doubles.iter().copied().min_by(total)),
        show(doubles.iter().copied().max_by(total)),
        bigints.len().to_string(),
        show_int(wrapped),
        show_int(wrapped.map(|sum| sum / bigints.len() as i64)),
        show_int(bigints.iter().copied().min()),
        show_int(bigints.iter().copied().max()),
    ]
    .join(" ")
}

#[derive(Clone, Debug)]
enum Step {
    Add(Vec<Row>),
    Advance(i64),
    /// Take at most so many rows, once.
    Slice(usize),
    Close,
    Forget(i64),
    Save,
    Restart,
}

/// Doubles that add up to the same in any order.
fn exact() -> BoxedStrategy<f64> {
    let quarters = (-20i32..20).prop_map(|quarters| f64::from(quarters) / 4.0);
    let special = prop::sample::select(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY][..]);
    prop_oneof![4 => quarters, 1 => special].boxed()
}

fn inexact() -> BoxedStrategy<f64> {
    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, f64::MAX];
    prop_oneof![4 => -5.0..5.0f64, 1 => prop::sample::select(special.to_vec())].boxed()
}

fn steps(double: BoxedStrategy<f64>) -> impl Strategy<Value = Vec<Step>> {
    let bigint = prop_oneof![4 => -5i64..5, 1 => any::<i64>()];
    let key = prop_oneof![8 => 0u32..6, 1 => 1020u32..1030, 1 => 100_000u32..100_003];
    let row = (
        key,
        -30i64..60,
        prop::option::weighted(0.8, double),
        prop::option::weighted(0.8, bigint),
        prop::bool::weighted(0.9),
    )
        .prop_map(|(key, ts, double, bigint, selected)| Row { key, ts, double, bigint, selected });
    let step = prop_oneof![
        6 => prop::collection::vec(row, 0..80).prop_map(Step::Add),
        3 => (0i64..25).prop_map(Step::Advance),
        2 => (1usize..6).prop_map(Step::Slice),
        2 => Just(Step::Close),
        1 => (0i64..40).prop_map(Step::Forget),
        2 => Just(Step::Save),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..25)
}

fn all_texts(windows: &mut AlignedWindows, watermark: i64, max_rows: usize) -> Vec<String> {
    std::iter::from_fn(|| windows.close(watermark, max_rows)).flat_map(|batch| texts(&batch, true)).collect()
}

/// Kernel and map do the same steps and must say the same.
fn play(shape: Shape, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let options = AlignedOptions { shape: shape.clone(), ..options() };
    let mut windows = AlignedWindows::new(options.clone()).unwrap();
    let mut oracle = Oracle::new(&shape);
    let mut saved = vec![windows.freeze(true)];
    let mut watermark = -40;
    for step in steps {
        match step {
            Step::Add(rows) => {
                let found = add(&mut windows, &rows, watermark).unwrap();
                prop_assert_eq!(found, oracle.add(&rows, watermark));
            }
            Step::Advance(by) => {
                // As the engine does: all that a watermark closes comes out before any further row.
                watermark += by;
                if !matches!(shape, Shape::Tumble { .. }) {
                    prop_assert_eq!(all_texts(&mut windows, watermark, 5), oracle.close(watermark));
                }
            }
            Step::Slice(rows) => {
                // The oracle knows no slices: what came out is a prefix of all that was due.
                let mut found = windows.close(watermark, rows).map_or(vec![], |batch| texts(&batch, true));
                prop_assert!(found.len() <= rows);
                found.extend(all_texts(&mut windows, watermark, rows));
                prop_assert_eq!(found, oracle.close(watermark));
            }
            Step::Close => {
                prop_assert_eq!(all_texts(&mut windows, watermark, 1000), oracle.close(watermark))
            }
            Step::Forget(behind) => {
                prop_assert_eq!(all_texts(&mut windows, watermark, 1000), oracle.close(watermark));
                windows.forget(watermark - behind);
                oracle.forget(watermark - behind);
            }
            // Written when it is needed: what changes meanwhile must not be in it.
            Step::Save => saved.push(windows.freeze(false)),
            Step::Restart => {
                saved.push(windows.freeze(false));
                let mut restarted = AlignedWindows::decode(&saved[0].to_bytes(), options.clone()).unwrap();
                for changes in &saved[1..] {
                    restarted.apply(&changes.to_bytes()).unwrap();
                }
                prop_assert_eq!(restarted.freeze(true).to_bytes(), windows.freeze(true).to_bytes());
                saved = vec![restarted.freeze(true)];
                windows = restarted;
            }
        }
    }
    prop_assert_eq!(all_texts(&mut windows, 1000, 7), oracle.close(1000));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_sequence_of_calls_gives_what_a_map_gives(steps in steps(inexact())) {
        play(TUMBLE, steps)?;
    }

    #[test]
    fn windows_that_share_panes_give_what_a_map_gives(
        steps in steps(exact()),
        shape in prop::sample::select(vec![
            Shape::Hop { slide_us: 5, size_us: 10 },
            Shape::Hop { slide_us: 3, size_us: 12 },
            Shape::Hop { slide_us: 10, size_us: 10 },
            Shape::Cumulate { step_us: 5, size_us: 20 },
            Shape::Cumulate { step_us: 4, size_us: 8 },
            Shape::Calendar { starts_us: vec![-25, -3, 0, 0, 11, 12, 30, 45].into() },
        ]),
    ) {
        play(shape, steps)?;
    }

    /// Rows added between slices: each (window, key) ends with the same values and without a gap in its revisions.
    #[test]
    fn slices_between_batches_end_in_the_same_results(
        batches in prop::collection::vec((prop::collection::vec((0u32..8, 0i64..40, -5i64..5), 0..20), 0usize..5, 0i64..15, any::<bool>()), 1..12),
    ) {
        let mut windows = AlignedWindows::new(options()).unwrap();
        let mut oracle = Oracle::new(&TUMBLE);
        let mut last: BTreeMap<(i64, u32), String> = BTreeMap::new();
        let mut revisions: HashMap<(i64, u32), i64> = HashMap::new();
        let mut watermark = 0;
        let mut take = |batch: RecordBatch| {
            let keys = batch.column(0).as_primitive::<UInt32Type>().clone();
            let starts = batch.column(1).as_primitive::<TimestampMicrosecondType>().clone();
            let revision = batch.column(batch.num_columns() - 1).as_primitive::<Int64Type>().clone();
            for (row, line) in lines(&batch).into_iter().enumerate() {
                let pair = (starts.value(row), keys.value(row));
                let expected = revisions.get(&pair).map_or(0, |revision| revision + 1);
                assert_eq!(revision.value(row), expected, "{line}");
                revisions.insert(pair, expected);
                last.insert(pair, line.rsplit_once(' ').unwrap().0.to_owned());
            }
        };
        for (rows, slice, advance, restart) in batches {
            let rows: Vec<Row> = rows.iter().map(|(key, ts, value)| row(*key, *ts, *value as f64)).collect();
            add(&mut windows, &rows, watermark).unwrap();
            oracle.add(&rows, watermark);
            watermark += advance;
            if slice > 0 {
                windows.close(watermark, slice).into_iter().for_each(&mut take);
            }
            if restart {
                windows = AlignedWindows::decode(&windows.freeze(true).to_bytes(), options()).unwrap();
            }
        }
        while let Some(batch) = windows.close(i64::MAX, 3) {
            take(batch);
        }
        let expected: Vec<String> = oracle.windows.iter().map(|((_, start, key), rows)| format!("{start} {key} {}", aggregates(rows))).collect();
        prop_assert_eq!(last.into_values().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_damaged_snapshot_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut windows = AlignedWindows::new(options()).unwrap();
        add(&mut windows, &[row(0, 0, 1.0), row(3, 11, 2.0)], 0).unwrap();
        closed(&mut windows, 10, 10);
        add(&mut windows, &[row(0, 0, 1.0)], 10).unwrap();
        let mut bytes = windows.freeze(true).to_bytes();
        let at = at.index(bytes.len());
        prop_assert!(AlignedWindows::decode(&bytes[..at], options()).is_err());
        bytes[at] ^= 1 << bit;
        prop_assert!(AlignedWindows::decode(&bytes, options()).is_err());
    }

    #[test]
    fn ordered_keys_compare_as_double_compare(a: f64, b: f64) {
        prop_assert_eq!(ordered(a).cmp(&ordered(b)), a.total_cmp(&b));
        prop_assert_eq!(from_ordered(ordered(a)).to_bits(), a.to_bits());
        prop_assert!(ordered(f64::NAN) > ordered(a) && ordered(-f64::NAN) == ordered(f64::NAN));
    }
}
