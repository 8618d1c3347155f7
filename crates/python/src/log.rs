//! `Log` and `LogReader`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use headwater_core::log::{DedupeOptions, Durability, InferredField, Log, LogError, LogOptions, Reader};
use headwater_core::rows::Rows;
use headwater_core::schema::{Column, ColumnType, Offset, Partition, Schema, SchemaId, SchemaRef, StreamId};
use parking_lot::{Mutex, RwLock};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrow::{array_from_python, array_to_python, batch_from_python, batch_to_python};
use crate::{errors, rows};

/// (schema id, stream id, stream name, [(column, type)], key column)
type SchemaTuple = (u32, u16, String, Vec<(String, String)>, Option<String>);

/// (column, type, path in the payload)
type FieldTuple = (String, &'static str, String);

#[pyclass(name = "Log", module = "headwater._native", frozen)]
pub struct PyLog {
    pub log: Log,
    schemas: RwLock<HashMap<u32, SchemaRef>>,
}

#[pyclass(name = "LogReader", module = "headwater._native", frozen)]
pub struct PyLogReader {
    reader: Mutex<Reader>,
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyLog>()?;
    module.add_class::<PyLogReader>()
}

impl PyLog {
    fn remember(&self, schema: &SchemaRef) {
        self.schemas.write().insert(schema.id.0, schema.clone());
    }

    /// The registered schema of that id.
    pub fn schema(&self, id: u32) -> PyResult<SchemaRef> {
        let found = self.schemas.read().get(&id).cloned();
        found.ok_or_else(|| PyValueError::new_err(format!("schema {id} is not registered")))
    }
}

fn schema((id, stream, name, columns, key): SchemaTuple) -> PyResult<Schema> {
    let columns = columns.into_iter().map(|(name, ty)| match ColumnType::from_name(&ty) {
        Some(ty) => Ok(Column { name, ty }),
        None => Err(PyValueError::new_err(format!("column {name:?} has unknown type {ty:?}"))),
    });
    let columns = columns.collect::<PyResult<Vec<_>>>()?;
    Schema::new(SchemaId(id), StreamId(stream), &name, columns, key.as_deref()).map_err(PyValueError::new_err)
}

fn offsets(offsets: Vec<Offset>) -> Vec<u64> {
    offsets.into_iter().map(|offset| offset.0).collect()
}

#[pymethods]
impl PyLog {
    #[new]
    #[pyo3(signature = (directory, *, partitions, durability, commit_bytes, commit_interval_us, segment_bytes,
                        queue_bytes, retention_bytes, disk_max_bytes, max_keys, schemas))]
    #[allow(clippy::too_many_arguments, reason = "one keyword per setting of the log section")]
    fn new(
        py: Python<'_>,
        directory: String,
        partitions: u16,
        durability: &str,
        commit_bytes: usize,
        commit_interval_us: u64,
        segment_bytes: u64,
        queue_bytes: usize,
        retention_bytes: u64,
        disk_max_bytes: u64,
        max_keys: u32,
        schemas: Vec<SchemaTuple>,
    ) -> PyResult<PyLog> {
        let durability = match durability {
            "sync" => Durability::Sync,
            "async" => Durability::Async,
            other => {
                return Err(PyValueError::new_err(format!("durability {other:?} is neither sync nor async")));
            }
        };
        let options = LogOptions {
            partitions,
            segment_bytes,
            commit_bytes,
            commit_interval: Duration::from_micros(commit_interval_us),
            durability,
            max_keys,
            queue_bytes,
            retention_bytes,
            disk_max_bytes,
        };
        let schemas = schemas.into_iter().map(schema).collect::<PyResult<Vec<_>>>()?;
        let known = schemas.iter().map(|schema| (schema.id.0, Arc::new(schema.clone()))).collect();
        let log = py
            .detach(|| Log::open(Path::new(&directory), options, schemas))
            .map_err(|error| errors::of_log(py, error))?;
        Ok(PyLog { log, schemas: RwLock::new(known) })
    }

    fn recovery<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = self.log.recovery();
        let report = PyDict::new(py);
        report.set_item("epoch", found.epoch)?;
        report.set_item("segments", found.segments)?;
        report.set_item("keys", found.keys)?;
        report.set_item("bytes_read", found.bytes_read)?;
        report.set_item("torn_tail", found.torn.as_ref().map(ToString::to_string))?;
        report.set_item("took_ms", found.took.as_secs_f64() * 1e3)?;
        Ok(report)
    }

    #[pyo3(signature = (id, stream, name, columns, key))]
    fn register(
        &self,
        py: Python<'_>,
        id: u32,
        stream: u16,
        name: String,
        columns: Vec<(String, String)>,
        key: Option<String>,
    ) -> PyResult<()> {
        let schema = schema((id, stream, name, columns, key))?;
        let registered = self.log.register(schema).map_err(|error| errors::of_log(py, error))?;
        self.schemas.write().insert(id, registered);
        Ok(())
    }

    fn inferred(&self, py: Python<'_>, stream: u16) -> PyResult<(u32, Vec<FieldTuple>)> {
        let (fields, schema) = match self.log.inferred(StreamId(stream)) {
            // Nothing of the stream has been registered yet.
            Err(LogError::UnknownStream(_)) => return Ok((0, Vec::new())),
            found => found.map_err(|error| errors::of_log(py, error))?,
        };
        let fields = fields.into_iter().map(|field| (field.name, field.ty.name(), field.path)).collect();
        self.remember(&schema);
        Ok((schema.id.0, fields))
    }

    fn infer(&self, py: Python<'_>, schema: u32, fields: Vec<(String, String, String)>) -> PyResult<u32> {
        let current = self.schema(schema)?;
        let fields = fields.into_iter().map(|(name, ty, path)| match ColumnType::from_name(&ty) {
            Some(ty) => Ok(InferredField { name, ty, path }),
            None => Err(PyValueError::new_err(format!("field {name:?} has unknown type {ty:?}"))),
        });
        let fields = fields.collect::<PyResult<Vec<_>>>()?;
        let wider = py.detach(|| self.log.infer(&current, &fields));
        let wider = wider.map_err(|error| errors::of_log(py, error))?;
        self.remember(&wider);
        Ok(wider.id.0)
    }

    fn dedupe(
        &self,
        py: Python<'_>,
        schema: u32,
        columns: Vec<String>,
        window_us: i64,
        max_keys: usize,
        now_us: i64,
    ) -> PyResult<()> {
        let schema = self.schema(schema)?;
        let options = DedupeOptions { columns, window_us, max_keys };
        let filled = py.detach(|| self.log.dedupe(&schema, options, now_us));
        filled.map_err(|error| match error {
            LogError::Invalid(why) => errors::raise(py, "ConfigError", why),
            other => errors::of_log(py, other),
        })
    }

    fn dedupe_end(&self, stream: u16) {
        self.log.dedupe_end(StreamId(stream));
    }

    fn dedupe_stats<'py>(&self, py: Python<'py>, stream: u16) -> PyResult<Bound<'py, PyDict>> {
        let found = self.log.dedupe_stats(StreamId(stream));
        let stats = PyDict::new(py);
        stats.set_item("duplicates", found.duplicates)?;
        stats.set_item("keys", found.keys)?;
        stats.set_item("evicted", found.evicted)?;
        Ok(stats)
    }

    fn partitions(&self) -> u16 {
        self.log.partitions()
    }

    fn append(
        &self,
        py: Python<'_>,
        parts: Vec<(u32, Bound<'_, PyAny>)>,
    ) -> PyResult<Vec<(u16, u16, u64, u32)>> {
        let mut staged: Vec<Rows> = Vec::with_capacity(parts.len());
        for (id, batch) in parts {
            let batch = batch_from_python(&batch)?;
            let schema = self.schema(id)?;
            let rows = py.detach(|| rows::from_batch(schema, &batch));
            staged.push(rows.map_err(|problem| errors::raise(py, "RecordError", problem))?);
        }
        let parts: Vec<&Rows> = staged.iter().collect();
        let receipt = py.detach(|| self.log.append(&parts)).map_err(|error| errors::of_log(py, error))?;
        let ranges = receipt.ranges.iter();
        Ok(ranges.map(|(stream, partition, base, rows)| (stream.0, partition.0, base.0, *rows)).collect())
    }

    #[pyo3(signature = (stream, offsets, columns = None))]
    fn reader(
        &self,
        py: Python<'_>,
        stream: u16,
        offsets: Vec<u64>,
        columns: Option<Vec<String>>,
    ) -> PyResult<PyLogReader> {
        let mut from: Vec<Offset> = offsets.into_iter().map(Offset).collect();
        from.resize(usize::from(self.log.partitions()), Offset(0));
        let open = || {
            let mut reader = self.log.reader(StreamId(stream), &from)?;
            if let Some(columns) = &columns {
                let names: Vec<&str> = columns.iter().map(String::as_str).collect();
                reader.project(&names)?;
            }
            Ok(reader)
        };
        let reader = py.detach(open).map_err(|error| errors::of_log(py, error))?;
        Ok(PyLogReader { reader: Mutex::new(reader) })
    }

    fn end(&self, stream: u16) -> Vec<u64> {
        offsets(self.log.end(StreamId(stream)))
    }

    fn start(&self, stream: u16) -> Vec<u64> {
        offsets(self.log.start(StreamId(stream)))
    }

    fn hold(&self, reader: &str, stream: u16, offsets: Vec<u64>) {
        let mut from: Vec<Offset> = offsets.into_iter().map(Offset).collect();
        from.resize(usize::from(self.log.partitions()), Offset(0));
        self.log.hold(reader, StreamId(stream), &from);
    }

    fn hold_all(&self, reader: &str) {
        self.log.hold_all(reader);
    }

    fn release_all(&self, reader: &str) {
        self.log.release_all(reader);
    }

    fn release(&self, reader: &str, stream: u16) {
        self.log.release(reader, StreamId(stream));
    }

    fn wait(&self, py: Python<'_>, seen: u64, timeout_s: f64) -> u64 {
        py.detach(|| self.log.wait(seen, Duration::from_secs_f64(timeout_s.clamp(0.0, 1e6))))
    }

    fn keys<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let ids = array_from_python(ids)?;
        let ids = ids
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| PyValueError::new_err(format!("ids are {}, not uint32", ids.data_type())))?;
        let partitions = u32::from(self.log.partitions());
        let keys = py.detach(|| {
            let mut keys = StringBuilder::new();
            for id in ids.values() {
                let key = self.log.key_bytes(Partition((id % partitions) as u16), id / partitions);
                keys.append_option(key.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            }
            keys.finish()
        });
        array_to_python(py, &keys)
    }

    fn key_id(&self, key: &str) -> Option<u32> {
        let (partition, id) = self.log.key_id(key.as_bytes())?;
        Some(id * u32::from(self.log.partitions()) + u32::from(partition.0))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = self.log.stats();
        let stats = PyDict::new(py);
        stats.set_item("commits", found.commits)?;
        stats.set_item("bytes", found.bytes)?;
        stats.set_item("sync_errors", found.sync_errors)?;
        stats.set_item("write_errors", found.write_errors)?;
        stats.set_item("segments", found.segments)?;
        stats.set_item("disk_bytes", found.disk_bytes)?;
        stats.set_item("full", found.full)?;
        stats.set_item("last_error", found.last_error)?;
        stats.set_item("queued_bytes", found.queued_bytes)?;
        Ok(stats)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.log.close());
    }
}

#[pymethods]
impl PyLogReader {
    fn read<'py>(&self, py: Python<'py>, max_rows: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let read = py.detach(|| self.reader.lock().read(max_rows));
        match read.map_err(|error| errors::of_log(py, error))? {
            Some(batch) => batch_to_python(py, batch).map(Some),
            None => Ok(None),
        }
    }

    fn offsets(&self, py: Python<'_>) -> Vec<u64> {
        offsets(py.detach(|| self.reader.lock().offsets()))
    }
}
