//! Saved state of vCPUs and of the machine around them, as sections.
//!
//! | section | body (structures of `linux/kvm.h`, as they are in memory) |
//! |---|---|
//! | `vcpu.NN.mp_state`, `.regs`, `.sregs`, `.xsave`, `.xcrs`, `.debugregs`, `.events`, `.lapic` | the structure of the KVM call of that name |
//! | `vcpu.NN.msrs` | `kvm_msr_entry` for each saved register |
//! | `vcpu.NN.tsc`, `vm.clock` | see [`clock`] |
//! | `vm.irqchip.0` to `.2` | PIC master, PIC slave, IOAPIC |
//! | `vm.pit2` | timer |
//! | `vm.shape` | what never changes, as a digest (see [`machine`]) |
//!
//! CPUID never changes while a guest lives, so it is not saved with each
//! checkpoint: a shell has it from its creation, and `vm.shape` refuses state
//! that comes from another machine. What clocks do after a failover is told in
//! [`clock`].

pub(crate) mod clock;
pub mod machine;
mod plain;
mod vcpu;

use std::io;

use checkpoint::SectionError;
use thiserror::Error;

#[cfg(feature = "fuzz")]
pub(crate) use self::vcpu::zeroed as zeroed_vcpu;
pub(crate) use self::vcpu::{
    VcpuShape, VcpuState, restore as restore_vcpu, runs as vcpu_runs, save as save_vcpu,
    section_names as vcpu_section_names, tsc_section,
};

/// The version of all sections of this crate's own state.
pub(crate) const VERSION: u32 = 1;

/// Why state was not saved or restored.
#[derive(Debug, Error)]
pub enum StateError {
    /// KVM refused a call.
    #[error("kvm refused {call} for {of}; compare `romulus doctor` of both hosts")]
    Kvm {
        /// Which call.
        call: &'static str,
        /// Whose state.
        of: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A model-specific register could not be read or written.
    #[error("vcpu {vcpu}: msr {msr:#x} could not be {act}; compare `romulus doctor` of both hosts")]
    Msr {
        /// Which vCPU.
        vcpu: u8,
        /// Which register.
        msr: u32,
        /// `read` or `written`.
        act: &'static str,
    },
    /// Sections are missing, unknown or of another version.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// A section has another size than here.
    #[error("section `{name}` has {found} bytes, {expected} are needed: it is from another kvm")]
    Size {
        /// Which section.
        name: String,
        /// Its size.
        found: usize,
        /// The size here.
        expected: usize,
    },
    /// The state is from a machine of another shape.
    #[error("the saved state is from a machine with other {0}: configure both hosts alike")]
    Shape(&'static str),
    /// The guest's TSC runs at a frequency that this host cannot give it.
    #[error(
        "the guest's tsc has {guest_khz} kHz, and {least} to {most} are possible here: use a host of the same frequency, or one whose kvm scales it"
    )]
    TscFrequency {
        /// The guest's.
        guest_khz: u32,
        /// The least that is possible here.
        least: u32,
        /// The most that is possible here.
        most: u32,
    },
}

impl StateError {
    fn kvm(call: &'static str, of: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let of = of.into();
        move |source| Self::Kvm { call, of, source }
    }
}
