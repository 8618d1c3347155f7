//! Sparkplug B (Eclipse Sparkplug 3.0, chapter 6): the metrics of a payload, named by themselves or by what births declared.
//!
//! Metrics of one timestamp are one reading; a field is found by its metric's name. The payload is a Protocol Buffers
//! message (org.eclipse.tahu.protobuf.Payload), read here by hand. What births have declared is the caller's to keep:
//! see [`SparkplugMetrics`].

use std::collections::HashMap;
use std::sync::Arc;

use super::decoded::Decoded;
use super::error::DecodeError;
use super::plan::StreamPlan;
use super::protobuf::borrowed;
use super::sink::{Sink, Token};
use super::time::{MAX_US, MIN_US};
use super::wire::{Raw, Wire, text};
use super::{extra, flat};

/// What the level after the group says that a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparkplugKind {
    NodeBirth,
    DeviceBirth,
    NodeData,
    DeviceData,
    NodeDeath,
    DeviceDeath,
    /// NCMD, DCMD: not from the edge, and no readings.
    Command,
}

/// `spBv1.0/group/kind/edge[/device]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparkplugTopic<'t> {
    pub group: &'t str,
    pub kind: SparkplugKind,
    pub edge: &'t str,
    pub device: Option<&'t str>,
}

impl<'t> SparkplugTopic<'t> {
    pub const NAMESPACE: &'static str = "spBv1.0/";

    /// `None`: not a message of an edge node, a device or for them.
    pub fn parse(topic: &'t str) -> Option<SparkplugTopic<'t>> {
        let mut levels = topic.strip_prefix(Self::NAMESPACE)?.split('/');
        let (group, kind, edge) = (levels.next()?, levels.next()?, levels.next()?);
        let device = levels.next();
        let kind = match (kind, device) {
            ("NBIRTH", None) => SparkplugKind::NodeBirth,
            ("NDATA", None) => SparkplugKind::NodeData,
            ("NDEATH", None) => SparkplugKind::NodeDeath,
            ("DBIRTH", Some(_)) => SparkplugKind::DeviceBirth,
            ("DDATA", Some(_)) => SparkplugKind::DeviceData,
            ("DDEATH", Some(_)) => SparkplugKind::DeviceDeath,
            ("NCMD", None) | ("DCMD", Some(_)) => SparkplugKind::Command,
            _ => return None,
        };
        levels.next().is_none().then_some(SparkplugTopic { group, kind, edge, device })
    }
}

/// What the births of one edge node and its devices have declared.
#[derive(Clone, Debug, Default)]
pub struct SparkplugMetrics {
    /// Name and datatype by alias, which is unique in the edge node.
    aliases: HashMap<u64, (Arc<str>, u32)>,
    /// Datatypes of metrics without an alias, by device (empty: the node itself) and name.
    named: HashMap<Box<str>, HashMap<Box<str>, u32>>,
}

/// Roughly what an entry takes beside its name.
const ENTRY_BYTES: usize = 64;

impl SparkplugMetrics {
    /// Adds what the birth of `device` (empty: the node) declares, as far as `room` bytes go. Gives the bytes taken, and
    /// whether all of it is in.
    pub fn declare(
        &mut self,
        device: &str,
        payload: &[u8],
        room: usize,
    ) -> Result<(usize, bool), DecodeError> {
        let mut taken = 0;
        let mut wire = Wire::new(payload, 0);
        while let Some((number, at, raw)) = wire.field()? {
            let (METRICS, Raw::Bytes(bytes)) = (number, raw) else { continue };
            let metric = Metric::read(bytes, at)?;
            let Some(name) = metric.name.and_then(|name| std::str::from_utf8(name).ok()) else { continue };
            let datatype = metric.datatype.unwrap_or(0);
            if taken + name.len() + ENTRY_BYTES > room {
                return Ok((taken, false));
            }
            taken += name.len() + ENTRY_BYTES;
            let replaced = match metric.alias {
                Some(alias) => {
                    self.aliases.insert(alias, (name.into(), datatype)).map(|(before, _)| before.len())
                }
                None => {
                    let names = self.named.entry(device.into()).or_default();
                    names.insert(name.into(), datatype).map(|_| name.len())
                }
            };
            taken = taken.saturating_sub(replaced.map_or(0, |length| length + ENTRY_BYTES));
        }
        Ok((taken, true))
    }

