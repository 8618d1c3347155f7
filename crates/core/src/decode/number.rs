//! JSON numbers: one scan checks the syntax and collects the digits, conversions come after.
//!
//! A decimal of at most 19 digits is held exactly as `mantissa * 10^exponent`. Where mantissa and power
//! are exact doubles one multiplication or division is correctly rounded (Clinger 1990, How to read floating point
//! numbers accurately, section 3); everything else goes to the correctly rounded parser of the standard library.

use super::time::floor_div_pow10;

/// A number as written: `text` matches the grammar of RFC 8259 section 6.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<'p> {
    pub text: &'p [u8],
    pub negative: bool,
    /// All digits, if `exact`; else meaningless.
    pub mantissa: u64,
    /// Power of ten, saturated far outside every range in use.
    pub exponent: i64,
    pub exact: bool,
}

/// What a number is not: see `Number::to_bigint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotBigint {
    Fraction,
    OutOfRange,
}

/// Digits whose every value fits u64.
const EXACT_DIGITS: usize = 19;
const EXPONENT_LIMIT: i64 = 1 << 40;

const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

impl<'p> Number<'p> {
    /// Scans the number at `start`, which holds `-` or a digit. `Err`: the position of the offence.
    #[inline(always)]
    pub fn scan(text: &'p [u8], start: usize) -> Result<(Number<'p>, usize), usize> {
        let mut at = start;
        let negative = text.get(at) == Some(&b'-');
        at += negative as usize;
        let mut mantissa = 0u64;
        let first = at;
        at = digits(text, at, &mut mantissa);
        let mut count = at - first;
        if count == 0 || (count > 1 && text[first] == b'0') {
            return Err(first + (count > 0) as usize);
        }
        let mut exponent = 0i64;
        if text.get(at) == Some(&b'.') {
            let first = at + 1;
            at = digits(text, first, &mut mantissa);
            if at == first {
                return Err(at);
            }
            count += at - first;
            exponent = -((at - first) as i64);
        }
        if let Some(b'e' | b'E') = text.get(at) {
            at += 1;
            let down = text.get(at) == Some(&b'-');
            at += matches!(text.get(at), Some(b'-' | b'+')) as usize;
            let first = at;
            let mut power = 0i64;
            while let Some(digit @ b'0'..=b'9') = text.get(at) {
                power = (power * 10 + (digit - b'0') as i64).min(EXPONENT_LIMIT);
                at += 1;
            }
            if at == first {
                return Err(at);
            }
            exponent += if down { -power } else { power };
        }
        let exact = count <= EXACT_DIGITS;
        Ok((Number { text: &text[start..at], negative, mantissa, exponent, exact }, at))
    }

    /// The nearest double, ties to even; `None` beyond the largest one. Too small becomes zero.
    #[inline(always)]
    pub fn to_double(self) -> Option<f64> {
        if self.exact && self.mantissa <= 1 << 53 && (-22..=22).contains(&self.exponent) {
            let mantissa = self.mantissa as f64;
            let value = if self.exponent < 0 {
                mantissa / POWERS[-self.exponent as usize]
            } else {
                mantissa * POWERS[self.exponent as usize]
            };
            return Some(if self.negative { -value } else { value });
        }
        let text = std::str::from_utf8(self.text).ok()?;
        text.parse::<f64>().ok().filter(|value| value.is_finite())
    }

    /// The integer that the decimal is, however written: `3.0` and `3e2` are integers, `3.5` is not.
    #[inline]
    pub fn to_bigint(self) -> Result<i64, NotBigint> {
        let mut magnitude = self.mantissa;
        if !self.exact || self.exponent != 0 {
            let digits = self.significant();
            if digits.mantissa == 0 {
                return Ok(0);
            }
            if digits.last_exponent < 0 {
                return Err(NotBigint::Fraction);
            }
            let power = u32::try_from(digits.last_exponent).ok().and_then(|power| 10u64.checked_pow(power));
            let whole = power.filter(|_| !digits.lost).and_then(|power| digits.mantissa.checked_mul(power));
            magnitude = whole.ok_or(NotBigint::OutOfRange)?;
        }
        let value = if self.negative { -(magnitude as i128) } else { magnitude as i128 };
        i64::try_from(value).map_err(|_| NotBigint::OutOfRange)
    }

