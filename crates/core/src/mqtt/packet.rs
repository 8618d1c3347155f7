//! Any packet of either direction: the one door for bytes whose type is not yet known.
//!
//! Which side may send what, and when, is a matter of the connection and judged there.

use super::header::{Frame, PacketType, frame};
use super::reason::PacketError;
use super::{
    Ack, Auth, Connack, Connect, Disconnect, Publish, Suback, Subscribe, Unsuback, Unsubscribe, Version,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    Connack(Connack<'a>),
    Publish(Publish<'a>),
    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    Ack(Ack<'a>),
    Subscribe(Subscribe<'a>),
    Suback(Suback<'a>),
    Unsubscribe(Unsubscribe<'a>),
    Unsuback(Unsuback<'a>),
    Pingreq,
    Pingresp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// More bytes are needed.
    Incomplete,
    /// A packet and the number of bytes it took.
    Packet(Packet<'a>, usize),
}

/// Parses the packet at the start of `bytes`. A CONNECT brings its own version along.
pub fn parse(bytes: &[u8], version: Version, max_packet_bytes: usize) -> Result<Parsed<'_>, PacketError> {
    match frame(bytes, max_packet_bytes)? {
        Frame::Incomplete { .. } => Ok(Parsed::Incomplete),
        Frame::Complete { ty, flags, body, total } => {
            Ok(Parsed::Packet(Packet::from_frame(ty, flags, body, version)?, total))
        }
    }
}

impl<'a> Packet<'a> {
    /// Parses the body of a frame.
    pub fn from_frame(
        ty: PacketType,
        flags: u8,
        body: &'a [u8],
        version: Version,
    ) -> Result<Packet<'a>, PacketError> {
        Ok(match ty {
            PacketType::Connect => Packet::Connect(Connect::parse(body)?),
            PacketType::Connack => Packet::Connack(Connack::parse(body, version)?),
            PacketType::Publish => Packet::Publish(Publish::parse(flags, body, version)?),
            PacketType::Puback | PacketType::Pubrec | PacketType::Pubrel | PacketType::Pubcomp => {
                Packet::Ack(Ack::parse(ty, body, version)?)
            }
            PacketType::Subscribe => Packet::Subscribe(Subscribe::parse(body, version)?),
            PacketType::Suback => Packet::Suback(Suback::parse(body, version)?),
            PacketType::Unsubscribe => Packet::Unsubscribe(Unsubscribe::parse(body, version)?),
            PacketType::Unsuback => Packet::Unsuback(Unsuback::parse(body, version)?),
            PacketType::Pingreq => empty(body, Packet::Pingreq)?,
            PacketType::Pingresp => empty(body, Packet::Pingresp)?,
            PacketType::Disconnect => Packet::Disconnect(Disconnect::parse(body, version)?),
            PacketType::Auth => Packet::Auth(Auth::parse(body, version)?),
        })
    }
}

fn empty<'a>(body: &[u8], packet: Packet<'a>) -> Result<Packet<'a>, PacketError> {
    if body.is_empty() { Ok(packet) } else { Err(PacketError::malformed("PINGREQ or PINGRESP has a body")) }
}

pub const PINGREQ: [u8; 2] = [0xc0, 0];
pub const PINGRESP: [u8; 2] = [0xd0, 0];
