//! A stream declaration for a message that no stream matched: a guess for a person to read and correct.
//!
//! Numbers become double, since a device that sent 21 may send 21.5 next. Nothing here is on the hot path.

use crate::schema::ColumnType;

use super::error::DecodeError;
use super::json::{Cursor, unescape};
use super::number::Number;
use super::spec::{FieldSpec, Format, TimeSpec, TimeUnit};
use super::{MAX_DEPTH, time};

/// What a `[streams.NAME]` section could say.
#[derive(Clone, Debug, PartialEq)]
pub struct Suggestion {
    pub name: String,
    /// With `{name}` levels.
    pub topic: String,
    pub captures: Vec<String>,
    /// The capture that looks like the device.
    pub key: Option<String>,
    pub format: Format,
    pub time: Option<TimeSpec>,
    pub fields: Vec<FieldSpec>,
    /// What the payload holds and the suggestion leaves out, one sentence each.
    pub notes: Vec<String>,
}

/// Levels of nested objects that are flattened below the reading: `radio.rssi` is one.
const FLATTENED_LEVELS: usize = 2;
/// Fields suggested, and readings of an array looked at. Ours.
const MAX_FIELDS: usize = 256;
const MAX_SAMPLES: usize = 100;

/// Names under which devices state their time, most telling first.
const TIME_NAMES: [&str; 12] = [
    "ts",
    "timestamp",
    "time",
    "event_time",
    "eventtime",
    "datetime",
    "date_time",
    "measured_at",
    "recorded_at",
    "created_at",
    "date",
    "t",
];
/// A number is taken for a time only within these years: 2000-01-01 and 2100-01-01, in microseconds.
const LIKELY_TIMES_US: std::ops::Range<i64> = 946_684_800_000_000..4_102_444_800_000_000;

/// Suggests a stream for messages like this one.
///
/// topic:   the topic name it came on
/// payload: one JSON object, or an array of them, whose first 100 are looked at
/// errors:  those of decoding, if the payload is no reading in a format that works
pub fn suggest(topic: &str, payload: &[u8]) -> Result<Suggestion, DecodeError> {
    let mut samples = samples(payload)?;
    let mut members: Vec<Member> = Vec::new();
    let mut notes = Vec::new();
    for sample in &mut samples {
        flatten(std::mem::take(sample), &[], &mut members, &mut notes);
    }
    let time = guess_time(&members);
    let texts: Vec<&str> = members.iter().filter_map(|member| member.text()).collect();
    let levels = captured_levels(topic, &texts);
    let captures: Vec<String> = levels.iter().map(|(_, name)| name.clone()).collect();
    let level_of = |at: usize| levels.iter().find(|(level, _)| *level == at).map(|(_, name)| name);
    let device = levels.iter().find(|(_, name)| name == "device");
    let device_text = device.and_then(|(level, _)| topic.split('/').nth(*level));

    let mut fields: Vec<FieldSpec> = Vec::new();
    for member in &members {
        let path = member.path();
        if time.as_ref().is_some_and(|time| time.path == path) {
            continue;
        }
        if member.text().is_some() && member.text() == device_text {
            notes.push(format!("{path} repeats the device of the topic"));
            continue;
        }
        let Some(ty) = member.ty() else {
            notes.push(format!("{path} is {}, which no column type holds", member.value.kind()));
            continue;
        };
        if fields.len() == MAX_FIELDS {
            notes.push(format!("more than {MAX_FIELDS} fields; the rest is left out"));
            break;
        }
        let name = column_name(&member.steps.join("_"), &captures, &fields);
        fields.push(FieldSpec { name, ty, path });
    }
    let pattern: Vec<String> = topic
        .split('/')
        .enumerate()
        .map(|(at, level)| level_of(at).map_or_else(|| level.to_owned(), |name| format!("{{{name}}}")))
        .collect();
    notes.sort();
    notes.dedup();
    Ok(Suggestion {
        name: stream_name(&pattern),
        topic: pattern.join("/"),
        key: device.map(|(_, name)| name.clone()),
        captures,
        format: Format::Json,
        time,
        fields,
        notes,
    })
}

