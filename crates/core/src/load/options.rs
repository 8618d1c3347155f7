//! What a fleet plays, and the checks that refuse what cannot be played.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::faults::{Fault, FaultKind};
use super::generator::GeneratorOptions;
use crate::mqtt::Version;

/// Why a fleet cannot start. Losing the server later is no error: the fleet reconnects.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("{0}")]
    Options(String),
    #[error(
        "{connections} connections need as many open files, but this process may open {limit}: raise the limit \
         (ulimit -n) or put several devices on a connection (devices_per_connection)"
    )]
    OpenFiles { connections: u64, limit: u64 },
    #[error("cannot start a fleet thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// How one field of a reading behaves: `mean + amplitude * sin(2 pi t / period) + sigma * normal`,
/// rounded to `decimals`; t is the event time since the Unix epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldModel {
    pub name: String,
    pub mean: f64,
    /// Standard deviation of the noise, in the field's own unit; faults are multiples of it.
    pub sigma: f64,
    pub amplitude: f64,
    pub period_s: f64,
    /// Digits after the point, 0 to 9.
    pub decimals: u8,
}

impl FieldModel {
    pub fn new(name: &str, mean: f64, sigma: f64, amplitude: f64, decimals: u8) -> FieldModel {
        FieldModel { name: name.to_owned(), mean, sigma, amplitude, period_s: 86_400.0, decimals }
    }
}

#[derive(Clone, Debug)]
pub struct FleetOptions {
    pub address: SocketAddr,
    pub protocol: Version,
    pub devices: u32,
    /// Messages per second and device. 0: as fast as `window` un-acknowledged messages per connection allow.
    pub rate_per_device: f64,
    pub devices_per_connection: u32,
    pub qos: u8,
    /// Most un-acknowledged QoS 1 messages per connection; an MQTT 5 server's Receive Maximum lowers it.
    pub window: u16,
    /// 0: one per core.
    pub threads: usize,
    pub seed: u64,
    /// Topic name with `{site}` and `{device}`.
    pub topic: String,
    /// Client ids are this followed by the connection's number.
    pub client_prefix: String,
    /// Device d stands at site d mod `sites`.
    pub sites: u32,
    pub fields: Vec<FieldModel>,
    pub faults: Vec<Fault>,
    /// Share of the devices that get one random fault each, 0 to 1; which ones follows from the seed.
    pub faulty_fraction: f64,
    /// What random faults are drawn from.
    pub fault_kinds: Vec<FaultKind>,
    /// Magnitude of drift faults that state none, in sigma per hour of event time.
    pub drift_sigma_per_h: f64,
    /// Magnitude of clock skew faults that state none. Behind by default: a clock that is ahead moves the
    /// watermark of every stream it reports to.
    pub clock_skew_s: f64,
    /// Readings due before this much time has passed are played, then the fleet is finished. None: endless.
    pub duration: Option<Duration>,
    /// Messages of the whole fleet, spread evenly over the devices. None: endless.
    pub messages: Option<u64>,
    /// Event time of the first reading, microseconds UTC. None: now.
    pub start_time_us: Option<i64>,
    /// Seconds of event time per second of playing. With rate 0: milliseconds of event time per reading.
    pub time_scale: f64,
    pub keep_alive_s: u16,
    pub user_name: Option<String>,
    pub password: Option<Vec<u8>>,
    /// How long `stop` waits for outstanding acknowledgements.
    pub drain: Duration,
    /// What makes a load generator of the fleet; the default plays devices.
    pub generator: GeneratorOptions,
}

impl Default for FleetOptions {
    fn default() -> FleetOptions {
        FleetOptions {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1883)),
            protocol: Version::V5,
            devices: 1_000,
            rate_per_device: 1.0,
            devices_per_connection: 1,
            qos: 1,
            window: 100,
            threads: 0,
            seed: 1,
            topic: "dt/{site}/{device}/telemetry".to_owned(),
            client_prefix: "sim-".to_owned(),
            sites: 10,
            fields: default_fields(),
            faults: Vec::new(),
            faulty_fraction: 0.0,
            fault_kinds: FaultKind::ALL.to_vec(),
            drift_sigma_per_h: 0.1,
            clock_skew_s: -120.0,
            duration: None,
            messages: None,
            start_time_us: None,
            time_scale: 1.0,
            keep_alive_s: 60,
            user_name: None,
            password: None,
            drain: Duration::from_secs(5),
            generator: GeneratorOptions::default(),
        }
    }
}

