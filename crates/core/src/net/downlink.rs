//! Messages for devices, read from the log's downlink stream and delivered to live subscribers.
//!
//! The reader starts at the stream's end: no session outlives the process, so nobody waits for what was written before.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};

use super::events::EventKind;
use super::fanout::{Fanout, Reading};
use super::inbox::Mail;
use super::lane::Shared;
use super::message::Outgoing;
use crate::log::{LogError, Reader};
use crate::mqtt::{QoS, ReasonCode, topic};
use crate::schema::DOWNLINK;

const BATCH_ROWS: usize = 4096;
/// How often the thread looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(100);
const PACE: Duration = Duration::from_millis(5);
/// Bytes in an inbox above which it waits for that thread.
const MAX_INBOX_BYTES: usize = 16 << 20;

pub(super) struct Downlink {
    shared: Arc<Shared>,
    reader: Reader,
    fanout: Fanout,
}

impl Downlink {
    pub fn new(shared: Arc<Shared>) -> Result<Downlink, LogError> {
        let reader = shared.log.reader(DOWNLINK, &shared.log.end(DOWNLINK))?;
        let fanout = Fanout::new(shared.inboxes.len());
        Ok(Downlink { shared, reader, fanout })
    }

    pub fn run(mut self) {
        let mut seen = 0;
        while !self.shared.stopping.load(Ordering::SeqCst) {
            seen = self.shared.log.wait(seen, PATIENCE);
            // A busy log commits a thousand times a second; looking two hundred times is soon enough.
            std::thread::sleep(PACE);
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
            let retained = match (retain, payload) {
                (false, _) => Ok(()),
                (true, []) => shared.retained.clear(topic),
                (true, _) => shared.retained.set(outgoing, qos, tick),
            };
            if retained.is_err() {
                let detail =
                    format!("topic {topic:?} is not retained: the table of retained messages is full");
                self.shared.events.add(EventKind::PublishRefused, "", ReasonCode::QuotaExceeded, detail);
            }
            self.fanout.add(&mut subscriptions, outgoing, qos, retain, None);
        }
        subscriptions.release();
        self.dispatch();
    }

    fn dispatch(&mut self) {
        for (thread, deliveries) in self.fanout.deliveries.iter_mut().enumerate() {
            let Some(inbox) = self.shared.inboxes.get(thread).filter(|_| !deliveries.is_empty()) else {
                continue;
            };
            while inbox.delivery_bytes.load(Ordering::Relaxed) > MAX_INBOX_BYTES
                && !self.shared.stopping.load(Ordering::SeqCst)
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            inbox.post(Mail::Deliver(Box::new(std::mem::take(deliveries))));
        }
    }
}