#[derive(Clone, Debug)]
enum Value {
    Null,
    Boolean,
    /// The number as a time, if it could be one.
    Number(Option<i64>),
    Text(String),
    Object(Vec<(String, Value)>),
    Array,
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Boolean => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a string",
            Value::Object(_) => "an object deeper than the levels flattened",
            Value::Array => "an array",
        }
    }
}

#[derive(Clone, Debug)]
struct Member {
    steps: Vec<String>,
    value: Value,
}

impl Member {
    fn path(&self) -> String {
        let steps: Vec<String> = self.steps.iter().map(|step| step.replace('.', "\\.")).collect();
        steps.join(".")
    }

    fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn ty(&self) -> Option<ColumnType> {
        match &self.value {
            Value::Boolean => Some(ColumnType::Boolean),
            Value::Number(_) => Some(ColumnType::Double),
            Value::Text(text) if text.len() > 10 && time::from_iso(text.as_bytes()).is_ok() => {
                Some(ColumnType::Timestamp)
            }
            Value::Text(_) => Some(ColumnType::String),
            Value::Null | Value::Object(_) | Value::Array => None,
        }
    }
}

/// The members of each reading.
fn samples(payload: &[u8]) -> Result<Vec<Vec<(String, Value)>>, DecodeError> {
    if payload.is_empty() {
        return Err(DecodeError::EmptyPayload);
    }
    if let Err(error) = simdutf8::compat::from_utf8(payload) {
        return Err(DecodeError::InvalidUtf8 { at: error.valid_up_to() });
    }
    let mut whole = Cursor::new(payload);
    whole.skip_value(0)?;
    whole.finish()?;
    let mut cursor = Cursor::new(payload);
    let mut found = Vec::new();
    let mut element = |cursor: &mut Cursor<'_>| -> Result<(), DecodeError> {
        cursor.next_token();
        let at = cursor.at;
        match value(cursor, 0)? {
            Value::Object(members) if found.len() < MAX_SAMPLES => found.push(members),
            Value::Object(_) => {}
            other => return Err(DecodeError::NotAnObject { at, found: other.kind() }),
        }
        Ok(())
    };
    if cursor.next_token() != b'[' {
        element(&mut cursor)?;
        return Ok(found);
    }
    cursor.at += 1;
    if cursor.next_token() == b']' {
        return Ok(found);
    }
    loop {
        element(&mut cursor)?;
        if !cursor.next_element()? {
            return Ok(found);
        }
    }
}

/// The value at the cursor, as far as it is flattened; `levels` objects are open.
fn value(cursor: &mut Cursor<'_>, levels: usize) -> Result<Value, DecodeError> {
    match cursor.next_token() {
        b'{' if levels <= FLATTENED_LEVELS => {
            cursor.open(levels as u32)?;
            let mut members: Vec<(String, Value)> = Vec::new();
            if cursor.next_token() == b'}' {
                cursor.at += 1;
                return Ok(Value::Object(members));
            }
            loop {
                cursor.key_quote()?;
                let key = text(cursor)?;
                cursor.colon()?;
                let value = value(cursor, levels + 1)?;
                match members.iter().position(|(known, _)| *known == key) {
                    Some(at) => members[at].1 = value,
                    None if members.len() < MAX_FIELDS => members.push((key, value)),
                    None => {}
                }
                if !cursor.next_member()? {
                    return Ok(Value::Object(members));
                }
            }
        }
        b'"' => {
            cursor.at += 1;
            Ok(Value::Text(text(cursor)?))
        }
        byte @ (b'-' | b'0'..=b'9') => {
            let number: Number<'_> = cursor.number()?;
            Ok(Value::Number(time::from_number(number, TimeUnit::Auto).filter(|_| byte != b'-')))
        }
        byte => {
            cursor.skip_value(levels as u32)?;
            Ok(match byte {
                b'{' => Value::Object(Vec::new()),
                b'[' => Value::Array,
                b'n' => Value::Null,
                _ => Value::Boolean,
            })
        }
    }
}

