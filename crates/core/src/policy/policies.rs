//! All policies by name, and the sets of them that are in use.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::document::Policy;
use super::set::PolicySet;

/// Sets compiled at a time. Ours; an identity with another combination is refused.
const MAX_SETS: usize = 1024;

#[derive(Debug, Default)]
pub struct Policies {
    named: HashMap<String, Policy>,
    /// By sorted names.
    sets: Mutex<HashMap<Vec<String>, Arc<PolicySet>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    #[error("there is no policy {name:?}; [policies.{name}] would declare it, there are {known:?}")]
    Unknown { name: String, known: Vec<String> },
    #[error("{MAX_SETS} combinations of policies are in use, which is the most; give identities fewer")]
    TooMany,
}

impl Policies {
    pub fn new(policies: Vec<Policy>) -> Policies {
        let named = policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
        Policies { named, sets: Mutex::default() }
    }

    /// The set of these policies, compiled once for all who have it. Takes some milliseconds where it is new.
    pub fn set(&self, names: &[String]) -> Result<Arc<PolicySet>, SetError> {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        if let Some(set) = self.sets.lock().get(&names) {
            return Ok(Arc::clone(set));
        }
        let policies = names.iter().map(|name| {
            self.named.get(name).ok_or_else(|| {
                let mut known: Vec<String> = self.named.keys().cloned().collect();
                known.sort_unstable();
                SetError::Unknown { name: name.clone(), known }
            })
        });
        let set = Arc::new(PolicySet::compile(policies.collect::<Result<Vec<_>, _>>()?));
        let mut sets = self.sets.lock();
        if sets.len() >= MAX_SETS {
            // Those that no connection has.
            sets.retain(|_, set| Arc::strong_count(set) > 1);
            if sets.len() >= MAX_SETS {
                return Err(SetError::TooMany);
            }
        }
        Ok(Arc::clone(sets.entry(names).or_insert(set)))
    }
}
