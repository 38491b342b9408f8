//! `romulus bench sweep`: what the interval between checkpoints costs, and gains.
//!
//! ```text
//!   for every repeat, interval and kind of epoch, a guest of its own:
//!     unprotected:  [clients at a rate] [clients without pause]
//!     protected:    [no clients] [clients at a rate] [clients without pause]
//!                        │              │                  └─ throughput
//!                        │              └─ latency, the guest's own work
//!                        └─ pause, wire, processor time
//! ```
//!
//! Clients at a rate ask whether or not they are answered soon, so that their
//! requests fall anywhere into an epoch.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{
    BenchError, BenchOptions, Report, Table,
    progress::Progress,
    report::{Chart, ChartKind},
    rig::{Rig, RigSettings, Window},
    setting::Setting,
    statistics::{Spread, quantile},
    table::Cell,
    workload::Workload,
};
use crate::rehearsal::ProbeReport;

/// Clients of a window.
const LANES: u32 = 16;
/// Requests of one client per second, at most.
const RATE_MAX: u32 = 40;
/// Datagrams are not lost here; sending them again would only be work.
const RETRANSMIT_MS: u32 = 5000;

/// From protection to what is measured: workloads go through their pages once a
/// second, and what is new to the delta cache goes whole.
const WARM_UP: Duration = Duration::from_secs(2);

/// Arguments of `bench sweep`.
#[derive(Debug, Clone, Args)]
pub struct SweepArgs {
    /// Options of all benchmarks.
    #[command(flatten)]
    pub options: BenchOptions,
    /// Intervals between two checkpoints, in ms
    #[arg(long, value_name = "MS,…", value_delimiter = ',', default_values_t = [1, 2, 5, 10, 25, 50, 100, 200], value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub intervals: Vec<u32>,
    /// What the guest does
    #[arg(long, value_enum, default_value = "sparse")]
    pub workload: Workload,
    /// Which epochs: of the whole interval, or also ended by the first output of a quiet one
    #[arg(long, value_enum, default_value = "both")]
    pub epochs: EpochKinds,
    /// Length of each window that is measured, in s
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// The guest's memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(128..=1_048_576))]
    pub memory: u32,
    /// The guest's vCPUs
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub vcpus: u16,
    /// A setting of the VM's file to try, as replication.compression='"off"'; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<Setting>,
}

/// Which epochs a sweep tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EpochKinds {
    /// They last for the whole interval
    Fixed,
    /// The first output of a quiet epoch ends it (the default of the daemons)
    Early,
    /// One after the other
    Both,
}

impl EpochKinds {
    /// Whether output ends epochs, of each kind.
    fn each(self) -> &'static [bool] {
        match self {
            Self::Fixed => &[false],
            Self::Early => &[true],
            Self::Both => &[false, true],
        }
    }
}

fn kind_name(early: bool) -> &'static str {
    if early { "early" } else { "fixed" }
}

/// Sweeps.
pub(super) fn run(arguments: &SweepArgs, progress: &Progress) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let intervals = match options.quick {
        true => &arguments.intervals[..arguments.intervals.len().min(2)],
        false => &arguments.intervals[..],
    };
    let cases: Vec<(bool, u32)> = arguments
        .epochs
        .each()
        .iter()
        .flat_map(|early| intervals.iter().map(|interval| (*early, *interval)))
        .collect();
    let mut found: Vec<Vec<Sample>> = vec![Vec::new(); cases.len()];
    progress.expect(u64::from(options.repeats()) * cases.len() as u64);
    for repeat in 1..=options.repeats() {
        for ((early, interval), samples) in cases.iter().zip(&mut found) {
            let kind = kind_name(*early);
            progress.begin(&format!("epochs of {interval} ms, {kind}, repeat {repeat}"));
            samples.push(measure(arguments, *early, *interval)?);
            progress.done();
        }
    }
    Ok(report(arguments, &cases, &found))
}

/// What one guest told.
#[derive(Debug, Clone)]
struct Sample {
    bare: ProbeReport,
    bare_throughput: f64,
    quiet: Window,
    protected: ProbeReport,
    throughput: f64,
}

fn measure(arguments: &SweepArgs, early: bool, interval: u32) -> Result<Sample, BenchError> {
    let length = match arguments.options.quick {
        true => Duration::from_millis(400),
        false => Duration::from_secs(arguments.seconds),
    };
    // Silence is longer than any epoch, and a busy machine is no failure.
    let silence = 4000;
    let mut rig = Rig::start(&RigSettings {
        memory_mib: arguments.memory,
        vcpus: arguments.vcpus,
        cmdline: arguments.workload.cmdline().to_owned(),
        replication: format!(
            "epoch_ms = {interval}\nearly_epochs = {early}\nmtu_max = 65000\n\
             detection_ms = {silence}\ndrop_ms = {silence}"
        ),
        settings: arguments.settings.clone(),
    })?;
    let rate = (1000 / (2 * interval + 20)).clamp(1, RATE_MAX);
    let ask = |rig: &Rig, rate: u32| -> Result<ProbeReport, BenchError> {
        let mut client = rig.client(LANES, rate, RETRANSMIT_MS)?;
        client.wait_answers(1, rig.patience)?;
        Ok(rig.asked(length, client)?.1)
    };
    let bare = ask(&rig, rate)?;
    let bare_throughput = per_s(&ask(&rig, 0)?);
    rig.protect()?;
    if !arguments.options.quick {
        std::thread::sleep(WARM_UP);
    }
    let quiet = rig.window(length.max(Duration::from_millis(4 * u64::from(interval))))?;
    let protected = ask(&rig, rate)?;
    let throughput = per_s(&ask(&rig, 0)?);
    Ok(Sample { bare, bare_throughput, quiet, protected, throughput })
}

