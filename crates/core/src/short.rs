//! Short texts, eight bytes at a time: topics, their levels and keys are too short for a call to `memcmp`, `memchr` or
//! a vectorised UTF-8 check to pay.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Eight bytes, the first one lowest.
#[inline(always)]
pub fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// `bytes` in words, each with the position of its first byte. The last word may be filled up with NUL.
#[inline(always)]
pub fn words(bytes: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let (whole, rest) = bytes.as_chunks::<8>();
    let last = (!rest.is_empty()).then(|| match bytes.last_chunk::<8>() {
        Some(last) => word(last) >> (8 * (8 - rest.len())),
        None => rest.iter().rev().fold(0, |last, byte| last << 8 | u64::from(*byte)),
    });
    let last = last.map(|last| (bytes.len() - rest.len(), last));
    whole.iter().enumerate().map(|(at, bytes)| (8 * at, word(bytes))).chain(last)
}

/// `word` with 0x80 in exactly those bytes that are `byte`, and 0 in the others.
#[inline(always)]
pub fn marks(word: u64, byte: u8) -> u64 {
    let other = word ^ (ONES * byte as u64);
    // The sum of the low seven bits carries into the eighth unless they are zero, and never further.
    !(((other & !HIGHS) + !HIGHS) | other | !HIGHS)
}

/// Position in its word of the first byte in `marks`, which are not 0.
#[inline(always)]
pub fn first(marks: u64) -> usize {
    (marks.trailing_zeros() / 8) as usize
}

#[inline(always)]
pub fn is_ascii(bytes: &[u8]) -> bool {
    words(bytes).fold(0, |all, (_, word)| all | word) & HIGHS == 0
}

/// Whether all bytes are printable ASCII, or space.
#[inline(always)]
pub fn is_plain(bytes: &[u8]) -> bool {
    // Per byte, in its highest bit: below 0x20 or above 0x7e. Borrows and carries come only from bytes that are.
    let odd = |word: u64| (word.wrapping_sub(ONES * 0x20) & !word) | word.wrapping_add(ONES) | word;
    let (whole, rest) = bytes.as_chunks::<8>();
    let found = whole.iter().fold(0, |found, bytes| found | odd(word(bytes))) & HIGHS;
    match bytes.last_chunk::<8>() {
        Some(last) => (found | odd(word(last))) & HIGHS == 0,
        None => rest.iter().all(|byte| (0x20..0x7f).contains(byte)),
    }
}

/// Whether one of `wanted` is among `bytes`.
#[inline(always)]
pub fn contains<const N: usize>(bytes: &[u8], wanted: [u8; N]) -> bool {
    let marked = |word| wanted.iter().fold(0, |found, byte| found | marks(word, *byte));
    let (whole, rest) = bytes.as_chunks::<8>();
    let found = whole.iter().fold(0, |found, bytes| found | marked(word(bytes)));
    match bytes.last_chunk::<8>() {
        Some(last) => found | marked(word(last)) != 0,
        None => rest.iter().any(|byte| wanted.contains(byte)),
    }
}

/// The text that `bytes` are, if they are UTF-8.
#[inline(always)]
pub fn text(bytes: &[u8]) -> Option<&str> {
    if is_ascii(bytes) {
        // SAFETY: ASCII is UTF-8.
        return Some(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    simdutf8::basic::from_utf8(bytes).ok()
}

#[inline(always)]
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    // Two words, which overlap, hold all of it.
    let ends = |bytes: &[u8]| Some((word(bytes.first_chunk()?), word(bytes.last_chunk()?)));
    match left.len() {
        8..=16 => ends(left) == ends(right),
        0..8 => left.iter().zip(right).all(|(left, right)| left == right),
        _ => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_hold_every_byte_once(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut found = Vec::new();
            for (at, word) in words(&bytes) {
                prop_assert_eq!(at, found.len());
                found.extend(word.to_le_bytes());
            }
            prop_assert!(found.len() < bytes.len() + 8);
            prop_assert!(found[bytes.len()..].iter().all(|byte| *byte == 0));
            found.truncate(bytes.len());
            prop_assert_eq!(found, bytes);
        }

        #[test]
        fn marks_are_exact(bytes: [u8; 8], one in 0usize..8, byte: u8) {
            let mut bytes = bytes;
            bytes[one] = byte;
            let wanted = bytes.map(|found| if found == byte { 0x80 } else { 0 });
            prop_assert_eq!(marks(word(&bytes), byte).to_le_bytes(), wanted);
            let place = bytes.iter().position(|found| *found == byte);
            prop_assert_eq!(Some(first(marks(word(&bytes), byte))), place);
        }

        #[test]
        fn equal_is_equality(left in proptest::collection::vec(0u8..2, 0..20), right in proptest::collection::vec(0u8..2, 0..20), at: usize) {
            prop_assert_eq!(equal(&left, &right), left == right);
            prop_assert!(equal(&left, &left.clone()));
            if !left.is_empty() {
                let mut other = left.clone();
                other[at % left.len()] ^= 0x80;
                prop_assert!(!equal(&left, &other));
            }
        }

        #[test]
        fn contains_is_contains(bytes in proptest::collection::vec(0u8..60, 0..30)) {
            prop_assert_eq!(contains(&bytes, [0, 59]), bytes.contains(&0) || bytes.contains(&59));
        }

        #[test]
        fn plain_is_printable_ascii(bytes in proptest::collection::vec(0x1du8..0x82, 0..30), one: u8) {
            let printable = |bytes: &[u8]| bytes.iter().all(|byte| (0x20..=0x7e).contains(byte));
            prop_assert_eq!(is_plain(&bytes), printable(&bytes));
            let plain: Vec<u8> = bytes.iter().map(|byte| byte % 0x5f + 0x20).collect();
            prop_assert!(is_plain(&plain));
            let mixed = [&plain[..], &[one], &plain[..]].concat();
            prop_assert_eq!(is_plain(&mixed), printable(&mixed));
        }

        #[test]
        fn text_is_utf_8(text in "[a-z/é]{0,40}", at: usize, byte: u8) {
            prop_assert_eq!(is_ascii(text.as_bytes()), text.is_ascii());
            prop_assert_eq!(super::text(text.as_bytes()), Some(text.as_str()));
            let mut bytes = text.into_bytes();
            if !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            prop_assert_eq!(super::text(&bytes), std::str::from_utf8(&bytes).ok());
        }
    }
}
