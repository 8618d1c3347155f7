//! What becomes of a connection when something between TCP and MQTT fails.

use super::connection::State;
use super::ending::Ending;
use super::events::EventKind;
use super::lane::End;
use super::transport::Transport;
use super::worker::Worker;
use crate::mqtt::ReasonCode;

impl Worker {
    /// A read has failed: of the socket, or of what is between it and MQTT.
    pub(super) fn broken(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let Some(fault) = conn.socket.as_mut().and_then(Transport::take_fault) else {
            return self.end(slot, Ending::Lost);
        };
        if conn.state != State::Opened {
            return self.end(slot, Ending::Ours(End::new(ReasonCode::ProtocolError, fault.why)));
        }
        let detail = format!("{}: {}", fault.failure.name(), fault.why);
        let (reason, origin) = (ReasonCode::NotAuthorized, conn.origin());
        self.lane.shared.events.add_from(EventKind::HandshakeFailed, "", reason, detail, origin);
        self.end(slot, Ending::Refused);
    }
}
