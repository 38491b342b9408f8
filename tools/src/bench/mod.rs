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

pub mod progress;
pub mod report;
pub mod statistics;
pub mod table;

use std::path::PathBuf;

use clap::Args;
use thiserror::Error;
use vmm::host::HostError;

use self::report::ReportError;
pub use self::{report::Report, table::Table};
use crate::rehearsal::cluster::ClusterError;

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
    /// The report cannot be kept.
    #[error(transparent)]
    Report(#[from] ReportError),
}
