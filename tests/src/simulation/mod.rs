//! A whole cluster on one thread, from one seed.
//!
//! The machines, the register, its file's rules, the wire format, chunks,
//! history, ledger, heat, staging and image are the real ones. Simulated are
//! the threads and sockets around them (*shells*, each of which names the file
//! that it mirrors), a guest with memory, devices and clients, the network, the
//! arbiter's disk, the operator, and everything that goes wrong. Time is
//! virtual, and all chance comes from the seed, so a run repeats exactly.
//!
//! ```text
//!   plan (from the seed)
//!     │
//!   cluster ── next happening ──▶ process: shell { real machine, .. }
//!     │  ▲                            │ frames, questions, timers, output
//!     │  └─────── agenda ◀── world ◀──┘
//!     ▼                        │
//!   faults, operator,          └──▶ witness: what can be seen from outside
//!   clients, arbiter
//! ```
//!
//! Nothing here names a clock, a socket, a thread or a file (the tidy test
//! holds that), nor anything whose order depends on the machine.

mod agenda;
mod arbiter_host;
mod attempt;
mod backup;
mod chance;
mod clock;
mod cluster;
mod guest;
mod happening;
mod inbox;
mod journal;
mod mutation;
mod network;
mod plan;
mod primary;
mod report;
mod witness;
mod world;

pub use attempt::{attempt, attempt_plan};
pub use cluster::Cluster;
pub use mutation::Mutation;
pub use plan::{Fault, Plan};
pub use report::Report;
pub use witness::{Rule, Violation};
