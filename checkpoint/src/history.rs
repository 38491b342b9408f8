//! What the backups have of some pages: the base of deltas. Bounded in memory.
//!
//! ```text
//!   place_of   frame ─▶ place + 1, or 0        place   content  frame  last used
//! ```
//!
//! A page that is offered for the second time within a few epochs is kept: a
//! page that is written once gains nothing from a copy here. When there is no
//! room, places that were not used for [`IDLE_TICKS`] epochs are given away;
//! if there are none, the newcomer is not kept. So a working set that is larger
//! than the bound keeps its share of deltas, where the least recently used
//! would lose all of them.
//!
//! Invariant: what is kept of a page is what every follower's image will have
//! when all epochs encoded so far are applied. It holds because every page
//! that is sent passes through [`History::offer`] in the order in which
//! backups apply, and because [`History::clear`] comes before an epoch that a
//! backup joins with.

use crate::{
    PAGE_BYTES, PageNumber,
    delta::{self, Comparison},
};

/// Epochs after which a kept page may give way.
pub const IDLE_TICKS: u32 = 16;
/// Epochs for which a first offer is remembered, roughly.
const SEEN_TICKS: u32 = 64;
/// Places that are looked at for a newcomer.
const PROBES: usize = 8;
/// Pages that memory grows by.
const GROWTH_PAGES: usize = 256;

/// See the module's head.
#[derive(Debug)]
pub struct History {
    /// By frame number: its place + 1; 0 without one.
    place_of: Vec<u32>,
    /// One bit a frame: offered since the bits were last wiped.
    seen: Vec<u64>,
    places: Vec<Place>,
    content: Vec<u8>,
    pages_max: usize,
    /// Places that nobody has.
    free: Vec<u32>,
    hand: usize,
    tick: u32,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    frame: u64,
    used: u32,
}

impl History {
    /// An empty history for frame numbers below `frame_end`, which takes at
    /// most `bytes_max` for content.
    #[must_use]
    pub fn new(frame_end: u64, bytes_max: usize) -> Self {
        let pages_max = (bytes_max / PAGE_BYTES).min(u32::MAX as usize - 1);
        let frames = if pages_max == 0 { 0 } else { frame_end as usize };
        Self {
            place_of: vec![0; frames],
            seen: vec![0; frames.div_ceil(64)],
            places: Vec::new(),
            content: Vec::new(),
            pages_max,
            free: Vec::new(),
            hand: 0,
            tick: 0,
        }
    }

    /// Forgets everything: a backup joins that may have other content.
    pub fn clear(&mut self) {
        for (index, place) in self.places.iter().enumerate() {
            let kept = &mut self.place_of[place.frame as usize];
            if *kept == index as u32 + 1 {
                *kept = 0;
                self.free.push(index as u32);
            }
        }
    }

    /// An epoch has ended.
    pub fn tick(&mut self) {
        self.tick = self.tick.wrapping_add(1);
        if self.tick.is_multiple_of(SEEN_TICKS) {
            self.seen.fill(0);
        }
    }

    /// Pages that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether no page is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Compares `content`, which is being sent as that of `page`, with what is
    /// kept of it, as [`delta::compare`] does; a page that is not kept
    /// `DiffersMuch`. Then keeps `content`, or nothing.
    ///
    /// # Panics
    ///
    /// If `page` lies beyond the history's frame numbers, or `content` is not
    /// [`PAGE_BYTES`] long.
    pub fn offer(
        &mut self,
        page: PageNumber,
        content: &[u8],
        delta_bytes_max: usize,
        delta: &mut Vec<u8>,
    ) -> Comparison {
        if self.pages_max == 0 {
            return Comparison::DiffersMuch;
        }
        let frame = page.get() as usize;
        let Some(place) = (self.place_of[frame] as usize).checked_sub(1) else {
            self.admit(frame, content);
            return Comparison::DiffersMuch;
        };
        self.places[place].used = self.tick;
        let kept = &mut self.content[place * PAGE_BYTES..(place + 1) * PAGE_BYTES];
        let comparison = delta::compare(kept, content, delta_bytes_max, delta);
        if comparison != Comparison::Same {
            kept.copy_from_slice(content);
        }
        comparison
    }

    /// `page` is being sent as all zero, which costs nothing to send.
    pub fn forget(&mut self, page: PageNumber) {
        let Some(kept) = self.place_of.get_mut(page.get() as usize) else { return };
        if let Some(place) = std::mem::take(kept).checked_sub(1) {
            self.free.push(place);
        }
    }

