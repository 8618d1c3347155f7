//! Rows that a device sends again are stored once: the idempotent key of a stream, within a window, before all readers.
//!
//! A key is a 128-bit keyed hash of the row's values in the declared columns, so nobody can make two readings collide, and by
//! chance it does not happen. It counts from the row's arrival for the length of the window. Two generations of keys,
//! each as long as the window, make expiry free of charge; the arrival beside each key makes it exact.
//!
//! A key enters the table when its row is submitted, not when it is durable. That is right because submissions are answered
//! in their order: a duplicate's answer comes after its original's. So that an original is also queued before its
//! duplicates, submissions that enter keys are queued one after the other. When a commit fails, the keys of its rows leave the
//! table, and submissions that had left out a row for one of them fail too, so nobody is told that a lost row is stored.
//! The table is memory only: opening fills it from the rows that the log still holds, and the log keeps rows for a window.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType, UInt16Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parking_lot::{Mutex, MutexGuard, RwLock};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::LogError;
use crate::rows::{Cell, Rows, Values};
use crate::schema::{Offset, Partition, Schema, SchemaId, SchemaRef, StreamId};

/// What a stream declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupeOptions {
    /// Columns whose values together name a reading. One must be the stream's key, so that a reading and its
    /// duplicate meet in one partition.
    pub columns: Vec<String>,
    /// How long after its arrival a reading's duplicates are left out, µs.
    pub window_us: i64,
    /// Most keys of the stream in memory, about 60 bytes each. Above it the older generation goes early.
    pub max_keys: usize,
}

/// Hashes are random already.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(bytes) = bytes.last_chunk::<8>() {
            self.0 = u64::from_le_bytes(*bytes);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// 128 bits without the alignment of a u128, which would waste a quarter of each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u64; 2]);

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

type Generation = HashMap<Key, i64, BuildHasherDefault<AsIs>>;

/// Keys of one stream and partition.
#[derive(Default)]
pub struct Seen {
    current: Generation,
    previous: Generation,
    /// When `current` began, µs.
    since_us: i64,
    /// Keys that went before their window was over, because of the bound.
    pub evicted: u64,
}

/// What a submission did to the tables: to be taken back if its rows do not become durable.
#[derive(Debug, Default)]
pub struct Entered {
    keys: Vec<(StreamId, Partition, Key)>,
    /// Rows left out, by stream: their originals are durable, or on their way before this submission.
    left_out: Vec<(StreamId, u64)>,
}

impl Entered {
    /// Whether the submission counts on others' rows.
    pub fn relies_on_others(&self) -> bool {
        !self.left_out.is_empty()
    }
}

/// A part without its duplicates.
pub struct Remainder {
    pub rows: Rows,
    /// Where each row stood in the part.
    places: Vec<u32>,
}

/// By index of part.
pub type Remainders = HashMap<usize, Remainder>;

impl Remainder {
    fn new(rows: &Rows, duplicates: &[u32]) -> Remainder {
        let mut this = Remainder { rows: Rows::new(rows.schema.clone()), places: Vec::new() };
        let mut next = duplicates.iter().copied().peekable();
        for row in 0..rows.len() {
            // Rows of one schema fit each other.
            if next.next_if_eq(&(row as u32)).is_none() && this.rows.push(rows.cells(row)).is_ok() {
                this.places.push(row as u32);
            }
        }
        this
    }

    /// An error that names rows of the remainder, in terms of the part.
    pub fn named(&self, part: usize, error: LogError) -> LogError {
        let LogError::KeyRefused { partition, mut refused, why } = error else { return error };
        for (_, row) in refused.iter_mut().filter(|(index, _)| *index == part) {
            *row = self.places.get(*row as usize).copied().unwrap_or(*row);
        }
        LogError::KeyRefused { partition, refused, why }
    }
}

/// One stream's keys.
pub struct Dedupe {
    options: DedupeOptions,
    seed: u64,
    /// By schema, since columns may come to stand elsewhere.
    places: Mutex<HashMap<SchemaId, Arc<Place>>>,
    /// By partition.
    seen: Vec<Mutex<Seen>>,
    duplicates: AtomicU64,
}

/// Figures of one stream, since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DedupeStats {
    pub duplicates: u64,
    pub keys: u64,
    /// Keys that went before their window was over, because of `max_keys`.
    pub evicted: u64,
}

