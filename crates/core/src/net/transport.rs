//! What a connection reads from and writes to: a socket, or a socket below TLS, WebSocket or the PROXY protocol.
//!
//! MQTT on plain TCP is one branch away from its system calls. Everything else is behind one pointer, so that an idle
//! connection stays small, and hides three things from the event loop: handshakes, bytes that come without any for
//! MQTT (`Interrupted`), and bytes that were taken for writing and wait below (`wants_write`).

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::listener::{Broken, Failure, Fault, Listener, Seat};
use super::proxy_protocol::{self, Header};
use super::tls::{Identity, Tls};
use super::upgrade::{MAX_REQUEST_BYTES, Upgrade, upgrade};
use super::websocket::{self, Control, Decoder};

/// Payload of one frame that we write: what the socket does not take of it waits in memory.
const FRAME_BYTES: usize = 64 << 10;
/// A Ping is not answered while so much waits to be written: the peer takes no answers.
const MAX_WAITING_FOR_PONG: usize = 4 << 10;
/// Buffers above this size are given back when they are empty.
const KEEP_BYTES: usize = 4 << 10;

#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream, Seat),
    Layered(Box<Layered>),
}

/// A connection with something between TCP and MQTT.
#[derive(Debug)]
pub(super) struct Layered {
    stream: TcpStream,
    seat: Seat,
    /// Bytes of the PROXY protocol's header, until it has come.
    proxy: Option<Vec<u8>>,
    /// Whom the balancer speaks for.
    told: Option<SocketAddr>,
    tls: Option<Tls>,
    web: Option<WebSocket>,
    identity: Option<Identity>,
    progress: Progress,
    /// Why it cannot go on, until that is taken.
    fault: Option<Fault>,
    /// We have said that nothing more comes.
    closing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// MQTT has not begun.
    Opening,
    /// MQTT has begun.
    Open,
    /// It cannot go on; what still comes is for nobody.
    Broken,
}

/// Frames in both directions.
#[derive(Debug, Default)]
struct WebSocket {
    /// Bytes of the request, until it has been answered.
    request: Option<Vec<u8>>,
    decoder: Decoder,
    /// Frames that wait to be written, from `at`.
    out: Vec<u8>,
    at: usize,
    /// For our Close frame.
    status: u16,
}

impl Transport {
    pub fn new(stream: TcpStream, listener: &Arc<Listener>) -> Transport {
        let seat = Seat::take(listener);
        if listener.is_plain() {
            return Transport::Plain(stream, seat);
        }
        let options = &listener.options;
        Transport::Layered(Box::new(Layered {
            stream,
            seat,
            proxy: options.proxy_protocol.then(Vec::new),
            told: None,
            tls: listener.tls.is_some().then(Tls::new),
            web: options.websocket.is_some().then(|| WebSocket {
                request: Some(Vec::new()),
                status: websocket::NORMAL,
                ..WebSocket::default()
            }),
            identity: None,
            progress: Progress::Opening,
            fault: None,
            closing: false,
        }))
    }

    /// Reads MQTT once. Gives the bytes, none: the peer writes nothing more; and whether there may be more without a
    /// further event. `buffer` has room for 64 KiB at least, of which a layer may need all, else no more than `most` are
    /// filled.
    #[inline]
    pub fn read(&mut self, buffer: &mut [u8], most: usize) -> io::Result<(usize, bool)> {
        match self {
            // A short read has emptied the socket.
            Transport::Plain(stream, _) => {
                let most = most.min(buffer.len());
                stream.read(&mut buffer[..most]).map(|taken| (taken, taken == most))
            }
            Transport::Layered(layered) => layered.read(buffer),
        }
    }

