//! InfluxDB line protocol, version 2: `measurement[,tag=value...] field=value[,field=value...] [timestamp]`, a reading a line.
//!
//! Tags and fields are both named by their key. The line's timestamp is the event time; its unit is told by its magnitude
//! (seconds, milliseconds, microseconds, nanoseconds) unless the stream's `time` states one. Empty lines and comments
//! (`#`) are passed over. The measurement is the field `_measurement`, for who declares it.

use std::borrow::Cow;

use super::decoded::{Decoded, Stored};
use super::error::DecodeError;
use super::number::{NotBigint, Number};
use super::plan::{Kind, StreamPlan};
use super::reading::check_utf8;
use super::sink::{Sink, Token};
use super::spec::TimeUnit;
use super::time::{self, MAX_US, MIN_US};
use super::{extra, flat};

/// From here on a time of unstated unit is in nanoseconds.
const NANOS: u128 = 100_000_000_000_000_000;

fn wrong<T>(at: usize, problem: &'static str) -> Result<T, DecodeError> {
    Err(DecodeError::InvalidInflux { at, problem })
}

/// Appends the readings of `payload` to `into`, whose template has been filled.
pub(super) fn read(plan: &StreamPlan, payload: &[u8], into: &mut Decoded) -> Result<(), DecodeError> {
    check_utf8(payload)?;
    let mut line = Line { text: payload, at: 0, sink: Sink::new(plan, into) };
    let mut fault = None;
    while line.at < payload.len() {
        match payload[line.at] {
            b'\n' | b'\r' | b' ' => line.at += 1,
            b'#' => {
                line.at =
                    memchr::memchr(b'\n', &payload[line.at..]).map_or(payload.len(), |end| line.at + end)
            }
            _ => {
                line.sink.begin()?;
                line.point()?;
                extra::finish(&mut line.sink)?;
                line.sink.end(&mut fault);
            }
        }
    }
    if line.sink.out.rows() == 0 {
        return wrong(0, "there is no line with a point");
    }
    fault.map_or(Ok(()), Err)
}

struct Line<'a, 'p> {
    text: &'p [u8],
    at: usize,
    sink: Sink<'a>,
}

