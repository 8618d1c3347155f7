//! Who may do what: AWS-style policy documents, compiled to a matcher.
//!
//! [`Policy::parse`] checks one document, [`Policies`] holds all of them by name and compiles the sets that
//! identities have ([`PolicySet`], shared by all connections with the same names), and a [`Grant`] is a set with
//! one connection's values for the variables. Pure: no I/O, no clock. Nothing is allowed unless a statement
//! allows it, and a statement that denies wins.

mod action;
mod document;
mod error;
mod grant;
mod pattern;
mod policies;
mod resource;
mod set;
mod tree;
mod variable;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

pub use action::Action;
pub use document::Policy;
pub use error::PolicyError;
pub use grant::{Grant, Unresolved};
pub use policies::{Policies, SetError};
pub use set::PolicySet;
pub use variable::Variable;
