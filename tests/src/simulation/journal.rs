//! What happened, as a digest that two runs can be compared by, and as lines
//! to read.

use std::{fmt, time::Duration};

/// Digest and, if they are wanted, lines.
#[derive(Debug)]
pub(super) struct Journal {
    digest: u64,
    tells: bool,
    now: Duration,
}

impl Journal {
    pub(super) fn new(tells: bool) -> Self {
        Self { digest: 0xcbf2_9ce4_8422_2325, tells, now: Duration::ZERO }
    }

    pub(super) fn begin_step(&mut self, now: Duration, number: u64) {
        self.now = now;
        self.mix(now.as_nanos() as u64);
        self.mix(number);
    }

    /// Takes a number into the digest: FNV-1a's way, by words.
    pub(super) fn mix(&mut self, number: u64) {
        self.digest = (self.digest ^ number).wrapping_mul(0x0000_0100_0000_01b3);
        self.digest ^= self.digest >> 29;
    }

    /// Takes octets into the digest.
    pub(super) fn mix_octets(&mut self, octets: &[u8]) {
        for word in octets.chunks(8) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            self.mix(u64::from_le_bytes(padded));
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    /// Prints a line, if lines are wanted.
    pub(super) fn line(&self, who: impl fmt::Display, what: impl fmt::Display) {
        if self.tells {
            println!("{:>9} us  {who}: {what}", self.now.as_micros());
        }
    }
}
