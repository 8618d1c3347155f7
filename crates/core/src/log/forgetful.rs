//! A storage in memory that behaves like a disk at its worst: it forgets what was not synced.
//!
//! `cut` is a power loss: of the sectors written since their file's last sync any may have reached
//! the disk and any not, in any order, and of the directory's changes since its last sync a prefix
//! has. `kill` is the end of the process only: what was written stays readable. After a failed sync
//! the sectors count as clean although they never reached the disk, as in Linux's page cache.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::{Rng, RngExt};

use super::storage::{Storage, StorageFile};

/// Written whole or not at all, and without touching its neighbours.
const SECTOR: usize = 512;

#[derive(Default)]
struct File {
    /// What reads see.
    cached: Vec<u8>,
    /// What a power loss leaves.
    stored: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// End of what was ever written.
    written: usize,
}

#[derive(Clone)]
enum Change {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Default)]
struct Disk {
    files: Vec<File>,
    /// Name to index in `files`: now, and as a power loss leaves it before `changes` are applied.
    names: BTreeMap<String, usize>,
    stored_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    /// Counts restarts; handles of an earlier life fail.
    life: u64,
    /// Operations left until the power goes, if it is to go.
    fuse: Option<u64>,
    failing_syncs: u32,
    failing_writes: u32,
    capacity: Option<usize>,
    syncs: u64,
}

/// Clones share the disk. A handle works until the next `cut` or `kill`.
#[derive(Clone)]
pub struct Forgetful {
    disk: Arc<Mutex<Disk>>,
    life: u64,
}

struct Handle {
    disk: Arc<Mutex<Disk>>,
    life: u64,
    file: usize,
}

impl Forgetful {
    pub fn new() -> Forgetful {
        Forgetful { disk: Arc::default(), life: 0 }
    }

    /// The power goes after `operations` more writes, syncs and directory changes: from then on they fail.
    pub fn cut_after(&self, operations: u64) {
        self.disk.lock().fuse = Some(operations);
    }

    /// The next `count` syncs of files fail.
    pub fn fail_syncs(&self, count: u32) {
        self.disk.lock().failing_syncs = count;
    }

    /// The next `count` writes fail after their first half.
    pub fn fail_writes(&self, count: u32) {
        self.disk.lock().failing_writes = count;
    }

    /// Bytes of all files; `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.disk.lock().capacity = bytes;
    }

    pub fn syncs(&self) -> u64 {
        self.disk.lock().syncs
    }

    /// Power loss and restart. Which unsynced sectors and directory changes survive is drawn from `random`.
    pub fn cut(&self, random: &mut impl Rng) -> Forgetful {
        let mut disk = self.disk.lock();
        let kept = random.random_range(0..=disk.changes.len());
        let changes: Vec<Change> = disk.changes.drain(..).take(kept).collect();
        for change in changes {
            apply(&mut disk.stored_names, change);
        }
        disk.names = disk.stored_names.clone();
        for file in &mut disk.files {
            // The length is metadata: it may be ahead of the data, which then reads as zero.
            if file.cached.len() != file.stored.len() && random.random_bool(0.5) {
                file.stored.resize(file.cached.len(), 0);
            }
            for sector in std::mem::take(&mut file.dirty) {
                if random.random_bool(0.5) {
                    store(file, sector);
                }
            }
            file.cached.clone_from(&file.stored);
        }
        restart(&mut disk, &self.disk)
    }

    /// The process dies and starts again; the system's caches live on.
    pub fn kill(&self) -> Forgetful {
        restart(&mut self.disk.lock(), &self.disk)
    }

    /// Contents of a file, for tests that damage it.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let disk = self.disk.lock();
        disk.files[disk.names[name]].cached.clone()
    }

    /// Replaces a file's contents, durably.
    pub fn set_bytes(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.disk.lock();
        let index = disk.names[name];
        let file = &mut disk.files[index];
        file.cached = bytes.to_vec();
        file.stored = bytes.to_vec();
        file.dirty.clear();
    }

    /// An independent disk with the same contents, all of it durable.
    pub fn copy(&self) -> Forgetful {
        let disk = self.disk.lock();
        let files = disk.files.iter().map(|file| File {
            cached: file.cached.clone(),
            stored: file.cached.clone(),
            dirty: BTreeSet::new(),
            written: file.written,
        });
        let names = disk.names.clone();
        let copy = Disk { files: files.collect(), stored_names: names.clone(), names, ..Disk::default() };
        Forgetful { disk: Arc::new(Mutex::new(copy)), life: 0 }
    }
}

