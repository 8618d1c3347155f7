//! How each client's last connection ended: a bounded memory, so that "it just went away" has an answer.
//!
//! Fixed in size, like the table of clients that come too often: 65,536 clients in 1.5 MB, the one that closed longest ago of
//! the four that share places goes first.

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ending::Ending;
use crate::mqtt::ReasonCode;

const SHARDS: usize = 16;
const ENTRIES: usize = 4096;
const WAYS: usize = 4;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The client sent DISCONNECT.
    Client,
    /// The network connection ended without one.
    Lost,
    /// The gateway ended it.
    Gateway(ReasonCode),
}

#[derive(Debug)]
pub(super) struct Closes {
    shards: Vec<Mutex<Vec<Entry>>>,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// 0: free.
    key: u64,
    at_ms: u64,
    close: Close,
}

impl Close {
    pub(super) fn of(ending: &Ending) -> Close {
        match ending {
            Ending::Goodbye(_) => Close::Client,
            Ending::Ours(end) => Close::Gateway(end.reason),
            Ending::Lost | Ending::Refused => Close::Lost,
        }
    }
}

impl Closes {
    pub fn new(seed: u64) -> Closes {
        Closes { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), seed }
    }

    pub fn note(&self, client_id: &str, close: Close, at_ms: u64) {
        let (key, set) = self.place(client_id);
        let Some(shard) = self.shards.get(key as usize % SHARDS) else { return };
        let mut entries = shard.lock();
        if entries.is_empty() {
            entries.resize(ENTRIES, Entry { key: 0, at_ms: 0, close: Close::Lost });
        }
        let places = entries.get_mut(set..set + WAYS).unwrap_or_default();
        if let Some(entry) = places.iter_mut().min_by_key(|entry| (entry.key != key, entry.at_ms)) {
            *entry = Entry { key, at_ms, close };
        }
    }

    /// How it ended, and when, in milliseconds since the Unix epoch.
    pub fn last(&self, client_id: &str) -> Option<(Close, u64)> {
        let (key, set) = self.place(client_id);
        let entries = self.shards.get(key as usize % SHARDS)?.lock();
        let found = entries.get(set..set + WAYS)?.iter().find(|entry| entry.key == key)?;
        Some((found.close, found.at_ms))
    }

    fn place(&self, client_id: &str) -> (u64, usize) {
        let key = xxh3_64_with_seed(client_id.as_bytes(), self.seed).max(1);
        (key, (key >> 8) as usize % (ENTRIES / WAYS) * WAYS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_close_of_each_client_is_kept_within_the_bound() {
        let closes = Closes::new(3);
        assert_eq!(closes.last("a"), None);
        closes.note("a", Close::Lost, 1);
        closes.note("a", Close::Gateway(ReasonCode::KeepAliveTimeout), 2);
        closes.note("b", Close::Client, 3);
        assert_eq!(closes.last("a"), Some((Close::Gateway(ReasonCode::KeepAliveTimeout), 2)));
        assert_eq!(closes.last("b"), Some((Close::Client, 3)));
        (0..200_000).for_each(|at| closes.note(&at.to_string(), Close::Client, 10 + at));
        assert_eq!(closes.last("199999"), Some((Close::Client, 200_009)));
        assert!(closes.shards.iter().all(|shard| shard.lock().len() == ENTRIES));
    }
}
