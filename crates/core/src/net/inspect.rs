//! Questions to the event loops: who is connected, what waits for a client; and ending a connection by hand.
//!
//! Connections belong to their loops, so a question goes to the loop as mail and its answer comes through a channel. One
//! question looks at a bounded number of connections, so that no pass becomes long.

use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use super::access;
use super::clock::TICK_MS;
use super::connection::{Connection, State};
use super::ending::Ending;
use super::fanout::Subscriber;
use super::gateway::Gateway;
use super::glob::Glob;
use super::inbox::Mail;
use super::lane::End;
use super::registry::ConnId;
use super::worker::Worker;
use crate::mqtt::{ReasonCode, Version};

/// Places for connections that one question looks at.
const SLOTS: usize = 4096;
/// Questions for one page: it may hold fewer clients than fit, or none, and say where to go on.
const QUESTIONS: usize = 32;
/// Longest wait for a loop.
const PATIENCE: Duration = Duration::from_secs(5);
/// Subscriptions that one answer shows.
const MAX_SHOWN: usize = 1000;
/// A keep alive of one second in ticks of silence (section 3.1.2.10).
const SILENCE_TICKS: u32 = 3 * (1000 / TICK_MS) as u32 / 2;

/// A client that is connected, or away with a session that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSummary {
    pub client_id: String,
    pub connected: bool,
    /// Milliseconds since the Unix epoch, UTC: of the CONNACK of its last connection.
    pub connected_at_ms: u64,
    pub address: Option<SocketAddr>,
    /// Empty while it is away.
    pub listener: String,
    pub version: Version,
    /// Empty: anonymous.
    pub user: String,
    pub tenant: String,
}

/// What one client has and what waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientDetail {
    pub summary: ClientSummary,
    /// 0: none.
    pub keep_alive_s: u32,
    pub clean_start: bool,
    /// `u32::MAX`: for ever.
    pub session_expiry_s: u32,
    pub will_topic: Option<String>,
    /// SHA-256 of its certificate.
    pub certificate: Option<String>,
    /// Its session outlives the process.
    pub durable: bool,
    /// The client's receive maximum.
    pub receive_maximum: u16,
    /// Messages from the client that are not acknowledged yet.
    pub unacknowledged: u32,
    /// Messages to the client that it has not acknowledged.
    pub inflight: usize,
    /// Messages that wait for its window or its return, and their bytes with those of the kept ones in flight.
    pub queued: usize,
    pub queued_bytes: usize,
    /// Encoded bytes that its socket has not taken.
    pub unsent_bytes: usize,
    /// It sends faster than its rate and waits.
    pub held_back: bool,
    /// How many there are; the list has a thousand at most.
    pub subscription_count: usize,
    pub subscriptions: Vec<ClientSubscription>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSubscription {
    /// Of a shared subscription the filter below its name.
    pub filter: String,
    pub shared: bool,
    pub qos: u8,
}

