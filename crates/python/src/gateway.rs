//! `Gateway`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use headwater_core::decode::{FieldSpec, Suggestion, suggest};
use headwater_core::log::Disk;
use headwater_core::net::{
    ClientCertificates, Clock, Gateway, GatewayError, GatewayOptions, Kicked, ListenerLimits,
    ListenerOptions, LoopBusy, StoredMessage, StreamBinding, TlsFiles, WebSocketOptions,
};
use headwater_core::sessions::{SessionFiles, SessionTable, SessionsError};
use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyDict, PyString};

use crate::clients::{self, PyTrace};
use crate::decode::Declaration;
use crate::errors;
use crate::log::PyLog;
use crate::logins::PyLogins;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyGateway>()
}

#[pyclass(name = "Gateway", module = "headwater._native", frozen)]
struct PyGateway {
    gateway: Mutex<Option<Gateway>>,
}

/// Topic, properties, payload, QoS and age in seconds.
type Retained = (PyBackedStr, PyBackedBytes, PyBackedBytes, u8, u32);

/// The `mqtt` section of the settings, with threads resolved, and the filters of raw messages.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Options {
    host: String,
    port: u16,
    threads: usize,
    max_connections: usize,
    max_keep_alive_s: u16,
    first_packet_timeout_s: u16,
    receive_maximum: u16,
    maximum_qos: u8,
    topic_alias_maximum: u16,
    max_session_expiry_s: u32,
    max_sessions: usize,
    retain_available: bool,
    loads_retained: bool,
    /// Directory of durable sessions.
    sessions: Option<PathBuf>,
    max_retained_messages: usize,
    max_retained_bytes: usize,
    max_payload_bytes: usize,
    max_packet_bytes: usize,
    max_queued_messages: usize,
    max_queued_bytes: usize,
    max_total_queued_bytes: usize,
    max_subscriptions: usize,
    max_topic_levels: usize,
    max_topic_bytes: usize,
    /// µs
    flapping_window: u64,
    flapping_ban: u64,
    limits: Limits,
    max_inflight_bytes: usize,
    io_uring: bool,
    shed_after: u64,
    /// µs; 0: never
    sys_interval: u64,
    raw_filters: Vec<String>,
    listeners: Vec<ListenerSection>,
}

/// What a listener holds its clients to; 0: not at all.
#[derive(FromPyObject, Clone, Copy)]
#[pyo3(from_item_all)]
struct Limits {
    connect_rate: u32,
    message_rate: u32,
    byte_rate: u32,
    flapping_connects: u32,
    max_takeovers: u32,
}

impl Limits {
    fn convert(self) -> ListenerLimits {
        let Limits { connect_rate, message_rate, byte_rate, flapping_connects, max_takeovers } = self;
        ListenerLimits { connect_rate, message_rate, byte_rate, flapping_connects, max_takeovers }
    }
}

/// A listener beside the plain one.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct ListenerSection {
    name: String,
    /// `tcp`, `tls`, `ws` or `wss`.
    transport: String,
    host: String,
    port: u16,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    /// `required` or `optional`; else clients are not asked.
    client_certificate: String,
    origins: Vec<String>,
    proxy_protocol: bool,
    max_connections: Option<usize>,
    limits: Limits,
}

impl ListenerSection {
    fn convert(&self, address: SocketAddr) -> ListenerOptions {
        let clients = match &self.client_ca {
            Some(ca) => ClientCertificates::Verified {
                ca: ca.clone(),
                crl: self.crl.clone(),
                required: self.client_certificate == "required",
            },
            None => ClientCertificates::Ignored,
        };
        let files = self.certificate.clone().zip(self.key.clone());
        let websocket = matches!(self.transport.as_str(), "ws" | "wss");
        ListenerOptions {
            name: self.name.clone(),
            address,
            tls: files.map(|(certificate, key)| TlsFiles { certificate, key, clients }),
            websocket: websocket.then(|| WebSocketOptions { origins: self.origins.clone() }),
            proxy_protocol: self.proxy_protocol,
            max_connections: self.max_connections.unwrap_or(usize::MAX),
            limits: self.limits.convert(),
        }
    }
}

fn busy(error: LoopBusy) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

