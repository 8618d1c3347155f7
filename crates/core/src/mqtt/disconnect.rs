//! DISCONNECT and AUTH (sections 3.14 and 3.15).

use super::Version;
use super::header::{PacketType, put_packet};
use super::properties::{Place, Properties};
use super::reason::{PacketError, ReasonCode};
use super::wire::Reader;

/// DISCONNECT: without reason and properties in MQTT 3.1.1, where only clients send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect<'a> {
    pub reason: ReasonCode,
    pub properties: Properties<'a>,
}

/// AUTH: MQTT 5 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auth<'a> {
    pub reason: ReasonCode,
    pub properties: Properties<'a>,
}

impl<'a> Disconnect<'a> {
    pub fn parse(body: &'a [u8], version: Version) -> Result<Disconnect<'a>, PacketError> {
        if version == Version::V311 && !body.is_empty() {
            return Err(PacketError::malformed("DISCONNECT of MQTT 3.1.1 has no body"));
        }
        let (reason, properties) = parse_reason(PacketType::Disconnect, body)?;
        Ok(Disconnect { reason, properties })
    }

    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        put_packet(out, PacketType::Disconnect.first_byte(), |out| {
            if version == Version::V5 {
                put_reason(out, self.reason, self.properties);
            }
        });
    }
}

impl<'a> Auth<'a> {
    pub fn parse(body: &'a [u8], version: Version) -> Result<Auth<'a>, PacketError> {
        if version == Version::V311 {
            return Err(PacketError::malformed("packet type 15 is reserved in MQTT 3.1.1"));
        }
        let (reason, properties) = parse_reason(PacketType::Auth, body)?;
        Ok(Auth { reason, properties })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        put_packet(out, PacketType::Auth.first_byte(), |out| put_reason(out, self.reason, self.properties));
    }
}

/// Reason and properties, both of which may be left out (sections 3.14.2.1 and 3.15.2.1).
fn parse_reason(ty: PacketType, body: &[u8]) -> Result<(ReasonCode, Properties<'_>), PacketError> {
    let mut reader = Reader::new(body);
    if reader.is_empty() {
        return Ok((ReasonCode::Success, Properties::NONE));
    }
    let reason = ReasonCode::from_code(reader.u8()?)
        .filter(|reason| reason.allowed_in(ty))
        .ok_or(PacketError::malformed("DISCONNECT or AUTH with an unknown reason code"))?;
    let properties =
        if reader.is_empty() { Properties::NONE } else { Properties::parse(&mut reader, Place::In(ty))? };
    if !reader.is_empty() {
        return Err(PacketError::malformed("DISCONNECT or AUTH goes on after its last field"));
    }
    Ok((reason, properties))
}

fn put_reason(out: &mut Vec<u8>, reason: ReasonCode, properties: Properties<'_>) {
    if reason != ReasonCode::Success || !properties.is_empty() {
        out.push(reason as u8);
        if !properties.is_empty() {
            properties.put(out);
        }
    }
}
