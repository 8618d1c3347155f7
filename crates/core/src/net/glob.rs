//! How client ids are searched for: by a prefix, or by a pattern with `*` (any characters) and `?` (any one).

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Glob {
    Prefix(String),
    Pattern(Vec<char>),
}

impl Glob {
    pub fn new(text: &str) -> Glob {
        if text.contains(['*', '?']) {
            Glob::Pattern(text.chars().collect())
        } else {
            Glob::Prefix(text.into())
        }
    }

    /// Time grows with the product of the lengths at most.
    pub fn matches(&self, text: &str) -> bool {
        let pattern = match self {
            Glob::Prefix(prefix) => return text.starts_with(prefix.as_str()),
            Glob::Pattern(pattern) => pattern,
        };
        let mut rest = text.chars();
        let mut at = 0;
        // Where to go on when it does not match: behind the last star, one character later.
        let mut again: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            let before = rest.clone();
            match (pattern.get(at), rest.next()) {
                (Some('*'), _) => {
                    at += 1;
                    again = Some((at, before.clone()));
                    rest = before;
                }
                (None, None) => return true,
                (Some('?'), Some(_)) => at += 1,
                (Some(wanted), Some(found)) if *wanted == found => at += 1,
                _ => {
                    let Some((star, mut from)) = again.take() else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    (at, rest) = (star, from.clone());
                    again = Some((star, from));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_and_patterns() {
        for (glob, text, expected) in [
            ("", "anything", true),
            ("dev", "device", true),
            ("dev", "my-dev", false),
            ("*", "", true),
            ("*dev*", "my-device", true),
            ("d?v", "dev", true),
            ("d?v", "dv", false),
            ("d?v", "deev", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "\u{e9}", true),
            ("**", "x", true),
        ] {
            assert_eq!(Glob::new(glob).matches(text), expected, "{glob} {text}");
        }
    }

    /// The definition.
    fn slowly(pattern: &[char], text: &[char]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some('*'), _) => {
                slowly(&pattern[1..], text) || (!text.is_empty() && slowly(pattern, &text[1..]))
            }
            (Some('?'), Some(_)) => slowly(&pattern[1..], &text[1..]),
            (Some(wanted), Some(found)) if wanted == found => slowly(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_as_the_definition_says(pattern in "[ab*?]{1,7}", text in "[ab]{0,8}") {
            let pattern = format!("*{pattern}");
            let (chars, letters): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(Glob::new(&pattern).matches(&text), slowly(&chars, &letters));
        }
    }
}
