//! A network device (VIRTIO 1.2, section 5.1): queue 0 receives, queue 1 sends.
//!
//! ```text
//!   guest ──TX queue──▶ worker `net-N` ──▶ Outlet (held per epoch) ──▶ tap
//!   guest ◀──RX queue── worker `net-N` ◀─────────────────────────────── tap
//! ```
//!
//! Offered: VERSION_1, MAC, EVENT_IDX; no offloads, so that the twelve bytes of
//! header before each frame are zero (with one buffer counted) and a frame
//! lies within one receive buffer. No MTU and no STATUS either: Linux then
//! takes 1500 bytes and a link that is always up, and needs no control queue.
//!
//! A sent frame is copied out and its chain completed at once: it has left the
//! guest, and waits in the outlet. Received frames pass through a buffer of
//! the worker's: a `readv` straight into guest memory would fail on pages that
//! a capture has write-protected for user-mode faults only, and costs little
//! (0.2 us for 1,500 bytes). When the guest has no receive buffer the worker
//! does not look at the tap, and drops are the tap's business.
//!
//! **Stale frames.** A tap that stands by collects broadcasts. They are read
//! and dropped, [`STALE_FRAMES_MAX`] at most, before the first announcement or
//! the first unpark after the guest came here, each time that it comes; frames
//! that answer the announcement are kept.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use checkpoint::output::{Channel, Output};
use virtio_bindings::bindings::{virtio_config, virtio_net, virtio_ring};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{
    chain::{Buffers, Direction, QueueFault, has_next},
    device::{Backend, Device, Served, arm, finish, is_idle},
    tap::Tap,
    transport::{Identity, Transport},
};
use crate::{
    device::GuestMemory,
    outlet::{Outlet, SpeakError},
};

/// The queue that receives.
const RX: usize = 0;
/// The queue that sends.
const TX: usize = 1;
/// How many queues.
const QUEUES: usize = 2;
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

/// A network device between its queues and its tap.
#[derive(Debug)]
pub(crate) struct Net {
    index: u8,
    mac: [u8; 6],
    tap: Arc<Tap>,
    outlet: Arc<Outlet>,
    stats: NetStats,
    /// Nothing has been taken from the tap since the guest came here.
    fresh: bool,
    /// By queue: the guest will notify of the next chain, as none was there.
    armed: [bool; QUEUES],
    tx: Buffers,
    rx: Buffers,
    /// The header that every received frame has, and room for a frame.
    frame: Vec<u8>,
}

impl Net {
    /// Network device `index`, behind which `tap` is for frames that arrive,
    /// and `outlet` for those that leave.
    pub(crate) fn new(index: u8, mac: [u8; 6], tap: Arc<Tap>, outlet: Arc<Outlet>) -> Self {
        let mut frame = vec![0; HEADER_BYTES + FRAME_BYTES_MAX];
        // num_buffers: one, for want of VIRTIO_NET_F_MRG_RXBUF.
        frame[10] = 1;
        Self {
            index,
            mac,
            tap,
            outlet,
            stats: NetStats::default(),
            fresh: true,
            armed: [false; QUEUES],
            tx: Buffers::default(),
            rx: Buffers::default(),
            frame,
        }
    }

    /// Takes frames from the guest.
    fn transmit(
        &mut self,
        device: &Device<Self>,
        transport: &mut Transport,
        served: &mut Served,
    ) -> Result<(), QueueFault> {
        let memory = &device.memory;
        let queue = &mut transport.queues[TX];
        if is_idle(queue, memory, self.armed[TX])? {
            return Ok(());
        }
        self.armed[TX] = false;
        queue.disable_notification(memory)?;
        let mut taken = 0;
        loop {
            served.stalled = self.outlet.is_full();
            if taken == BATCH_FRAMES_MAX || served.stalled || device.is_parked() {
                served.more = !served.stalled && has_next(queue, memory)?;
                break;
            }
            if self.tx.pop(queue, memory, Direction::FromGuest)? {
                match self.gather(memory)? {
                    Some(len) => {
                        let channel = Channel::Network(self.index);
                        let payload = self.frame[HEADER_BYTES..][..len].into();
                        self.outlet.emit(Output { channel, payload });
                        self.stats.tx_frames += 1;
                    }
                    None => self.stats.tx_dropped += 1,
                }
                queue.add_used(memory, self.tx.head, 0)?;
                taken += 1;
            } else if arm(queue, memory, &mut self.armed[TX])? {
                break;
            }
        }
        finish(transport, memory, TX, taken)
    }

