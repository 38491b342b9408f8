//! Pages that are write-protected until they are copied: whoever writes one waits
//! until it is. Mirrors `vmm/src/memory/guard.rs`, and the rescuer of
//! `tools/src/primary/copier.rs`.

use std::rc::Rc;

use checkpoint::{PageNumber, PageRun, PageSet};

use super::memory::Page;

/// See the module's head.
#[derive(Debug)]
pub(in crate::simulation) struct WriteGuard {
    /// Protected, and not copied yet.
    pending: PageSet,
    /// Copied because somebody waited to write them.
    rescued: Vec<(PageNumber, Rc<Page>)>,
    /// A mutation: nobody waits.
    open: bool,
}

impl WriteGuard {
    pub(super) fn new(frame_end: u64) -> Self {
        Self { pending: PageSet::new(frame_end), rescued: Vec::new(), open: false }
    }

    /// Protects `pages`; the guest is paused. `open` is false but in a mutation.
    pub(in crate::simulation) fn protect(&mut self, pages: &PageSet, open: bool) {
        assert!(self.pending.is_empty() && self.rescued.is_empty(), "one capture at a time");
        self.pending.union(pages);
        self.open = open;
    }

    /// Somebody is about to write a page: it is copied before.
    pub(super) fn fault(&mut self, page: PageNumber, content: impl FnOnce() -> Rc<Page>) {
        if !self.open && self.pending.remove(page) {
            self.rescued.push((page, content()));
        }
    }

    /// Takes pages to copy and release.
    pub(in crate::simulation) fn take(&mut self, pages_max: u64) -> Vec<PageRun> {
        self.pending.take_runs(pages_max)
    }

    /// Takes what was copied for somebody who waited, once nothing else is left.
    pub(in crate::simulation) fn take_rescued(&mut self) -> Option<Vec<(PageNumber, Rc<Page>)>> {
        self.pending.is_empty().then(|| std::mem::take(&mut self.rescued))
    }

    /// Nobody needs the pages any more.
    pub(in crate::simulation) fn release_all(&mut self) {
        self.pending.clear();
        self.rescued.clear();
    }
}
