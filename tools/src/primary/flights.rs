//! Encoded epochs in flight, and the backups that they go to.
//!
//! Invariant: a follower is given every chunk of every epoch after the one it
//! was registered with exactly once per registration, whether the chunk is
//! encoded before or after.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arbiter::NodeId;
use checkpoint::{
    Epoch,
    chunk::{Chunk, epoch_digest},
    message::Close,
};
use tokio::sync::mpsc::UnboundedSender;

/// Chunks on their way to one backup. Not bounded here: what is in it is in
/// flight anyway, and what is in flight is bounded by the machine.
pub(super) type ChunkQueue = UnboundedSender<Arc<Chunk>>;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Flights {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    epochs: BTreeMap<Epoch, Flight>,
    followers: BTreeMap<NodeId, Follower>,
}

#[derive(Debug)]
struct Flight {
    chunks: Vec<Option<Arc<Chunk>>>,
    missing: usize,
    pages: u64,
    begun: Instant,
}

#[derive(Debug)]
struct Follower {
    after: Epoch,
    queue: ChunkQueue,
}

/// An epoch of which every chunk is encoded.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) close: Close,
    /// Bytes of all bodies.
    pub(super) wire_bytes: u64,
    /// How long encoding took, waiting for encoders included.
    pub(super) encode: Duration,
}

impl Flights {
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().expect("no holder panics"))
    }

    /// Expects `chunks` chunks with `pages` pages for `epoch`.
    pub(super) fn begin(&self, epoch: Epoch, chunks: usize, pages: u64) {
        let chunks_of = vec![None; chunks];
        let flight = Flight { chunks: chunks_of, missing: chunks, pages, begun: Instant::now() };
        self.with(|inner| inner.epochs.insert(epoch, flight));
    }

    /// Takes an encoded chunk and sends it to the followers. Returns the epoch
    /// if this was its last; nothing if it is forgotten already.
    pub(super) fn publish(&self, chunk: Chunk) -> Option<Complete> {
        let chunk = Arc::new(chunk);
        self.with(|inner| {
            let epoch = chunk.id.epoch;
            let flight = inner.epochs.get_mut(&epoch)?;
            let slot = &mut flight.chunks[chunk.id.index as usize];
            assert!(slot.is_none(), "every chunk is encoded once");
            *slot = Some(chunk.clone());
            flight.missing -= 1;
            for follower in inner.followers.values().filter(|f| epoch > f.after) {
                // A session that has ended takes nothing; the next one resumes.
                let _ = follower.queue.send(chunk.clone());
            }
            (flight.missing == 0).then(|| flight.complete(epoch))
        })
    }

    /// Sends every chunk of every epoch after `after` to `queue`.
    pub(super) fn follow(&self, backup: NodeId, after: Epoch, queue: ChunkQueue) {
        self.with(|inner| {
            let later = inner.epochs.range(after.next()..);
            for chunk in later.flat_map(|(_, flight)| flight.chunks.iter().flatten()) {
                let _ = queue.send(chunk.clone());
            }
            inner.followers.insert(backup, Follower { after, queue });
        });
    }

    /// Sends nothing more to `backup`.
    pub(super) fn unfollow(&self, backup: &NodeId) {
        self.with(|inner| inner.followers.remove(backup));
    }

    /// Sends chunks again.
    pub(super) fn resend(&self, backup: &NodeId, epoch: Epoch, chunks: &[u32]) {
        self.with(|inner| {
            let (Some(flight), Some(follower)) =
                (inner.epochs.get(&epoch), inner.followers.get(backup))
            else {
                return;
            };
            for index in chunks {
                if let Some(Some(chunk)) = flight.chunks.get(*index as usize) {
                    let _ = follower.queue.send(chunk.clone());
                }
            }
        });
    }

    /// Forgets the epochs up to `through`.
    pub(super) fn forget(&self, through: Epoch) {
        let forgotten = self.with(|inner| {
            let later = inner.epochs.split_off(&through.next());
            std::mem::replace(&mut inner.epochs, later)
        });
        drop(forgotten);
    }
}

impl Flight {
    fn complete(&self, epoch: Epoch) -> Complete {
        let chunks = || self.chunks.iter().flatten();
        Complete {
            close: Close {
                epoch,
                seed_chunks: None,
                chunks: self.chunks.len() as u32,
                pages: self.pages,
                digest: epoch_digest(chunks().map(|chunk| &chunk.digest)),
            },
            wire_bytes: chunks().map(|chunk| chunk.body.len() as u64).sum(),
            encode: self.begun.elapsed(),
        }
    }
}
