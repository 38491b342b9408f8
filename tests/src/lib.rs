//! What the integration tests share.

#![forbid(unsafe_code)]

pub mod fuzz;
pub mod lab;
pub mod model;
pub mod simulation;
