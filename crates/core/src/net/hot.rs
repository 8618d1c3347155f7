//! Connections that send so much that a fleet on the same loop would wait for them.
//!
//! A device with thousands of messages a second, each in a write of its own, wakes its loop for each, and the commits that
//! it causes are those that others wait for. Its socket is not watched then, but looked at from time to time, which finds
//! many messages at once: its acknowledgements come later, those of others as if it were not there. What a look finds is
//! read in slices between which others have their turn, and gets no commit of its own where one of others comes soon.
//!
//! A sender that waits for its acknowledgements would be slowed down by that. It shows: it sends less than it did, is
//! watched again, and left in peace for a while.

use std::time::{Duration, Instant};

use mio::{Interest, Token};

use super::connection::State;
use super::worker::Worker;

/// From one look to the next.
const APART: Duration = Duration::from_millis(12);
/// Read of an unwatched connection before others have their turn: some tens of messages.
const SLICE_BYTES: usize = 4 << 10;
/// For how long its messages wait for a commit of others.
const RIDE: Duration = Duration::from_millis(4);
/// Time over which a sender is measured, before its socket is left unwatched and again while it is.
const MEASURE: Duration = Duration::from_millis(50);
/// Messages a millisecond that are worth it, and that are too many to gather.
const OFTEN: u128 = 2;
const TOO_OFTEN: u128 = 40;
/// Part of the messages of its loop that it sends at least: among many of its kind, nobody waits for one of them.
const SHARE: u64 = 4;
/// Part of its messages that come ahead of an acknowledgement at least: who has one under way at a time waits for us.
const AHEAD: u64 = 8;
/// Part of its rate that it keeps at least if it does not wait for us.
const KEPT: f64 = 0.75;
/// Times in a row that it is measured with less before that counts: it may have been held up by something else.
const SLOW: u32 = 3;
/// For how long a sender is watched that was slower when it was not; each time twice as long, up to the most.
const PEACE: Duration = Duration::from_secs(1);
const LONGEST_PEACE: Duration = Duration::from_secs(64);
/// Senders that are remembered for that; beyond it the oldest may be tried again.
const MOST_SPARED: usize = 256;

/// A connection by slot and link.
pub(super) type Link = (u32, u32);

#[derive(Debug, Default)]
pub(super) struct Hot {
    /// Who is being measured, and may be unwatched next.
    candidate: Option<Sender>,
    /// Some, since each sent so large a part of all.
    unwatched: Vec<Sender>,
    next_look: Option<Instant>,
    /// Until when, and how long that is.
    spared: Vec<(Link, Instant, Duration)>,
    /// Messages of unwatched senders so far.
    pub messages: u64,
    riding: Riding,
}

/// Messages of unwatched senders that are staged.
#[derive(Debug, Default)]
struct Riding {
    /// The turn that they are staged for.
    turn: u64,
    messages: usize,
    until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Sender {
    link: Link,
    since: Instant,
    /// Its messages since then, and those that came ahead of an acknowledgement.
    messages: u64,
    ahead: u64,
    /// Those that its loop had read in all then.
    total: u64,
    /// Messages a second before it was unwatched.
    before: f64,
    /// Times in a row that it was slower since.
    slow: u32,
}

impl Sender {
    fn new(link: Link, now: Instant, total: u64) -> Sender {
        Sender { link, since: now, messages: 0, ahead: 0, total, before: 0.0, slow: 0 }
    }

