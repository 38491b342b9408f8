//! Guest pages by number: runs of them, sets of them, and where RAM lies.
//!
//! Pages are named by guest frame number (guest-physical address divided by
//! [`PAGE_BYTES`]); no page content passes through this module.

use std::fmt;

use thiserror::Error;

/// The unit of dirty tracking and replication, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// A guest frame number: guest-physical address / [`PAGE_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(u64);

impl PageNumber {
    /// A page from its frame number.
    #[must_use]
    pub const fn new(frame: u64) -> Self {
        Self(frame)
    }

    /// The page that holds the guest-physical address `address`.
    #[must_use]
    pub const fn of_address(address: u64) -> Self {
        Self(address / PAGE_BYTES as u64)
    }

    /// The frame number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The guest-physical address of its first byte.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 * PAGE_BYTES as u64
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Neighbouring pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRun {
    /// The first page.
    pub first: PageNumber,
    /// How many pages.
    pub count: u64,
}

impl PageRun {
    /// One past the last frame number.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.0 + self.count
    }

    /// Each page in turn.
    pub fn pages(self) -> impl Iterator<Item = PageNumber> {
        (self.first.0..self.end()).map(PageNumber)
    }
}

/// A layout that no guest can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "guest RAM is laid out wrongly: its regions must be 1 to {REGIONS_MAX}, not empty, rising, apart and below frame {FRAMES_MAX:#x}"
)]
pub struct InvalidLayout;

/// Most RAM regions of a guest.
pub const REGIONS_MAX: usize = 16;
/// Frame numbers lie below this: 52 bits of physical address, as in the
/// AMD64 manual, volume 2, section 5.1.
const FRAMES_MAX: u64 = 1 << 40;

/// Where a guest's RAM lies: rising regions with holes between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLayout {
    regions: Vec<PageRun>,
}

impl MemoryLayout {
    /// A layout from its regions.
    ///
    /// # Errors
    ///
    /// [`InvalidLayout`] if they are empty, overlap, fall or exceed what can
    /// be addressed.
    pub fn new(regions: Vec<PageRun>) -> Result<Self, InvalidLayout> {
        let mut free_from = 0;
        for region in &regions {
            let fits = region.first.0 < FRAMES_MAX && region.count <= FRAMES_MAX - region.first.0;
            if region.count == 0 || !fits || region.first.0 < free_from {
                return Err(InvalidLayout);
            }
            free_from = region.end();
        }
        if regions.is_empty() || regions.len() > REGIONS_MAX {
            return Err(InvalidLayout);
        }
        Ok(Self { regions })
    }

    /// The regions, rising.
    #[must_use]
    pub fn regions(&self) -> &[PageRun] {
        &self.regions
    }

    /// How many pages of RAM there are.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.regions.iter().map(|region| region.count).sum()
    }

    /// One past the highest frame number: the size of a [`PageSet`] for it.
    #[must_use]
    pub fn frame_end(&self) -> u64 {
        self.regions.last().map_or(0, PageRun::end)
    }

    /// Whether all of `run` is RAM in one region.
    #[must_use]
    pub fn contains(&self, run: PageRun) -> bool {
        let index = self.regions.partition_point(|region| region.end() <= run.first.0);
        self.regions.get(index).is_some_and(|region| {
            run.first >= region.first
                && run.count <= region.count
                && run.first.0 - region.first.0 <= region.count - run.count
        })
    }

    /// The set of all pages.
    #[must_use]
    pub fn all_pages(&self) -> PageSet {
        let mut set = PageSet::new(self.frame_end());
        for region in &self.regions {
            set.insert_run(*region);
        }
        set
    }
}

/// A set of pages: a bitmap with a summary, so that iterating and clearing
/// cost what is in it and not what could be.
///
/// ```text
///   summary   1 bit per word        words    1 bit per page
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    summary: Vec<u64>,
    len: u64,
}

impl PageSet {
    /// An empty set for frame numbers below `frame_end`.
    #[must_use]
    pub fn new(frame_end: u64) -> Self {
        let words = frame_end.div_ceil(64) as usize;
        Self { words: vec![0; words], summary: vec![0; words.div_ceil(64)], len: 0 }
    }

