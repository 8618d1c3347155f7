//! How the loop waits between two passes while many devices send one message at a time.
//!
//! Woken for each message, a thread pays more for waking and for the log's commit than for the message. So while
//! messages come often, the loops of all threads pass over their sockets in step, at the ticks of one clock: a
//! pass takes all that has gathered and gives the log one turn, and the turns of all threads become one commit.
//! Acknowledgements are written in the next pass, or where that is far as soon as the log has answered. Few messages
//! are taken at once, and so are those of senders that send many at a time, which may wait for their acknowledgements
//! before they send more. Where nobody waits for one, since all messages have QoS 0, a pass may gather for longer.

use std::time::{Duration, Instant};

/// From tick to tick: a millisecond.
const NANOS: u64 = 1_000_000;
/// Messages in a tick and thread from which gathering them is worth the wait, and up to which every `FEW`th tick
/// is enough.
const OFTEN: u64 = 4;
const VERY_OFTEN: u64 = 24;
/// Ticks from pass to pass while messages are not many: acknowledgements do not wait for the next, see `Rest::Sleep`.
/// FEW * OFTEN is above VERY_OFTEN: senders that wait for each acknowledgement, and so send as fast as passes come, would
/// else be held at this pace by their own waiting (ADR 12).
const FEW: u64 = 8;
/// Ticks from pass to pass while no acknowledgement is owed; twice as many where reads find `SEVERAL` messages of a
/// device, since they will find twice as many then: a reading is late by no more than a network makes it.
const NONE_OWED: u64 = 4;
const SEVERAL: u64 = 2;
/// Messages in a read that senders must have gathered themselves.
const BATCH: u64 = 8;
/// Over which the rate is measured: short beside what a person notices, long beside a burst.
const WINDOW: Duration = Duration::from_millis(10);
/// A pass over more bytes than this is full: it was worth its wake.
const FULL_BYTES: u64 = 64 << 10;

/// How the loop waits before its next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// For the log's answer if a turn is with it, since nothing read now could be acknowledged sooner; else for sockets
    /// and mail alike.
    Mail,
    /// Until then, whatever happens; then comes the pass of this tick.
    ///
    /// answers: it is so far away that acknowledgements are written as soon as the log has answered
    Sleep { until: Instant, tick: u64, answers: bool },
}

#[derive(Debug)]
pub(super) struct Pace {
    /// Tick 0, the same for all threads.
    start: Instant,
    window_began: Instant,
    /// Messages, acknowledgements and reads until then, and bytes until the last pass.
    window_messages: u64,
    window_acks: u64,
    window_reads: u64,
    bytes: u64,
    /// Ticks from pass to pass; 0: messages are rare, or come many at a time.
    step: u64,
    /// They are far apart, and acknowledgements are owed.
    answers: bool,
}

impl Pace {
    pub fn new(start: Instant) -> Pace {
        let (window_messages, window_acks, window_reads) = (0, 0, 0);
        Pace {
            start,
            window_began: start,
            window_messages,
            window_acks,
            window_reads,
            bytes: 0,
            step: 0,
            answers: false,
        }
    }

