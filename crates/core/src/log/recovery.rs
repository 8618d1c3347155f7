//! Opening a data directory: which segments count, where the last one validly ends, which keys exist.
//!
//! Older segments are taken at their successor's word (their blocks are checked when they are read);
//! the last one is read in full. Its first invalid commit is a torn tail, which is cut with a message,
//! unless a later valid commit was written after that place had been synced: then synced bytes have
//! changed, which is damage, and opening refuses.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use memchr::memmem;

use super::block::{Block, BlockKind, COMMIT_MAGIC, CommitHeader};
use super::error::LogError;
use super::keyfile::KeyFile;
use super::keys::Keys;
use super::meta::Meta;
use super::options::LogOptions;
use super::segment::{Ends, Segment, SegmentHeader, parse_name, segment_name};
use super::segments::MAX_SPARES;
use super::storage::Storage;
use super::window::Window;
use crate::schema::{Offset, Partition};

/// What opening found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    pub epoch: u32,
    pub segments: usize,
    /// Commits of the last segment, which was read in full.
    pub commits_read: u64,
    /// Of key files and the last segment, to the end of what is allocated to it; the others are taken at their
    /// successor's word.
    pub bytes_read: u64,
    pub keys: u64,
    pub torn: Option<TornTail>,
    pub took: Duration,
}

/// A commit that was being written when the process or the machine stopped; nothing of it was
/// acknowledged (or, with `Durability::Async`, it was within the stated interval).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    pub segment: String,
    pub byte: u64,
    /// Bytes cut, as far as the torn commit still tells.
    pub bytes: u64,
    /// Number that the torn commit had.
    pub commit: u64,
    pub why: String,
}

impl std::fmt::Display for TornTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TornTail { segment, byte, bytes, commit, why } = self;
        write!(f, "cut a torn tail of {bytes} bytes off {segment} at byte {byte}, commit {commit}: {why}")
    }
}

pub struct Recovered {
    pub meta: Meta,
    pub keys: Vec<Keys>,
    /// Keys per partition that the log durably holds.
    pub logged_keys: Vec<u32>,
    pub key_files: Vec<KeyFile>,
    pub segments: VecDeque<Arc<Segment>>,
    pub ends: Ends,
    pub commit: u64,
    pub epoch: u32,
    pub last_number: u64,
    /// What the next segment states as its predecessor.
    pub previous: (u64, u64),
    pub spares: Vec<(String, u64)>,
    /// Files to remove once the next segment is durable.
    pub obsolete: Vec<String>,
    /// The last segment, to be shortened to its valid end once the next one is durable.
    pub cut: Option<Arc<Segment>>,
    pub report: Recovery,
}

pub fn recover(storage: &dyn Storage, options: &LogOptions) -> Result<Recovered, LogError> {
    let began = Instant::now();
    // What a process before us renamed may be known to the system only.
    storage.sync_directory().map_err(|error| LogError::io("sync the log's directory", &error))?;
    let names = storage.list().map_err(|error| LogError::io("list the log's files", &error))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| parse_name(name, "segment-")).collect();
    let meta = match Meta::load(storage)? {
        Some(meta) => meta,
        None if numbers.is_empty() => Meta::create(storage, options.partitions)?,
        None => {
            return Err(LogError::corrupt("meta", 0, "it is absent although there are segments; restore it"));
        }
    };
    if meta.partitions != options.partitions {
        return Err(LogError::Invalid(format!(
            "partitions = {} but the data directory was created with {}; it cannot change, set it back",
            options.partitions, meta.partitions
        )));
    }
    let (keys, key_files): (Vec<Keys>, Vec<KeyFile>) =
        load_keys(storage, &meta, options.max_keys)?.into_iter().unzip();
    let key_bytes = key_files.iter().map(KeyFile::bytes).sum();
    // Begun and never listed; on a full disk their space is needed now.
    for name in names.iter().filter(|name| name.ends_with(".new")) {
        storage.remove(name).map_err(|error| LogError::io(format!("remove {name}"), &error))?;
    }
    let kept = spares(storage, &names, options.segment_bytes);
    let mut this = Recovered {
        meta,
        logged_keys: Vec::new(),
        keys,
        key_files,
        segments: VecDeque::new(),
        ends: Ends::default(),
        commit: 0,
        epoch: 1,
        last_number: numbers.iter().copied().max().unwrap_or(0),
        previous: (0, 0),
        spares: kept.clone(),
        obsolete: names.iter().filter(|name| is_unused_spare(name, &kept)).cloned().collect(),
        cut: None,
        report: Recovery { bytes_read: key_bytes, ..Recovery::default() },
    };
    let chain = load_chain(storage, &numbers, &mut this.obsolete)?;
    if let Some((tail, tail_header)) = this.take_chain(chain)? {
        this.read_tail(&tail, &tail_header)?;
    }
    this.logged_keys = this.keys.iter().map(Keys::len).collect();
    if this.segments.is_empty() && this.previous == (0, 0) {
        this.key_files.iter_mut().for_each(|file| file.trust_only(0));
    }
    // Key 0 of partition 0 is the empty key, that of streams without one.
    if this.keys[0].is_empty() {
        this.keys[0].insert(b"").map_err(|error| LogError::Invalid(error.to_string()))?;
    }
    this.report.epoch = this.epoch;
    this.report.segments = this.segments.len();
    this.report.keys = this.keys.iter().map(|keys| u64::from(keys.len())).sum();
    this.report.took = began.elapsed();
    Ok(this)
}

