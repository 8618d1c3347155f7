//! CONNECT packets that wait for somebody to say who the client is.
//!
//! A connection leaves its CONNECT here and is read no further; Python's threads take logins, ask the sources of
//! identities, and answer; the answer goes to the connection's event loop as mail. Number and bytes of what waits
//! are bounded: beyond that a client is refused with 0x89. A connection that waits too long is refused by its
//! loop's timer, and an answer that comes later finds nobody.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::access::Granted;
use super::clock::TICK_MS;
use super::inbox::Mail;
use super::lane::Shared;
use super::registry::ConnId;
use super::standing::Standing;
use super::transport::Transport;
use crate::mqtt::{Connect, ReasonCode};
use crate::policy::Policies;

/// Bytes that an entry takes beside its CONNECT, about.
const ENTRY_BYTES: usize = 256;

/// Who connects, as far as the connection itself shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// Names it when it is answered.
    pub id: u64,
    /// As sent, or as assigned.
    pub client_id: String,
    pub user_name: Option<String>,
    pub password: Option<Vec<u8>>,
    /// The client certificate, which the listener has verified.
    pub certificate: Option<Certificate>,
    pub peer: Option<SocketAddr>,
    /// Name of the listener.
    pub listener: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// SHA-256 of its DER, 64 lower-case hexadecimal digits: what AWS IoT calls a certificate's id.
    pub fingerprint: String,
    /// Common name of its subject.
    pub common_name: Option<String>,
}

/// Who it is, as an identity source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    pub user: String,
    /// Empty: none.
    pub tenant: String,
    pub policies: Vec<String>,
    /// `${iot:Connection.Thing.ThingName}`; empty: none.
    pub thing: String,
    pub attributes: HashMap<String, String>,
    /// Milliseconds since the Unix epoch, UTC, at which its connections end. None: they do not end by themselves.
    pub until_ms: Option<u64>,
    /// Where it stands. None: no file says it, so nothing that is read again ends its connections.
    pub line: Option<Line>,
}

/// A line of a file that a source of identities reads again when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub source: String,
    pub name: String,
    /// Of the file when the line was read; it grows with each change.
    pub version: u64,
    /// Of what the line says; 0: there is none of this name.
    pub mark: u64,
}

/// Bounds of what waits, and the policies of those who come in.
#[derive(Debug)]
pub struct LoginOptions {
    pub max_waiting: usize,
    pub max_waiting_bytes: usize,
    /// A CONNECT that waits longer is refused with 0x88.
    pub timeout: Duration,
    /// At first; see [`Logins::set_policies`].
    pub policies: Policies,
}

#[derive(Debug)]
pub struct Logins {
    max_waiting: usize,
    max_waiting_bytes: usize,
    timeout: Duration,
    standing: RwLock<Arc<Standing>>,
    /// Of `standing`, for those who only want to know whether it has changed.
    version: AtomicU64,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// Set when the gateway runs. Weak, because whoever answers must not keep a stopped gateway's log open.
    gateway: OnceLock<Weak<Shared>>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    bytes: usize,
    asked: HashMap<u64, Asked>,
    /// Not taken yet, oldest first. Those whose connection has ended are no longer in `asked`.
    queue: VecDeque<u64>,
}

#[derive(Debug)]
struct Asked {
    conn: ConnId,
    client_id: Box<str>,
    /// Of the CONNECT packet.
    body: Box<[u8]>,
    origin: Origin,
}

/// What is known of a connection before its CONNECT.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub certificate: Option<Certificate>,
    pub peer: Option<SocketAddr>,
    pub listener: String,
}

impl Origin {
    pub fn of(socket: &Transport) -> Origin {
        let certificate = socket.identity().map(|identity| Certificate {
            fingerprint: identity.fingerprint.clone(),
            common_name: identity.common_name.clone(),
        });
        Origin { certificate, peer: socket.peer(), listener: socket.listener().options.name.clone() }
    }
}

impl Asked {
    fn bytes(&self) -> usize {
        self.body.len() + self.client_id.len() + ENTRY_BYTES
    }

    fn login(&self, id: u64) -> Option<Login> {
        // It parsed when it came.
        let connect = Connect::parse(&self.body).ok()?;
        Some(Login {
            id,
            client_id: self.client_id.to_string(),
            user_name: connect.user_name.map(str::to_owned),
            password: connect.password.map(<[u8]>::to_vec),
            certificate: self.origin.certificate.clone(),
            peer: self.origin.peer,
            listener: self.origin.listener.clone(),
        })
    }
}

/// The answer to a CONNECT, for the loop of its connection.
#[derive(Debug)]
pub(super) struct Answer {
    pub conn: ConnId,
    /// Of the CONNECT packet.
    pub body: Box<[u8]>,
    pub result: Result<Box<Granted>, (ReasonCode, String)>,
}

