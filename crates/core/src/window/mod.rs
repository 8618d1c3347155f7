//! Window kernels: rows in, closed windows out; pure, without clock and without I/O.
//!
//! [`AlignedWindows`] aggregates into dense records, one per (pane, key id): a row costs one address computation and one
//! cache line, which is prefetched ahead, and no hashing. A pane is what all windows share that hold any of it: the window
//! itself (TUMBLE, calendar), the slide (HOP) or the step (CUMULATE); a window that closes merges its panes.
//! [`SessionWindows`] keeps a list of open sessions per key. [`KeyInterner`] makes the dense ids for queries that do not
//! group by the stream's own key. All write snapshots (docs/formats/window-state.md) that are read back exactly.

mod aligned;
mod cells;
mod close;
mod distinct;
mod early;
mod fold;
mod frozen;
mod grid;
mod group;
mod layout;
mod old_state;
mod panes;
mod quantiles;
mod results;
mod session_state;
mod sessions;
mod state;

#[cfg(test)]
mod frozen_tests;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod tests;

pub use aligned::{AddError, Added, AlignedWindows};
pub use distinct::hash_text;
pub use fold::{Input, Values};
pub use frozen::Frozen;
pub use grid::Shape;
pub use group::{GroupType, InternError, KeyInterner};
pub use layout::{Aggregate, AlignedOptions, Function, InputType, OptionsError};
pub use sessions::{SessionOptions, SessionWindows};
pub use state::{StateError, is_sealed, seal};
