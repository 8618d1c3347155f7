//! One connection per client id, and the session that waits for its client.
//!
//! A session lives in the slot of its connection and stays there, without a socket, while its client is away, so its
//! subscriptions go on. A client that comes back on another thread is sent to the one that has its session: the socket
//! moves, the session does not, and no message on its way can miss it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::{Interest, Token};

use super::access;
use super::clock::{now_us, ticks};
use super::connection::{Connection, State};
use super::ending::Ending;
use super::events::EventKind;
use super::fanout::Reading;
use super::flapping::Verdict;
use super::inbox::Mail;
use super::lane::{End, Lane};
use super::limits::Limit;
use super::message::Message;
use super::on_connect::{Hello, refuse, welcome};
use super::on_subscribe::{mark_away, unsubscribe_all};
use super::registry::ConnId;
use super::session::Testament;
use super::wills::Departed;
use super::worker::Worker;
use crate::mqtt::ReasonCode;
use crate::sessions::Change;

impl Worker {
    /// Sends a connection to the thread of the connection or session that has its client id.
    pub(super) fn join_owner(&mut self, slot: u32, owner: ConnId) {
        let Some(mut conn) = self.conns.try_remove(slot as usize) else { return };
        if let Some(socket) = &mut conn.socket {
            let _ = self.poll.registry().deregister(socket);
        }
        if owner.thread == self.lane.thread { self.join(conn) } else { self.send_on(conn, owner) }
    }

    fn send_on(&mut self, conn: Connection, owner: ConnId) {
        self.lane.counters.sockets -= 1;
        let inboxes = &self.lane.shared.inboxes;
        if let Some(inbox) = self.inbox() {
            inbox.sockets.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(inbox) = inboxes.get(usize::from(owner.thread)) {
            inbox.sockets.fetch_add(1, Ordering::Relaxed);
            inbox.post(Mail::Join(Box::new(conn)));
        }
    }

    /// Gives a connection that has sent its CONNECT its place: a session that waits for it, or a new one.
    pub(super) fn join(&mut self, mut conn: Connection) {
        if self.stop.is_some() {
            // No CONNACK: it tries again when we are back.
            return self.unseat(&mut conn);
        }
        let Some(hello) = conn.hello.take() else { return };
        loop {
            match self.lane.shared.registry.owner(&conn.client_id) {
                Some(owner) if owner.thread != self.lane.thread => {
                    conn.hello = Some(hello);
                    return self.send_on(conn, owner);
                }
                Some(owner) => match self.conns.get(owner.slot as usize).map(|old| old.state) {
                    // Ended, its session waits or is gone, and with it its hold on the client id.
                    Some(State::Up) => {
                        if let Some(why) = self.war(owner.slot, &conn) {
                            conn.limited(Limit::MaxTakeovers);
                            let slot = self.seat(conn);
                            let Some(conn) = self.conns.get_mut(slot as usize) else { return };
                            refuse(&mut self.lane, conn, slot, ReasonCode::ConnectionRateExceeded, &why);
                            return self.end(slot, Ending::Refused);
                        }
                        let why = "another connection uses the same client identifier";
                        self.end(owner.slot, Ending::Ours(End::new(ReasonCode::SessionTakenOver, why)));
                    }
                    Some(State::Parked)
                        if hello.clean_start
                            || !self.is_owner(owner.slot, &conn)
                            || self.is_over(owner.slot) =>
                    {
                        self.end_session(owner.slot);
                        self.remove(owner.slot);
                    }
                    Some(State::Parked) => {
                        self.attach(owner.slot, conn);
                        return self.greet(owner.slot, &hello, true);
                    }
                    _ => self.lane.shared.registry.release(&conn.client_id, owner),
                },
                None => {
                    let client_id = conn.client_id.clone();
                    let slot = self.seat(conn);
                    let Some(seated) = self.conns.get(slot as usize) else { return };
                    let id = self.lane.id(slot, seated.generation);
                    if self.lane.shared.registry.claim(&client_id, id).is_ok() {
                        return self.greet(slot, &hello, false);
                    }
                    // Somebody on another thread was faster.
                    let Some(mut again) = self.conns.try_remove(slot as usize) else { return };
                    if let Some(socket) = &mut again.socket {
                        let _ = self.poll.registry().deregister(socket);
                    }
                    conn = again;
                }
            }
        }
    }

    /// Why the new one of two connections of a client id has to go, if it has: clients that take the id from each other
    /// would do so for ever.
    fn war(&self, owner: u32, new: &Connection) -> Option<String> {
        let most = new.limits().max_takeovers;
        if most == 0 {
            return None;
        }
        let shared = &self.lane.shared;
        let verdict = shared.flapping.count(shared.flapping.client_id(&new.client_id), most, self.lane.tick);
        if verdict == Verdict::Fine {
            return None;
        }
        let (window, ban) = (shared.options.flapping_window_s, shared.options.flapping_ban_s);
        let why = format!(
            "the client identifier was taken over more than max_takeovers = {most} times within {window} s: several \
             clients use it; the one that is connected stays, others are refused for {ban} s"
        );
        if verdict == Verdict::TooMany {
            // For the operator alone: no client is told another's address.
            let stays = self.conns.get(owner as usize).map_or_else(String::new, Connection::origin);
            let detail = format!("{why}; it stays with {stays}");
            let (kind, reason) = (EventKind::LimitReached, ReasonCode::ConnectionRateExceeded);
            shared.events.add_from(kind, &new.client_id, reason, detail, new.origin());
        }
        Some(why)
    }

    /// Whether a waiting session belongs to the user of this connection; another user's messages are not for it.
    fn is_owner(&self, parked: u32, conn: &Connection) -> bool {
        let parked = self.conns.get(parked as usize);
        parked.is_some_and(|parked| access::same_user(&parked.access, &conn.access))
    }

    /// Whether a waiting session has waited longer than it may; the wheel will find that out within a tick.
    fn is_over(&self, parked: u32) -> bool {
        self.conns.get(parked as usize).is_some_and(|conn| conn.has_expired(self.lane.tick))
    }

    /// Writes the CONNACK, then what waits for the client, then goes on with what came behind the CONNECT.
    fn greet(&mut self, slot: u32, hello: &Hello, session_present: bool) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        welcome(&mut self.lane, conn, slot, hello, session_present);
        conn.resume(&mut self.lane.delivery(slot));
        self.go_on(slot);
    }

