//! A stream's declaration compiled against its schema: which key of which object goes to which column.

use std::sync::Arc;

use crate::schema::{ColumnType, SchemaRef};

use super::cbor::CborSource;
use super::decoded::{Decoded, Stored};
use super::error::DecodeError;
use super::json_source::JsonSource;
use super::keys::Keys;
use super::msgpack::MsgpackSource;
use super::plain::MAX_WORDS;
use super::proto_plan::{self, Program};
use super::sparkplug::SparkplugContext;
use super::spec::{Format, StreamSpec, TimeUnit, topic_captures};
use super::{MAX_DEPTH, csv, influx, protobuf, reading, senml, sparkplug, tree};

/// Compiled once per stream, then shared by all gateway threads.
#[derive(Debug)]
pub struct StreamPlan {
    format: Format,
    pub(super) captures: usize,
    #[cfg(test)]
    pub(super) schema: SchemaRef,
    /// The declaration allows for `decode_plain`.
    pub(super) plain: bool,
    /// The column `_extra`, where fields are inferred.
    pub(super) extra: Option<u16>,
    /// Fields inferred so far.
    pub(super) inferred: usize,
    /// Whole paths, for formats whose fields are not nested.
    pub(super) flat: Keys,
    /// The columns of each of them.
    pub(super) flat_slots: Vec<Vec<Slot>>,
    /// Names of the columns in schema order, for error messages.
    pub(super) names: Vec<Arc<str>>,
    /// Objects that hold declared fields; the first is the reading itself.
    pub(super) nodes: Vec<Node>,
    /// Of Protocol Buffers: one for each of `nodes`.
    pub(super) programs: Vec<Program>,
}

/// One object of the payload that holds declared fields.
#[derive(Debug)]
pub(super) struct Node {
    pub keys: Keys,
    /// What each key leads to, in the order of `keys`.
    pub targets: Vec<Target>,
    /// Every column beneath: a second object under the same key starts anew.
    pub beneath: Vec<u16>,
    /// Path of the object in the reading, empty for the reading itself.
    pub path: String,
}

#[derive(Debug)]
pub(super) enum Target {
    Leaf(Slot),
    /// Several columns of one field.
    Leaves(Vec<Slot>),
    /// Index of `nodes`.
    Object(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub column: u16,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Double,
    Bigint,
    Boolean,
    String,
    Timestamp(TimeUnit),
}

impl StreamPlan {
    /// Columns of `schema` must be: captures in topic order (string), `ts` and `received_at` (timestamp), `_extra`
    /// (string) where fields are inferred, then the fields in declared order.
    ///
    /// Errors: a sentence for the author of the configuration, which names stream, field and what was found.
    pub fn new(spec: &StreamSpec, schema: SchemaRef) -> Result<StreamPlan, String> {
        let stream = &spec.name;
        check_columns(spec, &schema)?;
        let mut tree = Tree { objects: vec![Object::default()] };
        let mut flat: Vec<(String, Vec<Slot>)> = Vec::new();
        let first = spec.captures.len() + 2 + usize::from(spec.infer);
        if let Some(time) = &spec.time {
            let column = spec.captures.len() as u16;
            let slot = Slot { column, kind: Kind::Timestamp(time.unit) };
            tree.add(&time.path, slot).map_err(|problem| format!("time of stream {stream:?}: {problem}"))?;
            add_flat(&mut flat, &time.path, slot);
        }
        for (at, field) in spec.fields.iter().enumerate() {
            let name = &field.name;
            let kind = match field.ty {
                ColumnType::Double => Kind::Double,
                ColumnType::Bigint => Kind::Bigint,
                ColumnType::Boolean => Kind::Boolean,
                ColumnType::String => Kind::String,
                ColumnType::Timestamp => Kind::Timestamp(TimeUnit::Auto),
                ColumnType::Binary => {
                    return Err(format!(
                        "field {name:?} of stream {stream:?} is binary, which JSON cannot hold; declare it a string"
                    ));
                }
            };
            let slot = Slot { column: (first + at) as u16, kind };
            tree.add(&field.path, slot)
                .map_err(|problem| format!("field {name:?} of stream {stream:?}: {problem}"))?;
            add_flat(&mut flat, &field.path, slot);
        }
        let nodes = tree.compile();
        let programs = match (spec.format, &spec.protobuf) {
            (Format::Protobuf, Some(protobuf)) => proto_plan::compile(protobuf, &nodes)
                .map_err(|problem| format!("protobuf of stream {stream:?}: {problem}"))?,
            (Format::Protobuf, None) => {
                return Err(format!("stream {stream:?} has the format protobuf and names no message"));
            }
            _ => Vec::new(),
        };
        let leaves = nodes.iter().flat_map(|node| &node.targets);
        let plain = spec.fields.len() + 3 <= MAX_WORDS
            && nodes.len() <= MAX_WORDS
            && !leaves.into_iter().any(|target| matches!(target, Target::Leaves(_)));
        Ok(StreamPlan {
            format: spec.format,
            plain: plain && spec.format == Format::Json,
            captures: spec.captures.len(),
            extra: spec.infer.then_some(spec.captures.len() as u16 + 2),
            inferred: if spec.infer { spec.fields.len() } else { 0 },
            flat: Keys::new(flat.iter().map(|(path, _)| path.as_str())),
            flat_slots: flat.into_iter().map(|(_, slots)| slots).collect(),
            #[cfg(test)]
            schema: schema.clone(),
            names: schema.columns.iter().map(|column| column.name.as_str().into()).collect(),
            nodes,
            programs,
        })
    }

