//! Sessions: examples, then any rows in any batches against a plain list.

use arrow_array::RecordBatch;
use arrow_buffer::NullBuffer;
use proptest::prelude::*;

use super::tests::texts;
use super::*;

const GAP: i64 = 10;

fn options() -> SessionOptions {
    let of = |function, input| Aggregate { function, input: Some(input) };
    let aggregates = vec![
        Aggregate { function: Function::CountStar, input: None },
        of(Function::Sum, 0),
        of(Function::Min, 0),
        of(Function::First, 0),
        of(Function::Last, 0),
        of(Function::CountDistinct, 0),
    ];
    SessionOptions { gap_us: GAP, aggregates, inputs: vec![InputType::Bigint], max_bytes: 64 << 20 }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    key: u32,
    ts: i64,
    value: Option<i64>,
    /// Before the row.
    watermark: i64,
}

fn row(key: u32, ts: i64, value: i64, watermark: i64) -> Row {
    Row { key, ts, value: Some(value), watermark }
}

fn add(windows: &mut SessionWindows, rows: &[Row]) -> Result<Added, AddError> {
    let keys: Vec<u32> = rows.iter().map(|row| row.key).collect();
    let ts: Vec<i64> = rows.iter().map(|row| row.ts).collect();
    let values: Vec<i64> = rows.iter().map(|row| row.value.unwrap_or(99)).collect();
    let valid = NullBuffer::from_iter(rows.iter().map(|row| row.value.is_some()));
    let watermarks: Vec<i64> = rows.iter().map(|row| row.watermark).collect();
    let input = Input { values: Values::Bigints(&values), valid: Some(&valid) };
    windows.add(&keys, &ts, &[input], None, &watermarks)
}

fn closed(windows: &mut SessionWindows, watermark: i64, max_rows: usize) -> Vec<String> {
    let all = |batch: RecordBatch| texts(&batch, true);
    std::iter::from_fn(|| windows.close(watermark, max_rows)).flat_map(all).collect()
}

#[test]
fn a_row_a_gap_away_joins_and_one_beyond_does_not() {
    let mut windows = SessionWindows::new(options()).unwrap();
    add(&mut windows, &[row(0, 0, 1, 0), row(0, 10, 2, 0), row(0, 21, 4, 0)]).unwrap();
    assert_eq!(closed(&mut windows, 19, 10), [""; 0]);
    assert_eq!(closed(&mut windows, 31, 10), ["0 20 0 2 3 1 1 2 2 0", "21 31 0 1 4 4 4 4 1 0"]);
    assert_eq!((windows.sessions(), closed(&mut windows, 1000, 10).len()), (0, 0));
}

#[test]
fn a_row_between_two_sessions_merges_them() {
    let mut windows = SessionWindows::new(options()).unwrap();
    let rows = [row(3, 20, 5, 0), row(3, 0, 7, 0), row(1, 11, 1, 0), row(3, 10, 6, 0), row(3, 12, 5, 0)];
    add(&mut windows, &rows).unwrap();
    assert_eq!(windows.sessions(), 2);
    assert_eq!(closed(&mut windows, 30, 1), ["11 21 1 1 1 1 1 1 1 0", "0 30 3 4 23 5 7 5 3 0"]);
    assert_eq!(windows.cells.bytes(), 0);
}

#[test]
fn late_rows_join_open_sessions_and_are_dropped_otherwise() {
    let mut windows = SessionWindows::new(options()).unwrap();
    // The session of 0 is closed at 10; the row at 2 could only change it. The row at 9 joins the one of 15.
    let rows = [row(0, 0, 1, 0), row(0, 15, 2, 5), row(0, 2, 4, 12), row(0, 9, 8, 22)];
    let added = add(&mut windows, &rows).unwrap();
    assert_eq!(added, Added { rows: 3, dropped_rows: 1, ..Added::default() });
    assert_eq!(closed(&mut windows, 25, 10), ["0 10 0 1 1 1 1 1 1 0", "9 25 0 2 10 2 8 2 2 0"]);
}

#[test]
fn at_the_bound_nothing_is_added() {
    let mut windows = SessionWindows::new(SessionOptions { max_bytes: 200, ..options() }).unwrap();
    let error = add(&mut windows, &[row(0, 0, 1, 0), row(1, 0, 1, 0)]).unwrap_err();
    assert!(matches!(error, AddError::SessionsFull { sessions: 0, rows: 2, .. }), "{error}");
    assert_eq!(windows.sessions(), 0);
}

#[test]
fn options_and_snapshots_that_do_not_fit_are_refused() {
    assert!(SessionWindows::new(SessionOptions { gap_us: 0, ..options() }).is_err());
    let mut windows = SessionWindows::new(options()).unwrap();
    add(&mut windows, &[row(0, 0, 1, 0)]).unwrap();
    let bytes = windows.freeze(true).to_bytes();
    let other = SessionOptions { gap_us: 11, ..options() };
    assert!(matches!(SessionWindows::decode(&bytes, other), Err(StateError::OtherQuery { .. })));
    for at in 0..bytes.len() {
        assert!(SessionWindows::decode(&bytes[..at], options()).is_err());
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(SessionWindows::decode(&damaged, options()).is_err());
    }
}

