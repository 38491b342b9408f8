//! Virtio devices on the MMIO transport (VIRTIO 1.2, section 4.2).
//!
//! ```text
//!   vCPU ──registers──▶ transport ┐
//!        ──ioeventfd──▶ worker ───┴─ one lock per device ─▶ queues, guest memory, irqfd
//! ```
//!
//! A device's registers, queues and interrupt are behind one lock, which its
//! worker holds for one batch of requests, or between the steps of a slow one.
//! So a reset by the guest and a `park` both fall between requests, and a
//! parked device touches nothing. What is the same for all kinds is in
//! `device`, `worker` and `transport`; a kind is a `Backend`.

pub mod blk;
pub(crate) mod chain;
pub(crate) mod device;
#[cfg(test)]
pub(crate) mod driver;
pub mod net;
pub mod rng;
pub mod tap;
pub(crate) mod transport;
#[cfg(test)]
mod transport_tests;
pub(crate) mod worker;
