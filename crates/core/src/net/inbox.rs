//! How threads talk: each event loop has an inbox and is woken when something enters an empty one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mio::Waker;
use mio::net::TcpStream;
use parking_lot::Mutex;

use super::fanout::Deliveries;
use super::registry::ConnId;
use crate::log::LogError;

#[derive(Debug)]
pub(super) enum Mail {
    /// A new connection.
    Accepted(TcpStream),
    /// A turn came back from the log.
    Committed {
        turn: u64,
        result: Result<(), LogError>,
    },
    Deliver(Box<Deliveries>),
    /// Close this connection, whose client id was claimed, then tell the claimer.
    TakeOver {
        old: ConnId,
        new: ConnId,
    },
    /// The old connection is closed: this one may be welcomed.
    TakenOver {
        new: ConnId,
    },
    /// Stop reading, acknowledge what becomes durable by then, close everything, end.
    Stop {
        deadline: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Inbox {
    mail: Mutex<Vec<Mail>>,
    waker: Waker,
    /// Sockets of this thread, for dealing new ones out.
    pub sockets: AtomicUsize,
    /// Bytes of deliveries that wait; senders stop reading their sockets above a bound.
    pub delivery_bytes: AtomicUsize,
}

impl Inbox {
    pub fn new(waker: Waker) -> Inbox {
        Inbox {
            mail: Mutex::default(),
            waker,
            sockets: AtomicUsize::new(0),
            delivery_bytes: AtomicUsize::new(0),
        }
    }

    pub fn post(&self, mail: Mail) {
        if let Mail::Deliver(deliveries) = &mail {
            self.delivery_bytes.fetch_add(deliveries.len(), Ordering::Relaxed);
        }
        let was_empty = {
            let mut waiting = self.mail.lock();
            waiting.push(mail);
            waiting.len() == 1
        };
        // A full inbox has been announced and is taken as a whole. Waking fails only when the loop is gone.
        if was_empty {
            let _ = self.waker.wake();
        }
    }

    pub fn take(&self, into: &mut Vec<Mail>) {
        std::mem::swap(&mut *self.mail.lock(), into);
    }
}
