//! What durable sessions put into a turn: changes as rows, and gates for what must not be said before they are durable.

use super::connection::Connection;
use super::message::{Message, Outgoing};
use super::outbound::Outbound;
use super::session::Session;
use super::turn::Staging;
use crate::mqtt::QoS;
use crate::sessions::{Change, MessageRef, Open, Owner, StoredSubscription, Target, WillRef};

/// Bits of a message id below the epoch, of a session id likewise.
const MESSAGE_BITS: u32 = 40;
const SESSION_BITS: u32 = 32;

/// Ids of messages that durable sessions wait for: each thread has its own, and none is 0.
#[derive(Debug)]
pub(super) struct MessageIds {
    next: u64,
    /// 0: no session is durable.
    step: u64,
}

impl MessageIds {
    /// epoch: None where no session is durable
    pub fn new(epoch: Option<u32>, thread: u16, threads: usize) -> MessageIds {
        match epoch {
            Some(epoch) => MessageIds {
                next: u64::from(epoch) << MESSAGE_BITS | (u64::from(thread) + 1),
                step: threads.max(1) as u64,
            },
            None => MessageIds { next: 0, step: 0 },
        }
    }

    /// The id of the next message that is waited for; 0 where no session is durable.
    pub fn next(&self) -> u64 {
        self.next
    }
}

/// The first session id of a process.
pub(super) fn first_session(epoch: u32) -> u64 {
    u64::from(epoch) << SESSION_BITS | 1
}

impl Staging {
    /// What is written from here on leaves when the turn is durable, if it has changed anything.
    pub fn gate(&mut self, slot: u32, link: u32, out: &mut Outbound) {
        if self.has_rows() && out.gate(self.turn) {
            self.acks.gated.push((slot, link));
        }
    }

    /// The message waits in these sessions, from the turn's commit on; its id is the next one.
    ///
    /// published: it is that of the message which is added next, and is nothing without it
    pub fn waited_for(
        &mut self,
        outgoing: Outgoing<'_>,
        qos: QoS,
        targets: &mut Vec<Target>,
        published: bool,
    ) -> u64 {
        let id = self.message_ids.next;
        self.message_ids.next += self.message_ids.step;
        let Outgoing { topic, properties, payload } = outgoing;
        let message = MessageRef { id, qos: qos as u8, topic, properties, payload };
        let change = Change::Message(message, std::mem::take(targets));
        if published {
            self.acks.waited_for.push((self.acks.messages.len() as u32, id));
            self.session_with_message(0, &change);
        } else {
            self.session(0, &change);
        }
        if let Change::Message(_, mut used) = change {
            used.clear();
            *targets = used;
        }
        id
    }

    /// A message that comes to a session from elsewhere than a client's PUBLISH waits in it.
    pub fn adopted(&mut self, outgoing: Outgoing<'_>, qos: QoS, target: Target) -> u64 {
        self.waited_for(outgoing, qos, &mut vec![target], false)
    }

    /// A durable session is given to a connection.
    pub fn opened(&mut self, conn: &Connection, epoch: u32) {
        let owner = super::access::owner(&conn.access)
            .map(|(user, tenant)| Owner { user: user.into(), tenant: tenant.into() });
        let Some(session) = &conn.session else { return };
        let open = Open {
            epoch,
            version: conn.version as u8,
            expiry_s: session.expiry_s,
            client_id: &conn.client_id,
            owner,
            will: session.will.as_ref().map(|will| WillRef {
                delay_s: will.delay_s,
                retain: will.message.retain,
                message: by_ref(&will.message),
            }),
        };
        self.session(session.durable, &Change::Open(open));
    }

    /// The connection has ended, and the session waits.
    pub fn closed(&mut self, session: &Session) {
        if session.durable != 0 {
            let change = Change::Close { expiry_s: session.expiry_s, will: session.will.is_some() };
            self.session(session.durable, &change);
        }
    }

    pub fn subscribed(&mut self, session: u64, filter: &str, options: u8, identifier: u32) {
        let subscription = StoredSubscription { options, identifier, filter: filter.into() };
        self.session(session, &Change::Subscribe(subscription));
    }
}

fn by_ref(message: &Message) -> MessageRef<'_> {
    let Outgoing { topic, properties, payload } = message.outgoing();
    MessageRef { id: 0, qos: message.qos as u8, topic, properties, payload }
}
