//! Every property in every packet of a client: where it may stand, twice, cut short, and with values out of range
//! (sections 2.2.2 and 3.x.2). The table is written from the standard and shares nothing with the parser.

use super::notation::{pattern, variable, written};
use super::peer::Peer;
use crate::mqtt::Version;
use crate::net::tests::Fixture;

struct Rule {
    name: &'static str,
    id: u8,
    /// A good value.
    value: &'static str,
    /// Packets of a client that may carry it, by their letters in [`PACKETS`].
    packets: &'static str,
    /// Values that are out of range, with the reason code.
    bad: &'static [(&'static str, &'static str)],
}

const fn rule(
    name: &'static str,
    id: u8,
    value: &'static str,
    packets: &'static str,
    bad: &'static [(&'static str, &'static str)],
) -> Rule {
    Rule { name, id, value, packets, bad }
}

const NOT_BOOLEAN: &[(&str, &str)] = &[("02", "82"), ("ff", "82")];
const TEXT: &[(&str, &str)] =
    &[("s{ 6100 }", "81"), ("s{ eda080 }", "81"), ("s{ c0af }", "81"), ("0005 \"abc\"", "81")];

#[rustfmt::skip]
const RULES: [Rule; 27] = [
    rule("payload_format", 0x01, "01", "pw", NOT_BOOLEAN),
    rule("message_expiry", 0x02, "0000003c", "pw", &[]),
    rule("content_type", 0x03, "'text'", "pw", TEXT),
    rule("response_topic", 0x08, "'r'", "pw", &[("'a/+'", "82"), ("'#'", "82"), ("s{ 6100 }", "81"), ("s{ ff }", "81")]),
    rule("correlation_data", 0x09, "s{ 00ff }", "pw", &[("0005 \"abc\"", "81")]),
    rule("subscription_identifier", 0x0b, "01", "s", &[("00", "82"), ("ffffffff7f", "81"), ("8000", "81")]),
    rule("session_expiry", 0x11, "0000003c", "cd", &[]),
    rule("assigned_client_identifier", 0x12, "'a'", "", TEXT),
    rule("server_keep_alive", 0x13, "000a", "", &[]),
    rule("authentication_method", 0x15, "'m'", "ca", TEXT),
    rule("authentication_data", 0x16, "s{ 01 }", "ca", &[]),
    rule("request_problem_information", 0x17, "01", "c", NOT_BOOLEAN),
    rule("will_delay", 0x18, "00000001", "w", &[]),
    rule("request_response_information", 0x19, "01", "c", NOT_BOOLEAN),
    rule("response_information", 0x1a, "'r'", "", TEXT),
    rule("server_reference", 0x1c, "'r'", "d", TEXT),
    rule("reason_string", 0x1f, "'r'", "1234da", TEXT),
    rule("receive_maximum", 0x21, "000a", "c", &[("0000", "82")]),
    rule("topic_alias_maximum", 0x22, "000a", "c", &[]),
    rule("topic_alias", 0x23, "0001", "p", &[("0000", "94"), ("ffff", "94")]),
    rule("maximum_qos", 0x24, "01", "", NOT_BOOLEAN),
    rule("retain_available", 0x25, "01", "", NOT_BOOLEAN),
    rule("user_property", 0x26, "'k' 'v'", "cpw1234suda", &[("'k'", "81"), ("'k' s{ 00 }", "81"), ("s{ ff } 'v'", "81")]),
    rule("maximum_packet_size", 0x27, "00001000", "c", &[("00000000", "82")]),
    rule("wildcard_subscription_available", 0x28, "01", "", NOT_BOOLEAN),
    rule("subscription_identifier_available", 0x29, "01", "", NOT_BOOLEAN),
    rule("shared_subscription_available", 0x2a, "01", "", NOT_BOOLEAN),
];

/// Identifier of a property by its name here.
pub fn id(name: &str) -> Option<u8> {
    RULES.iter().find(|rule| rule.name == name).map(|rule| rule.id)
}

/// The packets of a client: letter, what stands before and behind the properties, and the answer where all is well.
#[rustfmt::skip]
const PACKETS: [(char, &str, &str, &str); 11] = [
    ('c', "10 { 'MQTT' 05 02 0000 {", "} 'peer' }", "20 { 00 00 .. }"),
    ('w', "10 { 'MQTT' 05 06 0000 00 'peer' {", "} 'will' 'gone' }", "20 { 00 00 .. }"),
    ('p', "32 { 't' 0001 {", "} \"payload\" }", "40 { 0001 }"),
    ('1', "40 { 0001 00 {", "} } c000", "d0 {}"),
    ('2', "50 { 0001 00 {", "} }", "62 { 0001 92 }"),
    ('3', "62 { 0001 00 {", "} }", "70 { 0001 92 }"),
    ('4', "70 { 0001 00 {", "} } c000", "d0 {}"),
    ('s', "82 { 0001 {", "} 't' 00 }", "90 { 0001 00 00 }"),
    ('u', "a2 { 0001 {", "} 't' }", "b0 { 0001 00 11 }"),
    // What ends the connection without an error ends it without a word.
    ('d', "e0 { 00 {", "} }", ""),
    ('a', "f0 { 18 {", "} }", ""),
];