impl Logins {
    pub fn new(options: LoginOptions) -> Logins {
        let LoginOptions { max_waiting, max_waiting_bytes, timeout, policies } = options;
        let standing = Standing::new(policies);
        Logins {
            max_waiting,
            max_waiting_bytes,
            timeout,
            version: AtomicU64::new(standing.version),
            standing: RwLock::new(Arc::new(standing)),
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            gateway: OnceLock::new(),
        }
    }

    /// Other policies from now on, also for those who are connected: what they may not do any more they cannot do, and who
    /// may not connect any more has its connection ended with 0x87.
    pub fn set_policies(&self, policies: Policies) {
        self.change(|standing| standing.with_policies(policies));
    }

    /// A source has read its file again: connections whose lines are gone or have another mark end with 0x87.
    ///
    /// version: of the file
    /// marks:   by name of the line, all there are
    pub fn set_lines(&self, source: &str, version: u64, marks: HashMap<String, u64>) {
        self.change(|standing| standing.with_lines(source, version, marks));
    }

    fn change(&self, change: impl FnOnce(&Standing) -> Standing) {
        let mut standing = self.standing.write();
        *standing = Arc::new(change(&standing));
        self.version.store(standing.version, Ordering::Release);
        drop(standing);
        if let Some(gateway) = self.gateway.get().and_then(Weak::upgrade) {
            gateway.inboxes.iter().for_each(|inbox| inbox.post(Mail::Review(None)));
        }
    }

    pub(super) fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing.read())
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Ticks that a CONNECT may wait.
    pub(super) fn ticks(&self) -> u32 {
        (self.timeout.as_millis() / u128::from(TICK_MS)).try_into().unwrap_or(u32::MAX)
    }

    /// Where answers go from now on.
    pub(super) fn serve(&self, gateway: &Arc<Shared>) {
        let _ = self.gateway.set(Arc::downgrade(gateway));
    }

    /// Leaves a CONNECT to be answered. `None`: too many wait.
    pub(super) fn ask(&self, conn: ConnId, client_id: &str, body: &[u8], origin: Origin) -> Option<u64> {
        let asked = Asked { conn, client_id: client_id.into(), body: body.into(), origin };
        let mut waiting = self.waiting.lock();
        let bytes = waiting.bytes + asked.bytes();
        if waiting.asked.len() >= self.max_waiting || bytes > self.max_waiting_bytes {
            return None;
        }
        waiting.bytes = bytes;
        waiting.last_id += 1;
        let id = waiting.last_id;
        waiting.asked.insert(id, asked);
        waiting.queue.push_back(id);
        drop(waiting);
        self.arrived.notify_one();
        Some(id)
    }

    /// The connection has ended or its time is up.
    pub(super) fn forget(&self, id: u64) {
        self.waiting.lock().remove(id);
    }

    /// CONNECT packets that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().asked.len()
    }

    /// Logins that nobody has taken yet, oldest first, as soon as there is one; none when time is up. At most `max`
    /// and half of what waits, so that other threads find some too.
    pub fn take(&self, max: usize, timeout: Duration) -> Vec<Login> {
        let mut waiting = self.waiting.lock();
        if waiting.queue.is_empty() {
            self.arrived.wait_for(&mut waiting, timeout);
        }
        let count = waiting.queue.len().div_ceil(2).min(max);
        let ids: Vec<u64> = waiting.queue.drain(..count).collect();
        ids.into_iter().filter_map(|id| waiting.asked.get(&id)?.login(id)).collect()
    }

    /// Lets a client in, if its policies let it connect. False: they do not, and it has been refused; or it has gone.
    pub fn allow(&self, id: u64, principal: &Principal) -> bool {
        let Some(asked) = self.waiting.lock().remove(id) else { return false };
        let common_name = asked.origin.certificate.as_ref().and_then(|each| each.common_name.as_deref());
        let result = self.standing().admit(principal, &asked.client_id, common_name).map(Box::new);
        let allowed = result.is_ok();
        self.answer(asked, result.map_err(|why| (ReasonCode::NotAuthorized, why)));
        allowed
    }

    /// Refuses a client.
    pub fn deny(&self, id: u64, reason: ReasonCode, why: &str) {
        if let Some(asked) = self.waiting.lock().remove(id) {
            self.answer(asked, Err((reason, why.to_owned())));
        }
    }

    fn answer(&self, asked: Asked, result: Result<Box<Granted>, (ReasonCode, String)>) {
        let Some(gateway) = self.gateway.get().and_then(Weak::upgrade) else { return };
        if let Some(inbox) = gateway.inboxes.get(usize::from(asked.conn.thread)) {
            inbox.post(Mail::Answered(Box::new(Answer { conn: asked.conn, body: asked.body, result })));
        }
    }
}

impl Waiting {
    fn remove(&mut self, id: u64) -> Option<Asked> {
        let asked = self.asked.remove(&id)?;
        self.bytes -= asked.bytes();
        // Ids whose connection has gone would pile up where nobody takes them.
        if self.queue.len() > 2 * self.asked.len() + 64 {
            self.queue.retain(|id| self.asked.contains_key(id));
        }
        Some(asked)
    }
}
