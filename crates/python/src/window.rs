//! `AlignedWindows`, `SessionWindows`, `KeyInterner`, and what they write.

use std::path::PathBuf;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType, UInt32Type};
use arrow_array::{Array, ArrayRef, UInt32Array};
use headwater_core::window::{
    AddError, Added, Aggregate, AlignedOptions, AlignedWindows, Frozen, Function, GroupType, Input,
    InputType, InternError, KeyInterner, SessionOptions, SessionWindows, Shape, Values, hash_text, is_sealed,
    seal,
};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::arrow::{array_from_python, array_to_python, batch_to_python};
use crate::errors;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyAlignedWindows>()?;
    module.add_class::<PySessionWindows>()?;
    module.add_class::<PyKeyInterner>()?;
    module.add_class::<PyFrozen>()?;
    module.add_function(wrap_pyfunction!(sealed, module)?)?;
    module.add_function(wrap_pyfunction!(py_is_sealed, module)?)
}

#[pyfunction]
fn sealed<'py>(py: Python<'py>, content: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &seal(content.to_vec()))
}

#[pyfunction(name = "is_sealed")]
fn py_is_sealed(py: Python<'_>, content: &[u8]) -> bool {
    py.detach(|| is_sealed(content))
}

#[pyclass(name = "Frozen", module = "headwater._native", frozen)]
struct PyFrozen {
    frozen: Frozen,
}

#[pymethods]
impl PyFrozen {
    fn length(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.frozen.length())
    }

    fn append_to(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        Ok(py.detach(|| self.frozen.append_to(&path))?)
    }
}

