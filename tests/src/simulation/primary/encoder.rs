//! Encoder threads: from captured batches to chunks, outside the pause. Mirrors
//! `tools/src/primary/encoder.rs` and `capture.rs`, with the real encoder,
//! history and state encoder.
//!
//! Groups are scanned one after the other, in the order in which they were
//! submitted; what follows the scan may be finished in any order.

use std::collections::VecDeque;

use checkpoint::{
    Epoch, PAGE_BYTES, PageRun, PageSet, Sections,
    choice::Way,
    chunk::{Chunk, Compression, Encoder, Places, SectionEncoder},
    history::History,
    output::Output,
};

use super::flights::{Flights, Place};
use crate::simulation::{
    guest::Memory,
    mutation::Mutation,
    plan::{Codec, Shape},
    world::World,
};

/// Pages for one chunk, and their content in the same order.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) runs: Vec<PageRun>,
    pub(super) block: Vec<u8>,
    /// Places of pages that were captured again later.
    pub(super) stale: Places,
}

impl Batch {
    pub(super) fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Copies pages out of memory.
    pub(super) fn copy(runs: Vec<PageRun>, memory: &Memory) -> Self {
        let pages: u64 = runs.iter().map(|run| run.count).sum();
        let mut block = vec![0; pages as usize * PAGE_BYTES];
        let mut filled = 0;
        for run in &runs {
            let bytes = run.count as usize * PAGE_BYTES;
            memory.copy_out(*run, &mut block[filled..filled + bytes]);
            filled += bytes;
        }
        Self { runs, block, stale: Places::default() }
    }

    /// Copies `pages` out of memory, for chunks of at most so many pages.
    pub(super) fn all(pages: &PageSet, memory: &Memory, pages_max: usize) -> Vec<Self> {
        batches_of(pages, pages_max).into_iter().map(|runs| Self::copy(runs, memory)).collect()
    }
}

/// Marks the pages of `batches` that were captured again by a later one, or that
/// are not among the `valid`. Returns how many are left.
pub(super) fn mark_stale(batches: &mut [Batch], valid: &PageSet) -> u64 {
    let mut later = valid.clone();
    later.clear();
    for batch in batches.iter_mut().rev() {
        for (place, page) in batch.runs.iter().flat_map(|run| run.pages()).enumerate() {
            if !valid.contains(page) || !later.insert(page) {
                batch.stale.insert(place);
            }
        }
    }
    later.len()
}

/// Runs for chunks of at most so many pages.
pub(super) fn batches_of(pages: &PageSet, pages_max: usize) -> VecDeque<Vec<PageRun>> {
    let mut batches: VecDeque<Vec<PageRun>> = VecDeque::new();
    let mut filled = 0;
    for run in pages.runs(pages_max as u64) {
        match batches.back_mut() {
            Some(batch) if filled + run.count <= pages_max as u64 => batch.push(run),
            _ => {
                batches.push_back(vec![run]);
                filled = 0;
            }
        }
        filled += run.count;
    }
    batches
}

/// What was captured together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) epoch: Epoch,
    pub(super) batches: Vec<Batch>,
    /// It is the first of an epoch that a backup joins with.
    pub(super) fresh: bool,
    pub(super) end: Option<EpochEnd>,
}

/// What ends an epoch.
#[derive(Debug)]
pub(super) struct EpochEnd {
    pub(super) sections: Sections,
    pub(super) outputs: Vec<Output>,
    pub(super) fresh: bool,
}

/// A chunk that is finished, and where it goes.
#[derive(Debug)]
pub(in crate::simulation) struct Published {
    pub(super) place: Place,
    pub(super) chunk: Chunk,
    pub(super) pages: u64,
}

/// An encoder for each way.
#[derive(Debug)]
pub(super) struct Codecs {
    compressing: Encoder,
    raw: Encoder,
}

impl Codecs {
    pub(super) fn new(codec: Codec) -> Self {
        let compression = match codec {
            Codec::Off => Compression::Off,
            Codec::Zstd | Codec::Auto => Compression::Zstd { level: 1 },
        };
        Self { compressing: Encoder::new(compression), raw: Encoder::new(Compression::Off) }
    }

    /// Who finishes a scan that goes this `way`.
    pub(super) fn of(&mut self, way: Way) -> &mut Encoder {
        match way {
            Way::Compressed => &mut self.compressing,
            Way::Raw => &mut self.raw,
        }
    }

    /// Who scans: that is the same for all of them.
    pub(super) fn scanner(&mut self) -> &mut Encoder {
        &mut self.compressing
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Encoders {
    groups: VecDeque<Group>,
    codecs: Codecs,
    history: History,
    sections: SectionEncoder,
}

impl Encoders {
    pub(super) fn new(shape: &Shape, frame_end: u64) -> Self {
        Self {
            groups: VecDeque::new(),
            codecs: Codecs::new(shape.codec),
            history: History::new(frame_end, shape.history_pages * PAGE_BYTES),
            sections: SectionEncoder::default(),
        }
    }

    /// Takes a group; returns whether it is the only one.
    pub(super) fn submit(&mut self, group: Group) -> bool {
        self.groups.push_back(group);
        self.groups.len() == 1
    }

    pub(super) fn has_group(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Scans the next group and encodes it: its chunks, and whether its epoch
    /// ends with it.
    pub(super) fn encode(
        &mut self,
        world: &World,
        flights: &mut Flights,
    ) -> Option<(Epoch, Vec<Published>, bool)> {
        let Group { epoch, batches, fresh, end } = self.groups.pop_front()?;
        if fresh {
            if !world.mutated(Mutation::StaleHistory) {
                self.history.clear();
            }
            flights.reopen(epoch);
        }
        let mut chunks = Vec::with_capacity(batches.len() + 2);
        for Batch { runs, mut block, stale } in batches {
            let place = flights.place(epoch);
            let scan =
                self.codecs.scanner().scan(&runs, &mut block, &stale, Some(&mut self.history));
            let pages = scan.pages();
            let chunk = self.codecs.of(place.way).finish(place.id, scan, block);
            chunks.push(Published { place, chunk, pages });
        }
        let ends = end.is_some();
        if let Some(EpochEnd { sections, outputs, fresh }) = end {
            let encoder = self.codecs.scanner();
            let place = flights.place(epoch);
            let chunk = self.sections.chunk(place.id, &sections, fresh, encoder);
            chunks.push(Published { place, chunk, pages: 0 });
            let mut rest = &outputs[..];
            while !rest.is_empty() {
                let place = flights.place(epoch);
                let (chunk, taken) = Chunk::of_outputs(place.id, rest, encoder);
                chunks.push(Published { place, chunk, pages: 0 });
                rest = &rest[taken..];
            }
            self.history.tick();
        }
        Some((epoch, chunks, ends))
    }
}
