//! A driver of our own for tests of devices, which can also misbehave. Its
//! rings and buffers lie at fixed addresses of one mebibyte of memory.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, bitmap::Bitmap};
use vmm_sys_util::eventfd::EventFd;

use super::{
    device::MmioDevice,
    transport::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET},
};
use crate::{device::GuestMemory, memory::written::WrittenPages};

/// Descriptors of each queue.
pub(crate) const SIZE: u16 = 8;
/// Where buffers may lie.
pub(crate) const BUFFERS: u64 = 0x40000;
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// The number of the feature.
pub(crate) const EVENT_IDX: u32 = 29;

pub(crate) fn ring(queue: usize) -> u64 {
    0x10000 * (queue as u64 + 1)
}

pub(crate) fn avail(queue: usize) -> u64 {
    ring(queue) + 0x2000
}

pub(crate) fn used(queue: usize) -> u64 {
    ring(queue) + 0x4000
}

/// A driver of one device.
pub(crate) struct Driver {
    pub(crate) device: Arc<dyn MmioDevice>,
    pub(crate) memory: GuestMemory,
    pub(crate) irq: Arc<EventFd>,
    pub(crate) queues: usize,
}

/// Descriptors of a queue, and the head that is published.
pub(crate) type Hostile = (&'static str, &'static [(u16, u64, u32, u16, u16)], u16);

/// Chains that break the rules of any queue.
pub(crate) const HOSTILE: &[Hostile] = &[
    ("a loop of one", &[(0, BUFFERS, 64, NEXT, 0)], 0),
    ("a loop of two", &[(0, BUFFERS, 64, NEXT, 1), (1, BUFFERS, 64, NEXT, 0)], 0),
    ("a next beyond the table", &[(0, BUFFERS, 64, NEXT, SIZE)], 0),
    ("a head beyond the table", &[], SIZE),
    ("a head far beyond the table", &[], u16::MAX),
    ("an address beyond ram", &[(0, 1 << 20, 64, 0, 0)], 0),
    ("an address that overflows", &[(0, u64::MAX - 8, 64, 0, 0)], 0),
    ("a buffer across the end of ram", &[(0, (1 << 20) - 8, 64, 0, 0)], 0),
    ("an absurd length", &[(0, BUFFERS, u32::MAX, 0, 0)], 0),
    ("lengths beyond 2^32", &[(0, 0, 1 << 20, NEXT, 1), (1, 0, u32::MAX, 0, 0)], 0),
    ("an indirect table beyond ram", &[(0, u64::MAX - 15, 64, INDIRECT, 0)], 0),
    ("an indirect table of odd size", &[(0, BUFFERS, 17, INDIRECT, 0)], 0),
    ("an empty indirect table", &[(0, BUFFERS, 0, INDIRECT, 0)], 0),
    ("an indirect table in itself", &[(0, 0x20000, 64, INDIRECT, 0)], 0),
];

impl Driver {
    pub(crate) fn set(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    pub(crate) fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// What a driver does from reset to DRIVER_OK, on zeroed rings, taking
    /// VERSION_1 and the features with these numbers.
    pub(crate) fn start(&self, features: &[u32]) {
        self.set(0x70, 0);
        self.set(0x70, u32::from(ACKNOWLEDGE));
        self.set(0x70, u32::from(ACKNOWLEDGE | DRIVER));
        let low = features.iter().fold(0, |all, feature| all | 1 << feature);
        for (select, features) in [(0, low), (1, 1)] {
            self.set(0x24, select);
            self.set(0x20, features);
        }
        self.set(0x70, u32::from(ACKNOWLEDGE | DRIVER | FEATURES_OK));
        for queue in 0..self.queues {
            self.memory.write_slice(&[0; 0x6000], GuestAddress(ring(queue))).unwrap();
            self.set(0x30, queue as u32);
            self.set(0x38, u32::from(SIZE));
            for (register, address) in
                [(0x80, ring(queue)), (0x90, avail(queue)), (0xa0, used(queue))]
            {
                self.set(register, address as u32);
                self.set(register + 4, (address >> 32) as u32);
            }
            self.set(0x44, 1);
            assert_eq!(self.get(0x44), 1);
        }
        self.set(0x70, u32::from(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK));
        assert_eq!(self.get(0x70), 15);
    }

    pub(crate) fn describe(
        &self,
        queue: usize,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let place = GuestAddress(ring(queue) + 16 * u64::from(index));
        self.memory.write_slice(&bytes, place).unwrap();
    }

    pub(crate) fn u16_at(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub(crate) fn bytes_at(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn publish(&self, queue: usize, head: u16) {
        let index = self.u16_at(avail(queue) + 2);
        let entry = avail(queue) + 4 + 2 * u64::from(index % SIZE);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.memory.write_obj(index.wrapping_add(1), GuestAddress(avail(queue) + 2)).unwrap();
    }

    pub(crate) fn notify(&self, queue: usize) {
        self.set(0x50, queue as u32);
    }

    pub(crate) fn used_count(&self, queue: usize) -> u16 {
        self.u16_at(used(queue) + 2)
    }

    pub(crate) fn used_len(&self, queue: usize, index: u64) -> u32 {
        self.memory.read_obj(GuestAddress(used(queue) + 4 + 8 * index + 4)).unwrap()
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.get(0x70) as u8 & NEEDS_RESET != 0
    }

    /// Publishes each of [`HOSTILE`] on `queue` of a device that `start`s, and
    /// hands its name to `survived`, which waits for what must become of it.
    /// Descriptors have `flags`, too, and follow `first`, if it is given, in
    /// their chain.
    pub(crate) fn misbehave(
        &self,
        queue: usize,
        (first, flags): (Option<(u64, u32)>, u16),
        start: impl Fn(),
        survived: impl Fn(&str),
    ) {
        const FIRST: u16 = SIZE - 1;
        for (name, descriptors, head) in HOSTILE {
            start();
            for (index, address, len, own_flags, next) in *descriptors {
                self.describe(queue, *index, *address, *len, own_flags | flags, *next);
            }
            match first {
                Some((address, len)) if *head < SIZE => {
                    self.describe(queue, FIRST, address, len, NEXT, *head);
                    self.publish(queue, FIRST);
                }
                Some(_) | None => self.publish(queue, *head),
            }
            self.notify(queue);
            survived(name);
        }
    }

    fn bitmap(&self) -> &WrittenPages {
        let region: &vm_memory::MmapRegion<WrittenPages> = self.memory.iter().next().unwrap();
        region.bitmap()
    }

    /// The pages that the VMM is known to have written.
    pub(crate) fn dirty_pages(&self) -> Vec<usize> {
        (0..256).filter(|n| self.bitmap().dirty_at(n * 4096)).collect()
    }

    pub(crate) fn forget_dirty(&self) {
        self.bitmap().take_words(|_, _| {});
    }

    /// A copy of this guest's memory, as on another host.
    pub(crate) fn memory_elsewhere(&self) -> GuestMemory {
        let copy = crate::device::fixture::memory();
        copy.write_slice(&self.bytes_at(0, 1 << 20), GuestAddress(0)).unwrap();
        copy
    }
}
