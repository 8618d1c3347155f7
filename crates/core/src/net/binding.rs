//! Streams as the gateway sees them: which topics feed them, and how payloads become their rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::levels::{KEPT, Levels};
use crate::decode::{Decoded, FieldSpec, StreamPlan, StreamSpec};
use crate::log::{InferredField, Log, LogError};
use crate::mqtt::Trie;
use crate::mqtt::topic::{self, StreamTopic};
use crate::schema::{Column, ColumnType, DEAD_LETTERS, DOWNLINK, RAW, Schema, SchemaId, SchemaRef, StreamId};
use crate::short;

/// A stream that the gateway fills.
#[derive(Clone, Debug)]
pub struct StreamBinding {
    pub spec: StreamSpec,
    /// Names the key column too.
    pub schema: SchemaRef,
}

/// Captured levels of one topic at most.
pub(super) const MAX_CAPTURES: usize = 16;

/// Most streams whose filters are compared one by one.
const MAX_FEW: usize = 4;

/// A level of such a filter; `None`: `+`.
type Level = Option<Box<[u8]>>;

/// All streams at one time. A change makes new ones, which each thread takes between two turns (`rebind`).
#[derive(Debug)]
pub(super) struct Bindings {
    pub streams: Vec<Arc<Binding>>,
    /// Indexes of `streams`.
    topics: Trie<u16>,
    /// The filters of `streams`, where they are few and without `#`. Comparing them one by one costs
    /// a fraction of a walk through the trie.
    few: Option<Vec<Box<[Level]>>>,
    /// Filters whose messages are logged raw too.
    raw: Arc<Trie<u16>>,
    seed: u64,
    /// A stream reads Sparkplug.
    pub sparkplug: bool,
}

#[derive(Debug)]
pub(super) struct Binding {
    pub name: String,
    /// The topic filter, captures as `+`.
    filter: String,
    /// Topic level of each capture.
    pub captures: Vec<usize>,
    pub version: Version,
    /// Where fields come from the messages: the version to use instead.
    pub growing: Option<Growing>,
}

/// How payloads become rows, at one time.
#[derive(Debug)]
pub(super) struct Version {
    pub schema: SchemaRef,
    pub plan: StreamPlan,
}

/// The newest version of a stream whose fields are inferred.
#[derive(Debug)]
pub(super) struct Growing {
    /// Counts versions, so that a thread sees in one load whether its own is the newest.
    number: AtomicU32,
    newest: Mutex<(StreamSpec, Held)>,
}

/// A version that a thread holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    number: u32,
    version: Arc<Version>,
}

impl Growing {
    fn new(spec: &StreamSpec, first: &Version) -> Result<Growing, String> {
        let version =
            Version { plan: StreamPlan::new(spec, first.schema.clone())?, schema: first.schema.clone() };
        let held = Held { number: 1, version: Arc::new(version) };
        Ok(Growing { number: AtomicU32::new(1), newest: Mutex::new((spec.clone(), held)) })
    }

    fn publish(&self, spec: &StreamSpec, last: &mut Held, schema: SchemaRef) -> Result<(), LogError> {
        let plan = StreamPlan::new(spec, schema.clone()).map_err(LogError::Invalid)?;
        *last = Held { number: last.number + 1, version: Arc::new(Version { schema, plan }) };
        self.number.store(last.number, Ordering::Release);
        Ok(())
    }
}

impl Binding {
    fn new(StreamBinding { spec, schema }: StreamBinding) -> Result<Binding, String> {
        let name = spec.name.clone();
        let parsed = StreamTopic::parse(&spec.topic).map_err(|why| format!("stream {name:?}: {why}"))?;
        if parsed.captures.len() > MAX_CAPTURES {
            return Err(format!("stream {name:?} captures more than {MAX_CAPTURES} levels of its topic"));
        }
        let version = Version { plan: StreamPlan::new(&spec, schema.clone())?, schema };
        let growing = spec.infer.then(|| Growing::new(&spec, &version)).transpose()?;
        let captures = parsed.captures.iter().map(|(_, level)| *level).collect();
        Ok(Binding { name, filter: parsed.filter, captures, version, growing })
    }

    /// The version to decode with; `held`, the thread's own, is brought up to date where there are several.
    #[inline]
    pub fn newest<'a>(&'a self, held: Option<&'a mut Option<Held>>) -> &'a Version {
        let (Some(growing), Some(held)) = (&self.growing, held) else { return &self.version };
        let number = growing.number.load(Ordering::Acquire);
        if held.as_ref().is_some_and(|held| held.number != number) {
            *held = None;
        }
        &held.get_or_insert_with(|| growing.newest.lock().1.clone()).version
    }

