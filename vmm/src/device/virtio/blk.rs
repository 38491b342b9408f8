//! A disk on a raw image (VIRTIO 1.2, section 5.2), with one queue.
//!
//! ```text
//!   worker `blk-N`:   under the lock                 without it
//!                     ── take a request, copy ─────▶ one step of it: read, write,
//!                     ◀─ copy, count it as done ──── flush or clear the image
//! ```
//!
//! Offered: VERSION_1, EVENT_IDX, INDIRECT_DESC, SEG_MAX, BLK_SIZE; RO, or
//! FLUSH, DISCARD and WRITE_ZEROES. Requests are served one after another, in
//! steps of [`STEP_BYTES`] at most, and the lock is not held while the host's
//! disk works: neither a vCPU at the registers nor a pause waits for it. Bytes
//! pass through a buffer of the worker's, as those of network devices do and
//! for the same reason.
//!
//! **Parking.** A request is counted as taken only when it is done. So the
//! saved state has none in flight, and whoever goes on from it (here after a
//! pause that is not noticed, or another host) does the request that was under
//! way: again from its beginning if it was begun elsewhere. That is sound, as
//! the guest has not been told of its end: reads and flushes can be repeated,
//! and so can writes of the same bytes to the same place. `park` waits for a
//! step that changes the image, so a parked device leaves the image alone; it
//! does not wait for reads and flushes, which may take long.
//!
//! A driver that does not take FLUSH is told of a write when it is durable.

use std::{io, os::fd::RawFd, sync::Arc};

use virtio_bindings::bindings::{virtio_blk as blk, virtio_config, virtio_ring};
use virtio_queue::{QueueOwnedT, QueueT};

use super::{
    chain::{Buffers, Direction, PARTS_MAX, QueueFault},
    device::{Backend, Device, Served, arm, finish, is_idle},
    transport::{Identity, Transport},
};
use crate::device::GuestMemory;

pub mod image;
mod job;
mod request;
#[cfg(test)]
mod tests;

use self::{
    image::{Image, SECTOR_BYTES},
    job::{Job, Step},
    request::{RANGE_SECTORS_MAX, RANGES_MAX, Request, Status},
};

/// The one queue.
const QUEUE: usize = 0;
/// Bytes that are read or written without looking at the lock.
pub(crate) const STEP_BYTES: usize = 256 << 10;
/// Requests that are served under one hold of the lock, if they need no I/O.
const BATCH_REQUESTS_MAX: usize = 64;
/// Longest serial number, in bytes.
pub const SERIAL_BYTES_MAX: usize = blk::VIRTIO_BLK_ID_BYTES as usize;
/// VIRTIO 1.2, section 5: a block device.
const DEVICE_ID: u32 = 2;

/// What a disk did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskStats {
    /// Requests that read.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Requests that wrote.
    pub writes: u64,
    /// Bytes that they wrote.
    pub written_bytes: u64,
    /// Requests that made writes durable.
    pub flushes: u64,
    /// Requests that asked for what cannot be, e.g. beyond the disk's end.
    pub refused: u64,
    /// Requests that failed for the host's disk.
    pub errors: u64,
    /// How often the guest did what a driver may not.
    pub violations: u64,
}

/// A disk between its queue and its image.
#[derive(Debug)]
pub(crate) struct Disk {
    image: Arc<Image>,
    serial: [u8; SERIAL_BYTES_MAX],
    stats: DiskStats,
    /// Rises when requests in hand are to be forgotten.
    era: u64,
    /// The worker is at a step that changes the image.
    changing: bool,
    /// The guest will notify of the next request, as none was there.
    armed: bool,
    buffers: Buffers,
}

/// What the worker has in hand.
#[derive(Debug)]
pub(crate) struct Hand {
    /// The request under way.
    job: Option<Job>,
    /// What is to be done next of it, without the lock.
    step: Option<Step>,
    /// How that ended.
    outcome: Option<io::Result<()>>,
    /// Bytes on their way.
    bytes: Vec<u8>,
}

impl Default for Hand {
    fn default() -> Self {
        Self { job: None, step: None, outcome: None, bytes: vec![0; STEP_BYTES] }
    }
}

