//! Time for timeouts: the machine's, or one that a test moves by hand.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Timeouts are counted in ticks of this length.
pub(super) const TICK_MS: u64 = 100;

/// Where keep alive and the other timeouts take their time from. Timestamps of rows are always the machine's.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    Real,
    /// Milliseconds, moved by [`Clock::advance`].
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub fn manual() -> Clock {
        Clock::Manual(Arc::default())
    }

    /// Moves a manual clock; nothing else.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(ms) = self {
            ms.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
        }
    }

    /// Ticks since some fixed moment.
    pub(super) fn tick(&self) -> u32 {
        static START: OnceLock<Instant> = OnceLock::new();
        let ms = match self {
            Clock::Real => START.get_or_init(Instant::now).elapsed().as_millis() as u64,
            Clock::Manual(ms) => ms.load(Ordering::SeqCst),
        };
        (ms / TICK_MS) as u32
    }
}

/// Ticks in this many seconds.
pub(super) fn ticks(seconds: u32) -> u32 {
    seconds.saturating_mul((1000 / TICK_MS) as u32)
}

/// Microseconds since the Unix epoch, UTC.
pub(super) fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
