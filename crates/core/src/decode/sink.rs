//! Where readers of all formats put values: conversions to column types, NULLs, duplicates and faults, in one place.
//!
//! A value that does not fit its column becomes a fault in the cell and reading goes on: the payload may turn out
//! to be malformed, which comes first, or a later duplicate of the field may replace the value.

use std::borrow::Cow;

use super::decoded::{Decoded, Stored};
use super::error::DecodeError;
use super::number::{NotBigint, Number};
use super::plan::{Kind, Slot, StreamPlan};
use super::spec::TimeUnit;
use super::time::{self, TimeFault};

/// A value, or the head of a container, as a format gives it.
#[derive(Clone, Debug)]
pub(super) enum Token<'p> {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer above the range of `Int`.
    Uint(u64),
    Double(f64),
    /// A decimal as written.
    Number(Number<'p>),
    /// Valid UTF-8.
    Text(Cow<'p, [u8]>),
    Bytes(&'p [u8]),
    /// A time by the format's own rules, microseconds since the Unix epoch; `None`: outside the years 1 to 9999.
    Time(Option<i64>),
    /// Members, if the head tells.
    Map(Option<u64>),
    Array(Option<u64>),
}

impl Token<'_> {
    pub fn kind(&self) -> &'static str {
        match self {
            Token::Null => "null",
            Token::Bool(_) => "a boolean",
            Token::Int(_) | Token::Uint(_) | Token::Double(_) | Token::Number(_) => "a number",
            Token::Text(_) => "a string",
            Token::Bytes(_) => "bytes",
            Token::Time(_) => "a time",
            Token::Map(_) => "an object",
            Token::Array(_) => "an array",
        }
    }
}

/// The row being filled.
pub(super) struct Sink<'a> {
    pub plan: &'a StreamPlan,
    pub out: &'a mut Decoded,
    /// Its first cell.
    base: usize,
}

