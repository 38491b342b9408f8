//! The arbiter on the network: one request and one answer per QUIC stream.
//!
//! ```text
//!   node ── ask ──▶ arbiter      the caller named in a request must be the
//!   node ◀─ answer ── arbiter    node of the certificate
//! ```
//!
//! The client repeats a request whose answer is lost, at the same arbiter or at
//! another one with the same registers: requests carry a stamp, by which a
//! store recognises what it has already done.

mod client;
mod clientele;
mod server;
mod way;

pub use client::{ArbiterClient, AskError};
pub use server::ArbiterServer;
