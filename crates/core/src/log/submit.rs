//! The way into the log: rows are checked, encoded on the caller's thread and queued.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Instant;

use super::block::{Block, BlockKind};
use super::dedupe::{Entered, Remainders};
use super::error::LogError;
use super::frame::{Scratch, encode};
use super::keys::MISSING;
use super::shared::{Shared, Submission};
use super::{Done, Log, Receipt};
use crate::rows::{ColumnRows, Rows, Values};
use crate::schema::{ColumnType, Offset, Partition};

/// Most parts of one submission.
const MAX_PARTS: usize = 30_000;
/// Most rows of one part.
const MAX_ROWS: usize = 1 << 24;

#[derive(Default)]
struct Encoder {
    scratch: Scratch,
    key_ids: Vec<u32>,
}

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::default();
}

impl Log {
    /// Queues all parts for one commit: all of them become durable, or none. `done` is called when the
    /// sync has returned or failed; on an error here nothing is queued and `done` is not called.
    ///
    /// Every row's key must belong to the part's partition (`partition_of`); rows of a stream without
    /// key belong to partition 0. Rows are only read. Errors: `Busy` when the queue is full, `KeyRefused`
    /// naming the rows whose keys exceed the bounds, `UnknownSchema`, `TooLarge`, `Invalid`, `Closed`.
    pub fn submit(&self, parts: &[(Partition, &Rows)], done: Done) -> Result<(), LogError> {
        self.enqueue(parts, done, false)?;
        self.begin();
        Ok(())
    }

    /// As `submit`, but the commit thread may go on sleeping until `begin` is called, which the caller owes. So
    /// several threads that submit at about the same time wake it once, for one commit.
    ///
    /// And it waits for space: while the disk is full `done` is not called, and soon the queue is full.
    pub fn queue(&self, parts: &[(Partition, &Rows)], done: Done) -> Result<(), LogError> {
        self.enqueue(parts, done, true)
    }

    fn enqueue(&self, parts: &[(Partition, &Rows)], done: Done, patient: bool) -> Result<(), LogError> {
        let shared = self.shared();
        let bound = shared.options.queue_bytes;
        let queued = shared.pending_bytes.load(Ordering::Relaxed);
        if queued >= bound && !shared.passes(patient) {
            shared.busy.fetch_add(1, Ordering::Relaxed);
            return Err(LogError::Busy { queued, bound });
        }
        let _order = shared.deduping.in_order(parts);
        let fence = shared.deduping.fence();
        let (kept, entered) = shared.deduping.admit(parts)?;
        let queued = self.queue_rest(parts, &kept, entered, done, (fence, patient));
        queued.map_err(|(error, entered)| {
            shared.deduping.take_back(&entered);
            kept.into_iter().fold(error, |error, (part, kept)| kept.named(part, error))
        })
    }

    /// Queues the parts without the duplicates; on an error gives back what has been entered of them.
    fn queue_rest(
        &self,
        parts: &[(Partition, &Rows)],
        kept: &Remainders,
        entered: Entered,
        done: Done,
        (fence, patient): (u64, bool),
    ) -> Result<(), (LogError, Entered)> {
        let shared = self.shared();
        let bound = shared.options.queue_bytes;
        let encoded = ENCODER.with_borrow_mut(|encoder| {
            if kept.is_empty() {
                return encoder.encode(shared, parts);
            }
            let mut rest: Vec<(Partition, &Rows)> = parts.to_vec();
            for (at, part) in rest.iter_mut().enumerate() {
                part.1 = kept.get(&at).map_or(part.1, |kept| &kept.rows);
            }
            encoder.encode(shared, &rest)
        });
        let (blocks, bodies) = match encoded {
            Ok(encoded) => encoded,
            Err(error) => return Err((error, entered)),
        };
        let submission = Submission { blocks, bodies, entered, done, patient, queued_at: Instant::now() };
        let bytes = submission.bytes();
        let most = self.most_bytes();
        if bytes > most {
            return Err((LogError::TooLarge { bytes, bound: most }, submission.entered));
        }
        let mut queue = shared.queue.lock();
        if queue.closing {
            return Err((LogError::Closed, submission.entered));
        }
        let queued = queue.bytes + queue.in_flight;
        // A submission larger than the bound passes alone, else it never would.
        let full = queued > 0 && queued + bytes > bound && !shared.passes(patient);
        // And rows that were left out may have counted on some that are lost: then all is to be looked at again.
        if full || (submission.entered.relies_on_others() && shared.deduping.fence() != fence) {
            shared.busy.fetch_add(1, Ordering::Relaxed);
            return Err((LogError::Busy { queued, bound }, submission.entered));
        }
        let was_full = queue.bytes >= shared.options.commit_bytes;
        queue.submissions.push_back(submission);
        queue.bytes += bytes;
        shared.pending_bytes.store(queued + bytes, Ordering::Relaxed);
        let is_full = queue.bytes >= shared.options.commit_bytes;
        drop(queue);
        if is_full && !was_full {
            shared.work.notify_one();
        }
        Ok(())
    }

