//! The saved state of a virtio-mmio device, version 1, little-endian:
//!
//! ```text
//!   status:u8  interrupt_status:u8
//!   device_features_sel:u32  driver_features_sel:u32  queue_sel:u32
//!   accepted_features:u64
//!   config  := count:u16 byte*           must equal this device's
//!   queues  := count:u8 queue*
//!   queue   := max_size:u16 size:u16 next_avail:u16 next_used:u16
//!              flags:u8                  bit 0: ready, bit 1: event index
//!              desc:u64 avail:u64 used:u64
//! ```
//!
//! Decoding changes nothing; what it returns has been checked against this
//! device and its guest's memory, so adopting it cannot fail.

use checkpoint::SectionError;
use virtio_bindings::bindings::virtio_ring;
use virtio_queue::{Queue, QueueState, QueueT};

use super::{DRIVER_OK, FEATURES_OK, NEEDS_RESET, STATUS_KNOWN, STATUS_ORDER, Transport};
use crate::device::{GuestMemory, codec::Body};

/// The version of this layout.
pub(crate) const VERSION: u32 = 1;
const READY: u8 = 1;
const EVENT_IDX: u8 = 2;

/// Saved state that was found good.
#[derive(Debug)]
pub(crate) struct Restored {
    status: u8,
    interrupt_status: u8,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    accepted: u64,
    queues: Vec<Queue>,
}

impl Transport {
    /// The state, as drawn at the module's head.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.status, self.interrupt_status];
        for selector in [self.device_features_sel, self.driver_features_sel, self.queue_sel] {
            bytes.extend(selector.to_le_bytes());
        }
        bytes.extend(self.accepted.to_le_bytes());
        bytes.extend((self.identity.config.len() as u16).to_le_bytes());
        bytes.extend(&self.identity.config);
        bytes.push(self.queues.len() as u8);
        for queue in &self.queues {
            encode_queue(&queue.state(), &mut bytes);
        }
        bytes
    }

    /// Reads what [`Transport::encode`] wrote.
    pub(crate) fn decode(
        &self,
        bytes: &[u8],
        memory: &GuestMemory,
    ) -> Result<Restored, SectionError> {
        let mut body = Body::new(bytes);
        let status = body.u8()?;
        let interrupt_status = body.u8()?;
        let [device_features_sel, driver_features_sel, queue_sel] =
            [body.u32()?, body.u32()?, body.u32()?];
        let accepted = body.u64()?;
        if body.counted()? != self.identity.config {
            return Err(SectionError::Malformed(
                "a device is configured differently, e.g. its mac or the size of its disk",
            ));
        }
        if usize::from(body.u8()?) != self.queues.len() {
            return Err(SectionError::Malformed("a device has another number of queues"));
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for own in &self.queues {
            queues.push(decode_queue(&mut body, own.max_size(), accepted, memory)?);
        }
        body.finish()?;
        let restored = Restored {
            status,
            interrupt_status,
            device_features_sel,
            driver_features_sel,
            queue_sel,
            accepted,
            queues,
        };
        self.check(&restored)?;
        Ok(restored)
    }

    fn check(&self, restored: &Restored) -> Result<(), SectionError> {
        let status = restored.status & !NEEDS_RESET;
        let ordered = STATUS_ORDER
            .iter()
            .all(|(bit, before)| status & bit == 0 || status & before == *before);
        if u32::from(status) & !STATUS_KNOWN != 0 || !ordered || restored.interrupt_status & !3 != 0
        {
            return Err(SectionError::Malformed("a device has an impossible status"));
        }
        let negotiated = status & (FEATURES_OK | DRIVER_OK) != 0;
        if negotiated && restored.accepted & !self.identity.features != 0 {
            return Err(SectionError::Malformed(
                "a device was used with features not offered here",
            ));
        }
        Ok(())
    }

    /// Takes over decoded state.
    pub(crate) fn adopt(&mut self, restored: Restored) {
        self.status = restored.status;
        self.interrupt_status = restored.interrupt_status;
        self.device_features_sel = restored.device_features_sel;
        self.driver_features_sel = restored.driver_features_sel;
        self.queue_sel = restored.queue_sel;
        self.accepted = restored.accepted;
        self.queues = restored.queues;
    }
}

fn encode_queue(state: &QueueState, bytes: &mut Vec<u8>) {
    for number in [state.max_size, state.size, state.next_avail, state.next_used] {
        bytes.extend(number.to_le_bytes());
    }
    let ready = if state.ready { READY } else { 0 };
    let event_idx = if state.event_idx_enabled { EVENT_IDX } else { 0 };
    bytes.push(ready | event_idx);
    for address in [state.desc_table, state.avail_ring, state.used_ring] {
        bytes.extend(address.to_le_bytes());
    }
}

fn decode_queue(
    body: &mut Body<'_>,
    max_size: u16,
    accepted: u64,
    memory: &GuestMemory,
) -> Result<Queue, SectionError> {
    let [saved_max, size, next_avail, next_used] =
        [body.u16()?, body.u16()?, body.u16()?, body.u16()?];
    let flags = body.u8()?;
    let [desc_table, avail_ring, used_ring] = [body.u64()?, body.u64()?, body.u64()?];
    let event_idx_enabled = flags & EVENT_IDX != 0;
    let negotiated = accepted >> virtio_ring::VIRTIO_RING_F_EVENT_IDX & 1 == 1;
    if saved_max != max_size
        || flags & !(READY | EVENT_IDX) != 0
        || (event_idx_enabled && !negotiated)
    {
        return Err(SectionError::Malformed("a queue has another shape"));
    }
    let state = QueueState {
        max_size,
        next_avail,
        next_used,
        event_idx_enabled,
        size,
        ready: flags & READY != 0,
        desc_table,
        avail_ring,
        used_ring,
    };
    let queue = Queue::try_from(state)
        .map_err(|_| SectionError::Malformed("a queue has an impossible size or address"))?;
    if queue.ready() && !queue.is_valid(memory) {
        return Err(SectionError::Malformed("a queue lies outside RAM"));
    }
    Ok(queue)
}