    fn rate(&self, now: Instant) -> f64 {
        self.messages as f64 / now.duration_since(self.since).as_secs_f64()
    }
}

impl Hot {
    /// A connection that is watched has sent so many messages. True: it is better left unwatched from now on.
    ///
    /// ahead: it did not wait for the acknowledgements of those before; total: messages of the loop so far
    pub fn sent(&mut self, link: Link, messages: u64, ahead: bool, total: u64, now: Instant) -> bool {
        let sender = match &mut self.candidate {
            Some(sender) if sender.link == link => sender,
            Some(sender) if now.duration_since(sender.since) < 2 * MEASURE => return false,
            _ if self.spared.iter().any(|(spared, until, _)| *spared == link && now < *until) => {
                return false;
            }
            candidate => {
                *candidate = Some(Sender::new(link, now, total));
                return false;
            }
        };
        sender.messages += messages;
        sender.ahead += if ahead { messages } else { 0 };
        let passed = now.duration_since(sender.since);
        if passed < MEASURE {
            return false;
        }
        let (sender, all) = (*sender, total - sender.total);
        self.candidate = None;
        let a_ms = u128::from(sender.messages) * 1_000_000 / passed.as_nanos();
        let waits = sender.ahead * AHEAD < sender.messages;
        if waits || sender.messages * SHARE < all || !(OFTEN..TOO_OFTEN).contains(&a_ms) {
            return false;
        }
        self.unwatched.push(Sender { before: sender.rate(now), ..Sender::new(link, now, total) });
        true
    }

    /// How much to read of a connection at a time, at most.
    #[inline]
    pub fn slice(&self, link: Link) -> usize {
        let unwatched = self.unwatched.iter().any(|sender| sender.link == link);
        if unwatched { SLICE_BYTES } else { usize::MAX }
    }

    /// Whether the messages that are staged for this turn are all of unwatched senders and wait for others.
    fn rides(&self, turn: u64, messages: usize, now: Instant) -> bool {
        let riding = &self.riding;
        (riding.turn, riding.messages) == (turn, messages) && riding.until.is_some_and(|until| now < until)
    }

    /// A connection has sent so many messages, which are staged for this turn. True: it is to be watched again; none: it
    /// is watched.
    pub fn found(&mut self, link: Link, messages: u64, turn: u64, now: Instant) -> Option<bool> {
        let at = self.unwatched.iter().position(|sender| sender.link == link)?;
        self.messages += messages;
        if self.riding.turn != turn {
            self.riding = Riding { turn, messages: 0, until: Some(now + RIDE) };
        }
        self.riding.messages += messages as usize;
        let sender = &mut self.unwatched[at];
        sender.messages += messages;
        if now.duration_since(sender.since) < MEASURE {
            return Some(false);
        }
        sender.slow = if sender.rate(now) < sender.before * KEPT { sender.slow + 1 } else { 0 };
        (sender.since, sender.messages) = (now, 0);
        if sender.slow < SLOW {
            return Some(false);
        }
        self.unwatched.swap_remove(at);
        let before =
            self.spared.iter().position(|(spared, ..)| *spared == link).map(|at| self.spared.remove(at));
        let peace = before.map_or(PEACE, |(.., peace)| LONGEST_PEACE.min(2 * peace));
        if self.spared.len() == MOST_SPARED {
            self.spared.remove(0);
        }
        self.spared.push((link, now + peace, peace));
        Some(true)
    }

    /// How long the loop may wait for other things while it stages for this turn.
    pub fn patience(&self, turn: u64, now: Instant) -> Option<Duration> {
        let ride = self.riding.until.filter(|until| self.riding.turn == turn && now < *until);
        let look = (!self.unwatched.is_empty()).then(|| self.next_look.unwrap_or(now));
        let next = ride.into_iter().chain(look).min();
        next.map(|next| next.saturating_duration_since(now))
    }

