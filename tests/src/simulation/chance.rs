//! Pseudo-random choices from one seed.

use std::{ops::Range, time::Duration};

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): small, and the same on
/// every machine.
#[derive(Debug, Clone)]
pub(super) struct Chance {
    state: u64,
}

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// What a chance that goes on from here begins with.
    pub(super) fn state(&self) -> u64 {
        self.state
    }

    pub(super) fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    pub(super) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub(super) fn within(&mut self, range: &Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// True `per_mille` times in a thousand.
    pub(super) fn hits(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }

    pub(super) fn micros(&mut self, micros: Range<u64>) -> Duration {
        Duration::from_micros(self.within(&micros))
    }

    /// Up to `longest`, short ones as likely as long ones: every doubling is.
    pub(super) fn micros_of_any_size(&mut self, micros: Range<u64>) -> Duration {
        let doublings = u64::from((micros.end / micros.start.max(1)).ilog2());
        let shift = self.below(doublings + 1);
        let start = micros.start << shift;
        Duration::from_micros(self.within(&(start..(2 * start).min(micros.end).max(start + 1))))
    }
}
