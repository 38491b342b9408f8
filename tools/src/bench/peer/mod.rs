//! `romulus bench peer`: how long the same guest stands still for a checkpoint of
//! Romulus, for one of QEMU's COLO, and for a live migration of QEMU, in the same run.
//!
//! The guest is the probe: it writes so many pages in an interval, each whole and with
//! random content. What a QEMU cannot do here is said in the table instead of a figure.

mod colo;
mod migration;
mod ours;
mod qemu;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use thiserror::Error;

use self::qemu::Machine;
pub use self::qemu::QemuError;
use super::{BenchOptions, Report, Table, progress::Progress, statistics::quantile};
use crate::{bench::table::Cell, rehearsal::cluster::ClusterError};

/// Pages that a guest writes in a millisecond when each costs it a write fault: what
/// KVM without hardware support takes (docs/testing.md).
const PAGES_PER_MS_MAX: u64 = 40;
const INTERVAL_MS_MIN: u64 = 25;

/// Arguments of `bench peer`.
#[derive(Debug, Clone, Args)]
pub struct PeerArgs {
    /// Pages that the guest writes between two checkpoints; several with commas
    #[arg(long, value_name = "PAGES", value_delimiter = ',', default_values_t = [250, 1000, 5000, 10_000], value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub pages: Vec<u64>,
    /// The guest's memory, in MiB; QEMU's secondary takes twice as much
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(128..=16_384))]
    pub memory: u32,
    /// How long each is looked at, in s
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Options of all benchmarks.
    #[command(flatten)]
    pub options: BenchOptions,
}

/// Why there is no comparison.
#[derive(Debug, Error)]
pub enum PeerError {
    /// Our own side.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// No place for files.
    #[error("cannot make {folder}: make room in the temporary folder", folder = .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Compares pauses.
///
/// # Errors
///
/// [`PeerError`] if Romulus itself cannot be measured.
pub fn run(arguments: &PeerArgs, progress: &Progress) -> Result<Report, PeerError> {
    let folder = std::env::temp_dir().join(format!("romulus-peer-{}", std::process::id()));
    fs::create_dir_all(&folder)
        .map_err(|source| PeerError::Folder { folder: folder.clone(), source })?;
    let result = measure(arguments, &folder, progress);
    if let Err(error) = fs::remove_dir_all(&folder) {
        tracing::warn!(folder = %folder.display(), %error, "files were left over");
    }
    result
}

fn measure(arguments: &PeerArgs, folder: &Path, progress: &Progress) -> Result<Report, PeerError> {
    let quick = arguments.options.quick;
    let loads: Vec<Load> = match quick {
        true => vec![Load::of(250, 128)],
        false => arguments.pages.iter().map(|pages| Load::of(*pages, arguments.memory)).collect(),
    };
    let look = Duration::from_secs(if quick { 1 } else { arguments.seconds });
    let (repeats, steps) = (arguments.options.repeats(), 3 * loads.len() as u64);
    progress.expect(steps * u64::from(repeats));
    let mut rows: Vec<Row> = Vec::new();
    for repeat in 1..=repeats {
        for load in &loads {
            for contestant in [Contestant::Romulus, Contestant::Colo, Contestant::Migration] {
                progress.begin(&format!("{contestant}, {} pages", load.pages));
                let found = contestant.measure(folder, load, look)?;
                rows.push(Row { repeat, load: load.clone(), contestant, found });
                progress.done();
            }
        }
    }
    let mut report = Report::new("peer", "How long the same guest stands still, ours and QEMU's.")
        .option("memory_mib", loads[0].machine.memory_mib)
        .option("seconds", look.as_secs())
        .option("repeats", repeats)
        .option("qemu", qemu::version().unwrap_or_else(|error| error.to_string()));
    report.tables = vec![pauses(&rows), ratios(&rows)];
    Ok(report)
}

/// What the guest does.
#[derive(Debug, Clone)]
struct Load {
    pages: u64,
    interval: Duration,
    machine: Machine,
}

impl Load {
    /// `pages` in an interval that is long enough for them.
    fn of(pages: u64, memory_mib: u32) -> Self {
        let interval_ms = pages.div_ceil(PAGES_PER_MS_MAX).max(INTERVAL_MS_MIN);
        let rate = pages * 1000 / interval_ms;
        let cmdline = format!("probe.dirty=pages:{pages},rate:{rate},write:page,content:random");
        let machine = Machine { memory_mib, cmdline };
        Self { pages, interval: Duration::from_millis(interval_ms), machine }
    }
}

/// Who stops the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Romulus,
    Colo,
    Migration,
}

impl std::fmt::Display for Contestant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Romulus => "Romulus",
            Self::Colo => "QEMU COLO, periodic",
            Self::Migration => "QEMU live migration",
        })
    }
}

/// What stops there were.
#[derive(Debug)]
struct Stops {
    count: f64,
    mean_ms: f64,
    p99_ms: f64,
    dirty_pages: Option<f64>,
    remark: String,
}

#[derive(Debug)]
struct Row {
    repeat: u32,
    load: Load,
    contestant: Contestant,
    /// Or why there is nothing.
    found: Result<Stops, QemuError>,
}

