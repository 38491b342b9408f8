//! Guest memory: some pages on both sides of a hole, shared until written.
//!
//! A capture of all of it is a handful of counted references, so that the
//! witness can keep what every epoch really was.

use std::{cell::RefCell, rc::Rc};

use checkpoint::{MemoryLayout, PAGE_BYTES, PageNumber, PageRun, image::PageStore};

/// The content of one page.
pub(in crate::simulation) type Page = [u8; PAGE_BYTES];

/// Where the pages above the hole begin.
const ABOVE_HOLE: u64 = 70;

/// See the module's head. The place of a page is its index, holes left out.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Memory {
    pages: Vec<Rc<Page>>,
    below_hole: usize,
    zero: Rc<Page>,
}

/// A layout with so many pages below and above a hole.
pub(in crate::simulation) fn layout(pages: [u64; 2]) -> MemoryLayout {
    let run = |first, count| PageRun { first: PageNumber::new(first), count };
    let regions = vec![run(0, pages[0]), run(ABOVE_HOLE, pages[1])];
    MemoryLayout::new(regions).expect("two regions with a hole")
}

impl Memory {
    /// All zero.
    pub(in crate::simulation) fn new(pages: [u64; 2]) -> Self {
        let zero = Rc::new([0; PAGE_BYTES]);
        let count = (pages[0] + pages[1]) as usize;
        Self { pages: vec![zero.clone(); count], below_hole: pages[0] as usize, zero }
    }

    pub(in crate::simulation) fn len(&self) -> usize {
        self.pages.len()
    }

    /// The page at `place`, by number.
    pub(in crate::simulation) fn number(&self, place: usize) -> PageNumber {
        if place < self.below_hole {
            PageNumber::new(place as u64)
        } else {
            PageNumber::new(ABOVE_HOLE + (place - self.below_hole) as u64)
        }
    }

    fn place(&self, page: PageNumber) -> usize {
        let frame = page.get() as usize;
        if frame < self.below_hole { frame } else { frame - ABOVE_HOLE as usize + self.below_hole }
    }

    pub(in crate::simulation) fn page(&self, place: usize) -> &Page {
        &self.pages[place]
    }

    pub(in crate::simulation) fn page_mut(&mut self, place: usize) -> &mut Page {
        Rc::make_mut(&mut self.pages[place])
    }

    pub(in crate::simulation) fn set_zero(&mut self, place: usize) {
        self.pages[place] = self.zero.clone();
    }

    /// Whether the two share the page at `place`: then it is equal.
    pub(in crate::simulation) fn shares(&self, other: &Self, place: usize) -> bool {
        Rc::ptr_eq(&self.pages[place], &other.pages[place])
    }

    /// Copies a run out, as `vmm`'s memory does.
    pub(in crate::simulation) fn copy_out(&self, run: PageRun, to: &mut [u8]) {
        for (page, to) in run.pages().zip(to.chunks_mut(PAGE_BYTES)) {
            to.copy_from_slice(&self.pages[self.place(page)][..]);
        }
    }

    /// BLAKE3 over all of it, as a verification takes it.
    pub(in crate::simulation) fn digest(&self) -> checkpoint::chunk::Digest {
        let mut hasher = blake3::Hasher::new();
        for page in &self.pages {
            hasher.update(&page[..]);
        }
        hasher.finalize().into()
    }
}

/// Memory that an image is applied to, and which places were written since
/// somebody looked.
#[derive(Debug)]
pub(in crate::simulation) struct ImageMemory {
    memory: RefCell<Memory>,
    written: RefCell<u64>,
}

impl ImageMemory {
    pub(in crate::simulation) fn new(memory: Memory) -> Self {
        assert!(memory.len() <= 64, "one bit for each page");
        Self { memory: RefCell::new(memory), written: RefCell::new(0) }
    }

    /// Looks at the memory and at which places were written since the last
    /// look: a bit each.
    pub(in crate::simulation) fn look<T>(&self, look: impl FnOnce(&Memory, u64) -> T) -> T {
        look(&self.memory.borrow(), self.written.take())
    }

    /// Looks at the memory, as somebody who does not count.
    pub(in crate::simulation) fn look_only<T>(&self, look: impl FnOnce(&Memory) -> T) -> T {
        look(&self.memory.borrow())
    }

    pub(in crate::simulation) fn into_memory(self) -> Memory {
        self.memory.into_inner()
    }

    fn change(&self, run: PageRun, mut change: impl FnMut(&mut Memory, usize, usize)) {
        let mut memory = self.memory.borrow_mut();
        let mut written = self.written.borrow_mut();
        for (index, page) in run.pages().enumerate() {
            let place = memory.place(page);
            *written |= 1 << place;
            change(&mut memory, place, index);
        }
    }
}

impl PageStore for ImageMemory {
    fn read(&self, run: PageRun, to: &mut [u8]) {
        self.memory.borrow().copy_out(run, to);
    }

    fn write(&self, run: PageRun, from: &[u8]) {
        self.change(run, |memory, place, index| {
            let content = &from[index * PAGE_BYTES..(index + 1) * PAGE_BYTES];
            memory.page_mut(place).copy_from_slice(content);
        });
    }

    fn zero(&self, run: PageRun) {
        self.change(run, |memory, place, _| memory.set_zero(place));
    }
}