/// All streams that declare it.
#[derive(Default)]
pub struct Deduping {
    streams: RwLock<HashMap<StreamId, Arc<Dedupe>>>,
    /// Counts failed commits: a submission that left out rows before one has to look again.
    failures: AtomicU64,
    /// Held from entering a submission's keys until it is queued, or has been refused and its keys are gone.
    order: Mutex<()>,
    /// The longest window, µs: so long the log keeps its rows.
    pub keep_us: AtomicI64,
}

impl Deduping {
    /// To be held while a submission enters its keys and is queued; none if none of its streams declares dedupe.
    pub fn in_order(&self, parts: &[(Partition, &Rows)]) -> Option<MutexGuard<'_, ()>> {
        let enters = {
            let streams = self.streams.read();
            !streams.is_empty() && parts.iter().any(|(_, rows)| streams.contains_key(&rows.schema.stream))
        };
        enters.then(|| self.order.lock())
    }

    /// Changes when keys that somebody may have counted on have left the tables.
    pub fn fence(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// To be called with the queue locked.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::AcqRel);
    }

    /// Enters the rows' keys. Gives what is left of the parts that held duplicates (by index), and what was entered.
    ///
    /// On an error nothing has been entered.
    pub fn admit(&self, parts: &[(Partition, &Rows)]) -> Result<(Remainders, Entered), LogError> {
        let (mut kept, mut entered) = (Remainders::new(), Entered::default());
        let streams = self.streams.read();
        if streams.is_empty() {
            return Ok((kept, entered));
        }
        for (index, (partition, rows)) in parts.iter().enumerate() {
            let Some(dedupe) = streams.get(&rows.schema.stream) else { continue };
            let place = dedupe.place(&rows.schema);
            let Ok(place) = place else {
                drop(streams);
                self.take_back(&entered);
                return Err(place.err().unwrap_or(LogError::Closed));
            };
            let duplicates = dedupe.admit(*partition, rows, &place, &mut entered);
            if duplicates.is_empty() {
                continue;
            }
            entered.left_out.push((rows.schema.stream, duplicates.len() as u64));
            kept.insert(index, Remainder::new(rows, &duplicates));
        }
        Ok((kept, entered))
    }

    /// The rows are durable: what was left out counts.
    pub fn settle(&self, entered: &Entered) {
        let streams = self.streams.read();
        for (stream, rows) in &entered.left_out {
            if let Some(dedupe) = streams.get(stream) {
                dedupe.duplicates.fetch_add(*rows, Ordering::Relaxed);
            }
        }
    }

    /// The rows are not durable: their keys go.
    pub fn take_back(&self, entered: &Entered) {
        let streams = self.streams.read();
        for (stream, partition, key) in &entered.keys {
            if let Some(seen) =
                streams.get(stream).and_then(|dedupe| dedupe.seen.get(usize::from(partition.0)))
            {
                seen.lock().forget(key);
            }
        }
    }
}

impl Dedupe {
    fn place(&self, schema: &Schema) -> Result<Arc<Place>, LogError> {
        if let Some(place) = self.places.lock().get(&schema.id) {
            return Ok(place.clone());
        }
        let place = Arc::new(Place::new(&self.options, schema).map_err(LogError::Invalid)?);
        self.places.lock().insert(schema.id, place.clone());
        Ok(place)
    }

    /// Enters the keys of all rows; the rows that are duplicates, ascending.
    fn admit(&self, partition: Partition, rows: &Rows, place: &Place, entered: &mut Entered) -> Vec<u32> {
        let (mut duplicates, mut scratch) = (Vec::new(), Vec::new());
        let Some(seen) = self.seen.get(usize::from(partition.0)) else { return duplicates };
        let most = self.options.max_keys.div_ceil(self.seen.len().max(1));
        // Hashed before the lock is taken: others wait for the table only while it is looked at.
        let keys: Vec<(Key, i64)> =
            (0..rows.len()).map(|row| place.key(rows, row, self.seed, &mut scratch)).collect();
        let mut seen = seen.lock();
        entered.keys.reserve(rows.len());
        for (row, (key, arrived)) in keys.into_iter().enumerate() {
            if seen.enter(key, arrived, self.options.window_us, most) {
                entered.keys.push((rows.schema.stream, partition, key));
            } else {
                duplicates.push(row as u32);
            }
        }
        duplicates
    }
}

