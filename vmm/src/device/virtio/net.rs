//! A network device (VIRTIO 1.2, section 5.1): queue 0 receives, queue 1 sends.
//!
//! ```text
//!   guest ──TX queue──▶ worker `net-N` ──▶ Outlet (held per epoch) ──▶ tap
//!   guest ◀──RX queue── worker `net-N` ◀─────────────────────────────── tap
//! ```
//!
//! Offered: VERSION_1, MAC, EVENT_IDX; no offloads, so that the twelve bytes of
//! header before each frame are zero (with one buffer counted) and a frame
//! lies within one receive buffer.
//!
//! A sent frame is copied out and its chain completed at once: it has left the
//! guest, and waits in the outlet. Received frames pass through a buffer of
//! the worker's: a `readv` straight into guest memory would fail on pages that
//! a capture has write-protected for user-mode faults only, and costs little
//! (0.2 us for 1,500 bytes). When the guest has no receive buffer the worker
//! does not look at the tap, and drops are the tap's business.
//!
//! **Parking.** The worker touches queues, guest memory and the interrupt only
//! under the device's lock and after seeing that it is not parked; it looks at
//! the flag between frames. So `park` is: set the flag, take the lock. What
//! the worker notices while parked it notes in `missed`, and `unpark` wakes it
//! then; after a restore always, for the notifications that the old process
//! consumed.
//!
//! **Stale frames.** A tap that stands by collects broadcasts. They are read
//! and dropped, [`STALE_FRAMES_MAX`] at most, before the first announcement or
//! the first unpark; frames that answer the announcement are kept.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use checkpoint::output::{Channel, Output};
use virtio_bindings::bindings::{virtio_config, virtio_net, virtio_ring};
use virtio_queue::{Queue, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::{
    chain::{Buffers, Direction, QueueFault, has_next},
    tap::Tap,
    transport::{Effect, Identity, Transport, state::Restored},
};
use crate::{device::GuestMemory, outlet::Outlet};

mod worker;

pub(crate) use worker::Worker;

/// The queue that receives.
const RX: usize = 0;
/// The queue that sends.
const TX: usize = 1;
/// How many queues.
pub(crate) const QUEUES: usize = 2;
/// `struct virtio_net_hdr_v1`: the header before each frame.
pub(crate) const HEADER_BYTES: usize = 12;
/// Largest frame either way.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 10;
/// Smallest frame: an Ethernet header.
const FRAME_BYTES_MIN: usize = 14;
/// Smallest receive buffer, header and all (VIRTIO 1.2, section 5.1.6.3.1).
const RX_BUFFER_BYTES_MIN: usize = 1526;
/// Frames that are served under one hold of the lock.
const BATCH_FRAMES_MAX: usize = 64;
/// Frames of a standing-by tap that are looked through: more than its queue has.
pub(crate) const STALE_FRAMES_MAX: usize = 4096;
/// VIRTIO 1.2, section 5: a network card.
const DEVICE_ID: u32 = 1;

/// What a network device did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetStats {
    /// Frames that the guest sent.
    pub tx_frames: u64,
    /// Frames of the guest that were too short or too long to send.
    pub tx_dropped: u64,
    /// Frames that the guest received.
    pub rx_frames: u64,
    /// Frames that no receive buffer of the guest can hold.
    pub rx_dropped: u64,
    /// Frames that a tap had collected while standing by.
    pub stale_dropped: u64,
    /// How often the guest did what a driver may not.
    pub violations: u64,
}

/// What the lock protects.
#[derive(Debug)]
struct State {
    transport: Transport,
    stats: NetStats,
    /// Work was noticed while parked.
    missed: bool,
    /// Nothing has been taken from the tap yet.
    fresh: bool,
    /// Registers came from saved state and have not been acted upon.
    restored: bool,
    /// By queue: the guest will notify of the next chain, as none was there.
    armed: [bool; QUEUES],
    tx: Buffers,
    rx: Buffers,
    /// The header that every received frame has, and room for a frame.
    frame: Vec<u8>,
}

/// A network device.
#[derive(Debug)]
pub(crate) struct Net {
    index: u8,
    mac: [u8; 6],
    state: Mutex<State>,
    parked: AtomicBool,
    stopping: AtomicBool,
    wake: EventFd,
    /// Notifications by queue; KVM writes them too.
    kicks: [EventFd; QUEUES],
    tap: Arc<Tap>,
    outlet: Arc<Outlet>,
    memory: GuestMemory,
}

/// What the worker should do after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Served {
    /// There is more to do at once.
    more: bool,
    /// A frame from the tap could be taken.
    wants_frames: bool,
    /// The outlet is full: look at the TX queue again soon.
    stalled: bool,
    /// The tap is gone.
    tap_lost: bool,
}