    /// The whole part of the magnitude, saturated: for comparisons with whole limits.
    pub fn whole_magnitude(self) -> u128 {
        let digits = self.significant();
        if digits.exponent <= 0 {
            return floor_div_pow10(digits.mantissa as i128, -digits.exponent).unsigned_abs();
        }
        let power = u32::try_from(digits.exponent).ok().and_then(|power| 10u128.checked_pow(power));
        power.and_then(|power| power.checked_mul(digits.mantissa as u128)).unwrap_or(u128::MAX)
    }

    /// `floor(number * 10^scale)`, `None` outside i64.
    pub fn scaled(self, scale: i64) -> Option<i64> {
        let digits = self.significant();
        let signed = if self.negative { -(digits.mantissa as i128) } else { digits.mantissa as i128 };
        let exponent = digits.exponent + scale;
        if signed == 0 {
            return Some(0);
        }
        if exponent >= 0 {
            let power = 10i128.checked_pow(u32::try_from(exponent).ok()?)?;
            // Digits beyond the 19th would count here, but then the number is beyond i64 as well.
            return i64::try_from(signed.checked_mul(power)?).ok();
        }
        // Lost digits only ever add to the magnitude: below zero they pull a whole quotient down.
        let below = if self.negative && digits.lost { signed * 10 - 1 } else { signed * 10 };
        i64::try_from(floor_div_pow10(below, 1 - exponent)).ok()
    }

    /// Digits from the first to the last that is not zero, at most 19 of them.
    fn significant(self) -> Significant {
        let mut found = Significant { mantissa: 0, exponent: 0, lost: false, last_exponent: 0 };
        let body = self.text.iter().take_while(|byte| !matches!(byte, b'e' | b'E'));
        let digits = body.filter(|byte| byte.is_ascii_digit());
        let mut exponent = self.exponent + digits.clone().count() as i64;
        let mut kept = 0;
        for digit in digits {
            exponent -= 1;
            let value = (digit - b'0') as u64;
            if value != 0 {
                found.last_exponent = exponent;
            }
            if kept == EXACT_DIGITS {
                found.lost |= value != 0;
            } else if kept > 0 || value != 0 {
                found.mantissa = found.mantissa * 10 + value;
                found.exponent = exponent;
                kept += 1;
            }
        }
        // Zeros behind the last other digit are no digits of the value.
        while !found.lost && found.mantissa != 0 && found.mantissa.is_multiple_of(10) {
            found.mantissa /= 10;
            found.exponent += 1;
        }
        found
    }
}

/// See `Number::significant`. Value: `mantissa * 10^exponent`, plus the digits `lost`.
struct Significant {
    mantissa: u64,
    exponent: i64,
    /// Digits other than zero follow the 19 kept.
    lost: bool,
    /// Power of ten of the last digit that is not zero.
    last_exponent: i64,
}

/// Appends the run of digits at `at` to `mantissa` (wrapping) and gives its end.
///
/// Up to eight digits at once, however many there are: the digits found are shifted to the word's upper end, which fills
/// the lower one with zeros.
#[inline(always)]
fn digits(text: &[u8], mut at: usize, mantissa: &mut u64) -> usize {
    while let Some(chunk) = text.get(at..at + 8) {
        let chunk = u64::from_le_bytes([
            chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7],
        ]);
        // A byte is a digit if its high nibble is 3, also after adding 6. The first other byte is exact, since
        // no carry can leave the digits before it.
        let high = chunk ^ 0x3030_3030_3030_3030;
        let other = (high | high.wrapping_add(0x0606_0606_0606_0606)) & 0xf0f0_f0f0_f0f0_f0f0;
        let count = (other.trailing_zeros() / 8) as usize;
        if count == 0 {
            return at;
        }
        let digits = high << (64 - 8 * count);
        let pairs = digits.wrapping_mul(10 * 256 + 1) >> 8;
        let quads = (pairs & 0x00ff_00ff_00ff_00ff).wrapping_mul(100 * 65536 + 1) >> 16;
        let eight = (quads & 0x0000_ffff_0000_ffff).wrapping_mul(10_000 * (1 << 32) + 1) >> 32;
        *mantissa = mantissa.wrapping_mul(WHOLE_POWERS[count]).wrapping_add(eight);
        at += count;
        if count < 8 {
            return at;
        }
    }
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        *mantissa = mantissa.wrapping_mul(10).wrapping_add((digit - b'0') as u64);
        at += 1;
    }
    at
}

