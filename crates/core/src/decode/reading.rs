//! From JSON to cells, in one pass, guided by the plan: declared fields are converted, the rest is skipped.
//! What becomes of values that do not fit is `sink`'s.

use super::decoded::{Decoded, Stored};
use super::error::DecodeError;
use super::json::{Cursor, Parsed, kind_of, unescape};
use super::plan::{Kind, Node, Slot, StreamPlan, Target};
use super::sink::Sink;
use super::spec::TimeUnit;
use super::time::{self, TimeFault};

/// All formats of text are UTF-8.
pub(super) fn check_utf8(payload: &[u8]) -> Result<(), DecodeError> {
    // `basic` is the faster of the two for valid text, and does not say where the offence is.
    if simdutf8::basic::from_utf8(payload).is_err() {
        let at = simdutf8::compat::from_utf8(payload).map_or_else(|error| error.valid_up_to(), |_| 0);
        return Err(DecodeError::InvalidUtf8 { at });
    }
    Ok(())
}

/// Appends the readings of `payload` to `into`, whose template has been filled.
pub(super) fn read(plan: &StreamPlan, payload: &[u8], into: &mut Decoded) -> Result<(), DecodeError> {
    check_utf8(payload)?;
    let mut reading = Reading { cursor: Cursor::new(payload), sink: Sink::new(plan, into) };
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
    cursor: Cursor<'p>,
    sink: Sink<'a>,
}

impl Reading<'_, '_> {
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
        self.sink.begin()?;
        let plan = self.sink.plan;
        self.object(&plan.nodes[0], depth)?;
        self.sink.end(fault);
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
        self.sink.out.unescaped.clear();
        // Half a surrogate pair is in no declared name, so such a key is one of those to skip.
        Ok(unescape(key.bytes, &mut self.sink.out.unescaped)
            .then(|| node.keys.find(&self.sink.out.unescaped))
            .flatten())
    }

    /// A declared nested object, or what stands in its place.
    fn child(&mut self, child: usize, depth: u32) -> Parsed<()> {
        let plan = self.sink.plan;
        let node = &plan.nodes[child];
        for column in &node.beneath {
            self.sink.reset(*column);
        }
        match self.cursor.next_token() {
            b'{' => self.object(node, depth),
            b'n' => self.cursor.literal(b"null"),
            other => {
                let at = self.cursor.at;
                self.cursor.skip_value(depth)?;
                for column in &node.beneath {
                    self.sink.conflict(*column, at, "an object around it", kind_of(other));
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
                Some(value) => self.sink.set(column, Stored::Double(value)),
                None => self.sink.number_fault(column, at, "a double"),
            },
            (Kind::Bigint, b'-' | b'0'..=b'9') => match self.cursor.number()?.to_bigint() {
                Ok(value) => self.sink.set(column, Stored::Bigint(value)),
                Err(why) => self.sink.not_bigint(column, at, why),
            },
            (Kind::Boolean, b't') => {
                self.cursor.literal(b"true")?;
                self.sink.set(column, Stored::Boolean(true));
            }
            (Kind::Boolean, b'f') => {
                self.cursor.literal(b"false")?;
                self.sink.set(column, Stored::Boolean(false));
            }
            (Kind::String, b'"') => self.text(column, at)?,
            (Kind::Timestamp(unit), b'-' | b'0'..=b'9') if unit != TimeUnit::Iso => {
                match time::from_number(self.cursor.number()?, unit) {
                    Some(micros) => self.sink.set(column, Stored::Timestamp(micros)),
                    None => self.sink.time_fault(column, at, TimeFault::OutOfRange),
                }
            }
            (Kind::Timestamp(TimeUnit::Auto | TimeUnit::Iso), b'"') => self.time_text(column, at)?,
            (_, b'n') => {
                self.cursor.literal(b"null")?;
                self.sink.reset(column);
            }
            (kind, _) => {
                self.cursor.skip_value(depth)?;
                self.sink.conflict(column, at, kind.wanted(), kind_of(byte));
            }
        }
        Ok(())
    }

    #[inline]
    fn text(&mut self, column: u16, at: usize) -> Parsed<()> {
        self.cursor.at += 1;
        let raw = self.cursor.string()?;
        let mut whole = true;
        let cell = self.sink.out.text(|arena| {
            if raw.escaped {
                whole = unescape(raw.bytes, arena);
            } else {
                arena.extend_from_slice(raw.bytes);
            }
        });
        match cell {
            Ok(cell) if whole => self.sink.set(column, cell),
            Ok(_) => self.sink.fault(
                column,
                DecodeError::InvalidJson { at, problem: "a string holds half a surrogate pair" },
            ),
            Err(error) => self.sink.fault(column, error),
        }
        Ok(())
    }

    fn time_text(&mut self, column: u16, at: usize) -> Parsed<()> {
        self.cursor.at += 1;
        let raw = self.cursor.string()?;
        let micros = if raw.escaped {
            self.sink.out.unescaped.clear();
            match unescape(raw.bytes, &mut self.sink.out.unescaped) {
                true => time::from_iso(&self.sink.out.unescaped),
                false => Err(TimeFault::Invalid),
            }
        } else {
            time::from_iso(raw.bytes)
        };
        match micros {
            Ok(micros) => self.sink.set(column, Stored::Timestamp(micros)),
            Err(fault) => self.sink.time_fault(column, at, fault),
        }
        Ok(())
    }
}
