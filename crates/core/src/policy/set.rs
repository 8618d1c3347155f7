//! Several policies compiled to one matcher, shared by all connections that have the same ones.

use std::sync::Arc;

use super::action::Action;
use super::document::Policy;
use super::grant::{Grant, Unresolved};
use super::pattern::Part;
use super::resource::Kind;
use super::tree::{Tree, Value};
use super::variable::Variable;

/// Longest topic, filter or client id that a policy decides about, bytes; longer ones are denied. Ours: it bounds
/// what one message can cost.
pub(super) const MAX_TEXT: usize = 4096;

#[derive(Debug)]
pub struct PolicySet {
    /// By action.
    rules: [Rules; Action::ALL.len()],
    /// By slot.
    variables: Vec<Variable>,
    /// Variables by which something is denied, with the kind of resource and the policy's name.
    denied_by: Vec<(u16, Kind, Box<str>)>,
}

#[derive(Debug)]
struct Rules {
    allow: Tree,
    deny: Tree,
    /// Everything is allowed and nothing denied.
    all: bool,
}

impl PolicySet {
    pub fn compile<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> PolicySet {
        let policies: Vec<&Policy> = policies.into_iter().collect();
        let mut variables: Vec<Variable> = Vec::new();
        let mut slot = |variable: &Variable| match variables.iter().position(|known| known == variable) {
            Some(at) => at as u16,
            None => {
                variables.push(variable.clone());
                (variables.len() - 1) as u16
            }
        };
        let rules = Action::ALL.map(|action| {
            let patterns = |deny: bool| {
                let statements = policies.iter().flat_map(|policy| &policy.statements);
                statements
                    .filter(move |statement| statement.deny == deny && statement.actions.contains(action))
                    .flat_map(|statement| &statement.resources)
                    .filter(move |resource| resource.is_of(action.kind()))
                    .map(|resource| &*resource.pattern)
            };
            let (allow, deny) = (Tree::new(patterns(false), &mut slot), Tree::new(patterns(true), &mut slot));
            Rules { all: allow.is_all() && deny.is_empty(), allow, deny }
        });
        let mut denied_by = Vec::new();
        for policy in policies {
            for statement in policy.statements.iter().filter(|statement| statement.deny) {
                for action in statement.actions.each() {
                    let resources = statement.resources.iter().filter(|each| each.is_of(action.kind()));
                    for part in resources.flat_map(|resource| &resource.pattern) {
                        if let Part::Variable(variable) = part {
                            denied_by.push((slot(variable), action.kind(), policy.name.as_str().into()));
                        }
                    }
                }
            }
        }
        PolicySet { rules, variables, denied_by }
    }

    /// Everything for everyone: what anonymous clients on loopback have.
    pub fn allow_all() -> PolicySet {
        let rules = Action::ALL.map(|_| {
            let all = [Part::Any];
            let tree = |pattern: Option<&[Part]>| Tree::new(pattern.into_iter(), |_| 0);
            Rules { allow: tree(Some(&all[..])), deny: tree(None), all: true }
        });
        PolicySet { rules, variables: Vec::new(), denied_by: Vec::new() }
    }

    /// The set with one connection's values: what `value` gives for each variable of the set, once.
    ///
    /// Nothing is allowed by a variable without a value. What is denied by one would be allowed for want of it, so
    /// there is no grant then.
    pub fn grant<'a>(
        self: &Arc<Self>,
        value: impl Fn(&Variable) -> Option<&'a str>,
    ) -> Result<Grant, Unresolved> {
        let values: Box<[Value]> =
            self.variables.iter().map(|variable| Value::new(value(variable))).collect();
        for (slot, kind, policy) in &self.denied_by {
            let slot = usize::from(*slot);
            if values[slot].get(*kind != Kind::Client).is_none() {
                return Err(Unresolved {
                    policy: policy.to_string(),
                    variable: self.variables[slot].clone(),
                    value: values[slot].text.as_deref().map(str::to_owned),
                });
            }
        }
        Ok(Grant::new(Arc::clone(self), values))
    }

    /// Whether everything is allowed for everyone, whatever the values.
    #[inline]
    pub(super) fn allows_all(&self, action: Action) -> bool {
        self.rules[action as usize].all
    }

    pub(super) fn denies(&self, action: Action, text: &str, values: &[Value]) -> bool {
        let rules = &self.rules[action as usize];
        text.len() > MAX_TEXT || rules.deny.matches(text, values, action.kind() != Kind::Client)
    }

    #[inline]
    pub(super) fn allows(&self, action: Action, text: &str, values: &[Value]) -> bool {
        let rules = &self.rules[action as usize];
        let levels = action.kind() != Kind::Client;
        rules.all
            || (text.len() <= MAX_TEXT
                && !rules.deny.matches(text, values, levels)
                && rules.allow.matches(text, values, levels))
    }
}
