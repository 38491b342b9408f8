//! A whole cluster on one thread, from one seed, through the real machines.
//!
//! Nodes, the arbiter's register, the network between them and a guest that is
//! no more than a counter of the work it has done. Every output of the guest
//! says how much work it knew of; when it reaches the world, that much must
//! never be forgotten. Time is virtual; all chance comes from the seed.
//!
//! ```text
//!   Cluster ── queue of (time, Happening) ──▶ Node (Primary | Backup machine)
//!      │  ▲                                        │ actions
//!      │  └────────── messages, answers ◀──────────┘
//!      ▼
//!   Witness: what reached the world, who may speak
//! ```

mod chance;
mod cluster;
mod node;
mod witness;

pub use cluster::{Cluster, Faults, Report};
