//! Certificates, authorities and revocation lists that change while the gateway runs.

use std::sync::Arc;

use super::events::EventKind;
use super::inbox::Mail;
use super::lane::Shared;
use super::listener::Listener;
use crate::mqtt::ReasonCode;

/// Reads the files of every TLS listener anew; gives the listeners with what was wrong with their files, if anything.
pub(super) fn reload_all(shared: &Shared) -> Vec<(String, Result<(), String>)> {
    let with_tls = shared.listeners.iter().filter(|listener| listener.tls.is_some());
    with_tls.map(|listener| (listener.options.name.clone(), reload(shared, listener))).collect()
}

/// Reads the files anew of listeners whose files have changed.
pub(super) fn reload_changed(shared: &Shared) {
    for listener in &shared.listeners {
        if listener.tls.as_ref().is_some_and(|context| context.has_changed()) {
            // The error is told as an event.
            let _ = reload(shared, listener);
        }
    }
}

/// New handshakes go by the new files; with an error by those of before. Live connections stay, except clients whose
/// certificates are good no more.
fn reload(shared: &Shared, listener: &Arc<Listener>) -> Result<(), String> {
    let Some(context) = &listener.tls else { return Ok(()) };
    let name = &listener.options.name;
    let outcome = context.reload();
    let (reason, detail) = match &outcome {
        Ok(()) => (ReasonCode::Success, format!("listener {name} has read its certificates")),
        Err(error) => (
            ReasonCode::UnspecifiedError,
            format!("listener {name} goes on with the certificates it has: {error}"),
        ),
    };
    shared.events.add(EventKind::Certificates, "", reason, detail);
    if outcome.is_ok() {
        for inbox in &shared.inboxes {
            inbox.post(Mail::Review(Some(Arc::clone(listener))));
        }
    }
    outcome
}
