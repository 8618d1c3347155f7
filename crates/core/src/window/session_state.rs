//! Snapshots of sessions: every byte is drawn in docs/formats/window-state.md. Sessions are named by their slots, so that changes
//! find what they change.

use super::frozen::{Frozen, GONE, Part, SessionHead};
use super::panes::Place;
use super::sessions::{Session, SessionOptions, SessionWindows, State};
use super::state::{Reader, StateError, put_aggregates, put_record, read_record, unseal};

const MAGIC: &[u8; 8] = b"HWSESSNS";
/// Version 1 had no slots and no changes.
const VERSION: u16 = 2;
const WHAT: &str = "session";

impl SessionWindows {
    /// The state as it is now: all of it, or with `whole` false what has changed since `freeze` was called last.
    pub fn freeze(&mut self, whole: bool) -> Frozen {
        let mut slots = std::mem::take(&mut self.changed);
        for slot in &slots {
            self.sessions[*slot as usize].changed = false;
        }
        if whole {
            let all = self.sessions.iter().zip(0u32..);
            slots = all.filter(|(session, _)| session.state != State::Free).map(|(_, slot)| slot).collect();
        }
        slots.sort_unstable();
        let mut head = Vec::new();
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.push(u8::from(!whole));
        head.extend_from_slice(&self.options.gap_us.to_le_bytes());
        put_aggregates(&self.options.aggregates, &self.options.inputs, &mut head);
        head.extend_from_slice(&(slots.len() as u32).to_le_bytes());
        let mut frozen = Frozen::new(&self.layout);
        frozen.push(Part::Bytes(head));
        let bits = self.pool.key_bits();
        for of_page in slots.chunk_by(|a, b| a >> bits == b >> bits) {
            let heads = of_page.iter().map(|slot| {
                let place = slot & ((1 << bits) - 1);
                (place as usize, head_of(*slot, &self.sessions[*slot as usize]))
            });
            if self.layout.cells.is_empty() {
                let heads = heads.collect();
                let page = self.pool.freeze(of_page[0] >> bits);
                frozen.push(Part::Sessions { page, heads });
                continue;
            }
            let mut bytes = Vec::new();
            for ((_, head), slot) in heads.zip(of_page) {
                bytes.extend_from_slice(&head);
                if self.sessions[*slot as usize].state != State::Free {
                    let record = &self.pool.record(Place(*slot))[..self.layout.words()];
                    put_record(record, &self.layout.cells, &self.cells, &mut bytes);
                }
            }
            frozen.push(Part::Bytes(bytes));
        }
        frozen
    }

    /// The state that `freeze` wrote whole, under options of the same query; only the bound may differ.
    pub fn decode(bytes: &[u8], options: SessionOptions) -> Result<SessionWindows, StateError> {
        let (version, mut from) = unseal(bytes, MAGIC, WHAT, VERSION)?;
        let mut found = SessionWindows::new(options)?;
        if version == 1 {
            found.read_version_1(&mut from)?;
        } else {
            from.expect_whole(true)?;
            found.read_sessions(&mut from)?;
        }
        from.finish()?;
        Ok(found)
    }

    /// Takes in what `freeze` wrote of the changes since the state that this is. After an error the state is not to be used.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let (version, mut from) = unseal(bytes, MAGIC, WHAT, VERSION)?;
        if version < 2 {
            return from.contradiction();
        }
        from.expect_whole(false)?;
        self.read_sessions(&mut from)?;
        from.finish()
    }

    fn read_query(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        let mut query = Vec::from(self.options.gap_us.to_le_bytes());
        put_aggregates(&self.options.aggregates, &self.options.inputs, &mut query);
        from.expect(&query)
    }

    fn read_sessions(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        self.read_query(from)?;
        let mut before = None;
        for _ in 0..from.u32()? {
            let slot = from.u32()?;
            let (key, first_us, last_us) = (from.u32()?, from.i64()?, from.i64()?);
            let state = match from.u8()? {
                0 => State::Open,
                1 => State::Closed,
                GONE => State::Free,
                _ => return from.contradiction(),
            };
            // A slot that is far beyond those there are would make us allocate what a number promises.
            let far = slot as usize > self.sessions.len() + from.length();
            if before.is_some_and(|before| before >= slot) || last_us < first_us || far {
                return from.contradiction();
            }
            before = Some(slot);
            self.put(slot, key, (first_us, last_us), state);
            if state != State::Free {
                self.read_own_record(slot, from)?;
            }
        }
        Ok(())
    }

    fn read_version_1(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        self.read_query(from)?;
        let mut before: Option<(u32, i64)> = None;
        for slot in 0..from.u32()? {
            let (key, first_us, last_us) = (from.u32()?, from.i64()?, from.i64()?);
            let closed = from.u8()?;
            if before.is_some_and(|before| before >= (key, first_us)) || last_us < first_us || closed > 1 {
                return from.contradiction();
            }
            before = Some((key, first_us));
            let state = if closed == 1 { State::Closed } else { State::Open };
            self.put(slot, key, (first_us, last_us), state);
            self.read_own_record(slot, from)?;
        }
        Ok(())
    }

    fn read_own_record(&mut self, slot: u32, from: &mut Reader<'_>) -> Result<(), StateError> {
        let record = &mut self.pool.record_mut(Place(slot))[..self.layout.words()];
        read_record(record, &self.layout.cells, &mut self.cells, from)
    }
}

fn head_of(slot: u32, session: &Session) -> SessionHead {
    let state = match session.state {
        State::Open => 0,
        State::Closed => 1,
        State::Free => GONE,
    };
    let mut head = [state; size_of::<SessionHead>()];
    head[..4].copy_from_slice(&slot.to_le_bytes());
    head[4..8].copy_from_slice(&session.key.to_le_bytes());
    head[8..16].copy_from_slice(&session.first_us.to_le_bytes());
    head[16..24].copy_from_slice(&session.last_us.to_le_bytes());
    head
}