    /// Copies the frame of the chain that was taken, without its header;
    /// `None` if it is no frame.
    fn gather(&mut self, memory: &GuestMemory) -> Result<Option<usize>, QueueFault> {
        let Some(len) = self.tx.len.checked_sub(HEADER_BYTES) else { return Ok(None) };
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len) {
            return Ok(None);
        }
        self.tx.read(memory, HEADER_BYTES, &mut self.frame[HEADER_BYTES..][..len])?;
        Ok(Some(len))
    }

    /// Gives frames to the guest.
    fn receive(
        &mut self,
        device: &Device<Self>,
        transport: &mut Transport,
        served: &mut Served,
    ) -> Result<(), QueueFault> {
        let memory = &device.memory;
        let queue = &mut transport.queues[RX];
        if !queue.ready() {
            return Ok(());
        }
        let mut given = 0;
        served.watch = loop {
            if given == BATCH_FRAMES_MAX || device.is_parked() {
                served.more = true;
                break true;
            }
            if !has_next(queue, memory)? && arm(queue, memory, &mut self.armed[RX])? {
                break false;
            }
            self.armed[RX] = false;
            let len = match self.tap.receive(&mut self.frame[HEADER_BYTES..]) {
                Ok(Some(len)) => len,
                Ok(None) => break true,
                Err(error) => {
                    tracing::error!(tap = self.tap.name(), %error, "the tap is gone");
                    served.source_lost = true;
                    break false;
                }
            };
            given += 1;
            if self.scatter(queue, memory, HEADER_BYTES + len)? {
                self.stats.rx_frames += 1;
            } else {
                self.stats.rx_dropped += 1;
            }
        };
        finish(transport, memory, RX, given)
    }

    /// Copies the frame of `len` bytes, header and all, to the next receive
    /// buffer; `false` if it does not fit.
    fn scatter(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        len: usize,
    ) -> Result<bool, QueueFault> {
        let rx = &mut self.rx;
        if !rx.pop(queue, memory, Direction::ToGuest)? {
            return Ok(false);
        }
        if rx.len < RX_BUFFER_BYTES_MIN {
            return Err(QueueFault::Small);
        }
        if rx.len < len {
            queue.go_to_previous_position();
            return Ok(false);
        }
        rx.write(memory, 0, &self.frame[..len])?;
        queue.add_used(memory, rx.head, len as u32)?;
        Ok(true)
    }

    fn drop_stale(&mut self) {
        if !std::mem::take(&mut self.fresh) {
            return;
        }
        for _ in 0..STALE_FRAMES_MAX {
            match self.tap.receive(&mut self.frame[HEADER_BYTES..]) {
                Ok(Some(_)) => self.stats.stale_dropped += 1,
                Ok(None) | Err(_) => break,
            }
        }
    }
}

impl Backend for Net {
    const KIND: &'static str = "virtio-net";
    const WORKER: &'static str = "net";
    type Hand = ();

    fn identity(&self) -> Identity {
        let features = 1 << virtio_config::VIRTIO_F_VERSION_1
            | 1 << virtio_net::VIRTIO_NET_F_MAC
            | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        Identity { device_id: DEVICE_ID, features, config: self.mac.to_vec(), queues: QUEUES }
    }

    fn serve(device: &Device<Self>, (): &mut ()) -> Served {
        device.enter(|state| {
            let mut served = Served::default();
            state.backend.transmit(device, &mut state.transport, &mut served)?;
            state.backend.receive(device, &mut state.transport, &mut served)?;
            Ok(served)
        })
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.tap.as_raw_fd())
    }

    /// Frames that left the guest are the outlet's business.
    fn is_quiet(&self) -> bool {
        true
    }

    fn wake(&mut self) {
        self.drop_stale();
    }

    fn forget(&mut self) {
        self.armed = [false; QUEUES];
    }

    fn adopted(&mut self) {
        self.forget();
        // The guest may have been here before: what the tap has is old.
        self.fresh = true;
    }
}

impl Device<Net> {
    /// Tells the network where the guest's MAC is now: a reverse ARP request,
    /// which needs no address (RFC 903), as from the guest itself.
    pub(crate) fn announce(&self) -> Result<(), SpeakError> {
        let mut state = self.lock();
        state.backend.drop_stale();
        let Net { index, mac, outlet, .. } = &state.backend;
        outlet.speak(*index, &announcement(*mac))
    }

    /// Figures.
    pub(crate) fn stats(&self) -> NetStats {
        let state = self.lock();
        NetStats { violations: state.transport.violations(), ..state.backend.stats }
    }
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