const WHOLE_POWERS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> Number<'_> {
        let (number, end) = Number::scan(text.as_bytes(), 0).unwrap();
        assert_eq!(end, text.len(), "{text}");
        number
    }

    #[test]
    fn integers_however_written() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("3.0", 3),
            ("3e2", 300),
            ("300e-2", 3),
            ("1.50E1", 15),
            ("0.000000000000000000000000000000e999999999999999999999", 0),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
            ("9223372036854775807.000000000000000000000", i64::MAX),
            ("92233720368547758070000000000000000000000e-22", i64::MAX),
            ("0.0000000000000000000000000000000000000007e40", 7),
        ] {
            assert_eq!(number(text).to_bigint(), Ok(value), "{text}");
        }
        for text in [
            "9223372036854775808",
            "-9223372036854775809",
            "1e19",
            "1e999999999999999",
            "12345678901234567890123",
        ] {
            assert_eq!(number(text).to_bigint(), Err(NotBigint::OutOfRange), "{text}");
        }
        for text in ["0.5", "1e-400", "12345678901234567890.5", "9223372036854775807.000000000000000000001"] {
            assert_eq!(number(text).to_bigint(), Err(NotBigint::Fraction), "{text}");
        }
    }

    #[test]
    fn scaled_goes_toward_the_past() {
        assert_eq!(number("1732000000.1234567").scaled(6), Some(1_732_000_000_123_456));
        assert_eq!(number("-0.0000001").scaled(6), Some(-1));
        assert_eq!(number("-1.00000000000000000000000000001").scaled(6), Some(-1_000_001));
        assert_eq!(number("1.00000000000000000000000000001").scaled(6), Some(1_000_000));
        assert_eq!(number("1e30").scaled(6), None);
        assert_eq!(number("0e99999999999999999999").scaled(6), Some(0));
    }

    #[test]
    fn grammar() {
        for text in ["", "-", "01", "-01", "1.", ".5", "1e", "1e+", "+1", "-a", "1.e5", "00"] {
            let end = Number::scan(text.as_bytes(), 0).map(|(_, end)| end);
            assert!(end.is_err(), "{text}: {end:?}");
        }
        assert_eq!(Number::scan(b"12]", 0).unwrap().1, 2);
    }

    proptest! {
        #[test]
        fn doubles_are_those_of_the_standard_library(text in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][-+]?[0-9]{1,3})?") {
            let expected: f64 = text.parse().unwrap();
            let found = number(&text).to_double();
            prop_assert_eq!(found.map(f64::to_bits), expected.is_finite().then(|| expected.to_bits()));
        }

        #[test]
        fn every_double_survives(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(number(&format!("{value:e}")).to_double().unwrap().to_bits(), bits);
            prop_assert_eq!(number(&format!("{value}")).to_double().unwrap().to_bits(), bits);
        }

        #[test]
        fn every_integer_survives(value: i64, zeros in 0usize..30) {
            prop_assert_eq!(number(&value.to_string()).to_bigint(), Ok(value));
            let written = format!("{value}{}e-{zeros}", "0".repeat(zeros));
            prop_assert_eq!(number(&written).to_bigint(), Ok(value));
        }

        #[test]
        fn any_bytes_scan_or_fail(text in prop::collection::vec(prop::sample::select(&b"0123456789.eE+-,"[..]), 0..60)) {
            if let Ok((number, end)) = Number::scan(&text, 0) {
                prop_assert!(end <= text.len());
                let _ = (number.to_double(), number.to_bigint(), number.scaled(6), number.whole_magnitude());
            }
        }
    }
}