impl<'a> Sink<'a> {
    pub fn new(plan: &'a StreamPlan, out: &'a mut Decoded) -> Sink<'a> {
        Sink { plan, out, base: 0 }
    }

    /// Begins a reading.
    #[inline]
    pub fn begin(&mut self) -> Result<(), DecodeError> {
        self.base = self.out.push_row()?;
        Ok(())
    }

    /// First cell of the row, for `resume`.
    pub fn mark(&self) -> usize {
        self.base
    }

    /// Goes on with an earlier row.
    pub fn resume(&mut self, mark: usize) {
        self.base = mark;
    }

    /// Ends a reading; its first error of meaning goes to `fault` unless one is there.
    #[inline]
    pub fn end(&mut self, fault: &mut Option<DecodeError>) {
        if !self.out.faults.is_empty() {
            if fault.is_none() {
                *fault = self.out.row_fault(self.base);
            }
            self.out.faults.clear();
        }
    }

    /// Puts a value into its column. False: a container, or it does not fit and the stream keeps such values in
    /// `_extra`; nothing has changed.
    pub fn put(&mut self, slot: Slot, at: usize, token: &Token<'_>) -> bool {
        let column = slot.column;
        let cell = match (slot.kind, token) {
            (_, Token::Null) => {
                self.reset(column);
                return true;
            }
            (_, Token::Map(_) | Token::Array(_)) => return false,
            (Kind::Double, Token::Int(value)) => Stored::Double(*value as f64),
            (Kind::Double, Token::Uint(value)) => Stored::Double(*value as f64),
            (Kind::Double, Token::Double(value)) => Stored::Double(*value),
            (Kind::Double, Token::Number(number)) => match number.to_double() {
                Some(value) => Stored::Double(value),
                None => return self.misfit(slot, |sink| sink.number_fault(column, at, "a double")),
            },
            (Kind::Bigint, Token::Int(value)) => Stored::Bigint(*value),
            (Kind::Bigint, Token::Uint(_)) => {
                return self.misfit(slot, |sink| sink.number_fault(column, at, "a bigint"));
            }
            (Kind::Bigint, Token::Double(value)) => match whole(*value) {
                Ok(value) => Stored::Bigint(value),
                Err(why) => return self.misfit(slot, |sink| sink.not_bigint(column, at, why)),
            },
            (Kind::Bigint, Token::Number(number)) => match number.to_bigint() {
                Ok(value) => Stored::Bigint(value),
                Err(why) => return self.misfit(slot, |sink| sink.not_bigint(column, at, why)),
            },
            (Kind::Boolean, Token::Bool(value)) => Stored::Boolean(*value),
            (Kind::String, Token::Text(text)) => match self.out.text(|arena| arena.extend_from_slice(text)) {
                Ok(cell) => cell,
                Err(error) => {
                    self.fault(column, error);
                    return true;
                }
            },
            (Kind::Timestamp(_), Token::Time(micros)) => return self.time(slot, at, *micros),
            (Kind::Timestamp(unit), Token::Int(_) | Token::Uint(_) | Token::Double(_) | Token::Number(_))
                if unit != TimeUnit::Iso =>
            {
                return self.time(slot, at, numeric_time(token, unit));
            }
            (Kind::Timestamp(TimeUnit::Auto | TimeUnit::Iso), Token::Text(text)) => {
                match time::from_iso(text) {
                    Ok(micros) => Stored::Timestamp(micros),
                    Err(fault) => return self.misfit(slot, |sink| sink.time_fault(column, at, fault)),
                }
            }
            (kind, other) => {
                let found = other.kind();
                return self.misfit(slot, |sink| sink.conflict(column, at, kind.wanted(), found));
            }
        };
        self.set(column, cell);
        true
    }

    /// The value does not fit: a fault, or for the caller to keep elsewhere.
    #[cold]
    fn misfit(&mut self, slot: Slot, fault: impl FnOnce(&mut Self)) -> bool {
        if self.is_inferred(slot.column) {
            return false;
        }
        fault(self);
        true
    }

    fn time(&mut self, slot: Slot, at: usize, micros: Option<i64>) -> bool {
        match micros {
            Some(micros) => {
                self.set(slot.column, Stored::Timestamp(micros));
                true
            }
            None => self.misfit(slot, |sink| sink.time_fault(slot.column, at, TimeFault::OutOfRange)),
        }
    }

    /// The event time is declared also where the other fields are inferred.
    fn is_inferred(&self, column: u16) -> bool {
        self.plan.extra.is_some() && usize::from(column) != self.plan.captures
    }

    #[inline(always)]
    pub fn set(&mut self, column: u16, cell: Stored) {
        if let Some(to) = self.out.cells.get_mut(self.base + column as usize) {
            *to = cell;
        }
    }

    /// Range of the arena that the column's text takes.
    pub fn bytes(&self, column: u16) -> Option<std::ops::Range<usize>> {
        match self.out.cells.get(self.base + column as usize)? {
            Stored::Bytes { start, end } => Some(*start as usize..*end as usize),
            _ => None,
        }
    }

    pub fn is_null(&self, column: u16) -> bool {
        matches!(self.out.cells.get(self.base + column as usize), Some(Stored::Null))
    }

    /// As if the field were missing: NULL, or the time of arrival for the event time.
    pub fn reset(&mut self, column: u16) {
        let cell = self.out.template.get(column as usize).copied().unwrap_or(Stored::Null);
        self.set(column, cell);
    }

    #[cold]
    pub fn fault(&mut self, column: u16, error: DecodeError) {
        // A cell holds one fault at a time, so that no number of duplicates grows the list.
        match self.out.cells.get(self.base + column as usize) {
            Some(Stored::Fault(at)) => self.out.faults[*at as usize] = error,
            _ => {
                self.set(column, Stored::Fault(self.out.faults.len() as u32));
                self.out.faults.push(error);
            }
        }
    }

    #[cold]
    pub fn conflict(&mut self, column: u16, at: usize, wanted: &'static str, found: &'static str) {
        let field = self.plan.names[column as usize].clone();
        self.fault(column, DecodeError::TypeConflict { field, at, wanted, found });
    }

    #[cold]
    pub fn not_bigint(&mut self, column: u16, at: usize, why: NotBigint) {
        match why {
            NotBigint::OutOfRange => self.number_fault(column, at, "a bigint"),
            NotBigint::Fraction => self.conflict(column, at, "a bigint", "a number with a fraction"),
        }
    }

    #[cold]
    pub fn number_fault(&mut self, column: u16, at: usize, wanted: &'static str) {
        let field = self.plan.names[column as usize].clone();
        self.fault(column, DecodeError::NumberOutOfRange { field, at, wanted });
    }

    #[cold]
    pub fn time_fault(&mut self, column: u16, at: usize, fault: TimeFault) {
        let field = self.plan.names[column as usize].clone();
        let error = match fault {
            TimeFault::Invalid => DecodeError::InvalidTime { field, at },
            TimeFault::OutOfRange => DecodeError::TimeOutOfRange { field, at },
        };
        self.fault(column, error);
    }
}

