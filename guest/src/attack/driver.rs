//! What an attack has of a driver: bringing a device up on rings in the arena, publishing whatever
//! chains, and a sound request as a proof that the device still serves.

use core::sync::atomic::{Ordering, fence};

use romulus_probe::attack::{BUFFERS, Chain, Descriptor, NEXT, WRITE};
use romulus_probe::params::VirtioMmio;

use super::arena;
use crate::virtio::{MAGIC, register, status};
use crate::{clock, cpu};

const DEVICE_BLOCK: u32 = 2;
const DEVICE_ENTROPY: u32 = 4;
/// Bytes from one queue's rings to the next's.
const QUEUE_STRIDE: u64 = 0x4000;
const QUEUES_MAX: u32 = 2;
/// A bound on failure: hosts stand still, and move.
const PATIENCE_US: u64 = 60_000_000;
const LOOK_US: u64 = 20;

/// A device under attack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) registers: u64,
    pub(super) id: u32,
    pub(super) queues: u32,
    size: u16,
    available: [u16; QUEUES_MAX as usize],
}

/// Where the parts of a queue are in the arena.
pub(super) fn descriptors(queue: u32) -> u64 {
    u64::from(queue) * QUEUE_STRIDE
}

pub(super) fn driver_ring(queue: u32) -> u64 {
    descriptors(queue) + 0x2000
}

pub(super) fn device_ring(queue: u32) -> u64 {
    descriptors(queue) + 0x3000
}

impl Device {
    /// The device at `place`, if there is one.
    pub(super) fn find(place: VirtioMmio) -> Option<Self> {
        let registers = place.base;
        let read = |register| cpu::mmio_read32(registers + register);
        let id = read(register::DEVICE_ID);
        if read(register::MAGIC) != MAGIC || id == 0 {
            return None;
        }
        let queues = (0..QUEUES_MAX).take_while(|queue| {
            cpu::mmio_write32(registers + register::QUEUE_SELECT, *queue);
            read(register::QUEUE_SIZE_MAX) > 0
        });
        let queues = queues.count() as u32;
        Some(Self { registers, id, queues, size: 8, available: [0; QUEUES_MAX as usize] })
    }

    fn read(&self, register: u64) -> u32 {
        cpu::mmio_read32(self.registers + register)
    }

    fn write(&self, register: u64, value: u32) {
        cpu::mmio_write32(self.registers + register, value);
    }

    pub(super) fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    pub(super) fn reset(&self) {
        self.write(register::STATUS, 0);
        assert_eq!(self.status(), 0, "device {} at {:#x} is not reset", self.id, self.registers);
    }

    /// From any state to one that serves, with `features` beside VERSION_1 and queues of `size`.
    pub(super) fn start(&mut self, features: u32, size: u16) {
        self.reset();
        let mut state = status::ACKNOWLEDGE;
        self.write(register::STATUS, state);
        state |= status::DRIVER;
        self.write(register::STATUS, state);
        for (half, features) in [(0, features), (1, 1)] {
            self.write(register::DEVICE_FEATURES_SELECT, half);
            let offered = self.read(register::DEVICE_FEATURES);
            self.write(register::DRIVER_FEATURES_SELECT, half);
            self.write(register::DRIVER_FEATURES, features & offered);
        }
        state |= status::FEATURES_OK;
        self.write(register::STATUS, state);
        self.size = size;
        self.available = [0; QUEUES_MAX as usize];
        (0..self.queues).for_each(|queue| self.set_queue(queue));
        self.write(register::STATUS, state | status::DRIVER_OK);
        assert_eq!(self.status(), state | status::DRIVER_OK, "device {} does not start", self.id);
    }

