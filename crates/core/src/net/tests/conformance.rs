//! The standards packet by packet. `conformance/*.txt` say what is sent and what must come; the README beside them
//! explains their notation. No encoder or parser of the gateway is used here.

mod notation;
mod peer;
mod properties;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;

use self::notation::{Pattern, pattern, written};
use self::peer::Peer;
use super::{Fixture, GatewayOptions, log_options, schemas};
use crate::log::Log;
use crate::mqtt::Version;

/// Seconds that the sessions of `keep` outlive their connections.
const KEPT_S: u32 = 1000;

struct Case<'a> {
    name: &'a str,
    /// One client says one thing and leaves nothing behind, so that many such cases share a gateway.
    short: bool,
    versions: Vec<Version>,
    options: Vec<(&'a str, u64)>,
    /// Line number and text.
    steps: Vec<(usize, String)>,
}

fn cases(text: &str) -> Vec<Case<'_>> {
    let mut cases: Vec<Case> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split(" # ").next().unwrap_or_default().trim_end();
        let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
        let packets = rest.split_once(" : ").map(|(_, packets)| packets).unwrap_or_default();
        let words: Vec<&str> = rest.split(" : ").next().unwrap_or_default().split_whitespace().collect();
        let step = |text: String| (at + 1, text);
        match head {
            "case" | "ends" | "refused" | "answers" => {}
            "" if !rest.trim().is_empty() => {
                cases.last_mut().expect("a step belongs to a case").steps.push(step(rest.trim().to_owned()));
                continue;
            }
            "" | "#" => continue,
            _ => panic!("line {}: {line:?} begins no case", at + 1),
        }
        let short = head != "case";
        let (versions, options, steps) = (Vec::new(), Vec::new(), Vec::new());
        let mut case = Case { name: words[0], short, versions, options, steps };
        let mut codes = Vec::new();
        for word in &words[1..] {
            match (*word, word.split_once('=')) {
                ("v3", _) => case.versions.push(Version::V311),
                ("v5", _) => case.versions.push(Version::V5),
                (_, Some((key, value))) => case.options.push((key, value.parse().expect("a number"))),
                (code, None) => codes.push(code),
            }
        }
        if case.versions.is_empty() {
            case.versions = vec![Version::V311, Version::V5];
        }
        let codes = codes.join(" ");
        case.steps.extend(match head {
            "ends" => {
                vec![step("a up".into()), step(format!("a > {packets}")), step(format!("a ended {codes}"))]
            }
            "refused" => vec![step(format!("a > {packets}")), step(format!("a refused {codes}"))],
            "answers" => {
                let (sent, answer) = packets.split_once(" -> ").expect("SENT -> ANSWER");
                vec![step("a up".into()), step(format!("a > {sent}")), step(format!("a < {answer}"))]
            }
            _ => Vec::new(),
        });
        cases.push(case);
    }
    cases
}

fn change(options: &mut GatewayOptions, key: &str, value: u64) {
    match key {
        "max_keep_alive_s" => options.max_keep_alive_s = value as u16,
        "receive_maximum" => options.receive_maximum = value as u16,
        "maximum_qos" => options.maximum_qos = value as u8,
        "retain_available" => options.retain_available = value != 0,
        "max_packet_bytes" => options.max_packet_bytes = value as usize,
        "max_session_expiry_s" => options.max_session_expiry_s = value as u32,
        "topic_alias_maximum" => options.topic_alias_maximum = value as u16,
        _ => panic!("no option {key}"),
    }
}

/// The peers of a case by their names.
struct Stage {
    fixture: Fixture,
    version: Version,
    peers: BTreeMap<String, Peer>,
}

impl Stage {
    fn new(options: &[(&str, u64)], version: Version) -> Stage {
        // What a disk takes for each of hundreds of logs is not what these tests are about.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let log = Log::open(directory.path(), log_options(), schemas()).unwrap();
        let mut fixture = Fixture::on_log(log, |all| {
            all.threads = 1;
            options.iter().for_each(|(key, value)| change(all, key, *value));
        });
        fixture._directory = Some(directory);
        Stage { fixture, version, peers: BTreeMap::new() }
    }

    fn play(&mut self, case: &Case) -> Result<(), String> {
        for (line, step) in &case.steps {
            self.step(step).map_err(|error| {
                format!("{} {:?}, line {line}: {step}\n    {error}", case.name, self.version)
            })?;
        }
        self.peers.clear();
        Ok(())
    }

    fn peer(&mut self, name: &str) -> &mut Peer {
        let address = self.fixture.gateway().address();
        self.peers.entry(name.to_owned()).or_insert_with(|| Peer::open(address))
    }

