//! Event times: numbers by unit or magnitude, ISO 8601 text, always to microseconds since the Unix epoch, UTC.
//!
//! Digits below the microsecond are cut toward the past, so a time never moves into the next window.

use super::number::Number;
use super::spec::TimeUnit;

/// 0001-01-01T00:00:00Z and the last microsecond of the year 9999.
pub(super) const MIN_US: i64 = -62_135_596_800_000_000;
pub(super) const MAX_US: i64 = 253_402_300_799_999_999;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeFault {
    /// The text is not ISO 8601.
    Invalid,
    OutOfRange,
}

/// A whole number of a stated unit, or of the unit its magnitude tells (`Auto`); not negative.
pub(super) fn from_integer(value: i64, unit: TimeUnit) -> Option<i64> {
    let factor = match (unit, value) {
        (TimeUnit::S, _) | (TimeUnit::Auto | TimeUnit::Iso, 0..100_000_000_000) => 1_000_000,
        (TimeUnit::Ms, _) | (TimeUnit::Auto | TimeUnit::Iso, 100_000_000_000..100_000_000_000_000) => 1_000,
        (TimeUnit::Us, _) | (_, ..100_000_000_000_000_000) => 1,
        _ => return None,
    };
    value.checked_mul(factor).filter(|micros| (MIN_US..=MAX_US).contains(micros))
}

/// A numeric time of a stated unit, or of the unit its magnitude tells (`Auto`).
pub(super) fn from_number(number: Number<'_>, unit: TimeUnit) -> Option<i64> {
    let unit = match unit {
        TimeUnit::Auto | TimeUnit::Iso => unit_by_magnitude(number)?,
        stated => stated,
    };
    let decimals = match unit {
        TimeUnit::S => 6,
        TimeUnit::Ms => 3,
        _ => 0,
    };
    // Nearly every time is a whole number.
    let whole = (number.exact && number.exponent == 0 && !number.negative)
        .then(|| number.mantissa.checked_mul([1, 0, 0, 1_000, 0, 0, 1_000_000][decimals as usize]))
        .flatten()
        .and_then(|micros| i64::try_from(micros).ok());
    whole.or_else(|| number.scaled(decimals)).filter(|micros| (MIN_US..=MAX_US).contains(micros))
}

fn unit_by_magnitude(number: Number<'_>) -> Option<TimeUnit> {
    let whole =
        if number.exact && number.exponent == 0 { number.mantissa as u128 } else { number.whole_magnitude() };
    match whole {
        0..100_000_000_000 => Some(TimeUnit::S),
        100_000_000_000..100_000_000_000_000 => Some(TimeUnit::Ms),
        100_000_000_000_000..100_000_000_000_000_000 => Some(TimeUnit::Us),
        _ => None,
    }
}

/// ISO 8601 calendar date, or date and time of day: `2024-11-19`, `2024-11-19T07:06:40.123Z`.
///
/// The separator is `T`, `t` or a space; seconds may be missing; the fraction follows `.` or `,`; the zone is `Z`, `+hh:mm`,
/// `+hhmm`, `+hh` or missing, which means UTC. Second 60 (a leap second) is the next minute's first.
pub(super) fn from_iso(text: &[u8]) -> Result<i64, TimeFault> {
    let mut text = Text(text);
    let year = text.number(4)?;
    text.expect(b"-")?;
    let month = text.number(2)?;
    text.expect(b"-")?;
    let day = text.number(2)?;
    if !(1..=12).contains(&month) || day < 1 || day > days_of_month(year, month) {
        return Err(TimeFault::Invalid);
    }
    let mut micros = days_since_epoch(year, month, day) * 86_400_000_000;
    if !text.0.is_empty() {
        text.expect(b"Tt ")?;
        micros += text.time_of_day()? - text.zone()?;
    }
    if !text.0.is_empty() {
        return Err(TimeFault::Invalid);
    }
    if !(MIN_US..=MAX_US).contains(&micros) {
        return Err(TimeFault::OutOfRange);
    }
    Ok(micros)
}

/// What is left of the text.
struct Text<'t>(&'t [u8]);

impl Text<'_> {
    fn number(&mut self, digits: usize) -> Result<i64, TimeFault> {
        let (head, rest) = self.0.split_at_checked(digits).ok_or(TimeFault::Invalid)?;
        self.0 = rest;
        head.iter().try_fold(0, |value, digit| match digit {
            b'0'..=b'9' => Ok(value * 10 + (digit - b'0') as i64),
            _ => Err(TimeFault::Invalid),
        })
    }

    fn take(&mut self, any: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        any.contains(first).then(|| {
            self.0 = rest;
            *first
        })
    }

    fn expect(&mut self, any: &[u8]) -> Result<(), TimeFault> {
        self.take(any).map(|_| ()).ok_or(TimeFault::Invalid)
    }

    fn time_of_day(&mut self) -> Result<i64, TimeFault> {
        let hour = self.number(2)?;
        self.expect(b":")?;
        let minute = self.number(2)?;
        let mut second = 0;
        let mut micros = 0;
        if self.take(b":").is_some() {
            second = self.number(2)?;
            if self.take(b".,").is_some() {
                let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let (fraction, rest) = self.0.split_at(digits);
                self.0 = rest;
                if digits == 0 {
                    return Err(TimeFault::Invalid);
                }
                let padded = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(6);
                micros = padded.fold(0, |value, digit| value * 10 + (digit - b'0') as i64);
            }
        }
        if hour > 23 || minute > 59 || second > 60 || (second == 60 && minute != 59) {
            return Err(TimeFault::Invalid);
        }
        Ok((hour * 3600 + minute * 60 + second) * 1_000_000 + micros)
    }

    /// Offset of the zone from UTC, in microseconds.
    fn zone(&mut self) -> Result<i64, TimeFault> {
        let Some(sign) = self.take(b"Zz+-").filter(|sign| !sign.eq_ignore_ascii_case(&b'z')) else {
            return Ok(0);
        };
        let hours = self.number(2)?;
        let mut minutes = 0;
        if self.take(b":").is_some() || !self.0.is_empty() {
            minutes = self.number(2)?;
        }
        if hours > 23 || minutes > 59 {
            return Err(TimeFault::Invalid);
        }
        let offset = (hours * 60 + minutes) * 60_000_000;
        Ok(if sign == b'-' { -offset } else { offset })
    }
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + is_leap(year) as i64,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar, by counting years that start in March, so that
/// a leap day is the last of its year.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = year - (month <= 2) as i64;
    let months = (month + 9) % 12;
    let day_of_year = (153 * months + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and the epoch.
    year * 365 + leap_days + day_of_year - 719_468
}