    fn admit(&mut self, frame: usize, content: &[u8]) {
        let (word, bit) = (frame / 64, 1 << (frame % 64));
        if self.seen[word] & bit == 0 {
            self.seen[word] |= bit;
            return;
        }
        let Some(place) = self.place() else { return };
        self.places[place] = Place { frame: frame as u64, used: self.tick };
        self.place_of[frame] = place as u32 + 1;
        self.content[place * PAGE_BYTES..(place + 1) * PAGE_BYTES].copy_from_slice(content);
    }

    /// A place for a newcomer.
    fn place(&mut self) -> Option<usize> {
        if let Some(free) = self.free.pop() {
            return Some(free as usize);
        }
        if self.places.len() < self.pages_max {
            let place = self.places.len();
            self.places.push(Place { frame: 0, used: 0 });
            if self.content.len() < (place + 1) * PAGE_BYTES {
                let pages = (place + GROWTH_PAGES).min(self.pages_max);
                self.content.resize(pages * PAGE_BYTES, 0);
            }
            return Some(place);
        }
        for _ in 0..PROBES {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.places.len();
            let Place { frame, used } = self.places[place];
            if self.tick.wrapping_sub(used) > IDLE_TICKS {
                self.place_of[frame as usize] = 0;
                return Some(place);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn offer(history: &mut History, page: u64, fill: u8) -> Comparison {
        history.offer(PageNumber::new(page), &[fill; PAGE_BYTES], PAGE_BYTES * 2, &mut Vec::new())
    }

    #[test]
    fn a_page_is_kept_from_its_second_offer_on() {
        let mut history = History::new(100, 1 << 20);
        assert_eq!(offer(&mut history, 7, 1), Comparison::DiffersMuch);
        assert!(history.is_empty());
        assert_eq!(offer(&mut history, 7, 2), Comparison::DiffersMuch);
        assert_eq!(offer(&mut history, 7, 2), Comparison::Same);
        assert_eq!(offer(&mut history, 7, 3), Comparison::Differs);
        history.forget(PageNumber::new(7));
        assert_eq!(offer(&mut history, 7, 3), Comparison::DiffersMuch);
        history.clear();
        assert_eq!(offer(&mut history, 7, 3), Comparison::DiffersMuch);
    }

    #[test]
    fn a_working_set_beyond_the_bound_keeps_its_share() {
        let mut history = History::new(100, 8 * PAGE_BYTES);
        let round = |history: &mut History| {
            history.tick();
            (0..20).filter(|page| offer(history, *page, 1) == Comparison::Same).count()
        };
        round(&mut history);
        round(&mut history);
        for _ in 0..40 {
            assert_eq!(round(&mut history), 8);
        }
        // Another working set takes over when the first is idle.
        for _ in 0..=2 * IDLE_TICKS {
            history.tick();
            offer(&mut history, 50, 1);
        }
        assert_eq!(offer(&mut history, 50, 1), Comparison::Same);
        assert_eq!(history.len(), 8);
    }

    #[test]
    fn without_memory_it_keeps_nothing() {
        let mut history = History::new(1 << 30, 0);
        assert_eq!(offer(&mut history, 5, 1), Comparison::DiffersMuch);
        history.forget(PageNumber::new(5));
        assert_eq!(offer(&mut history, 5, 1), Comparison::DiffersMuch);
    }

    proptest::proptest! {
        /// Whatever is kept or not, a follower that applies what is sent has
        /// the right content.
        #[test]
        fn followers_come_to_the_same_content(
            steps in proptest::collection::vec((0_u8..10, 0_u64..12, 0_u8..3), 0..200),
        ) {
            let mut history = History::new(12, 5 * PAGE_BYTES);
            let mut follower: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
            for (what, page, fill) in steps {
                let number = PageNumber::new(page);
                let mut content = vec![fill; PAGE_BYTES];
                content[usize::from(what) * 8] = 77;
                let theirs = follower.entry(page).or_insert_with(|| vec![0; PAGE_BYTES]);
                match what {
                    0 => history.clear(),
                    1 => history.tick(),
                    2 => {
                        history.forget(number);
                        theirs.fill(0);
                    }
                    _ => {
                        let mut delta = Vec::new();
                        match history.offer(number, &content, 512, &mut delta) {
                            Comparison::Same => {}
                            Comparison::Differs => delta::apply(&delta, theirs).unwrap(),
                            Comparison::DiffersMuch => theirs.copy_from_slice(&content),
                        }
                        proptest::prop_assert_eq!(&*theirs, &content);
                    }
                }
            }
        }
    }
}
