//! `Tumble` and `KeyInterner`.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType, UInt32Type};
use arrow_array::{Array, ArrayRef, UInt32Array};
use headwater_core::window::{
    AddError, Aggregate, Function, GroupType, Input, InputType, InternError, KeyInterner, Tumble,
    TumbleOptions, Values,
};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::arrow::{array_from_python, array_to_python, batch_to_python};
use crate::errors;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTumble>()?;
    module.add_class::<PyKeyInterner>()
}

fn invalid(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pyclass(name = "Tumble", module = "headwater._native", frozen)]
struct PyTumble {
    tumble: Mutex<Tumble>,
}

fn options(
    size_us: i64,
    aggregates: Vec<(String, Option<usize>)>,
    inputs: Vec<String>,
    max_bytes: usize,
    max_panes: usize,
) -> PyResult<TumbleOptions> {
    let aggregate = |(name, input): (String, Option<usize>)| {
        let function = match name.as_str() {
            "count_star" => Function::CountStar,
            "count" => Function::Count,
            "sum" => Function::Sum,
            "avg" => Function::Avg,
            "min" => Function::Min,
            "max" => Function::Max,
            _ => return Err(invalid(format!("aggregate {name:?} is unknown"))),
        };
        Ok(Aggregate { function, input })
    };
    let input = |name: String| match name.as_str() {
        "double" => Ok(InputType::Double),
        "bigint" => Ok(InputType::Bigint),
        _ => Err(invalid(format!("input type {name:?} is neither double nor bigint"))),
    };
    Ok(TumbleOptions {
        size_us,
        aggregates: aggregates.into_iter().map(aggregate).collect::<PyResult<_>>()?,
        inputs: inputs.into_iter().map(input).collect::<PyResult<_>>()?,
        max_bytes,
        max_panes,
    })
}

/// The integers of an int64 or timestamp[us] array.
fn integers(array: &ArrayRef) -> PyResult<&[i64]> {
    if let Some(values) = array.as_primitive_opt::<Int64Type>() {
        return Ok(values.values());
    }
    match array.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(values) => Ok(values.values()),
        None => Err(invalid(format!("int64 or timestamp[us] is needed, found {}", array.data_type()))),
    }
}

fn input(array: &ArrayRef) -> PyResult<Input<'_>> {
    let valid = array.nulls();
    if let Some(values) = array.as_primitive_opt::<Float64Type>() {
        return Ok(Input { values: Values::Doubles(values.values()), valid });
    }
    Ok(Input { values: Values::Bigints(integers(array)?), valid })
}

#[pymethods]
impl PyTumble {
    #[new]
    fn new(
        size_us: i64,
        aggregates: Vec<(String, Option<usize>)>,
        inputs: Vec<String>,
        max_bytes: usize,
        max_panes: usize,
    ) -> PyResult<PyTumble> {
        let options = options(size_us, aggregates, inputs, max_bytes, max_panes)?;
        Ok(PyTumble { tumble: Mutex::new(Tumble::new(options).map_err(invalid)?) })
    }

