//! Properties of MQTT 5 (section 2.2.2): which packet may carry which, once or often, with which values.

use super::header::PacketType;
use super::reason::{PacketError, ReasonCode};
use super::topic;
use super::wire::{self, Reader};

/// Identifier of a property (table 2-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PropertyId {
    PayloadFormatIndicator = 0x01,
    MessageExpiryInterval = 0x02,
    ContentType = 0x03,
    ResponseTopic = 0x08,
    CorrelationData = 0x09,
    SubscriptionIdentifier = 0x0B,
    SessionExpiryInterval = 0x11,
    AssignedClientIdentifier = 0x12,
    ServerKeepAlive = 0x13,
    AuthenticationMethod = 0x15,
    AuthenticationData = 0x16,
    RequestProblemInformation = 0x17,
    WillDelayInterval = 0x18,
    RequestResponseInformation = 0x19,
    ResponseInformation = 0x1A,
    ServerReference = 0x1C,
    ReasonString = 0x1F,
    ReceiveMaximum = 0x21,
    TopicAliasMaximum = 0x22,
    TopicAlias = 0x23,
    MaximumQoS = 0x24,
    RetainAvailable = 0x25,
    UserProperty = 0x26,
    MaximumPacketSize = 0x27,
    WildcardSubscriptionAvailable = 0x28,
    SubscriptionIdentifierAvailable = 0x29,
    SharedSubscriptionAvailable = 0x2A,
}

/// A property's value in the data type of table 2-4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Byte(u8),
    TwoByte(u16),
    FourByte(u32),
    Variable(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair(&'a str, &'a str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    pub id: PropertyId,
    pub value: Value<'a>,
}

/// Where properties stand: in a packet, or with the will inside CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    In(PacketType),
    Will,
}

#[derive(Clone, Copy)]
enum Kind {
    /// 0 or 1.
    Flag,
    TwoByte,
    /// Two bytes, 0 is a protocol error.
    TwoByteNotZero,
    FourByte,
    FourByteNotZero,
    VariableNotZero,
    Text,
    /// A topic name: no wildcards.
    TopicName,
    Binary,
    Pair,
}

const fn place(place: Place) -> u16 {
    match place {
        Place::Will => 1,
        Place::In(ty) => 1 << ty as u8,
    }
}

const fn places<const N: usize>(of: [PacketType; N]) -> u16 {
    let mut mask = 0;
    let mut at = 0;
    while at < N {
        mask |= 1 << of[at] as u8;
        at += 1;
    }
    mask
}

const REASONED: u16 = {
    use PacketType::*;
    places([Connack, Puback, Pubrec, Pubrel, Pubcomp, Suback, Unsuback, Disconnect, Auth])
};

/// Table 2-4: identifier, data type, packets.
#[rustfmt::skip]
fn rule(code: u8) -> Option<(PropertyId, Kind, u16)> {
    use PacketType::*;
    use PropertyId as Id;
    let will = place(Place::Will);
    Some(match code {
        0x01 => (Id::PayloadFormatIndicator, Kind::Flag, places([Publish]) | will),
        0x02 => (Id::MessageExpiryInterval, Kind::FourByte, places([Publish]) | will),
        0x03 => (Id::ContentType, Kind::Text, places([Publish]) | will),
        0x08 => (Id::ResponseTopic, Kind::TopicName, places([Publish]) | will),
        0x09 => (Id::CorrelationData, Kind::Binary, places([Publish]) | will),
        0x0B => (Id::SubscriptionIdentifier, Kind::VariableNotZero, places([Publish, Subscribe])),
        0x11 => (Id::SessionExpiryInterval, Kind::FourByte, places([Connect, Connack, Disconnect])),
        0x12 => (Id::AssignedClientIdentifier, Kind::Text, places([Connack])),
        0x13 => (Id::ServerKeepAlive, Kind::TwoByte, places([Connack])),
        0x15 => (Id::AuthenticationMethod, Kind::Text, places([Connect, Connack, Auth])),
        0x16 => (Id::AuthenticationData, Kind::Binary, places([Connect, Connack, Auth])),
        0x17 => (Id::RequestProblemInformation, Kind::Flag, places([Connect])),
        0x18 => (Id::WillDelayInterval, Kind::FourByte, will),
        0x19 => (Id::RequestResponseInformation, Kind::Flag, places([Connect])),
        0x1A => (Id::ResponseInformation, Kind::Text, places([Connack])),
        0x1C => (Id::ServerReference, Kind::Text, places([Connack, Disconnect])),
        0x1F => (Id::ReasonString, Kind::Text, REASONED),
        0x21 => (Id::ReceiveMaximum, Kind::TwoByteNotZero, places([Connect, Connack])),
        0x22 => (Id::TopicAliasMaximum, Kind::TwoByte, places([Connect, Connack])),
        0x23 => (Id::TopicAlias, Kind::TwoByte, places([Publish])),
        0x24 => (Id::MaximumQoS, Kind::Flag, places([Connack])),
        0x25 => (Id::RetainAvailable, Kind::Flag, places([Connack])),
        0x26 => (Id::UserProperty, Kind::Pair, REASONED | will | places([Connect, Publish, Subscribe, Unsubscribe])),
        0x27 => (Id::MaximumPacketSize, Kind::FourByteNotZero, places([Connect, Connack])),
        0x28 => (Id::WildcardSubscriptionAvailable, Kind::Flag, places([Connack])),
        0x29 => (Id::SubscriptionIdentifierAvailable, Kind::Flag, places([Connack])),
        0x2A => (Id::SharedSubscriptionAvailable, Kind::Flag, places([Connack])),
        _ => return None,
    })
}