    /// If it is time, gives `look` each unwatched connection, and whether it has been silent for so long that it is to be
    /// watched again. It answers whether the connection is still there.
    pub fn look(&mut self, now: Instant, mut look: impl FnMut(Link, bool) -> bool) {
        if self.unwatched.is_empty() || self.next_look.is_some_and(|next| now < next) {
            return;
        }
        self.next_look = Some(now + APART);
        self.unwatched.retain(|sender| {
            let silent = now.duration_since(sender.since) > 10 * MEASURE;
            look(sender.link, silent) && !silent
        });
    }
}

impl Worker {
    /// A read of this connection brought so many messages.
    pub(super) fn measure(&mut self, slot: u32, messages: u64) {
        // Else nobody is there who would wait for it.
        let others = self.conns.len() > 1;
        let Some(conn) = self.conns.get_mut(slot as usize).filter(|conn| conn.state == State::Up) else {
            return;
        };
        let link = (slot, conn.link);
        let ahead = conn.unacknowledged != 1;
        let interest = match self.hot.found(link, messages, self.lane.staging.turn, self.read_at) {
            Some(true) => Interest::READABLE | Interest::WRITABLE,
            Some(false) => return,
            None if others
                && self.hot.sent(link, messages, ahead, self.lane.counters.received, self.read_at) =>
            {
                self.lane.counters.unwatched += 1;
                Interest::WRITABLE
            }
            None => return,
        };
        if let Some(socket) = &mut conn.socket {
            // If it fails the peer has gone, which reading shows.
            let _ = self.poll.registry().reregister(socket, Token(slot as usize), interest);
        }
    }

    /// Whether what is staged goes with the next turn of others.
    pub(super) fn rides(&self) -> bool {
        let staging = &self.lane.staging;
        self.stop.is_none()
            && self.hot.riding.turn == staging.turn
            && staging.acks.session_bytes == 0
            && self.hot.rides(staging.turn, staging.acks.messages.len(), Instant::now())
    }

