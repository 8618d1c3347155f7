//! The native module `headwater._native`: registration only. `headwater/_native.pyi` documents it.

mod arrow;
mod clients;
mod decode;
mod errors;
mod gateway;
mod load;
mod log;
mod logins;
mod rows;
mod window;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    log::register(module)?;
    logins::register(module)?;
    gateway::register(module)?;
    clients::register(module)?;
    decode::register(module)?;
    window::register(module)?;
    load::register(module)
}
