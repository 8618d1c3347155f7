//! A blocking client that says exactly what a test wants to say.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::mqtt::{
    Ack, Connect, Frame, Packet, PacketType, Properties, Publish, QoS, ReasonCode, Subscribe,
    SubscriptionOptions, Unsubscribe, Version, frame,
};

pub struct Client {
    pub socket: TcpStream,
    pub version: Version,
    buffer: Vec<u8>,
    last_id: u16,
}

/// A packet from the gateway, with its bytes.
pub struct Received {
    bytes: Vec<u8>,
    version: Version,
}

impl Received {
    pub fn packet(&self) -> Packet<'_> {
        let Ok(Frame::Complete { ty, flags, body, .. }) = frame(&self.bytes, 1 << 28) else {
            panic!("no frame")
        };
        Packet::from_frame(ty, flags, body, self.version).expect("the gateway sends valid packets")
    }

    pub fn publish(&self) -> Publish<'_> {
        match self.packet() {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?} is no PUBLISH"),
        }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

pub fn connect(version: Version, client_id: &str) -> Connect<'_> {
    Connect {
        version,
        clean_start: true,
        keep_alive_s: 0,
        client_id,
        will: None,
        user_name: None,
        password: None,
        properties: Properties::NONE,
    }
}

pub fn publish<'a>(topic: &'a str, payload: &'a [u8], packet_id: u16) -> Publish<'a> {
    let qos = if packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    Publish { dup: false, qos, retain: false, topic, packet_id, properties: Properties::NONE, payload }
}

impl Client {
    pub fn open(address: SocketAddr) -> Client {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { socket, version: Version::V5, buffer: Vec::new(), last_id: 0 }
    }

    pub fn connected(address: SocketAddr, version: Version, client_id: &str) -> Client {
        let mut client = Client::open(address);
        client.connect(&connect(version, client_id));
        client
    }

    /// Sends CONNECT and takes a CONNACK of success without a session.
    pub fn connect(&mut self, connect: &Connect<'_>) -> Received {
        let (received, session_present) = self.resume(connect);
        assert!(!session_present);
        received
    }

    /// Sends CONNECT and takes a CONNACK of success; gives whether there is a session.
    pub fn resume(&mut self, connect: &Connect<'_>) -> (Received, bool) {
        self.send_connect(connect);
        let received = self.receive();
        let session_present = match received.packet() {
            Packet::Connack(connack) if connack.code == 0 => connack.session_present,
            other => panic!("{other:?} instead of CONNACK of success"),
        };
        (received, session_present)
    }

    pub fn send_connect(&mut self, connect: &Connect<'_>) {
        self.version = connect.version;
        let mut out = Vec::new();
        connect.encode(&mut out);
        self.send(&out);
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub fn next_id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    pub fn send_publish(&mut self, publish: &Publish<'_>) {
        let mut out = Vec::new();
        publish.encode(self.version, &mut out);
        self.send(&out);
    }

    /// Publishes with QoS 1 and gives the reason code of the PUBACK.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> ReasonCode {
        let packet_id = self.next_id();
        self.send_publish(&publish(topic, payload, packet_id));
        self.puback(packet_id)
    }

    pub fn puback(&mut self, packet_id: u16) -> ReasonCode {
        let received = self.receive();
        match received.packet() {
            Packet::Ack(ack) if ack.ty == PacketType::Puback => {
                assert_eq!(ack.packet_id, packet_id);
                ack.reason
            }
            other => panic!("{other:?} instead of PUBACK {packet_id}"),
        }
    }

    pub fn send_puback(&mut self, packet_id: u16) {
        self.send_ack(PacketType::Puback, packet_id, ReasonCode::Success);
    }

    pub fn send_ack(&mut self, ty: PacketType, packet_id: u16, reason: ReasonCode) {
        let mut out = Vec::new();
        Ack { ty, packet_id, reason, properties: Properties::NONE }.encode(self.version, &mut out);
        self.send(&out);
    }

