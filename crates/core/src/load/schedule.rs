//! Event time of the fleet's readings: a function of device and number, and of nothing else.

use super::options::FleetOptions;

/// Event time of every reading. Devices are spread over the interval between two readings by the golden
/// ratio, so that any subset of them reports evenly too.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start_us: i64,
    interval_us: f64,
}

impl Schedule {
    pub fn new(options: &FleetOptions) -> Schedule {
        Schedule { start_us: options.start_time_us.unwrap_or_default(), interval_us: options.interval_us() }
    }

    /// Event time of reading `n`, microseconds UTC, whole milliseconds as the payload states them.
    pub fn ts_us(&self, device: u32, n: u64) -> i64 {
        let after = (phase(device) + n as f64) * self.interval_us;
        floor_ms(self.start_us.saturating_add(after as i64))
    }

    /// The event time `seconds` after the start.
    pub fn at_seconds(&self, seconds: f64) -> i64 {
        floor_ms(self.start_us.saturating_add((seconds * 1e6) as i64))
    }

    /// The first reading of `device` whose event time is not before `ts_us`.
    pub fn first_at(&self, device: u32, ts_us: i64) -> u64 {
        let intervals = ts_us.saturating_sub(self.start_us) as f64 / self.interval_us - phase(device);
        // The estimate is a little low, the loop makes it exact.
        let mut n = (intervals - 1.0).max(0.0) as u64;
        while self.ts_us(device, n) < ts_us {
            n += 1;
        }
        n
    }
}

/// Where in the interval between two readings device `d` reports, in [0, 1).
pub fn phase(device: u32) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    (f64::from(device) * GOLDEN).fract()
}

fn floor_ms(us: i64) -> i64 {
    us - us.rem_euclid(1_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_reading_at_a_time_is_the_first(
            device in 0u32..1_000_000,
            interval_us in 10.0..1e9f64,
            after_us in 0i64..1_000_000_000_000,
        ) {
            let schedule = Schedule { start_us: 1_767_225_600_000_000, interval_us };
            let ts_us = floor_ms(schedule.start_us + after_us);
            let n = schedule.first_at(device, ts_us);
            prop_assert!(schedule.ts_us(device, n) >= ts_us);
            prop_assert!(n == 0 || schedule.ts_us(device, n - 1) < ts_us);
        }
    }
}
