//! CSV (RFC 4180): one reading a record, comma-separated; line ends may be LF alone.
//!
//! If any cell of the first record is the name of a field (or of the event time), that record is the header. Else the cells
//! are, in order, the event time where the stream declares one and the fields as declared. An empty cell without quotes is NULL.
//! Text becomes what the column wants: a number, `true` or `false`, a time, or itself.

use std::borrow::Cow;

use super::decoded::Decoded;
use super::error::DecodeError;
use super::extra;
use super::number::Number;
use super::plan::{Kind, Slot, StreamPlan};
use super::reading::check_utf8;
use super::sink::{Sink, Token};

/// Cells of one record. Ours; the declared columns and some that are not.
const MAX_CELLS: usize = 4096;

fn wrong<T>(at: usize, problem: &'static str) -> Result<T, DecodeError> {
    Err(DecodeError::InvalidCsv { at, problem })
}

struct Cell<'p> {
    at: usize,
    text: Cow<'p, [u8]>,
    quoted: bool,
}

/// Appends the readings of `payload` to `into`, whose template has been filled.
pub(super) fn read(plan: &StreamPlan, payload: &[u8], into: &mut Decoded) -> Result<(), DecodeError> {
    check_utf8(payload)?;
    let mut records = Records { text: payload, at: 0 };
    let mut cells = Vec::new();
    if !records.next(&mut cells)? {
        return wrong(0, "there is no record");
    }
    let is_header = cells.iter().any(|cell| plan.flat.find(&cell.text).is_some()) || plan.extra.is_some();
    let mut header: Vec<Cow<'_, [u8]>> = Vec::new();
    let mut more = true;
    if is_header {
        header.extend(cells.drain(..).map(|cell| cell.text));
        more = records.next(&mut cells)?;
    }
    let places: Vec<&[Slot]> = if is_header {
        let slots = |name: &Cow<'_, [u8]>| plan.flat.find(name).and_then(|at| plan.flat_slots.get(at));
        header.iter().map(|name| slots(name).map_or(&[][..], Vec::as_slice)).collect()
    } else {
        plan.flat_slots.iter().map(Vec::as_slice).collect()
    };
    let mut sink = Sink::new(plan, into);
    let mut fault = None;
    while more {
        sink.begin()?;
        if let Some(extra) = cells.get(places.len()) {
            return wrong(extra.at, "a record has more cells than there are columns");
        }
        for (column, (cell, slots)) in cells.iter().zip(&places).enumerate() {
            let mut taken = true;
            for slot in *slots {
                taken &= sink.put(*slot, cell.at, &cell.token(Some(slot.kind)));
            }
            let name = header.get(column).map_or(&[][..], |name| name);
            if plan.extra.is_some() && (!taken || slots.is_empty()) {
                let token = cell.token(None);
                if slots.is_empty() {
                    extra::undeclared_scalar(&mut sink, name, &token);
                } else {
                    extra::keep_scalar(&mut sink, name, &token);
                }
            }
        }
        extra::finish(&mut sink)?;
        sink.end(&mut fault);
        more = records.next(&mut cells)?;
    }
    fault.map_or(Ok(()), Err)
}

impl<'p> Cell<'p> {
    /// The value for a column of that kind; `None`: what the text looks like.
    fn token(&self, kind: Option<Kind>) -> Token<'_> {
        if self.text.is_empty() && !self.quoted {
            return Token::Null;
        }
        let text = || Token::Text(Cow::Borrowed(&self.text[..]));
        let number = || match Number::scan(&self.text, 0) {
            Ok((number, end)) if end == self.text.len() => Some(Token::Number(number)),
            _ => None,
        };
        let boolean = || match &self.text[..] {
            b"true" | b"TRUE" | b"True" => Some(Token::Bool(true)),
            b"false" | b"FALSE" | b"False" => Some(Token::Bool(false)),
            _ => None,
        };
        let found = match kind {
            Some(Kind::String) => None,
            Some(Kind::Boolean) => boolean(),
            Some(_) => number(),
            None if self.quoted => None,
            None => number().or_else(boolean),
        };
        found.unwrap_or_else(text)
    }
}

struct Records<'p> {
    text: &'p [u8],
    at: usize,
}

impl<'p> Records<'p> {
    /// The next record that is no empty line; false at the end.
    fn next(&mut self, cells: &mut Vec<Cell<'p>>) -> Result<bool, DecodeError> {
        cells.clear();
        while self.line_end() {}
        if self.at == self.text.len() {
            return Ok(false);
        }
        loop {
            if cells.len() == MAX_CELLS {
                return wrong(self.at, "a record has more than 4096 cells");
            }
            cells.push(self.cell()?);
            if self.text.get(self.at) != Some(&b',') {
                break;
            }
            self.at += 1;
        }
        if self.line_end() || self.at == self.text.len() {
            return Ok(true);
        }
        wrong(self.at, "a closing quote is followed by text, or a carriage return stands alone")
    }

    fn line_end(&mut self) -> bool {
        let length = match self.text.get(self.at..) {
            Some([b'\n', ..]) => 1,
            Some([b'\r', b'\n', ..]) => 2,
            _ => return false,
        };
        self.at += length;
        true
    }

    fn cell(&mut self) -> Result<Cell<'p>, DecodeError> {
        let at = self.at;
        if self.text.get(at) != Some(&b'"') {
            let rest = &self.text[at..];
            let end = memchr::memchr3(b',', b'\n', b'\r', rest).unwrap_or(rest.len());
            if let Some(quote) = memchr::memchr(b'"', &rest[..end]) {
                return wrong(at + quote, "a quote inside a cell that does not begin with one");
            }
            self.at += end;
            return Ok(Cell { at, text: Cow::Borrowed(&rest[..end]), quoted: false });
        }
        self.at += 1;
        let begin = self.at;
        let mut whole: Option<Vec<u8>> = None;
        loop {
            let Some(quote) = memchr::memchr(b'"', &self.text[self.at..]) else {
                return wrong(at, "a quoted cell is not closed");
            };
            let piece = &self.text[self.at..self.at + quote];
            self.at += quote + 1;
            if self.text.get(self.at) == Some(&b'"') {
                // Two quotes are one.
                let whole = whole.get_or_insert_default();
                whole.extend_from_slice(piece);
                whole.push(b'"');
                self.at += 1;
                continue;
            }
            let text = match whole {
                None => Cow::Borrowed(&self.text[begin..self.at - 1]),
                Some(mut whole) => {
                    whole.extend_from_slice(piece);
                    Cow::Owned(whole)
                }
            };
            return Ok(Cell { at, text, quoted: true });
        }
    }
}