impl Contestant {
    fn measure(
        self,
        folder: &Path,
        load: &Load,
        look: Duration,
    ) -> Result<Result<Stops, QemuError>, PeerError> {
        let Load { interval, machine, .. } = load;
        Ok(match self {
            Self::Romulus => {
                let epochs = ours::run(folder, machine, *interval, look)?;
                Ok(Stops {
                    count: epochs.pauses,
                    mean_ms: epochs.mean_ms,
                    p99_ms: epochs.p99_ms,
                    dirty_pages: Some(epochs.dirty_pages),
                    remark: String::new(),
                })
            }
            Self::Colo => colo::run(folder, machine, *interval, look).map(|colo| Stops {
                count: colo.pauses_ms.len() as f64,
                mean_ms: mean(&colo.pauses_ms),
                p99_ms: percentile(colo.pauses_ms, 0.99),
                dirty_pages: Some(mean(&colo.dirty_pages)),
                remark: String::new(),
            }),
            Self::Migration => migration::run(folder, machine).map(|migration| Stops {
                count: 1.0,
                mean_ms: migration.downtime_ms,
                p99_ms: migration.downtime_ms,
                dirty_pages: None,
                remark: format!("moved in {:.1} s", migration.total.as_secs_f64()),
            }),
        })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn percentile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, part).unwrap_or(f64::NAN)
}

fn pauses(rows: &[Row]) -> Table {
    let mut table = Table::new("pauses", "How long no vCPU runs.")
        .column("who", "")
        .column("repeat", "")
        .column("asked for", "pages")
        .column("interval", "ms")
        .column("dirty", "pages")
        .column("stops", "")
        .column("mean", "ms")
        .column("p99", "ms")
        .column("remark", "")
        .note(
            "Romulus' p99 is the upper bound of its bucket. COLO runs the guest on both sides; \
             a migration stops it once.",
        );
    for row in rows {
        let mut cells: Vec<Cell> = vec![
            row.contestant.to_string().into(),
            row.repeat.into(),
            row.load.pages.into(),
            (row.load.interval.as_millis() as u64).into(),
        ];
        cells.extend(match &row.found {
            Ok(stops) => [
                stops.dirty_pages.into(),
                stops.count.into(),
                stops.mean_ms.into(),
                stops.p99_ms.into(),
                stops.remark.as_str().into(),
            ],
            Err(error) => {
                [Cell::Absent, Cell::Absent, Cell::Absent, Cell::Absent, error.to_string().into()]
            }
        });
        table.push(cells);
    }
    table
}

/// QEMU's pauses over ours, medians of the repeats.
fn ratios(rows: &[Row]) -> Table {
    let mut table = Table::new("ratios", "How many times as long QEMU's guest stands still.")
        .column("against", "")
        .column("asked for", "pages")
        .column("mean : mean", "")
        .column("p99 : p99", "");
    let mut loads: Vec<u64> = rows.iter().map(|row| row.load.pages).collect();
    loads.dedup();
    loads.sort_unstable();
    loads.dedup();
    for pages in loads {
        for peer in [Contestant::Colo, Contestant::Migration] {
            let ratio = |of: fn(&Stops) -> f64| {
                let median = |who: Contestant| {
                    let mine =
                        rows.iter().filter(|row| row.load.pages == pages && row.contestant == who);
                    percentile(
                        mine.filter_map(|row| row.found.as_ref().ok()).map(of).collect(),
                        0.5,
                    )
                };
                Cell::from(median(peer) / median(Contestant::Romulus))
            };
            table.push(vec![
                peer.to_string().into(),
                pages.into(),
                ratio(|stops| stops.mean_ms),
                ratio(|stops| stops.p99_ms),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(contestant: Contestant, found: Result<f64, QemuError>) -> Row {
        let stops = |ms| Stops {
            count: 1.0,
            mean_ms: ms,
            p99_ms: 2.0 * ms,
            dirty_pages: None,
            remark: String::new(),
        };
        Row { repeat: 1, load: Load::of(1000, 256), contestant, found: found.map(stops) }
    }

    #[test]
    fn ratios_are_of_medians_and_absent_where_a_peer_cannot_run() {
        let rows = [
            row(Contestant::Romulus, Ok(0.5)),
            row(Contestant::Colo, Ok(8.0)),
            row(Contestant::Migration, Err(QemuError::Missing)),
            row(Contestant::Romulus, Ok(0.25)),
            row(Contestant::Colo, Ok(7.0)),
            row(Contestant::Romulus, Ok(50.0)),
        ];
        let table = ratios(&rows);
        assert_eq!(table.rows.len(), 2);
        assert_eq!(table.rows[0][2].number(), Some(15.0));
        assert_eq!(table.rows[1][2], Cell::Absent);
        assert!(pauses(&rows).text().contains("is not installed"));
    }

    #[test]
    fn a_guest_is_not_asked_for_more_than_it_can_write() {
        let load = Load::of(10_000, 1024);
        assert_eq!(load.interval, Duration::from_millis(250));
        assert!(load.machine.cmdline.contains("rate:40000,"), "{}", load.machine.cmdline);
        assert_eq!(Load::of(250, 1024).interval, Duration::from_millis(25));
    }
}
