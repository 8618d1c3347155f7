//! A reader: rows of one stream, all partitions, in the order in which they were written.
//!
//! It keeps its own place, so reading on at the end of the log costs one lock and no rescan, and it
//! sees only what a sync has covered. Blocks are checked and decoded straight into Arrow columns.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt16Array, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema as ArrowSchema};

use super::block::{Block, BlockKind};
use super::columns::{ColumnBuilder, View, arrow_type};
use super::error::LogError;
use super::schemas::RESERVED_COLUMNS;
use super::segment::Segment;
use super::shared::Shared;
use super::varint::{Cursor, Malformed};
use super::window::Window;
use crate::schema::{Offset, Partition, Schema, SchemaRef, StreamId};

/// A batch is closed when its strings and binaries take this much, whatever `max_rows` says.
const BATCH_DATA_BYTES: usize = 64 << 20;

pub struct Reader {
    shared: Arc<Shared>,
    stream: StreamId,
    /// Next offset per partition.
    next: Vec<u64>,
    window: Window,
    /// The commit to be read next, in the window's segment.
    at: u64,
    /// Names asked for by `project`; `None`: all columns.
    projection: Option<Vec<String>>,
    blocks: Vec<Block>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, stream: StreamId, offsets: &[Offset]) -> Result<Reader, LogError> {
        shared.schemas.read().latest(stream)?;
        let partitions = shared.meta.partitions;
        if offsets.len() != usize::from(partitions) {
            let what = format!(
                "a reader needs one offset for each of {partitions} partitions, {} given",
                offsets.len()
            );
            return Err(LogError::Invalid(what));
        }
        let next: Vec<u64> = offsets.iter().map(|offset| offset.0).collect();
        let (segment, at) = {
            let published = shared.published.lock();
            let ends = published.ends.of(stream, partitions);
            let starts = published.starts(stream, partitions);
            for (at, (wanted, (start, end))) in next.iter().zip(starts.iter().zip(&ends)).enumerate() {
                let partition = Partition(at as u16);
                if *wanted < start.0 {
                    return Err(LogError::Trimmed { stream, partition, wanted: *wanted, start: start.0 });
                }
                if *wanted > end.0 {
                    return Err(LogError::Invalid(format!(
                        "offset {wanted} of stream {}, partition {at} is beyond the log's end {}",
                        stream.0, end.0
                    )));
                }
            }
            let newest_first = || published.segments.iter().rev();
            match newest_first().next() {
                Some(last) if published.ends.at_or_before(stream, &next) => (last.clone(), last.end()),
                _ => {
                    let found = newest_first()
                        .find_map(|segment| Some((segment.clone(), segment.seek(stream, &next)?)));
                    let (segment, mark) = found.ok_or(LogError::Closed)?;
                    (segment, mark.byte)
                }
            }
        };
        let window = Window::new(segment);
        Ok(Reader { shared, stream, next, window, at, projection: None, blocks: Vec::new() })
    }

    /// Decode only these columns (and `_key`, `_partition`, `_offset`), in the schema's order.
    pub fn project(&mut self, columns: &[&str]) -> Result<(), LogError> {
        let latest = self.shared.schemas.read().latest(self.stream)?.clone();
        for name in columns {
            if !latest.columns.iter().any(|column| column.name == *name) {
                return Err(LogError::Invalid(format!("stream {:?} has no column {name:?}", latest.name)));
            }
        }
        self.projection = Some(columns.iter().map(|name| (*name).to_owned()).collect());
        Ok(())
    }

    /// Next offset per partition after what was read.
    pub fn offsets(&self) -> Vec<Offset> {
        self.next.iter().copied().map(Offset).collect()
    }

    /// Up to `max_rows` rows; `None`: nothing new. Columns of the stream's latest schema (NULL where an
    /// older one did not have them), then `_key` uint32, `_partition` uint16, `_offset` uint64.
    ///
    /// Damaged rows are an error that names segment, byte and offsets, again on every call; rows before
    /// them are given first. After any error `offsets` is what it was before the call.
    pub fn read(&mut self, max_rows: usize) -> Result<Option<RecordBatch>, LogError> {
        if self.skip() {
            return Ok(None);
        }
        let schema = self.shared.schemas.read().latest(self.stream)?.clone();
        let mut batch = Batch::new(schema, self.projection.as_deref(), max_rows.min(1 << 16));
        let before = (self.next.clone(), self.at, self.window.segment().clone());
        let result = self.fill(&mut batch, max_rows).and_then(|()| batch.finish());
        if result.is_err() {
            self.next = before.0;
            self.at = before.1;
            if !Arc::ptr_eq(&before.2, self.window.segment()) {
                self.window = Window::new(before.2);
            }
        }
        result
    }

    fn fill(&mut self, batch: &mut Batch, max_rows: usize) -> Result<(), LogError> {
        loop {
            let (end, following) = self.published();
            while self.at < end {
                if batch.is_full(max_rows) {
                    return Ok(());
                }
                match self.take_commit(batch, max_rows, end) {
                    Ok(Some(bytes)) => self.at += bytes,
                    Ok(None) => return Ok(()),
                    // What came before is good; the next call meets the damage first.
                    Err(LogError::Corrupt { .. }) if batch.rows() > 0 && batch.is_sound => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            let Some(following) = following else { return Ok(()) };
            match self.follow(following) {
                // What came before is good; the next call begins with the gap.
                Err(_) if batch.rows() > 0 => return Ok(()),
                result => result?,
            }
        }
    }

    /// Whether there is no row to be read; then commits of other streams are passed over without a look at them.
    fn skip(&mut self) -> bool {
        let published = self.shared.published.lock();
        let Some(last) = published.segments.back() else { return false };
        if !published.ends.at_or_before(self.stream, &self.next) {
            return false;
        }
        self.at = last.end();
        if last.number != self.window.segment().number {
            self.window = Window::new(last.clone());
        }
        true
    }

    /// How far this segment may be read, and the one listed after it.
    fn published(&self) -> (u64, Option<Arc<Segment>>) {
        let published = self.shared.published.lock();
        let current = self.window.segment();
        let following = published.segments.iter().find(|segment| segment.number > current.number);
        (current.end(), following.cloned())
    }

    /// Goes to the next listed segment. A reader that holds nothing may find that the ones between are
    /// gone (its own stayed readable as long as it was in it).
    fn follow(&mut self, following: Arc<Segment>) -> Result<(), LogError> {
        let first = following.first();
        for (at, wanted) in self.next.iter().copied().enumerate() {
            let partition = Partition(at as u16);
            let start = first.ends.get(self.stream, partition).0;
            if wanted < start {
                return Err(LogError::Trimmed { stream: self.stream, partition, wanted, start });
            }
        }
        self.at = first.byte;
        self.window = Window::new(following);
        Ok(())
    }

    /// Takes this stream's rows from the commit at `self.at`; its length, or `None` if rows are left.
    fn take_commit(&mut self, batch: &mut Batch, max_rows: usize, end: u64) -> Result<Option<u64>, LogError> {
        let name = self.window.segment().name.clone();
        let mut blocks = std::mem::take(&mut self.blocks);
        let commit = self.window.commit(self.at, end, &mut blocks);
        self.blocks = blocks;
        let commit = commit?.map_err(|why| {
            let wanted =
                format!("{why}; stream {} was to be read from offsets {:?}", self.stream.0, self.next);
            LogError::corrupt(&name, self.at, wanted)
        })?;
        let mut body_at = self.at + commit.head_bytes() as u64;
        for index in 0..self.blocks.len() {
            let block = self.blocks[index];
            if block.kind == BlockKind::Rows && block.stream == self.stream {
                if batch.is_full(max_rows) {
                    return Ok(None);
                }
                if !self.take_block(batch, max_rows, &block, body_at, end)? {
                    return Ok(None);
                }
            }
            body_at += u64::from(block.body_bytes);
        }
        Ok(Some(commit.bytes.into()))
    }

    /// False if the batch is full before the block is read to its end.
    fn take_block(
        &mut self,
        batch: &mut Batch,
        max_rows: usize,
        block: &Block,
        body_at: u64,
        end: u64,
    ) -> Result<bool, LogError> {
        let name = self.window.segment().name.clone();
        let corrupt = |what: String| LogError::corrupt(&name, body_at, what);
        let partition = block.partition;
        let Some(next) = self.next.get_mut(usize::from(partition.0)) else {
            return Err(corrupt(format!("a block names partition {}, there are fewer", partition.0)));
        };
        let after = block.base.0 + u64::from(block.rows);
        if after <= *next {
            return Ok(true);
        }
        if block.base.0 > *next {
            let what = format!(
                "offsets {next}..{} of stream {}, partition {} are missing",
                block.base.0, block.stream.0, partition.0
            );
            return Err(corrupt(what));
        }
        let schema = self.shared.schemas.read().get(block.schema)?.clone();
        let body = self.window.body(body_at, block, end)?.map_err(corrupt)?;
        let from = (*next - block.base.0) as usize;
        let count = (block.rows as usize - from).min(max_rows - batch.rows());
        let appended = batch.append(body, block, &schema, from..from + count, &self.shared);
        appended
            .map_err(|error| corrupt(format!("{error}, in a block of offsets {}..{after}", block.base.0)))?;
        *next += count as u64;
        Ok(*next == after)
    }
}

/// A record batch being filled.
struct Batch {
    schema: SchemaRef,
    /// Index in `schema` of each column, and the column.
    columns: Vec<(usize, ColumnBuilder)>,
    keys: Vec<u32>,
    partitions: Vec<u16>,
    offsets: Vec<u64>,
    /// False while a block is being appended: an error then leaves columns of unequal length.
    is_sound: bool,
}

impl Batch {
    fn new(schema: SchemaRef, projection: Option<&[String]>, rows: usize) -> Batch {
        let wanted = |name: &String| projection.is_none_or(|names| names.contains(name));
        let columns = schema.columns.iter().enumerate().filter(|(_, column)| wanted(&column.name));
        // Most reads at the log's end find little: columns grow with what comes.
        let columns =
            columns.map(|(at, column)| (at, ColumnBuilder::new(column.ty, rows.min(1024)))).collect();
        Batch {
            schema,
            columns,
            keys: Vec::new(),
            partitions: Vec::new(),
            offsets: Vec::new(),
            is_sound: true,
        }
    }

    fn rows(&self) -> usize {
        self.offsets.len()
    }

    fn is_full(&self, max_rows: usize) -> bool {
        self.rows() >= max_rows
            || self.columns.iter().map(|(_, column)| column.data_bytes()).sum::<usize>() >= BATCH_DATA_BYTES
    }

    fn append(
        &mut self,
        body: &[u8],
        block: &Block,
        written: &Schema,
        rows: Range<usize>,
        shared: &Shared,
    ) -> Result<(), Malformed> {
        self.is_sound = false;
        let mut cursor = Cursor::new(body);
        let mut views = Vec::with_capacity(written.columns.len());
        for _ in &written.columns {
            views.push(View::parse(&mut cursor, block.rows as usize)?);
        }
        if !cursor.is_empty() {
            return Err(Malformed("bytes follow the last column"));
        }
        let partitions = u32::from(shared.meta.partitions);
        let dictionary = shared.keys.get(usize::from(block.partition.0));
        let dictionary = dictionary.ok_or(Malformed("there is no such partition"))?.read();
        for (at, to) in &mut self.columns {
            let wanted = &self.schema.columns[*at];
            // Mostly the schema is the same and so is the place.
            let same =
                |index: &usize| written.columns.get(*index).is_some_and(|column| column.name == wanted.name);
            let found = Some(*at).filter(same).or_else(|| (0..written.columns.len()).find(same));
            match found {
                Some(index) => to.append(&views[index], rows.clone(), block.ts_min, &dictionary)?,
                None => to.append_nulls(rows.len()),
            }
        }
        let partition = u32::from(block.partition.0);
        match written.key {
            // The empty key is id 0 of partition 0, where streams without a key lie.
            None => self.keys.resize(self.keys.len() + rows.len(), 0),
            Some(key) => {
                let (to, mut known) = (&mut self.keys, true);
                views[key].each_key_id(rows.clone(), |id| {
                    known &= (0..i64::from(dictionary.len())).contains(&id);
                    to.push((id as u32).wrapping_mul(partitions).wrapping_add(partition));
                })?;
                if !known {
                    return Err(Malformed("a key id is not in the partition's dictionary"));
                }
            }
        }
        drop(dictionary);
        self.partitions.resize(self.partitions.len() + rows.len(), block.partition.0);
        self.offsets.extend(block.base.0 + rows.start as u64..block.base.0 + rows.end as u64);
        self.is_sound = true;
        Ok(())
    }

    fn finish(self) -> Result<Option<RecordBatch>, LogError> {
        if self.offsets.is_empty() {
            return Ok(None);
        }
        let failed = |error| LogError::Invalid(format!("cannot build a record batch: {error}"));
        let mut fields = Vec::with_capacity(self.columns.len() + 3);
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(fields.capacity());
        for (at, column) in self.columns {
            let declared = &self.schema.columns[at];
            fields.push(Field::new(&declared.name, arrow_type(declared.ty), true));
            arrays.push(column.finish().map_err(failed)?);
        }
        let added = RESERVED_COLUMNS.into_iter().zip([DataType::UInt32, DataType::UInt16, DataType::UInt64]);
        fields.extend(added.map(|(name, ty)| Field::new(name, ty, false)));
        arrays.push(Arc::new(UInt32Array::from(self.keys)));
        arrays.push(Arc::new(UInt16Array::from(self.partitions)));
        arrays.push(Arc::new(UInt64Array::from(self.offsets)));
        RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), arrays).map(Some).map_err(failed)
    }
}
