//! A split virtqueue with a buffer per descriptor (virtio 1.2, section 2.7).
//!
//! Invariant: a descriptor is owned either by the device (made available, not yet used) or by us.
//! A device that returns one that it does not own ends the run.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU16, Ordering, fence};

use crate::cpu;
use crate::virtio::register;

/// Descriptors in a queue; less if the device has less.
const QUEUE_MAX: usize = 256;
/// Bytes that a descriptor has room for.
pub(crate) const BUFFER_BYTES: usize = 2048;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

pub(crate) const DEVICE_WRITES: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

#[repr(C, align(4096))]
struct QueueMemory {
    descriptors: [Descriptor; QUEUE_MAX],
    driver_flags: AtomicU16,
    driver_index: AtomicU16,
    driver_ring: [u16; QUEUE_MAX + 1],
    /// The device's part must be aligned to 4.
    _pad: u16,
    device_flags: AtomicU16,
    device_index: AtomicU16,
    device_ring: [[u32; 2]; QUEUE_MAX],
    buffers: [[u8; BUFFER_BYTES]; QUEUE_MAX],
}

pub(crate) struct Shared(UnsafeCell<QueueMemory>);

// SAFETY: each is used by the one `Queue` that vCPU 0 makes of it.
unsafe impl Sync for Shared {}

const fn empty_queue() -> QueueMemory {
    QueueMemory {
        descriptors: [Descriptor { address: 0, len: 0, flags: 0, next: 0 }; QUEUE_MAX],
        driver_flags: AtomicU16::new(0),
        driver_index: AtomicU16::new(0),
        driver_ring: [0; QUEUE_MAX + 1],
        _pad: 0,
        device_flags: AtomicU16::new(0),
        device_index: AtomicU16::new(0),
        device_ring: [[0; 2]; QUEUE_MAX],
        buffers: [[0; BUFFER_BYTES]; QUEUE_MAX],
    }
}

pub(crate) static RECEIVE: Shared = Shared(UnsafeCell::new(empty_queue()));
pub(crate) static TRANSMIT: Shared = Shared(UnsafeCell::new(empty_queue()));

/// One virtqueue.
pub(crate) struct Queue {
    registers: u64,
    index: u32,
    size: u16,
    memory: *mut QueueMemory,
    next_available: u16,
    next_used: u16,
    is_device_owned: [bool; QUEUE_MAX],
    free: [u16; QUEUE_MAX],
    free_len: usize,
    needs_notify: bool,
}

impl Queue {
    pub(crate) fn new(registers: u64, index: u32, shared: &'static Shared) -> Option<Self> {
        let write = |register, value| cpu::mmio_write32(registers + register, value);
        write(register::QUEUE_SELECT, index);
        let max = cpu::mmio_read32(registers + register::QUEUE_SIZE_MAX);
        // A power of two, as the queue needs.
        let size = max.min(QUEUE_MAX as u32);
        if size < 2 || cpu::mmio_read32(registers + register::QUEUE_READY) != 0 {
            return None;
        }
        let size = 1 << size.ilog2();
        let memory = shared.0.get();
        // SAFETY: the device was reset and its queue is not ready, so nobody else looks at it.
        unsafe {
            (*memory).driver_index.store(0, Ordering::Relaxed);
            (*memory).device_index.store(0, Ordering::Relaxed);
        }
        // SAFETY: only addresses are taken.
        let parts = unsafe {
            [
                (register::QUEUE_DESCRIPTORS, (&raw const (*memory).descriptors) as u64),
                (register::QUEUE_DRIVER, (&raw const (*memory).driver_flags) as u64),
                (register::QUEUE_DEVICE, (&raw const (*memory).device_flags) as u64),
            ]
        };
        write(register::QUEUE_SIZE, size);
        for (register, address) in parts {
            write(register, address as u32);
            write(register + 4, (address >> 32) as u32);
        }
        write(register::QUEUE_READY, 1);
        let free = core::array::from_fn(|at| at as u16);
        let size = size as u16;
        Some(Self {
            registers,
            index,
            size,
            memory,
            next_available: 0,
            next_used: 0,
            is_device_owned: [false; QUEUE_MAX],
            free,
            free_len: usize::from(size),
            needs_notify: false,
        })
    }

    /// A buffer that is ours.
    pub(crate) fn buffer(&mut self, id: u16) -> &mut [u8; BUFFER_BYTES] {
        assert!(!self.is_device_owned[usize::from(id)]);
        // SAFETY: the device does not own it, and the borrow of `self` keeps it so.
        unsafe { &mut (*self.memory).buffers[usize::from(id)] }
    }

    pub(crate) fn has_free(&self) -> bool {
        self.free_len > 0
    }

    pub(crate) fn take_free(&mut self) -> Option<u16> {
        self.free_len = self.free_len.checked_sub(1)?;
        Some(self.free[self.free_len])
    }

    pub(crate) fn give_free(&mut self, id: u16) {
        self.free[self.free_len] = id;
        self.free_len += 1;
    }

    /// Hands a buffer to the device.
    pub(crate) fn make_available(&mut self, id: u16, len: usize, flags: u16) {
        self.is_device_owned[usize::from(id)] = true;
        let slot = usize::from(self.next_available % self.size);
        self.next_available = self.next_available.wrapping_add(1);
        // SAFETY: descriptor and ring slot are not in the device's view until the index moves.
        unsafe {
            let address = (&raw const (*self.memory).buffers[usize::from(id)]) as u64;
            let descriptor = Descriptor { address, len: len as u32, flags, next: 0 };
            (&raw mut (*self.memory).descriptors[usize::from(id)]).write_volatile(descriptor);
            (&raw mut (*self.memory).driver_ring[slot]).write_volatile(id);
            (*self.memory).driver_index.store(self.next_available, Ordering::Release);
        }
        self.needs_notify = true;
    }

    /// Takes back a buffer that the device used: its id and the length written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, usize)> {
        // SAFETY: atomics and ring entries below the device's index, which it does not change.
        let [id, len] = unsafe {
            if (*self.memory).device_index.load(Ordering::Acquire) == self.next_used {
                return None;
            }
            (&raw const (*self.memory).device_ring[usize::from(self.next_used % self.size)])
                .read_volatile()
        };
        self.next_used = self.next_used.wrapping_add(1);
        let is_ours = id < u32::from(self.size)
            && self.is_device_owned[id as usize]
            && len as usize <= BUFFER_BYTES;
        assert!(
            is_ours,
            "virtio device returned buffer {id} with {len} bytes, which it does not own"
        );
        self.is_device_owned[id as usize] = false;
        Some((id as u16, len as usize))
    }

    pub(crate) fn want_interrupts(&self, wanted: bool) {
        // SAFETY: an atomic.
        unsafe { &(*self.memory).driver_flags }
            .store(if wanted { 0 } else { NO_INTERRUPT }, Ordering::SeqCst);
    }

    pub(crate) fn notify(&mut self) {
        if !core::mem::take(&mut self.needs_notify) {
            return;
        }
        // The index must be visible before the device's wish is read.
        fence(Ordering::SeqCst);
        // SAFETY: an atomic.
        if unsafe { &(*self.memory).device_flags }.load(Ordering::Relaxed) & NO_NOTIFY == 0 {
            cpu::mmio_write32(self.registers + register::QUEUE_NOTIFY, self.index);
        }
    }
}
