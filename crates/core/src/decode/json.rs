//! The syntax of JSON (RFC 8259): a cursor over a payload, with no opinion on what values mean.
//!
//! The payload has been checked to be UTF-8 before. Skipping a value validates it fully and needs no
//! recursion: which containers are open is one bit each.

use super::MAX_DEPTH;
use super::error::DecodeError;
use super::number::Number;

/// Why a payload is not JSON, small enough to travel in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    at: u32,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    Value,
    Key,
    Colon,
    CommaOrBrace,
    CommaOrBracket,
    End,
    Number,
    Control,
    Escape,
    UnclosedString,
    TooDeep,
}

pub(super) type Parsed<T> = Result<T, SyntaxError>;

impl From<SyntaxError> for DecodeError {
    #[cold]
    fn from(error: SyntaxError) -> DecodeError {
        let problem = match error.problem {
            Problem::TooDeep => return DecodeError::TooDeep { at: error.at as usize },
            Problem::Value => "expected a value",
            Problem::Key => "expected a key in double quotes",
            Problem::Colon => "expected a colon after the key",
            Problem::CommaOrBrace => "expected a comma or a closing brace",
            Problem::CommaOrBracket => "expected a comma or a closing bracket",
            Problem::End => "expected the end of the payload",
            Problem::Number => "a number needs a digit here, or starts with a zero too many",
            Problem::Control => "a control character in a string must be escaped",
            Problem::Escape => "a backslash starts no known escape here",
            Problem::UnclosedString => "a string is not closed",
        };
        DecodeError::InvalidJson { at: error.at as usize, problem }
    }
}

/// The bytes between the quotes of a string.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawString<'p> {
    pub bytes: &'p [u8],
    pub escaped: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Cursor<'p> {
    pub text: &'p [u8],
    pub at: usize,
}

impl<'p> Cursor<'p> {
    pub fn new(text: &'p [u8]) -> Cursor<'p> {
        Cursor { text, at: 0 }
    }

    #[cold]
    #[inline(never)]
    fn error<T>(&self, at: usize, problem: Problem) -> Parsed<T> {
        Err(SyntaxError { at: at as u32, problem })
    }

    #[cold]
    pub fn unexpected<T>(&self) -> Parsed<T> {
        self.error(self.at, Problem::Value)
    }

    /// The byte at the cursor; 0, which no JSON token starts with, at the end.
    #[inline(always)]
    pub fn peek(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }

    /// Skips whitespace and peeks.
    #[inline(always)]
    pub fn next_token(&mut self) -> u8 {
        let byte = self.peek();
        if byte > b' ' { byte } else { self.skip_whitespace() }
    }

    #[inline(never)]
    fn skip_whitespace(&mut self) -> u8 {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
        self.peek()
    }

    /// Nothing but whitespace may follow.
    pub fn finish(&mut self) -> Parsed<()> {
        self.next_token();
        if self.at == self.text.len() { Ok(()) } else { self.error(self.at, Problem::End) }
    }

    #[inline(always)]
    pub fn open(&mut self, depth: u32) -> Parsed<()> {
        if depth >= MAX_DEPTH {
            return self.error(self.at, Problem::TooDeep);
        }
        self.at += 1;
        Ok(())
    }

    /// Moves past the quote that starts a key.
    #[inline(always)]
    pub fn key_quote(&mut self) -> Parsed<()> {
        if self.next_token() != b'"' {
            return self.error(self.at, Problem::Key);
        }
        self.at += 1;
        Ok(())
    }

    #[inline(always)]
    pub fn colon(&mut self) -> Parsed<()> {
        if self.next_token() != b':' {
            return self.error(self.at, Problem::Colon);
        }
        self.at += 1;
        Ok(())
    }

    /// After a member of an object: true if a comma announces the next one, false if the object has ended.
    #[inline(always)]
    pub fn next_member(&mut self) -> Parsed<bool> {
        self.separator(b'}', Problem::CommaOrBrace)
    }

    /// After an element of an array, likewise.
    #[inline(always)]
    pub fn next_element(&mut self) -> Parsed<bool> {
        self.separator(b']', Problem::CommaOrBracket)
    }

    #[inline(always)]
    fn separator(&mut self, close: u8, problem: Problem) -> Parsed<bool> {
        let byte = self.next_token();
        if byte != b',' && byte != close {
            return self.error(self.at, problem);
        }
        self.at += 1;
        Ok(byte == b',')
    }

    /// `true`, `false` or `null`, whole.
    #[inline(always)]
    pub fn literal(&mut self, word: &'static [u8]) -> Parsed<()> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return self.error(self.at, Problem::Value);
        }
        self.at += word.len();
        Ok(())
    }

