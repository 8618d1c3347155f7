//! Retained messages: the last one of each topic, in memory, bounded.
//!
//! Those of before the start come in while devices are connected already. What has been retained or cleared since
//! then is newer and wins; subscriptions get nothing until all is there (see [`super::replay`]).

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::message::{Message, Outgoing, aged};
use crate::mqtt::properties::{Place, Properties};
use crate::mqtt::{PacketType, QoS, topic};

/// Topics looked at before others have their turn.
const PAGE_TOPICS: usize = 1024;

/// A message that was retained before the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoredMessage<'a> {
    pub topic: &'a str,
    /// Encoded MQTT 5 properties, without their length.
    pub properties: &'a [u8],
    pub payload: &'a [u8],
    pub qos: u8,
    /// Since its arrival; its expiry interval counts from there.
    pub age_s: u32,
}

/// The table has its most messages or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
pub(super) struct Retained {
    table: RwLock<Table>,
    loading: AtomicBool,
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Table {
    // Sorted, so that a filter reads only the topics that begin as it does.
    messages: BTreeMap<Box<str>, Kept>,
    bytes: usize,
    /// Counts the messages that were set.
    serial: u64,
    /// While messages of before the start are still to come.
    loading: Option<Loading>,
}

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    /// 0: of before the start.
    serial: u64,
}

#[derive(Debug, Default)]
struct Loading {
    /// Topics cleared since the start, and their bytes: at most as many as there may be messages.
    cleared: HashSet<Box<str>>,
    cleared_bytes: usize,
    /// Messages and bytes that have come in.
    messages: usize,
    bytes: usize,
}

/// Some of the messages that match a filter.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub messages: Vec<Arc<Message>>,
    /// The topic after which it goes on; None: that was all.
    pub next: Option<Box<str>>,
}

impl Retained {
    /// loading: messages of before the start will come, until [`Retained::loaded`]
    pub fn new(max_messages: usize, max_bytes: usize, loading: bool) -> Retained {
        let table = Table { loading: loading.then(Loading::default), ..Table::default() };
        Retained { table: RwLock::new(table), loading: AtomicBool::new(loading), max_messages, max_bytes }
    }

    /// Replaces the topic's message; at the bound the old one stays.
    pub fn set(&self, message: Outgoing<'_>, qos: QoS, tick: u32) -> Result<(), Full> {
        let message = Message::new(message, qos, true, tick);
        let mut table = self.table.write();
        let topic = message.outgoing().topic;
        let old = table.messages.get(topic).map(|old| old.message.len());
        let bytes = table.bytes - old.unwrap_or(0) + message.len();
        // With what has come in from before the start the table may be above its bound; a message no larger than its
        // predecessor takes no room.
        let grows = old.is_none_or(|old| message.len() > old);
        if (old.is_none() && table.messages.len() >= self.max_messages) || (grows && bytes > self.max_bytes) {
            return Err(Full);
        }
        table.serial += 1;
        let serial = table.serial;
        table.put(message, serial);
        Ok(())
    }

