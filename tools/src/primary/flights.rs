//! Encoded epochs in flight, and the backups that they go to.
//!
//! An epoch is opened by its first chunk, which may be encoded while the guest
//! still runs in it, and is complete when it was closed and every chunk that
//! was begun is published.
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
    choice::{Choice, Way},
    chunk::{Chunk, ChunkId, ChunkKind, epoch_digest},
    message::Close,
};

use super::outbox::Outbox;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Flights {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// How the pages of the next epoch are sent.
    choice: Choice,
    epochs: BTreeMap<Epoch, Flight>,
    followers: BTreeMap<NodeId, Follower>,
    /// Tells flights of one epoch apart that was given up and opened again.
    flights: u64,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    /// It was begun anew: nothing in it builds on epochs before.
    fresh: bool,
    way: Way,
    chunks: Vec<Option<Arc<Chunk>>>,
    missing: usize,
    pages: u64,
    /// Since when nothing is added any more.
    closed: Option<Instant>,
}

#[derive(Debug)]
struct Follower {
    after: Epoch,
    /// It joins with the epoch that follows.
    joins: bool,
    outbox: Outbox,
}

impl Follower {
    /// Whether it is to have a chunk of this flight. What was encoded of an epoch
    /// before it began anew must not come to who joins with it.
    fn takes(&self, epoch: Epoch, flight: &Flight) -> bool {
        epoch > self.after && (flight.fresh || !self.joins || epoch != self.after.next())
    }
}

/// The right to publish one chunk.
#[derive(Debug)]
pub(super) struct Place {
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
    /// How long encoding went on after the epoch was closed.
    pub(super) encode: Duration,
    pub(super) lesson: Lesson,
}

/// What the choice between ways learns from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lesson {
    way: Way,
    /// Of their chunks, before compression.
    bytes: u64,
}

impl Flights {
    /// Nothing is in flight, and nobody follows.
    pub(super) fn new(choice: Choice) -> Self {
        let (epochs, followers) = (BTreeMap::new(), BTreeMap::new());
        Self { inner: Mutex::new(Inner { choice, epochs, followers, flights: 0 }) }
    }

    /// An epoch's pages were committed so long after their guest went on. Returns
    /// how pages are sent from now on, if that is new.
    pub(super) fn learn(&self, lesson: Lesson, took: Duration) -> Option<Way> {
        self.with(|inner| inner.choice.record(lesson.way, lesson.bytes, took))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().expect("no holder panics"))
    }

    /// The place of the next chunk of `epoch`.
    pub(super) fn place(&self, epoch: Epoch) -> Place {
        self.with(|inner| {
            if !inner.epochs.contains_key(&epoch) {
                inner.open(epoch, false);
            }
            let flight = inner.epochs.get_mut(&epoch).expect("opened above");
            let index = flight.chunks.len() as u32;
            flight.chunks.push(None);
            flight.missing += 1;
            Place { id: ChunkId { epoch, index }, way: flight.way, flight: flight.number }
        })
    }

    /// `epoch` begins anew: what was encoded of it builds on what a backup that
    /// joins with it does not have.
    ///
    /// # Panics
    ///
    /// If somebody follows it: they have been given chunks of it.
    pub(super) fn reopen(&self, epoch: Epoch) {
        self.with(|inner| {
            let begun = inner.epochs.get(&epoch).is_some_and(|flight| !flight.chunks.is_empty());
            let followed =
                inner.followers.values().any(|follower| follower.after < epoch.previous());
            assert!(!begun || !followed, "an epoch that is followed does not begin anew");
            inner.open(epoch, true);
        });
    }

    /// Nothing more is added to `epoch`. Returns it if it is complete.
    pub(super) fn close(&self, epoch: Epoch) -> Option<Complete> {
        self.with(|inner| {
            let flight = inner.epochs.get_mut(&epoch)?;
            flight.closed = Some(Instant::now());
            flight.complete(epoch)
        })
    }

    /// Takes an encoded chunk of `pages` pages and sends it to the followers.
    /// Returns the epoch if it is complete with it; nothing if it was given up.
    pub(super) fn publish(&self, place: &Place, chunk: Chunk, pages: u64) -> Option<Complete> {
        let chunk = Arc::new(chunk);
        let epoch = place.id.epoch;
        self.with(|inner| {
            let flight = inner.epochs.get_mut(&epoch).filter(|f| f.number == place.flight)?;
            let slot = &mut flight.chunks[place.id.index as usize];
            assert!(slot.is_none(), "every chunk is encoded once");
            *slot = Some(chunk.clone());
            flight.missing -= 1;
            flight.pages += pages;
            for follower in inner.followers.values().filter(|f| f.takes(epoch, flight)) {
                // A session that has ended takes nothing; the next one resumes.
                follower.outbox.push(chunk.clone());
            }
            flight.complete(epoch)
        })
    }

    /// Sends every chunk of every epoch after `after` to `outbox`. Who `joins` with
    /// the first of them gets only what was encoded since it began anew.
    pub(super) fn follow(&self, backup: NodeId, after: Epoch, joins: bool, outbox: Outbox) {
        self.with(|inner| {
            let follower = Follower { after, joins, outbox };
            for (epoch, flight) in inner.epochs.range(after.next()..) {
                for chunk in
                    flight.chunks.iter().flatten().filter(|_| follower.takes(*epoch, flight))
                {
                    follower.outbox.push(chunk.clone());
                }
            }
            inner.followers.insert(backup, follower);
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
                    follower.outbox.push(chunk.clone());
                }
            }
        });
    }

    /// Forgets the epochs up to `through`.
    pub(super) fn forget(&self, through: Epoch) {
        let forgotten = self.with(|inner| {
            for follower in inner.followers.values() {
                follower.outbox.forget(through);
            }
            let later = inner.epochs.split_off(&through.next());
            std::mem::replace(&mut inner.epochs, later)
        });
        drop(forgotten);
    }

    /// Nobody follows any more: forgets all.
    pub(super) fn forget_all(&self) {
        let forgotten = self.with(|inner| std::mem::take(&mut inner.epochs));
        drop(forgotten);
    }
}

