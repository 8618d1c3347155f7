//! One change of a session, as a row says it.

use super::stored::{Owner, StoredSubscription};
use crate::log::{Cursor, Malformed, put_varint};

/// What happened to a session, or (from `Message` on, where it says so) to all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    Open(Open<'a>),
    /// will: it stays, and waits for its delay
    Close {
        expiry_s: u32,
        will: bool,
    },
    End,
    Subscribe(StoredSubscription),
    Unsubscribe(&'a str),
    /// Of no session: it waits in each that is named.
    Message(MessageRef<'a>, Vec<Target>),
    Sent {
        message: u64,
        packet_id: u16,
    },
    Released {
        message: u64,
    },
    Done {
        message: u64,
    },
    Received(u16),
    Completed(u16),
    WillDone,
    /// Of no session: the server has started.
    Started {
        epoch: u32,
    },
    /// Of no session: the server stops in order.
    Stopped,
    /// Of no session: what `_downlink` has before this offset waits where it is to wait.
    Downlink {
        offset: u64,
    },
}

/// A session is given to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open<'a> {
    pub epoch: u32,
    /// The protocol level, 4 or 5.
    pub version: u8,
    pub expiry_s: u32,
    pub client_id: &'a str,
    /// None: anonymous.
    pub owner: Option<Owner>,
    pub will: Option<WillRef<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WillRef<'a> {
    pub delay_s: u32,
    pub retain: bool,
    /// Its id is 0.
    pub message: MessageRef<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRef<'a> {
    pub id: u64,
    /// As published.
    pub qos: u8,
    pub topic: &'a str,
    /// Encoded MQTT 5 properties, without their length.
    pub properties: &'a [u8],
    pub payload: &'a [u8],
}

/// A session that a message waits in, and how it comes to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub session: u64,
    pub qos: u8,
    pub retain: bool,
    /// The shared subscription that it comes by; 0: none.
    pub group: u64,
    /// Subscription identifiers.
    pub identifiers: Vec<u32>,
}

const RETAIN: u8 = 0x04;
const SHARED: u8 = 0x08;

impl Change<'_> {
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Change::Open(open) => {
                out.push(1);
                put_varint(out, open.epoch.into());
                out.push(open.version);
                put_varint(out, open.expiry_s.into());
                put_text(out, open.client_id);
                put_owner(out, open.owner.as_ref());
                put_will(out, open.will.as_ref());
            }
            Change::Close { expiry_s, will } => {
                out.push(2);
                put_varint(out, (*expiry_s).into());
                out.push(u8::from(*will));
            }
            Change::End => out.push(3),
            Change::Subscribe(subscription) => {
                out.push(4);
                put_subscription(out, subscription);
            }
            Change::Unsubscribe(filter) => {
                out.push(5);
                put_text(out, filter);
            }
            Change::Message(message, targets) => {
                out.push(6);
                put_varint(out, message.id);
                put_message(out, message);
                put_varint(out, targets.len() as u64);
                for target in targets {
                    put_varint(out, target.session);
                    put_manner(out, target);
                }
            }
            Change::Sent { message, packet_id } => {
                out.push(7);
                put_varint(out, *message);
                put_varint(out, (*packet_id).into());
            }
            Change::Released { message } => {
                out.push(8);
                put_varint(out, *message);
            }
            Change::Done { message } => {
                out.push(9);
                put_varint(out, *message);
            }
            Change::Received(packet_id) => {
                out.push(10);
                put_varint(out, (*packet_id).into());
            }
            Change::Completed(packet_id) => {
                out.push(11);
                put_varint(out, (*packet_id).into());
            }
            Change::WillDone => out.push(12),
            Change::Started { epoch } => {
                out.push(13);
                put_varint(out, (*epoch).into());
            }
            Change::Stopped => out.push(14),
            Change::Downlink { offset } => {
                out.push(15);
                put_varint(out, *offset);
            }
        }
    }
}

impl<'a> Change<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Change<'a>, Malformed> {
        let mut from = Cursor::new(bytes);
        let from = &mut from;
        let change = match from.u8()? {
            1 => Change::Open(Open {
                epoch: from.narrow()?,
                version: from.u8()?,
                expiry_s: from.narrow()?,
                client_id: text(from)?,
                owner: owner(from)?,
                will: will(from)?,
            }),
            2 => Change::Close { expiry_s: from.narrow()?, will: flag(from)? },
            3 => Change::End,
            4 => Change::Subscribe(subscription(from)?),
            5 => Change::Unsubscribe(text(from)?),
            6 => {
                let message = message(from)?;
                let count: usize = from.narrow()?;
                let mut targets = Vec::new();
                for _ in 0..count {
                    let session = from.varint()?;
                    targets.push(Target { session, ..manner(from)? });
                }
                Change::Message(message, targets)
            }
            7 => Change::Sent { message: from.varint()?, packet_id: from.narrow()? },
            8 => Change::Released { message: from.varint()? },
            9 => Change::Done { message: from.varint()? },
            10 => Change::Received(from.narrow()?),
            11 => Change::Completed(from.narrow()?),
            12 => Change::WillDone,
            13 => Change::Started { epoch: from.narrow()? },
            14 => Change::Stopped,
            15 => Change::Downlink { offset: from.varint()?.min(u64::MAX - 1) },
            _ => return Err(Malformed("a change of a kind that this program does not know")),
        };
        if !from.is_empty() {
            return Err(Malformed("a change is longer than its fields"));
        }
        Ok(change)
    }
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn put_owner(out: &mut Vec<u8>, owner: Option<&Owner>) {
    out.push(u8::from(owner.is_some()));
    if let Some(Owner { user, tenant }) = owner {
        put_text(out, user);
        put_text(out, tenant);
    }
}

