//! What becomes of a connection when something between TCP and MQTT fails, or its certificate counts no more.

use std::sync::Arc;

use super::connection::State;
use super::ending::Ending;
use super::events::EventKind;
use super::lane::End;
use super::listener::Listener;
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

    /// The files of a listener have changed: ends its connections whose certificates are good no more.
    pub(super) fn verify_again(&mut self, listener: &Arc<Listener>) {
        let refused: Vec<(u32, String)> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.state != State::Lingering)
            .filter_map(|(slot, conn)| {
                let socket =
                    conn.socket.as_ref().filter(|socket| Arc::ptr_eq(socket.listener(), listener))?;
                Some((slot as u32, socket.verify_again().err()?.why.into_owned()))
            })
            .collect();
        for (slot, why) in refused {
            let why = format!("the client's certificate is good no more: {why}");
            self.end(slot, Ending::Ours(End::new(ReasonCode::NotAuthorized, why)));
        }
    }
}
