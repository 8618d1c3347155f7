//! Quantiles of doubles with a relative error of 1 %: counts of values in buckets whose bounds grow by a constant factor.
//!
//! A bucket holds values that differ by less than 2 %, and answers with the middle one. There are at most 2,048: enough
//! for values of one sign over 17 orders of magnitude. Beyond that those nearest to zero become one bucket.
//!
//! source: Masson, Rim, Lee 2019, DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees

/// Buckets at most.
pub(super) const MAX_BUCKETS: usize = 2048;
const RELATIVE_ERROR: f64 = 0.01;
/// Bucket of a positive value: this above the logarithm's ceiling, so that all of them are above 0.
const OFFSET: i32 = 40_000;
/// Buckets of infinity and NaN, which is above it as in `Double.compare`.
const INFINITE: i32 = 1 << 20;
const NAN: i32 = INFINITE + 1;

/// Values seen: counts of buckets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Quantiles {
    /// Ascending: negative values below 0, zeros at 0, positive ones above.
    buckets: Vec<(i32, u64)>,
    /// Of the values that are not NaN.
    min: f64,
    max: f64,
}

impl Default for Quantiles {
    fn default() -> Quantiles {
        Quantiles { buckets: Vec::new(), min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Quantiles {
    pub fn add(&mut self, value: f64) {
        self.add_many(bucket(value), 1);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    pub fn merge(&mut self, other: &Quantiles) {
        other.buckets.iter().for_each(|(bucket, count)| self.add_many(*bucket, *count));
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The value that a share of all is below, interpolated between the two nearest as PERCENTILE_CONT does; NaN of none.
    ///
    /// share: 0 to 1
    pub fn value(&self, share: f64) -> f64 {
        let count: u64 = self.buckets.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return f64::NAN;
        }
        let position = share * (count - 1) as f64;
        let (low, part) = (position.floor(), position.fract());
        let below = self.at(low as u64);
        if part == 0.0 {
            return below;
        }
        let above = self.at(low as u64 + 1);
        if below == above { below } else { below + part * (above - below) }
    }

    /// Memory.
    pub fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<(i32, u64)>()
    }

    /// The value of this rank, from 0.
    fn at(&self, rank: u64) -> f64 {
        let mut seen = 0;
        for (bucket, count) in &self.buckets {
            seen += count;
            if seen > rank {
                let value = middle(*bucket);
                // Not `clamp`, which panics where there was nothing but NaN.
                return if value.is_nan() { value } else { value.max(self.min).min(self.max) };
            }
        }
        self.max
    }

    fn add_many(&mut self, bucket: i32, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
        if self.buckets.len() > MAX_BUCKETS {
            self.join_nearest_to_zero();
        }
    }

    /// Moves the bucket nearest to zero into its outer neighbour, on the side that has more of them.
    fn join_nearest_to_zero(&mut self) {
        let positive = self.buckets.partition_point(|(bucket, _)| *bucket <= 0);
        let negative = self.buckets.partition_point(|(bucket, _)| *bucket < 0);
        let (from, to) = if self.buckets.len() - positive >= negative {
            (positive, positive + 1)
        } else {
            (negative - 1, negative - 2)
        };
        self.buckets[to].1 += self.buckets[from].1;
        self.buckets.remove(from);
    }

    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.min.to_le_bytes());
        to.extend_from_slice(&self.max.to_le_bytes());
        for (bucket, count) in &self.buckets {
            to.extend_from_slice(&bucket.to_le_bytes());
            to.extend_from_slice(&count.to_le_bytes());
        }
    }

    /// What `encode` wrote; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Quantiles> {
        let (min, rest) = bytes.split_first_chunk::<8>()?;
        let (max, rest) = rest.split_first_chunk::<8>()?;
        let (buckets, left) = rest.as_chunks::<12>();
        let buckets: Vec<(i32, u64)> = buckets
            .iter()
            .map(|bytes| {
                let (bucket, count) = bytes.split_at(4);
                let count = count.try_into().map_or(0, u64::from_le_bytes);
                (bucket.try_into().map_or(0, i32::from_le_bytes), count)
            })
            .collect();
        let fits = left.is_empty()
            && buckets.len() <= MAX_BUCKETS
            && buckets.is_sorted_by(|a, b| a.0 < b.0)
            && buckets.iter().try_fold(0u64, |sum, (_, count)| sum.checked_add(*count)).is_some()
            && buckets.iter().all(|(bucket, count)| (-INFINITE..=NAN).contains(bucket) && *count > 0);
        fits.then(|| Quantiles { buckets, min: f64::from_le_bytes(*min), max: f64::from_le_bytes(*max) })
    }
}

