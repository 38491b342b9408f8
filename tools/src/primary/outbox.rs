//! Chunks that wait for one backup's session.
//!
//! Invariant: a chunk waits at most once, however often it is asked for, and not
//! longer than its epoch is in flight. So who asks and does not read holds no
//! more memory than what is in flight, and that is bounded by the machine.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use checkpoint::{
    Epoch,
    chunk::{Chunk, ChunkId},
};
use tokio::sync::Notify;

/// See the module's head. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// In which they go: each of `chunks` once.
    order: VecDeque<ChunkId>,
    chunks: HashMap<ChunkId, Arc<Chunk>>,
    closed: bool,
}

impl Outbox {
    /// Queues `chunk`. If it waits already it keeps its place, with this content.
    /// One that is closed takes nothing.
    pub(super) fn push(&self, chunk: Arc<Chunk>) {
        self.with(|waiting| {
            let id = chunk.id;
            if !waiting.closed && waiting.chunks.insert(id, chunk).is_none() {
                waiting.order.push_back(id);
            }
        });
    }

    /// Everybody has what was sent of the epochs up to `through`.
    pub(super) fn forget(&self, through: Epoch) {
        self.with(|waiting| {
            waiting.order.retain(|id| id.epoch > through);
            waiting.chunks.retain(|id, _| id.epoch > through);
        });
    }

    /// The session is over: nothing waits any more.
    pub(super) fn close(&self) {
        self.with(|waiting| *waiting = Waiting { closed: true, ..Waiting::default() });
    }

    /// The chunk that is next, when there is one; `None` once it is closed. For
    /// one task at a time. May be cancelled without losing anything.
    pub(super) async fn next(&self) -> Option<Arc<Chunk>> {
        loop {
            if let Some(chunk) = self.pop() {
                return Some(chunk);
            }
            if self.lock().closed {
                return None;
            }
            self.0.changed.notified().await;
        }
    }

    /// The chunk that is next, if one waits.
    pub(super) fn pop(&self) -> Option<Arc<Chunk>> {
        let mut waiting = self.lock();
        let id = waiting.order.pop_front()?;
        waiting.chunks.remove(&id)
    }

    fn with(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.lock());
        self.0.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::chunk::{Compression, Encoder};

    use super::*;

    fn chunk(epoch: u64, index: u32) -> Arc<Chunk> {
        let id = ChunkId { epoch: Epoch::new(epoch), index };
        Arc::new(Encoder::new(Compression::Off).pages(id, &[], Vec::new()))
    }

    #[tokio::test]
    async fn who_asks_and_does_not_read_has_each_chunk_waiting_once() {
        let outbox = Outbox::default();
        for _ in 0..1000 {
            for (epoch, index) in [(4, 0), (5, 0), (5, 1)] {
                outbox.push(chunk(epoch, index));
            }
        }
        outbox.forget(Epoch::new(4));
        for index in 0..2 {
            assert_eq!(outbox.next().await.unwrap().id, chunk(5, index).id);
        }
        // What is on its way may be asked for again.
        outbox.push(chunk(5, 0));
        assert_eq!(outbox.next().await.unwrap().id.index, 0);
        outbox.push(chunk(5, 0));
        outbox.close();
        outbox.push(chunk(5, 1));
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn a_task_that_waits_is_told() {
        let outbox = Outbox::default();
        let waiting = || {
            let outbox = outbox.clone();
            tokio::spawn(async move { outbox.next().await })
        };
        let next = waiting();
        tokio::task::yield_now().await;
        outbox.push(chunk(5, 0));
        assert!(next.await.unwrap().is_some());
        let last = waiting();
        tokio::task::yield_now().await;
        outbox.close();
        assert!(last.await.unwrap().is_none());
    }
}