impl Net {
    /// Device `index` as after power-on, parked; `irq` raises its interrupt.
    pub(crate) fn new(
        index: u8,
        mac: [u8; 6],
        irq: Arc<EventFd>,
        tap: Arc<Tap>,
        memory: GuestMemory,
        outlet: Arc<Outlet>,
    ) -> std::io::Result<Self> {
        let features = 1 << virtio_config::VIRTIO_F_VERSION_1
            | 1 << virtio_net::VIRTIO_NET_F_MAC
            | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        let identity =
            Identity { device_id: DEVICE_ID, features, config: mac.to_vec(), queues: QUEUES };
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let mut state = State {
            transport: Transport::new(identity, irq),
            stats: NetStats::default(),
            missed: true,
            fresh: true,
            restored: false,
            armed: [false; QUEUES],
            tx: Buffers::default(),
            rx: Buffers::default(),
            frame: vec![0; HEADER_BYTES + FRAME_BYTES_MAX],
        };
        // num_buffers: one, for want of VIRTIO_NET_F_MRG_RXBUF.
        state.frame[10] = 1;
        Ok(Self {
            index,
            mac,
            state: Mutex::new(state),
            parked: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            wake: event()?,
            kicks: [event()?, event()?],
            tap,
            outlet,
            memory,
        })
    }

    /// The saved state's name.
    pub(crate) fn section(&self) -> String {
        format!("virtio-net.{}", self.index)
    }

    /// What a notification of queue `queue` is written to.
    pub(crate) fn kick(&self, queue: usize) -> &EventFd {
        &self.kicks[queue]
    }