    /// How many pages are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `page` is in it.
    #[must_use]
    pub fn contains(&self, page: PageNumber) -> bool {
        self.words.get((page.0 / 64) as usize).is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    /// Adds `page`; `true` if it was not in it.
    ///
    /// # Panics
    ///
    /// If the page lies beyond the set's frame numbers.
    pub fn insert(&mut self, page: PageNumber) -> bool {
        let before = self.len;
        self.insert_word((page.0 / 64) as usize, 1 << (page.0 % 64));
        self.len != before
    }

    /// Adds the pages of bitmap word `index` (pages `64 * index` onwards,
    /// lowest bit first), as KVM's dirty log has them.
    ///
    /// # Panics
    ///
    /// If a set bit lies beyond the set's frame numbers.
    pub fn insert_word(&mut self, index: usize, bits: u64) {
        if bits == 0 {
            return;
        }
        let word = &mut self.words[index];
        self.len += u64::from((bits & !*word).count_ones());
        *word |= bits;
        self.summary[index / 64] |= 1 << (index % 64);
    }

    /// Adds every page of `run`.
    ///
    /// # Panics
    ///
    /// If the run reaches beyond the set's frame numbers.
    pub fn insert_run(&mut self, run: PageRun) {
        let (mut from, end) = (run.first.0, run.end());
        while from < end {
            let offset = from % 64;
            let taken = (64 - offset).min(end - from);
            let ones = if taken == 64 { u64::MAX } else { (1 << taken) - 1 };
            self.insert_word((from / 64) as usize, ones << offset);
            from += taken;
        }
    }

    /// Removes `page`; `true` if it was in it.
    pub fn remove(&mut self, page: PageNumber) -> bool {
        if !self.contains(page) {
            return false;
        }
        let index = (page.0 / 64) as usize;
        self.words[index] &= !(1 << (page.0 % 64));
        if self.words[index] == 0 {
            self.summary[index / 64] &= !(1 << (index % 64));
        }
        self.len -= 1;
        true
    }

    /// Removes the first `pages_max` pages, or all; returns them as runs, rising.
    pub fn take_runs(&mut self, pages_max: u64) -> Vec<PageRun> {
        let mut left = pages_max;
        let mut taken = Vec::new();
        for mut run in self.runs(pages_max.max(1)) {
            run.count = run.count.min(left);
            if run.count == 0 {
                break;
            }
            left -= run.count;
            taken.push(run);
        }
        for page in taken.iter().flat_map(|run| run.pages()) {
            self.remove(page);
        }
        taken
    }

    /// Adds everything that is in `other`.
    ///
    /// # Panics
    ///
    /// If `other` has pages beyond this set's frame numbers.
    pub fn union(&mut self, other: &Self) {
        for index in other.word_indices() {
            self.insert_word(index, other.words[index]);
        }
    }

    /// Removes everything that is not in `other`.
    pub fn intersect(&mut self, other: &Self) {
        for summary_index in 0..self.summary.len() {
            for bit in bits(self.summary[summary_index]) {
                let index = summary_index * 64 + bit;
                let both = self.words[index] & other.word(index);
                self.len -= u64::from((self.words[index] ^ both).count_ones());
                self.words[index] = both;
                if both == 0 {
                    self.summary[summary_index] &= !(1 << bit);
                }
            }
        }
    }

    /// Removes everything that is in `other`.
    pub fn subtract(&mut self, other: &Self) {
        for index in other.word_indices() {
            let Some(word) = self.words.get_mut(index).filter(|word| **word != 0) else { continue };
            let left = *word & !other.words[index];
            self.len -= u64::from((*word ^ left).count_ones());
            *word = left;
            if left == 0 {
                self.summary[index / 64] &= !(1 << (index % 64));
            }
        }
    }

    /// Bitmap word `index`, as [`PageSet::insert_word`] has them; 0 beyond the
    /// set's frame numbers.
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        for summary_index in 0..self.summary.len() {
            for bit in bits(std::mem::take(&mut self.summary[summary_index])) {
                self.words[summary_index * 64 + bit] = 0;
            }
        }
        self.len = 0;
    }

    /// Each page, rising.
    pub fn pages(&self) -> impl Iterator<Item = PageNumber> {
        self.word_indices().flat_map(|index| {
            bits(self.words[index]).map(move |bit| PageNumber((index * 64 + bit) as u64))
        })
    }

