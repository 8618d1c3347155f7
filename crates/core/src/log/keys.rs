//! One partition's key dictionary: key bytes to dense ids 0, 1, 2, ... and back.
//!
//! An open addressing table whose slots hold the id and where the key's bytes lie, so that a lookup
//! misses the cache twice (slot, bytes); `resolve` hides both misses by looking at a group of rows at
//! once. A slot's place is given by the top bits of the stored 32-bit hash: growing walks the old
//! table in order and never hashes a key again. Ids are given in order of insertion, so the bytes of
//! ids `a..b` lie side by side, which is what the log writes as dictionary entries.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::varint::{Cursor, Malformed, put_varint};
use crate::short;

/// Longest key, in bytes. Ours; AWS thing names have at most 128.
pub const MAX_KEY_BYTES: usize = 1024;
/// Memory for key bytes per allowed key, on average. Ours.
const MEAN_KEY_BYTES: usize = 64;
/// Rows looked up side by side: enough to cover a memory access, few enough to stay in L1.
const GROUP: usize = 32;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    /// `NONE`: the slot is free.
    id: u32,
    start: u32,
    length: u32,
}

const FREE: Slot = Slot { hash: 0, id: NONE, start: 0, length: 0 };

/// Stands for a key that is not in the dictionary in the answer of [`Keys::resolve`].
pub const MISSING: u32 = NONE;

/// Why a key is not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the partition has max_keys = {0} keys; raise max_keys or choose a key with fewer values")]
    Full(u32),
    #[error("the keys of the partition fill their {0} bytes; raise max_keys or use shorter keys")]
    BytesFull(usize),
    #[error("a key of {0} bytes is longer than {MAX_KEY_BYTES}")]
    TooLong(usize),
}

pub struct Keys {
    slots: Box<[Slot]>,
    /// 32 - log2(slots).
    shift: u32,
    /// Where the bytes of each id end.
    ends: Vec<u32>,
    bytes: Vec<u8>,
    seed: u64,
    max_keys: u32,
}

/// The hash that picks both partition and slot; `seed` is the data directory's secret.
#[inline]
pub fn hash(key: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(key, seed)
}

/// Partition of a hash: its high bits, scaled. The slot uses the low ones.
#[inline]
pub fn partition_of_hash(hash: u64, partitions: u16) -> u16 {
    ((u128::from(hash) * u128::from(partitions)) >> 64) as u16
}

impl Keys {
    pub fn new(seed: u64, max_keys: u32) -> Keys {
        let slots = vec![FREE; 64].into_boxed_slice();
        Keys { shift: 32 - slots.len().ilog2(), slots, ends: Vec::new(), bytes: Vec::new(), seed, max_keys }
    }

