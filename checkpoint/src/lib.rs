//! What is replicated, and when it counts.
//!
//! This crate knows guests only as page numbers, named sections of saved state
//! and output that waits; it knows neither KVM nor sockets nor the wall clock.

#![forbid(unsafe_code)]

pub mod backup;
pub mod choice;
pub mod chunk;
pub mod delta;
mod epoch;
pub mod heat;
pub mod history;
pub mod image;
pub mod ledger;
pub mod message;
mod note;
pub mod output;
pub mod pacing;
mod page;
pub mod plan;
pub mod primary;
mod question;
pub mod section;
mod shape;
pub mod staging;

pub use epoch::Epoch;
pub use note::Note;
pub use page::{
    InvalidLayout, MemoryLayout, PAGE_BYTES, PageNumber, PageRun, PageSet, REGIONS_MAX,
};
pub use question::{Answer, Question};
pub use section::{Section, SectionError, Sections};