    /// Puts unwatched connections on the list of those that may have something to read, when it is time.
    pub(super) fn look_at_unwatched(&mut self) {
        let (conns, ready, registry) = (&mut self.conns, &mut self.ready, self.poll.registry());
        self.hot.look(Instant::now(), |(slot, link), silent| {
            let conn = conns.get_mut(slot as usize).filter(|conn| conn.link == link);
            let Some(conn) = conn else { return false };
            if silent && let Some(socket) = &mut conn.socket {
                let interest = Interest::READABLE | Interest::WRITABLE;
                let _ = registry.reregister(socket, Token(slot as usize), interest);
            }
            if !conn.ready {
                conn.ready = true;
                ready.push(slot);
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = (7, 1);
    const MS: Duration = Duration::from_millis(1);

    /// A sender sends `a_ms` messages a millisecond while it is watched, others so many, from `from` ms on, until it is left
    /// unwatched, which gives the time, or half a second has passed.
    fn heat(hot: &mut Hot, start: Instant, from: u32, a_ms: u64, others: u64) -> Option<Instant> {
        (from..from + 500).find_map(|ms| {
            let (now, total) = (start + ms * MS, u64::from(ms) * (a_ms + others));
            hot.sent((1, 1), others, true, total, now);
            hot.sent(LINK, a_ms, true, total, now).then_some(now)
        })
    }

    #[test]
    fn a_sender_of_much_beside_others_is_looked_at_from_time_to_time() {
        let (mut hot, start) = (Hot::default(), Instant::now());
        let mut now = heat(&mut hot, start, 0, 10, 1).unwrap();
        assert!(now - start < 10 * MEASURE);
        for _ in 0..1000 {
            let mut looked = Vec::new();
            hot.look(now, |link, silent| {
                looked.push((link, silent));
                true
            });
            assert_eq!(looked, [(LINK, false)]);
            assert_eq!(hot.found(LINK, 160, 1, now), Some(false));
            hot.look(now + MS, |_, _| panic!("too early"));
            assert_eq!(hot.patience(2, now), Some(APART));
            now += APART;
        }
        assert_eq!(hot.messages, 160_000);
    }

    #[test]
    fn what_a_look_finds_goes_with_the_turn_of_others_or_after_a_while() {
        let (mut hot, start) = (Hot::default(), Instant::now());
        let now = heat(&mut hot, start, 0, 10, 1).unwrap();
        assert!(!hot.rides(1, 0, now));
        assert_eq!((hot.slice(LINK), hot.slice((1, 1))), (SLICE_BYTES, usize::MAX));
        for turn in [1, 2] {
            hot.look(now, |_, _| true);
            hot.found(LINK, 40, turn, now);
            hot.found(LINK, 30, turn, now + MS);
            assert!(hot.rides(turn, 70, now + MS), "alone");
            assert!(!hot.rides(turn, 71, now + MS), "with one of others");
            assert!(!hot.rides(turn + 1, 70, now + MS), "in another turn");
            assert_eq!(hot.patience(turn, now + MS), Some(RIDE - MS));
            assert!(!hot.rides(turn, 70, now + RIDE), "for long enough");
            assert_eq!(hot.patience(turn, now + RIDE), Some(APART - RIDE));
        }
    }

    #[test]
    fn among_its_kind_rare_or_in_masses_it_stays_watched() {
        let start = Instant::now();
        for (a_ms, others) in [(10, 100), (1, 1), (100, 1)] {
            assert_eq!(heat(&mut Hot::default(), start, 0, a_ms, others), None, "{a_ms} beside {others}");
        }
    }

    /// Looks that it takes until a sender with so many messages at each is watched again.
    fn looks(hot: &mut Hot, unwatched: Instant, messages: u64) -> Option<u32> {
        (1..100).find(|look| hot.found(LINK, messages, 1, unwatched + *look * APART) == Some(true))
    }

    #[test]
    fn a_sender_that_waits_for_us_is_watched_again_and_left_in_peace_for_ever_longer() {
        let (mut hot, start) = (Hot::default(), Instant::now());
        let mut from = 0;
        for peace in [1, 2, 4, 8, 16, 32, 64, 64] {
            let unwatched = heat(&mut hot, start, from, 20, 1).unwrap();
            assert_eq!(hot.found((1, 1), 1, 1, unwatched), None);
            // It has 20 messages under way, so that is what each look finds.
            let now = unwatched + looks(&mut hot, unwatched, 20).unwrap() * APART;
            assert!(now - unwatched <= (SLOW + 1) * MEASURE);
            assert_eq!(hot.patience(2, now), None);
            from = (now - start).as_millis() as u32;
            assert_eq!(heat(&mut hot, start, from, 20, 1), None);
            from += peace * 1000;
        }
    }

    #[test]
    fn a_sender_that_is_held_up_for_a_moment_stays_unwatched() {
        let (mut hot, start) = (Hot::default(), Instant::now());
        let mut now = heat(&mut hot, start, 0, 10, 1).unwrap();
        for look in 0..1000 {
            now += APART;
            let held_up = look % 20 < 8;
            assert_eq!(hot.found(LINK, if held_up { 1 } else { 160 }, 1, now), Some(false), "{look}");
        }
    }

    #[test]
    fn who_is_silent_or_gone_is_forgotten() {
        let (mut hot, start) = (Hot::default(), Instant::now());
        let now = heat(&mut hot, start, 0, 10, 1).unwrap();
        hot.look(now + 11 * MEASURE, |_, silent| silent);
        assert_eq!(hot.patience(2, now), None);
        let now = heat(&mut hot, start, 1000, 10, 1).unwrap();
        hot.look(now + APART, |_, _| false);
        assert_eq!(hot.patience(2, now), None);
    }

    #[test]
    fn the_memory_of_those_left_in_peace_is_bounded() {
        let (mut hot, now) = (Hot::default(), Instant::now());
        for link in 0..1000 {
            hot.unwatched.push(Sender { before: 20e3, ..Sender::new((link, 1), now, 0) });
            let found = |times| hot.found((link, 1), 1, 1, now + times * 2 * MEASURE);
            assert_eq!((1..=SLOW).map(found).last(), Some(Some(true)));
        }
        assert_eq!(hot.spared.len(), MOST_SPARED);
    }
}
