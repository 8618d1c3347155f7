//! The short way for what nearly every device sends: one object whose declared fields fit, each at most once.
//!
//! Values are kept as bare words, one a column, and nothing is undone: whatever is out of the ordinary (arrays,
//! duplicates, escapes in declared strings, every kind of error) is left to `reading.rs`, which begins anew and has
//! the last word. So this reader accepts fewer payloads, and those with the same outcome.

use super::MAX_DEPTH;
use super::json::Cursor;
use super::plan::{Kind, Node, Slot, StreamPlan, Target};
use super::spec::TimeUnit;
use super::time;
use crate::rows::{Words, text_word};
use crate::short;

/// Columns behind the captures that have a word. Ours.
pub(super) const MAX_WORDS: usize = 64;

/// One reading, by column behind the captures: event time, arrival, then the fields. Replaced by each payload.
#[derive(Clone, Debug)]
pub struct Plain {
    words: [u64; MAX_WORDS],
    /// Columns that hold a value.
    valid: u64,
    /// Columns that the payload has given a value.
    seen: u64,
    /// Nodes of the plan whose object has been read.
    objects: u64,
}

impl Default for Plain {
    fn default() -> Plain {
        Plain { words: [0; MAX_WORDS], valid: 0, seen: 0, objects: 0 }
    }
}

impl Plain {
    /// The row, which `payload` gave, in the form that `Rows::push_words` takes.
    #[inline]
    pub fn row<'a>(&'a self, captures: &'a [&'a [u8]], payload: &'a [u8]) -> Words<'a> {
        Words { captures, words: &self.words, valid: self.valid, text: payload }
    }

    /// False: the column has a value already.
    #[inline(always)]
    fn set(&mut self, at: usize, word: u64) -> Option<()> {
        let bit = 1u64.checked_shl(at as u32)?;
        if self.seen & bit != 0 {
            return None;
        }
        self.seen |= bit;
        *self.words.get_mut(at)? = word;
        Some(())
    }
}

impl StreamPlan {
    /// Reads the payload if it is a plain one. False: `decode` has to tell what it is, and `into` holds nothing.
    ///
    /// received_at_us: arrival, microseconds since the Unix epoch, UTC; the event time where the payload has none
    #[inline]
    pub fn decode_plain(&self, payload: &[u8], received_at_us: i64, into: &mut Plain) -> bool {
        if !self.plain || payload.first() != Some(&b'{') || payload.len() >= i32::MAX as usize {
            return false;
        }
        if short::text(payload).is_none() {
            return false;
        }
        into.words[0] = received_at_us as u64;
        into.words[1] = received_at_us as u64;
        (into.seen, into.objects) = (0, 0);
        let mut reading = Reading { plan: self, cursor: Cursor::new(payload), out: into };
        let read = reading.object(0, 0).and_then(|()| reading.cursor.finish().ok());
        into.valid = into.seen | 3;
        read.is_some()
    }
}

struct Reading<'a, 'p> {
    plan: &'a StreamPlan,
    cursor: Cursor<'p>,
    out: &'a mut Plain,
}

impl Reading<'_, '_> {
    /// The object at the cursor, which is that of the plan's node `at`. `None`, here and below: not plain.
    fn object(&mut self, at: usize, depth: u32) -> Option<()> {
        let plan = self.plan;
        let node = plan.nodes.get(at)?;
        if depth >= MAX_DEPTH {
            return None;
        }
        self.cursor.at += 1;
        if self.cursor.next_token() == b'}' {
            self.cursor.at += 1;
            return Some(());
        }
        // Devices send their keys in one order, most often that of the declaration.
        let mut expected = 0;
        loop {
            self.cursor.key_quote().ok()?;
            let rest = self.cursor.text.get(self.cursor.at..)?;
            let index = match node.keys.guess(expected, rest) {
                Some(length) => {
                    self.cursor.at += length;
                    Some(expected)
                }
                None => self.key(node)?,
            };
            self.cursor.colon().ok()?;
            match index {
                // Where fields are inferred, a new one is for `decode` to tell.
                None if plan.extra.is_some() => return None,
                None => self.cursor.skip_value(depth + 1).ok()?,
                Some(index) => {
                    expected = if index + 1 == node.targets.len() { 0 } else { index + 1 };
                    match node.targets.get(index)? {
                        Target::Leaf(slot) => self.leaf(*slot)?,
                        Target::Leaves(_) => return None,
                        Target::Object(child) => self.child(*child, depth + 1)?,
                    }
                }
            }
            if !self.cursor.next_member().ok()? {
                return Some(());
            }
        }
    }

    /// A key that was not the expected one: its index, if it is declared.
    #[inline]
    fn key(&mut self, node: &Node) -> Option<Option<usize>> {
        let key = self.cursor.string().ok()?;
        (!key.escaped).then(|| node.keys.find(key.bytes))
    }

    /// A second object under the same key would have to undo the first.
    fn child(&mut self, child: usize, depth: u32) -> Option<()> {
        let bit = 1u64.checked_shl(child as u32)?;
        if self.cursor.next_token() != b'{' || self.out.objects & bit != 0 {
            return None;
        }
        self.out.objects |= bit;
        self.object(child, depth)
    }

    #[inline(always)]
    fn leaf(&mut self, slot: Slot) -> Option<()> {
        let byte = self.cursor.next_token();
        let at = usize::from(slot.column).checked_sub(self.plan.captures)?;
        let word = match (slot.kind, byte) {
            (Kind::Double, b'-' | b'0'..=b'9') => self.cursor.number().ok()?.to_double()?.to_bits(),
            (Kind::Bigint, b'-' | b'0'..=b'9') => self.cursor.number().ok()?.to_bigint().ok()? as u64,
            (Kind::Boolean, b't') => {
                self.cursor.literal(b"true").ok()?;
                1
            }
            (Kind::Boolean, b'f') => {
                self.cursor.literal(b"false").ok()?;
                0
            }
            (Kind::String, b'"') => {
                self.cursor.at += 1;
                let start = self.cursor.at;
                let raw = self.cursor.string().ok()?;
                if raw.escaped {
                    return None;
                }
                text_word(start as u32, (start + raw.bytes.len()) as u32)
            }
            (Kind::Timestamp(unit), b'-' | b'0'..=b'9') if unit != TimeUnit::Iso => {
                time::from_number(self.cursor.number().ok()?, unit)? as u64
            }
            (Kind::Timestamp(TimeUnit::Auto | TimeUnit::Iso), b'"') => {
                self.cursor.at += 1;
                let raw = self.cursor.string().ok()?;
                if raw.escaped {
                    return None;
                }
                time::from_iso(raw.bytes).ok()? as u64
            }
            // NULL, unless a value has come before: then it would have to go.
            (_, b'n') => {
                self.cursor.literal(b"null").ok()?;
                let seen = 1u64.checked_shl(at as u32)? & self.out.seen != 0;
                return (!seen).then_some(());
            }
            _ => return None,
        };
        self.out.set(at, word)
    }
}
