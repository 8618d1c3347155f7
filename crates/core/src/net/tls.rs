//! TLS 1.2 and 1.3 by rustls: the files of a listener, and one connection without its socket's readiness.
//!
//! Files are read anew by [`TlsContext::reload`]; connections that live keep what they began with, and no session of
//! before can be resumed, since resuming one looks at no certificate again.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore, ServerConfig, ServerConnection};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::listener::{Broken, ClientCertificates, Failure, Fault, TlsFiles};

/// Application protocols of MQTT on TLS; AWS devices ask for the second on port 443.
pub(super) const MQTT_PROTOCOLS: [&[u8]; 2] = [b"mqtt", b"x-amzn-mqtt-ca"];
pub(super) const HTTP_PROTOCOLS: [&[u8]; 1] = [b"http/1.1"];

/// Sessions of TLS 1.2 clients without tickets that can be resumed, of each listener. Ours.
const SESSIONS: usize = 4096;
/// Taken from a socket at a time.
const READ_BYTES: usize = 64 << 10;
/// More than the plaintext of one record.
const RECORD_BYTES: usize = 20 << 10;

thread_local! {
    /// What a socket gave, on its way into rustls.
    static RECEIVED: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What a listener's files say, and can say anew.
#[derive(Debug)]
pub(super) struct TlsContext {
    files: TlsFiles,
    protocols: Vec<Vec<u8>>,
    current: RwLock<Arc<Configs>>,
    watched: Mutex<Watched>,
}

#[derive(Debug)]
struct Configs {
    /// For clients that offer one of our application protocols.
    negotiating: Arc<ServerConfig>,
    /// For all others: one that offers only protocols which are not ours is served all the same.
    silent: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// Time of change, size and inode of each file; None: it cannot be looked at.
type Stamps = Vec<Option<(SystemTime, u64, u64)>>;

#[derive(Debug)]
struct Watched {
    /// As of the files that were read last, well or not.
    read: Stamps,
    /// As of the last look.
    seen: Stamps,
}

impl TlsContext {
    /// Errors say which file, and what is wrong with it.
    pub fn new(files: TlsFiles, protocols: &[&[u8]]) -> Result<TlsContext, String> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|name| name.to_vec()).collect();
        let stamps = stamps(&files);
        let configs = Configs::read(&files, &protocols)?;
        Ok(TlsContext {
            files,
            protocols,
            current: RwLock::new(Arc::new(configs)),
            watched: Mutex::new(Watched { read: stamps.clone(), seen: stamps }),
        })
    }

    /// Reads the files anew. With an error everything stays as it is.
    pub fn reload(&self) -> Result<(), String> {
        let stamps = stamps(&self.files);
        *self.watched.lock() = Watched { read: stamps.clone(), seen: stamps };
        let configs = Configs::read(&self.files, &self.protocols)?;
        *self.current.write() = Arc::new(configs);
        Ok(())
    }

    /// Whether files have changed since they were read, and not since the last look: a certificate and its key are
    /// not written in one moment.
    pub fn has_changed(&self) -> bool {
        let stamps = stamps(&self.files);
        let mut watched = self.watched.lock();
        let at_rest = stamps == watched.seen;
        watched.seen = stamps;
        at_rest && watched.seen != watched.read
    }

    fn configs(&self) -> Arc<Configs> {
        Arc::clone(&self.current.read())
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    let mut paths = vec![&files.certificate, &files.key];
    if let ClientCertificates::Verified { ca, crl, .. } = &files.clients {
        paths.push(ca);
        paths.extend(crl);
    }
    let stamp = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len(), found.ino()))
    };
    paths.into_iter().map(|path| stamp(path)).collect()
}

impl Configs {
    fn read(files: &TlsFiles, protocols: &[Vec<u8>]) -> Result<Configs, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain: Vec<CertificateDer<'static>> = pem(&files.certificate, "certificate")?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| format!("reading the private key {}: {error}", files.key.display()))?;
        let verifier = match &files.clients {
            ClientCertificates::Ignored => None,
            ClientCertificates::Verified { ca, crl, required } => {
                let mut roots = RootCertStore::empty();
                for certificate in pem(ca, "certificate")? {
                    roots
                        .add(certificate)
                        .map_err(|error| format!("reading the client CA {}: {error}", ca.display()))?;
                }
                let lists: Vec<CertificateRevocationListDer<'static>> = match crl {
                    Some(crl) => pem(crl, "revocation list")?,
                    None => Vec::new(),
                };
                let builder =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
                let builder = builder.with_crls(lists);
                let builder = if *required { builder } else { builder.allow_unauthenticated() };
                let about = crl.as_ref().unwrap_or(ca).display();
                Some(builder.build().map_err(|error| format!("using {about}: {error}"))?)
            }
        };
        let (certificate, key_path) = (files.certificate.display(), files.key.display());
        let wrong = |error| format!("using the certificate {certificate} with the key {key_path}: {error}");
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut silent = builder.with_single_cert(chain, key).map_err(wrong)?;
        silent.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        silent.ticketer = rustls::crypto::ring::Ticketer::new().map_err(wrong)?;
        let mut negotiating = silent.clone();
        negotiating.alpn_protocols = protocols.to_vec();
        Ok(Configs { negotiating: Arc::new(negotiating), silent: Arc::new(silent), verifier })
    }
}

