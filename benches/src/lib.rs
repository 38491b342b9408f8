//! What the benchmarks work on: pages and sets of known kinds, the same in
//! every run.

#![forbid(unsafe_code)]

use std::cell::RefCell;

use checkpoint::{PAGE_BYTES, PageNumber, PageRun, PageSet, image::PageStore};

/// What pages hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing but zero bytes.
    Zero,
    /// Records of a word and a rising number: zstd makes a small part of it.
    Compressible,
    /// Bytes that no codec makes smaller.
    Random,
}

impl Fill {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Zero, Self::Compressible, Self::Random];

    /// The content of `pages` pages.
    #[must_use]
    pub fn content(self, pages: usize) -> Vec<u8> {
        let mut bytes = vec![0; pages * PAGE_BYTES];
        match self {
            Self::Zero => {}
            Self::Compressible => {
                for (number, record) in bytes.chunks_exact_mut(32).enumerate() {
                    record[..16].copy_from_slice(b"customer-record ");
                    record[16..24].copy_from_slice(&(number as u64).to_le_bytes());
                }
            }
            Self::Random => {
                blake3::Hasher::new().update(b"pages").finalize_xof().fill(&mut bytes);
            }
        }
        bytes
    }
}

/// Memory from frame 0 on, as a backup's image.
#[derive(Debug)]
pub struct Flat(RefCell<Vec<u8>>);

impl Flat {
    /// `pages` zero pages.
    #[must_use]
    pub fn of_pages(pages: usize) -> Self {
        Self(RefCell::new(vec![0; pages * PAGE_BYTES]))
    }
}

fn places(run: PageRun) -> std::ops::Range<usize> {
    run.first.address() as usize..run.end() as usize * PAGE_BYTES
}

impl PageStore for Flat {
    fn read(&self, run: PageRun, to: &mut [u8]) {
        to.copy_from_slice(&self.0.borrow()[places(run)]);
    }

    fn write(&self, run: PageRun, from: &[u8]) {
        self.0.borrow_mut()[places(run)].copy_from_slice(from);
    }

    fn zero(&self, run: PageRun) {
        self.0.borrow_mut()[places(run)].fill(0);
    }
}

/// A run of pages from frame 0 on.
#[must_use]
pub fn run_of(pages: usize) -> PageRun {
    PageRun { first: PageNumber::new(0), count: pages as u64 }
}

/// `count` pages spread over `frames` frames, in groups of four neighbours.
///
/// # Panics
///
/// If so many pages do not fit.
#[must_use]
pub fn spread(frames: u64, count: u64) -> PageSet {
    let mut set = PageSet::new(frames);
    let stride = frames / (count / 4);
    for group in 0..count / 4 {
        // An odd offset within each stride, so that groups do not line up with words.
        let first = group * stride + (group * 7919) % (stride - 4).max(1);
        set.insert_run(PageRun { first: PageNumber::new(first), count: 4 });
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_pages_are_as_many_as_asked_for() {
        for frames in [1 << 18, 1 << 22] {
            assert_eq!(spread(frames, 10_000).len(), 10_000);
        }
    }

    #[test]
    fn fills_differ_in_how_they_compress() {
        let chunk_bytes = |fill: Fill| {
            let id = checkpoint::chunk::ChunkId { epoch: checkpoint::Epoch::new(1), index: 0 };
            let content = fill.content(16);
            let zstd = checkpoint::chunk::Compression::Zstd { level: 1 };
            checkpoint::chunk::Encoder::new(zstd).pages(id, &[run_of(16)], content).body.len()
        };
        let [zero, compressible, random] = Fill::ALL.map(chunk_bytes);
        assert!(zero < 100, "{zero}");
        assert!((100..16 * PAGE_BYTES / 3).contains(&compressible), "{compressible}");
        assert!(random > 16 * PAGE_BYTES, "{random}");
    }
}
