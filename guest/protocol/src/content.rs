//! What pages hold: every word is a function of (class, page, version, position).
//!
//! ```text
//! working-set page   word 0        header: page << 40 | version   (0 in a page of class zero)
//!                    word 1..512   content of the last whole write
//! fill page          word 0..512   random content of (physical page number)
//! ```
//! One aligned store of word 0 is a whole sparse write, so a page is never half rewritten in a way
//! that a checkpoint could tear.

use crate::history::mix64;

/// Step between the inputs of neighbouring words (odd, from the golden ratio).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bits of the header word that hold the version.
const VERSION_BITS: u32 = 40;

/// Class of content for whole-page writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// Words from a small dictionary; zstd makes it several times smaller.
    Compressible = 1,
    /// Incompressible.
    #[default]
    Random = 2,
    /// All zero, header included.
    Zero = 3,
    /// Rewrites the bytes that are there already: dirty, yet unchanged.
    Same = 4,
}

impl Content {
    /// From its number on the wire.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Compressible),
            2 => Some(Self::Random),
            3 => Some(Self::Zero),
            4 => Some(Self::Same),
            _ => None,
        }
    }

    /// Its name in `probe.dirty=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compressible => "compressible",
            Self::Random => "random",
            Self::Zero => "zero",
            Self::Same => "same",
        }
    }
}

/// Sixteen words of eight letters each.
const DICTIONARY: [u64; 16] = [
    word(b"romulus "),
    word(b"primary "),
    word(b"backup  "),
    word(b"arbiter "),
    word(b"epoch   "),
    word(b"commit  "),
    word(b"harvest "),
    word(b"promote "),
    word(b"release "),
    word(b"fencing "),
    word(b"stage   "),
    word(b"apply   "),
    word(b"resync  "),
    word(b"paused  "),
    word(b"output  "),
    word(b"nothing "),
];

const fn word(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}

/// Word 0 of a working-set page that holds `version` (from 1).
#[inline(always)]
pub const fn header(page: u64, version: u64) -> u64 {
    (page << VERSION_BITS) | (version & ((1 << VERSION_BITS) - 1))
}

/// The page and version that a header word claims.
pub const fn split_header(header: u64) -> (u64, u64) {
    (header >> VERSION_BITS, header & ((1 << VERSION_BITS) - 1))
}

/// Seed of a working-set page's content at `version`.
#[inline(always)]
pub const fn page_seed(page: u64, version: u64) -> u64 {
    mix64(mix64(page ^ 0x0070_6167_6573_6574) ^ version)
}

/// Seed of a fill page's content, by physical page number.
#[inline(always)]
pub const fn fill_seed(page_number: u64) -> u64 {
    mix64(page_number ^ 0x0066_696c_6c66_696c)
}

/// Word `index` of content of a class. `Same` has no content of its own: it counts as `Random`.
#[inline(always)]
pub const fn content_word(class: Content, seed: u64, index: usize) -> u64 {
    match class {
        Content::Random | Content::Same => {
            mix64(seed.wrapping_add((index as u64).wrapping_mul(STEP)))
        }
        Content::Compressible => {
            let draw = mix64(seed.wrapping_add(((index >> 3) as u64).wrapping_mul(STEP)));
            DICTIONARY[((draw >> ((index & 7) * 4)) & 15) as usize]
        }
        Content::Zero => 0,
    }
}

/// A small deterministic generator (SplitMix64), for nonces and the like.
#[derive(Clone, Debug)]
pub struct Prng {
    state: u64,
}

impl Prng {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix64(self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips() {
        assert_eq!(split_header(header(0xabcdef, 77)), (0xabcdef, 77));
    }

    #[test]
    fn prng_is_splitmix64() {
        // First outputs of the published reference for seed 0.
        let mut prng = Prng::new(0);
        assert_eq!(prng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(prng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn content_differs_by_page_version_and_position() {
        let base = content_word(Content::Random, page_seed(5, 1), 9);
        assert_ne!(base, content_word(Content::Random, page_seed(6, 1), 9));
        assert_ne!(base, content_word(Content::Random, page_seed(5, 2), 9));
        assert_ne!(base, content_word(Content::Random, page_seed(5, 1), 10));
        assert_ne!(page_seed(5, 0), fill_seed(5));
    }

    #[test]
    fn compressible_words_are_in_the_dictionary() {
        assert!((0..512).all(|i| DICTIONARY.contains(&content_word(Content::Compressible, 3, i))));
    }
}
