//! Captures pages that were write-protected in a pause, while the guest runs.
//! Mirrors `tools/src/primary/copier.rs`; what waits to be written is copied by
//! the guest's [`WriteGuard`](crate::simulation::guest::WriteGuard).

use checkpoint::{Epoch, PAGE_BYTES, PageRun, PageSet, chunk::Places};

use super::encoder::{Batch, EpochEnd, Group};
use crate::simulation::{
    guest::Guest,
    happening::{Happening, ProcessId},
    mutation::Mutation,
    world::World,
};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Copier {
    me: ProcessId,
    capture: Option<(Epoch, EpochEnd)>,
}

impl Copier {
    pub(super) fn new(me: ProcessId) -> Self {
        Self { me, capture: None }
    }

    /// Whether no capture is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.capture.is_none()
    }

    /// Captures `pages` from now on; the guest is paused. `end` ends the
    /// epoch's chunks.
    pub(super) fn begin(
        &mut self,
        world: &mut World,
        guest: &mut Guest,
        epoch: Epoch,
        pages: &PageSet,
        end: EpochEnd,
    ) {
        assert!(self.capture.is_none(), "one capture after the other");
        guest.guard.protect(pages, world.mutated(Mutation::WriteBeforeCopied));
        self.capture = Some((epoch, end));
        self.plan(world);
    }

    fn plan(&self, world: &mut World) {
        world.work_later(self.me, 20..900, Happening::Copy);
    }

    /// Copies some pages, or ends the capture.
    pub(super) fn step(&mut self, world: &mut World, guest: &mut Guest) -> Option<Group> {
        let (epoch, end) = self.capture.take()?;
        let pages_max = world.plan.shape.chunk_pages;
        let Some(rescued) = guest.guard.take_rescued() else {
            let runs = guest.guard.take(pages_max as u64);
            let batch = Batch::copy(runs, &guest.memory);
            world.report.pages_protected += batch.pages();
            self.capture = Some((epoch, end));
            self.plan(world);
            return Some(Group { epoch, batches: vec![batch], fresh: false, end: None });
        };
        world.report.pages_rescued += rescued.len() as u64;
        let batches = rescued.chunks(pages_max).map(|pages| {
            let runs = pages.iter().map(|(first, _)| PageRun { first: *first, count: 1 }).collect();
            let mut block = Vec::with_capacity(pages.len() * PAGE_BYTES);
            pages.iter().for_each(|(_, content)| block.extend(content.iter()));
            Batch { runs, block, stale: Places::default() }
        });
        Some(Group { epoch, batches: batches.collect(), fresh: false, end: Some(end) })
    }

    /// Gives up what is being captured.
    pub(super) fn abandon(&mut self, guest: &mut Guest) {
        guest.guard.release_all();
        self.capture = None;
    }
}
