//! MessagePack as tokens: the specification of github.com/msgpack/msgpack, with the timestamp extension (type -1).
//!
//! Integer keys of maps are named by their decimal text. Other extensions are bytes, which no column holds.

use std::borrow::Cow;

use super::error::DecodeError;
use super::sink::Token;
use super::time::{MAX_US, MIN_US};
use super::tree::{Open, Source};

pub(super) struct MsgpackSource<'p> {
    bytes: &'p [u8],
    at: usize,
}

impl<'p> MsgpackSource<'p> {
    pub fn new(payload: &'p [u8]) -> MsgpackSource<'p> {
        MsgpackSource { bytes: payload, at: 0 }
    }

    #[cold]
    fn wrong<T>(at: usize, problem: &'static str) -> Result<T, DecodeError> {
        Err(DecodeError::InvalidMsgpack { at, problem })
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

    /// Big-endian, of 1, 2, 4 or 8 bytes.
    #[inline]
    fn unsigned(&mut self, bytes: u64) -> Result<u64, DecodeError> {
        Ok(self.take(bytes)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn text(&mut self, length: u64) -> Result<Token<'p>, DecodeError> {
        let at = self.at;
        let text = self.take(length)?;
        if simdutf8::basic::from_utf8(text).is_err() {
            return Self::wrong(at, "a string is not UTF-8");
        }
        Ok(Token::Text(Cow::Borrowed(text)))
    }

    fn extension(&mut self, length: u64) -> Result<Token<'p>, DecodeError> {
        let at = self.at;
        let ty = self.unsigned(1)? as u8 as i8;
        let data = self.take(length)?;
        if ty != -1 {
            return Ok(Token::Bytes(data));
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let (seconds, nanos) = match data.len() {
            4 => (number(data) as i64, 0),
            8 => ((number(data) & 0x3_ffff_ffff) as i64, number(data) >> 34),
            12 => (number(&data[4..]) as i64, number(&data[..4])),
            _ => return Self::wrong(at, "a timestamp is 4, 8 or 12 bytes long"),
        };
        if nanos > 999_999_999 {
            return Self::wrong(at, "a timestamp has more than 999999999 nanoseconds");
        }
        let micros =
            seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(nanos as i64 / 1000));
        Ok(Token::Time(micros.filter(|micros| (MIN_US..=MAX_US).contains(micros))))
    }
}

impl<'p> Source<'p> for MsgpackSource<'p> {
    fn at(&self) -> usize {
        self.at
    }

    fn token(&mut self) -> Result<Token<'p>, DecodeError> {
        let at = self.at;
        let first = self.take(1)?[0];
        Ok(match first {
            0x00..=0x7f => Token::Int(i64::from(first)),
            0x80..=0x8f => Token::Map(Some(u64::from(first & 0x0f))),
            0x90..=0x9f => Token::Array(Some(u64::from(first & 0x0f))),
            0xa0..=0xbf => return self.text(u64::from(first & 0x1f)),
            0xc0 => Token::Null,
            0xc1 => return Self::wrong(at, "the byte 0xc1 starts no value"),
            0xc2 => Token::Bool(false),
            0xc3 => Token::Bool(true),
            0xc4..=0xc6 => {
                let length = self.unsigned(1 << (first - 0xc4))?;
                Token::Bytes(self.take(length)?)
            }
            0xc7..=0xc9 => {
                let length = self.unsigned(1 << (first - 0xc7))?;
                return self.extension(length);
            }
            0xca => Token::Double(f64::from(f32::from_bits(self.unsigned(4)? as u32))),
            0xcb => Token::Double(f64::from_bits(self.unsigned(8)?)),
            0xcc..=0xcf => {
                let value = self.unsigned(1 << (first - 0xcc))?;
                i64::try_from(value).map_or(Token::Uint(value), Token::Int)
            }
            0xd0 => Token::Int(i64::from(self.unsigned(1)? as u8 as i8)),
            0xd1 => Token::Int(i64::from(self.unsigned(2)? as u16 as i16)),
            0xd2 => Token::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            0xd3 => Token::Int(self.unsigned(8)? as i64),
            0xd4..=0xd8 => return self.extension(1 << (first - 0xd4)),
            0xd9..=0xdb => {
                let length = self.unsigned(1 << (first - 0xd9))?;
                return self.text(length);
            }
            0xdc | 0xdd => Token::Array(Some(self.unsigned(2 << (first - 0xdc))?)),
            0xde | 0xdf => Token::Map(Some(self.unsigned(2 << (first - 0xde))?)),
            0xe0..=0xff => Token::Int(i64::from(first as i8)),
        })
    }

    fn next(&mut self, open: &mut Open) -> Result<bool, DecodeError> {
        Ok(open.count_down())
    }

    fn key(&mut self) -> Result<Option<Cow<'p, [u8]>>, DecodeError> {
        let at = self.at;
        Ok(match self.token()? {
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