    /// Goes on with what came behind a CONNECT that has its answer.
    pub(super) fn go_on(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let partial = std::mem::take(&mut conn.partial);
        if !conn.ready {
            conn.ready = true;
            self.ready.push(slot);
        }
        self.set_timer(slot);
        if !partial.is_empty() {
            self.lane.received_at_us = now_us();
            self.consume(slot, &partial);
        }
    }

    /// Puts a connection whose socket is not registered into a slot of its own.
    pub(super) fn seat(&mut self, mut conn: Connection) -> u32 {
        let number = self.next_number();
        let entry = self.conns.vacant_entry();
        let slot = entry.key();
        (conn.generation, conn.link) = (number, number);
        conn.dirty = false;
        if let Some(socket) = &mut conn.socket {
            let interest = Interest::READABLE | Interest::WRITABLE;
            // If it fails the peer has gone, which reading shows.
            let _ = self.poll.registry().register(socket, Token(slot), interest);
        }
        conn.ready = true;
        entry.insert(conn);
        self.ready.push(slot as u32);
        slot as u32
    }

    /// Gives a waiting session its client's new connection.
    fn attach(&mut self, slot: u32, mut conn: Connection) {
        let number = self.next_number();
        let Some(parked) = self.conns.get_mut(slot as usize) else { return };
        self.lane.shared.parked.fetch_sub(1, Ordering::Relaxed);
        if let Some(socket) = &mut conn.socket {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let _ = self.poll.registry().register(socket, Token(slot as usize), interest);
        }
        let mut session = conn.session.take().unwrap_or_default();
        if let Some(old) = parked.session.take() {
            (session.incoming, session.durable) = (old.incoming, old.durable);
        }
        conn.session = Some(session);
        conn.out = parked.out.take();
        conn.subscriptions = std::mem::take(&mut parked.subscriptions);
        (conn.generation, conn.link) = (parked.generation, number);
        (conn.dirty, conn.ready) = (false, true);
        *parked = conn;
        mark_away(&self.lane, parked, slot, false);
        self.ready.push(slot);
    }

