//! The fixed header (section 2.1): packet type, flags, remaining length. Finds where a packet ends.

use super::reason::{PacketError, ReasonCode};
use super::wire;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PacketType {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    fn from_bits(bits: u8) -> Option<PacketType> {
        use PacketType::*;
        Some(match bits {
            1 => Connect,
            2 => Connack,
            3 => Publish,
            4 => Puback,
            5 => Pubrec,
            6 => Pubrel,
            7 => Pubcomp,
            8 => Subscribe,
            9 => Suback,
            10 => Unsubscribe,
            11 => Unsuback,
            12 => Pingreq,
            13 => Pingresp,
            14 => Disconnect,
            15 => Auth,
            _ => return None,
        })
    }

    /// First byte of a packet of this type other than PUBLISH, whose flags vary (table 2-2).
    pub fn first_byte(self) -> u8 {
        let flags = match self {
            PacketType::Pubrel | PacketType::Subscribe | PacketType::Unsubscribe => 2,
            _ => 0,
        };
        (self as u8) << 4 | flags
    }
}

/// One packet's place in the bytes received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The packet goes on. `needed`: bytes, from its first, without which no progress is possible.
    Incomplete {
        needed: usize,
    },
    Complete {
        ty: PacketType,
        flags: u8,
        body: &'a [u8],
        total: usize,
    },
}

/// Finds the packet at the start of `bytes`.
///
/// Type, flags and the remaining length are judged as soon as their bytes are there: a packet longer than
/// `max_packet_bytes` (all of it, header included) is refused before its body is waited for.
#[inline]
pub fn frame(bytes: &[u8], max_packet_bytes: usize) -> Result<Frame<'_>, PacketError> {
    let Some(&first) = bytes.first() else {
        return Ok(Frame::Incomplete { needed: 2 });
    };
    let ty = PacketType::from_bits(first >> 4).ok_or(PacketError::malformed("packet type 0 is reserved"))?;
    let flags = first & 0x0f;
    if ty == PacketType::Publish {
        if flags & 0x06 == 0x06 {
            return Err(PacketError::malformed("PUBLISH with QoS 3"));
        }
        if flags & 0x0e == 0x08 {
            return Err(PacketError::malformed("PUBLISH with DUP and QoS 0"));
        }
    } else if first != ty.first_byte() {
        return Err(PacketError::malformed("reserved flags of the fixed header are not as required"));
    }
    let Some((remaining, length_bytes)) = wire::variable(&bytes[1..])? else {
        return Ok(Frame::Incomplete { needed: bytes.len() + 1 });
    };
    let total = 1 + length_bytes + remaining as usize;
    if total > max_packet_bytes {
        return Err(PacketError::new(ReasonCode::PacketTooLarge, "packet above the maximum packet size"));
    }
    match bytes.get(1 + length_bytes..total) {
        Some(body) => Ok(Frame::Complete { ty, flags, body, total }),
        None => Ok(Frame::Incomplete { needed: total }),
    }
}

/// Writes a packet: first byte, length, body.
pub fn put_packet(out: &mut Vec<u8>, first: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(first);
    wire::put_with_length(out, body);
}
