//! Guest RAM: anonymous private memory with a hole below 4 GiB.
//!
//! ```text
//!   0          up to 3 GiB          4 GiB          the rest of RAM
//!   ├── region 0 ──┤ ...... hole ......├── region 1 ──┤
//! ```
//!
//! This is the crate's one place for bulk memory. What goes through
//! [`GuestRam::memory`] (devices, boot) is remembered in [`WrittenPages`];
//! what goes through [`GuestRam::copy_in`] and [`GuestRam::zero`] (applying a
//! checkpoint) is not: it is the image, not a change to it.
//!
//! The guest may write any byte at any time. Copies of single bytes may then
//! mix old and new ones; whoever needs a consistent page pauses the guest or
//! finds the page dirty again.

pub mod guard;
pub mod written;

use std::{io, ops::ControlFlow, thread};

use checkpoint::{MemoryLayout, PAGE_BYTES, PageNumber, PageRun, PageSet};
use thiserror::Error;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileSlice,
    bitmap::NewBitmap, mmap::MmapRegionBuilder,
};

use self::written::WrittenPages;

/// Guest memory whose writes by the VMM are remembered.
pub type GuestMemory = GuestMemoryMmap<WrittenPages>;

/// Least RAM of a guest, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Most RAM of a guest, in bytes: KVM's limit of 2^31 pages a slot is far above.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// RAM ends here at the latest below 4 GiB; devices live above.
pub const LOW_END: u64 = 3 << 30;
/// RAM that does not fit below [`LOW_END`] begins here.
pub const HIGH_START: u64 = 4 << 30;

