//! Captured pages: copied while the guest is paused, or ahead of the pause, and
//! encoded when it runs.
//!
//! Copies go to blocks of [`CHUNK_PAGES_MAX`] pages from a pool that is touched
//! beforehand: the first touch of fresh memory costs many times the copy. A
//! block whose content is sent as it is goes back to the pool when the last
//! backup has acknowledged it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use checkpoint::{
    PAGE_BYTES, PageRun, PageSet,
    chunk::{CHUNK_PAGES_MAX, Places},
};
use vmm::memory::GuestRam;

const BLOCK_BYTES: usize = CHUNK_PAGES_MAX * PAGE_BYTES;

/// Blocks for captured pages. Clones share.
#[derive(Debug, Clone)]
pub(super) struct BlockPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    blocks: Mutex<Blocks>,
    /// Signalled when a block comes back.
    back: Condvar,
    /// Free blocks that are kept, and taken blocks that a patient taker waits
    /// for.
    blocks_max: usize,
}

#[derive(Debug, Default)]
struct Blocks {
    free: Vec<Box<[u8]>>,
    taken: usize,
}

impl BlockPool {
    /// A pool of `bytes_max`, with nothing in it yet.
    pub(super) fn new(bytes_max: usize) -> Self {
        let blocks_max = bytes_max.div_ceil(BLOCK_BYTES).max(1);
        let shared = Shared { blocks: Mutex::default(), back: Condvar::new(), blocks_max };
        Self { shared: Arc::new(shared) }
    }

    /// Fills the pool with touched memory, at most with `bytes`. Takes long;
    /// does nothing if there is enough.
    pub(super) fn touch(&self, bytes: usize) {
        let wanted = (bytes / BLOCK_BYTES).min(self.shared.blocks_max);
        let lacks = |blocks: &Blocks| blocks.free.len() + blocks.taken < wanted;
        while lacks(&self.lock()) {
            let block = vec![1; BLOCK_BYTES].into_boxed_slice();
            self.lock().free.push(block);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.shared.blocks.lock().expect("no holder panics")
    }

    /// A block, at once: the guest is paused.
    pub(super) fn take(&self) -> Block {
        let mut blocks = self.lock();
        blocks.taken += 1;
        let free = blocks.free.pop();
        drop(blocks);
        let bytes = free.unwrap_or_else(|| vec![0; BLOCK_BYTES].into_boxed_slice());
        Block { bytes, pool: self.clone() }
    }

    /// A block, as soon as less than the whole pool is taken.
    pub(super) fn take_patiently(&self) -> Block {
        let max = self.shared.blocks_max;
        let waits = |blocks: &mut Blocks| blocks.taken >= max;
        let room = self.shared.back.wait_while(self.lock(), waits).expect("no holder panics");
        drop(room);
        self.take()
    }
}

/// Memory that goes back to its pool.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Box<[u8]>,
    pool: BlockPool,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Block {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut blocks = self.pool.lock();
        blocks.taken -= 1;
        if blocks.free.len() < self.pool.shared.blocks_max {
            blocks.free.push(bytes);
        }
        drop(blocks);
        self.pool.shared.back.notify_one();
    }
}

/// Pages for one chunk: `runs`, and their content in the same order.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) runs: Vec<PageRun>,
    pub(super) block: Block,
    /// Places of pages that were captured again later.
    pub(super) stale: Places,
}

impl Batch {
    /// How many pages.
    pub(super) fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }
}

/// Marks the pages of `batches` that were captured again by a later one, or that
/// are not among the `valid`.
pub(super) fn mark_stale(batches: &mut [Batch], valid: &PageSet, later: &mut PageSet) {
    later.clear();
    for batch in batches.iter_mut().rev() {
        for (place, page) in batch.runs.iter().flat_map(|run| run.pages()).enumerate() {
            if !valid.contains(page) || !later.insert(page) {
                batch.stale.insert(place);
            }
        }
    }
}

/// Copies the pages of `runs` out of guest memory, into `block`.
pub(super) fn copy_runs(runs: Vec<PageRun>, memory: &GuestRam, mut block: Block) -> Batch {
    let mut filled = 0;
    for run in &runs {
        let bytes = run.count as usize * PAGE_BYTES;
        memory.copy_out(*run, &mut block.as_mut()[filled..filled + bytes]);
        filled += bytes;
    }
    Batch { runs, block, stale: Places::default() }
}

/// Copies `pages` out of guest memory, in batches for one chunk each, lazily:
/// every batch is copied when it is asked for, into a block of `block`.
pub(super) fn batches<'a>(
    pages: &'a PageSet,
    memory: &'a GuestRam,
    mut block: impl FnMut() -> Block + 'a,
) -> impl Iterator<Item = Batch> + 'a {
    let mut runs = pages.runs(CHUNK_PAGES_MAX as u64).peekable();
    std::iter::from_fn(move || {
        runs.peek()?;
        let mut of_batch = Vec::new();
        let mut room = CHUNK_PAGES_MAX as u64;
        while let Some(run) = runs.next_if(|run| run.count <= room) {
            room -= run.count;
            of_batch.push(run);
        }
        Some(copy_runs(of_batch, memory, block()))
    })
}

#[cfg(test)]
mod tests {
    use checkpoint::PageNumber;

    use super::*;

    #[test]
    fn blocks_come_back_and_are_waited_for() {
        let pool = BlockPool::new(2 * BLOCK_BYTES);
        pool.touch(10 * BLOCK_BYTES);
        assert_eq!(pool.lock().free.len(), 2);
        let held = [pool.take(), pool.take()];
        // Whoever cannot wait gets one all the same.
        drop(pool.take());
        let waiting = std::thread::spawn({
            let pool = pool.clone();
            move || pool.take_patiently()
        });
        drop(held);
        drop(waiting.join().unwrap());
        let blocks = pool.lock();
        assert_eq!((blocks.free.len(), blocks.taken), (2, 0));
    }

    #[test]
    fn batches_have_every_page_once() {
        let memory = GuestRam::new(64 << 20, false).unwrap();
        let pool = BlockPool::new(4 * BLOCK_BYTES);
        let mut pages = PageSet::new(memory.layout().frame_end());
        let run = |first, count| PageRun { first: PageNumber::new(first), count };
        for run in [run(3, 1), run(10, 300), run(1000, 255)] {
            pages.insert_run(run);
        }
        memory.copy_in(run(300, 1), &[9; PAGE_BYTES]);
        let batches: Vec<Batch> = batches(&pages, &memory, || pool.take()).collect();
        let all: Vec<u64> = batches
            .iter()
            .flat_map(|batch| &batch.runs)
            .flat_map(|run| run.pages())
            .map(PageNumber::get)
            .collect();
        assert_eq!(all, pages.pages().map(PageNumber::get).collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| batch.pages() <= CHUNK_PAGES_MAX as u64));
        let nines = batches.iter().flat_map(|batch| {
            let pages = batch.pages() as usize * PAGE_BYTES;
            batch.block.as_ref()[..pages].iter()
        });
        assert_eq!(nines.filter(|byte| **byte == 9).count(), PAGE_BYTES);
    }
}
