//! The body of a block of rows: one column after the other, each in the smallest of a few layouts.
//!
//! Encoding runs on the thread that submits, so it must be cheap: one pass to find the range, one to
//! write. There is one layout for a block of one row and for one of 10,000, and every layout gives row
//! `n` without reading the rows before it. `columns.rs` reads what this file writes; every byte is
//! drawn in `docs/formats/log.md`.

use super::varint::{put_varint, put_zigzag};
use crate::rows::{ColumnRows, Rows, Values};
use crate::schema::ColumnType;

/// First byte of a column, without `NULLABLE`.
pub mod tag {
    /// Every row is NULL; nothing follows.
    pub const NULLS: u8 = 0;
    /// Integers and timestamps.
    pub const INTS: u8 = 1;
    /// Doubles as integers over a power of ten.
    pub const DECIMALS: u8 = 2;
    /// Doubles, 8 bytes each.
    pub const DOUBLES: u8 = 3;
    /// Booleans, one bit each.
    pub const BITS: u8 = 4;
    pub const FALSE: u8 = 5;
    pub const TRUE: u8 = 6;
    /// Strings and binaries: lengths, then the bytes.
    pub const BYTES: u8 = 7;
    /// Strings: the distinct ones, then one index a row.
    pub const DICTIONARY: u8 = 8;
    /// The key column: ids of the partition's key dictionary.
    pub const KEYS: u8 = 9;
    /// Added to the tag: a validity bitmap follows it.
    pub const NULLABLE: u8 = 0x80;
}

/// Most decimal places tried for doubles; 9 covers nanounits and GPS degrees to 0.1 mm.
pub const MAX_DECIMALS: u8 = 9;
pub const POWERS_OF_TEN: [f64; MAX_DECIMALS as usize + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Divisors of integers, by their code: timestamps often have whole milliseconds or seconds.
pub const INT_SCALES: [u64; 3] = [1, 1_000, 1_000_000];
/// Most distinct strings in a dictionary: an index is one byte.
pub const MAX_DICTIONARY: usize = 255;

/// Memory that encoding reuses; one per thread.
#[derive(Default)]
pub struct Scratch {
    ints: Vec<i64>,
    indexes: Vec<u8>,
    dictionary: Vec<u32>,
}

/// Appends the frame of `rows`, at least one.
///
/// `key_ids`: the ids of the key column's values, one a row; empty if the schema has no key.
/// `ts_min`: what the block's directory entry states; timestamps are stored relative to it.
pub fn encode(rows: &Rows, key_ids: &[u32], ts_min: i64, out: &mut Vec<u8>, scratch: &mut Scratch) {
    for (at, column) in rows.columns.iter().enumerate() {
        let ty = rows.schema.columns[at].ty;
        let nulls = column.valid.iter().filter(|valid| !**valid).count();
        // A key column keeps its ids where every value is NULL: readers number rows by them.
        if nulls == rows.len() && rows.schema.key != Some(at) {
            out.push(tag::NULLS);
            continue;
        }
        let valid = if nulls == 0 { &[][..] } else { &column.valid };
        if rows.schema.key == Some(at) {
            scratch.ints.clear();
            scratch.ints.extend(key_ids.iter().map(|id| i64::from(*id)));
            put_tag(out, tag::KEYS, valid);
            put_ints(out, &scratch.ints, &[], 0, &INT_SCALES[..1]);
            continue;
        }
        match &column.values {
            Values::Int(values) => {
                let (reference, scales) = if ty == ColumnType::Timestamp {
                    (ts_min, &INT_SCALES[..])
                } else {
                    (0, &INT_SCALES[..1])
                };
                put_tag(out, tag::INTS, valid);
                put_ints(out, values, valid, reference, scales);
            }
            Values::Double(values) => put_doubles(out, values, valid, &mut scratch.ints),
            Values::Boolean(values) => put_booleans(out, values, valid),
            Values::Bytes { ends, data } => {
                if ty == ColumnType::Binary || !put_dictionary(out, column, ends, data, valid, scratch) {
                    put_tag(out, tag::BYTES, valid);
                    scratch.ints.clear();
                    let starts = std::iter::once(0).chain(ends.iter().copied());
                    scratch.ints.extend(ends.iter().zip(starts).map(|(end, start)| i64::from(end - start)));
                    put_ints(out, &scratch.ints, &[], 0, &INT_SCALES[..1]);
                    out.extend_from_slice(data);
                }
            }
        }
    }
}

fn put_tag(out: &mut Vec<u8>, tag: u8, valid: &[bool]) {
    if valid.is_empty() {
        out.push(tag);
    } else {
        out.push(tag | tag::NULLABLE);
        put_bits(out, valid);
    }
}

fn put_bits(out: &mut Vec<u8>, bits: &[bool]) {
    out.extend(
        bits.chunks(8)
            .map(|chunk| chunk.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at)),
    );
}

