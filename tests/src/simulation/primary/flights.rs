//! Encoded epochs in flight, and the sessions that they go to. Mirrors
//! `tools/src/primary/flights.rs`.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use arbiter::NodeId;
use checkpoint::{
    Epoch,
    choice::{Choice, Way},
    chunk::{Chunk, ChunkId, ChunkKind, epoch_digest},
    message::Close,
};

use crate::simulation::{network::SessionId, world::World};

/// Guests here are a hundredth of a real one: so much content stands for what
/// the choice learns from.
pub(super) const CONTENT_SCALE: u64 = 100;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Flights {
    choice: Choice,
    epochs: BTreeMap<Epoch, Flight>,
    followers: BTreeMap<NodeId, Follower>,
    flights: u64,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    /// It was begun anew.
    fresh: bool,
    way: Way,
    chunks: Vec<Option<Rc<Chunk>>>,
    missing: usize,
    pages: u64,
    closed: Option<Duration>,
}

#[derive(Debug)]
struct Follower {
    after: Epoch,
    /// It joins with the epoch that follows.
    joins: bool,
    session: SessionId,
}

impl Follower {
    fn takes(&self, epoch: Epoch, flight: &Flight) -> bool {
        epoch > self.after && (flight.fresh || !self.joins || epoch != self.after.next())
    }
}

/// The right to publish one chunk.
#[derive(Debug, Clone, Copy)]
pub(in crate::simulation) struct Place {
    pub(super) id: ChunkId,
    /// How pages are sent in its epoch.
    pub(super) way: Way,
    flight: u64,
}

/// An epoch of which every chunk is encoded.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) close: Close,
    /// Bytes of all bodies.
    pub(super) wire_bytes: u64,
}

impl Flights {
    /// Nothing is in flight, and nobody follows.
    pub(super) fn new(choice: Choice) -> Self {
        Self { choice, epochs: BTreeMap::new(), followers: BTreeMap::new(), flights: 0 }
    }

    pub(super) fn place(&mut self, epoch: Epoch) -> Place {
        if !self.epochs.contains_key(&epoch) {
            self.open(epoch, false);
        }
        let flight = self.epochs.get_mut(&epoch).expect("opened above");
        let index = flight.chunks.len() as u32;
        flight.chunks.push(None);
        flight.missing += 1;
        Place { id: ChunkId { epoch, index }, way: flight.way, flight: flight.number }
    }

    pub(super) fn reopen(&mut self, epoch: Epoch) {
        let begun = self.epochs.get(&epoch).is_some_and(|flight| !flight.chunks.is_empty());
        let followed = self.followers.values().any(|follower| follower.after < epoch.previous());
        assert!(!begun || !followed, "an epoch that is followed does not begin anew");
        self.open(epoch, true);
    }

    pub(super) fn close(&mut self, world: &World, epoch: Epoch) -> Option<Complete> {
        let flight = self.epochs.get_mut(&epoch)?;
        flight.closed = Some(world.now);
        flight.complete(epoch)
    }

    pub(super) fn publish(
        &mut self,
        world: &mut World,
        place: &Place,
        chunk: Chunk,
        pages: u64,
    ) -> Option<Complete> {
        let chunk = Rc::new(chunk);
        let epoch = place.id.epoch;
        let flight = self.epochs.get_mut(&epoch).filter(|f| f.number == place.flight)?;
        let slot = &mut flight.chunks[place.id.index as usize];
        assert!(slot.is_none(), "every chunk is encoded once");
        *slot = Some(chunk.clone());
        flight.missing -= 1;
        flight.pages += pages;
        for follower in self.followers.values().filter(|f| f.takes(epoch, flight)) {
            world.queue_chunk(follower.session, chunk.clone());
        }
        flight.complete(epoch)
    }

    pub(super) fn follow(
        &mut self,
        world: &mut World,
        backup: NodeId,
        after: Epoch,
        joins: bool,
        session: SessionId,
    ) {
        let follower = Follower { after, joins, session };
        for (epoch, flight) in self.epochs.range(after.next()..) {
            for chunk in flight.chunks.iter().flatten().filter(|_| follower.takes(*epoch, flight)) {
                world.queue_chunk(session, chunk.clone());
            }
        }
        self.followers.insert(backup, follower);
    }

    pub(super) fn unfollow(&mut self, backup: &NodeId) {
        self.followers.remove(backup);
    }

    pub(super) fn resend(
        &mut self,
        world: &mut World,
        backup: &NodeId,
        epoch: Epoch,
        chunks: &[u32],
    ) {
        let (Some(flight), Some(follower)) = (self.epochs.get(&epoch), self.followers.get(backup))
        else {
            return;
        };
        for index in chunks {
            if let Some(Some(chunk)) = flight.chunks.get(*index as usize) {
                world.queue_chunk(follower.session, chunk.clone());
            }
        }
    }

    /// What is forgotten was committed by all: the choice learns from it.
    pub(super) fn forget(&mut self, world: &World, through: Epoch) {
        let later = self.epochs.split_off(&through.next());
        for flight in std::mem::replace(&mut self.epochs, later).into_values() {
            if let Some(closed) = flight.closed {
                let content = flight.content_bytes() * CONTENT_SCALE;
                self.choice.record(flight.way, content, world.now - closed);
            }
        }
    }

    pub(super) fn forget_all(&mut self) {
        self.epochs.clear();
    }

    fn open(&mut self, epoch: Epoch, fresh: bool) {
        self.flights += 1;
        let number = self.flights;
        let chunks = Vec::new();
        let way = self.choice.begin();
        let flight = Flight { number, fresh, way, chunks, missing: 0, pages: 0, closed: None };
        self.epochs.insert(epoch, flight);
    }
}

impl Flight {
    fn complete(&self, epoch: Epoch) -> Option<Complete> {
        if self.closed.is_none() || self.missing > 0 {
            return None;
        }
        let chunks = || self.chunks.iter().flatten();
        Some(Complete {
            close: Close {
                epoch,
                seed_chunks: None,
                chunks: self.chunks.len() as u32,
                pages: self.pages,
                digest: epoch_digest(chunks().map(|chunk| &chunk.digest)),
            },
            wire_bytes: chunks().map(|chunk| chunk.body.len() as u64).sum(),
        })
    }
    /// Of pages, before compression.
    fn content_bytes(&self) -> u64 {
        let chunks = self.chunks.iter().flatten().filter(|chunk| chunk.kind == ChunkKind::Pages);
        chunks.map(|chunk| u64::from(chunk.decoded_bytes)).sum()
    }
}
