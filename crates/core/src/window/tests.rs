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

fn aggregate(function: Function, input: usize) -> Aggregate {
    Aggregate { function, input: Some(input) }
}

/// All functions over a double (0) and a bigint (1).
fn options() -> TumbleOptions {
    let each = [Function::Count, Function::Sum, Function::Avg, Function::Min, Function::Max];
    let mut aggregates = vec![Aggregate { function: Function::CountStar, input: None }];
    aggregates.extend((0..2).flat_map(|input| each.map(|function| aggregate(function, input))));
    let inputs = vec![InputType::Double, InputType::Bigint];
    TumbleOptions { size_us: SIZE, aggregates, inputs, max_bytes: 64 << 20, max_panes: 100 }
}

fn minimum() -> TumbleOptions {
    let aggregates = vec![aggregate(Function::Min, 0)];
    TumbleOptions { aggregates, inputs: vec![InputType::Double], ..options() }
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

fn add(tumble: &mut Tumble, rows: &[Row], watermark: i64) -> Result<Added, AddError> {
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
    tumble.add(&keys, &ts, &all[..tumble.options().inputs.len()], select, watermark)
}

/// One result as text: (window start, key, aggregates..., revision).
fn lines(batch: &RecordBatch) -> Vec<String> {
    let time = |at: usize| batch.column(at).as_primitive::<TimestampMicrosecondType>();
    let keys = batch.column(0).as_primitive::<UInt32Type>();
    (0..batch.num_rows())
        .map(|row| {
            assert_eq!(time(2).value(row) - time(1).value(row), SIZE);
            let values = batch.columns()[3..].iter().map(|column| {
                if column.is_null(row) {
                    "NULL".to_owned()
                } else if let Some(doubles) = column.as_primitive_opt::<Float64Type>() {
                    format!("{:?}", doubles.value(row))
                } else {
                    column.as_primitive::<Int64Type>().value(row).to_string()
                }
            });
            let start = format!("{} {}", time(1).value(row), keys.value(row));
            std::iter::once(start).chain(values).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn closed(tumble: &mut Tumble, watermark: i64, max_rows: usize) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(batch) = tumble.close(watermark, max_rows) {
        assert!(batch.num_rows() <= max_rows);
        all.extend(lines(&batch));
    }
    all
}

#[test]
fn all_functions_over_one_window() {
    let mut tumble = Tumble::new(options()).unwrap();
    let rows = [
        Row { key: 3, ts: 1, double: Some(1.5), bigint: Some(-7), selected: true },
        Row { key: 3, ts: 9, double: None, bigint: Some(2), selected: true },
        Row { key: 3, ts: 0, double: Some(-4.0), bigint: None, selected: true },
        Row { key: 3, ts: 5, double: Some(100.0), bigint: Some(100), selected: false },
    ];
    let added = add(&mut tumble, &rows, i64::MIN).unwrap();
    assert_eq!(added, Added { rows: 3, ..Added::default() });
    assert_eq!(closed(&mut tumble, 9, 10), [""; 0]);
    assert_eq!(closed(&mut tumble, 10, 10), ["0 3 3 2 -2.5 -1.25 -4.0 1.5 2 -5 -2 -7 2 0"]);
    assert_eq!(closed(&mut tumble, 10, 10), [""; 0]);
}

#[test]
fn no_value_but_null_gives_null_and_count_zero() {
    let mut tumble = Tumble::new(options()).unwrap();
    add(&mut tumble, &[Row { double: None, bigint: None, ..row(0, 0, 0.0) }], i64::MIN).unwrap();
    assert_eq!(closed(&mut tumble, 10, 10), ["0 0 1 0 NULL NULL NULL NULL 0 NULL NULL NULL NULL 0"]);
}

#[test]
fn a_record_without_counts_knows_null_too() {
    let mut tumble = Tumble::new(minimum()).unwrap();
    add(&mut tumble, &[Row { double: None, ..row(0, 0, 0.0) }, row(1, 0, f64::INFINITY)], i64::MIN).unwrap();
    assert_eq!(closed(&mut tumble, 10, 10), ["0 0 NULL 0", "0 1 inf 0"]);
}

#[test]
fn bigints_wrap_and_averages_are_cut_toward_zero() {
    let mut tumble = Tumble::new(options()).unwrap();
    let bigint = |key, value| Row { bigint: Some(value), ..row(key, 0, 0.0) };
    add(&mut tumble, &[bigint(0, i64::MAX), bigint(0, 1), bigint(1, -3), bigint(1, 0)], i64::MIN).unwrap();
    let lines = closed(&mut tumble, 10, 10);
    assert!(
        lines[0].ends_with(" 2 -9223372036854775808 -4611686018427387904 1 9223372036854775807 0"),
        "{lines:?}"
    );
    assert!(lines[1].ends_with(" 2 -3 -1 -3 0 0"), "{lines:?}");
}

#[test]
fn nan_is_the_largest_and_minus_zero_below_zero() {
    let mut tumble = Tumble::new(options()).unwrap();
    let rows = [row(0, 0, f64::NAN), row(0, 0, 1.0), row(1, 0, 0.0), row(1, 0, -0.0), row(2, 0, -f64::NAN)];
    add(&mut tumble, &rows, i64::MIN).unwrap();
    let lines = closed(&mut tumble, 10, 10);
    assert!(lines[0].starts_with("0 0 2 2 NaN NaN 1.0 NaN "), "{lines:?}");
    assert!(lines[1].starts_with("0 1 2 2 0.0 0.0 -0.0 0.0 "), "{lines:?}");
    assert!(lines[2].starts_with("0 2 1 1 NaN NaN NaN NaN "), "{lines:?}");
}

#[test]
fn windows_are_aligned_to_the_epoch_also_before_it() {
    let mut tumble = Tumble::new(minimum()).unwrap();
    add(&mut tumble, &[row(0, -1, 1.0), row(0, -10, 2.0), row(0, -11, 3.0), row(0, 10, 4.0)], i64::MIN)
        .unwrap();
    assert_eq!(closed(&mut tumble, 20, 10), ["-20 0 3.0 0", "-10 0 1.0 0", "10 0 4.0 0"]);
}

#[test]
fn a_late_row_amends_what_came_out() {
    let mut tumble = Tumble::new(minimum()).unwrap();
    add(&mut tumble, &[row(0, 0, 5.0), row(2, 0, 5.0)], i64::MIN).unwrap();
    assert_eq!(closed(&mut tumble, 10, 10), ["0 0 5.0 0", "0 2 5.0 0"]);
    let added =
        add(&mut tumble, &[row(2, 1, 4.0), row(1, 1, 9.0), row(2, 1, 3.0), row(0, 12, 1.0)], 10).unwrap();
    assert_eq!(added, Added { rows: 4, late_rows: 3, ..Added::default() });
    assert_eq!(closed(&mut tumble, 10, 10), ["0 1 9.0 0", "0 2 3.0 1"]);
    add(&mut tumble, &[row(1, 2, 10.0)], 10).unwrap();
    assert_eq!(closed(&mut tumble, 20, 10), ["0 1 9.0 1", "10 0 1.0 0"]);
}

#[test]
fn a_late_row_into_a_window_half_out_amends_only_the_half() {
    let mut tumble = Tumble::new(minimum()).unwrap();
    add(&mut tumble, &[row(0, 0, 5.0), row(1, 0, 5.0), row(2, 0, 5.0)], i64::MIN).unwrap();
    assert_eq!(lines(&tumble.close(10, 2).unwrap()), ["0 0 5.0 0", "0 1 5.0 0"]);
    add(&mut tumble, &[row(1, 0, 1.0), row(2, 0, 1.0)], 10).unwrap();
    assert_eq!(closed(&mut tumble, 10, 1), ["0 1 1.0 1", "0 2 1.0 0"]);
}

#[test]
fn rows_for_a_forgotten_window_are_dropped() {
    let mut tumble = Tumble::new(minimum()).unwrap();
    add(&mut tumble, &[row(0, 0, 5.0), row(0, 10, 5.0)], i64::MIN).unwrap();
    // Not yet out: kept until it is.
    tumble.forget(10);
    assert_eq!(tumble.panes(), 2);
    assert_eq!(closed(&mut tumble, 10, 10), ["0 0 5.0 0"]);
    assert_eq!(tumble.panes(), 1);
    let added = add(&mut tumble, &[row(0, 3, 1.0), row(0, 10, 2.0)], 10).unwrap();
    assert_eq!(added, Added { rows: 1, dropped_rows: 1, ..Added::default() });
    assert_eq!(closed(&mut tumble, 20, 10), ["10 0 2.0 0"]);
}

#[test]
fn at_the_bound_old_results_go_first_then_nothing_is_added() {
    let page = super::panes::PAGE_BYTES;
    let mut tumble = Tumble::new(TumbleOptions { max_bytes: 2 * page + 100, ..minimum() }).unwrap();
    add(&mut tumble, &[row(0, 0, 1.0), row(0, 10, 1.0)], i64::MIN).unwrap();
    let before = tumble.encode();
    let error = add(&mut tumble, &[row(0, 10, 0.5), row(0, 20, 1.0)], i64::MIN).unwrap_err();
    assert!(matches!(error, AddError::Full { panes: 3, .. }), "{error}");
    assert_eq!(tumble.encode(), before);
    closed(&mut tumble, 10, 10);
    // The batch's own late row keeps the only window that could go.
    assert!(add(&mut tumble, &[row(0, 0, 0.5), row(0, 20, 1.0)], 10).is_err());
    let added = add(&mut tumble, &[row(0, 20, 1.0)], 10).unwrap();
    assert_eq!(added, Added { rows: 1, evicted_panes: 1, ..Added::default() });
    assert_eq!(add(&mut tumble, &[row(0, 0, 1.0)], 10).unwrap().dropped_rows, 1);
}

#[test]
fn the_number_of_windows_is_bounded() {
    let mut tumble = Tumble::new(TumbleOptions { max_panes: 2, ..minimum() }).unwrap();
    let error = add(&mut tumble, &[row(0, 0, 1.0), row(0, 10, 1.0), row(0, 20, 1.0)], i64::MIN).unwrap_err();
    assert!(error.to_string().contains("2 panes"), "{error}");
    assert_eq!((tumble.panes(), tumble.bytes()), (0, 0));
}

#[test]
fn few_keys_of_many_are_small() {
    let mut tumble = Tumble::new(minimum()).unwrap();
    add(&mut tumble, &[row(5_000_000, 0, 1.0)], i64::MIN).unwrap();
    assert!(tumble.bytes() < 100_000, "{}", tumble.bytes());
    assert_eq!(closed(&mut tumble, 10, 10), ["0 5000000 1.0 0"]);
}

#[test]
fn options_and_batches_that_do_not_fit_are_refused() {
    let bad = |options: TumbleOptions| Tumble::new(options).err().unwrap().to_string();
    assert!(bad(TumbleOptions { size_us: 0, ..options() }).contains("above 0"));
    assert!(bad(TumbleOptions { inputs: vec![], ..options() }).contains("reads input Some(0), of 0"));
    assert!(bad(TumbleOptions { max_panes: 0, ..options() }).contains("max_panes"));
    let mut tumble = Tumble::new(minimum()).unwrap();
    let doubles = [1.0];
    let input = Input { values: Values::Doubles(&doubles), valid: None };
    assert!(matches!(tumble.add(&[0, 1], &[0, 0], &[input], None, 0), Err(AddError::Shape(_))));
    assert!(matches!(tumble.add(&[0], &[0], &[], None, 0), Err(AddError::Shape(_))));
    let input = Input { values: Values::Bigints(&[1]), valid: None };
    assert!(matches!(tumble.add(&[0], &[0], &[input], None, 0), Err(AddError::Shape(_))));
}

#[test]
fn many_inputs_have_counts_instead_of_bits() {
    let inputs = 20;
    let options = TumbleOptions {
        aggregates: (0..inputs).map(|at| aggregate(Function::Max, at)).collect(),
        inputs: vec![InputType::Bigint; inputs],
        ..options()
    };
    let mut tumble = Tumble::new(options.clone()).unwrap();
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
        tumble.add(&[key], &[0], &columns, None, 0).unwrap();
    }
    let mut tumble = Tumble::decode(&tumble.encode(), options).unwrap();
    let lines = closed(&mut tumble, 10, 2);
    assert_eq!(lines.len(), 5);
    assert!(lines[4].starts_with("0 70000 70000 70001 70002 NULL 70004"), "{lines:?}");
    assert!(lines[4].ends_with("70015 70016 NULL 70018 70019 0"), "{lines:?}");
}

#[test]
fn a_snapshot_of_another_query_is_refused() {
    let bytes = Tumble::new(minimum()).unwrap().encode();
    assert!(matches!(Tumble::decode(&bytes, options()), Err(StateError::OtherQuery)));
    assert!(Tumble::decode(&bytes, TumbleOptions { max_bytes: 1, ..minimum() }).is_ok());
    assert!(matches!(Tumble::decode(b"", minimum()), Err(StateError::Damaged { .. })));
    let groups = KeyInterner::new(vec![], 1).encode();
    assert!(matches!(Tumble::decode(&groups, minimum()), Err(StateError::Version { .. })));
}

/// The same rules by way of one map of lists.
#[derive(Default)]
struct Oracle {
    windows: BTreeMap<(i64, u32), Vec<Row>>,
    /// Revision that came out last, and whether the rows have changed since.
    emitted: HashMap<(i64, u32), (i64, bool)>,
    forgotten: Option<i64>,
}

impl Oracle {
    fn add(&mut self, rows: &[Row], watermark: i64) -> Added {
        let mut added = Added::default();
        for row in rows.iter().filter(|row| row.selected) {
            let start = row.ts.div_euclid(SIZE) * SIZE;
            if self.forgotten.is_some_and(|before| start + SIZE <= before) {
                added.dropped_rows += 1;
                continue;
            }
            added.rows += 1;
            added.late_rows += (start + SIZE <= watermark) as u64;
            self.windows.entry((start, row.key)).or_default().push(*row);
            if let Some((_, changed)) = self.emitted.get_mut(&(start, row.key)) {
                *changed = true;
            }
        }
        added
    }

    fn close(&mut self, watermark: i64) -> Vec<String> {
        let mut lines = Vec::new();
        for ((start, key), rows) in &self.windows {
            if start + SIZE > watermark {
                continue;
            }
            let revision = match self.emitted.get(&(*start, *key)) {
                Some((_, false)) => continue,
                Some((revision, true)) => revision + 1,
                None => 0,
            };
            self.emitted.insert((*start, *key), (revision, false));
            lines.push(format!("{start} {key} {} {revision}", aggregates(rows)));
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
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let double = prop_oneof![
        4 => -5.0..5.0f64,
        1 => prop::sample::select(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, f64::MAX][..]),
    ];
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
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_sequence_of_calls_gives_what_a_map_gives(steps in steps()) {
        let mut tumble = Tumble::new(options()).unwrap();
        let mut oracle = Oracle::default();
        let mut watermark = -40;
        for step in steps {
            match step {
                Step::Add(rows) => {
                    let found = add(&mut tumble, &rows, watermark).unwrap();
                    prop_assert_eq!(found, oracle.add(&rows, watermark));
                }
                Step::Advance(by) => watermark += by,
                Step::Slice(rows) => {
                    // The oracle knows no slices: what came out is a prefix of all that was due.
                    let mut found = tumble.close(watermark, rows).map_or(vec![], |batch| lines(&batch));
                    prop_assert!(found.len() <= rows);
                    found.extend(closed(&mut tumble, watermark, rows));
                    prop_assert_eq!(found, oracle.close(watermark));
                }
                Step::Close => prop_assert_eq!(closed(&mut tumble, watermark, 1000), oracle.close(watermark)),
                Step::Forget(behind) => {
                    tumble.forget(watermark - behind);
                    oracle.forget(watermark - behind);
                }
                Step::Restart => {
                    let bytes = tumble.encode();
                    tumble = Tumble::decode(&bytes, options()).unwrap();
                    prop_assert_eq!(tumble.encode(), bytes);
                }
            }
        }
        prop_assert_eq!(closed(&mut tumble, 1000, 7), oracle.close(1000));
    }

    /// Rows added between slices: each (window, key) ends with the same values and without a gap in its revisions.
    #[test]
    fn slices_between_batches_end_in_the_same_results(
        batches in prop::collection::vec((prop::collection::vec((0u32..8, 0i64..40, -5i64..5), 0..20), 0usize..5, 0i64..15, any::<bool>()), 1..12),
    ) {
        let mut tumble = Tumble::new(options()).unwrap();
        let mut oracle = Oracle::default();
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
            add(&mut tumble, &rows, watermark).unwrap();
            oracle.add(&rows, watermark);
            watermark += advance;
            if slice > 0 {
                tumble.close(watermark, slice).into_iter().for_each(&mut take);
            }
            if restart {
                tumble = Tumble::decode(&tumble.encode(), options()).unwrap();
            }
        }
        while let Some(batch) = tumble.close(i64::MAX, 3) {
            take(batch);
        }
        let expected: Vec<String> = oracle.windows.iter().map(|((start, key), rows)| format!("{start} {key} {}", aggregates(rows))).collect();
        prop_assert_eq!(last.into_values().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_damaged_snapshot_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut tumble = Tumble::new(options()).unwrap();
        add(&mut tumble, &[row(0, 0, 1.0), row(3, 11, 2.0)], 0).unwrap();
        closed(&mut tumble, 10, 10);
        add(&mut tumble, &[row(0, 0, 1.0)], 10).unwrap();
        let mut bytes = tumble.encode();
        let at = at.index(bytes.len());
        prop_assert!(Tumble::decode(&bytes[..at], options()).is_err());
        bytes[at] ^= 1 << bit;
        prop_assert!(Tumble::decode(&bytes, options()).is_err());
    }

    #[test]
    fn ordered_keys_compare_as_double_compare(a: f64, b: f64) {
        prop_assert_eq!(ordered(a).cmp(&ordered(b)), a.total_cmp(&b));
        prop_assert_eq!(from_ordered(ordered(a)).to_bits(), a.to_bits());
        prop_assert!(ordered(f64::NAN) > ordered(a) && ordered(-f64::NAN) == ordered(f64::NAN));
    }
}