    /// Lets a session wait for its client. Gives the connection that it leaves, with what its socket has not taken.
    pub(super) fn park(&mut self, slot: u32) -> Option<Connection> {
        let tick = self.lane.tick;
        let conn = self.conns.get_mut(slot as usize)?;
        let mut socket = conn.socket.take()?;
        let _ = self.poll.registry().deregister(&mut socket);
        let mut leaving = Connection::new(socket, conn.link, tick);
        (leaving.version, leaving.ended) = (conn.version, conn.ended);
        leaving.client_id.clone_from(&conn.client_id);
        if let Some(out) = &mut conn.out {
            leaving.out = Some(Box::new(out.take_bytes()));
            if out.is_idle() {
                conn.out = None;
            }
        }
        conn.state = State::Parked;
        conn.heard = tick;
        conn.partial = Vec::new();
        conn.rates = None;
        (conn.ready, conn.held_back, conn.ended) = (false, false, false);
        (conn.pings, conn.unacknowledged, conn.unreleased) = (0, 0, 0);
        let mut due = None;
        if let Some(session) = &mut conn.session {
            session.detach();
            session.waited = 0;
            due = session.will.take_if(|will| will.delay_s == 0);
            self.lane.staging.closed(session);
        }
        mark_away(&self.lane, conn, slot, true);
        self.lane.shared.parked.fetch_add(1, Ordering::Relaxed);
        let id = self.lane.id(slot, conn.generation);
        if let Some(will) = due {
            self.lane.publish_will(departed(conn, id, *will));
        }
        self.set_timer(slot);
        Some(leaving)
    }

    /// The session is over: nothing is delivered to it any more, and its client id is free.
    pub(super) fn end_session(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let lane = &mut self.lane;
        let id = lane.id(slot, conn.generation);
        unsubscribe_all(lane, conn, slot);
        lane.shared.registry.release(&conn.client_id, id);
        if conn.state == State::Parked {
            lane.shared.parked.fetch_sub(1, Ordering::Relaxed);
        }
        let session = conn.durable();
        if session != 0 {
            lane.staging.session(session, &Change::End);
        }
        let shared = conn.out.as_mut().map(|out| out.take_shared()).unwrap_or_default();
        if !shared.is_empty() {
            let all = Arc::clone(&lane.shared);
            let mut subscriptions = Reading::new(&all.subscriptions);
            shared.iter().for_each(|message| lane.hand_over(&mut subscriptions, message, id));
        }
        if let Some(will) = conn.session.as_mut().and_then(|session| session.will.take()) {
            lane.publish_will(departed(conn, id, *will));
        }
    }

    /// A will's delay is over, or the session's time.
    pub(super) fn expire_session(&mut self, slot: u32) {
        let tick = self.lane.tick;
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let Some(session) = &mut conn.session else { return };
        let waited = tick.saturating_sub(conn.heard).saturating_add(session.waited);
        let due = session.will.take_if(|will| waited > ticks(will.delay_s));
        if conn.has_expired(tick) {
            if let (Some(session), Some(will)) = (&mut conn.session, due) {
                session.will = Some(will);
            }
            // Its will goes with it, whatever its delay (section 3.1.3.2.2).
            self.end_session(slot);
            return self.remove(slot);
        }
        let id = self.lane.id(slot, conn.generation);
        if let Some(will) = due {
            if conn.durable() != 0 {
                self.lane.staging.session(conn.durable(), &Change::WillDone);
            }
            self.lane.publish_will(departed(conn, id, *will));
        }
        self.set_timer(slot);
    }
}

fn departed(conn: &Connection, id: ConnId, will: Testament) -> Departed {
    let (client_id, version, session) = (conn.client_id.clone(), conn.version, conn.durable());
    Departed { client_id, version, conn: id, session, will: will.message }
}

impl Lane {
    /// Gives a message that a member of a shared subscription leaves behind to another one.
    fn hand_over(&mut self, subscriptions: &mut Reading<'_>, message: &Message, but: ConnId) {
        let id = self.staging.message_ids.next();
        self.fanout.add_again(subscriptions, message, self.tick, but, id);
        if !self.fanout.waiting.is_empty() {
            let waiting = &mut self.fanout.waiting;
            message.send_at(self.tick, |outgoing| {
                self.staging.waited_for(outgoing, message.qos, waiting, false);
            });
        }
    }
}
