//! CONNECT and CONNACK (sections 3.1 and 3.2).

use super::header::{PacketType, put_packet};
use super::properties::{Place, Properties};
use super::reason::{PacketError, ReasonCode};
use super::topic;
use super::wire::{Reader, put_binary};
use super::{QoS, Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    pub version: Version,
    /// Clean start (5.0), clean session (3.1.1).
    pub clean_start: bool,
    /// 0: none.
    pub keep_alive_s: u16,
    /// Empty: the server chooses one.
    pub client_id: &'a str,
    pub will: Option<Will<'a>>,
    pub user_name: Option<&'a str>,
    pub password: Option<&'a [u8]>,
    pub properties: Properties<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Will<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: QoS,
    pub retain: bool,
    pub properties: Properties<'a>,
}

const CLEAN_START: u8 = 0x02;
const WILL: u8 = 0x04;
const WILL_RETAIN: u8 = 0x20;
const PASSWORD: u8 = 0x40;
const USER_NAME: u8 = 0x80;

impl<'a> Connect<'a> {
    /// A protocol level other than 4 and 5 is `UnsupportedProtocolVersion`, which both versions may be told.
    pub fn parse(body: &'a [u8]) -> Result<Connect<'a>, PacketError> {
        let mut reader = Reader::new(body);
        let name = reader.string()?;
        let level = reader.u8()?;
        let unsupported = |what| PacketError::new(ReasonCode::UnsupportedProtocolVersion, what);
        let version = match (name, level) {
            ("MQTT", 4) => Version::V311,
            ("MQTT", 5) => Version::V5,
            ("MQTT", _) => return Err(unsupported("protocol level is neither 4 (MQTT 3.1.1) nor 5")),
            // All that its clients may say is said in the same way in 3.1.1.
            ("MQIsdp", 3) => Version::V311,
            ("MQIsdp", _) => return Err(unsupported("protocol level is not 3 (MQTT 3.1)")),
            _ => return Err(unsupported("protocol name is not MQTT")),
        };
        let flags = reader.u8()?;
        if flags & 0x01 != 0 {
            return Err(PacketError::malformed("reserved CONNECT flag is set"));
        }
        if flags & PASSWORD != 0 && flags & USER_NAME == 0 && version == Version::V311 {
            return Err(PacketError::malformed("password without user name"));
        }
        let has_will = flags & WILL != 0;
        if !has_will && flags & (WILL_RETAIN | 0x18) != 0 {
            return Err(PacketError::malformed("will QoS or will retain without the will flag"));
        }
        let will_qos = QoS::from_bits(flags >> 3 & 3).ok_or(PacketError::malformed("will QoS 3"))?;
        let keep_alive_s = reader.u16()?;
        let properties = read_properties(&mut reader, version, Place::In(PacketType::Connect))?;
        let client_id = reader.name()?;
        let will = if has_will {
            let properties = read_properties(&mut reader, version, Place::Will)?;
            let topic = reader.name()?;
            if !topic::is_name(topic) {
                return Err(PacketError::malformed("will topic is empty or contains a wildcard"));
            }
            let payload = reader.binary()?;
            Some(Will { topic, payload, qos: will_qos, retain: flags & WILL_RETAIN != 0, properties })
        } else {
            None
        };
        let user_name = if flags & USER_NAME != 0 { Some(reader.string()?) } else { None };
        let password = if flags & PASSWORD != 0 { Some(reader.binary()?) } else { None };
        if !reader.is_empty() {
            return Err(PacketError::malformed("CONNECT goes on after its last field"));
        }
        let clean_start = flags & CLEAN_START != 0;
        Ok(Connect { version, clean_start, keep_alive_s, client_id, will, user_name, password, properties })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        put_packet(out, PacketType::Connect.first_byte(), |out| {
            put_binary(out, b"MQTT");
            out.push(self.version as u8);
            let mut flags = if self.clean_start { CLEAN_START } else { 0 };
            if let Some(will) = &self.will {
                flags |= WILL | (will.qos as u8) << 3 | if will.retain { WILL_RETAIN } else { 0 };
            }
            flags |= if self.user_name.is_some() { USER_NAME } else { 0 };
            flags |= if self.password.is_some() { PASSWORD } else { 0 };
            out.push(flags);
            out.extend_from_slice(&self.keep_alive_s.to_be_bytes());
            put_properties(out, self.version, self.properties);
            put_binary(out, self.client_id.as_bytes());
            if let Some(will) = &self.will {
                put_properties(out, self.version, will.properties);
                put_binary(out, will.topic.as_bytes());
                put_binary(out, will.payload);
            }
            if let Some(user_name) = self.user_name {
                put_binary(out, user_name.as_bytes());
            }
            if let Some(password) = self.password {
                put_binary(out, password);
            }
        });
    }
}

/// Whether the client speaks MQTT 3.1, whose CONNACK has no session present flag.
pub fn is_v31(body: &[u8]) -> bool {
    body.starts_with(b"\0\x06MQIsdp")
}

/// The version a CONNECT asks for, as far as it can be told from a body that does not parse: how to word the answer.
/// Bridges set the highest bit of 3.1 and 3.1.1 and understand the answer of these alone.
pub fn asked_version(body: &[u8]) -> Version {
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 5..0x80, ..] => Version::V5,
        _ => Version::V311,
    }
}

/// CONNACK. `code` is a reason code (5.0) or a return code (3.1.1); 0 is success in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connack<'a> {
    pub session_present: bool,
    pub code: u8,
    pub properties: Properties<'a>,
}

impl<'a> Connack<'a> {
    pub fn parse(body: &'a [u8], version: Version) -> Result<Connack<'a>, PacketError> {
        let mut reader = Reader::new(body);
        let flags = reader.u8()?;
        if flags > 1 {
            return Err(PacketError::malformed("reserved CONNACK flags are set"));
        }
        let code = reader.u8()?;
        let known = match version {
            Version::V311 => code <= 5,
            Version::V5 => {
                ReasonCode::from_code(code).is_some_and(|code| code.allowed_in(PacketType::Connack))
            }
        };
        if !known {
            return Err(PacketError::malformed("CONNACK with an unknown code"));
        }
        let properties = read_properties(&mut reader, version, Place::In(PacketType::Connack))?;
        if !reader.is_empty() {
            return Err(PacketError::malformed("CONNACK goes on after its last field"));
        }
        Ok(Connack { session_present: flags == 1, code, properties })
    }

    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        put_packet(out, PacketType::Connack.first_byte(), |out| {
            out.push(self.session_present.into());
            out.push(self.code);
            put_properties(out, version, self.properties);
        });
    }
}

/// Properties where MQTT 5 has them; none in 3.1.1.
#[inline]
pub(super) fn read_properties<'a>(
    reader: &mut Reader<'a>,
    version: Version,
    place: Place,
) -> Result<Properties<'a>, PacketError> {
    match version {
        Version::V311 => Ok(Properties::NONE),
        Version::V5 => Properties::parse(reader, place),
    }
}

pub(super) fn put_properties(out: &mut Vec<u8>, version: Version, properties: Properties<'_>) {
    if version == Version::V5 {
        properties.put(out);
    }
}
