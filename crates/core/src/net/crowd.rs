//! Clients that come or go in crowds: how much of that work has its turn between the messages of those that stay.
//!
//! Greeting a client or closing its socket costs tens of microseconds. A loop that does so without a rest also competes, as
//! one that is always busy, with the threads that live clients wait for: the commit's, and their own. So while there are
//! live clients a loop takes some and rests; while there are none it takes them as they come.

use std::time::{Duration, Instant};

/// Sockets taken over, and handshakes and ends handled, in one pass.
const PER_PASS: usize = 32;
/// In a millisecond, where live clients wait for the end of the pass.
const PER_MS: usize = 8;
const STEP: Duration = Duration::from_millis(1);
/// A loop has live clients for so long after a message.
const LIVE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Crowd {
    /// When some were admitted last.
    last: Instant,
    /// Messages so far, and when they were others.
    messages: u64,
    moved: Option<Instant>,
    /// How many there may be in this pass, of each kind.
    pub admitted: usize,
}

impl Crowd {
    pub fn new(now: Instant) -> Crowd {
        Crowd { last: now, messages: 0, moved: None, admitted: 0 }
    }

    /// A pass begins.
    ///
    /// messages: of the loop so far, either way
    pub fn pass(&mut self, messages: u64, now: Instant) {
        if self.messages != messages {
            (self.messages, self.moved) = (messages, Some(now));
        }
        let steps = now.duration_since(self.last).as_millis().min(PER_PASS as u128) as usize;
        self.admitted = if self.is_beside_live(now) { PER_PASS.min(PER_MS * steps) } else { PER_PASS };
        if self.admitted > 0 {
            self.last = now;
        }
    }

    /// How long until more are admitted.
    pub fn patience(&self, now: Instant) -> Duration {
        match self.is_beside_live(now) {
            true => (self.last + STEP).saturating_duration_since(now),
            false => Duration::ZERO,
        }
    }

    fn is_beside_live(&self, now: Instant) -> bool {
        self.moved.is_some_and(|moved| now.duration_since(moved) < LIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn beside_live_clients_a_crowd_has_its_share_of_each_millisecond() {
        let start = Instant::now();
        let mut crowd = Crowd::new(start);
        let admitted = |crowd: &mut Crowd, messages, now| {
            crowd.pass(messages, now);
            crowd.admitted
        };
        assert_eq!(admitted(&mut crowd, 0, start), PER_PASS, "nobody else is there");
        assert_eq!(crowd.patience(start), Duration::ZERO);
        assert_eq!(admitted(&mut crowd, 1, start), 0);
        assert_eq!(crowd.patience(start), MS);
        assert_eq!(admitted(&mut crowd, 1, start + MS / 2), 0);
        assert_eq!(crowd.patience(start + MS / 2), MS / 2);
        assert_eq!(admitted(&mut crowd, 2, start + MS), PER_MS);
        assert_eq!(admitted(&mut crowd, 2, start + 3 * MS), 2 * PER_MS, "passes that are apart take more");
        assert_eq!(admitted(&mut crowd, 2, start + 90 * MS), PER_PASS);
        assert_eq!(admitted(&mut crowd, 2, start + MS + LIVE), PER_PASS, "silence");
        assert_eq!(admitted(&mut crowd, 2, start + MS + LIVE), PER_PASS);
        assert_eq!(crowd.patience(start + MS + LIVE), Duration::ZERO);
    }
}
