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

pub mod config;
pub mod control;
pub mod telemetry;