fn seconds(us: u64) -> u32 {
    u32::try_from(us.div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// The first address of a host.
fn resolve(py: Python<'_>, name: &str, host: &str, port: u16) -> PyResult<SocketAddr> {
    let unknown = |why: String| {
        errors::raise(py, "ListenError", format!("opening the listener {name} on {host}:{port}: {why}"))
    };
    let address = (host, port).to_socket_addrs().map_err(|error| unknown(error.to_string()))?.next();
    address.ok_or_else(|| unknown("the name has no address".to_owned()))
}

impl Options {
    fn convert(&self, address: SocketAddr, listeners: Vec<ListenerOptions>) -> GatewayOptions {
        GatewayOptions {
            address,
            listeners,
            threads: self.threads,
            max_connections: self.max_connections,
            max_packet_bytes: self.max_packet_bytes,
            max_payload_bytes: self.max_payload_bytes,
            max_keep_alive_s: self.max_keep_alive_s,
            receive_maximum: self.receive_maximum,
            maximum_qos: self.maximum_qos,
            topic_alias_maximum: self.topic_alias_maximum,
            max_session_expiry_s: self.max_session_expiry_s,
            max_sessions: self.max_sessions,
            retain_available: self.retain_available,
            loads_retained: self.loads_retained,
            max_subscriptions_per_client: self.max_subscriptions,
            max_topic_levels: self.max_topic_levels,
            max_topic_bytes: self.max_topic_bytes,
            limits: self.limits.convert(),
            flapping_window_s: seconds(self.flapping_window),
            flapping_ban_s: seconds(self.flapping_ban),
            retained_max_messages: self.max_retained_messages,
            retained_max_bytes: self.max_retained_bytes,
            outbound_max_bytes: self.max_queued_bytes,
            max_queued_messages: self.max_queued_messages,
            max_total_queued_bytes: self.max_total_queued_bytes,
            first_packet_timeout_s: self.first_packet_timeout_s,
            inflight_bytes: self.max_inflight_bytes,
            io_uring: self.io_uring,
            shed_after: Duration::from_micros(self.shed_after),
            sys_interval: Duration::from_micros(self.sys_interval),
            clock: Clock::Real,
            ..GatewayOptions::default()
        }
    }
}

fn session_files(py: Python<'_>, path: &Path) -> PyResult<Arc<dyn SessionTable>> {
    let disk = Disk::open(path).map_err(|error| {
        let why = format!("cannot open the directory of sessions {}: {error}", path.display());
        errors::raise(py, "DataDirectoryError", why)
    })?;
    Ok(Arc::new(SessionFiles::new(Arc::new(disk))))
}

fn binding(py: Python<'_>, log: &PyLog, stream: &Declaration) -> PyResult<StreamBinding> {
    let spec = stream.spec().map_err(|problem| errors::raise(py, "ConfigError", problem))?;
    Ok(StreamBinding { spec, schema: log.schema(stream.schema)? })
}

impl PyGateway {
    fn with<T>(&self, ask: impl FnOnce(&Gateway) -> T) -> PyResult<T> {
        match self.gateway.lock().as_ref() {
            Some(gateway) => Ok(ask(gateway)),
            None => Err(PyRuntimeError::new_err("the gateway has been stopped")),
        }
    }
}

#[pymethods]
impl PyGateway {
    #[new]
    #[pyo3(signature = (log, options, streams, logins=None))]
    fn new(
        py: Python<'_>,
        log: &Bound<'_, PyLog>,
        options: Options,
        streams: Vec<Declaration>,
        logins: Option<&Bound<'_, PyLogins>>,
    ) -> PyResult<PyGateway> {
        let address = resolve(py, "mqtt", &options.host, options.port)?;
        let listeners = options
            .listeners
            .iter()
            .map(|each| Ok(each.convert(resolve(py, &each.name, &each.host, each.port)?)))
            .collect::<PyResult<Vec<_>>>()?;
        let log = log.get();
        let streams = streams.iter().map(|stream| binding(py, log, stream)).collect::<PyResult<Vec<_>>>()?;
        let mut converted = options.convert(address, listeners);
        converted.sessions = options.sessions.as_deref().map(|path| session_files(py, path)).transpose()?;
        converted.logins = logins.map(|logins| Arc::clone(&logins.get().logins));
        let start = || Gateway::start(log.log.clone(), converted, streams, options.raw_filters.clone());
        let gateway = py.detach(start).map_err(|error| match error {
            GatewayError::Listen { name, address, error } => errors::raise(
                py,
                "ListenError",
                format!(
                    "opening the MQTT listener {name} on {address}: {error}; stop the program that uses the port, or \
                     choose another (mqtt.port; 0 picks a free one)"
                ),
            ),
            GatewayError::Downlink(error) => errors::of_log(py, error),
            GatewayError::Sessions(SessionsError::Log(error)) => errors::of_log(py, error),
            GatewayError::Sessions(error) => errors::raise(py, "DataDirectoryError", error),
            error => errors::raise(py, "ConfigError", error),
        })?;
        Ok(PyGateway { gateway: Mutex::new(Some(gateway)) })
    }

    fn address(&self) -> PyResult<String> {
        self.with(|gateway| gateway.address().to_string())
    }

    fn listeners<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let mut listeners = Vec::new();
        for each in self.with(Gateway::listeners)? {
            let listener = PyDict::new(py);
            listener.set_item("name", &each.name)?;
            listener.set_item("transport", each.transport)?;
            listener.set_item("address", each.address.to_string())?;
            listener.set_item("connections", each.connections)?;
            listener.set_item("accepted", each.accepted)?;
            listener.set_item("refused", each.refused)?;
            listener.set_item("handshakes", each.handshakes)?;
            listener.set_item("resumed", each.resumed)?;
            let failures = PyDict::new(py);
            for (failure, count) in &each.failures {
                failures.set_item(failure.name(), count)?;
            }
            listener.set_item("failures", failures)?;
            let limits = PyDict::new(py);
            for (limit, count) in &each.limits {
                limits.set_item(limit.name(), count)?;
            }
            listener.set_item("limits", limits)?;
            for (name, by_reason) in [("refusals", &each.refusals), ("endings", &each.endings)] {
                let reasons = PyDict::new(py);
                for (reason, count) in by_reason {
                    reasons.set_item(format!("{reason:?}"), count)?;
                }
                listener.set_item(name, reasons)?;
            }
            listeners.push(listener);
        }
        Ok(listeners)
    }

    fn reload(&self, py: Python<'_>) -> PyResult<Vec<(String, Option<String>)>> {
        let outcomes = py.detach(|| self.with(Gateway::reload))?;
        Ok(outcomes.into_iter().map(|(name, outcome)| (name, outcome.err())).collect())
    }

    fn rebind(
        &self,
        py: Python<'_>,
        log: &Bound<'_, PyLog>,
        added: Vec<Declaration>,
        removed: Vec<String>,
    ) -> PyResult<()> {
        let log = log.get();
        let added = added.iter().map(|stream| binding(py, log, stream)).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.with(|gateway| gateway.rebind(added, &removed)))?.map_err(|error| match error {
            GatewayError::Config(why) => errors::raise(py, "ConfigError", why),
            error => errors::raise(py, "LogFullError", error),
        })
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = self.with(Gateway::counters)?;
        let counters = PyDict::new(py);
        for (name, value) in found.each() {
            counters.set_item(name, value)?;
        }
        for (name, by_reason) in [
            ("refused_connections", &found.refused_connections),
            ("ended_connections", &found.ended_connections),
        ] {
            let reasons = PyDict::new(py);
            for (reason, count) in by_reason.iter() {
                reasons.set_item(format!("{reason:?}"), count)?;
            }
            counters.set_item(name, reasons)?;
        }
        Ok(counters)
    }

    fn ack_latency<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = self.with(Gateway::ack_latency)?.since_start;
        let latency = PyDict::new(py);
        latency.set_item("p50_ms", found.p50_ms)?;
        latency.set_item("p99_ms", found.p99_ms)?;
        latency.set_item("max_ms", found.max_ms)?;
        latency.set_item("count", found.count)?;
        Ok(latency)
    }

    fn unmatched<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let found = self.with(Gateway::unmatched)?;
        let mut topics = Vec::with_capacity(found.len());
        for each in found {
            let topic = PyDict::new(py);
            topic.set_item("topic", &each.topic)?;
            topic.set_item("count", each.count)?;
            topic.set_item("payload", PyBytes::new(py, &each.example))?;
            topic.set_item("last_seen_us", each.last_seen_us)?;
            topic
                .set_item("suggestion", suggest(&each.topic, &each.example).ok().map(|found| toml(&found)))?;
            topics.push(topic);
        }
        Ok(topics)
    }

    fn connected(&self, client_id: &str) -> PyResult<bool> {
        self.with(|gateway| gateway.connected(client_id))
    }

    #[pyo3(signature = (search, connected, after, limit))]
    fn clients<'py>(
        &self,
        py: Python<'py>,
        search: &str,
        connected: Option<bool>,
        after: u64,
        limit: usize,
    ) -> PyResult<(Vec<Bound<'py, PyDict>>, Option<u64>)> {
        let page = py.detach(|| self.with(|gateway| gateway.clients(search, connected, after, limit)))?;
        let page = page.map_err(busy)?;
        let found = page.clients.iter().map(|each| clients::summary(py, each)).collect::<PyResult<_>>()?;
        Ok((found, page.next))
    }

    fn client<'py>(&self, py: Python<'py>, client_id: &str) -> PyResult<Option<Bound<'py, PyDict>>> {
        let found = py.detach(|| self.with(|gateway| gateway.client(client_id)))?.map_err(busy)?;
        found.map(|found| clients::detail(py, &found)).transpose()
    }

    fn last_close(&self, client_id: &str) -> PyResult<Option<(u64, String)>> {
        let found = self.with(|gateway| gateway.last_close(client_id))?;
        Ok(found.map(|(close, at_ms)| (at_ms, clients::close(close))))
    }

    fn kick(&self, py: Python<'_>, client_id: &str, session: bool) -> PyResult<&'static str> {
        let kicked = py.detach(|| self.with(|gateway| gateway.kick(client_id, session)))?.map_err(busy)?;
        Ok(match kicked {
            Kicked::Connection => "connection",
            Kicked::Session => "session",
            Kicked::Away => "away",
            Kicked::Unknown => "unknown",
        })
    }

    fn trace(&self, py: Python<'_>, kind: &str, text: String) -> PyResult<PyTrace> {
        let filter = clients::filter(kind, text);
        let trace = py.detach(|| self.with(|gateway| gateway.trace(filter)))?;
        trace.map(PyTrace::new).map_err(|why| errors::raise(py, "TraceError", why))
    }

    fn restore(&self, py: Python<'_>, messages: Vec<Retained>) -> PyResult<()> {
        py.detach(|| {
            self.with(|gateway| {
                for (topic, properties, payload, qos, age_s) in &messages {
                    let (qos, age_s) = (*qos, *age_s);
                    gateway.restore(StoredMessage { topic, properties, payload, qos, age_s });
                }
            })
        })
    }

    fn retained_loaded(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.with(Gateway::retained_loaded))
    }

    fn events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let found = self.with(Gateway::events)?;
        let mut events = Vec::with_capacity(found.len());
        for each in found {
            // Many are kept, so what they have in common is there once.
            let event = PyDict::new(py);
            event.set_item(intern!(py, "at_us"), each.at_us)?;
            event.set_item(intern!(py, "kind"), PyString::intern(py, each.kind.name()))?;
            event.set_item(intern!(py, "client"), &each.client)?;
            event.set_item(intern!(py, "reason"), PyString::intern(py, &format!("{:?}", each.reason)))?;
            event.set_item(intern!(py, "detail"), &each.detail)?;
            event.set_item(intern!(py, "origin"), &each.origin)?;
            events.push(event);
        }
        Ok(events)
    }

    fn stop(&self, py: Python<'_>, drain_s: f64) {
        let gateway = self.gateway.lock().take();
        if let Some(gateway) = gateway {
            py.detach(|| gateway.stop(Duration::from_secs_f64(drain_s.clamp(0.0, 3600.0))));
        }
    }
}

/// A suggested stream as it would stand in the configuration.
fn toml(found: &Suggestion) -> String {
    let field = |field: &FieldSpec| {
        if field.path == field.name {
            format!("{} = \"{}\"", field.name, field.ty)
        } else {
            format!("{} = {{ type = \"{}\", path = {:?} }}", field.name, field.ty, field.path)
        }
    };
    let mut lines = vec![format!("[streams.{}]", found.name), format!("topic  = {:?}", found.topic)];
    if let Some(time) = &found.time {
        lines.push(format!("time   = {:?}", time.path));
    }
    let fields: Vec<String> = found.fields.iter().map(field).collect();
    lines.push(format!("fields = {{ {} }}", fields.join(", ")));
    lines.extend(found.notes.iter().map(|note| format!("# {note}")));
    lines.join("\n")
}
