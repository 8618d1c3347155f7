//! `Logins`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::mqtt::ReasonCode;
use headwater_core::net::{Line, LoginOptions, Logins, Principal};
use headwater_core::policy::{Policies, Policy};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyLogins>()
}

#[pyclass(name = "Logins", module = "headwater._native", frozen)]
pub struct PyLogins {
    pub logins: Arc<Logins>,
}

/// Id, client id, user name, password, fingerprint, common name, peer, listener.
type Row = (u64, String, Option<String>, Option<Vec<u8>>, Option<String>, Option<String>, String, String);

/// Who a client is.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Identity {
    user: String,
    tenant: String,
    policies: Vec<String>,
    thing: String,
    attributes: HashMap<String, String>,
    until_ms: Option<u64>,
    /// Source, name, version of the file, mark.
    line: Option<(String, String, u64, u64)>,
}

impl Identity {
    fn convert(self) -> Principal {
        let Identity { user, tenant, policies, thing, attributes, until_ms, line } = self;
        let line = line.map(|(source, name, version, mark)| Line { source, name, version, mark });
        Principal { user, tenant, policies, thing, attributes, until_ms, line }
    }
}

fn parsed(py: Python<'_>, policies: &[(String, String)]) -> PyResult<Policies> {
    let policies =
        policies.iter().map(|(name, json)| Policy::parse(name, json)).collect::<Result<Vec<_>, _>>();
    Ok(Policies::new(policies.map_err(|error| errors::raise(py, "ConfigError", error))?))
}

#[pymethods]
impl PyLogins {
    #[new]
    fn new(
        py: Python<'_>,
        policies: Vec<(String, String)>,
        timeout_us: u64,
        max_waiting: usize,
        max_waiting_bytes: usize,
    ) -> PyResult<PyLogins> {
        let policies = parsed(py, &policies)?;
        let timeout = Duration::from_micros(timeout_us);
        let options = LoginOptions { max_waiting, max_waiting_bytes, timeout, policies };
        Ok(PyLogins { logins: Arc::new(Logins::new(options)) })
    }

    fn take(&self, py: Python<'_>, max_logins: usize, timeout_s: f64) -> Vec<Row> {
        let timeout = Duration::from_secs_f64(timeout_s.clamp(0.0, 60.0));
        let logins = py.detach(|| self.logins.take(max_logins, timeout));
        let row = |login: headwater_core::net::Login| {
            let (fingerprint, common_name) = match login.certificate {
                Some(certificate) => (Some(certificate.fingerprint), certificate.common_name),
                None => (None, None),
            };
            let peer = login.peer.map(|peer| peer.to_string()).unwrap_or_default();
            (
                login.id,
                login.client_id,
                login.user_name,
                login.password,
                fingerprint,
                common_name,
                peer,
                login.listener,
            )
        };
        logins.into_iter().map(row).collect()
    }

    fn allow(&self, py: Python<'_>, id: u64, identity: Identity) -> bool {
        let principal = identity.convert();
        py.detach(|| self.logins.allow(id, &principal))
    }

    fn deny(&self, id: u64, reason: u8, text: &str) -> PyResult<()> {
        let known = ReasonCode::from_code(reason).filter(|code| code.is_error());
        let reason = known
            .ok_or_else(|| PyValueError::new_err(format!("{reason:#04x} is no reason code of an error")))?;
        self.logins.deny(id, reason, text);
        Ok(())
    }

    fn waiting(&self) -> usize {
        self.logins.waiting()
    }

    fn set_policies(&self, py: Python<'_>, policies: Vec<(String, String)>) -> PyResult<()> {
        let policies = parsed(py, &policies)?;
        py.detach(|| self.logins.set_policies(policies));
        Ok(())
    }

    fn set_lines(&self, py: Python<'_>, source: &str, version: u64, marks: HashMap<String, u64>) {
        py.detach(|| self.logins.set_lines(source, version, marks));
    }
}