/// All objects of a kind in a PEM file, one at least.
fn pem<T: PemObject>(path: &Path, what: &str) -> Result<Vec<T>, String> {
    let found = T::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<T>, _>>)
        .map_err(|error| format!("reading {}: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("reading {}: there is no {what} in PEM format", path.display()));
    }
    Ok(found)
}

/// Who a client is by its certificate, which was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// SHA-256 of the certificate in DER, as 64 lower-case hexadecimal digits.
    pub fingerprint: String,
    /// First common name of the subject.
    pub common_name: Option<String>,
    /// Seconds since the Unix epoch after which the certificate counts no more.
    not_after: i64,
}

impl Identity {
    /// Milliseconds since the Unix epoch, UTC, from which the certificate counts no more: it does in its last second.
    pub fn until_ms(&self) -> u64 {
        u64::try_from(self.not_after).unwrap_or(0).saturating_add(1).saturating_mul(1000)
    }

    fn of(certificate: &[u8]) -> Result<Identity, Fault> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| {
            Fault::new(
                Failure::CertificateInvalid,
                format!("the client's certificate cannot be read: {error}"),
            )
        })?;
        let common_name = parsed.subject().iter_common_name().find_map(|name| name.as_str().ok());
        let hash = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut fingerprint = String::with_capacity(64);
        for byte in hash.as_ref() {
            let _ = write!(fingerprint, "{byte:02x}");
        }
        Ok(Identity {
            fingerprint,
            common_name: common_name.map(str::to_owned),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

/// What a handshake has brought.
#[derive(Debug)]
pub(super) struct Handshake {
    pub resumed: bool,
    /// None: the client showed no certificate.
    pub identity: Option<Identity>,
}

/// The server's side of one connection.
#[derive(Debug)]
pub(super) struct Tls {
    state: State,
    /// The peer writes nothing more.
    closed: bool,
    /// Set when the handshake is through, until it is taken.
    pub handshake: Option<Handshake>,
}

enum State {
    /// The ClientHello has not come; which certificate is served is decided when it has.
    Hello(Acceptor),
    On(ServerConnection),
}

impl std::fmt::Debug for State {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(match self {
            State::Hello(_) => "Hello",
            State::On(_) => "On",
        })
    }
}

impl Tls {
    pub fn new() -> Tls {
        Tls { state: State::Hello(Acceptor::default()), closed: false, handshake: None }
    }

    /// Reads from the socket once and decrypts what came into `out`, which has room for some records at least. Gives the
    /// bytes and whether there may be more; no bytes: the peer writes nothing more. `Interrupted`: something came
    /// but no plaintext.
    pub fn read<S: Read + Write>(
        &mut self,
        stream: &mut S,
        context: &TlsContext,
        out: &mut [u8],
    ) -> Result<(usize, bool), Broken> {
        let mut filled = self.plaintext(out);
        let room = out.len().saturating_sub(filled + RECORD_BYTES).min(READ_BYTES);
        if self.closed || room == 0 {
            return Ok((filled, filled > 0));
        }
        RECEIVED.with_borrow_mut(|received| {
            let taken = match stream.read(&mut received[..room]) {
                Ok(0) => {
                    // Devices seldom say goodbye in TLS; whether one is missed is for MQTT to say.
                    self.closed = true;
                    return Ok((filled, filled > 0));
                }
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && filled > 0 => {
                    return Ok((filled, false));
                }
                Err(error) => return Err(error.into()),
            };
            let mut rest = &received[..taken];
            while !rest.is_empty() && !self.closed {
                if let Err(fault) = self.take(&mut rest, context, stream) {
                    // The alert that tells the peer; if it does not fit now, `push` is called again.
                    let _ = self.push(stream);
                    return Err(fault.into());
                }
                filled += self.plaintext(&mut out[filled..]);
            }
            self.push(stream)?;
            if filled == 0 && !self.closed {
                return Err(io::Error::from(io::ErrorKind::Interrupted).into());
            }
            Ok((filled, filled > 0 && (taken == room || self.closed)))
        })
    }

    /// Gives rustls bytes of the peer, as many as it takes.
    fn take(
        &mut self,
        bytes: &mut &[u8],
        context: &TlsContext,
        stream: &mut impl Write,
    ) -> Result<(), Fault> {
        let wrong = |error: io::Error| Fault::new(Failure::Tls, error.to_string());
        if let State::Hello(acceptor) = &mut self.state {
            acceptor.read_tls(bytes).map_err(wrong)?;
            let accepted = match acceptor.accept() {
                Ok(None) => return Ok(()),
                Ok(Some(accepted)) => accepted,
                Err((error, mut alert)) => {
                    // The first bytes on this socket: there is room for them.
                    let _ = alert.write(stream);
                    return Err(fault_of(&error));
                }
            };
            let configs = context.configs();
            let offered = accepted.client_hello().alpn().is_some_and(|mut names| {
                names.any(|name| configs.negotiating.alpn_protocols.iter().any(|ours| ours == name))
            });
            let config = if offered { &configs.negotiating } else { &configs.silent };
            let connection = accepted.into_connection(Arc::clone(config)).map_err(|(error, mut alert)| {
                let _ = alert.write(stream);
                fault_of(&error)
            })?;
            self.state = State::On(connection);
        }
        let State::On(connection) = &mut self.state else { return Ok(()) };
        let before = connection.is_handshaking();
        if !bytes.is_empty() && connection.read_tls(bytes).map_err(wrong)? == 0 {
            self.closed = true;
        }
        let state = connection.process_new_packets().map_err(|error| fault_of(&error))?;
        self.closed |= state.peer_has_closed();
        if before && !connection.is_handshaking() {
            self.handshake = Some(established(connection)?);
        }
        Ok(())
    }

    /// Decrypted bytes that wait, as many as fit.
    fn plaintext(&mut self, out: &mut [u8]) -> usize {
        let State::On(connection) = &mut self.state else { return 0 };
        let mut filled = 0;
        while filled < out.len() {
            // An error is that there are none, or that the peer ended without a goodbye.
            match connection.reader().read(&mut out[filled..]) {
                Ok(0) | Err(_) => break,
                Ok(taken) => filled += taken,
            }
        }
        filled
    }

    /// Encrypts and writes. What the socket does not take waits here, one call's bytes at most: until they are gone
    /// nothing more is taken.
    pub fn write(&mut self, stream: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
        if !self.push(stream)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let State::On(connection) = &mut self.state else { return Err(io::ErrorKind::WouldBlock.into()) };
        let taken = connection.writer().write(bytes)?;
        self.push(stream)?;
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Writes encrypted bytes that wait. True: all of them.
    pub fn push(&mut self, stream: &mut impl Write) -> io::Result<bool> {
        let State::On(connection) = &mut self.state else { return Ok(true) };
        while connection.wants_write() {
            match connection.write_tls(stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    pub fn wants_write(&self) -> bool {
        matches!(&self.state, State::On(connection) if connection.wants_write())
    }

    /// Tells the peer that nothing more comes; `push` writes it.
    pub fn close(&mut self) {
        if let State::On(connection) = &mut self.state {
            connection.send_close_notify();
        }
    }

    /// Whether the client's certificate is good by the files as they are now. Without one there is nothing to say.
    pub fn verify_again(&self, context: &TlsContext) -> Result<(), Fault> {
        let State::On(connection) = &self.state else { return Ok(()) };
        let Some((certificate, chain)) = connection.peer_certificates().and_then(<[_]>::split_first) else {
            return Ok(());
        };
        match &context.configs().verifier {
            Some(verifier) => verifier
                .verify_client_cert(certificate, chain, UnixTime::now())
                .map(|_| ())
                .map_err(|error| fault_of(&error)),
            None => Ok(()),
        }
    }
}

fn established(connection: &ServerConnection) -> Result<Handshake, Fault> {
    let resumed = connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let identity = certificate.map(|certificate| Identity::of(certificate)).transpose()?;
    // Resuming verifies nothing, and a session may outlive its certificate.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    if identity.as_ref().is_some_and(|identity| identity.not_after < now) {
        let why = "the client's certificate has expired since its session began";
        return Err(Fault::new(Failure::CertificateExpired, why));
    }
    Ok(Handshake { resumed, identity })
}

fn fault_of(error: &rustls::Error) -> Fault {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext, Revoked};
    let failure = match error {
        rustls::Error::AlertReceived(_) => Failure::Alert,
        rustls::Error::NoCertificatesPresented => Failure::CertificateMissing,
        rustls::Error::InvalidCertificate(Revoked) => Failure::CertificateRevoked,
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => Failure::CertificateExpired,
        rustls::Error::InvalidCertificate(_) => Failure::CertificateInvalid,
        _ => Failure::Tls,
    };
    Fault::new(failure, error.to_string())
}