impl Inner {
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
        let closed = self.closed.filter(|_| self.missing == 0)?;
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
            encode: closed.elapsed(),
            lesson: Lesson {
                way: self.way,
                bytes: chunks()
                    .filter(|chunk| chunk.kind == ChunkKind::Pages)
                    .map(|chunk| u64::from(chunk.decoded_bytes))
                    .sum(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::chunk::{Compression, Encoder};

    use super::*;

    fn chunk(place: &Place) -> Chunk {
        Encoder::new(Compression::Off).pages(place.id, &[], Vec::new())
    }

    #[test]
    fn followers_get_every_later_chunk_once() {
        let flights = Flights::new(Choice::by_cost());
        let outbox = Outbox::default();
        let (first, second) = (Epoch::new(4), Epoch::new(5));
        let places = [flights.place(first), flights.place(second), flights.place(second)];
        assert!(flights.publish(&places[0], chunk(&places[0]), 1).is_none(), "not closed");
        assert!(flights.publish(&places[1], chunk(&places[1]), 1).is_none());
        flights.follow("b".parse().unwrap(), first, false, outbox.clone());
        assert!(flights.close(second).is_none(), "a chunk is missing");
        let complete = flights.publish(&places[2], chunk(&places[2]), 2).expect("the last");
        assert_eq!((complete.close.chunks, complete.close.pages), (2, 3));
        let mut got = Vec::new();
        while let Some(chunk) = outbox.pop() {
            got.push((chunk.id.epoch, chunk.id.index));
        }
        assert_eq!(got, [(second, 0), (second, 1)]);
        assert!(flights.close(first).is_some());
    }

    #[test]
    fn who_asks_without_reading_holds_what_is_in_flight_and_no_more() {
        let flights = Flights::new(Choice::by_cost());
        let (backup, outbox): (NodeId, _) = ("b".parse().unwrap(), Outbox::default());
        let (first, second) = (Epoch::new(4), Epoch::new(5));
        flights.follow(backup.clone(), first.previous(), false, outbox.clone());
        for epoch in [first, second] {
            let place = flights.place(epoch);
            flights.publish(&place, chunk(&place), 1);
            flights.close(epoch);
        }
        for _ in 0..100 {
            flights.resend(&backup, first, &[0; 1024]);
            flights.resend(&backup, second, &[0, 1, u32::MAX]);
        }
        // It has acknowledged what it did not read.
        flights.forget(first);
        assert_eq!(outbox.pop().map(|chunk| chunk.id.epoch), Some(second));
        assert!(outbox.pop().is_none());
    }

    #[test]
    fn what_was_begun_for_an_epoch_that_begins_anew_is_dropped() {
        let flights = Flights::new(Choice::by_cost());
        let epoch = Epoch::new(4);
        let stale = flights.place(epoch);
        flights.reopen(epoch);
        let fresh = flights.place(epoch);
        assert_eq!(fresh.id.index, 0);
        assert!(flights.publish(&stale, chunk(&stale), 7).is_none());
        flights.close(epoch);
        let complete = flights.publish(&fresh, chunk(&fresh), 1).expect("the only one");
        assert_eq!((complete.close.chunks, complete.close.pages), (1, 1));
    }

    #[test]
    fn who_joins_gets_nothing_of_what_was_encoded_before() {
        let flights = Flights::new(Choice::by_cost());
        let outbox = Outbox::default();
        let (joined, next) = (Epoch::new(4), Epoch::new(5));
        let ahead = [flights.place(joined), flights.place(joined)];
        flights.publish(&ahead[0], chunk(&ahead[0]), 1);
        flights.follow("b".parse().unwrap(), joined.previous(), true, outbox.clone());
        // The encoders have not come to the join yet.
        flights.publish(&ahead[1], chunk(&ahead[1]), 1);
        assert!(outbox.pop().is_none());
        flights.reopen(joined);
        let places = [flights.place(joined), flights.place(next)];
        for place in &places {
            flights.publish(place, chunk(place), 1);
            assert_eq!(outbox.pop().unwrap().id, place.id);
        }
    }
}
