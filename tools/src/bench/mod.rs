//! `romulus bench`: what protection costs on this machine, as tables and pictures.
//!
//! ```text
//!   romulus bench NAME ─▶ Report ─┬─▶ text on the terminal
//!                     (rehearsal::Cluster, or vmm alone)      └─▶ HTML, JSON, CSV in --out
//! ```
//!
//! Every benchmark measures its baseline in the same run, interleaved with what
//! is compared to it, and gives medians and the range of the repeats: machines
//! are noisy, ratios less so.

pub mod failover;
mod host_cost;
pub mod pause;
pub mod peer;
pub mod progress;
pub mod report;
mod rig;
mod setting;
pub mod statistics;
mod stop_copy_send;
pub mod sweep;
pub mod table;
pub mod wire;
pub mod workload;

use std::{io, path::PathBuf};

use clap::{Args, Subcommand};
use thiserror::Error;
use vmm::{host::HostError, vm::VmError};

use self::{
    failover::FailoverArgs,
    pause::PauseArgs,
    peer::{PeerArgs, PeerError},
    progress::Progress,
    report::ReportError,
    sweep::SweepArgs,
    wire::{WireArgs, WireError},
};
pub use self::{report::Report, table::Table};
use crate::rehearsal::cluster::ClusterError;

/// The benchmarks.
#[derive(Debug, Clone, Subcommand)]
pub enum BenchCommand {
    /// The interval between checkpoints against latency, throughput, pause, wire and processors
    ///
    /// For every interval a guest of its own: first unprotected, then protected, with clients that
    /// ask at a rate, clients that ask as soon as they are answered, and none.
    #[command(
        after_help = "Examples:\n  romulus bench sweep\n  romulus bench sweep --workload idle --intervals 25 --epochs early --seconds 10"
    )]
    Sweep(SweepArgs),
    /// How long nobody answers when the primary is killed, part by part
    ///
    /// Default settings of the daemons. The process is killed with SIGKILL, again and again, on
    /// hosts in turn.
    #[command(after_help = "Example:\n  romulus bench failover --runs 20 --repeats 5")]
    Failover(FailoverArgs),
    /// How long the guest stands still, by dirty pages and by its size, and phase by phase
    ///
    /// Against the naive way (stop, copy, send, resume) on a guest that does the same, in turns.
    #[command(
        after_help = "Examples:\n  romulus bench pause\n  romulus bench pause --dirty 10000 --sizes 1024,16384 --count 200"
    )]
    Pause(PauseArgs),
    /// What an epoch's way moves, stage by stage: encode, hash, encrypt, ship, decode, apply
    ///
    /// Against memcpy, TCP and TLS over TCP, in turns, in GB a second and GB for a second of a
    /// processor. Needs neither root nor KVM.
    #[command(
        after_help = "Examples:\n  romulus bench wire\n  romulus bench wire --mib 2048 --repeats 9"
    )]
    Wire(WireArgs),
    /// How long the same guest stands still under QEMU: COLO's checkpoints, live migration
    ///
    /// Needs Debian's qemu-system-x86; what it cannot do here is said instead of a figure.
    #[command(
        after_help = "Examples:\n  romulus bench peer\n  romulus bench peer --pages 1000 --memory 2048 --seconds 20"
    )]
    Peer(PeerArgs),
}

impl BenchCommand {
    /// The options that all of them have.
    #[must_use]
    pub fn options(&self) -> &BenchOptions {
        match self {
            Self::Sweep(arguments) => &arguments.options,
            Self::Failover(arguments) => &arguments.options,
            Self::Pause(arguments) => &arguments.options,
            Self::Wire(arguments) => &arguments.options,
            Self::Peer(arguments) => &arguments.options,
        }
    }
}

/// Options of all benchmarks.
#[derive(Debug, Clone, Args)]
pub struct BenchOptions {
    /// Where the report goes: HTML, JSON, and CSV for each table
    #[arg(long, value_name = "DIR", default_value = "romulus-bench")]
    pub out: PathBuf,
    /// Measure everything so often, in turns; medians are reported, and the range
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
    /// A short run that shows that everything works; its figures mean little
    #[arg(long)]
    pub quick: bool,
}

impl BenchOptions {
    /// How often everything is measured.
    #[must_use]
    pub fn repeats(&self) -> u32 {
        if self.quick { 1 } else { self.repeats }
    }
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// Daemons and clients.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] HostError),
    /// The guest of a baseline.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The baseline's files, threads or connections.
    #[error("the baseline cannot be measured: {0}: check the limits of this process")]
    Baseline(#[source] io::Error),
    /// The guest did not keep its word: figures of such a run mean nothing.
    #[error("the guest's answers are not sound ({0}): this is a bug, please report it")]
    Unsound(String),
    /// The new primary's events lack a part, or their order is another one.
    #[error("the parts of a failover cannot be told from the events; the end of its log:\n{0}")]
    Untold(String),
    /// The wire cannot be measured.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Nothing to compare others with.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The report cannot be kept.
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// Measures; the caller writes the report's files.
///
/// # Errors
///
/// [`BenchError`]
pub fn run(command: &BenchCommand, progress: &Progress) -> Result<Report, BenchError> {
    match command {
        BenchCommand::Sweep(arguments) => sweep::run(arguments, progress),
        BenchCommand::Failover(arguments) => failover::run(arguments, progress),
        BenchCommand::Pause(arguments) => pause::run(arguments, progress),
        BenchCommand::Wire(arguments) => Ok(wire::run(arguments, progress)?),
        BenchCommand::Peer(arguments) => Ok(peer::run(arguments, progress)?),
    }
}
