//! What a policy of a thousand statements costs for each message.
//!
//! `cargo bench -p headwater-core --bench policy`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use headwater_core::policy::{Grant, Policy, PolicySet, Variable};

const STATEMENTS: usize = 1000;

/// A thousand statements, each by `resource` of its number.
fn grant(resource: impl Fn(usize) -> String, deny: bool) -> Grant {
    let statements: Vec<serde_json::Value> = (0..STATEMENTS)
        .map(|number| {
            let effect = if deny && number % 10 == 9 { "Deny" } else { "Allow" };
            let actions = ["iot:Publish", "iot:Receive"];
            serde_json::json!({"Effect": effect, "Action": actions, "Resource": resource(number)})
        })
        .collect();
    let document = serde_json::json!({"Version": "2012-10-17", "Statement": statements});
    let policy = Policy::parse("bench", &document.to_string()).expect("a valid policy");
    let value = |variable: &Variable| match variable {
        Variable::Tenant => Some("acme"),
        _ => Some("d000001"),
    };
    Arc::new(PolicySet::compile([&policy])).grant(value).expect("every variable has a value")
}

/// Name, resource by number, whether every tenth statement denies, topic.
type Case<'a> = (&'a str, &'a dyn Fn(usize) -> String, bool, &'a str);

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy of 1000 statements");
    let cases: [Case<'_>; 6] = [
        ("exact topics", &|n| format!("topic/dt/site{n:04}/telemetry"), false, "dt/site0{}/telemetry"),
        ("prefixes", &|n| format!("topic/dt/site{n:04}/*"), false, "dt/site0{}/d000001/telemetry"),
        (
            "prefixes, some denied",
            &|n| format!("topic/dt/site{n:04}/*"),
            true,
            "dt/site0{}/d000001/telemetry",
        ),
        (
            "tenant and client",
            &|n| format!("topic/${{tenant}}/app{n:04}/${{iot:ClientId}}/*"),
            false,
            "acme/app0{}/d000001/telemetry",
        ),
        ("suffixes", &|n| format!("topic/*/kind{n:04}"), false, "dt/paris/d000001/kind0{}"),
        ("two stars", &|n| format!("topic/*/kind{n:04}/*/set"), false, "dt/d000001/kind0{}/value/set"),
    ];
    for (name, resource, deny, topic) in cases {
        let grant = grant(resource, deny);
        // Never a number that is denied, so that both trees are walked.
        let topics: Vec<String> =
            (0..100).map(|id| topic.replace("{}", &format!("{:03}", id * 10 + 1))).collect();
        assert!(topics.iter().all(|topic| grant.may_publish(topic, false)), "{name}");
        group.throughput(Throughput::Elements(topics.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| topics.iter().filter(|topic| grant.may_publish(black_box(topic), false)).count());
        });
        let others: Vec<String> = topics.iter().map(|topic| format!("{topic}x").replace("0", "1")).collect();
        group.bench_function(format!("{name}, another topic"), |b| {
            b.iter(|| others.iter().filter(|topic| grant.may_publish(black_box(topic), false)).count());
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
