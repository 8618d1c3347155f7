//! What goes wrong on purpose: faults asked for, random ones from the seed, and the label of each.
//!
//! A fault is planned before the first message, as a range of one device's readings, so that whether
//! reading n is touched never depends on how fast it could be sent. Labels use the event time that the
//! readings carry: exactly the readings with `start_us <= ts < end_us` are touched (for clock skew: the ts
//! that a right clock would have given).

use std::fmt::{self, Write as _};

use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::names::device_name;
use super::options::{FleetError, FleetOptions};
use super::schedule::Schedule;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// One reading, the first at or after the start, is off by `magnitude` sigma (6).
    Spike,
    /// All readings are off by `magnitude` sigma (3).
    Shift,
    /// Readings move away by `magnitude` sigma per hour of event time (0.1).
    Drift,
    /// The value of the last reading before the start is repeated.
    Stuck,
    /// The device sends nothing.
    Dropout,
    /// The device's `ts` is off by `magnitude` seconds; its values are right.
    ClockSkew,
}

impl FaultKind {
    pub const ALL: [FaultKind; 6] = [
        FaultKind::Spike,
        FaultKind::Shift,
        FaultKind::Drift,
        FaultKind::Stuck,
        FaultKind::Dropout,
        FaultKind::ClockSkew,
    ];

    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Spike => "spike",
            FaultKind::Shift => "shift",
            FaultKind::Drift => "drift",
            FaultKind::Stuck => "stuck",
            FaultKind::Dropout => "dropout",
            FaultKind::ClockSkew => "clock_skew",
        }
    }

    pub fn from_name(name: &str) -> Option<FaultKind> {
        FaultKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Unit of the magnitude; kinds without a magnitude have none.
    pub fn unit(self) -> Option<&'static str> {
        match self {
            FaultKind::Spike | FaultKind::Shift => Some("sigma"),
            FaultKind::Drift => Some("sigma/h"),
            FaultKind::ClockSkew => Some("s"),
            FaultKind::Stuck | FaultKind::Dropout => None,
        }
    }

    /// Whether it strikes one field or the device as a whole.
    pub fn has_field(self) -> bool {
        !matches!(self, FaultKind::Dropout | FaultKind::ClockSkew)
    }

    fn default_magnitude(self, options: &FleetOptions) -> f64 {
        match self {
            FaultKind::Spike => 6.0,
            FaultKind::Shift => 3.0,
            FaultKind::Drift => options.drift_sigma_per_h,
            FaultKind::ClockSkew => options.clock_skew_s,
            FaultKind::Stuck | FaultKind::Dropout => 0.0,
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fault to plant. Times are seconds of event time after the fleet's start.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub kind: FaultKind,
    /// Index of the device, from 0.
    pub device: u32,
    /// Name of the field; None exactly for dropout and clock skew.
    pub field: Option<String>,
    pub start_s: f64,
    /// A spike is one reading, whatever its duration.
    pub duration_s: f64,
    /// None: the kind's default.
    pub magnitude: Option<f64>,
}

/// What was planted, as a detector should find it.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    pub device: String,
    pub field: Option<String>,
    pub kind: FaultKind,
    /// First microsecond UTC, inclusive.
    pub start_us: i64,
    /// Last microsecond UTC, exclusive.
    pub end_us: i64,
    pub magnitude: Option<f64>,
    /// Readings touched and sent so far (dropout: left out so far). 0: the run ended or has not come that far.
    pub readings: u64,
}