    /// The pages as runs of at most `run_pages_max`, rising.
    pub fn runs(&self, run_pages_max: u64) -> impl Iterator<Item = PageRun> {
        let mut pages = self.pages().peekable();
        std::iter::from_fn(move || {
            let first = pages.next()?;
            let mut count = 1;
            while count < run_pages_max && pages.next_if(|page| page.0 == first.0 + count).is_some()
            {
                count += 1;
            }
            Some(PageRun { first, count })
        })
    }

    /// The bitmap words that are not 0, rising.
    pub fn word_indices(&self) -> impl Iterator<Item = usize> {
        self.summary
            .iter()
            .enumerate()
            .flat_map(|(index, summary)| bits(*summary).map(move |bit| index * 64 + bit))
    }
}

/// The positions of the set bits, rising.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first: PageNumber(first), count }
    }

    #[test]
    fn a_layout_knows_its_holes() {
        let layout = MemoryLayout::new(vec![run(0, 100), run(200, 50)]).unwrap();
        assert!(layout.contains(run(0, 100)) && layout.contains(run(249, 1)));
        for outside in [run(99, 2), run(100, 1), run(199, 1), run(249, 2), run(250, 1)] {
            assert!(!layout.contains(outside), "{outside:?}");
        }
        assert_eq!((layout.page_count(), layout.frame_end()), (150, 250));
        assert_eq!(layout.all_pages().len(), 150);
    }

    #[test]
    fn impossible_layouts_are_refused() {
        for regions in [
            vec![],
            vec![run(0, 0)],
            vec![run(0, 10), run(9, 1)],
            vec![run(10, 1), run(0, 1)],
            vec![run(1, u64::MAX)],
            vec![run(u64::MAX, 1)],
        ] {
            assert_eq!(MemoryLayout::new(regions.clone()), Err(InvalidLayout), "{regions:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_page_set_is_a_set(
            operations in proptest::collection::vec((0_u8..4, 0_u64..1_000, 1_u64..200), 0..60),
        ) {
            let mut set = PageSet::new(1_200);
            let mut model = BTreeSet::new();
            for (operation, first, count) in operations {
                match operation {
                    0 => proptest::prop_assert_eq!(
                        set.insert(PageNumber(first)), model.insert(first)),
                    1 => proptest::prop_assert_eq!(
                        set.remove(PageNumber(first)), model.remove(&first)),
                    2 => { set.insert_run(run(first, count)); model.extend(first..first + count); }
                    _ if count > 190 => { set.clear(); model.clear(); }
                    _ => {}
                }
            }
            let pages: Vec<u64> = set.pages().map(PageNumber::get).collect();
            let expected: Vec<u64> = model.iter().copied().collect();
            proptest::prop_assert_eq!(set.len(), model.len() as u64);
            proptest::prop_assert_eq!(&pages, &expected);
            let from_runs: Vec<u64> =
                set.runs(7).flat_map(|run| run.first.0..run.end()).collect();
            proptest::prop_assert_eq!(from_runs, expected);
            proptest::prop_assert!(set.runs(7).all(|run| run.count <= 7));
            let evens: BTreeSet<u64> = (0..1_200).step_by(2).collect();
            let mut half = PageSet::new(1_200);
            for page in &evens {
                half.insert(PageNumber(*page));
            }
            half.intersect(&set);
            let both: Vec<u64> = model.intersection(&evens).copied().collect();
            proptest::prop_assert_eq!(half.len(), both.len() as u64);
            proptest::prop_assert_eq!(
                half.pages().map(PageNumber::get).collect::<Vec<_>>(), both);
            let mut odd = set.clone();
            odd.subtract(&half);
            let expected: Vec<u64> = model.difference(&evens).copied().collect();
            proptest::prop_assert_eq!(odd.len(), expected.len() as u64);
            proptest::prop_assert_eq!(
                odd.pages().map(PageNumber::get).collect::<Vec<_>>(), expected);
            let mut rest = set.clone();
            let taken: Vec<u64> =
                rest.take_runs(5).iter().flat_map(|run| run.pages()).map(PageNumber::get).collect();
            proptest::prop_assert_eq!(&taken[..], &pages[..pages.len().min(5)]);
            proptest::prop_assert_eq!(
                rest.pages().map(PageNumber::get).collect::<Vec<_>>(), &pages[taken.len()..]);
            let mut twin = PageSet::new(1_200);
            twin.union(&set);
            proptest::prop_assert_eq!(twin, set);
        }
    }
}