fn invalid(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// (function, index of its input, parameter)
type NamedAggregate = (String, Option<usize>, u32);

fn aggregates(named: Vec<NamedAggregate>) -> PyResult<Vec<Aggregate>> {
    let aggregate = |(name, input, parameter): NamedAggregate| {
        let function = match name.as_str() {
            "count_star" => Function::CountStar,
            "count" => Function::Count,
            "sum" => Function::Sum,
            "avg" => Function::Avg,
            "min" => Function::Min,
            "max" => Function::Max,
            "var_pop" => Function::VarPop,
            "var_samp" => Function::VarSamp,
            "stddev_pop" => Function::StddevPop,
            "stddev_samp" => Function::StddevSamp,
            "first_value" => Function::First,
            "last_value" => Function::Last,
            "count_distinct" => Function::CountDistinct,
            "percentile" => Function::Percentile { millionths: parameter },
            _ => return Err(invalid(format!("aggregate {name:?} is unknown"))),
        };
        Ok(Aggregate { function, input })
    };
    named.into_iter().map(aggregate).collect()
}

fn input_types(names: Vec<String>) -> PyResult<Vec<InputType>> {
    let input = |name: String| match name.as_str() {
        "double" => Ok(InputType::Double),
        "bigint" => Ok(InputType::Bigint),
        "text" => Ok(InputType::Text),
        _ => Err(invalid(format!("input type {name:?} is none of double, bigint and text"))),
    };
    names.into_iter().map(input).collect()
}

fn shape(kind: &str, us: Vec<i64>) -> PyResult<Shape> {
    match (kind, us.as_slice()) {
        ("tumble", &[size_us]) => Ok(Shape::Tumble { size_us }),
        ("hop", &[slide_us, size_us]) => Ok(Shape::Hop { slide_us, size_us }),
        ("cumulate", &[step_us, size_us]) => Ok(Shape::Cumulate { step_us, size_us }),
        ("calendar", _) => Ok(Shape::Calendar { starts_us: us.into() }),
        _ => Err(invalid(format!("windows {kind:?} of {} times are unknown", us.len()))),
    }
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

/// The columns of a batch, held while the kernel reads them.
struct Columns {
    keys: ArrayRef,
    ts: ArrayRef,
    inputs: Vec<ArrayRef>,
    /// Of inputs that are text where the kernel takes integers: what stands for each value.
    hashes: Vec<Option<Vec<i64>>>,
    select: Option<Vec<bool>>,
}

impl Columns {
    fn new(
        keys: &Bound<'_, PyAny>,
        ts: &Bound<'_, PyAny>,
        inputs: &[Bound<'_, PyAny>],
        select: Option<&Bound<'_, PyAny>>,
        types: &[InputType],
    ) -> PyResult<Columns> {
        let inputs = inputs.iter().map(array_from_python).collect::<PyResult<Vec<_>>>()?;
        let hashes = inputs.iter().enumerate().map(|(at, array)| {
            let texts = array.as_string_opt::<i32>().filter(|_| types.get(at) != Some(&InputType::Text))?;
            Some((0..texts.len()).map(|row| hash_text(texts.value(row)) as i64).collect())
        });
        let select = match select {
            None => None,
            Some(mask) => {
                let mask = array_from_python(mask)?;
                let mask = mask.as_boolean_opt().ok_or_else(|| invalid("select is no boolean array"))?;
                Some((0..mask.len()).map(|row| mask.is_valid(row) && mask.value(row)).collect())
            }
        };
        Ok(Columns {
            keys: array_from_python(keys)?,
            ts: array_from_python(ts)?,
            hashes: hashes.collect(),
            inputs,
            select,
        })
    }

    fn keys(&self) -> PyResult<&[u32]> {
        let keys = self.keys.as_primitive_opt::<UInt32Type>();
        let keys = keys.ok_or_else(|| invalid(format!("keys are {}, not uint32", self.keys.data_type())))?;
        Ok(keys.values())
    }

    fn inputs(&self) -> PyResult<Vec<Input<'_>>> {
        let columns = self.inputs.iter().zip(&self.hashes);
        columns.map(|(array, hashes)| input(array, hashes.as_deref())).collect()
    }
}

/// A column as the kernel takes it; of text its hashes, where there are any.
fn input<'a>(array: &'a ArrayRef, hashes: Option<&'a [i64]>) -> PyResult<Input<'a>> {
    let doubles = array.as_primitive_opt::<Float64Type>();
    let values = match (hashes, doubles, array.as_string_opt::<i32>()) {
        (Some(hashes), ..) => Values::Bigints(hashes),
        (None, Some(values), _) => Values::Doubles(values.values()),
        (None, None, Some(texts)) => Values::Texts(texts),
        (None, None, None) => Values::Bigints(integers(array)?),
    };
    Ok(Input { values, valid: array.nulls() })
}

/// (rows in open windows, late rows that amend, rows dropped)
fn counted(py: Python<'_>, added: Result<Added, AddError>) -> PyResult<(u64, u64, u64)> {
    let added = added.map_err(|error| match error {
        AddError::Full { .. } | AddError::SessionsFull { .. } => errors::raise(py, "LogFullError", error),
        AddError::Shape(_) => invalid(error),
    })?;
    Ok((added.rows - added.late_rows, added.late_rows, added.dropped_rows))
}

#[pyclass(name = "AlignedWindows", module = "headwater._native", frozen)]
struct PyAlignedWindows {
    windows: Mutex<AlignedWindows>,
    inputs: Vec<InputType>,
}

impl PyAlignedWindows {
    fn of(windows: AlignedWindows) -> PyAlignedWindows {
        PyAlignedWindows { inputs: windows.options().inputs.clone(), windows: Mutex::new(windows) }
    }
}

fn aligned(
    shape_of: (String, Vec<i64>),
    named: Vec<NamedAggregate>,
    inputs: Vec<String>,
    max_bytes: usize,
    max_panes: usize,
) -> PyResult<AlignedOptions> {
    Ok(AlignedOptions {
        shape: shape(&shape_of.0, shape_of.1)?,
        aggregates: aggregates(named)?,
        inputs: input_types(inputs)?,
        max_bytes,
        max_panes,
    })
}

#[pymethods]
impl PyAlignedWindows {
    #[new]
    fn new(
        shape: (String, Vec<i64>),
        aggregates: Vec<NamedAggregate>,
        inputs: Vec<String>,
        max_bytes: usize,
        max_panes: usize,
    ) -> PyResult<PyAlignedWindows> {
        let options = aligned(shape, aggregates, inputs, max_bytes, max_panes)?;
        Ok(PyAlignedWindows::of(AlignedWindows::new(options).map_err(invalid)?))
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
        let columns = Columns::new(keys, ts, &inputs, select, &self.inputs)?;
        let (keys, ts, inputs) = (columns.keys()?, integers(&columns.ts)?, columns.inputs()?);
        let select = columns.select.as_deref();
        let add = || self.windows.lock().add(keys, ts, &inputs, select, watermark_us);
        counted(py, py.detach(add))
    }

    fn close<'py>(
        &self,
        py: Python<'py>,
        watermark_us: i64,
        max_rows: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match py.detach(|| self.windows.lock().close(watermark_us, max_rows)) {
            Some(batch) => batch_to_python(py, batch).map(Some),
            None => Ok(None),
        }
    }

    fn early<'py>(
        &self,
        py: Python<'py>,
        watermark_us: i64,
        max_rows: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match py.detach(|| self.windows.lock().early(watermark_us, max_rows)) {
            Some(batch) => batch_to_python(py, batch).map(Some),
            None => Ok(None),
        }
    }

    fn forget(&self, before_us: i64) {
        self.windows.lock().forget(before_us);
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let windows = self.windows.lock();
        let stats = PyDict::new(py);
        stats.set_item("panes", windows.panes())?;
        stats.set_item("bytes", windows.bytes())?;
        Ok(stats)
    }

    fn freeze(&self, py: Python<'_>, whole: bool) -> PyFrozen {
        PyFrozen { frozen: py.detach(|| self.windows.lock().freeze(whole)) }
    }

    fn apply(&self, py: Python<'_>, changes: &[u8]) -> PyResult<()> {
        py.detach(|| self.windows.lock().apply(changes)).map_err(invalid)
    }

    #[staticmethod]
    fn decode(
        py: Python<'_>,
        state: &[u8],
        shape: (String, Vec<i64>),
        aggregates: Vec<NamedAggregate>,
        inputs: Vec<String>,
        max_bytes: usize,
        max_panes: usize,
    ) -> PyResult<PyAlignedWindows> {
        let options = aligned(shape, aggregates, inputs, max_bytes, max_panes)?;
        let windows = py.detach(|| AlignedWindows::decode(state, options)).map_err(invalid)?;
        Ok(PyAlignedWindows::of(windows))
    }
}

