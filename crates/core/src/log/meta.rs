//! The identity of a data directory: what may never change once rows are stored.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::error::LogError;
use super::storage::Storage;
use super::varint::Cursor;

const NAME: &str = "meta";
const NEW: &str = "meta.new";
const MAGIC: [u8; 8] = *b"HWlogdir";
const VERSION: u16 = 1;
const BYTES: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub partitions: u16,
    /// Secret seed of the key hash: a device cannot choose names that collide.
    pub seed: u64,
}

impl Meta {
    /// `None`: the directory has none yet.
    pub fn load(storage: &dyn Storage) -> Result<Option<Meta>, LogError> {
        if !storage
            .list()
            .map_err(|error| LogError::io("list the log's files", &error))?
            .iter()
            .any(|n| n == NAME)
        {
            return Ok(None);
        }
        let mut bytes = [0; BYTES];
        let file = storage.open(NAME).map_err(|error| LogError::io("open the log's meta file", &error))?;
        let read =
            file.read_at(0, &mut bytes).map_err(|error| LogError::io("read the log's meta file", &error))?;
        let mut cursor = Cursor::new(&bytes[8..]);
        let damaged =
            |found: &str| LogError::corrupt(NAME, 0, format!("{found}; restore the file from a backup"));
        let (Ok(crc), Ok(version), Ok(partitions), Ok(seed)) =
            (cursor.u32(), cursor.u16(), cursor.u16(), cursor.u64())
        else {
            return Err(damaged("it is too short"));
        };
        if read < BYTES || bytes[..8] != MAGIC || crc != crc32c::crc32c(&bytes[12..]) {
            return Err(damaged("its magic or CRC is wrong"));
        }
        if version != VERSION {
            return Err(LogError::Version { file: NAME.into(), found: version, known: VERSION });
        }
        Ok(Some(Meta { partitions, seed }))
    }

    /// A new identity, durable when this returns.
    pub fn create(storage: &dyn Storage, partitions: u16) -> Result<Meta, LogError> {
        let meta = Meta { partitions, seed: random() };
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
        bytes[14..16].copy_from_slice(&partitions.to_le_bytes());
        bytes[16..].copy_from_slice(&meta.seed.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        let write = || {
            let file = storage.create(NEW)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
            storage.rename(NEW, NAME)?;
            storage.sync_directory()
        };
        write().map_err(|error| LogError::io("create the log's meta file", &error))?;
        Ok(meta)
    }
}

/// 64 bits nobody outside can guess: SipHash under keys that the standard library takes from the system.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
