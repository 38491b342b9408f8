//! Which pages are owed to whom: "nothing forgotten" as a data structure.
//!
//! A page that is read and cleared from the dirty log lands here at once, and
//! leaves only into a capture, for the backups in sync (*epoch*) and for every
//! backup that is being seeded (*owed*).
//!
//! ```text
//!   harvest ──▶ record ─┬─▶ epoch ─────────────┐
//!                       └─▶ owed[b], owed[c] ──┴─▶ cut ─▶ capture ─▶ in flight
//!                              ▲   │ take_round
//!                  give_back   └───┴─▶ seed chunks
//! ```

use std::collections::BTreeMap;

use arbiter::NodeId;

use crate::{MemoryLayout, PageSet};

/// See the module's head.
#[derive(Debug)]
pub struct Ledger {
    layout: MemoryLayout,
    /// Dirty since the last cut.
    epoch: PageSet,
    /// What each backup that is being seeded does not have yet.
    owed: BTreeMap<NodeId, PageSet>,
}

impl Ledger {
    /// Nothing is owed to anybody.
    #[must_use]
    pub fn new(layout: MemoryLayout) -> Self {
        let epoch = PageSet::new(layout.frame_end());
        Self { layout, epoch, owed: BTreeMap::new() }
    }

    /// Takes what was harvested from the dirty logs.
    pub fn record(&mut self, harvested: &PageSet) {
        self.epoch.union(harvested);
        for owed in self.owed.values_mut() {
            owed.union(harvested);
        }
    }

    /// A seed begins: `backup` is owed every page.
    pub fn begin_seed(&mut self, backup: NodeId) {
        self.owed.insert(backup, self.layout.all_pages());
    }

    /// A seed is given up.
    pub fn end_seed(&mut self, backup: &NodeId) {
        self.owed.remove(backup);
    }

    /// Whether any backup is being seeded.
    #[must_use]
    pub fn any_seed(&self) -> bool {
        !self.owed.is_empty()
    }

    /// How many pages `backup` is owed; 0 if it is not being seeded.
    #[must_use]
    pub fn owed_pages(&self, backup: &NodeId) -> u64 {
        self.owed.get(backup).map_or(0, PageSet::len)
    }

    /// The pages of the next round of a seed. From here on the caller sends
    /// them, or gives them back.
    pub fn take_round(&mut self, backup: &NodeId) -> Option<PageSet> {
        let owed = self.owed.get_mut(backup)?;
        Some(std::mem::replace(owed, PageSet::new(self.layout.frame_end())))
    }

    /// Pages of a round that were not sent after all.
    pub fn give_back(&mut self, backup: &NodeId, pages: &PageSet) {
        if let Some(owed) = self.owed.get_mut(backup) {
            owed.union(pages);
        }
    }

    /// The pages of the checkpoint that is being cut: what is dirty for the
    /// backups in sync, if there are any, and all that is owed to those that
    /// `joins`, whose seeds end with it.
    /// They take the place of what is in `pages`; the guest is paused, and
    /// nothing is allocated.
    pub fn cut(&mut self, any_in_sync: bool, joins: &[NodeId], pages: &mut PageSet) {
        pages.clear();
        if any_in_sync {
            std::mem::swap(&mut self.epoch, pages);
        } else {
            self.epoch.clear();
        }
        for backup in joins {
            if let Some(owed) = self.owed.remove(backup) {
                pages.union(&owed);
            }
        }
    }

    /// A cut was given up: its pages are dirty as before. The seeds that it
    /// would have ended are lost and begin anew.
    pub fn abort_cut(&mut self, pages: &PageSet) {
        self.record(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PageNumber, PageRun};

    fn layout() -> MemoryLayout {
        MemoryLayout::new(vec![PageRun { first: PageNumber::new(0), count: 10 }]).unwrap()
    }

    fn cut(ledger: &mut Ledger, any_in_sync: bool, joins: &[NodeId]) -> PageSet {
        let mut cut = pages(&[9]);
        ledger.cut(any_in_sync, joins, &mut cut);
        cut
    }

    fn pages(numbers: &[u64]) -> PageSet {
        let mut set = PageSet::new(10);
        for number in numbers {
            set.insert(PageNumber::new(*number));
        }
        set
    }

    #[test]
    fn a_harvested_page_reaches_everyone() {
        let (b, c): (NodeId, NodeId) = ("b".parse().unwrap(), "c".parse().unwrap());
        let mut ledger = Ledger::new(layout());
        ledger.begin_seed(b.clone());
        assert_eq!(ledger.take_round(&b).unwrap().len(), 10);
        ledger.begin_seed(c.clone());
        ledger.record(&pages(&[3]));
        assert_eq!((ledger.owed_pages(&b), ledger.owed_pages(&c)), (1, 10));
        // The page is in the epoch, and still owed to those being seeded.
        assert_eq!(cut(&mut ledger, true, &[]), pages(&[3]));
        assert_eq!(ledger.owed_pages(&b), 1);
        ledger.record(&pages(&[4]));
        assert_eq!(cut(&mut ledger, true, std::slice::from_ref(&b)), pages(&[3, 4]));
        assert_eq!(ledger.owed_pages(&b), 0);
    }

    #[test]
    fn the_first_to_join_gets_what_it_is_owed_and_no_more() {
        let b: NodeId = "b".parse().unwrap();
        let mut ledger = Ledger::new(layout());
        ledger.begin_seed(b.clone());
        ledger.record(&pages(&[1, 2]));
        ledger.take_round(&b).unwrap();
        ledger.record(&pages(&[5]));
        assert_eq!(cut(&mut ledger, false, &[b]), pages(&[5]));
    }

    #[test]
    fn what_is_given_up_is_owed_again() {
        let b: NodeId = "b".parse().unwrap();
        let mut ledger = Ledger::new(layout());
        ledger.begin_seed(b.clone());
        let round = ledger.take_round(&b).unwrap();
        ledger.give_back(&b, &round);
        assert_eq!(ledger.owed_pages(&b), 10);
        ledger.record(&pages(&[7]));
        let taken = cut(&mut ledger, true, &[]);
        ledger.abort_cut(&taken);
        assert_eq!(cut(&mut ledger, true, &[]), pages(&[7]));
    }
}
