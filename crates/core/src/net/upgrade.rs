//! The HTTP request that opens a WebSocket, and its answer. Bytes in, values out.
//!
//! Source: RFC 6455, section 4.2; MQTT 5.0, section 6 (the subprotocol is `mqtt`).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// Longest request. Ours; a signed query and a long token fit.
pub(super) const MAX_REQUEST_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// Section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
pub(super) const PATH: &str = "/mqtt";
const SUBPROTOCOL: &str = "mqtt";

/// What the bytes are so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// The request has not ended.
    Incomplete,
    /// The request takes `total` bytes and is accepted by this answer.
    Accepted { total: usize, answer: String },
}

/// Why no WebSocket is opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: &'static str,
    pub why: &'static str,
}

impl Refusal {
    fn new(status: &'static str, why: &'static str) -> Refusal {
        Refusal { status, why }
    }

    /// The answer that says so, after which the connection closes.
    pub fn answer(&self) -> String {
        let more = match self.status {
            "426 Upgrade Required" => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            "405 Method Not Allowed" => "Allow: GET\r\n",
            _ => "",
        };
        let (status, why) = (self.status, self.why);
        let length = why.len() + 1;
        format!(
            "HTTP/1.1 {status}\r\n{more}Connection: close\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             \r\n{why}\n"
        )
    }
}

/// Parses a request and says whether it opens a WebSocket for MQTT.
///
/// origins: from which pages browsers may come, as in the header `Origin`, or `*` for all; a page of the host
///          that is asked may always, and so may clients that are no browsers and send no `Origin`
pub(super) fn upgrade(bytes: &[u8], origins: &[String]) -> Result<Upgrade, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let total = match request.parse(bytes) {
        Ok(httparse::Status::Complete(total)) => total,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST_BYTES => return Ok(Upgrade::Incomplete),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new("431 Request Header Fields Too Large", "the request is too long"));
        }
        Err(_) => return Err(Refusal::new("400 Bad Request", "this is not HTTP")),
    };
    let bad = |why| Err(Refusal::new("400 Bad Request", why));
    if request.method != Some("GET") {
        return Err(Refusal::new("405 Method Not Allowed", "a WebSocket is opened with GET"));
    }
    let path = request.path.unwrap_or_default();
    if path.split('?').next() != Some(PATH) {
        return Err(Refusal::new("404 Not Found", "MQTT over WebSocket is at /mqtt"));
    }
    if request.version != Some(1) {
        return bad("a WebSocket is opened with HTTP/1.1");
    }
    let fields = Fields(request.headers);
    let Some(host) = fields.one("Host") else { return bad("the request needs one Host header") };
    if !fields.lists("Upgrade", |token| token.eq_ignore_ascii_case("websocket"))
        || !fields.lists("Connection", |token| token.eq_ignore_ascii_case("upgrade"))
    {
        let why = "this listener speaks MQTT over WebSocket only";
        return Err(Refusal::new("426 Upgrade Required", why));
    }
    if fields.one("Sec-WebSocket-Version") != Some("13") {
        return Err(Refusal::new("426 Upgrade Required", "the version of WebSocket must be 13"));
    }
    let key = fields.one("Sec-WebSocket-Key").unwrap_or_default();
    if BASE64_STANDARD.decode(key).map(|nonce| nonce.len()) != Ok(16) {
        return bad("Sec-WebSocket-Key is not 16 bytes in base64");
    }
    if !fields.lists("Sec-WebSocket-Protocol", |token| token == SUBPROTOCOL) {
        return bad("the client does not offer the subprotocol mqtt");
    }
    if let Some(origin) = fields.one("Origin")
        && !allowed(origin, host, origins)
    {
        let why = "pages of this origin may not connect; the listener's setting origins names those that may";
        return Err(Refusal::new("403 Forbidden", why));
    }
    let accept = BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()));
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    Ok(Upgrade::Accepted { total, answer })
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        let fields = self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        fields.filter_map(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
    }

    /// The value of a header that stands there once.
    fn one(&self, name: &'static str) -> Option<&'a str> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// Whether one of the comma-separated values is as wanted.
    fn lists(&self, name: &'static str, wanted: impl Fn(&str) -> bool) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|token| wanted(token.trim()))
    }
}

