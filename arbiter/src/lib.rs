//! Who may run a virtual machine.
//!
//! The arbiter keeps one [`Register`] per VM and changes it only by an atomic
//! test-and-set. The rules of that test ([`Request::decide`]) are a pure
//! function; a [`Store`] makes its result durable before anyone is answered.
//! Everything that keeps a network partition from yielding two live copies of
//! a guest rests on this crate, so it knows nothing of guests, networks or
//! clocks.
//!
//! ```text
//!   node ── Request ──▶ Store::execute ── Request::decide ──▶ Outcome ──▶ node
//!                            │ durable first
//!                            ▼
//!              register file, or another crate's cluster
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod file_store;
mod id;
mod register;
mod request;
mod store;

pub use file_store::{Disk, FileError, FileStore, OsDisk};
pub use id::{InvalidId, NodeId, VmId};
pub use register::{ImageId, Register, Stamp, Term};
pub use request::{IN_SYNC_MAX, Illegal, Operation, Outcome, Record, Request};
pub use store::{Store, StoreError, StoreId};
