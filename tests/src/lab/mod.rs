//! The lab: whole computers, each with a KVM of its own, on a machine that has
//! none that runs stock Linux.
//!
//! ```text
//!  this process                                 QEMU processes (TCG, SVM emulated)
//!
//!  lab ──┬─ packages   Debian packages          host-1 ─ KVM ─ the guest
//!        ├─ kernel     modules in order         host-2 ─ KVM ─ (its backup)
//!        ├─ image      what machines boot from  office ─ arbiter, clients
//!        ├─ machine    power, orders, console
//!        └─ switch ═══ the guests' network and the replication network, with
//!                      cuts, delays and losses
//! ```
//!
//! Nothing binary is committed: kernels and programs are Debian's, fetched when
//! a test needs them and kept in `target/lab`, the project's own program is the
//! one that Cargo built with the test. Waits are for conditions, with a bound.
//! A lab that is dropped takes its machines, sockets and folders with it; in a
//! panic it shows what its machines said.

mod client;
mod cluster;
mod configuration;
mod daemons;
mod folder;
mod guest;
pub mod image;
pub mod kernel;
pub mod machine;
mod materials;
pub mod packages;
mod program;
mod rehearsal;
pub mod switch;
pub mod tool;

pub use romulus::rehearsal::netns::{Direction, Place};

pub use self::{
    client::LoadClient,
    cluster::{Lab, LabError, Shape},
    configuration::{CONSOLE, PATIENT},
    guest::Guest,
    materials::{Boot, Materials, Series},
    rehearsal::Rehearsal,
};

/// Why a lab is impossible here, if it is.
#[must_use]
pub fn obstacle() -> Option<String> {
    let missing = tool::missing();
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    (!missing.is_empty())
        .then(|| format!("programs are missing: `apt-get install {}`", packages.join(" ")))
}