    /// Gives the stream columns for the fields that a payload has shown; durable, and the newest version, when this
    /// returns. Another thread may have been faster: then there is nothing to do but to decode again.
    ///
    /// This waits for the disk, once for each new set of fields: a stream has at most `MAX_INFERRED` in its life.
    #[cold]
    pub fn grow(&self, log: &Log, held: Option<&Option<Held>>, decoded: &Decoded) -> Result<(), LogError> {
        let Some(growing) = &self.growing else { return Ok(()) };
        let mut newest = growing.newest.lock();
        let (spec, last) = &mut *newest;
        if held.and_then(Option::as_ref).is_some_and(|held| held.number != last.number) {
            return Ok(());
        }
        // HTTP ingest adds fields, too.
        let (known, latest) = log.inferred(last.version.schema.stream)?;
        if known.len() > spec.fields.len() {
            let field = |InferredField { name, ty, path }| FieldSpec { name, ty, path };
            spec.fields = known.into_iter().map(field).collect();
            return growing.publish(spec, last, latest);
        }
        let new = last.version.plan.columns_for(decoded, &spec.fields);
        let fields = new.iter().map(|field| InferredField {
            name: field.name.clone(),
            ty: field.ty,
            path: field.path.clone(),
        });
        let schema = log.infer(&last.version.schema, &fields.collect::<Vec<_>>())?;
        spec.fields.extend(new);
        growing.publish(spec, last, schema)
    }
}

impl Bindings {
    /// Errors: a sentence for the author of the configuration.
    pub fn new(streams: Vec<StreamBinding>, raw_filters: &[String], seed: u64) -> Result<Bindings, String> {
        let mut raw = Trie::new(seed.rotate_left(32));
        for filter in raw_filters {
            if !topic::is_filter(filter) || topic::is_shared(filter) {
                return Err(format!("raw filter {filter:?} is no topic filter"));
            }
            raw.insert(filter, 0).map_err(|why| format!("raw filter {filter:?}: {why}"))?;
        }
        Bindings::of(bound(streams)?, Arc::new(raw), seed)
    }

    /// These streams, those of `added` in place of their namesakes, without those of `removed`. What does not change
    /// keeps its state. Errors: as `new`.
    pub fn changed(&self, added: Vec<StreamBinding>, removed: &[String]) -> Result<Bindings, String> {
        let added = bound(added)?;
        let kept = self
            .streams
            .iter()
            .filter(|known| !removed.contains(&known.name) && added.iter().all(|new| new.name != known.name));
        let streams = kept.chain(&added).cloned().collect();
        Bindings::of(streams, Arc::clone(&self.raw), self.seed)
    }

    fn of(streams: Vec<Arc<Binding>>, raw: Arc<Trie<u16>>, seed: u64) -> Result<Bindings, String> {
        let mut topics = Trie::new(seed);
        let mut few = Some(Vec::new());
        for (at, binding) in streams.iter().enumerate() {
            let index = u16::try_from(at).map_err(|_| "more than 65,536 streams".to_owned())?;
            let Binding { name, filter, .. } = &**binding;
            topics.insert(filter, index).map_err(|why| format!("stream {name:?}: {why} in {filter:?}"))?;
            few = few.take().and_then(|mut few: Vec<_>| {
                few.push(plain_levels(filter)?);
                (few.len() <= MAX_FEW).then_some(few)
            });
        }
        let sparkplug = streams.iter().any(|binding| binding.version.plan.is_sparkplug());
        Ok(Bindings { streams, topics, few, raw, seed, sparkplug })
    }

    #[inline]
    pub fn streams_of(&self, topic: &str, levels: &Levels<'_>, into: &mut Vec<u16>) {
        into.clear();
        let Some(few) = &self.few else {
            self.topics.matches(topic, |index| into.push(*index));
            return;
        };
        // Section 4.7.2: a wildcard in the first place does not reach topics of the server.
        let hidden = topic.starts_with('$');
        for (index, filter) in few.iter().enumerate() {
            let fits = Some(filter.len()) == levels.count()
                && !(hidden && filter[0].is_none())
                && filter.iter().enumerate().all(|(at, wanted)| {
                    wanted.as_ref().is_none_or(|wanted| short::equal(wanted, levels.get(at)))
                });
            if fits {
                into.push(index as u16);
            }
        }
    }

    #[inline]
    pub fn is_raw(&self, topic: &str) -> bool {
        self.raw.matches(topic, |_| ()) > 0
    }
}

fn bound(streams: Vec<StreamBinding>) -> Result<Vec<Arc<Binding>>, String> {
    streams.into_iter().map(|stream| Binding::new(stream).map(Arc::new)).collect()
}

