//! What is remembered of a working-set page, apart from the page: the version that it must have,
//! and the last write of all of it. A page that alone went back (or forward) in time disagrees
//! with its record.

use crate::PAGE_WORDS;
use crate::content::{Content, content_word, header, page_seed};
use crate::history::mix64;

const CLASS_SHIFT: u32 = 56;

/// The record of a page. All zero: never written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Version of the header word.
    pub version: u64,
    /// Class << 56 | version of the last whole-page write; 0: none yet.
    pub whole: u64,
}

impl Record {
    /// The record after all of the page was written with content of `class`.
    pub const fn of_whole(class: Content, version: u64) -> Self {
        Self { version, whole: (class as u64) << CLASS_SHIFT | version }
    }

    /// Class and version of the last whole-page write.
    pub const fn last_whole(&self) -> Option<(Content, u64)> {
        match Content::from_u8((self.whole >> CLASS_SHIFT) as u8) {
            Some(class) => Some((class, self.whole & ((1 << CLASS_SHIFT) - 1))),
            None => None,
        }
    }

    /// Word 0 that `page` should hold.
    pub const fn header(&self, page: u64) -> u64 {
        match self.last_whole() {
            Some((Content::Zero, at)) if at == self.version => 0,
            _ => header(page, self.version),
        }
    }

    /// Whether the header and one word of `page` are as they should: cheap enough for every write.
    pub fn agrees_at_a_glance(&self, page: u64, word: impl Fn(usize) -> u64) -> bool {
        let sample = 1 + (self.version as usize % (PAGE_WORDS - 1));
        word(0) == self.header(page)
            && self.last_whole().is_none_or(|(class, whole)| {
                word(sample) == content_word(class, page_seed(page, whole), sample)
            })
    }

    /// Whether all of `page` is as it should, and its part of a digest that is the sum over pages.
    pub fn check(&self, page: u64, word: impl Fn(usize) -> u64) -> (bool, u64) {
        let mut good = word(0) == self.header(page);
        let mut digest = mix64(word(0) ^ page);
        if let Some((class, version)) = self.last_whole() {
            let seed = page_seed(page, version);
            for index in 1..PAGE_WORDS {
                let value = word(index);
                good &= value == content_word(class, seed, index);
                digest = digest.rotate_left(7) ^ value;
            }
        }
        (good, mix64(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as a write of all of it leaves it.
    fn page(class: Content, page: u64, version: u64) -> [u64; PAGE_WORDS] {
        let seed = page_seed(page, version);
        let mut words = core::array::from_fn(|index| content_word(class, seed, index));
        words[0] = Record::of_whole(class, version).header(page);
        words
    }

    #[test]
    fn a_page_agrees_with_its_record_and_with_no_other() {
        for class in [Content::Compressible, Content::Random, Content::Zero] {
            let (record, words) = (Record::of_whole(class, 7), page(class, 3, 7));
            assert_eq!(record.last_whole(), Some((class, 7)));
            assert!(record.agrees_at_a_glance(3, |index| words[index]));
            assert!(record.check(3, |index| words[index]).0);
            let newer = Record::of_whole(class, 8);
            assert_eq!(newer.check(3, |index| words[index]).0, class == Content::Zero);
            assert_eq!(record.check(4, |index| words[index]).0, class == Content::Zero);
        }
    }

    #[test]
    fn every_word_counts() {
        let (record, words) = (Record::of_whole(Content::Random, 1), page(Content::Random, 0, 1));
        let (_, digest) = record.check(0, |index| words[index]);
        for bad in [0, 1, 200, PAGE_WORDS - 1] {
            let changed = |index: usize| words[index] ^ u64::from(index == bad);
            let (good, other) = record.check(0, changed);
            assert!(!good && other != digest, "word {bad}");
        }
    }

    #[test]
    fn a_sparse_write_changes_the_header_only() {
        let mut words = page(Content::Random, 5, 1);
        let record = Record { version: 2, ..Record::of_whole(Content::Random, 1) };
        assert!(!record.agrees_at_a_glance(5, |index| words[index]));
        words[0] = header(5, 2);
        assert!(record.agrees_at_a_glance(5, |index| words[index]));
        assert!(record.check(5, |index| words[index]).0);
        let unwritten = Record { version: 1, whole: 0 };
        assert!(unwritten.check(5, |_| header(5, 1)).0, "what was never written may hold anything");
    }
}
