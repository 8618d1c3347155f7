//! A turn has come back from the log: PUBACKs in the order of the PUBLISH packets, and the books.

use std::sync::Arc;
use std::time::Instant;

use super::connection::State;
use super::ending::Ending;
use super::events::EventKind;
use super::inbox::Mail;
use super::lane::{End, Lane, reason_properties};
use super::turn::{Acks, Fate};
use super::worker::{MAX_FLIGHTS, Worker};
use crate::log::LogError;
use crate::mqtt::{Ack, PacketType, Properties, ReasonCode, Version, ack};

impl Worker {
    /// Acknowledges every turn that the log is through with, oldest first.
    pub(super) fn settle(&mut self) {
        while let Some((turn, mut acks, result)) = self.lane.settled() {
            if result.is_err() {
                self.lane.keep_wills(&mut acks);
            }
            self.acknowledge(&acks, &result);
            self.deliver_later(&mut acks, &result);
            self.open_gates(turn, &acks, &result);
            if acks.downlink > 0 && result.is_ok() {
                self.lane.downlink_is_durable(acks.downlink);
            }
            acks.clear();
            if self.lane.spare.len() < 2 * MAX_FLIGHTS {
                self.lane.spare.push(acks);
            }
        }
    }

    fn acknowledge(&mut self, acks: &Acks, result: &Result<(), LogError>) {
        if let (Err(_), Some(changes)) = (result, &acks.changes) {
            self.lane.unsaid.add(changes);
        }
        let failure = result.as_ref().err().map(|error| {
            self.lane.counters.log_failures += 1;
            let code = code_of(error);
            let what = match acks.messages.len() {
                0 => "changes of sessions are not stored yet and will be written again".to_owned(),
                messages => format!("{messages} messages are not stored"),
            };
            let detail = format!("{what}: {error}");
            self.lane.shared.events.add(EventKind::LogFailed, "", code, detail);
            (code, error.to_string())
        });
        if failure.is_none() {
            self.lane.counters.rows += acks.rows;
        }
        let now = Instant::now();
        let mut begin = 0;
        for run in &acks.runs {
            let end = (run.end as usize).min(acks.messages.len());
            let range = begin.min(end)..end;
            begin = end;
            let session = self
                .conns
                .get_mut(run.slot as usize)
                .filter(|conn| conn.generation == run.generation && conn.state != State::Lingering);
            // Another network connection is owed no acknowledgements: the client has sent its messages again.
            let here = session.as_ref().is_some_and(|conn| conn.link == run.link && conn.state == State::Up);
            let mut conn = session;
            let (mut acknowledged, mut received) = (0u64, 0u32);
            let mut closing = None;
            for at in range {
                let message = acks.messages[at];
                let mut stored = matches!(message.fate, Fate::Decoded | Fate::RawOnly | Fate::DeadLettered);
                // Its packet id is.
                stored |= message.exactly_once && conn.as_ref().is_some_and(|conn| conn.durable() != 0);
                let failed = failure.as_ref().filter(|_| stored);
                self.lane.count(message.fate, failed.is_some(), message.packet_id);
                let Some(conn) = conn.as_mut().filter(|_| message.packet_id != 0) else { continue };
                let mut code = failed.map_or(message.code, |(code, _)| *code);
                let told =
                    conn.version == Version::V5 || (message.fate == Fate::DeadLettered && failed.is_none());
                if message.exactly_once {
                    code = conn.settle_incoming(message.packet_id, message.fate, code, failed.is_some());
                }
                if !here || closing.is_some() {
                    continue;
                }
                acknowledged += 1;
                if message.fate != Fate::Repeated {
                    received += 1;
                    let held = u16::from(message.exactly_once && code == ReasonCode::Success);
                    conn.unreleased = conn.unreleased.saturating_add(held);
                }
                let ty = if message.exactly_once { PacketType::Pubrec } else { PacketType::Puback };
                if code == ReasonCode::Success && !message.exactly_once {
                    conn.out(&mut self.lane.pool).bytes.extend_from_slice(&ack::puback(message.packet_id));
                } else if conn.version == Version::V5 {
                    let why = failed.map(|(_, why)| why.as_str()).or_else(|| acks.note(at)).unwrap_or("");
                    let raw =
                        if code.is_error() { reason_properties(conn, false, 6, why) } else { Vec::new() };
                    let properties = Properties::from_checked(&raw);
                    let ack = Ack { ty, packet_id: message.packet_id, reason: code, properties };
                    ack.encode(Version::V5, &mut conn.out(&mut self.lane.pool).bytes);
                } else if code == ReasonCode::Success || told {
                    // MQTT 3.1.1 has no word for a dead letter, and the payload is safe as one.
                    let out = &mut conn.out(&mut self.lane.pool).bytes;
                    put_ack(ty, message.packet_id, ReasonCode::Success, Version::V311, out);
                } else {
                    acknowledged -= 1;
                    closing = Some(End::new(
                        code,
                        "a message could not be stored, and MQTT 3.1.1 can only be told by closing",
                    ));
                }
            }
            if acknowledged == 0 && closing.is_none() {
                continue;
            }
            self.lane.counters.acks += acknowledged;
            self.lane.counters.packets_out += acknowledged;
            let latency_us = now.duration_since(run.read_at).as_micros() as u64;
            self.lane.latencies.push((latency_us, acknowledged));
            if let Some(conn) = conn {
                conn.unacknowledged = conn.unacknowledged.saturating_sub(received);
                self.lane.touch(conn, run.slot);
            }
            if let Some(end) = closing {
                self.end(run.slot, Ending::Ours(end));
            }
        }
    }
}

