//! The staging area of [`checkpoint::staging`], shared between threads:
//! decoders wait for room, and for nothing else.

use std::sync::{Condvar, Mutex, MutexGuard};

use checkpoint::{
    Epoch,
    chunk::{ChunkId, Content, Digest},
    staging::{EpochContent, Placed, Staging},
};

/// See the module's head.
#[derive(Debug)]
pub(super) struct SharedStaging {
    inner: Mutex<Staging>,
    /// Signalled when applied content has freed its bytes, or a session ends.
    room: Condvar,
}

impl SharedStaging {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { inner: Mutex::new(Staging::new(bytes_max)), room: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Staging> {
        self.inner.lock().expect("no holder panics")
    }

    /// From now on only content of `session` is staged; nothing is staged yet.
    pub(super) fn begin(&self, session: u64) {
        let stale = self.lock().begin(session);
        // Freed without the lock: it may be much.
        drop(stale);
        self.room.notify_all();
    }

    /// There is no image any more; nothing is staged.
    pub(super) fn discard(&self) {
        let unwanted = self.lock().discard();
        drop(unwanted);
        self.room.notify_all();
    }

    /// Stages content when there is room, or passes over what is not wanted, as
    /// that of a session that is over.
    pub(super) fn stage(
        &self,
        session: u64,
        id: ChunkId,
        digest: Digest,
        content: Content,
    ) -> Placed {
        let waits = |staging: &mut Staging| !staging.is_over(session) && !staging.has_room();
        let mut staging = self.room.wait_while(self.lock(), waits).expect("no holder panics");
        if staging.is_over(session) {
            return Placed::Passed;
        }
        staging.stage(session, id, digest, content)
    }

    /// Takes an epoch that is committed.
    pub(super) fn take(&self, epoch: Epoch) -> EpochContent {
        self.lock().take(epoch)
    }

    /// Takes the chunks of the seed below `end`.
    pub(super) fn take_seed(&self, end: u32) -> EpochContent {
        self.lock().take_seed(end)
    }

    /// Gives up an epoch that is not wanted any more.
    pub(super) fn unstage(&self, epoch: Epoch) {
        let unwanted = self.lock().unstage(epoch);
        drop(unwanted);
    }

    /// Content of so many bytes is in the image.
    pub(super) fn applied(&self, bytes: usize) {
        self.lock().applied(bytes);
        self.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    #[test]
    fn a_decoder_waits_for_room_and_no_longer_than_its_session() {
        let staging = Arc::new(SharedStaging::new(1000));
        staging.begin(1);
        let id = |epoch| ChunkId { epoch: Epoch::new(epoch), index: 0 };
        let content = || Content::SectionsDelta(vec![0; 1001].into());
        assert_eq!(staging.stage(1, id(1), [0; 32], content()), Placed::Staged);
        staging.take(Epoch::new(1));
        let stage = |session| {
            let staging = staging.clone();
            std::thread::spawn(move || staging.stage(session, id(2), [1; 32], content()))
        };
        let waiting = stage(1);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished(), "there is no room");
        staging.applied(1001);
        assert_eq!(waiting.join().unwrap(), Placed::Staged);
        staging.take(Epoch::new(2));
        let waiting = stage(1);
        staging.begin(2);
        assert_eq!(waiting.join().unwrap(), Placed::Passed);
    }
}
