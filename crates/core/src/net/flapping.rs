//! Clients that come too often: a bounded table of who came how often lately, and who is kept out for a time.
//!
//! The table is as large as it is, whoever comes: an entry has one of four places, and a new one takes that of the
//! entry which has been quiet longest and is not kept out. So who is forgotten early is at worst counted anew.

use std::net::IpAddr;

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

const SHARDS: usize = 16;
/// Entries of one shard; 65,536 in all, 1.5 MB, reserved when the first one comes.
const ENTRIES: usize = 4096;
/// Places that one entry may have.
const WAYS: usize = 4;

#[derive(Debug)]
pub(super) struct Flapping {
    shards: Vec<Mutex<Vec<Entry>>>,
    window: u32,
    ban: u32,
    seed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// 0: free.
    key: u64,
    /// Tick at which the window began.
    since: u32,
    count: u32,
    /// Kept out until this tick.
    until: u32,
}

/// Of one more attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// This one was too many.
    TooMany,
    /// The time is not over; it is not made longer.
    KeptOut,
}

impl Flapping {
    /// window, ban: ticks
    pub fn new(window: u32, ban: u32, seed: u64) -> Flapping {
        Flapping { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), window, ban, seed }
    }

    /// A client id at an address.
    pub fn client(&self, client_id: &str, address: Option<IpAddr>) -> u64 {
        self.key(0, client_id, address)
    }

    /// A client id, wherever.
    pub fn client_id(&self, client_id: &str) -> u64 {
        self.key(1, client_id, None)
    }

    fn key(&self, kind: u8, client_id: &str, address: Option<IpAddr>) -> u64 {
        let mut hash = Xxh3::with_seed(self.seed);
        hash.update(&[kind]);
        match address {
            Some(IpAddr::V4(address)) => hash.update(&address.octets()),
            Some(IpAddr::V6(address)) => hash.update(&address.octets()),
            None => {}
        }
        hash.update(client_id.as_bytes());
        hash.digest().max(1)
    }

    /// Counts one more; `most` of them are fine within the window.
    pub fn count(&self, key: u64, most: u32, tick: u32) -> Verdict {
        let Some(shard) = self.shards.get(key as usize % SHARDS) else { return Verdict::Fine };
        let mut entries = shard.lock();
        if entries.is_empty() {
            entries.resize(ENTRIES, Entry::default());
        }
        let set = (key >> 8) as usize % (ENTRIES / WAYS) * WAYS;
        let Some(places) = entries.get_mut(set..set + WAYS) else { return Verdict::Fine };
        let quiet = |entry: &Entry| (entry.key != key, entry.until.max(entry.since));
        let Some(entry) = places.iter_mut().min_by_key(|entry| quiet(entry)) else { return Verdict::Fine };
        if entry.key != key {
            *entry = Entry { key, since: tick, ..Entry::default() };
        }
        if tick < entry.until {
            return Verdict::KeptOut;
        }
        if tick.saturating_sub(entry.since) >= self.window {
            (entry.since, entry.count) = (tick, 0);
        }
        entry.count += 1;
        if entry.count <= most {
            return Verdict::Fine;
        }
        *entry = Entry { key, since: tick, count: 0, until: tick.saturating_add(self.ban) };
        Verdict::TooMany
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_within_the_window_are_kept_out_for_a_time() {
        let flapping = Flapping::new(100, 300, 7);
        let key = flapping.client("a", None);
        let mut count = |tick| flapping.count(key, 3, tick);
        assert_eq!([0, 1, 99].map(&mut count), [Verdict::Fine; 3]);
        // A new window.
        assert_eq!([100, 101, 102].map(&mut count), [Verdict::Fine; 3]);
        assert_eq!(count(103), Verdict::TooMany);
        assert_eq!([104, 402].map(&mut count), [Verdict::KeptOut; 2]);
        assert_eq!([403, 404, 405].map(&mut count), [Verdict::Fine; 3]);
        assert_eq!(count(406), Verdict::TooMany);
    }

    #[test]
    fn others_are_not_counted() {
        let flapping = Flapping::new(100, 300, 7);
        let here = Some(IpAddr::from([192, 0, 2, 1]));
        let there = Some(IpAddr::from([192, 0, 2, 2]));
        let keys = [
            flapping.client("a", here),
            flapping.client("a", there),
            flapping.client("b", here),
            flapping.client_id("a"),
        ];
        for key in keys {
            assert_eq!(flapping.count(key, 1, 5), Verdict::Fine);
        }
        assert_eq!(flapping.count(keys[0], 1, 5), Verdict::TooMany);
    }

    #[test]
    fn a_flood_of_names_takes_no_memory_and_frees_nobody_who_is_kept_out() {
        let flapping = Flapping::new(1_000_000, 1_000_000, 7);
        let bad = flapping.client("bad", None);
        flapping.count(bad, 0, 1000);
        for name in 0..300_000 {
            flapping.count(flapping.client(&name.to_string(), None), 5, 1001);
        }
        assert_eq!(flapping.count(bad, 0, 1002), Verdict::KeptOut);
        assert!(flapping.shards.iter().all(|shard| shard.lock().len() == ENTRIES));
    }
}
