//! What every kind of [`SessionTable`] must do. A new kind adds a [`Place`] and a line at the end; its random lives are in
//! `proptests`.

use std::sync::Arc;

use rand_pcg::Pcg64;

use super::keyed::{Break, Keyed};
use super::tests::{message, open};
use super::*;
use crate::log::forgetful::Forgetful;

/// A place for one table, which tests may break.
pub(super) trait Place: Default {
    /// A handle, as another process has one.
    fn table(&self) -> Arc<dyn SessionTable>;

    /// The next merge is cut short; later with a larger number, or not at all.
    fn cut_after(&self, operations: u64);

    /// As the next process finds it after a power cut.
    fn cut(&self, random: &mut Pcg64) -> Self;

    /// As the next process finds it after `kill -9`.
    fn kill(&self) -> Self;
}

pub(super) struct Files(Forgetful);

impl Default for Files {
    fn default() -> Files {
        Files(Forgetful::new())
    }
}

impl Place for Files {
    fn table(&self) -> Arc<dyn SessionTable> {
        Arc::new(SessionFiles::new(Arc::new(self.0.clone())))
    }

    fn cut_after(&self, operations: u64) {
        self.0.cut_after(operations);
    }

    fn cut(&self, random: &mut Pcg64) -> Files {
        Files(self.0.cut(random))
    }

    fn kill(&self) -> Files {
        Files(self.0.kill())
    }
}

/// The database has a machine of its own, which goes on.
impl Place for Keyed {
    fn table(&self) -> Arc<dyn SessionTable> {
        Arc::new(self.clone())
    }

    fn cut_after(&self, operations: u64) {
        match operations {
            0..4 => self.breaks(Break::BeforeCommit),
            4..8 => self.breaks(Break::AfterCommit),
            _ => {}
        }
    }

    fn cut(&self, _: &mut Pcg64) -> Keyed {
        self.connected()
    }

    fn kill(&self) -> Keyed {
        self.connected()
    }
}

type Changes<'a> = [(u64, Change<'a>)];

/// The fold of changes over what is kept.
fn fold(table: &dyn SessionTable, changes: &Changes<'_>) -> (Option<u64>, Fold) {
    let kept = table.kept().unwrap().map(|kept| kept.header());
    let base = kept.unwrap_or_default();
    let mut fold = Fold::new(base.epoch, base.stopped, base.downlink);
    for (session, change) in changes {
        fold.apply(1, *session, change);
    }
    (kept.map(|kept| kept.offset), fold)
}

fn merge(table: &dyn SessionTable, changes: &Changes<'_>, offset: u64) -> Header {
    let (over, fold) = fold(table, changes);
    table.merge(over, &fold, offset).unwrap()
}

/// All that is kept: header, sessions and messages by id, each once.
fn all(table: &dyn SessionTable) -> (Header, Vec<Stored>, Vec<StoredMessage>) {
    let kept = table.kept().unwrap().unwrap();
    let (mut sessions, mut messages) = (Vec::new(), Vec::new());
    for part in 0..kept.parts() {
        kept.sessions(part, &mut |stored| sessions.push(stored)).unwrap();
        kept.messages(part, &mut |message| messages.push(message)).unwrap();
    }
    sessions.sort_by_key(|stored| stored.id);
    messages.sort_by_key(|message| message.id);
    (kept.header(), sessions, messages)
}

fn subscribed(filter: &str) -> Change<'static> {
    Change::Subscribe(StoredSubscription { options: 1, identifier: 3, filter: filter.into() })
}

fn nothing_is_kept_at_first<P: Place>() {
    assert!(P::default().table().kept().unwrap().is_none());
}

