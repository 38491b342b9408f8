//! The registers of a virtio-mmio device, version 2 (VIRTIO 1.2, section 4.2.2).
//!
//! The device status only ever gains bits, each after the one before it, until
//! the guest writes 0:
//!
//! ```text
//!   0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK     FAILED: any time, by the guest
//!           features ◀──┘    └──▶ queues ◀──┘        │         NEEDS_RESET: by us, when the
//!                                                    ▼         guest broke a rule of its queues
//!                                             requests are served
//! ```
//!
//! What the guest may not do in its state is ignored and counted
//! ([`Transport::violations`]). No register access allocates.

use std::sync::Arc;

use virtio_bindings::bindings::{virtio_config as config, virtio_mmio as mmio, virtio_ring};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{PARTS_MAX, QueueFault};
use crate::device::GuestMemory;

pub(crate) mod state;

/// Largest queue that is offered.
pub(crate) const QUEUE_SIZE_MAX: u16 = PARTS_MAX as u16;
/// `virt` in little-endian.
const MAGIC: u32 = 0x7472_6976;
const VENDOR: u32 = u32::from_le_bytes(*b"ROMU");

pub(crate) const ACKNOWLEDGE: u8 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
pub(crate) const DRIVER: u8 = config::VIRTIO_CONFIG_S_DRIVER as u8;
pub(crate) const FEATURES_OK: u8 = config::VIRTIO_CONFIG_S_FEATURES_OK as u8;
pub(crate) const DRIVER_OK: u8 = config::VIRTIO_CONFIG_S_DRIVER_OK as u8;
pub(crate) const NEEDS_RESET: u8 = config::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
pub(crate) const FAILED: u8 = config::VIRTIO_CONFIG_S_FAILED as u8;

/// Each bit with what must be set before it.
const STATUS_ORDER: [(u8, u8); 5] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, DRIVER),
    (DRIVER_OK, FEATURES_OK),
    (FAILED, 0),
];

/// Every bit that a status may have.
const STATUS_KNOWN: u32 =
    (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) as u32;

/// What a device is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// VIRTIO 1.2, section 5.
    pub(crate) device_id: u32,
    /// The features that are offered; VERSION_1 is among them.
    pub(crate) features: u64,
    /// The configuration space, read-only.
    pub(crate) config: Vec<u8>,
    /// How many queues.
    pub(crate) queues: usize,
}

/// What a register write asks of the device's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Look at this queue.
    Notify(usize),
    /// Look at all queues: the driver is ready.
    Start,
    /// Forget all requests: the driver begins anew.
    Reset,
}

/// The registers, queues and interrupt of one device.
#[derive(Debug)]
pub(crate) struct Transport {
    identity: Identity,
    irq: Arc<EventFd>,
    pub(crate) queues: Vec<Queue>,
    accepted: u64,
    status: u8,
    interrupt_status: u8,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    violations: u64,
    /// How often the guest had to be told to reset it.
    failures: u64,
}

impl Transport {
    /// A device as after power-on; `irq` raises its interrupt.
    pub(crate) fn new(identity: Identity, irq: Arc<EventFd>) -> Self {
        let queue = || Queue::new(QUEUE_SIZE_MAX).expect("a power of two");
        Self {
            queues: (0..identity.queues).map(|_| queue()).collect(),
            identity,
            irq,
            accepted: 0,
            status: 0,
            interrupt_status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            violations: 0,
            failures: 0,
        }
    }

    /// Whether requests are served.
    pub(crate) fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Whether the driver took the feature with this number.
    pub(crate) fn has_accepted(&self, feature: u32) -> bool {
        self.accepted >> feature & 1 == 1
    }

    /// How often the guest did what it may not.
    pub(crate) fn violations(&self) -> u64 {
        self.violations
    }

    /// The guest broke a rule of its queues: it has to reset the device.
    pub(crate) fn fail(&mut self, fault: QueueFault) {
        self.violations += 1;
        self.failures += 1;
        // A guest that insists shall not fill the log.
        if self.failures.is_power_of_two() {
            let (device, failures) = (self.identity.device_id, self.failures);
            tracing::warn!(device, %fault, failures, "the guest must reset a device");
        }
        self.status |= NEEDS_RESET;
        self.interrupt(mmio::VIRTIO_MMIO_INT_CONFIG as u8);
    }

    /// Buffers were used: interrupts the guest.
    pub(crate) fn interrupt_used(&mut self) {
        self.interrupt(mmio::VIRTIO_MMIO_INT_VRING as u8);
    }

    /// Raises the interrupt again if the guest has not acknowledged the last:
    /// it may be lost with the interrupt controller's state. One too many is
    /// harmless.
    pub(crate) fn interrupt_again(&self) {
        if self.interrupt_status != 0 {
            self.raise();
        }
    }

    fn interrupt(&mut self, reason: u8) {
        self.interrupt_status |= reason;
        self.raise();
    }

    fn raise(&self) {
        // It fails only at 2^64 - 1 uncollected interrupts.
        let _ = self.irq.write(1);
    }

