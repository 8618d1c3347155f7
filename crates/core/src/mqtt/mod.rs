//! MQTT 3.1.1 and 5.0 as pure values: bytes in, packets out, and back. No socket, clock or session here.
//!
//! Parsing borrows from the bytes it is given and allocates nothing. Waiting for more bytes is a value
//! ([`Parsed::Incomplete`]), an error carries the reason code of the standard that a peer may be told.
//! Sources: OASIS MQTT Version 3.1.1 and OASIS MQTT Version 5.0; section numbers below are those of 5.0
//! unless a comment says otherwise.

pub mod ack;
pub mod connect;
pub mod disconnect;
pub mod header;
pub mod packet;
pub mod properties;
pub mod publish;
pub mod reason;
pub mod subscribe;
pub mod topic;
pub mod trie;
pub mod wire;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

pub use ack::Ack;
pub use connect::{Connack, Connect, Will};
pub use disconnect::{Auth, Disconnect};
pub use header::{Frame, PacketType, frame};
pub use packet::{Packet, Parsed, parse};
pub use properties::{Properties, Property, PropertyId, Value};
pub use publish::Publish;
pub use reason::{PacketError, ReasonCode};
pub use subscribe::{Suback, Subscribe, SubscriptionOptions, Unsuback, Unsubscribe};
pub use trie::{NodeId, Trie};

/// The protocol version of a connection, fixed by its CONNECT; the numbers are the standard's protocol levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Version {
    V311 = 4,
    V5 = 5,
}

/// Quality of service (section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl QoS {
    /// 3 is no QoS: `None`.
    pub fn from_bits(bits: u8) -> Option<QoS> {
        match bits {
            0 => Some(QoS::AtMostOnce),
            1 => Some(QoS::AtLeastOnce),
            2 => Some(QoS::ExactlyOnce),
            _ => None,
        }
    }
}
