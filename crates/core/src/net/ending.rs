//! How connections end: timeouts, last words, and what they leave free.

use std::sync::atomic::Ordering;

use super::access::Access;
use super::clock::now_us;
use super::closes::Close;
use super::connection::{Connection, State};
use super::events::EventKind;
use super::lane::{End, reason_properties};
use super::limits::Limit;
use super::on_connect::refuse;
use super::on_subscribe::unsubscribe_all;
use super::transport::Transport;
use super::wheel::Entry;
use super::worker::Worker;
use crate::mqtt::{Disconnect, PacketType, Properties, ReasonCode, Version};

/// How a connection ends.
pub(super) enum Ending {
    /// The client said DISCONNECT; false: and wants its will to be published.
    Goodbye(bool),
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
                conn.timer = self.wheel.insert(deadline, Entry { slot, link: conn.link });
            }
            None => conn.timer = u32::MAX,
        }
    }

    /// Ends connections and sessions whose time is up.
    pub(super) fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(self.lane.tick, &mut due);
        for Entry { slot, link } in due.drain(..) {
            let Some(conn) = self.conns.get_mut(slot as usize).filter(|conn| conn.link == link) else {
                continue;
            };
            // Another entry counts.
            if conn.timer > self.lane.tick {
                continue;
            }
            let over =
                conn.deadline(&self.lane.shared.options).is_some_and(|deadline| deadline <= self.lane.tick);
            if !over {
                self.set_timer(slot);
                continue;
            }
            match conn.state {
                State::Parked => self.expire_session(slot),
                State::Lingering => self.remove(slot),
                State::Up if conn.until <= self.lane.tick => {
                    self.lane.counters.access_expired += 1;
                    let why = "the client's token or certificate has expired; it may connect with a new one";
                    self.end(slot, Ending::Ours(End::new(ReasonCode::MaximumConnectTime, why)));
                }
                // We do not know that it is silent.
                State::Up | State::Opened if conn.ready => {
                    conn.heard = self.lane.tick;
                    self.set_timer(slot);
                }
                State::Up => {
                    let why = "nothing was heard for one and a half times the keep alive";
                    self.end(slot, Ending::Ours(End::new(ReasonCode::KeepAliveTimeout, why)));
                }
                State::Asked => {
                    let why = "nobody said in time who the client is (auth.timeout)";
                    refuse(&mut self.lane, conn, slot, ReasonCode::ServerUnavailable, why);
                    self.end(slot, Ending::Refused);
                }
                State::Opened => {
                    if let Some(socket) = &mut conn.socket {
                        socket.timed_out();
                    }
                    let why = "no CONNECT came in time";
                    self.end(slot, Ending::Ours(End::new(ReasonCode::MaximumConnectTime, why)));
                }
            }
        }
        self.due = due;
    }

    /// Ends a connection. Its session waits for its client or ends too; the socket goes as soon as what we have to say
    /// has been read.
    pub(super) fn end(&mut self, slot: u32, ending: Ending) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let was = conn.state;
        match was {
            State::Lingering => return self.remove(slot),
            State::Parked => return,
            State::Up | State::Opened | State::Asked => {}
        }
        let lane = &mut self.lane;
        if let Some(out) = &mut conn.out {
            // It rests on what may never become durable.
            out.cut_gated();
        }
        if let (Some(Access::Asked(number)), Some(logins)) =
            (conn.access.as_deref(), &lane.shared.options.logins)
        {
            logins.forget(*number);
        }
        match &ending {
            Ending::Lost => lane.counters.lost_connections += 1,
            Ending::Goodbye(_) | Ending::Refused => {}
            Ending::Ours(end) => {
                lane.counters.ended_connections.count(end.reason);
                if let Some(socket) = &conn.socket {
                    socket.listener().ended(end.reason);
                }
                if let Some(limit) = Limit::of_end(end.reason) {
                    conn.limited(limit);
                }
                let kind = match end.reason {
                    ReasonCode::SessionTakenOver => EventKind::SessionTakenOver,
                    _ => EventKind::ConnectionEnded,
                };
                if end.reason != ReasonCode::ServerShuttingDown {
                    let (why, origin) = (end.why.clone(), conn.origin());
                    lane.shared.events.add_from(kind, &conn.client_id, end.reason, why, origin);
                }
                // Nothing may precede the CONNACK, and MQTT 3.1.1 servers have no DISCONNECT.
                if was == State::Up && conn.version == Version::V5 {
                    let raw = reason_properties(conn, true, 4, &end.why);
                    let told = end.reason.allowed_in(PacketType::Disconnect);
                    let reason = if told { end.reason } else { ReasonCode::UnspecifiedError };
                    let disconnect = Disconnect { reason, properties: Properties::from_checked(&raw) };
                    disconnect.encode(Version::V5, &mut conn.out(&mut lane.pool).bytes);
                    lane.counters.packets_out += 1;
                }
            }
        }
        let linger = match &ending {
            Ending::Ours(_) | Ending::Refused => true,
            Ending::Goodbye(_) => conn.socket.as_ref().is_some_and(Transport::says_goodbye),
            Ending::Lost => false,
        };
        if matches!(was, State::Opened | State::Asked) {
            return if linger { self.linger(slot) } else { self.remove(slot) };
        }
        lane.counters.connections -= 1;
        // Section 3.1.2.5: a will goes with every end but a normal DISCONNECT; a server that stops keeps it back.
        let stopping = matches!(&ending, Ending::Ours(end) if end.reason == ReasonCode::ServerShuttingDown);
        if !stopping {
            lane.note_disconnected(conn, slot, &ending);
            let at_ms = (now_us() / 1000).unsigned_abs();
            lane.shared.closes.note(&conn.client_id, Close::of(&ending), at_ms);
        }
        if let (Ending::Goodbye(true), Some(session)) = (&ending, &mut conn.session) {
            session.will = None;
        }
        let _ = conn.flush(&mut lane.pool, &mut lane.counters);
        let lasts = !stopping && conn.session.as_ref().is_some_and(|session| session.expiry_s > 0);
        if lasts {
            let leaving = self.park(slot);
            if let Some(mut leaving) = leaving {
                if linger {
                    let slot = self.seat(leaving);
                    self.linger(slot);
                } else {
                    self.unseat(&mut leaving);
                }
            }
            return;
        }
        if !stopping {
            self.end_session(slot);
        } else if let Some(conn) = self.conns.get_mut(slot as usize) {
            unsubscribe_all(&mut self.lane, conn, slot);
            self.lane.shared.registry.release(&conn.client_id, self.lane.id(slot, conn.generation));
        }
        if linger { self.linger(slot) } else { self.remove(slot) }
    }

    fn linger(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        conn.state = State::Lingering;
        conn.partial = Vec::new();
        conn.session = None;
        conn.hello = None;
        conn.heard = self.lane.tick;
        match conn.flush(&mut self.lane.pool, &mut self.lane.counters) {
            Ok(true) if !conn.ended => {
                conn.shutdown_write();
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
        if let Some(mut conn) = self.conns.try_remove(slot as usize) {
            self.unseat(&mut conn);
        }
    }

    /// Closes the socket of a connection that has left its slot, if it has one.
    pub(super) fn unseat(&mut self, conn: &mut Connection) {
        if let Some(mut socket) = conn.socket.take() {
            let _ = self.poll.registry().deregister(&mut socket);
            self.lane.counters.sockets -= 1;
            if let Some(inbox) = self.inbox() {
                inbox.sockets.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
