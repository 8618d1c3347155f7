//! What is wrong with a policy document, where, and how to fix it.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// Name of the policy.
    pub policy: String,
    /// The statement's number, from 1, and its `Sid` where it has one.
    pub statement: Option<(usize, Option<String>)>,
    /// `Effect`, `Resource`, ...; empty: the document as a whole.
    pub field: &'static str,
    /// As it stands in the document.
    pub found: String,
    pub fix: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "policy {:?}", self.policy)?;
        match &self.statement {
            Some((number, Some(sid))) => write!(out, ", statement {number} (Sid {sid:?})")?,
            Some((number, None)) => write!(out, ", statement {number}")?,
            None => {}
        }
        if !self.field.is_empty() {
            write!(out, ", {}", self.field)?;
        }
        write!(out, ": found {}; {}", self.found, self.fix)
    }
}

impl std::error::Error for PolicyError {}
