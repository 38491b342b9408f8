//! What this host's KVM can do, and why not.
//!
//! Everything optional is asked for here, once, by capability; the rest of the
//! crate looks at [`Host`]. Nothing depends on a particular backend.

mod cpuid;
pub mod feature;
pub mod fingerprint;
mod guest_cpu;
pub mod model;
mod scratch;

use std::{fmt, fs, io, path::Path};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_SREGS2, KVM_CLOCK_TSC_STABLE,
};
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

pub(crate) use self::guest_cpu::GuestCpu;
pub use self::guest_cpu::ModelOffer;
use self::{model::ModelError, scratch::Scratch};
use crate::ioctl;

/// Why KVM cannot be used.
#[derive(Debug, Error)]
pub enum HostError {
    /// `/dev/kvm` does not open.
    #[error("cannot open /dev/kvm: load the kvm module, or give this user access to the device")]
    Open(#[source] io::Error),
    /// KVM speaks another version of its interface.
    #[error("KVM has API version {0}, and 12 is needed: use a kernel from 2.6.22 on")]
    Version(i32),
    /// Something that every guest needs is missing.
    #[error("this KVM lacks {name}: {reason}")]
    Missing {
        /// What is missing.
        name: &'static str,
        /// What it is needed for.
        reason: &'static str,
    },
    /// A question to KVM failed.
    #[error("KVM does not answer {call}")]
    Ask {
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It does not have the CPU that the guest is to see.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The processor's time stamp counter, as who asks sees it.
#[must_use]
pub fn time_stamp() -> u64 {
    ioctl::host_tsc()
}

/// TSC frequencies within this many parts per million are the same: the kernel
/// itself does not scale below it (`tsc_tolerance_ppm` of the module `kvm`).
const TSC_TOLERANCE_PPM: u32 = 250;

/// How KVM runs guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// Shadow paging without hardware help (the `kvm_pvm` module).
    Pvm,
    /// A KVM that this build does not recognise.
    Unknown,
}

impl Backend {
    /// Its name, as `romulus doctor` and the handshake have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
            Self::Pvm => "pvm",
            Self::Unknown => "unknown",
        }
    }

    /// Finds the module that is loaded (or built in): KVM has no call for it.
    fn detect() -> Self {
        let has = |module: &str| Path::new("/sys/module").join(module).exists();
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = flags.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let can = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
        // Both may be built in; the CPU has one extension.
        match () {
            () if has("kvm_pvm") => Self::Pvm,
            () if has("kvm_intel") && can("vmx") => Self::Vmx,
            () if has("kvm_amd") && can("svm") => Self::Svm,
            () => Self::Unknown,
        }
    }

    /// Which guests it runs, and why.
    #[must_use]
    pub fn guests(self) -> Guests {
        match self {
            Self::Vmx | Self::Svm => {
                Guests { stock_linux: true, reason: "the processor itself runs guest kernels" }
            }
            Self::Pvm => Guests {
                stock_linux: false,
                reason: "pvm interprets code at CPL0 and does not know all instructions of stock kernels",
            },
            Self::Unknown => {
                Guests { stock_linux: false, reason: "this kind of KVM is not known to be tried" }
            }
        }
    }
}

/// Which guests a KVM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guests {
    /// Kernels of distributions; bare-metal guests run everywhere.
    pub stock_linux: bool,
    /// Why, or why not.
    pub reason: &'static str,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that KVM can do or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub available: bool,
    /// What it is for, or what happens without it.
    pub reason: &'static str,
}

/// What this host's KVM can do. Plain data; ask with [`Host::open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// How guests are run.
    pub backend: Backend,
    /// Entries that a dirty ring may have; 0 without dirty rings.
    pub dirty_ring_entries_max: u32,
    /// Whether the ring has acquire/release semantics.
    pub dirty_ring_acq_rel: bool,
    /// Flags of manual dirty-log protection; 0 without.
    pub manual_protect: u32,
    /// `KVM_GET_SREGS2` is there.
    pub sregs2: bool,
    /// Bytes of the extended state; 4096 without `KVM_CAP_XSAVE2`.
    pub xsave_bytes: usize,
    /// `KVM_CAP_XSAVE2` is there.
    pub xsave2: bool,
    /// Flags of `KVM_GET_CLOCK`.
    pub clock_flags: u32,
    /// The TSC can be scaled for a guest.
    pub tsc_control: bool,
    /// The TSC deadline timer is there.
    pub tsc_deadline: bool,
    /// The host's TSC frequency, in kHz.
    pub tsc_khz: u32,
    /// The guest's TSC can be set: it goes on in another VM.
    pub tsc_offset: bool,
    /// Guests see the CPUID that they are given, their programs included.
    pub cpuid_masks: bool,
    /// Most vCPUs of a guest.
    pub vcpus_max: usize,
}

