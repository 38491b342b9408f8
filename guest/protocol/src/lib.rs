//! What the probe guest and the programs that talk to it agree on.
//!
//! The probe guest is a tiny bare-metal guest that dirties memory in known patterns, answers
//! requests over UDP and checks itself. This crate holds the shared part, free of I/O, so that
//! both sides are built from the same definitions:
//!
//! | module | is |
//! |---|---|
//! | [`message`] | requests and answers of the service, fixed little-endian layouts |
//! | [`lane`] | the client's checker: proves that nothing it was told has been forgotten |
//! | [`history`] | the digest that chains every request of a client to all before it |
//! | [`pattern`] | how the guest dirties its working set |
//! | [`pace`] | holding a rate in small batches |
//! | [`content`] | what pages hold, as a function of page and version |
//! | [`record`] | what is remembered of a page, and the check of the page against it |
//! | [`service`] | the guest's memory of its clients |
//! | [`attack`] | what a hostile guest does to its machine, drawn from a seed |
//! | [`params`] | the guest's command line |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod answer;
pub mod attack;
pub mod content;
pub mod history;
pub mod lane;
pub mod message;
pub mod pace;
pub mod params;
pub mod pattern;
pub mod record;
pub mod service;
mod wire;

pub use content::Content;
pub use lane::{ClientLane, Verdict};
pub use message::{Answer, Message, Request};
pub use params::Params;
pub use pattern::{Pattern, Write};
pub use record::Record;

/// UDP port of the service.
pub const SERVICE_PORT: u16 = 7000;
/// The most vCPUs that the guest runs and that an answer has room for.
pub const VCPUS_MAX: usize = 8;
/// The most clients (lanes) that the guest remembers; ids are `0..LANES_MAX`.
pub const LANES_MAX: usize = 64;
/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// 64-bit words in a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
