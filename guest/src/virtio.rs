//! virtio-net over virtio-mmio, version 2 (virtio 1.2, sections 4.2 and 5.1): one receive and one
//! transmit queue, one descriptor per frame, no offloads.
//!
//! Invariants: a descriptor is owned either by the device (made available, not yet used) or by us
//! (in `free`). Transmit buffers may come back late, as the VMM may hold output until a checkpoint
//! is committed: nothing waits for them, frames are refused or dropped while all are held.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU16, Ordering, fence};

use romulus_probe::params::VirtioMmio;

use crate::cpu;

/// Descriptors in a queue; less if the device has less.
const QUEUE_MAX: usize = 256;
const BUFFER_BYTES: usize = 2048;
/// `virtio_net_hdr` with `num_buffers`, as VERSION_1 has it.
const HEADER_BYTES: usize = 12;
/// The longest Ethernet frame sent or received.
pub(crate) const FRAME_BYTES_MAX: usize = 1514;

const MAGIC: u32 = 0x7472_6976;
const DEVICE_NET: u32 = 1;
const FEATURE_MAC: u32 = 1 << 5;
/// VERSION_1 is bit 32.
const FEATURE_HIGH_VERSION_1: u32 = 1;

mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub(super) const QUEUE_SELECT: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(super) const CONFIG: u64 = 0x100;
}

mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const FAILED: u32 = 0x80;
}

/// Why a device is not driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VirtioError {
    /// Nothing there, or not a network device: look at the next.
    NotNetwork,
    /// A legacy device.
    Version(u32),
    /// It insists on features we lack, or lacks VERSION_1.
    Features,
    /// A queue is missing or too small.
    Queue,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const DEVICE_WRITES: u16 = 2;
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

struct Shared(UnsafeCell<QueueMemory>);

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

static RECEIVE: Shared = Shared(UnsafeCell::new(empty_queue()));
static TRANSMIT: Shared = Shared(UnsafeCell::new(empty_queue()));

