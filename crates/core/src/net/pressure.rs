//! How far an event loop is behind its log, and what gives way for it.
//!
//! First the log's queue and its disk take what comes. When they are full, sockets stay unread, which stops senders
//! by TCP, and clients that connect meanwhile get a smaller receive maximum. When that has not helped for
//! `shed_after`, QoS 0 messages are dropped and counted, until sockets are read again.

use std::time::{Duration, Instant};

/// Over which is judged.
const WINDOW: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Every socket is read when it has something.
    Flowing,
    /// For half of the last window or more, sockets with something to read were left unread.
    Unread,
    Shedding,
}

#[derive(Debug)]
pub(super) struct Pressure {
    pub level: Level,
    window_began: Instant,
    /// When the last pass was, and whether it left sockets unread.
    last: (Instant, bool),
    /// Time with unread sockets: in this window, in windows without an end of it, and since the loop began.
    window_unread: Duration,
    unread_since: Duration,
    pub unread: Duration,
    /// Zero: never.
    shed_after: Duration,
}

impl Pressure {
    pub fn new(now: Instant, shed_after: Duration) -> Pressure {
        Pressure {
            level: Level::Flowing,
            window_began: now,
            last: (now, false),
            window_unread: Duration::ZERO,
            unread_since: Duration::ZERO,
            unread: Duration::ZERO,
            shed_after,
        }
    }

    /// Notes a pass, and whether it leaves sockets unread that have something. True: the level has changed.
    pub fn pass(&mut self, now: Instant, unread: bool) -> bool {
        let (then, was_unread) = std::mem::replace(&mut self.last, (now, unread));
        if was_unread {
            self.window_unread += now.saturating_duration_since(then);
        }
        let passed = now.saturating_duration_since(self.window_began);
        if passed < WINDOW {
            return false;
        }
        let spent = std::mem::take(&mut self.window_unread);
        self.window_began = now;
        self.unread += spent;
        let before = self.level;
        if spent * 2 >= passed {
            self.unread_since += passed;
            let shed = !self.shed_after.is_zero() && self.unread_since >= self.shed_after;
            self.level = if shed { Level::Shedding } else { Level::Unread };
        } else if spent * 10 <= passed || self.level != Level::Shedding {
            (self.level, self.unread_since) = (Level::Flowing, Duration::ZERO);
        }
        self.level != before
    }

    /// What a client that connects now may have unacknowledged.
    pub fn receive_maximum(&self, usual: u16) -> u16 {
        match self.level {
            Level::Flowing => usual,
            Level::Unread => (usual / 4).max(1),
            Level::Shedding => (usual / 16).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Passes every millisecond for `ms`, `unread` in `share` of ten.
    fn play(pressure: &mut Pressure, now: &mut Instant, ms: u32, share: u32) -> Vec<Level> {
        let mut levels = Vec::new();
        for at in 0..ms {
            *now += MS;
            if pressure.pass(*now, at % 10 < share) {
                levels.push(pressure.level);
            }
        }
        levels
    }

    #[test]
    fn sockets_left_unread_for_long_shed_until_they_are_read_again() {
        let mut now = Instant::now();
        let mut pressure = Pressure::new(now, 5000 * MS);
        assert_eq!(play(&mut pressure, &mut now, 10_000, 3), []);
        assert_eq!(play(&mut pressure, &mut now, 4400, 9), [Level::Unread]);
        assert_eq!(pressure.receive_maximum(1000), 250);
        assert_eq!(play(&mut pressure, &mut now, 1200, 9), [Level::Shedding]);
        assert_eq!(pressure.receive_maximum(1000), 62);
        // Better, but not well.
        assert_eq!(play(&mut pressure, &mut now, 2000, 3), []);
        assert_eq!(play(&mut pressure, &mut now, 1000, 1), [Level::Flowing]);
        assert_eq!(pressure.receive_maximum(1000), 1000);
        let unread_ms = pressure.unread.as_millis();
        assert!((8000..9000).contains(&unread_ms), "{unread_ms}");
    }

    #[test]
    fn a_pause_between_passes_counts_as_what_it_was() {
        let mut now = Instant::now();
        let mut pressure = Pressure::new(now, 5000 * MS);
        pressure.pass(now, true);
        now += 10_000 * MS;
        assert!(pressure.pass(now, true));
        assert_eq!(pressure.level, Level::Shedding);
        pressure.pass(now, false);
        now += 10_000 * MS;
        assert!(pressure.pass(now, false));
        assert_eq!(pressure.level, Level::Flowing);
    }

    #[test]
    fn without_shedding_a_receive_maximum_shrinks_all_the_same() {
        let mut now = Instant::now();
        let mut pressure = Pressure::new(now, Duration::ZERO);
        assert_eq!(play(&mut pressure, &mut now, 60_000, 10), [Level::Unread]);
        assert_eq!(pressure.receive_maximum(2), 1);
    }
}
