//! Seeds a backup: all of memory in rounds, while the guest runs. Mirrors
//! `tools/src/primary/seeder.rs`.
//!
//! A batch is copied when it is its turn, so what was written since its round
//! was taken is in it, and is dirty all the same.

use std::{
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use arbiter::NodeId;
use checkpoint::{Epoch, PageRun, PageSet, choice::Choice, chunk::ChunkId};

use super::{
    encoder::{Batch, Codecs, batches_of},
    flights::CONTENT_SCALE,
    tracker::Tracker,
};
use crate::simulation::{
    guest::Guest,
    happening::{Happening, ProcessId},
    network::{SessionId, Side},
    world::World,
};

/// One running seed.
#[derive(Debug)]
pub(super) struct Seed {
    number: u32,
    pub(super) backup: NodeId,
    session: SessionId,
    codecs: Codecs,
    /// Every chunk is a stretch of it.
    choice: Choice,
    /// When the last chunk was sent.
    sent_at: Duration,
    /// The round under way.
    round: Option<Round>,
    /// Rounds that were ordered and not begun.
    ordered: u32,
    /// Chunks to be sent again.
    wanted: BTreeSet<u32>,
    /// The pages of each chunk.
    sent: Vec<Vec<PageRun>>,
}

#[derive(Debug)]
struct Round {
    pages: PageSet,
    batches: VecDeque<Vec<PageRun>>,
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more to do, or an order is waited for.
    GoesOn,
    /// A round is sent.
    RoundSent { chunks: u32, pages_left: u64 },
    /// The session is over, or the seed was given up.
    Over,
}

impl Seed {
    pub(super) fn start(
        world: &mut World,
        me: ProcessId,
        number: u32,
        backup: NodeId,
        session: SessionId,
    ) -> Self {
        let codec = world.plan.shape.codec;
        let seed = Self {
            number,
            backup,
            session,
            codecs: Codecs::new(codec),
            choice: codec.choice(),
            sent_at: world.now,
            round: None,
            ordered: 1,
            wanted: BTreeSet::new(),
            sent: Vec::new(),
        };
        seed.go_on(world, me);
        seed
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Another round is ordered.
    pub(super) fn order(&mut self, world: &mut World, me: ProcessId) {
        let waits = self.waits();
        self.ordered += 1;
        if waits {
            self.go_on(world, me);
        }
    }

    /// Chunks are wanted again.
    pub(super) fn resend(&mut self, world: &mut World, me: ProcessId, chunks: Vec<u32>) {
        let waits = self.waits();
        self.wanted.extend(chunks);
        if waits {
            self.go_on(world, me);
        }
    }

    /// Whether the thread waits for an order.
    fn waits(&self) -> bool {
        self.round.is_none() && self.ordered == 0 && self.wanted.is_empty()
    }

    fn go_on(&self, world: &mut World, me: ProcessId) {
        world.work_later(me, 30..400, Happening::SeedStep(self.number));
    }

    /// The thread goes on.
    pub(super) fn step(
        &mut self,
        world: &mut World,
        me: ProcessId,
        tracker: &mut Tracker,
        guest: &mut Guest,
    ) -> Step {
        if tracker.is_locked() {
            self.go_on(world, me);
            return Step::GoesOn;
        }
        if self.round.is_none() && self.wanted.is_empty() {
            let Some(pages) = tracker.take_round(world, guest, &self.backup) else {
                return Step::Over;
            };
            self.ordered -= 1;
            let batches = batches_of(&pages, world.plan.shape.chunk_pages);
            self.round = Some(Round { pages, batches });
        }
        if world.network.session(self.session).process(Side::Primary).is_none() {
            if let Some(round) = &self.round {
                tracker.give_back(&self.backup, &round.pages);
            }
            return Step::Over;
        }
        if !world.has_window(self.session) {
            world.process_later(me, Duration::from_micros(300), Happening::SeedStep(self.number));
            return Step::GoesOn;
        }
        if let Some(index) = self.wanted.pop_first() {
            if let Some(runs) = self.sent.get(index as usize).cloned() {
                self.send(world, index, runs, guest);
            }
            if !self.waits() {
                self.go_on(world, me);
            }
            return Step::GoesOn;
        }
        let round = self.round.as_mut().expect("taken above");
        if let Some(runs) = round.batches.pop_front() {
            let index = self.sent.len() as u32;
            self.sent.push(runs.clone());
            self.send(world, index, runs, guest);
            self.go_on(world, me);
            return Step::GoesOn;
        }
        self.round = None;
        if self.ordered > 0 {
            self.go_on(world, me);
        }
        let pages_left = tracker.owed(world, guest, &self.backup);
        Step::RoundSent { chunks: self.sent.len() as u32, pages_left }
    }

    fn send(&mut self, world: &mut World, index: u32, runs: Vec<PageRun>, guest: &Guest) {
        let Batch { runs, mut block, stale } = Batch::copy(runs, &guest.memory);
        let id = ChunkId { epoch: Epoch::ZERO, index };
        let scan = self.codecs.scanner().scan(&runs, &mut block, &stale, None);
        let way = self.choice.begin();
        let chunk = self.codecs.of(way).finish(id, scan, block);
        let content = u64::from(chunk.decoded_bytes) * CONTENT_SCALE;
        self.choice.record(way, content, world.now - self.sent_at);
        self.sent_at = world.now;
        world.queue_chunk(self.session, Rc::new(chunk));
    }
}