    fn datatype(&self, device: &str, name: &[u8]) -> Option<u32> {
        self.named.get(device)?.get(std::str::from_utf8(name).ok()?).copied()
    }
}

/// A message of an edge node, and what is known of its metrics.
#[derive(Clone, Copy, Debug)]
pub struct SparkplugContext<'a> {
    pub kind: SparkplugKind,
    /// Empty: the node itself.
    pub device: &'a str,
    pub known: &'a SparkplugMetrics,
}

/// What a payload says of its place in the edge node's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SparkplugHead {
    pub seq: Option<u64>,
    /// Value of the metric `bdSeq`, which births and deaths of nodes carry.
    pub bd_seq: Option<u64>,
}

impl SparkplugHead {
    /// bd: whether to look for `bdSeq`
    pub fn read(payload: &[u8], bd: bool) -> Result<SparkplugHead, DecodeError> {
        let mut head = SparkplugHead::default();
        let mut wire = Wire::new(payload, 0);
        while let Some((number, at, raw)) = wire.field()? {
            match (number, raw) {
                (SEQ, Raw::Varint(seq)) => head.seq = Some(seq),
                (METRICS, Raw::Bytes(bytes)) if bd => {
                    let metric = Metric::read(bytes, at)?;
                    if metric.name == Some(b"bdSeq")
                        && let Some((_, 10 | 11, Raw::Varint(value))) = metric.value
                    {
                        head.bd_seq = Some(value);
                    }
                }
                _ => {}
            }
        }
        Ok(head)
    }
}

