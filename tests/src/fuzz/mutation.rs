//! Inputs made of the corpus: a small mutator, so that a short run needs no
//! fuzzer. The same seed makes the same inputs.

/// Longest input that is made, in bytes.
pub const INPUT_BYTES_MAX: usize = 64 << 10;
/// Most changes of one input.
const CHANGES_MAX: u64 = 6;
/// Longest part that is copied, inserted or taken out at once, in bytes.
const PART_BYTES_MAX: u64 = 64;
/// Numbers at which sums break.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Makes inputs of others.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// A mutator of its own.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Another input, made of some of `corpus`.
    ///
    /// # Panics
    ///
    /// If `corpus` is empty.
    pub fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.pick(corpus).clone();
        for _ in 0..=self.below(CHANGES_MAX) {
            self.change(&mut input, corpus);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() as u64 + 1) as usize;
        let end = (at + 1 + self.below(PART_BYTES_MAX) as usize).min(input.len());
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next() as u8,
            2 => {
                let edge = EDGES[self.below(EDGES.len() as u64) as usize].to_le_bytes();
                let width = (1 << self.below(4)).min(input.len() - at);
                input[at..at + width].copy_from_slice(&edge[..width]);
            }
            3 => drop(input.drain(at..end)),
            4 => input.truncate(at),
            5 => {
                let part = input[at..end].to_vec();
                let to = self.below(input.len() as u64 + 1) as usize;
                input.splice(to..to, part);
            }
            6 => {
                let noise: Vec<u8> = (0..self.below(16)).map(|_| self.next() as u8).collect();
                input.splice(at..at, noise);
            }
            7 => {
                let other = self.pick(corpus);
                let from = self.below(other.len() as u64 + 1) as usize;
                input.truncate(at);
                input.extend(&other[from..]);
            }
            _ => {
                let sum = self.below(33).wrapping_sub(16) as u8;
                if let Some(octet) = input.get_mut(at) {
                    *octet = octet.wrapping_add(sum);
                }
            }
        }
    }

    fn pick<'a>(&mut self, corpus: &'a [Vec<u8>]) -> &'a Vec<u8> {
        &corpus[self.below(corpus.len() as u64) as usize]
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
    /// Generators", 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_makes_the_same_inputs_and_many_of_them() {
        let corpus = [b"one and another".to_vec(), Vec::new(), vec![7; 300]];
        let made = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..500).map(|_| mutator.input(&corpus)).collect::<Vec<_>>()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        assert!(made(1).into_iter().collect::<BTreeSet<_>>().len() > 300);
    }
}