    /// A vCPU reads `data.len()` bytes at `offset`.
    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(at) = offset.checked_sub(u64::from(mmio::VIRTIO_MMIO_CONFIG)) {
            let config = self.identity.config.get(at as usize..).unwrap_or_default();
            let count = config.len().min(data.len());
            data[..count].copy_from_slice(&config[..count]);
            return;
        }
        match <&mut [u8; 4]>::try_from(data) {
            Ok(register) if offset.is_multiple_of(4) => {
                *register = self.register(offset as u32).to_le_bytes();
            }
            _ => self.violations += 1,
        }
    }

    fn register(&mut self, offset: u32) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            mmio::VIRTIO_MMIO_VERSION => 2,
            mmio::VIRTIO_MMIO_DEVICE_ID => self.identity.device_id,
            mmio::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            mmio::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.identity.features, self.device_features_sel)
            }
            mmio::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            mmio::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => u32::from(self.interrupt_status),
            mmio::VIRTIO_MMIO_STATUS => u32::from(self.status),
            // The configuration never changes while the guest runs.
            mmio::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            // No shared memory region: length and base are all ones.
            mmio::VIRTIO_MMIO_SHM_LEN_LOW..=mmio::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => {
                self.violations += 1;
                0
            }
        }
    }

    /// A vCPU writes `data` at `offset`.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], memory: &GuestMemory) -> Effect {
        let (Ok(value), true) =
            (<[u8; 4]>::try_from(data), offset < 0x100 && offset.is_multiple_of(4))
        else {
            self.violations += 1;
            return Effect::None;
        };
        let value = u32::from_le_bytes(value);
        match offset as u32 {
            mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            mmio::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            mmio::VIRTIO_MMIO_SHM_SEL => {}
            mmio::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            mmio::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !(value as u8),
            mmio::VIRTIO_MMIO_STATUS => return self.write_status(value),
            mmio::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if (value as usize) < self.queues.len() {
                    return Effect::Notify(value as usize);
                }
                self.violations += 1;
            }
            mmio::VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value, memory),
            register => self.write_queue(register, value),
        }
        Effect::None
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER || self.driver_features_sel > 1 {
            self.violations += 1;
            return;
        }
        let shift = 32 * self.driver_features_sel;
        self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn write_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        let set = value as u8 & !NEEDS_RESET;
        let lost = self.status & !NEEDS_RESET & !set;
        let disordered =
            STATUS_ORDER.iter().any(|(bit, before)| set & bit != 0 && set & before != *before);
        if value & !STATUS_KNOWN != 0 || lost != 0 || disordered {
            self.violations += 1;
            return Effect::None;
        }
        let gained = set & !self.status;
        if gained & FEATURES_OK != 0 {
            if !self.features_are_fine() {
                // The bit stays clear, which is how the guest learns it.
                self.status |= set & !(FEATURES_OK | DRIVER_OK);
                return Effect::None;
            }
            let event_idx = self.has_accepted(virtio_ring::VIRTIO_RING_F_EVENT_IDX);
            self.queues.iter_mut().for_each(|queue| queue.set_event_idx(event_idx));
        }
        self.status |= set;
        if gained & DRIVER_OK != 0 { Effect::Start } else { Effect::None }
    }

    fn features_are_fine(&self) -> bool {
        let version_1 = self.has_accepted(config::VIRTIO_F_VERSION_1);
        version_1 && self.accepted & !self.identity.features == 0
    }

    fn reset(&mut self) {
        self.queues.iter_mut().for_each(QueueT::reset);
        self.accepted = 0;
        self.status = 0;
        self.interrupt_status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
    }

    fn write_queue_ready(&mut self, value: u32, memory: &GuestMemory) {
        let may_start = self.may_configure_queues();
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            self.violations += 1;
            return;
        };
        queue.set_ready(value == 1 && (may_start || queue.ready()));
        let usable = queue.ready() && queue.avail_ring() != 0 && queue.is_valid(memory);
        if value != 0 && !usable {
            queue.set_ready(false);
            self.violations += 1;
        }
    }

    fn may_configure_queues(&self) -> bool {
        self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK
    }

    fn write_queue(&mut self, register: u32, value: u32) {
        let may = self.may_configure_queues();
        let queue = self.queues.get_mut(self.queue_sel as usize).filter(|queue| !queue.ready());
        let (Some(queue), true) = (queue, may) else {
            self.violations += 1;
            return;
        };
        let low = |old: u64| GuestAddress(old & !0xffff_ffff | u64::from(value));
        let high = |old: u64| GuestAddress(old & 0xffff_ffff | u64::from(value) << 32);
        let (desc, avail, used) = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        let done = match register {
            mmio::VIRTIO_MMIO_QUEUE_NUM => {
                queue.try_set_size(u16::try_from(value).unwrap_or_default())
            }
            mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.try_set_desc_table_address(low(desc)),
            mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.try_set_desc_table_address(high(desc)),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.try_set_avail_ring_address(low(avail)),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.try_set_avail_ring_address(high(avail)),
            mmio::VIRTIO_MMIO_QUEUE_USED_LOW => queue.try_set_used_ring_address(low(used)),
            mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.try_set_used_ring_address(high(used)),
            _ => Err(virtio_queue::Error::QueueNotReady),
        };
        if done.is_err() {
            self.violations += 1;
        }
    }
}

/// The low (`select` 0) or high (1) half of `features`.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
