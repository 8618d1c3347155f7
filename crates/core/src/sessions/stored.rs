//! A session as it is kept: what a restart gives back.

use std::collections::VecDeque;

use super::change::{
    self, MessageRef, Target, WillRef, flag, manner, put_manner, put_message, put_owner, put_subscription,
    put_text, put_will, text,
};
use crate::log::{Cursor, Malformed, put_varint, put_zigzag};

/// Who may go on with a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: Box<str>,
    pub tenant: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSubscription {
    /// As in SUBSCRIBE, with the granted QoS.
    pub options: u8,
    /// 0: none.
    pub identifier: u32,
    /// With `$share/NAME/` where it is shared.
    pub filter: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    pub id: u64,
    /// When it was published, µs UTC; its expiry interval counts from there.
    pub ts: i64,
    pub qos: u8,
    pub topic: Box<str>,
    pub properties: Box<[u8]>,
    pub payload: Box<[u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWill {
    pub delay_s: u32,
    pub retain: bool,
    /// Without id and time.
    pub message: StoredMessage,
}

/// How far a message has come on its way to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Waits = 0,
    /// PUBLISH was written.
    Sent = 1,
    /// PUBREC has come.
    Released = 2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    pub message: u64,
    pub step: Step,
    /// 0 where it waits.
    pub packet_id: u16,
    /// How it comes to the session.
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub id: u64,
    /// Of the process that opened it last.
    pub epoch: u32,
    /// When its connection ended, µs UTC; none: it was there.
    pub closed_us: Option<i64>,
    pub version: u8,
    pub expiry_s: u32,
    pub client_id: Box<str>,
    pub owner: Option<Owner>,
    pub will: Option<Box<StoredWill>>,
    pub subscriptions: Vec<StoredSubscription>,
    /// Packet ids of QoS 2 messages that the client has not released.
    pub incoming: Vec<u16>,
    pub queue: VecDeque<Queued>,
}

impl StoredMessage {
    pub fn new(message: &MessageRef<'_>, ts: i64) -> StoredMessage {
        StoredMessage {
            id: message.id,
            ts,
            qos: message.qos,
            topic: message.topic.into(),
            properties: message.properties.into(),
            payload: message.payload.into(),
        }
    }

    pub fn by_ref(&self) -> MessageRef<'_> {
        MessageRef {
            id: self.id,
            qos: self.qos,
            topic: &self.topic,
            properties: &self.properties,
            payload: &self.payload,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.id);
        put_zigzag(out, self.ts);
        put_message(out, &self.by_ref());
    }

    pub(super) fn parse(from: &mut Cursor<'_>) -> Result<StoredMessage, Malformed> {
        let (id, ts) = (from.varint()?, from.zigzag()?);
        Ok(StoredMessage::new(&change::body(from, id)?, ts))
    }
}

impl StoredWill {
    pub fn new(will: &WillRef<'_>) -> StoredWill {
        StoredWill {
            delay_s: will.delay_s,
            retain: will.retain,
            message: StoredMessage::new(&will.message, 0),
        }
    }

    pub fn by_ref(&self) -> WillRef<'_> {
        WillRef { delay_s: self.delay_s, retain: self.retain, message: self.message.by_ref() }
    }
}

impl Stored {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.id);
        put_varint(out, self.epoch.into());
        out.push(u8::from(self.closed_us.is_some()));
        if let Some(ts) = self.closed_us {
            put_zigzag(out, ts);
        }
        out.push(self.version);
        put_varint(out, self.expiry_s.into());
        put_text(out, &self.client_id);
        put_owner(out, self.owner.as_ref());
        put_will(out, self.will.as_ref().map(|will| will.by_ref()).as_ref());
        put_varint(out, self.subscriptions.len() as u64);
        self.subscriptions.iter().for_each(|each| put_subscription(out, each));
        put_varint(out, self.incoming.len() as u64);
        self.incoming.iter().for_each(|id| put_varint(out, (*id).into()));
        put_varint(out, self.queue.len() as u64);
        for queued in &self.queue {
            put_varint(out, queued.message);
            put_manner(out, &queued.target);
            out.push(queued.step as u8);
            put_varint(out, queued.packet_id.into());
        }
    }

    pub(super) fn parse(from: &mut Cursor<'_>) -> Result<Stored, Malformed> {
        let (id, epoch) = (from.varint()?, from.narrow()?);
        let closed_us = if flag(from)? { Some(from.zigzag()?) } else { None };
        let (version, expiry_s, client_id) = (from.u8()?, from.narrow()?, text(from)?.into());
        let owner = change::owner(from)?;
        let will = change::will(from)?.map(|will| Box::new(StoredWill::new(&will)));
        let count: usize = from.narrow()?;
        let subscriptions = (0..count).map(|_| change::subscription(from)).collect::<Result<_, _>>()?;
        let count: usize = from.narrow()?;
        let incoming = (0..count).map(|_| from.narrow()).collect::<Result<_, _>>()?;
        let count: usize = from.narrow()?;
        let queue = (0..count).map(|_| queued(from, id)).collect::<Result<_, _>>()?;
        Ok(Stored {
            id,
            epoch,
            closed_us,
            version,
            expiry_s,
            client_id,
            owner,
            will,
            subscriptions,
            incoming,
            queue,
        })
    }
}

fn queued(from: &mut Cursor<'_>, session: u64) -> Result<Queued, Malformed> {
    let message = from.varint()?;
    let target = Target { session, ..manner(from)? };
    let step = match from.u8()? {
        0 => Step::Waits,
        1 => Step::Sent,
        2 => Step::Released,
        _ => return Err(Malformed("an unknown step of a message")),
    };
    Ok(Queued { message, step, packet_id: from.narrow()?, target })
}