impl super::Log {
    /// From now on rows of the schema's stream that repeat an earlier one within the window are left out, by whatever way
    /// they come. Fills the table from the rows of that window which the log holds, so it is to be called before any is
    /// written. `options.max_keys` bounds what is kept and read.
    ///
    /// Errors: `Invalid`, a sentence for the author of the configuration; those of reading.
    pub fn dedupe(&self, schema: &SchemaRef, options: DedupeOptions, now_us: i64) -> Result<(), LogError> {
        let shared = self.shared();
        let mut columns = options.columns.clone();
        Place::new(&options, schema).map_err(LogError::Invalid)?;
        let (window_us, stream) = (options.window_us, schema.stream);
        let partitions = usize::from(self.partitions());
        let dedupe = Dedupe {
            seed: shared.meta.seed,
            places: Mutex::default(),
            seen: (0..partitions).map(|_| Mutex::default()).collect(),
            duplicates: AtomicU64::new(0),
            options,
        };
        columns.push("received_at".to_owned());
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut reader =
            self.reader(stream, &self.offsets_since(stream, now_us.saturating_sub(window_us)))?;
        reader.project(&columns)?;
        while let Some(batch) = reader.read(1 << 16)? {
            dedupe.fill(&batch, schema, now_us)?;
        }
        shared.deduping.keep_us.fetch_max(window_us, Ordering::Relaxed);
        shared.deduping.streams.write().insert(stream, Arc::new(dedupe));
        Ok(())
    }

    /// From now on rows of this stream are stored however often they come.
    pub fn dedupe_end(&self, stream: StreamId) {
        self.shared().deduping.streams.write().remove(&stream);
    }

    /// Where segments begin that may hold rows from that time on.
    fn offsets_since(&self, stream: StreamId, since_us: i64) -> Vec<Offset> {
        let published = self.shared().published.lock();
        let segments = published.segments.iter().zip(published.segments.iter().skip(1));
        let old = segments.take_while(|(_, next)| next.created_us < since_us).count();
        match published.segments.get(old) {
            Some(segment) => segment.first().ends.of(stream, self.partitions()),
            None => published.ends.of(stream, self.partitions()),
        }
    }

    /// Figures of each stream that declares it.
    pub fn dedupe_stats(&self, stream: StreamId) -> DedupeStats {
        let streams = self.shared().deduping.streams.read();
        let Some(dedupe) = streams.get(&stream) else { return DedupeStats::default() };
        let mut stats =
            DedupeStats { duplicates: dedupe.duplicates.load(Ordering::Relaxed), ..DedupeStats::default() };
        for seen in &dedupe.seen {
            let seen = seen.lock();
            stats.keys += seen.len() as u64;
            stats.evicted += seen.evicted;
        }
        stats
    }
}

impl Dedupe {
    /// Enters the rows of a batch that the log held.
    fn fill(&self, batch: &RecordBatch, schema: &SchemaRef, now_us: i64) -> Result<(), LogError> {
        let rows = rows_of(batch, schema)?;
        let place = self.place(schema)?;
        let most = self.options.max_keys.div_ceil(self.seen.len().max(1));
        let partitions =
            batch.column_by_name("_partition").and_then(|column| column.as_primitive_opt::<UInt16Type>());
        let Some(partitions) = partitions else {
            return Err(LogError::Invalid("a batch without _partition".into()));
        };
        let mut scratch = Vec::new();
        for row in 0..rows.len() {
            let (key, arrived) = place.key(&rows, row, self.seed, &mut scratch);
            let seen = self.seen.get(usize::from(partitions.value(row)));
            if let Some(seen) = seen.filter(|_| now_us.saturating_sub(arrived) <= self.options.window_us) {
                seen.lock().enter(key, arrived, self.options.window_us, most);
            }
        }
        Ok(())
    }
}

/// The batch as rows of the schema; columns that it lacks are NULL.
fn rows_of(batch: &RecordBatch, schema: &SchemaRef) -> Result<Rows, LogError> {
    let columns: Vec<Option<&ArrayRef>> =
        schema.columns.iter().map(|column| batch.column_by_name(&column.name)).collect();
    let mut rows = Rows::new(schema.clone());
    for row in 0..batch.num_rows() {
        let cells = columns.iter().map(|column| column.map_or(Cell::Null, |column| cell(column, row)));
        rows.push(cells).map_err(|error| LogError::Invalid(error.to_string()))?;
    }
    Ok(rows)
}

