//! `Fleet`.

use std::collections::HashMap;
use std::time::Duration;

use headwater_core::load::{
    Fault, FaultKind, FieldModel, Fleet, FleetOptions, FleetReport, GeneratorOptions, Latency, Template,
};
use headwater_core::mqtt::Version;
use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyFleet>()
}

#[pyclass(name = "Fleet", module = "headwater._native", frozen)]
struct PyFleet {
    fleet: Mutex<Option<Fleet>>,
}

/// `headwater.simulate.FleetOptions`, as plain values.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Options {
    address: String,
    protocol: String,
    devices: u32,
    rate_per_device: f64,
    devices_per_connection: u32,
    qos: u8,
    window: u16,
    threads: usize,
    seed: u64,
    topic: String,
    client_prefix: String,
    sites: u32,
    fields: Vec<Field>,
    faults: Vec<PlannedFault>,
    faulty_fraction: f64,
    fault_kinds: Vec<String>,
    drift_sigma_per_h: f64,
    clock_skew_s: f64,
    duration_s: Option<f64>,
    messages: Option<u64>,
    start_time_us: Option<i64>,
    time_scale: f64,
    keep_alive_s: u16,
    user_name: Option<String>,
    password: Option<Vec<u8>>,
    drain_s: f64,
    generator: Option<Generator>,
}

/// What `headwater.bench` adds.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Generator {
    /// Text with places, or bytes as they are.
    payload: Payload,
    one_per_write: bool,
    at_most_per_s: f64,
    idle: bool,
    connects_per_s: f64,
    subscribers: u32,
    filter: String,
    subscribe_qos: u8,
    timestamp_after: Vec<u8>,
}

#[derive(FromPyObject)]
enum Payload {
    Text(String),
    Bytes(Vec<u8>),
}

