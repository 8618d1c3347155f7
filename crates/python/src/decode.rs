//! Stream declarations from Python, and decoding of one payload for HTTP ingest.

use std::sync::Arc;

use arrow_array::RecordBatch;
use headwater_core::decode::{
    DecodeError, Decoded, EXTRA, FieldSpec, Format, ProtobufSpec, StreamPlan, StreamSpec, TimeSpec, TimeUnit,
    protobuf_fields, topic_captures,
};
use headwater_core::mqtt::topic::StreamTopic;
use headwater_core::rows::Rows;
use headwater_core::schema::{Column, ColumnType, Schema, SchemaId, StreamId};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrow::batch_to_python;
use crate::{errors, rows};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(decode, module)?)?;
    module.add_function(wrap_pyfunction!(decode_messages, module)?)?;
    module.add_function(wrap_pyfunction!(undeclared, module)?)?;
    module.add_function(wrap_pyfunction!(check, module)?)?;
    module.add_function(wrap_pyfunction!(message_fields, module)?)
}

/// Topic, payload, time of arrival.
type Message = (String, PyBackedBytes, i64);

/// What messages of one stream gave.
struct Messages {
    readings: RecordBatch,
    /// Readings by message.
    counts: Vec<u32>,
    /// Index of message, reason, detail.
    refused: Vec<(usize, &'static str, String)>,
    undeclared: Vec<FieldSpec>,
}

/// A stream's declaration as `headwater.gateway.listener.declaration` writes it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Declaration {
    pub schema: u32,
    name: String,
    topic: String,
    format: String,
    time: Option<String>,
    time_unit: String,
    fields: Vec<(String, String, String)>,
    infer: bool,
    /// A FileDescriptorSet, and the message's full name.
    #[pyo3(default)]
    protobuf: Option<(Vec<u8>, String)>,
}

impl Declaration {
    /// The declaration in the core's terms; errors are for the author of the configuration.
    pub fn spec(&self) -> Result<StreamSpec, String> {
        let unit = TimeUnit::from_name(&self.time_unit)?;
        let field = |(name, ty, path): &(String, String, String)| match ColumnType::from_name(ty) {
            Some(ty) => Ok(FieldSpec { name: name.clone(), ty, path: path.clone() }),
            None => Err(format!("field {name:?} has unknown type {ty:?}")),
        };
        Ok(StreamSpec {
            name: self.name.clone(),
            topic: self.topic.clone(),
            format: Format::from_name(&self.format)?,
            time: self.time.clone().map(|path| TimeSpec { path, unit }),
            fields: self.fields.iter().map(field).collect::<Result<_, _>>()?,
            captures: topic_captures(&self.topic)?,
            infer: self.infer,
            protobuf: self.protobuf.clone().map(|(bytes, message)| protobuf(bytes, message)),
        })
    }
}

fn protobuf(descriptor: Vec<u8>, message: String) -> ProtobufSpec {
    ProtobufSpec { descriptor: descriptor.into(), message }
}

/// Compiles the declaration and gives it up.
#[pyfunction]
fn check(stream: Declaration) -> PyResult<()> {
    let compiled = stream.spec().and_then(|spec| StreamPlan::new(&spec, Arc::new(schema_of(&spec)?)));
    compiled.map(|_| ()).map_err(PyValueError::new_err)
}

#[pyfunction]
fn message_fields(
    descriptor: Vec<u8>,
    message: String,
    captures: Vec<String>,
    time: Option<String>,
) -> PyResult<Vec<(String, &'static str, String)>> {
    let time = time.map(|path| TimeSpec { path, unit: TimeUnit::Auto });
    let fields = protobuf_fields(&protobuf(descriptor, message), &captures, time.as_ref())
        .map_err(PyValueError::new_err)?;
    Ok(fields.into_iter().map(|field| (field.name, field.ty.name(), field.path)).collect())
}

fn schema_of(spec: &StreamSpec) -> Result<Schema, String> {
    let column = |name: &str, ty| Column { name: name.to_owned(), ty };
    let mut columns: Vec<Column> =
        spec.captures.iter().map(|name| column(name, ColumnType::String)).collect();
    columns.push(column("ts", ColumnType::Timestamp));
    columns.push(column("received_at", ColumnType::Timestamp));
    columns.extend(spec.infer.then(|| column(EXTRA, ColumnType::String)));
    columns.extend(spec.fields.iter().map(|field| column(&field.name, field.ty)));
    Schema::new(SchemaId(0), StreamId(0), &spec.name, columns, None)
}

