//! What is replicated, and when it counts.
//!
//! This crate knows guests only as page numbers, named sections of saved state
//! and output that waits; it knows neither KVM nor sockets nor the wall clock.

#![forbid(unsafe_code)]

pub mod chunk;
mod epoch;
pub mod message;
pub mod output;
mod page;
pub mod section;

pub use epoch::Epoch;
pub use page::{
    InvalidLayout, MemoryLayout, PAGE_BYTES, PageNumber, PageRun, PageSet, REGIONS_MAX,
};
pub use section::{Section, SectionError, Sections};
