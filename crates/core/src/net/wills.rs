//! Wills: published when their connection or session has ended, and again where the log did not take them.
//!
//! Nobody sends a will again, so one whose commit has failed is kept and published before anything more is read, else once a
//! tick, until a commit has it. Who had it at once, without a durable session, does not get it again. Until then a durable session
//! has its will in the log, and a start would publish it. Bound: `MOST_BYTES` for each event loop; what is more is named in an
//! event and not stored.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::clock::now_us;
use super::events::EventKind;
use super::fanout::Reading;
use super::lane::Lane;
use super::message::Message;
use super::on_publish::{Sender, accept, retain};
use super::registry::ConnId;
use super::turn::{Acks, Fate};
use crate::mqtt::{ReasonCode, Version};

/// Wills that wait for a log that takes them.
const MOST_BYTES: usize = 16 << 20;

/// A will and who has left it.
#[derive(Debug)]
pub(super) struct Departed {
    pub client_id: Box<str>,
    pub version: Version,
    pub conn: ConnId,
    /// Its durable session, or 0.
    pub session: u64,
    pub will: Message,
}

impl Departed {
    fn len(&self) -> usize {
        size_of::<Departed>() + self.client_id.len() + self.will.len()
    }
}

/// Those that the log has not taken.
#[derive(Debug, Default)]
pub(super) struct Wills {
    waiting: VecDeque<Departed>,
    bytes: usize,
}

impl Wills {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Lane {
    /// Nobody waits for an answer.
    pub(super) fn publish_will(&mut self, departed: Departed) {
        self.put_will(departed, false);
    }

    /// A turn has failed: keeps its wills.
    pub(super) fn keep_wills(&mut self, acks: &mut Acks) {
        for (message, departed) in acks.wills.drain(..) {
            let fate = acks.messages.get(message as usize).map(|staged| staged.fate);
            // What no row was to say has been delivered, and what was refused will be again.
            if !matches!(fate, Some(Fate::Decoded | Fate::RawOnly | Fate::DeadLettered)) {
                continue;
            }
            if self.wills.bytes + departed.len() > MOST_BYTES {
                let topic = departed.will.outgoing().topic;
                let detail = format!("the will to topic {topic:?} is not stored: too many wait for the log");
                let code = ReasonCode::QuotaExceeded;
                self.shared.events.add(EventKind::PublishRefused, &departed.client_id, code, detail);
                continue;
            }
            self.wills.bytes += departed.len();
            self.wills.waiting.push_back(departed);
        }
    }

    /// Publishes those again, as many as the turn holds.
    pub(super) fn publish_wills_again(&mut self) {
        self.fanout.only_durable = true;
        while self.staging.acks.bytes < self.shared.options.turn_bytes
            && let Some(departed) = self.wills.waiting.pop_front()
        {
            self.wills.bytes -= departed.len();
            self.put_will(departed, true);
        }
        self.fanout.only_durable = false;
    }

    /// again: the table of retained messages has it
    fn put_will(&mut self, departed: Departed, again: bool) {
        let shared = Arc::clone(&self.shared);
        let Departed { client_id, version, conn, session, will } = &departed;
        let sender = Sender { client_id, version: *version, conn: *conn, session: *session };
        self.counters.received += 1;
        // It belongs to no connection that reads.
        self.staging.close_run();
        self.staging.open_run(u32::MAX, 0, 0, Instant::now());
        self.received_at_us = now_us();
        let mut subscriptions = Reading::new(&shared.subscriptions);
        // Its expiry interval begins now (section 3.1.3.2.4).
        let publish = will.outgoing().publish(will.qos, will.retain, 0);
        let mut retained = publish.retain;
        if publish.retain && !again && !retain(self, &shared, &publish) {
            let detail = format!("the will's topic {:?} is not retained: the table is full", publish.topic);
            let code = ReasonCode::QuotaExceeded;
            shared.events.add(EventKind::PublishRefused, client_id, code, detail);
            retained = false;
        }
        let message = self.staging.acks.messages.len() as u32;
        accept(self, &shared, &sender, &publish, retained, &mut subscriptions);
        self.staging.close_run();
        self.staging.acks.wills.push((message, departed));
    }
}
