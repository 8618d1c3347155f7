//! The files of one log directory: what the log asks of a disk, and the disk itself.
//!
//! Everything durable goes through these two traits, so that tests can put a storage below the log
//! that forgets what was not synced.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A flat directory. Names are plain file names.
///
/// What an implementation owes: `create` and `rename` survive a power cut only after
/// `sync_directory` has returned; a file's bytes only after its own `sync` has returned. `remove` and
/// `rename` leave open files readable.
pub trait Storage: Send + Sync {
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing; `NotFound` if it is absent.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// A new empty file; an old one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_directory(&self) -> io::Result<()>;
    /// How errors name the directory.
    fn path(&self) -> String;
}

pub trait StorageFile: Send + Sync {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Bytes read; fewer than asked for only at the file's end.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize>;
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reserves disk space for the first `bytes` bytes, so that writing them needs no new space and
    /// `sync` no new metadata. Bytes not yet written read as zero.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Bytes from the start whose blocks were written before, so that writing them again gives `sync` no metadata
    /// to store; reserved and never written blocks do, which makes `sync` twice as slow.
    fn written(&self) -> io::Result<u64>;
    /// Data and the file's length are on the disk when this returns. An error is final: what was
    /// written since the last success may be lost, and a second call can wrongly succeed.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system, locked for this process.
pub struct Disk {
    directory: PathBuf,
    /// `flock` ends with the process, also with kill -9.
    _lock: File,
}

impl Disk {
    /// Creates the directory if it is absent. `WouldBlock`: another process holds the lock.
    pub fn open(directory: &Path) -> io::Result<Disk> {
        fs::create_dir_all(directory)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"))?;
        // SAFETY: the descriptor is open for as long as `lock` lives; flock touches no memory of ours.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The directory's own entry must survive too, else everything below it is lost.
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Disk { directory: directory.to_owned(), _lock: lock })
    }
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.directory.join(name))?;
        Ok(Arc::new(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn path(&self) -> String {
        self.directory.display().to_string()
    }
}

impl StorageFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match FileExt::read_at(self, &mut into[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let length = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        loop {
            // SAFETY: the descriptor is open for as long as `self` lives; fallocate touches no memory of ours.
            if unsafe { libc::fallocate(self.as_raw_fd(), 0, 0, length) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // File systems without it (NFS, some FUSE): the length alone; space is then taken by the
                // writes, and a full disk shows there.
                Some(libc::EOPNOTSUPP) if self.size()? < bytes => {
                    return File::set_len(self, bytes);
                }
                Some(libc::EOPNOTSUPP) => return Ok(()),
                _ => return Err(error),
            }
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn written(&self) -> io::Result<u64> {
        // Reserved blocks count as a hole. File systems without holes name the end of the file.
        // SAFETY: the descriptor is open for as long as `self` lives; lseek touches no memory of ours, and nobody
        // uses the descriptor's position.
        match unsafe { libc::lseek(self.as_raw_fd(), 0, libc::SEEK_HOLE) } {
            -1 => self.size(),
            hole => Ok(hole as u64),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
