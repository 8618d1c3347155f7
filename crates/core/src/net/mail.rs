//! What other threads send to an event loop, and what it does with each letter.

use std::sync::atomic::Ordering;

use super::access::Access;
use super::connection::State;
use super::inbox::{Inbox, Mail};
use super::lane::Flow;
use super::logins::Answer;
use super::on_connect::on_answer;
use super::worker::Worker;

impl Worker {
    pub(super) fn inbox(&self) -> Option<&Inbox> {
        self.lane.shared.inboxes.get(usize::from(self.lane.thread))
    }

    pub(super) fn read_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        if let Some(inbox) = self.inbox() {
            inbox.take(&mut mail);
        }
        for letter in mail.drain(..) {
            match letter {
                Mail::Accepted(socket) => self.accepted.push_back(socket),
                Mail::Committed { turn, result } => self.lane.committed(turn, result),
                Mail::Deliver(deliveries) => {
                    if let Some(inbox) = self.inbox() {
                        inbox.delivery_bytes.fetch_sub(deliveries.len(), Ordering::Relaxed);
                    }
                    self.deliver(&deliveries);
                    if deliveries.downlink > 0 {
                        self.lane.took_downlink(deliveries.downlink);
                    }
                }
                // The pass goes on with what waits for them.
                Mail::RetainedLoaded => {}
                Mail::Join(conn) => {
                    self.lane.counters.sockets += 1;
                    if let Some(Access::Granted(granted)) = conn.access.as_deref() {
                        self.review_late(granted);
                    }
                    self.join(*conn);
                }
                Mail::Review(listener) => self.begin_review(listener),
                Mail::Rebind(next) => self.lane.next = Some(next),
                Mail::Ask(question) => self.answer(*question),
                Mail::Answered(answer) => self.answered(*answer),
                Mail::Stop { deadline } => self.stop = Some(deadline),
            }
        }
        self.mail = mail;
    }

    /// Goes on with a CONNECT whose answer has come, and with what came behind it.
    fn answered(&mut self, answer: Answer) {
        if let Ok(granted) = &answer.result {
            self.review_late(granted);
        }
        let slot = answer.conn.slot;
        let conn = self.conns.get_mut(slot as usize);
        let Some(conn) = conn.filter(|conn| conn.generation == answer.conn.generation) else { return };
        if conn.state != State::Asked {
            return;
        }
        conn.state = State::Opened;
        let flow = on_answer(&mut self.lane, conn, slot, answer);
        if !matches!(flow, Flow::On) {
            return self.follow(slot, flow);
        }
        conn.held_back = false;
        self.go_on(slot);
    }
}