fn restart(disk: &mut Disk, shared: &Arc<Mutex<Disk>>) -> Forgetful {
    disk.life += 1;
    disk.fuse = None;
    disk.failing_syncs = 0;
    disk.failing_writes = 0;
    Forgetful { disk: shared.clone(), life: disk.life }
}

fn store(file: &mut File, sector: usize) {
    let from = sector * SECTOR;
    let to = (from + SECTOR).min(file.cached.len());
    if from < to {
        if file.stored.len() < to {
            file.stored.resize(to, 0);
        }
        file.stored[from..to].copy_from_slice(&file.cached[from..to]);
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: Change) {
    match change {
        Change::Create(name, file) => {
            names.insert(name, file);
        }
        Change::Rename(from, to) => {
            if let Some(file) = names.remove(&from) {
                names.insert(to, file);
            }
        }
        Change::Remove(name) => {
            names.remove(&name);
        }
    }
}

impl Disk {
    fn check(&self, life: u64) -> io::Result<()> {
        if life == self.life && self.fuse != Some(0) {
            Ok(())
        } else {
            Err(io::Error::other("the power is off"))
        }
    }

    /// For operations that change something.
    fn burn(&mut self, life: u64) -> io::Result<()> {
        self.check(life)?;
        self.fuse = self.fuse.map(|left| left - 1);
        Ok(())
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, change.clone());
        self.changes.push(change);
    }

    fn reserve(&mut self, file: usize, bytes: usize) -> io::Result<()> {
        let used: usize = self.names.values().map(|file| self.files[*file].cached.len()).sum();
        let more = bytes.saturating_sub(self.files[file].cached.len());
        if self.capacity.is_some_and(|capacity| more > 0 && used + more > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Storage for Forgetful {
    fn list(&self) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        disk.check(self.life)?;
        Ok(disk.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let disk = self.disk.lock();
        disk.check(self.life)?;
        let file = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Handle { disk: self.disk.clone(), life: self.life, file }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        disk.files.push(File::default());
        let file = disk.files.len() - 1;
        disk.change(Change::Create(name.to_owned(), file));
        Ok(Arc::new(Handle { disk: self.disk.clone(), life: self.life, file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        if !disk.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        if !disk.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change(Change::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        disk.changes.clear();
        disk.stored_names = disk.names.clone();
        Ok(())
    }

    fn path(&self) -> String {
        "memory".into()
    }
}

impl StorageFile for Handle {
    fn size(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.check(self.life)?;
        Ok(disk.files[self.file].cached.len() as u64)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let disk = self.disk.lock();
        disk.check(self.life)?;
        let rest = disk.files[self.file].cached.get(at as usize..).unwrap_or(&[]);
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        let at = at as usize;
        let failing = disk.failing_writes > 0;
        disk.failing_writes = disk.failing_writes.saturating_sub(1);
        let bytes = if failing { &bytes[..bytes.len() / 2] } else { bytes };
        disk.reserve(self.file, at + bytes.len())?;
        let file = &mut disk.files[self.file];
        if file.cached.len() < at + bytes.len() {
            file.cached.resize(at + bytes.len(), 0);
        }
        file.cached[at..at + bytes.len()].copy_from_slice(bytes);
        file.written = file.written.max(at + bytes.len());
        file.dirty.extend(at / SECTOR..(at + bytes.len()).div_ceil(SECTOR));
        if failing { Err(io::Error::other("a write failed")) } else { Ok(()) }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        disk.reserve(self.file, bytes as usize)?;
        let file = &mut disk.files[self.file];
        if file.cached.len() < bytes as usize {
            file.cached.resize(bytes as usize, 0);
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        let file = &mut disk.files[self.file];
        file.cached.resize(bytes as usize, 0);
        file.written = file.written.min(bytes as usize);
        Ok(())
    }

    fn written(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.check(self.life)?;
        Ok(disk.files[self.file].written as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.burn(self.life)?;
        let failing = disk.failing_syncs > 0;
        disk.failing_syncs = disk.failing_syncs.saturating_sub(1);
        disk.syncs += 1;
        let file = &mut disk.files[self.file];
        let dirty = std::mem::take(&mut file.dirty);
        if failing {
            return Err(io::Error::other("a sync failed"));
        }
        file.stored.resize(file.cached.len(), 0);
        dirty.into_iter().for_each(|sector| store(file, sector));
        Ok(())
    }
}
