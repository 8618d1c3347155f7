//! Where fields are inferred: values whose field no column has yet, and values that get no column.
//!
//! A field is wanted as a column when its value is a number (double), a boolean or a string, at any depth of nested
//! objects. What fits no column (an array, another type than before, a field beyond the bound) goes to the
//! row's `_extra`: one JSON object, path to value, so that nothing a device sends is lost.

use std::io::Write;

use super::decoded::Decoded;
use super::error::DecodeError;
use super::plan::{StreamPlan, push_step};
use super::sink::{Sink, Token};
use super::spec::FieldSpec;
use super::suggest::column_name;
use super::tree::{Open, Source};
use super::{MAX_DEPTH, MAX_INFERRED};
use crate::schema::ColumnType;

/// A field that messages show and no column has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undeclared {
    /// Dotted path in the payload, as in a declaration.
    pub path: String,
    pub ty: ColumnType,
}

/// A path longer than this goes to `_extra`. Ours.
const MAX_PATH_BYTES: usize = 256;

/// A value under a key that the plan does not know: noted as a field to add, or kept in `_extra`.
pub(super) fn undeclared<'p>(
    source: &mut impl Source<'p>,
    sink: &mut Sink<'_>,
    above: &str,
    key: &[u8],
    token: Token<'p>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    let path = join(above, key);
    value(source, sink, &path, token, at, depth)
}

fn value<'p>(
    source: &mut impl Source<'p>,
    sink: &mut Sink<'_>,
    path: &str,
    token: Token<'p>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    if let Token::Map(_) = token {
        return object(source, sink, path, token, at, depth);
    }
    if note(sink, path, &token) { Ok(()) } else { write_member(source, sink, path, token, at, depth) }
}

/// Notes the field of a scalar that no column has. False: it gets no column, and belongs into `_extra`.
fn note(sink: &mut Sink<'_>, path: &str, token: &Token<'_>) -> bool {
    let ty = match token {
        Token::Null => return true,
        Token::Int(_) | Token::Uint(_) | Token::Double(_) => Some(ColumnType::Double),
        Token::Number(number) => number.to_double().map(|_| ColumnType::Double),
        Token::Bool(_) => Some(ColumnType::Boolean),
        Token::Text(_) => Some(ColumnType::String),
        Token::Time(Some(_)) => Some(ColumnType::Timestamp),
        Token::Bytes(_) | Token::Map(_) | Token::Array(_) | Token::Time(None) => None,
    };
    let undeclared = &sink.out.undeclared;
    if undeclared.iter().any(|known| known.path == path) {
        return true;
    }
    let room = sink.plan.inferred + undeclared.len() < MAX_INFERRED;
    // What is a value here and an object there cannot be both.
    let clash = undeclared.iter().any(|known| is_below(&known.path, path) || is_below(path, &known.path));
    match ty {
        Some(ty) if room && !clash && nameable(path) => {
            sink.out.undeclared.push(Undeclared { path: path.to_owned(), ty });
            true
        }
        _ => false,
    }
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('.'))
}

/// As `undeclared`, for formats whose fields are not nested.
pub(super) fn undeclared_scalar(sink: &mut Sink<'_>, name: &[u8], token: &Token<'_>) {
    let path = join("", name);
    if !note(sink, &path, token) {
        keep_scalar(sink, name, token);
    }
}

/// As `keep`, likewise.
pub(super) fn keep_scalar(sink: &mut Sink<'_>, name: &[u8], token: &Token<'_>) {
    begin_member(&mut sink.out.extra, &join("", name));
    write_scalar(&mut sink.out.extra, token);
}

fn object<'p>(
    source: &mut impl Source<'p>,
    sink: &mut Sink<'_>,
    path: &str,
    token: Token<'p>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    if depth >= MAX_DEPTH {
        return Err(DecodeError::TooDeep { at });
    }
    let Some(mut open) = Open::of(&token) else { return Ok(()) };
    // Beyond what names a column, the whole object goes to `_extra`.
    if path.len() > MAX_PATH_BYTES {
        return write_member(source, sink, path, token, at, depth);
    }
    while source.next(&mut open)? {
        let key = source.key()?;
        let at = source.at();
        let token = source.token()?;
        let below = join(path, key.as_deref().unwrap_or(b"?"));
        value(source, sink, &below, token, at, depth + 1)?;
    }
    Ok(())
}

/// Keeps a value that fits no column.
pub(super) fn keep<'p>(
    source: &mut impl Source<'p>,
    sink: &mut Sink<'_>,
    above: &str,
    key: &[u8],
    token: Token<'p>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    write_member(source, sink, &join(above, key), token, at, depth)
}