/// The levels of a filter that can be compared with a topic level by level.
fn plain_levels(filter: &str) -> Option<Box<[Level]>> {
    let levels: Vec<&str> = filter.split('/').collect();
    let plain = levels.len() <= KEPT && !levels.contains(&"#");
    plain.then(|| levels.iter().map(|level| (*level != "+").then(|| level.as_bytes().into())).collect())
}

/// The levels at the positions `wanted`.
#[inline]
pub(super) fn capture<'a>(levels: &Levels<'a>, wanted: &[usize]) -> [&'a [u8]; MAX_CAPTURES] {
    let mut captured: [&[u8]; MAX_CAPTURES] = [&[]; MAX_CAPTURES];
    for (place, at) in captured.iter_mut().zip(wanted) {
        *place = levels.get(*at);
    }
    captured
}

fn reserved(id: u32, stream: StreamId, name: &str, columns: &[(&str, ColumnType)]) -> Schema {
    let columns =
        columns.iter().map(|(name, ty)| Column { name: (*name).to_owned(), ty: *ty }).collect::<Vec<_>>();
    let ts = columns.iter().position(|column| column.name == "ts");
    Schema { id: SchemaId(id), stream, name: name.to_owned(), columns, key: None, ts }
}

/// `_raw`: messages as they came. Its first version, schema 1, had no properties.
pub fn raw_schema() -> Schema {
    use ColumnType::*;
    let columns = [
        ("ts", Timestamp),
        ("topic", String),
        ("client", String),
        ("qos", Bigint),
        ("retain", Boolean),
        ("payload", Binary),
        ("request", String),
        ("properties", Binary),
    ];
    reserved(6, RAW, "_raw", &columns)
}

/// `dead_letters`: payloads that could not be decoded.
pub fn dead_letters_schema() -> Schema {
    use ColumnType::*;
    let columns = [
        ("ts", Timestamp),
        ("stream", String),
        ("topic", String),
        ("client", String),
        ("reason", String),
        ("detail", String),
        ("payload", Binary),
    ];
    reserved(2, DEAD_LETTERS, "dead_letters", &columns)
}

/// `_downlink`: messages for devices.
pub fn downlink_schema() -> Schema {
    use ColumnType::*;
    let columns =
        [("ts", Timestamp), ("topic", String), ("payload", Binary), ("qos", Bigint), ("retain", Boolean)];
    reserved(3, DOWNLINK, "_downlink", &columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{FieldSpec, Format};
    use crate::schema::{SchemaId, StreamId};
    use proptest::prelude::*;

    fn bindings(topics: &[String]) -> Bindings {
        let streams = topics.iter().enumerate().map(|(at, topic)| {
            let spec = StreamSpec {
                name: format!("s{at}"),
                topic: topic.clone(),
                format: Format::Json,
                time: None,
                fields: vec![FieldSpec { name: "v".into(), ty: ColumnType::Double, path: "v".into() }],
                infer: false,
                protobuf: None,
                captures: vec![],
            };
            let columns = [
                ("ts", ColumnType::Timestamp),
                ("received_at", ColumnType::Timestamp),
                ("v", ColumnType::Double),
            ];
            let columns = columns.iter().map(|(name, ty)| Column { name: (*name).into(), ty: *ty }).collect();
            let id = at as u32 + 16;
            let schema = Schema::new(SchemaId(id), StreamId(id as u16), &spec.name, columns, None).unwrap();
            StreamBinding { spec, schema: SchemaRef::new(schema) }
        });
        Bindings::new(streams.collect(), &[], 7).unwrap()
    }

    proptest! {
        #[test]
        fn few_filters_match_as_many_do(
            filters in prop::collection::vec("(\\+|a|b|\\$x)(/(\\+|a|b|)){0,3}(/#)?", 1..7),
            topic in "(a|b|\\$x)(/(a|b|c|)){0,4}",
        ) {
            let mut found = Vec::new();
            bindings(&filters).streams_of(&topic, &Levels::new(&topic), &mut found);
            found.sort_unstable();
            let wanted: Vec<u16> = (0..filters.len() as u16)
                .filter(|at| topic::matches(&filters[usize::from(*at)], &topic))
                .collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn captures_take_their_levels() {
        let captured = capture(&Levels::new("dt/demo/d1/telemetry"), &[1, 2]);
        assert_eq!(captured[..3], [&b"demo"[..], b"d1", b""]);
        assert_eq!(capture(&Levels::new("dt//d1"), &[1, 2])[..2], [&b""[..], b"d1"]);
        assert_eq!(capture(&Levels::new("dt"), &[0])[0], b"dt");
        assert_eq!(capture(&Levels::new("dt/x"), &[])[0], b"");
    }
}
