//! What `protoc --descriptor_set_out` writes: a FileDescriptorSet of descriptor.proto, as far as decoding needs it.
//! Read once, at the start.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::DecodeError;
use super::wire::{Raw, Wire};

/// All messages and enums of the set, by full name without a leading dot.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    pub messages: HashMap<String, Message>,
    pub enums: HashMap<String, Enum>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub fields: Vec<Field>,
    pub is_map: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Field {
    pub name: String,
    pub number: u32,
    /// FieldDescriptorProto.Type, or 0.
    pub ty: u64,
    /// Full name of the message or enum.
    pub of: String,
    pub repeated: bool,
    /// Whether an absent field can be told from its default.
    pub presence: bool,
    /// The oneof it belongs to, unless that is `optional` in disguise.
    pub oneof: Option<u64>,
    /// A message in the encoding of groups.
    pub delimited: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Enum {
    pub names: HashMap<i32, Arc<str>>,
}

/// What of a file's or field's features counts here.
#[derive(Clone, Copy, Debug, Default)]
struct Features {
    implicit: Option<bool>,
    delimited: Option<bool>,
}

/// Field types of descriptor.proto.
pub(super) mod ty {
    pub const DOUBLE: u64 = 1;
    pub const FLOAT: u64 = 2;
    pub const INT64: u64 = 3;
    pub const UINT64: u64 = 4;
    pub const INT32: u64 = 5;
    pub const FIXED64: u64 = 6;
    pub const FIXED32: u64 = 7;
    pub const BOOL: u64 = 8;
    pub const STRING: u64 = 9;
    pub const GROUP: u64 = 10;
    pub const MESSAGE: u64 = 11;
    pub const BYTES: u64 = 12;
    pub const UINT32: u64 = 13;
    pub const ENUM: u64 = 14;
    pub const SFIXED32: u64 = 15;
    pub const SFIXED64: u64 = 16;
    pub const SINT32: u64 = 17;
    pub const SINT64: u64 = 18;
}

/// Nested declarations deeper than this are refused. Ours.
const MAX_NESTED: usize = 32;

impl Descriptors {
    pub fn read(bytes: &[u8]) -> Result<Descriptors, DecodeError> {
        let mut all = Descriptors::default();
        for (number, at, value) in fields(bytes, 0)? {
            if let (1, Raw::Bytes(file)) = (number, value) {
                all.file(file, at)?;
            }
        }
        Ok(all)
    }

    fn file(&mut self, bytes: &[u8], at: usize) -> Result<(), DecodeError> {
        let parts = fields(bytes, at)?;
        let mut package = String::new();
        // proto2, unless told.
        let (mut proto3, mut features) = (false, Features::default());
        for (number, at, value) in &parts {
            match (number, value) {
                (2, Raw::Bytes(name)) => package = string(name),
                (8, Raw::Bytes(options)) => features = feature_set(options, *at, 50)?,
                (12, Raw::Bytes(syntax)) => proto3 = *syntax == b"proto3",
                _ => {}
            }
        }
        features.implicit = features.implicit.or(Some(proto3));
        for (number, at, value) in parts {
            match (number, value) {
                (4, Raw::Bytes(message)) => self.message(message, at, &package, features, 0)?,
                (5, Raw::Bytes(declared)) => self.enumeration(declared, at, &package)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn message(
        &mut self,
        bytes: &[u8],
        at: usize,
        scope: &str,
        features: Features,
        depth: usize,
    ) -> Result<(), DecodeError> {
        if depth > MAX_NESTED {
            return Err(DecodeError::TooDeep { at });
        }
        let parts = fields(bytes, at)?;
        let mut name = scope.to_owned();
        for (number, _, value) in &parts {
            if let (1, Raw::Bytes(own)) = (number, value) {
                name = join(scope, &string(own));
            }
        }
        let mut message = Message::default();
        for (number, at, value) in parts {
            let Raw::Bytes(value) = value else { continue };
            match number {
                2 => message.fields.push(field(value, at, features)?),
                3 => self.message(value, at, &name, features, depth + 1)?,
                4 => self.enumeration(value, at, &name)?,
                7 => message.is_map = is_map(value, at)?,
                _ => {}
            }
        }
        self.messages.insert(name, message);
        Ok(())
    }

    fn enumeration(&mut self, bytes: &[u8], at: usize, scope: &str) -> Result<(), DecodeError> {
        let (mut name, mut names) = (String::new(), HashMap::new());
        for (number, at, value) in fields(bytes, at)? {
            match (number, value) {
                (1, Raw::Bytes(own)) => name = join(scope, &string(own)),
                (2, Raw::Bytes(value)) => {
                    let (mut label, mut of) = (String::new(), 0);
                    for (number, _, part) in fields(value, at)? {
                        match (number, part) {
                            (1, Raw::Bytes(own)) => label = string(own),
                            (2, Raw::Varint(value)) => of = value as i32,
                            _ => {}
                        }
                    }
                    // Of aliases the first counts.
                    names.entry(of).or_insert_with(|| label.into());
                }
                _ => {}
            }
        }
        self.enums.insert(name, Enum { names });
        Ok(())
    }
}

fn field(bytes: &[u8], at: usize, file: Features) -> Result<Field, DecodeError> {
    let mut field = Field::default();
    let (mut label, mut optional, mut features) = (0, false, Features::default());
    for (number, at, value) in fields(bytes, at)? {
        match (number, value) {
            (1, Raw::Bytes(name)) => field.name = string(name),
            (3, Raw::Varint(number)) => field.number = number as u32,
            (4, Raw::Varint(found)) => label = found,
            (5, Raw::Varint(ty)) => field.ty = ty,
            (6, Raw::Bytes(of)) => field.of = string(of).trim_start_matches('.').to_owned(),
            (8, Raw::Bytes(options)) => features = feature_set(options, at, 21)?,
            (9, Raw::Varint(oneof)) => field.oneof = Some(oneof),
            (17, Raw::Varint(told)) => optional = told != 0,
            _ => {}
        }
    }
    field.repeated = label == 3;
    let implicit = features.implicit.or(file.implicit).unwrap_or(false);
    let message = matches!(field.ty, ty::MESSAGE | ty::GROUP);
    field.presence = !implicit || optional || message || field.oneof.is_some();
    field.oneof = field.oneof.filter(|_| !optional);
    field.delimited = field.ty == ty::GROUP || features.delimited.or(file.delimited).unwrap_or(false);
    Ok(field)
}

fn is_map(options: &[u8], at: usize) -> Result<bool, DecodeError> {
    Ok(fields(options, at)?.iter().any(|(number, _, value)| (*number, *value) == (7, Raw::Varint(1))))
}

/// The FeatureSet that is field `number` of some options.
fn feature_set(options: &[u8], at: usize, number: u32) -> Result<Features, DecodeError> {
    let mut features = Features::default();
    for (found, at, value) in fields(options, at)? {
        let (true, Raw::Bytes(set)) = (found == number, value) else { continue };
        for (number, _, value) in fields(set, at)? {
            match (number, value) {
                (1, Raw::Varint(presence)) => features.implicit = Some(presence == 2),
                (5, Raw::Varint(encoding)) => features.delimited = Some(encoding == 2),
                _ => {}
            }
        }
    }
    Ok(features)
}

fn fields(bytes: &[u8], at: usize) -> Result<Vec<(u32, usize, Raw<'_>)>, DecodeError> {
    let mut wire = Wire::new(bytes, at);
    let mut found = Vec::new();
    while let Some(field) = wire.field()? {
        found.push(field);
    }
    Ok(found)
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}
