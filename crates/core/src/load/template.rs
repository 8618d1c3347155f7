//! A payload as its user writes it: text with places that every message fills in.
//!
//! | place | becomes |
//! | --- | --- |
//! | `{device}` | `d000007` |
//! | `{seq}` | number of the message of its device, from 0 |
//! | `{ts}`, `{ts_ms}`, `{ts_us}` | time of sending since the Unix epoch, in seconds, milliseconds, microseconds |
//! | `{random:A:B}` | a number from A to B, with as many decimals as A or B is written with |
//! | `{fill:N}` | N bytes of `x` |
//!
//! Braces around anything but a lower-case word are text, so that JSON needs no escapes.

use super::names::Name;
use super::options::FleetError;

/// Longest payload: what a PUBLISH can carry beside its topic (MQTT section 2.2.3), and far less memory than that.
const MAX_BYTES: usize = 16 << 20;
const DECIMALS_MAX: usize = 9;

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Literal(Vec<u8>),
    Device,
    Seq,
    /// Microseconds since the epoch are divided by this.
    Time(u64),
    /// `low + random(span)`, both scaled by 10^decimals.
    Random {
        low: i64,
        span: u64,
        decimals: u8,
    },
}

/// A payload with its places, parsed once.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

/// What a message fills in.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    pub device: u32,
    pub seq: u64,
    pub now_us: u64,
    /// Numbers follow from it alone: a message that is sent again has the same.
    pub random: u64,
}

impl Template {
    /// errors: a place that does not exist or is not written as it must be
    pub fn parse(text: &str) -> Result<Template, FleetError> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            literal.extend_from_slice(&rest.as_bytes()[..at]);
            let inner = rest.get(at + 1..).unwrap_or_default();
            let end = inner.find(['}', '{', '"', '\n']).filter(|&end| inner.as_bytes()[end] == b'}');
            let word = end.and_then(|end| inner.get(..end)).filter(|word| is_place(word));
            let Some(word) = word else {
                literal.push(b'{');
                rest = inner;
                continue;
            };
            match place(word)? {
                Part::Literal(bytes) => literal.extend_from_slice(&bytes),
                part => {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                    parts.push(part);
                }
            }
            if literal.len() > MAX_BYTES {
                return Err(too_long());
            }
            rest = inner.get(word.len() + 1..).unwrap_or_default();
        }
        literal.extend_from_slice(rest.as_bytes());
        Template::of(parts, literal)
    }

    /// Bytes that are sent as they are. errors: more than 16 MiB
    pub fn literal(bytes: &[u8]) -> Result<Template, FleetError> {
        Template::of(Vec::new(), bytes.to_vec())
    }

    fn of(mut parts: Vec<Part>, literal: Vec<u8>) -> Result<Template, FleetError> {
        parts.push(Part::Literal(literal));
        let size: usize =
            parts.iter().map(|part| if let Part::Literal(bytes) = part { bytes.len() } else { 0 }).sum();
        if size > MAX_BYTES { Err(too_long()) } else { Ok(Template { parts }) }
    }

    /// Appends the payload of one message.
    pub fn write(&self, filling: &Filling, out: &mut Vec<u8>) {
        let mut random = filling.random;
        for part in &self.parts {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Device => out.extend_from_slice(Name::device(filling.device).bytes()),
                Part::Seq => write_number(filling.seq, out),
                Part::Time(divisor) => write_number(filling.now_us / divisor, out),
                Part::Random { low, span, decimals } => {
                    // Multiply and add (Knuth's MMIX constants); the high half is taken, scaled to the span.
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let offset = (u128::from(random) * u128::from(span + 1)) >> 64;
                    super::payloads::write_decimal(low.saturating_add(offset as i64), *decimals, out);
                }
            }
        }
    }
}

fn too_long() -> FleetError {
    FleetError::Options(format!("payload: more than {} MiB", MAX_BYTES >> 20))
}

