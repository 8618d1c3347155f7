//! A socket that says bytes and takes packets apart no further than their length.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::notation::{Pattern, Want};

pub struct Peer {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    pub fn open(address: SocketAddr) -> Peer {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Peer { socket, buffer: Vec::new() }
    }

    /// A connection that the gateway has ended meanwhile shows when it is read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    pub fn expect(&mut self, wanted: &Pattern) -> Result<(), String> {
        let (first, body) = self.receive()?.ok_or("the connection has ended".to_owned())?;
        if first == wanted.first && wanted.body.as_deref().is_none_or(|wanted| fits(wanted, &body)) {
            return Ok(());
        }
        Err(format!("came: {first:02x} {{ {} }} {:?}", hex(&body), String::from_utf8_lossy(&body)))
    }

    pub fn expect_end(&mut self) -> Result<(), String> {
        match self.receive()? {
            None => Ok(()),
            Some((first, body)) => Err(format!("not the end: {first:02x} {{ {} }}", hex(&body))),
        }
    }

    /// Closes; `bye`: after a DISCONNECT.
    pub fn leave(mut self, bye: bool) {
        if bye {
            self.send(&[0xe0, 0]);
        }
    }

    /// First byte and body of the next packet; none: the connection has ended.
    fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>, String> {
        loop {
            if let Some((body, total)) = length(&self.buffer).filter(|(_, total)| *total <= self.buffer.len())
            {
                let packet: Vec<u8> = self.buffer.drain(..total).collect();
                return Ok(Some((packet[0], packet[body..].to_vec())));
            }
            let mut chunk = [0; 65_536];
            match self.socket.read(&mut chunk) {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(format!("the last packet is cut: {}", hex(&self.buffer))),
                Ok(taken) => self.buffer.extend_from_slice(&chunk[..taken]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(format!("nothing came: {error}")),
            }
        }
    }
}

/// Where the body begins and the packet ends, once that can be told.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut len = 0;
    for at in 1..5 {
        let byte = usize::from(*bytes.get(at)?);
        len |= (byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Some((at + 1, at + 1 + len));
        }
    }
    panic!("the gateway wrote a length of five bytes");
}

fn fits(wanted: &[Want], body: &[u8]) -> bool {
    let (wanted, open) = match wanted {
        [wanted @ .., Want::Rest] => (wanted, true),
        wanted => (wanted, false),
    };
    (if open { wanted.len() <= body.len() } else { wanted.len() == body.len() })
        && wanted.iter().zip(body).all(|(want, byte)| *want == Want::Any || *want == Want::Byte(*byte))
}

fn hex(bytes: &[u8]) -> String {
    let text: Vec<String> = bytes.iter().take(200).map(|byte| format!("{byte:02x}")).collect();
    text.join(" ")
}
