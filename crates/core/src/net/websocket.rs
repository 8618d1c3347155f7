//! WebSocket frames: from bytes to the stream of bytes that they carry, and back. No sockets, no clock.
//!
//! MQTT takes frames as a stream: a packet may span frames and a frame may hold packets (MQTT 5.0, section 6). So the
//! decoder never waits for a frame's end, and a length field only says when the next header begins: nothing is
//! allocated by it.
//!
//! Source: RFC 6455, section 5.

/// Longest payload of a control frame (section 5.5).
const MAX_CONTROL: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// Status codes of a Close frame (section 7.4.1).
pub(super) const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;
const UNSUPPORTED_DATA: u16 = 1003;

/// What makes the connection end, with the status code that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameError {
    pub status: u16,
    pub why: &'static str,
}

fn wrong(why: &'static str) -> FrameError {
    FrameError { status: PROTOCOL_ERROR, why }
}

/// A control frame that wants an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control<'a> {
    Ping(&'a [u8]),
    /// With the status code, if there is one.
    Close(Option<u16>),
}

/// A client's frames. It keeps what of a header or of a control frame has come, and where in a frame it is.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Header that has not ended: at most 14 bytes.
    header: [u8; 14],
    header_len: u8,
    /// Payload of a control frame: at most 125 bytes.
    control: Vec<u8>,
    frame: Option<Frame>,
    /// A message has begun whose last frame has not.
    fragmented: bool,
    /// A Close frame has come: whatever follows is of no interest.
    pub closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: u8,
    mask: [u8; 4],
    /// Payload bytes seen so far, for the mask.
    seen: u64,
    left: u64,
}

