//! Captured pages: copied while the guest is paused, encoded when it runs.
//!
//! Copies go to blocks of [`CHUNK_PAGES_MAX`] pages from a pool that is touched
//! beforehand: the first touch of fresh memory costs many times the copy.

use std::sync::{Arc, Mutex};

use checkpoint::{
    Epoch, PAGE_BYTES, PageRun, PageSet, Sections,
    chunk::{CHUNK_PAGES_MAX, Digest},
    output::Output,
};
use vmm::memory::GuestRam;

const BLOCK_BYTES: usize = CHUNK_PAGES_MAX * PAGE_BYTES;

/// Blocks for captured pages. Clones share.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockPool {
    free: Arc<Mutex<Vec<Box<[u8]>>>>,
    /// Free blocks that are kept.
    kept_max: usize,
}

impl BlockPool {
    /// A pool that keeps up to `bytes_max` and has `bytes_touched` of it ready.
    pub(super) fn new(bytes_touched: usize, bytes_max: usize) -> Self {
        let fresh = || vec![1; BLOCK_BYTES].into_boxed_slice();
        let free = (0..bytes_touched.div_ceil(BLOCK_BYTES)).map(|_| fresh()).collect();
        let kept_max = bytes_max.div_ceil(BLOCK_BYTES);
        Self { free: Arc::new(Mutex::new(free)), kept_max }
    }

    fn take(&self) -> Block {
        let free = self.free.lock().expect("no holder panics").pop();
        let bytes = free.unwrap_or_else(|| vec![0; BLOCK_BYTES].into_boxed_slice());
        Block { bytes, pool: self.clone() }
    }
}

/// Memory that goes back to its pool.
#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    pool: BlockPool,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().expect("no holder panics");
        if free.len() < self.pool.kept_max {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Pages for one chunk, and their content.
#[derive(Debug)]
pub(super) struct Batch {
    runs: Vec<PageRun>,
    block: Block,
    bytes: usize,
}

impl Batch {
    /// Which pages.
    pub(super) fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Their content, in the same order.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.block.bytes[..self.bytes]
    }

    /// How many pages.
    pub(super) fn pages(&self) -> u64 {
        (self.bytes / PAGE_BYTES) as u64
    }
}

/// Copies `pages` out of guest memory, in batches for one chunk each, lazily:
/// every batch is copied when it is asked for.
pub(super) fn batches(
    pages: &PageSet,
    memory: &GuestRam,
    pool: &BlockPool,
) -> impl Iterator<Item = Batch> {
    let mut runs = pages.runs(CHUNK_PAGES_MAX as u64).peekable();
    std::iter::from_fn(move || {
        let mut batch = Batch { runs: Vec::new(), block: pool.take(), bytes: 0 };
        let room = |batch: &Batch, run: &PageRun| {
            batch.bytes + run.count as usize * PAGE_BYTES <= BLOCK_BYTES
        };
        while let Some(run) = runs.next_if(|run| room(&batch, run)) {
            let bytes = run.count as usize * PAGE_BYTES;
            let target = &mut batch.block.bytes[batch.bytes..batch.bytes + bytes];
            memory.copy_out(run, target);
            batch.bytes += bytes;
            batch.runs.push(run);
        }
        (batch.bytes > 0).then_some(batch)
    })
}

/// A checkpoint, captured.
#[derive(Debug)]
pub(super) struct Captured {
    pub(super) epoch: Epoch,
    pub(super) batches: Vec<Batch>,
    pub(super) sections: Sections,
    /// What the guest said in the epoch, if it is to be sent along.
    pub(super) outputs: Vec<Output>,
    /// BLAKE3 of all guest memory, if it was asked for.
    pub(super) digest: Option<Digest>,
}

impl Captured {
    pub(super) fn bytes(&self) -> u64 {
        self.batches.iter().map(|batch| batch.bytes as u64).sum()
    }

    pub(super) fn pages(&self) -> u64 {
        self.batches.iter().map(Batch::pages).sum()
    }
}
