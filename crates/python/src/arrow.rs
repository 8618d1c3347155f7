//! Arrow data over the Arrow PyCapsule interface, without copying.

use std::ffi::CStr;

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray, make_array};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";

fn invalid(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A `pyarrow.RecordBatch` over the same buffers.
pub fn batch_to_python<'py>(py: Python<'py>, batch: RecordBatch) -> PyResult<Bound<'py, PyAny>> {
    to_python(py, &StructArray::from(batch), "RecordBatch")
}

/// A `pyarrow.Array` over the same buffers.
pub fn array_to_python<'py>(py: Python<'py>, array: &dyn Array) -> PyResult<Bound<'py, PyAny>> {
    to_python(py, array, "Array")
}

fn to_python<'py>(py: Python<'py>, array: &dyn Array, class: &str) -> PyResult<Bound<'py, PyAny>> {
    let (array, schema) = to_ffi(&array.to_data()).map_err(invalid)?;
    let schema = PyCapsule::new(py, schema, Some(SCHEMA.to_owned()))?;
    let array = PyCapsule::new(py, array, Some(ARRAY.to_owned()))?;
    py.import("pyarrow")?.getattr(class)?.call_method1("_import_from_c_capsule", (schema, array))
}

/// The array that anything with `__arrow_c_array__` exports.
pub fn array_from_python(object: &Bound<'_, PyAny>) -> PyResult<ArrayRef> {
    let capsules = object.call_method0("__arrow_c_array__")?.cast_into::<PyTuple>()?;
    let schema = capsules.get_item(0)?.cast_into::<PyCapsule>()?;
    let array = capsules.get_item(1)?.cast_into::<PyCapsule>()?;
    let schema = schema.pointer_checked(Some(SCHEMA))?.cast::<FFI_ArrowSchema>();
    let array = array.pointer_checked(Some(ARRAY))?.cast::<FFI_ArrowArray>();
    // SAFETY: the capsules' names say what they hold, and they live until the end of this function. The array is
    // moved out and marked as released, as the PyCapsule interface asks of the consumer; the schema is only read.
    let data = unsafe { from_ffi(FFI_ArrowArray::from_raw(array.as_ptr()), schema.as_ref()) };
    Ok(make_array(data.map_err(invalid)?))
}

/// The batch that anything with `__arrow_c_array__` of a struct exports.
pub fn batch_from_python(object: &Bound<'_, PyAny>) -> PyResult<RecordBatch> {
    let array = array_from_python(object)?;
    match array.as_any().downcast_ref::<StructArray>() {
        Some(columns) => Ok(RecordBatch::from(columns)),
        None => Err(invalid(format!("a record batch is needed, found an array of {}", array.data_type()))),
    }
}
