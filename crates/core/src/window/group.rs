//! Dense key ids for queries that do not group by the stream's key: tuples of column values, numbered as they appear.
//!
//! NULL is a value like any other, as in SQL's GROUP BY. A query without group columns has one key, 0.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, Int64Array, StringArray, builder::StringBuilder};
use arrow_schema::DataType;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::frozen::Frozen;
use super::state::{Reader, StateError, unseal};

const MAGIC: &[u8; 8] = b"HWGROUPS";
/// Version 1 was always whole.
const VERSION: u16 = 2;
const EMPTY: u32 = u32::MAX;
/// First byte of each value of a tuple.
const NULL: u8 = 0;
const VALUE: u8 = 1;

/// Types of columns that can be grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GroupType {
    String = 1,
    Bigint = 2,
    Boolean = 3,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InternError {
    #[error("grouping found more than {max_keys} different keys; group by fewer columns or raise the bound")]
    Full { max_keys: u32 },
    #[error("grouping got columns {found}, but {wanted:?} are wanted")]
    Columns { found: String, wanted: Vec<GroupType> },
}

/// Tuples to ids and back. Ids are 0, 1, 2, ... and are never given twice.
#[derive(Clone)]
pub struct KeyInterner {
    types: Vec<GroupType>,
    max_keys: u32,
    /// Tuples one after the other; tuple i ends at `ends[i]`.
    data: Vec<u8>,
    ends: Vec<usize>,
    /// Open addressing: `EMPTY` or an id; at most half full.
    table: Vec<u32>,
    /// Random, so that no device can choose values that collide.
    seed: u64,
    scratch: Vec<u8>,
    /// Ids that the last snapshot has.
    frozen: usize,
}

impl KeyInterner {
    /// max_keys: bound of the ids given out.
    pub fn new(types: Vec<GroupType>, max_keys: u32) -> KeyInterner {
        let seed = std::hash::RandomState::new().hash_one(0u8);
        KeyInterner {
            types,
            max_keys,
            data: Vec::new(),
            ends: Vec::new(),
            table: vec![EMPTY; 16],
            seed,
            scratch: Vec::new(),
            frozen: 0,
        }
    }

