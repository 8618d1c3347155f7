//! CBOR (RFC 8949) as tokens. Accepted is what is well-formed (section 3); text must be UTF-8.
//!
//! Tags 0 and 1 are times (section 3.4.1, 3.4.2); other tags are passed over and their content counts. Integer keys of
//! maps are named by their decimal text. Bignums are bytes, which no column holds.

use std::borrow::Cow;

use super::error::DecodeError;
use super::number::Number;
use super::sink::Token;
use super::spec::TimeUnit;
use super::time;
use super::tree::{Open, Source};

/// Tags around one value. Ours: no use needs more than one or two.
const MAX_TAGS: usize = 8;

pub(super) struct CborSource<'p> {
    bytes: &'p [u8],
    at: usize,
}

/// Major type, and the argument; `None`: of indefinite length.
struct Head {
    major: u8,
    /// The five low bits of the first byte.
    short: u8,
    argument: Option<u64>,
}

impl<'p> CborSource<'p> {
    pub fn new(payload: &'p [u8]) -> CborSource<'p> {
        CborSource { bytes: payload, at: 0 }
    }

    #[cold]
    fn wrong<T>(at: usize, problem: &'static str) -> Result<T, DecodeError> {
        Err(DecodeError::InvalidCbor { at, problem })
    }

    fn take(&mut self, count: u64) -> Result<&'p [u8], DecodeError> {
        let rest = &self.bytes[self.at..];
        // Compared before anything is done with it: a length is a claim.
        match usize::try_from(count).ok().and_then(|count| rest.get(..count)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Self::wrong(self.at, "the payload ends inside a value"),
        }
    }

    #[inline]
    fn head(&mut self) -> Result<Head, DecodeError> {
        let start = self.at;
        let first = self.take(1)?[0];
        let short = first & 0x1f;
        let argument = match short {
            0..=23 => Some(u64::from(short)),
            24..=27 => {
                let bytes = self.take(1 << (short - 24))?;
                Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            }
            31 if matches!(first >> 5, 2..=5 | 7) => None,
            _ => return Self::wrong(start, "a reserved length"),
        };
        Ok(Head { major: first >> 5, short, argument })
    }

    fn text(&mut self, length: Option<u64>, start: usize) -> Result<Cow<'p, [u8]>, DecodeError> {
        let piece = |this: &mut Self, length| {
            let at = this.at;
            let piece = this.take(length)?;
            if simdutf8::basic::from_utf8(piece).is_err() {
                return Self::wrong(at, "a text string is not UTF-8");
            }
            Ok(piece)
        };
        if let Some(length) = length {
            return piece(self, length).map(Cow::Borrowed);
        }
        let mut whole = Vec::new();
        while let Some(length) = self.chunk(3, start)? {
            whole.extend_from_slice(piece(self, length)?);
        }
        Ok(Cow::Owned(whole))
    }

    /// Length of the next chunk of a string of indefinite length (section 3.2.3); `None`: it has ended.
    fn chunk(&mut self, major: u8, start: usize) -> Result<Option<u64>, DecodeError> {
        let head = self.head()?;
        match (head.major, head.argument) {
            (7, None) => Ok(None),
            (found, Some(length)) if found == major => Ok(Some(length)),
            _ => Self::wrong(start, "a string of indefinite length holds something else than its chunks"),
        }
    }

    fn byte_string(&mut self, length: Option<u64>, start: usize) -> Result<&'p [u8], DecodeError> {
        if let Some(length) = length {
            return self.take(length);
        }
        let from = self.at;
        let mut to = from;
        while let Some(length) = self.chunk(2, start)? {
            self.take(length)?;
            to = self.at;
        }
        Ok(&self.bytes[from..to])
    }

    /// The content of tag 0 or 1, as a time.
    fn time(&mut self, tag: u64, at: usize, tags: usize) -> Result<Token<'p>, DecodeError> {
        let content = self.value(tags + 1)?;
        match (tag, &content) {
            (0, Token::Text(text)) => match time::from_iso(text) {
                Ok(micros) => Ok(Token::Time(Some(micros))),
                Err(time::TimeFault::OutOfRange) => Ok(Token::Time(None)),
                Err(time::TimeFault::Invalid) => {
                    Self::wrong(at, "tag 0 is not around an RFC 3339 date and time")
                }
            },
            (1, Token::Int(_) | Token::Uint(_) | Token::Double(_)) => Ok(Token::Time(seconds(&content))),
            (0, _) => Self::wrong(at, "tag 0 is not around text"),
            _ => Self::wrong(at, "tag 1 is not around a number"),
        }
    }
}

