//! The wire format of Protocol Buffers (protobuf.dev/programming-guides/encoding): tags, varints, lengths.
//!
//! Every call moves on or is an error, and a length is compared with what is there before anything is done with it.

use super::MAX_DEPTH;
use super::error::DecodeError;

/// The value of one field as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Raw<'p> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'p [u8]),
    /// A group, which has been passed over.
    Group,
}

/// A message: some bytes of a payload.
#[derive(Clone, Debug)]
pub(super) struct Wire<'p> {
    bytes: &'p [u8],
    at: usize,
    /// Position of the message in the payload, for what errors say.
    base: usize,
}

impl<'p> Wire<'p> {
    pub fn new(bytes: &'p [u8], base: usize) -> Wire<'p> {
        Wire { bytes, at: 0, base }
    }

    /// Position of the next byte in the payload.
    pub fn at(&self) -> usize {
        self.base + self.at
    }

    #[cold]
    pub fn wrong<T>(at: usize, problem: &'static str) -> Result<T, DecodeError> {
        Err(DecodeError::InvalidProtobuf { at, problem })
    }

    /// The next field: its number, the position of its value, and the value. `None`: the message is at its end.
    #[inline]
    pub fn field(&mut self) -> Result<Option<(u32, usize, Raw<'p>)>, DecodeError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let (number, ty) = self.tag()?;
        let at = self.at();
        if ty == END_GROUP {
            return Self::wrong(at, "a group ends that has not begun");
        }
        Ok(Some((number, at, self.value(number, ty, 0)?)))
    }

    #[inline]
    fn tag(&mut self) -> Result<(u32, u8), DecodeError> {
        let at = self.at();
        let tag = match u32::try_from(self.varint()?) {
            Ok(tag) if tag >> 3 != 0 => tag,
            _ => return Self::wrong(at, "a field has a number outside 1 to 536870911"),
        };
        Ok((tag >> 3, (tag & 7) as u8))
    }

    #[inline]
    fn value(&mut self, number: u32, ty: u8, depth: u32) -> Result<Raw<'p>, DecodeError> {
        Ok(match ty {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let length = self.varint()?;
                Raw::Bytes(self.take(length)?)
            }
            3 => {
                self.skip_group(number, depth)?;
                Raw::Group
            }
            5 => Raw::Fixed32(u32::from_le_bytes(self.fixed()?)),
            _ => return Self::wrong(self.at(), "a field has a wire type that does not exist"),
        })
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, DecodeError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let mut value = 0u64;
        for (count, byte) in rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * count as u32);
            if byte & 0x80 == 0 {
                if count == 9 && *byte > 1 {
                    break;
                }
                self.at += count + 1;
                return Ok(value);
            }
        }
        match rest.len() {
            0..10 => Self::wrong(self.at(), "the payload ends inside a number"),
            _ => Self::wrong(self.at(), "a number is longer than 64 bits"),
        }
    }

    #[inline]
    fn take(&mut self, count: u64) -> Result<&'p [u8], DecodeError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match usize::try_from(count).ok().and_then(|count| rest.get(..count)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Self::wrong(self.at(), "a field is longer than what holds it"),
        }
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let taken = self.take(N as u64)?;
        <[u8; N]>::try_from(taken).or_else(|_| Self::wrong(self.at(), "the payload ends inside a number"))
    }

    fn skip_group(&mut self, number: u32, depth: u32) -> Result<(), DecodeError> {
        if depth >= MAX_DEPTH {
            return Err(DecodeError::TooDeep { at: self.at() });
        }
        loop {
            let (inner, ty) = self.tag()?;
            if ty == END_GROUP {
                if inner == number {
                    return Ok(());
                }
                return Self::wrong(self.at(), "a group ends that has not begun");
            }
            self.value(inner, ty, depth + 1)?;
        }
    }
}

const END_GROUP: u8 = 4;

/// Valid UTF-8, as strings must be.
#[inline]
pub(super) fn text(bytes: &[u8], at: usize) -> Result<&[u8], DecodeError> {
    match simdutf8::basic::from_utf8(bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Wire::wrong(at, "a string is not UTF-8"),
    }
}

/// Signed integers of `sint32` and `sint64`.
#[inline]
pub(super) fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