impl Kind {
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Kind::Double => "a number",
            Kind::Bigint => "a whole number",
            Kind::Boolean => "true or false",
            Kind::String => "a string",
            Kind::Timestamp(TimeUnit::Auto) => "a time as number or ISO 8601 text",
            Kind::Timestamp(TimeUnit::Iso) => "a time as ISO 8601 text",
            Kind::Timestamp(_) => "a time as number",
        }
    }
}

/// The integer that a binary floating-point number is.
fn whole(value: f64) -> Result<i64, NotBigint> {
    // 2^63 is a double, the greatest i64 is not.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    match value {
        _ if !(-LIMIT..LIMIT).contains(&value) => Err(NotBigint::OutOfRange),
        _ if value.fract() != 0.0 => Err(NotBigint::Fraction),
        _ => Ok(value as i64),
    }
}

/// A time given as a number: binary ones go by their shortest decimal, which is what the device meant.
fn numeric_time(token: &Token<'_>, unit: TimeUnit) -> Option<i64> {
    use std::io::Write;
    let mut text = [0u8; 400];
    let mut rest = &mut text[..];
    let written = match token {
        Token::Number(number) => return time::from_number(*number, unit),
        Token::Int(value) if *value >= 0 => return time::from_integer(*value, unit),
        Token::Int(value) => write!(rest, "{value}"),
        Token::Uint(value) => write!(rest, "{value}"),
        Token::Double(value) if value.is_finite() => write!(rest, "{value}"),
        _ => return None,
    };
    let length = 400 - rest.len();
    written.ok()?;
    let (number, end) = Number::scan(&text[..length], 0).ok()?;
    (end == length).then(|| time::from_number(number, unit)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_that_are_integers() {
        assert_eq!(whole(-3.0), Ok(-3));
        assert_eq!(whole(2.5), Err(NotBigint::Fraction));
        assert_eq!(whole(9.3e18), Err(NotBigint::OutOfRange));
        assert_eq!(whole(f64::NAN), Err(NotBigint::OutOfRange));
    }

    #[test]
    fn binary_times_go_by_their_decimal() {
        let us = |token, unit| numeric_time(&token, unit);
        assert_eq!(us(Token::Double(1_732_000_000.123), TimeUnit::Auto), Some(1_732_000_000_123_000));
        assert_eq!(us(Token::Int(1_732_000_000_123), TimeUnit::Auto), Some(1_732_000_000_123_000));
        assert_eq!(us(Token::Double(f64::MAX), TimeUnit::S), None);
        assert_eq!(us(Token::Double(f64::NAN), TimeUnit::S), None);
        assert_eq!(us(Token::Double(5e-324), TimeUnit::S), Some(0));
        assert_eq!(us(Token::Int(-1), TimeUnit::S), Some(-1_000_000));
    }
}