/// The dictionaries of all partitions, which share the processors: with millions of keys they take most of an opening.
fn load_keys(storage: &dyn Storage, meta: &Meta, max_keys: u32) -> Result<Vec<(Keys, KeyFile)>, LogError> {
    let load = |partition: u16| {
        let mut keys = Keys::new(meta.seed, max_keys);
        let file = KeyFile::load(storage, Partition(partition), &mut keys)?;
        Ok((keys, file))
    };
    let threads = available_parallelism().map_or(1, NonZero::get).min(usize::from(meta.partitions));
    let each = meta.partitions.div_ceil(threads as u16).max(1);
    let loaded = thread::scope(|scope| {
        let parts: Vec<_> = (0..meta.partitions)
            .step_by(usize::from(each))
            .map(|first| first..meta.partitions.min(first + each))
            .map(|part| scope.spawn(move || part.map(load).collect::<Result<Vec<_>, LogError>>()))
            .collect();
        parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let loaded: Result<Vec<Vec<_>>, LogError> = loaded;
    Ok(loaded?.into_iter().flatten().collect())
}

fn spares(storage: &dyn Storage, names: &[String], segment_bytes: u64) -> Vec<(String, u64)> {
    let spares = names.iter().filter(|name| parse_name(name, "spare-").is_some());
    let sized = spares.filter_map(|name| Some((name.clone(), storage.open(name).ok()?.size().ok()?)));
    sized.filter(|(_, size)| *size == segment_bytes).take(MAX_SPARES).collect()
}

fn is_unused_spare(name: &str, spares: &[(String, u64)]) -> bool {
    parse_name(name, "spare-").is_some() && !spares.iter().any(|(spare, _)| spare == name)
}

type Loaded = (SegmentHeader, u64, Arc<dyn super::storage::StorageFile>);

/// Walks from the newest segment to its predecessor and so on. Segments that are not in this chain are
/// void: they failed while being begun, or never got a commit.
fn load_chain(
    storage: &dyn Storage,
    numbers: &[u64],
    obsolete: &mut Vec<String>,
) -> Result<Vec<Loaded>, LogError> {
    let mut unseen: BTreeMap<u64, String> =
        numbers.iter().map(|number| (*number, segment_name(*number))).collect();
    let mut chain = Vec::new();
    let mut wanted = unseen.keys().next_back().copied();
    while let Some(number) = wanted {
        let Some(name) = unseen.remove(&number) else {
            // Its successors begin with what it does not hold; fine once it is trimmed, but then
            // nothing older may be left.
            if let Some((_, older)) = unseen.first_key_value().filter(|(older, _)| **older < number) {
                let what = format!(
                    "{} is absent but {older} is there; restore it, or remove older ones",
                    segment_name(number)
                );
                return Err(LogError::corrupt(segment_name(number), 0, what));
            }
            break;
        };
        let file = storage.open(&name).map_err(|error| LogError::io(format!("open {name}"), &error))?;
        let header = SegmentHeader::load(&*file, &name)?;
        if header.number != number {
            return Err(LogError::corrupt(
                name,
                24,
                format!("its header says it is segment {}", header.number),
            ));
        }
        let length = file.size().map_err(|error| LogError::io(format!("measure {name}"), &error))?;
        wanted = (header.previous != 0).then_some(header.previous);
        chain.push((header, length, file));
    }
    obsolete.extend(unseen.into_values());
    chain.reverse();
    Ok(chain)
}

impl Recovered {
    /// Lists the segments; gives the last one, whose end is still to be found.
    fn take_chain(&mut self, chain: Vec<Loaded>) -> Result<Option<(Arc<Segment>, SegmentHeader)>, LogError> {
        let ends: Vec<u64> = chain.iter().skip(1).map(|(header, ..)| header.previous_end).collect();
        let mut tail = None;
        for (at, (header, length, file)) in chain.into_iter().enumerate() {
            let segment = Arc::new(Segment::new(&header, header.encode().len() as u64, file, length));
            if let Some(end) = ends.get(at) {
                if length < *end {
                    let what = format!("the file ends here, but its successor says it goes to byte {end}");
                    return Err(LogError::corrupt(&segment.name, length, what));
                }
                segment.set_end(*end);
            }
            self.segments.push_back(segment.clone());
            tail = Some((segment, header));
        }
        Ok(tail)
    }

    fn read_tail(&mut self, tail: &Arc<Segment>, header: &SegmentHeader) -> Result<(), LogError> {
        for (partition, (expected, keys)) in header.keys.iter().zip(&self.keys).enumerate() {
            if keys.len() < *expected {
                let what = format!("it holds {} valid keys of {expected}; restore it", keys.len());
                return Err(LogError::corrupt(format!("keys-{partition:04}"), 0, what));
            }
        }
        for (file, confirmed) in self.key_files.iter_mut().zip(&header.keys) {
            file.trust_only(*confirmed);
        }
        self.epoch = header.epoch.saturating_add(1);
        self.ends = header.ends.clone();
        self.commit = header.first_commit.saturating_sub(1);
        let scan = self.scan(tail, header)?;
        tail.set_end(scan.end);
        if scan.end == tail.first().byte {
            // Without a commit it gives way to its successor, else restarts would pile up segments.
            self.previous = (header.previous, header.previous_end);
            self.segments.pop_back();
            self.obsolete.push(tail.name.clone());
        } else {
            write_again(tail, scan.unsynced, scan.end)?;
            self.previous = (tail.number, tail.end());
            self.cut = Some(tail.clone());
        }
        self.report.torn = scan.torn;
        Ok(())
    }

    fn scan(&mut self, tail: &Arc<Segment>, header: &SegmentHeader) -> Result<Scan, LogError> {
        let limit = tail.allocated;
        self.report.bytes_read += limit;
        let mut window = Window::new(tail.clone());
        let mut blocks = Vec::new();
        let mut scan = Scan { end: tail.first().byte, unsynced: tail.first().byte, torn: None };
        let why = loop {
            match valid_commit(&mut window, scan.end, limit, &mut blocks)? {
                Err(why) => break why,
                Ok(commit) if commit.number != self.commit + 1 => {
                    let what = format!("commit {} follows commit {}", commit.number, self.commit);
                    return Err(LogError::corrupt(&tail.name, scan.end, what));
                }
                Ok(commit) => {
                    self.take_commit(&mut window, scan.end, &commit, &blocks, limit)?;
                    self.commit = commit.number;
                    self.report.commits_read += 1;
                    scan.unsynced = u64::from(commit.durable).max(tail.first().byte);
                    scan.end += u64::from(commit.bytes);
                }
            }
        };
        let later = later_commit(&mut window, scan.end, limit, self.commit)?;
        if let Some((byte, commit)) = &later
            && u64::from(commit.durable) > scan.end
        {
            let what = format!(
                "{why}, but commit {} at byte {byte} is valid and was written after this place had been synced; \
                 restore {} from a backup, or cut it to {} bytes and lose what follows",
                commit.number, tail.name, scan.end
            );
            return Err(LogError::corrupt(&tail.name, scan.end, what));
        }
        // The salt at the place of the next commit tells a torn one from space not yet used.
        let begun = (limit - scan.end >= 12)
            .then(|| window.get(scan.end, 12, limit).map(|bytes| bytes == needle(header.salt)))
            .transpose()?
            .unwrap_or(false);
        if begun || later.is_some() {
            let bytes = match (&later, window.commit(scan.end, limit, &mut blocks)?) {
                (Some((byte, commit)), _) => byte + u64::from(commit.bytes) - scan.end,
                (None, Ok(commit)) => commit.bytes.into(),
                (None, Err(_)) => super::block::COMMIT_HEADER_BYTES as u64,
            };
            let commit = self.commit + 1;
            scan.torn = Some(TornTail { segment: tail.name.clone(), byte: scan.end, bytes, commit, why });
        }
        Ok(scan)
    }

    fn take_commit(
        &mut self,
        window: &mut Window,
        at: u64,
        commit: &CommitHeader,
        blocks: &[Block],
        limit: u64,
    ) -> Result<(), LogError> {
        let name = window.segment().name.clone();
        let mut body_at = at + commit.head_bytes() as u64;
        for block in blocks {
            let partition = usize::from(block.partition.0);
            let bad = |what: String| LogError::corrupt(&name, at, what);
            let Some(keys) = self.keys.get_mut(partition) else {
                return Err(bad(format!(
                    "commit {} names partition {partition}, there are fewer",
                    commit.number
                )));
            };
            match block.kind {
                BlockKind::Keys => {
                    let entries = window.get(body_at, block.body_bytes as usize, limit)?;
                    let loaded = keys.load_entries(block.base.0 as u32, block.rows, entries);
                    loaded.map_err(|error| bad(format!("keys of commit {}: {error}", commit.number)))?;
                }
                BlockKind::Rows => {
                    let expected = self.ends.get(block.stream, block.partition);
                    if block.base != expected {
                        let what =
                            format!("begins stream {} at {:?}, not {expected:?}", block.stream.0, block.base);
                        return Err(bad(format!("commit {} {what}", commit.number)));
                    }
                    let next = Offset(block.base.0 + u64::from(block.rows));
                    self.ends.set(block.stream, block.partition, next);
                }
            }
            body_at += u64::from(block.body_bytes);
        }
        Ok(())
    }
}

struct Scan {
    end: u64,
    /// From here to `end` nothing says that it was ever synced.
    unsynced: u64,
    torn: Option<TornTail>,
}

/// A commit with all its bodies.
fn valid_commit(
    window: &mut Window,
    at: u64,
    limit: u64,
    blocks: &mut Vec<Block>,
) -> Result<Result<CommitHeader, String>, LogError> {
    let commit = match window.commit(at, limit, blocks)? {
        Ok(commit) => commit,
        Err(why) => return Ok(Err(why)),
    };
    // Read once, whatever its blocks are asked for later.
    window.get(at, commit.bytes as usize, limit)?;
    let mut body_at = at + commit.head_bytes() as u64;
    for block in blocks.iter() {
        if let Err(why) = window.body(body_at, block, limit)? {
            return Ok(Err(why));
        }
        body_at += u64::from(block.body_bytes);
    }
    Ok(Ok(commit))
}

fn needle(salt: u64) -> [u8; 12] {
    let mut needle = [0; 12];
    needle[..4].copy_from_slice(&COMMIT_MAGIC);
    needle[4..].copy_from_slice(&salt.to_le_bytes());
    needle
}

/// The last valid commit after the first invalid one at byte `from`: the one that knows most.
fn later_commit(
    window: &mut Window,
    from: u64,
    limit: u64,
    after: u64,
) -> Result<Option<(u64, CommitHeader)>, LogError> {
    const PIECE: u64 = 1 << 20;
    let needle = needle(window.segment().salt);
    let finder = memmem::Finder::new(&needle);
    let (mut at, mut blocks, mut last) = (from + 1, Vec::new(), None);
    while at + needle.len() as u64 <= limit {
        let length = PIECE.min(limit - at) as usize;
        let found = finder.find(window.get(at, length, limit)?);
        let Some(found) = found else {
            // Overlap, so that none is missed at the seam.
            at += (length - needle.len() + 1) as u64;
            continue;
        };
        at += found as u64;
        if let Ok(commit) = valid_commit(window, at, limit, &mut blocks)?
            && commit.number > after
        {
            last = Some((at, commit));
        }
        at += 1;
    }
    Ok(last)
}

/// Writes bytes `from..to` over themselves and syncs. A sync that failed before a crash may have left
/// them in the page cache only, marked clean: then another sync alone would do nothing.
fn write_again(segment: &Segment, from: u64, to: u64) -> Result<(), LogError> {
    const PIECE: u64 = 1 << 20;
    let mut window = vec![0; PIECE as usize];
    let mut again = || {
        let mut at = from;
        while at < to {
            let piece = &mut window[..PIECE.min(to - at) as usize];
            if segment.file.read_at(at, piece)? < piece.len() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            segment.file.write_at(at, piece)?;
            at += piece.len() as u64;
        }
        segment.file.sync()
    };
    again()
        .map_err(|error| LogError::io(format!("make bytes {from}..{to} of {} durable", segment.name), &error))
}
