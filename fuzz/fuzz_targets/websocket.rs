//! A client's bytes behind the upgrade: two bytes say where they are cut, the others are frames.
#![no_main]
#![allow(dead_code)]

#[path = "../../crates/core/src/net/websocket.rs"]
mod websocket;

use libfuzzer_sys::fuzz_target;
use websocket::{Decoder, FrameError};

fn decoded(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<String>), FrameError> {
    let mut decoder = Decoder::default();
    let (mut payload, mut answers) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let length = decoder.decode(&mut bytes, |control| answers.push(format!("{control:?}")))?;
        payload.extend_from_slice(&bytes[..length]);
    }
    Ok((payload, answers))
}

fuzz_target!(|data: &[u8]| {
    let Some((&[one, two], bytes)) = data.split_first_chunk::<2>() else { return };
    let (first, rest) = bytes.split_at(usize::from(one).min(bytes.len()));
    let (second, third) = rest.split_at(usize::from(two).min(rest.len()));
    let whole = decoded(&[bytes]);
    assert_eq!(decoded(&[first, second, third]), whole);
    let each: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(decoded(&each), whole);
});
