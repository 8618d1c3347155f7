//! What a connection may do, asked where it does it: CONNECT, PUBLISH, SUBSCRIBE, each delivery.

use std::sync::Arc;

use super::logins::Principal;
use crate::policy::{Action, Grant, Policies};
use crate::sessions::Owner;

/// Why a message or a will is refused.
pub(super) const PUBLISH_DENIED: &str = "no policy of the client allows iot:Publish (and, retained, iot:RetainPublish) \
    on this topic, or one denies it";

/// Of a connection that must identify itself. A connection without it is anonymous and may do everything.
#[derive(Debug)]
pub(super) enum Access {
    /// The CONNECT waits for its answer, under this number in [`super::logins`].
    Asked(u64),
    Granted(Box<Granted>),
    /// Of a session of an earlier process, whose client has not come back. What it may do is asked when it does.
    Away(Box<Owner>),
}

#[derive(Debug)]
pub(super) struct Granted {
    pub grant: Grant,
    pub principal: Principal,
    /// Of what it was held against last; see [`super::standing`].
    pub version: u64,
    /// Of which the grant is.
    pub policies: Arc<Policies>,
    published: Last,
    received: Last,
}

/// The last decision: a device says the same topic again and again.
#[derive(Debug, Default)]
struct Last {
    topic: String,
    retain: bool,
    allowed: bool,
}

impl Granted {
    pub fn new(grant: Grant, principal: Principal, version: u64, policies: Arc<Policies>) -> Granted {
        let (published, received) = (Last::default(), Last::default());
        Granted { grant, principal, version, policies, published, received }
    }

    /// What it may do from now on.
    pub fn replace(&mut self, grant: Grant, policies: Arc<Policies>) {
        (self.grant, self.policies) = (grant, policies);
        (self.published, self.received) = (Last::default(), Last::default());
    }
}

/// Whether the connection may publish. Also asked for its will.
#[inline]
pub(super) fn may_publish(access: &mut Option<Box<Access>>, topic: &str, retain: bool) -> bool {
    let Some(granted) = granted(access) else { return access.is_none() };
    if granted.grant.allows_all(Action::Publish)
        && (!retain || granted.grant.allows_all(Action::RetainPublish))
    {
        return true;
    }
    let grant = &granted.grant;
    granted.published.decide(topic, retain, || grant.may_publish(topic, retain))
}

pub(super) fn may_subscribe(access: &mut Option<Box<Access>>, filter: &str) -> bool {
    match granted(access) {
        Some(granted) => granted.grant.may_subscribe(filter),
        None => access.is_none(),
    }
}

#[inline]
pub(super) fn may_receive(access: &mut Option<Box<Access>>, topic: &str) -> bool {
    let Some(granted) = granted(access) else {
        return matches!(access.as_deref(), None | Some(Access::Away(_)));
    };
    let grant = &granted.grant;
    grant.allows_all(Action::Receive) || granted.received.decide(topic, false, || grant.may_receive(topic))
}

/// Why a filter is refused, for the operator.
pub(super) fn subscribe_denied(access: &Option<Box<Access>>, filter: &str) -> String {
    let who = match access.as_deref() {
        Some(Access::Granted(granted)) => {
            let Principal { user, tenant, .. } = &granted.principal;
            if tenant.is_empty() {
                format!("user {user:?}")
            } else {
                format!("user {user:?} of tenant {tenant:?}")
            }
        }
        _ => "the client".to_owned(),
    };
    format!("filter {filter:?}: no policy of {who} allows iot:Subscribe on it, or one denies it")
}

/// Whether both connections are the same user's, or anonymous.
pub(super) fn same_user(one: &Option<Box<Access>>, other: &Option<Box<Access>>) -> bool {
    match (one, other) {
        (None, None) => true,
        _ => owner(one).is_some_and(|mine| owner(other) == Some(mine)),
    }
}

/// User and tenant; none: anonymous, or not known yet.
pub(super) fn owner(access: &Option<Box<Access>>) -> Option<(&str, &str)> {
    match access.as_deref() {
        Some(Access::Granted(granted)) => Some((&granted.principal.user, &granted.principal.tenant)),
        Some(Access::Away(owner)) => Some((&owner.user, &owner.tenant)),
        Some(Access::Asked(_)) | None => None,
    }
}

#[inline]
fn granted(access: &mut Option<Box<Access>>) -> Option<&mut Granted> {
    match access.as_deref_mut() {
        Some(Access::Granted(granted)) => Some(granted),
        _ => None,
    }
}

impl Last {
    #[inline]
    fn decide(&mut self, topic: &str, retain: bool, decide: impl FnOnce() -> bool) -> bool {
        // An empty topic is never said; it stands for none yet.
        if self.topic.is_empty() || self.topic != topic || self.retain != retain {
            self.allowed = decide();
            self.retain = retain;
            self.topic.clear();
            self.topic.push_str(topic);
            // One long topic must not stay in memory with each idle connection.
            if self.topic.capacity() > 4 * topic.len().max(64) {
                self.topic.shrink_to_fit();
            }
        }
        self.allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn access(statement: &str) -> Option<Box<Access>> {
        let json = format!(r#"{{"Version": "2012-10-17", "Statement": [{statement}]}}"#);
        let policies = Arc::new(Policies::new(vec![Policy::parse("p", &json).unwrap()]));
        let grant = policies.set(&["p".to_owned()]).unwrap().grant(|_| Some("acme")).unwrap();
        Some(Box::new(Access::Granted(Box::new(Granted::new(grant, Principal::default(), 1, policies)))))
    }

    #[test]
    fn anonymous_may_do_everything_and_who_waits_nothing() {
        let mut anonymous = None;
        assert!(may_publish(&mut anonymous, "a", true));
        assert!(may_subscribe(&mut anonymous, "#") && may_receive(&mut anonymous, "a"));
        let mut waits = Some(Box::new(Access::Asked(1)));
        assert!(!may_publish(&mut waits, "a", false));
        assert!(!may_subscribe(&mut waits, "a") && !may_receive(&mut waits, "a"));
    }

    #[test]
    fn what_was_decided_last_says_nothing_about_another_topic() {
        let statement =
            r#"{"Effect": "Allow", "Action": ["iot:Publish", "iot:Receive"], "Resource": "topic/a"}"#;
        let mut access = access(statement);
        for _ in 0..3 {
            assert!(may_publish(&mut access, "a", false) && !may_publish(&mut access, "a", true));
            assert!(!may_publish(&mut access, "b", false) && !may_publish(&mut access, "", false));
            assert!(may_receive(&mut access, "a") && !may_receive(&mut access, "b"));
        }
    }
}
