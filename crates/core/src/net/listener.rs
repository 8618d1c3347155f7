//! Listeners: what each is told to be, the socket it accepts on, and what it counts.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

use super::limits::{Limit, ListenerLimits, Tally};
use super::tls::TlsContext;
use crate::mqtt::ReasonCode;

/// Connections the kernel may hold for us; it takes less if the system allows less.
const BACKLOG: i32 = 4096;

/// One listener. Port 0 picks a free one; [`super::Gateway::listeners`] tells which.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// Names it in metrics, events and `run.json`.
    pub name: String,
    pub address: SocketAddr,
    /// None: plain TCP.
    pub tls: Option<TlsFiles>,
    /// None: MQTT right on TCP or TLS.
    pub websocket: Option<WebSocketOptions>,
    /// Every connection begins with a header of the PROXY protocol, version 2, and is from the peer that it tells.
    pub proxy_protocol: bool,
    /// Above it a new connection of this listener is closed at once and counted; the bound over all holds too.
    pub max_connections: usize,
    pub limits: ListenerLimits,
}

impl ListenerOptions {
    /// Plain MQTT over TCP.
    pub fn plain(name: &str, address: SocketAddr) -> ListenerOptions {
        ListenerOptions {
            name: name.to_owned(),
            address,
            tls: None,
            websocket: None,
            proxy_protocol: false,
            max_connections: usize::MAX,
            limits: ListenerLimits::default(),
        }
    }
}

/// PEM files of a listener. They are read at the start, when they change and when the gateway is told to.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate and those between it and its CA, in this order.
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub clients: ClientCertificates,
}

#[derive(Clone, Debug)]
pub enum ClientCertificates {
    /// Clients are not asked for one.
    Ignored,
    Verified {
        /// Certificates of the authorities that issue those of clients.
        ca: PathBuf,
        /// Revocation lists of all of these authorities; None: nothing is looked up.
        crl: Option<PathBuf>,
        /// false: a client may come without one; what it shows must be good all the same.
        required: bool,
    },
}

#[derive(Clone, Debug, Default)]
pub struct WebSocketOptions {
    /// Pages whose scripts may connect, as in the header `Origin`, beside those of the same host; `*`: all.
    pub origins: Vec<String>,
}

/// Why a connection did not come as far as MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The first-packet timeout was over.
    Timeout,
    /// The peer went away, or its network did.
    Closed,
    /// No header of the PROXY protocol, or a wrong one.
    Proxy,
    /// Not TLS, or nothing in common.
    Tls,
    /// The client does not trust our certificate, or says it has another problem.
    Alert,
    /// The client has no certificate, and one is required.
    CertificateMissing,
    CertificateRevoked,
    CertificateExpired,
    /// Issued by nobody we know, or not for clients, or broken.
    CertificateInvalid,
    /// Not the request that opens a WebSocket for MQTT.
    Http,
    /// Frames that the standard of WebSocket forbids.
    Frames,
}

impl Failure {
    pub const ALL: [Failure; 11] = [
        Failure::Timeout,
        Failure::Closed,
        Failure::Proxy,
        Failure::Tls,
        Failure::Alert,
        Failure::CertificateMissing,
        Failure::CertificateRevoked,
        Failure::CertificateExpired,
        Failure::CertificateInvalid,
        Failure::Http,
        Failure::Frames,
    ];

    /// The name in metrics and events.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::Closed => "closed",
            Failure::Proxy => "proxy",
            Failure::Tls => "tls",
            Failure::Alert => "alert",
            Failure::CertificateMissing => "certificate-missing",
            Failure::CertificateRevoked => "certificate-revoked",
            Failure::CertificateExpired => "certificate-expired",
            Failure::CertificateInvalid => "certificate-invalid",
            Failure::Http => "http",
            Failure::Frames => "frames",
        }
    }
}

/// A connection that cannot go on, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub failure: Failure,
    pub why: Cow<'static, str>,
}

impl Fault {
    pub fn new(failure: Failure, why: impl Into<Cow<'static, str>>) -> Fault {
        Fault { failure, why: why.into() }
    }
}

/// Why a read gave nothing.
#[derive(Debug)]
pub(super) enum Broken {
    /// Of the socket; `WouldBlock` and `Interrupted` are no ends.
    Io(io::Error),
    Fault(Fault),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Io(error)
    }
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Broken {
        Broken::Fault(fault)
    }
}