    /// Number of ids given out.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Size of tuples and table.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.ends.len() * 8 + self.table.len() * 4
    }

    /// The id of each row. On `Full` some new tuples may have got ids already, which do no harm.
    ///
    /// columns: one array per group column: Utf8, Int64 or Boolean, all of `rows` values
    /// rows:    needed where there are no columns
    pub fn intern(&mut self, columns: &[ArrayRef], rows: usize) -> Result<Vec<u32>, InternError> {
        self.check(columns, rows)?;
        let mut ids = Vec::with_capacity(rows);
        let mut tuple = std::mem::take(&mut self.scratch);
        for row in 0..rows {
            tuple.clear();
            for (column, ty) in columns.iter().zip(&self.types) {
                put_value(column, *ty, row, &mut tuple);
            }
            match self.id(&tuple) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    self.scratch = tuple;
                    return Err(error);
                }
            }
        }
        self.scratch = tuple;
        Ok(ids)
    }

    /// The columns' values of each id; NULL for an id that was never given.
    pub fn arrays(&self, ids: &[u32]) -> Vec<ArrayRef> {
        let tuples = || ids.iter().map(|id| self.tuple(*id));
        let columns = self.types.iter().enumerate().map(|(at, ty)| -> ArrayRef {
            let values = tuples().map(|tuple| self.value(tuple?, at));
            match ty {
                GroupType::Bigint => Arc::new(Int64Array::from_iter(
                    values.map(|value| Some(i64::from_le_bytes(value?.try_into().ok()?))),
                )),
                GroupType::Boolean => {
                    Arc::new(values.map(|value| Some(value? == [1])).collect::<BooleanArray>())
                }
                GroupType::String => {
                    let mut builder = StringBuilder::new();
                    values.for_each(|value| {
                        builder.append_option(value.and_then(|value| std::str::from_utf8(value).ok()));
                    });
                    Arc::new(StringArray::from(builder.finish()))
                }
            }
        });
        columns.collect()
    }

    /// All ids, or with `whole` false those given since `freeze` was called last; see docs/formats/window-state.md.
    pub fn freeze(&mut self, whole: bool) -> Frozen {
        let first = if whole { 0 } else { self.frozen };
        let start = first.checked_sub(1).map_or(0, |before| self.ends[before]);
        let ends = &self.ends[first..];
        let mut to = Vec::with_capacity(self.data.len() - start + ends.len() * 4 + 32);
        to.extend_from_slice(MAGIC);
        to.extend_from_slice(&VERSION.to_le_bytes());
        to.extend_from_slice(&(self.types.len() as u16).to_le_bytes());
        to.extend(self.types.iter().map(|ty| *ty as u8));
        to.extend_from_slice(&(first as u32).to_le_bytes());
        to.extend_from_slice(&(ends.len() as u32).to_le_bytes());
        let starts = std::iter::once(&start).chain(ends);
        starts.zip(ends).for_each(|(start, end)| to.extend_from_slice(&((end - start) as u32).to_le_bytes()));
        to.extend_from_slice(&self.data[start..]);
        self.frozen = self.ends.len();
        Frozen::of_bytes(to)
    }

    /// The ids that `freeze` wrote whole; the columns must be the same.
    pub fn decode(bytes: &[u8], types: Vec<GroupType>, max_keys: u32) -> Result<KeyInterner, StateError> {
        let mut interner = KeyInterner::new(types, max_keys);
        interner.apply(bytes)?;
        Ok(interner)
    }

    /// Takes in ids that `freeze` wrote, which follow those that are there. After an error it is not to be used.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let (version, mut from): (u16, Reader<'_>) = unseal(bytes, MAGIC, "grouping", VERSION)?;
        let columns = from.u16()? as usize;
        if from.slice(columns)?.iter().copied().ne(self.types.iter().map(|ty| *ty as u8)) {
            return from.other_query();
        }
        let first = if version == 1 { 0 } else { from.u32()? };
        let count = from.u32()?;
        if first as usize != self.ends.len() {
            return from.contradiction();
        }
        let mut lengths = Vec::new();
        for _ in 0..count {
            lengths.push(from.u32()? as usize);
        }
        // Ids once given stay valid, even beyond a bound that has been lowered since.
        let max_keys = std::mem::replace(&mut self.max_keys, u32::MAX);
        for (id, length) in (first..).zip(lengths) {
            let tuple = from.slice(length)?;
            let mut rest = tuple;
            for ty in &self.types {
                let Some((_, after)) = split_value(*ty, rest) else { return from.contradiction() };
                rest = after;
            }
            if !rest.is_empty() || self.id(tuple) != Ok(id) {
                return from.contradiction();
            }
        }
        self.max_keys = max_keys;
        from.finish()
    }

    fn check(&self, columns: &[ArrayRef], rows: usize) -> Result<(), InternError> {
        let fits =
            |column: &ArrayRef, ty: &GroupType| column.len() == rows && *column.data_type() == ty.arrow();
        if columns.len() == self.types.len()
            && columns.iter().zip(&self.types).all(|(column, ty)| fits(column, ty))
        {
            return Ok(());
        }
        let found: Vec<String> =
            columns.iter().map(|column| format!("{} x {}", column.data_type(), column.len())).collect();
        Err(InternError::Columns {
            found: format!("[{}] for {rows} rows", found.join(", ")),
            wanted: self.types.clone(),
        })
    }

    fn tuple(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)?;
        let start = (id as usize).checked_sub(1).map_or(0, |before| self.ends[before]);
        self.data.get(start..end)
    }

    /// Bytes of column `at`; `None`: NULL.
    fn value<'t>(&self, mut tuple: &'t [u8], at: usize) -> Option<&'t [u8]> {
        for ty in &self.types[..at] {
            tuple = split_value(*ty, tuple)?.1;
        }
        split_value(self.types[at], tuple)?.0
    }

    fn id(&mut self, tuple: &[u8]) -> Result<u32, InternError> {
        let mask = self.table.len() - 1;
        let mut slot = xxh3_64_with_seed(tuple, self.seed) as usize & mask;
        while self.table[slot] != EMPTY {
            if self.tuple(self.table[slot]) == Some(tuple) {
                return Ok(self.table[slot]);
            }
            slot = (slot + 1) & mask;
        }
        let id = self.ends.len() as u32;
        if id >= self.max_keys {
            return Err(InternError::Full { max_keys: self.max_keys });
        }
        self.table[slot] = id;
        self.data.extend_from_slice(tuple);
        self.ends.push(self.data.len());
        if self.ends.len() * 2 > self.table.len() {
            self.grow();
        }
        Ok(id)
    }

    fn grow(&mut self) {
        let mask = self.table.len() * 2 - 1;
        let mut table = vec![EMPTY; mask + 1];
        for id in 0..self.ends.len() as u32 {
            let mut slot = xxh3_64_with_seed(self.tuple(id).unwrap_or_default(), self.seed) as usize & mask;
            while table[slot] != EMPTY {
                slot = (slot + 1) & mask;
            }
            table[slot] = id;
        }
        self.table = table;
    }
}

impl GroupType {
    fn arrow(self) -> DataType {
        match self {
            GroupType::String => DataType::Utf8,
            GroupType::Bigint => DataType::Int64,
            GroupType::Boolean => DataType::Boolean,
        }
    }
}