#[pyclass(name = "SessionWindows", module = "headwater._native", frozen)]
struct PySessionWindows {
    windows: Mutex<SessionWindows>,
    inputs: Vec<InputType>,
}

impl PySessionWindows {
    fn of(windows: SessionWindows) -> PySessionWindows {
        PySessionWindows { inputs: windows.options().inputs.clone(), windows: Mutex::new(windows) }
    }
}

fn sessions(
    gap_us: i64,
    named: Vec<NamedAggregate>,
    inputs: Vec<String>,
    max_bytes: usize,
) -> PyResult<SessionOptions> {
    let inputs = input_types(inputs)?;
    Ok(SessionOptions { gap_us, aggregates: aggregates(named)?, inputs, max_bytes })
}

#[pymethods]
impl PySessionWindows {
    #[new]
    fn new(
        gap_us: i64,
        aggregates: Vec<NamedAggregate>,
        inputs: Vec<String>,
        max_bytes: usize,
    ) -> PyResult<PySessionWindows> {
        let options = sessions(gap_us, aggregates, inputs, max_bytes)?;
        Ok(PySessionWindows::of(SessionWindows::new(options).map_err(invalid)?))
    }

    #[pyo3(signature = (keys, ts, inputs, select, watermarks))]
    fn add(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        ts: &Bound<'_, PyAny>,
        inputs: Vec<Bound<'_, PyAny>>,
        select: Option<&Bound<'_, PyAny>>,
        watermarks: &Bound<'_, PyAny>,
    ) -> PyResult<(u64, u64, u64)> {
        let columns = Columns::new(keys, ts, &inputs, select, &self.inputs)?;
        let watermarks = array_from_python(watermarks)?;
        let (keys, ts, inputs) = (columns.keys()?, integers(&columns.ts)?, columns.inputs()?);
        let (select, watermarks) = (columns.select.as_deref(), integers(&watermarks)?);
        let add = || self.windows.lock().add(keys, ts, &inputs, select, watermarks);
        counted(py, py.detach(add))
    }

    fn close<'py>(
        &self,
        py: Python<'py>,
        watermark_us: i64,
        max_rows: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match py.detach(|| self.windows.lock().close(watermark_us, max_rows)) {
            Some(batch) => batch_to_python(py, batch).map(Some),
            None => Ok(None),
        }
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let windows = self.windows.lock();
        let stats = PyDict::new(py);
        stats.set_item("sessions", windows.sessions())?;
        stats.set_item("bytes", windows.bytes())?;
        Ok(stats)
    }

    fn freeze(&self, py: Python<'_>, whole: bool) -> PyFrozen {
        PyFrozen { frozen: py.detach(|| self.windows.lock().freeze(whole)) }
    }

    fn apply(&self, py: Python<'_>, changes: &[u8]) -> PyResult<()> {
        py.detach(|| self.windows.lock().apply(changes)).map_err(invalid)
    }

    #[staticmethod]
    fn decode(
        py: Python<'_>,
        state: &[u8],
        gap_us: i64,
        aggregates: Vec<NamedAggregate>,
        inputs: Vec<String>,
        max_bytes: usize,
    ) -> PyResult<PySessionWindows> {
        let options = sessions(gap_us, aggregates, inputs, max_bytes)?;
        let windows = py.detach(|| SessionWindows::decode(state, options)).map_err(invalid)?;
        Ok(PySessionWindows::of(windows))
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

    fn freeze(&self, py: Python<'_>, whole: bool) -> PyFrozen {
        PyFrozen { frozen: py.detach(|| self.interner.lock().freeze(whole)) }
    }

    fn apply(&self, py: Python<'_>, changes: &[u8]) -> PyResult<()> {
        py.detach(|| self.interner.lock().apply(changes)).map_err(invalid)
    }

    #[staticmethod]
    fn decode(py: Python<'_>, state: &[u8], types: Vec<String>, max_keys: u32) -> PyResult<PyKeyInterner> {
        let types = group_types(types)?;
        let interner = py.detach(|| KeyInterner::decode(state, types, max_keys)).map_err(invalid)?;
        Ok(PyKeyInterner { interner: Mutex::new(interner) })
    }
}
