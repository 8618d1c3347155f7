//! The notation of packets: see the README.

use crate::mqtt::Version;

/// What a packet must look like: its first byte, and its body (none: whatever it is).
#[derive(Debug)]
pub struct Pattern {
    pub first: u8,
    pub body: Option<Vec<Want>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    Byte(u8),
    Any,
    /// Whatever follows.
    Rest,
}

/// The bytes to send.
pub fn written(text: &str, version: Version) -> Result<Vec<u8>, String> {
    let wants = Reader { rest: text, version }.all(false)?;
    let byte = |want| match want {
        Want::Byte(byte) => Ok(byte),
        _ => Err(format!("{text:?} leaves bytes open")),
    };
    wants.into_iter().map(byte).collect()
}

/// What must come.
pub fn pattern(text: &str, version: Version) -> Result<Pattern, String> {
    let mut reader = Reader { rest: text, version };
    let first = match reader.token()?.as_deref() {
        Some([Want::Byte(first)]) => *first,
        _ => return Err(format!("{text:?} does not begin with a packet type")),
    };
    let rest = reader.rest.trim();
    let body = match rest.strip_prefix('{') {
        Some(inner) => {
            reader.rest = inner;
            let body = reader.all(true)?;
            if !reader.rest.trim().is_empty() {
                return Err(format!("{text:?} goes on after its packet"));
            }
            Some(body)
        }
        None if rest == ".." => None,
        None => return Err(format!("{text:?} has no body")),
    };
    Ok(Pattern { first, body })
}

struct Reader<'a> {
    rest: &'a str,
    version: Version,
}

impl Reader<'_> {
    /// All tokens up to the end, or to the brace that closes the group.
    fn all(&mut self, group: bool) -> Result<Vec<Want>, String> {
        let mut all = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix('}').filter(|_| group) {
                self.rest = rest;
                return Ok(all);
            }
            match self.token()? {
                Some(wants) => all.extend(wants),
                None if group => return Err("a group has no end".to_owned()),
                None => return Ok(all),
            }
        }
    }

    fn token(&mut self) -> Result<Option<Vec<Want>>, String> {
        self.rest = self.rest.trim_start();
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let mut wants = match first {
            '\'' | '"' => {
                let (text, rest) = self.rest[1..].split_once(first).ok_or("a text has no end".to_owned())?;
                self.rest = rest;
                let text: Vec<Want> = text.bytes().map(Want::Byte).collect();
                if first == '\'' { prefixed(&text, two_bytes) } else { text }
            }
            _ => {
                let end = self.rest.find([' ', '{', '}', '*']).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                match rest.strip_prefix('{') {
                    Some(rest) => {
                        self.rest = rest;
                        let inner = self.all(true)?;
                        match (word, self.version) {
                            ("", _) | ("P", Version::V5) => prefixed(&inner, variable),
                            ("s", _) => prefixed(&inner, two_bytes),
                            ("3", Version::V311) | ("5", Version::V5) => inner,
                            ("P" | "5", Version::V311) | ("3", Version::V5) => Vec::new(),
                            _ => return Err(format!("{word:?} is no kind of group")),
                        }
                    }
                    None => {
                        self.rest = rest;
                        self.word(word)?
                    }
                }
            }
        };
        if let Some(rest) = self.rest.strip_prefix('*') {
            let end = rest.find([' ', '}']).unwrap_or(rest.len());
            let times: usize = rest[..end].parse().map_err(|_| format!("{rest:?} is no count"))?;
            self.rest = &rest[end..];
            wants = wants.repeat(times);
        }
        Ok(Some(wants))
    }

    fn word(&self, word: &str) -> Result<Vec<Want>, String> {
        match word {
            "??" => return Ok(vec![Want::Any]),
            "????" => return Ok(vec![Want::Any; 2]),
            ".." => return Ok(vec![Want::Rest]),
            "V" => return Ok(vec![Want::Byte(self.version as u8)]),
            "P" if self.version == Version::V5 => return Ok(vec![Want::Byte(0)]),
            "P" => return Ok(Vec::new()),
            _ => {}
        }
        if let Some((_, first)) =
            PACKETS.iter().find(|(name, _)| *name == word.split('+').next().unwrap_or(word))
        {
            let flags = word.split('+').skip(1).map(|flag| match flag {
                "dup" => Ok(8),
                "retain" => Ok(1),
                _ => Err(format!("{flag:?} is no flag")),
            });
            let flags: u8 = flags.sum::<Result<u8, String>>()?;
            return Ok(vec![Want::Byte(first | flags)]);
        }
        if let Some(name) = word.strip_prefix('@') {
            let id = super::properties::id(name).ok_or(format!("no property {name:?}"))?;
            return Ok(vec![Want::Byte(id)]);
        }
        let hex = |at: usize| word.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<Want>> = (0..word.len()).step_by(2).map(|at| hex(at).map(Want::Byte)).collect();
        bytes.ok_or(format!("{word:?} is neither a name nor hexadecimal"))
    }
}

const PACKETS: [(&str, u8); 17] = [
    ("connect", 0x10),
    ("connack", 0x20),
    ("publish", 0x30),
    ("publish1", 0x32),
    ("publish2", 0x34),
    ("puback", 0x40),
    ("pubrec", 0x50),
    ("pubrel", 0x62),
    ("pubcomp", 0x70),
    ("subscribe", 0x82),
    ("suback", 0x90),
    ("unsubscribe", 0xa2),
    ("unsuback", 0xb0),
    ("pingreq", 0xc0),
    ("pingresp", 0xd0),
    ("disconnect", 0xe0),
    ("auth", 0xf0),
];

fn prefixed(inner: &[Want], length: fn(usize) -> Vec<u8>) -> Vec<Want> {
    length(inner.len()).into_iter().map(Want::Byte).chain(inner.iter().copied()).collect()
}

fn two_bytes(len: usize) -> Vec<u8> {
    (len as u16).to_be_bytes().to_vec()
}

/// A variable byte integer (section 1.5.5).
pub fn variable(mut len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (len % 128) as u8;
        len /= 128;
        out.push(if len > 0 { low | 0x80 } else { low });
        if len == 0 {
            return out;
        }
    }
}
