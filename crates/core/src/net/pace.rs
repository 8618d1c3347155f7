//! How the loop waits between two passes while many devices send one message at a time.
//!
//! Woken for each message, a thread pays more for waking and for the log's commit than for the message. So while
//! messages come often, the loops of all threads pass over their sockets in step, at the ticks of one clock: a
//! pass takes all that has gathered, writes all acknowledgements that the log has released meanwhile, and
//! gives the log one turn, and the turns of all threads become one commit. Few messages are taken at once, and so
//! are many bytes: a full pass has enough to do.

use std::time::{Duration, Instant};

/// From tick to tick: a millisecond.
const NANOS: u64 = 1_000_000;
/// Messages in a tick and thread from which gathering them is worth the wait, and up to which every second tick
/// is enough.
const OFTEN: u64 = 4;
const VERY_OFTEN: u64 = 24;
/// Over which the rate is measured: short beside what a person notices, long beside a burst.
const WINDOW: Duration = Duration::from_millis(10);
/// A pass over more bytes than this is full.
const FULL_BYTES: u64 = 64 << 10;

/// How the loop waits before its next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// For sockets and mail alike; there is enough to do.
    None,
    /// For the log's answer, if a turn is with it: nothing read now could be acknowledged sooner.
    Mail,
    /// For so long, whatever happens; then comes the pass of this tick.
    Sleep(Duration, u64),
}

#[derive(Debug)]
pub(super) struct Pace {
    /// Tick 0, the same for all threads.
    start: Instant,
    window_began: Instant,
    /// Messages read until then, and bytes until the last pass.
    window_messages: u64,
    bytes: u64,
    /// Ticks from pass to pass; 0: messages are rare.
    step: u64,
}

impl Pace {
    pub fn new(start: Instant) -> Pace {
        Pace { start, window_began: start, window_messages: 0, bytes: 0, step: 0 }
    }

    /// What to do when a pass is over.
    ///
    /// messages, bytes: read since the loop began
    pub fn rest(&mut self, now: Instant, messages: u64, bytes: u64) -> Rest {
        let full = bytes - self.bytes > FULL_BYTES;
        self.bytes = bytes;
        let passed = now.duration_since(self.window_began);
        if passed >= WINDOW {
            let ticks = passed.as_nanos() as u64 / NANOS;
            self.step = match (messages - self.window_messages) / ticks {
                ..OFTEN => 0,
                OFTEN..VERY_OFTEN => 2,
                _ => 1,
            };
            (self.window_began, self.window_messages) = (now, messages);
        }
        match self.step {
            _ if full => Rest::None,
            0 => Rest::Mail,
            step => {
                let since = now.duration_since(self.start);
                let ticks = since.as_nanos() as u64 / NANOS;
                let next = (ticks / step + 1) * step;
                Rest::Sleep(Duration::from_nanos(next * NANOS).saturating_sub(since), next)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays 100 passes, each over so much, the next message half a millisecond after a rest that is no sleep; gives
    /// the last rest and when it began.
    fn play(pace: &mut Pace, mut now: Instant, messages: u64, bytes: u64) -> (Rest, Instant) {
        let mut read = (pace.window_messages, pace.bytes);
        for pass in 0.. {
            now += Duration::from_micros(100);
            read = (read.0 + messages, read.1 + bytes);
            let rest = pace.rest(now, read.0, read.1);
            if pass == 99 {
                return (rest, now);
            }
            now += match rest {
                Rest::Sleep(pause, _) => pause,
                _ => Duration::from_micros(500),
            };
        }
        unreachable!()
    }

    #[test]
    fn rare_messages_are_taken_at_once() {
        let start = Instant::now();
        assert_eq!(play(&mut Pace::new(start), start, 1, 120).0, Rest::Mail);
    }

    #[test]
    fn frequent_messages_gather_until_a_tick_that_all_threads_share() {
        let start = Instant::now();
        for (messages, step) in [(10, 2), (50, 1)] {
            let (rest, now) = play(&mut Pace::new(start), start, messages, messages * 120);
            let Rest::Sleep(pause, tick) = rest else { panic!("{rest:?}") };
            assert_eq!(now + pause, start + Duration::from_millis(tick));
            assert!(tick.is_multiple_of(step) && pause <= Duration::from_millis(step));
        }
    }

    #[test]
    fn messages_that_have_become_rare_are_taken_at_once_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (_, now) = play(&mut pace, start, 50, 6000);
        assert_eq!(play(&mut pace, now, 1, 120).0, Rest::Mail);
    }

    #[test]
    fn a_full_pass_is_followed_at_once() {
        let start = Instant::now();
        assert_eq!(play(&mut Pace::new(start), start, 1000, FULL_BYTES + 1).0, Rest::None);
    }
}
