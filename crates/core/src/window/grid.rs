//! Where panes begin and end, and which panes a window is made of.
//!
//! A window has the number of its last pane: it ends where that pane ends.

use std::sync::Arc;

use super::layout::OptionsError;

/// Panes of one window at most: a day by the minute.
pub(super) const MAX_PANES_OF_WINDOW: i64 = 1440;

/// The windows of a query; all lengths in microseconds, > 0, aligned to the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Tumble {
        size_us: i64,
    },
    /// Windows of `size_us`, a multiple of `slide_us`, one every `slide_us`.
    Hop {
        slide_us: i64,
        size_us: i64,
    },
    /// Windows that begin every `size_us`, a multiple of `step_us`, and end every `step_us` after.
    Cumulate {
        step_us: i64,
        size_us: i64,
    },
    /// Windows between neighbours of this ascending list, such as local midnights; rows outside of it are dropped.
    Calendar {
        starts_us: Arc<[i64]>,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Grid {
    pane_us: i64,
    starts_us: Option<Arc<[i64]>>,
    panes_of_window: i64,
    cumulates: bool,
}

impl Grid {
    pub fn new(shape: &Shape) -> Result<Grid, OptionsError> {
        let (pane_us, size_us, cumulates) = match shape {
            Shape::Tumble { size_us } => (*size_us, *size_us, false),
            Shape::Hop { slide_us, size_us } => (*slide_us, *size_us, false),
            Shape::Cumulate { step_us, size_us } => (*step_us, *size_us, true),
            Shape::Calendar { starts_us } => {
                if starts_us.len() < 2 || !starts_us.is_sorted() {
                    return Err(OptionsError("a calendar needs two starts or more, ascending".into()));
                }
                let starts_us = Some(starts_us.clone());
                return Ok(Grid { pane_us: 0, starts_us, panes_of_window: 1, cumulates: false });
            }
        };
        if pane_us <= 0 || size_us <= 0 {
            return Err(OptionsError(format!("{shape:?}: lengths must be above 0")));
        }
        let panes_of_window = size_us / pane_us;
        if size_us % pane_us != 0 || !(1..=MAX_PANES_OF_WINDOW).contains(&panes_of_window) {
            return Err(OptionsError(format!(
                "{shape:?}: the size must be a multiple of the other, at most {MAX_PANES_OF_WINDOW} times it"
            )));
        }
        Ok(Grid { pane_us, starts_us: None, panes_of_window, cumulates })
    }

    /// Number of the pane that holds this time; of a calendar -1 before its first start.
    #[inline]
    pub fn pane(&self, us: i64) -> i64 {
        match &self.starts_us {
            None => us.div_euclid(self.pane_us),
            Some(starts) => starts.partition_point(|start| *start <= us) as i64 - 1,
        }
    }

    /// Where a pane begins; times at the ends of i64 saturate.
    #[inline]
    pub fn start(&self, pane: i64) -> i64 {
        match &self.starts_us {
            None => pane.saturating_mul(self.pane_us),
            Some(_) if pane < 0 => i64::MIN,
            Some(starts) => starts.get(pane as usize).copied().unwrap_or(i64::MAX),
        }
    }

    /// Whether rows of this pane can be kept.
    pub fn holds(&self, pane: i64) -> bool {
        self.starts_us.as_ref().is_none_or(|starts| pane >= 0 && (pane as usize) + 1 < starts.len())
    }

    /// First pane of a window.
    #[inline]
    pub fn first_pane(&self, window: i64) -> i64 {
        if self.cumulates {
            window.div_euclid(self.panes_of_window).saturating_mul(self.panes_of_window)
        } else {
            window.saturating_sub(self.panes_of_window - 1)
        }
    }

    /// The last window that holds a pane; the first one has the pane's own number.
    #[inline]
    pub fn last_window(&self, pane: i64) -> i64 {
        let first = if self.cumulates { self.first_pane(pane) } else { pane };
        first.saturating_add(self.panes_of_window - 1)
    }

    /// Start and end of a window.
    pub fn bounds(&self, window: i64) -> (i64, i64) {
        (self.start(self.first_pane(window)), self.end(window))
    }

    #[inline]
    pub fn end(&self, window: i64) -> i64 {
        self.start(window.saturating_add(1))
    }

    /// The first window that ends after this time: all before it end at or before it.
    #[inline]
    pub fn first_open(&self, us: i64) -> i64 {
        self.pane(us)
    }
}
