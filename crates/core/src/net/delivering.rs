//! The way out: messages to the connections and sessions of this thread, and what waits to the sockets.

use super::connection::{Connection, State};
use super::ending::Ending;
use super::fanout::{Deliveries, with_identifiers};
use super::message::Outgoing;
use super::sends;
use super::trace::trace_out;
use super::worker::Worker;

impl Worker {
    pub(super) fn deliver_own(&mut self) {
        self.lane.publish_lifecycle();
        let own = usize::from(self.lane.thread);
        let Some(deliveries) = self.lane.fanout.deliveries.get_mut(own).filter(|own| !own.is_empty()) else {
            return;
        };
        let mut deliveries = std::mem::take(deliveries);
        self.deliver(&deliveries);
        deliveries.clear();
        if let Some(own) = self.lane.fanout.deliveries.get_mut(own) {
            *own = deliveries;
        }
    }

    pub(super) fn deliver(&mut self, deliveries: &Deliveries) {
        for (target, outgoing) in deliveries.each() {
            let conn = self.conns.get_mut(target.slot as usize);
            let conn = conn.filter(|conn| conn.generation == target.generation);
            let Some(conn) = conn.filter(|conn| matches!(conn.state, State::Up | State::Parked)) else {
                continue;
            };
            let manner = target.manner;
            let dropped = self.lane.counters.dropped_deliveries;
            match deliveries.identifiers(&target) {
                [] => conn.deliver(outgoing, manner, &mut self.lane.delivery(target.slot)),
                identifiers => {
                    let mut properties = std::mem::take(&mut self.lane.properties);
                    with_identifiers(outgoing.properties, identifiers, &mut properties);
                    let outgoing = Outgoing { properties: &properties, ..outgoing };
                    conn.deliver(outgoing, manner, &mut self.lane.delivery(target.slot));
                    self.lane.properties = properties;
                }
            }
            if conn.state == State::Up {
                self.lane.touch(conn, target.slot);
            }
            if self.lane.counters.dropped_deliveries != dropped {
                self.note_slow(target.slot);
            }
        }
    }

    /// Writes to every connection on the list.
    pub(super) fn flush_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.lane.dirty);
        let traced = self.lane.shared.traces.is_on();
        let (conns, lane) = (&mut self.conns, &mut self.lane);
        dirty.retain(|slot| {
            let Some(conn) = conns.get_mut(*slot as usize).filter(|conn| conn.dirty) else { return false };
            conn.dirty = false;
            conn.answer_pings(&mut lane.pool, &mut lane.counters);
            if traced {
                trace_out(lane, conn);
            }
            true
        });
        if self.sends.pays(dirty.len()) {
            self.send_together(&dirty);
        }
        dirty.drain(..).for_each(|slot| self.flush(slot));
        // Ending a connection may have put others on the list; they are next.
        if self.lane.dirty.is_empty() {
            self.lane.dirty = dirty;
        }
    }

    /// Writes the little that each of them gets. What its socket does not take is left for `flush`.
    fn send_together(&mut self, slots: &[u32]) {
        for slots in slots.chunks(sends::MOST) {
            for &slot in slots {
                if let Some((fd, bytes)) = self.conns.get(slot as usize).and_then(Connection::little) {
                    self.sends.add(slot, fd, bytes);
                }
            }
            self.sends.send(|slot, taken| {
                if let Some(conn) = self.conns.get_mut(slot as usize) {
                    conn.took(taken, &mut self.lane.counters);
                }
            });
        }
    }

    /// Writes to one connection, and goes on with what waited for that.
    fn flush(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let lane = &mut self.lane;
        let flushed = conn.flush(&mut lane.pool, &mut lane.counters).and_then(|mut empty| {
            // Room for messages that waited for it.
            while empty && conn.send_queued(&mut lane.delivery(slot)) {
                empty = conn.flush(&mut lane.pool, &mut lane.counters)?;
            }
            Ok(empty)
        });
        match flushed {
            Err(_) => self.end(slot, Ending::Lost),
            Ok(true) if conn.state == State::Lingering => conn.shutdown_write(),
            Ok(true) if conn.ended && conn.unacknowledged == 0 && !conn.ready => self.end(slot, Ending::Lost),
            Ok(_) => {
                if conn.held_back && conn.pending() <= self.lane.shared.options.outbound_max_bytes {
                    conn.held_back = false;
                    conn.ready = true;
                    self.ready.push(slot);
                }
            }
        }
    }
}