/// A room sensor: degrees Celsius, percent, volts.
pub fn default_fields() -> Vec<FieldModel> {
    vec![
        FieldModel::new("temperature", 21.5, 0.5, 2.0, 2),
        FieldModel::new("humidity", 45.0, 1.5, 5.0, 1),
        FieldModel::new("battery", 3.7, 0.01, 0.0, 3),
    ]
}

impl FleetOptions {
    pub fn connections(&self) -> u32 {
        self.devices.div_ceil(self.devices_per_connection.max(1))
    }

    /// Connections that publish and those that subscribe.
    pub fn all_connections(&self) -> u32 {
        self.connections().saturating_add(self.generator.subscribers)
    }

    /// Event time between two readings of a device, microseconds.
    pub fn interval_us(&self) -> f64 {
        if self.rate_per_device > 0.0 {
            self.time_scale * 1e6 / self.rate_per_device
        } else {
            self.time_scale * 1e3
        }
    }

    /// Messages that device `d` sends before it is finished; `messages` spread as evenly as whole numbers allow.
    pub fn quota(&self, d: u32) -> u64 {
        match self.messages {
            _ if self.generator.idle => 0,
            None => u64::MAX,
            Some(messages) => {
                let devices = u64::from(self.devices.max(1));
                messages / devices + u64::from(u64::from(d) < messages % devices)
            }
        }
    }

    /// Seconds of event time over which random faults are spread: the planned run, 10 minutes if endless.
    pub fn horizon_s(&self) -> f64 {
        let by_time = match self.duration {
            Some(duration) if self.rate_per_device > 0.0 => Some(duration.as_secs_f64() * self.time_scale),
            _ => None,
        };
        let by_count = self.messages.map(|_| self.quota(0) as f64 * self.interval_us() / 1e6);
        match (by_time, by_count) {
            (Some(time), Some(count)) => time.min(count),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 600.0,
        }
    }

    /// The options with the clock read: afterwards nothing depends on when the fleet starts.
    pub(super) fn with_start_time(mut self) -> FleetOptions {
        let now = || {
            let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
        };
        self.start_time_us = Some(self.start_time_us.unwrap_or_else(now));
        self
    }

