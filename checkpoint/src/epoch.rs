//! The number of a run interval.

use std::fmt;

/// The run interval that a checkpoint ends.
///
/// Numbered from 1 in the life of a VM and never reused: numbering goes on
/// through promotions, so that within a term, too, no number comes twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(u64);

impl Epoch {
    /// Before the first epoch. On data frames it marks the seed, which belongs
    /// to no epoch.
    pub const ZERO: Self = Self(0);
    /// The first epoch of a VM.
    pub const FIRST: Self = Self(1);

    /// An epoch from its number, as read from the wire.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch before it; [`Epoch::ZERO`] has none before it.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The epoch that follows.
    ///
    /// # Panics
    ///
    /// At 2^64 epochs: half a billion years of milliseconds.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("epochs are exhausted"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
