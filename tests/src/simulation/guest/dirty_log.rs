//! Which pages were written: by the guest, as KVM logs them, and by the VMM,
//! which KVM does not see. Mirrors `vmm/src/dirty` and the harvests of
//! `vmm/src/vm.rs`.

use checkpoint::{PageNumber, PageSet};

/// See the module's head.
#[derive(Debug)]
pub(in crate::simulation) struct DirtyLog {
    on: bool,
    guest: PageSet,
    vmm: PageSet,
    /// A harvest of cold pages can leave the hot ones: the bitmap can, the ring
    /// cannot.
    keeps_hot: bool,
}

impl DirtyLog {
    pub(in crate::simulation) fn new(frame_end: u64, keeps_hot: bool) -> Self {
        let empty = || PageSet::new(frame_end);
        Self { on: false, guest: empty(), vmm: empty(), keeps_hot }
    }

    pub(in crate::simulation) fn start(&mut self) {
        self.guest.clear();
        self.vmm.clear();
        self.on = true;
    }

    pub(in crate::simulation) fn stop(&mut self) {
        self.on = false;
    }

    pub(in crate::simulation) fn guest_writes(&mut self, page: PageNumber) {
        if self.on {
            self.guest.insert(page);
        }
    }

    pub(in crate::simulation) fn vmm_writes(&mut self, page: PageNumber) {
        self.vmm.insert(page);
    }

    /// What was written since the last harvest; `vmm_too` is always true but in
    /// a mutation.
    pub(in crate::simulation) fn harvest(&mut self, pages: &mut PageSet, vmm_too: bool) {
        if self.on {
            pages.union(&self.guest);
            self.guest.clear();
        }
        if vmm_too {
            pages.union(&self.vmm);
        }
        self.vmm.clear();
    }

    /// What the guest wrote and is not hot.
    pub(in crate::simulation) fn harvest_cold(&mut self, pages: &mut PageSet, hot: &PageSet) {
        if !self.on {
            return;
        }
        pages.union(&self.guest);
        self.guest.clear();
        if self.keeps_hot {
            let mut kept = pages.clone();
            kept.intersect(hot);
            for page in kept.pages() {
                pages.remove(page);
            }
            self.guest.union(&kept);
        }
    }
}
