//! Lines of text: the first is a topic name, the others are filters.
#![no_main]
#![allow(dead_code)]

#[path = "../../crates/core/src/mqtt/mod.rs"]
mod mqtt;
#[path = "../../crates/core/src/short.rs"]
mod short;

use libfuzzer_sys::fuzz_target;
use mqtt::Trie;
use mqtt::topic::{MAX_LEVELS, StreamTopic, has_wildcard, is_filter, is_name, levels, matches, shared};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let name = lines.next().unwrap_or_default();
    let mut trie = Trie::new(7);
    let mut wanted = Vec::new();
    for (at, filter) in lines.enumerate() {
        if let Ok(stream) = StreamTopic::parse(filter) {
            assert!(is_filter(&stream.filter));
            assert_eq!(stream.captured(name).is_some(), matches(&stream.filter, name));
        }
        if !is_filter(filter) {
            continue;
        }
        let plain = shared(filter).map_or(filter, |(_, plain)| plain);
        let inserted = trie.insert(plain, at);
        // A filter without wildcards is one key, however deep.
        assert_eq!(inserted.is_ok(), !has_wildcard(plain) || levels(plain) <= MAX_LEVELS);
        if inserted.is_ok() && is_name(name) && matches(plain, name) {
            wanted.push(at);
        }
    }
    if is_name(name) {
        let mut found = Vec::new();
        trie.matches(name, |at| found.push(*at));
        found.sort_unstable();
        assert_eq!(found, wanted);
    }
});
