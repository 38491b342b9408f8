//! One entry into KVM, and what it left the guest for.

use checkpoint::PAGE_BYTES;
use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress};

use super::thread::{Entered, VcpuThread};
use crate::{
    device::{
        Panic, PortEffect,
        power::{PowerRequest, ResetCause},
    },
    event::VmEvent,
};

/// A guest that writes to this port is done; the value is its exit code.
pub const EXIT_PORT: u16 = 0xf4;

/// An exit, freed from the borrow of the vCPU.
enum Exit {
    Handled,
    Done(u32),
    Power(PowerRequest),
    Panicked(Panic),
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
            Exit::Panicked(panic) => {
                let _ = self.context.events.send(VmEvent::Panicked { panic });
                return Entered::Again;
            }
            Exit::Power(request) => {
                self.context.devices.request_power(request);
                VmEvent::of_request(vcpu, request)
            }
            Exit::System(kind) => VmEvent::SystemEvent { vcpu, kind },
            Exit::Halted => VmEvent::Halted { vcpu },
            Exit::Unmapped(address) => VmEvent::UnmappedMemory { vcpu, address, rip: self.rip() },
            Exit::InternalError => self.internal_error(),
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
                let effects = items.map(|item| devices.pio_write(port, item));
                match effects.fold(None, Option::or) {
                    None => Exit::Handled,
                    Some(PortEffect::Power(request)) => Exit::Power(request),
                    Some(PortEffect::Panicked(panic)) => Exit::Panicked(panic),
                }
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
            VcpuExit::Shutdown => Exit::Power(PowerRequest::Reset(ResetCause::TripleFault)),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Exit::Power(PowerRequest::Off),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => {
                Exit::Power(PowerRequest::Reset(ResetCause::ResetPort))
            }
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

    fn internal_error(&self) -> VmEvent {
        const EMULATION: u32 = 1;
        let (vcpu, rip) = (self.index, self.rip());
        match self.page.internal_error() {
            (EMULATION, told) => {
                let instruction = if told.is_empty() { self.bytes_at(rip) } else { told };
                let backend = self.context.backend;
                VmEvent::Emulation { vcpu, instruction, rip, backend }
            }
            (suberror, _) => VmEvent::InternalError { vcpu, suberror, rip },
        }
    }

    /// What the guest has at `rip`, as much as lies on its page, for a KVM
    /// that does not tell the bytes; nothing if it is not mapped.
    fn bytes_at(&self, rip: u64) -> Vec<u8> {
        const INSTRUCTION_BYTES_MAX: u64 = 15;
        let base = self.fd.get_sregs().map_or(0, |sregs| sregs.cs.base);
        let linear = base.wrapping_add(rip);
        let Ok(translation) = self.fd.translate_gva(linear) else { return Vec::new() };
        let rest_of_page = PAGE_BYTES as u64 - linear % PAGE_BYTES as u64;
        let mut bytes = vec![0; rest_of_page.min(INSTRUCTION_BYTES_MAX) as usize];
        let at = GuestAddress(translation.physical_address);
        let read = self.context.ram.memory().read_slice(&mut bytes, at);
        if translation.valid != 0 && read.is_ok() { bytes } else { Vec::new() }
    }

    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }
}

/// The value written, whatever its width.
fn exit_code(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |code, byte| code << 8 | u32::from(*byte))
}