/// One virtqueue.
struct Queue {
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
    fn new(registers: u64, index: u32, shared: &'static Shared) -> Result<Self, VirtioError> {
        let write = |register, value| cpu::mmio_write32(registers + register, value);
        write(register::QUEUE_SELECT, index);
        let max = cpu::mmio_read32(registers + register::QUEUE_SIZE_MAX);
        // A power of two, as the queue needs.
        let size = max.min(QUEUE_MAX as u32);
        if size < 2 || cpu::mmio_read32(registers + register::QUEUE_READY) != 0 {
            return Err(VirtioError::Queue);
        }
        let size = 1 << size.ilog2();
        let memory = shared.0.get();
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
        Ok(Self {
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
    fn buffer(&mut self, id: u16) -> &mut [u8; BUFFER_BYTES] {
        assert!(!self.is_device_owned[usize::from(id)]);
        // SAFETY: the device does not own it, and the borrow of `self` keeps it so.
        unsafe { &mut (*self.memory).buffers[usize::from(id)] }
    }

    fn take_free(&mut self) -> Option<u16> {
        self.free_len = self.free_len.checked_sub(1)?;
        Some(self.free[self.free_len])
    }

    fn give_free(&mut self, id: u16) {
        self.free[self.free_len] = id;
        self.free_len += 1;
    }

    /// Hands a buffer to the device.
    fn make_available(&mut self, id: u16, len: usize, flags: u16) {
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
    fn take_used(&mut self) -> Option<(u16, usize)> {
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

    fn want_interrupts(&self, wanted: bool) {
        // SAFETY: an atomic.
        unsafe { &(*self.memory).driver_flags }
            .store(if wanted { 0 } else { NO_INTERRUPT }, Ordering::SeqCst);
    }

    fn notify(&mut self) {
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

/// The receiving half.
pub(crate) struct Receiver {
    queue: Queue,
    frames: u64,
}

impl Receiver {
    /// A frame that has arrived; give it back with [`Self::recycle`].
    pub(crate) fn next_frame(&mut self) -> Option<ReceivedFrame> {
        let (id, len) = self.queue.take_used()?;
        self.frames += 1;
        Some(ReceivedFrame { id, len: len.max(HEADER_BYTES) })
    }

    pub(crate) fn bytes(&mut self, frame: &ReceivedFrame) -> &[u8] {
        &self.queue.buffer(frame.id)[HEADER_BYTES..frame.len]
    }

    pub(crate) fn recycle(&mut self, frame: ReceivedFrame) {
        self.queue.make_available(frame.id, BUFFER_BYTES, DEVICE_WRITES);
    }

    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }
}

/// A filled receive buffer.
pub(crate) struct ReceivedFrame {
    id: u16,
    len: usize,
}

/// The sending half.
pub(crate) struct Transmitter {
    queue: Queue,
    frames: u64,
    dropped: u64,
}

impl Transmitter {
    /// Whether a frame could be sent now. Asks for an interrupt when not.
    pub(crate) fn has_room(&mut self) -> bool {
        self.reclaim();
        if self.queue.free_len == 0 {
            self.queue.want_interrupts(true);
            // One may have come back just before the wish was seen.
            self.reclaim();
        }
        self.queue.free_len > 0
    }

    /// Sends what `fill` writes; if every buffer is held, the frame is written nowhere and counted.
    pub(crate) fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(len <= FRAME_BYTES_MAX);
        let Some(id) = self.queue.take_free() else {
            self.dropped += 1;
            return fill(&mut [0; FRAME_BYTES_MAX][..len]);
        };
        let buffer = self.queue.buffer(id);
        buffer[..HEADER_BYTES].fill(0);
        let result = fill(&mut buffer[HEADER_BYTES..HEADER_BYTES + len]);
        self.queue.make_available(id, HEADER_BYTES + len, 0);
        self.frames += 1;
        result
    }

    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn reclaim(&mut self) {
        while let Some((id, _)) = self.queue.take_used() {
            self.queue.give_free(id);
        }
        if self.queue.free_len > 0 {
            self.queue.want_interrupts(false);
        }
    }
}

/// A network device that runs.
pub(crate) struct VirtioNet {
    registers: u64,
    pub(crate) mac: [u8; 6],
    pub(crate) receiver: Receiver,
    pub(crate) transmitter: Transmitter,
}

impl VirtioNet {
    /// Brings a device up.
    pub(crate) fn open(device: VirtioMmio) -> Result<Self, VirtioError> {
        let registers = device.base;
        let read = |register| cpu::mmio_read32(registers + register);
        if read(register::MAGIC) != MAGIC || read(register::DEVICE_ID) != DEVICE_NET {
            return Err(VirtioError::NotNetwork);
        }
        match read(register::VERSION) {
            2 => {}
            version => return Err(VirtioError::Version(version)),
        }
        let opened = Self::negotiate(registers).and_then(|()| Self::start(registers));
        if opened.is_err() {
            cpu::mmio_write32(registers + register::STATUS, status::FAILED);
        }
        opened
    }

    fn negotiate(registers: u64) -> Result<(), VirtioError> {
        let read = |register| cpu::mmio_read32(registers + register);
        let write = |register, value| cpu::mmio_write32(registers + register, value);
        write(register::STATUS, 0);
        write(register::STATUS, status::ACKNOWLEDGE);
        write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for (half, wanted, required) in
            [(0, FEATURE_MAC, FEATURE_MAC), (1, FEATURE_HIGH_VERSION_1, FEATURE_HIGH_VERSION_1)]
        {
            write(register::DEVICE_FEATURES_SELECT, half);
            let offered = read(register::DEVICE_FEATURES);
            if offered & required != required {
                return Err(VirtioError::Features);
            }
            write(register::DRIVER_FEATURES_SELECT, half);
            write(register::DRIVER_FEATURES, offered & wanted);
        }
        write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        if read(register::STATUS) & status::FEATURES_OK == 0 {
            Err(VirtioError::Features)
        } else {
            Ok(())
        }
    }

    fn start(registers: u64) -> Result<Self, VirtioError> {
        let mut receive = Queue::new(registers, 0, &RECEIVE)?;
        let transmit = Queue::new(registers, 1, &TRANSMIT)?;
        transmit.want_interrupts(false);
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        cpu::mmio_write32(registers + register::STATUS, ok);
        while let Some(id) = receive.take_free() {
            receive.make_available(id, BUFFER_BYTES, DEVICE_WRITES);
        }
        let mut net = Self {
            registers,
            mac: core::array::from_fn(|at| {
                cpu::mmio_read8(registers + register::CONFIG + at as u64)
            }),
            receiver: Receiver { queue: receive, frames: 0 },
            transmitter: Transmitter { queue: transmit, frames: 0, dropped: 0 },
        };
        net.notify();
        Ok(net)
    }

    /// Before the rings are looked at: what happens after this raises a new edge.
    pub(crate) fn acknowledge_interrupt(&self) {
        let pending = cpu::mmio_read32(self.registers + register::INTERRUPT_STATUS);
        if pending != 0 {
            cpu::mmio_write32(self.registers + register::INTERRUPT_ACK, pending);
        }
    }

    /// Tells the device of new buffers and frames, once per batch.
    pub(crate) fn notify(&mut self) {
        self.receiver.queue.notify();
        self.transmitter.queue.notify();
    }
}