    /// Takes over a message of before the start, unless its topic has got another one or was cleared since then; why
    /// not, where it cannot be kept. What has expired is left out.
    ///
    /// What devices retain meanwhile takes no room from these, which were acknowledged before: so there may be up to twice
    /// as many as the bound, and as many at the next start.
    pub fn restore(&self, stored: StoredMessage<'_>, tick: u32) -> Result<(), &'static str> {
        let StoredMessage { topic, payload, .. } = stored;
        if !topic::is_name(topic) || payload.is_empty() {
            return Err("it has no topic name or no payload");
        }
        if Properties::check(stored.properties, Place::In(PacketType::Publish)).is_err() {
            return Err("its properties are damaged");
        }
        let Some(properties) = aged(stored.properties, stored.age_s) else { return Ok(()) };
        let qos = match stored.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let message = Message::new(Outgoing { topic, properties: &properties, payload }, qos, true, tick);
        let mut table = self.table.write();
        let Some(loading) = &mut table.loading else { return Err("all of them are there already") };
        let (messages, bytes) = (loading.messages + 1, loading.bytes + message.len());
        if messages > 2 * self.max_messages || bytes > 2 * self.max_bytes {
            return Err("the table is full twice over (max_retained_messages, max_retained_bytes)");
        }
        if loading.cleared.contains(topic) {
            return Ok(());
        }
        (loading.messages, loading.bytes) = (messages, bytes);
        if !table.messages.contains_key(topic) {
            table.put(message, 0);
        }
        Ok(())
    }

    /// Every message of before the start has come in.
    pub fn loaded(&self) {
        self.table.write().loading = None;
        self.loading.store(false, Ordering::Release);
    }

    /// Whether messages of before the start are still to come.
    pub fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Acquire)
    }

    /// Forgets the topic's message. Full: messages of before the start are still to come and no more can be noted of
    /// what they must not bring back.
    pub fn clear(&self, topic: &str) -> Result<(), Full> {
        let mut table = self.table.write();
        let Table { messages, loading, .. } = &mut *table;
        if let Some(loading) = loading
            // What has come in does not come again.
            && messages.get(topic).is_none_or(|old| old.serial > 0)
            && !loading.cleared.contains(topic)
        {
            let bytes = loading.cleared_bytes + topic.len();
            if loading.cleared.len() >= self.max_messages || bytes > self.max_bytes {
                return Err(Full);
            }
            loading.cleared_bytes = bytes;
            loading.cleared.insert(topic.into());
        }
        if let Some(old) = table.messages.remove(topic) {
            table.bytes -= old.message.len();
        }
        Ok(())
    }

    /// Of the message that was set last: what a subscription made now is owed is no newer.
    pub fn serial(&self) -> u64 {
        self.table.read().serial
    }

    /// Messages whose topics match, in the order of their topics, from the first one behind `after` on.
    ///
    /// upto: serial of the newest one wanted
    pub fn page(&self, filter: &str, after: Option<&str>, upto: u64) -> Page {
        let table = self.table.read();
        let wanted = |kept: &&Kept| kept.serial <= upto;
        if !topic::has_wildcard(filter) {
            let found = table.messages.get(filter).filter(wanted);
            return Page {
                messages: found.map(|kept| Arc::clone(&kept.message)).into_iter().collect(),
                next: None,
            };
        }
        let prefix = literal_prefix(filter);
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let mut topics = table
            .messages
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(topic, _)| topic.starts_with(prefix));
        let mut page = Page::default();
        let mut last = None;
        for (topic, kept) in topics.by_ref().take(PAGE_TOPICS) {
            last = Some(topic);
            if wanted(&kept) && topic::matches(filter, topic) {
                page.messages.push(Arc::clone(&kept.message));
            }
        }
        page.next = topics.next().and(last).cloned();
        page
    }

    /// Number and bytes of messages.
    pub fn size(&self) -> (usize, usize) {
        let table = self.table.read();
        (table.messages.len(), table.bytes)
    }
}

impl Table {
    fn put(&mut self, message: Message, serial: u64) {
        let topic = message.outgoing().topic.into();
        self.bytes += message.len();
        if let Some(old) = self.messages.insert(topic, Kept { message: Arc::new(message), serial }) {
            self.bytes -= old.message.len();
        }
    }
}

