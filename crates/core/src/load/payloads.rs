//! Readings from nothing but (seed, device, n): when each is due, what it measures, and its JSON.
//!
//! No state is kept from one reading to the next, so a reading that was lost with a connection is made
//! again byte for byte instead of being stored, and a fault changes only its own readings.

use std::f64::consts::TAU;

use rand::distr::Distribution;
use rand_distr::StandardNormal;
use rand_pcg::Pcg64Mcg;

use super::faults::{self, FaultKind, Label, PlannedFault};
use super::names::{Name, Topic};
use super::options::{FieldModel, FleetError, FleetOptions};
use super::schedule::Schedule;

#[derive(Debug)]
struct Field {
    /// `,"temperature":`
    key: Vec<u8>,
    mean: f64,
    sigma: f64,
    amplitude: f64,
    period_us: f64,
    decimals: u8,
    /// 10^decimals: values are rounded to and written from this integer scale.
    scale: f64,
}

/// The fleet's readings; shared read-only by all threads.
#[derive(Debug)]
pub struct Payloads {
    seed: u64,
    schedule: Schedule,
    topic: Topic,
    fields: Vec<Field>,
    faults: Vec<PlannedFault>,
    /// Value (scaled) at which each stuck fault freezes its field, 0 for other kinds.
    frozen: Vec<i64>,
    /// Faults of device d are `faults[first_fault[d]..first_fault[d + 1]]`; empty without any fault.
    first_fault: Vec<u32>,
    labels: Vec<Label>,
}

impl Payloads {
    /// Checks the options and plans the faults. `start_time_us` must be set for readings to be reproducible.
    pub fn new(options: &FleetOptions) -> Result<Payloads, FleetError> {
        options.check()?;
        let schedule = Schedule::new(options);
        let faults = faults::plan(options, &schedule)?;
        let labels = faults.iter().map(|fault| fault.label(options)).collect();
        let mut payloads = Payloads {
            seed: options.seed,
            schedule,
            topic: Topic::new(&options.topic, options.sites),
            fields: options.fields.iter().map(Field::new).collect(),
            first_fault: first_faults(options.devices, &faults),
            frozen: vec![0; faults.len()],
            faults,
            labels,
        };
        // In order of time, so that a fault before a stuck one is in the value it freezes at.
        for at in 0..payloads.faults.len() {
            let fault = &payloads.faults[at];
            if fault.kind == FaultKind::Stuck {
                payloads.frozen[at] =
                    payloads.value(fault.device, fault.first.saturating_sub(1), fault.field);
            }
        }
        Ok(payloads)
    }

    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// One label per planned fault, `readings` 0.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// Appends the topic name of `device`.
    pub fn write_topic(&self, device: u32, out: &mut String) {
        self.topic.write(device, out);
    }

    /// Appends the JSON of reading `n`: device_id, ts in milliseconds, then the fields in declared order.
    pub fn write(&self, device: u32, n: u64, out: &mut Vec<u8>) {
        let (base, faults) = self.faults_of(device);
        let ts_us = self.schedule.ts_us(device, n);
        let mut told_us = ts_us;
        for fault in faults.iter().filter(|fault| fault.kind == FaultKind::ClockSkew && fault.touches(n)) {
            told_us = told_us.saturating_add((fault.magnitude * 1e6) as i64);
        }
        out.extend_from_slice(b"{\"device_id\":\"");
        out.extend_from_slice(Name::device(device).bytes());
        out.extend_from_slice(b"\",\"ts\":");
        write_decimal(told_us.div_euclid(1_000), 0, out);
        let mut noise = self.noise(device, n);
        for (at, field) in self.fields.iter().enumerate() {
            let normal = StandardNormal.sample(&mut noise);
            let scaled = self.with_faults(base, faults, at, n, ts_us, field.value(ts_us, normal));
            out.extend_from_slice(&field.key);
            write_decimal(scaled, field.decimals, out);
        }
        out.push(b'}');
    }