#[test]
fn a_snapshot_of_version_1_is_read() {
    // COUNT(*) with a gap of 10: key 3 with an open session, key 4 with one that waits to come out.
    let of = SessionOptions {
        aggregates: vec![Aggregate { function: Function::CountStar, input: None }],
        inputs: vec![],
        ..options()
    };
    let mut bytes = b"HWSESSNS\x01\0".to_vec();
    bytes.extend(GAP.to_le_bytes());
    bytes.extend([1u16, 0, 2, 0xffff, 0, 0].map(u16::to_le_bytes).concat());
    bytes.extend(2u32.to_le_bytes());
    for (key, first, last, closed, rows) in [(3u32, 20i64, 25i64, 0u8, 2u64), (4, 0, 5, 1, 9)] {
        bytes.extend(key.to_le_bytes());
        bytes.extend([first, last].map(i64::to_le_bytes).concat());
        bytes.push(closed);
        bytes.extend(rows.to_le_bytes());
    }
    let mut windows = SessionWindows::decode(&seal(bytes), of.clone()).unwrap();
    windows = SessionWindows::decode(&windows.freeze(true).to_bytes(), of).unwrap();
    assert_eq!(closed(&mut windows, 20, 10), ["0 15 4 9 0"]);
    assert_eq!(closed(&mut windows, 35, 10), ["20 35 3 2 0"]);
}

/// Sessions by the definition: lists of rows, merged whenever they touch.
#[derive(Default)]
struct Oracle {
    open: Vec<Vec<Row>>,
    closed: Vec<String>,
    dropped: u64,
}

impl Oracle {
    fn bounds(rows: &[Row]) -> (i64, i64) {
        let times = || rows.iter().map(|row| row.ts);
        (times().min().unwrap(), times().max().unwrap() + GAP)
    }

    fn close(&mut self, watermark: i64) {
        let (mut closed, open): (Vec<_>, Vec<_>) =
            self.open.drain(..).partition(|rows| Oracle::bounds(rows).1 <= watermark);
        self.open = open;
        closed.sort_by_key(|rows| (Oracle::bounds(rows).1, rows[0].key));
        self.closed.extend(closed.iter().map(|rows| Oracle::text(rows)));
    }

    fn add(&mut self, row: Row) {
        self.close(row.watermark);
        let touches = |rows: &Vec<Row>| {
            let (start, end) = Oracle::bounds(rows);
            rows[0].key == row.key && start <= row.ts + GAP && end >= row.ts
        };
        let (joined, open): (Vec<_>, Vec<_>) = self.open.drain(..).partition(touches);
        self.open = open;
        let mut rows: Vec<Row> = joined.into_iter().flatten().collect();
        rows.push(row);
        if Oracle::bounds(&rows).1 <= row.watermark {
            self.dropped += 1;
        } else {
            self.open.push(rows);
        }
    }

    fn text(rows: &[Row]) -> String {
        let (start, end) = Oracle::bounds(rows);
        let some: Vec<Row> = rows.iter().copied().filter(|row| row.value.is_some()).collect();
        let values: Vec<i64> = some.iter().filter_map(|row| row.value).collect();
        let show = |value: Option<i64>| value.map_or("NULL".to_owned(), |value| value.to_string());
        let mut distinct = values.clone();
        distinct.sort_unstable();
        distinct.dedup();
        [
            format!("{start} {end} {} {}", rows[0].key, rows.len()),
            show((!values.is_empty()).then(|| values.iter().sum())),
            show(values.iter().copied().min()),
            // Values are all different where times are equal only in the tests above.
            show(some.iter().min_by_key(|row| row.ts).and_then(|row| row.value)),
            show(some.iter().max_by_key(|row| row.ts).and_then(|row| row.value)),
            distinct.len().to_string(),
            "0".to_owned(),
        ]
        .join(" ")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_rows_in_any_batches_give_what_lists_give(
        rows in prop::collection::vec((0u32..4, -15i64..25, prop::option::weighted(0.8, -3i64..3), 0i64..4), 0..150),
        batches in prop::collection::vec((1usize..20, prop::option::of(1usize..4), any::<bool>()), 1..30),
    ) {
        let mut windows = SessionWindows::new(options()).unwrap();
        let mut oracle = Oracle::default();
        let mut saved = vec![windows.freeze(true)];
        let (mut watermark, mut found, mut dropped) = (0, Vec::new(), 0);
        let mut seen = std::collections::HashSet::new();
        let mut all = Vec::new();
        for (key, around, value, rise) in rows {
            // Ties are another test's matter: sessions that merge keep no order between their rows here.
            if seen.insert((key, watermark + around)) {
                all.push(Row { key, ts: watermark + around, value, watermark });
            }
            watermark += rise;
        }
        let mut rest = &all[..];
        for (take, slice, restart) in batches.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (batch, after) = rest.split_at((*take).min(rest.len()));
            rest = after;
            dropped += add(&mut windows, batch).unwrap().dropped_rows;
            batch.iter().for_each(|row| oracle.add(*row));
            let now = after.first().map_or(watermark, |row| row.watermark);
            if let Some(slice) = slice {
                found.extend(windows.close(now, *slice).iter().flat_map(|batch| texts(batch, true)));
            }
            saved.push(windows.freeze(false));
            if *restart {
                let mut restarted = SessionWindows::decode(&saved[0].to_bytes(), options()).unwrap();
                for changes in &saved[1..] {
                    restarted.apply(&changes.to_bytes()).unwrap();
                }
                prop_assert_eq!(restarted.freeze(true).to_bytes(), windows.freeze(true).to_bytes());
                saved = vec![restarted.freeze(true)];
                windows = restarted;
            }
        }
        found.extend(closed(&mut windows, i64::MAX, 3));
        oracle.close(i64::MAX);
        prop_assert_eq!(dropped, oracle.dropped);
        prop_assert_eq!(found, oracle.closed);
    }
}
