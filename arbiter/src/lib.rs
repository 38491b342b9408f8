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
//!                        register file
//! ```

#![forbid(unsafe_code)]

mod file_store;
mod id;
mod register;
mod request;

pub use file_store::{Disk, FileStore, OsDisk, StoreError};
pub use id::{InvalidId, NodeId, VmId};
pub use register::{Register, Stamp, Term};
pub use request::{Illegal, Operation, Outcome, Record, Request};

/// Where registers are kept.
///
/// A store answers only after the change is durable, and serialises requests
/// for the same VM.
pub trait Store {
    /// The record of `vm`, or `None` if no primary ever claimed it.
    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError>;

    /// Decides `request` against the register of `vm` and makes the result
    /// durable.
    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError>;

    /// Every VM that has a register, in the order of their ids.
    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError>;
}
