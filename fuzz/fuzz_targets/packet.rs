//! Bytes as a client or a server would get them: the first tells the version, the others are a stream of packets.
#![no_main]
#![allow(dead_code)]

#[path = "../../crates/core/src/mqtt/mod.rs"]
mod mqtt;
#[path = "../../crates/core/src/short.rs"]
mod short;

use libfuzzer_sys::fuzz_target;
use mqtt::{Frame, Packet, Parsed, Version, frame, parse};

const MAX: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Some((&first, mut bytes)) = data.split_first() else { return };
    let mut version = if first & 1 == 0 { Version::V311 } else { Version::V5 };
    while let Ok(Parsed::Packet(packet, used)) = parse(bytes, version, MAX) {
        assert!(used <= bytes.len());
        for cut in 0..used {
            let Ok(Frame::Incomplete { needed }) = frame(&bytes[..cut], MAX) else {
                panic!("cut at {cut} of {used}")
            };
            assert!(needed > cut && needed <= used);
        }
        if let Packet::Connect(connect) = packet {
            version = connect.version;
        }
        let mut encoded = Vec::new();
        if encode(&packet, version, &mut encoded) {
            assert_eq!(parse(&encoded, version, 2 * MAX), Ok(Parsed::Packet(packet, encoded.len())));
        }
        bytes = &bytes[used..];
    }
});

/// False for packets whose encoders take parts instead of the whole.
fn encode(packet: &Packet<'_>, version: Version, out: &mut Vec<u8>) -> bool {
    match packet {
        Packet::Connect(connect) => connect.encode(out),
        Packet::Connack(connack) => connack.encode(version, out),
        Packet::Publish(publish) => publish.encode(version, out),
        Packet::Ack(ack) => ack.encode(version, out),
        Packet::Suback(suback) => suback.encode(version, out),
        Packet::Unsuback(unsuback) => unsuback.encode(version, out),
        Packet::Disconnect(disconnect) => disconnect.encode(version, out),
        Packet::Auth(auth) => auth.encode(out),
        Packet::Subscribe(_) | Packet::Unsubscribe(_) | Packet::Pingreq | Packet::Pingresp => return false,
    }
    true
}