impl<'p> Line<'_, 'p> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn ended(&self) -> bool {
        matches!(self.peek(), None | Some(b'\n' | b'\r'))
    }

    fn point(&mut self) -> Result<(), DecodeError> {
        let at = self.at;
        let measurement = self.name(b", ");
        if measurement.is_empty() {
            return wrong(at, "a point has no measurement");
        }
        if self.sink.plan.flat.find(b"_measurement").is_some() {
            flat::put(&mut self.sink, b"_measurement", at, &Token::Text(measurement));
        }
        while self.peek() == Some(b',') {
            self.at += 1;
            let at = self.at;
            let key = self.key("a tag has no key or no value")?;
            let value = self.name(b", ");
            if value.is_empty() {
                return wrong(at, "a tag has no key or no value");
            }
            flat::put(&mut self.sink, &key, at, &Token::Text(value));
        }
        self.space("a point has no fields")?;
        loop {
            let key = self.key("a field has no key or no value")?;
            let at = self.at;
            let value = self.value()?;
            flat::put(&mut self.sink, &key, at, &value);
            if self.peek() != Some(b',') {
                break;
            }
            self.at += 1;
        }
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
        if !self.ended() {
            self.timestamp()?;
        }
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
        if self.ended() { Ok(()) } else { wrong(self.at, "something follows the timestamp") }
    }

    fn space(&mut self, problem: &'static str) -> Result<(), DecodeError> {
        if self.peek() != Some(b' ') {
            return wrong(self.at, problem);
        }
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
        if self.ended() { wrong(self.at, problem) } else { Ok(()) }
    }

    fn key(&mut self, problem: &'static str) -> Result<Cow<'p, [u8]>, DecodeError> {
        let key = self.name(b",= ");
        if key.is_empty() || self.peek() != Some(b'=') {
            return wrong(self.at, problem);
        }
        self.at += 1;
        Ok(key)
    }

    /// Up to the first of `ends` that no backslash stands before. A backslash before anything else is itself.
    fn name(&mut self, ends: &[u8]) -> Cow<'p, [u8]> {
        let start = self.at;
        let mut whole: Option<Vec<u8>> = None;
        while let Some(byte) = self.peek() {
            if byte == b'\n' || byte == b'\r' || ends.contains(&byte) {
                break;
            }
            let escaped = self.text.get(self.at + 1).filter(|next| byte == b'\\' && b",= ".contains(next));
            if let Some(next) = escaped {
                whole.get_or_insert_with(|| self.text[start..self.at].to_vec()).push(*next);
                self.at += 2;
                continue;
            }
            if let Some(whole) = &mut whole {
                whole.push(byte);
            }
            self.at += 1;
        }
        whole.map_or(Cow::Borrowed(&self.text[start..self.at]), Cow::Owned)
    }

    /// A field's value: `"text"`, `t`, `1i`, `1u` or `1.5`.
    fn value(&mut self) -> Result<Token<'p>, DecodeError> {
        let at = self.at;
        if self.peek() == Some(b'"') {
            self.at += 1;
            return self.text_value(at);
        }
        let rest = &self.text[at..];
        let end =
            rest.iter().position(|byte| matches!(byte, b',' | b' ' | b'\n' | b'\r')).unwrap_or(rest.len());
        let word = &rest[..end];
        self.at += end;
        match word {
            b"" => return wrong(at, "a field has no key or no value"),
            b"t" | b"T" | b"true" | b"True" | b"TRUE" => return Ok(Token::Bool(true)),
            b"f" | b"F" | b"false" | b"False" | b"FALSE" => return Ok(Token::Bool(false)),
            _ => {}
        }
        let unit = word.last().copied().unwrap_or(0);
        let digits = if matches!(unit, b'i' | b'u') { &word[..word.len() - 1] } else { word };
        // A plus sign, and a dot without digits on one side, are numbers here and not in JSON.
        if unit == b'i' || unit == b'u' {
            let text = std::str::from_utf8(digits).unwrap_or_default();
            let token = match unit {
                b'i' => text.parse().ok().map(Token::Int),
                _ => text
                    .parse::<u64>()
                    .ok()
                    .map(|value| i64::try_from(value).map_or(Token::Uint(value), Token::Int)),
            };
            return token.map_or_else(|| wrong(at, "an integer is none, or beyond 64 bits"), Ok);
        }
        if matches!(digits.first(), Some(b'-' | b'0'..=b'9'))
            && let Ok((number, end)) = Number::scan(digits, 0)
            && end == digits.len()
        {
            return Ok(Token::Number(number));
        }
        let plain = digits.iter().all(|byte| matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E' | b'0'..=b'9'));
        let value =
            std::str::from_utf8(digits).ok().filter(|_| plain).and_then(|text| text.parse::<f64>().ok());
        match value.filter(|value| value.is_finite()) {
            Some(value) => Ok(Token::Double(value)),
            None => wrong(at, "a field's value is no number, boolean or quoted string"),
        }
    }

    /// The text whose opening quote, at `start`, has been passed. Only quotes and backslashes are escaped in it.
    fn text_value(&mut self, start: usize) -> Result<Token<'p>, DecodeError> {
        let begin = self.at;
        let mut whole: Option<Vec<u8>> = None;
        while let Some(byte) = self.peek() {
            if byte == b'"' {
                let text = whole.map_or(Cow::Borrowed(&self.text[begin..self.at]), Cow::Owned);
                self.at += 1;
                return Ok(Token::Text(text));
            }
            let escaped =
                self.text.get(self.at + 1).filter(|next| byte == b'\\' && matches!(next, b'"' | b'\\'));
            if let Some(next) = escaped {
                whole.get_or_insert_with(|| self.text[begin..self.at].to_vec()).push(*next);
                self.at += 2;
                continue;
            }
            if let Some(whole) = &mut whole {
                whole.push(byte);
            }
            self.at += 1;
        }
        wrong(start, "a string is not closed")
    }

    fn timestamp(&mut self) -> Result<(), DecodeError> {
        let at = self.at;
        let rest = &self.text[at..];
        let end = rest.iter().position(|byte| matches!(byte, b' ' | b'\n' | b'\r')).unwrap_or(rest.len());
        self.at += end;
        let scanned = Number::scan(&rest[..end], 0).ok().filter(|(_, scanned)| *scanned == end);
        let Some((number, _)) = scanned.filter(|(number, _)| number.to_bigint() != Err(NotBigint::Fraction))
        else {
            return wrong(at, "a timestamp is a whole number");
        };
        let plan = self.sink.plan;
        let column = plan.captures as u16;
        let unit = plan.flat_slots.iter().flatten().find_map(|slot| match slot.kind {
            Kind::Timestamp(unit) if slot.column == column => Some(unit),
            _ => None,
        });
        let micros = match unit.unwrap_or(TimeUnit::Auto) {
            TimeUnit::Auto | TimeUnit::Iso if number.whole_magnitude() >= NANOS => number.scaled(-3),
            unit => time::from_number(number, unit),
        };
        match micros.filter(|micros| (MIN_US..=MAX_US).contains(micros)) {
            Some(micros) => self.sink.set(column, Stored::Timestamp(micros)),
            None => self.sink.time_fault(column, at, time::TimeFault::OutOfRange),
        }
        Ok(())
    }
}
