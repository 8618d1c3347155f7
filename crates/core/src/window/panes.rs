//! The memory of the windows: panes of pages of records, all pages from one pool.
//!
//! A pane's page is made when the first key in its range appears, so a window with few keys out of many is small and growth
//! never copies records. Pages of dropped panes are used again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::layout::CHANGED;

/// Lines of one page: 64 kB.
const PAGE_LINES: usize = 1024;
pub(super) const PAGE_BYTES: usize = PAGE_LINES * 64;
/// No page here yet.
pub(super) const NO_PAGE: u32 = u32::MAX;
/// `Window::emitted` of a window all of whose keys have come out.
pub(super) const ALL_KEYS: u64 = u64::MAX;

/// Aligned so that a record of eight words is one cache line.
#[repr(align(64))]
#[derive(Clone)]
pub(super) struct Page([[u64; 8]; PAGE_LINES]);

impl Page {
    fn zeros() -> Box<Page> {
        Box::new(Page([[0; 8]; PAGE_LINES]))
    }

    /// Its records, each of so many lines, log2.
    pub fn records(&self, lines_log2: u32) -> std::slice::ChunksExact<'_, u64> {
        self.0.as_flattened().chunks_exact(8 << lines_log2)
    }
}

/// A page that a checkpoint reads, or has read, while the windows go on.
pub(super) type FrozenPage = Arc<Box<Page>>;

/// A frozen page is copied, or taken back, before it changes.
#[derive(Clone)]
enum Slot {
    Own(Box<Page>),
    Frozen(FrozenPage),
}

impl Slot {
    #[inline(always)]
    fn page(&self) -> &Page {
        match self {
            Slot::Own(page) => page,
            Slot::Frozen(page) => page,
        }
    }
}

/// Where a record lies: page in the pool, then record in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub u32);

impl Place {
    /// The row goes nowhere.
    pub const NONE: Place = Place(u32::MAX);
}

#[derive(Clone)]
pub(super) struct Pool {
    pages: Vec<Slot>,
    /// In a slot's place while its page is moved.
    blank: FrozenPage,
    free: Vec<u32>,
    /// 64-byte lines of a record, log2.
    lines_log2: u32,
    /// Keys of one page, log2.
    key_bits: u32,
}

impl Pool {
    pub fn new(lines_log2: u32) -> Pool {
        let key_bits = PAGE_LINES.trailing_zeros() - lines_log2;
        Pool { pages: Vec::new(), blank: Arc::new(Page::zeros()), free: Vec::new(), lines_log2, key_bits }
    }

    /// Keys of one page, log2.
    #[inline(always)]
    pub fn key_bits(&self) -> u32 {
        self.key_bits
    }

