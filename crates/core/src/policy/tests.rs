use std::sync::Arc;

use super::*;

fn policy(statements: &str) -> Policy {
    Policy::parse("p", &format!(r#"{{"Version": "2012-10-17", "Statement": [{statements}]}}"#)).unwrap()
}

fn statement(effect: &str, action: &str, resource: &str) -> String {
    format!(r#"{{"Effect": "{effect}", "Action": "{action}", "Resource": "{resource}"}}"#)
}

fn value<'a>(variable: &Variable) -> Option<&'a str> {
    match variable {
        Variable::ClientId => Some("d1"),
        Variable::Tenant => Some("acme"),
        Variable::User => Some("a/b"),
        Variable::Attribute(name) if &**name == "line" => Some("7"),
        _ => None,
    }
}

fn grant(statements: &[String]) -> Grant {
    Arc::new(PolicySet::compile([&policy(&statements.join(","))])).grant(value).unwrap()
}

/// Whether `resource` allows publishing to `topic`.
fn publishes(resource: &str, topic: &str) -> bool {
    grant(&[statement("Allow", "iot:Publish", resource)]).may_publish(topic, false)
}

#[test]
fn nothing_is_allowed_unless_a_statement_allows_it() {
    let grant = grant(&[statement("Allow", "iot:Connect", "client/d1")]);
    assert!(grant.may_connect("d1"));
    assert!(!grant.may_connect("d2") && !grant.may_connect("d") && !grant.may_connect("d11"));
    assert!(!grant.may_publish("d1", false) && !grant.may_subscribe("d1") && !grant.may_receive("d1"));
}

#[test]
fn a_statement_that_denies_wins_wherever_it_stands() {
    let mut statements =
        vec![statement("Deny", "iot:Publish", "topic/a/secret/*"), statement("Allow", "iot:*", "*")];
    for _ in 0..2 {
        let grant = grant(&statements);
        assert!(grant.may_publish("a/b", true) && grant.may_receive("a/secret/x"));
        assert!(!grant.may_publish("a/secret/x", false));
        statements.reverse();
    }
}

#[test]
fn wildcards() {
    for (resource, topic) in [
        ("topic/*", "a/b"),
        ("topic/a/*", "a/b/c"),
        ("topic/a/*", "a/"),
        ("topic/a*", "a"),
        ("topic/*/b", "x/y/b"),
        ("topic/a/?/c", "a/b/c"),
        ("topic/a/?/c", "a/ü/c"),
        ("topic/a/**", "a/"),
        ("topic/*a*a*b", "aaab"),
        ("topic/a${*}b${?}c${$}", "a*b?c$"),
        ("topic/$aws/things/${iot:ClientId}/shadow/*", "$aws/things/d1/shadow/update"),
        ("arn:aws:iot:eu-west-1:123456789012:topic/a/*", "a/b"),
        ("arn:aws:iot:*:*:topic/a:b", "a:b"),
        ("arn:aws:iot:eu-west-1:123456789012:*", "a"),
        ("*", "a"),
        ("topic/t/${tenant}/*", "t/acme/x"),
        ("topic/t/${tenant}${attributes.line}", "t/acme7"),
        ("topic/t/${iot:Connection.Thing.Attributes[line]}", "t/7"),
    ] {
        assert!(publishes(resource, topic), "{resource} {topic}");
    }
    for (resource, topic) in [
        ("topic/a/*", "a"),
        ("topic/a/?", "a/"),
        ("topic/a/?", "a/bc"),
        ("topic/a*??", "a€"),
        ("topic/*/b", "b"),
        ("topic/*a*a*b", "aab_"),
        ("topic/a${*}b", "axb"),
        ("topic/a/+", "a/b"),
        ("topic/a/#", "a/b"),
        ("topic/t/${tenant}/*", "t/acme"),
        ("topic/t/${tenant}/*", "t/acme2/x"),
        ("topic/A", "a"),
    ] {
        assert!(!publishes(resource, topic), "{resource} {topic}");
    }
}

#[test]
fn filters_are_compared_as_texts() {
    let may = |resource: &str, filter: &str| {
        grant(&[statement("Allow", "iot:Subscribe", resource)]).may_subscribe(filter)
    };
    assert!(
        may("topicfilter/a/#", "a/#") && may("topicfilter/a/*", "a/+/b") && may("topicfilter/a/*", "a/#")
    );
    assert!(
        !may("topicfilter/a/+/b", "a/x/b") && !may("topicfilter/a/b", "a/+") && !may("topicfilter/a/b", "#")
    );
    // Of a shared subscription the filter behind its group.
    assert!(may("topicfilter/a/*", "$share/g/a/b"));
    assert!(!may("topicfilter/a/*", "$share/g/b") && !may("topicfilter/$share/*", "$share/g/b"));
    let denied = grant(&[
        statement("Allow", "iot:Subscribe", "topicfilter/*"),
        statement("Deny", "iot:Subscribe", "topicfilter/$share/*"),
    ]);
    assert!(denied.may_subscribe("a") && !denied.may_subscribe("$share/g/a"));
}

#[test]
fn retain_needs_a_permission_of_its_own() {
    let plain = grant(&[statement("Allow", "iot:Publish", "topic/a")]);
    assert!(plain.may_publish("a", false) && !plain.may_publish("a", true));
    let only = grant(&[statement("Allow", "iot:RetainPublish", "topic/a")]);
    assert!(!only.may_publish("a", true));
    let both = grant(&[
        statement("Allow", "iot:Publish", "topic/a"),
        statement("Allow", "iot:retainpublish", "topic/a"),
    ]);
    assert!(both.may_publish("a", true));
}

#[test]
fn values_that_are_no_topic_level_match_no_topic_and_no_filter() {
    // The user is `a/b`.
    assert!(!publishes("topic/u/${user}/x", "u/a/b/x"));
    assert!(grant(&[statement("Allow", "iot:Connect", "client/${user}")]).may_connect("a/b"));
    // No thing is known.
    assert!(!publishes("topic/${iot:Connection.Thing.ThingName}", ""));
    for hostile in ["+", "#", "a/b", "a\0"] {
        let statements = [
            statement("Allow", "iot:Subscribe", "topicfilter/dt/${iot:ClientId}/#"),
            statement("Allow", "iot:Publish", "topic/dt/${iot:ClientId}/x"),
        ];
        let set = Arc::new(PolicySet::compile([&policy(&statements.join(","))]));
        let grant = set.grant(|_| Some(hostile)).unwrap();
        assert!(!grant.may_subscribe(&format!("dt/{hostile}/#")), "{hostile:?}");
        assert!(!grant.may_publish(&format!("dt/{hostile}/x"), false), "{hostile:?}");
    }
}

#[test]
fn a_value_is_text_and_never_a_wildcard() {
    let set = PolicySet::compile([&policy(&statement("Allow", "iot:Publish", "topic/dt/${iot:ClientId}"))]);
    let grant = Arc::new(set).grant(|_| Some("*")).unwrap();
    assert!(grant.may_publish("dt/*", false) && !grant.may_publish("dt/x", false));
}

#[test]
fn what_denies_by_a_variable_without_a_value_gives_no_grant() {
    let statements = [
        statement("Allow", "iot:*", "*"),
        statement("Deny", "iot:Publish", "topic/t/${iot:Certificate.Subject.CommonName}/*"),
    ];
    let set = Arc::new(PolicySet::compile([&policy(&statements.join(","))]));
    let refused = set.grant(value).unwrap_err().to_string();
    assert!(
        refused.contains("\"p\" denies by ${iot:Certificate.Subject.CommonName}, which is unknown"),
        "{refused}"
    );
    let refused = set.grant(|_| Some("a/b")).unwrap_err().to_string();
    assert!(refused.contains("no single topic level"), "{refused}");
    assert!(!set.grant(|_| Some("c")).unwrap().may_publish("t/c/x", false));
}

#[test]
fn texts_beyond_the_bound_are_denied() {
    let long = "a".repeat(5000);
    assert!(!publishes("topic/a*a", &long));
    // Where everything is allowed nobody looks.
    let all = Arc::new(PolicySet::allow_all()).grant(|_| None).unwrap();
    assert!(all.may_publish(&long, true) && all.may_receive(&long) && all.allows_all(Action::Receive));
}

#[test]
fn many_stars_cost_no_more_than_nodes_times_bytes() {
    // Backtracking would take 4096^19 steps.
    let resource = format!("topic/{}b", "a*".repeat(20));
    assert!(!publishes(&resource, &"a".repeat(4096)));
}

#[test]
fn sets_are_shared_and_bounded() {
    let named = |name: &str| {
        let json =
            format!(r#"{{"Version": "2012-10-17", "Statement": {}}}"#, statement("Allow", "iot:*", "*"));
        Policy::parse(name, &json).unwrap()
    };
    let policies = Policies::new((0..1030).map(|n| named(&format!("p{n}"))).collect());
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let one = policies.set(&names(&["p1", "p0"])).unwrap();
    assert!(Arc::ptr_eq(&one, &policies.set(&names(&["p0", "p1", "p1"])).unwrap()));
    let refused = policies.set(&names(&["p0", "nobody"])).unwrap_err().to_string();
    assert!(refused.contains("there is no policy \"nobody\""), "{refused}");
    let mut held: Vec<_> = (0..1023).map(|n| policies.set(&[format!("p{n}")]).unwrap()).collect();
    assert_eq!(policies.set(&names(&["p1029"])).err(), Some(SetError::TooMany));
    held.pop();
    assert!(policies.set(&names(&["p1029"])).is_ok());
}

#[test]
fn no_policy_allows_nothing() {
    let none = Arc::new(PolicySet::compile([])).grant(value).unwrap();
    assert!(!none.may_connect("d1") && !none.may_receive("a"));
}

#[test]
fn mistakes_name_statement_field_what_was_found_and_the_remedy() {
    let whole = |json: &str| Policy::parse("p", json).unwrap_err().to_string();
    let one = |statement: &str| {
        whole(&format!(r#"{{"Version": "2012-10-17", "Statement": [{{"Sid": "s", {statement}}}]}}"#))
    };
    let good = r#""Effect": "Allow", "Action": "iot:Publish", "Resource": "topic/a""#;
    for (error, expected) in [
        (whole("{"), r#"policy "p": found no JSON"#),
        (whole("[]"), r#"policy "p": found []; write {"Version""#),
        (whole(r#"{"Statement": []}"#), r#"policy "p", Version: found nothing; write "2012-10-17""#),
        (whole(r#"{"Version": "2008-10-17"}"#), r#"Version: found "2008-10-17""#),
        (whole(r#"{"Version": "2012-10-17", "Statement": []}"#), "Statement: found []; write a list"),
        (whole(r#"{"Version": "2012-10-17", "Statements": []}"#), r#"found "Statements"; a policy has"#),
        (whole(r#"{"Version": "2012-10-17", "Statement": [1]}"#), "statement 1: found 1; a statement has"),
        (
            one(r#""Effect": "allow""#),
            r#"statement 1 (Sid "s"), Effect: found "allow"; write "Allow" or "Deny""#,
        ),
        (one(r#""Effect": "Allow", "Action": []"#), "Action: found []; write a text, or a list"),
        (one(r#""Effect": "Allow", "Action": ["iot:Publish", 1]"#), "Action: found [\"iot:Publish\",1]"),
        (one(r#""Effect": "Allow", "Action": "iot:UpdateThingShadow""#), "shadows and jobs are reached by"),
        (one(r#""Effect": "Allow", "Action": "iot:Publish""#), "Resource: found nothing"),
        (one(&good.replace("topic/a", "topics/a")), r#"Resource: found "topics/a"; write client/CLIENT_ID"#),
        (one(&good.replace("topic/a", "topic/")), "topic/* is all of them"),
        (one(&good.replace("topic/a", "topicfilter/a")), "none of the statement's actions is about it"),
        (one(&good.replace("topic/a", "arn:aws:s3:::topic/a")), "write arn:aws:iot:REGION:ACCOUNT:topic/"),
        (
            one(&good.replace("topic/a", "topic/${iot:ClientID}")),
            "there is no variable ${iot:ClientID}; there are",
        ),
        (one(&good.replace("topic/a", "topic/${tenant")), "ends with }"),
        (
            one(&good.replace("\"iot:Publish\"", "[\"iot:Publish\", \"iot:Connect\"]")),
            "iot:Connect has no resource",
        ),
        (one(&format!(r#"{good}, "NotAction": "x""#)), "NotAction: found \"x\"; it is not supported; name"),
        (one(&format!(r#"{good}, "NotResource": "x""#)), "NotResource: found \"x\"; it is not supported"),
        (
            one(&format!(r#"{good}, "Condition": {{}}"#)),
            "Condition: found {}; it is not supported; use variables",
        ),
        (one(&format!(r#"{good}, "Principal": "*""#)), "Principal: found \"*\""),
        (one(&format!(r#"{good}, "Efect": "*""#)), r#"found "Efect"; a statement has"#),
    ] {
        assert!(error.contains(expected), "{error}\nlacks\n{expected}");
    }
}
