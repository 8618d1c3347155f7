//! The levels of a topic that is published to, found once for all that ask for them.

use crate::short;

/// Levels whose places are kept; those behind them are looked for each time.
pub(super) const KEPT: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(super) struct Levels<'a> {
    topic: &'a [u8],
    /// Where each level ends.
    ends: [u16; KEPT],
    kept: usize,
    /// No level is behind those that are kept.
    whole: bool,
}

impl<'a> Levels<'a> {
    #[inline(always)]
    pub fn new(topic: &'a str) -> Levels<'a> {
        let topic = topic.as_bytes();
        let mut levels = Levels { topic, ends: [0; KEPT], kept: 0, whole: true };
        for (at, word) in short::words(topic) {
            let mut slashes = short::marks(word, b'/');
            while slashes != 0 {
                levels.add(at + short::first(slashes));
                slashes &= slashes - 1;
            }
        }
        levels.add(topic.len());
        levels
    }

    #[inline(always)]
    fn add(&mut self, end: usize) {
        match self.ends.get_mut(self.kept) {
            Some(place) => {
                // A topic has at most 65,535 bytes.
                *place = end as u16;
                self.kept += 1;
            }
            None => self.whole = false,
        }
    }

    /// Number of levels; `None`: more than `KEPT`.
    #[inline(always)]
    pub fn count(&self) -> Option<usize> {
        self.whole.then_some(self.kept)
    }

    /// Level `at`, from 0; empty where the topic has fewer.
    #[inline(always)]
    pub fn get(&self, at: usize) -> &'a [u8] {
        if at >= self.kept {
            return self.behind(at);
        }
        let begin = if at == 0 { 0 } else { usize::from(self.ends[at - 1]) + 1 };
        &self.topic[begin..usize::from(self.ends[at])]
    }

    #[cold]
    fn behind(&self, at: usize) -> &'a [u8] {
        if self.whole { &[] } else { self.topic.split(|byte| *byte == b'/').nth(at).unwrap_or(&[]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn levels_are_what_lies_between_slashes(topic in "[ab/é]{0,60}") {
            let levels = Levels::new(&topic);
            let wanted: Vec<&str> = topic.split('/').collect();
            prop_assert_eq!(levels.count(), (wanted.len() <= KEPT).then_some(wanted.len()));
            for at in 0..=wanted.len() {
                prop_assert_eq!(levels.get(at), wanted.get(at).copied().unwrap_or("").as_bytes());
            }
        }
    }
}
