//! From JSON to cells, in one pass, guided by the plan: declared fields are converted, the rest is skipped.
//!
//! A value that does not fit its column becomes a fault in the cell and reading goes on: the payload may turn out
//! not to be JSON at all, which comes first, or a later duplicate of the key may replace the value.

use super::decoded::{Decoded, Stored};
use super::error::DecodeError;
use super::json::{Cursor, Parsed, kind_of, unescape};
use super::number::NotBigint;
use super::plan::{Kind, Node, Slot, StreamPlan, Target};
use super::spec::TimeUnit;
use super::time::{self, TimeFault};

/// Appends the readings of `payload` to `into`, whose template has been filled.
pub(super) fn read(plan: &StreamPlan, payload: &[u8], into: &mut Decoded) -> Result<(), DecodeError> {
    if payload.is_empty() {
        return Err(DecodeError::EmptyPayload);
    }
    if payload.len() >= i32::MAX as usize {
        return Err(DecodeError::TooLarge);
    }
    // `basic` is the faster of the two for valid text, and does not say where the offence is.
    if simdutf8::basic::from_utf8(payload).is_err() {
        let at = simdutf8::compat::from_utf8(payload).map_or_else(|error| error.valid_up_to(), |_| 0);
        return Err(DecodeError::InvalidUtf8 { at });
    }
    let mut reading = Reading { plan, cursor: Cursor::new(payload), out: into, base: 0 };
    let mut fault = None;
    if reading.cursor.next_token() == b'[' {
        reading.cursor.at += 1;
        if reading.cursor.next_token() == b']' {
            reading.cursor.at += 1;
        } else {
            loop {
                reading.element(1, &mut fault)?;
                if !reading.cursor.next_element()? {
                    break;
                }
            }
        }
    } else {
        reading.element(0, &mut fault)?;
    }
    reading.cursor.finish()?;
    fault.map_or(Ok(()), Err)
}

struct Reading<'a, 'p> {
    plan: &'a StreamPlan,
    cursor: Cursor<'p>,
    out: &'a mut Decoded,
    /// First cell of the row being read.
    base: usize,
}

