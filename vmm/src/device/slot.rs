//! Slots for virtio-mmio devices: where they are, and plugging devices in.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::EventFd;

use super::{
    DeviceError, GuestMemory,
    virtio::{
        device::{Backend, Device, MmioDevice},
        worker::Worker,
    },
};
use crate::acpi::Slot;

/// Where virtio-mmio devices begin.
pub const SLOTS_BASE: u64 = 0xd000_0000;
/// Bytes of address space for each.
pub const SLOT_BYTES: u64 = 0x1000;
/// Their interrupts: ISA lines that nothing of ours or of the platform uses
/// (9 is left to ACPI), then the lines above those of ISA.
pub const SLOT_GSIS: [u32; 13] = [5, 6, 7, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23];

/// Where slot `index` is.
pub(super) const fn place(index: usize) -> Slot {
    let address = SLOTS_BASE + index as u64 * SLOT_BYTES;
    Slot { address, bytes: SLOT_BYTES, gsi: SLOT_GSIS[index] }
}

/// The slots of a VM while its devices are made.
pub(super) struct Slots<'a> {
    vm: &'a VmFd,
    memory: &'a GuestMemory,
    /// What is plugged in, rising by slot.
    pub(super) devices: Vec<Arc<dyn MmioDevice>>,
    pub(super) workers: Vec<Worker>,
}

impl<'a> Slots<'a> {
    /// Empty slots of `vm`.
    pub(super) fn new(vm: &'a VmFd, memory: &'a GuestMemory) -> Self {
        Self { vm, memory, devices: Vec::new(), workers: Vec::new() }
    }

    /// Makes `backend` device `index` of its kind, in the next slot.
    ///
    /// # Panics
    ///
    /// If all slots are taken: see [`DeviceError::TooMany`].
    pub(super) fn plug<B: Backend>(
        &mut self,
        index: u8,
        backend: B,
    ) -> Result<Arc<Device<B>>, DeviceError> {
        let slot = place(self.devices.len());
        let irq = interrupt(self.vm, slot.gsi)?;
        let device = Arc::new(Device::new(index, backend, irq, self.memory.clone())?);
        let register = slot.address + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
        for (queue, kick) in device.kicks().iter().enumerate() {
            self.vm
                .register_ioevent(kick, &IoEventAddress::Mmio(register), queue as u32)
                .map_err(|source| DeviceError::Kvm { what: "a queue's notification", source })?;
        }
        self.workers.push(Worker::start(&device)?);
        self.devices.push(Arc::clone(&device) as Arc<dyn MmioDevice>);
        Ok(device)
    }
}

/// An event that pulses `gsi`.
pub(super) fn interrupt(vm: &VmFd, gsi: u32) -> Result<Arc<EventFd>, DeviceError> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    vm.register_irqfd(&event, gsi)
        .map_err(|source| DeviceError::Kvm { what: "an interrupt", source })?;
    Ok(Arc::new(event))
}