impl Worker {
    /// Passes on what durable sessions get of a turn that is durable now.
    fn deliver_later(&mut self, acks: &mut Acks, result: &Result<(), LogError>) {
        if acks.later.is_empty() || result.is_err() {
            return;
        }
        let refused: Vec<u64> = acks
            .waited_for
            .iter()
            .filter(|(at, _)| acks.messages.get(*at as usize).is_some_and(|one| one.fate == Fate::Refused))
            .map(|(_, id)| *id)
            .collect();
        let shared = Arc::clone(&self.lane.shared);
        for (thread, mut deliveries) in acks.later.drain(..).enumerate().filter(|(_, each)| !each.is_empty())
        {
            deliveries.refuse(&refused);
            if thread == usize::from(self.lane.thread) {
                self.deliver(&deliveries);
            } else if let Some(inbox) = shared.inboxes.get(thread) {
                inbox.post(Mail::Deliver(Box::new(deliveries)));
            }
        }
    }

    /// What waited for the turn may leave; if the turn has failed, it does not, and its connections end.
    fn open_gates(&mut self, turn: u64, acks: &Acks, result: &Result<(), LogError>) {
        for &(slot, link) in &acks.gated {
            let conn = self.conns.get_mut(slot as usize).filter(|conn| conn.link == link);
            let Some(conn) = conn.filter(|conn| conn.state == State::Up) else { continue };
            match result {
                Ok(()) => {
                    if let Some(out) = &mut conn.out {
                        out.open_gate(turn);
                    }
                    self.lane.touch(conn, slot);
                }
                Err(error) => {
                    let why = "a change of the session could not be stored";
                    self.end(slot, Ending::Ours(End::new(code_of(error), why)));
                }
            }
        }
    }
}

impl Lane {
    fn count(&mut self, fate: Fate, failed: bool, packet_id: u16) {
        let counters = &mut self.counters;
        let counter = match fate {
            // QoS 0 is best effort: nobody could be told.
            _ if failed && packet_id == 0 => &mut counters.shed,
            _ if failed => &mut counters.refused,
            Fate::Decoded => &mut counters.decoded,
            Fate::RawOnly => &mut counters.raw_only,
            Fate::LiveOnly => &mut counters.live_only,
            Fate::DeadLettered => &mut counters.dead_lettered,
            Fate::Refused => &mut counters.refused,
            Fate::Repeated => return,
        };
        *counter += 1;
    }
}

/// An acknowledgement without properties.
pub(super) fn put_ack(
    ty: PacketType,
    packet_id: u16,
    reason: ReasonCode,
    version: Version,
    out: &mut Vec<u8>,
) {
    Ack { ty, packet_id, reason, properties: Properties::NONE }.encode(version, out);
}

/// What a client is told when the log did not take its message.
pub(super) fn code_of(error: &LogError) -> ReasonCode {
    match error {
        LogError::DiskFull { .. } | LogError::DiskBound { .. } | LogError::TooLarge { .. } => {
            ReasonCode::QuotaExceeded
        }
        _ => ReasonCode::UnspecifiedError,
    }
}