    /// Takes bytes of MQTT for writing.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(stream, _) => stream.write(bytes),
            Transport::Layered(layered) => layered.write(bytes),
        }
    }

    /// The socket, where nothing is between it and MQTT.
    #[inline]
    pub fn plain(&self) -> Option<RawFd> {
        match self {
            Transport::Plain(stream, _) => Some(stream.as_raw_fd()),
            Transport::Layered(_) => None,
        }
    }

    /// Writes what was taken and waits. True: all of it; false: the socket is full and will tell when it is not.
    #[inline]
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Transport::Plain(..) => Ok(true),
            Transport::Layered(layered) => layered.flush(),
        }
    }

    /// Whether something that was taken waits.
    #[inline]
    pub fn wants_write(&self) -> bool {
        match self {
            Transport::Plain(..) => false,
            Transport::Layered(layered) => layered.wants_write(),
        }
    }

    /// Says that nothing more comes, behind what was flushed.
    pub fn shutdown(&mut self) {
        match self {
            Transport::Plain(stream, _) => {
                let _ = stream.shutdown(Shutdown::Write);
            }
            Transport::Layered(layered) => layered.shutdown(),
        }
    }

    /// Whether a connection of which nothing more is wanted is to be closed by both sides, not at once.
    pub fn says_goodbye(&self) -> bool {
        matches!(self, Transport::Layered(layered) if layered.progress == Progress::Open)
    }

    /// Why a read has failed, if not for the socket.
    pub fn take_fault(&mut self) -> Option<Fault> {
        match self {
            Transport::Plain(..) => None,
            Transport::Layered(layered) => layered.fault.take(),
        }
    }

    /// The time for opening is over.
    pub fn timed_out(&mut self) {
        if let Transport::Layered(layered) = self {
            layered.fail(Failure::Timeout);
        }
    }

    pub fn listener(&self) -> &Arc<Listener> {
        match self {
            Transport::Plain(_, seat) => &seat.0,
            Transport::Layered(layered) => &layered.seat.0,
        }
    }

    /// Where the client is: what a balancer tells, else the socket's other end while it is connected.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Transport::Plain(stream, _) => stream.peer_addr().ok(),
            Transport::Layered(layered) => layered.told.or_else(|| layered.stream.peer_addr().ok()),
        }
    }

    /// Who the client is by its certificate.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Transport::Plain(..) => None,
            Transport::Layered(layered) => layered.identity.as_ref(),
        }
    }

    /// Address, listener and certificate in words, for events.
    pub fn origin(&self) -> String {
        let mut origin = self.peer().map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        let _ = write!(origin, " by {}", self.listener().options.name);
        if let Some(identity) = self.identity() {
            let _ = write!(origin, ", certificate {}", identity.fingerprint);
            if let Some(common_name) = &identity.common_name {
                let _ = write!(origin, " ({common_name})");
            }
        }
        origin
    }

    /// Whether the client's certificate, if it has one, is good by the files as they are now.
    pub fn verify_again(&self) -> Result<(), Fault> {
        match self {
            Transport::Layered(layered) => match (&layered.tls, &layered.seat.0.tls) {
                (Some(tls), Some(context)) => tls.verify_again(context),
                _ => Ok(()),
            },
            Transport::Plain(..) => Ok(()),
        }
    }

    fn stream(&mut self) -> &mut TcpStream {
        match self {
            Transport::Plain(stream, _) => stream,
            Transport::Layered(layered) => &mut layered.stream,
        }
    }
}

impl Source for Transport {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.stream().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.stream().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.stream().deregister(registry)
    }
}

