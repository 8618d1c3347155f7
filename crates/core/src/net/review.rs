//! Live connections are held against what has changed: identities, policies, certificates, revocation lists.
//!
//! A pass looks at a bounded number of them and the next one goes on, so that nobody waits for it, however many there are.

use std::sync::Arc;

use super::access::{self, Access, Granted};
use super::connection::{Connection, State};
use super::ending::Ending;
use super::lane::{End, Lane};
use super::listener::Listener;
use super::worker::Worker;
use crate::mqtt::ReasonCode;

/// What a pass may spend, and what things cost, in places looked at: some ten nanoseconds each. Ours.
const WORK: usize = 16 << 10;
const GRANT_WORK: usize = 128;
/// Verifying a chain of signatures takes a tenth of a millisecond or more.
const CERTIFICATE_WORK: usize = 4 << 10;

/// How far a loop has come.
#[derive(Debug, Default)]
pub(super) struct Review {
    /// The next place.
    at: usize,
    /// Places to look at; 0: through.
    left: usize,
    /// Whose files have changed.
    listeners: Vec<Arc<Listener>>,
}

impl Review {
    pub fn is_under_way(&self) -> bool {
        self.left > 0
    }
}

impl Worker {
    /// Looks at all connections, from here on and once around, so that one that is asked for again and again comes around
    /// all the same.
    ///
    /// listener: its certificates are to be verified again; else who is known, and policies, have changed
    pub(super) fn begin_review(&mut self, listener: Option<Arc<Listener>>) {
        self.review.left = self.conns.capacity();
        if let Some(listener) = listener
            && !self.review.listeners.iter().any(|each| Arc::ptr_eq(each, &listener))
        {
            self.review.listeners.push(listener);
        }
    }

    /// A connection has come from where the change was not known yet.
    pub(super) fn review_late(&mut self, granted: &Granted) {
        let logins = self.lane.shared.options.logins.as_ref();
        if logins.is_some_and(|logins| logins.version() != granted.version) {
            self.begin_review(None);
        }
    }

    /// Goes on with what has begun, for a bounded time.
    pub(super) fn go_on_reviewing(&mut self) {
        let mut work = WORK;
        while self.review.left > 0 && work > 0 {
            self.review.left -= 1;
            let slot = self.review.at % self.conns.capacity().max(1);
            self.review.at = slot + 1;
            let Some(conn) = self.conns.get_mut(slot) else {
                work -= 1;
                continue;
            };
            let (cost, outcome) = examine(&mut self.lane, conn, &self.review.listeners);
            work = work.saturating_sub(cost);
            if let Err(why) = outcome {
                self.lane.counters.access_revoked += 1;
                self.end(slot as u32, Ending::Ours(End::new(ReasonCode::NotAuthorized, why)));
            }
        }
        if self.review.left == 0 {
            self.review.listeners = Vec::new();
        }
    }
}

/// What it cost, and why the connection has to end, if it has to.
fn examine(
    lane: &mut Lane,
    conn: &mut Connection,
    listeners: &[Arc<Listener>],
) -> (usize, Result<(), String>) {
    // Whoever is away has to connect again, and says then who it is.
    if matches!(conn.state, State::Parked | State::Lingering) {
        return (1, Ok(()));
    }
    let mut cost = 1;
    if let Some(socket) = &conn.socket
        && listeners.iter().any(|listener| Arc::ptr_eq(socket.listener(), listener))
    {
        cost += CERTIFICATE_WORK;
        if let Err(fault) = socket.verify_again() {
            return (cost, Err(format!("the client's certificate is good no more: {}", fault.why)));
        }
    }
    let (Some(Access::Granted(granted)), Some(logins)) =
        (conn.access.as_deref_mut(), &lane.shared.options.logins)
    else {
        return (cost, Ok(()));
    };
    if granted.version == logins.version() {
        return (cost, Ok(()));
    }
    cost += GRANT_WORK;
    let common_name = conn.socket.as_ref().and_then(|socket| socket.identity()?.common_name.as_deref());
    match logins.standing().review(granted, &conn.client_id, common_name) {
        Ok(false) => {}
        Ok(true) => forget_will(lane, conn),
        Err(why) => return (cost, Err(why)),
    }
    (cost, Ok(()))
}

/// A will that the client may not publish any more is not published for it.
fn forget_will(lane: &mut Lane, conn: &mut Connection) {
    let Some(session) = &mut conn.session else { return };
    let access = &mut conn.access;
    let denied = session
        .will
        .take_if(|will| !access::may_publish(access, will.message.outgoing().topic, will.message.retain));
    lane.counters.denied_publish += u64::from(denied.is_some());
}
