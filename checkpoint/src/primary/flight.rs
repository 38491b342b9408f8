//! Epochs that are cut and that some follower may still lack.

use std::{collections::VecDeque, time::Duration};

use crate::{Epoch, message::Close};

/// One such epoch.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) epoch: Epoch,
    /// Captured page content.
    pub(super) bytes: u64,
    /// How long the guest ran in it.
    pub(super) length: Duration,
    /// When the guest went on.
    pub(super) cut_at: Duration,
    /// Once all of it is encoded.
    pub(super) close: Option<Close>,
}

/// Neighbouring epochs, rising.
#[derive(Debug, Default)]
pub(super) struct Flights {
    queue: VecDeque<Flight>,
}

impl Flights {
    pub(super) fn push(&mut self, flight: Flight) {
        if let Some(last) = self.queue.back() {
            assert_eq!(last.epoch.next(), flight.epoch, "epochs are cut one after the other");
        }
        self.queue.push_back(flight);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.queue.iter().map(|flight| flight.bytes).sum()
    }

    pub(super) fn last(&self) -> Option<Epoch> {
        self.queue.back().map(|flight| flight.epoch)
    }

    pub(super) fn get_mut(&mut self, epoch: Epoch) -> Option<&mut Flight> {
        self.queue.iter_mut().find(|flight| flight.epoch == epoch)
    }

    pub(super) fn get(&self, epoch: Epoch) -> Option<&Flight> {
        self.queue.iter().find(|flight| flight.epoch == epoch)
    }

    pub(super) fn first(&self) -> Option<Epoch> {
        self.queue.front().map(|flight| flight.epoch)
    }

    /// The flights that a backup with `committed` lacks.
    pub(super) fn after(&self, committed: Epoch) -> impl Iterator<Item = &Flight> {
        self.queue.iter().filter(move |flight| flight.epoch > committed)
    }

    /// Forgets the epochs up to `through`; `false` if there were none.
    pub(super) fn forget(&mut self, through: Epoch) -> bool {
        let before = self.queue.len();
        while self.queue.front().is_some_and(|flight| flight.epoch <= through) {
            self.queue.pop_front();
        }
        self.queue.len() != before
    }
}
