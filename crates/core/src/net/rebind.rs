//! Streams that come, change and go while the gateway runs.
//!
//! What a turn has staged lies in tables by the place of its stream, so a thread takes new bindings between two turns: it
//! submits what is staged, however much is in flight, and then goes on with the new ones. No lock and no look at anything
//! shared belongs to a message for it.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::binding::{Bindings, StreamBinding};
use super::gateway::{Gateway, GatewayError};
use super::inbox::Mail;
use super::lane::Lane;

/// Longest wait for all loops. One whose log is full has a turn that it cannot submit.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bindings for one thread, and who waits for it to have them.
#[derive(Debug)]
pub(super) struct Rebind {
    bindings: Arc<Bindings>,
    done: SyncSender<()>,
}

impl Gateway {
    /// Fills these streams from now on, those of `added` in place of their namesakes, and no more those of `removed`;
    /// returns once every thread does. The log must know the schemas. Streams that stay lose nothing.
    ///
    /// Errors: `Config`, and nothing has changed; `Busy`: threads that could not submit their turn in time change as soon
    /// as they can.
    pub fn rebind(&self, added: Vec<StreamBinding>, removed: &[String]) -> Result<(), GatewayError> {
        let inboxes = &self.shared.inboxes;
        let (done, finished) = sync_channel(inboxes.len());
        {
            // Under the lock, so that every inbox gets changes in one order.
            let mut newest = self.shared.bindings.lock();
            let changed = newest.changed(added, removed).map_err(GatewayError::Config)?;
            *newest = Arc::new(changed);
            for inbox in inboxes {
                let (bindings, done) = (Arc::clone(&newest), done.clone());
                inbox.post(Mail::Rebind(Rebind { bindings, done }));
            }
        }
        drop(done);
        let deadline = Instant::now() + PATIENCE;
        for _ in inboxes {
            let left = deadline.saturating_duration_since(Instant::now());
            finished.recv_timeout(left).map_err(|_| GatewayError::Busy)?;
        }
        Ok(())
    }
}

impl Lane {
    /// Takes new bindings, if there are any and nothing is staged by the old ones.
    pub fn rebind(&mut self) {
        if !self.staging.is_empty() {
            return;
        }
        if let Some(Rebind { bindings, done }) = self.next.take() {
            self.staging.rebind(&bindings);
            self.held = vec![None; bindings.streams.len()];
            self.bindings = bindings;
            let _ = done.try_send(());
        }
    }
}
