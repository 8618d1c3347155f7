//! PUBACK, PUBREC, PUBREL and PUBCOMP, which share one shape (sections 3.4 to 3.7).

use super::Version;
use super::header::{PacketType, put_packet};
use super::properties::{Place, Properties};
use super::reason::{PacketError, ReasonCode};
use super::wire::Reader;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Puback, Pubrec, Pubrel or Pubcomp.
    pub ty: PacketType,
    pub packet_id: u16,
    /// Always Success in MQTT 3.1.1.
    pub reason: ReasonCode,
    pub properties: Properties<'a>,
}

impl<'a> Ack<'a> {
    pub fn parse(ty: PacketType, body: &'a [u8], version: Version) -> Result<Ack<'a>, PacketError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let mut ack = Ack { ty, packet_id, reason: ReasonCode::Success, properties: Properties::NONE };
        // MQTT 5 may leave out the properties, and a success with them.
        if version == Version::V5 && !reader.is_empty() {
            ack.reason = ReasonCode::from_code(reader.u8()?)
                .filter(|reason| reason.allowed_in(ty))
                .ok_or(PacketError::malformed("an acknowledgement has an unknown reason code"))?;
            if !reader.is_empty() {
                ack.properties = Properties::parse(&mut reader, Place::In(ty))?;
            }
        }
        if !reader.is_empty() {
            return Err(PacketError::malformed("an acknowledgement goes on after its last field"));
        }
        Ok(ack)
    }

    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        put_packet(out, self.ty.first_byte(), |out| {
            out.extend_from_slice(&self.packet_id.to_be_bytes());
            let plain = self.properties.is_empty();
            if version == Version::V5 && !(plain && self.reason == ReasonCode::Success) {
                out.push(self.reason as u8);
                if !plain {
                    self.properties.put(out);
                }
            }
        });
    }
}

/// A successful PUBACK, the same four bytes in both versions: the hot path of every acknowledgement.
#[inline]
pub fn puback(packet_id: u16) -> [u8; 4] {
    let [high, low] = packet_id.to_be_bytes();
    [(PacketType::Puback as u8) << 4, 2, high, low]
}