/// Frame of reference: code of scale and width, the least value, then each value's distance from it.
/// Rows that are not valid are stored as the least value, so that a NULL does not widen the others.
fn put_ints(out: &mut Vec<u8>, values: &[i64], valid: &[bool], reference: i64, scales: &[u64]) {
    let (mut min, mut max) = (i64::MAX, i64::MIN);
    if valid.is_empty() {
        for value in values {
            min = min.min(*value);
            max = max.max(*value);
        }
    } else {
        for (value, _) in values.iter().zip(valid).filter(|(_, valid)| **valid) {
            min = min.min(*value);
            max = max.max(*value);
        }
    }
    // As u64 the distance cannot overflow, also from i64::MIN to i64::MAX.
    let mut range = max.wrapping_sub(min) as u64;
    let is_valid = |row: usize| valid.is_empty() || valid[row];
    let mut code = 0;
    for (at, scale) in scales.iter().enumerate().skip(1) {
        let divides =
            |row: usize| !is_valid(row) || (values[row].wrapping_sub(min) as u64).is_multiple_of(*scale);
        if range >= *scale && (0..values.len()).all(divides) {
            code = at;
        }
    }
    let scale = scales[code];
    range /= scale;
    let width = (u64::BITS - range.leading_zeros()).div_ceil(8) as usize;
    out.push((code << 4 | width) as u8);
    put_zigzag(out, min.wrapping_sub(reference));
    let distance = |row: usize| if is_valid(row) { values[row].wrapping_sub(min) as u64 / scale } else { 0 };
    match (width, scale, valid.is_empty()) {
        (0, _, _) => {}
        // The common case, without a branch in the loop.
        (_, 1, true) => put_packed(out, width, values.iter().map(|value| value.wrapping_sub(min) as u64)),
        _ => put_packed(out, width, (0..values.len()).map(distance)),
    }
}

fn put_packed(out: &mut Vec<u8>, width: usize, values: impl ExactSizeIterator<Item = u64>) {
    fn pack<const W: usize>(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = u64>) {
        let start = out.len();
        out.resize(start + values.len() * W, 0);
        let (places, _) = out[start..].as_chunks_mut::<W>();
        for (place, value) in places.iter_mut().zip(values) {
            place.copy_from_slice(&value.to_le_bytes()[..W]);
        }
    }
    match width {
        1 => pack::<1>(out, values),
        2 => pack::<2>(out, values),
        3 => pack::<3>(out, values),
        4 => pack::<4>(out, values),
        5 => pack::<5>(out, values),
        6 => pack::<6>(out, values),
        7 => pack::<7>(out, values),
        _ => pack::<8>(out, values),
    }
}

