//! The pattern of a resource: text, `*`, `?` and variables.

use super::variable::{KNOWN, Variable};

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
    Text(Box<str>),
    /// `?`: one character.
    One,
    /// `*`: any number of characters, `/` among them.
    Any,
    Variable(Variable),
}

/// Parses what stands behind `topic/`. MQTT's `+` and `#` are text like any other. Errors say how to fix it.
pub(super) fn parse(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let part;
        (part, rest) = match first {
            '*' => (Part::Any, &rest[1..]),
            '?' => (Part::One, &rest[1..]),
            '$' if rest[1..].starts_with('{') => {
                let Some((name, behind)) = rest[2..].split_once('}') else {
                    return Err("a variable that begins with ${ ends with }".to_owned());
                };
                (variable(name)?, behind)
            }
            _ => {
                // A `$` that begins no variable is text, as in `$aws/...`.
                let ends = |(at, char)| at > 0 && matches!(char, '*' | '?' | '$');
                let end = rest.char_indices().find(|found| ends(*found)).map_or(rest.len(), |(at, _)| at);
                (Part::Text(rest[..end].into()), &rest[end..])
            }
        };
        match (parts.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(more)) => {
                *before = [&**before, &*more].concat().into();
            }
            (Some(Part::Any), Part::Any) => {}
            (_, part) => parts.push(part),
        }
    }
    Ok(parts)
}

fn variable(name: &str) -> Result<Part, String> {
    if let "*" | "?" | "$" = name {
        return Ok(Part::Text(name.into()));
    }
    Variable::parse(name)
        .map(Part::Variable)
        .ok_or_else(|| format!("there is no variable ${{{name}}}; there are {KNOWN}"))
}
