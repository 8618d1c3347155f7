//! A stream's declared paths compiled against the descriptor of its message, and the columns that a message has.

use super::descriptor::{Descriptors, Field, Message, ty};
use super::plan::{Kind, Node, Slot, Target};
use super::proto_type::{self, Scalar};
use super::spec::{FieldSpec, ProtobufSpec, TimeSpec};
use super::suggest::column_name;
use super::{MAX_DEPTH, MAX_INFERRED};
use crate::schema::ColumnType;

const TIMESTAMP: &str = "google.protobuf.Timestamp";

/// What to do with the fields of one message type.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// By field number; of a map by the keys of its node.
    pub ops: Vec<Op>,
    /// Those whose absence means zero.
    pub implicit: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Op {
    number: u32,
    pub value: Value,
    /// Columns of the other members of its oneof.
    pub clears: Vec<u16>,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar, Vec<Slot>),
    /// google.protobuf.Timestamp as a time.
    Time(Vec<Slot>),
    /// Node of the message.
    Message(usize),
    /// Node of the map, and the type of its keys.
    Map(usize, u64),
}

impl Program {
    #[inline]
    pub fn find(&self, expected: usize, number: u32) -> Option<usize> {
        match self.ops.get(expected) {
            Some(op) if op.number == number => Some(expected),
            _ => self.ops.binary_search_by_key(&number, |op| op.number).ok(),
        }
    }
}

/// A program for each of `nodes`. Errors: a sentence for the author of the configuration.
pub(super) fn compile(spec: &ProtobufSpec, nodes: &[Node]) -> Result<Vec<Program>, String> {
    let all = read(spec)?;
    let mut compiler = Compiler { all: &all, nodes, programs: Vec::new() };
    compiler.programs.resize_with(nodes.len(), Program::default);
    compiler.message(0, &spec.message, root(&all, spec)?)?;
    Ok(compiler.programs)
}

/// A column for each field of the message and of the messages in it, except those that no column holds: repeated
/// ones, maps, bytes, and messages within themselves.
pub fn protobuf_fields(
    spec: &ProtobufSpec,
    captures: &[String],
    time: Option<&TimeSpec>,
) -> Result<Vec<FieldSpec>, String> {
    let all = read(spec)?;
    let mut found = Vec::new();
    let mut within = vec![spec.message.as_str()];
    let time = time.map(|time| time.path.as_str());
    list(&all, root(&all, spec)?, &mut within, "", &mut |path, ty| {
        if Some(path) == time {
            return Ok(());
        }
        if found.len() == MAX_INFERRED {
            return Err(format!(
                "message {:?} has more than {MAX_INFERRED} fields; declare those that are wanted",
                spec.message
            ));
        }
        let wanted: String = path.replace('.', "_").to_lowercase().chars().take(48).collect();
        let name = column_name(&wanted, captures, &found);
        found.push(FieldSpec { name, ty, path: path.to_owned() });
        Ok(())
    })?;
    if found.is_empty() {
        return Err(format!("message {:?} has no field that a column can hold", spec.message));
    }
    Ok(found)
}

fn list<'d>(
    all: &'d Descriptors,
    message: &'d Message,
    within: &mut Vec<&'d str>,
    above: &str,
    add: &mut impl FnMut(&str, ColumnType) -> Result<(), String>,
) -> Result<(), String> {
    for field in message.fields.iter().filter(|field| !field.repeated && !field.delimited) {
        let path = if above.is_empty() { field.name.clone() } else { format!("{above}.{}", field.name) };
        match field.ty {
            ty::MESSAGE if field.of == TIMESTAMP => add(&path, ColumnType::Timestamp)?,
            ty::MESSAGE if within.contains(&field.of.as_str()) || within.len() >= MAX_DEPTH as usize => {}
            ty::MESSAGE => {
                within.push(&field.of);
                list(all, inner(all, field)?, within, &path, add)?;
                within.pop();
            }
            ty::DOUBLE | ty::FLOAT => add(&path, ColumnType::Double)?,
            ty::BOOL => add(&path, ColumnType::Boolean)?,
            ty::STRING | ty::ENUM => add(&path, ColumnType::String)?,
            other if proto_type::holds(Kind::Bigint, other) && other != ty::BYTES => {
                add(&path, ColumnType::Bigint)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn read(spec: &ProtobufSpec) -> Result<Descriptors, String> {
    Descriptors::read(&spec.descriptor).map_err(|error| {
        format!(
            "the descriptor is no FileDescriptorSet ({error}); write it by protoc --include_imports --descriptor_set_out=FILE"
        )
    })
}

fn root<'d>(all: &'d Descriptors, spec: &ProtobufSpec) -> Result<&'d Message, String> {
    all.messages.get(&spec.message).ok_or_else(|| {
        let mut known: Vec<&str> = all.messages.keys().map(String::as_str).collect();
        known.sort_unstable();
        let more = if known.len() > 20 { format!(" and {} more", known.len() - 20) } else { String::new() };
        known.truncate(20);
        format!("the descriptor has no message {:?}; it has {}{more}", spec.message, known.join(", "))
    })
}

fn inner<'d>(all: &'d Descriptors, field: &Field) -> Result<&'d Message, String> {
    all.messages.get(&field.of).ok_or_else(|| {
        format!(
            "the descriptor lacks message {:?} of field {:?}; write it with --include_imports",
            field.of, field.name
        )
    })
}

struct Compiler<'d> {
    all: &'d Descriptors,
    nodes: &'d [Node],
    programs: Vec<Program>,
}

