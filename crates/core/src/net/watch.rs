//! What is looked at packet by packet only where somebody wants it: the rates of a client, traces.

use super::connection::Connection;
use super::events::EventKind;
use super::lane::Lane;
use super::trace::trace_in;
use super::worker::Worker;
use crate::mqtt::{PacketType, ReasonCode};

/// Whether the packets of this connection are looked at.
pub(super) fn is_watched(lane: &Lane, conn: &Connection) -> bool {
    conn.rates.is_some() || lane.shared.traces.is_on()
}

/// Before a packet is handled; false: it has to wait.
pub(super) fn may_handle(lane: &Lane, conn: &mut Connection, ty: PacketType, flags: u8, body: &[u8]) -> bool {
    if let Some(rates) = &mut conn.rates {
        if rates.exceeded().is_some() {
            return false;
        }
        if ty == PacketType::Publish {
            rates.message();
        }
    }
    trace_in(lane, conn, ty, flags, body);
    true
}

/// Keeps what was read and may not be handled yet.
pub(super) fn stash(conn: &mut Connection, bytes: Vec<u8>) {
    conn.partial = bytes;
    if let Some(rates) = &mut conn.rates {
        rates.stashed = true;
    }
}

/// How a connection with bounded rates is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Not now.
    Waits,
    /// What waits was handled; there may be more.
    Handled,
    /// At most so many bytes.
    Reads(usize),
}

impl Worker {
    /// What a connection with bounded rates may do now.
    pub(super) fn turn_of(&mut self, slot: u32) -> Turn {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return Turn::Waits };
        let Some(rates) = &mut conn.rates else { return Turn::Reads(usize::MAX) };
        if rates.paused {
            return Turn::Waits;
        }
        rates.refill(self.lane.tick);
        if rates.exceeded().is_some() {
            self.pause(slot);
            return Turn::Waits;
        }
        if !std::mem::take(&mut rates.stashed) {
            return Turn::Reads(rates.read_bytes());
        }
        let waiting = std::mem::take(&mut conn.partial);
        self.consume(slot, &waiting);
        Turn::Handled
    }

    /// Does not read a client until its rate allows it. As long as it waits it counts as ready, so that nothing puts it
    /// into the list of those to read and nobody takes it for silent.
    pub(super) fn pause(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let link = conn.link;
        let Some(rates) = &mut conn.rates else { return };
        let Some(limit) = rates.exceeded() else { return };
        let (first, tell, rate) = (!rates.paused, rates.tell(self.lane.tick), rates.rate(limit));
        rates.paused = true;
        conn.ready = true;
        if first {
            self.paused.push((slot, link));
            conn.limited(limit);
        }
        if tell {
            let unit = if limit == super::Limit::MaxMessageRate { "messages" } else { "bytes" };
            let detail = format!(
                "{}: the client sends more than {rate} {unit} a second and is read no faster than that",
                limit.name()
            );
            let (kind, reason) = (EventKind::LimitReached, ReasonCode::MessageRateTooHigh);
            self.lane.shared.events.add_from(kind, &conn.client_id, reason, detail, conn.origin());
        }
    }

    /// Reads clients again whose time has come; called once a tick.
    pub(super) fn unpause(&mut self) {
        let mut paused = std::mem::take(&mut self.paused);
        paused.retain(|&(slot, link)| {
            let conn = self.conns.get_mut(slot as usize).filter(|conn| conn.link == link);
            let Some(conn) = conn.filter(|conn| conn.is_paused()) else { return false };
            let Some(rates) = &mut conn.rates else { return false };
            rates.refill(self.lane.tick);
            if rates.exceeded().is_some() {
                return true;
            }
            rates.paused = false;
            self.ready.push(slot);
            false
        });
        self.paused = paused;
    }

    /// Deliveries to a client were dropped, since it does not read what it is sent.
    pub(super) fn note_slow(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot as usize) else { return };
        conn.limited(super::Limit::MaxQueuedBytes);
        // One name a tick is enough for a log, and in a flood there are thousands of drops.
        if self.lane.told_slow != self.lane.tick {
            self.lane.told_slow = self.lane.tick;
            let detail = format!(
                "max_queued_bytes, max_queued_messages: messages to the client are dropped, since {} bytes wait that it \
                 does not take",
                conn.pending()
            );
            let (kind, reason) = (EventKind::LimitReached, ReasonCode::QuotaExceeded);
            self.lane.shared.events.add_from(kind, &conn.client_id, reason, detail, conn.origin());
        }
    }
}