    /// Wakes the commit thread if it sleeps although something is queued. While it writes, or waits for the time of
    /// its next commit, it need not be woken.
    pub fn begin(&self) {
        let shared = self.shared();
        let mut queue = shared.queue.lock();
        if queue.idle && !queue.submissions.is_empty() {
            queue.idle = false;
            drop(queue);
            shared.work.notify_one();
        }
    }

    /// The caller has nothing more on its way: if at least `bytes` are queued, their commit begins now and does not
    /// gather any longer.
    pub fn hurry(&self, bytes: usize) {
        let shared = self.shared();
        let mut queue = shared.queue.lock();
        if queue.submissions.is_empty() || queue.bytes < bytes {
            return;
        }
        queue.hurry = true;
        if queue.idle || queue.gathering {
            (queue.idle, queue.gathering) = (false, false);
            drop(queue);
            shared.work.notify_one();
        }
    }

    /// Splits rows by the partition of their keys, submits them and waits until they are durable; also
    /// waits for room in the queue. All rows are in one commit. Not to be called from a `done`.
    pub fn append(&self, rows: &[&Rows]) -> Result<Receipt, LogError> {
        let mut parts: Vec<(Partition, Rows)> = Vec::new();
        for rows in rows {
            self.split(rows, &mut parts)?;
        }
        let parts: Vec<(Partition, &Rows)> =
            parts.iter().map(|(partition, rows)| (*partition, rows)).collect();
        loop {
            let (to, from) = mpsc::sync_channel(1);
            let done = Box::new(move |result| {
                let _ = to.send(result);
            });
            match self.submit(&parts, done) {
                Ok(()) => return from.recv().unwrap_or(Err(LogError::Closed)),
                Err(LogError::Busy { .. }) => {
                    let mut queue = self.shared().queue.lock();
                    // Looked at under the lock, so that a commit in between is not missed.
                    if !queue.closing && queue.bytes + queue.in_flight > 0 && !self.shared().passes(false) {
                        self.shared().room.wait(&mut queue);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn split(&self, rows: &Rows, parts: &mut Vec<(Partition, Rows)>) -> Result<(), LogError> {
        let mut at_partition = vec![usize::MAX; usize::from(self.partitions())];
        for row in 0..rows.len() {
            let partition = self.partition_of(rows.key(row));
            let at = &mut at_partition[usize::from(partition.0)];
            if *at == usize::MAX {
                *at = parts.len();
                parts.push((partition, Rows::new(rows.schema.clone())));
            }
            let part = &mut parts[*at].1;
            part.push(rows.cells(row)).map_err(|error| LogError::Invalid(error.to_string()))?;
        }
        Ok(())
    }
}

impl Shared {
    /// Whether a submission goes past a queue that waits for space: it will be answered at once. There are no more of
    /// these than threads that wait for their answers.
    fn passes(&self, patient: bool) -> bool {
        !patient && self.full.load(Ordering::Relaxed)
    }
}

impl Encoder {
    fn encode(
        &mut self,
        shared: &Shared,
        parts: &[(Partition, &Rows)],
    ) -> Result<(Vec<Block>, Vec<u8>), LogError> {
        if parts.len() > MAX_PARTS {
            return Err(LogError::Invalid(format!(
                "a submission of {} parts exceeds {MAX_PARTS}",
                parts.len()
            )));
        }
        let mut blocks = Vec::with_capacity(parts.len());
        let mut bodies = Vec::with_capacity(parts.iter().map(|(_, rows)| rows.bytes() / 2 + 64).sum());
        let mut refused = Refused::default();
        {
            let schemas = shared.schemas.read();
            for (_, rows) in parts {
                schemas.check(&rows.schema)?;
            }
        }
        for (index, (partition, rows)) in parts.iter().enumerate().filter(|(_, (_, rows))| !rows.is_empty()) {
            check(shared, *partition, rows)?;
            self.key_ids.clear();
            if let Some(key) = rows.schema.key {
                self.find_keys(shared, *partition, &rows.columns[key], rows.len(), index, &mut refused);
            }
            if !refused.rows.is_empty() {
                continue;
            }
            let (ts_min, ts_span) = ts_range(rows);
            let start = bodies.len();
            encode(rows, &self.key_ids, ts_min, &mut bodies, &mut self.scratch);
            let body = &bodies[start..];
            let body_bytes = u32::try_from(body.len())
                .map_err(|_| LogError::TooLarge { bytes: body.len(), bound: u32::MAX as usize })?;
            blocks.push(Block {
                kind: BlockKind::Rows,
                stream: rows.schema.stream,
                partition: *partition,
                schema: rows.schema.id,
                // The commit thread knows it.
                base: Offset(0),
                rows: rows.len() as u32,
                body_bytes,
                body_crc: crc32c::crc32c(body),
                ts_min,
                ts_span,
            });
        }
        match refused.first {
            None => Ok((blocks, bodies)),
            Some((partition, why)) => {
                shared.key_refused.fetch_add(1, Ordering::Relaxed);
                Err(LogError::KeyRefused { partition, refused: refused.rows, why })
            }
        }
    }

    /// Ids of all rows' keys: one read lock, and a write lock only if some are new.
    fn find_keys(
        &mut self,
        shared: &Shared,
        partition: Partition,
        column: &ColumnRows,
        rows: usize,
        part: usize,
        refused: &mut Refused,
    ) {
        let Some(keys) = shared.keys.get(usize::from(partition.0)) else { return };
        let ids = &mut self.key_ids;
        if keys.read().resolve(rows, |row| column.bytes(row), ids) == 0 {
            return;
        }
        let mut keys = keys.write();
        for (row, id) in ids.iter_mut().enumerate().filter(|(_, id)| **id == MISSING) {
            match keys.insert(column.bytes(row)) {
                Ok(new) => *id = new,
                Err(why) => {
                    refused.rows.push((part, row as u32));
                    refused.first.get_or_insert_with(|| (partition, why.to_string()));
                }
            }
        }
    }
}

#[derive(Default)]
struct Refused {
    first: Option<(Partition, String)>,
    /// Index of part, row.
    rows: Vec<(usize, u32)>,
}

/// What would leave a block that nobody can read.
fn check(shared: &Shared, partition: Partition, rows: &Rows) -> Result<(), LogError> {
    let schema = &rows.schema;
    let invalid = |what: String| {
        Err(LogError::Invalid(format!("rows of stream {:?} cannot be stored: {what}", schema.name)))
    };
    if partition.0 >= shared.meta.partitions {
        return invalid(format!("there is no partition {} of {}", partition.0, shared.meta.partitions));
    }
    // A full check of all rows would hash every key a second time.
    let belongs = shared.partition_of(rows.key(0));
    if belongs != partition {
        return invalid(format!("the first row belongs to partition {}, not {}", belongs.0, partition.0));
    }
    if rows.len() > MAX_ROWS {
        return invalid(format!("{} rows exceed {MAX_ROWS}; split them", rows.len()));
    }
    for (column, declared) in rows.columns.iter().zip(&schema.columns) {
        if let Values::Bytes { ends, data } = &column.values
            && declared.ty == ColumnType::String
        {
            let text = simdutf8::basic::from_utf8(data).ok();
            if !text.is_some_and(|text| ends.iter().all(|end| text.is_char_boundary(*end as usize))) {
                return invalid(format!("a value of column {:?} is not UTF-8", declared.name));
            }
        }
    }
    Ok(())
}

/// Lowest event time and the distance to the highest; NULLs do not count.
fn ts_range(rows: &Rows) -> (i64, u64) {
    let (Some(times), Some(at)) = (rows.ts(), rows.schema.ts) else { return (0, 0) };
    let column = &rows.columns[at];
    let valid = (0..times.len()).filter(|row| column.is_valid(*row)).map(|row| times[row]);
    let (min, max) = valid.fold((i64::MAX, i64::MIN), |(min, max), time| (min.min(time), max.max(time)));
    if min > max { (0, 0) } else { (min, max.wrapping_sub(min) as u64) }
}