/// Whether text between braces is meant as a place: a lower-case word, maybe with arguments.
fn is_place(word: &str) -> bool {
    let name = word.split(':').next().unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn place(word: &str) -> Result<Part, FleetError> {
    let refuse = |text: &str| Err(FleetError::Options(format!("payload: {{{word}}}: {text}")));
    let mut words = word.split(':');
    let name = words.next().unwrap_or_default();
    let arguments: Vec<&str> = words.collect();
    let part = match (name, arguments.as_slice()) {
        ("device", []) => Part::Device,
        ("seq", []) => Part::Seq,
        ("ts", []) => Part::Time(1_000_000),
        ("ts_ms", []) => Part::Time(1_000),
        ("ts_us", []) => Part::Time(1),
        ("fill", [size]) => match size.parse::<usize>() {
            Ok(size) if size <= MAX_BYTES => Part::Literal(vec![b'x'; size]),
            _ => return refuse("write {fill:N} with a number of bytes, at most 16 MiB"),
        },
        ("random", [low, high]) => {
            let digits = |text: &str| text.split_once('.').map_or(0, |(_, digits)| digits.len());
            let decimals = digits(low).max(digits(high));
            let scale = 10f64.powi(decimals.min(DECIMALS_MAX) as i32);
            match (low.parse::<f64>(), high.parse::<f64>()) {
                (Ok(low), Ok(high))
                    if low <= high && low.abs() <= 1e9 && high.abs() <= 1e9 && decimals <= DECIMALS_MAX =>
                {
                    let (low, high) = ((low * scale).round() as i64, (high * scale).round() as i64);
                    Part::Random { low, span: high.abs_diff(low), decimals: decimals as u8 }
                }
                _ => return refuse("write {random:A:B} with A <= B within 1e9 and at most 9 decimals"),
            }
        }
        _ => return refuse("the places are device, seq, ts, ts_ms, ts_us, random:A:B and fill:N"),
    };
    Ok(part)
}

fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let mut text = [b'0'; 20];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&text[at..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str, random: u64) -> String {
        let mut out = Vec::new();
        let filling = Filling { device: 7, seq: 12, now_us: 1_732_000_000_123_456, random };
        Template::parse(text).unwrap().write(&filling, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn places_are_filled_in() {
        assert_eq!(written("{device} {seq}", 0), "d000007 12");
        assert_eq!(written("{ts} {ts_ms} {ts_us}", 0), "1732000000 1732000000123 1732000000123456");
        assert_eq!(written("a{fill:3}b", 0), "axxxb");
        assert_eq!(written("{random:5:5}{random:1.50:1.5}", 9), "51.50");
    }

    #[test]
    fn json_needs_no_escapes() {
        let text = r#"{"id": "{device}", "a": {"b": {}}, "ts": {ts_ms}}"#;
        assert_eq!(written(text, 0), r#"{"id": "d000007", "a": {"b": {}}, "ts": 1732000000123}"#);
        assert_eq!(written("{", 0), "{");
        assert_eq!(written("{Device} {{device}", 0), "{Device} {d000007");
    }

    #[test]
    fn a_wrong_place_is_named() {
        for (text, part) in [
            ("{devcie}", "{devcie}"),
            ("{random:2:1}", "A <= B"),
            ("{fill:x}", "{fill:N}"),
            ("{ts:1}", "places are"),
        ] {
            let error = Template::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(Template::parse(&"{fill:9000000}".repeat(2)).is_err());
        assert!(Template::literal(&vec![0; MAX_BYTES + 1]).is_err());
    }

    proptest! {
        #[test]
        fn numbers_lie_in_their_range_with_their_decimals(low in -1_000i64..1_000, span in 0i64..1_000, random: u64) {
            let (low, high) = (low as f64 / 100.0, (low + span) as f64 / 100.0);
            let text = written(&format!("{{random:{low:.2}:{high:.2}}}"), random);
            let value: f64 = text.parse().unwrap();
            prop_assert!(low <= value && value <= high, "{} in {} to {}", value, low, high);
            prop_assert_eq!(text.split_once('.').map(|(_, digits)| digits.len()), Some(2));
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,60}") {
            if let Ok(template) = Template::parse(&text) {
                let mut out = Vec::new();
                template.write(&Filling { device: 0, seq: 0, now_us: 0, random: 0 }, &mut out);
            }
        }
    }
}
