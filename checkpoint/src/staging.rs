//! Verified content that waits for its epoch's commit, bounded in bytes.
//!
//! Every piece belongs to a session: what a decoder finishes for a session that
//! is over is not taken. The machine in [`crate::backup`] decides by ids and
//! digests what is committed; this is where the content itself lies meanwhile.

use std::collections::BTreeMap;

use crate::{
    Epoch,
    chunk::{ChunkId, Content},
};

/// Content of one epoch, by chunk index.
pub type EpochContent = BTreeMap<u32, Content>;

/// See the module's head.
#[derive(Debug)]
pub struct Staging {
    session: u64,
    epochs: BTreeMap<Epoch, EpochContent>,
    /// Committed and not applied.
    backlog_bytes: usize,
    bytes_max: usize,
}

impl Staging {
    /// Nothing is staged. More than `bytes_max` of committed content that is
    /// not applied stops the intake.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { session: 0, epochs: BTreeMap::new(), backlog_bytes: 0, bytes_max }
    }

    /// From now on only content of `session` is staged; nothing is staged yet.
    /// Returns what was, which may take long to free.
    #[must_use]
    pub fn begin(&mut self, session: u64) -> BTreeMap<Epoch, EpochContent> {
        self.session = session;
        std::mem::take(&mut self.epochs)
    }

    /// Whether `session` is over.
    #[must_use]
    pub fn is_over(&self, session: u64) -> bool {
        self.session != session
    }

    /// Whether more content may come. While not, a decoder waits, so that a
    /// backup that applies slowly slows its primary instead of growing.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.backlog_bytes <= self.bytes_max
    }

    /// Stages content. A chunk that came before is replaced.
    ///
    /// # Panics
    ///
    /// If the session is over.
    pub fn stage(&mut self, session: u64, id: ChunkId, content: Content) {
        assert_eq!(self.session, session, "content of a session that is over");
        self.epochs.entry(id.epoch).or_default().insert(id.index, content);
    }

    /// Takes an epoch that is committed.
    pub fn take(&mut self, epoch: Epoch) -> EpochContent {
        let content = self.epochs.remove(&epoch).unwrap_or_default();
        self.backlog_bytes += content_bytes(&content);
        content
    }

    /// Takes the chunks of the seed below `end`.
    pub fn take_seed(&mut self, end: u32) -> EpochContent {
        let Some(seed) = self.epochs.get_mut(&Epoch::ZERO) else {
            return EpochContent::new();
        };
        let later = seed.split_off(&end);
        let taken = std::mem::replace(seed, later);
        self.backlog_bytes += content_bytes(&taken);
        taken
    }

    /// Takes an epoch that is not wanted any more.
    pub fn unstage(&mut self, epoch: Epoch) -> EpochContent {
        self.epochs.remove(&epoch).unwrap_or_default()
    }

    /// Content of so many bytes is in the image.
    pub fn applied(&mut self, bytes: usize) {
        self.backlog_bytes -= bytes;
    }
}

/// Bytes that content takes while it waits.
#[must_use]
pub fn content_bytes(content: &EpochContent) -> usize {
    content.values().map(Content::staged_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sections;

    fn empty() -> Content {
        Content::Sections(Sections::default())
    }

    #[test]
    fn a_new_session_begins_with_nothing() {
        let mut staging = Staging::new(1 << 20);
        let id = ChunkId { epoch: Epoch::new(3), index: 0 };
        assert!(staging.begin(1).is_empty());
        staging.stage(1, id, empty());
        assert_eq!(staging.begin(2).len(), 1);
        assert!(staging.is_over(1) && !staging.is_over(2));
        assert!(staging.take(Epoch::new(3)).is_empty());
    }

    #[test]
    fn a_seed_is_taken_in_order() {
        let mut staging = Staging::new(1 << 20);
        let _ = staging.begin(1);
        for index in [2, 0, 1] {
            staging.stage(1, ChunkId { epoch: Epoch::ZERO, index }, empty());
        }
        assert_eq!(staging.take_seed(2).into_keys().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(staging.take_seed(3).into_keys().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_is_not_applied_stops_the_intake() {
        let mut staging = Staging::new(9);
        let _ = staging.begin(1);
        let delta = Content::SectionsDelta(vec![0; 10].into());
        staging.stage(1, ChunkId { epoch: Epoch::new(1), index: 0 }, delta);
        assert!(staging.has_room());
        let bytes = content_bytes(&staging.take(Epoch::new(1)));
        assert!(!staging.has_room());
        staging.applied(bytes);
        assert!(staging.has_room());
    }
}
