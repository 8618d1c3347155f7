//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (sections 3.8 to 3.11).

use super::connect::{put_properties, read_properties};
use super::header::{PacketType, put_packet};
use super::properties::{Place, Properties};
use super::reason::{PacketError, ReasonCode};
use super::wire::{Reader, put_binary};
use super::{QoS, Version, topic};

/// How a subscriber wants a filter's messages (section 3.8.3.1). MQTT 3.1.1 knows the QoS alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0: send retained messages, 1: only for a new subscription, 2: never.
    pub retain_handling: u8,
}

impl SubscriptionOptions {
    pub fn new(qos: QoS) -> SubscriptionOptions {
        SubscriptionOptions { qos, no_local: false, retain_as_published: false, retain_handling: 0 }
    }

    fn from_byte(byte: u8, version: Version) -> Result<SubscriptionOptions, PacketError> {
        let reserved = if version == Version::V5 { 0xc0 } else { 0xfc };
        if byte & reserved != 0 {
            return Err(PacketError::malformed("reserved bits of the subscription options are set"));
        }
        let qos = QoS::from_bits(byte & 3).ok_or(match version {
            Version::V311 => PacketError::malformed("a subscription asks for QoS 3"),
            Version::V5 => PacketError::protocol("a subscription asks for QoS 3"),
        })?;
        let retain_handling = byte >> 4 & 3;
        if retain_handling == 3 {
            return Err(PacketError::protocol("retain handling 3"));
        }
        Ok(SubscriptionOptions {
            qos,
            no_local: byte & 0x04 != 0,
            retain_as_published: byte & 0x08 != 0,
            retain_handling,
        })
    }

    pub fn to_byte(self) -> u8 {
        self.qos as u8
            | u8::from(self.no_local) << 2
            | u8::from(self.retain_as_published) << 3
            | self.retain_handling << 4
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    pub packet_id: u16,
    pub properties: Properties<'a>,
    version: Version,
    /// Filters with their options, as encoded and checked.
    filters: &'a [u8],
}

impl<'a> Subscribe<'a> {
    pub fn parse(body: &'a [u8], version: Version) -> Result<Subscribe<'a>, PacketError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let properties = read_properties(&mut reader, version, Place::In(PacketType::Subscribe))?;
        let filters = reader.rest();
        if reader.is_empty() {
            return Err(PacketError::protocol("SUBSCRIBE without a topic filter"));
        }
        while !reader.is_empty() {
            let (filter, options) = one_filter(&mut reader, version)?;
            if options.no_local && topic::is_shared(filter) {
                return Err(PacketError::protocol("No Local on a shared subscription"));
            }
        }
        Ok(Subscribe { packet_id, properties, version, filters })
    }