    /// The next reading of `device` from `n` on that is sent, and the dropout that swallowed those before it.
    pub(super) fn next_sent(&self, device: u32, n: u64) -> (u64, Option<usize>) {
        let (base, faults) = self.faults_of(device);
        for (at, fault) in faults.iter().enumerate() {
            if fault.kind == FaultKind::Dropout && fault.touches(n) {
                return (fault.end, Some(base + at));
            }
        }
        (n, None)
    }

    /// Indices of the labels whose fault touches reading `n`.
    pub(super) fn touching(&self, device: u32, n: u64) -> impl Iterator<Item = usize> + '_ {
        let (base, faults) = self.faults_of(device);
        faults.iter().enumerate().filter(move |(_, fault)| fault.touches(n)).map(move |(at, _)| base + at)
    }

    fn faults_of(&self, device: u32) -> (usize, &[PlannedFault]) {
        let at = device as usize;
        match (self.first_fault.get(at), self.first_fault.get(at + 1)) {
            (Some(&first), Some(&end)) => (first as usize, &self.faults[first as usize..end as usize]),
            _ => (0, &[]),
        }
    }

    /// A number that follows from the seed, the device and the reading alone.
    pub(super) fn random(&self, device: u32, n: u64) -> u64 {
        mix(self.seed ^ u64::from(device) << 32 ^ n)
    }

    fn noise(&self, device: u32, n: u64) -> Pcg64Mcg {
        // Two rounds of a 64-bit mixer over a counter (Steele et al. 2014, SplitMix) give neighbouring
        // devices and readings unrelated states.
        let device = mix(self.seed ^ mix(u64::from(device)));
        let high = mix(device ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Pcg64Mcg::new(u128::from(high) << 64 | u128::from(mix(high ^ device)))
    }

    /// One field of one reading, scaled.
    fn value(&self, device: u32, n: u64, field: usize) -> i64 {
        let (base, faults) = self.faults_of(device);
        let ts_us = self.schedule.ts_us(device, n);
        let mut noise = self.noise(device, n);
        let mut normal = 0.0;
        for _ in 0..=field {
            normal = StandardNormal.sample(&mut noise);
        }
        self.with_faults(base, faults, field, n, ts_us, self.fields[field].value(ts_us, normal))
    }

    /// Rounds `value` of field `at` after the faults that touch it.
    fn with_faults(
        &self,
        base: usize,
        faults: &[PlannedFault],
        at: usize,
        n: u64,
        ts_us: i64,
        mut value: f64,
    ) -> i64 {
        let field = &self.fields[at];
        for (index, fault) in faults.iter().enumerate() {
            if fault.field != at || !fault.touches(n) {
                continue;
            }
            match fault.kind {
                FaultKind::Spike | FaultKind::Shift => value += fault.magnitude * field.sigma,
                FaultKind::Drift => {
                    let hours = (ts_us - fault.start_us) as f64 / 3.6e9;
                    value += fault.magnitude * field.sigma * hours;
                }
                // At the moment of planning reading 0 is frozen at itself.
                FaultKind::Stuck if n == 0 => {}
                FaultKind::Stuck => return self.frozen[base + index],
                FaultKind::Dropout | FaultKind::ClockSkew => {}
            }
        }
        (value * field.scale).round() as i64
    }
}

impl Field {
    fn new(model: &FieldModel) -> Field {
        Field {
            key: format!(",\"{}\":", model.name).into_bytes(),
            mean: model.mean,
            sigma: model.sigma,
            amplitude: model.amplitude,
            period_us: model.period_s * 1e6,
            decimals: model.decimals,
            scale: 10f64.powi(i32::from(model.decimals)),
        }
    }

    fn value(&self, ts_us: i64, normal: f64) -> f64 {
        let mut value = self.mean + self.sigma * normal;
        if self.amplitude != 0.0 {
            value += self.amplitude * (TAU * (ts_us as f64 / self.period_us).fract()).sin();
        }
        value
    }
}

fn first_faults(devices: u32, faults: &[PlannedFault]) -> Vec<u32> {
    if faults.is_empty() {
        return Vec::new();
    }
    let mut first = vec![0u32; devices as usize + 1];
    for fault in faults {
        first[fault.device as usize + 1] += 1;
    }
    for at in 1..first.len() {
        first[at] += first[at - 1];
    }
    first
}

fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `scaled / 10^decimals` as a JSON number with exactly that many decimals.
pub(super) fn write_decimal(scaled: i64, decimals: u8, out: &mut Vec<u8>) {
    // 20 digits, sign, point, and up to 9 zeros before a small value.
    let mut text = [b'0'; 32];
    let mut at = text.len();
    let mut rest = scaled.unsigned_abs();
    let mut written = 0;
    while rest > 0 || written <= decimals {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        written += 1;
        if written == decimals {
            at -= 1;
            text[at] = b'.';
        }
    }
    if scaled < 0 {
        at -= 1;
        text[at] = b'-';
    }
    out.extend_from_slice(&text[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::faults::Fault;
    use super::*;

    const START: i64 = 1_767_225_600_000_000; // 2026-01-01T00:00:00Z

    fn options() -> FleetOptions {
        FleetOptions { start_time_us: Some(START), devices: 20, seed: 7, ..FleetOptions::default() }
    }

    fn text(payloads: &Payloads, device: u32, n: u64) -> String {
        let mut out = Vec::new();
        payloads.write(device, n, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn json(payloads: &Payloads, device: u32, n: u64) -> serde_json::Value {
        serde_json::from_str(&text(payloads, device, n)).unwrap()
    }

    fn fault(kind: FaultKind, field: Option<&str>, start_s: f64, duration_s: f64) -> Fault {
        Fault { kind, device: 3, field: field.map(str::to_owned), start_s, duration_s, magnitude: None }
    }

    fn with(fault: Fault) -> Payloads {
        Payloads::new(&FleetOptions { faults: vec![fault], ..options() }).unwrap()
    }

    #[test]
    fn a_reading_is_json_with_device_time_and_fields() {
        let payloads = Payloads::new(&options()).unwrap();
        let reading = json(&payloads, 0, 2);
        assert_eq!(reading["device_id"], "d000000");
        assert_eq!(reading["ts"], START / 1_000 + 2_000);
        let temperature = reading["temperature"].as_f64().unwrap();
        assert!((15.0..28.0).contains(&temperature), "{temperature}");
        let mut topic = String::new();
        payloads.write_topic(13, &mut topic);
        assert_eq!(topic, "dt/s003/d000013/telemetry");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let (one, two) = (Payloads::new(&options()).unwrap(), Payloads::new(&options()).unwrap());
        let other = Payloads::new(&FleetOptions { seed: 8, ..options() }).unwrap();
        for n in (0..100).rev() {
            assert_eq!(text(&one, 5, n), text(&two, 5, n));
            assert_ne!(text(&one, 5, n), text(&other, 5, n));
        }
    }

    #[test]
    fn noise_has_the_stated_mean_and_deviation() {
        let fields = vec![FieldModel::new("x", 10.0, 2.0, 0.0, 6)];
        let payloads = Payloads::new(&FleetOptions { fields, ..options() }).unwrap();
        let values: Vec<f64> =
            (0..20_000).map(|n| json(&payloads, (n % 20) as u32, n)["x"].as_f64().unwrap()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean - 10.0).abs() < 0.06, "{mean}");
        assert!((variance.sqrt() - 2.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn the_daily_cycle_peaks_after_a_quarter_of_its_period() {
        let fields = vec![FieldModel::new("x", 0.0, 0.0, 5.0, 3)];
        let payloads = Payloads::new(&FleetOptions { fields, ..options() }).unwrap();
        assert_eq!(json(&payloads, 0, 6 * 3_600)["x"], 5.0);
        assert_eq!(json(&payloads, 0, 18 * 3_600)["x"], -5.0);
    }

    #[test]
    fn a_shift_adds_three_sigma_to_its_field_for_its_duration() {
        let (clean, shifted) = (
            Payloads::new(&options()).unwrap(),
            with(fault(FaultKind::Shift, Some("temperature"), 10.0, 5.0)),
        );
        for n in 0..30 {
            let (a, b) = (json(&clean, 3, n), json(&shifted, 3, n));
            let ts = a["ts"].as_i64().unwrap() * 1_000;
            let by = b["temperature"].as_f64().unwrap() - a["temperature"].as_f64().unwrap();
            let inside = (START + 10_000_000..START + 15_000_000).contains(&ts);
            assert!((by - if inside { 1.5 } else { 0.0 }).abs() < 0.011, "{n}: {by}");
            assert_eq!(a["humidity"], b["humidity"]);
        }
    }

    #[test]
    fn a_spike_is_one_reading_of_six_sigma() {
        let (clean, spiked) = (
            Payloads::new(&options()).unwrap(),
            with(fault(FaultKind::Spike, Some("temperature"), 10.0, 5.0)),
        );
        let touched: Vec<u64> = (0..30).filter(|&n| text(&clean, 3, n) != text(&spiked, 3, n)).collect();
        assert_eq!(touched.len(), 1);
        let (a, b) = (json(&clean, 3, touched[0]), json(&spiked, 3, touched[0]));
        let by = b["temperature"].as_f64().unwrap() - a["temperature"].as_f64().unwrap();
        assert!((by - 3.0).abs() < 0.011, "{by}");
        assert_eq!(spiked.labels()[0].start_us, a["ts"].as_i64().unwrap() * 1_000);
    }

    #[test]
    fn a_drift_grows_with_the_hours_since_its_start() {
        let fields = vec![FieldModel::new("x", 0.0, 10.0, 0.0, 3)];
        let faults = vec![fault(FaultKind::Drift, Some("x"), 0.0, 100_000.0)];
        let clean = Payloads::new(&FleetOptions { fields: fields.clone(), ..options() }).unwrap();
        let drifting = Payloads::new(&FleetOptions { fields, faults, ..options() }).unwrap();
        for hour in [0, 1, 10] {
            let n = hour * 3_600;
            let by = json(&drifting, 3, n)["x"].as_f64().unwrap() - json(&clean, 3, n)["x"].as_f64().unwrap();
            assert!((by - hour as f64).abs() < 0.01, "0.1 sigma of 10 an hour, hour {hour}: {by}");
        }
    }

    #[test]
    fn a_stuck_field_repeats_the_last_value_before_it() {
        let stuck = with(fault(FaultKind::Stuck, Some("temperature"), 10.0, 5.0));
        let first = stuck.schedule().first_at(3, START + 10_000_000);
        let before = json(&stuck, 3, first - 1)["temperature"].clone();
        for n in first..first + 5 {
            assert_eq!(json(&stuck, 3, n)["temperature"], before);
        }
        assert_ne!(json(&stuck, 3, first + 5)["temperature"], before);
        let from_start = with(fault(FaultKind::Stuck, Some("temperature"), 0.0, 5.0));
        assert_eq!(json(&from_start, 3, 0)["temperature"], json(&from_start, 3, 4)["temperature"]);
    }

    #[test]
    fn a_stuck_field_freezes_at_the_faulty_value_before_it() {
        let faults = vec![
            fault(FaultKind::Shift, Some("temperature"), 5.0, 5.0),
            fault(FaultKind::Stuck, Some("temperature"), 10.0, 5.0),
        ];
        let payloads = Payloads::new(&FleetOptions { faults, ..options() }).unwrap();
        let first = payloads.schedule().first_at(3, START + 10_000_000);
        assert_eq!(json(&payloads, 3, first)["temperature"], json(&payloads, 3, first - 1)["temperature"]);
    }

    #[test]
    fn a_dropout_leaves_its_readings_out() {
        let payloads = with(fault(FaultKind::Dropout, None, 10.0, 5.0));
        let first = payloads.schedule().first_at(3, START + 10_000_000);
        assert_eq!(payloads.next_sent(3, first - 1), (first - 1, None));
        assert_eq!(payloads.next_sent(3, first), (first + 5, Some(0)));
        assert_eq!(payloads.next_sent(4, first), (first, None));
    }

    #[test]
    fn a_skewed_clock_is_off_by_the_stated_seconds() {
        let mut skew = fault(FaultKind::ClockSkew, None, 10.0, 5.0);
        skew.magnitude = Some(-1.5);
        let (clean, skewed) = (Payloads::new(&options()).unwrap(), with(skew));
        let first = clean.schedule().first_at(3, START + 10_000_000);
        let (a, b) = (json(&clean, 3, first), json(&skewed, 3, first));
        assert_eq!(b["ts"].as_i64().unwrap() - a["ts"].as_i64().unwrap(), -1_500);
        assert_eq!(a["temperature"], b["temperature"]);
        assert_eq!(text(&clean, 3, first + 5), text(&skewed, 3, first + 5));
    }

    #[test]
    fn decimals_are_written_exactly() {
        let written = |scaled, decimals| {
            let mut out = Vec::new();
            write_decimal(scaled, decimals, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(0, 0), "0");
        assert_eq!(written(0, 2), "0.00");
        assert_eq!(written(-5, 2), "-0.05");
        assert_eq!(written(2150, 2), "21.50");
        assert_eq!(written(-123, 0), "-123");
        assert_eq!(written(i64::MIN, 9), "-9223372036.854775808");
    }

    proptest! {
        #[test]
        fn faults_change_only_the_readings_they_are_labelled_with(
            kind in prop::sample::select(FaultKind::ALL.to_vec()),
            start_s in 0.0..50.0f64,
            duration_s in 0.5..30.0f64,
            rate in prop::sample::select(vec![0.0, 0.3, 1.0, 7.0]),
            device in 0u32..20,
        ) {
            // Flat out a reading is 1 ms of event time.
            let unit = if rate == 0.0 { 1e-3 } else { 1.0 };
            let field = kind.has_field().then(|| "humidity".to_owned());
            let planted = Fault {
                kind, device, field, start_s: start_s * unit, duration_s: duration_s * unit, magnitude: Some(40.0),
            };
            let base = FleetOptions { rate_per_device: rate, ..options() };
            let clean = Payloads::new(&base).unwrap();
            let faulty = Payloads::new(&FleetOptions { faults: vec![planted.clone()], ..base });
            if faulty.is_err() {
                let start = clean.schedule().at_seconds(planted.start_s);
                let end = clean.schedule().at_seconds(planted.start_s + planted.duration_s);
                let within = |n| (start..end).contains(&clean.schedule().ts_us(device, n));
                prop_assert!(!(0..120).any(within), "refused, but it touches readings");
                return Ok(());
            }
            let faulty = faulty.unwrap();
            let label = &faulty.labels()[0];
            prop_assert!(label.start_us < label.end_us);
            for d in 0..20 {
                for n in 0..120 {
                    let ts = clean.schedule().ts_us(d, n);
                    let labelled = d == device && label.start_us <= ts && ts < label.end_us;
                    let same = text(&clean, d, n) == text(&faulty, d, n) && faulty.next_sent(d, n).0 == n;
                    // A stuck or slowly drifting value may by chance be the true one, so the converse is
                    // only claimed where the change is large.
                    let large = matches!(kind, FaultKind::Spike | FaultKind::Shift | FaultKind::Dropout | FaultKind::ClockSkew);
                    prop_assert!(labelled || same, "device {} reading {} changed outside the label", d, n);
                    prop_assert!(!(labelled && same && large), "device {} reading {} unchanged", d, n);
                    prop_assert_eq!(labelled, faulty.touching(d, n).next().is_some());
                }
            }
        }

        #[test]
        fn a_random_fleet_is_reproducible(seed in any::<u64>(), fraction in 0.0..1.0f64) {
            let base = FleetOptions { seed, faulty_fraction: fraction, ..options() };
            let (one, two) = (Payloads::new(&base).unwrap(), Payloads::new(&base).unwrap());
            prop_assert_eq!(one.labels(), two.labels());
            prop_assert_eq!(one.labels().len(), (fraction * 20.0).round() as usize);
            for device in 0..20 {
                prop_assert_eq!(text(&one, device, 300), text(&two, device, 300));
            }
        }
    }
}