/// An NCMD payload that asks an edge node for its births (section 6.4.22).
pub fn sparkplug_rebirth(now_ms: u64) -> Vec<u8> {
    const NAME: &[u8] = b"Node Control/Rebirth";
    let mut payload = vec![1 << 3];
    let mut rest = now_ms;
    while rest >= 0x80 {
        payload.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    payload.push(rest as u8);
    payload.extend_from_slice(&[2 << 3 | 2, NAME.len() as u8 + 6, 1 << 3 | 2, NAME.len() as u8]);
    payload.extend_from_slice(NAME);
    payload.extend_from_slice(&[4 << 3, 11, 14 << 3, 1]);
    payload
}

/// Fields of Payload.
const TIMESTAMP: u32 = 1;
const METRICS: u32 = 2;
const SEQ: u32 = 3;

#[derive(Debug, Default)]
struct Metric<'p> {
    name: Option<&'p [u8]>,
    alias: Option<u64>,
    timestamp: Option<u64>,
    datatype: Option<u32>,
    is_null: bool,
    /// Position, field number, value.
    value: Option<(usize, u32, Raw<'p>)>,
}

impl<'p> Metric<'p> {
    fn read(bytes: &'p [u8], at: usize) -> Result<Metric<'p>, DecodeError> {
        let mut metric = Metric::default();
        let mut wire = Wire::new(bytes, at);
        while let Some((number, at, raw)) = wire.field()? {
            match (number, raw) {
                (1, Raw::Bytes(name)) => metric.name = Some(text(name, at)?),
                (2, Raw::Varint(alias)) => metric.alias = Some(alias),
                (3, Raw::Varint(timestamp)) => metric.timestamp = Some(timestamp),
                (4, Raw::Varint(datatype)) => metric.datatype = Some(datatype as u32),
                (7, Raw::Varint(null)) => metric.is_null = null != 0,
                (10 | 11 | 14, Raw::Varint(_)) | (12, Raw::Fixed32(_)) | (13, Raw::Fixed64(_)) => {
                    metric.value = Some((at, number, raw));
                }
                (15..=19, Raw::Bytes(_)) => metric.value = Some((at, number, raw)),
                _ => {}
            }
        }
        Ok(metric)
    }

    /// `None`: an integer whose datatype nobody told.
    fn token(&self, datatype: Option<u32>) -> Result<Option<Token<'p>>, DecodeError> {
        let Some((at, number, raw)) = self.value.filter(|_| !self.is_null) else {
            return Ok(Some(Token::Null));
        };
        Ok(Some(match (number, raw) {
            (14, Raw::Varint(value)) => Token::Bool(value != 0),
            (_, Raw::Varint(value)) => match datatype.unwrap_or(0) {
                // Two's complement of the type's width (section 6.4.16).
                1 => Token::Int(i64::from(value as i8)),
                2 => Token::Int(i64::from(value as i16)),
                3 => Token::Int(i64::from(value as i32)),
                4 => Token::Int(value as i64),
                13 => Token::Time(micros(value)),
                0 => return Ok(None),
                _ => i64::try_from(value).map_or(Token::Uint(value), Token::Int),
            },
            (_, Raw::Fixed32(bits)) => Token::Double(f64::from(f32::from_bits(bits))),
            (_, Raw::Fixed64(bits)) => Token::Double(f64::from_bits(bits)),
            (15, Raw::Bytes(bytes)) => borrowed(text(bytes, at)?),
            // Bytes, data sets and templates fit no column.
            (_, Raw::Bytes(bytes)) => Token::Bytes(bytes),
            (_, Raw::Group) => Token::Null,
        }))
    }
}

fn micros(ms: u64) -> Option<i64> {
    let micros = i64::try_from(ms).ok()?.checked_mul(1000)?;
    (MIN_US..=MAX_US).contains(&micros).then_some(micros)
}

/// Appends the readings of the payload. Metrics that nothing names are left out and told by `Decoded::incomplete`.
pub(super) fn read(
    plan: &StreamPlan,
    payload: &[u8],
    received_at_us: i64,
    context: Option<SparkplugContext<'_>>,
    into: &mut Decoded,
) -> Result<(), DecodeError> {
    let kind = context.map_or(SparkplugKind::NodeBirth, |context| context.kind);
    if kind == SparkplugKind::Command {
        return Ok(());
    }
    let mut sink = Sink::new(plan, into);
    let mut fault = None;
    let mut sent_us = received_at_us;
    // The payload's own time may follow its metrics.
    let mut wire = Wire::new(payload, 0);
    while let Some((number, at, raw)) = wire.field()? {
        if let (TIMESTAMP, Raw::Varint(ms)) = (number, raw) {
            sent_us = time(ms, at)?;
        }
    }
    let mut wire = Wire::new(payload, 0);
    while let Some((number, at, raw)) = wire.field()? {
        let (METRICS, Raw::Bytes(bytes)) = (number, raw) else { continue };
        let metric = Metric::read(bytes, at)?;
        let declared =
            context.zip(metric.alias).and_then(|(context, alias)| context.known.aliases.get(&alias));
        let name = metric.name.or_else(|| declared.map(|(name, _)| name.as_bytes()));
        let datatype = metric.datatype.or_else(|| match declared {
            Some((_, datatype)) => Some(*datatype),
            None => context.and_then(|context| context.known.datatype(context.device, name?)),
        });
        let (Some(name), Some(token)) = (name, metric.token(datatype)?) else {
            sink.out.unnamed(at);
            continue;
        };
        let us = match metric.timestamp {
            Some(ms) => time(ms, at)?,
            None => sent_us,
        };
        row(&mut sink, us)?;
        let at = metric.value.map_or(at, |(at, _, _)| at);
        flat::put(&mut sink, name, at, &token);
        extra::finish(&mut sink)?;
        sink.end(&mut fault);
    }
    if matches!(kind, SparkplugKind::NodeDeath | SparkplugKind::DeviceDeath) && sink.out.rows() == 0 {
        row(&mut sink, sent_us)?;
    }
    fault.map_or(Ok(()), Err)
}

fn time(ms: u64, at: usize) -> Result<i64, DecodeError> {
    match micros(ms) {
        Some(us) => Ok(us),
        None => Err(DecodeError::TimeOutOfRange { field: "timestamp".into(), at }),
    }
}

/// The row of a time.
fn row(sink: &mut Sink<'_>, us: i64) -> Result<(), DecodeError> {
    if let Some(mark) = sink.out.rows_at.get(&us) {
        let mark = *mark;
        sink.resume(mark);
        return Ok(());
    }
    sink.begin()?;
    let mark = sink.mark();
    sink.out.rows_at.insert(us, mark);
    let column = sink.plan.captures as u16;
    sink.set(column, super::decoded::Stored::Timestamp(us));
    Ok(())
}
