//! Rust errors to the exceptions of `headwater.errors`: one `match` per layer.

use headwater_core::log::LogError;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// An exception of `headwater.errors` by its name.
pub fn raise(py: Python<'_>, name: &str, text: impl ToString) -> PyErr {
    let kind = py.import("headwater.errors").and_then(|errors| errors.getattr(name));
    match kind.and_then(|kind| kind.call1((text.to_string(),))) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

pub fn of_log(py: Python<'_>, error: LogError) -> PyErr {
    let name = match &error {
        LogError::Busy { .. } | LogError::DiskBound { .. } | LogError::DiskFull { .. } => "LogFullError",
        LogError::Corrupt { .. } => "LogCorruptError",
        LogError::Locked { .. } | LogError::Version { .. } => "DataDirectoryError",
        LogError::KeyRefused { .. } => "RecordError",
        LogError::TooLarge { .. } => "TooLargeError",
        LogError::Invalid(_) => return PyValueError::new_err(error.to_string()),
        _ => "LogError",
    };
    raise(py, name, error)
}