/// `floor(value / 10^digits)`.
pub(super) fn floor_div_pow10(value: i128, digits: i64) -> i128 {
    match u32::try_from(digits).ok().and_then(|digits| 10i128.checked_pow(digits)) {
        Some(power) => value.div_euclid(power),
        None => -((value < 0) as i128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn iso_forms() {
        let at = 1_732_000_000_123_000;
        for text in [
            "2024-11-19T07:06:40.123Z",
            "2024-11-19 07:06:40.123",
            "2024-11-19t07:06:40,1230009z",
            "2024-11-19T08:06:40.123+01:00",
            "2024-11-19T01:36:40.123-0530",
            "2024-11-19T09:06:40.123+02",
        ] {
            assert_eq!(from_iso(text.as_bytes()), Ok(at), "{text}");
        }
        assert_eq!(from_iso(b"1970-01-01"), Ok(0));
        assert_eq!(from_iso(b"1970-01-01T00:01"), Ok(60_000_000));
        assert_eq!(from_iso(b"2016-12-31T23:59:60Z"), from_iso(b"2017-01-01T00:00:00Z"));
        assert_eq!(from_iso(b"0001-01-01"), Ok(MIN_US));
        assert_eq!(from_iso(b"9999-12-31T23:59:59.999999Z"), Ok(MAX_US));
    }

    #[test]
    fn iso_refused() {
        for text in [
            "",
            "2024",
            "2024-11",
            "2024-13-01",
            "2024-02-30",
            "2023-02-29",
            "2024-11-19T",
            "2024-11-19T7:06",
            "24-11-19",
            "2024-11-19T24:00:00",
            "2024-11-19T07:60",
            "2024-11-19T07:06:61",
            "2024-11-19T07:30:60",
            "2024-11-19T07:06:40.",
            "2024-11-19T07:06:40+1",
            "2024-11-19T07:06:40+24:00",
            "2024-11-19Z",
            "20241119T070640Z",
            "2024-11-19T07:06:40Z ",
            " 2024-11-19",
            "+2024-11-19",
            "1732000000",
            "2024-11-19T07:06:40 UTC",
        ] {
            assert_eq!(from_iso(text.as_bytes()), Err(TimeFault::Invalid), "{text}");
        }
        for text in ["0000-01-01", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"] {
            assert_eq!(from_iso(text.as_bytes()), Err(TimeFault::OutOfRange), "{text}");
        }
    }

    /// The plain way: step year by year and month by month from the epoch.
    fn civil(mut days: i64) -> (i64, i64, i64) {
        let mut year = 1970;
        while days < 0 {
            year -= 1;
            days += 365 + is_leap(year) as i64;
        }
        while days >= 365 + is_leap(year) as i64 {
            days -= 365 + is_leap(year) as i64;
            year += 1;
        }
        let mut month = 1;
        while days >= days_of_month(year, month) {
            days -= days_of_month(year, month);
            month += 1;
        }
        (year, month, days + 1)
    }

    #[test]
    fn every_day_of_ten_thousand_years() {
        for days in MIN_US.div_euclid(86_400_000_000)..=MAX_US / 86_400_000_000 {
            // Sampled densely near today, sparsely elsewhere: stepping is slow.
            if (0..40_000).contains(&days) || days % 211 == 0 {
                let (year, month, day) = civil(days);
                assert_eq!(days_since_epoch(year, month, day), days);
            }
        }
    }

    proptest! {
        #[test]
        fn iso_round_trip(micros in MIN_US..=MAX_US, offset in -1439i64..=1439, space: bool) {
            let local = micros + offset * 60_000_000;
            prop_assume!((MIN_US..=MAX_US).contains(&local));
            let (year, month, day) = civil(local.div_euclid(86_400_000_000));
            let rest = local.rem_euclid(86_400_000_000);
            let (hour, minute, second) = (rest / 3_600_000_000, rest / 60_000_000 % 60, rest / 1_000_000 % 60);
            let separator = if space { ' ' } else { 'T' };
            let sign = if offset < 0 { '-' } else { '+' };
            let text = format!(
                "{year:04}-{month:02}-{day:02}{separator}{hour:02}:{minute:02}:{second:02}.{:06}{sign}{:02}:{:02}",
                rest % 1_000_000, offset.abs() / 60, offset.abs() % 60
            );
            prop_assert_eq!(from_iso(text.as_bytes()), Ok(micros));
        }

        #[test]
        fn any_text_is_refused_or_in_range(text in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(micros) = from_iso(&text) {
                prop_assert!((MIN_US..=MAX_US).contains(&micros));
            }
        }
    }
}
