//! The store by example: what each row does to a session, damage, and crashes at each step of a snapshot.

use std::sync::Arc;

use super::*;
use crate::log::forgetful::Forgetful;
use crate::log::{Log, LogError, LogOptions, Storage};
use crate::rows::{Cell, Rows};
use crate::schema::SchemaRef;

pub(super) fn log(storage: &Forgetful) -> Log {
    let bytes = 64 << 10;
    let options = LogOptions {
        partitions: 2,
        segment_bytes: bytes,
        commit_bytes: bytes as usize,
        retention_bytes: bytes,
        ..LogOptions::default()
    };
    Log::open_on(Arc::new(storage.clone()), options, vec![sessions_schema()]).unwrap()
}

/// One commit of rows: time, session, change.
pub(super) fn append(log: &Log, changes: &[(i64, u64, Change<'_>)]) -> Result<(), LogError> {
    let mut rows = Rows::new(SchemaRef::new(sessions_schema()));
    for (ts, session, change) in changes {
        let mut bytes = Vec::new();
        change.put(&mut bytes);
        rows.push([Cell::Timestamp(*ts), Cell::Bigint(*session as i64), Cell::Bytes(&bytes)]).unwrap();
    }
    log.append(&[&rows]).map(|_| ())
}

/// All sessions, by id.
pub(super) fn all(recovered: &Recovered) -> Vec<Stored> {
    let mut all = Vec::new();
    for part in 0..3 {
        recovered.part(part, 3, |stored| all.push(stored)).unwrap();
    }
    all.extend(recovered.rest());
    all.sort_by_key(|stored| stored.id);
    for stored in &mut all {
        stored.subscriptions.sort_by(|one, other| one.filter.cmp(&other.filter));
        stored.incoming.sort_unstable();
    }
    all
}

pub(super) fn open(client_id: &str, epoch: u32) -> Change<'_> {
    Change::Open(Open { epoch, version: 5, expiry_s: 60, client_id, owner: None, will: None })
}

pub(super) fn message(id: u64, payload: &[u8], sessions: &[u64]) -> Change<'static> {
    let payload: &'static [u8] = Box::leak(payload.to_vec().into());
    let target = |session: &u64| Target { session: *session, qos: 1, ..Target::default() };
    let message = MessageRef { id, qos: 2, topic: "t", properties: &[], payload };
    Change::Message(message, sessions.iter().map(target).collect())
}

struct Store {
    files: Forgetful,
    log_files: Forgetful,
    log: Log,
}

impl Store {
    fn new() -> Store {
        let (files, log_files) = (Forgetful::new(), Forgetful::new());
        Store { log: log(&log_files), files, log_files }
    }

    fn open(&self) -> Result<(SessionStore, Recovered), SessionsError> {
        SessionStore::open(self.table(), self.log.clone())
    }

    fn table(&self) -> Arc<dyn SessionTable> {
        Arc::new(SessionFiles::new(Arc::new(self.files.clone())))
    }

    fn restarted(self) -> Store {
        let (files, log_files) = (self.files.kill(), self.log_files.kill());
        self.log.close();
        Store { log: log(&log_files), files, log_files }
    }
}

