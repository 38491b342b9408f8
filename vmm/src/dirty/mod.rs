//! Which pages the guest has written: KVM's dirty log behind one interface.
//!
//! ```text
//!            start                    harvest: read and clear
//!   Off ─────────────▶ Logging ──────────────────────────────▶ PageSet
//!    ▲                    │
//!    └──────── stop ──────┘
//! ```
//!
//! Invariants:
//! - Once [`DirtyLog::start`] has returned, every page that the guest writes
//!   is in a later harvest. What was written before is in none.
//! - A page is added to the caller's set before it is cleared; a clear that
//!   fails leaves it to be harvested again.
//! - Harvests may run at any time, also while vCPUs run. The content of a page
//!   must be copied after the harvest that named it.
//!
//! Which method is used is fixed when the VM is made: KVM refuses the bitmap
//! once it has rings. Rings cost what was dirtied; the bitmap costs a bit for
//! each page of RAM. Writes of the VMM itself are in neither; see
//! [`crate::memory::GuestRam::harvest_vmm_writes`].

mod bitmap;
mod ring;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use checkpoint::{PageRun, PageSet};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;

use self::{bitmap::Bitmaps, ring::Rings};
use crate::{
    host::{Backend, Capabilities},
    memory::GuestRam,
};

/// Entries of a vCPU's dirty ring.
const RING_ENTRIES: u32 = 16_384;
/// A ring that fills this often in a row without a page that is new since the
/// last harvest makes a storm: the guest is going nowhere.
const STORM_FULLS: u32 = 256;

/// How dirty pages are to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyTracking {
    /// The ring where it works (not on PVM), the bitmap elsewhere.
    #[default]
    Auto,
    /// A ring for each vCPU; refused on PVM, where rings lose pages.
    Ring,
    /// A bitmap for all of RAM.
    Bitmap,
}

/// How dirty pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyLogKind {
    /// Dirty rings of this many entries.
    Ring {
        /// Entries of each vCPU's ring.
        entries: u32,
    },
    /// The bitmap; `manual` if a harvest clears and protects only what it found.
    Bitmap {
        /// Whether clearing is separate from reading.
        manual: bool,
    },
}

impl fmt::Display for DirtyLogKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring { entries } => write!(f, "ring of {entries} entries"),
            Self::Bitmap { manual: true } => f.write_str("bitmap, manual protect"),
            Self::Bitmap { manual: false } => f.write_str("bitmap"),
        }
    }
}

/// Why the dirty log does not work.
#[derive(Debug, Error)]
pub enum DirtyLogError {
    /// Rings were asked for, and KVM has none.
    #[error("this KVM has no dirty rings: set dirty tracking to `auto` or `bitmap`")]
    NoRing,
    /// Rings were asked for, and this KVM loses pages in them.
    #[error("dirty rings lose pages on the pvm backend: set dirty tracking to `auto` or `bitmap`")]
    LossyRing,
    /// A call failed.
    #[error("the dirty log failed at {call}; the VM must be resynchronised")]
    Kvm {
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DirtyLogError {
    fn at(call: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Kvm { call, source }
    }
}

/// A range of RAM that KVM knows by number.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u32,
    run: PageRun,
    host_address: u64,
}

impl Slot {
    /// Where its bits begin in a [`PageSet`].
    fn first_word(&self) -> usize {
        (self.run.first.get() / 64) as usize
    }

    fn set(&self, vm: &VmFd, logging: bool) -> Result<(), DirtyLogError> {
        let region = kvm_userspace_memory_region {
            slot: self.number,
            flags: if logging { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: self.run.first.address(),
            memory_size: self.run.count * checkpoint::PAGE_BYTES as u64,
            userspace_addr: self.host_address,
        };
        // SAFETY: the host range is the guest's RAM, which `DirtyLog` keeps
        // mapped for longer than it keeps the VM's descriptor open.
        let result = unsafe { vm.set_user_memory_region(region) };
        result.map_err(|error| DirtyLogError::Kvm {
            call: "KVM_SET_USER_MEMORY_REGION",
            source: error.into(),
        })
    }
}

#[derive(Debug)]
enum Method {
    Ring(Rings),
    Bitmap(Bitmaps),
}

#[derive(Debug)]
struct Log {
    method: Method,
    logging: bool,
}

/// The dirty log of one VM. Shared by whoever harvests and by the vCPUs,
/// which empty full rings.
#[derive(Debug)]
pub struct DirtyLog {
    vm: Arc<VmFd>,
    slots: Vec<Slot>,
    log: Mutex<Log>,
    /// What the slots are in: mapped for as long as `vm` is open.
    _ram: Arc<GuestRam>,
}

impl DirtyLog {
    /// Gives `ram` to the VM and chooses the method. Must come before the
    /// first vCPU is created.
    pub(crate) fn new(
        vm: Arc<VmFd>,
        ram: &Arc<GuestRam>,
        capabilities: &Capabilities,
        tracking: DirtyTracking,
    ) -> Result<Self, DirtyLogError> {
        let regions = ram.host_regions().enumerate();
        let slots: Vec<Slot> = regions
            .map(|(number, (run, host_address))| Slot { number: number as u32, run, host_address })
            .collect();
        let has_ring = capabilities.dirty_ring_entries_max > 0;
        let ring = match tracking {
            DirtyTracking::Auto => has_ring && capabilities.backend != Backend::Pvm,
            DirtyTracking::Ring if !has_ring => return Err(DirtyLogError::NoRing),
            // Its emulator logs each store at CPL0 and looks for a full ring
            // too rarely: entries are overwritten (seen on Linux 6.18, with a
            // kernel warning in `kvm_dirty_ring_push`).
            DirtyTracking::Ring if capabilities.backend == Backend::Pvm => {
                return Err(DirtyLogError::LossyRing);
            }
            DirtyTracking::Ring => true,
            DirtyTracking::Bitmap => false,
        };
        let method = if ring {
            let entries = RING_ENTRIES.min(capabilities.dirty_ring_entries_max);
            let acq_rel = capabilities.dirty_ring_acq_rel;
            Method::Ring(Rings::enable(&vm, acq_rel, entries, ram.layout().frame_end())?)
        } else {
            Method::Bitmap(Bitmaps::enable(&vm, capabilities.manual_protect, &slots)?)
        };
        slots.iter().try_for_each(|slot| slot.set(&vm, false))?;
        let log = Mutex::new(Log { method, logging: false });
        Ok(Self { vm, slots, log, _ram: Arc::clone(ram) })
    }

