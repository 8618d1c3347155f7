//! Messages for devices, read from the log's downlink stream and delivered to live subscribers.
//!
//! The reader starts where durable sessions need it: behind the messages that were durable where they wait when the last
//! process ended. What was written before the start is for such sessions alone; the others have gone. Without durable sessions
//! it starts at the stream's end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};

use super::events::EventKind;
use super::fanout::{Fanout, Reading};
use super::inbox::Mail;
use super::lane::Shared;
use super::message::Outgoing;
use super::restore::append;
use crate::log::{LogError, Reader};
use crate::mqtt::{QoS, ReasonCode, topic};
use crate::schema::{DOWNLINK, Offset};
use crate::sessions::Change;

const BATCH_ROWS: usize = 4096;
/// How often the thread looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(100);
/// Who holds messages in the log for durable sessions, and how often it moves on.
const READER: &str = "sessions";
const NOTE: Duration = Duration::from_secs(1);
const PACE: Duration = Duration::from_millis(5);
/// Bytes in an inbox above which it waits for that thread.
const MAX_INBOX_BYTES: usize = 16 << 20;

pub(super) struct Downlink {
    shared: Arc<Shared>,
    reader: Reader,
    fanout: Fanout,
    /// Messages before it are of an earlier process.
    begin: u64,
    /// What the log knows of how far messages wait where they are to wait, and when it was told.
    noted: u64,
    noted_at: Instant,
}

impl Downlink {
    /// from: where durable sessions need it
    pub fn new(shared: Arc<Shared>, from: Option<u64>) -> Result<Downlink, LogError> {
        let (start, mut offsets) = (shared.log.start(DOWNLINK), shared.log.end(DOWNLINK));
        // The stream has no key: all its rows are in partition 0.
        let begin = offsets[0].0;
        // Where no session was durable so far, nobody waits for what is there.
        let noted = from.map_or(begin, |from| from.clamp(start[0].0, begin));
        if shared.sessions.is_some() && from.is_none() {
            // If there is no space now, it is said with the first messages.
            let _ = append(&shared.log, &[(0, Change::Downlink { offset: noted })]);
        }
        offsets[0] = Offset(noted);
        let reader = shared.log.reader(DOWNLINK, &offsets)?;
        for inbox in &shared.inboxes {
            inbox.downlink_posted.store(noted, Ordering::Relaxed);
            inbox.downlink_durable.store(noted, Ordering::Relaxed);
        }
        shared.downlink_read.store(noted, Ordering::SeqCst);
        let fanout = Fanout::new(shared.inboxes.len());
        let downlink = Downlink { shared, reader, fanout, begin, noted, noted_at: Instant::now() };
        downlink.hold();
        Ok(downlink)
    }

    /// Keeps messages in the log that are not durable where they wait.
    fn hold(&self) {
        if self.shared.sessions.is_some() {
            let mut offsets = self.shared.log.start(DOWNLINK);
            offsets[0] = Offset(self.noted);
            self.shared.log.hold(READER, DOWNLINK, &offsets);
        }
    }

    /// Tells the log how far messages wait where they are to wait.
    fn note(&mut self) {
        let offset = self.shared.downlink();
        if self.shared.sessions.is_none() || offset == self.noted || self.noted_at.elapsed() < NOTE {
            return;
        }
        // An older one is as good: those who get a message again have it at least once.
        if append(&self.shared.log, &[(0, Change::Downlink { offset })]).is_ok() {
            self.noted = offset;
            self.hold();
        }
        self.noted_at = Instant::now();
    }