impl<'d> Compiler<'d> {
    fn message(&mut self, index: usize, name: &str, message: &'d Message) -> Result<(), String> {
        let nodes = self.nodes;
        let node = &nodes[index];
        let mut ops = Vec::new();
        for (at, target) in node.targets.iter().enumerate() {
            let key = node.keys.name(at);
            let Some(field) = message.fields.iter().find(|field| field.name == key) else {
                let known: Vec<&str> = message.fields.iter().map(|field| field.name.as_str()).collect();
                return Err(format!("message {name:?} has no field {key:?}; it has {}", known.join(", ")));
            };
            let value = self.value(name, field, target)?;
            let others = node.targets.iter().enumerate().filter(|(other, _)| {
                let other = node.keys.name(*other);
                other != key
                    && field.oneof.is_some()
                    && message.fields.iter().any(|found| found.name == other && found.oneof == field.oneof)
            });
            let clears = others.flat_map(|(_, target)| self.columns(target)).collect();
            ops.push((Op { number: field.number, value, clears }, !field.presence));
        }
        // A member that is not declared clears the others too.
        for field in message.fields.iter().filter(|field| field.oneof.is_some() && !field.repeated) {
            if node.keys.find(field.name.as_bytes()).is_some() {
                continue;
            }
            let mates = node.targets.iter().enumerate().filter(|(at, _)| {
                let key = node.keys.name(*at);
                message.fields.iter().any(|found| found.name == key && found.oneof == field.oneof)
            });
            let clears: Vec<u16> = mates.flat_map(|(_, target)| self.columns(target)).collect();
            if !clears.is_empty() {
                let value = match field.ty {
                    // Passed over, once it has cleared.
                    ty::MESSAGE => Value::Message(usize::MAX),
                    ty => Value::Scalar(Scalar { ty, names: None }, Vec::new()),
                };
                ops.push((Op { number: field.number, value, clears }, false));
            }
        }
        ops.sort_by_key(|(op, _)| op.number);
        let implicit = ops.iter().enumerate().filter(|(_, (_, implicit))| *implicit).map(|(at, _)| at);
        let implicit = implicit.collect();
        let ops = ops.into_iter().map(|(op, _)| op).collect();
        self.programs[index] = Program { ops, implicit };
        Ok(())
    }

    fn columns(&self, target: &Target) -> Vec<u16> {
        match target {
            Target::Leaf(slot) => vec![slot.column],
            Target::Leaves(slots) => slots.iter().map(|slot| slot.column).collect(),
            Target::Object(child) => self.nodes[*child].beneath.clone(),
        }
    }

    fn value(&mut self, message: &str, field: &'d Field, target: &Target) -> Result<Value, String> {
        let name = &field.name;
        let refuse = |what: String| Err(format!("field {name:?} of message {message:?} {what}"));
        let map = (field.ty == ty::MESSAGE && field.repeated)
            .then(|| self.all.messages.get(&field.of))
            .flatten()
            .filter(|entry| entry.is_map);
        if field.delimited {
            return refuse("is a group, which is not read".into());
        }
        match (target, map) {
            (Target::Object(child), Some(entry)) => {
                let key = entry.fields.iter().find(|field| field.number == 1).map_or(0, |key| key.ty);
                self.map(*child, message, entry)?;
                Ok(Value::Map(*child, key))
            }
            (_, Some(_)) => {
                refuse(format!("is a map, which no column holds; name one of its entries: {name}.KEY"))
            }
            _ if field.repeated => refuse("is repeated, which no column holds".into()),
            (Target::Object(child), _) if field.ty == ty::MESSAGE => {
                let below = inner(self.all, field)?;
                self.message(*child, &field.of, below)?;
                Ok(Value::Message(*child))
            }
            (Target::Object(_), _) => {
                refuse(format!("is a {} and has no fields of its own", proto_type::name(field.ty)))
            }
            (Target::Leaf(slot), _) => self.leaf(message, field, vec![*slot]),
            (Target::Leaves(slots), _) => self.leaf(message, field, slots.clone()),
        }
    }

    /// Each key that is declared, with the type of the map's values.
    fn map(&mut self, index: usize, message: &str, entry: &'d Message) -> Result<(), String> {
        let nodes = self.nodes;
        let Some(value) = entry.fields.iter().find(|field| field.number == 2) else {
            return Err(format!("the descriptor of message {message:?} has a map without a value"));
        };
        let mut ops = Vec::new();
        for target in &nodes[index].targets {
            let value = self.value(message, value, target)?;
            ops.push(Op { number: 2, value, clears: Vec::new() });
        }
        self.programs[index] = Program { ops, implicit: Vec::new() };
        Ok(())
    }

    fn leaf(&self, message: &str, field: &Field, slots: Vec<Slot>) -> Result<Value, String> {
        let name = &field.name;
        let time = |slot: &Slot| matches!(slot.kind, Kind::Timestamp(_));
        if field.ty == ty::MESSAGE && field.of == TIMESTAMP && slots.iter().all(time) {
            return Ok(Value::Time(slots));
        }
        let unfit = slots.iter().find(|slot| !proto_type::holds(slot.kind, field.ty));
        if matches!(field.ty, ty::MESSAGE | ty::BYTES) || proto_type::name(field.ty).contains(' ') {
            let what = if field.ty == ty::MESSAGE { &field.of } else { proto_type::name(field.ty) };
            return Err(format!(
                "field {name:?} of message {message:?} is {what}, which no such column holds"
            ));
        }
        if let Some(slot) = unfit {
            return Err(format!(
                "field {name:?} of message {message:?} is {}, but its column wants {}",
                proto_type::name(field.ty),
                slot.kind.wanted()
            ));
        }
        let names = match field.ty {
            ty::ENUM => self.all.enums.get(&field.of).cloned(),
            _ => None,
        };
        Ok(Value::Scalar(Scalar { ty: field.ty, names }, slots))
    }
}
