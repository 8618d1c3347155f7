//! Which declared key a payload's key is: first a guess from the order of the declaration, then a small hash table.
//!
//! The tables are built once from the declaration, so no payload can make them slow.

use crate::short;

/// Keys of one object of the declaration, in declared order.
#[derive(Debug)]
pub(super) struct Keys {
    quoted: Vec<Key>,
    /// Open addressing; `EMPTY` or an index of `quoted`. At most half full.
    table: Box<[u16]>,
    shift: u32,
}

#[derive(Debug)]
struct Key {
    /// With the closing quote, so that one comparison decides the guess.
    quoted: Box<[u8]>,
    /// The first eight bytes of `quoted`, and which bits of them count.
    head: u64,
    mask: u64,
}

const EMPTY: u16 = u16::MAX;

impl Key {
    fn new(name: &str) -> Key {
        let quoted: Box<[u8]> = format!("{name}\"").into_bytes().into();
        let mut head = [0; 8];
        let length = quoted.len().min(8);
        head[..length].copy_from_slice(&quoted[..length]);
        let mask = if length == 8 { u64::MAX } else { (1 << (8 * length)) - 1 };
        Key { head: u64::from_le_bytes(head), mask, quoted }
    }

    fn name(&self) -> &[u8] {
        &self.quoted[..self.quoted.len() - 1]
    }
}

impl Keys {
    /// At most 65,535 distinct names.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Keys {
        let quoted: Vec<Key> = names.into_iter().map(Key::new).collect();
        let size = (quoted.len() * 2).next_power_of_two().max(2);
        let mut keys =
            Keys { quoted: Vec::new(), table: vec![EMPTY; size].into(), shift: 64 - size.trailing_zeros() };
        for (index, key) in quoted.iter().enumerate() {
            let mut slot = keys.slot(key.name());
            while keys.table[slot] != EMPTY {
                slot = (slot + 1) & (size - 1);
            }
            keys.table[slot] = index as u16;
        }
        keys.quoted = quoted;
        keys
    }

    pub fn name(&self, index: usize) -> &str {
        self.quoted.get(index).and_then(|key| std::str::from_utf8(key.name()).ok()).unwrap_or_default()
    }

    /// Whether `rest`, the payload after a key's opening quote, holds exactly key `index`; its length with the quote.
    #[inline(always)]
    pub fn guess(&self, index: usize, rest: &[u8]) -> Option<usize> {
        let key = self.quoted.get(index)?;
        let length = key.quoted.len();
        let Some(head) = rest.first_chunk::<8>() else {
            return rest.starts_with(&key.quoted).then_some(length);
        };
        if (u64::from_le_bytes(*head) ^ key.head) & key.mask != 0 {
            return None;
        }
        (length <= 8 || short::equal(rest.get(8..length)?, &key.quoted[8..])).then_some(length)
    }

    /// The index of `name`.
    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        let mut slot = self.slot(name);
        loop {
            let index = self.table[slot];
            if index == EMPTY {
                return None;
            }
            let key = &self.quoted[index as usize];
            if short::equal(key.name(), name) {
                return Some(index as usize);
            }
            slot = (slot + 1) & (self.table.len() - 1);
        }
    }

    #[inline]
    fn slot(&self, name: &[u8]) -> usize {
        let ends = match (name.first_chunk(), name.last_chunk()) {
            (Some(first), Some(last)) => short::word(first) ^ short::word(last).rotate_left(23),
            _ => short::words(name).fold(0, |ends, (_, word)| ends | word),
        };
        let ends = ends ^ (name.len() as u64) << 56;
        (ends.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }
}
