//! Random lives of sessions, with snapshots, kills and power cuts between them, on every kind of table, against a model that
//! applies each row to the sessions one after the other.

use proptest::prelude::*;
use rand::SeedableRng;
use rand_pcg::Pcg64;
use std::collections::BTreeMap;

use super::conformance::{Files, Place};
use super::keyed::Keyed;
use super::tests::{all, append, log, message};
use super::*;
use crate::log::Malformed;
use crate::log::forgetful::Forgetful;

/// What may happen; numbers pick among what there is.
#[derive(Clone, Debug)]
enum Event {
    Open(u8),
    Close(u8, bool),
    End(u8),
    Subscribe(u8, u8),
    Unsubscribe(u8, u8),
    Publish(Vec<u8>),
    Sent(u8, u8),
    Released(u8, u8),
    Done(u8, u8),
    Received(u8, u16),
    Completed(u8, u8),
    WillDone(u8),
    Compact,
    /// The power goes after so many operations of a snapshot.
    CutSnapshot(u64),
    Kill,
    Cut,
    Stop,
}

fn event() -> impl Strategy<Value = Event> {
    let session = 0..4_u8;
    prop_oneof![
        3 => session.clone().prop_map(Event::Open),
        1 => (session.clone(), any::<bool>()).prop_map(|(at, will)| Event::Close(at, will)),
        1 => session.clone().prop_map(Event::End),
        2 => (session.clone(), 0..3_u8).prop_map(|(at, filter)| Event::Subscribe(at, filter)),
        1 => (session.clone(), 0..3_u8).prop_map(|(at, filter)| Event::Unsubscribe(at, filter)),
        4 => prop::collection::vec(session.clone(), 1..4).prop_map(Event::Publish),
        2 => (session.clone(), any::<u8>()).prop_map(|(at, which)| Event::Sent(at, which)),
        2 => (session.clone(), any::<u8>()).prop_map(|(at, which)| Event::Released(at, which)),
        3 => (session.clone(), any::<u8>()).prop_map(|(at, which)| Event::Done(at, which)),
        2 => (session.clone(), 1..4_u16).prop_map(|(at, id)| Event::Received(at, id)),
        2 => (session.clone(), any::<u8>()).prop_map(|(at, which)| Event::Completed(at, which)),
        1 => session.prop_map(Event::WillDone),
        2 => Just(Event::Compact),
        1 => (0..12_u64).prop_map(Event::CutSnapshot),
        1 => Just(Event::Kill),
        1 => Just(Event::Cut),
        1 => Just(Event::Stop),
    ]
}

#[derive(Default)]
struct Model {
    sessions: BTreeMap<u64, Stored>,
    messages: BTreeMap<u64, Vec<u8>>,
    epoch: u32,
    stopped: bool,
    next: u64,
    now: i64,
}

const CLIENTS: [&str; 4] = ["a", "b", "c", "d"];
const FILTERS: [&str; 3] = ["x", "y/+", "$share/g/z"];

impl Model {
    fn of(&mut self, client: u8) -> Option<&mut Stored> {
        let client_id = CLIENTS[usize::from(client)];
        self.sessions.values_mut().find(|stored| &*stored.client_id == client_id)
    }

