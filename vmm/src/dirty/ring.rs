//! Dirty rings: KVM writes each page that a vCPU dirties into that vCPU's ring.
//!
//! ```text
//!   entry: flags:u32 slot:u32 offset:u64     flags:  0 ─KVM─▶ DIRTY ─we─▶ RESET ─KVM─▶ 0
//! ```
//!
//! `KVM_RESET_DIRTY_RINGS` protects the collected pages again. Between the
//! two a page may be written unnoticed, so it is copied only after the reset.
//! Everything is collected into `spilled` first and leaves it only after a
//! successful reset. (Linux `Documentation/virt/kvm/api.rst`, 8.29.)

use std::{
    io, ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use checkpoint::{PageNumber, PageSet};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET,
    kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{DirtyLogError, STORM_FULLS, Slot};
use crate::ioctl;

/// `KVM_DIRTY_GFN_F_DIRTY`.
const DIRTY: u32 = 1;
/// `KVM_DIRTY_GFN_F_RESET`.
const RESET: u32 = 2;

#[derive(Debug)]
pub(super) struct Rings {
    entries: u32,
    rings: Vec<Ring>,
    /// Collected and not yet handed to a harvest.
    spilled: PageSet,
    /// Full rings in a row that held nothing new.
    fruitless: u32,
}

impl Rings {
    pub(super) fn enable(
        vm: &VmFd,
        acq_rel: bool,
        entries: u32,
        frame_end: u64,
    ) -> Result<Self, DirtyLogError> {
        let cap = if acq_rel { KVM_CAP_DIRTY_LOG_RING_ACQ_REL } else { KVM_CAP_DIRTY_LOG_RING };
        let mut cap = kvm_enable_cap { cap, ..Default::default() };
        cap.args[0] = u64::from(entries) * size_of::<kvm_dirty_gfn>() as u64;
        vm.enable_cap(&cap).map_err(|error| DirtyLogError::Kvm {
            call: "KVM_ENABLE_CAP(DIRTY_LOG_RING)",
            source: error.into(),
        })?;
        Ok(Self { entries, rings: Vec::new(), spilled: PageSet::new(frame_end), fruitless: 0 })
    }

    pub(super) fn add(&mut self, vcpu: &VcpuFd) -> Result<(), DirtyLogError> {
        let ring =
            Ring::map(vcpu, self.entries).map_err(DirtyLogError::at("mmap of a dirty ring"))?;
        self.rings.push(ring);
        Ok(())
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    pub(super) fn harvest(
        &mut self,
        vm: &VmFd,
        slots: &[Slot],
        pages: &mut PageSet,
    ) -> Result<u64, DirtyLogError> {
        let collected = self.collect(vm, slots);
        let found = self.spilled.len();
        pages.union(&self.spilled);
        collected?;
        self.spilled.clear();
        self.fruitless = 0;
        Ok(found)
    }

    /// Empties full rings into `spilled`; `true` when a storm begins.
    pub(super) fn empty(&mut self, vm: &VmFd, slots: &[Slot]) -> Result<bool, DirtyLogError> {
        let before = self.spilled.len();
        self.collect(vm, slots)?;
        self.fruitless = if self.spilled.len() > before { 0 } else { self.fruitless + 1 };
        Ok(self.fruitless == STORM_FULLS)
    }

    /// Forgets everything collected so far.
    pub(super) fn discard(&mut self, vm: &VmFd) -> Result<(), DirtyLogError> {
        self.collect(vm, &[])?;
        self.spilled.clear();
        Ok(())
    }

    fn collect(&mut self, vm: &VmFd, slots: &[Slot]) -> Result<(), DirtyLogError> {
        let mut any = false;
        for ring in &mut self.rings {
            while let Some((slot, offset)) = ring.next() {
                any = true;
                // The upper half names the address space (SMM has its own).
                let run = slots.get((slot & 0xffff) as usize).map(|slot| slot.run);
                if let Some(run) = run.filter(|run| offset < run.count) {
                    self.spilled.insert(PageNumber::new(run.first.get() + offset));
                }
            }
        }
        if !any {
            return Ok(());
        }
        loop {
            // A pending signal (a kick) ends the call early; it is delivered
            // before the next one.
            match ioctl::reset_dirty_rings(vm) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map_err(DirtyLogError::at("KVM_RESET_DIRTY_RINGS")),
            }
        }
    }
}

/// One vCPU's ring, mapped.
#[derive(Debug)]
struct Ring {
    gfns: *mut kvm_dirty_gfn,
    entries: u32,
    next: u32,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    fn map(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
        let bytes = entries as usize * size_of::<kvm_dirty_gfn>();
        let address = ioctl::map_vcpu_pages(vcpu, KVM_DIRTY_LOG_PAGE_OFFSET, bytes)?;
        Ok(Self { gfns: address.cast(), entries, next: 0 })
    }

    /// Collects one entry: slot and offset.
    fn next(&mut self) -> Option<(u32, u64)> {
        // SAFETY: `next` is below `entries`, so this is within the mapping.
        let gfn = unsafe { self.gfns.add(self.next as usize) };
        // SAFETY: `flags` is an aligned u32 in the mapping that KVM and we
        // access as an atomic.
        let flags = unsafe { AtomicU32::from_ptr(ptr::addr_of_mut!((*gfn).flags)) };
        if flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
            return None;
        }
        // SAFETY: KVM does not touch an entry between DIRTY and RESET; the
        // load above orders these reads behind its writes.
        let found = unsafe {
            (
                ptr::addr_of!((*gfn).slot).read_volatile(),
                ptr::addr_of!((*gfn).offset).read_volatile(),
            )
        };
        flags.store(RESET, Ordering::Release);
        self.next = (self.next + 1) % self.entries;
        Some(found)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let bytes = self.entries as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: this is the mapping made in `map`, and nothing else has it.
        unsafe { libc::munmap(self.gfns.cast(), bytes) };
    }
}
