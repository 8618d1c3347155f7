//! How many different values: exact up to 512, then estimated with a standard error of 1.63 %.
//!
//! Up to the bound the values' hashes are kept. The hash of a number is a bijection, so that counting numbers is exact;
//! strings are hashed to 64 bits before. Beyond it there are 4,096 HyperLogLog registers, which take the same memory. State
//! and estimate depend on the set of values alone, not on their order or on how parts of it were merged.
//!
//! source: Flajolet et al. 2007, HyperLogLog; Ertl 2017, New cardinality estimation algorithms for HyperLogLog sketches,
//! section 4 (the estimator without bias tables)

/// Hashes kept before registers take over.
pub(super) const EXACT: usize = 512;
const INDEX_BITS: u32 = 12;
pub(super) const REGISTERS: usize = 1 << INDEX_BITS;
/// Highest value of a register: leading zeros of the remaining bits, and one.
const HIGHEST: u8 = (64 - INDEX_BITS + 1) as u8;

/// Different values seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Distinct {
    /// Hashes, ascending.
    Hashes(Vec<u64>),
    Registers(Box<[u8; REGISTERS]>),
}

impl Default for Distinct {
    fn default() -> Distinct {
        Distinct::Hashes(Vec::new())
    }
}

impl Distinct {
    /// Sees a value: equal ones have equal bits.
    pub fn add(&mut self, bits: u64) {
        self.add_hash(mix(bits));
    }

    pub fn merge(&mut self, other: &Distinct) {
        match other {
            Distinct::Hashes(hashes) => hashes.iter().for_each(|hash| self.add_hash(*hash)),
            Distinct::Registers(registers) => {
                let own = self.registers();
                own.iter_mut().zip(registers.iter()).for_each(|(own, other)| *own = (*own).max(*other));
            }
        }
    }

    /// The number of values, or its estimate.
    pub fn count(&self) -> i64 {
        match self {
            Distinct::Hashes(hashes) => hashes.len() as i64,
            Distinct::Registers(registers) => estimate(registers).round() as i64,
        }
    }

    /// Memory.
    pub fn bytes(&self) -> usize {
        match self {
            Distinct::Hashes(hashes) => hashes.capacity() * 8,
            Distinct::Registers(_) => REGISTERS,
        }
    }

    fn add_hash(&mut self, hash: u64) {
        match self {
            Distinct::Hashes(hashes) => {
                let Err(at) = hashes.binary_search(&hash) else { return };
                if hashes.len() < EXACT {
                    return hashes.insert(at, hash);
                }
                put(self.registers(), hash);
            }
            Distinct::Registers(registers) => put(registers, hash),
        }
    }

    /// From here on registers.
    fn registers(&mut self) -> &mut [u8; REGISTERS] {
        if let Distinct::Hashes(hashes) = self {
            let mut registers = Box::new([0; REGISTERS]);
            hashes.iter().for_each(|hash| put(&mut registers, *hash));
            *self = Distinct::Registers(registers);
        }
        match self {
            Distinct::Registers(registers) => registers,
            Distinct::Hashes(_) => unreachable!("just replaced"),
        }
    }

    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Distinct::Hashes(hashes) => {
                to.push(0);
                hashes.iter().for_each(|hash| to.extend_from_slice(&hash.to_le_bytes()));
            }
            Distinct::Registers(registers) => {
                to.push(1);
                to.extend_from_slice(&registers[..]);
            }
        }
    }

    /// What `encode` wrote; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Distinct> {
        let (kind, rest) = bytes.split_first()?;
        if *kind == 1 {
            let registers: [u8; REGISTERS] = rest.try_into().ok()?;
            let known = registers.iter().all(|register| *register <= HIGHEST);
            return known.then(|| Distinct::Registers(Box::new(registers)));
        }
        let (hashes, left) = rest.as_chunks::<8>();
        let hashes: Vec<u64> = hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        let fits = *kind == 0 && left.is_empty() && hashes.len() <= EXACT;
        (fits && hashes.is_sorted_by(|a, b| a < b)).then_some(Distinct::Hashes(hashes))
    }
}

/// What stands for a text in `Distinct::add`: the same at any time and on any machine.
pub fn hash_text(text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// The finaliser of SplitMix64: a bijection of 64 bits.
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

fn put(registers: &mut [u8; REGISTERS], hash: u64) {
    let register = &mut registers[(hash >> (64 - INDEX_BITS)) as usize];
    let rank = ((hash << INDEX_BITS).leading_zeros() as u8 + 1).min(HIGHEST);
    *register = (*register).max(rank);
}

fn estimate(registers: &[u8; REGISTERS]) -> f64 {
    let mut with = [0u32; HIGHEST as usize + 1];
    registers.iter().for_each(|register| with[*register as usize] += 1);
    let all = REGISTERS as f64;
    let mut sum = all * tau(1.0 - with[HIGHEST as usize] as f64 / all);
    for number in with[1..HIGHEST as usize].iter().rev() {
        sum = 0.5 * (sum + *number as f64);
    }
    sum += all * sigma(with[0] as f64 / all);
    all * all / (2.0 * std::f64::consts::LN_2 * sum)
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Distinct {
        let mut found = Distinct::default();
        values.into_iter().for_each(|value| found.add(value));
        found
    }

    #[test]
    fn it_is_exact_to_the_bound() {
        for number in [0, 1, 2, EXACT as u64 - 1, EXACT as u64] {
            assert_eq!(of((0..number).chain(0..number)).count(), number as i64);
        }
    }

    #[test]
    fn beyond_the_bound_the_error_is_a_few_percent() {
        for number in [EXACT as u64 + 1, 1_000, 10_000, 100_000, 1_000_000] {
            let found = of((0..number).map(|value| value * 77)).count() as f64;
            assert!((found / number as f64 - 1.0).abs() < 0.05, "{found} of {number}");
        }
    }

    proptest! {
        #[test]
        fn order_and_parts_do_not_matter(values in prop::collection::vec(0u64..3_000, 0..2_000), cut in any::<prop::sample::Index>()) {
            let cut = cut.index(values.len() + 1);
            let whole = of(values.iter().copied());
            let mut merged = of(values[cut..].iter().rev().copied());
            merged.merge(&of(values[..cut].iter().copied()));
            prop_assert_eq!(&merged, &whole);
            let mut bytes = Vec::new();
            whole.encode(&mut bytes);
            prop_assert_eq!(Distinct::decode(&bytes), Some(whole));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(found) = Distinct::decode(&bytes) {
                let mut again = Vec::new();
                found.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