    fn step(&mut self, line: &str) -> Result<(), String> {
        let version = self.version;
        let line = match (line.strip_prefix("3: "), line.strip_prefix("5: "), version) {
            (Some(line), _, Version::V311) | (_, Some(line), Version::V5) => line,
            (None, None, _) => line,
            _ => return Ok(()),
        };
        let mut words = line.splitn(3, ' ');
        let (name, verb, rest) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        if name == "clock" && verb != "bye" {
            let seconds: u64 = verb.parse().map_err(|_| format!("{verb:?} is no number of seconds"))?;
            self.fixture.clock.advance(Duration::from_secs(seconds));
            // Two round trips are at least one whole pass of the only thread, so what is due has been done.
            self.peer("clock").send(&written("10 { 'MQTT' 04 02 0000 'the clock' } c000", version)?);
            self.peer("clock").expect(&pattern("20 ..", version)?)?;
            self.peer("clock").expect(&pattern("d0 {}", version)?)?;
            return self.step("clock bye");
        }
        match verb {
            ">" => {
                let bytes = written(rest, version)?;
                self.peer(name).send(&bytes);
                Ok(())
            }
            "<" => {
                let wanted = pattern(rest, version)?;
                self.peer(name).expect(&wanted)
            }
            "up" => {
                let connect = format!("10 {{ 'MQTT' V 02 0000 P '{name}' }}");
                self.connect(name, &connect, "20 { 00 00 3{} 5{ .. } }")
            }
            "keep" => {
                let connect = format!("10 {{ 'MQTT' V 00 0000 P{{ 11 {KEPT_S:08x} }} '{name}' }}");
                let present = match rest {
                    "new" => "00",
                    "old" => "01",
                    _ => return Err("keep new, or keep old".to_owned()),
                };
                self.connect(name, &connect, &format!("20 {{ {present} 00 3{{}} 5{{ .. }} }}"))
            }
            "quiet" => {
                let peer = self.peer(name);
                peer.send(&[0xc0, 0]);
                peer.expect(&pattern("d0 {}", version)?).map_err(|error| format!("not quiet: {error}"))
            }
            "closed" => self.peer(name).expect_end(),
            "ended" if version == Version::V311 => self.peer(name).expect_end(),
            "ended" => {
                let wanted = pattern(&format!("e0 {{ {rest} .. }}"), version)?;
                let peer = self.peer(name);
                peer.expect(&wanted)?;
                peer.expect_end()
            }
            "refused" => {
                let codes: Vec<&str> = rest.split(' ').collect();
                let code = if version == Version::V311 { codes.first() } else { codes.last() };
                let peer = self.peer(name);
                if let Some(code) = code.filter(|code| **code != "-") {
                    peer.expect(&pattern(&format!("20 {{ 00 {code} 3{{}} 5{{ .. }} }}"), version)?)?;
                }
                peer.expect_end()
            }
            "drop" | "bye" => {
                let before = self.fixture.gateway().counters().connections;
                let peer = self.peers.remove(name).ok_or(format!("{name} is not there"))?;
                peer.leave(verb == "bye");
                self.fixture.until("the end of a connection", |counters| counters.connections < before);
                Ok(())
            }
            _ => Err(format!("{verb:?} is no step")),
        }
    }

    fn connect(&mut self, name: &str, connect: &str, connack: &str) -> Result<(), String> {
        let bytes = written(connect, self.version)?;
        let wanted: Pattern = pattern(connack, self.version)?;
        let peer = self.peer(name);
        peer.send(&bytes);
        peer.expect(&wanted)
    }
}

/// Cases that run at a time: each waits for its gateway to begin and to end, rather than computes.
const AT_ONCE: usize = 8;

fn run(text: &str) {
    let cases = cases(text);
    let both = [Version::V311, Version::V5];
    let all = both.iter().flat_map(|version| cases.iter().map(move |case| (*version, case)));
    let all = all.filter(|(version, case)| case.versions.contains(version));
    let (short, long): (Vec<_>, Vec<_>) = all.partition(|(_, case)| case.short && case.options.is_empty());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for version in both {
            let (short, failures) = (&short, &failures);
            scope.spawn(move || {
                let mut stage = Stage::new(&[], version);
                for (_, case) in short.iter().filter(|(of, _)| *of == version) {
                    failures.lock().extend(stage.play(case).err());
                }
            });
        }
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((version, case)) = long.get(next.fetch_add(1, Ordering::Relaxed)) {
                    failures.lock().extend(Stage::new(&case.options, *version).play(case).err());
                }
            });
        }
    });
    let failures = failures.into_inner();
    assert!(
        failures.is_empty(),
        "{} of {} cases fail:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn data_types() {
    run(include_str!("conformance/data_types.txt"));
}

#[test]
fn connect() {
    run(include_str!("conformance/connect.txt"));
}

#[test]
fn publish() {
    run(include_str!("conformance/publish.txt"));
}

#[test]
fn subscribe() {
    run(include_str!("conformance/subscribe.txt"));
}

#[test]
fn sessions() {
    run(include_str!("conformance/sessions.txt"));
}

#[test]
fn shared() {
    run(include_str!("conformance/shared.txt"));
}

#[test]
fn wills() {
    run(include_str!("conformance/wills.txt"));
}
