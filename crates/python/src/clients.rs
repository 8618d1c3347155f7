//! Clients and traces of a gateway as dictionaries.

use std::time::Duration;

use headwater_core::mqtt::Version;
use headwater_core::net::{ClientDetail, ClientSummary, Close, Trace, TraceFilter, TraceLine};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTrace>()
}

pub fn summary<'py>(py: Python<'py>, client: &ClientSummary) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("client", &client.client_id)?;
    found.set_item("connected", client.connected)?;
    // 0: of a session of an earlier process.
    found.set_item("connected_at_ms", Some(client.connected_at_ms).filter(|at| *at > 0))?;
    found.set_item("address", client.address.map(|address| address.to_string()))?;
    found.set_item("listener", Some(&client.listener).filter(|name| !name.is_empty()))?;
    found.set_item("protocol", if client.version == Version::V5 { "5.0" } else { "3.1.1" })?;
    found.set_item("user", Some(&client.user).filter(|name| !name.is_empty()))?;
    found.set_item("tenant", Some(&client.tenant).filter(|name| !name.is_empty()))?;
    Ok(found)
}

pub fn detail<'py>(py: Python<'py>, client: &ClientDetail) -> PyResult<Bound<'py, PyDict>> {
    let found = summary(py, &client.summary)?;
    found.set_item("keep_alive_s", client.keep_alive_s)?;
    found.set_item("clean_start", client.clean_start)?;
    found.set_item("session_expiry_s", client.session_expiry_s)?;
    found.set_item("durable", client.durable)?;
    found.set_item("will_topic", &client.will_topic)?;
    found.set_item("certificate", &client.certificate)?;
    found.set_item("receive_maximum", client.receive_maximum)?;
    found.set_item("unacknowledged", client.unacknowledged)?;
    found.set_item("in_flight", client.inflight)?;
    found.set_item("queued", client.queued)?;
    found.set_item("queued_bytes", client.queued_bytes)?;
    found.set_item("unsent_bytes", client.unsent_bytes)?;
    found.set_item("held_back", client.held_back)?;
    found.set_item("subscription_count", client.subscription_count)?;
    let mut subscriptions = Vec::with_capacity(client.subscriptions.len());
    for each in &client.subscriptions {
        let subscription = PyDict::new(py);
        subscription.set_item("filter", &each.filter)?;
        subscription.set_item("qos", each.qos)?;
        subscription.set_item("shared", each.shared)?;
        subscriptions.push(subscription);
    }
    found.set_item("subscriptions", subscriptions)?;
    Ok(found)
}

/// How a connection ended: `client`, `lost`, or the name of our reason code.
pub fn close(close: Close) -> String {
    match close {
        Close::Client => "client".to_owned(),
        Close::Lost => "lost".to_owned(),
        Close::Gateway(reason) => format!("{reason:?}"),
    }
}

/// kind: `client` or `topic`
pub fn filter(kind: &str, text: String) -> TraceFilter {
    if kind == "topic" { TraceFilter::Topic(text) } else { TraceFilter::Client(text) }
}

#[pyclass(name = "Trace", module = "headwater._native", frozen)]
pub struct PyTrace {
    trace: Mutex<Option<Trace>>,
}

impl PyTrace {
    pub fn new(trace: Trace) -> PyTrace {
        PyTrace { trace: Mutex::new(Some(trace)) }
    }
}

#[pymethods]
impl PyTrace {
    fn take<'py>(&self, py: Python<'py>, timeout_s: f64) -> PyResult<(Vec<Bound<'py, PyDict>>, u64)> {
        let patience = Duration::from_secs_f64(timeout_s.clamp(0.0, 60.0));
        let (lines, lost) = py.detach(|| {
            self.trace.lock().as_ref().map_or_else(|| (Vec::new(), 0), |trace| trace.take(patience))
        });
        Ok((lines.iter().map(|each| line(py, each)).collect::<PyResult<_>>()?, lost))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.trace.lock().take());
    }
}

fn line<'py>(py: Python<'py>, line: &TraceLine) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("at_us", line.at_us)?;
    found.set_item("client", &line.client)?;
    found.set_item("direction", if line.from_client { "in" } else { "out" })?;
    found.set_item("packet", line.packet)?;
    found.set_item("bytes", line.bytes)?;
    found.set_item("detail", &line.detail)?;
    Ok(found)
}