    /// Pages in use.
    pub fn live(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    /// A page of zeros.
    pub fn take(&mut self) -> u32 {
        if let Some(at) = self.free.pop() {
            match &mut self.pages[at as usize] {
                Slot::Own(page) => page.0.as_flattened_mut().fill(0),
                frozen => *frozen = Slot::Own(Page::zeros()),
            }
            return at;
        }
        self.pages.push(Slot::Own(Page::zeros()));
        (self.pages.len() - 1) as u32
    }

    pub fn give_back(&mut self, page: u32) {
        self.free.push(page);
    }

    #[inline(always)]
    pub fn place(&self, page: u32, key: u32) -> Place {
        let bits = self.key_bits();
        Place(page << bits | key & ((1 << bits) - 1))
    }

    #[inline(always)]
    fn word(&self, place: Place) -> (usize, usize) {
        let bits = self.key_bits();
        ((place.0 >> bits) as usize, ((place.0 & ((1 << bits) - 1)) as usize) << (self.lines_log2 + 3))
    }

    #[inline(always)]
    pub fn record(&self, place: Place) -> &[u64] {
        let (page, word) = self.word(place);
        &self.pages[page].page().0.as_flattened()[word..]
    }

    #[inline(always)]
    pub fn record_mut(&mut self, place: Place) -> &mut [u64] {
        let (at, word) = self.word(place);
        if let Slot::Frozen(_) = self.pages[at] {
            self.thaw(at);
        }
        match &mut self.pages[at] {
            Slot::Own(page) => &mut page.0.as_flattened_mut()[word..],
            Slot::Frozen(_) => unreachable!("page {at} was thawed"),
        }
    }

    /// Lines of a record, log2.
    pub fn lines_log2(&self) -> u32 {
        self.lines_log2
    }

    /// Whether the page has changed since it was frozen last.
    pub fn has_changed(&self, page: u32) -> bool {
        matches!(self.pages[page as usize], Slot::Own(_))
    }

    /// The page as it is now, which stays so however the records change.
    pub fn freeze(&mut self, page: u32) -> FrozenPage {
        let slot = &mut self.pages[page as usize];
        let frozen = match std::mem::replace(slot, Slot::Frozen(self.blank.clone())) {
            Slot::Own(page) => Arc::new(page),
            Slot::Frozen(page) => page,
        };
        *slot = Slot::Frozen(frozen.clone());
        frozen
    }

    /// Makes a page its own again. Nothing in it has changed since it was frozen.
    #[cold]
    #[inline(never)]
    fn thaw(&mut self, at: usize) {
        let mut own = match std::mem::replace(&mut self.pages[at], Slot::Frozen(self.blank.clone())) {
            Slot::Own(page) => page,
            // Not copied where the checkpoint is written.
            Slot::Frozen(page) => Arc::try_unwrap(page).unwrap_or_else(|page| Box::clone(&page)),
        };
        for record in own.0.as_flattened_mut().chunks_exact_mut(8 << self.lines_log2) {
            record[0] &= !CHANGED;
        }
        self.pages[at] = Slot::Own(own);
    }

    /// Asks for the record's lines, which a row soon needs.
    #[inline(always)]
    pub fn prefetch(&self, place: Place) {
        #[cfg(target_arch = "x86_64")]
        if place != Place::NONE {
            let record = self.record(place);
            for line in 0..1usize << self.lines_log2 {
                if let Some(word) = record.get(line * 8) {
                    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                    // SAFETY: a prefetch changes no memory and faults on none; the address is that of a live reference.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) };
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = place;
    }
}

/// Records of one pane.
#[derive(Clone, Default)]
pub(super) struct Pane {
    /// Page of the pool for each run of keys, or `NO_PAGE`.
    pub pages: Vec<u32>,
    /// Number of the last `add` that touched the pane: it must not lose it.
    pub touched: u64,
}

/// What has come out of a window; there is one as soon as any result has, or is about to.
#[derive(Clone, Default)]
pub(super) struct Window {
    /// Keys below have come out; `ALL_KEYS` when all have.
    pub emitted: u64,
    /// Keys that have come out and have changed since, ascending, each once.
    pub amended: Vec<u32>,
    /// Highest revision that has come out, for keys that were ever amended; -1: none yet.
    pub revisions: HashMap<u32, i64>,
    /// Whether the newest checkpoint has it otherwise.
    pub changed: bool,
}

impl Window {
    /// Rough size.
    pub fn bytes(&self) -> usize {
        64 + self.amended.len() * 4 + self.revisions.len() * 32
    }

    /// Everything it holds has come out.
    pub fn is_done(&self) -> bool {
        self.emitted == ALL_KEYS && self.amended.is_empty()
    }
}

/// Panes by number.
#[derive(Clone, Default)]
pub(super) struct Panes {
    pub by_number: BTreeMap<i64, usize>,
    pub slots: Vec<Pane>,
    free: Vec<usize>,
}

impl Panes {
    pub fn insert(&mut self, number: i64) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Pane::default());
            self.slots.len() - 1
        });
        self.by_number.insert(number, slot);
        slot
    }

    /// Drops a pane and gives its pages back; what they were.
    pub fn remove(&mut self, number: i64, pool: &mut Pool) -> Vec<u32> {
        let Some(slot) = self.by_number.remove(&number) else { return Vec::new() };
        let pane = std::mem::take(&mut self.slots[slot]);
        self.free.push(slot);
        let pages: Vec<u32> = pane.pages.into_iter().filter(|page| *page != NO_PAGE).collect();
        pages.iter().for_each(|page| pool.give_back(*page));
        pages
    }
}
