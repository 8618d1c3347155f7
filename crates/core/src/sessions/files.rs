//! Sessions in files of a directory: `sessions.kind = "embedded"`. A state is one file; the newest counts.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::fold::Fold;
use super::snapshot::{Snapshot, Writer, name_of, offset_of};
use super::store::SessionsError;
use super::stored::{Stored, StoredMessage};
use super::table::{Header, Kept, SessionTable};
use crate::log::Storage;

/// The directory that `storage` is, which it holds a lock on; so a process is overtaken only where it has lost that.
pub struct SessionFiles {
    storage: Arc<dyn Storage>,
}

impl SessionFiles {
    pub fn new(storage: Arc<dyn Storage>) -> SessionFiles {
        SessionFiles { storage }
    }

    fn newest(&self) -> Result<Option<Snapshot>, SessionsError> {
        let names = self.storage.list().map_err(|error| SessionsError::io("list", &self.place(), &error))?;
        let newest = names.iter().filter(|name| offset_of(name).is_some()).max();
        newest.map(|name| Snapshot::open(&*self.storage, name)).transpose()
    }

    /// Removes all files of states but the newest. Where one stays, after a crash or an error, it only takes space.
    fn tidy(&self, newest: &str) {
        let is_state = |name: &str| name.ends_with(".new") || offset_of(name).is_some();
        let names = self.storage.list().unwrap_or_default();
        for name in names.iter().filter(|name| is_state(name) && *name != newest) {
            let _ = self.storage.remove(name);
        }
    }
}

impl std::fmt::Debug for SessionFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sessions in {}", self.place())
    }
}

impl SessionTable for SessionFiles {
    fn kept(&self) -> Result<Option<Box<dyn Kept>>, SessionsError> {
        Ok(self.newest()?.map(|snapshot| Box::new(snapshot) as Box<dyn Kept>))
    }

    fn merge(&self, over: Option<u64>, fold: &Fold, offset: u64) -> Result<Header, SessionsError> {
        let old = self.newest()?;
        let found = old.as_ref().map(|old| old.header.offset);
        if found != over {
            return Err(SessionsError::Overtaken { path: self.place(), over, found });
        }
        let name = name_of(offset);
        let new = format!("{name}.new");
        let path = self.place();
        let wrong = |error: io::Error| SessionsError::io("write a snapshot of sessions in", &path, &error);
        let (epoch, stopped, downlink) = (fold.epoch, fold.stopped, fold.downlink);
        let header = Header { offset, epoch, stopped, downlink, ..Header::default() };
        let mut writer = Writer::new(self.storage.create(&new).map_err(wrong)?, header);
        let mut wanted = HashSet::new();
        let mut failed = None;
        let mut put = |writer: &mut Writer, stored: Stored| {
            wanted.extend(stored.queue.iter().map(|queued| queued.message));
            if let Err(error) = writer.session(&stored) {
                failed.get_or_insert(error);
            }
        };
        if let Some(old) = &old {
            for part in 0..old.parts() {
                old.sessions(part, &mut |stored| {
                    if let Some(stored) = fold.over(stored) {
                        put(&mut writer, stored);
                    }
                })?;
            }
        }
        fold.rest().for_each(|stored| put(&mut writer, stored));
        let mut put = |writer: &mut Writer, message: &StoredMessage| {
            if wanted.contains(&message.id)
                && let Err(error) = writer.message(message)
            {
                failed.get_or_insert(error);
            }
        };
        if let Some(old) = &old {
            for part in 0..old.parts() {
                old.messages(part, &mut |message| put(&mut writer, &message))?;
            }
        }
        fold.messages().for_each(|message| put(&mut writer, message));
        if let Some(error) = failed {
            return Err(wrong(error));
        }
        let header = writer.finish().map_err(wrong)?;
        self.storage.rename(&new, &name).map_err(wrong)?;
        self.storage.sync_directory().map_err(wrong)?;
        self.tidy(&name);
        Ok(header)
    }

    fn place(&self) -> String {
        self.storage.path()
    }
}