    /// Replaces what `into` holds by the readings of one payload; on error it holds none.
    ///
    /// captures:       the topic levels bound by `{name}`, in the order of `StreamSpec::captures`, valid UTF-8
    /// received_at_us: arrival, microseconds since the Unix epoch, UTC; the event time where the payload has none
    pub fn decode(
        &self,
        payload: &[u8],
        captures: &[&[u8]],
        received_at_us: i64,
        into: &mut Decoded,
    ) -> Result<(), DecodeError> {
        self.run(payload, captures, received_at_us, None, into)?;
        match into.incomplete() {
            None => Ok(()),
            Some(error) => {
                into.clear();
                Err(error)
            }
        }
    }

    /// Whether `decode_sparkplug` is the way.
    pub fn is_sparkplug(&self) -> bool {
        self.format == Format::SparkplugB
    }

    /// As `decode`, with what is known of the edge node. Rows may be there also where `Decoded::incomplete` tells that
    /// others are missing.
    pub fn decode_sparkplug(
        &self,
        payload: &[u8],
        captures: &[&[u8]],
        received_at_us: i64,
        context: SparkplugContext<'_>,
        into: &mut Decoded,
    ) -> Result<(), DecodeError> {
        self.run(payload, captures, received_at_us, Some(context), into)
    }

    fn run(
        &self,
        payload: &[u8],
        captures: &[&[u8]],
        received_at_us: i64,
        context: Option<SparkplugContext<'_>>,
        into: &mut Decoded,
    ) -> Result<(), DecodeError> {
        into.clear();
        // A message all of whose fields are zero has no bytes.
        if payload.is_empty() && self.format != Format::Protobuf {
            return Err(DecodeError::EmptyPayload);
        }
        if payload.len() >= i32::MAX as usize {
            return Err(DecodeError::TooLarge);
        }
        let result = self.start(captures, received_at_us, into).and_then(|()| match self.format {
            Format::Json if self.extra.is_none() => reading::read(self, payload, into),
            Format::Json => tree::read(self, &mut JsonSource::new(payload)?, into),
            Format::Cbor => tree::read(self, &mut CborSource::new(payload), into),
            Format::Msgpack => tree::read(self, &mut MsgpackSource::new(payload), into),
            Format::SenmlJson => senml::read(self, &mut JsonSource::new(payload)?, received_at_us, into),
            Format::SenmlCbor => senml::read(self, &mut CborSource::new(payload), received_at_us, into),
            Format::Influx => influx::read(self, payload, into),
            Format::Csv => csv::read(self, payload, into),
            Format::Protobuf => protobuf::read(self, payload, into),
            Format::SparkplugB => sparkplug::read(self, payload, received_at_us, context, into),
        });
        if result.is_err() {
            into.clear();
        }
        result
    }

