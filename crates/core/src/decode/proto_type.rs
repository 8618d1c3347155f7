//! Scalar types of Protocol Buffers: which wire type and which column each fits, and its values.

use std::borrow::Cow;

use super::descriptor::{Enum, ty};
use super::error::DecodeError;
use super::plan::Kind;
use super::protobuf::borrowed;
use super::sink::Token;
use super::wire::{Raw, text, zigzag};

#[derive(Debug)]
pub(super) struct Scalar {
    pub ty: u64,
    /// Of an enum, whose values have names.
    pub names: Option<Enum>,
}

impl Scalar {
    #[inline]
    pub fn fits(&self, raw: &Raw<'_>) -> bool {
        fits(self.ty, raw)
    }

    /// The value of a field whose wire type fits.
    ///
    /// named: of an enum the name, where it has one, else its number as text
    #[inline]
    pub fn token<'p>(&'p self, raw: Raw<'p>, at: usize, named: bool) -> Result<Token<'p>, DecodeError> {
        Ok(match raw {
            Raw::Fixed64(bits) => match self.ty {
                ty::DOUBLE => Token::Double(f64::from_bits(bits)),
                ty::SFIXED64 => Token::Int(bits as i64),
                _ => unsigned(bits),
            },
            Raw::Fixed32(bits) => match self.ty {
                ty::FLOAT => Token::Double(f64::from(f32::from_bits(bits))),
                ty::SFIXED32 => Token::Int(i64::from(bits as i32)),
                _ => Token::Int(i64::from(bits)),
            },
            Raw::Varint(value) => match self.ty {
                ty::INT64 => Token::Int(value as i64),
                ty::INT32 => Token::Int(i64::from(value as i32)),
                ty::UINT32 => Token::Int(i64::from(value as u32)),
                ty::SINT32 => Token::Int(zigzag(u64::from(value as u32))),
                ty::SINT64 => Token::Int(zigzag(value)),
                ty::BOOL => Token::Bool(value != 0),
                ty::ENUM => self.label(value as i32, named),
                _ => unsigned(value),
            },
            Raw::Bytes(bytes) => borrowed(text(bytes, at)?),
            Raw::Group => Token::Null,
        })
    }

    /// What an absent field without presence is.
    pub fn zero(&self, named: bool) -> Token<'_> {
        match self.ty {
            ty::DOUBLE | ty::FLOAT => Token::Double(0.0),
            ty::BOOL => Token::Bool(false),
            ty::STRING => borrowed(b""),
            ty::ENUM => self.label(0, named),
            _ => Token::Int(0),
        }
    }

    fn label(&self, value: i32, named: bool) -> Token<'_> {
        match self.names.as_ref().and_then(|all| all.names.get(&value)) {
            _ if !named => Token::Int(i64::from(value)),
            Some(name) => borrowed(name.as_bytes()),
            None => Token::Text(Cow::Owned(value.to_string().into_bytes())),
        }
    }
}

fn unsigned<'p>(value: u64) -> Token<'p> {
    i64::try_from(value).map_or(Token::Uint(value), Token::Int)
}

/// Whether a value of the type is written so.
#[inline]
pub(super) fn fits(ty: u64, raw: &Raw<'_>) -> bool {
    match ty {
        ty::DOUBLE | ty::FIXED64 | ty::SFIXED64 => matches!(raw, Raw::Fixed64(_)),
        ty::FLOAT | ty::FIXED32 | ty::SFIXED32 => matches!(raw, Raw::Fixed32(_)),
        ty::STRING | ty::BYTES | ty::MESSAGE => matches!(raw, Raw::Bytes(_)),
        _ => matches!(raw, Raw::Varint(_)),
    }
}

/// The key of a map's entry as a path names it: text, a decimal, `true` or `false`.
pub(super) fn key(ty: u64, raw: Raw<'_>, at: usize) -> Result<Cow<'_, [u8]>, DecodeError> {
    if let Raw::Bytes(bytes) = raw {
        return Ok(Cow::Borrowed(text(bytes, at)?));
    }
    let text = match (Scalar { ty, names: None }).token(raw, at, false)? {
        Token::Int(value) => value.to_string(),
        Token::Uint(value) => value.to_string(),
        Token::Bool(value) => value.to_string(),
        _ => String::new(),
    };
    Ok(Cow::Owned(text.into_bytes()))
}

pub(super) fn zero_key(ty: u64) -> Cow<'static, [u8]> {
    Cow::Borrowed(match ty {
        ty::STRING => b"",
        ty::BOOL => b"false",
        _ => b"0",
    })
}

/// Whether a column of that kind can hold the type.
pub(super) fn holds(kind: Kind, ty: u64) -> bool {
    let float = matches!(ty, ty::DOUBLE | ty::FLOAT);
    let integer = !float && !matches!(ty, ty::BOOL | ty::STRING | ty::ENUM);
    match kind {
        Kind::Double => float || integer,
        Kind::Bigint => integer || ty == ty::ENUM,
        Kind::Boolean => ty == ty::BOOL,
        Kind::String => matches!(ty, ty::STRING | ty::ENUM),
        Kind::Timestamp(_) => float || integer || ty == ty::STRING,
    }
}

pub(super) fn name(ty: u64) -> &'static str {
    match ty {
        ty::DOUBLE => "double",
        ty::FLOAT => "float",
        ty::INT64 => "int64",
        ty::UINT64 => "uint64",
        ty::INT32 => "int32",
        ty::FIXED64 => "fixed64",
        ty::FIXED32 => "fixed32",
        ty::BOOL => "bool",
        ty::STRING => "string",
        ty::GROUP => "group",
        ty::MESSAGE => "message",
        ty::BYTES => "bytes",
        ty::UINT32 => "uint32",
        ty::ENUM => "enum",
        ty::SFIXED32 => "sfixed32",
        ty::SFIXED64 => "sfixed64",
        ty::SINT32 => "sint32",
        ty::SINT64 => "sint64",
        _ => "type that this version does not know",
    }
}