    /// The filters in the packet's order.
    pub fn filters(&self) -> impl Iterator<Item = (&'a str, SubscriptionOptions)> + use<'a> {
        let mut reader = Reader::new(self.filters);
        let version = self.version;
        std::iter::from_fn(
            move || if reader.is_empty() { None } else { one_filter(&mut reader, version).ok() },
        )
    }

    pub fn encode(
        packet_id: u16,
        properties: Properties<'_>,
        filters: &[(&str, SubscriptionOptions)],
        version: Version,
        out: &mut Vec<u8>,
    ) {
        put_packet(out, PacketType::Subscribe.first_byte(), |out| {
            out.extend_from_slice(&packet_id.to_be_bytes());
            put_properties(out, version, properties);
            for (filter, options) in filters {
                put_binary(out, filter.as_bytes());
                out.push(if version == Version::V5 { options.to_byte() } else { options.qos as u8 });
            }
        });
    }
}

fn one_filter<'a>(
    reader: &mut Reader<'a>,
    version: Version,
) -> Result<(&'a str, SubscriptionOptions), PacketError> {
    let filter = checked_filter(reader)?;
    Ok((filter, SubscriptionOptions::from_byte(reader.u8()?, version)?))
}

fn checked_filter<'a>(reader: &mut Reader<'a>) -> Result<&'a str, PacketError> {
    let filter = reader.name()?;
    match topic::is_filter(filter) {
        true => Ok(filter),
        // 0x8F is for filters that are well-formed and not accepted (section 3.9.3).
        false => Err(PacketError::malformed("a topic filter is empty or has a wildcard in the wrong place")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    pub packet_id: u16,
    pub properties: Properties<'a>,
    filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    pub fn parse(body: &'a [u8], version: Version) -> Result<Unsubscribe<'a>, PacketError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let properties = read_properties(&mut reader, version, Place::In(PacketType::Unsubscribe))?;
        let filters = reader.rest();
        if reader.is_empty() {
            return Err(PacketError::protocol("UNSUBSCRIBE without a topic filter"));
        }
        while !reader.is_empty() {
            checked_filter(&mut reader)?;
        }
        Ok(Unsubscribe { packet_id, properties, filters })
    }

    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut reader = Reader::new(self.filters);
        std::iter::from_fn(move || if reader.is_empty() { None } else { checked_filter(&mut reader).ok() })
    }

    pub fn encode(
        packet_id: u16,
        properties: Properties<'_>,
        filters: &[&str],
        version: Version,
        out: &mut Vec<u8>,
    ) {
        put_packet(out, PacketType::Unsubscribe.first_byte(), |out| {
            out.extend_from_slice(&packet_id.to_be_bytes());
            put_properties(out, version, properties);
            filters.iter().for_each(|filter| put_binary(out, filter.as_bytes()));
        });
    }
}

/// SUBACK: one code for each filter, in the order of the SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suback<'a> {
    pub packet_id: u16,
    pub properties: Properties<'a>,
    /// Granted QoS 0, 1, 2 or a refusal; MQTT 3.1.1 knows one refusal, 0x80.
    pub codes: &'a [u8],
}

/// UNSUBACK: one code for each filter in MQTT 5, none in 3.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsuback<'a> {
    pub packet_id: u16,
    pub properties: Properties<'a>,
    pub codes: &'a [u8],
}

impl<'a> Suback<'a> {
    pub fn parse(body: &'a [u8], version: Version) -> Result<Suback<'a>, PacketError> {
        let (packet_id, properties, codes) = parse_answer(PacketType::Suback, body, version)?;
        Ok(Suback { packet_id, properties, codes })
    }

    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        put_answer(PacketType::Suback, self.packet_id, self.properties, self.codes, version, out);
    }
}

impl<'a> Unsuback<'a> {
    pub fn parse(body: &'a [u8], version: Version) -> Result<Unsuback<'a>, PacketError> {
        let (packet_id, properties, codes) = parse_answer(PacketType::Unsuback, body, version)?;
        Ok(Unsuback { packet_id, properties, codes })
    }

    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        let codes = if version == Version::V5 { self.codes } else { &[] };
        put_answer(PacketType::Unsuback, self.packet_id, self.properties, codes, version, out);
    }
}

fn parse_answer(
    ty: PacketType,
    body: &[u8],
    version: Version,
) -> Result<(u16, Properties<'_>, &[u8]), PacketError> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let properties = read_properties(&mut reader, version, Place::In(ty))?;
    let codes = reader.rest();
    let known = |code: &u8| match version {
        Version::V311 => ty == PacketType::Suback && matches!(code, 0..=2 | 0x80),
        Version::V5 => ReasonCode::from_code(*code).is_some_and(|reason| reason.allowed_in(ty)),
    };
    if !codes.iter().all(known) {
        return Err(PacketError::malformed("SUBACK or UNSUBACK with an unknown code"));
    }
    if codes.is_empty() != (version == Version::V311 && ty == PacketType::Unsuback) {
        return Err(PacketError::malformed("SUBACK or UNSUBACK with the wrong number of codes"));
    }
    Ok((packet_id, properties, codes))
}

fn put_answer(
    ty: PacketType,
    packet_id: u16,
    properties: Properties<'_>,
    codes: &[u8],
    version: Version,
    out: &mut Vec<u8>,
) {
    put_packet(out, ty.first_byte(), |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        put_properties(out, version, properties);
        out.extend_from_slice(codes);
    });
}
