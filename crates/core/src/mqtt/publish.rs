//! PUBLISH (section 3.3).

use super::connect::read_properties;
use super::header::PacketType;
use super::properties::{Place, Properties, PropertyId};
use super::reason::PacketError;
use super::wire::{self, Reader, put_binary};
use super::{QoS, Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    pub dup: bool,
    pub qos: QoS,
    pub retain: bool,
    /// Empty only in MQTT 5 together with a topic alias.
    pub topic: &'a str,
    /// 0 exactly when the QoS is 0.
    pub packet_id: u16,
    pub properties: Properties<'a>,
    pub payload: &'a [u8],
}

impl<'a> Publish<'a> {
    /// `flags`: low four bits of the first byte, already judged by [`super::frame`].
    #[inline]
    pub fn parse(flags: u8, body: &'a [u8], version: Version) -> Result<Publish<'a>, PacketError> {
        let mut reader = Reader::new(body);
        let qos = QoS::from_bits(flags >> 1 & 3).ok_or(PacketError::malformed("PUBLISH with QoS 3"))?;
        let topic = reader.topic_name()?;
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { reader.packet_id()? };
        let properties = read_properties(&mut reader, version, Place::In(PacketType::Publish))?;
        if topic.is_empty() && (version == Version::V311 || properties.get(PropertyId::TopicAlias).is_none())
        {
            return Err(PacketError::protocol("a topic name is empty and there is no topic alias"));
        }
        let dup = flags & 0x08 != 0;
        let retain = flags & 0x01 != 0;
        Ok(Publish { dup, qos, retain, topic, packet_id, properties, payload: reader.rest() })
    }

    /// Bytes after the fixed header.
    fn remaining_len(&self, version: Version) -> usize {
        let packet_id = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        let properties = if version == Version::V5 { self.properties.encoded_len() } else { 0 };
        2 + self.topic.len() + packet_id + properties + self.payload.len()
    }

    /// Bytes that [`Publish::encode`] appends.
    pub fn encoded_len(&self, version: Version) -> usize {
        let remaining = self.remaining_len(version);
        1 + wire::variable_len(remaining) + remaining
    }

    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        let remaining = self.remaining_len(version);
        out.reserve(5 + remaining);
        let flags = u8::from(self.dup) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        out.push((PacketType::Publish as u8) << 4 | flags);
        wire::put_variable(out, remaining);
        put_binary(out, self.topic.as_bytes());
        if self.qos != QoS::AtMostOnce {
            out.extend_from_slice(&self.packet_id.to_be_bytes());
        }
        if version == Version::V5 {
            self.properties.put(out);
        }
        out.extend_from_slice(self.payload);
    }
}