/// What every topic that matches begins with: `a/b` for `a/b/#`, which also matches `a/b` itself.
fn literal_prefix(filter: &str) -> &str {
    let wildcard = filter.find(['+', '#']).unwrap_or(filter.len());
    let prefix = &filter[..wildcard];
    if filter[wildcard..].starts_with('#') { prefix.strip_suffix('/').unwrap_or(prefix) } else { prefix }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(retained: &Retained, topic: &str, payload: &str) -> Result<(), Full> {
        let message = Outgoing { topic, properties: &[], payload: payload.as_bytes() };
        retained.set(message, QoS::AtLeastOnce, 0)
    }

    fn topics(retained: &Retained, filter: &str) -> Vec<String> {
        let page = retained.page(filter, None, u64::MAX);
        assert_eq!(page.next, None);
        page.messages.iter().map(|message| message.outgoing().topic.to_owned()).collect()
    }

    #[test]
    fn filters_find_their_topics() {
        let retained = Retained::new(100, 10_000, false);
        for topic in ["a", "a/b", "a/b/c", "ab", "$x/b", "/b"] {
            set(&retained, topic, "p").unwrap();
        }
        assert_eq!(topics(&retained, "a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(topics(&retained, "#"), ["/b", "a", "a/b", "a/b/c", "ab"]);
        assert_eq!(topics(&retained, "+/b"), ["/b", "a/b"]);
        assert_eq!(topics(&retained, "$x/+"), ["$x/b"]);
        assert_eq!(topics(&retained, "ab"), ["ab"]);
        retained.clear("a/b").unwrap();
        assert_eq!(topics(&retained, "a/+"), [""; 0]);
    }

    #[test]
    fn at_the_bound_new_topics_are_refused_and_old_ones_stay() {
        let retained = Retained::new(2, 100, false);
        set(&retained, "a", "1").unwrap();
        set(&retained, "b", "1").unwrap();
        assert_eq!(set(&retained, "c", "1"), Err(Full));
        set(&retained, "a", "22").unwrap();
        assert_eq!(retained.size(), (2, 5));
        assert_eq!(set(&retained, "b", &"x".repeat(99)), Err(Full));
        assert_eq!(retained.page("b", None, u64::MAX).messages[0].outgoing().payload, b"1");
        retained.clear("a").unwrap();
        assert_eq!(retained.size(), (1, 2));
        retained.clear("a").unwrap();
        assert_eq!(retained.size(), (1, 2));
    }

    #[test]
    fn what_was_retained_before_the_start_ages_and_is_checked() {
        use crate::mqtt::properties::{Property, PropertyId, Value, encode};

        let retained = Retained::new(100, 1000, true);
        let interval = Property { id: PropertyId::MessageExpiryInterval, value: Value::FourByte(10) };
        fn stored<'a>(topic: &'a str, properties: &'a [u8], age_s: u32) -> StoredMessage<'a> {
            StoredMessage { topic, properties, payload: b"p", qos: 1, age_s }
        }
        let expiring = encode(&[interval]);
        assert_eq!(retained.restore(stored("gone", &expiring, 10), 5), Ok(()));
        assert_eq!(retained.restore(stored("left", &expiring, 7), 5), Ok(()));
        assert_eq!(topics(&retained, "#"), ["left"]);
        let mut left = None;
        retained.page("left", None, u64::MAX).messages[0].send_at(5, |out| {
            left = Properties::from_checked(out.properties).number(PropertyId::MessageExpiryInterval);
        });
        assert_eq!(left, Some(3));
        assert!(retained.restore(stored("a/+", &[], 0), 5).is_err());
        assert!(retained.restore(stored("a", &[0xFF], 0), 5).is_err());
        assert_eq!(retained.restore(stored("a", &[], 0), 5), Ok(()));
    }

    fn restore(retained: &Retained, topic: &str, payload: &str) -> Result<(), &'static str> {
        let payload = payload.as_bytes();
        retained.restore(StoredMessage { topic, payload, ..StoredMessage::default() }, 0)
    }

    fn payload(retained: &Retained, topic: &str) -> Option<String> {
        let page = retained.page(topic, None, u64::MAX);
        page.messages.first().map(|found| String::from_utf8(found.outgoing().payload.to_vec()).unwrap())
    }

    #[test]
    fn what_was_set_or_cleared_since_the_start_wins_over_what_comes_in() {
        let retained = Retained::new(100, 10_000, true);
        set(&retained, "set", "new").unwrap();
        retained.clear("cleared").unwrap();
        set(&retained, "both", "new").unwrap();
        retained.clear("both").unwrap();
        for topic in ["set", "cleared", "both", "old", "late"] {
            restore(&retained, topic, "old").unwrap();
        }
        retained.clear("late").unwrap();
        assert_eq!(topics(&retained, "#"), ["old", "set"]);
        assert_eq!(payload(&retained, "set").as_deref(), Some("new"));
        assert!(retained.is_loading());
        retained.loaded();
        assert!(!retained.is_loading());
        assert!(restore(&retained, "late", "old").is_err());
        retained.clear("old").unwrap();
        assert_eq!((topics(&retained, "#"), retained.size()), (vec!["set".to_owned()], (1, 6)));
    }

    #[test]
    fn new_messages_take_no_room_from_those_that_come_in() {
        let retained = Retained::new(2, 100, true);
        set(&retained, "new/a", "1").unwrap();
        set(&retained, "new/b", "1").unwrap();
        assert_eq!(set(&retained, "new/c", "1"), Err(Full));
        for topic in ["old/a", "old/b", "old/c", "old/d"] {
            restore(&retained, topic, "1").unwrap();
        }
        assert!(restore(&retained, "old/e", "1").is_err());
        retained.loaded();
        assert_eq!(retained.size().0, 6);
        assert_eq!(set(&retained, "new/c", "1"), Err(Full));
        set(&retained, "old/a", "2").unwrap();
        assert_eq!(payload(&retained, "old/a").as_deref(), Some("2"));
    }

    #[test]
    fn what_is_cleared_while_messages_come_in_is_bounded() {
        let retained = Retained::new(2, 10, true);
        retained.clear("a").unwrap();
        retained.clear("a").unwrap();
        retained.clear("b").unwrap();
        assert_eq!(retained.clear("c"), Err(Full));
        retained.loaded();
        retained.clear("c").unwrap();
        let retained = Retained::new(100, 10, true);
        assert_eq!(retained.clear("eleven bytes"), Err(Full));
    }

    #[test]
    fn pages_give_each_message_once_and_none_that_is_newer_than_wanted() {
        let retained = Retained::new(10_000, 1 << 20, false);
        let names: Vec<String> = (0..5000).map(|n| format!("t/{n:04}")).collect();
        for name in &names {
            set(&retained, name, "old").unwrap();
        }
        let upto = retained.serial();
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let page = retained.page("t/+", after.as_deref(), upto);
            found.extend(page.messages.iter().map(|message| message.outgoing().topic.to_owned()));
            // What changes between two pages reaches the subscription live.
            set(&retained, "t/4999", "new").unwrap();
            set(&retained, "t/0000", "new").unwrap();
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        assert_eq!(found, names[..4999]);
    }
}
