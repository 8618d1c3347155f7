//! Who owns a client id: one connection at a time, over all threads.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hasher};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128_with_seed;

const SHARDS: usize = 64;

/// A connection anywhere in the gateway. The generation tells it from later users of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnId {
    pub thread: u16,
    pub slot: u32,
    pub generation: u32,
}

/// Keys are 128-bit hashes under a secret seed instead of the ids themselves: 32 bytes a client whatever its
/// id is, and no two ids in practice share one.
#[derive(Debug)]
pub(super) struct Registry {
    shards: Vec<Mutex<HashMap<u128, ConnId, Identity>>>,
    seed: u64,
}

impl Registry {
    pub fn new(seed: u64) -> Registry {
        Registry { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), seed }
    }

    fn key(&self, client_id: &str) -> (u128, &Mutex<HashMap<u128, ConnId, Identity>>) {
        let key = xxh3_128_with_seed(client_id.as_bytes(), self.seed);
        (key, &self.shards[(key >> 64) as usize % SHARDS])
    }

    /// Makes `owner` the owner if nobody is; else gives who is.
    pub fn claim(&self, client_id: &str, owner: ConnId) -> Result<(), ConnId> {
        let (key, shard) = self.key(client_id);
        match shard.lock().entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(owner);
                Ok(())
            }
            Entry::Occupied(occupied) => Err(*occupied.get()),
        }
    }

    pub fn owner(&self, client_id: &str) -> Option<ConnId> {
        let (key, shard) = self.key(client_id);
        shard.lock().get(&key).copied()
    }

    /// Whether somebody owns the client id: a connection, or a session whose client is away.
    pub fn knows(&self, client_id: &str) -> bool {
        let (key, shard) = self.key(client_id);
        shard.lock().contains_key(&key)
    }

    /// Forgets the client id, unless somebody else owns it by now.
    pub fn release(&self, client_id: &str, owner: ConnId) {
        let (key, shard) = self.key(client_id);
        let mut shard = shard.lock();
        if shard.get(&key) == Some(&owner) {
            shard.remove(&key);
        }
    }
}

/// The keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct Identity;

#[derive(Clone, Copy, Debug, Default)]
struct IdentityHasher(u64);

impl BuildHasher for Identity {
    type Hasher = IdentityHasher;
    fn build_hasher(&self) -> IdentityHasher {
        IdentityHasher(0)
    }
}

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_releases() {
        let registry = Registry::new(5);
        let id = |slot| ConnId { thread: 0, slot, generation: 1 };
        assert_eq!(registry.claim("a", id(1)), Ok(()));
        assert_eq!(registry.claim("a", id(2)), Err(id(1)));
        registry.release("a", id(2));
        assert_eq!(registry.owner("a"), Some(id(1)));
        assert!(registry.knows("a") && !registry.knows("b"));
        registry.release("a", id(1));
        assert_eq!(registry.claim("a", id(4)), Ok(()));
    }
}