    /// What to do when a pass is over.
    ///
    /// messages, acks, reads, bytes: since the loop began; a read is one of a connection
    pub fn rest(&mut self, now: Instant, messages: u64, acks: u64, reads: u64, bytes: u64) -> Rest {
        let full = bytes - self.bytes > FULL_BYTES;
        self.bytes = bytes;
        let passed = now.duration_since(self.window_began);
        if passed >= WINDOW {
            let ticks = passed.as_nanos() as u64 / NANOS;
            let (read, reads_done) = (messages - self.window_messages, reads - self.window_reads);
            let owes = acks > self.window_acks;
            self.step = match read / ticks {
                OFTEN.. if !owes && read > reads_done * SEVERAL => 2 * NONE_OWED,
                OFTEN.. if !owes => NONE_OWED,
                _ if read > reads_done * BATCH => 0,
                ..OFTEN => 0,
                OFTEN..VERY_OFTEN => FEW,
                _ => 1,
            };
            (self.window_began, self.window_messages) = (now, messages);
            (self.window_acks, self.window_reads) = (acks, reads);
            self.answers = owes && self.step >= FEW;
        }
        if full || self.step == 0 {
            return Rest::Mail;
        }
        let since = now.duration_since(self.start);
        let tick = (since.as_nanos() as u64 / NANOS / self.step + 1) * self.step;
        Rest::Sleep { until: self.start + Duration::from_nanos(tick * NANOS), tick, answers: self.answers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays 100 passes, each over so much in so many reads, the next message half a millisecond after a rest that is
    /// no sleep; gives the last rest and when it began. All messages are acknowledged.
    fn play(pace: &mut Pace, now: Instant, messages: u64, reads: u64, bytes: u64) -> (Rest, Instant) {
        play_with(pace, now, messages, messages, reads, bytes)
    }

    fn play_with(
        pace: &mut Pace,
        now: Instant,
        messages: u64,
        acks: u64,
        reads: u64,
        bytes: u64,
    ) -> (Rest, Instant) {
        let mut read = (pace.window_messages, pace.window_acks, pace.window_reads, pace.bytes);
        passes(pace, now, |_| {
            read = (read.0 + messages, read.1 + acks, read.2 + reads, read.3 + bytes);
            read
        })
    }

    /// 100 passes; `read` gives messages, acknowledgements, reads and bytes since the loop began.
    fn passes(
        pace: &mut Pace,
        mut now: Instant,
        mut read: impl FnMut(Instant) -> (u64, u64, u64, u64),
    ) -> (Rest, Instant) {
        for pass in 0.. {
            now += Duration::from_micros(100);
            let (messages, acks, reads, bytes) = read(now);
            let rest = pace.rest(now, messages, acks, reads, bytes);
            if pass == 99 {
                return (rest, now);
            }
            now += match rest {
                Rest::Sleep { until, .. } => until - now,
                Rest::Mail => Duration::from_micros(500),
            };
        }
        unreachable!()
    }

    #[test]
    fn rare_messages_are_taken_at_once() {
        let start = Instant::now();
        assert_eq!(play(&mut Pace::new(start), start, 1, 1, 120).0, Rest::Mail);
    }

    /// Offers so many messages a millisecond for 100 passes, each read alone and acknowledged, however the loop rests.
    fn offer(pace: &mut Pace, start: Instant, per_ms: u64) -> (Rest, Instant) {
        passes(pace, start, |now| {
            let read = now.duration_since(start).as_micros() as u64 * per_ms / 1000;
            (read, read, read, read * 120)
        })
    }

    #[test]
    fn frequent_messages_gather_until_a_tick_that_all_threads_share() {
        let start = Instant::now();
        // Acknowledgements wait for the tick only where it is near.
        for (per_ms, step) in [(OFTEN, FEW), (10, FEW), (VERY_OFTEN - 1, FEW), (VERY_OFTEN, 1), (50, 1)] {
            let (rest, now) = offer(&mut Pace::new(start), start, per_ms);
            let Rest::Sleep { until, tick, answers } = rest else { panic!("{rest:?}") };
            assert_eq!(until, start + Duration::from_millis(tick));
            assert!(tick.is_multiple_of(step) && until - now <= Duration::from_millis(step));
            assert_eq!(answers, step == FEW, "{per_ms} a millisecond");
        }
        assert_eq!(offer(&mut Pace::new(start), start, OFTEN - 1).0, Rest::Mail);
    }

    #[test]
    fn senders_that_wait_for_their_acknowledgements_are_not_held_at_the_slow_pace() {
        let start = Instant::now();
        // So many clients, each with one message at a time: what a pass has read comes again behind its end.
        for clients in 1..200 {
            let mut pace = Pace::new(start);
            let (mut now, mut slow_since) = (start, None);
            for pass in 1..1000 {
                now += Duration::from_micros(100);
                let read = pass * clients;
                let rest = pace.rest(now, read, read, read, read * 120);
                slow_since = slow_since.or(Some(now)).filter(|_| pace.answers);
                let slow = slow_since.map_or(Duration::ZERO, |since| now - since);
                assert!(slow < 4 * WINDOW, "{clients} clients, {slow:?}");
                now = match rest {
                    Rest::Sleep { until, .. } => until,
                    Rest::Mail => now + Duration::from_micros(500),
                };
            }
        }
    }

    #[test]
    fn messages_that_have_become_rare_are_taken_at_once_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (_, now) = play(&mut pace, start, 50, 50, 6000);
        assert_eq!(play(&mut pace, now, 1, 1, 120).0, Rest::Mail);
    }

    #[test]
    fn senders_that_gather_messages_themselves_are_not_kept_waiting() {
        let start = Instant::now();
        assert_eq!(play(&mut Pace::new(start), start, 100, 5, 12_000).0, Rest::Mail);
    }

    #[test]
    fn messages_that_nobody_waits_for_gather_longer_and_rare_ones_not_at_all() {
        let start = Instant::now();
        for (messages, reads, step) in [(50, 50, NONE_OWED), (500, 20, 2 * NONE_OWED)] {
            let (rest, now) = play_with(&mut Pace::new(start), start, messages, 0, reads, messages * 40);
            let Rest::Sleep { until, tick, answers: false } = rest else { panic!("{rest:?}") };
            assert_eq!(until, start + Duration::from_millis(tick));
            assert!(tick.is_multiple_of(step) && until - now <= Duration::from_millis(step));
        }
        assert_eq!(play_with(&mut Pace::new(start), start, 1, 0, 1, 40).0, Rest::Mail);
    }

    #[test]
    fn a_full_pass_is_not_followed_by_a_sleep() {
        let start = Instant::now();
        assert_eq!(play(&mut Pace::new(start), start, 1000, 1000, FULL_BYTES + 1).0, Rest::Mail);
    }
}
