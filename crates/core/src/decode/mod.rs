//! Payload bytes in, typed cells out: pure, without clock and without I/O.
//!
//! A [`StreamSpec`] is what the configuration declares. [`StreamPlan::new`] compiles it once against
//! the stream's schema; [`StreamPlan::decode`] then turns each payload into rows of a reusable
//! [`Decoded`] in one pass over the bytes, guided by the declared fields, and builds no tree.
//! [`StreamPlan::decode_plain`] is a shorter way for payloads of one ordinary reading.
//!
//! Every kind of bad payload has one stated outcome, see [`DecodeError::reason`]. Errors of syntax
//! come before errors of meaning: a payload that is not JSON is `invalid-json` whatever else its
//! fields hold, and a value that a later duplicate of its key replaces is never complained about.

mod cbor;
mod csv;
mod decoded;
mod descriptor;
mod error;
mod extra;
mod flat;
mod influx;
mod json;
mod json_source;
mod keys;
mod msgpack;
mod number;
mod plain;
mod plan;
mod proto_plan;
mod proto_type;
mod protobuf;
mod reading;
mod senml;
mod sink;
mod sparkplug;
mod spec;
mod suggest;
mod time;
mod tree;
mod wire;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_formats;
#[cfg(test)]
mod tests_protobuf;
#[cfg(test)]
mod tests_sparkplug;

pub use decoded::Decoded;
pub use error::DecodeError;
pub use extra::Undeclared;
pub use plain::Plain;
pub use plan::{EXTRA, StreamPlan};
pub use proto_plan::protobuf_fields;
pub use sparkplug::{
    SparkplugContext, SparkplugHead, SparkplugKind, SparkplugMetrics, SparkplugTopic, sparkplug_rebirth,
};
pub use spec::{FieldSpec, Format, ProtobufSpec, StreamSpec, TimeSpec, TimeUnit, topic_captures};
pub use suggest::{Suggestion, suggest};

/// Containers that may be open at once; a 65th is `too-deep`. Ours: RFC 8259 section 9 lets a
/// parser choose.
pub const MAX_DEPTH: u32 = 64;

/// Columns that a stream with inferred fields gets beside its own; further fields go to `_extra`.
pub const MAX_INFERRED: usize = 256;

/// Readings of one payload. Ours: `[{},{},...]` is three bytes a reading, but a row of cells each.
pub const MAX_READINGS: usize = 65_536;