fn per_s(report: &ProbeReport) -> f64 {
    report.answers as f64 * 1000.0 / report.elapsed_ms.max(1) as f64
}

impl Sample {
    fn pause_ms(&self, part: f64) -> Option<f64> {
        quantile(&self.quiet.sorted(|epoch| epoch.pause_us), part).map(|us| us / 1000.0)
    }

    /// How much less the guest did per second of its own clock, in percent.
    fn slowdown(&self) -> Option<f64> {
        Some(100.0 * (1.0 - self.protected.work_per_s? / self.bare.work_per_s?))
    }
}

/// A figure of one sample.
type Figure = fn(&Sample) -> Option<f64>;

/// The columns with their range: name, unit, figure.
const SPREAD: [(&str, &str, Figure); 5] = [
    ("latency mean", "ms", |it| Some(it.protected.latency_mean_us / 1e3)),
    ("latency p99", "ms", |it| Some(it.protected.latency_us.p99 as f64 / 1e3)),
    ("throughput", "requests/s", |it| Some(it.throughput)),
    ("pause p50", "ms", |it| it.pause_ms(0.5)),
    ("pause p99", "ms", |it| it.pause_ms(0.99)),
];

/// The columns of which only the median is told.
const PLAIN: [(&str, &str, Figure); 15] = [
    ("latency p50", "ms", |it| Some(it.protected.latency_us.p50 as f64 / 1e3)),
    ("latency p99.9", "ms", |it| Some(it.protected.latency_p999_us as f64 / 1e3)),
    ("unprotected mean", "ms", |it| Some(it.bare.latency_mean_us / 1e3)),
    ("added mean", "ms", |it| Some((it.protected.latency_mean_us - it.bare.latency_mean_us) / 1e3)),
    ("unprotected throughput", "requests/s", |it| Some(it.bare_throughput)),
    ("slowdown", "%", Sample::slowdown),
    ("epochs", "1/s", |it| Some(it.quiet.per_s(it.quiet.epochs.len() as f64))),
    ("dirty", "pages/epoch", |it| {
        quantile(&it.quiet.sorted(|e| e.pages + e.pages_early + e.pages_ahead), 0.5)
    }),
    ("wire", "bytes/epoch", |it| it.quiet.wire_bytes_per_epoch()),
    ("link", "KiB/s", |it| Some(it.quiet.per_s(it.quiet.link_bytes as f64 / 1024.0))),
    ("primary", "% of a core", |it| Some(it.quiet.core_percent(it.quiet.primary.rest))),
    ("vCPUs", "% of a core", |it| Some(it.quiet.core_percent(it.quiet.primary.vcpus))),
    ("backup", "% of a core", |it| {
        Some(it.quiet.core_percent(it.quiet.backup.rest + it.quiet.backup.vcpus))
    }),
    ("primary memory", "MiB", |it| Some(it.quiet.primary_mib)),
    ("backup memory", "MiB", |it| it.quiet.backup_mib),
];

const NOTE: &str = "Medians of all repeats. Latency: 16 clients at a rate. Throughput: 16 clients that ask as soon as they are answered. Pause, wire, link and processor time: no clients. Slowdown: what the guest's working vCPUs did per second of its clock, against the same guest before it was protected. Link: all bytes in both directions, headers included. Memory: resident, beside the guest's own.";

fn report(arguments: &SweepArgs, cases: &[(bool, u32)], found: &[Vec<Sample>]) -> Report {
    let caption = "Latency, throughput and costs by the interval between checkpoints.";
    let mut table =
        Table::new("intervals", caption).column("epochs end", "").column("interval", "ms");
    for (name, unit, _) in SPREAD {
        table = Spread::columns(table, name, unit);
    }
    for (name, unit, _) in PLAIN {
        table = table.column(name, unit);
    }
    let mut table = table.note(NOTE);
    for ((early, interval), samples) in cases.iter().zip(found) {
        let spread = |figure: Figure| Spread::of(samples.iter().filter_map(figure));
        let mut row: Vec<Cell> = vec![kind_name(*early).into(), (*interval).into()];
        row.extend(SPREAD.iter().flat_map(|(.., figure)| Spread::cells(spread(*figure))));
        row.extend(PLAIN.iter().map(|(name, _, figure)| {
            let shown = *name != "slowdown" || arguments.workload.works();
            Cell::from(spread(*figure).filter(|_| shown).map(|spread| spread.median))
        }));
        table.push(row);
    }
    let about = "What the interval between two checkpoints costs and gains.";
    let mut report = Report::new("sweep", about)
        .option("workload", arguments.workload.name())
        .option("memory", format!("{} MiB", arguments.memory))
        .option("vCPUs", arguments.vcpus)
        .option("repeats", arguments.options.repeats())
        .option(
            "window",
            format!("{} s", if arguments.options.quick { 0.4 } else { arguments.seconds as f64 }),
        );
    report.tables = vec![table];
    report.charts = charts();
    report
}

fn charts() -> Vec<Chart> {
    let chart = |title: &str| {
        Chart::new(ChartKind::Lines, title, "intervals", "interval")
            .by("epochs end")
            .log(true, false)
    };
    let within = |chart: Chart, name: &str| {
        let [low, high] = Spread::names(name);
        chart.y_within(name, &low, &high)
    };
    vec![
        within(within(chart("Request to answer"), "latency mean"), "latency p99")
            .y("unprotected mean"),
        within(chart("Requests answered by clients that wait for each answer"), "throughput")
            .y("unprotected throughput"),
        within(within(chart("Pause"), "pause p50"), "pause p99"),
        chart("Bytes on the replication link").y("link"),
        chart("Processor time").y("primary").y("backup").y("vCPUs"),
        chart("Guest slowdown").y("slowdown"),
    ]
}