    #[inline(always)]
    pub fn number(&mut self) -> Parsed<Number<'p>> {
        match Number::scan(self.text, self.at) {
            Ok((number, end)) => {
                self.at = end;
                Ok(number)
            }
            Err(at) => self.error(at, Problem::Number),
        }
    }

    #[inline(never)]
    fn skip_number(&mut self) -> Parsed<()> {
        self.number().map(|_| ())
    }

    /// The string whose opening quote has been passed; moves past the closing one and checks the escapes.
    #[inline(always)]
    pub fn string(&mut self) -> Parsed<RawString<'p>> {
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at = plain_end(self.text, self.at);
            match self.text.get(self.at) {
                Some(b'"') => {
                    let bytes = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(RawString { bytes, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.error(self.at, Problem::Control),
                None => return self.error(start.saturating_sub(1), Problem::UnclosedString),
            }
        }
    }

    #[inline(never)]
    fn escape(&mut self) -> Parsed<()> {
        let length = match self.text.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') if hex4(self.text, self.at + 2).is_some() => 6,
            _ => return self.error(self.at, Problem::Escape),
        };
        self.at += length;
        Ok(())
    }

    /// Skips the value at the cursor, where `depth` containers are open already.
    #[inline(always)]
    pub fn skip_value(&mut self, depth: u32) -> Parsed<()> {
        if self.next_token() == b'"' {
            self.at += 1;
            return self.string().map(|_| ());
        }
        self.skip_other(depth)
    }

    #[inline(never)]
    fn skip_other(&mut self, depth: u32) -> Parsed<()> {
        // Bit 0 is the innermost open container: 1 for an object.
        let mut kinds = 0u64;
        let mut open = 0;
        loop {
            match self.next_token() {
                b'"' => {
                    self.at += 1;
                    self.string()?;
                }
                b'-' | b'0'..=b'9' => self.skip_number()?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                bracket @ (b'{' | b'[') => {
                    self.open(depth + open)?;
                    let object = bracket == b'{';
                    if self.next_token() == if object { b'}' } else { b']' } {
                        self.at += 1;
                    } else {
                        open += 1;
                        kinds = kinds << 1 | object as u64;
                        if object {
                            self.member_key()?;
                        }
                        continue;
                    }
                }
                _ => return self.unexpected(),
            }
            // A value has ended: close what ends with it, or go on to the next one.
            loop {
                if open == 0 {
                    return Ok(());
                }
                let object = kinds & 1 == 1;
                if if object { self.next_member()? } else { self.next_element()? } {
                    if object {
                        self.member_key()?;
                    }
                    break;
                }
                open -= 1;
                kinds >>= 1;
            }
        }
    }

    fn member_key(&mut self) -> Parsed<()> {
        self.key_quote()?;
        self.string()?;
        self.colon()
    }
}

/// What kind of value starts with `byte`, for error messages.
pub(super) fn kind_of(byte: u8) -> &'static str {
    match byte {
        b'"' => "a string",
        b'{' => "an object",
        b'[' => "an array",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        _ => "a number",
    }
}

/// Position of the first quote, backslash or control character from `at`, or the end.
#[inline(always)]
fn plain_end(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    while let Some(chunk) = text.get(at..at + 8) {
        let chunk = u64::from_le_bytes([
            chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7],
        ]);
        // The lowest marked byte is exact; borrows can only mark bytes above it.
        let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
        let quote = zero(chunk ^ (ONES * b'"' as u64));
        let backslash = zero(chunk ^ (ONES * b'\\' as u64));
        let control = chunk.wrapping_sub(ONES * 0x20) & !chunk & HIGHS;
        let marked = quote | backslash | control;
        if marked != 0 {
            return at + (marked.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = text.get(at) {
        if matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            break;
        }
        at += 1;
    }
    at
}

fn hex4(text: &[u8], at: usize) -> Option<u32> {
    text.get(at..at + 4)?.iter().try_fold(0, |value, digit| Some(value << 4 | (*digit as char).to_digit(16)?))
}

/// Appends the string without its escapes; false if an escape is half a surrogate pair, which no UTF-8 can hold.
///
/// `raw` has passed `Cursor::string`.
pub(super) fn unescape(raw: &[u8], into: &mut Vec<u8>) -> bool {
    let mut at = 0;
    while let Some(offset) = memchr::memchr(b'\\', &raw[at..]) {
        into.extend_from_slice(&raw[at..at + offset]);
        at += offset;
        let plain = match raw.get(at + 1) {
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let Some((character, length)) = unicode_escape(raw, at) else { return false };
                into.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                at += length;
                continue;
            }
            Some(itself) => *itself,
            None => return false,
        };
        into.push(plain);
        at += 2;
    }
    into.extend_from_slice(&raw[at..]);
    true
}

/// The character of the `\uXXXX` at `at`, or of the pair of them, and its length in the text.
fn unicode_escape(raw: &[u8], at: usize) -> Option<(char, usize)> {
    let first = hex4(raw, at + 2)?;
    if !(0xd800..0xdc00).contains(&first) {
        return Some((char::from_u32(first)?, 6));
    }
    if raw.get(at + 6..at + 8)? != b"\\u" {
        return None;
    }
    let second = hex4(raw, at + 8)?;
    if !(0xdc00..0xe000).contains(&second) {
        return None;
    }
    Some((char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))?, 12))
}