    #[pyo3(signature = (keys, ts, inputs, select, watermark_us))]
    fn add(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        ts: &Bound<'_, PyAny>,
        inputs: Vec<Bound<'_, PyAny>>,
        select: Option<&Bound<'_, PyAny>>,
        watermark_us: i64,
    ) -> PyResult<(u64, u64, u64)> {
        let keys = array_from_python(keys)?;
        let keys = keys
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| invalid(format!("keys are {}, not uint32", keys.data_type())))?;
        let ts = array_from_python(ts)?;
        let arrays = inputs.iter().map(array_from_python).collect::<PyResult<Vec<_>>>()?;
        let inputs = arrays.iter().map(input).collect::<PyResult<Vec<_>>>()?;
        let select = match select {
            None => None,
            Some(mask) => {
                let mask = array_from_python(mask)?;
                let mask = mask.as_boolean_opt().ok_or_else(|| invalid("select is no boolean array"))?;
                Some((0..mask.len()).map(|row| mask.is_valid(row) && mask.value(row)).collect::<Vec<bool>>())
            }
        };
        let ts = integers(&ts)?;
        let add = || self.tumble.lock().add(keys.values(), ts, &inputs, select.as_deref(), watermark_us);
        let added = py.detach(add).map_err(|error| match error {
            AddError::Full { .. } => errors::raise(py, "LogFullError", error),
            _ => invalid(error),
        })?;
        Ok((added.rows - added.late_rows, added.late_rows, added.dropped_rows))
    }

    fn close<'py>(
        &self,
        py: Python<'py>,
        watermark_us: i64,
        max_rows: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match py.detach(|| self.tumble.lock().close(watermark_us, max_rows)) {
            Some(batch) => batch_to_python(py, batch).map(Some),
            None => Ok(None),
        }
    }

    fn forget(&self, before_us: i64) {
        self.tumble.lock().forget(before_us);
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let tumble = self.tumble.lock();
        let stats = PyDict::new(py);
        stats.set_item("panes", tumble.panes())?;
        stats.set_item("bytes", tumble.bytes())?;
        Ok(stats)
    }

    fn encode<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let state = py.detach(|| self.tumble.lock().encode());
        PyBytes::new(py, &state)
    }

    #[staticmethod]
    fn decode(
        py: Python<'_>,
        state: &[u8],
        size_us: i64,
        aggregates: Vec<(String, Option<usize>)>,
        inputs: Vec<String>,
        max_bytes: usize,
        max_panes: usize,
    ) -> PyResult<PyTumble> {
        let options = options(size_us, aggregates, inputs, max_bytes, max_panes)?;
        let tumble = py.detach(|| Tumble::decode(state, options)).map_err(invalid)?;
        Ok(PyTumble { tumble: Mutex::new(tumble) })
    }
}

#[pyclass(name = "KeyInterner", module = "headwater._native", frozen)]
struct PyKeyInterner {
    interner: Mutex<KeyInterner>,
}

fn group_types(types: Vec<String>) -> PyResult<Vec<GroupType>> {
    let group_type = |name: String| match name.as_str() {
        "string" => Ok(GroupType::String),
        "bigint" => Ok(GroupType::Bigint),
        "boolean" => Ok(GroupType::Boolean),
        _ => Err(invalid(format!("a group column is string, bigint or boolean, found {name:?}"))),
    };
    types.into_iter().map(group_type).collect()
}

#[pymethods]
impl PyKeyInterner {
    #[new]
    fn new(types: Vec<String>, max_keys: u32) -> PyResult<PyKeyInterner> {
        Ok(PyKeyInterner { interner: Mutex::new(KeyInterner::new(group_types(types)?, max_keys)) })
    }

    fn ids<'py>(
        &self,
        py: Python<'py>,
        columns: Vec<Bound<'py, PyAny>>,
        rows: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let columns = columns.iter().map(array_from_python).collect::<PyResult<Vec<_>>>()?;
        let ids = py.detach(|| self.interner.lock().intern(&columns, rows)).map_err(|error| match error {
            InternError::Full { .. } => errors::raise(py, "LogFullError", error),
            InternError::Columns { .. } => invalid(error),
        })?;
        array_to_python(py, &UInt32Array::from(ids))
    }

    fn columns<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let ids = array_from_python(ids)?;
        let ids = ids
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| invalid(format!("ids are {}, not uint32", ids.data_type())))?;
        let arrays = py.detach(|| self.interner.lock().arrays(ids.values()));
        arrays.iter().map(|array| array_to_python(py, array)).collect()
    }

    fn encode<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let state = py.detach(|| self.interner.lock().encode());
        PyBytes::new(py, &state)
    }

    #[staticmethod]
    fn decode(py: Python<'_>, state: &[u8], types: Vec<String>, max_keys: u32) -> PyResult<PyKeyInterner> {
        let types = group_types(types)?;
        let interner = py.detach(|| KeyInterner::decode(state, types, max_keys)).map_err(invalid)?;
        Ok(PyKeyInterner { interner: Mutex::new(interner) })
    }
}