    /// A vCPU reads a register.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().transport.read(offset, data);
    }

    /// A vCPU writes a register.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let effect = self.lock().transport.write(offset, data, &self.memory);
        match effect {
            Effect::None => {}
            Effect::Notify(queue) => signal(&self.kicks[queue]),
            Effect::Start => signal(&self.wake),
        }
    }

    /// Stops the worker between two frames.
    pub(crate) fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        drop(self.lock());
    }

    /// Lets the worker go on.
    pub(crate) fn unpark(&self) {
        let mut state = self.lock();
        if state.fresh {
            state.drop_stale(&self.tap);
        }
        if std::mem::take(&mut state.restored) {
            state.transport.interrupt_again();
            state.missed = true;
        }
        self.parked.store(false, Ordering::SeqCst);
        if std::mem::take(&mut state.missed) {
            signal(&self.wake);
        }
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        self.lock().transport.encode()
    }

    pub(crate) fn decode(&self, bytes: &[u8]) -> Result<Restored, checkpoint::SectionError> {
        self.lock().transport.decode(bytes, &self.memory)
    }

    /// Takes over decoded state; parked only.
    pub(crate) fn adopt(&self, restored: Restored) {
        let mut state = self.lock();
        state.transport.adopt(restored);
        state.armed = [false; QUEUES];
        state.restored = true;
    }

    /// Tells the network where the guest's MAC is now: a reverse ARP request,
    /// which needs no address (RFC 903), as from the guest itself.
    pub(crate) fn announce(&self) -> Result<(), crate::outlet::SpeakError> {
        let mut state = self.lock();
        if state.fresh {
            state.drop_stale(&self.tap);
        }
        drop(state);
        self.outlet.speak(self.index, &announcement(self.mac))
    }

    pub(crate) fn stats(&self) -> NetStats {
        let state = self.lock();
        NetStats { violations: state.transport.violations(), ..state.stats }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one batch of each queue.
    fn serve(&self) -> Served {
        if self.parked.load(Ordering::SeqCst) {
            return self.note_missed();
        }
        let mut state = self.lock();
        let mut served = Served::default();
        if self.parked.load(Ordering::SeqCst) {
            state.missed = true;
            return served;
        }
        if !state.transport.is_live() {
            return served;
        }
        let done = self
            .transmit(&mut state, &mut served)
            .and_then(|()| self.receive(&mut state, &mut served));
        if let Err(fault) = done {
            state.transport.fail(fault);
            return Served::default();
        }
        if self.parked.load(Ordering::SeqCst) {
            state.missed = true;
        }
        served
    }

    /// The worker was woken while parked. It may have been unparked meanwhile,
    /// then it looks again.
    fn note_missed(&self) -> Served {
        let mut state = self.lock();
        if self.parked.load(Ordering::SeqCst) {
            state.missed = true;
            return Served::default();
        }
        Served { more: true, ..Served::default() }
    }

    /// Takes frames from the guest.
    fn transmit(&self, state: &mut State, served: &mut Served) -> Result<(), QueueFault> {
        let State { transport, tx, frame, stats, armed: [_, armed], .. } = state;
        let frame = &mut frame[HEADER_BYTES..];
        let queue = &mut transport.queues[TX];
        if !queue.ready() || (*armed && !has_next(queue, &self.memory)?) {
            return Ok(());
        }
        *armed = false;
        queue.disable_notification(&self.memory)?;
        let mut taken = 0;
        loop {
            served.stalled = self.outlet.is_full();
            if taken == BATCH_FRAMES_MAX || served.stalled || self.parked.load(Ordering::SeqCst) {
                served.more = !served.stalled && has_next(queue, &self.memory)?;
                break;
            }
            if tx.pop(queue, &self.memory, Direction::FromGuest)? {
                match self.gather(tx, frame)? {
                    Some(len) => {
                        let channel = Channel::Network(self.index);
                        self.outlet.emit(Output { channel, payload: frame[..len].into() });
                        stats.tx_frames += 1;
                    }
                    None => stats.tx_dropped += 1,
                }
                queue.add_used(&self.memory, tx.head, 0)?;
                taken += 1;
            } else if !queue.enable_notification(&self.memory)? {
                *armed = true;
                break;
            }
        }
        self.finish(transport, TX, taken)
    }

    /// Copies a chain's frame, without its header, to `frame`; `None` if it is
    /// no frame.
    fn gather(&self, tx: &Buffers, frame: &mut [u8]) -> Result<Option<usize>, QueueFault> {
        let Some(len) = tx.len.checked_sub(HEADER_BYTES) else { return Ok(None) };
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len) {
            return Ok(None);
        }
        for (address, at, count) in tx.pieces(HEADER_BYTES, len) {
            self.memory
                .read_slice(&mut frame[at..at + count], address)
                .map_err(|_| QueueFault::Address)?;
        }
        Ok(Some(len))
    }

    /// Gives frames to the guest.
    fn receive(&self, state: &mut State, served: &mut Served) -> Result<(), QueueFault> {
        let State { transport, rx, frame, stats, armed: [armed, _], .. } = state;
        let queue = &mut transport.queues[RX];
        if !queue.ready() {
            return Ok(());
        }
        let mut given = 0;
        served.wants_frames = loop {
            if given == BATCH_FRAMES_MAX || self.parked.load(Ordering::SeqCst) {
                served.more = true;
                break true;
            }
            if !has_next(queue, &self.memory)? {
                *armed = *armed || !queue.enable_notification(&self.memory)?;
                if *armed {
                    break false;
                }
            }
            *armed = false;
            let len = match self.tap.receive(&mut frame[HEADER_BYTES..]) {
                Ok(Some(len)) => len,
                Ok(None) => break true,
                Err(error) => {
                    tracing::error!(tap = self.tap.name(), %error, "the tap is gone");
                    served.tap_lost = true;
                    break false;
                }
            };
            given += 1;
            if self.scatter(queue, rx, &frame[..HEADER_BYTES + len])? {
                stats.rx_frames += 1;
            } else {
                stats.rx_dropped += 1;
            }
        };
        self.finish(transport, RX, given)
    }

    /// Copies a frame behind its header to the next receive buffer; `false` if
    /// it does not fit.
    fn scatter(
        &self,
        queue: &mut Queue,
        rx: &mut Buffers,
        frame: &[u8],
    ) -> Result<bool, QueueFault> {
        if !rx.pop(queue, &self.memory, Direction::ToGuest)? {
            return Ok(false);
        }
        if rx.len < RX_BUFFER_BYTES_MIN {
            return Err(QueueFault::Small);
        }
        if rx.len < frame.len() {
            queue.set_next_avail(queue.next_avail().wrapping_sub(1));
            return Ok(false);
        }
        for (address, at, count) in rx.pieces(0, frame.len()) {
            self.memory
                .write_slice(&frame[at..at + count], address)
                .map_err(|_| QueueFault::Address)?;
        }
        queue.add_used(&self.memory, rx.head, frame.len() as u32)?;
        Ok(true)
    }

    /// Interrupts the guest for a batch, if it wants to know.
    fn finish(
        &self,
        transport: &mut Transport,
        queue: usize,
        count: usize,
    ) -> Result<(), QueueFault> {
        if count > 0 && transport.queues[queue].needs_notification(&self.memory)? {
            transport.interrupt_used();
        }
        Ok(())
    }
}

impl State {
    fn drop_stale(&mut self, tap: &Tap) {
        self.fresh = false;
        for _ in 0..STALE_FRAMES_MAX {
            match tap.receive(&mut self.frame[HEADER_BYTES..]) {
                Ok(Some(_)) => self.stats.stale_dropped += 1,
                Ok(None) | Err(_) => break,
            }
        }
    }
}

fn signal(event: &EventFd) {
    // It fails only at 2^64 - 1 uncollected events.
    let _ = event.write(1);
}

/// A broadcast RARP request of `mac` for itself, padded to 60 bytes.
fn announcement(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&0x8035_u16.to_be_bytes());
    // Ethernet, IPv4, lengths 6 and 4, reverse request.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

#[cfg(test)]
mod tests;
