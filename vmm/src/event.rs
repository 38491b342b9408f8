//! What a VM tells its owner.

use std::fmt;

use crate::{
    device::{
        Panic,
        power::{PowerRequest, ResetCause},
    },
    host::Backend,
};

/// Something that happened to the guest. Except for [`VmEvent::Panicked`],
/// [`VmEvent::DirtyRingStorm`] and [`VmEvent::DirtyLogFailed`], the vCPU that
/// it names has parked itself and runs no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest wrote `code` to port 0xf4: it is done.
    GuestExit {
        /// The code.
        code: u32,
    },
    /// The guest turned its machine off.
    PowerOff {
        /// The vCPU.
        vcpu: u8,
    },
    /// The guest wants its machine to be restarted: [`crate::vm::Vm::reset`].
    Reset {
        /// The vCPU.
        vcpu: u8,
        /// How it asked.
        cause: ResetCause,
    },
    /// The guest's kernel said that it has panicked. Its vCPUs run on.
    Panicked {
        /// What it does next.
        panic: Panic,
    },
    /// A paravirtual crash or another event (`KVM_SYSTEM_EVENT_*`).
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
    /// KVM met an instruction that it has to emulate and does not know.
    Emulation {
        /// The vCPU.
        vcpu: u8,
        /// The instruction and what follows it; empty if nobody can tell.
        instruction: Vec<u8>,
        /// The instruction's address.
        rip: u64,
        /// How this KVM runs guests.
        backend: Backend,
    },
    /// KVM could not go on for another reason.
    InternalError {
        /// The vCPU.
        vcpu: u8,
        /// KVM's reason.
        suberror: u32,
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

impl VmEvent {
    /// What vCPU `vcpu` asked of its machine.
    pub(crate) fn of_request(vcpu: u8, request: PowerRequest) -> Self {
        match request {
            PowerRequest::Off => Self::PowerOff { vcpu },
            PowerRequest::Reset(cause) => Self::Reset { vcpu, cause },
        }
    }
}

impl fmt::Display for VmEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestExit { code } => write!(f, "the guest ended with code {code}"),
            Self::PowerOff { .. } => f.write_str("the guest turned itself off"),
            Self::Reset { cause, .. } => write!(f, "the guest restarts, by {cause}"),
            Self::Panicked { panic: Panic::Stopped } => f.write_str("the guest's kernel panicked"),
            Self::Panicked { panic: Panic::CrashKernel } => {
                f.write_str("the guest's kernel panicked and runs its crash kernel")
            }
            Self::SystemEvent { vcpu, kind } => write!(f, "vcpu {vcpu}: system event {kind}"),
            Self::Halted { vcpu } => write!(f, "vcpu {vcpu} halted for good"),
            Self::UnmappedMemory { vcpu, address: Some(address), rip } => {
                write!(f, "vcpu {vcpu} touched unmapped memory at {address:#x} (rip {rip:#x})")
            }
            Self::UnmappedMemory { vcpu, address: None, rip } => {
                write!(f, "vcpu {vcpu} touched unmapped memory (rip {rip:#x})")
            }
            Self::Emulation { vcpu, instruction, rip, backend } => {
                emulation(f, *vcpu, instruction, *rip, *backend)
            }
            Self::InternalError { vcpu, suberror, rip } => {
                // linux/kvm.h, KVM_INTERNAL_ERROR_*.
                let reason = match suberror {
                    2 => "an exception while another was being delivered",
                    3 => "an event that could not be delivered",
                    4 => "an exit that it does not know",
                    _ => "a reason that it does not tell",
                };
                write!(
                    f,
                    "vcpu {vcpu}: kvm gave up at {rip:#x}: {reason} (internal error {suberror})"
                )
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

fn emulation(
    f: &mut fmt::Formatter<'_>,
    vcpu: u8,
    instruction: &[u8],
    rip: u64,
    backend: Backend,
) -> fmt::Result {
    write!(f, "vcpu {vcpu}: this kvm ({backend}) cannot emulate the instruction at {rip:#x}")?;
    if !instruction.is_empty() {
        f.write_str(", bytes")?;
        instruction.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
    }
    if backend == Backend::Pvm {
        f.write_str(
            "; it interprets guest kernels and knows too few instructions for stock Linux: use a host with VMX or SVM (`romulus doctor`)",
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_told_with_its_bytes_and_its_address() {
        let event = |backend| VmEvent::Emulation {
            vcpu: 1,
            instruction: vec![0x0f, 0xc7, 0x0f],
            rip: 0xffff_ffff_8100_0040,
            backend,
        };
        let told = event(Backend::Svm).to_string();
        let expected = "vcpu 1: this kvm (svm) cannot emulate the instruction at \
                        0xffffffff81000040, bytes 0f c7 0f";
        assert_eq!(told, expected);
        let told = event(Backend::Pvm).to_string();
        assert!(told.contains("stock Linux") && told.contains("VMX or SVM"), "{told}");
    }

    #[test]
    fn an_internal_error_is_told_with_its_reason_and_its_address() {
        let told = |suberror| VmEvent::InternalError { vcpu: 2, suberror, rip: 0xfff0 }.to_string();
        let expected = "vcpu 2: kvm gave up at 0xfff0: an exception while another was being \
                        delivered (internal error 2)";
        assert_eq!(told(2), expected);
        assert!(told(3).contains("an event that could not be delivered (internal error 3)"));
        assert!(told(4).contains("an exit that it does not know (internal error 4)"));
        assert!(told(99).contains("does not tell (internal error 99)"));
    }
}