impl<'p> CborSource<'p> {
    /// The value at the cursor, which has `tags` tags already.
    fn value(&mut self, tags: usize) -> Result<Token<'p>, DecodeError> {
        let at = self.at;
        if tags > MAX_TAGS {
            return Self::wrong(at, "more than 8 tags around one value");
        }
        let Head { major, short, argument } = self.head()?;
        Ok(match (major, argument) {
            (0, Some(value)) => i64::try_from(value).map_or(Token::Uint(value), Token::Int),
            // -1 - value; below the range of i64 only a double is near.
            (1, Some(value)) => match i64::try_from(value) {
                Ok(value) => Token::Int(-1 - value),
                Err(_) => Token::Double(-1.0 - value as f64),
            },
            (2, length) => Token::Bytes(self.byte_string(length, at)?),
            (3, length) => Token::Text(self.text(length, at)?),
            (4, length) => Token::Array(length),
            (5, length) => Token::Map(length),
            (6, Some(tag @ (0 | 1))) => return self.time(tag, at, tags),
            (6, Some(_)) => return self.value(tags + 1),
            (7, Some(value)) => match (short, value) {
                (20, _) => Token::Bool(false),
                (21, _) => Token::Bool(true),
                (24, 0..32) => return Self::wrong(at, "a simple value in the wrong length"),
                (25, bits) => Token::Double(half(bits as u16)),
                (26, bits) => Token::Double(f64::from(f32::from_bits(bits as u32))),
                (27, bits) => Token::Double(f64::from_bits(bits)),
                // null, undefined, and simple values that mean nothing to anybody.
                _ => Token::Null,
            },
            _ => return Self::wrong(at, "a break outside a value of indefinite length"),
        })
    }
}

/// Seconds since the epoch, in microseconds.
fn seconds(token: &Token<'_>) -> Option<i64> {
    let text = match token {
        Token::Int(value) => value.to_string(),
        Token::Double(value) if value.is_finite() => value.to_string(),
        _ => return None,
    };
    let (number, _) = Number::scan(text.as_bytes(), 0).ok()?;
    time::from_number(number, TimeUnit::S)
}

/// RFC 8949 appendix D.
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (bits >> 10 & 0x1f, f64::from(bits & 0x3ff));
    let value = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2f64.powi(i32::from(exponent) - 25),
    };
    if bits & 0x8000 == 0 { value } else { -value }
}

impl<'p> Source<'p> for CborSource<'p> {
    fn at(&self) -> usize {
        self.at
    }

    #[inline]
    fn token(&mut self) -> Result<Token<'p>, DecodeError> {
        self.value(0)
    }

    fn next(&mut self, open: &mut Open) -> Result<bool, DecodeError> {
        if open.left.is_some() {
            return Ok(open.count_down());
        }
        if self.bytes.get(self.at) == Some(&0xff) {
            self.at += 1;
            return Ok(false);
        }
        Ok(true)
    }

    fn key(&mut self) -> Result<Option<Cow<'p, [u8]>>, DecodeError> {
        let at = self.at;
        let token = self.token()?;
        Ok(match token {
            Token::Text(text) => Some(text),
            Token::Int(value) => Some(Cow::Owned(value.to_string().into_bytes())),
            Token::Uint(value) => Some(Cow::Owned(value.to_string().into_bytes())),
            Token::Map(_) | Token::Array(_) => {
                return Self::wrong(at, "a map has a key that is an array or a map");
            }
            _ => None,
        })
    }

    fn finish(&mut self) -> Result<(), DecodeError> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Self::wrong(self.at, "bytes follow the reading")
    }
}
