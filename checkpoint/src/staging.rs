//! Verified content that waits for its epoch's commit, bounded in bytes.
//!
//! Every piece belongs to a session: what a decoder finishes for a session that
//! is over is not taken. The machine in [`crate::backup`] decides by ids and
//! digests what is committed; this is where the content itself lies meanwhile.

use std::collections::BTreeMap;

use crate::{
    Epoch,
    chunk::{ChunkId, Content, Digest},
};

/// Content of one epoch, by chunk index.
pub type EpochContent = BTreeMap<u32, Content>;

/// A chunk's content, and the digest that it was verified by.
#[derive(Debug)]
struct Piece {
    digest: Digest,
    content: Content,
}

/// What was staged, to be freed when there is time.
#[derive(Debug)]
pub struct Unwanted {
    _epochs: BTreeMap<Epoch, BTreeMap<u32, Piece>>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Staging {
    session: u64,
    epochs: BTreeMap<Epoch, BTreeMap<u32, Piece>>,
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
    pub fn begin(&mut self, session: u64) -> Unwanted {
        self.session = session;
        Unwanted { _epochs: std::mem::take(&mut self.epochs) }
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

    /// Stages content that was verified by `digest`; `false` if another came
    /// before in its place. The first stays, so that what is applied is what the
    /// machine was told of and has judged.
    ///
    /// # Panics
    ///
    /// If the session is over.
    pub fn stage(&mut self, session: u64, id: ChunkId, digest: Digest, content: Content) -> bool {
        assert_eq!(self.session, session, "content of a session that is over");
        let place = self.epochs.entry(id.epoch).or_default().entry(id.index);
        place.or_insert(Piece { digest, content }).digest == digest
    }

    /// Takes an epoch that is committed.
    pub fn take(&mut self, epoch: Epoch) -> EpochContent {
        let content = contents(self.epochs.remove(&epoch).unwrap_or_default());
        self.backlog_bytes += content_bytes(&content);
        content
    }

    /// Takes the chunks of the seed below `end`.
    pub fn take_seed(&mut self, end: u32) -> EpochContent {
        let Some(seed) = self.epochs.get_mut(&Epoch::ZERO) else {
            return EpochContent::new();
        };
        let later = seed.split_off(&end);
        let taken = contents(std::mem::replace(seed, later));
        self.backlog_bytes += content_bytes(&taken);
        taken
    }

    /// Takes an epoch that is not wanted any more.
    #[must_use]
    pub fn unstage(&mut self, epoch: Epoch) -> Unwanted {
        Unwanted { _epochs: self.epochs.remove_entry(&epoch).into_iter().collect() }
    }

    /// Content of so many bytes is in the image.
    pub fn applied(&mut self, bytes: usize) {
        self.backlog_bytes -= bytes;
    }
}

fn contents(pieces: BTreeMap<u32, Piece>) -> EpochContent {
    pieces.into_iter().map(|(index, piece)| (index, piece.content)).collect()
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
        drop(staging.begin(1));
        assert!(staging.stage(1, id, [0; 32], empty()));
        drop(staging.begin(2));
        assert!(staging.is_over(1) && !staging.is_over(2));
        assert!(staging.take(Epoch::new(3)).is_empty());
    }

    #[test]
    fn a_seed_is_taken_in_order() {
        let mut staging = Staging::new(1 << 20);
        let _ = staging.begin(1);
        for index in [2, 0, 1] {
            assert!(staging.stage(1, ChunkId { epoch: Epoch::ZERO, index }, [0; 32], empty()));
        }
        assert_eq!(staging.take_seed(2).into_keys().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(staging.take_seed(3).into_keys().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_is_not_applied_stops_the_intake() {
        let mut staging = Staging::new(9);
        let _ = staging.begin(1);
        let delta = Content::SectionsDelta(vec![0; 10].into());
        let id = ChunkId { epoch: Epoch::new(1), index: 0 };
        assert!(staging.stage(1, id, [1; 32], delta.clone()));
        assert!(staging.stage(1, id, [1; 32], delta), "sent again");
        assert!(!staging.stage(1, id, [2; 32], empty()), "the first stays");
        assert!(staging.has_room());
        let bytes = content_bytes(&staging.take(Epoch::new(1)));
        assert!(!staging.has_room());
        staging.applied(bytes);
        assert!(staging.has_room());
    }
}