    /// Takes an acknowledgement of this type and id; gives its reason code.
    pub fn ack(&mut self, ty: PacketType, packet_id: u16) -> ReasonCode {
        let received = self.receive();
        match received.packet() {
            Packet::Ack(ack) if (ack.ty, ack.packet_id) == (ty, packet_id) => ack.reason,
            other => panic!("{other:?} instead of {ty:?} {packet_id}"),
        }
    }

    pub fn send_subscribe(&mut self, filters: &[(&str, SubscriptionOptions)]) -> u16 {
        let packet_id = self.next_id();
        let mut out = Vec::new();
        Subscribe::encode(packet_id, Properties::NONE, filters, self.version, &mut out);
        self.send(&out);
        packet_id
    }

    /// Subscribes and gives the codes of the SUBACK.
    pub fn subscribe(&mut self, filters: &[(&str, SubscriptionOptions)]) -> Vec<u8> {
        let packet_id = self.send_subscribe(filters);
        let received = self.receive();
        match received.packet() {
            Packet::Suback(suback) => {
                assert_eq!(suback.packet_id, packet_id);
                suback.codes.to_vec()
            }
            other => panic!("{other:?} instead of SUBACK"),
        }
    }

    /// Subscribes to one filter and expects it to be granted.
    pub fn subscribed(&mut self, filter: &str, qos: QoS) {
        assert_eq!(self.subscribe(&[(filter, SubscriptionOptions::new(qos))]), [qos as u8]);
    }

    pub fn send_unsubscribe(&mut self, filters: &[&str]) -> u16 {
        let packet_id = self.next_id();
        let mut out = Vec::new();
        Unsubscribe::encode(packet_id, Properties::NONE, filters, self.version, &mut out);
        self.send(&out);
        packet_id
    }

    /// Unsubscribes and gives the codes of the UNSUBACK.
    pub fn unsubscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        let packet_id = self.send_unsubscribe(filters);
        let received = self.receive();
        match received.packet() {
            Packet::Unsuback(unsuback) => {
                assert_eq!(unsuback.packet_id, packet_id);
                unsuback.codes.to_vec()
            }
            other => panic!("{other:?} instead of UNSUBACK"),
        }
    }

    /// A round trip: all that the gateway had for this client before has come.
    pub fn ping(&mut self) -> Vec<Received> {
        self.send(&[0xc0, 0]);
        let mut before = Vec::new();
        loop {
            let received = self.receive();
            if received.packet() == Packet::Pingresp {
                return before;
            }
            before.push(received);
        }
    }

    /// The next packet; panics if the connection ends.
    pub fn receive(&mut self) -> Received {
        self.try_receive().expect("a packet, but the gateway closed the connection")
    }

    /// The next packet, or `None` when the gateway has closed the connection.
    pub fn try_receive(&mut self) -> Option<Received> {
        loop {
            if let Frame::Complete { total, .. } = frame(&self.buffer, 1 << 28).unwrap() {
                let bytes = self.buffer.drain(..total).collect();
                return Some(Received { bytes, version: self.version });
            }
            let mut chunk = [0; 65_536];
            match self.socket.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "the last packet is cut: {:02x?}", self.buffer);
                    return None;
                }
                Ok(taken) => self.buffer.extend_from_slice(&chunk[..taken]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no packet came: {error}"),
            }
        }
    }

    /// Takes what comes until the gateway closes; gives the reason of its DISCONNECT, if it sent one.
    pub fn ended(&mut self) -> Option<ReasonCode> {
        let mut reason = None;
        while let Some(received) = self.try_receive() {
            assert_eq!(reason, None, "DISCONNECT is the last packet");
            if let Packet::Disconnect(disconnect) = received.packet() {
                reason = Some(disconnect.reason);
            }
        }
        reason
    }

    pub fn shutdown_write(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }
}