/// What a listener is and has counted since the start.
#[derive(Clone, Debug)]
pub struct ListenerStatus {
    pub name: String,
    /// `tcp`, `tls`, `ws` or `wss`.
    pub transport: &'static str,
    pub address: SocketAddr,
    /// Sockets open now, also those that have not come as far as MQTT.
    pub connections: u64,
    pub accepted: u64,
    /// Closed on accept, because a bound of connections was reached.
    pub refused: u64,
    /// TLS handshakes that were completed, and how many of them resumed an earlier session.
    pub handshakes: u64,
    pub resumed: u64,
    /// Reasons that occurred.
    pub failures: Vec<(Failure, u64)>,
    /// Limits that were reached, how often.
    pub limits: Vec<(Limit, u64)>,
    /// CONNECT packets that were refused, and connections that we ended, by reason.
    pub refusals: Vec<(ReasonCode, u64)>,
    pub endings: Vec<(ReasonCode, u64)>,
}

/// A listener that runs, shared by the acceptor and the connections that it accepted.
#[derive(Debug)]
pub(super) struct Listener {
    pub options: ListenerOptions,
    /// As bound.
    pub address: SocketAddr,
    pub tls: Option<TlsContext>,
    open: AtomicUsize,
    accepted: AtomicU64,
    refused: AtomicU64,
    handshakes: AtomicU64,
    resumed: AtomicU64,
    failures: Tally<{ Failure::ALL.len() }>,
    limits: Tally<{ Limit::ALL.len() }>,
    refusals: Tally<{ ReasonCode::ALL.len() }>,
    endings: Tally<{ ReasonCode::ALL.len() }>,
}

impl Listener {
    pub fn new(options: ListenerOptions, address: SocketAddr, tls: Option<TlsContext>) -> Listener {
        Listener {
            options,
            address,
            tls,
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            handshakes: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            failures: Tally::default(),
            limits: Tally::default(),
            refusals: Tally::default(),
            endings: Tally::default(),
        }
    }

    /// Whether nothing stands between TCP and MQTT.
    pub fn is_plain(&self) -> bool {
        self.tls.is_none() && self.options.websocket.is_none() && !self.options.proxy_protocol
    }

    pub fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.options.max_connections
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn failed(&self, failure: Failure) {
        self.failures.count(&Failure::ALL, failure);
    }

    pub fn limited(&self, limit: Limit) {
        self.limits.count(&Limit::ALL, limit);
    }

    pub fn refused_connect(&self, reason: ReasonCode) {
        self.refusals.count(ReasonCode::ALL, reason);
    }

    pub fn ended(&self, reason: ReasonCode) {
        self.endings.count(ReasonCode::ALL, reason);
    }

    pub fn handshake(&self, resumed: bool) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        self.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
    }

    pub fn status(&self) -> ListenerStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ListenerStatus {
            name: self.options.name.clone(),
            transport: match (self.tls.is_some(), self.options.websocket.is_some()) {
                (false, false) => "tcp",
                (true, false) => "tls",
                (false, true) => "ws",
                (true, true) => "wss",
            },
            address: self.address,
            connections: self.open.load(Ordering::Relaxed) as u64,
            accepted: count(&self.accepted),
            refused: count(&self.refused),
            handshakes: count(&self.handshakes),
            resumed: count(&self.resumed),
            failures: self.failures.list(&Failure::ALL),
            limits: self.limits.list(&Limit::ALL),
            refusals: self.refusals.list(ReasonCode::ALL),
            endings: self.endings.list(ReasonCode::ALL),
        }
    }
}

/// One connection's place among those of its listener; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Seat(pub Arc<Listener>);

impl Seat {
    pub fn take(listener: &Arc<Listener>) -> Seat {
        listener.open.fetch_add(1, Ordering::Relaxed);
        listener.accepted.fetch_add(1, Ordering::Relaxed);
        Seat(Arc::clone(listener))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for old connections to time out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_given_back_and_failures_are_counted_by_reason() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = ListenerOptions { max_connections: 1, ..ListenerOptions::plain("mqtt", address) };
        let listener = Arc::new(Listener::new(options, address, None));
        assert!(listener.is_plain() && !listener.is_full());
        let seat = Seat::take(&listener);
        assert!(listener.is_full());
        drop(seat);
        assert!(!listener.is_full());
        for (count, failure) in Failure::ALL.into_iter().enumerate() {
            (0..count).for_each(|_| listener.failed(failure));
        }
        let status = listener.status();
        assert_eq!((status.transport, status.connections, status.accepted), ("tcp", 0, 1));
        let wanted: Vec<_> = Failure::ALL.into_iter().zip(0..).skip(1).collect();
        assert_eq!(status.failures, wanted);
    }
}
