//! Topic names, topic filters and stream topics (section 4.7).

use crate::short;

/// The longest topic, in bytes: the length of a string is two bytes.
pub const MAX_BYTES: usize = 65_535;

/// The deepest filter that the trie takes; the limit is ours and bounds the depth of its recursion.
pub const MAX_LEVELS: usize = 128;

#[inline]
pub fn has_wildcard(topic: &str) -> bool {
    // No early exit: short topics are judged in one vectorised pass.
    topic.bytes().fold(false, |found, byte| found | (byte == b'+') | (byte == b'#'))
}

/// Control characters and non-characters, which a receiver may refuse (section 1.5.4): in topics, filters and client
/// identifiers they serve nothing but to deceive those who read them.
pub(super) fn has_disallowed(text: &str) -> bool {
    !short::is_plain(text.as_bytes())
        && text.chars().any(|c| {
            c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
        })
}

/// A name to publish to: not empty, no wildcard, no U+0000.
pub fn is_name(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= MAX_BYTES && !has_wildcard(topic) && !topic.contains('\0')
}

/// A filter to subscribe with: `#` alone in the last level, `+` alone in its level, no U+0000.
/// `$share/{group}/{filter}` needs a group without wildcards and a filter (section 4.8.2).
pub fn is_filter(filter: &str) -> bool {
    if is_shared(filter) {
        let mut parts = filter.splitn(3, '/').skip(1);
        let (group, inner) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        return !group.is_empty()
            && !has_wildcard(group)
            && is_plain_filter(inner)
            && filter.len() <= MAX_BYTES;
    }
    is_plain_filter(filter)
}

fn is_plain_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > MAX_BYTES || filter.contains('\0') {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let fine = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            other => !has_wildcard(other),
        };
        if !fine {
            return false;
        }
    }
    true
}

pub fn is_shared(filter: &str) -> bool {
    filter == "$share" || filter.starts_with("$share/")
}

/// Share name and filter of a shared subscription's valid filter.
///
/// ```
/// # use headwater_core::mqtt::topic::shared;
/// assert_eq!(shared("$share/pumps/dt/+/x"), Some(("pumps", "dt/+/x")));
/// assert_eq!(shared("dt/+/x"), None);
/// ```
pub fn shared(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

/// Number of levels: `a//b` has three.
pub fn levels(topic: &str) -> usize {
    memchr::memchr_iter(b'/', topic.as_bytes()).count() + 1
}

/// Whether `topic` matches `filter`, level by level: the definition that [`super::Trie`] is tested against, and
/// the right tool where one filter meets many topics (retained messages).
pub fn matches(filter: &str, topic: &str) -> bool {
    // Section 4.7.2: a wildcard in the first place does not reach topics of the server.
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic_levels = topic.split('/');
    for level in filter.split('/') {
        match (level, topic_levels.next()) {
            ("#", _) => return true,
            (_, None) => return false,
            ("+", Some(_)) => {}
            (literal, Some(found)) if literal == found => {}
            _ => return false,
        }
    }
    topic_levels.next().is_none()
}

/// A stream's topic with its captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamTopic {
    /// With `+` in place of each capture.
    pub filter: String,
    /// Name and level (from 0) of each `{name}`, in topic order.
    pub captures: Vec<(String, usize)>,
}

impl StreamTopic {
    /// `{name}` must be a whole level; names do not repeat.
    pub fn parse(topic: &str) -> Result<StreamTopic, String> {
        let refuse = |why: &str| Err(format!("stream topic {topic:?} {why}"));
        let mut filter = Vec::new();
        let mut captures: Vec<(String, usize)> = Vec::new();
        for (at, level) in topic.split('/').enumerate() {
            let Some(name) = level.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
                if level.contains(['{', '}']) {
                    return refuse("has a capture that is not a whole level; write it as /{name}/");
                }
                filter.push(level);
                continue;
            };
            if name.is_empty() || name.contains(['{', '}']) {
                return refuse("has a capture without a proper name");
            }
            if captures.iter().any(|(other, _)| other == name) {
                return refuse(&format!("captures {name:?} twice"));
            }
            captures.push((name.to_owned(), at));
            filter.push("+");
        }
        let filter = filter.join("/");
        if !is_plain_filter(&filter) || is_shared(&filter) {
            return refuse("is no topic filter: it is empty, shared, or has a wildcard in the wrong place");
        }
        Ok(StreamTopic { filter, captures })
    }

    /// The captured levels of a topic name; none if the stream's topic does not match it.
    pub fn captured<'a>(&self, topic: &'a str) -> Option<Vec<&'a [u8]>> {
        if !matches(&self.filter, topic) {
            return None;
        }
        let levels: Vec<&[u8]> = topic.split('/').map(str::as_bytes).collect();
        self.captures.iter().map(|(_, level)| levels.get(*level).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_the_standard() {
        for good in
            ["#", "+", "/", "a/#", "+/+", "sport/+/player1", "/+", "+/tennis/#", "$SYS/#", "$share/g/a/#"]
        {
            assert!(is_filter(good), "{good}");
        }
        for bad in [
            "",
            "a#",
            "a/#/b",
            "sport+",
            "+a/b",
            "#/",
            "a\0",
            "$share/g",
            "$share//a",
            "$share/+/a",
            "$share/g/",
            "$share",
        ] {
            assert!(!is_filter(bad), "{bad}");
        }
    }

    #[test]
    fn matching_examples_of_the_standard() {
        for (filter, topic) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
            ("sport/#", "sport"),
            ("#", "a/b"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("sport/+", "sport/"),
            ("$SYS/#", "$SYS/monitor/Clients"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
            ("a/+/b", "a//b"),
        ] {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [
            ("+", "/finance"),
            ("sport/+", "sport"),
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("#", "$SYS/monitor"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("accounts", "Accounts"),
            ("a/b", "a"),
        ] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn captures_become_single_level_wildcards() {
        let stream = StreamTopic::parse("dt/{site}/{device}/telemetry").unwrap();
        assert_eq!(stream.filter, "dt/+/+/telemetry");
        assert_eq!(stream.captures, [("site".to_owned(), 1), ("device".to_owned(), 2)]);
        for bad in ["dt/x{site}", "dt/{}", "dt/{a}/{a}", "", "a/#/b", "{a", "$share/g/{a}"] {
            assert!(StreamTopic::parse(bad).is_err(), "{bad}");
        }
    }
}
