//! How connections end: timeouts, last words, and what they leave free.

use std::net::Shutdown;
use std::sync::atomic::Ordering;

use super::connection::State;
use super::events::EventKind;
use super::lane::{End, reason_properties};
use super::on_subscribe::unsubscribe_all;
use super::registry::ConnId;
use super::wheel::Entry;
use super::worker::Worker;
use crate::mqtt::{Disconnect, PacketType, Properties, ReasonCode, Version};

/// How a connection ends.
pub(super) enum Ending {
    /// The client said DISCONNECT.
    Goodbye,
    /// The socket ended or failed.
    Lost,
    /// We end it for this reason.
    Ours(End),
    /// A CONNACK with an error is on its way.
    Refused,
}

impl Worker {
    pub(super) fn set_timer(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        match conn.deadline(&self.lane.shared.options) {
            Some(deadline) => {
                conn.timer = self.wheel.insert(deadline, Entry { slot, generation: conn.generation });
            }
            None => conn.timer = u32::MAX,
        }
    }

    /// Ends connections whose time is up.
    pub(super) fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(self.lane.tick, &mut due);
        for Entry { slot, generation } in due.drain(..) {
            let Some(conn) = self.conns.get(slot as usize).filter(|conn| conn.generation == generation)
            else {
                continue;
            };
            // Another entry counts.
            if conn.timer > self.lane.tick {
                continue;
            }
            match conn.deadline(&self.lane.shared.options) {
                // We do not know that it is silent.
                Some(deadline)
                    if deadline <= self.lane.tick && conn.ready && conn.state != State::Lingering =>
                {
                    if let Some(conn) = self.conns.get_mut(slot as usize) {
                        conn.heard = self.lane.tick;
                    }
                    self.set_timer(slot);
                }
                Some(deadline) if deadline <= self.lane.tick => match conn.state {
                    State::Lingering => self.remove(slot),
                    State::Up => {
                        let why = "nothing was heard for one and a half times the keep alive";
                        self.end(slot, Ending::Ours(End::new(ReasonCode::KeepAliveTimeout, why)));
                    }
                    State::Opened | State::TakingOver => {
                        let why = "no CONNECT came in time";
                        self.end(slot, Ending::Ours(End::new(ReasonCode::MaximumConnectTime, why)));
                    }
                },
                _ => self.set_timer(slot),
            }
        }
        self.due = due;
    }

    /// Ends a connection: its client id and subscriptions are free at once, its socket as soon as what we have to
    /// say has been read.
    pub(super) fn end(&mut self, slot: u32, ending: Ending) {
        let thread = self.lane.thread;
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let was = conn.state;
        if was == State::Lingering {
            return self.remove(slot);
        }
        let id = ConnId { thread, slot, generation: conn.generation };
        let lane = &mut self.lane;
        unsubscribe_all(lane, conn, slot);
        if matches!(was, State::Up | State::TakingOver) {
            lane.shared.registry.release(&conn.client_id, id);
            lane.counters.connections -= 1;
        }
        match ending {
            Ending::Goodbye | Ending::Lost => {
                lane.counters.lost_connections += u64::from(matches!(ending, Ending::Lost));
                self.last_words(slot);
                self.remove(slot);
            }
            Ending::Refused => self.linger(slot),
            Ending::Ours(end) => {
                lane.counters.ended_connections.count(end.reason);
                let kind = match end.reason {
                    ReasonCode::SessionTakenOver => EventKind::SessionTakenOver,
                    _ => EventKind::ConnectionEnded,
                };
                if end.reason != ReasonCode::ServerShuttingDown {
                    lane.shared.events.add(kind, &conn.client_id, end.reason, end.why.clone());
                }
                // Nothing may precede the CONNACK, and MQTT 3.1.1 servers have no DISCONNECT.
                if was == State::Up && conn.version == Version::V5 {
                    let raw = reason_properties(conn, true, 4, &end.why);
                    let told = end.reason.allowed_in(PacketType::Disconnect);
                    let reason = if told { end.reason } else { ReasonCode::UnspecifiedError };
                    let disconnect = Disconnect { reason, properties: Properties::from_checked(&raw) };
                    disconnect.encode(Version::V5, &mut conn.out(&mut lane.pool).bytes);
                    lane.counters.packets_out += 1;
                } else if was == State::TakingOver {
                    conn.out = None;
                }
                self.linger(slot);
            }
        }
    }

    /// Writes what waits, once.
    fn last_words(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot as usize) {
            let _ = conn.flush(&mut self.lane.pool, &mut self.lane.counters);
        }
    }

    fn linger(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        conn.state = State::Lingering;
        conn.partial = Vec::new();
        conn.heard = self.lane.tick;
        match conn.flush(&mut self.lane.pool, &mut self.lane.counters) {
            Ok(true) if !conn.ended => {
                let _ = conn.socket.shutdown(Shutdown::Write);
                // Bytes that came already must not wait for an event that will not come.
                if !conn.ready {
                    conn.ready = true;
                    self.ready.push(slot);
                }
                self.set_timer(slot);
            }
            Ok(false) if !conn.ended => self.set_timer(slot),
            _ => self.remove(slot),
        }
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let Some(mut conn) = self.conns.try_remove(slot as usize) else { return };
        let _ = self.poll.registry().deregister(&mut conn.socket);
        self.lane.counters.sockets -= 1;
        if let Some(inbox) = self.inbox() {
            inbox.sockets.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
