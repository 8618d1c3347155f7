//! JSON as tokens, for readers that take any format.

use std::borrow::Cow;

use super::error::DecodeError;
use super::json::{Cursor, RawString, unescape};
use super::reading::check_utf8;
use super::sink::Token;
use super::tree::{Open, Source};

pub(super) struct JsonSource<'p> {
    cursor: Cursor<'p>,
}

impl<'p> JsonSource<'p> {
    pub fn new(payload: &'p [u8]) -> Result<JsonSource<'p>, DecodeError> {
        check_utf8(payload)?;
        let mut cursor = Cursor::new(payload);
        cursor.next_token();
        Ok(JsonSource { cursor })
    }

    fn text(&mut self, at: usize) -> Result<Cow<'p, [u8]>, DecodeError> {
        let RawString { bytes, escaped } = self.cursor.string()?;
        if !escaped {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut whole = Vec::new();
        if unescape(bytes, &mut whole) {
            return Ok(Cow::Owned(whole));
        }
        Err(DecodeError::InvalidJson { at, problem: "a string holds half a surrogate pair" })
    }
}

impl<'p> Source<'p> for JsonSource<'p> {
    fn at(&self) -> usize {
        self.cursor.at
    }

    fn token(&mut self) -> Result<Token<'p>, DecodeError> {
        let byte = self.cursor.next_token();
        let at = self.cursor.at;
        Ok(match byte {
            b'"' => {
                self.cursor.at += 1;
                Token::Text(self.text(at)?)
            }
            b'-' | b'0'..=b'9' => Token::Number(self.cursor.number()?),
            b't' => {
                self.cursor.literal(b"true")?;
                Token::Bool(true)
            }
            b'f' => {
                self.cursor.literal(b"false")?;
                Token::Bool(false)
            }
            b'n' => {
                self.cursor.literal(b"null")?;
                Token::Null
            }
            b'{' => {
                self.cursor.at += 1;
                Token::Map(None)
            }
            b'[' => {
                self.cursor.at += 1;
                Token::Array(None)
            }
            _ => return self.cursor.unexpected().map_err(DecodeError::from),
        })
    }

    fn next(&mut self, open: &mut Open) -> Result<bool, DecodeError> {
        let close = if open.map { b'}' } else { b']' };
        let more = if std::mem::take(&mut open.first) {
            let empty = self.cursor.next_token() == close;
            self.cursor.at += usize::from(empty);
            !empty
        } else if open.map {
            self.cursor.next_member()?
        } else {
            self.cursor.next_element()?
        };
        if more && !open.map {
            self.cursor.next_token();
        }
        Ok(more)
    }

    fn key(&mut self) -> Result<Option<Cow<'p, [u8]>>, DecodeError> {
        self.cursor.key_quote()?;
        let at = self.cursor.at;
        let RawString { bytes, escaped } = self.cursor.string()?;
        let mut key = Some(Cow::Borrowed(bytes));
        if escaped {
            let mut whole = Vec::new();
            // Half a surrogate pair is in no declared name.
            key = unescape(bytes, &mut whole).then_some(Cow::Owned(whole));
        }
        debug_assert!(self.cursor.at > at);
        self.cursor.colon()?;
        self.cursor.next_token();
        Ok(key)
    }

    fn finish(&mut self) -> Result<(), DecodeError> {
        Ok(self.cursor.finish()?)
    }
}