/// Closes the row's `_extra`, if it has one.
pub(super) fn finish(sink: &mut Sink<'_>) -> Result<(), DecodeError> {
    if sink.out.extra.is_empty() {
        return Ok(());
    }
    let Some(column) = sink.plan.extra else { return Ok(()) };
    let mut text = std::mem::take(&mut sink.out.extra);
    text.push(b'}');
    let before = sink.bytes(column);
    let cell = sink.out.text(|arena| {
        if let Some(before) = before {
            // A row whose records lie apart: more members of the same object.
            arena.extend_from_within(before.start..before.end.saturating_sub(1));
            text[0] = b',';
        }
        arena.extend_from_slice(&text);
    })?;
    sink.set(column, cell);
    text.clear();
    sink.out.extra = text;
    Ok(())
}

fn join(above: &str, key: &[u8]) -> String {
    let mut path = above.to_owned();
    push_step(&mut path, &String::from_utf8_lossy(key));
    path
}

/// Whether a declaration could name the path: it comes back through one.
fn nameable(path: &str) -> bool {
    path.len() <= MAX_PATH_BYTES
        && super::plan::path_steps(path).is_ok_and(|steps| steps.len() < MAX_DEPTH as usize)
}

fn write_member<'p>(
    source: &mut impl Source<'p>,
    sink: &mut Sink<'_>,
    path: &str,
    token: Token<'p>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    let mut text = std::mem::take(&mut sink.out.extra);
    begin_member(&mut text, path);
    let written = write_value(source, &mut text, token, at, depth);
    sink.out.extra = text;
    written
}

fn begin_member(text: &mut Vec<u8>, path: &str) {
    text.push(if text.is_empty() { b'{' } else { b',' });
    write_text(text, path.as_bytes());
    text.push(b':');
}

/// Writes the value as JSON (RFC 8259).
fn write_value<'p>(
    source: &mut impl Source<'p>,
    text: &mut Vec<u8>,
    token: Token<'p>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    if let Token::Map(_) | Token::Array(_) = token {
        return write_container(source, text, &token, at, depth);
    }
    write_scalar(text, &token);
    Ok(())
}

fn write_scalar(text: &mut Vec<u8>, token: &Token<'_>) {
    // Writing to a vector cannot fail.
    let _ = match token {
        Token::Bool(value) => write!(text, "{value}"),
        Token::Int(value) => write!(text, "{value}"),
        Token::Uint(value) => write!(text, "{value}"),
        Token::Double(value) if value.is_finite() => write!(text, "{value:?}"),
        Token::Double(value) => write!(text, "\"{value}\""),
        Token::Number(number) => text.write_all(number.text),
        Token::Time(Some(micros)) => write!(text, "{micros}"),
        Token::Text(value) => {
            write_text(text, value);
            Ok(())
        }
        Token::Bytes(bytes) => {
            text.push(b'"');
            bytes.iter().for_each(|byte| _ = write!(text, "{byte:02x}"));
            text.push(b'"');
            Ok(())
        }
        Token::Null | Token::Time(None) | Token::Map(_) | Token::Array(_) => write!(text, "null"),
    };
}

fn write_container<'p>(
    source: &mut impl Source<'p>,
    text: &mut Vec<u8>,
    token: &Token<'p>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    if depth >= MAX_DEPTH {
        return Err(DecodeError::TooDeep { at });
    }
    let Some(mut open) = Open::of(token) else { return Ok(()) };
    let (begin, end) = if open.map { (b'{', b'}') } else { (b'[', b']') };
    text.push(begin);
    let mut first = true;
    while source.next(&mut open)? {
        if !std::mem::take(&mut first) {
            text.push(b',');
        }
        if open.map {
            let key = source.key()?;
            write_text(text, key.as_deref().unwrap_or(b"?"));
            text.push(b':');
        }
        let at = source.at();
        let token = source.token()?;
        write_value(source, text, token, at, depth + 1)?;
    }
    text.push(end);
    Ok(())
}

/// `value` is valid UTF-8.
fn write_text(text: &mut Vec<u8>, value: &[u8]) {
    text.push(b'"');
    for byte in value {
        let _ = match byte {
            b'"' | b'\\' => text.write_all(&[b'\\', *byte]),
            0..=0x1f => write!(text, "\\u{byte:04x}"),
            _ => text.write_all(&[*byte]),
        };
    }
    text.push(b'"');
}

impl StreamPlan {
    /// Columns for the fields that the last payload showed and no column has: empty where nothing is to be added.
    ///
    /// With them the plan is to be made anew and the payload decoded again. Names are lower-case, unique, and never
    /// those of other columns.
    pub fn columns_for(&self, decoded: &Decoded, known: &[FieldSpec]) -> Vec<FieldSpec> {
        let mut fields = known.to_vec();
        let captures: Vec<String> = self.names[..self.captures].iter().map(|name| name.to_string()).collect();
        for Undeclared { path, ty } in &decoded.undeclared {
            let steps = super::plan::path_steps(path).unwrap_or_default();
            let wanted: String = steps.join("_").to_lowercase().chars().take(48).collect();
            let name = column_name(&wanted, &captures, &fields);
            fields.push(FieldSpec { name, ty: *ty, path: path.clone() });
        }
        fields.split_off(known.len())
    }
}
