//! The key file of one partition: its dictionary, kept after the segments that first held the keys.
//!
//! Append-only batches with a CRC each. It is synced before a new segment is begun, so the keys that
//! are not yet in it stand in the last segment, which opening reads in full.

use std::sync::Arc;

use super::error::LogError;
use super::keys::Keys;
use super::storage::{Storage, StorageFile};
use super::varint::Cursor;
use crate::schema::Partition;

const MAGIC: [u8; 8] = *b"HWlogkey";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const BATCH_HEADER_BYTES: usize = 16;

pub struct KeyFile {
    partition: Partition,
    name: String,
    /// `None`: absent, or a write failed and its end is not known; then the file is written anew.
    file: Option<Arc<dyn StorageFile>>,
    /// Where the next batch goes.
    end: u64,
    /// Keys that the file durably holds.
    keys: u32,
}

impl KeyFile {
    /// Reads the file, if there is one, into `keys`. A torn last batch is left out,
    /// and cut off when the next one is written.
    pub fn load(storage: &dyn Storage, partition: Partition, keys: &mut Keys) -> Result<KeyFile, LogError> {
        let name = format!("keys-{:04}", partition.0);
        let mut this = KeyFile { partition, name, file: None, end: 0, keys: 0 };
        let file = match storage.open(&this.name) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(this),
            Err(error) => return Err(LogError::io(format!("open {}", this.name), &error)),
        };
        let name = this.name.clone();
        let failed = |error: std::io::Error| LogError::io(format!("read {name}"), &error);
        let mut bytes = vec![0; file.size().map_err(failed)? as usize];
        let count = file.read_at(0, &mut bytes).map_err(failed)?;
        bytes.truncate(count);
        let mut cursor = Cursor::new(&bytes);
        let (Ok(magic), Ok(version), Ok(of), Ok(_)) =
            (cursor.take(8), cursor.u16(), cursor.u16(), cursor.u32())
        else {
            return Err(LogError::corrupt(name, 0, "the file is shorter than its header"));
        };
        if magic != MAGIC || of != partition.0 {
            return Err(LogError::corrupt(name, 0, "it is not the key file of this partition"));
        }
        if version != VERSION {
            return Err(LogError::Version { file: name, found: version, known: VERSION });
        }
        this.end = HEADER_BYTES as u64;
        let batches: Vec<_> = std::iter::from_fn(|| take_batch(&mut cursor)).collect();
        // An entry takes a byte at least, so a count cannot ask for more memory than a few times the file.
        let entry_bytes = batches.iter().map(|(.., entries)| entries.len()).sum();
        let count: usize = batches.iter().map(|(_, count, _)| *count as usize).sum();
        keys.reserve(count.min(entry_bytes), entry_bytes);
        for (first, count, entries) in batches {
            let loaded = keys.load_entries(first, count, entries);
            loaded.map_err(|error| LogError::corrupt(&name, this.end, error.to_string()))?;
            this.end += (BATCH_HEADER_BYTES + entries.len()) as u64;
        }
        this.keys = keys.len();
        this.file = Some(file);
        Ok(this)
    }

    /// Only `confirmed` keys are known to be durable: the header of a segment says so. More can stand in
    /// the system's cache alone, after a sync that failed; then the file is written anew.
    pub fn trust_only(&mut self, confirmed: u32) {
        if self.keys > confirmed {
            self.keys = confirmed;
            self.file = None;
        }
    }

    /// Up to the end of the last valid batch.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// Makes ids below `upto` durable in the file.
    pub fn flush(&mut self, storage: &dyn Storage, keys: &Keys, upto: u32) -> Result<(), LogError> {
        if upto <= self.keys {
            return Ok(());
        }
        let written = match self.file.take() {
            Some(file) => self.append(file, keys, upto),
            // Never again through a file whose sync has failed: its pages may wrongly count as clean.
            None => self.rewrite(storage, keys, upto),
        };
        written.map_err(|error| LogError::io(format!("write new keys to {}", self.name), &error))
    }

    fn append(&mut self, file: Arc<dyn StorageFile>, keys: &Keys, upto: u32) -> std::io::Result<()> {
        let batch = batch(keys, self.keys, upto);
        if file.size()? > self.end {
            file.set_len(self.end)?;
        }
        file.write_at(self.end, &batch)?;
        file.sync()?;
        self.end += batch.len() as u64;
        self.keys = upto;
        self.file = Some(file);
        Ok(())
    }

    fn rewrite(&mut self, storage: &dyn Storage, keys: &Keys, upto: u32) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.partition.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend(batch(keys, 0, upto));
        let new = format!("{}.new", self.name);
        let file = storage.create(&new)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        storage.rename(&new, &self.name)?;
        storage.sync_directory()?;
        self.end = bytes.len() as u64;
        self.keys = upto;
        self.file = Some(file);
        Ok(())
    }
}

/// CRC32C of the rest, first id, count, bytes of entries; then the entries.
fn batch(keys: &Keys, from: u32, to: u32) -> Vec<u8> {
    let mut out = vec![0; BATCH_HEADER_BYTES];
    keys.put_entries(from, to, &mut out);
    let entry_bytes = (out.len() - BATCH_HEADER_BYTES) as u32;
    out[4..8].copy_from_slice(&from.to_le_bytes());
    out[8..12].copy_from_slice(&(to - from).to_le_bytes());
    out[12..16].copy_from_slice(&entry_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

fn take_batch<'a>(cursor: &mut Cursor<'a>) -> Option<(u32, u32, &'a [u8])> {
    let mut ahead = *cursor;
    let header = ahead.take(BATCH_HEADER_BYTES).ok()?;
    let mut fields = Cursor::new(header);
    let (crc, first, count, bytes) =
        (fields.u32().ok()?, fields.u32().ok()?, fields.u32().ok()?, fields.u32().ok()?);
    let entries = ahead.take(bytes as usize).ok()?;
    if count == 0 || crc != crc32c::crc32c_append(crc32c::crc32c(&header[4..]), entries) {
        return None;
    }
    *cursor = ahead;
    Some((first, count, entries))
}
