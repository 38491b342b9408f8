//! Which pages are written again and again: what is not worth sending before
//! the epoch ends.
//!
//! A page that was sent ahead and was dirty again when its epoch ended is hot:
//! sending it ahead was in vain. It stays hot for eight to sixteen epochs.

use crate::PageSet;

/// Epochs after which a page may cool down.
const COOLING_EPOCHS: u32 = 8;

/// See the module's head.
#[derive(Debug)]
pub struct Heat {
    /// Found hot since the last turn, and before it.
    recent: PageSet,
    earlier: PageSet,
    /// Sent ahead in the epoch that runs.
    ahead: PageSet,
    hot: PageSet,
    epochs: u32,
}

impl Heat {
    /// Nothing is hot, for frame numbers below `frame_end`.
    #[must_use]
    pub fn new(frame_end: u64) -> Self {
        let empty = || PageSet::new(frame_end);
        Self { recent: empty(), earlier: empty(), ahead: empty(), hot: empty(), epochs: 0 }
    }

    /// The hot pages.
    #[must_use]
    pub fn hot(&self) -> &PageSet {
        &self.hot
    }

    /// `pages` are sent ahead of the end of their epoch.
    pub fn sent_ahead(&mut self, pages: &PageSet) {
        self.ahead.union(pages);
    }

    /// The epoch ends, and `pages` were dirty. Returns how many of them had
    /// been sent ahead in vain.
    pub fn end_epoch(&mut self, pages: &PageSet) -> u64 {
        self.ahead.intersect(pages);
        let in_vain = self.ahead.len();
        self.recent.union(&self.ahead);
        self.hot.union(&self.ahead);
        self.ahead.clear();
        self.epochs += 1;
        if self.epochs == COOLING_EPOCHS {
            self.epochs = 0;
            std::mem::swap(&mut self.recent, &mut self.earlier);
            self.recent.clear();
            self.hot.clear();
            self.hot.union(&self.earlier);
        }
        in_vain
    }

    /// What was sent ahead is of no epoch any more.
    pub fn forget_ahead(&mut self) {
        self.ahead.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageNumber;

    fn pages(numbers: &[u64]) -> PageSet {
        let mut set = PageSet::new(100);
        for number in numbers {
            set.insert(PageNumber::new(*number));
        }
        set
    }

    #[test]
    fn what_was_sent_in_vain_is_hot_for_a_while() {
        let mut heat = Heat::new(100);
        heat.sent_ahead(&pages(&[1, 2, 70]));
        assert_eq!(heat.end_epoch(&pages(&[2, 3, 70])), 2);
        assert_eq!(*heat.hot(), pages(&[2, 70]));
        for _ in 0..2 * COOLING_EPOCHS {
            heat.end_epoch(&pages(&[2]));
        }
        assert!(heat.hot().is_empty(), "nothing was sent ahead since");
    }
}
