//! How threads talk: each event loop has an inbox and is woken when something enters an empty one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mio::Waker;
use parking_lot::{Condvar, Mutex};

use super::connection::Connection;
use super::fanout::Deliveries;
use super::inspect::Question;
use super::listener::Listener;
use super::logins::Answer;
use super::rebind::Rebind;
use super::transport::Transport;
use crate::log::LogError;

#[derive(Debug)]
pub(super) enum Mail {
    /// A new connection.
    Accepted(Transport),
    /// A turn came back from the log.
    Committed {
        turn: u64,
        result: Result<(), LogError>,
    },
    Deliver(Box<Deliveries>),
    /// What was retained before the start is all there.
    RetainedLoaded,
    /// A connection whose client id belongs to a connection or session of this thread.
    Join(Box<Connection>),
    /// The certificates of this listener have changed, or, without one, who is known or what policies say.
    Review(Option<Arc<Listener>>),
    /// The streams have changed.
    Rebind(Rebind),
    /// Somebody asks about connections, or ends one.
    Ask(Box<Question>),
    /// A CONNECT has its answer.
    Answered(Box<Answer>),
    /// Stop reading, acknowledge what becomes durable by then, close everything, end.
    Stop {
        deadline: Instant,
    },
}

const NO_TICK: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    /// Wakes the loop while it waits for mail alone.
    arrived: Condvar,
    /// Wakes the loop while it waits for sockets and mail.
    waker: Waker,
    /// Sockets of this thread, for dealing new ones out.
    pub sockets: AtomicUsize,
    /// Tick of the pass that the loop sleeps for or is in; `NO_TICK`: it goes its own pace.
    tick: AtomicU64,
    /// Bytes of deliveries that wait; senders stop reading their sockets above a bound.
    pub delivery_bytes: AtomicUsize,
    /// Of the downlink: offset behind the messages that were posted here, and behind those that are durable where they wait.
    pub downlink_posted: AtomicU64,
    pub downlink_durable: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    mail: Vec<Mail>,
    /// The loop is in `wait`.
    mail_alone: bool,
    /// The loop is in `sleep`.
    asleep: bool,
}

impl Inbox {
    pub fn new(waker: Waker) -> Inbox {
        Inbox {
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            waker,
            tick: AtomicU64::new(NO_TICK),
            sockets: AtomicUsize::new(0),
            delivery_bytes: AtomicUsize::new(0),
            downlink_posted: AtomicU64::new(0),
            downlink_durable: AtomicU64::new(0),
        }
    }

    pub fn post(&self, mail: Mail) {
        if let Mail::Deliver(deliveries) = &mail {
            self.delivery_bytes.fetch_add(deliveries.len(), Ordering::Relaxed);
        }
        let mut waiting = self.waiting.lock();
        waiting.mail.push(mail);
        let (first, mail_alone) = (waiting.mail.len() == 1, waiting.mail_alone);
        if waiting.asleep {
            return;
        }
        drop(waiting);
        if mail_alone {
            self.arrived.notify_one();
        } else if first {
            // An inbox with mail has been announced and is taken as a whole. Waking fails only when the loop is gone.
            let _ = self.waker.wake();
        }
    }

    /// Waits for mail, not for sockets.
    pub fn wait(&self, patience: Duration) {
        let mut waiting = self.waiting.lock();
        if waiting.mail.is_empty() {
            waiting.mail_alone = true;
            self.arrived.wait_for(&mut waiting, patience);
            waiting.mail_alone = false;
        }
    }

    /// The loop's next pass is that of `tick`.
    pub fn join(&self, tick: u64) {
        self.tick.store(tick, Ordering::SeqCst);
    }

    /// Sleeps for so long; mail waits meanwhile and wakes nobody, so that it costs its sender nothing.
    pub fn sleep(&self, pause: Duration) {
        self.waiting.lock().asleep = true;
        std::thread::sleep(pause);
        self.waiting.lock().asleep = false;
    }

    /// The pass that the loop slept for is through.
    pub fn passed(&self) -> Option<u64> {
        let tick = self.tick.load(Ordering::Relaxed);
        (tick != NO_TICK).then(|| {
            self.tick.store(NO_TICK, Ordering::SeqCst);
            tick
        })
    }

    /// Whether the loop is still to come to the pass of this tick, or in it.
    pub fn owes(&self, tick: u64) -> bool {
        self.tick.load(Ordering::SeqCst) <= tick
    }

    pub fn take(&self, into: &mut Vec<Mail>) {
        std::mem::swap(&mut self.waiting.lock().mail, into);
    }
}
