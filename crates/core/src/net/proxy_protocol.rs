//! PROXY protocol, version 2: what a load balancer says about a connection before anything else. Bytes in, values out.
//!
//! Source: "The PROXY protocol, versions 1 & 2", HAProxy, section 2.2. Version 1 (text) is refused: a listener must not
//! guess what it is told.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;
/// Longest header, signature included. Ours: addresses and the additional fields that balancers send take less.
pub(super) const MAX_BYTES: usize = 4096;

/// What the bytes are so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// So many bytes are needed in all before more can be said; they never reach beyond the header.
    Incomplete { needed: usize },
    /// The header takes `total` bytes.
    Complete {
        /// None: the balancer speaks for itself (a health check), or for a peer that has no internet address.
        source: Option<SocketAddr>,
        total: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the connection does not begin with a header of the PROXY protocol, version 2")]
    Signature,
    #[error("version {0} of the PROXY protocol is not known, only 2")]
    Version(u8),
    #[error("command {0} of the PROXY protocol is not known")]
    Command(u8),
    #[error("address family {0:#04x} of the PROXY protocol is not known")]
    Family(u8),
    #[error("a header of the PROXY protocol with {0} bytes is more than 4096")]
    TooLong(usize),
    #[error("a header of the PROXY protocol is too short for its addresses")]
    Short,
}

/// Parses the beginning of a connection.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, ProxyError> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err(ProxyError::Signature);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Header::Incomplete { needed: FIXED });
    };
    let (version, command, family) = (fixed[12] >> 4, fixed[12] & 0xF, fixed[13]);
    if version != 2 {
        return Err(ProxyError::Version(version));
    }
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let total = FIXED + length;
    if total > MAX_BYTES {
        return Err(ProxyError::TooLong(total));
    }
    let Some(body) = rest.get(..length) else { return Ok(Header::Incomplete { needed: total }) };
    let source = match command {
        // LOCAL: addresses, if there are any, are to be ignored.
        0 => None,
        1 => source(family, body)?,
        other => return Err(ProxyError::Command(other)),
    };
    Ok(Header::Complete { source, total })
}

/// The first of the two addresses; additional fields behind them are of no interest.
fn source(family: u8, body: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    match family {
        // TCP or UDP over IPv4: source and destination address, source and destination port.
        0x11 | 0x12 => {
            let body = body.first_chunk::<12>().ok_or(ProxyError::Short)?;
            let address = Ipv4Addr::new(body[0], body[1], body[2], body[3]);
            Ok(Some((address, u16::from_be_bytes([body[8], body[9]])).into()))
        }
        0x21 | 0x22 => {
            let body = body.first_chunk::<36>().ok_or(ProxyError::Short)?;
            let mut address = [0; 16];
            address.copy_from_slice(&body[..16]);
            Ok(Some((Ipv6Addr::from(address), u16::from_be_bytes([body[32], body[33]])).into()))
        }
        // Unspecified, and Unix sockets.
        0x00 | 0x31 | 0x32 => Ok(None),
        other => Err(ProxyError::Family(other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as a balancer writes it.
    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn of(source: SocketAddr, more: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        let family = match source {
            SocketAddr::V4(source) => {
                body.extend(source.ip().octets());
                body.extend([10, 0, 0, 1]);
                0x11
            }
            SocketAddr::V6(source) => {
                body.extend(source.ip().octets());
                body.extend([0; 16]);
                0x21
            }
        };
        body.extend(source.port().to_be_bytes());
        body.extend(1883u16.to_be_bytes());
        body.extend(more);
        header(1, family, &body)
    }

    #[test]
    fn the_source_is_told_for_both_families() {
        for source in ["192.0.2.7:4711", "[2001:db8::7]:4711"] {
            let source: SocketAddr = source.parse().unwrap();
            let bytes = of(source, b"");
            assert_eq!(parse(&bytes), Ok(Header::Complete { source: Some(source), total: bytes.len() }));
        }
    }

    #[test]
    fn a_balancer_that_speaks_for_itself_tells_no_source() {
        for (command, family, body) in
            [(0, 0x00, &[][..]), (0, 0x11, &[1; 12]), (1, 0x00, &[]), (1, 0x31, &[0; 216])]
        {
            let bytes = header(command, family, body);
            assert_eq!(parse(&bytes), Ok(Header::Complete { source: None, total: bytes.len() }));
        }
    }

    #[test]
    fn whatever_is_no_header_is_refused_by_name() {
        assert_eq!(parse(b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n"), Err(ProxyError::Signature));
        assert_eq!(parse(&[0x10, 0x10, 0, 4]), Err(ProxyError::Signature));
        let mut bytes = header(1, 0x11, &[0; 12]);
        bytes[12] = 0x11;
        assert_eq!(parse(&bytes), Err(ProxyError::Version(1)));
        assert_eq!(parse(&header(2, 0x11, &[0; 12])), Err(ProxyError::Command(2)));
        assert_eq!(parse(&header(1, 0x41, &[0; 12])), Err(ProxyError::Family(0x41)));
        assert_eq!(parse(&header(1, 0x11, &[0; 11])), Err(ProxyError::Short));
        assert_eq!(parse(&header(1, 0x21, &[0; 35])), Err(ProxyError::Short));
        let mut bytes = header(1, 0x11, &[]);
        bytes[14..16].copy_from_slice(&[0xFF, 0xFF]);
        assert_eq!(parse(&bytes), Err(ProxyError::TooLong(65_551)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300), whole in any::<bool>()) {
            let bytes = if whole { [&SIGNATURE[..], &bytes].concat() } else { bytes };
            match parse(&bytes) {
                Ok(Header::Incomplete { needed }) => prop_assert!(needed > bytes.len() && needed <= MAX_BYTES),
                Ok(Header::Complete { total, .. }) => prop_assert!(total <= bytes.len()),
                Err(_) => {}
            }
        }

        #[test]
        fn reading_what_is_needed_never_takes_a_byte_of_what_follows(
            octets in any::<u128>(), port in any::<u16>(), more in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let source = SocketAddr::from((Ipv6Addr::from(octets), port));
            let bytes = of(source, &more);
            let mut have = 0;
            loop {
                match parse(&bytes[..have]).unwrap() {
                    Header::Incomplete { needed } => {
                        prop_assert!(needed > have && needed <= bytes.len());
                        have = needed;
                    }
                    Header::Complete { source: told, total } => {
                        prop_assert_eq!((told, total), (Some(source), bytes.len()));
                        break;
                    }
                }
            }
        }
    }
}