/// The string whose opening quote has been passed; half a surrogate pair cuts it short.
fn text(cursor: &mut Cursor<'_>) -> Result<String, DecodeError> {
    let raw = cursor.string()?;
    let mut bytes = Vec::new();
    unescape(raw.bytes, &mut bytes);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn flatten(members: Vec<(String, Value)>, above: &[String], into: &mut Vec<Member>, notes: &mut Vec<String>) {
    for (key, value) in members {
        let mut steps = above.to_vec();
        if key.is_empty() || key.contains(['"', '\\']) || key.contains(|c: char| c < ' ') {
            notes.push(format!("the key {key:?} cannot be written as a path"));
            continue;
        }
        steps.push(key);
        match value {
            Value::Object(inner) if steps.len() <= FLATTENED_LEVELS && !inner.is_empty() => {
                flatten(inner, &steps, into, notes);
            }
            value => match into.iter_mut().find(|member| member.steps == steps) {
                // A later reading tells the type of what was null in an earlier one.
                Some(known) if matches!(known.value, Value::Null) => known.value = value,
                Some(_) => {}
                None => into.push(Member { steps, value }),
            },
        }
    }
}

fn guess_time(members: &[Member]) -> Option<TimeSpec> {
    let likely = |member: &&Member| match &member.value {
        Value::Number(Some(micros)) => LIKELY_TIMES_US.contains(micros),
        Value::Text(text) => text.len() > 10 && time::from_iso(text.as_bytes()).is_ok(),
        _ => false,
    };
    let rank = |member: &Member| {
        let last = member.steps.last()?.to_ascii_lowercase();
        TIME_NAMES.iter().position(|name| *name == last).map(|rank| (member.steps.len(), rank))
    };
    let ranked = members.iter().filter(likely).filter_map(|member| Some((rank(member)?, member)));
    let best = ranked.min_by_key(|(rank, _)| *rank);
    best.map(|(_, member)| TimeSpec { path: member.path(), unit: TimeUnit::Auto })
}

/// Levels of the topic that look like names of things rather than of kinds, and what to call them.
///
/// A level that the payload repeats is the device; else the last level with a digit; else, from three levels on,
/// the one before the last, after `site/device/kind`.
fn captured_levels(topic: &str, texts: &[&str]) -> Vec<(usize, String)> {
    let levels: Vec<&str> = topic.split('/').collect();
    let has_digit = |level: &&str| level.bytes().any(|byte| byte.is_ascii_digit()) && !is_version(level);
    let device = levels
        .iter()
        .rposition(|level| !level.is_empty() && texts.contains(level))
        .or_else(|| levels.iter().rposition(&has_digit))
        .or_else(|| (levels.len() >= 3).then(|| levels.len() - 2).filter(|at| !levels[*at].is_empty()));
    let mut captured = Vec::new();
    for (at, level) in levels.iter().enumerate() {
        let names = captured.len();
        if Some(at) == device {
            captured.push((at, "device".to_owned()));
        } else if has_digit(level) {
            captured.push((at, if names == 0 { "site".to_owned() } else { format!("level{}", at + 1) }));
        }
    }
    captured
}

/// `v1`, `v2.0`: the version of an interface.
fn is_version(level: &str) -> bool {
    level.strip_prefix('v').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// The last level that is not captured, as an identifier.
fn stream_name(pattern: &[String]) -> String {
    let literal = pattern.iter().rev().find(|level| !level.is_empty() && !level.starts_with('{'));
    identifier(literal.map_or("readings", String::as_str)).to_ascii_lowercase()
}

/// A name that no other column has.
pub(super) fn column_name(wanted: &str, captures: &[String], fields: &[FieldSpec]) -> String {
    let base = identifier(wanted);
    let taken = |name: &str| {
        matches!(name, "ts" | "received_at" | "hour")
            || captures.iter().any(|capture| capture.eq_ignore_ascii_case(name))
            || fields.iter().any(|field| field.name.eq_ignore_ascii_case(name))
    };
    let candidates = std::iter::once(base.clone()).chain((2..).map(|number| format!("{base}_{number}")));
    candidates.into_iter().find(|name| !taken(name)).unwrap_or(base)
}

/// Letters, digits and underscores, a letter first.
fn identifier(text: &str) -> String {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '_' };
    let name: String = text.chars().map(plain).collect();
    let name = name.trim_start_matches('_');
    match name.bytes().next() {
        None => "field".to_owned(),
        Some(first) if first.is_ascii_digit() => format!("field_{name}"),
        Some(_) => name.to_owned(),
    }
}

const _: () = assert!(FLATTENED_LEVELS < MAX_DEPTH as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typical_device() {
        let payload = br#"{"device_id":"d000001","ts":1732000000123,"temperature":21.5,"ok":true,"radio":{"rssi":-70,"gw":"g1"},
            "tags":[1],"seen":"2024-11-19T07:06:40Z","extra":null,"a":{"b":{"c":{"d":1}}}}"#;
        let found = suggest("dt/plant7/d000001/telemetry", payload).unwrap();
        assert_eq!(
            (found.name.as_str(), found.topic.as_str()),
            ("telemetry", "dt/{site}/{device}/telemetry")
        );
        assert_eq!(found.captures, ["site", "device"]);
        assert_eq!(found.key.as_deref(), Some("device"));
        assert_eq!(found.time, Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }));
        let fields: Vec<(&str, ColumnType, &str)> =
            found.fields.iter().map(|field| (field.name.as_str(), field.ty, field.path.as_str())).collect();
        assert_eq!(
            fields,
            [
                ("temperature", ColumnType::Double, "temperature"),
                ("ok", ColumnType::Boolean, "ok"),
                ("radio_rssi", ColumnType::Double, "radio.rssi"),
                ("radio_gw", ColumnType::String, "radio.gw"),
                ("seen", ColumnType::Timestamp, "seen"),
            ]
        );
        assert_eq!(
            found.notes,
            [
                "a.b.c is an object deeper than the levels flattened, which no column type holds",
                "device_id repeats the device of the topic",
                "extra is null, which no column type holds",
                "tags is an array, which no column type holds",
            ]
        );
    }

    #[test]
    fn an_array_joins_its_readings() {
        let found = suggest("sensors/kitchen", br#"[{"t":null,"x.y":1},{"t":"2024-01-01 10:00"}]"#).unwrap();
        assert_eq!((found.name.as_str(), found.topic.as_str()), ("kitchen", "sensors/kitchen"));
        assert_eq!(found.time.map(|time| time.path), Some("t".to_owned()));
        assert_eq!((found.fields[0].name.as_str(), found.fields[0].path.as_str()), ("x_y", "x\\.y"));
    }

    #[test]
    fn names_never_collide() {
        let found = suggest("a/dev/b", br#"{"device":1,"a b":2,"a_b":3,"ts":"soon","9":4}"#).unwrap();
        let names: Vec<&str> = found.fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["device_2", "a_b", "a_b_2", "ts_2", "field_9"]);
        assert_eq!(found.time, None);
    }

    #[test]
    fn what_is_no_reading_is_refused() {
        assert_eq!(suggest("t", b"").unwrap_err().reason(), "empty-payload");
        assert_eq!(suggest("t", b"42").unwrap_err().reason(), "not-an-object");
        assert_eq!(suggest("t", b"{]").unwrap_err().reason(), "invalid-json");
        assert_eq!(suggest("t", b"\xff").unwrap_err().reason(), "invalid-utf8");
    }
}
