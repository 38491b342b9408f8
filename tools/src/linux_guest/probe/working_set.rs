//! The pages that are dirtied, and what is remembered of them.
//!
//! Pages and records lie apart, so a page and the version that it must have
//! never travel together. A page has one writer, which is also its checker;
//! its record is updated right after it, and a checkpoint has all of memory at
//! one moment: a page that disagrees with its record went back in time alone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use romulus_probe::{
    Content, PAGE_WORDS, Pattern, Record, Write,
    content::{content_word, page_seed},
};

#[derive(Debug)]
#[repr(C, align(4096))]
struct Page([AtomicU64; PAGE_WORDS]);

#[derive(Debug, Default)]
struct Kept {
    version: AtomicU64,
    whole: AtomicU64,
}

/// The working set.
#[derive(Debug)]
pub(super) struct WorkingSet {
    pages: Vec<Page>,
    records: Vec<Kept>,
    corrupt_pages: AtomicU64,
    first_bad: AtomicU64,
}

impl WorkingSet {
    /// So many pages, all touched and never written.
    pub(super) fn new(pages: usize) -> Self {
        let page = || Page([const { AtomicU64::new(0) }; PAGE_WORDS]);
        Self {
            pages: (0..pages).map(|_| page()).collect(),
            records: (0..pages).map(|_| Kept::default()).collect(),
            corrupt_pages: AtomicU64::new(0),
            first_bad: AtomicU64::new(0),
        }
    }

    /// How many pages it has.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Pages found corrupt so far, and the address of the first, or 0.
    pub(super) fn corruption(&self) -> (u64, u64) {
        (self.corrupt_pages.load(Relaxed), self.first_bad.load(Relaxed))
    }

    /// Writes `page` as `pattern` says, after a glance at what is there.
    pub(super) fn write(&self, page: u64, pattern: &Pattern) {
        let words = self.words(page);
        let before = self.record(page);
        if before.version != 0
            && !before.agrees_at_a_glance(page, |index| words[index].load(Relaxed))
        {
            self.report_corrupt(page);
        }
        let version = before.version + 1;
        match (pattern.content, pattern.write) {
            (Content::Same, Write::Sparse) if before.version != 0 => rewrite(&words[..1]),
            (Content::Same, Write::Page) if before.last_whole().is_some() => rewrite(words),
            (_, Write::Sparse) => {
                let after = Record { version, ..before };
                words[0].store(after.header(page), Relaxed);
                self.keep(page, after);
            }
            (class, Write::Page) => {
                let after = Record::of_whole(class, version);
                let seed = page_seed(page, version);
                for (index, word) in words.iter().enumerate().skip(1) {
                    word.store(content_word(class, seed, index), Relaxed);
                }
                words[0].store(after.header(page), Relaxed);
                self.keep(page, after);
            }
        }
    }

    /// Checks all of `page`: whether it is as it should, and its part of the
    /// digest. `None` if it was never written.
    pub(super) fn check(&self, page: u64) -> Option<(bool, u64)> {
        let record = self.record(page);
        if record.version == 0 {
            return None;
        }
        let words = self.words(page);
        let (good, digest) = record.check(page, |index| words[index].load(Relaxed));
        if !good {
            self.report_corrupt(page);
        }
        Some((good, digest))
    }

    /// Damages a page, as only a fault of whoever replicates it can.
    #[cfg(test)]
    pub(super) fn damage(&self, page: u64, word: usize) {
        self.words(page)[word].fetch_xor(1, Relaxed);
    }

    fn words(&self, page: u64) -> &[AtomicU64; PAGE_WORDS] {
        &self.pages[page as usize].0
    }

    fn record(&self, page: u64) -> Record {
        let kept = &self.records[page as usize];
        Record { version: kept.version.load(Relaxed), whole: kept.whole.load(Relaxed) }
    }

    fn keep(&self, page: u64, record: Record) {
        let kept = &self.records[page as usize];
        kept.whole.store(record.whole, Relaxed);
        kept.version.store(record.version, Relaxed);
    }

    fn report_corrupt(&self, page: u64) {
        let address = self.words(page).as_ptr().addr() as u64;
        self.corrupt_pages.fetch_add(1, Relaxed);
        if self.first_bad.compare_exchange(0, address, Relaxed, Relaxed).is_ok() {
            println!("probe: corrupt page at {address:#x}");
        }
    }
}

/// Writes what is there already: dirty, yet unchanged.
fn rewrite(words: &[AtomicU64]) {
    for word in words {
        word.store(word.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(write: Write, content: Content) -> Pattern {
        Pattern { write, content, ..Pattern::default() }
    }

    #[test]
    fn every_pattern_leaves_pages_that_are_sound() {
        let set = WorkingSet::new(4);
        assert_eq!(set.check(0), None);
        let contents = [Content::Same, Content::Random, Content::Compressible, Content::Zero];
        for write in [Write::Sparse, Write::Page] {
            for content in contents.into_iter().chain(contents) {
                set.write(3, &pattern(write, content));
                assert!(set.check(3).unwrap().0, "{write:?} {content:?}");
            }
        }
        assert_eq!(set.corruption(), (0, 0));
    }

    #[test]
    fn rewriting_changes_nothing() {
        let set = WorkingSet::new(1);
        set.write(0, &pattern(Write::Page, Content::Random));
        let before = set.check(0);
        set.write(0, &pattern(Write::Page, Content::Same));
        set.write(0, &pattern(Write::Sparse, Content::Same));
        assert_eq!(set.check(0), before);
    }

    #[test]
    fn damage_is_found() {
        let set = WorkingSet::new(2);
        set.write(1, &pattern(Write::Page, Content::Random));
        set.damage(1, 0);
        set.write(1, &pattern(Write::Page, Content::Random));
        let (pages, address) = set.corruption();
        assert_eq!((pages, address % 4096), (1, 0));
        // A write of all of it mends it.
        assert!(set.check(1).unwrap().0);
        set.damage(1, 511);
        assert!(!set.check(1).unwrap().0);
        assert_eq!(set.corruption(), (2, address));
    }
}
