//! Which chunks of which epochs have come: bookkeeping by id and digest.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Epoch,
    chunk::{Digest, epoch_digest},
    message::{Close, NACK_CHUNKS_MAX},
};

/// Most epochs that may be staged beyond the committed one.
pub(super) const EPOCHS_AHEAD_MAX: u64 = 1024;
/// Highest number of an epoch that is staged. A peer may name any; nobody
/// counts to the end from here.
pub(super) const EPOCH_MAX: Epoch = Epoch::new(1 << 62);
/// Most chunks of an epoch or a seed: 4 TiB of pages.
const CHUNKS_MAX: u32 = 1 << 22;

/// Longest time between two questions for what is missing.
const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// One epoch on its way.
#[derive(Debug, Default)]
pub(super) struct EpochStage {
    digests: BTreeMap<u32, Digest>,
    pages: u64,
    close: Option<Close>,
    /// When missing chunks are asked for (again): nothing may have come for as
    /// long as its patience, which doubles with every question.
    nack_at: Option<Duration>,
    patience: Duration,
}

/// Whether an epoch can be committed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Something has not come yet.
    Incomplete,
    /// All has come, and the digest matches.
    Whole,
    /// All has come, and it is not what the close says.
    Wrong,
}

impl EpochStage {
    /// Takes a verified chunk; `false` if its index is beyond all bounds.
    pub(super) fn stage(&mut self, index: u32, digest: Digest, pages: u64, now: Duration) -> bool {
        if index >= CHUNKS_MAX {
            return false;
        }
        if self.nack_at.is_some() {
            self.nack_at = Some(now + self.patience);
        }
        if self.digests.insert(index, digest).is_none() {
            self.pages += pages;
        }
        true
    }

    /// What is missing is asked for when nothing has come for `patience`.
    pub(super) fn close(&mut self, close: Close, now: Duration, patience: Duration) {
        self.close = Some(close);
        self.patience = patience;
        self.nack_at = Some(now + patience);
    }

    pub(super) fn closed(&self) -> Option<&Close> {
        self.close.as_ref()
    }

    pub(super) fn verdict(&self) -> Verdict {
        let Some(close) = &self.close else { return Verdict::Incomplete };
        if (self.digests.len() as u64) < u64::from(close.chunks) {
            return Verdict::Incomplete;
        }
        let last = self.digests.keys().next_back();
        let dense = last.is_none_or(|last| *last < close.chunks);
        let matches = epoch_digest(self.digests.values()) == close.digest;
        if dense && matches && self.pages == close.pages { Verdict::Whole } else { Verdict::Wrong }
    }

    /// When [`EpochStage::take_missing`] has something.
    pub(super) fn nack_at(&self) -> Option<Duration> {
        self.nack_at
    }

    /// What is missing of a closed epoch; to be asked again later.
    pub(super) fn take_missing(&mut self, now: Duration) -> Vec<u32> {
        self.patience = (2 * self.patience).min(PATIENCE_MAX);
        self.nack_at = Some(now + self.patience);
        let Some(close) = &self.close else { return Vec::new() };
        (0..close.chunks)
            .filter(|index| !self.digests.contains_key(index))
            .take(NACK_CHUNKS_MAX)
            .collect()
    }
}

/// The chunks of a seed: applied and acknowledged as far as they are gapless.
#[derive(Debug, Default)]
pub(super) struct SeedStage {
    gapless: u32,
    beyond: std::collections::BTreeSet<u32>,
}

impl SeedStage {
    /// Takes a verified chunk. Returns the new gapless count if it has grown.
    pub(super) fn stage(&mut self, index: u32) -> Option<u32> {
        if index < self.gapless || index >= CHUNKS_MAX {
            return None;
        }
        self.beyond.insert(index);
        let before = self.gapless;
        while self.beyond.remove(&self.gapless) {
            self.gapless += 1;
        }
        (self.gapless > before).then_some(self.gapless)
    }

    pub(super) fn gapless(&self) -> u32 {
        self.gapless
    }
}

/// The epochs beyond the committed one.
#[derive(Debug, Default)]
pub(super) struct Stages {
    epochs: BTreeMap<Epoch, EpochStage>,
}

impl Stages {
    pub(super) fn entry(&mut self, epoch: Epoch) -> &mut EpochStage {
        self.epochs.entry(epoch).or_default()
    }

    /// Whether `epoch` is known, or may be beside those that are.
    pub(super) fn has_place(&self, epoch: Epoch) -> bool {
        (self.len() as u64) < EPOCHS_AHEAD_MAX || self.epochs.contains_key(&epoch)
    }

    pub(super) fn len(&self) -> usize {
        self.epochs.len()
    }

    pub(super) fn get(&self, epoch: Epoch) -> Option<&EpochStage> {
        self.epochs.get(&epoch)
    }

    /// A joining epoch that is closed.
    pub(super) fn joining(&self) -> Option<(Epoch, &EpochStage, u32)> {
        self.epochs.iter().find_map(|(epoch, stage)| {
            let seed_chunks = stage.closed()?.seed_chunks?;
            Some((*epoch, stage, seed_chunks))
        })
    }

    /// The staged epochs, rising.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Epoch, &mut EpochStage)> {
        self.epochs.iter_mut().map(|(epoch, stage)| (*epoch, stage))
    }

    pub(super) fn nack_at(&self) -> Option<Duration> {
        self.epochs.values().filter_map(EpochStage::nack_at).min()
    }

    /// Removes every epoch but those after `epoch`; returns which.
    pub(super) fn remove_through(&mut self, epoch: Epoch) -> Vec<Epoch> {
        let later = self.epochs.split_off(&epoch.next());
        let removed = std::mem::replace(&mut self.epochs, later);
        removed.into_keys().collect()
    }
}
