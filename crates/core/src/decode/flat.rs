//! Fields of formats that do not nest (SenML, line protocol, CSV): found by their whole name.

use super::extra;
use super::sink::{Sink, Token};

/// Puts the value of the field `name` into its columns; a field that no column has is left out, or inferred.
pub(super) fn put(sink: &mut Sink<'_>, name: &[u8], at: usize, token: &Token<'_>) {
    let plan = sink.plan;
    match plan.flat.find(name).and_then(|index| plan.flat_slots.get(index)) {
        Some(slots) => {
            let mut taken = true;
            for slot in slots {
                taken &= sink.put(*slot, at, token);
            }
            if !taken {
                extra::keep_scalar(sink, name, token);
            }
        }
        None if plan.extra.is_some() => extra::undeclared_scalar(sink, name, token),
        None => {}
    }
}
