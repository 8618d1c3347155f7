//! Names of devices, sites and topics.

/// `d000007`: six digits, more from the millionth device on.
pub fn device_name(device: u32) -> String {
    let mut name = String::with_capacity(8);
    Name::device(device).push_to(&mut name);
    name
}

/// A topic name with places for site and device, cut into its parts.
#[derive(Debug)]
pub struct Topic {
    parts: Vec<Part>,
    sites: u32,
}

#[derive(Debug)]
enum Part {
    Literal(String),
    Site,
    Device,
}

impl Topic {
    /// `template`: text with `{site}` and `{device}` and no other brace. Device d stands at site d mod `sites`.
    pub fn new(template: &str, sites: u32) -> Topic {
        let mut parts = Vec::new();
        for (at, piece) in template.split('{').enumerate() {
            let rest = match piece.split_once('}') {
                Some((name, rest)) if at > 0 => {
                    parts.push(if name == "site" { Part::Site } else { Part::Device });
                    rest
                }
                _ => piece,
            };
            parts.push(Part::Literal(rest.to_owned()));
        }
        Topic { parts, sites: sites.max(1) }
    }

    pub fn write(&self, device: u32, out: &mut String) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Site => Name::new(b's', 3, device % self.sites).push_to(out),
                Part::Device => Name::device(device).push_to(out),
            }
        }
    }
}

/// A letter and a number of at least so many digits.
pub struct Name {
    text: [u8; 11],
    from: usize,
}

impl Name {
    pub fn device(device: u32) -> Name {
        Name::new(b'd', 6, device)
    }

    fn new(letter: u8, digits: usize, number: u32) -> Name {
        let mut text = [b'0'; 11];
        let mut at = text.len();
        let mut rest = number;
        while rest > 0 {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let from = at.min(text.len() - digits) - 1;
        text[from] = letter;
        Name { text, from }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.text[self.from..]
    }

    fn push_to(&self, out: &mut String) {
        // It is ASCII, so nothing is left out.
        out.push_str(std::str::from_utf8(self.bytes()).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_at_least_their_digits() {
        assert_eq!(device_name(0), "d000000");
        assert_eq!(device_name(999_999), "d999999");
        assert_eq!(device_name(u32::MAX), "d4294967295");
    }

    #[test]
    fn a_topic_is_filled_in() {
        let filled = |template| {
            let mut out = String::new();
            Topic::new(template, 10).write(13, &mut out);
            out
        };
        assert_eq!(filled("dt/{site}/{device}/telemetry"), "dt/s003/d000013/telemetry");
        assert_eq!(filled("{device}"), "d000013");
        assert_eq!(filled("{device}{site}"), "d000013s003");
        assert_eq!(filled("plain/topic"), "plain/topic");
    }
}
