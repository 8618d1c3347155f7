//! Protocol Buffers by descriptor: a message's declared fields as cells, in one pass over the wire format.
//!
//! The descriptor is compiled once into a program for each message type that holds declared fields; no message is ever
//! built. What is not declared is passed over without being read.

use std::borrow::Cow;

use super::decoded::Decoded;
use super::error::DecodeError;
use super::plan::{Kind, Slot, StreamPlan};
use super::proto_plan::{Op, Value};
use super::proto_type::{self, Scalar};
use super::sink::{Sink, Token};
use super::time::{MAX_US, MIN_US};
use super::wire::{Raw, Wire};

/// Appends the payload's one reading to `into`, whose template has been filled.
pub(super) fn read(plan: &StreamPlan, payload: &[u8], into: &mut Decoded) -> Result<(), DecodeError> {
    let mut walk = Walk { plan, sink: Sink::new(plan, into) };
    let mut fault = None;
    walk.sink.begin()?;
    walk.message(0, payload, 0)?;
    walk.sink.end(&mut fault);
    fault.map_or(Ok(()), Err)
}

struct Walk<'a> {
    plan: &'a StreamPlan,
    sink: Sink<'a>,
}

impl<'a> Walk<'a> {
    /// Fields of the message whose bytes begin at `at`. Another part of the same message goes on where one ended.
    fn message(&mut self, node: usize, bytes: &[u8], at: usize) -> Result<(), DecodeError> {
        // None: passed over.
        let Some(program) = self.plan.programs.get(node) else { return Ok(()) };
        let mut wire = Wire::new(bytes, at);
        // Serializers write fields in the order of their numbers.
        let mut expected = 0;
        while let Some((number, at, raw)) = wire.field()? {
            let Some(found) = program.find(expected, number) else { continue };
            expected = found + 1;
            self.op(&program.ops[found], at, raw)?;
        }
        for &index in &program.implicit {
            self.default(&program.ops[index], at);
        }
        Ok(())
    }

    #[inline]
    fn op(&mut self, op: &'a Op, at: usize, raw: Raw<'_>) -> Result<(), DecodeError> {
        match (&op.value, raw) {
            // A field of another wire type is an unknown one.
            (Value::Scalar(scalar, slots), raw) if scalar.fits(&raw) => {
                self.clear(op);
                self.scalar(scalar, slots, at, raw)?;
            }
            (Value::Time(slots), Raw::Bytes(bytes)) => {
                self.clear(op);
                let token = timestamp(bytes, at)?;
                self.put(slots, at, &token);
            }
            (Value::Message(child), Raw::Bytes(bytes)) => {
                self.clear(op);
                self.message(*child, bytes, at)?;
            }
            (Value::Map(child, key), Raw::Bytes(bytes)) => {
                self.entry(*child, *key, bytes, at)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Of a oneof the last member counts.
    #[inline]
    fn clear(&mut self, op: &Op) {
        for column in &op.clears {
            self.sink.reset(*column);
        }
    }

    #[inline]
    fn scalar(
        &mut self,
        scalar: &'a Scalar,
        slots: &[Slot],
        at: usize,
        raw: Raw<'_>,
    ) -> Result<(), DecodeError> {
        for slot in slots {
            let token = scalar.token(raw, at, matches!(slot.kind, Kind::String))?;
            self.sink.put(*slot, at, &token);
        }
        Ok(())
    }

    fn put(&mut self, slots: &[Slot], at: usize, token: &Token<'_>) {
        for slot in slots {
            self.sink.put(*slot, at, token);
        }
    }

    /// Without presence an absent field is zero, except a time.
    fn default(&mut self, op: &'a Op, at: usize) {
        let Value::Scalar(scalar, slots) = &op.value else { return };
        for slot in slots {
            if !matches!(slot.kind, Kind::Timestamp(_)) && self.sink.is_null(slot.column) {
                let token = scalar.zero(matches!(slot.kind, Kind::String));
                self.sink.put(*slot, at, &token);
            }
        }
    }

    /// One entry of a map: a message of key (1) and value (2), each zero if absent.
    fn entry(&mut self, node: usize, key: KeyType, bytes: &[u8], at: usize) -> Result<(), DecodeError> {
        let (Some(program), Some(own)) = (self.plan.programs.get(node), self.plan.nodes.get(node)) else {
            return Ok(());
        };
        let mut wire = Wire::new(bytes, at);
        let (mut name, mut value) = (None, None);
        while let Some((number, at, raw)) = wire.field()? {
            match number {
                1 => name = Some((at, raw)),
                2 => value = Some((at, raw)),
                _ => {}
            }
        }
        let name = match name.filter(|(_, raw)| proto_type::fits(key, raw)) {
            Some((at, raw)) => proto_type::key(key, raw, at)?,
            None => proto_type::zero_key(key),
        };
        let Some(index) = own.keys.find(&name) else { return Ok(()) };
        let Some(op) = program.ops.get(index) else { return Ok(()) };
        // A later entry of the same key replaces the earlier one.
        if let Value::Message(child) = op.value
            && let Some(below) = self.plan.nodes.get(child)
        {
            below.beneath.iter().for_each(|column| self.sink.reset(*column));
        }
        match (value, &op.value) {
            (Some((at, raw)), _) => self.op(op, at, raw),
            (None, Value::Message(child)) => self.message(*child, &[], at),
            (None, Value::Scalar(scalar, slots)) => {
                for slot in slots {
                    let token = scalar.zero(matches!(slot.kind, Kind::String));
                    self.sink.put(*slot, at, &token);
                }
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }
}

/// Type of a map's key.
type KeyType = u64;

/// google.protobuf.Timestamp: seconds and nanoseconds since the Unix epoch.
fn timestamp<'p>(bytes: &'p [u8], at: usize) -> Result<Token<'p>, DecodeError> {
    let mut wire = Wire::new(bytes, at);
    let (mut seconds, mut nanos) = (0, 0);
    while let Some((number, _, raw)) = wire.field()? {
        match (number, raw) {
            (1, Raw::Varint(value)) => seconds = value as i64,
            (2, Raw::Varint(value)) => nanos = value as i32,
            _ => {}
        }
    }
    let micros = (0..1_000_000_000)
        .contains(&nanos)
        .then(|| seconds.checked_mul(1_000_000)?.checked_add(i64::from(nanos) / 1000))
        .flatten();
    Ok(Token::Time(micros.filter(|micros| (MIN_US..=MAX_US).contains(micros))))
}

/// Text that a token holds for the time of one call.
pub(super) fn borrowed(text: &[u8]) -> Token<'_> {
    Token::Text(Cow::Borrowed(text))
}