impl Layered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        if self.progress == Progress::Broken || self.closing {
            // For nobody, but it must be read: closing with unread bytes could destroy our last ones on their way.
            return self.stream.read(buffer).map(|taken| (taken, taken == buffer.len()));
        }
        match self.take(buffer) {
            Ok((0, _)) => {
                self.fail(Failure::Closed);
                Ok((0, false))
            }
            Ok(taken) => Ok(taken),
            Err(Broken::Io(error)) => {
                if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    self.fail(Failure::Closed);
                }
                Err(error)
            }
            Err(Broken::Fault(fault)) => {
                self.fail(fault.failure);
                self.progress = Progress::Broken;
                self.fault = Some(fault);
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }

    /// Counts a connection that ends before MQTT has begun, once.
    fn fail(&mut self, failure: Failure) {
        if self.progress == Progress::Opening {
            self.progress = Progress::Broken;
            self.seat.0.failed(failure);
        }
    }

    fn take(&mut self, buffer: &mut [u8]) -> Result<(usize, bool), Broken> {
        self.read_proxy()?;
        let (taken, more) = match (&mut self.tls, &self.seat.0.tls) {
            (Some(tls), Some(context)) => {
                let taken = tls.read(&mut self.stream, context, buffer);
                if let Some(handshake) = tls.handshake.take() {
                    self.seat.0.handshake(handshake.resumed);
                    self.identity = handshake.identity;
                    if self.web.is_none() {
                        self.progress = Progress::Open;
                    }
                }
                taken?
            }
            _ => {
                let taken = self.stream.read(buffer)?;
                (taken, taken == buffer.len())
            }
        };
        let Some(web) = &mut self.web else {
            if self.tls.is_none() && taken > 0 {
                self.progress = Progress::Open;
            }
            return Ok((taken, more));
        };
        if taken == 0 {
            return Ok((0, false));
        }
        let origins = self.seat.0.options.websocket.as_ref().map_or(&[][..], |options| &options.origins);
        let outcome = web.received(buffer, taken, origins);
        if web.request.is_none() && outcome.is_ok() {
            self.progress = Progress::Open;
        }
        // The answer to the request, to a Ping or to a Close.
        self.flush()?;
        match outcome? {
            0 if self.web.as_ref().is_some_and(|web| web.decoder.closed) => Ok((0, false)),
            0 => Err(io::Error::from(io::ErrorKind::Interrupted).into()),
            payload => Ok((payload, more || self.web.as_ref().is_some_and(|web| web.decoder.closed))),
        }
    }

    /// Reads the header of the PROXY protocol and not a byte more.
    fn read_proxy(&mut self) -> Result<(), Broken> {
        while let Some(header) = &mut self.proxy {
            let needed = match proxy_protocol::parse(header) {
                Ok(Header::Incomplete { needed }) => needed,
                Ok(Header::Complete { source, .. }) => {
                    self.told = source;
                    self.proxy = None;
                    break;
                }
                Err(error) => return Err(Fault::new(Failure::Proxy, error.to_string()).into()),
            };
            let mut piece = [0; 256];
            let wanted = (needed - header.len()).min(piece.len());
            match self.stream.read(&mut piece[..wanted])? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                taken => header.extend_from_slice(&piece[..taken]),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.progress == Progress::Broken {
            // The peer could not read it.
            return Ok(bytes.len());
        }
        if !self.flush_frames()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(web) = &mut self.web else { return self.write_below(bytes) };
        let taken = bytes.len().min(FRAME_BYTES);
        websocket::binary(&mut web.out, &bytes[..taken]);
        self.flush_frames()?;
        Ok(taken)
    }

    fn write_below(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_below(&mut self.tls, &mut self.stream, bytes)
    }

    fn flush(&mut self) -> io::Result<bool> {
        let frames = self.flush_frames()?;
        let below = match &mut self.tls {
            Some(tls) => tls.push(&mut self.stream)?,
            None => true,
        };
        Ok(frames && below)
    }

    fn flush_frames(&mut self) -> io::Result<bool> {
        let Some(web) = &mut self.web else { return Ok(true) };
        while web.at < web.out.len() {
            match write_below(&mut self.tls, &mut self.stream, &web.out[web.at..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => web.at += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        web.at = 0;
        web.out.clear();
        if web.out.capacity() > KEEP_BYTES {
            web.out = Vec::new();
        }
        Ok(true)
    }

    fn wants_write(&self) -> bool {
        self.web.as_ref().is_some_and(|web| web.at < web.out.len())
            || self.tls.as_ref().is_some_and(Tls::wants_write)
    }

    fn shutdown(&mut self) {
        if !self.closing {
            self.closing = true;
            let opened = self.progress == Progress::Open;
            if let Some(web) = self.web.as_mut().filter(|web| web.request.is_none()) {
                // Of a request that was refused the answer was the goodbye.
                if (opened || web.status != websocket::NORMAL) && !web.decoder.closed {
                    websocket::close(&mut web.out, web.status);
                }
            }
            let _ = self.flush_frames();
            if let Some(tls) = self.tls.as_mut().filter(|_| opened || self.web.is_some()) {
                tls.close();
            }
        }
        if matches!(self.flush(), Ok(true)) {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

fn write_below(tls: &mut Option<Tls>, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match tls {
        Some(tls) => tls.write(stream, bytes),
        None => stream.write(bytes),
    }
}

impl WebSocket {
    /// Turns `taken` bytes of the peer into those of MQTT, at the beginning of `buffer`, and gives their number.
    fn received(&mut self, buffer: &mut [u8], taken: usize, origins: &[String]) -> Result<usize, Fault> {
        let mut begin = 0;
        if let Some(request) = &mut self.request {
            let before = request.len();
            let room = MAX_REQUEST_BYTES.saturating_sub(before);
            request.extend_from_slice(&buffer[..taken.min(room)]);
            match upgrade(request, origins) {
                Ok(Upgrade::Incomplete) => return Ok(0),
                Ok(Upgrade::Accepted { total, answer }) => {
                    begin = total.saturating_sub(before).min(taken);
                    self.request = None;
                    self.out.extend_from_slice(answer.as_bytes());
                }
                Err(refusal) => {
                    self.request = None;
                    self.out.extend_from_slice(refusal.answer().as_bytes());
                    return Err(Fault::new(Failure::Http, refusal.why));
                }
            }
        }
        let (out, waiting) = (&mut self.out, self.at);
        let decoded = self.decoder.decode(&mut buffer[begin..taken], |control| match control {
            Control::Ping(payload) if out.len() - waiting < MAX_WAITING_FOR_PONG => {
                websocket::pong(out, payload)
            }
            Control::Ping(_) => {}
            Control::Close(status) => websocket::close(out, status.unwrap_or(websocket::NORMAL)),
        });
        match decoded {
            Ok(payload) => {
                buffer.copy_within(begin..begin + payload, 0);
                Ok(payload)
            }
            Err(error) => {
                self.status = error.status;
                Err(Fault::new(Failure::Frames, error.why))
            }
        }
    }
}