#[test]
fn a_session_is_what_its_rows_say() {
    let store = Store::new();
    let (sessions, recovered) = store.open().unwrap();
    assert!(recovered.is_empty() && all(&recovered).is_empty());
    let subscription = |filter: &str| StoredSubscription { options: 1, identifier: 7, filter: filter.into() };
    let will = WillRef {
        delay_s: 5,
        retain: true,
        message: MessageRef { id: 0, qos: 1, topic: "w", properties: &[], payload: b"gone" },
    };
    let owner = Some(Owner { user: "u".into(), tenant: "".into() });
    let opened =
        Open { epoch: 1, version: 4, expiry_s: 9, client_id: "b", owner: owner.clone(), will: Some(will) };
    append(
        &store.log,
        &[
            (1, 0, Change::Started { epoch: 1 }),
            (2, 10, open("a", 1)),
            (2, 11, Change::Open(opened)),
            (3, 10, Change::Subscribe(subscription("x"))),
            (3, 10, Change::Subscribe(subscription("y"))),
            (3, 10, Change::Unsubscribe("x")),
            (4, 0, message(100, b"m", &[10, 11])),
            (4, 0, message(101, b"n", &[10])),
            (4, 0, message(102, b"o", &[10, 999])),
            (5, 10, Change::Sent { message: 100, packet_id: 1 }),
            (5, 10, Change::Sent { message: 101, packet_id: 2 }),
            (6, 10, Change::Released { message: 101 }),
            (6, 11, Change::Done { message: 100 }),
            (7, 10, Change::Received(5)),
            (7, 10, Change::Received(6)),
            (8, 10, Change::Completed(5)),
            (9, 11, Change::Close { expiry_s: 8, will: true }),
            (9, 12, open("c", 1)),
            (9, 12, Change::End),
        ],
    )
    .unwrap();
    for compacted in [false, true, true] {
        if compacted {
            sessions.compact().unwrap();
        }
        let (_, recovered) = store.open().unwrap();
        let found = all(&recovered);
        assert_eq!(found.iter().map(|stored| &*stored.client_id).collect::<Vec<_>>(), ["a", "b"]);
        let (a, b) = (&found[0], &found[1]);
        assert_eq!(a.subscriptions, [subscription("y")]);
        assert_eq!(a.incoming, [6]);
        let queue: Vec<_> = a.queue.iter().map(|one| (one.message, one.step, one.packet_id)).collect();
        assert_eq!(queue, [(100, Step::Sent, 1), (101, Step::Released, 2), (102, Step::Waits, 0)]);
        assert_eq!(&*recovered.message(102).unwrap().payload, b"o");
        assert_eq!((a.closed_us, b.closed_us, b.expiry_s, b.version), (None, Some(9), 8, 4));
        assert_eq!((&b.owner, b.queue.len()), (&owner, 0));
        assert_eq!(b.will.as_ref().unwrap().by_ref(), will);
    }
}

#[test]
fn who_was_connected_is_closed_by_the_next_start_and_without_will_after_an_orderly_stop() {
    let with_will = |client_id| {
        let message = MessageRef { id: 0, qos: 0, topic: "w", properties: &[], payload: b"w" };
        let will = Some(WillRef { delay_s: 0, retain: false, message });
        Change::Open(Open { epoch: 1, version: 5, expiry_s: 60, client_id, owner: None, will })
    };
    for stopped in [false, true] {
        let store = Store::new();
        let (sessions, _) = store.open().unwrap();
        append(&store.log, &[(1, 0, Change::Started { epoch: 1 }), (2, 10, with_will("a"))]).unwrap();
        if stopped {
            append(&store.log, &[(3, 0, Change::Stopped)]).unwrap();
        }
        sessions.compact().unwrap();
        assert_eq!(store.open().unwrap().1.stopped(), stopped);
        append(&store.log, &[(50, 0, Change::Started { epoch: 2 }), (60, 11, open("b", 2))]).unwrap();
        append(&store.log, &[(70, 0, Change::Started { epoch: 3 })]).unwrap();
        let found = all(&store.open().unwrap().1);
        assert_eq!(found.iter().map(|each| each.closed_us).collect::<Vec<_>>(), [Some(50), Some(70)]);
        assert_eq!(found[0].will.is_none(), stopped);
    }
}

#[test]
fn a_flipped_byte_of_a_snapshot_is_found_and_named() {
    let store = Store::new();
    let (sessions, _) = store.open().unwrap();
    append(&store.log, &[(2, 10, open("a", 1)), (4, 0, message(100, b"payload", &[10]))]).unwrap();
    sessions.compact().unwrap();
    let name = "0000000000000002.snapshot";
    let bytes = store.files.bytes(name);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        store.files.set_bytes(name, &damaged);
        let read = store.open().and_then(|(_, recovered)| recovered.part(0, 1, |_| ()));
        let told = read.expect_err("damage").to_string();
        assert!(told.contains(name), "byte {at}: {told}");
    }
    store.files.set_bytes(name, &bytes[..bytes.len() - 1]);
    assert!(store.open().is_err(), "cut short");
}