    /// Number of keys; ids are below it.
    pub fn len(&self) -> u32 {
        self.ends.len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    #[inline]
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] as usize };
        self.bytes.get(start..end)
    }

    pub fn find(&self, key: &[u8]) -> Option<u32> {
        self.probe(hash(key, self.seed) as u32, key)
    }

    /// Appends the ids of `rows` keys to `ids`, `MISSING` for unknown ones; returns how many are unknown.
    pub fn resolve<'a>(&self, rows: usize, key: impl Fn(usize) -> &'a [u8], ids: &mut Vec<u32>) -> usize {
        let mut missing = 0;
        let mut hashes = [0_u32; GROUP];
        ids.reserve(rows);
        for start in (0..rows).step_by(GROUP) {
            let group = (rows - start).min(GROUP);
            for (at, to) in hashes[..group].iter_mut().enumerate() {
                *to = hash(key(start + at), self.seed) as u32;
                prefetch(&self.slots, (*to >> self.shift) as usize);
            }
            for hash in &hashes[..group] {
                prefetch(&self.bytes, self.slots[(hash >> self.shift) as usize].start as usize);
            }
            for (at, hash) in hashes[..group].iter().enumerate() {
                let id = self.probe(*hash, key(start + at)).unwrap_or(MISSING);
                missing += usize::from(id == MISSING);
                ids.push(id);
            }
        }
        missing
    }

    #[inline]
    fn probe(&self, hash: u32, key: &[u8]) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = (hash >> self.shift) as usize;
        loop {
            let slot = &self.slots[at & mask];
            if slot.id == NONE {
                return None;
            }
            if slot.hash == hash && slot.length as usize == key.len() {
                let start = slot.start as usize;
                if short::equal(&self.bytes[start..start + key.len()], key) {
                    return Some(slot.id);
                }
            }
            at += 1;
        }
    }

    /// The key's id, which is new if the key was. Errors change nothing.
    pub fn insert(&mut self, key: &[u8]) -> Result<u32, KeyError> {
        let hash = hash(key, self.seed) as u32;
        if let Some(id) = self.probe(hash, key) {
            return Ok(id);
        }
        let bytes_bound =
            (self.max_keys as usize).saturating_mul(MEAN_KEY_BYTES).clamp(1 << 16, NONE as usize);
        if key.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLong(key.len()));
        }
        if self.len() >= self.max_keys {
            return Err(KeyError::Full(self.max_keys));
        }
        if self.bytes.len() + key.len() > bytes_bound {
            return Err(KeyError::BytesFull(bytes_bound));
        }
        Ok(self.append(hash, key))
    }

    fn append(&mut self, hash: u32, key: &[u8]) -> u32 {
        // Linear probing stays short up to about 70 % of the slots.
        if (self.ends.len() + 1) * 10 > self.slots.len() * 7 {
            self.grow(self.slots.len() * 2);
        }
        let id = self.len();
        let slot = Slot { hash, id, start: self.bytes.len() as u32, length: key.len() as u32 };
        if self.bytes.capacity() - self.bytes.len() < key.len() {
            self.grow_bytes(self.bytes.capacity() * 2 + MAX_KEY_BYTES);
        }
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len() as u32);
        place(&mut self.slots, self.shift, slot);
        id
    }

    /// Makes room for `count` more keys of `bytes` bytes together, so that adding them grows nothing.
    pub fn reserve(&mut self, count: usize, bytes: usize) {
        let slots = ((self.ends.len() + count) * 10).div_ceil(7).next_power_of_two();
        if slots > self.slots.len() {
            self.grow(slots);
        }
        if self.bytes.capacity() - self.bytes.len() < bytes {
            self.grow_bytes(self.bytes.len() + bytes);
        }
        self.ends.reserve(count);
    }

    fn grow_bytes(&mut self, capacity: usize) {
        let mut bytes = with_capacity(capacity);
        bytes.extend_from_slice(&self.bytes);
        self.bytes = bytes;
    }

    /// To so many slots, a power of two.
    fn grow(&mut self, count: usize) {
        let mut slots = with_capacity(count);
        slots.resize(count, FREE);
        let mut slots = slots.into_boxed_slice();
        self.shift = 32 - count.ilog2();
        for slot in self.slots.iter().filter(|slot| slot.id != NONE) {
            place(&mut slots, self.shift, *slot);
        }
        self.slots = slots;
    }

    /// Appends the entries of ids `from..to`: length (varint) and bytes of each.
    pub fn put_entries(&self, from: u32, to: u32, out: &mut Vec<u8>) {
        for id in from..to {
            let key = self.get(id).unwrap_or_default();
            put_varint(out, key.len() as u64);
            out.extend_from_slice(key);
        }
    }

    /// Takes entries `first..first + count` as `put_entries` wrote them. Known ids are skipped, so that
    /// entries may be read twice; bounds on the number of keys are for new keys and do not apply.
    pub fn load_entries(&mut self, first: u32, count: u32, entries: &[u8]) -> Result<(), Malformed> {
        let mut entries = Cursor::new(entries);
        if first > self.len() {
            return Err(Malformed("key entries before these are missing"));
        }
        let end = first.checked_add(count).ok_or(Malformed("key ids exceed 32 bits"))?;
        for id in first..end.min(self.len()) {
            let length: usize = entries.narrow()?;
            if self.get(id) != Some(entries.take(length)?) {
                return Err(Malformed("a key differs from the one already known under its id"));
            }
        }
        // As in `resolve`: the slots of a group are on their way from memory while others are looked at.
        let (mut keys, mut hashes) = ([&[][..]; GROUP], [0_u32; GROUP]);
        while self.len() < end {
            let group = ((end - self.len()) as usize).min(GROUP);
            for (key, to) in keys[..group].iter_mut().zip(&mut hashes) {
                let length: usize = entries.narrow()?;
                *key = entries.take(length)?;
                *to = hash(key, self.seed) as u32;
                prefetch(&self.slots, (*to >> self.shift) as usize);
            }
            for (key, hash) in keys[..group].iter().zip(hashes) {
                if self.probe(hash, key).is_some() {
                    return Err(Malformed("a key has two ids"));
                }
                if self.bytes.len() + key.len() > NONE as usize {
                    return Err(Malformed("key bytes exceed 32 bits"));
                }
                self.append(hash, key);
            }
        }
        if entries.is_empty() { Ok(()) } else { Err(Malformed("bytes follow the last key entry")) }
    }
}

fn place(slots: &mut [Slot], shift: u32, slot: Slot) {
    let mask = slots.len() - 1;
    let mut at = (slot.hash >> shift) as usize;
    while slots[at & mask].id != NONE {
        at += 1;
    }
    slots[at & mask] = slot;
}

