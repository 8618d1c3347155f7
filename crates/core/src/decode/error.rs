//! Why a payload became a dead letter. Positions are bytes from the payload's start, counted from 0.

use std::sync::Arc;

use super::{MAX_DEPTH, MAX_READINGS};

/// The whole payload is refused: none of its readings is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the payload is empty, it holds no reading")]
    EmptyPayload,
    #[error("byte {at} is not valid UTF-8")]
    InvalidUtf8 { at: usize },
    #[error("not JSON at byte {at}: {problem}")]
    InvalidJson { at: usize, problem: &'static str },
    #[error("not CBOR at byte {at}: {problem}")]
    InvalidCbor { at: usize, problem: &'static str },
    #[error("not MessagePack at byte {at}: {problem}")]
    InvalidMsgpack { at: usize, problem: &'static str },
    #[error("not SenML at byte {at}: {problem}")]
    InvalidSenml { at: usize, problem: &'static str },
    #[error("not line protocol at byte {at}: {problem}")]
    InvalidInflux { at: usize, problem: &'static str },
    #[error("not CSV at byte {at}: {problem}")]
    InvalidCsv { at: usize, problem: &'static str },
    #[error("not Protocol Buffers at byte {at}: {problem}")]
    InvalidProtobuf { at: usize, problem: &'static str },
    #[error(
        "{count} metrics have no name or type, since no birth has declared them; the first is at byte {at}"
    )]
    UnknownMetric { at: usize, count: u32 },
    #[error("nested deeper than {MAX_DEPTH} levels at byte {at}")]
    TooDeep { at: usize },
    #[error("more than {MAX_READINGS} readings in one payload, or too long to hold; split it")]
    TooLarge,
    #[error("a reading must be an object, but byte {at} starts {found}")]
    NotAnObject { at: usize, found: &'static str },
    #[error("field {field:?} wants {wanted}, but byte {at} starts {found}")]
    TypeConflict { field: Arc<str>, at: usize, wanted: &'static str, found: &'static str },
    #[error("field {field:?}: the number at byte {at} does not fit {wanted}")]
    NumberOutOfRange { field: Arc<str>, at: usize, wanted: &'static str },
    #[error("field {field:?}: the text at byte {at} is not an ISO 8601 date or time")]
    InvalidTime { field: Arc<str>, at: usize },
    #[error("field {field:?}: the time at byte {at} is outside the years 1 to 9999, or of no known unit")]
    TimeOutOfRange { field: Arc<str>, at: usize },
}

impl DecodeError {
    /// Every code that [`reason`](DecodeError::reason) can give, for metrics and documents.
    pub const REASONS: [&'static str; 17] = [
        "empty-payload",
        "invalid-utf8",
        "invalid-json",
        "invalid-cbor",
        "invalid-msgpack",
        "invalid-senml",
        "invalid-influx",
        "invalid-csv",
        "invalid-protobuf",
        "unknown-metric",
        "too-deep",
        "too-large",
        "not-an-object",
        "type-conflict",
        "number-out-of-range",
        "invalid-time",
        "time-out-of-range",
    ];

    /// The stable short code that dead letters and counters carry.
    pub fn reason(&self) -> &'static str {
        match self {
            DecodeError::EmptyPayload => "empty-payload",
            DecodeError::InvalidUtf8 { .. } => "invalid-utf8",
            DecodeError::InvalidJson { .. } => "invalid-json",
            DecodeError::InvalidCbor { .. } => "invalid-cbor",
            DecodeError::InvalidMsgpack { .. } => "invalid-msgpack",
            DecodeError::InvalidSenml { .. } => "invalid-senml",
            DecodeError::InvalidInflux { .. } => "invalid-influx",
            DecodeError::InvalidCsv { .. } => "invalid-csv",
            DecodeError::InvalidProtobuf { .. } => "invalid-protobuf",
            DecodeError::UnknownMetric { .. } => "unknown-metric",
            DecodeError::TooDeep { .. } => "too-deep",
            DecodeError::TooLarge => "too-large",
            DecodeError::NotAnObject { .. } => "not-an-object",
            DecodeError::TypeConflict { .. } => "type-conflict",
            DecodeError::NumberOutOfRange { .. } => "number-out-of-range",
            DecodeError::InvalidTime { .. } => "invalid-time",
            DecodeError::TimeOutOfRange { .. } => "time-out-of-range",
        }
    }
}
