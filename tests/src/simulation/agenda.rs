//! What will happen, in the order of its time; at the same time in the order in
//! which it was planned.

use std::{cmp::Ordering, collections::BinaryHeap, time::Duration};

use super::happening::WorldHappening;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    queue: BinaryHeap<Entry>,
    planned: u64,
}

#[derive(Debug)]
struct Entry {
    at: Duration,
    planned: u64,
    happening: WorldHappening,
}

impl Agenda {
    pub(super) fn plan(&mut self, at: Duration, happening: WorldHappening) {
        self.planned += 1;
        self.queue.push(Entry { at, planned: self.planned, happening });
    }

    pub(super) fn next(&mut self) -> Option<(Duration, WorldHappening)> {
        self.queue.pop().map(|entry| (entry.at, entry.happening))
    }
}

impl Ord for Entry {
    /// The greatest is the first to happen.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at).then(other.planned.cmp(&self.planned))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.planned == other.planned
    }
}

impl Eq for Entry {}
