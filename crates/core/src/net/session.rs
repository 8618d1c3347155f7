//! What few connections have, and what of it outlives them: expiry, will, QoS 2 packet ids, topic aliases.

use std::collections::{BTreeSet, HashMap};

use super::clock::ticks;
use super::message::{Message, Outgoing};
use crate::mqtt::Will;
use crate::mqtt::properties::{Properties, PropertyId};

/// A session that does not expire (section 3.1.2.11.2).
pub(super) const FOREVER: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Session {
    /// Seconds that it outlives its connection; 0: not at all.
    pub expiry_s: u32,
    /// Its id in the log; 0: it is in memory alone.
    pub durable: u64,
    /// Ticks that it has waited for its client before this process.
    pub waited: u32,
    pub will: Option<Box<Testament>>,
    /// Packet ids of QoS 2 messages that the client has sent and not released yet.
    pub incoming: BTreeSet<u16>,
    /// Topics that the client has given an alias, by alias less one. Of this network connection.
    pub aliases: Vec<Option<Box<str>>>,
    /// Aliases that we gave. Of this network connection.
    pub given: GivenAliases,
}

impl Session {
    /// Ticks that it outlives its connection; `None`: for ever.
    pub fn expiry_ticks(&self) -> Option<u32> {
        (self.expiry_s != FOREVER).then(|| ticks(self.expiry_s))
    }

    /// Forgets what belongs to a network connection.
    pub fn detach(&mut self) {
        self.aliases = Vec::new();
        self.given = GivenAliases::default();
    }
}

/// A will that waits for the end of its connection (section 3.1.2.5).
#[derive(Debug)]
pub(super) struct Testament {
    pub message: Message,
    pub delay_s: u32,
}

impl Testament {
    pub fn new(will: &Will<'_>, tick: u32) -> Testament {
        let delay_s = will.properties.number(PropertyId::WillDelayInterval).unwrap_or(0);
        let mut properties = Vec::new();
        for property in will.properties.iter().filter(|each| each.id != PropertyId::WillDelayInterval) {
            property.put(&mut properties);
        }
        let outgoing = Outgoing { topic: will.topic, properties: &properties, payload: will.payload };
        Testament { message: Message::new(outgoing, will.qos, will.retain, tick), delay_s }
    }
}

/// Topic aliases of messages to a client: the first topics get one each, until its maximum is reached.
#[derive(Debug, Default)]
pub(super) struct GivenAliases {
    most: u16,
    topics: HashMap<Box<str>, u16>,
}

/// How a topic is written to a client.
pub(super) enum Alias {
    None,
    /// Topic and alias.
    New(u16),
    /// The alias alone.
    Known(u16),
}

/// Longer topics get no alias, which bounds the memory of a table.
const MAX_ALIASED_BYTES: usize = 256;
/// Aliases given to one client, whatever it allows.
const MAX_GIVEN: u16 = 64;

impl GivenAliases {
    /// `most`: the client's topic alias maximum
    pub fn new(most: u16) -> GivenAliases {
        GivenAliases { most: most.min(MAX_GIVEN), topics: HashMap::new() }
    }

    pub fn of(&mut self, topic: &str) -> Alias {
        if let Some(alias) = self.topics.get(topic) {
            return Alias::Known(*alias);
        }
        if self.topics.len() >= usize::from(self.most) || topic.len() > MAX_ALIASED_BYTES {
            return Alias::None;
        }
        let alias = self.topics.len() as u16 + 1;
        self.topics.insert(topic.into(), alias);
        Alias::New(alias)
    }
}

/// A message's properties without the topic alias, which is the connection's own matter.
pub(super) fn without_alias(properties: Properties<'_>, out: &mut Vec<u8>) {
    out.clear();
    for property in properties.iter().filter(|each| each.id != PropertyId::TopicAlias) {
        property.put(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_topics_get_an_alias_and_long_ones_none() {
        let mut given = GivenAliases::new(2);
        assert!(matches!(given.of("a"), Alias::New(1)));
        assert!(matches!(given.of(&"x".repeat(300)), Alias::None));
        assert!(matches!(given.of("b"), Alias::New(2)));
        assert!(matches!(given.of("c"), Alias::None));
        assert!(matches!(given.of("a"), Alias::Known(1)));
        assert!(matches!(GivenAliases::default().of("a"), Alias::None));
    }
}