impl Disk {
    /// A disk on `image`, which the guest knows by `serial`.
    ///
    /// # Panics
    ///
    /// If `serial` is longer than [`SERIAL_BYTES_MAX`].
    pub(crate) fn new(image: Arc<Image>, serial: &str) -> Self {
        let mut padded = [0; SERIAL_BYTES_MAX];
        padded[..serial.len()].copy_from_slice(serial.as_bytes());
        Self {
            image,
            serial: padded,
            stats: DiskStats::default(),
            era: 0,
            changing: false,
            armed: false,
            buffers: Buffers::default(),
        }
    }

    /// Takes note of how the last step ended, and finds the next.
    fn advance(
        &mut self,
        device: &Device<Self>,
        transport: &mut Transport,
        hand: &mut Hand,
    ) -> Result<Served, QueueFault> {
        let memory = &device.memory;
        let current = hand.job.take().filter(|job| job.era == self.era);
        let outcome = hand.outcome.take();
        if let (Some(mut job), Some(outcome)) = (current, outcome) {
            let status = match outcome {
                Ok(()) => {
                    job.finish_step(memory, &hand.bytes)?;
                    if self.begin_step(&mut job, memory, hand)? {
                        hand.job = Some(job);
                        return Ok(Served { more: true, ..Served::default() });
                    }
                    Status::Ok
                }
                Err(error) => self.failed(&job, &error),
            };
            self.complete(transport, memory, &job, status)?;
            self.buffers = job.buffers;
        }
        self.take(device, transport, hand)
    }

    /// Takes requests until one needs I/O.
    fn take(
        &mut self,
        device: &Device<Self>,
        transport: &mut Transport,
        hand: &mut Hand,
    ) -> Result<Served, QueueFault> {
        let memory = &device.memory;
        let durable = !transport.has_accepted(blk::VIRTIO_BLK_F_FLUSH);
        if is_idle(&transport.queues[QUEUE], memory, self.armed)? {
            return Ok(Served::default());
        }
        self.armed = false;
        transport.queues[QUEUE].disable_notification(memory)?;
        for _ in 0..BATCH_REQUESTS_MAX {
            if device.is_parked() {
                break;
            }
            let queue = &mut transport.queues[QUEUE];
            if !self.buffers.pop(queue, memory, Direction::Both)? {
                if arm(queue, memory, &mut self.armed)? {
                    return Ok(Served::default());
                }
                continue;
            }
            // It is taken when it is done.
            queue.go_to_previous_position();
            let request = Request::parse(&self.buffers, memory, &self.image)?;
            let buffers = std::mem::take(&mut self.buffers);
            let (request, refusal) = match request {
                Ok(request) => (Some(request), None),
                Err(status) => (None, Some(status)),
            };
            let mut job = Job::new(self.era, request, buffers, durable);
            if self.begin_step(&mut job, memory, hand)? {
                hand.job = Some(job);
                break;
            }
            self.complete(transport, memory, &job, refusal.unwrap_or(Status::Ok))?;
            self.buffers = job.buffers;
        }
        Ok(Served { more: true, ..Served::default() })
    }

    /// Puts the job's next step in hand, with the bytes that it needs; `false`
    /// if none is left.
    fn begin_step(
        &mut self,
        job: &mut Job,
        memory: &GuestMemory,
        hand: &mut Hand,
    ) -> Result<bool, QueueFault> {
        hand.step = job.next_step(memory, &mut hand.bytes)?;
        self.changing = hand.step.as_ref().is_some_and(Step::changes_image);
        Ok(hand.step.is_some())
    }

    /// The host's disk did not do a step.
    fn failed(&mut self, job: &Job, error: &io::Error) -> Status {
        if error.kind() == io::ErrorKind::Unsupported && job.is_discard() {
            return Status::Unsupported;
        }
        self.stats.errors += 1;
        // A guest that insists shall not fill the log.
        if self.stats.errors.is_power_of_two() {
            let (path, errors) = (self.image.path().display(), self.stats.errors);
            tracing::warn!(%path, %error, errors, "a request to a disk failed: the guest is told");
        }
        Status::IoError
    }

