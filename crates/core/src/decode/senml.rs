//! SenML (RFC 8428): a pack of records, in JSON (section 5) or CBOR (section 6).
//!
//! Records of one resolved time (section 4.6: `bt` + `t`; below 2^28 relative to the arrival) are one reading. A field is
//! named by a record's resolved name (`bn` + `n`) or, where no field has that name, by its `n` alone, so that the base name
//! can hold the device. The value is `v` + `bv`, `vs`, `vb` or `vd` (the base64 text as it came), else the sum `s` + `bs`.

use std::borrow::Cow;

use super::decoded::{Decoded, Stored};
use super::error::DecodeError;
use super::number::Number;
use super::plan::StreamPlan;
use super::sink::{Sink, Token};
use super::time::{MAX_US, MIN_US};
use super::tree::{Open, Source, skip};
use super::{extra, flat};

/// Version of the format (section 4.4); a pack of a later one may mean anything.
const VERSION: f64 = 10.0;
/// Times below are relative to now (section 4.5.3), seconds.
const ABSOLUTE_S: f64 = 268_435_456.0;

/// What records of the pack so far have set for those that follow (section 4.1).
#[derive(Default)]
struct Base<'p> {
    name: Cow<'p, [u8]>,
    time_s: f64,
    value: Option<f64>,
    sum: Option<f64>,
}

#[derive(Default)]
struct Record<'p> {
    name: Cow<'p, [u8]>,
    time_s: f64,
    value: Option<(usize, Token<'p>)>,
    sum: Option<(usize, f64)>,
}

fn wrong<T>(at: usize, problem: &'static str) -> Result<T, DecodeError> {
    Err(DecodeError::InvalidSenml { at, problem })
}

/// Appends the readings of the pack to `into`, whose template has been filled.
pub(super) fn read<'p>(
    plan: &StreamPlan,
    source: &mut impl Source<'p>,
    received_at_us: i64,
    into: &mut Decoded,
) -> Result<(), DecodeError> {
    let mut sink = Sink::new(plan, into);
    let (mut base, mut fault) = (Base::default(), None);
    let at = source.at();
    let token = source.token()?;
    let Some(mut pack) = Open::of(&token).filter(|open| !open.map) else {
        skip(source, &token, at, 0)?;
        source.finish()?;
        return wrong(at, "a pack is an array of records");
    };
    while source.next(&mut pack)? {
        let at = source.at();
        let token = source.token()?;
        let Some(open) = Open::of(&token).filter(|open| open.map) else {
            skip(source, &token, at, 1)?;
            fault.get_or_insert(DecodeError::NotAnObject { at, found: token.kind() });
            continue;
        };
        let record = record(source, open, &mut base)?;
        row(&mut sink, base.time_s + record.time_s, received_at_us, at)?;
        value(&mut sink, &base, record, at)?;
        extra::finish(&mut sink)?;
        sink.end(&mut fault);
    }
    source.finish()?;
    fault.map_or(Ok(()), Err)
}

