//! The listening socket: accepts, and deals connections out to the event loop that has the fewest.
//!
//! One acceptor instead of one listener for each loop (SO_REUSEPORT): the kernel deals by hash, which gives two
//! loops 31 and 19 of 50 connections as easily as 25 each, and the fuller loop sets the pace.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::clock::TICK_MS;
use super::events::EventKind;
use super::inbox::Mail;
use super::lane::Shared;
use crate::mqtt::ReasonCode;

const LISTENER: Token = Token(0);
/// Connections the kernel may hold for us; it takes less if the system allows less.
const BACKLOG: i32 = 4096;

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for old connections to time out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

pub(super) struct Acceptor {
    poll: Poll,
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Acceptor {
    /// `poll` already knows the waker that announces the end.
    pub fn new(poll: Poll, mut listener: TcpListener, shared: Arc<Shared>) -> io::Result<Acceptor> {
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Acceptor { poll, listener, shared })
    }

    pub fn run(mut self) {
        let mut events = Events::with_capacity(8);
        // While accepting fails, the listener is tried again without an event.
        let mut retry = None;
        while !self.shared.stopping.load(Ordering::SeqCst) {
            let _ = self.poll.poll(&mut events, retry);
            retry = self.accept_all();
        }
    }

    fn accept_all(&mut self) -> Option<Duration> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    let _ = socket.set_nodelay(true);
                    let sockets = |thread: usize| {
                        self.shared
                            .inboxes
                            .get(thread)
                            .map_or(usize::MAX, |inbox| inbox.sockets.load(Ordering::Relaxed))
                    };
                    let threads = 0..self.shared.inboxes.len();
                    let total: usize = threads.clone().map(sockets).sum();
                    if total >= self.shared.options.max_connections {
                        self.refuse();
                        continue;
                    }
                    let fewest = threads.min_by_key(|thread| sockets(*thread));
                    if let Some(inbox) = fewest.and_then(|thread| self.shared.inboxes.get(thread)) {
                        inbox.sockets.fetch_add(1, Ordering::Relaxed);
                        inbox.post(Mail::Accepted(socket));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // The peer has gone before we came to it.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    let detail =
                        format!("cannot accept connections: {error}; is the limit of open files too low?");
                    self.shared.events.add(EventKind::AcceptFailed, "", ReasonCode::ServerBusy, detail);
                    return Some(Duration::from_millis(TICK_MS));
                }
            }
        }
    }

    fn refuse(&self) {
        if let Some(shown) = self.shared.accepting() {
            shown.lock().counters.over_max_connections += 1;
        }
        let detail = format!("max_connections = {} are open", self.shared.options.max_connections);
        self.shared.events.add(EventKind::ConnectionRefused, "", ReasonCode::ServerBusy, detail);
    }
}