impl Decoder {
    /// Decodes `bytes`, whose beginning then holds the payload of their data frames, and gives its length.
    ///
    /// answer: called for each Ping and for the first Close, as they come
    pub fn decode(
        &mut self,
        bytes: &mut [u8],
        mut answer: impl FnMut(Control<'_>),
    ) -> Result<usize, FrameError> {
        let (mut at, mut filled) = (0, 0);
        while at < bytes.len() && !self.closed {
            let Some(frame) = &mut self.frame else {
                at += self.header(&bytes[at..])?;
                // A frame without payload is over with its header.
                if self.frame.is_some_and(|frame| frame.left == 0) {
                    self.finish(&mut answer)?;
                }
                continue;
            };
            let taken =
                usize::try_from(frame.left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
            unmask(&mut bytes[at..at + taken], frame.mask, frame.seen);
            frame.seen += taken as u64;
            frame.left -= taken as u64;
            if frame.opcode >= CLOSE {
                self.control.extend_from_slice(&bytes[at..at + taken]);
            } else {
                bytes.copy_within(at..at + taken, filled);
                filled += taken;
            }
            let over = frame.left == 0;
            at += taken;
            if over {
                self.finish(&mut answer)?;
            }
        }
        Ok(filled)
    }

    /// Takes header bytes, all of them or as many as are there, and gives how many.
    fn header(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        let mut taken = 0;
        loop {
            let have = usize::from(self.header_len);
            let needed = match have {
                0 | 1 => 2,
                _ => header_len(self.header[1]),
            };
            if have == 2 {
                // Whatever is wrong with the first two bytes is said at once.
                self.check()?;
            }
            if have >= 2 && have == needed {
                self.frame = Some(self.open()?);
                self.header_len = 0;
                return Ok(taken);
            }
            let Some(&byte) = bytes.get(taken) else { return Ok(taken) };
            self.header[have] = byte;
            self.header_len += 1;
            taken += 1;
        }
    }

    fn check(&self) -> Result<(), FrameError> {
        let (first, second) = (self.header[0], self.header[1]);
        let (opcode, fin, length) = (first & 0xF, first & FIN != 0, second & 0x7F);
        if first & 0x70 != 0 {
            return Err(wrong("a frame has a reserved bit"));
        }
        if second & 0x80 == 0 {
            return Err(wrong("a client's frame has no mask"));
        }
        match opcode {
            CONTINUATION if !self.fragmented => Err(wrong("a frame continues a message that has not begun")),
            BINARY if self.fragmented => Err(wrong("a message begins before the last one has ended")),
            CONTINUATION | BINARY => Ok(()),
            TEXT => Err(FrameError {
                status: UNSUPPORTED_DATA,
                why: "a text frame, where MQTT needs binary ones",
            }),
            CLOSE | PING | PONG if !fin => Err(wrong("a control frame is fragmented")),
            CLOSE | PING | PONG if usize::from(length) > MAX_CONTROL => {
                Err(wrong("a control frame with more than 125 bytes"))
            }
            CLOSE if length == 1 => Err(wrong("a Close frame with half a status code")),
            CLOSE | PING | PONG => Ok(()),
            _ => Err(wrong("a frame of an unknown kind")),
        }
    }

    /// The frame that a whole header announces.
    fn open(&mut self) -> Result<Frame, FrameError> {
        let header = &self.header;
        let (opcode, fin) = (header[0] & 0xF, header[0] & FIN != 0);
        let (left, mask_at) = match header[1] & 0x7F {
            126 => (u64::from(u16::from_be_bytes([header[2], header[3]])), 4),
            127 => {
                let mut length = [0; 8];
                length.copy_from_slice(&header[2..10]);
                (u64::from_be_bytes(length), 10)
            }
            short => (u64::from(short), 2),
        };
        if left > i64::MAX as u64 {
            return Err(wrong("a frame's length has its highest bit set"));
        }
        if (mask_at == 4 && left < 126) || (mask_at == 10 && left <= u64::from(u16::MAX)) {
            return Err(wrong("a frame's length is not written in the fewest bytes"));
        }
        if opcode < CLOSE {
            self.fragmented = !fin;
        }
        let mut mask = [0; 4];
        mask.copy_from_slice(&header[mask_at..mask_at + 4]);
        Ok(Frame { opcode, mask, seen: 0, left })
    }

    fn finish(&mut self, answer: &mut impl FnMut(Control<'_>)) -> Result<(), FrameError> {
        let Some(frame) = self.frame.take() else { return Ok(()) };
        match frame.opcode {
            PING => answer(Control::Ping(&self.control)),
            CLOSE => {
                self.closed = true;
                let status = self.control.first_chunk().map(|code| u16::from_be_bytes(*code));
                if status.is_some_and(|code| !allowed(code)) {
                    return Err(wrong("a Close frame with a status code that may not be sent"));
                }
                answer(Control::Close(status));
            }
            // A Pong needs none, and the end of a data frame means nothing to MQTT.
            _ => {}
        }
        self.control.clear();
        Ok(())
    }
}

/// Section 7.4: codes that a Close frame may carry.
fn allowed(status: u16) -> bool {
    matches!(status, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Bytes of a client's header, from its second one.
fn header_len(second: u8) -> usize {
    6 + match second & 0x7F {
        126 => 2,
        127 => 8,
        _ => 0,
    }
}

/// Section 5.3; four bytes at a time, since every byte of a client passes here.
fn unmask(bytes: &mut [u8], mut mask: [u8; 4], seen: u64) {
    mask.rotate_left((seen % 4) as usize);
    let word = u32::from_ne_bytes(mask);
    let mut words = bytes.chunks_exact_mut(4);
    for four in &mut words {
        let masked = u32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
        four.copy_from_slice(&(masked ^ word).to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// Appends the header of a server's frame.
fn header(out: &mut Vec<u8>, opcode: u8, length: usize) {
    out.push(FIN | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend(medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend((length as u64).to_be_bytes());
        }
    }
}

/// Appends one binary frame.
pub(super) fn binary(out: &mut Vec<u8>, payload: &[u8]) {
    header(out, BINARY, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the answer to a Ping.
pub(super) fn pong(out: &mut Vec<u8>, payload: &[u8]) {
    header(out, PONG, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a Close frame.
pub(super) fn close(out: &mut Vec<u8>, status: u16) {
    header(out, CLOSE, 2);
    out.extend(status.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Longest header that we write: a server's frames have no mask.
    const MAX_HEADER: usize = 10;

    /// A client's frame.
    fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(&mut bytes, 0, payload.len());
        bytes[0] = first;
        bytes[1] |= 0x80;
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// Payload and answers of bytes that come in pieces.
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

    fn refusal(bytes: &[u8]) -> FrameError {
        decoded(&[bytes]).expect_err("refused")
    }

    #[test]
    fn the_examples_of_the_standard() {
        // Section 5.7, with the kind of frame changed from text to binary.
        let hello = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decoded(&[&hello]), Ok((b"Hello".to_vec(), vec![])));
        let ping = [0x89, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decoded(&[&ping]), Ok((vec![], vec!["Ping([72, 101, 108, 108, 111])".to_owned()])));
        let mut out = Vec::new();
        pong(&mut out, b"Hello");
        assert_eq!(out, [0x8a, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        binary(&mut out, &[7; 256]);
        assert_eq!(out[..4], [0x82, 0x7E, 0x01, 0x00]);
        out.clear();
        binary(&mut out, &[7; 65_536]);
        assert_eq!(out[..10], [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn control_frames_may_stand_between_the_frames_of_a_message() {
        let bytes = [
            frame(BINARY, [1, 2, 3, 4], b"one"),
            frame(FIN | PING, [9; 4], b"?"),
            frame(CONTINUATION, [5, 6, 7, 8], b""),
            frame(FIN | PONG, [9; 4], b"late"),
            frame(FIN | CONTINUATION, [0; 4], b"two"),
            frame(FIN | BINARY, [8; 4], b"three"),
            frame(FIN | CLOSE, [8; 4], &1000u16.to_be_bytes()),
            b"whatever".to_vec(),
        ];
        let answers = vec!["Ping([63])".to_owned(), "Close(Some(1000))".to_owned()];
        assert_eq!(decoded(&[&bytes.concat()]), Ok((b"onetwothree".to_vec(), answers)));
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        assert_eq!(refusal(&frame(FIN | TEXT, [0; 4], b"x")).status, UNSUPPORTED_DATA);
        assert_eq!(refusal(&[0x82, 0x05]).why, "a client's frame has no mask");
        assert_eq!(refusal(&frame(0xC2, [0; 4], b"x")).why, "a frame has a reserved bit");
        assert_eq!(refusal(&frame(FIN | 3, [0; 4], b"x")).why, "a frame of an unknown kind");
        assert!(refusal(&frame(FIN, [0; 4], b"x")).why.contains("has not begun"));
        let two = [frame(BINARY, [0; 4], b"x"), frame(FIN | BINARY, [0; 4], b"x")].concat();
        assert!(refusal(&two).why.contains("before the last one has ended"));
        assert_eq!(refusal(&frame(PING, [0; 4], b"x")).why, "a control frame is fragmented");
        assert!(refusal(&frame(FIN | PING, [0; 4], &[0; 126])).why.contains("more than 125"));
        assert!(refusal(&frame(FIN | CLOSE, [0; 4], b"x")).why.contains("half a status code"));
        assert!(refusal(&frame(FIN | CLOSE, [0; 4], &1005u16.to_be_bytes())).why.contains("may not be sent"));
        assert!(refusal(&[0x82, 0xFE, 0, 125, 0, 0, 0, 0]).why.contains("fewest bytes"));
        assert!(
            refusal(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0]).why.contains("fewest bytes")
        );
        assert!(refusal(&[0x82, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).why.contains("highest bit"));
    }

    #[test]
    fn a_length_that_promises_much_allocates_nothing() {
        let mut decoder = Decoder::default();
        let mut bytes =
            [&[0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0][..], b"abc"].concat();
        assert_eq!(decoder.decode(&mut bytes, |_| ()), Ok(3));
        assert_eq!((&bytes[..3], decoder.control.capacity()), (&b"abc"[..], 0));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut copy = bytes.clone();
            let mut decoder = Decoder::default();
            if let Ok(length) = decoder.decode(&mut copy, |_| ()) {
                prop_assert!(length <= bytes.len());
            }
            prop_assert!(decoder.control.len() <= MAX_CONTROL);
        }

        /// However a message is cut into frames, and the frames into reads, the same bytes come out.
        #[test]
        fn cuts_change_nothing(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>(), any::<bool>()), 1..8),
            cuts in prop::collection::vec(1usize..200, 1..40),
        ) {
            let (mut bytes, mut wanted) = (Vec::new(), Vec::new());
            for (at, (payload, mask, ping)) in parts.iter().enumerate() {
                let first = if at == 0 { BINARY } else { CONTINUATION };
                let fin = if at + 1 == parts.len() { FIN } else { 0 };
                bytes.extend(frame(fin | first, *mask, payload));
                if *ping {
                    bytes.extend(frame(FIN | PING, *mask, &payload[..payload.len().min(MAX_CONTROL)]));
                }
                wanted.extend_from_slice(payload);
            }
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (piece, later) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let pings = parts.iter().filter(|(_, _, ping)| *ping).count();
            let (payload, answers) = decoded(&pieces).unwrap();
            prop_assert_eq!((payload, answers.len()), (wanted, pings));
        }

        #[test]
        fn what_we_write_is_what_a_client_reads(payload in prop::collection::vec(any::<u8>(), 0..70_000)) {
            let mut out = Vec::new();
            binary(&mut out, &payload);
            // With a mask of zeroes our frame is a client's.
            let at = out.len() - payload.len();
            prop_assert!(at <= MAX_HEADER);
            out[1] |= 0x80;
            out.splice(at..at, [0; 4]);
            prop_assert_eq!(decoded(&[&out]).unwrap().0, payload);
        }
    }
}