/// Memory for random access: in large pages, if the system has them. With a million keys most of a
/// lookup in 4 KiB pages is spent on finding the page (measured: 70-100 ns a key against 25-40).
fn with_capacity<T>(capacity: usize) -> Vec<T> {
    const LARGE_PAGE: usize = 2 << 20;
    let mut memory = Vec::with_capacity(capacity);
    let spare = memory.spare_capacity_mut();
    let skip = spare.as_ptr().align_offset(LARGE_PAGE);
    if let Some(aligned) = spare.get_mut(skip..) {
        let bytes = size_of_val(aligned) / LARGE_PAGE * LARGE_PAGE;
        if bytes > 0 {
            // SAFETY: the range lies within memory that `memory` owns; the advice changes no content. A
            // failure leaves small pages, which is only slower.
            unsafe { libc::madvise(aligned.as_mut_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
    }
    memory
}

#[inline]
fn prefetch<T>(slice: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        let address = slice.as_ptr().wrapping_add(at).cast::<i8>();
        // SAFETY: a prefetch is a hint; it reads nothing and cannot fault, whatever the address.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, at);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn ids_are_dense_and_stable() {
        let mut keys = Keys::new(7, 100_000);
        for id in 0..50_000_u32 {
            assert_eq!(keys.insert(format!("device-{id}").as_bytes()), Ok(id));
        }
        for id in (0..50_000_u32).rev() {
            let key = format!("device-{id}");
            assert_eq!(keys.find(key.as_bytes()), Some(id));
            assert_eq!(keys.insert(key.as_bytes()), Ok(id));
            assert_eq!(keys.get(id), Some(key.as_bytes()));
        }
        assert_eq!(keys.find(b"device-50000"), None);
        assert_eq!(keys.get(50_000), None);
    }

    #[test]
    fn bounds_refuse_new_keys_and_keep_old_ones() {
        let mut keys = Keys::new(7, 2);
        assert_eq!(keys.insert(b""), Ok(0));
        assert_eq!(keys.insert(&[b'x'; MAX_KEY_BYTES + 1]), Err(KeyError::TooLong(1025)));
        assert_eq!(keys.insert(&[b'x'; MAX_KEY_BYTES]), Ok(1));
        assert_eq!(keys.insert(b"c"), Err(KeyError::Full(2)));
        assert_eq!(keys.insert(b""), Ok(0));
    }

    #[test]
    fn long_keys_meet_the_bound_on_bytes() {
        let mut keys = Keys::new(7, 1000);
        let refused = (0..).find_map(|n| keys.insert(format!("{n:0>1000}").as_bytes()).err());
        assert_eq!(refused, Some(KeyError::BytesFull(65_536)));
    }

    #[test]
    fn partitions_are_even() {
        let mut counts = [0_u32; 7];
        for n in 0..70_000 {
            counts[usize::from(partition_of_hash(hash(format!("d{n}").as_bytes(), 3), 7))] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }

    #[test]
    fn entries_that_contradict_are_refused() {
        let mut keys = Keys::new(1, 10);
        keys.load_entries(0, 2, b"\x01a\x01b").unwrap();
        keys.load_entries(1, 2, b"\x01b\x01c").unwrap();
        assert_eq!(keys.len(), 3);
        assert!(keys.load_entries(4, 1, b"\x01e").is_err(), "gap");
        assert!(keys.load_entries(2, 1, b"\x01x").is_err(), "other key under a known id");
        assert!(keys.load_entries(3, 1, b"\x01a").is_err(), "known key under another id");
        assert!(keys.load_entries(3, 1, b"\x05a").is_err(), "cut");
        assert!(keys.load_entries(3, 0, b"\x01a").is_err(), "bytes left over");
    }

    #[test]
    fn reserved_memory_takes_the_keys_without_growing() {
        let mut source = Keys::new(1, 100_000);
        for id in 0..10_000 {
            source.insert(format!("device-{id}").as_bytes()).unwrap();
        }
        let mut entries = Vec::new();
        source.put_entries(0, source.len(), &mut entries);
        let mut keys = Keys::new(1, 100_000);
        keys.insert(b"device-0").unwrap();
        keys.reserve(9_999, entries.len());
        let (slots, bytes) = (keys.slots.len(), keys.bytes.capacity());
        keys.load_entries(0, 10_000, &entries).unwrap();
        assert_eq!((keys.slots.len(), keys.bytes.capacity()), (slots, bytes));
        assert!((0..10_000).all(|id| keys.find(source.get(id).unwrap()) == Some(id)));
    }

    proptest! {
        #[test]
        fn like_a_hash_map(words in prop::collection::vec("[a-e]{0,3}", 0..200), seed: u64) {
            let (mut keys, mut model) = (Keys::new(seed, 1000), HashMap::new());
            let mut ids = Vec::new();
            for word in &words {
                let next = model.len() as u32;
                let id = *model.entry(word.clone()).or_insert(next);
                prop_assert_eq!(keys.insert(word.as_bytes()), Ok(id));
            }
            prop_assert_eq!(keys.resolve(words.len(), |row| words[row].as_bytes(), &mut ids), 0);
            prop_assert!(words.iter().zip(&ids).all(|(word, id)| model[word] == *id));

            let mut entries = Vec::new();
            keys.put_entries(0, keys.len(), &mut entries);
            let mut again = Keys::new(seed, 1000);
            again.load_entries(0, keys.len(), &entries).unwrap();
            prop_assert!((0..keys.len()).all(|id| keys.get(id) == again.get(id)));
        }
    }
}