/// Why there is no guest RAM.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is none that a guest can have.
    #[error(
        "guest memory of {0} bytes is not possible: choose a multiple of 2 MiB from 64 MiB to 1 TiB"
    )]
    Size(u64),
    /// The kernel did not give it.
    #[error(
        "cannot map {bytes} bytes of guest memory: free memory, or raise `ulimit -v` and vm.overcommit_memory"
    )]
    Map {
        /// How much was asked for.
        bytes: u64,
        /// What the kernel said.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The kernel refused advice about it.
    #[error("cannot set up guest memory with madvise({advice})")]
    Advise {
        /// Which advice.
        advice: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A guest's RAM.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemory,
    layout: MemoryLayout,
}

impl GuestRam {
    /// Maps `bytes` of RAM, untouched. With `hugepages` the kernel is asked
    /// for transparent huge pages.
    ///
    /// # Errors
    ///
    /// [`MemoryError`]
    pub fn new(bytes: u64, hugepages: bool) -> Result<Self, MemoryError> {
        let in_range = (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes);
        if !in_range || !bytes.is_multiple_of(2 << 20) {
            return Err(MemoryError::Size(bytes));
        }
        let mut ranges = vec![(0, bytes.min(LOW_END))];
        if bytes > LOW_END {
            ranges.push((HIGH_START, bytes - LOW_END));
        }
        let mut regions = Vec::new();
        for (start, len) in &ranges {
            let mapping = map(*len)?;
            advise(&mapping, libc::MADV_DONTDUMP, "dontdump")?;
            if hugepages {
                advise(&mapping, libc::MADV_HUGEPAGE, "hugepage")?;
            }
            let region = GuestRegionMmap::new(mapping, GuestAddress(*start));
            regions.push(region.expect("the ranges end below 2^41"));
        }
        let memory = GuestMemory::from_regions(regions).expect("the ranges rise and are apart");
        let runs = ranges.iter().map(|(start, len)| PageRun {
            first: PageNumber::of_address(*start),
            count: len / PAGE_BYTES as u64,
        });
        let layout = MemoryLayout::new(runs.collect()).expect("the ranges rise and are apart");
        Ok(Self { memory, layout })
    }

    /// The memory as devices see it; writes through it are remembered.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Where RAM lies.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Each region: first frame, host address, bytes. For memory slots.
    pub(crate) fn host_regions(&self) -> impl Iterator<Item = (PageRun, u64)> {
        let runs = self.layout.regions().iter().copied();
        runs.zip(self.memory.iter().map(|region| region.as_ptr() as u64))
    }

    /// Copies the pages of `run` to `to`.
    ///
    /// # Panics
    ///
    /// If `run` is not RAM, or `to` is not as long.
    pub fn copy_out(&self, run: PageRun, to: &mut [u8]) {
        let pages = self.slice(run);
        assert_eq!(pages.len(), to.len(), "a buffer of another length than its pages");
        pages.copy_to(to);
    }

    /// Makes `from` the content of the pages of `run`.
    ///
    /// # Panics
    ///
    /// If `run` is not RAM, or `from` is not as long.
    pub fn copy_in(&self, run: PageRun, from: &[u8]) {
        let pages = self.slice(run);
        assert_eq!(pages.len(), from.len(), "a buffer of another length than its pages");
        pages.copy_from(from);
    }

    /// Makes the pages of `run` zero.
    ///
    /// # Panics
    ///
    /// If `run` is not RAM.
    pub fn zero(&self, run: PageRun) {
        let pages = self.slice(run);
        let guard = pages.ptr_guard_mut();
        // SAFETY: `slice` proved that these bytes are mapped RAM. The guest may
        // write them at the same time; no Rust reference to them exists.
        unsafe { std::ptr::write_bytes(guard.as_ptr(), 0, pages.len()) };
    }

    /// Adds the pages that the VMM has written since the last harvest to
    /// `pages`, and forgets them. Returns how many there were. May be called
    /// while devices write.
    ///
    /// # Panics
    ///
    /// If `pages` is smaller than this guest.
    pub fn harvest_vmm_writes(&self, pages: &mut PageSet) -> u64 {
        let mut count = 0;
        for (region, run) in self.memory.iter().zip(self.layout.regions()) {
            let first_word = word_of(run.first);
            (**region).bitmap().take_words(|index, bits| {
                count += u64::from(bits.count_ones());
                pages.insert_word(first_word + index, bits);
            });
        }
        count
    }

    /// The BLAKE3 digest of each page, in rising order, `run_pages` at a time
    /// to `f`, with the run that they belong to, until `f` breaks off. For
    /// comparing two images.
    pub fn digest_pages(
        &self,
        run_pages: u64,
        mut f: impl FnMut(PageRun, &[[u8; 32]]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut buffer = vec![0; PAGE_BYTES];
        let mut digests = Vec::new();
        for run in self.layout.all_pages().runs(run_pages.max(1)) {
            digests.clear();
            for page in run.pages() {
                self.copy_out(PageRun { first: page, count: 1 }, &mut buffer);
                digests.push(*blake3::hash(&buffer).as_bytes());
            }
            f(run, &digests)?;
        }
        ControlFlow::Continue(())
    }

    /// Touches all memory with `threads` threads, keeping its content, so that
    /// no first touch falls into a pause or a promotion.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Advise`] if the kernel cannot (memory is short).
    pub fn touch(&self, threads: usize) -> Result<(), MemoryError> {
        const PIECE_PAGES: u64 = (64 << 20) / PAGE_BYTES as u64;
        let pieces: Vec<PageRun> = self.layout.all_pages().runs(PIECE_PAGES).collect();
        let share = pieces.len().div_ceil(threads.max(1));
        thread::scope(|scope| {
            let workers: Vec<_> = pieces
                .chunks(share)
                .map(|mine| scope.spawn(|| mine.iter().try_for_each(|run| self.populate(*run))))
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("touching cannot panic"))
        })
    }

    fn populate(&self, run: PageRun) -> Result<(), MemoryError> {
        let pages = self.slice(run);
        let address = pages.ptr_guard_mut().as_ptr();
        // SAFETY: the range is mapped RAM, and this advice keeps its content.
        let result =
            unsafe { libc::madvise(address.cast(), pages.len(), libc::MADV_POPULATE_WRITE) };
        if result == 0 {
            return Ok(());
        }
        Err(MemoryError::Advise { advice: "populate_write", source: io::Error::last_os_error() })
    }

    /// The bytes of `run`, without the bitmap of written pages.
    fn slice(&self, run: PageRun) -> VolatileSlice<'_, ()> {
        assert!(self.layout.contains(run), "pages {run:?} are no RAM of this guest");
        let slice = self
            .memory
            .get_slice(GuestAddress(run.first.address()), run.count as usize * PAGE_BYTES);
        let slice = slice.expect("the layout says that it is RAM");
        let address = slice.ptr_guard_mut().as_ptr();
        // SAFETY: these bytes are mapped as long as `self.memory` is, which the
        // result borrows; only the bitmap is left away.
        unsafe { VolatileSlice::new(address, slice.len()) }
    }
}

