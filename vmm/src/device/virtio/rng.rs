//! An entropy device (VIRTIO 1.2, section 5.4): one queue of buffers to fill.
//!
//! What it gives comes from the host's kernel and is different each time. That
//! is input like a frame that arrives: a guest goes on from its saved state, it
//! is not run again, so nothing has to come out the same on the other host. A
//! guest that was given bytes in an epoch that is lost is given others later;
//! nobody has seen the first ones, as output of that epoch was never released.

use std::os::fd::RawFd;

use virtio_bindings::bindings::{virtio_config, virtio_ring};
use virtio_queue::{QueueOwnedT, QueueT};

use super::{
    chain::{Buffers, Direction, QueueFault},
    device::{Backend, Device, Served, arm, finish, is_idle},
    transport::{Identity, Transport},
};

/// The one queue.
const QUEUE: usize = 0;
/// Most bytes for one buffer; the guest asks again for more.
const BYTES_MAX: usize = 4096;
/// Buffers that are served under one hold of the lock.
const BATCH_BUFFERS_MAX: usize = 16;
/// VIRTIO 1.2, section 5: an entropy source.
const DEVICE_ID: u32 = 4;

/// What an entropy device did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RngStats {
    /// Bytes that the guest was given.
    pub bytes: u64,
    /// How often the guest did what a driver may not.
    pub violations: u64,
}

/// An entropy device.
#[derive(Debug)]
pub(crate) struct Rng {
    stats: RngStats,
    /// The guest will notify of the next buffer, as none was there.
    armed: bool,
    buffers: Buffers,
    bytes: Vec<u8>,
}

impl Rng {
    pub(crate) fn new() -> Self {
        Self {
            stats: RngStats::default(),
            armed: false,
            buffers: Buffers::default(),
            bytes: vec![0; BYTES_MAX],
        }
    }

    fn fill(
        &mut self,
        device: &Device<Self>,
        transport: &mut Transport,
    ) -> Result<Served, QueueFault> {
        let memory = &device.memory;
        let mut served = Served::default();
        let queue = &mut transport.queues[QUEUE];
        if is_idle(queue, memory, self.armed)? {
            return Ok(served);
        }
        self.armed = false;
        queue.disable_notification(memory)?;
        let mut filled = 0;
        loop {
            if filled == BATCH_BUFFERS_MAX || device.is_parked() {
                served.more = true;
                break;
            }
            if !self.buffers.pop(queue, memory, Direction::ToGuest)? {
                if arm(queue, memory, &mut self.armed)? {
                    break;
                }
                continue;
            }
            let len = self.buffers.len.min(BYTES_MAX);
            if let Err(error) = getrandom::fill(&mut self.bytes[..len]) {
                tracing::warn!(%error, "the host has no entropy: the guest waits for it");
                queue.go_to_previous_position();
                served.stalled = true;
                break;
            }
            self.buffers.write(memory, 0, &self.bytes[..len])?;
            queue.add_used(memory, self.buffers.head, len as u32)?;
            self.stats.bytes += len as u64;
            filled += 1;
        }
        finish(transport, memory, QUEUE, filled)?;
        Ok(served)
    }
}

impl Backend for Rng {
    const KIND: &'static str = "virtio-rng";
    const WORKER: &'static str = "rng";
    type Hand = ();

    fn identity(&self) -> Identity {
        let features =
            1 << virtio_config::VIRTIO_F_VERSION_1 | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        Identity { device_id: DEVICE_ID, features, config: Vec::new(), queues: 1 }
    }

    fn serve(device: &Device<Self>, (): &mut ()) -> Served {
        device.enter(|state| state.backend.fill(device, &mut state.transport))
    }

    fn source(&self) -> Option<RawFd> {
        None
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn wake(&mut self) {}

    fn forget(&mut self) {
        self.armed = false;
    }

    fn adopted(&mut self) {
        self.forget();
    }
}

impl Device<Rng> {
    /// Figures.
    pub(crate) fn stats(&self) -> RngStats {
        let state = self.lock();
        RngStats { violations: state.transport.violations(), ..state.backend.stats }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::device::{
        fixture::{eventually, memory},
        virtio::{
            device::MmioDevice,
            driver::{BUFFERS, Driver, EVENT_IDX, WRITE},
            worker::Worker,
        },
    };

    fn rig() -> (Arc<Device<Rng>>, Driver, Worker) {
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let memory = memory();
        let rng = Device::new(0, Rng::new(), Arc::clone(&irq), memory.clone()).unwrap();
        let rng = Arc::new(rng);
        let worker = Worker::start(&rng).unwrap();
        let device = Arc::clone(&rng) as Arc<dyn MmioDevice>;
        (rng, Driver { device, memory, irq, queues: 1 }, worker)
    }

    fn ask(driver: &Driver, len: u32) {
        driver.describe(QUEUE, 0, BUFFERS, len, WRITE, 0);
        driver.publish(QUEUE, 0);
        driver.notify(QUEUE);
    }

    #[test]
    fn buffers_are_filled_up_to_a_bound_and_are_dirty() {
        let (rng, driver, _worker) = rig();
        rng.unpark();
        driver.start(&[EVENT_IDX]);
        for (turn, (asked, given)) in [(64, 64), (0, 0), (64 << 10, 4096)].into_iter().enumerate() {
            driver.forget_dirty();
            ask(&driver, asked);
            eventually("entropy", || driver.used_count(QUEUE) == turn as u16 + 1);
            assert_eq!(driver.used_len(QUEUE, turn as u64), given);
            let dirty = driver.dirty_pages().contains(&(BUFFERS as usize >> 12));
            assert_eq!(dirty, given > 0);
        }
        eventually("the interrupt", || driver.irq.read().is_ok());
        let (one, other) = (driver.bytes_at(BUFFERS, 32), driver.bytes_at(BUFFERS + 32, 32));
        assert!(one != other && one != [0; 32], "{one:?} {other:?}");
        assert_eq!(rng.stats(), RngStats { bytes: 4160, violations: 0 });
    }

    #[test]
    fn nothing_is_given_while_parked() {
        let (rng, driver, _worker) = rig();
        rng.unpark();
        driver.start(&[]);
        rng.park();
        rng.lock().missed = false;
        ask(&driver, 8);
        eventually("the worker to notice", || rng.lock().missed);
        assert_eq!(driver.used_count(QUEUE), 0);
        let saved = rng.save();
        assert_eq!((saved.name.as_str(), saved.version), ("virtio-rng.0", 1));
        rng.unpark();
        eventually("entropy", || driver.used_count(QUEUE) == 1);
    }

    #[test]
    fn hostile_chains_cost_the_guest_a_reset_and_nothing_else() {
        let (rng, driver, _worker) = rig();
        rng.unpark();
        let survived = |name: &str| eventually(name, || driver.needs_reset());
        let start = || driver.start(&[EVENT_IDX]);
        driver.misbehave(QUEUE, (None, WRITE), start, survived);
        driver.misbehave(QUEUE, (None, 0), start, survived);
        driver.start(&[EVENT_IDX]);
        ask(&driver, 8);
        eventually("service after it all", || driver.used_count(QUEUE) == 1);
    }
}