    fn started(&mut self) -> Change<'static> {
        self.epoch += 1;
        let clean = std::mem::take(&mut self.stopped);
        for stored in self.sessions.values_mut().filter(|stored| stored.closed_us.is_none()) {
            stored.closed_us = Some(self.now);
            if clean {
                stored.will = None;
            }
        }
        Change::Started { epoch: self.epoch }
    }

    /// Applies the event and gives its row, if it is one.
    fn apply(&mut self, event: &Event) -> Option<(u64, Change<'static>)> {
        self.now += 1;
        let (now, epoch) = (self.now, self.epoch);
        match event {
            Event::Open(client) => {
                let client_id = CLIENTS[usize::from(*client)];
                self.next += 1;
                let next = self.next;
                let body = MessageRef { id: 0, qos: 1, topic: "w", properties: &[], payload: b"w" };
                let will = WillRef { delay_s: 3, retain: false, message: body };
                let opened = Open {
                    epoch,
                    version: 5,
                    expiry_s: next as u32,
                    client_id,
                    owner: None,
                    will: Some(will),
                };
                let id = self.of(*client).map_or(next, |stored| stored.id);
                let stored = self.sessions.entry(id).or_insert_with(|| Stored {
                    id,
                    epoch,
                    closed_us: None,
                    version: 5,
                    expiry_s: 0,
                    client_id: client_id.into(),
                    owner: None,
                    will: None,
                    subscriptions: vec![],
                    incoming: vec![],
                    queue: Default::default(),
                });
                (stored.epoch, stored.closed_us, stored.expiry_s) = (epoch, None, next as u32);
                stored.will = Some(Box::new(StoredWill::new(&will)));
                Some((id, Change::Open(opened)))
            }
            Event::Close(client, will) => {
                // A connection ends once, and all have ended where a server starts.
                let stored = self.of(*client).filter(|stored| stored.closed_us.is_none())?;
                (stored.closed_us, stored.expiry_s) = (Some(now), 5);
                if !will {
                    stored.will = None;
                }
                Some((stored.id, Change::Close { expiry_s: 5, will: *will }))
            }
            Event::End(client) => {
                let id = self.of(*client)?.id;
                self.sessions.remove(&id);
                Some((id, Change::End))
            }
            Event::Subscribe(client, filter) => {
                let filter = FILTERS[usize::from(*filter)];
                let identifier = now as u32;
                let subscription = StoredSubscription { options: 1, identifier, filter: filter.into() };
                let stored = self.of(*client)?;
                stored.subscriptions.retain(|each| &*each.filter != filter);
                stored.subscriptions.push(subscription.clone());
                Some((stored.id, Change::Subscribe(subscription)))
            }
            Event::Unsubscribe(client, filter) => {
                let filter = FILTERS[usize::from(*filter)];
                let stored = self.of(*client)?;
                stored.subscriptions.retain(|each| &*each.filter != filter);
                Some((stored.id, Change::Unsubscribe(filter)))
            }
            Event::Publish(clients) => {
                self.next += 1;
                let id = self.next;
                let mut sessions: Vec<u64> =
                    clients.iter().filter_map(|client| Some(self.of(*client)?.id)).collect();
                sessions.sort_unstable();
                sessions.dedup();
                for session in &sessions {
                    let target = Target { session: *session, qos: 1, ..Target::default() };
                    let queued = Queued { message: id, step: Step::Waits, packet_id: 0, target };
                    self.sessions.get_mut(session)?.queue.push_back(queued);
                }
                let payload = id.to_le_bytes();
                self.messages.insert(id, payload.to_vec());
                Some((0, message(id, &payload, &sessions)))
            }
            Event::Sent(client, which) => {
                let stored = self.of(*client)?;
                let length = stored.queue.len().max(1);
                let queued = stored.queue.get_mut(usize::from(*which) % length)?;
                (queued.step, queued.packet_id) = (Step::Sent, now as u16);
                Some((stored.id, Change::Sent { message: queued.message, packet_id: now as u16 }))
            }
            Event::Released(client, which) => {
                let stored = self.of(*client)?;
                let length = stored.queue.len().max(1);
                let queued = stored.queue.get_mut(usize::from(*which) % length)?;
                queued.step = Step::Released;
                Some((stored.id, Change::Released { message: queued.message }))
            }
            Event::Done(client, which) => {
                let stored = self.of(*client)?;
                let length = stored.queue.len().max(1);
                let queued = stored.queue.remove(usize::from(*which) % length)?;
                Some((stored.id, Change::Done { message: queued.message }))
            }
            Event::Received(client, id) => {
                let stored = self.of(*client)?;
                if stored.incoming.contains(id) {
                    return None;
                }
                stored.incoming.push(*id);
                Some((stored.id, Change::Received(*id)))
            }
            Event::Completed(client, which) => {
                let stored = self.of(*client)?;
                if stored.incoming.is_empty() {
                    return None;
                }
                let at = usize::from(*which) % stored.incoming.len();
                let id = stored.incoming.remove(at);
                Some((stored.id, Change::Completed(id)))
            }
            Event::WillDone(client) => {
                let stored = self.of(*client)?;
                stored.will = None;
                Some((stored.id, Change::WillDone))
            }
            Event::Compact | Event::CutSnapshot(_) | Event::Kill | Event::Cut | Event::Stop => None,
        }
    }

    fn sorted(&self) -> Vec<Stored> {
        let mut all: Vec<Stored> = self.sessions.values().cloned().collect();
        for stored in &mut all {
            stored.subscriptions.sort_by(|one, other| one.filter.cmp(&other.filter));
            stored.incoming.sort_unstable();
        }
        all
    }
}