/// The index of the 64-page word that begins with `first`.
fn word_of(first: PageNumber) -> usize {
    assert!(first.get().is_multiple_of(64), "regions begin at multiples of 256 KiB");
    (first.get() / 64) as usize
}

fn map(bytes: u64) -> Result<MmapRegion<WrittenPages>, MemoryError> {
    let written = WrittenPages::with_len(bytes as usize);
    MmapRegionBuilder::new_with_bitmap(bytes as usize, written)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .map_err(|source| MemoryError::Map { bytes, source })
}

fn advise(
    mapping: &MmapRegion<WrittenPages>,
    advice: libc::c_int,
    name: &'static str,
) -> Result<(), MemoryError> {
    // SAFETY: the range is this mapping; neither advice changes its content.
    let result = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
    if result == 0 {
        return Ok(());
    }
    Err(MemoryError::Advise { advice: name, source: io::Error::last_os_error() })
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first: PageNumber::new(first), count }
    }

    #[test]
    fn large_memory_has_a_hole() {
        let ram = GuestRam::new(17 << 30, false).unwrap();
        let gib = (1 << 30) / PAGE_BYTES as u64;
        assert_eq!(ram.layout().regions(), [run(0, 3 * gib), run(4 * gib, 14 * gib)]);
        ram.copy_in(run(18 * gib - 1, 1), &[7; PAGE_BYTES]);
        let mut back = [0; PAGE_BYTES];
        ram.copy_out(run(18 * gib - 1, 1), &mut back);
        assert_eq!(back, [7; PAGE_BYTES]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bytes in [0, 32 << 20, (64 << 20) + 1, (1 << 40) + (2 << 20)] {
            assert!(matches!(GuestRam::new(bytes, false), Err(MemoryError::Size(_))), "{bytes}");
        }
    }

    #[test]
    fn only_device_writes_are_remembered() {
        let ram = GuestRam::new(4 << 30, true).unwrap();
        ram.copy_in(run(3, 2), &[1; 2 * PAGE_BYTES]);
        ram.zero(run(3, 1));
        let high = HIGH_START / PAGE_BYTES as u64 + 5;
        ram.memory().write_obj(1_u64, GuestAddress((high + 1) * 4096 - 4)).unwrap();
        ram.memory().write_obj(1_u64, GuestAddress(7 * 4096)).unwrap();
        let mut pages = PageSet::new(ram.layout().frame_end());
        assert_eq!(ram.harvest_vmm_writes(&mut pages), 3);
        let found: Vec<u64> = pages.pages().map(PageNumber::get).collect();
        assert_eq!(found, [7, high, high + 1]);
        assert_eq!(ram.harvest_vmm_writes(&mut pages), 0);
    }

    #[test]
    fn touching_keeps_the_content() {
        let ram = GuestRam::new(64 << 20, false).unwrap();
        ram.copy_in(run(9, 1), &[5; PAGE_BYTES]);
        ram.touch(2).unwrap();
        let mut digests = Vec::new();
        let whole = ram.digest_pages(1000, |_, of_run| {
            digests.extend_from_slice(of_run);
            ControlFlow::Continue(())
        });
        assert!(whole.is_continue());
        assert_eq!(digests.len() as u64, ram.layout().page_count());
        assert_eq!(digests[9], *blake3::hash(&[5; PAGE_BYTES]).as_bytes());
        assert_eq!(digests[8], *blake3::hash(&[0; PAGE_BYTES]).as_bytes());
    }

    #[test]
    fn digests_are_broken_off_between_two_runs() {
        let ram = GuestRam::new(64 << 20, false).unwrap();
        let mut runs = Vec::new();
        let whole = ram.digest_pages(16, |run, digests| {
            runs.push((run, digests.len()));
            if runs.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(whole.is_break());
        assert_eq!(runs, [0, 16, 32].map(|first| (run(first, 16), 16)));
    }
}
