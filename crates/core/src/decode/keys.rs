//! Which declared key a payload's key is: first a guess from the order of the declaration, then a small hash table.
//!
//! The tables are built once from the declaration, so no payload can make them slow.

/// Keys of one object of the declaration, in declared order.
#[derive(Debug)]
pub(super) struct Keys {
    /// Each with the closing quote, so that one comparison decides the guess.
    quoted: Vec<Box<[u8]>>,
    /// Open addressing; `EMPTY` or an index of `quoted`. At most half full.
    table: Box<[u16]>,
    shift: u32,
}

const EMPTY: u16 = u16::MAX;

impl Keys {
    /// At most 65,535 distinct names.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Keys {
        let quoted: Vec<Box<[u8]>> =
            names.into_iter().map(|name| format!("{name}\"").into_bytes().into()).collect();
        let size = (quoted.len() * 2).next_power_of_two().max(2);
        let mut keys =
            Keys { quoted: Vec::new(), table: vec![EMPTY; size].into(), shift: 64 - size.trailing_zeros() };
        for (index, key) in quoted.iter().enumerate() {
            let mut slot = keys.slot(&key[..key.len() - 1]);
            while keys.table[slot] != EMPTY {
                slot = (slot + 1) & (size - 1);
            }
            keys.table[slot] = index as u16;
        }
        keys.quoted = quoted;
        keys
    }

    /// Whether `rest`, the payload after a key's opening quote, holds exactly key `index`; its length with the quote.
    #[inline(always)]
    pub fn guess(&self, index: usize, rest: &[u8]) -> Option<usize> {
        let key = self.quoted.get(index)?;
        rest.starts_with(key).then_some(key.len())
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
            if key.len() == name.len() + 1 && key.starts_with(name) {
                return Some(index as usize);
            }
            slot = (slot + 1) & (self.table.len() - 1);
        }
    }

    #[inline]
    fn slot(&self, name: &[u8]) -> usize {
        let word = |bytes: &[u8]| bytes.iter().fold(0u64, |word, byte| word << 8 | *byte as u64);
        let ends = match name.len() {
            length @ 0..8 => word(name) ^ (length as u64) << 56,
            length => word(&name[..8]) ^ word(&name[length - 8..]).rotate_left(23) ^ (length as u64) << 56,
        };
        (ends.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }
}