fn live<P: Place>(events: &[Event], seed: u64) {
    let mut random = Pcg64::seed_from_u64(seed);
    let (mut place, mut log_files) = (P::default(), Forgetful::new());
    let mut model = Model::default();
    let mut the_log = log(&log_files);
    let (mut store, _) = SessionStore::open(place.table(), the_log.clone()).unwrap();
    let started = model.started();
    append(&the_log, &[(model.now, 0, started)]).unwrap();
    for event in events.iter().chain([&Event::Cut, &Event::Compact, &Event::Cut]) {
        if let Some((session, change)) = model.apply(event) {
            append(&the_log, &[(model.now, session, change)]).unwrap();
        }
        match event {
            Event::Compact => store.compact().unwrap(),
            Event::CutSnapshot(operations) => {
                place.cut_after(*operations);
                let _ = store.compact();
            }
            Event::Stop => {
                append(&the_log, &[(model.now, 0, Change::Stopped)]).unwrap();
                model.stopped = true;
            }
            _ => {}
        }
        let restarts = matches!(event, Event::Kill | Event::Cut | Event::CutSnapshot(_) | Event::Stop);
        if !restarts {
            continue;
        }
        let is_kill = matches!(event, Event::Kill | Event::Stop);
        let old = the_log;
        (place, log_files) = match is_kill {
            true => (place.kill(), log_files.kill()),
            false => (place.cut(&mut random), log_files.cut(&mut random)),
        };
        drop(store);
        old.close();
        the_log = log(&log_files);
        let opened = SessionStore::open(place.table(), the_log.clone()).unwrap();
        store = opened.0;
        let found = all(&opened.1);
        assert_eq!(found, model.sorted(), "after {event:?}");
        for queued in found.iter().flat_map(|stored| &stored.queue) {
            let message = opened.1.message(queued.message).expect("a queued message is stored");
            assert_eq!(message.payload.to_vec(), model.messages[&queued.message]);
        }
        model.now += 1;
        let started = model.started();
        append(&the_log, &[(model.now, 0, started)]).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_restart_gives_back_the_sessions(events in prop::collection::vec(event(), 0..60), seed: u64) {
        live::<Files>(&events, seed);
        live::<Keyed>(&events, seed);
    }

    #[test]
    fn a_change_comes_back_as_it_was(
        id: u64,
        topic in "[a-z/]{0,20}",
        payload in prop::collection::vec(any::<u8>(), 0..50),
        targets in prop::collection::vec((any::<u64>(), 0..3_u8, any::<bool>(), any::<u64>(), prop::collection::vec(any::<u32>(), 0..3)), 0..4),
        numbers: (u32, u16, bool, u8),
    ) {
        let message = MessageRef { id, qos: 2, topic: &topic, properties: &payload, payload: &payload };
        let will = WillRef { delay_s: numbers.0, retain: numbers.2, message: MessageRef { id: 0, ..message } };
        let owner = numbers.2.then(|| Owner { user: topic.as_str().into(), tenant: "t".into() });
        let targets = targets.into_iter().map(|(session, qos, retain, group, identifiers)| {
            Target { session, qos, retain, group, identifiers }
        });
        let subscription = StoredSubscription { options: numbers.3, identifier: numbers.0, filter: topic.as_str().into() };
        for change in [
            Change::Open(Open { epoch: numbers.0, version: 4, expiry_s: numbers.0, client_id: &topic, owner, will: Some(will) }),
            Change::Close { expiry_s: numbers.0, will: numbers.2 },
            Change::End,
            Change::Subscribe(subscription),
            Change::Unsubscribe(&topic),
            Change::Message(message, targets.collect()),
            Change::Sent { message: id, packet_id: numbers.1 },
            Change::Released { message: id },
            Change::Done { message: id },
            Change::Received(numbers.1),
            Change::Completed(numbers.1),
            Change::WillDone,
            Change::Started { epoch: numbers.0 },
            Change::Stopped,
            Change::Downlink { offset: id / 2 },
        ] {
            let mut bytes = Vec::new();
            change.put(&mut bytes);
            prop_assert_eq!(Change::parse(&bytes), Ok(change));
            for cut in 0..bytes.len() {
                prop_assert!(Change::parse(&bytes[..cut]).is_err(), "cut at {}", cut);
            }
            bytes.push(0);
            prop_assert_eq!(Change::parse(&bytes), Err(Malformed("a change is longer than its fields")));
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Change::parse(&bytes);
    }
}