fn decode_batch(spec: &StreamSpec, payload: &[u8], received_at_us: i64) -> Result<RecordBatch, String> {
    let schema = Arc::new(schema_of(spec)?);
    let plan = StreamPlan::new(spec, schema.clone())?;
    let mut decoded = Decoded::new();
    plan.decode(payload, &[], received_at_us, &mut decoded)
        .map_err(|error| format!("{}: {error}", error.reason()))?;
    let mut readings = Rows::new(schema);
    for row in 0..decoded.rows() {
        readings.push(decoded.cells(row)).map_err(|error| error.to_string())?;
    }
    rows::to_batch(&readings)
}

/// Columns for the fields that the payload shows and the declaration lacks.
fn new_fields(spec: &StreamSpec, payload: &[u8]) -> Result<Vec<FieldSpec>, String> {
    let plan = StreamPlan::new(spec, Arc::new(schema_of(spec)?))?;
    let mut decoded = Decoded::new();
    let refused = |error: DecodeError| format!("{}: {error}", error.reason());
    plan.decode(payload, &[], 0, &mut decoded).map_err(refused)?;
    Ok(plan.columns_for(&decoded, &spec.fields))
}

fn decode_all(spec: &StreamSpec, messages: &[Message]) -> Result<Messages, String> {
    let schema = Arc::new(schema_of(spec)?);
    let plan = StreamPlan::new(spec, schema.clone())?;
    let topics = StreamTopic::parse(&spec.topic)?;
    let (mut decoded, mut readings) = (Decoded::new(), Rows::new(schema));
    let (mut counts, mut refused, mut undeclared) = (Vec::new(), Vec::new(), Vec::new());
    for (at, (topic, payload, received_at_us)) in messages.iter().enumerate() {
        let before = readings.len();
        match topics.captured(topic) {
            None => {
                refused.push((at, "topic-not-matched", format!("the stream's topic is {:?}", spec.topic)))
            }
            Some(captures) => match plan.decode(payload, &captures, *received_at_us, &mut decoded) {
                Err(error) => refused.push((at, error.reason(), error.to_string())),
                Ok(()) => {
                    undeclared = plan.columns_for(&decoded, &spec.fields);
                    if !undeclared.is_empty() {
                        break;
                    }
                    for row in 0..decoded.rows() {
                        readings.push(decoded.cells(row)).map_err(|error| error.to_string())?;
                    }
                }
            },
        }
        counts.push((readings.len() - before) as u32);
    }
    Ok(Messages { readings: rows::to_batch(&readings)?, counts, refused, undeclared })
}

/// (readings, their number by message, (index, reason, detail) of messages that are refused, columns to be added
/// before all of it is decoded again)
type Decodings<'py> =
    (Bound<'py, PyAny>, Vec<u32>, Vec<(usize, &'static str, String)>, Vec<(String, &'static str, String)>);

#[pyfunction]
fn decode_messages<'py>(
    py: Python<'py>,
    stream: Declaration,
    messages: Vec<Message>,
) -> PyResult<Decodings<'py>> {
    let spec = stream.spec().map_err(PyValueError::new_err)?;
    let found = py.detach(|| decode_all(&spec, &messages)).map_err(PyValueError::new_err)?;
    let fields = found.undeclared.into_iter().map(|field| (field.name, field.ty.name(), field.path));
    Ok((batch_to_python(py, found.readings)?, found.counts, found.refused, fields.collect()))
}

#[pyfunction]
fn undeclared(
    py: Python<'_>,
    stream: Declaration,
    payload: &[u8],
) -> PyResult<Vec<(String, &'static str, String)>> {
    let spec = stream.spec().map_err(PyValueError::new_err)?;
    match py.detach(|| new_fields(&spec, payload)) {
        Ok(fields) => Ok(fields.into_iter().map(|field| (field.name, field.ty.name(), field.path)).collect()),
        Err(problem) => {
            Err(errors::raise(py, "RecordError", format!("decoding for stream {:?}: {problem}", spec.name)))
        }
    }
}

#[pyfunction]
fn decode<'py>(
    py: Python<'py>,
    stream: Declaration,
    payload: &[u8],
    received_at_us: i64,
) -> PyResult<Bound<'py, PyAny>> {
    let spec = stream.spec().map_err(PyValueError::new_err)?;
    if !spec.captures.is_empty() {
        return Err(PyValueError::new_err("without a topic there is nothing to capture"));
    }
    match py.detach(|| decode_batch(&spec, payload, received_at_us)) {
        Ok(batch) => batch_to_python(py, batch),
        Err(problem) => {
            Err(errors::raise(py, "RecordError", format!("decoding for stream {:?}: {problem}", spec.name)))
        }
    }
}