/// Reads one record; what it says of the base holds from itself on.
fn record<'p>(
    source: &mut impl Source<'p>,
    mut open: Open,
    base: &mut Base<'p>,
) -> Result<Record<'p>, DecodeError> {
    let mut record = Record::default();
    while source.next(&mut open)? {
        let key = source.key()?.unwrap_or_default();
        let at = source.at();
        let token = source.token()?;
        // Labels of JSON, and of CBOR (section 6, table 4).
        match &*key {
            b"bn" | b"-2" => base.name = text(at, token)?,
            b"bt" | b"-3" => base.time_s = number(at, &token)?,
            b"bv" | b"-5" => base.value = Some(number(at, &token)?),
            b"bs" | b"-6" => base.sum = Some(number(at, &token)?),
            b"bver" | b"-1" if number(at, &token)? > VERSION => {
                return wrong(at, "the version bver is higher than 10");
            }
            b"n" | b"0" => record.name = text(at, token)?,
            b"t" | b"6" => record.time_s = number(at, &token)?,
            b"v" | b"2" => {
                let value = number(at, &token)?;
                // Without a base value an integer stays one.
                let whole = base.value.is_none()
                    && matches!(token, Token::Number(_) | Token::Int(_) | Token::Uint(_));
                record.value =
                    Some((at, if whole { token } else { Token::Double(value + base.value.unwrap_or(0.0)) }));
            }
            b"vs" | b"3" => record.value = Some((at, Token::Text(text(at, token)?))),
            b"vb" | b"4" => match token {
                Token::Bool(_) => record.value = Some((at, token)),
                _ => return wrong(at, "vb is no boolean"),
            },
            b"vd" | b"8" => match token {
                Token::Text(_) | Token::Bytes(_) => record.value = Some((at, token)),
                _ => return wrong(at, "vd is no data"),
            },
            b"s" | b"5" => record.sum = Some((at, number(at, &token)?)),
            // Section 4.4: a label that ends so must be understood.
            other if other.ends_with(b"_") => return wrong(at, "a label that must be understood is not"),
            _ => skip(source, &token, at, 2)?,
        }
    }
    Ok(record)
}

/// The row of the record's time.
fn row(sink: &mut Sink<'_>, time_s: f64, received_at_us: i64, at: usize) -> Result<(), DecodeError> {
    let relative = if time_s < ABSOLUTE_S { received_at_us as f64 } else { 0.0 };
    // To the microsecond a double is exact until the year 2255.
    let micros = (time_s * 1e6 + relative).round();
    if !(MIN_US as f64..=MAX_US as f64).contains(&micros) {
        return wrong(at, "the resolved time is outside the years 1 to 9999");
    }
    let micros = if time_s == 0.0 { received_at_us } else { micros as i64 };
    if let Some(mark) = sink.out.rows_at.get(&micros) {
        let mark = *mark;
        sink.resume(mark);
        return Ok(());
    }
    sink.begin()?;
    sink.set(sink.plan.captures as u16, Stored::Timestamp(micros));
    let mark = sink.mark();
    sink.out.rows_at.insert(micros, mark);
    Ok(())
}

fn value(sink: &mut Sink<'_>, base: &Base<'_>, record: Record<'_>, at: usize) -> Result<(), DecodeError> {
    let resolved = [&base.name[..], &record.name[..]].concat();
    if resolved.is_empty() {
        return wrong(at, "a record has neither a name nor a base name");
    }
    let sum = record.sum.map(|(at, sum)| (at, Token::Double(sum + base.sum.unwrap_or(0.0))));
    let base_only = || base.value.map(|value| (at, Token::Double(value)));
    // Section 4.2: a record has a value or a sum, or it only sets the base.
    let Some((at, token)) = record.value.or(sum).or_else(|| base_only().filter(|_| !record.name.is_empty()))
    else {
        return Ok(());
    };
    let known = |name: &[u8]| sink.plan.flat.find(name).is_some();
    let short =
        !record.name.is_empty() && !known(&resolved) && (known(&record.name) || sink.plan.extra.is_some());
    let name = if short { &record.name[..] } else { &resolved[..] };
    flat::put(sink, name, at, &token);
    Ok(())
}

fn text<'p>(at: usize, token: Token<'p>) -> Result<Cow<'p, [u8]>, DecodeError> {
    match token {
        Token::Text(text) => Ok(text),
        _ => wrong(at, "a name or string value is no text"),
    }
}

fn number(at: usize, token: &Token<'_>) -> Result<f64, DecodeError> {
    let value = match token {
        Token::Int(value) => Some(*value as f64),
        Token::Uint(value) => Some(*value as f64),
        Token::Double(value) => Some(*value),
        Token::Number(number) => Number::to_double(*number),
        _ => None,
    };
    match value.filter(|value| value.is_finite()) {
        Some(value) => Ok(value),
        None => wrong(at, "a time, value, sum or version is no finite number"),
    }
}
