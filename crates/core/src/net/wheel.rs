//! Timeouts of many connections: a hashed wheel with one slot for each tick.
//!
//! Traffic does not touch the wheel. A connection notes when it was last heard; when its entry comes up, the
//! owner looks whether the deadline has moved and puts the entry in again, once for each keep alive period.

const SLOTS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub slot: u32,
    /// Of the network connection.
    pub link: u32,
}

#[derive(Debug)]
pub(super) struct Wheel {
    slots: Vec<Vec<Entry>>,
    /// The last tick that was handed out.
    tick: u32,
    entries: usize,
}

impl Wheel {
    pub fn new(tick: u32) -> Wheel {
        Wheel { slots: (0..SLOTS).map(|_| Vec::new()).collect(), tick, entries: 0 }
    }

    /// A deadline beyond the wheel's span comes up early and is put in again by its owner.
    pub fn insert(&mut self, deadline: u32, entry: Entry) -> u32 {
        let ahead = deadline.saturating_sub(self.tick).clamp(1, SLOTS as u32 - 1);
        let at = self.tick.wrapping_add(ahead);
        self.slots[at as usize % SLOTS].push(entry);
        self.entries += 1;
        at
    }

    /// Takes all entries up to `tick`, at most one round of the wheel however far the clock has jumped.
    pub fn advance(&mut self, tick: u32, due: &mut Vec<Entry>) {
        let passed = if self.entries == 0 { 0 } else { tick.saturating_sub(self.tick).min(SLOTS as u32) };
        for step in 1..=passed {
            let slot = &mut self.slots[self.tick.wrapping_add(step) as usize % SLOTS];
            self.entries -= slot.len();
            due.append(slot);
            if slot.capacity() > 64 {
                *slot = Vec::new();
            }
        }
        self.tick = self.tick.max(tick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: u32) -> Entry {
        Entry { slot, link: 1 }
    }

    #[test]
    fn entries_come_up_at_their_tick() {
        let mut wheel = Wheel::new(5000);
        wheel.insert(5003, entry(1));
        wheel.insert(5001, entry(2));
        wheel.insert(4000, entry(3));
        let mut due = Vec::new();
        wheel.advance(5001, &mut due);
        assert_eq!(due, [entry(2), entry(3)]);
        due.clear();
        wheel.advance(5002, &mut due);
        assert!(due.is_empty() && wheel.entries == 1);
        wheel.advance(5003, &mut due);
        assert_eq!(due, [entry(1)]);
        assert_eq!(wheel.entries, 0);
    }

    #[test]
    fn a_far_deadline_and_a_jump_of_the_clock_lose_nothing() {
        let mut wheel = Wheel::new(0);
        let at = wheel.insert(1_000_000, entry(1));
        assert!(at < 1_000_000);
        let mut due = Vec::new();
        wheel.advance(2_000_000, &mut due);
        assert_eq!(due, [entry(1)]);
    }
}
