//! When devices are due: a cursor that passes all devices of a thread once per interval. Pure: the time
//! comes in as an argument.

use super::options::FleetOptions;
use super::schedule::phase;

/// How far a device has come.
pub struct Device {
    /// Number of the next reading.
    pub next: u64,
    /// The reading at which the device's time is over.
    pub end: u64,
    /// Messages it may still send.
    pub left: u64,
}

impl Device {
    pub fn new(options: &FleetOptions, d: u32) -> Device {
        // Readings due before the fleet's duration is over. Flat out the clock decides.
        let end = match options.duration {
            Some(duration) if options.rate_per_device > 0.0 => {
                (duration.as_secs_f64() * options.rate_per_device - phase(d)).ceil().max(0.0) as u64
            }
            _ => u64::MAX,
        };
        Device { next: 0, end, left: options.quota(d) }
    }

    pub fn is_done(&self) -> bool {
        self.left == 0 || self.next >= self.end
    }
}

/// The devices of a thread in the order in which they are due within one interval.
///
/// What is due is counted in whole readings as the cursor passes, never computed from the time again, so
/// rounding can neither skip a reading nor send it twice.
pub struct Lineup {
    order: Vec<u32>,
    /// Where each device stands in `order`.
    place: Vec<u32>,
    /// Phase of each device, in the order of `order`.
    phases: Vec<f64>,
    /// Readings before `round` are due of all devices, reading `round` of those before `cursor`.
    cursor: usize,
    round: u64,
    rate: f64,
}

impl Lineup {
    /// `phases`: when each device reports within the interval, in [0, 1). `rate`: readings per second, > 0.
    pub fn new(phases: &[f64], rate: f64) -> Lineup {
        let phase_of = |j: &u32| phases.get(*j as usize).copied().unwrap_or_default();
        let mut order: Vec<u32> = (0..phases.len() as u32).collect();
        order.sort_by(|one, other| phase_of(one).total_cmp(&phase_of(other)));
        let mut place = vec![0; order.len()];
        for (at, &j) in order.iter().enumerate() {
            place[j as usize] = at as u32;
        }
        let phases = order.iter().map(phase_of).collect();
        Lineup { order, place, phases, cursor: 0, round: 0, rate }
    }

    /// When the cursor reaches the next device, nanoseconds after the start; never without devices.
    pub fn next_ns(&self) -> u64 {
        match self.phases.get(self.cursor) {
            Some(phase) => ((self.round as f64 + phase) / self.rate * 1e9) as u64,
            None => u64::MAX,
        }
    }

    /// Passes the next device if it is due by `now_ns`, and names it.
    pub fn pass(&mut self, now_ns: u64) -> Option<usize> {
        if self.next_ns() > now_ns {
            return None;
        }
        let j = *self.order.get(self.cursor)?;
        self.cursor += 1;
        if self.cursor == self.order.len() {
            self.cursor = 0;
            self.round += 1;
        }
        Some(j as usize)
    }

    /// Readings of device `j` that the cursor has passed.
    pub fn due(&self, j: usize) -> u64 {
        let passed = self.place.get(j).is_some_and(|&place| (place as usize) < self.cursor);
        self.round + u64::from(passed)
    }
}

/// What a thread may send by now, where a bound is set on sending flat out.
pub struct Allowance {
    /// Messages per second, > 0.
    per_s: f64,
    sent: u64,
}

/// Messages of one connection before the next gets its turn: enough that a write carries them cheaply.
const SHARE: u64 = 50;

impl Allowance {
    /// `per_s`: messages per second of all `threads`; None without a bound.
    pub fn new(per_s: f64, threads: usize) -> Option<Allowance> {
        (per_s > 0.0).then(|| Allowance { per_s: per_s / threads.max(1) as f64, sent: 0 })
    }

    /// Messages that a connection may send now, `ns` after the start: 0, or its share.
    pub fn share(&self, ns: u64) -> u64 {
        let due = (self.per_s * ns as f64 / 1e9) as u64;
        if due.saturating_sub(self.sent) < SHARE { 0 } else { SHARE }
    }

    pub fn spend(&mut self, messages: u64) {
        self.sent += messages;
    }

    /// When the next share is there, nanoseconds after the start.
    pub fn next_ns(&self) -> u64 {
        ((self.sent + SHARE) as f64 / self.per_s * 1e9).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_allowance_is_spent_and_grows_with_time() {
        assert!(Allowance::new(0.0, 2).is_none());
        let mut allowance = Allowance::new(200_000.0, 2).expect("a bound");
        assert_eq!((allowance.share(0), allowance.next_ns()), (0, 500_000));
        assert_eq!((allowance.share(499_000), allowance.share(500_000)), (0, SHARE));
        allowance.spend(SHARE);
        assert_eq!((allowance.share(999_000), allowance.next_ns()), (0, 1_000_000));
        assert_eq!(allowance.share(60_000_000_000), SHARE, "however late, one share at a time");
    }

    #[test]
    fn devices_pass_in_the_order_of_their_phases() {
        let mut lineup = Lineup::new(&[0.0, 0.75, 0.5], 2.0);
        let passed: Vec<_> = std::iter::from_fn(|| lineup.pass(600_000_000)).collect();
        assert_eq!(passed, [0, 2, 1, 0]);
        assert_eq!(lineup.next_ns(), 750_000_000);
        assert_eq!((lineup.due(0), lineup.due(1), lineup.due(2)), (2, 1, 1));
        assert_eq!(Lineup::new(&[], 1.0).pass(u64::MAX - 1), None);
    }

    proptest! {
        #[test]
        fn a_device_is_due_as_often_as_it_was_passed(
            devices in 1u32..50,
            rate in 0.01..1e4f64,
            steps_ns in prop::collection::vec(0u64..1_000_000_000, 1..10),
        ) {
            let phases: Vec<f64> = (0..devices).map(phase).collect();
            let mut lineup = Lineup::new(&phases, rate);
            let (mut passed, mut now_ns) = (vec![0u64; devices as usize], 0);
            for step_ns in steps_ns {
                now_ns += step_ns;
                for _ in 0..10_000 {
                    let Some(j) = lineup.pass(now_ns) else { break };
                    passed[j] += 1;
                }
                for (j, &times) in passed.iter().enumerate() {
                    prop_assert_eq!(lineup.due(j), times);
                }
            }
        }
    }
}
