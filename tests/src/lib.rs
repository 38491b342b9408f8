//! What the integration tests share.

#![forbid(unsafe_code)]

pub mod lab;
pub mod model;
pub mod simulation;