/// Clients of one page, and where the next begins, if there is more.
#[derive(Clone, Debug, Default)]
pub struct ClientPage {
    pub clients: Vec<ClientSummary>,
    pub next: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kicked {
    /// Its connection has ended, and its session where that was asked for.
    Connection,
    /// It was away; its session has ended.
    Session,
    /// It is away, and nobody asked to end its session.
    Away,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event loop does not answer")]
pub struct LoopBusy;

#[derive(Debug)]
pub(super) enum Question {
    List { from: usize, glob: Glob, connected: Option<bool>, most: usize, answer: SyncSender<Listed> },
    Show { conn: ConnId, answer: SyncSender<Option<Box<ClientDetail>>> },
    Kick { conn: ConnId, session: bool, answer: SyncSender<Kicked> },
}

#[derive(Debug)]
pub(super) struct Listed {
    clients: Vec<ClientSummary>,
    /// None: there are no more on this loop.
    next: Option<usize>,
}

impl Gateway {
    /// Clients whose id begins with `search`, or matches it where it has `*` or `?`; in no particular order.
    ///
    /// connected: only such as are connected, or only such as are away
    /// after:     `next` of the page before; 0: from the start
    ///
    /// Who comes or goes between two pages may be missing or be there twice.
    pub fn clients(
        &self,
        search: &str,
        connected: Option<bool>,
        after: u64,
        most: usize,
    ) -> Result<ClientPage, LoopBusy> {
        let glob = Glob::new(search);
        let (mut thread, mut from) = ((after >> 32) as usize, after as u32 as usize);
        let mut page = ClientPage::default();
        let mut questions = 0;
        while let Some(inbox) = self.shared.inboxes.get(thread) {
            questions += 1;
            let (answer, answered) = sync_channel(1);
            let room = most - page.clients.len();
            let question = Question::List { from, glob: glob.clone(), connected, most: room, answer };
            inbox.post(Mail::Ask(Box::new(question)));
            let listed = answered.recv_timeout(PATIENCE).map_err(|_| LoopBusy)?;
            page.clients.extend(listed.clients);
            (thread, from) = match listed.next {
                Some(next) => (thread, next),
                None => (thread + 1, 0),
            };
            let full = page.clients.len() >= most || questions == QUESTIONS;
            if full && thread < self.shared.inboxes.len() {
                page.next = Some((thread as u64) << 32 | from as u64);
                break;
            }
        }
        Ok(page)
    }

    /// One client, if it is connected or has a session.
    pub fn client(&self, client_id: &str) -> Result<Option<Box<ClientDetail>>, LoopBusy> {
        self.ask(client_id, |conn, answer| Question::Show { conn, answer }).map(Option::flatten)
    }

    /// Ends a client's connection with 0x98; `session`: its session too.
    pub fn kick(&self, client_id: &str, session: bool) -> Result<Kicked, LoopBusy> {
        let kicked = self.ask(client_id, |conn, answer| Question::Kick { conn, session, answer })?;
        Ok(kicked.unwrap_or(Kicked::Unknown))
    }

    fn ask<T>(
        &self,
        client_id: &str,
        question: impl Fn(ConnId, SyncSender<T>) -> Question,
    ) -> Result<Option<T>, LoopBusy> {
        let Some(conn) = self.shared.registry.owner(client_id) else { return Ok(None) };
        let Some(inbox) = self.shared.inboxes.get(usize::from(conn.thread)) else { return Ok(None) };
        let (answer, answered) = sync_channel(1);
        inbox.post(Mail::Ask(Box::new(question(conn, answer))));
        answered.recv_timeout(PATIENCE).map(Some).map_err(|_| LoopBusy)
    }
}

impl Worker {
    /// An answer that nobody waits for any more is dropped.
    pub(super) fn answer(&mut self, question: Question) {
        match question {
            Question::List { from, glob, connected, most, answer } => {
                let _ = answer.try_send(self.list(from, &glob, connected, most));
            }
            Question::Show { conn, answer } => {
                let _ = answer.try_send(self.find(conn).map(|found| Box::new(self.detail(conn, found))));
            }
            Question::Kick { conn, session, answer } => {
                let _ = answer.try_send(self.kick(conn, session));
            }
        }
    }

    fn find(&self, id: ConnId) -> Option<&Connection> {
        let conn = self.conns.get(id.slot as usize).filter(|conn| conn.generation == id.generation)?;
        matches!(conn.state, State::Up | State::Parked).then_some(conn)
    }

    fn list(&self, from: usize, glob: &Glob, connected: Option<bool>, most: usize) -> Listed {
        let end = self.conns.capacity();
        let mut clients = Vec::new();
        let mut at = from;
        while at < end.min(from + SLOTS) && clients.len() < most {
            if let Some(conn) = self.conns.get(at)
                && matches!(conn.state, State::Up | State::Parked)
                && connected.is_none_or(|connected| connected == (conn.state == State::Up))
                && glob.matches(&conn.client_id)
            {
                clients.push(summary(conn));
            }
            at += 1;
        }
        Listed { clients, next: (at < end).then_some(at) }
    }

    fn detail(&self, id: ConnId, conn: &Connection) -> ClientDetail {
        let session = conn.session.as_ref();
        let out = conn.out.as_ref();
        let trie = self.lane.shared.subscriptions.read();
        let subscriptions = conn.subscriptions.iter().take(MAX_SHOWN);
        let subscriptions = subscriptions
            .map(|held| ClientSubscription {
                filter: trie.filter(held.node),
                shared: held.group != 0,
                qos: trie
                    .value_at(held.node, &Subscriber::of(id, held.group))
                    .map_or(0, |found| found.qos() as u8),
            })
            .collect();
        ClientDetail {
            summary: summary(conn),
            keep_alive_s: conn.silence / SILENCE_TICKS,
            clean_start: conn.wishes.clean_start(),
            session_expiry_s: session.map_or(0, |session| session.expiry_s),
            durable: conn.durable() != 0,
            will_topic: session
                .and_then(|session| session.will.as_ref())
                .map(|will| will.message.outgoing().topic.to_owned()),
            certificate: conn
                .socket
                .as_ref()
                .and_then(|socket| socket.identity())
                .map(|identity| identity.fingerprint.clone()),
            receive_maximum: conn.receive_maximum,
            unacknowledged: conn.unacknowledged,
            inflight: out.map_or(0, |out| out.waiting().inflight),
            queued: out.map_or(0, |out| out.waiting().queued),
            queued_bytes: out.map_or(0, |out| out.waiting().bytes),
            unsent_bytes: conn.pending(),
            held_back: conn.is_paused(),
            subscription_count: conn.subscriptions.len(),
            subscriptions,
        }
    }

    fn kick(&mut self, id: ConnId, session: bool) -> Kicked {
        let Some(state) = self.find(id).map(|conn| conn.state) else { return Kicked::Unknown };
        if state == State::Parked {
            if !session {
                return Kicked::Away;
            }
            self.end_session(id.slot);
            self.remove(id.slot);
            return Kicked::Session;
        }
        if session
            && let Some(conn) = self.conns.get_mut(id.slot as usize)
            && let Some(kept) = &mut conn.session
        {
            kept.expiry_s = 0;
        }
        let why = "an administrator has ended the connection";
        self.end(id.slot, Ending::Ours(End::new(ReasonCode::AdministrativeAction, why)));
        Kicked::Connection
    }
}

fn summary(conn: &Connection) -> ClientSummary {
    let (user, tenant) = access::owner(&conn.access).unwrap_or_default();
    let socket = conn.socket.as_ref();
    ClientSummary {
        client_id: conn.client_id.to_string(),
        connected: conn.state == State::Up,
        connected_at_ms: conn.since_ms,
        address: socket.and_then(|socket| socket.peer()),
        listener: socket.map_or_else(String::new, |socket| socket.listener().options.name.clone()),
        version: conn.version,
        user: user.to_owned(),
        tenant: tenant.to_owned(),
    }
}
