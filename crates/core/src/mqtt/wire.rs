//! The data types of section 1.5: integers, variable byte integer, UTF-8 string, binary data.

use super::reason::PacketError;
use super::topic;
use crate::short;

/// The largest value of a variable byte integer (four bytes of seven bits).
pub const VARIABLE_MAX: u32 = 268_435_455;

/// Reads the body of one packet, which is complete: a field that ends early is malformed.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

const NUL: PacketError = PacketError::malformed("a string contains the character U+0000");
const DISALLOWED: PacketError =
    PacketError::malformed("a name contains a control character or a non-character");
const CUT: PacketError = PacketError::malformed("a field reaches beyond the end of its packet");

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Reader<'a> {
        Reader { rest: body }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// All that has not been read.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], PacketError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CUT)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub fn u8(&mut self) -> Result<u8, PacketError> {
        let (&byte, rest) = self.rest.split_first().ok_or(CUT)?;
        self.rest = rest;
        Ok(byte)
    }

    #[inline]
    pub fn u16(&mut self) -> Result<u16, PacketError> {
        let (bytes, rest) = self.rest.split_first_chunk::<2>().ok_or(CUT)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    pub fn u32(&mut self) -> Result<u32, PacketError> {
        let (bytes, rest) = self.rest.split_first_chunk::<4>().ok_or(CUT)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// A packet identifier, which is never 0 (section 2.2.1).
    pub fn packet_id(&mut self) -> Result<u16, PacketError> {
        match self.u16()? {
            0 => Err(PacketError::protocol("packet identifier 0")),
            id => Ok(id),
        }
    }

    /// At most four bytes, and no more bytes than the value needs (section 1.5.5).
    pub fn variable(&mut self) -> Result<u32, PacketError> {
        match variable(self.rest)? {
            None => Err(CUT),
            Some((value, len)) => {
                self.rest = &self.rest[len..];
                Ok(value)
            }
        }
    }

    #[inline]
    pub fn binary(&mut self) -> Result<&'a [u8], PacketError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// UTF-8 without surrogates, overlong forms and U+0000 (section 1.5.4).
    #[inline]
    pub fn string(&mut self) -> Result<&'a str, PacketError> {
        let text = self.text()?;
        if short::contains(text.as_bytes(), [0]) {
            return Err(NUL);
        }
        Ok(text)
    }

    /// A string that names something: none of the code points that section 1.5.4 lets a receiver refuse.
    #[inline]
    pub fn name(&mut self) -> Result<&'a str, PacketError> {
        let text = self.string()?;
        if topic::has_disallowed(text) { Err(DISALLOWED) } else { Ok(text) }
    }

    /// The name of a topic to publish to: no wildcards.
    #[inline]
    pub fn topic_name(&mut self) -> Result<&'a str, PacketError> {
        let text = self.text()?;
        if short::is_plain(text.as_bytes()) && !short::contains(text.as_bytes(), [b'+', b'#']) {
            Ok(text)
        } else if text.as_bytes().contains(&0) {
            Err(NUL)
        } else if topic::has_wildcard(text) {
            Err(PacketError::malformed("a topic name contains a wildcard"))
        } else if topic::has_disallowed(text) {
            Err(DISALLOWED)
        } else {
            Ok(text)
        }
    }

    #[inline]
    fn text(&mut self) -> Result<&'a str, PacketError> {
        let bytes = self.binary()?;
        short::text(bytes).ok_or(PacketError::malformed("a string is not valid UTF-8"))
    }
}

/// Value and length of a variable byte integer at the start of `bytes`; `None`: it goes on beyond them.
#[inline]
pub fn variable(bytes: &[u8]) -> Result<Option<(u32, usize)>, PacketError> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if byte == 0 && at > 0 {
                return Err(PacketError::malformed("a length is written with more bytes than it needs"));
            }
            return Ok(Some((value, at + 1)));
        }
    }
    if bytes.len() >= 4 {
        return Err(PacketError::malformed("a length has more than four bytes"));
    }
    Ok(None)
}

/// Bytes that `variable` of this value takes.
pub fn variable_len(value: usize) -> usize {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

/// `value` must be at most [`VARIABLE_MAX`].
pub fn put_variable(out: &mut Vec<u8>, mut value: usize) {
    debug_assert!(value <= VARIABLE_MAX as usize);
    while value > 127 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// At most 65,535 bytes: the callers' strings come from parsed packets or are checked topics.
pub fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Writes what `body` writes, preceded by its length: one byte is reserved and moved apart when it needs more.
pub fn put_with_length(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    body(out);
    let len = out.len() - start - 1;
    if len <= 127 {
        out[start] = len as u8;
    } else {
        let mut prefix = Vec::with_capacity(4);
        put_variable(&mut prefix, len);
        out.splice(start..=start, prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_byte_integer_examples_of_the_standard() {
        // Table 1-1: the borders of each length.
        for (value, bytes) in [
            (0u32, &[0x00][..]),
            (127, &[0x7f]),
            (128, &[0x80, 0x01]),
            (16_383, &[0xff, 0x7f]),
            (16_384, &[0x80, 0x80, 0x01]),
            (2_097_151, &[0xff, 0xff, 0x7f]),
            (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
            (VARIABLE_MAX, &[0xff, 0xff, 0xff, 0x7f]),
        ] {
            let mut out = Vec::new();
            put_variable(&mut out, value as usize);
            assert_eq!(out, bytes);
            assert_eq!(variable_len(value as usize), bytes.len());
            assert_eq!(variable(bytes), Ok(Some((value, bytes.len()))));
            assert_eq!(variable(&bytes[..bytes.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn a_length_that_grows_past_one_byte_moves_its_body() {
        let mut out = vec![9];
        put_with_length(&mut out, |out| out.extend_from_slice(&[7; 300]));
        assert_eq!(out[..3], [9, 0xac, 0x02]);
        assert_eq!(out[3..], [7; 300]);
    }

    #[test]
    fn strings_refuse_surrogates_overlong_forms_and_nul() {
        for bad in
            [&b"a\xed\xa0\x80"[..], b"\xc0\x80", b"\xe0\x80\xaf", b"a\0b", b"\xff", b"\xf5\x80\x80\x80"]
        {
            let mut field = Vec::new();
            put_binary(&mut field, bad);
            assert!(Reader::new(&field).string().is_err(), "{bad:?}");
        }
        let mut field = Vec::new();
        put_binary(&mut field, "zwölf/\u{feff}\u{10ffff}".as_bytes());
        assert_eq!(Reader::new(&field).string(), Ok("zwölf/\u{feff}\u{10ffff}"));
    }
}
