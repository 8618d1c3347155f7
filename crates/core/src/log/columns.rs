//! Frames back to Arrow: columns that grow block by block until a record batch is full.
//!
//! Reads what `frame.rs` writes. Every length is checked against the body, so that bytes of a wrong
//! shape are an error and never a panic.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow_buffer::{BooleanBufferBuilder, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, TimeUnit};

use super::frame::{INT_SCALES, POWERS_OF_TEN, tag};
use super::keys::Keys;
use super::varint::{Cursor, Malformed};
use crate::schema::ColumnType;

/// One column of a frame, found but not yet decoded.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// One bit a row, lowest bit first; `None`: no NULLs.
    valid: Option<&'a [u8]>,
    data: Data<'a>,
}

#[derive(Clone, Debug)]
enum Data<'a> {
    Nulls,
    Ints(Ints<'a>),
    Decimals(Ints<'a>, f64),
    Doubles(&'a [u8]),
    Bits(&'a [u8]),
    Boolean(bool),
    Bytes(Ints<'a>, &'a [u8]),
    /// Distinct values; an index a row, empty if there is only one value.
    Dictionary(Vec<&'a [u8]>, &'a [u8]),
    Keys(Ints<'a>),
}

#[derive(Clone, Copy, Debug)]
struct Ints<'a> {
    /// High half of the code byte: meaning depends on the column.
    high: u8,
    width: usize,
    scale: u64,
    min: i64,
    packed: &'a [u8],
}

impl<'a> Ints<'a> {
    fn parse(body: &mut Cursor<'a>, rows: usize) -> Result<Ints<'a>, Malformed> {
        let code = body.u8()?;
        let width = usize::from(code & 0x0f);
        if width > 8 {
            return Err(Malformed("an integer column is wider than 8 bytes"));
        }
        let min = body.zigzag()?;
        let packed = body.take(width.checked_mul(rows).ok_or(Malformed("too many rows"))?)?;
        Ok(Ints { high: code >> 4, width, scale: 1, min, packed })
    }

    #[inline]
    fn each(&self, rows: Range<usize>, base: i64, mut to: impl FnMut(i64)) {
        let min = self.min.wrapping_add(base);
        let (width, scale) = (self.width, self.scale);
        let packed = &self.packed[rows.start * width..rows.end * width];
        macro_rules! unpack {
            ($width:literal) => {
                for place in packed.as_chunks::<$width>().0 {
                    let mut bytes = [0; 8];
                    bytes[..$width].copy_from_slice(place);
                    to(min.wrapping_add(u64::from_le_bytes(bytes).wrapping_mul(scale) as i64));
                }
            };
        }
        match width {
            0 => rows.for_each(|_| to(min)),
            1 => unpack!(1),
            2 => unpack!(2),
            3 => unpack!(3),
            4 => unpack!(4),
            5 => unpack!(5),
            6 => unpack!(6),
            7 => unpack!(7),
            _ => unpack!(8),
        }
    }
}

impl<'a> View<'a> {
    /// Takes the next column from the front of a body of `rows` rows.
    pub fn parse(body: &mut Cursor<'a>, rows: usize) -> Result<View<'a>, Malformed> {
        let first = body.u8()?;
        let valid = if first & tag::NULLABLE != 0 { Some(body.take(rows.div_ceil(8))?) } else { None };
        let data = match first & !tag::NULLABLE {
            tag::NULLS => Data::Nulls,
            tag::INTS => {
                let mut ints = Ints::parse(body, rows)?;
                let scale = INT_SCALES.get(usize::from(ints.high));
                ints.scale = *scale.ok_or(Malformed("an integer column has an unknown scale"))?;
                Data::Ints(ints)
            }
            tag::DECIMALS => {
                let ints = Ints::parse(body, rows)?;
                let power = POWERS_OF_TEN.get(usize::from(ints.high));
                Data::Decimals(ints, *power.ok_or(Malformed("a double column has too many decimals"))?)
            }
            tag::DOUBLES => Data::Doubles(body.take(rows.checked_mul(8).ok_or(Malformed("too many rows"))?)?),
            tag::BITS => Data::Bits(body.take(rows.div_ceil(8))?),
            tag::FALSE => Data::Boolean(false),
            tag::TRUE => Data::Boolean(true),
            tag::BYTES => {
                let lengths = Ints::parse(body, rows)?;
                let mut bytes = 0_u64;
                lengths.each(0..rows, 0, |length| bytes = bytes.saturating_add(length as u64));
                let bytes = usize::try_from(bytes).map_err(|_| Malformed("too many bytes"))?;
                Data::Bytes(lengths, body.take(bytes)?)
            }
            tag::DICTIONARY => {
                let count = usize::from(body.u8()?);
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    let length: usize = body.narrow()?;
                    values.push(body.take(length)?);
                }
                let indexes = if count > 1 { body.take(rows)? } else { &[] };
                if count == 0 || indexes.iter().any(|index| usize::from(*index) >= count) {
                    return Err(Malformed("an index is not in its dictionary"));
                }
                Data::Dictionary(values, indexes)
            }
            tag::KEYS => Data::Keys(Ints::parse(body, rows)?),
            _ => return Err(Malformed("a column has an unknown layout")),
        };
        Ok(View { valid, data })
    }

    /// Ids of the key column, for `_key`.
    pub fn each_key_id(&self, rows: Range<usize>, to: impl FnMut(i64)) -> Result<(), Malformed> {
        match &self.data {
            Data::Keys(ids) => ids.each(rows, 0, to),
            _ => return Err(Malformed("the key column holds no key ids")),
        }
        Ok(())
    }
}

/// One Arrow column being filled.
pub struct ColumnBuilder {
    ty: ColumnType,
    nulls: NullBufferBuilder,
    values: Building,
}

enum Building {
    Double(Vec<f64>),
    Int(Vec<i64>),
    Boolean(BooleanBufferBuilder),
    Bytes { ends: Vec<i32>, data: Vec<u8> },
}

/// The Arrow type of a column: timestamps are microseconds, UTC.
pub fn arrow_type(ty: ColumnType) -> DataType {
    match ty {
        ColumnType::Double => DataType::Float64,
        ColumnType::Bigint => DataType::Int64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::String => DataType::Utf8,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ColumnType::Binary => DataType::Binary,
    }
}

impl ColumnBuilder {
    pub fn new(ty: ColumnType, rows: usize) -> ColumnBuilder {
        let values = match ty {
            ColumnType::Double => Building::Double(Vec::with_capacity(rows)),
            ColumnType::Bigint | ColumnType::Timestamp => Building::Int(Vec::with_capacity(rows)),
            ColumnType::Boolean => Building::Boolean(BooleanBufferBuilder::new(rows)),
            ColumnType::String | ColumnType::Binary => {
                let mut ends = Vec::with_capacity(rows + 1);
                ends.push(0);
                Building::Bytes { ends, data: Vec::new() }
            }
        };
        ColumnBuilder { ty, nulls: NullBufferBuilder::new(rows), values }
    }

    /// Bytes of string and binary data, which a batch bounds since Arrow's offsets are 32 bits.
    pub fn data_bytes(&self) -> usize {
        match &self.values {
            Building::Bytes { data, .. } => data.len(),
            _ => 0,
        }
    }

    /// A column that the block's schema did not have yet.
    pub fn append_nulls(&mut self, rows: usize) {
        self.nulls.append_n_nulls(rows);
        self.append_defaults(rows);
    }

    fn append_defaults(&mut self, rows: usize) {
        match &mut self.values {
            Building::Double(to) => to.resize(to.len() + rows, 0.0),
            Building::Int(to) => to.resize(to.len() + rows, 0),
            Building::Boolean(to) => to.append_n(rows, false),
            Building::Bytes { ends, data } => ends.resize(ends.len() + rows, data.len() as i32),
        }
    }

    /// Appends rows `rows` of a block. `ts_min` is that of the block, `keys` the dictionary of its
    /// partition. After an error the column is of no use.
    pub fn append(
        &mut self,
        view: &View<'_>,
        rows: Range<usize>,
        ts_min: i64,
        keys: &Keys,
    ) -> Result<(), Malformed> {
        match (&view.data, view.valid) {
            (Data::Nulls, _) => {
                self.append_nulls(rows.len());
                return Ok(());
            }
            (_, None) => self.nulls.append_n_non_nulls(rows.len()),
            (_, Some(valid)) => rows.clone().for_each(|row| self.nulls.append(bit(valid, row))),
        }
        match (&mut self.values, &view.data) {
            (Building::Double(to), Data::Decimals(ints, power)) => {
                ints.each(rows, 0, |int| to.push(int as f64 / power));
            }
            (Building::Double(to), Data::Doubles(bytes)) => {
                let (values, _) = bytes[rows.start * 8..rows.end * 8].as_chunks::<8>();
                to.extend(values.iter().map(|value| f64::from_le_bytes(*value)));
            }
            (Building::Int(to), Data::Ints(ints)) => {
                let base = if self.ty == ColumnType::Timestamp { ts_min } else { 0 };
                ints.each(rows, base, |int| to.push(int));
            }
            (Building::Boolean(to), Data::Bits(bits)) => rows.for_each(|row| to.append(bit(bits, row))),
            (Building::Boolean(to), Data::Boolean(value)) => to.append_n(rows.len(), *value),
            (Building::Bytes { ends, data }, Data::Bytes(lengths, bytes)) => {
                let mut at = 0_usize;
                lengths.each(0..rows.start, 0, |length| at += length as usize);
                let start = at;
                let shift = data.len();
                lengths.each(rows, 0, |length| {
                    at += length as usize;
                    ends.push((shift + at - start) as i32);
                });
                data.extend_from_slice(&bytes[start..at]);
            }
            (Building::Bytes { ends, data }, Data::Dictionary(values, indexes)) => {
                for row in rows {
                    let index = indexes.get(row).copied().unwrap_or(0);
                    data.extend_from_slice(values[usize::from(index)]);
                    ends.push(data.len() as i32);
                }
            }
            (Building::Bytes { ends, data }, Data::Keys(ids)) => {
                let mut known = true;
                ids.each(rows, 0, |id| {
                    let key = u32::try_from(id).ok().and_then(|id| keys.get(id));
                    known &= key.is_some();
                    data.extend_from_slice(key.unwrap_or_default());
                    ends.push(data.len() as i32);
                });
                if !known {
                    return Err(Malformed("a key id is not in the partition's dictionary"));
                }
            }
            _ => return Err(Malformed("a column's layout does not fit its type")),
        }
        if self.data_bytes() > i32::MAX as usize {
            return Err(Malformed("a block holds more than 2 GiB of strings"));
        }
        Ok(())
    }

    /// Errors if a string is not UTF-8, which `submit` has checked.
    pub fn finish(mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish();
        let offsets = |ends: Vec<i32>| OffsetBuffer::new(ScalarBuffer::from(ends));
        Ok(match (self.values, self.ty) {
            (Building::Double(values), _) => Arc::new(Float64Array::try_new(values.into(), nulls)?),
            (Building::Int(values), ColumnType::Timestamp) => {
                Arc::new(TimestampMicrosecondArray::try_new(values.into(), nulls)?.with_timezone("UTC"))
            }
            (Building::Int(values), _) => Arc::new(Int64Array::try_new(values.into(), nulls)?),
            (Building::Boolean(mut values), _) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            (Building::Bytes { ends, data }, ColumnType::Binary) => {
                Arc::new(BinaryArray::try_new(offsets(ends), data.into(), nulls)?)
            }
            (Building::Bytes { ends, data }, _) => {
                Arc::new(StringArray::try_new(offsets(ends), data.into(), nulls)?)
            }
        })
    }
}

#[inline]
fn bit(bits: &[u8], row: usize) -> bool {
    bits[row / 8] >> (row % 8) & 1 == 1
}
