//! What happens to a guest, as its owner has to know it.

use vmm::{
    device::{Panic, power::ResetCause},
    event::VmEvent,
};

/// The probe guest's exit code for "done".
const EXIT_DONE: u32 = 0x10;

/// Something that its owner has to act upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// It is over.
    Ended {
        /// Why, in words for an operator.
        reason: String,
        /// Whether that is a failure.
        failed: bool,
    },
    /// Its host cannot run it; another one may.
    HostFailed {
        /// Why, in words for an operator.
        reason: String,
    },
    /// It wants its machine to be restarted, and waits for it.
    WantsRestart {
        /// How it asked.
        cause: ResetCause,
    },
    /// Its kernel has panicked, and the guest runs on.
    Panicked {
        /// What it does next.
        panic: Panic,
    },
}

impl GuestEvent {
    /// What `event` means; `None` if it is for the log only.
    pub(super) fn of(event: &VmEvent) -> Option<Self> {
        let failed = match event {
            VmEvent::Reset { cause, .. } => return Some(Self::WantsRestart { cause: *cause }),
            VmEvent::Panicked { panic } => return Some(Self::Panicked { panic: *panic }),
            VmEvent::DirtyRingStorm { .. } | VmEvent::DirtyLogFailed { .. } => return None,
            VmEvent::FailEntry { .. } | VmEvent::Unexpected { .. } => {
                return Some(Self::HostFailed { reason: event.to_string() });
            }
            VmEvent::GuestExit { code } => *code != EXIT_DONE,
            VmEvent::PowerOff { .. } | VmEvent::SystemEvent { .. } | VmEvent::Halted { .. } => {
                false
            }
            VmEvent::UnmappedMemory { .. }
            | VmEvent::Emulation { .. }
            | VmEvent::InternalError { .. } => true,
        };
        Some(Self::Ended { reason: event.to_string(), failed })
    }
}