impl Label {
    /// One JSON object without a line end: device, field, kind, start_us, end_us, magnitude, unit, readings.
    pub fn json(&self) -> String {
        let mut line = String::with_capacity(160);
        // Names hold letters, digits and underscores only, so nothing needs an escape; writing to a String
        // cannot fail.
        let _ = write!(line, "{{\"device\":\"{}\",\"field\":", self.device);
        let _ = match &self.field {
            Some(field) => write!(line, "\"{field}\""),
            None => write!(line, "null"),
        };
        let (kind, start, end) = (self.kind, self.start_us, self.end_us);
        let _ = write!(line, ",\"kind\":\"{kind}\",\"start_us\":{start},\"end_us\":{end},\"magnitude\":");
        let _ = match (self.magnitude, self.kind.unit()) {
            (Some(magnitude), Some(unit)) => write!(line, "{magnitude:?},\"unit\":\"{unit}\""),
            _ => write!(line, "null,\"unit\":null"),
        };
        let _ = write!(line, ",\"readings\":{}}}", self.readings);
        line
    }
}

/// A fault as a range `first..end` of one device's readings.
#[derive(Clone, Debug)]
pub(super) struct PlannedFault {
    pub kind: FaultKind,
    pub device: u32,
    /// Index into the fields; of no meaning for faults of the whole device.
    pub field: usize,
    pub first: u64,
    pub end: u64,
    pub magnitude: f64,
    pub start_us: i64,
    pub end_us: i64,
}

impl PlannedFault {
    pub fn touches(&self, n: u64) -> bool {
        self.first <= n && n < self.end
    }

    pub fn label(&self, options: &FleetOptions) -> Label {
        Label {
            device: device_name(self.device),
            field: self
                .kind
                .has_field()
                .then(|| options.fields.get(self.field).map(|f| f.name.clone()))
                .flatten(),
            kind: self.kind,
            start_us: self.start_us,
            end_us: self.end_us,
            magnitude: self.kind.unit().map(|_| self.magnitude),
            readings: 0,
        }
    }
}

/// All faults of a fleet, ordered by device and start.
pub(super) fn plan(options: &FleetOptions, schedule: &Schedule) -> Result<Vec<PlannedFault>, FleetError> {
    let mut planned = Vec::with_capacity(options.faults.len());
    for fault in &options.faults {
        planned.push(plan_one(options, schedule, fault)?);
    }
    refuse_overlaps(options, &mut planned)?;
    let random = random_faults(options, &planned);
    for fault in &random {
        planned.push(plan_one(options, schedule, fault)?);
    }
    planned.sort_by_key(|fault| (fault.device, fault.first));
    Ok(planned)
}

fn plan_one(options: &FleetOptions, schedule: &Schedule, fault: &Fault) -> Result<PlannedFault, FleetError> {
    let refuse = |text: String| Err(FleetError::Options(format!("{} fault: {text}", fault.kind)));
    if fault.device >= options.devices {
        let last = device_name(options.devices - 1);
        return refuse(format!(
            "device {} is not in this fleet, whose last is {last}",
            device_name(fault.device)
        ));
    }
    let field = match (&fault.field, fault.kind.has_field()) {
        (Some(name), true) => match options.fields.iter().position(|field| field.name == *name) {
            Some(at) => at,
            None => {
                let known: Vec<&str> = options.fields.iter().map(|field| field.name.as_str()).collect();
                return refuse(format!("no field {name:?}; the fields are {}", known.join(", ")));
            }
        },
        (None, true) => return refuse("it strikes one field, but none is named".to_owned()),
        (Some(name), false) => {
            return refuse(format!("it strikes the whole device, but field {name:?} is named"));
        }
        (None, false) => 0,
    };
    let seconds = 0.0..=1e9;
    if !seconds.contains(&fault.start_s) || !seconds.contains(&fault.duration_s) {
        return refuse(format!(
            "start {} s and duration {} s must lie between 0 and 1e9",
            fault.start_s, fault.duration_s
        ));
    }
    let magnitude = fault.magnitude.unwrap_or_else(|| fault.kind.default_magnitude(options));
    if !magnitude.is_finite() || magnitude.abs() > 1e9 {
        return refuse(format!("magnitude {magnitude} must lie within 1e9"));
    }
    if fault.kind.unit().is_some() && magnitude == 0.0 {
        return refuse("its magnitude is 0, so it would change nothing".to_owned());
    }
    let mut start_us = schedule.at_seconds(fault.start_s);
    let mut end_us = schedule.at_seconds(fault.start_s + fault.duration_s);
    let first = schedule.first_at(fault.device, start_us);
    let mut end = schedule.first_at(fault.device, end_us);
    if fault.kind == FaultKind::Spike {
        end = first + 1;
        start_us = schedule.ts_us(fault.device, first);
        end_us = schedule.ts_us(fault.device, end).max(start_us + 1_000);
    }
    if end <= first {
        let (from, to) = (fault.start_s, fault.start_s + fault.duration_s);
        let every_s = options.interval_us() / 1e6;
        return refuse(format!(
            "it would touch no reading: {} reports every {every_s} s of event time, and never from {from} s to {to} s",
            device_name(fault.device)
        ));
    }
    Ok(PlannedFault {
        kind: fault.kind,
        device: fault.device,
        field,
        first,
        end,
        magnitude,
        start_us,
        end_us,
    })
}