fn what_was_merged_is_kept_for_other_processes<P: Place>() {
    let place = P::default();
    let changes = [
        (0, Change::Started { epoch: 7 }),
        (1, open("a", 7)),
        (1, subscribed("x/#")),
        (1, Change::Received(9)),
        (2, open("b", 7)),
        (0, message(100, b"for both", &[1, 2])),
        (0, message(101, b"done", &[2])),
        (2, Change::Done { message: 101 }),
        (1, Change::Sent { message: 100, packet_id: 4 }),
        (0, Change::Downlink { offset: 40 }),
    ];
    let put = merge(&*place.table(), &changes, 10);
    let (header, sessions, messages) = all(&*place.table());
    assert_eq!(header, put);
    let said = Header {
        bytes: header.bytes,
        offset: 10,
        sessions: 2,
        messages: 1,
        downlink: 41,
        epoch: 7,
        stopped: false,
    };
    assert_eq!(header, said);
    assert!(header.bytes > 0);
    assert_eq!(sessions.iter().map(|each| &*each.client_id).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((&*sessions[0].subscriptions[0].filter, sessions[0].incoming.as_slice()), ("x/#", &[9][..]));
    let waits = |at: usize| {
        sessions[at].queue.iter().map(|one| (one.message, one.step, one.packet_id)).collect::<Vec<_>>()
    };
    assert_eq!((waits(0), waits(1)), (vec![(100, Step::Sent, 4)], vec![(100, Step::Waits, 0)]));
    assert_eq!(
        messages.iter().map(|each| (each.id, &*each.payload)).collect::<Vec<_>>(),
        [(100, &b"for both"[..])]
    );
}

fn a_merge_changes_what_its_rows_are_about_and_nothing_else<P: Place>() {
    let place = P::default();
    let table = place.table();
    let first = [
        (1, open("stays", 1)),
        (1, subscribed("x")),
        (2, open("changes", 1)),
        (2, subscribed("x")),
        (3, open("ends", 1)),
        (0, message(100, b"m", &[1, 2, 3])),
        (0, message(101, b"n", &[3])),
    ];
    merge(&*table, &first, 7);
    let (_, before, _) = all(&*table);
    let second = [
        (2, Change::Unsubscribe("x")),
        (2, Change::Done { message: 100 }),
        (3, Change::End),
        (4, open("new", 1)),
        (0, Change::Stopped),
    ];
    merge(&*table, &second, 12);
    let (header, after, messages) = all(&*table);
    assert_eq!((header.offset, header.sessions, header.messages, header.stopped), (12, 3, 1, true));
    assert_eq!(after[0], before[0]);
    assert_eq!((after[1].subscriptions.len(), after[1].queue.len()), (0, 0));
    assert_eq!(&*after[2].client_id, "new");
    assert_eq!(messages.iter().map(|each| each.id).collect::<Vec<_>>(), [100]);
}

fn many_sessions_are_each_in_one_part<P: Place>() {
    let place = P::default();
    let names: Vec<String> = (0..2000).map(|n| format!("client-{n:04}")).collect();
    let mut changes: Vec<(u64, Change<'_>)> =
        names.iter().zip(1..).map(|(name, id)| (id, open(name, 1))).collect();
    changes.extend((0..2000).map(|id| (0, message(5000 + id, &[7; 1500], &[id + 1]))));
    merge(&*place.table(), &changes, 4000);
    assert!(place.table().kept().unwrap().unwrap().parts() > 1);
    let (_, sessions, messages) = all(&*place.table());
    assert!(sessions.iter().map(|each| each.id).eq(1..=2000));
    assert!(messages.iter().map(|each| each.id).eq(5000..7000));
}

fn who_merges_over_a_state_that_is_not_kept_is_refused<P: Place>() {
    let place = P::default();
    let (late, first) = (place.table(), place.table());
    let begin = fold(&*late, &[(1, open("late", 1))]);
    merge(&*first, &[(2, open("first", 2))], 5);
    let kept = all(&*first);
    for (over, fold) in [begin, (Some(4), fold(&*late, &[(1, open("late", 1))]).1)] {
        let told = late.merge(over, &fold, 9).expect_err("overtaken");
        assert!(matches!(told, SessionsError::Overtaken { found: Some(5), .. }), "{told}");
    }
    assert_eq!(all(&*late), kept);
    merge(&*late, &[(1, open("late", 2))], 9);
    assert_eq!(all(&*first).1.len(), 2, "from what is there it goes on");
}

fn a_state_that_is_being_read_stays_as_it_was<P: Place>() {
    let place = P::default();
    merge(&*place.table(), &[(1, open("a", 1))], 1);
    let kept = place.table().kept().unwrap().unwrap();
    merge(&*place.table(), &[(1, Change::End), (2, open("b", 1))], 3);
    let mut found = Vec::new();
    for part in 0..kept.parts() {
        kept.sessions(part, &mut |stored| found.push(stored.client_id)).unwrap();
    }
    assert_eq!((kept.header().offset, &*found), (1, &["a".into()][..]));
}

fn a_merge_that_is_cut_short_leaves_the_state_before_it_or_the_new_one<P: Place>() {
    use rand::SeedableRng;
    let mut random = Pcg64::seed_from_u64(11);
    for operations in 0..20 {
        let place = P::default();
        merge(&*place.table(), &[(1, open("a", 1)), (0, message(100, b"m", &[1]))], 2);
        let before = all(&*place.table());
        let changes = [(1, Change::Done { message: 100 }), (2, open("b", 1))];
        let (over, fold) = fold(&*place.table(), &changes);
        place.cut_after(operations);
        let done = place.table().merge(over, &fold, 4).is_ok();
        let place = place.cut(&mut random);
        let found = all(&*place.table());
        if found.0.offset == 2 {
            assert!(!done, "after {operations}");
            assert_eq!(found, before);
            merge(&*place.table(), &changes, 4);
        }
        let (header, sessions, messages) = all(&*place.table());
        assert_eq!((header.offset, sessions.len(), messages.len()), (4, 2, 0), "after {operations}");
    }
}

macro_rules! conforms {
    ($($kind:ident: $place:ty, [$($claim:ident),* $(,)?];)*) => {
        $(mod $kind { $(#[test] fn $claim() { super::$claim::<$place>(); })* })*
    };
}

macro_rules! all_conform {
    ($($kind:ident: $place:ty;)*) => {
        conforms! { $($kind: $place, [
            nothing_is_kept_at_first,
            what_was_merged_is_kept_for_other_processes,
            a_merge_changes_what_its_rows_are_about_and_nothing_else,
            many_sessions_are_each_in_one_part,
            who_merges_over_a_state_that_is_not_kept_is_refused,
            a_state_that_is_being_read_stays_as_it_was,
            a_merge_that_is_cut_short_leaves_the_state_before_it_or_the_new_one,
        ]; )* }
    };
}

all_conform! {
    files: super::Files;
    keyed: super::Keyed;
}