/// RFC 6455, section 10.2: a page of any site can ask the browsers of its visitors to connect to us.
fn allowed(origin: &str, host: &str, origins: &[String]) -> bool {
    let of_host = origin.split_once("://").is_some_and(|(_, from)| name_of(from) == name_of(host));
    of_host || origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
}

/// The host without its port: the page may come from another port of the same host.
fn name_of(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: server.example.com:9001\r\nUpgrade: websocket\r\n\
                           Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                           Sec-WebSocket-Protocol: chat, mqtt\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn status(request: &str) -> &'static str {
        upgrade(request.as_bytes(), &[]).expect_err("refused").status
    }

    #[test]
    fn the_example_of_the_standard_is_accepted() {
        let Ok(Upgrade::Accepted { total, answer }) = upgrade(REQUEST.as_bytes(), &[]) else {
            panic!("not accepted")
        };
        assert_eq!(total, REQUEST.len());
        // Section 1.3.
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: mqtt\r\n"), "{answer}");
    }

    #[test]
    fn a_signed_query_belongs_to_the_path() {
        let request = REQUEST.replace("/mqtt", "/mqtt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=1");
        assert!(matches!(upgrade(request.as_bytes(), &[]), Ok(Upgrade::Accepted { .. })));
    }

    #[test]
    fn what_is_missing_or_wrong_is_refused_by_status() {
        assert_eq!(status(&REQUEST.replace("/mqtt", "/other")), "404 Not Found");
        assert_eq!(status(&REQUEST.replace("GET", "POST")), "405 Method Not Allowed");
        assert_eq!(status(&REQUEST.replace("HTTP/1.1", "HTTP/1.0")), "400 Bad Request");
        assert_eq!(status(&REQUEST.replace("Version: 13", "Version: 8")), "426 Upgrade Required");
        assert_eq!(status(&REQUEST.replace("Upgrade: websocket\r\n", "")), "426 Upgrade Required");
        assert_eq!(status(&REQUEST.replace("chat, mqtt", "chat")), "400 Bad Request");
        assert_eq!(status(&REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")), "400 Bad Request");
        assert_eq!(status(&REQUEST.replace("Host: server.example.com:9001\r\n", "")), "400 Bad Request");
        assert_eq!(status("\x10\x1a\0\x04MQTT\x04\x02\0\x3c"), "400 Bad Request");
        let long = REQUEST.replace("Host:", &format!("A: {}\r\nHost:", "a".repeat(MAX_REQUEST_BYTES)));
        assert_eq!(status(&long[..MAX_REQUEST_BYTES]), "431 Request Header Fields Too Large");
    }

    #[test]
    fn pages_of_other_hosts_are_refused_unless_they_are_named() {
        let from = |origin: &str| REQUEST.replace("Host:", &format!("Origin: {origin}\r\nHost:"));
        let (same, other) = (from("https://SERVER.example.com:8080"), from("https://evil.example"));
        assert!(upgrade(same.as_bytes(), &[]).is_ok());
        assert_eq!(status(&other), "403 Forbidden");
        assert_eq!(status(&from("null")), "403 Forbidden");
        assert!(upgrade(other.as_bytes(), &["https://evil.example".to_owned()]).is_ok());
        assert!(upgrade(other.as_bytes(), &["*".to_owned()]).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(Upgrade::Accepted { total, .. }) = upgrade(&bytes, &[]) {
                prop_assert!(total <= bytes.len());
            }
        }

        #[test]
        fn a_request_is_incomplete_until_its_last_byte(cut in 0..REQUEST.len()) {
            prop_assert_eq!(upgrade(&REQUEST.as_bytes()[..cut], &[]), Ok(Upgrade::Incomplete));
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0..REQUEST.len(), byte in any::<u8>()) {
            let mut bytes = REQUEST.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = upgrade(&bytes, &[]);
        }
    }
}
