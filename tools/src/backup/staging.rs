//! Verified content that waits for its epoch's commit, bounded in bytes.
//!
//! Content is decoded before it is staged, so that applying cannot fail. Every
//! piece belongs to a session: what a decoder finishes for a session that is
//! over is dropped here.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard},
};

use checkpoint::{
    Epoch,
    chunk::{ChunkId, Content},
};

/// Content of one epoch, by chunk index.
pub(super) type EpochContent = BTreeMap<u32, Content>;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Staging {
    inner: Mutex<Inner>,
    /// Signalled when applied content has freed its bytes, or a session ends.
    room: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    session: u64,
    epochs: BTreeMap<Epoch, EpochContent>,
    /// Committed and not applied.
    backlog_bytes: usize,
}

impl Staging {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), room: Condvar::new(), bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// From now on only content of `session` is staged; nothing is staged yet.
    pub(super) fn begin(&self, session: u64) {
        let mut inner = self.lock();
        inner.session = session;
        let stale = std::mem::take(&mut inner.epochs);
        drop(inner);
        drop(stale);
        self.room.notify_all();
    }

    /// Stages content; `false` if its session is over. Waits while more than
    /// the bound is committed and not applied, so that a backup that applies
    /// slowly slows its primary instead of growing.
    pub(super) fn stage(&self, session: u64, id: ChunkId, content: Content) -> bool {
        let mut inner = self.lock();
        while inner.session == session && inner.backlog_bytes > self.bytes_max {
            inner = self.room.wait(inner).expect("no holder panics");
        }
        if inner.session != session {
            return false;
        }
        inner.epochs.entry(id.epoch).or_default().insert(id.index, content);
        true
    }

    /// Takes an epoch that is committed.
    pub(super) fn take(&self, epoch: Epoch) -> EpochContent {
        let mut inner = self.lock();
        let content = inner.epochs.remove(&epoch).unwrap_or_default();
        inner.backlog_bytes += content_bytes(&content);
        content
    }

    /// Takes the chunks of the seed below `end`.
    pub(super) fn take_seed(&self, end: u32) -> EpochContent {
        let mut inner = self.lock();
        let Some(seed) = inner.epochs.get_mut(&Epoch::ZERO) else {
            return EpochContent::new();
        };
        let later = seed.split_off(&end);
        let taken = std::mem::replace(seed, later);
        inner.backlog_bytes += content_bytes(&taken);
        taken
    }

    pub(super) fn unstage(&self, epoch: Epoch) {
        let unwanted = self.lock().epochs.remove(&epoch);
        drop(unwanted);
    }

    /// Content of so many bytes is in the image.
    pub(super) fn applied(&self, bytes: usize) {
        self.lock().backlog_bytes -= bytes;
        self.room.notify_all();
    }
}

/// Bytes that content takes while it waits.
pub(super) fn content_bytes(content: &EpochContent) -> usize {
    let bytes = |content: &Content| match content {
        Content::Pages(pages) => pages.staged_bytes(),
        Content::Sections(sections) => {
            sections.as_slice().iter().map(|section| section.bytes.len()).sum()
        }
        Content::Outputs(outputs) => outputs.iter().map(|output| output.payload.len()).sum(),
    };
    content.values().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use checkpoint::Sections;

    use super::*;

    fn empty() -> Content {
        Content::Sections(Sections::default())
    }

    #[test]
    fn content_of_an_old_session_is_not_staged() {
        let staging = Staging::new(1 << 20);
        let id = ChunkId { epoch: Epoch::new(3), index: 0 };
        staging.begin(1);
        assert!(staging.stage(1, id, empty()));
        staging.begin(2);
        assert!(!staging.stage(1, id, empty()));
        assert!(staging.take(Epoch::new(3)).is_empty());
    }

    #[test]
    fn a_seed_is_taken_in_order() {
        let staging = Staging::new(1 << 20);
        staging.begin(1);
        for index in [2, 0, 1] {
            assert!(staging.stage(1, ChunkId { epoch: Epoch::ZERO, index }, empty()));
        }
        assert_eq!(staging.take_seed(2).into_keys().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(staging.take_seed(3).into_keys().collect::<Vec<_>>(), [2]);
    }
}