    /// Refuses what cannot be played; faults are checked where they are planned.
    pub fn check(&self) -> Result<(), FleetError> {
        let refuse = |text: String| Err(FleetError::Options(text));
        self.generator.check()?;
        if (self.devices == 0 && self.generator.subscribers == 0) || self.devices > 10_000_000 {
            return refuse(format!("devices is {}: a fleet has 1 to 10,000,000", self.devices));
        }
        if self.devices_per_connection == 0 {
            return refuse(
                "devices_per_connection is 0: a connection carries at least one device".to_owned(),
            );
        }
        if !(0.0..=1e6).contains(&self.rate_per_device) {
            return refuse(format!("rate_per_device is {}: give 0 (flat out) to 1e6", self.rate_per_device));
        }
        if self.rate_per_device > 0.0 && self.rate_per_device < 1e-6 {
            return refuse(format!("rate_per_device is {}: the slowest is 1e-6", self.rate_per_device));
        }
        if self.qos > 1 {
            return refuse(format!("qos is {}: the fleet publishes at QoS 0 or 1", self.qos));
        }
        if self.window == 0 {
            return refuse("window is 0: no message could be sent, give 1 to 65535".to_owned());
        }
        if self.threads > 256 {
            return refuse(format!("threads is {}: give 0 (one per core) to 256", self.threads));
        }
        if self.sites == 0 {
            return refuse("sites is 0: devices stand at one site at least".to_owned());
        }
        if !(1e-3..=1e6).contains(&self.time_scale) {
            return refuse(format!("time_scale is {}: give 0.001 to 1e6", self.time_scale));
        }
        if !(0.0..=1.0).contains(&self.faulty_fraction) {
            return refuse(format!("faulty_fraction is {}: give a share from 0 to 1", self.faulty_fraction));
        }
        if self.faulty_fraction > 0.0 && self.fault_kinds.is_empty() {
            return refuse("faulty_fraction needs at least one of fault_kinds".to_owned());
        }
        if !self.drift_sigma_per_h.is_finite() || !self.clock_skew_s.is_finite() {
            return refuse("drift_sigma_per_h and clock_skew_s must be finite numbers".to_owned());
        }
        if self.start_time_us.is_some_and(|start| !(0..=TIME_MAX_US).contains(&start)) {
            return refuse("start_time lies outside the years 1970 to 9999".to_owned());
        }
        if self.client_prefix.len() > 1_000 || self.client_prefix.contains('\0') {
            return refuse("client_prefix must be at most 1,000 bytes without NUL".to_owned());
        }
        if self.protocol == Version::V311 && self.password.is_some() && self.user_name.is_none() {
            // MQTT 3.1.1 section 3.1.2.9.
            return refuse("MQTT 3.1.1 allows a password only together with a user name".to_owned());
        }
        if self.user_name.as_ref().is_some_and(|name| name.len() > 65_535 || name.contains('\0'))
            || self.password.as_ref().is_some_and(|password| password.len() > 65_535)
        {
            return refuse(
                "user name and password are at most 65,535 bytes, the name without NUL".to_owned(),
            );
        }
        self.check_topic()?;
        self.check_fields()
    }

    fn check_topic(&self) -> Result<(), FleetError> {
        let refuse = |text: &str| Err(FleetError::Options(format!("topic {:?}: {text}", self.topic)));
        if self.topic.is_empty() || self.topic.len() > 60_000 {
            return refuse("a topic name has 1 to 60,000 bytes");
        }
        if self.topic.contains(['+', '#', '\0']) {
            return refuse("a topic name to publish to holds no wildcard and no NUL");
        }
        let literal = self.topic.replace("{site}", "").replace("{device}", "");
        if literal.contains(['{', '}']) {
            return refuse("only {site} and {device} are filled in");
        }
        Ok(())
    }

    fn check_fields(&self) -> Result<(), FleetError> {
        let refuse = |text: String| Err(FleetError::Options(text));
        if self.fields.is_empty() || self.fields.len() > 256 {
            return refuse(format!("{} fields: a reading has 1 to 256", self.fields.len()));
        }
        for (at, field) in self.fields.iter().enumerate() {
            let name = &field.name;
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || name.len() > 63 || !name.chars().all(word) {
                return refuse(format!("field {name:?}: a name is 1 to 63 letters, digits and underscores"));
            }
            if name == "device_id"
                || name == "ts"
                || self.fields[..at].iter().any(|other| other.name == *name)
            {
                return refuse(format!("field {name:?} is already in every reading"));
            }
            let bound = 1e9;
            if field.mean.abs() > bound
                || field.amplitude.abs() > bound
                || !(0.0..=bound).contains(&field.sigma)
            {
                return refuse(format!(
                    "field {name:?}: mean, sigma and amplitude lie within 1e9, sigma from 0"
                ));
            }
            if !field.mean.is_finite() || !field.amplitude.is_finite() {
                return refuse(format!("field {name:?}: mean and amplitude must be numbers"));
            }
            if !(1e-3..=1e12).contains(&field.period_s) {
                return refuse(format!("field {name:?}: period_s is {}, give 0.001 to 1e12", field.period_s));
            }
            if field.decimals > 9 {
                return refuse(format!("field {name:?}: {} decimals, at most 9 are written", field.decimals));
            }
        }
        Ok(())
    }
}

/// 9999-12-31T23:59:59Z, the last second that streams accept.
const TIME_MAX_US: i64 = 253_402_300_799_000_000;