fn cell(column: &ArrayRef, row: usize) -> Cell<'_> {
    if column.is_null(row) {
        return Cell::Null;
    }
    match column.data_type() {
        DataType::Float64 => Cell::Double(column.as_primitive::<Float64Type>().value(row)),
        DataType::Int64 => Cell::Bigint(column.as_primitive::<Int64Type>().value(row)),
        DataType::Boolean => Cell::Boolean(column.as_boolean().value(row)),
        DataType::Utf8 => Cell::Bytes(column.as_string::<i32>().value(row).as_bytes()),
        DataType::Binary => Cell::Bytes(column.as_binary::<i32>().value(row)),
        DataType::Timestamp(..) => {
            Cell::Timestamp(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        _ => Cell::Null,
    }
}

impl Seen {
    /// Enters the key; false if it is there already, from at most a window before `arrived_us`.
    ///
    /// most: keys of one partition
    pub fn enter(&mut self, key: Key, arrived_us: i64, window_us: i64, most: usize) -> bool {
        let full = self.current.len() >= most.div_ceil(2);
        if full || arrived_us.saturating_sub(self.since_us) >= window_us {
            self.turn(arrived_us, window_us, full);
        }
        let is_new =
            |seen: Option<&i64>| seen.is_none_or(|seen| arrived_us.saturating_sub(*seen) > window_us);
        if !is_new(self.current.get(&key)) || !is_new(self.previous.get(&key)) {
            return false;
        }
        self.current.insert(key, arrived_us);
        true
    }

    /// Begins a generation.
    fn turn(&mut self, now_us: i64, window_us: i64, full: bool) {
        let alive = |seen: &&i64| now_us.saturating_sub(**seen) <= window_us;
        if full {
            self.evicted += self.previous.values().filter(alive).count() as u64;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        self.since_us = now_us;
    }

    pub fn forget(&mut self, key: &Key) {
        if self.current.remove(key).is_none() {
            self.previous.remove(key);
        }
    }

    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }
}

/// Positions of the columns in a schema, and where the arrival stands.
#[derive(Clone, Debug)]
pub struct Place {
    columns: Vec<usize>,
    arrived: usize,
}

impl Place {
    /// Errors: a sentence for the author of the configuration.
    pub fn new(options: &DedupeOptions, schema: &Schema) -> Result<Place, String> {
        let find = |name: &str| schema.columns.iter().position(|column| column.name == name);
        let mut columns = Vec::new();
        for name in &options.columns {
            let at = find(name).ok_or_else(|| {
                format!("dedupe of stream {:?} names {name:?}, which is no column of it", schema.name)
            })?;
            columns.push(at);
        }
        if schema.key.is_some_and(|key| !columns.contains(&key)) {
            let key = schema.key.map_or("", |key| &schema.columns[key].name);
            return Err(format!(
                "dedupe of stream {:?} must name its key {key:?}: duplicates meet in the key's partition",
                schema.name
            ));
        }
        let arrived = find("received_at").ok_or_else(|| {
            format!("stream {:?} has no received_at, from which dedupe counts", schema.name)
        })?;
        Ok(Place { columns, arrived })
    }

    /// The row's key, and its arrival.
    ///
    /// scratch: emptied; keeps its memory from row to row
    #[inline]
    pub fn key(&self, rows: &Rows, row: usize, seed: u64, scratch: &mut Vec<u8>) -> (Key, i64) {
        scratch.clear();
        for &at in &self.columns {
            let Some(column) = rows.columns.get(at) else { continue };
            // A NULL is a value like others: readings without a time are told apart by the other columns.
            if !column.is_valid(row) {
                scratch.push(0);
                continue;
            }
            match &column.values {
                Values::Double(values) => {
                    scratch.push(1);
                    scratch.extend_from_slice(&values[row].to_bits().to_le_bytes());
                }
                Values::Int(values) => {
                    scratch.push(2);
                    scratch.extend_from_slice(&values[row].to_le_bytes());
                }
                Values::Boolean(values) => scratch.extend_from_slice(&[3, u8::from(values[row])]),
                Values::Bytes { .. } => {
                    let bytes = column.bytes(row);
                    // The length, so that ("ab", "c") is not ("a", "bc").
                    scratch.push(4);
                    scratch.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                    scratch.extend_from_slice(bytes);
                }
            }
        }
        let digest = xxh3_128_with_seed(scratch, seed);
        let arrived = match rows.columns.get(self.arrived).map(|column| &column.values) {
            Some(Values::Int(values)) => values.get(row).copied().unwrap_or(0),
            _ => 0,
        };
        (Key([digest as u64, (digest >> 64) as u64]), arrived)
    }
}
