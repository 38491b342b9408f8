//! Numbers from a seed (SplitMix64, Steele et al. 2014).

use crate::history::mix64;

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
    rolls: u64,
}

impl Dice {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { state: mix64(seed), rolls: 0 }
    }

    /// The next number.
    pub const fn roll(&mut self) -> u64 {
        self.rolls += 1;
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.state)
    }

    /// How many numbers were taken: equal if the same was drawn from the same seed.
    pub const fn rolls(&self) -> u64 {
        self.rolls
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// True once in `times`.
    pub const fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `choices`.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_stream() {
        let stream = |seed| {
            let mut dice = Dice::new(seed);
            [dice.roll(), dice.roll(), dice.below(10)]
        };
        assert_eq!(stream(1), stream(1));
        assert_ne!(stream(1), stream(2));
    }
}