/// As integers over the least power of ten that gives back every value bit for bit (sensors send
/// 21.53, which is 2153 / 100), else as they are.
fn put_doubles(out: &mut Vec<u8>, values: &[f64], valid: &[bool], ints: &mut Vec<i64>) {
    ints.clear();
    ints.resize(values.len(), 0);
    let (mut decimals, mut done) = (0, 0);
    while done < values.len() && decimals <= MAX_DECIMALS {
        // The first few rows settle the number of places mostly, so that little is done twice. What
        // stands in for a NULL is tried too: it can cost space, never a value.
        let to = values.len().min(done + if done == 0 { 4 } else { 64 });
        if scale(&values[done..to], POWERS_OF_TEN[usize::from(decimals)], &mut ints[done..to]) {
            done = to;
        } else {
            decimals += 1;
            done = 0;
        }
    }
    if done == values.len() {
        put_tag(out, tag::DECIMALS, valid);
        let code = out.len();
        put_ints(out, ints, valid, 0, &INT_SCALES[..1]);
        out[code] |= decimals << 4;
    } else {
        put_tag(out, tag::DOUBLES, valid);
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
}

/// Whether every `value * power` is an integer that gives back the very bits of the value; so never
/// for NaN, -0.0 and infinities. Without branches and conversions, so that it runs in vectors.
fn scale(values: &[f64], power: f64, ints: &mut [i64]) -> bool {
    /// Adding 1.5 * 2^52 leaves the rounded integer in the low bits of a double, for less than 2^51.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const MAX: f64 = (1_u64 << 51) as f64;
    let mut all = true;
    for (value, int) in values.iter().zip(ints) {
        let shifted = value * power + ROUND;
        let rounded = shifted - ROUND;
        *int = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i64;
        all &= (rounded / power).to_bits() == value.to_bits() && rounded.abs() < MAX;
    }
    all
}

fn put_booleans(out: &mut Vec<u8>, values: &[bool], valid: &[bool]) {
    let is_valid = |row: usize| valid.is_empty() || valid[row];
    let mut seen = [false; 2];
    for (row, value) in values.iter().enumerate() {
        seen[usize::from(*value)] |= is_valid(row);
    }
    match seen {
        [_, false] => put_tag(out, tag::FALSE, valid),
        [false, _] => put_tag(out, tag::TRUE, valid),
        _ => {
            put_tag(out, tag::BITS, valid);
            put_bits(out, values);
        }
    }
}

/// Writes a dictionary if that is shorter; gives up, having written nothing, as soon as it cannot be.
fn put_dictionary(
    out: &mut Vec<u8>,
    column: &ColumnRows,
    ends: &[u32],
    data: &[u8],
    valid: &[bool],
    scratch: &mut Scratch,
) -> bool {
    const SLOTS: usize = 512;
    const FREE: u16 = u16::MAX;
    let rows = ends.len();
    let mut slots = [FREE; SLOTS];
    let Scratch { indexes, dictionary, .. } = scratch;
    indexes.clear();
    dictionary.clear();
    let mut distinct_bytes = 0;
    for row in 0..rows {
        let value = column.bytes(row);
        // Equal neighbours are common (one site, one firmware): no hash for them.
        if row > 0 && value == column.bytes(row - 1) {
            indexes.push(indexes[row - 1]);
            continue;
        }
        let mut at = xxhash_rust::xxh3::xxh3_64(value) as usize % SLOTS;
        let index = loop {
            match slots[at] {
                FREE => {
                    // A column of mostly distinct values is told after few rows.
                    if dictionary.len() == MAX_DICTIONARY || (row >= 32 && dictionary.len() * 2 > row) {
                        return false;
                    }
                    slots[at] = dictionary.len() as u16;
                    dictionary.push(row as u32);
                    distinct_bytes += value.len() + 2;
                    break slots[at];
                }
                index if column.bytes(dictionary[usize::from(index)] as usize) == value => break index,
                _ => at = (at + 1) % SLOTS,
            }
        };
        indexes.push(index as u8);
    }
    if dictionary.len() > 1 && distinct_bytes + rows > data.len() + rows {
        return false;
    }
    put_tag(out, tag::DICTIONARY, valid);
    out.push(dictionary.len() as u8);
    for row in dictionary.iter() {
        let value = column.bytes(*row as usize);
        put_varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
    if dictionary.len() > 1 {
        out.extend_from_slice(indexes);
    }
    true
}
