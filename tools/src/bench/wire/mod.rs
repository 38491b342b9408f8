//! `romulus bench wire`: how many bytes an epoch's way takes, stage by stage and
//! together, beside what bounds it.
//!
//! ```text
//!   memory ─▶ encode, hash ─▶ encrypt ─▶ ship ─▶ verify, decode ─▶ apply ─▶ memory
//!   memcpy                    TCP, TLS over TCP
//! ```
//!
//! Stages without a network run on one thread. What ships has both ends in this process,
//! so its processor time is that of both. Contenders take turns, round by round.

mod certificates;
mod contest;
mod meter;
mod session;
mod stream;
mod together;
mod work;

use std::{io, sync::Arc};

use checkpoint::chunk::ChunkError;
use clap::Args;
use thiserror::Error;
use transport::{
    AcceptError, BindError, DialError, SessionError,
    identity::{IdentityError, pki::PkiError},
};
use vmm::memory::MemoryError;

use self::{
    certificates::Certificates,
    contest::{Contender, Standing},
    meter::Sample,
};
use super::{
    BenchOptions, Report, Table,
    progress::Progress,
    report::{Chart, ChartKind},
    statistics::Spread,
    table::Cell,
};

/// What goes over a connection before it counts: until its windows and packets have
/// grown.
const AHEAD_BYTES: u64 = 128 << 20;

/// Arguments of `bench wire`.
#[derive(Debug, Clone, Args)]
pub struct WireArgs {
    /// How much every contender moves in a round, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=65_536))]
    pub mib: u64,
    /// Options of all benchmarks.
    #[command(flatten)]
    pub options: BenchOptions,
}

/// Why the wire was not measured.
#[derive(Debug, Error)]
pub enum WireError {
    /// The system refused a socket or a thread.
    #[error("cannot use the loopback network: is it up, and are there file descriptors?")]
    Network(#[from] io::Error),
    /// TLS for the baseline.
    #[error("cannot speak TLS over TCP")]
    Tls(#[from] rustls::Error),
    /// The baseline's certificates are not read.
    #[error("cannot read the certificates that were just made")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The baseline takes no authority.
    #[error("cannot check certificates of the authority that was just made")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// No certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No endpoint.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No session, as its dialler sees it.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No session, as the one called sees it.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// A session ended early.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// What was sent did not come out at the other end.
    #[error("the other end has gone before it had all")]
    Unanswered,
    /// A chunk was damaged on the way.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// No memory to apply to.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Measures the wire.
///
/// # Errors
///
/// [`WireError`]
pub fn run(arguments: &WireArgs, progress: &Progress) -> Result<Report, WireError> {
    let (rounds, mib) = match arguments.options.quick {
        true => (1, 64),
        false => (arguments.options.repeats(), arguments.mib),
    };
    progress.begin("making pages");
    let contenders = contenders()?;
    progress.expect(u64::from(rounds) * contenders.len() as u64);
    let seen = |name: &str| progress.begin(name);
    let standings = contest::hold(contenders, rounds, mib << 20, seen, || progress.done())?;
    let mut report = Report::new("wire", "What an epoch's way moves, stage by stage and together.")
        .option("mib", mib)
        .option("repeats", rounds);
    report.tables = vec![stages(&standings), ratios(&standings)];
    let [low, high] = Spread::names("rate");
    report.charts = vec![
        Chart::new(ChartKind::Bars, "Each stage", "stages", "what").y_within("rate", &low, &high),
        Chart::new(ChartKind::Bars, "Against TLS over TCP", "ratios", "what")
            .y_within("rate", &low, &high),
    ];
    Ok(report)
}

fn contenders() -> Result<Vec<Contender>, WireError> {
    let certificates = Arc::new(Certificates::new()?);
    let chunks = work::chunks();
    let mut all = work::contenders()?;
    all.extend(stream::contenders(&certificates, &chunks)?);
    all.extend(session::contenders(&certificates, &chunks)?);
    all.extend(together::contenders(&certificates)?);
    Ok(all)
}

fn stages(standings: &[Standing]) -> Table {
    let table = Table::new("stages", "What each stage moves, alone and together.")
        .column("stage", "")
        .column("what", "");
    let table = Spread::columns(table, "rate", "GB/s");
    let mut table = Spread::columns(table, "rate per CPU", "GB/CPU-s").note(
        "GB are 10^9 bytes of the guest's pages; CPU-seconds are of both ends, kernel included.",
    );
    for standing in standings {
        let mut row: Vec<Cell> =
            vec![standing.stage.to_string().into(), standing.name.as_str().into()];
        row.extend(Spread::cells(standing.spread(Sample::gb_per_s)));
        row.extend(Spread::cells(standing.spread(Sample::gb_per_cpu_s)));
        table.push(row);
    }
    table
}

/// Replication's encrypted connections against TLS over TCP, round by round.
fn ratios(standings: &[Standing]) -> Table {
    let table =
        Table::new("ratios", "Encrypted replication against TLS over TCP in the same round.")
            .column("what", "");
    let table = Spread::columns(table, "rate", "of TLS");
    let mut table = Spread::columns(table, "rate per CPU", "of TLS");
    let Some(tls) = standings.iter().find(|standing| standing.name == stream::TLS_OVER_TCP) else {
        return table;
    };
    for standing in standings.iter().filter(|standing| standing.name.starts_with("QUIC")) {
        let of_tls = |rate: fn(&Sample) -> f64| {
            let rounds = standing.samples.iter().zip(&tls.samples);
            Spread::of(rounds.map(|(sample, baseline)| rate(sample) / rate(baseline)))
        };
        let mut row: Vec<Cell> = vec![standing.name.as_str().into()];
        row.extend(Spread::cells(of_tls(Sample::gb_per_s)));
        row.extend(Spread::cells(of_tls(Sample::gb_per_cpu_s)));
        table.push(row);
    }
    table
}