impl Capabilities {
    /// Everything optional, with its reason, for `romulus doctor`.
    #[must_use]
    pub fn list(&self) -> Vec<Capability> {
        let item = |name, available, reason| Capability { name, available, reason };
        vec![
            item(
                "dirty-ring",
                self.dirty_ring_entries_max > 0,
                "harvesting costs what was dirtied; without it the dirty bitmap is read",
            ),
            item(
                "dirty-ring-usable",
                self.dirty_ring_entries_max > 0 && self.backend != Backend::Pvm,
                "on pvm the ring overflows with stores at CPL0, so the bitmap is used",
            ),
            item(
                "manual-dirty-log-protect",
                self.manual_protect & 1 != 0,
                "harvesting protects only pages that were dirty; without it each harvest protects all",
            ),
            item(
                "dirty-log-initially-set",
                self.manual_protect & 2 != 0,
                "dirty logging starts without stopping the guest for long",
            ),
            item("sregs2", self.sregs2, "page-directory pointers of PAE guests survive a failover"),
            item("xsave2", self.xsave2, "extended state above 4 KiB (AMX) is saved"),
            item(
                "tsc-control",
                self.tsc_control,
                "a guest keeps its TSC frequency on a host with another one; without it hosts must match",
            ),
            item("tsc-deadline-timer", self.tsc_deadline, "precise timers in the guest"),
            item(
                "tsc-offset",
                self.tsc_offset,
                "a guest's TSC goes on across a failover; without it guests see the host's TSC and must take time from kvm-clock",
            ),
            item(
                "kvm-clock-stable",
                self.clock_flags & KVM_CLOCK_TSC_STABLE != 0,
                "kvm-clock is the same on all vCPUs without a lock in the guest",
            ),
            item(
                "cpuid-masks",
                self.cpuid_masks,
                "a cpu model hides what it has not; without it programs see the host's CPU, and hosts must have equal ones",
            ),
        ]
    }

    /// The TSC frequencies, least and most, that a guest can have here, in kHz.
    #[must_use]
    pub fn tsc_khz_possible(&self) -> (u32, u32) {
        if self.tsc_scales() {
            return (1, i32::MAX as u32);
        }
        let tolerance = u64::from(self.tsc_khz) * u64::from(TSC_TOLERANCE_PPM) / 1_000_000;
        (self.tsc_khz - tolerance as u32, self.tsc_khz.saturating_add(tolerance as u32))
    }

    /// Whether a guest's TSC can have another frequency than the host's.
    #[must_use]
    pub fn tsc_scales(&self) -> bool {
        self.tsc_control && self.tsc_offset
    }

    /// Whether a guest's TSC of this frequency runs as the host's does.
    #[must_use]
    pub fn tsc_is_native(&self, tsc_khz: u32) -> bool {
        let (least, most) = Self { tsc_control: false, ..*self }.tsc_khz_possible();
        (least..=most).contains(&tsc_khz)
    }
}

/// An open `/dev/kvm` and what it can do.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    capabilities: Capabilities,
}

impl Host {
    /// Opens `/dev/kvm` and asks what it can do.
    ///
    /// # Errors
    ///
    /// [`HostError`], if it cannot run guests at all.
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(|error| HostError::Open(error.into()))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(HostError::Version(version));
        }
        require(&kvm)?;
        let capabilities = capabilities(&kvm)?;
        Ok(Self { kvm, capabilities })
    }

    /// What it can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}

/// What no guest can do without.
fn require(kvm: &Kvm) -> Result<(), HostError> {
    let needs = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest RAM"),
        (Cap::Irqchip, "KVM_CAP_IRQCHIP", "the interrupt controllers"),
        (Cap::Pit2, "KVM_CAP_PIT2", "the timer"),
        (Cap::PitState2, "KVM_CAP_PIT_STATE2", "saving the timer"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "pausing without a race"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "saving pending interrupts"),
        (Cap::Xsave, "KVM_CAP_XSAVE", "saving vector registers"),
        (Cap::Xcrs, "KVM_CAP_XCRS", "saving vector registers"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS", "saving debug registers"),
        (Cap::MpState, "KVM_CAP_MP_STATE", "guests with several CPUs"),
        (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "a guest clock that goes on after failover"),
        (Cap::Irqfd, "KVM_CAP_IRQFD", "interrupts of virtual devices"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "notifications of virtual devices"),
    ];
    match needs.into_iter().find(|(cap, ..)| !kvm.check_extension(*cap)) {
        Some((_, name, reason)) => Err(HostError::Missing { name, reason }),
        None => Ok(()),
    }
}

fn capabilities(kvm: &Kvm) -> Result<Capabilities, HostError> {
    let raw = |cap: u32| kvm.check_extension_raw(u64::from(cap)).max(0) as u32;
    let acq_rel = raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
    let ring_bytes = if acq_rel > 0 { acq_rel } else { raw(KVM_CAP_DIRTY_LOG_RING) };
    let xsave2 = kvm.check_extension_int(Cap::Xsave2).max(0) as usize;
    let (backend, scratch) = (Backend::detect(), Scratch::new(kvm)?);
    Ok(Capabilities {
        backend,
        dirty_ring_entries_max: ring_bytes / 16,
        dirty_ring_acq_rel: acq_rel > 0,
        manual_protect: raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
        sregs2: raw(KVM_CAP_SREGS2) > 0,
        xsave_bytes: xsave2.max(4096),
        xsave2: xsave2 > 0,
        clock_flags: kvm.check_extension_int(Cap::AdjustClock).max(0) as u32,
        tsc_control: kvm.check_extension(Cap::TscControl),
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        tsc_khz: scratch.tsc_khz()?,
        tsc_offset: scratch.tsc_offset_works(),
        // PVM runs programs directly, and their CPUID is not intercepted:
        // measured, as KVM has no capability for it.
        cpuid_masks: backend != Backend::Pvm,
        vcpus_max: kvm.get_max_vcpus(),
    })
}
