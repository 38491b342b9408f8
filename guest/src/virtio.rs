//! virtio-net over virtio-mmio, version 2 (virtio 1.2, sections 4.2 and 5.1): one receive and one
//! transmit queue, one descriptor per frame, no offloads.
//!
//! Transmit buffers may come back late, as the VMM may hold output until a checkpoint is committed:
//! nothing waits for them, frames are refused or dropped while all are held.

use romulus_probe::params::VirtioMmio;

use crate::cpu;
use crate::virtqueue::{BUFFER_BYTES, DEVICE_WRITES, Queue, RECEIVE, TRANSMIT};

/// `virtio_net_hdr` with `num_buffers`, as VERSION_1 has it.
const HEADER_BYTES: usize = 12;
/// The longest Ethernet frame sent or received.
pub(crate) const FRAME_BYTES_MAX: usize = 1514;

pub(crate) const MAGIC: u32 = 0x7472_6976;
pub(crate) const DEVICE_NET: u32 = 1;
const FEATURE_MAC: u32 = 1 << 5;
/// VERSION_1 is bit 32.
const FEATURE_HIGH_VERSION_1: u32 = 1;

pub(crate) mod register {
    pub(crate) const MAGIC: u64 = 0x000;
    pub(crate) const VERSION: u64 = 0x004;
    pub(crate) const DEVICE_ID: u64 = 0x008;
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub(crate) const QUEUE_SELECT: u64 = 0x030;
    pub(crate) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(crate) const QUEUE_SIZE: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
    pub(crate) const INTERRUPT_ACK: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub(crate) const QUEUE_DRIVER: u64 = 0x090;
    pub(crate) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(crate) const CONFIG: u64 = 0x100;
}

pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    pub(crate) const DRIVER: u32 = 2;
    pub(crate) const DRIVER_OK: u32 = 4;
    pub(crate) const FEATURES_OK: u32 = 8;
    /// The driver broke a rule of its queues.
    pub(crate) const NEEDS_RESET: u32 = 0x40;
    pub(crate) const FAILED: u32 = 0x80;
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
        if !self.queue.has_free() {
            self.queue.want_interrupts(true);
            // One may have come back just before the wish was seen.
            self.reclaim();
        }
        self.queue.has_free()
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
        if self.queue.has_free() {
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
        let mut receive = Queue::new(registers, 0, &RECEIVE).ok_or(VirtioError::Queue)?;
        let transmit = Queue::new(registers, 1, &TRANSMIT).ok_or(VirtioError::Queue)?;
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
