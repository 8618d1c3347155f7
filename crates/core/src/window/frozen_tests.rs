//! Snapshots of what has changed, and results of open windows.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::{Array, StringArray};
use proptest::prelude::*;

use super::tests::lines;
use super::*;

const SIZE: i64 = 10;

fn of(function: Function) -> Aggregate {
    Aggregate { function, input: Some(0) }
}

/// COUNT(*) and the functions over one bigint.
fn options(shape: Shape, functions: &[Function]) -> AlignedOptions {
    let mut aggregates = vec![Aggregate { function: Function::CountStar, input: None }];
    aggregates.extend(functions.iter().copied().map(of));
    AlignedOptions {
        shape,
        aggregates,
        inputs: vec![InputType::Bigint],
        max_bytes: 256 << 20,
        max_panes: 100,
    }
}

fn tumbling() -> AlignedOptions {
    options(Shape::Tumble { size_us: SIZE }, &[Function::Sum])
}

/// Rows of (key, ts, value).
fn add(windows: &mut AlignedWindows, rows: &[(u32, i64, i64)], watermark: i64) {
    let keys: Vec<u32> = rows.iter().map(|row| row.0).collect();
    let ts: Vec<i64> = rows.iter().map(|row| row.1).collect();
    let values: Vec<i64> = rows.iter().map(|row| row.2).collect();
    let input = Input { values: Values::Bigints(&values), valid: None };
    windows.add(&keys, &ts, &[input], None, watermark).unwrap();
}

fn close(windows: &mut AlignedWindows, watermark: i64) -> Vec<String> {
    std::iter::from_fn(|| windows.close(watermark, 1000)).flat_map(|batch| lines(&batch)).collect()
}

fn early(windows: &mut AlignedWindows, watermark: i64, max_rows: usize) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(batch) = windows.early(watermark, max_rows) {
        assert!(batch.num_rows() <= max_rows);
        all.extend(lines(&batch));
    }
    all
}

fn whole(windows: &AlignedWindows) -> Vec<u8> {
    windows.clone().freeze(true).to_bytes()
}

fn restored(saved: &[Frozen], options: AlignedOptions) -> AlignedWindows {
    let mut windows = AlignedWindows::decode(&saved[0].to_bytes(), options).unwrap();
    saved[1..].iter().for_each(|changes| windows.apply(&changes.to_bytes()).unwrap());
    windows
}

#[test]
fn changes_hold_what_has_changed_and_no_more() {
    let mut windows = AlignedWindows::new(tumbling()).unwrap();
    let rows: Vec<_> = (0..50_000).map(|key| (key, 3, 1)).collect();
    add(&mut windows, &rows, 0);
    let mut saved = vec![windows.freeze(true)];
    assert!(saved[0].length() > 50_000 * 20);
    for key in [7, 40_000] {
        add(&mut windows, &[(key, 4, 5), (key, 12, 1)], 0);
        saved.push(windows.freeze(false));
        let changes = &saved[saved.len() - 1];
        assert!(changes.length() < 400, "{} bytes", changes.length());
        assert_eq!(changes.length(), changes.to_bytes().len() as u64);
    }
    let nothing = windows.freeze(false);
    assert!(nothing.length() < 150, "{} bytes", nothing.length());
    saved.push(nothing);
    assert_eq!(whole(&restored(&saved, tumbling())), whole(&windows));
}

#[test]
fn a_snapshot_stays_as_it_was_when_it_was_taken() {
    let mut windows = AlignedWindows::new(tumbling()).unwrap();
    add(&mut windows, &[(1, 0, 1), (2000, 0, 1)], 0);
    let before = whole(&windows);
    let frozen = windows.freeze(true);
    add(&mut windows, &[(1, 0, 1), (2, 0, 1), (2000, 11, 1)], 0);
    close(&mut windows, 10);
    windows.forget(10);
    add(&mut windows, &[(2000, 25, 1)], 10);
    assert_eq!(frozen.to_bytes(), before);
    let path = tempfile::NamedTempFile::new().unwrap();
    frozen.append_to(path.path()).unwrap();
    assert_eq!(std::fs::read(path.path()).unwrap(), before);
}

#[test]
fn what_is_forgotten_is_gone_after_the_changes_too() {
    let mut windows = AlignedWindows::new(tumbling()).unwrap();
    add(&mut windows, &[(1, 0, 1), (2, 11, 1)], 0);
    close(&mut windows, 10);
    let mut saved = vec![windows.freeze(true)];
    windows.forget(10);
    saved.push(windows.freeze(false));
    let mut windows = restored(&saved, tumbling());
    assert_eq!(windows.panes(), 1);
    add(&mut windows, &[(1, 0, 1)], 10);
    assert_eq!(close(&mut windows, 20), ["10 2 1 1 0"]);
}