impl Generator {
    fn convert(self) -> PyResult<GeneratorOptions> {
        let payload = match self.payload {
            Payload::Text(text) => Template::parse(&text),
            Payload::Bytes(bytes) => Template::literal(&bytes),
        };
        Ok(GeneratorOptions {
            payload: Some(payload.map_err(invalid)?),
            start_together: true,
            one_per_write: self.one_per_write,
            at_most_per_s: self.at_most_per_s,
            idle: self.idle,
            connects_per_s: self.connects_per_s,
            subscribers: self.subscribers,
            filter: self.filter,
            subscribe_qos: self.subscribe_qos,
            timestamp_after: self.timestamp_after,
        })
    }
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Field {
    name: String,
    mean: f64,
    sigma: f64,
    amplitude: f64,
    period_s: f64,
    decimals: u8,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PlannedFault {
    kind: String,
    device: u32,
    field: Option<String>,
    start_s: f64,
    duration_s: f64,
    magnitude: Option<f64>,
}

fn invalid(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn kind(name: &str) -> PyResult<FaultKind> {
    FaultKind::from_name(name).ok_or_else(|| invalid(format!("fault kind {name:?} is unknown")))
}

fn seconds(option: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| invalid(format!("{option} is {value}: give a number of seconds from 0")))
}

impl Options {
    fn convert(self) -> PyResult<FleetOptions> {
        let field = |field: Field| {
            let Field { name, mean, sigma, amplitude, period_s, decimals } = field;
            FieldModel { name, mean, sigma, amplitude, period_s, decimals }
        };
        let fault = |fault: PlannedFault| {
            let PlannedFault { kind: name, device, field, start_s, duration_s, magnitude } = fault;
            Ok(Fault { kind: kind(&name)?, device, field, start_s, duration_s, magnitude })
        };
        Ok(FleetOptions {
            address: self.address.parse().map_err(|error| invalid(format!("{:?}: {error}", self.address)))?,
            protocol: match self.protocol.as_str() {
                "3.1.1" => Version::V311,
                "5" => Version::V5,
                other => return Err(invalid(format!("protocol {other:?} is neither 3.1.1 nor 5"))),
            },
            devices: self.devices,
            rate_per_device: self.rate_per_device,
            devices_per_connection: self.devices_per_connection,
            qos: self.qos,
            window: self.window,
            threads: self.threads,
            seed: self.seed,
            topic: self.topic,
            client_prefix: self.client_prefix,
            sites: self.sites,
            fields: self.fields.into_iter().map(field).collect(),
            faults: self.faults.into_iter().map(fault).collect::<PyResult<_>>()?,
            faulty_fraction: self.faulty_fraction,
            fault_kinds: self.fault_kinds.iter().map(|name| kind(name)).collect::<PyResult<_>>()?,
            drift_sigma_per_h: self.drift_sigma_per_h,
            clock_skew_s: self.clock_skew_s,
            duration: self.duration_s.map(|value| seconds("duration_s", value)).transpose()?,
            messages: self.messages,
            start_time_us: self.start_time_us,
            time_scale: self.time_scale,
            keep_alive_s: self.keep_alive_s,
            user_name: self.user_name,
            password: self.password,
            drain: seconds("drain_s", self.drain_s)?,
            generator: self.generator.map(Generator::convert).transpose()?.unwrap_or_default(),
        })
    }
}

fn percentiles(py: Python<'_>, latency: Latency) -> PyResult<Bound<'_, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("count", latency.count)?;
    for (name, us) in [
        ("p50_ms", latency.p50_us),
        ("p90_ms", latency.p90_us),
        ("p99_ms", latency.p99_us),
        ("p999_ms", latency.p999_us),
        ("max_ms", latency.max_us),
    ] {
        found.set_item(name, us as f64 / 1e3)?;
    }
    Ok(found)
}

fn report<'py>(py: Python<'py>, found: &FleetReport) -> PyResult<Bound<'py, PyDict>> {
    let report = PyDict::new(py);
    for (name, value) in [
        ("sent", found.sent),
        ("acked", found.acked),
        ("refused", found.refused),
        ("in_flight", found.in_flight),
        ("resent", found.resent),
        ("left_out", found.left_out),
        ("bytes", found.bytes),
        ("connections", found.connections),
        ("connections_up", found.connections_up),
        ("connections_behind", found.connections_behind),
        ("reconnects", found.reconnects),
        ("refused_connections", found.refused_connections),
        ("protocol_errors", found.protocol_errors),
        ("received", found.received),
        ("bytes_received", found.bytes_received),
    ] {
        report.set_item(name, value)?;
    }
    report.set_item("ack_p50_ms", found.ack.p50_us as f64 / 1e3)?;
    report.set_item("ack_p99_ms", found.ack.p99_us as f64 / 1e3)?;
    report.set_item("ack_max_ms", found.ack.max_us as f64 / 1e3)?;
    for (name, latency) in [("ack", found.ack), ("connect", found.connect), ("delivery", found.delivery)] {
        report.set_item(name, percentiles(py, latency)?)?;
    }
    let errors = PyDict::new(py);
    for (error, count) in &found.errors {
        errors.set_item(error, count)?;
    }
    report.set_item("errors", errors)?;
    report.set_item("elapsed_s", found.elapsed.as_secs_f64())?;
    report.set_item("finished", found.finished)?;
    report.set_item("last_error", found.last_error.clone())?;
    let mut labels = Vec::with_capacity(found.labels.len());
    for label in &found.labels {
        let fault = PyDict::new(py);
        fault.set_item("device", &label.device)?;
        fault.set_item("field", label.field.clone())?;
        fault.set_item("kind", label.kind.name())?;
        fault.set_item("start_us", label.start_us)?;
        fault.set_item("end_us", label.end_us)?;
        fault.set_item("magnitude", label.magnitude)?;
        fault.set_item("unit", label.kind.unit())?;
        fault.set_item("readings", label.readings)?;
        labels.push(fault);
    }
    report.set_item("labels", labels)?;
    Ok(report)
}

#[pymethods]
impl PyFleet {
    #[new]
    fn new(py: Python<'_>, options: Options) -> PyResult<PyFleet> {
        use headwater_core::load::FleetError;
        let options = options.convert()?;
        let fleet = py.detach(|| Fleet::start(options)).map_err(|error| match error {
            FleetError::Options(text) => PyValueError::new_err(text),
            error => PyOSError::new_err(error.to_string()),
        })?;
        Ok(PyFleet { fleet: Mutex::new(Some(fleet)) })
    }

    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = py.detach(|| self.fleet.lock().as_ref().map(Fleet::report));
        match found {
            Some(found) => report(py, &found),
            None => Err(PyRuntimeError::new_err("the fleet has been stopped")),
        }
    }

    fn open(&self) {
        if let Some(fleet) = self.fleet.lock().as_ref() {
            fleet.open();
        }
    }

    fn is_open(&self) -> bool {
        self.fleet.lock().as_ref().is_some_and(Fleet::is_open)
    }

    fn histograms(&self) -> PyResult<HashMap<&'static str, Vec<(u64, u64)>>> {
        match self.fleet.lock().as_ref() {
            Some(fleet) => Ok(fleet.histograms().into_iter().collect()),
            None => Err(PyRuntimeError::new_err("the fleet has been stopped")),
        }
    }

    fn stop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = py.detach(|| self.fleet.lock().take().map(Fleet::stop));
        match found {
            Some(found) => report(py, &found),
            None => Err(PyRuntimeError::new_err("the fleet has been stopped")),
        }
    }
}
