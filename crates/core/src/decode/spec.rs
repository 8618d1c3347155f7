//! What a stream's declaration says, as read from the configuration; nothing is compiled here.

use std::sync::Arc;

use crate::schema::ColumnType;

/// One `[streams.NAME]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    pub name: String,
    /// Topic filter with captures: `dt/{site}/{device}/telemetry`.
    pub topic: String,
    pub format: Format,
    /// Where a payload states its event time; `None`: time of arrival.
    pub time: Option<TimeSpec>,
    /// Declared fields, or those inferred so far, in the order of their columns.
    pub fields: Vec<FieldSpec>,
    /// Fields come from the messages: what no field has yet is told by `Decoded::undeclared`.
    pub infer: bool,
    /// Of `Format::Protobuf`.
    pub protobuf: Option<ProtobufSpec>,
    /// Names captured by `topic`, in topic order.
    pub captures: Vec<String>,
}

/// The message type of a stream's payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtobufSpec {
    /// A FileDescriptorSet with all imports.
    pub descriptor: Arc<[u8]>,
    /// Full name of the message: `acme.Telemetry`.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeSpec {
    /// Dotted path of the payload field.
    pub path: String,
    pub unit: TimeUnit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// The column's name.
    pub name: String,
    pub ty: ColumnType,
    /// Dotted path in the payload: `radio.rssi`. A dot that belongs to a key is written `\.`.
    pub path: String,
}

/// How payloads of a stream are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// RFC 8259: one object, or an array of objects.
    Json,
    /// RFC 8949: one map, or an array of maps.
    Cbor,
    /// The MessagePack specification (2017, with timestamps): one map, or an array of maps.
    Msgpack,
    /// RFC 8428 section 5: a pack of records.
    SenmlJson,
    /// RFC 8428 section 6.
    SenmlCbor,
    /// InfluxDB line protocol version 2: one reading a line.
    Influx,
    /// RFC 4180: one reading a record.
    Csv,
    /// Protocol Buffers: one message, whose type is in `StreamSpec::protobuf`.
    Protobuf,
    /// Eclipse Sparkplug 3.0: metrics of edge nodes and devices.
    SparkplugB,
}

impl Format {
    pub const ALL: [Format; 9] = [
        Format::Json,
        Format::Cbor,
        Format::Msgpack,
        Format::SenmlJson,
        Format::SenmlCbor,
        Format::Influx,
        Format::Csv,
        Format::Protobuf,
        Format::SparkplugB,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Cbor => "cbor",
            Format::Msgpack => "msgpack",
            Format::SenmlJson => "senml-json",
            Format::SenmlCbor => "senml-cbor",
            Format::Influx => "influx",
            Format::Csv => "csv",
            Format::Protobuf => "protobuf",
            Format::SparkplugB => "sparkplug-b",
        }
    }

    /// A format this version cannot decode is refused by name, with the list of those it can.
    pub fn from_name(name: &str) -> Result<Format, String> {
        Format::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
            format!("payload format {name:?} is not built; formats that work: {}", known.join(", "))
        })
    }
}

/// The unit of a numeric event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeUnit {
    /// Told by magnitude: below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds; text is ISO 8601.
    Auto,
    S,
    Ms,
    Us,
    /// ISO 8601 text only.
    Iso,
}

impl TimeUnit {
    pub const ALL: [TimeUnit; 5] = [TimeUnit::Auto, TimeUnit::S, TimeUnit::Ms, TimeUnit::Us, TimeUnit::Iso];

    pub fn name(self) -> &'static str {
        match self {
            TimeUnit::Auto => "auto",
            TimeUnit::S => "s",
            TimeUnit::Ms => "ms",
            TimeUnit::Us => "us",
            TimeUnit::Iso => "iso",
        }
    }

    pub fn from_name(name: &str) -> Result<TimeUnit, String> {
        TimeUnit::ALL.into_iter().find(|unit| unit.name() == name).ok_or_else(|| {
            let known: Vec<&str> = TimeUnit::ALL.iter().map(|unit| unit.name()).collect();
            format!("time unit {name:?} is unknown; units that work: {}", known.join(", "))
        })
    }
}

/// The names that `{name}` levels of a topic filter capture, in topic order.
///
/// Errors: an empty name, a name used twice, or braces around only a part of a level.
///
/// ```
/// assert_eq!(headwater_core::decode::topic_captures("dt/{site}/{device}/+").unwrap(), ["site", "device"]);
/// ```
pub fn topic_captures(topic: &str) -> Result<Vec<String>, String> {
    let mut captures: Vec<String> = Vec::new();
    for level in topic.split('/') {
        if !level.contains(['{', '}']) {
            continue;
        }
        let name = level.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
        if name.is_empty() || name.contains(['{', '}']) {
            return Err(format!(
                "level {level:?} of topic {topic:?} must be {{name}} as a whole to capture, or hold no braces"
            ));
        }
        if captures.iter().any(|known| known == name) {
            return Err(format!("topic {topic:?} captures {name:?} twice"));
        }
        captures.push(name.to_owned());
    }
    Ok(captures)
}