/// Two faults on one value would make both labels untrue.
fn refuse_overlaps(options: &FleetOptions, planned: &mut [PlannedFault]) -> Result<(), FleetError> {
    planned.sort_by_key(|fault| (fault.device, fault.start_us));
    for (at, one) in planned.iter().enumerate() {
        let later = planned[at + 1..].iter().take_while(|other| other.device == one.device);
        for other in later.take_while(|other| other.start_us < one.end_us) {
            let both_fields = one.kind.has_field() && other.kind.has_field();
            if !both_fields || one.field == other.field {
                let (device, start) = (device_name(one.device), other.start_us);
                let from_s = (start - options.start_time_us.unwrap_or_default()) as f64 / 1e6;
                return Err(FleetError::Options(format!(
                    "faults of {device} overlap from {from_s} s: {} and {}; a reading has one fault at a time",
                    one.kind, other.kind
                )));
            }
        }
    }
    Ok(())
}

/// One fault each for a share of the devices without one, inside the middle of the run. `planned` is
/// ordered by device.
fn random_faults(options: &FleetOptions, planned: &[PlannedFault]) -> Vec<Fault> {
    let wanted = (options.faulty_fraction * f64::from(options.devices)).round() as usize;
    if wanted == 0 || options.fault_kinds.is_empty() {
        return Vec::new();
    }
    // A stream of its own: asking for faults does not change the noise of any reading.
    let mut random = Pcg64Mcg::seed_from_u64(options.seed ^ 0x6661_756c_7473);
    let mut devices: Vec<u32> = (0..options.devices).collect();
    for at in 0..wanted.min(devices.len()) {
        let other = random.random_range(at..devices.len());
        devices.swap(at, other);
    }
    devices.truncate(wanted);
    devices.retain(|device| planned.binary_search_by_key(device, |fault| fault.device).is_err());
    let horizon_s = options.horizon_s();
    devices.into_iter().map(|device| random_fault(options, device, horizon_s, &mut random)).collect()
}

fn random_fault(options: &FleetOptions, device: u32, horizon_s: f64, random: &mut impl Rng) -> Fault {
    let kind = options.fault_kinds[random.random_range(0..options.fault_kinds.len())];
    let field = random.random_range(0..options.fields.len());
    // Between 15 % and 90 % of the run, so that normal readings come before and after.
    let start_s = horizon_s * random.random_range(0.15..0.5);
    let duration_s = horizon_s * random.random_range(0.15..0.4);
    // Long enough for one reading at any rate, though times are cut to whole milliseconds.
    let duration_s = duration_s.max(options.interval_us() / 1e6 + 0.002).min(1e9);
    let field = kind.has_field().then(|| options.fields[field].name.clone());
    Fault { kind, device, field, start_s: start_s.min(1e9), duration_s, magnitude: None }
}