#[test]
fn a_row_of_a_later_program_and_a_log_of_another_directory_are_refused() {
    let store = Store::new();
    let mut rows = Rows::new(SchemaRef::new(sessions_schema()));
    rows.push([Cell::Timestamp(1), Cell::Bigint(1), Cell::Bytes(&[99])]).unwrap();
    append(&store.log, &[(1, 10, open("a", 1))]).unwrap();
    store.log.append(&[&rows]).unwrap();
    assert!(store.open().err().unwrap().to_string().contains("the row 1 of"));

    let store = Store::new();
    let (sessions, _) = store.open().unwrap();
    append(&store.log, &[(1, 10, open("a", 1))]).unwrap();
    sessions.compact().unwrap();
    let other = Store { files: store.files.clone(), ..Store::new() };
    assert!(matches!(other.open().err().unwrap(), SessionsError::Gap { offset: 1, end: 0, .. }));
}

#[test]
fn a_crash_at_any_step_of_a_snapshot_leaves_one() {
    use rand::SeedableRng;
    let mut random = rand_pcg::Pcg64::seed_from_u64(7);
    for operations in 0..40 {
        let store = Store::new();
        let (sessions, _) = store.open().unwrap();
        append(&store.log, &[(1, 10, open("a", 1)), (1, 0, message(1, b"m", &[10]))]).unwrap();
        sessions.compact().unwrap();
        append(&store.log, &[(2, 11, open("b", 1)), (2, 0, message(2, b"n", &[10, 11]))]).unwrap();
        append(&store.log, &[(3, 10, Change::Done { message: 1 })]).unwrap();
        let wanted = all(&store.open().unwrap().1);
        store.files.cut_after(operations);
        let done = sessions.compact().is_ok();
        let cut = Store { files: store.files.cut(&mut random), ..store };
        let (_, recovered) = cut.open().unwrap();
        assert_eq!(all(&recovered), wanted, "after {operations} operations");
        assert_eq!(&*recovered.message(2).unwrap().payload, b"n");
        if done {
            let left = cut.files.list().unwrap();
            assert!(left.iter().any(|name| name == "0000000000000005.snapshot"), "{left:?}");
            return;
        }
    }
    panic!("a snapshot takes more than 40 operations");
}

#[test]
fn the_log_may_trim_what_a_snapshot_has() {
    let mut store = Store::new();
    let (sessions, _) = store.open().unwrap();
    append(&store.log, &[(1, 10, open("a", 1))]).unwrap();
    for id in 0..200 {
        append(&store.log, &[(2, 0, message(id, &[7; 2000], &[10])), (2, 10, Change::Done { message: id })])
            .unwrap();
    }
    let before = store.log.start(crate::schema::SESSIONS)[0];
    assert_eq!(before.0, 0, "all is held");
    sessions.compact().unwrap();
    for _ in 0..50 {
        append(&store.log, &[(2, 10, Change::WillDone), (2, 0, message(1000, &[7; 2000], &[]))]).unwrap();
    }
    assert!(store.log.start(crate::schema::SESSIONS)[0].0 > 0, "what the snapshot has is gone");
    drop(sessions);
    store = store.restarted();
    let (_, recovered) = store.open().unwrap();
    assert_eq!(all(&recovered).len(), 1);
    assert!(all(&recovered)[0].queue.is_empty());
}

#[test]
fn whoever_put_the_state_the_next_one_goes_on_from_there() {
    use super::keyed::{Break, Keyed};
    let (log, keyed) = (log(&Forgetful::new()), Keyed::default());
    let handle = || SessionStore::open(Arc::new(keyed.clone()), log.clone()).unwrap();
    let (first, _) = handle();
    append(&log, &[(1, 10, open("a", 1)), (1, 0, message(1, b"m", &[10]))]).unwrap();
    keyed.breaks(Break::AfterCommit);
    assert!(first.compact().is_err(), "its answer is lost");
    append(&log, &[(2, 11, open("b", 1))]).unwrap();
    first.compact().unwrap();
    append(&log, &[(3, 10, Change::Done { message: 1 })]).unwrap();
    handle().0.compact().unwrap();
    append(&log, &[(4, 11, Change::End)]).unwrap();
    first.compact().unwrap();
    let found = all(&handle().1);
    assert_eq!(found.iter().map(|each| (&*each.client_id, each.queue.len())).collect::<Vec<_>>(), [("a", 0)]);
    assert_eq!(first.snapshots(), 2);
}
