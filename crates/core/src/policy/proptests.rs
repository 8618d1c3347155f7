//! The tree against a matcher that looks at one pattern after the other, character by character.

use std::sync::Arc;

use proptest::prelude::*;

use super::document::{Policy, Statement};
use super::pattern::{self, Part};
use super::resource::{Kind, Resource};
use super::*;

/// Whether the parts match, by the definition.
fn matches(parts: &[Part], text: &[char], value: &impl Fn(&Variable) -> Option<&'static str>) -> bool {
    let Some((first, rest)) = parts.split_first() else { return text.is_empty() };
    match first {
        Part::Text(own) => {
            let own: Vec<char> = own.chars().collect();
            text.starts_with(&own) && matches(rest, &text[own.len()..], value)
        }
        Part::One => !text.is_empty() && matches(rest, &text[1..], value),
        Part::Any => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..], value)),
        Part::Variable(variable) => value(variable).is_some_and(|own| {
            let own: Vec<char> = own.chars().collect();
            text.starts_with(&own) && matches(rest, &text[own.len()..], value)
        }),
    }
}

fn decide(
    policy: &Policy,
    action: Action,
    text: &str,
    value: &impl Fn(&Variable) -> Option<&'static str>,
) -> bool {
    let text: Vec<char> = text.chars().collect();
    let says = |deny: bool| {
        policy.statements.iter().filter(|statement| statement.deny == deny).any(|statement| {
            statement.actions.contains(action)
                && statement
                    .resources
                    .iter()
                    .any(|resource| resource.is_of(action.kind()) && matches(&resource.pattern, &text, value))
        })
    };
    !says(true) && says(false)
}

/// Few characters, so that patterns and texts meet often.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[ab/]{0,10}", 1 => "[abü€/*?$]{0,8}"]
}

fn resource_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ab/]{1,3}",
        1 => Just("ü".to_owned()),
        1 => Just("€".to_owned()),
        2 => Just("*".to_owned()),
        1 => Just("?".to_owned()),
        1 => Just("${tenant}".to_owned()),
        1 => Just("${iot:ClientId}".to_owned()),
        1 => Just("${user}".to_owned()),
        1 => Just("${*}".to_owned()),
    ];
    prop::collection::vec(piece, 1..7).prop_map(|pieces| pieces.concat())
}

fn actions() -> impl Strategy<Value = action::Actions> {
    prop::sample::subsequence(Action::ALL.to_vec(), 1..=5).prop_map(|chosen| {
        let mut actions = action::Actions::default();
        for each in chosen {
            actions.add(action::Actions::parse(each.name()).unwrap());
        }
        actions
    })
}

fn a_policy(variables_deny: bool) -> impl Strategy<Value = Policy> {
    let kind = prop_oneof![Just(Kind::Client), Just(Kind::Topic), Just(Kind::TopicFilter)];
    let resource = (kind, resource_text())
        .prop_map(|(kind, text)| Resource { kind: Some(kind), pattern: pattern::parse(&text).unwrap() });
    let statement = (prop::bool::weighted(0.3), actions(), prop::collection::vec(resource, 1..4)).prop_map(
        move |(deny, actions, mut resources)| {
            if deny && !variables_deny {
                let plain = |resource: &Resource| {
                    !resource.pattern.iter().any(|part| matches!(part, Part::Variable(_)))
                };
                resources.retain(plain);
            }
            Statement { deny, actions, resources }
        },
    );
    prop::collection::vec(statement, 0..12).prop_map(|statements| Policy { name: "p".to_owned(), statements })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_tree_decides_as_the_definition_does(
        policy in a_policy(false),
        texts in prop::collection::vec(text(), 1..12),
    ) {
        // The user has no value.
        let value = |variable: &Variable| match variable {
            Variable::Tenant => Some("a"),
            Variable::ClientId => Some("ba"),
            _ => None,
        };
        let grant = Arc::new(PolicySet::compile([&policy])).grant(value).unwrap();
        for text in &texts {
            prop_assert_eq!(grant.may_connect(text), decide(&policy, Action::Connect, text, &value));
            prop_assert_eq!(grant.may_subscribe(text), decide(&policy, Action::Subscribe, text, &value));
            prop_assert_eq!(grant.may_receive(text), decide(&policy, Action::Receive, text, &value));
            let publish = decide(&policy, Action::Publish, text, &value);
            prop_assert_eq!(grant.may_publish(text, false), publish);
            let retain = decide(&policy, Action::RetainPublish, text, &value);
            prop_assert_eq!(grant.may_publish(text, true), publish && retain);
        }
    }

    #[test]
    fn with_all_values_denials_by_variables_hold_too(
        policy in a_policy(true),
        texts in prop::collection::vec(text(), 1..12),
    ) {
        let value = |variable: &Variable| Some(if *variable == Variable::Tenant { "a" } else { "ba" });
        let grant = Arc::new(PolicySet::compile([&policy])).grant(value).unwrap();
        for text in &texts {
            prop_assert_eq!(grant.may_receive(text), decide(&policy, Action::Receive, text, &value));
        }
    }

    #[test]
    fn a_document_is_parsed_or_refused_and_never_panics(text in ".{0,300}", resource in ".{0,60}") {
        let _ = Policy::parse("p", &text);
        let statement = serde_json::json!({"Effect": "Allow", "Action": "iot:*", "Resource": resource});
        let document = serde_json::json!({"Version": "2012-10-17", "Statement": statement});
        if let Ok(policy) = Policy::parse("p", &document.to_string()) {
            let grant = Arc::new(PolicySet::compile([&policy])).grant(|_| Some("x")).unwrap();
            grant.may_publish(&text, true);
        }
    }

    #[test]
    fn what_is_written_out_parses_to_the_same(
        pieces in prop::collection::vec(resource_text(), 1..3),
    ) {
        let parts = pattern::parse(&pieces.concat()).unwrap();
        let written: String = parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.replace('*', "${*}").replace('?', "${?}"),
                Part::One => "?".to_owned(),
                Part::Any => "*".to_owned(),
                Part::Variable(variable) => variable.to_string(),
            })
            .collect();
        prop_assert_eq!(pattern::parse(&written).unwrap(), parts);
    }
}
