//! Policy variables: what a document leaves open until somebody connects.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Variable {
    ClientId,
    /// The client id, where the identity vouches for it.
    ThingName,
    /// Of the client certificate's subject.
    CommonName,
    Tenant,
    User,
    /// What the identity source says beside these.
    Attribute(Box<str>),
}

/// Written out for those who look for the right one.
pub(super) const KNOWN: &str = "${iot:ClientId}, ${iot:Connection.Thing.ThingName}, \
    ${iot:Certificate.Subject.CommonName}, ${tenant}, ${user}, ${attributes.NAME}, and ${*}, ${?}, ${$} for the \
    characters themselves";

impl Variable {
    /// The text between `${` and `}`.
    pub fn parse(name: &str) -> Option<Variable> {
        Some(match name {
            "iot:ClientId" => Variable::ClientId,
            "iot:Connection.Thing.ThingName" => Variable::ThingName,
            "iot:Certificate.Subject.CommonName" => Variable::CommonName,
            "tenant" => Variable::Tenant,
            "user" => Variable::User,
            _ => {
                let aws = name.strip_prefix("iot:Connection.Thing.Attributes[");
                let attribute = match aws {
                    Some(rest) => rest.strip_suffix(']')?,
                    None => name.strip_prefix("attributes.")?,
                };
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':');
                if attribute.is_empty() || attribute.len() > 128 || !attribute.bytes().all(plain) {
                    return None;
                }
                Variable::Attribute(attribute.into())
            }
        })
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Variable::ClientId => "${iot:ClientId}",
            Variable::ThingName => "${iot:Connection.Thing.ThingName}",
            Variable::CommonName => "${iot:Certificate.Subject.CommonName}",
            Variable::Tenant => "${tenant}",
            Variable::User => "${user}",
            Variable::Attribute(name) => return write!(out, "${{attributes.{name}}}"),
        })
    }
}