struct Try<'a> {
    fixture: &'a Fixture,
    count: usize,
    failures: Vec<String>,
}

impl Try<'_> {
    /// Sends a packet with these properties. code: what must come of it; empty: what comes where all is well
    fn packet(&mut self, what: &str, letter: char, properties: &str, code: &str) {
        self.count += 1;
        let (_, before, behind, good) = PACKETS[PACKETS.iter().position(|each| each.0 == letter).unwrap()];
        let sent = written(&format!("{before} {properties} {behind}"), Version::V5).unwrap();
        let mut peer = Peer::open(self.fixture.gateway().address());
        let connecting = matches!(letter, 'c' | 'w');
        let wanted = match (code, connecting) {
            ("", _) => good.to_owned(),
            (code, true) => format!("20 {{ 00 {code} .. }}"),
            (code, false) => format!("e0 {{ {code} .. }}"),
        };
        let outcome = (|| {
            if !connecting {
                peer.send(&written("10 { 'MQTT' 05 02 0000 { 11 0000000a } 'peer' }", Version::V5)?);
                peer.expect(&pattern("20 { 00 00 .. }", Version::V5)?)?;
            }
            peer.send(&sent);
            if !wanted.is_empty() {
                peer.expect(&pattern(&wanted, Version::V5)?)?;
            }
            if wanted.is_empty() || !code.is_empty() { peer.expect_end() } else { Ok(()) }
        })();
        if let Err(error) = outcome {
            self.failures.push(format!("{what} in packet {letter}, wanted {wanted}: {error}"));
        }
    }
}

/// What a property comes to that may stand in the packet, where that is more than its form.
fn meaning(rule: &Rule, letter: char) -> &'static str {
    match (rule.name, letter) {
        // No enhanced authentication here: CONNECT says which is not supported, AUTH was never agreed on.
        ("authentication_method", 'c') => "8c",
        ("authentication_data", 'c' | 'a') => "82",
        (_, 'a') => "82",
        // Only a server has a reference to give (section 3.14.2.2.5).
        ("server_reference", 'd') => "82",
        _ => "",
    }
}

#[test]
fn every_property_in_every_packet() {
    let fixture = Fixture::new();
    let mut try_it = Try { fixture: &fixture, count: 0, failures: Vec::new() };
    for rule in &RULES {
        let good = format!("{:02x} {}", rule.id, rule.value);
        for (letter, ..) in PACKETS {
            if !rule.packets.contains(letter) {
                // A subscription identifier may stand in a PUBLISH, but not in one from a client [MQTT-3.3.4-6].
                let code = if (rule.name, letter) == ("subscription_identifier", 'p') { "82" } else { "81" };
                try_it.packet(rule.name, letter, &good, code);
                continue;
            }
            let fine = meaning(rule, letter);
            try_it.packet(rule.name, letter, &good, fine);
            let twice = format!("{good} {good}");
            let often = rule.name == "user_property";
            try_it.packet(&format!("{} twice", rule.name), letter, &twice, if often { fine } else { "82" });
            try_it.packet(&format!("{} cut", rule.name), letter, &format!("{:02x}", rule.id), "81");
            for (value, code) in rule.bad {
                let bad = format!("{:02x} {value}", rule.id);
                try_it.packet(&format!("{} {value}", rule.name), letter, &bad, code);
            }
        }
    }
    // Identifiers that the standard gives to nothing, also in more than one byte.
    for code in (0u32..0x80).filter(|code| RULES.iter().all(|rule| u32::from(rule.id) != *code)) {
        try_it.packet(&format!("property {code:02x}"), 'p', &format!("{code:02x} 01"), "81");
    }
    for code in ["8000", "8001", "ff7f", "808001", "ffffff7f", "8080808001"] {
        try_it.packet(&format!("property {code}"), 'p', &format!("{code} 01"), "81");
    }
    assert!(
        try_it.failures.is_empty(),
        "{} of {}:\n{}",
        try_it.failures.len(),
        try_it.count,
        try_it.failures.join("\n")
    );
    assert!(try_it.count > 500, "{}", try_it.count);
}

/// A property length that is too long or too short for its packet (section 2.2.2.1).
#[test]
fn property_lengths() {
    let fixture = Fixture::new();
    for length in [1, 5, 127, 128, 200_000_000] {
        let length = variable(length).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut peer = Peer::open(fixture.gateway().address());
        peer.send(&written(&format!("10 {{ 'MQTT' 05 02 0000 {length} '' }}"), Version::V5).unwrap());
        peer.expect(&pattern("20 { 00 81 .. }", Version::V5).unwrap()).unwrap();
        peer.expect_end().unwrap();
    }
}