/// Natural logarithm of the factor between bounds.
fn factor_ln() -> f64 {
    ((1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR)).ln()
}

fn bucket(value: f64) -> i32 {
    if value.is_nan() {
        return NAN;
    }
    if value == 0.0 {
        return 0;
    }
    let size = value.abs();
    let outer = if size.is_infinite() { INFINITE } else { OFFSET + (size.ln() / factor_ln()).ceil() as i32 };
    if value < 0.0 { -outer } else { outer }
}

/// A value less than the relative error away from every value of the bucket.
fn middle(bucket: i32) -> f64 {
    match bucket.abs() {
        0 => 0.0,
        NAN => f64::NAN,
        INFINITE => f64::INFINITY.copysign(bucket as f64),
        outer => {
            let upper = ((outer - OFFSET) as f64 * factor_ln()).exp().min(f64::MAX);
            (upper * (1.0 - RELATIVE_ERROR)).copysign(bucket as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f64]) -> Quantiles {
        let mut found = Quantiles::default();
        values.iter().for_each(|value| found.add(*value));
        found
    }

    /// Interpolated between neighbours of the sorted values, and the larger of the two.
    fn exact(values: &[f64], share: f64) -> (f64, f64) {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let position = share * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
        (low + position.fract() * (high - low), low.abs().max(high.abs()))
    }

    #[test]
    fn the_ends_are_exact() {
        let found = of(&[3.3, -17.25, 0.0, 1e-9, 12345.678]);
        assert_eq!((found.value(0.0), found.value(1.0)), (-17.25, 12345.678));
        assert_eq!(of(&[0.1]).value(0.5), 0.1);
        assert!(Quantiles::default().value(0.5).is_nan());
    }

    #[test]
    fn infinities_and_nan_have_their_place() {
        let found = of(&[f64::NAN, 1.0, f64::INFINITY, f64::NEG_INFINITY]);
        assert_eq!(found.value(0.0), f64::NEG_INFINITY);
        assert!(found.value(1.0).is_nan());
        assert!(of(&[f64::NAN]).value(0.5).is_nan());
        assert_eq!(of(&[f64::INFINITY; 3]).value(0.3), f64::INFINITY);
        let _ = of(&[f64::MAX, f64::MIN_POSITIVE, 5e-324, f64::MIN]).value(0.4);
    }

    #[test]
    fn at_the_bound_what_is_nearest_to_zero_loses_its_place() {
        let values: Vec<f64> = (-300..300).flat_map(|e| [1.0, 3.0, 7.0].map(|m| m * 10f64.powi(e))).collect();
        for sign in [1.0, -1.0] {
            let values: Vec<f64> = values.iter().chain(&values).map(|value| value * sign).collect();
            let found = of(&values);
            assert!(found.buckets.len() <= MAX_BUCKETS);
            let far = if sign > 0.0 { 0.999 } else { 0.001 };
            let (wanted, larger) = exact(&values, far);
            assert!((found.value(far) - wanted).abs() <= larger * 0.0101);
        }
    }

    proptest! {
        #[test]
        fn the_relative_error_is_bounded(
            values in prop::collection::vec(prop_oneof![-1e6..1e6f64, 1e-3..1e-2f64, Just(0.0)], 1..300),
            share in 0.0..=1.0f64,
            cut in any::<prop::sample::Index>(),
        ) {
            let (wanted, larger) = exact(&values, share);
            let cut = cut.index(values.len() + 1);
            let mut merged = of(&values[..cut]);
            merged.merge(&of(&values[cut..]));
            prop_assert_eq!(&merged, &of(&values));
            prop_assert!((merged.value(share) - wanted).abs() <= larger * 0.0101, "{} is not {}", merged.value(share), wanted);
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            prop_assert_eq!(Quantiles::decode(&bytes), Some(merged));
        }

        #[test]
        fn every_double_is_near_the_middle_of_its_bucket(value: f64) {
            prop_assume!(value.is_normal());
            let error = (middle(bucket(value)) - value).abs() / value.abs();
            prop_assert!(error <= 0.0101, "{} of {}", error, value);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(found) = Quantiles::decode(&bytes) {
                let mut again = Vec::new();
                found.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