impl<'p> Reading<'_, 'p> {
    /// One reading, where `depth` containers are open. The first error of meaning goes to `fault`.
    #[inline]
    fn element(&mut self, depth: u32, fault: &mut Option<DecodeError>) -> Result<(), DecodeError> {
        let byte = self.cursor.next_token();
        if byte != b'{' {
            let at = self.cursor.at;
            self.cursor.skip_value(depth)?;
            fault.get_or_insert(DecodeError::NotAnObject { at, found: kind_of(byte) });
            return Ok(());
        }
        self.base = self.out.push_row()?;
        self.object(&self.plan.nodes[0], depth)?;
        if !self.out.faults.is_empty() {
            if fault.is_none() {
                *fault = self.out.row_fault(self.base);
            }
            self.out.faults.clear();
        }
        Ok(())
    }

    /// The object at the cursor.
    fn object(&mut self, node: &Node, depth: u32) -> Parsed<()> {
        self.cursor.open(depth)?;
        if self.cursor.next_token() == b'}' {
            self.cursor.at += 1;
            return Ok(());
        }
        // Devices send their keys in one order, most often that of the declaration.
        let mut expected = 0;
        loop {
            self.cursor.key_quote()?;
            let rest = &self.cursor.text[self.cursor.at..];
            let index = match node.keys.guess(expected, rest) {
                Some(length) => {
                    self.cursor.at += length;
                    Some(expected)
                }
                None => self.key(node)?,
            };
            self.cursor.colon()?;
            match index {
                None => self.cursor.skip_value(depth + 1)?,
                Some(index) => {
                    expected = if index + 1 == node.targets.len() { 0 } else { index + 1 };
                    match &node.targets[index] {
                        Target::Leaf(slot) => self.leaf(*slot, depth + 1)?,
                        Target::Leaves(slots) => self.leaves(slots, depth + 1)?,
                        Target::Object(child) => self.child(*child, depth + 1)?,
                    }
                }
            }
            if !self.cursor.next_member()? {
                return Ok(());
            }
        }
    }

    /// A key that was not the expected one.
    fn key(&mut self, node: &Node) -> Parsed<Option<usize>> {
        let key = self.cursor.string()?;
        if !key.escaped {
            return Ok(node.keys.find(key.bytes));
        }
        self.out.unescaped.clear();
        // Half a surrogate pair is in no declared name, so such a key is one of those to skip.
        Ok(unescape(key.bytes, &mut self.out.unescaped)
            .then(|| node.keys.find(&self.out.unescaped))
            .flatten())
    }

    /// A declared nested object, or what stands in its place.
    fn child(&mut self, child: usize, depth: u32) -> Parsed<()> {
        let plan = self.plan;
        let node = &plan.nodes[child];
        for column in &node.beneath {
            self.reset(*column);
        }
        match self.cursor.next_token() {
            b'{' => self.object(node, depth),
            b'n' => self.cursor.literal(b"null"),
            other => {
                let at = self.cursor.at;
                self.cursor.skip_value(depth)?;
                for column in &node.beneath {
                    self.conflict(*column, at, "an object around it", kind_of(other));
                }
                Ok(())
            }
        }
    }

    fn leaves(&mut self, slots: &[Slot], depth: u32) -> Parsed<()> {
        self.cursor.next_token();
        let start = self.cursor.at;
        for slot in slots {
            self.cursor.at = start;
            self.leaf(*slot, depth)?;
        }
        Ok(())
    }

    #[inline]
    fn leaf(&mut self, slot: Slot, depth: u32) -> Parsed<()> {
        let byte = self.cursor.next_token();
        let at = self.cursor.at;
        let column = slot.column;
        match (slot.kind, byte) {
            (Kind::Double, b'-' | b'0'..=b'9') => match self.cursor.number()?.to_double() {
                Some(value) => self.set(column, Stored::Double(value)),
                None => self.number_fault(column, at, "a double"),
            },
            (Kind::Bigint, b'-' | b'0'..=b'9') => match self.cursor.number()?.to_bigint() {
                Ok(value) => self.set(column, Stored::Bigint(value)),
                Err(NotBigint::OutOfRange) => self.number_fault(column, at, "a bigint"),
                Err(NotBigint::Fraction) => self.conflict(column, at, "a bigint", "a number with a fraction"),
            },
            (Kind::Boolean, b't') => {
                self.cursor.literal(b"true")?;
                self.set(column, Stored::Boolean(true));
            }
            (Kind::Boolean, b'f') => {
                self.cursor.literal(b"false")?;
                self.set(column, Stored::Boolean(false));
            }
            (Kind::String, b'"') => self.text(column, at)?,
            (Kind::Timestamp(unit), b'-' | b'0'..=b'9') if unit != TimeUnit::Iso => {
                match time::from_number(self.cursor.number()?, unit) {
                    Some(micros) => self.set(column, Stored::Timestamp(micros)),
                    None => self.time_fault(column, at, TimeFault::OutOfRange),
                }
            }
            (Kind::Timestamp(TimeUnit::Auto | TimeUnit::Iso), b'"') => self.time_text(column, at)?,
            (_, b'n') => {
                self.cursor.literal(b"null")?;
                self.reset(column);
            }
            (kind, _) => {
                self.cursor.skip_value(depth)?;
                self.conflict(column, at, kind.wanted(), kind_of(byte));
            }
        }
        Ok(())
    }

    #[inline]
    fn text(&mut self, column: u16, at: usize) -> Parsed<()> {
        self.cursor.at += 1;
        let raw = self.cursor.string()?;
        let mut whole = true;
        let cell = self.out.text(|arena| {
            if raw.escaped {
                whole = unescape(raw.bytes, arena);
            } else {
                arena.extend_from_slice(raw.bytes);
            }
        });
        match cell {
            Ok(cell) if whole => self.set(column, cell),
            Ok(_) => self.fault(
                column,
                DecodeError::InvalidJson { at, problem: "a string holds half a surrogate pair" },
            ),
            Err(error) => self.fault(column, error),
        }
        Ok(())
    }

    fn time_text(&mut self, column: u16, at: usize) -> Parsed<()> {
        self.cursor.at += 1;
        let raw = self.cursor.string()?;
        let micros = if raw.escaped {
            self.out.unescaped.clear();
            match unescape(raw.bytes, &mut self.out.unescaped) {
                true => time::from_iso(&self.out.unescaped),
                false => Err(TimeFault::Invalid),
            }
        } else {
            time::from_iso(raw.bytes)
        };
        match micros {
            Ok(micros) => self.set(column, Stored::Timestamp(micros)),
            Err(fault) => self.time_fault(column, at, fault),
        }
        Ok(())
    }

    #[inline(always)]
    fn set(&mut self, column: u16, cell: Stored) {
        if let Some(to) = self.out.cells.get_mut(self.base + column as usize) {
            *to = cell;
        }
    }

    /// As if the field were missing: NULL, or the time of arrival for the event time.
    fn reset(&mut self, column: u16) {
        let cell = self.out.template.get(column as usize).copied().unwrap_or(Stored::Null);
        self.set(column, cell);
    }

    #[cold]
    fn fault(&mut self, column: u16, error: DecodeError) {
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
    fn conflict(&mut self, column: u16, at: usize, wanted: &'static str, found: &'static str) {
        let field = self.plan.names[column as usize].clone();
        self.fault(column, DecodeError::TypeConflict { field, at, wanted, found });
    }

    #[cold]
    fn number_fault(&mut self, column: u16, at: usize, wanted: &'static str) {
        let field = self.plan.names[column as usize].clone();
        self.fault(column, DecodeError::NumberOutOfRange { field, at, wanted });
    }

    #[cold]
    fn time_fault(&mut self, column: u16, at: usize, fault: TimeFault) {
        let field = self.plan.names[column as usize].clone();
        let error = match fault {
            TimeFault::Invalid => DecodeError::InvalidTime { field, at },
            TimeFault::OutOfRange => DecodeError::TimeOutOfRange { field, at },
        };
        self.fault(column, error);
    }
}

impl Kind {
    fn wanted(self) -> &'static str {
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
