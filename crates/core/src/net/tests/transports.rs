//! What stands between TCP and MQTT: TLS in any cut, and listeners over real sockets.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use rcgen::{CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::client::connect;
use super::*;
use crate::mqtt::Version;
use crate::net::listener::Broken;
use crate::net::tls::{MQTT_PROTOCOLS, Tls, TlsContext};

/// PEM files of an authority, a server `localhost` and a client `device-7`.
struct Pki {
    directory: TempDir,
}

impl Pki {
    fn new() -> Pki {
        Pki::lasting(Duration::from_secs(365 * 86_400))
    }

    /// life: of the certificates
    fn lasting(life: Duration) -> Pki {
        let directory = TempDir::new().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
        for (name, usage) in [
            ("localhost", ExtendedKeyUsagePurpose::ServerAuth),
            ("device-7", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![usage];
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + UNIX_EPOCH.elapsed().unwrap() + life;
            let certificate = params.signed_by(&key, &ca).unwrap();
            std::fs::write(directory.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(directory.path().join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
        }
        Pki { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn files(&self, required: bool) -> TlsFiles {
        TlsFiles {
            certificate: self.path().join("localhost.pem"),
            key: self.path().join("localhost-key.pem"),
            clients: ClientCertificates::Verified { ca: self.path().join("ca.pem"), crl: None, required },
        }
    }

    fn client(
        &self,
        with_certificate: bool,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path().join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = if with_certificate {
            let chain = vec![CertificateDer::from_pem_file(self.path().join("device-7.pem")).unwrap()];
            let key = PrivateKeyDer::from_pem_file(self.path().join("device-7-key.pem")).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
    }
}

static PKI: LazyLock<Pki> = LazyLock::new(Pki::new);

/// A socket in memory that gives and takes no more at a time than it is told to, and then nothing once.
struct Narrow {
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
    widths: Vec<usize>,
    /// Reads and writes so far: each goes through the widths by itself, so that neither meets the same one for ever.
    reads: usize,
    writes: usize,
}

impl Narrow {
    fn width(&self, at: usize) -> io::Result<usize> {
        match self.widths[at % self.widths.len()] {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            width => Ok(width),
        }
    }
}

impl Read for Narrow {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        let width = self.width(self.reads)?.min(out.len());
        if self.incoming.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.incoming.read(&mut out[..width])
    }
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        let width = self.width(self.writes)?.min(bytes.len());
        self.outgoing.extend_from_slice(&bytes[..width]);
        Ok(width)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Moves bytes between a client and our side until neither has any; gives what our side and what the client read.
fn pump(
    client: &mut ClientConnection,
    tls: &mut Tls,
    socket: &mut Narrow,
    context: &TlsContext,
    buffer: &mut [u8],
) -> (Vec<u8>, Vec<u8>) {
    let (mut got, mut back) = (Vec::new(), Vec::new());
    let mut idle = 0;
    // Widths may say that nothing goes for one turn.
    while idle < 2 * socket.widths.len() + 2 {
        idle += 1;
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        socket.incoming.extend(&sent);
        match tls.read(socket, context, buffer) {
            Ok((taken, _)) => {
                got.extend_from_slice(&buffer[..taken]);
                idle = 0;
            }
            Err(Broken::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(Broken::Io(error)) if error.kind() == io::ErrorKind::Interrupted => idle = 0,
            Err(error) => panic!("{error:?}"),
        }
        if tls.wants_write() {
            let _ = tls.push(socket).unwrap();
        }
        let outgoing = std::mem::take(&mut socket.outgoing);
        let mut rest = &outgoing[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
            // An error is that there is nothing more.
            let _ = client.reader().read_to_end(&mut back);
            idle = 0;
        }
    }
    (got, back)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However a socket cuts the stream, both sides read what the other wrote.
    #[test]
    fn tls_carries_the_same_bytes_in_any_cut(
        widths in prop::collection::vec(prop_oneof![Just(0), 1usize..5000, Just(usize::MAX)], 1..6)
            .prop_filter("something must go", |widths| widths.iter().any(|width| *width > 16)),
        messages in prop::collection::vec(0usize..50_000, 1..5),
        newer in any::<bool>(),
    ) {
        let version = if newer { &rustls::version::TLS13 } else { &rustls::version::TLS12 };
        let context = TlsContext::new(PKI.files(true), &MQTT_PROTOCOLS).unwrap();
        let mut client = PKI.client(true, version);
        client.set_buffer_limit(None);
        let mut tls = Tls::new();
        let mut socket = Narrow { incoming: VecDeque::new(), outgoing: Vec::new(), widths, reads: 0, writes: 0 };
        let mut buffer = vec![0; 128 << 10];
        prop_assert_eq!(pump(&mut client, &mut tls, &mut socket, &context, &mut buffer), (vec![], vec![]));
        let handshake = tls.handshake.take().expect("through");
        let common_name = handshake.identity.and_then(|identity| identity.common_name);
        prop_assert_eq!(common_name.as_deref(), Some("device-7"));
        for (number, size) in messages.into_iter().enumerate() {
            let message: Vec<u8> = (0..size).map(|at| (at * 31 + number) as u8).collect();
            client.writer().write_all(&message).unwrap();
            prop_assert_eq!(&pump(&mut client, &mut tls, &mut socket, &context, &mut buffer).0, &message);
            let (mut rest, mut back) = (&message[..], Vec::new());
            while !rest.is_empty() {
                match tls.write(&mut socket, rest) {
                    Ok(taken) => rest = &rest[taken..],
                    Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                back.extend(pump(&mut client, &mut tls, &mut socket, &context, &mut buffer).1);
            }
            prop_assert_eq!(&back, &message);
        }
    }

    /// Whatever a peer says first is answered or refused.
    #[test]
    fn any_bytes_are_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 1..300), record in any::<bool>()) {
        let bytes = if record {
            let head = [22, 3, 1, (bytes.len() >> 8) as u8, bytes.len() as u8];
            [&head[..], &bytes].concat()
        } else {
            bytes
        };
        let context = TlsContext::new(PKI.files(false), &MQTT_PROTOCOLS).unwrap();
        let mut socket =
            Narrow { incoming: bytes.into(), outgoing: Vec::new(), widths: vec![usize::MAX], reads: 0, writes: 0 };
        let mut buffer = vec![0; 128 << 10];
        prop_assert!(Tls::new().read(&mut socket, &context, &mut buffer).is_err());
    }
}

#[test]
fn a_client_without_the_certificate_that_is_required_is_refused_by_name() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let context = TlsContext::new(PKI.files(true), &MQTT_PROTOCOLS).unwrap();
        let (mut client, mut tls) = (PKI.client(false, version), Tls::new());
        let mut socket = Narrow {
            incoming: VecDeque::new(),
            outgoing: Vec::new(),
            widths: vec![usize::MAX],
            reads: 0,
            writes: 0,
        };
        let mut buffer = vec![0; 128 << 10];
        let fault = loop {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            socket.incoming.extend(&sent);
            if let Err(Broken::Fault(fault)) = tls.read(&mut socket, &context, &mut buffer) {
                break fault;
            }
            let outgoing = std::mem::take(&mut socket.outgoing);
            client.read_tls(&mut &outgoing[..]).unwrap();
            client.process_new_packets().unwrap();
        };
        assert_eq!(fault.failure, Failure::CertificateMissing, "{fault:?}");
    }
}

fn listener(name: &str) -> ListenerOptions {
    ListenerOptions::plain(name, SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn address(fixture: &Fixture, name: &str) -> SocketAddr {
    let listeners = fixture.gateway().listeners();
    listeners.iter().find(|listener| listener.name == name).unwrap().address
}

fn failures(fixture: &Fixture, name: &str) -> Vec<(Failure, u64)> {
    let listeners = fixture.gateway().listeners();
    listeners.into_iter().find(|listener| listener.name == name).unwrap().failures
}

#[test]
fn a_client_over_tls_is_served_and_a_handshake_that_does_not_end_is_closed() {
    let fixture = Fixture::with(|options| {
        options.listeners.push(ListenerOptions { tls: Some(PKI.files(true)), ..listener("mqtts") });
    });
    let socket = TcpStream::connect(address(&fixture, "mqtts")).unwrap();
    let mut stream = StreamOwned::new(PKI.client(true, &rustls::version::TLS13), socket);
    let mut packet = Vec::new();
    connect(Version::V311, "secure").encode(&mut packet);
    stream.write_all(&packet).unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);

    let mut silent = Client::open(address(&fixture, "mqtts"));
    fixture.until("both are accepted", |counters| counters.sockets == 2);
    fixture.clock.advance(Duration::from_secs(12));
    assert!(silent.try_receive().is_none());
    assert_eq!(failures(&fixture, "mqtts"), [(Failure::Timeout, 1)]);
}

#[test]
fn a_connection_ends_with_the_certificate_of_its_client() {
    let pki = Pki::lasting(Duration::from_secs(3600));
    let fixture = Fixture::with(|options| {
        options.listeners.push(ListenerOptions { tls: Some(pki.files(true)), ..listener("mqtts") });
    });
    let socket = TcpStream::connect(address(&fixture, "mqtts")).unwrap();
    let mut stream = StreamOwned::new(pki.client(true, &rustls::version::TLS13), socket);
    let mut packet = Vec::new();
    connect(Version::V5, "secure").encode(&mut packet);
    stream.write_all(&packet).unwrap();
    fixture.until("it is connected", |counters| counters.connections == 1);
    let mut plain = fixture.v5("plain");
    fixture.clock.advance(Duration::from_secs(3590));
    plain.ping();
    assert_eq!(fixture.gateway().counters().connections, 2);
    fixture.clock.advance(Duration::from_secs(20));
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let disconnect = rest.windows(3).position(|bytes| bytes[0] == 0xe0 && bytes[2] == 0xa0);
    assert!(disconnect.is_some(), "{rest:02x?}");
    plain.ping();
    fixture.until("it is counted", |counters| counters.access_expired == 1);
}

#[test]
fn listeners_of_one_name_are_refused() {
    let options = GatewayOptions { listeners: vec![listener("a"), listener("a")], ..options() };
    assert!(options.check().unwrap_err().contains("two listeners have the name \"a\""));
    let options = GatewayOptions { listeners: vec![listener("mqtt")], ..super::options() };
    assert!(options.check().is_err());
}

#[test]
fn files_that_change_are_seen_once_they_rest() {
    let pki = Pki::new();
    let context = TlsContext::new(pki.files(true), &MQTT_PROTOCOLS).unwrap();
    assert!(!context.has_changed());
    let ca = pki.path().join("ca.pem");
    let bytes = std::fs::read(&ca).unwrap();
    std::fs::write(&ca, [&bytes[..], b"\n"].concat()).unwrap();
    assert!(!context.has_changed(), "it may be written still");
    assert!(context.has_changed());
    context.reload().unwrap();
    assert!(!context.has_changed());
    std::fs::write(pki.path().join("localhost-key.pem"), "no key").unwrap();
    assert!(!context.has_changed() && context.has_changed());
    assert!(context.reload().unwrap_err().contains("localhost-key.pem"));
    assert!(!context.has_changed(), "what cannot be read is not read again and again");
}
