//! The composition root.

#![forbid(unsafe_code)]

pub mod probe_guest;
