//! One entry into KVM, and what it left the guest for.

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::VcpuExit;

use super::thread::{Entered, VcpuThread};
use crate::event::VmEvent;

/// A guest that writes to this port is done; the value is its exit code.
pub const EXIT_PORT: u16 = 0xf4;

/// An exit, freed from the borrow of the vCPU.
enum Exit {
    Handled,
    Done(u32),
    Shutdown,
    System(u32),
    Halted,
    Unmapped(Option<u64>),
    InternalError,
    FailEntry(u64),
    RingFull,
    Unexpected(String),
}

impl VcpuThread {
    /// Enters KVM once and handles the exit.
    pub(super) fn enter(&mut self) -> Entered {
        let vcpu = self.index;
        let exit = match self.run_kvm() {
            Ok(exit) => exit,
            Err(error) => {
                self.incomplete = false;
                match error.errno() {
                    libc::EINTR => return Entered::Interrupted,
                    // It waited for a start-up IPI and something came.
                    libc::EAGAIN => return Entered::Again,
                    libc::EFAULT => Exit::Unmapped(None),
                    _ => Exit::Unexpected(format!("KVM_RUN: {error}")),
                }
            }
        };
        let event = match exit {
            Exit::Handled => return Entered::Again,
            Exit::RingFull => return self.empty_ring(),
            Exit::Done(code) => VmEvent::GuestExit { code },
            Exit::Shutdown => VmEvent::Shutdown { vcpu },
            Exit::System(KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET) => {
                VmEvent::Shutdown { vcpu }
            }
            Exit::System(kind) => VmEvent::SystemEvent { vcpu, kind },
            Exit::Halted => VmEvent::Halted { vcpu },
            Exit::Unmapped(address) => VmEvent::UnmappedMemory { vcpu, address, rip: self.rip() },
            Exit::InternalError => {
                let (suberror, instruction) = self.page.internal_error();
                VmEvent::InternalError { vcpu, suberror, instruction, rip: self.rip() }
            }
            Exit::FailEntry(reason) => VmEvent::FailEntry { vcpu, reason },
            Exit::Unexpected(what) => VmEvent::Unexpected { vcpu, what },
        };
        Entered::Ended(event)
    }

    fn run_kvm(&mut self) -> Result<Exit, kvm_ioctls::Error> {
        let devices = &self.context.devices;
        let exit = self.fd.run()?;
        // EFAULT with a reason ends the entry like any other error.
        self.incomplete = !matches!(exit, VcpuExit::MemoryFault { .. });
        Ok(match exit {
            VcpuExit::IoOut(EXIT_PORT, data) => Exit::Done(exit_code(data)),
            // A string instruction brings several items at once.
            VcpuExit::IoOut(port, data) => {
                let items = data.chunks(self.page.io_item_bytes());
                items.for_each(|item| devices.pio_write(port, item));
                Exit::Handled
            }
            VcpuExit::IoIn(port, data) => {
                let items = data.chunks_mut(self.page.io_item_bytes());
                items.for_each(|item| devices.pio_read(port, item));
                Exit::Handled
            }
            VcpuExit::MmioRead(address, data) => {
                devices.mmio_read(address, data);
                Exit::Handled
            }
            VcpuExit::MmioWrite(address, data) => {
                devices.mmio_write(address, data);
                Exit::Handled
            }
            VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => Exit::Handled,
            VcpuExit::Hlt => Exit::Halted,
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::SystemEvent(kind, _) => Exit::System(kind),
            VcpuExit::InternalError => Exit::InternalError,
            VcpuExit::FailEntry(reason, _) => Exit::FailEntry(reason),
            VcpuExit::MemoryFault { gpa, .. } => Exit::Unmapped(Some(gpa)),
            VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => Exit::RingFull,
            VcpuExit::Debug(debug) => Exit::Unexpected(format!("debug exit at {:#x}", debug.pc)),
            other => Exit::Unexpected(format!("{other:?}")),
        })
    }

    fn empty_ring(&mut self) -> Entered {
        let vcpu = self.index;
        match self.context.dirty.empty_full_ring() {
            Ok(false) => Entered::Again,
            Ok(true) => {
                let _ = self.context.events.send(VmEvent::DirtyRingStorm { vcpu });
                Entered::Again
            }
            Err(error) => Entered::Ended(VmEvent::DirtyLogFailed { vcpu, what: error.to_string() }),
        }
    }

    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }
}

/// The value written, whatever its width.
fn exit_code(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |code, byte| code << 8 | u32::from(*byte))
}
