//! What files of identities and policies say now. When they change, every connection is held against them again.

use std::collections::HashMap;
use std::sync::Arc;

use super::access::Granted;
use super::logins::{Line, Principal};
use crate::policy::{Grant, Policies, Variable};

/// One state of them. A change makes a new one; connections keep the version that they were held against last.
#[derive(Debug)]
pub(super) struct Standing {
    pub version: u64,
    pub policies: Arc<Policies>,
    /// By source.
    lines: HashMap<String, Arc<Lines>>,
}

/// All lines of a source's file, by name.
#[derive(Debug)]
struct Lines {
    /// Of the file.
    version: u64,
    marks: HashMap<String, u64>,
}

impl Lines {
    fn mark(&self, name: &str) -> u64 {
        self.marks.get(name).copied().unwrap_or(0)
    }
}

impl Standing {
    pub fn new(policies: Policies) -> Standing {
        Standing { version: 1, policies: Arc::new(policies), lines: HashMap::new() }
    }

    pub fn with_policies(&self, policies: Policies) -> Standing {
        let lines = self.lines.clone();
        Standing { version: self.version + 1, policies: Arc::new(policies), lines }
    }

    pub fn with_lines(&self, source: &str, version: u64, marks: HashMap<String, u64>) -> Standing {
        let mut lines = self.lines.clone();
        lines.insert(source.to_owned(), Arc::new(Lines { version, marks }));
        Standing { version: self.version + 1, policies: Arc::clone(&self.policies), lines }
    }

    /// What a client may do, or why it may not connect.
    pub fn admit(
        &self,
        principal: &Principal,
        client_id: &str,
        common_name: Option<&str>,
    ) -> Result<Granted, String> {
        self.knows(principal)?;
        let grant = self.grant(principal, client_id, common_name)?;
        Ok(Granted::new(grant, principal.clone(), self.version, Arc::clone(&self.policies)))
    }

    /// Gives a connection what it may do from now on, or says why it may not stay. True: that has changed.
    pub fn review(
        &self,
        granted: &mut Granted,
        client_id: &str,
        common_name: Option<&str>,
    ) -> Result<bool, String> {
        self.knows(&granted.principal)?;
        let changed = !Arc::ptr_eq(&granted.policies, &self.policies);
        if changed {
            let grant = self.grant(&granted.principal, client_id, common_name)?;
            granted.replace(grant, Arc::clone(&self.policies));
        }
        granted.version = self.version;
        Ok(changed)
    }

    /// Whether the line that the principal comes from still says what it said.
    fn knows(&self, principal: &Principal) -> Result<(), String> {
        let Some(Line { source, name, version, mark }) = &principal.line else { return Ok(()) };
        match self.lines.get(source) {
            // A login that has read a newer file than this one knows better.
            Some(lines) if lines.version > *version && lines.mark(name) != *mark => Err(format!(
                "user {:?}: its line {name:?} of the source {source} has changed or is gone",
                principal.user
            )),
            _ => Ok(()),
        }
    }

    fn grant(
        &self,
        principal: &Principal,
        client_id: &str,
        common_name: Option<&str>,
    ) -> Result<Grant, String> {
        let Principal { user, tenant, policies, thing, attributes, .. } = principal;
        let set = self.policies.set(policies).map_err(|error| error.to_string())?;
        let value = |variable: &Variable| match variable {
            Variable::ClientId => Some(client_id),
            Variable::ThingName => Some(thing.as_str()),
            Variable::CommonName => common_name,
            Variable::Tenant => Some(tenant.as_str()),
            Variable::User => Some(user.as_str()),
            Variable::Attribute(name) => attributes.get(&**name).map(String::as_str),
        };
        let grant = set.grant(value).map_err(|error| error.to_string())?;
        if !grant.may_connect(client_id) {
            return Err(format!(
                "user {user:?} may not connect as {client_id:?}: no statement of its policies {policies:?} allows \
                 iot:Connect on this client id, or one denies it"
            ));
        }
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn policies(client: &str) -> Policies {
        let document = format!(
            r#"{{"Version": "2012-10-17", "Statement":
                {{"Effect": "Allow", "Action": "iot:Connect", "Resource": "client/{client}"}}}}"#
        );
        Policies::new(vec![Policy::parse("p", &document).unwrap()])
    }

    fn principal(version: u64, mark: u64) -> Principal {
        let line = Line { source: "password".to_owned(), name: "ann".to_owned(), version, mark };
        let policies = vec!["p".to_owned()];
        Principal { user: "ann".to_owned(), policies, line: Some(line), ..Principal::default() }
    }

    fn marks(mark: u64) -> HashMap<String, u64> {
        HashMap::from([("ann".to_owned(), mark)])
    }

    #[test]
    fn a_line_that_changes_or_goes_ends_who_came_by_it() {
        let standing = Standing::new(policies("d1"));
        let mut granted = standing.admit(&principal(1, 7), "d1", None).unwrap();
        let same = standing.with_lines("password", 2, marks(7));
        assert_eq!(same.review(&mut granted, "d1", None), Ok(false));
        assert_eq!(granted.version, same.version);
        let changed = same.with_lines("password", 3, marks(8));
        assert!(changed.review(&mut granted, "d1", None).unwrap_err().contains("\"ann\""));
        assert!(changed.admit(&principal(2, 7), "d1", None).is_err());
        let gone = changed.with_lines("password", 4, HashMap::new());
        assert!(gone.review(&mut granted, "d1", None).is_err());
        // Another source's file says nothing about it.
        let other = standing.with_lines("certificates", 9, HashMap::new());
        assert_eq!(other.review(&mut granted, "d1", None), Ok(false));
    }

    #[test]
    fn a_login_that_has_read_a_newer_file_comes_in() {
        let standing = Standing::new(policies("d1")).with_lines("password", 2, marks(7));
        assert!(standing.admit(&principal(3, 8), "d1", None).is_ok());
    }

    #[test]
    fn other_policies_are_another_grant_or_the_end() {
        let standing = Standing::new(policies("d*"));
        let mut granted = standing.admit(&principal(1, 7), "d1", None).unwrap();
        let narrower = standing.with_policies(policies("d1"));
        assert_eq!(narrower.review(&mut granted, "d1", None), Ok(true));
        assert_eq!(narrower.review(&mut granted, "d1", None), Ok(false));
        let why = narrower.with_policies(policies("d2")).review(&mut granted, "d1", None).unwrap_err();
        assert!(why.contains("may not connect as \"d1\""));
        let none = narrower.with_policies(Policies::new(Vec::new()));
        assert!(none.review(&mut granted, "d1", None).unwrap_err().contains("no policy \"p\""));
    }
}