    fn set_queue(&self, queue: u32) {
        (0..QUEUE_STRIDE).step_by(8).for_each(|at| arena::put_u64(descriptors(queue) + at, 0));
        self.write(register::QUEUE_SELECT, queue);
        self.write(register::QUEUE_SIZE, self.size.into());
        for (register, offset) in [
            (register::QUEUE_DESCRIPTORS, descriptors(queue)),
            (register::QUEUE_DRIVER, driver_ring(queue)),
            (register::QUEUE_DEVICE, device_ring(queue)),
        ] {
            let address = arena::address() + offset;
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
        assert_eq!(self.read(register::QUEUE_READY), 1, "device {} takes no queue", self.id);
    }

    /// Brings it up if it does not serve.
    pub(super) fn start_if_down(&mut self, features: u32, size: u16) {
        let serves = status::DRIVER_OK | status::NEEDS_RESET | status::FAILED;
        if self.status() & serves != status::DRIVER_OK {
            self.start(features, size);
        }
    }

    pub(super) fn notify(&self, queue: u32) {
        fence(Ordering::SeqCst);
        self.write(register::QUEUE_NOTIFY, queue);
    }

    /// Lets the available ring name `head`, and its index leap by `leap`.
    pub(super) fn publish(&mut self, queue: u32, head: u16, leap: u16) {
        let available = &mut self.available[queue as usize];
        arena::put_u16(driver_ring(queue) + 4 + 2 * u64::from(*available % self.size), head);
        *available = available.wrapping_add(leap);
        fence(Ordering::Release);
        arena::put_u16(driver_ring(queue) + 2, *available);
    }

    pub(super) fn publish_chain(&mut self, queue: u32, chain: &Chain) {
        for (at, descriptor) in (0..).zip(chain.table) {
            arena::put_descriptor(descriptors(queue) + 16 * at, descriptor);
        }
        put_header(BUFFERS, chain.request, chain.sector);
        self.publish(queue, chain.head, chain.leap);
    }

    /// Publishes request `index` (0 to 7) that a driver may well make, on a queue of at least
    /// 8 descriptors that holds no other. True if the device will answer it by itself.
    pub(super) fn publish_sound(&mut self, index: u16, bytes: u32) -> bool {
        let at = BUFFERS + 0x1000 * u64::from(index);
        let buffer = |offset, len, flags, next| {
            let address = arena::address() + at + offset;
            Descriptor { address, len, flags, next }
        };
        match self.id {
            DEVICE_BLOCK => {
                // Eight requests of three descriptors would not fit: they share descriptors.
                put_header(at, 0, 0);
                arena::put_u16(at + 0xe00, 0xffff);
                for (entry, descriptor) in [
                    (0, buffer(0, 16, NEXT, 1)),
                    (1, buffer(0x200, bytes.next_multiple_of(512), NEXT | WRITE, 2)),
                    (2, buffer(0xe00, 1, WRITE, 0)),
                ] {
                    arena::put_descriptor(descriptors(0) + 16 * entry, descriptor);
                }
                self.publish(0, 0, 1);
                true
            }
            DEVICE_ENTROPY => {
                let descriptor = buffer(0, bytes, WRITE, 0);
                arena::put_descriptor(descriptors(0) + 16 * u64::from(index), descriptor);
                self.publish(0, index, 1);
                true
            }
            _ => {
                // A frame to nobody, if there is a queue that sends.
                let queue = self.queues - 1;
                put_frame(at);
                let descriptor = buffer(0, 12 + 60, 0, 0);
                arena::put_descriptor(descriptors(queue) + 16 * u64::from(index), descriptor);
                self.publish(queue, index, 1);
                false
            }
        }
    }

    /// The device serves a sound driver, whatever was done to it before; reset afterwards.
    pub(super) fn prove(&mut self) {
        self.start(0, 8);
        if self.publish_sound(0, 512) {
            self.notify(0);
            let used = || arena::get_u16(device_ring(0) + 2);
            let mut waited_us = 0;
            while used() == 0 {
                let Self { id, registers, .. } = self;
                assert!(waited_us < PATIENCE_US, "device {id} at {registers:#x} serves no more");
                clock::delay_us(LOOK_US);
                waited_us += LOOK_US;
            }
            assert_eq!(used(), 1, "device {} serves what was asked before its reset", self.id);
            if self.id == DEVICE_BLOCK {
                assert_eq!(arena::get_u8(BUFFERS + 0xe00), 0, "the disk refuses to be read");
            }
        }
        self.reset();
    }
}

/// A disk's request (virtio 1.2, section 5.2.6).
fn put_header(at: u64, request: u32, sector: u64) {
    arena::put_u32(at, request);
    arena::put_u32(at + 4, 0);
    arena::put_u64(at + 8, sector);
}

/// A broadcast of a protocol for experiments, from an address of nobody, after its header.
fn put_frame(at: u64) {
    (0..80).step_by(8).for_each(|offset| arena::put_u64(at + offset, 0));
    arena::put_u32(at + 12, u32::MAX);
    arena::put_u16(at + 16, u16::MAX);
    arena::put_u16(at + 18, 0x0002);
    arena::put_u16(at + 24, 0xb588);
}