/// Appends one value: `NULL`, or `VALUE` and its bytes, a string's after their number.
fn put_value(column: &ArrayRef, ty: GroupType, row: usize, to: &mut Vec<u8>) {
    if column.is_null(row) {
        to.push(NULL);
        return;
    }
    to.push(VALUE);
    match ty {
        GroupType::String => {
            let text = column.as_string::<i32>().value(row).as_bytes();
            to.extend_from_slice(&(text.len() as u32).to_le_bytes());
            to.extend_from_slice(text);
        }
        GroupType::Bigint => {
            to.extend_from_slice(&column.as_primitive::<Int64Type>().value(row).to_le_bytes())
        }
        GroupType::Boolean => to.push(column.as_boolean().value(row) as u8),
    }
}

/// The first value of a tuple, `None` for NULL, and what follows; `None` if the bytes are no tuple.
#[allow(clippy::type_complexity)]
fn split_value(ty: GroupType, tuple: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (tag, rest) = tuple.split_first()?;
    if *tag == NULL {
        return Some((None, rest));
    }
    let (length, rest) = match ty {
        GroupType::Bigint => (8, rest),
        GroupType::Boolean => (1, rest),
        GroupType::String => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((Some(value), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [GroupType; 3] = [GroupType::String, GroupType::Bigint, GroupType::Boolean];

    type Tuple = (Option<String>, Option<i64>, Option<bool>);

    fn columns(tuples: &[Tuple]) -> Vec<ArrayRef> {
        vec![
            Arc::new(tuples.iter().map(|tuple| tuple.0.as_deref()).collect::<StringArray>()),
            Arc::new(tuples.iter().map(|tuple| tuple.1).collect::<Int64Array>()),
            Arc::new(tuples.iter().map(|tuple| tuple.2).collect::<BooleanArray>()),
        ]
    }

    #[test]
    fn the_empty_key_is_zero() {
        let mut keys = KeyInterner::new(vec![], 1);
        assert_eq!(keys.intern(&[], 3), Ok(vec![0, 0, 0]));
        assert!(keys.arrays(&[0, 0]).is_empty());
        assert_eq!(KeyInterner::decode(&keys.freeze(true).to_bytes(), vec![], 1).unwrap().len(), 1);
    }

    #[test]
    fn a_full_interner_still_knows_its_keys() {
        let mut keys = KeyInterner::new(vec![GroupType::Bigint], 2);
        let column = |values: Vec<i64>| -> Vec<ArrayRef> { vec![Arc::new(Int64Array::from(values))] };
        assert_eq!(keys.intern(&column(vec![7, 8, 7]), 3), Ok(vec![0, 1, 0]));
        assert_eq!(keys.intern(&column(vec![9]), 1), Err(InternError::Full { max_keys: 2 }));
        assert_eq!(keys.intern(&column(vec![8]), 1), Ok(vec![1]));
        let error = keys.intern(&columns(&[]), 0).unwrap_err().to_string();
        assert!(error.contains("[Utf8 x 0, Int64 x 0, Boolean x 0]"), "{error}");
        assert!(matches!(
            KeyInterner::decode(&keys.freeze(true).to_bytes(), vec![GroupType::String], 2),
            Err(StateError::OtherQuery { .. })
        ));
    }

    proptest! {
        #[test]
        fn equal_tuples_and_only_those_share_an_id(
            tuples in prop::collection::vec((prop::option::of("[ab]{0,2}"), prop::option::of(0i64..3), any::<Option<bool>>()), 0..120),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(tuples.len() + 1);
            let mut keys = KeyInterner::new(ALL.to_vec(), 1000);
            let mut ids = keys.intern(&columns(&tuples[..cut]), cut).unwrap();
            let whole = keys.freeze(true).to_bytes();
            ids.extend(keys.intern(&columns(&tuples[cut..]), tuples.len() - cut).unwrap());
            let more = keys.freeze(false).to_bytes();
            keys = KeyInterner::decode(&whole, ALL.to_vec(), 1000).unwrap();
            keys.apply(&more).unwrap();
            prop_assert!(keys.apply(&whole).is_err() || keys.is_empty());
            keys = KeyInterner::decode(&keys.freeze(true).to_bytes(), ALL.to_vec(), 1000).unwrap();
            let mut seen: Vec<&Tuple> = Vec::new();
            for (tuple, id) in tuples.iter().zip(&ids) {
                let known = seen.iter().position(|known| *known == tuple).unwrap_or_else(|| { seen.push(tuple); seen.len() - 1 });
                prop_assert_eq!(known as u32, *id);
            }
            prop_assert_eq!(keys.len(), seen.len());
            prop_assert_eq!(keys.arrays(&ids), columns(&tuples));
        }

        #[test]
        fn a_damaged_snapshot_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut keys = KeyInterner::new(ALL.to_vec(), 10);
            keys.intern(&columns(&[(Some("x".into()), None, Some(true))]), 1).unwrap();
            let mut bytes = keys.freeze(true).to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(KeyInterner::decode(&bytes, ALL.to_vec(), 10).is_err());
            prop_assert!(KeyInterner::decode(&bytes[..at], ALL.to_vec(), 10).is_err());
        }
    }
}
