//! The composition root: the `romulus` binary, daemons, control API, telemetry.
//!
//! ```text
//!   main ─▶ cli ─┬─▶ config ─▶ primary │ backup │ arbiter_daemon   (one process each)
//!                │                └──────┴────▶ daemon: control socket, signals, telemetry
//!                ├─▶ control::Client ─▶ the Unix socket of such a process
//!                ├─▶ doctor, pki
//!                └─▶ rehearsal: network namespaces and the probe's client, for demos and drills
//! ```
#![forbid(unsafe_code)]

pub mod arbiter_daemon;
pub mod backup;
pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
mod exit;
pub mod jail;
pub mod linux_guest;
pub mod node;
pub mod primary;
pub mod probe_guest;
pub mod rehearsal;
mod roles;
pub mod telemetry;

pub use exit::Exit;
