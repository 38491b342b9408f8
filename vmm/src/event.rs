//! What a VM tells its owner.

use std::fmt;

/// Something that happened to the guest. Except for [`VmEvent::DirtyRingStorm`]
/// and [`VmEvent::DirtyLogFailed`], the vCPU that it names has parked itself
/// and runs no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest wrote `code` to port 0xf4: it is done.
    GuestExit {
        /// The code.
        code: u32,
    },
    /// Triple fault, or the guest asked for a reset.
    Shutdown {
        /// The vCPU.
        vcpu: u8,
    },
    /// A paravirtual shutdown, reset or crash (`KVM_SYSTEM_EVENT_*`).
    SystemEvent {
        /// The vCPU.
        vcpu: u8,
        /// The kind, as KVM numbers it.
        kind: u32,
    },
    /// The guest halted a CPU for good where KVM does not handle it.
    Halted {
        /// The vCPU.
        vcpu: u8,
    },
    /// The guest touched memory that is neither RAM nor a device.
    UnmappedMemory {
        /// The vCPU.
        vcpu: u8,
        /// Where, if KVM tells.
        address: Option<u64>,
        /// The instruction's address.
        rip: u64,
    },
    /// KVM could not go on, often at an instruction that it cannot emulate.
    InternalError {
        /// The vCPU.
        vcpu: u8,
        /// KVM's reason; 1 is a failed emulation.
        suberror: u32,
        /// The instruction's bytes, if KVM tells.
        instruction: Vec<u8>,
        /// The instruction's address.
        rip: u64,
    },
    /// The processor refused to enter the guest.
    FailEntry {
        /// The vCPU.
        vcpu: u8,
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM left the guest for a reason that this build does not know, or
    /// `KVM_RUN` failed.
    Unexpected {
        /// The vCPU.
        vcpu: u8,
        /// What it was.
        what: String,
    },
    /// Dirty rings fill for ever with pages that are known: this KVM logs each
    /// store. The guest hardly moves; start it with the bitmap.
    DirtyRingStorm {
        /// The vCPU that noticed it.
        vcpu: u8,
    },
    /// The dirty log failed while a vCPU ran: the epoch must not be committed.
    DirtyLogFailed {
        /// The vCPU that noticed it.
        vcpu: u8,
        /// What the kernel said.
        what: String,
    },
}

impl fmt::Display for VmEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestExit { code } => write!(f, "the guest ended with code {code}"),
            Self::Shutdown { vcpu } => write!(f, "vcpu {vcpu} shut down (triple fault or reset)"),
            Self::SystemEvent { vcpu, kind } => write!(f, "vcpu {vcpu}: system event {kind}"),
            Self::Halted { vcpu } => write!(f, "vcpu {vcpu} halted for good"),
            Self::UnmappedMemory { vcpu, address: Some(address), rip } => {
                write!(f, "vcpu {vcpu} touched unmapped memory at {address:#x} (rip {rip:#x})")
            }
            Self::UnmappedMemory { vcpu, address: None, rip } => {
                write!(f, "vcpu {vcpu} touched unmapped memory (rip {rip:#x})")
            }
            Self::InternalError { vcpu, suberror, instruction, rip } => {
                write!(f, "vcpu {vcpu}: kvm internal error {suberror} at rip {rip:#x}, bytes")?;
                instruction.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Self::FailEntry { vcpu, reason } => {
                write!(f, "vcpu {vcpu} cannot enter the guest: hardware reason {reason:#x}")
            }
            Self::Unexpected { vcpu, what } => write!(f, "vcpu {vcpu} stopped: {what}"),
            Self::DirtyRingStorm { vcpu } => write!(
                f,
                "vcpu {vcpu}: dirty rings overflow without progress; use dirty tracking `bitmap`"
            ),
            Self::DirtyLogFailed { vcpu, what } => {
                write!(f, "vcpu {vcpu}: the dirty log failed: {what}")
            }
        }
    }
}
