//! Resources: `topic/a/*`, or in full `arn:aws:iot:eu-west-1:123456789012:topic/a/*`, whose region and account
//! are read past: there is one region and one account here.

use super::pattern::{self, Part};

/// Longest resource, bytes. Ours; a matcher's depth is bound by it.
const MAX_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Client,
    Topic,
    TopicFilter,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// `None`: `*`, all of every kind.
    pub kind: Option<Kind>,
    pub pattern: Vec<Part>,
}

impl Resource {
    /// Errors say how to fix it.
    pub fn parse(text: &str) -> Result<Resource, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("a resource has at most {MAX_BYTES} bytes"));
        }
        let short = match text.strip_prefix("arn:") {
            None => text,
            Some(rest) => {
                let parts: Vec<&str> = rest.splitn(5, ':').collect();
                match parts[..] {
                    [_, "iot", _, _, short] => short,
                    _ => {
                        return Err(
                            "write arn:aws:iot:REGION:ACCOUNT:topic/..., or topic/... alone".to_owned()
                        );
                    }
                }
            }
        };
        if short == "*" {
            return Ok(Resource { kind: None, pattern: vec![Part::Any] });
        }
        let kinds = [("client/", Kind::Client), ("topic/", Kind::Topic), ("topicfilter/", Kind::TopicFilter)];
        for (prefix, kind) in kinds {
            if let Some(pattern) = short.strip_prefix(prefix) {
                if pattern.is_empty() {
                    return Err(format!("write what follows {prefix}; {prefix}* is all of them"));
                }
                return Ok(Resource { kind: Some(kind), pattern: pattern::parse(pattern)? });
            }
        }
        Err("write client/CLIENT_ID, topic/TOPIC, topicfilter/FILTER (with * and ?), or * for everything"
            .to_owned())
    }

    pub fn is_of(&self, kind: Kind) -> bool {
        self.kind.is_none_or(|own| own == kind)
    }
}