pub(super) fn put_will(out: &mut Vec<u8>, will: Option<&WillRef<'_>>) {
    out.push(u8::from(will.is_some()));
    if let Some(WillRef { delay_s, retain, message }) = will {
        put_varint(out, (*delay_s).into());
        out.push(u8::from(*retain));
        put_message(out, message);
    }
}

/// Without its id.
pub(super) fn put_message(out: &mut Vec<u8>, message: &MessageRef<'_>) {
    out.push(message.qos);
    put_text(out, message.topic);
    put_bytes(out, message.properties);
    put_bytes(out, message.payload);
}

pub(super) fn put_subscription(out: &mut Vec<u8>, subscription: &StoredSubscription) {
    out.push(subscription.options);
    put_varint(out, subscription.identifier.into());
    put_text(out, &subscription.filter);
}

/// How a message comes to a session.
pub(super) fn put_manner(out: &mut Vec<u8>, target: &Target) {
    let shared = if target.group == 0 { 0 } else { SHARED };
    out.push(target.qos | if target.retain { RETAIN } else { 0 } | shared);
    if target.group != 0 {
        out.extend_from_slice(&target.group.to_le_bytes());
    }
    put_varint(out, target.identifiers.len() as u64);
    target.identifiers.iter().for_each(|identifier| put_varint(out, (*identifier).into()));
}

pub(super) fn bytes<'a>(from: &mut Cursor<'a>) -> Result<&'a [u8], Malformed> {
    let length = from.narrow()?;
    from.take(length)
}

pub(super) fn text<'a>(from: &mut Cursor<'a>) -> Result<&'a str, Malformed> {
    std::str::from_utf8(bytes(from)?).map_err(|_| Malformed("a text is not UTF-8"))
}

pub(super) fn flag(from: &mut Cursor<'_>) -> Result<bool, Malformed> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a flag is neither 0 nor 1")),
    }
}

pub(super) fn owner(from: &mut Cursor<'_>) -> Result<Option<Owner>, Malformed> {
    if !flag(from)? {
        return Ok(None);
    }
    Ok(Some(Owner { user: text(from)?.into(), tenant: text(from)?.into() }))
}

pub(super) fn will<'a>(from: &mut Cursor<'a>) -> Result<Option<WillRef<'a>>, Malformed> {
    if !flag(from)? {
        return Ok(None);
    }
    let (delay_s, retain) = (from.narrow()?, flag(from)?);
    Ok(Some(WillRef { delay_s, retain, message: body(from, 0)? }))
}

pub(super) fn message<'a>(from: &mut Cursor<'a>) -> Result<MessageRef<'a>, Malformed> {
    let id = from.varint()?;
    body(from, id)
}

pub(super) fn body<'a>(from: &mut Cursor<'a>, id: u64) -> Result<MessageRef<'a>, Malformed> {
    let (qos, topic) = (from.u8()?, text(from)?);
    if qos > 2 {
        return Err(Malformed("a QoS above 2"));
    }
    Ok(MessageRef { id, qos, topic, properties: bytes(from)?, payload: bytes(from)? })
}

pub(super) fn subscription(from: &mut Cursor<'_>) -> Result<StoredSubscription, Malformed> {
    Ok(StoredSubscription { options: from.u8()?, identifier: from.narrow()?, filter: text(from)?.into() })
}

/// The session is for the caller to fill in.
pub(super) fn manner(from: &mut Cursor<'_>) -> Result<Target, Malformed> {
    let flags = from.u8()?;
    let (qos, retain) = (flags & 3, flags & RETAIN != 0);
    if qos == 3 || flags & !(3 | RETAIN | SHARED) != 0 {
        return Err(Malformed("unknown flags of a message's target"));
    }
    let group = if flags & SHARED != 0 { from.u64()? } else { 0 };
    let count: usize = from.narrow()?;
    let identifiers = (0..count).map(|_| from.narrow()).collect::<Result<Vec<u32>, _>>()?;
    Ok(Target { session: 0, qos, retain, group, identifiers })
}