    pub fn run(mut self) {
        while !self.shared.stopping.load(Ordering::SeqCst) {
            if self.shared.log.wait_rows(DOWNLINK, &self.reader.offsets(), PATIENCE) {
                // A busy stream gets rows a thousand times a second; looking two hundred times is soon enough.
                std::thread::sleep(PACE);
            }
            loop {
                match self.reader.read(BATCH_ROWS) {
                    Ok(Some(batch)) => self.deliver(&batch),
                    Ok(None) => break,
                    Err(error) => {
                        let detail = format!("cannot read messages for devices: {error}");
                        self.shared.events.add(
                            EventKind::LogFailed,
                            "",
                            ReasonCode::UnspecifiedError,
                            detail,
                        );
                        std::thread::sleep(PATIENCE);
                        break;
                    }
                }
            }
            self.note();
        }
    }

    fn deliver(&mut self, batch: &RecordBatch) {
        let column = |name: &str| batch.column_by_name(name);
        let topics = column("topic").and_then(|array| array.as_string_opt::<i32>());
        let payloads = column("payload").and_then(|array| array.as_binary_opt::<i32>());
        let qos = column("qos").and_then(|array| array.as_primitive_opt::<Int64Type>());
        let retain = column("retain").and_then(|array| array.as_boolean_opt());
        let (Some(topics), Some(payloads)) = (topics, payloads) else { return };
        let tick = self.shared.options.clock.tick();
        let end = self.reader.offsets()[0].0;
        let first = end - batch.num_rows() as u64;
        let shared = Arc::clone(&self.shared);
        let mut subscriptions = Reading::new(&shared.subscriptions);
        for row in 0..batch.num_rows() {
            let topic = topics.value(row);
            if topics.is_null(row) || !topic::is_name(topic) {
                let detail = format!("a message for devices has the topic {topic:?}, which is no topic name");
                let code = ReasonCode::TopicNameInvalid;
                self.shared.events.add(EventKind::PublishRefused, "", code, detail);
                continue;
            }
            let payload = if payloads.is_null(row) { &[] } else { payloads.value(row) };
            let qos = qos.filter(|qos| !qos.is_null(row)).map_or(0, |qos| qos.value(row));
            let qos = if qos >= 1 { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            let retain = retain.is_some_and(|retain| !retain.is_null(row) && retain.value(row));
            let outgoing = Outgoing { topic, properties: &[], payload };
            // What was to be retained before the start is.
            self.fanout.only_durable = first + (row as u64) < self.begin;
            let retained = match (retain && !self.fanout.only_durable, payload) {
                (false, _) => Ok(()),
                (true, []) => shared.retained.clear(topic),
                (true, _) => shared.retained.set(outgoing, qos, tick),
            };
            if retained.is_err() {
                let detail =
                    format!("topic {topic:?} is not retained: the table of retained messages is full");
                self.shared.events.add(EventKind::PublishRefused, "", ReasonCode::QuotaExceeded, detail);
            }
            self.fanout.add(&mut subscriptions, outgoing, qos, retain, None, 0);
        }
        subscriptions.release();
        self.dispatch(end);
    }

    /// end: the offset behind the messages
    fn dispatch(&mut self, end: u64) {
        for (thread, deliveries) in self.fanout.deliveries.iter_mut().enumerate() {
            let Some(inbox) = self.shared.inboxes.get(thread).filter(|_| !deliveries.is_empty()) else {
                continue;
            };
            deliveries.downlink = end;
            inbox.downlink_posted.store(end, Ordering::Relaxed);
            while inbox.delivery_bytes.load(Ordering::Relaxed) > MAX_INBOX_BYTES
                && !self.shared.stopping.load(Ordering::SeqCst)
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            inbox.post(Mail::Deliver(Box::new(std::mem::take(deliveries))));
        }
        self.shared.downlink_read.store(end, Ordering::SeqCst);
    }
}

impl Shared {
    /// The offset of `_downlink` behind the messages that are durable wherever they wait.
    pub fn downlink(&self) -> u64 {
        let mut least = self.downlink_read.load(Ordering::SeqCst);
        for inbox in &self.inboxes {
            let durable = inbox.downlink_durable.load(Ordering::Relaxed);
            if durable < inbox.downlink_posted.load(Ordering::Relaxed) {
                least = least.min(durable);
            }
        }
        least
    }
}
