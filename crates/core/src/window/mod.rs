//! Window kernels: rows in, closed windows out; pure, without clock and without I/O.
//!
//! [`Tumble`] aggregates into dense records, one per (pane, key id): a row costs one address computation and one cache
//! line, which is prefetched ahead, and no hashing. [`KeyInterner`] makes the dense ids for queries that do not
//! group by the stream's own key. Both write snapshots (docs/formats/window-state.md) that are read back exactly.
//!
//! What is not built here: hopping, cumulating and session windows.

mod close;
mod group;
mod layout;
mod panes;
mod state;
mod tumble;

#[cfg(test)]
mod tests;

pub use group::{GroupType, InternError, KeyInterner};
pub use layout::{Aggregate, Function, InputType, OptionsError, TumbleOptions};
pub use state::StateError;
pub use tumble::{AddError, Added, Input, Tumble, Values};