    /// Maps the ring of a new vCPU.
    pub(crate) fn add_vcpu(&self, vcpu: &VcpuFd) -> Result<(), DirtyLogError> {
        match &mut self.lock().method {
            Method::Ring(rings) => rings.add(vcpu),
            Method::Bitmap(_) => Ok(()),
        }
    }

    /// How dirty pages are found.
    #[must_use]
    pub fn kind(&self) -> DirtyLogKind {
        match &self.lock().method {
            Method::Ring(rings) => DirtyLogKind::Ring { entries: rings.entries() },
            Method::Bitmap(bitmaps) => DirtyLogKind::Bitmap { manual: bitmaps.is_manual() },
        }
    }

    /// Begins to log. Nothing that was written before is ever harvested.
    /// Does nothing if it logs already.
    ///
    /// # Errors
    ///
    /// [`DirtyLogError`]; then nothing is logged.
    pub fn start(&self) -> Result<(), DirtyLogError> {
        let mut log = self.lock();
        if log.logging {
            return Ok(());
        }
        let started =
            self.slots.iter().try_for_each(|slot| slot.set(&self.vm, true)).and_then(|()| {
                match &mut log.method {
                    Method::Ring(rings) => rings.discard(&self.vm),
                    Method::Bitmap(bitmaps) => bitmaps.arm(&self.vm, &self.slots),
                }
            });
        if let Err(error) = started {
            let _ = self.slots.iter().try_for_each(|slot| slot.set(&self.vm, false));
            return Err(error);
        }
        log.logging = true;
        Ok(())
    }

    /// Ends logging: the guest runs at full speed, and what was not harvested
    /// is forgotten.
    ///
    /// # Errors
    ///
    /// [`DirtyLogError`]
    pub fn stop(&self) -> Result<(), DirtyLogError> {
        let mut log = self.lock();
        log.logging = false;
        self.slots.iter().try_for_each(|slot| slot.set(&self.vm, false))?;
        match &mut log.method {
            Method::Ring(rings) => rings.discard(&self.vm),
            Method::Bitmap(_) => Ok(()),
        }
    }

    /// Adds the pages written since the last harvest to `pages` and clears
    /// them. Returns how many the log named. Without logging there are none.
    ///
    /// # Errors
    ///
    /// [`DirtyLogError`]: `pages` then has what was found so far, and what was
    /// not cleared will be found again.
    ///
    /// # Panics
    ///
    /// If `pages` is smaller than this guest.
    pub fn harvest(&self, pages: &mut PageSet) -> Result<u64, DirtyLogError> {
        let mut log = self.lock();
        if !log.logging {
            return Ok(0);
        }
        match &mut log.method {
            Method::Ring(rings) => rings.harvest(&self.vm, &self.slots, pages),
            Method::Bitmap(bitmaps) => bitmaps.harvest(&self.vm, &self.slots, pages, None),
        }
    }

    /// As [`DirtyLog::harvest`], but leaves `hot` pages in the log where that is
    /// possible (the bitmap with manual protection): the guest then goes on
    /// writing them without a fault. For harvests while the guest runs.
    ///
    /// # Errors
    ///
    /// As [`DirtyLog::harvest`].
    ///
    /// # Panics
    ///
    /// As [`DirtyLog::harvest`].
    pub fn harvest_cold(&self, pages: &mut PageSet, hot: &PageSet) -> Result<u64, DirtyLogError> {
        let mut log = self.lock();
        if !log.logging {
            return Ok(0);
        }
        match &mut log.method {
            Method::Ring(rings) => rings.harvest(&self.vm, &self.slots, pages),
            Method::Bitmap(bitmaps) => bitmaps.harvest(&self.vm, &self.slots, pages, Some(hot)),
        }
    }

    /// A vCPU left KVM because its ring is full: empties the rings into what
    /// the next harvest will find. Returns whether a storm was noticed now.
    pub(crate) fn empty_full_ring(&self) -> Result<bool, DirtyLogError> {
        match &mut self.lock().method {
            Method::Ring(rings) => rings.empty(&self.vm, &self.slots),
            Method::Bitmap(_) => Ok(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
