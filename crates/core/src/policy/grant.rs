//! What one connection may do: a policy set with the connection's own values.

use std::sync::Arc;

use super::action::Action;
use super::set::PolicySet;
use super::tree::Value;
use super::variable::Variable;
use crate::mqtt::topic;

#[derive(Clone, Debug)]
pub struct Grant {
    set: Arc<PolicySet>,
    /// By slot of the set's variables.
    values: Box<[Value]>,
}

/// A policy denies by a variable that has no value here, or one that is no topic level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy {policy:?} denies by {variable}, which is {} for this identity; without it nothing can be denied",
    match value { Some(value) => format!("{value:?}, no single topic level"), None => "unknown".to_owned() }
)]
pub struct Unresolved {
    pub policy: String,
    pub variable: Variable,
    pub value: Option<String>,
}

impl Grant {
    pub(super) fn new(set: Arc<PolicySet>, values: Box<[Value]>) -> Grant {
        Grant { set, values }
    }

    pub fn may_connect(&self, client_id: &str) -> bool {
        self.set.allows(Action::Connect, client_id, &self.values)
    }

    /// A retained message needs `iot:RetainPublish` beside `iot:Publish`.
    #[inline]
    pub fn may_publish(&self, topic: &str, retain: bool) -> bool {
        self.set.allows(Action::Publish, topic, &self.values)
            && (!retain || self.set.allows(Action::RetainPublish, topic, &self.values))
    }

    /// Of `$share/group/filter` the filter is what must be allowed; either may be denied.
    pub fn may_subscribe(&self, filter: &str) -> bool {
        match shared_filter(filter) {
            Some(inner) => {
                self.set.allows(Action::Subscribe, inner, &self.values)
                    && !self.set.denies(Action::Subscribe, filter, &self.values)
            }
            None => self.set.allows(Action::Subscribe, filter, &self.values),
        }
    }

    #[inline]
    pub fn may_receive(&self, topic: &str) -> bool {
        self.set.allows(Action::Receive, topic, &self.values)
    }

    /// Whether the action is allowed for everything, so that nobody needs to ask.
    #[inline]
    pub fn allows_all(&self, action: Action) -> bool {
        self.set.allows_all(action)
    }
}

/// `filter` of `$share/group/filter`.
fn shared_filter(filter: &str) -> Option<&str> {
    if !topic::is_shared(filter) {
        return None;
    }
    filter.splitn(3, '/').nth(2)
}