    /// Tells the guest how its request ended.
    fn complete(
        &mut self,
        transport: &mut Transport,
        memory: &GuestMemory,
        job: &Job,
        status: Status,
    ) -> Result<(), QueueFault> {
        let buffers = &job.buffers;
        let mut written = 0;
        if status == Status::Ok {
            written = job.bytes_to_guest();
            if job.is_identify() {
                written = SERIAL_BYTES_MAX.min(buffers.len - buffers.readable - 1);
                buffers.write(memory, buffers.readable, &self.serial[..written])?;
            }
        }
        self.count(job, status);
        let queue = &mut transport.queues[QUEUE];
        if !queue.ready() {
            // The guest has stopped it meanwhile.
            return Ok(());
        }
        buffers.write(memory, buffers.len - 1, &[status as u8])?;
        queue.set_next_avail(queue.next_avail().wrapping_add(1));
        queue.add_used(memory, buffers.head, written as u32 + 1)?;
        finish(transport, memory, QUEUE, 1)
    }

    fn count(&mut self, job: &Job, status: Status) {
        let stats = &mut self.stats;
        match (&job.request, status) {
            (None, _) => stats.refused += 1,
            (Some(Request::Read(extent)), Status::Ok) => {
                stats.reads += 1;
                stats.read_bytes += extent.len;
            }
            (Some(Request::Write(extent)), Status::Ok) => {
                stats.writes += 1;
                stats.written_bytes += extent.len;
            }
            (Some(Request::Flush), Status::Ok) => stats.flushes += 1,
            (Some(_), _) => {}
        }
    }
}

impl Backend for Disk {
    const KIND: &'static str = "virtio-blk";
    const WORKER: &'static str = "blk";
    type Hand = Hand;

    fn identity(&self) -> Identity {
        let mut features = 1 << virtio_config::VIRTIO_F_VERSION_1
            | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX
            | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE;
        if self.image.is_read_only() {
            features |= 1 << blk::VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << blk::VIRTIO_BLK_F_FLUSH
                | 1 << blk::VIRTIO_BLK_F_DISCARD
                | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
        }
        let config = config_space(&self.image);
        Identity { device_id: DEVICE_ID, features, config, queues: 1 }
    }

    fn serve(device: &Device<Self>, hand: &mut Hand) -> Served {
        let served =
            device.enter(|state| state.backend.advance(device, &mut state.transport, hand));
        let Some(step) = hand.step.take() else { return served };
        let image = Arc::clone(&device.lock().backend.image);
        hand.outcome = Some(step.carry_out(&image, &mut hand.bytes));
        if step.changes_image() {
            device.settle(|disk| disk.changing = false);
        }
        served
    }

    fn source(&self) -> Option<RawFd> {
        None
    }

    fn is_quiet(&self) -> bool {
        !self.changing
    }

    fn wake(&mut self) {}

    fn forget(&mut self) {
        self.era += 1;
        self.armed = false;
    }

    fn adopted(&mut self) {
        self.forget();
    }
}

impl Device<Disk> {
    /// The image.
    pub(crate) fn image(&self) -> Arc<Image> {
        Arc::clone(&self.lock().backend.image)
    }

    /// Figures.
    pub(crate) fn stats(&self) -> DiskStats {
        let state = self.lock();
        DiskStats { violations: state.transport.violations(), ..state.backend.stats }
    }
}

/// `struct virtio_blk_config` (VIRTIO 1.2, section 5.2.4) up to
/// `write_zeroes_may_unmap`; what no feature speaks of is zero.
fn config_space(image: &Image) -> Vec<u8> {
    let mut config = vec![0; 60];
    let mut put = |at: usize, value: u32| {
        config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    let sectors = image.bytes() / SECTOR_BYTES;
    put(0, sectors as u32);
    put(4, (sectors >> 32) as u32);
    // Two descriptors of a chain are for header and status.
    put(12, PARTS_MAX as u32 - 2);
    put(20, SECTOR_BYTES as u32);
    if !image.is_read_only() {
        // Discards, aligned to a sector; then zeroes, which may discard.
        for (at, value) in [(36, RANGE_SECTORS_MAX), (40, RANGES_MAX as u32), (44, 1)] {
            put(at, value);
        }
        for (at, value) in [(48, RANGE_SECTORS_MAX), (52, RANGES_MAX as u32), (56, 1)] {
            put(at, value);
        }
    }
    config
}
