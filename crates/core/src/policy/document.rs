//! A policy document: JSON as AWS writes it, checked field by field. What would be stored and not obeyed is refused.

use serde_json::{Map, Value};

use super::action::{Action, Actions};
use super::error::PolicyError;
use super::resource::Resource;

/// Largest document, bytes. Ours.
const MAX_BYTES: usize = 1 << 20;
const VERSION: &str = "2012-10-17";

/// A document that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: String,
    pub(super) statements: Vec<Statement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub deny: bool,
    pub actions: Actions,
    pub resources: Vec<Resource>,
}

/// Where in a document something stands.
struct Place<'a> {
    policy: &'a str,
    statement: Option<(usize, Option<&'a str>)>,
}

impl Place<'_> {
    fn error(&self, field: &'static str, found: impl Into<String>, fix: impl Into<String>) -> PolicyError {
        let statement = self.statement.map(|(number, sid)| (number, sid.map(str::to_owned)));
        PolicyError { policy: self.policy.to_owned(), statement, field, found: found.into(), fix: fix.into() }
    }
}

impl Policy {
    pub fn parse(name: &str, json: &str) -> Result<Policy, PolicyError> {
        let place = Place { policy: name, statement: None };
        if json.len() > MAX_BYTES {
            let found = format!("{} bytes", json.len());
            return Err(place.error("", found, format!("a policy has at most {MAX_BYTES} bytes")));
        }
        let document: Value = serde_json::from_str(json)
            .map_err(|error| place.error("", format!("no JSON: {error}"), "correct it there"))?;
        let fields = document.as_object().ok_or_else(|| {
            place.error("", shown(&document), r#"write {"Version": "2012-10-17", "Statement": [...]}"#)
        })?;
        let mut statements = None;
        let mut version = None;
        for (key, value) in fields {
            match key.as_str() {
                "Version" => version = Some(value),
                "Statement" => statements = Some(value),
                "Id" => {}
                other => {
                    return Err(place.error("", format!("{other:?}"), "a policy has Version and Statement"));
                }
            }
        }
        if version.and_then(Value::as_str) != Some(VERSION) {
            let found = version.map_or("nothing".to_owned(), shown);
            return Err(place.error("Version", found, format!("write \"{VERSION}\", which has variables")));
        }
        let one;
        let statements = match statements {
            Some(Value::Array(statements)) if !statements.is_empty() => statements,
            Some(value @ Value::Object(_)) => {
                one = vec![value.clone()];
                &one
            }
            other => {
                let found = other.map_or("nothing".to_owned(), shown);
                return Err(place.error("Statement", found, "write a list with one statement or more"));
            }
        };
        let parsed = |(at, value)| statement(name, at + 1, value);
        let statements = statements.iter().enumerate().map(parsed).collect::<Result<_, _>>()?;
        Ok(Policy { name: name.to_owned(), statements })
    }
}

fn statement(policy: &str, number: usize, value: &Value) -> Result<Statement, PolicyError> {
    let place = Place { policy, statement: Some((number, None)) };
    let Some(fields) = value.as_object() else {
        return Err(place.error("", shown(value), "a statement has Effect, Action and Resource"));
    };
    let sid = fields.get("Sid").and_then(Value::as_str);
    let place = Place { policy, statement: Some((number, sid)) };
    for (key, value) in fields {
        let (field, fix) = match key.as_str() {
            "Effect" | "Action" | "Resource" | "Sid" => continue,
            "NotAction" => ("NotAction", "it is not supported; name the actions in Action"),
            "NotResource" => (
                "NotResource",
                "it is not supported; name the resources, and deny the others in another statement",
            ),
            "Condition" => ("Condition", "it is not supported; use variables in Resource"),
            "Principal" | "NotPrincipal" => {
                ("Principal", "it is not supported; identities name their policies, not the reverse")
            }
            other => {
                let fix = "a statement has Effect, Action, Resource and Sid";
                return Err(place.error("", format!("{other:?}"), fix));
            }
        };
        return Err(place.error(field, shown(value), fix));
    }
    let deny = match fields.get("Effect").and_then(Value::as_str) {
        Some("Allow") => false,
        Some("Deny") => true,
        _ => return Err(place.error("Effect", found(fields, "Effect"), "write \"Allow\" or \"Deny\"")),
    };
    let mut actions = Actions::default();
    let named = texts(&place, fields, "Action")?;
    // Of `iot:*` only those count that the resources are about.
    let every = named.iter().any(|text| text.contains('*'));
    for text in named {
        let Some(named) = Actions::parse(text) else {
            let known = Action::ALL.map(Action::name).join(", ");
            let fix = format!(
                "write {known} or iot:*; over MQTT shadows and jobs are reached by publishing and subscribing, so \
                 their own actions decide nothing here"
            );
            return Err(place.error("Action", format!("{text:?}"), fix));
        };
        actions.add(named);
    }
    let mut resources = Vec::new();
    for text in texts(&place, fields, "Resource")? {
        let resource =
            Resource::parse(text).map_err(|fix| place.error("Resource", format!("{text:?}"), fix))?;
        if !actions.each().any(|action| resource.is_of(action.kind())) {
            let fix = "none of the statement's actions is about it: iot:Connect is about client/..., iot:Subscribe \
                       about topicfilter/..., the others about topic/...";
            return Err(place.error("Resource", format!("{text:?}"), fix));
        }
        resources.push(resource);
    }
    let idle = |action: &Action| !resources.iter().any(|each| each.is_of(action.kind()));
    if let Some(action) = actions.each().find(idle).filter(|_| !every) {
        let fix = format!("{} has no resource here; name one, or leave the action out", action.name());
        return Err(place.error("Resource", found(fields, "Resource"), fix));
    }
    Ok(Statement { deny, actions, resources })
}

/// A text or a list of texts, at least one.
fn texts<'a>(
    place: &Place<'_>,
    fields: &'a Map<String, Value>,
    field: &'static str,
) -> Result<Vec<&'a str>, PolicyError> {
    let texts = match fields.get(field) {
        Some(Value::String(text)) => Some(vec![text.as_str()]),
        Some(Value::Array(list)) if !list.is_empty() => list.iter().map(Value::as_str).collect(),
        _ => None,
    };
    texts.ok_or_else(|| {
        place.error(field, found(fields, field), "write a text, or a list of texts with at least one")
    })
}

fn found(fields: &Map<String, Value>, field: &str) -> String {
    fields.get(field).map_or("nothing".to_owned(), shown)
}

/// A value as it stands in the document, cut where it is long.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 100 {
        let mut end = 100;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}
