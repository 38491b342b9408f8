//! Which pages of a checkpoint are copied within its pause, and which after it.
//!
//! A page that is left for later is write-protected, and the guest's next write
//! to it is a fault, which costs many times a copy. A pause has time for so many
//! copies, though.

use std::time::Duration;

use crate::PageSet;

/// Pauses that copied fewer pages tell nothing of what one costs.
const COPIED_PAGES_MIN: u64 = 64;
/// What a page may cost, in ns: whatever else held a pause up, it was not that.
const NS_PER_PAGE: std::ops::RangeInclusive<u64> = 100..=10_000;
/// A pause's weight in the mean: one of so many parts.
const MEMORY: u64 = 8;

/// How the pages of a checkpoint are captured.
#[derive(Debug)]
pub struct Plan {
    copied: PageSet,
    protected: PageSet,
}

impl Plan {
    /// Of no pages, for frame numbers below `frame_end`.
    #[must_use]
    pub fn new(frame_end: u64) -> Self {
        Self { copied: PageSet::new(frame_end), protected: PageSet::new(frame_end) }
    }

    /// Pages to copy within the pause.
    #[must_use]
    pub fn copied(&self) -> &PageSet {
        &self.copied
    }

    /// Pages to write-protect, and to copy while the guest runs.
    #[must_use]
    pub fn protected(&self) -> &PageSet {
        &self.protected
    }

    /// Plans for `pages`, of which those in `before` were dirty in the epoch
    /// before, too: they are likely to be written soon again, so they are copied
    /// first. About `copied_max` are copied, 63 more at most.
    pub fn make(&mut self, pages: &PageSet, before: &PageSet, copied_max: u64) {
        let Self { copied, protected } = self;
        copied.clear();
        protected.clear();
        if pages.len() <= copied_max {
            copied.union(pages);
            return;
        }
        for recurring in [true, false] {
            for index in pages.word_indices() {
                let mask = if recurring { before.word(index) } else { !before.word(index) };
                let room = copied.len() < copied_max;
                let place = if room { &mut *copied } else { &mut *protected };
                place.insert_word(index, pages.word(index) & mask);
            }
        }
    }
}

/// What copying a page in a pause costs on this host: a moving mean over some
/// eight pauses that had much to copy.
#[derive(Debug)]
pub struct CopyCost {
    ns_per_page: u64,
}

impl Default for CopyCost {
    /// 4 GB/s, until it is known better.
    fn default() -> Self {
        Self { ns_per_page: 1000 }
    }
}

impl CopyCost {
    /// How many pages can be copied in `time`.
    #[must_use]
    pub fn pages_in(&self, time: Duration) -> u64 {
        time.as_nanos() as u64 / self.ns_per_page
    }

    /// A pause copied so many pages, which `took` so long.
    pub fn record(&mut self, pages: u64, took: Duration) {
        if pages < COPIED_PAGES_MIN {
            return;
        }
        let ns = (took.as_nanos() as u64 / pages).clamp(*NS_PER_PAGE.start(), *NS_PER_PAGE.end());
        self.ns_per_page = ((MEMORY - 1) * self.ns_per_page + ns) / MEMORY;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::PageNumber;

    const FRAME_END: u64 = 1000;

    fn set(numbers: impl IntoIterator<Item = u64>) -> PageSet {
        let mut set = PageSet::new(FRAME_END);
        for number in numbers {
            set.insert(PageNumber::new(number));
        }
        set
    }

    #[test]
    fn what_was_written_before_is_copied_first() {
        let mut plan = Plan::new(FRAME_END);
        let (pages, before) = (set(0..640), set(320..640));
        plan.make(&pages, &before, 640);
        assert_eq!((plan.copied(), plan.protected()), (&pages, &set([])));
        plan.make(&pages, &before, 320);
        assert_eq!((plan.copied(), plan.protected()), (&before, &set(0..320)));
        plan.make(&pages, &before, 0);
        assert_eq!((plan.copied(), plan.protected()), (&set([]), &pages));
        plan.make(&set([7]), &before, 100);
        assert_eq!((plan.copied(), plan.protected()), (&set([7]), &set([])));
    }

    proptest! {
        #[test]
        fn every_page_has_one_place(
            pages in prop::collection::btree_set(0..FRAME_END, 0..400),
            before in prop::collection::btree_set(0..FRAME_END, 0..400),
            copied_max in 0_u64..500,
        ) {
            let (pages, before) = (set(pages), set(before));
            let mut plan = Plan::new(FRAME_END);
            plan.make(&pages, &before, copied_max);
            let (copied, protected) = (plan.copied(), plan.protected());
            prop_assert_eq!(copied.len() + protected.len(), pages.len());
            let mut both = set([]);
            both.union(copied);
            both.union(protected);
            prop_assert_eq!(&both, &pages);
            prop_assert!(copied.len() < copied_max + 64);
            prop_assert!(copied.len() >= copied_max.min(pages.len()));
        }
    }

    #[test]
    fn the_cost_follows_what_pauses_took_within_reason() {
        let mut cost = CopyCost::default();
        let millisecond = Duration::from_millis(1);
        assert_eq!(cost.pages_in(millisecond), 1000);
        cost.record(COPIED_PAGES_MIN - 1, Duration::from_secs(1));
        assert_eq!(cost.pages_in(millisecond), 1000, "too few to tell");
        for _ in 0..100 {
            cost.record(1000, Duration::from_micros(250));
        }
        assert!((3500..=4000).contains(&cost.pages_in(millisecond)), "{cost:?}");
        for _ in 0..100 {
            cost.record(1000, Duration::from_secs(60));
        }
        assert_eq!(cost.pages_in(millisecond), 100, "a stall is not the price of a copy");
    }
}