    /// Fills the template of a row.
    fn start(&self, captures: &[&[u8]], received_at_us: i64, into: &mut Decoded) -> Result<(), DecodeError> {
        debug_assert_eq!(captures.len(), self.captures);
        for at in 0..self.captures {
            let cell = match captures.get(at) {
                Some(level) => into.text(|arena| arena.extend_from_slice(level))?,
                None => Stored::Null,
            };
            into.template.push(cell);
        }
        into.template.push(Stored::Timestamp(received_at_us));
        into.template.push(Stored::Timestamp(received_at_us));
        into.template.resize(self.names.len(), Stored::Null);
        Ok(())
    }
}

fn check_columns(spec: &StreamSpec, schema: &SchemaRef) -> Result<(), String> {
    let stream = &spec.name;
    let captured = topic_captures(&spec.topic)?;
    if captured != spec.captures {
        return Err(format!(
            "stream {stream:?} has captures {:?}, but its topic {:?} captures {captured:?}",
            spec.captures, spec.topic
        ));
    }
    let captures = spec.captures.iter().map(|name| (name.as_str(), ColumnType::String));
    let times = ["ts", "received_at"].map(|name| (name, ColumnType::Timestamp));
    let extra = spec.infer.then_some((EXTRA, ColumnType::String));
    let fields = spec.fields.iter().map(|field| (field.name.as_str(), field.ty));
    let wanted: Vec<(&str, ColumnType)> = captures.chain(times).chain(extra).chain(fields).collect();
    for (at, (name, _)) in wanted.iter().enumerate() {
        if wanted[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(format!("stream {stream:?} has two columns called {name:?}; rename the field"));
        }
    }
    let found: Vec<(&str, ColumnType)> =
        schema.columns.iter().map(|column| (column.name.as_str(), column.ty)).collect();
    if wanted != found {
        return Err(format!(
            "stream {stream:?} declares the columns {wanted:?}, but its schema has {found:?}"
        ));
    }
    if wanted.len() > MAX_COLUMNS {
        return Err(format!("stream {stream:?} has {} columns; at most {MAX_COLUMNS} work", wanted.len()));
    }
    Ok(())
}

fn add_flat(flat: &mut Vec<(String, Vec<Slot>)>, path: &str, slot: Slot) {
    let path = path.replace("\\.", ".");
    match flat.iter_mut().find(|(known, _)| *known == path) {
        Some((_, slots)) => slots.push(slot),
        None => flat.push((path, vec![slot])),
    }
}

/// Where streams with inferred fields keep what fits no column: a JSON object of path and value.
pub const EXTRA: &str = "_extra";

/// Column indexes are u16. Ours.
const MAX_COLUMNS: usize = 4096;

/// The declared paths as a tree, before it is frozen.
struct Tree {
    objects: Vec<Object>,
}

#[derive(Default)]
struct Object {
    keys: Vec<String>,
    targets: Vec<Target>,
    path: String,
}

impl Tree {
    fn add(&mut self, path: &str, slot: Slot) -> Result<(), String> {
        let mut steps = path_steps(path)?;
        let Some(last) = steps.pop() else { return Err(format!("path {path:?} is empty")) };
        let clash = || {
            format!("path {path:?} makes a value of what another path takes for an object, or the reverse")
        };
        let mut object = 0;
        for step in steps {
            let at = self.key(object, step);
            let objects = self.objects.len();
            match self.objects[object].targets.get(at) {
                Some(Target::Object(child)) => object = *child,
                Some(_) => return Err(clash()),
                None => {
                    let mut path = self.objects[object].path.clone();
                    push_step(&mut path, &self.objects[object].keys[at]);
                    self.objects[object].targets.push(Target::Object(objects));
                    self.objects.push(Object { path, ..Object::default() });
                    object = objects;
                }
            }
        }
        let at = self.key(object, last);
        let targets = &mut self.objects[object].targets;
        match targets.get_mut(at) {
            None => targets.push(Target::Leaf(slot)),
            Some(Target::Leaves(slots)) => slots.push(slot),
            Some(Target::Leaf(first)) => targets[at] = Target::Leaves(vec![*first, slot]),
            Some(Target::Object(_)) => return Err(clash()),
        }
        Ok(())
    }

    /// Index of a key of an object, new at the end if it is not there.
    fn key(&mut self, object: usize, name: String) -> usize {
        let keys = &mut self.objects[object].keys;
        keys.iter().position(|key| *key == name).unwrap_or_else(|| {
            keys.push(name);
            keys.len() - 1
        })
    }

    fn beneath(&self, object: usize, into: &mut Vec<u16>) {
        for target in &self.objects[object].targets {
            match target {
                Target::Leaf(slot) => into.push(slot.column),
                Target::Leaves(slots) => into.extend(slots.iter().map(|slot| slot.column)),
                Target::Object(child) => self.beneath(*child, into),
            }
        }
    }

    fn compile(self) -> Vec<Node> {
        let beneath: Vec<Vec<u16>> = (0..self.objects.len())
            .map(|object| {
                let mut columns = Vec::new();
                self.beneath(object, &mut columns);
                columns
            })
            .collect();
        let nodes = self.objects.into_iter().zip(beneath).map(|(object, beneath)| Node {
            keys: Keys::new(object.keys.iter().map(String::as_str)),
            targets: object.targets,
            beneath,
            path: object.path,
        });
        nodes.collect()
    }
}

/// Appends a key to a dotted path.
pub(super) fn push_step(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    for (at, part) in key.split('.').enumerate() {
        if at > 0 {
            path.push_str("\\.");
        }
        path.push_str(part);
    }
}

/// The keys that a dotted path names, outermost first; `\.` is a dot of the key.
pub(super) fn path_steps(path: &str) -> Result<Vec<String>, String> {
    let mut steps = vec![String::new()];
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match (character, steps.last_mut()) {
            ('.', _) => steps.push(String::new()),
            ('\\', Some(step)) if characters.next() == Some('.') => step.push('.'),
            ('\\' | '"' | '\0'..' ', _) => {
                return Err(format!(
                    "path {path:?} holds a quote, a control character or a backslash before no dot"
                ));
            }
            (other, Some(step)) => step.push(other),
            (_, None) => {}
        }
    }
    if steps.iter().any(String::is_empty) {
        return Err(format!("path {path:?} has an empty step; write the keys with single dots between them"));
    }
    if steps.len() > MAX_DEPTH as usize {
        return Err(format!("path {path:?} is deeper than {MAX_DEPTH} levels"));
    }
    Ok(steps)
}