#[test]
fn a_whole_state_is_no_change_and_the_other_way_round() {
    let mut windows = AlignedWindows::new(tumbling()).unwrap();
    let (whole, changes) = (windows.freeze(true).to_bytes(), windows.freeze(false).to_bytes());
    assert!(matches!(AlignedWindows::decode(&changes, tumbling()), Err(StateError::Part { .. })));
    assert!(matches!(windows.apply(&whole), Err(StateError::Part { .. })));
    assert!(matches!(windows.apply(b"1234"), Err(StateError::Damaged { .. })));
    let hop = options(Shape::Hop { slide_us: 5, size_us: 10 }, &[Function::Sum]);
    let mut other = AlignedWindows::new(hop).unwrap();
    assert!(matches!(other.apply(&changes), Err(StateError::OtherQuery { .. })));
}

/// FIRST_VALUE, LAST_VALUE, COUNT(DISTINCT x) and COUNT(x) of a text.
fn of_texts(shape: Shape) -> AlignedOptions {
    let functions = [Function::First, Function::Last, Function::CountDistinct, Function::Count];
    AlignedOptions { inputs: vec![InputType::Text], ..options(shape, &functions) }
}

/// Keys, times and texts of rows.
type Texts = (Vec<u32>, Vec<i64>, StringArray);

fn texts(rows: &[(u32, i64, Option<&str>)]) -> Texts {
    let column = rows.iter().map(|row| row.2).collect();
    (rows.iter().map(|row| row.0).collect(), rows.iter().map(|row| row.1).collect(), column)
}

#[test]
fn first_and_last_texts_survive_panes_and_restarts() {
    let shape = Shape::Hop { slide_us: 5, size_us: 10 };
    let mut windows = AlignedWindows::new(of_texts(shape.clone())).unwrap();
    let add = |windows: &mut AlignedWindows, rows: &[(u32, i64, Option<&str>)]| {
        let (keys, ts, column) = texts(rows);
        let input = Input { values: Values::Texts(&column), valid: column.nulls() };
        windows.add(&keys, &ts, &[input], None, i64::MIN).unwrap();
    };
    add(&mut windows, &[(1, 3, Some("b")), (1, 2, Some("a")), (1, 7, None), (2, 7, None)]);
    let mut saved = vec![windows.freeze(true)];
    add(&mut windows, &[(1, 8, Some("")), (1, 8, Some("longer than it was")), (2, 9, Some("x"))]);
    saved.push(windows.freeze(false));
    let mut windows = restored(&saved, of_texts(shape));
    assert_eq!(
        close(&mut windows, 20),
        [
            "-5 1 2 a b 2 2 0",
            "0 1 5 a longer than it was 4 4 0",
            "0 2 2 x x 1 1 0",
            "5 1 3  longer than it was 2 2 0",
            "5 2 2 x x 1 1 0"
        ]
    );
    windows.forget(20);
    let sum = AlignedOptions { inputs: vec![InputType::Text], ..tumbling() };
    assert!(AlignedWindows::new(sum).is_err());
}

#[test]
fn texts_of_sessions_that_merge_are_those_of_the_whole() {
    let of = of_texts(Shape::Tumble { size_us: SIZE });
    let options =
        SessionOptions { gap_us: 5, aggregates: of.aggregates, inputs: of.inputs, max_bytes: 1 << 20 };
    let mut windows = SessionWindows::new(options.clone()).unwrap();
    let (keys, ts, column) =
        texts(&[(0, 0, Some("first")), (0, 10, Some("last")), (0, 9, Some("other")), (0, 5, Some("middle"))]);
    let input = Input { values: Values::Texts(&column), valid: None };
    windows.add(&keys, &ts, &[input], None, &[i64::MIN; 4]).unwrap();
    windows = SessionWindows::decode(&windows.freeze(true).to_bytes(), options).unwrap();
    let closed: Vec<String> =
        std::iter::from_fn(|| windows.close(100, 9)).flat_map(|batch| lines(&batch)).collect();
    assert_eq!(closed, ["0 0 4 first last 4 4 0"]);
    let mut again = || {
        windows.add(&keys, &ts, &[input], None, &[i64::MIN; 4]).unwrap();
        windows.close(100, 9);
        windows.bytes()
    };
    // The first time makes places for sessions, which stay.
    let empty = again();
    assert_eq!(again(), empty, "a text was left behind");
}

#[test]
fn open_windows_show_keys_that_have_changed() {
    let mut windows = AlignedWindows::new(tumbling()).unwrap();
    add(&mut windows, &[(5, 1, 1), (3, 2, 1), (5, 14, 7)], -1);
    // The window from 10 on has not begun.
    assert_eq!(early(&mut windows, 2, 1), ["0 3 1 1 0", "0 5 1 1 0"]);
    assert_eq!(early(&mut windows, 3, 10), [""; 0]);
    add(&mut windows, &[(3, 2, 4)], 3);
    assert_eq!(early(&mut windows, 6, 10), ["0 3 2 5 0"]);
    assert_eq!(close(&mut windows, 10), ["0 3 2 5 0", "0 5 1 1 0"]);
    assert_eq!(early(&mut windows, 10, 10), ["10 5 1 7 0"]);
}

