//! Virtio devices on the MMIO transport (VIRTIO 1.2, section 4.2).
//!
//! ```text
//!   vCPU ──registers──▶ transport ┐
//!        ──ioeventfd──▶ worker ───┴─ one lock per device ─▶ queues, guest memory, irqfd
//! ```
//!
//! A device's registers, queues and interrupt are behind one lock, which its
//! worker holds for one batch of requests. So a reset by the guest and a
//! `park` both fall between requests, and a parked device touches nothing.

pub(crate) mod chain;
pub mod net;
pub mod tap;
pub(crate) mod transport;
#[cfg(test)]
mod transport_tests;