/// Checked properties of one packet, still as the bytes they came in.
///
/// Equal bytes mean equal properties, so a PUBLISH is forwarded by copying them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Properties<'a> {
    raw: &'a [u8],
}

impl<'a> Properties<'a> {
    pub const NONE: Properties<'static> = Properties { raw: &[] };

    /// Reads length and properties and checks every rule that concerns them alone.
    pub fn parse(reader: &mut Reader<'a>, place: Place) -> Result<Properties<'a>, PacketError> {
        let len = reader.variable()?;
        if len == 0 {
            return Ok(Properties::NONE);
        }
        Properties::check(reader.take(len as usize)?, place)
    }

    /// `raw`: encoded properties without their length.
    pub fn check(raw: &'a [u8], at: Place) -> Result<Properties<'a>, PacketError> {
        let mut reader = Reader::new(raw);
        let mut seen = 0u64;
        while !reader.is_empty() {
            let (property, allowed) = read(&mut reader)?;
            if allowed & place(at) == 0 {
                return Err(PacketError::malformed("a property does not belong to this packet"));
            }
            // A server may send one subscription identifier for each subscription that matched.
            let often = property.id == PropertyId::UserProperty
                || (property.id == PropertyId::SubscriptionIdentifier
                    && at == Place::In(PacketType::Publish));
            let bit = 1 << property.id as u8;
            if seen & bit != 0 && !often {
                return Err(PacketError::protocol("a property that may stand once is repeated"));
            }
            seen |= bit;
        }
        let has = |id: PropertyId| seen & 1 << id as u8 != 0;
        if has(PropertyId::AuthenticationData) && !has(PropertyId::AuthenticationMethod) {
            return Err(PacketError::protocol("authentication data without an authentication method"));
        }
        Ok(Properties { raw })
    }

    /// Bytes that [`Properties::check`] has passed before, for example those of a message that is passed on.
    pub(crate) fn from_checked(raw: &'a [u8]) -> Properties<'a> {
        Properties { raw }
    }

    /// The encoded properties without their length.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut reader = Reader::new(self.raw);
        std::iter::from_fn(
            move || if reader.is_empty() { None } else { read(&mut reader).ok().map(|(one, _)| one) },
        )
    }

    pub fn get(&self, id: PropertyId) -> Option<Value<'a>> {
        self.iter().find(|property| property.id == id).map(|property| property.value)
    }

    /// Value of an integer property of any width.
    pub fn number(&self, id: PropertyId) -> Option<u32> {
        match self.get(id)? {
            Value::Byte(value) => Some(u32::from(value)),
            Value::TwoByte(value) => Some(u32::from(value)),
            Value::FourByte(value) | Value::Variable(value) => Some(value),
            _ => None,
        }
    }

    pub fn text(&self, id: PropertyId) -> Option<&'a str> {
        match self.get(id)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Length of length and properties as encoded.
    pub fn encoded_len(&self) -> usize {
        wire::variable_len(self.raw.len()) + self.raw.len()
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        wire::put_variable(out, self.raw.len());
        out.extend_from_slice(self.raw);
    }
}

/// Reads one property and its range; gives also the places it may stand in.
fn read<'a>(reader: &mut Reader<'a>) -> Result<(Property<'a>, u16), PacketError> {
    // Identifiers are variable byte integers, all of one byte so far.
    let code = u8::try_from(reader.variable()?).unwrap_or(0);
    let (id, kind, allowed) = rule(code).ok_or(PacketError::malformed("unknown property"))?;
    let value = match kind {
        Kind::Flag => match reader.u8()? {
            bit @ 0..=1 => Value::Byte(bit),
            _ => return Err(PacketError::protocol("a property that is 0 or 1 has another value")),
        },
        Kind::TwoByte => match (id, reader.u16()?) {
            (PropertyId::TopicAlias, 0) => {
                return Err(PacketError::new(ReasonCode::TopicAliasInvalid, "topic alias 0"));
            }
            (_, value) => Value::TwoByte(value),
        },
        Kind::TwoByteNotZero => Value::TwoByte(not_zero(reader.u16()?.into())? as u16),
        Kind::FourByte => Value::FourByte(reader.u32()?),
        Kind::FourByteNotZero => Value::FourByte(not_zero(reader.u32()?)?),
        Kind::VariableNotZero => Value::Variable(not_zero(reader.variable()?)?),
        Kind::Text => Value::Text(reader.string()?),
        Kind::TopicName => {
            let name = reader.string()?;
            if !topic::is_name(name) {
                return Err(PacketError::protocol("a response topic is empty or contains a wildcard"));
            }
            Value::Text(name)
        }
        Kind::Binary => Value::Binary(reader.binary()?),
        Kind::Pair => Value::Pair(reader.string()?, reader.string()?),
    };
    Ok((Property { id, value }, allowed))
}

fn not_zero(value: u32) -> Result<u32, PacketError> {
    if value == 0 { Err(PacketError::protocol("a property that must not be 0 is 0")) } else { Ok(value) }
}

impl Property<'_> {
    /// Appends identifier and value. The caller chooses a value of the type that table 2-4 gives to the property.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.id as u8);
        match self.value {
            Value::Byte(value) => out.push(value),
            Value::TwoByte(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::FourByte(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Variable(value) => wire::put_variable(out, value as usize),
            Value::Text(text) => wire::put_binary(out, text.as_bytes()),
            Value::Binary(bytes) => wire::put_binary(out, bytes),
            Value::Pair(name, value) => {
                wire::put_binary(out, name.as_bytes());
                wire::put_binary(out, value.as_bytes());
            }
        }
    }
}

/// Encodes properties, without their length, for [`Properties::check`] or a packet's encoder.
pub fn encode(properties: &[Property<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    properties.iter().for_each(|property| property.put(&mut out));
    out
}