#[test]
fn what_was_shown_is_known_after_a_restart() {
    let mut windows = AlignedWindows::new(tumbling()).unwrap();
    add(&mut windows, &[(5, 1, 1), (3, 2, 1)], -1);
    let mut saved = vec![windows.freeze(true)];
    early(&mut windows, 2, 10);
    add(&mut windows, &[(3, 2, 4)], 2);
    saved.push(windows.freeze(false));
    let mut windows = restored(&saved, tumbling());
    assert_eq!(early(&mut windows, 6, 10), ["0 3 2 5 0"]);
}

/// Rows, how far the watermark goes after them, and what happens then.
type Round = (Vec<(u32, i64, i64)>, i64, bool, bool);

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    // Keys that share pages and keys that do not.
    let key = prop_oneof![0u32..6, 1000u32..1003, 70_000u32..70_002];
    let rows = prop::collection::vec((key, -10i64..20, -4i64..5), 0..30);
    prop::collection::vec((rows, 0i64..9, any::<bool>(), any::<bool>()), 1..15)
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop::sample::select(vec![
        Shape::Tumble { size_us: SIZE },
        Shape::Hop { slide_us: 5, size_us: 20 },
        Shape::Cumulate { step_us: 5, size_us: 20 },
        Shape::Calendar { starts_us: vec![-25, -3, 0, 11, 12, 30, 45, 200].into() },
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_whole_state_and_its_changes_are_the_state(
        rounds in rounds(),
        shape in shapes(),
        functions in prop::sample::select(vec![
            vec![Function::Sum, Function::Last],
            vec![Function::CountDistinct],
            vec![Function::Percentile { millionths: 500_000 }, Function::CountDistinct, Function::Avg],
        ]),
    ) {
        let options = options(shape, &functions);
        let mut windows = AlignedWindows::new(options.clone()).unwrap();
        let mut saved = vec![windows.freeze(true)];
        let mut watermark = 0;
        for (rows, advance, shows, saves) in rounds {
            let rows: Vec<_> = rows.iter().map(|(key, ts, value)| (*key, watermark + ts, *value)).collect();
            add(&mut windows, &rows, watermark);
            watermark += advance;
            close(&mut windows, watermark);
            windows.forget(watermark - 15);
            if shows {
                early(&mut windows, watermark, 3);
            }
            if saves {
                saved.push(windows.freeze(false));
            }
        }
        saved.push(windows.freeze(false));
        let mut other = restored(&saved, options);
        prop_assert_eq!(whole(&other), whole(&windows));
        prop_assert_eq!(early(&mut other, watermark, 4), early(&mut windows, watermark, 1000));
        prop_assert_eq!(close(&mut other, 1000), close(&mut windows, 1000));
    }

    #[test]
    fn damaged_changes_are_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut windows = AlignedWindows::new(tumbling()).unwrap();
        windows.freeze(true);
        add(&mut windows, &[(0, 0, 1), (3, 11, 2)], 0);
        let mut bytes = windows.freeze(false).to_bytes();
        let at = at.index(bytes.len());
        prop_assert!(windows.apply(&bytes[..at]).is_err());
        bytes[at] ^= 1 << bit;
        prop_assert!(windows.apply(&bytes).is_err());
    }

    /// Fixed windows: what is shown is what a map has, of keys with a row since they were shown last.
    #[test]
    fn early_results_are_those_of_a_map(rounds in rounds()) {
        let mut windows = AlignedWindows::new(tumbling()).unwrap();
        let mut sums: BTreeMap<(i64, u32), (i64, i64)> = BTreeMap::new();
        let mut unseen = BTreeSet::new();
        let mut watermark = 0;
        for (rows, advance, shows, _) in rounds {
            let rows: Vec<_> = rows.iter().map(|(key, ts, value)| (*key, watermark + ts.max(&0), *value)).collect();
            add(&mut windows, &rows, watermark);
            for (key, ts, value) in rows {
                let name = (ts.div_euclid(SIZE) * SIZE, key);
                let sum = sums.entry(name).or_default();
                *sum = (sum.0 + 1, sum.1 + value);
                unseen.insert(name);
            }
            watermark += advance;
            close(&mut windows, watermark);
            if shows {
                let due = |name: &&(i64, u32)| name.0 <= watermark && watermark < name.0 + SIZE;
                let shown: Vec<(i64, u32)> = unseen.iter().filter(due).copied().collect();
                let wanted: Vec<String> =
                    shown.iter().map(|name| format!("{} {} {} {} 0", name.0, name.1, sums[name].0, sums[name].1)).collect();
                prop_assert_eq!(early(&mut windows, watermark, 3), wanted);
                shown.iter().for_each(|name| { unseen.remove(name); });
            }
        }
    }
}
