//! `romulus bench pause`: how long the guest stands still, by what it dirtied and
//! by its size, and what it waits for afterwards.
//!
//! Every case is measured with the daemons, and in turn with the naive way
//! ([`super::stop_copy_send`]) on a guest that does the same.

use std::time::Duration;

use clap::Args;

use super::{
    BenchError, BenchOptions, Report, Table,
    progress::Progress,
    report::{Chart, ChartKind, memory_mib},
    rig::{Rig, RigSettings, Window},
    setting::Setting,
    statistics::{Spread, quantile},
    stop_copy_send::{self, NaivePause},
    table::Cell,
    workload::steady,
};

/// The guest dirties this many pages per ms, or its epochs are this long.
const PAGES_PER_MS: u64 = 25;
const INTERVAL_MS_MIN: u64 = 25;
/// Long epochs are few.
const CASE_MS_MAX: u64 = 20_000;
const EPOCHS_MIN: u64 = 3;
/// What the daemons take beside the guest's memory, in MiB.
const DAEMONS_MIB: u64 = 512;
/// vCPUs: one for the network, one that writes.
const VCPUS: u16 = 2;

/// Arguments of `bench pause`.
#[derive(Debug, Clone, Args)]
pub struct PauseArgs {
    /// Options of all benchmarks.
    #[command(flatten)]
    pub options: BenchOptions,
    /// Pages that the guest dirties in every epoch
    #[arg(long, value_name = "PAGES,…", value_delimiter = ',', default_values_t = [100, 1000, 10_000, 100_000], value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub dirty: Vec<u64>,
    /// The guest's memory, in MiB, while the dirty pages vary
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub memory: u32,
    /// Sizes of guests, in MiB; what does not fit is left out, and told
    #[arg(long, value_name = "MIB,…", value_delimiter = ',', default_values_t = [1024, 2048, 4096, 8192, 16_384], value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub sizes: Vec<u32>,
    /// Pages that guests of all sizes dirty in every epoch
    #[arg(long, value_name = "PAGES", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub sizes_dirty: u64,
    /// Epochs that are measured of each case, in each repeat; fewer if they are long
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(3..=100_000))]
    pub count: u64,
    /// A setting of the VM's file to try, as replication.compression='"off"'; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<Setting>,
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    memory_mib: u32,
    dirty: u64,
}

impl Case {
    fn interval_ms(self) -> u64 {
        (self.dirty / PAGES_PER_MS).max(INTERVAL_MS_MIN)
    }

    fn epochs(self, wanted: u64, quick: bool) -> u64 {
        let most = if quick { EPOCHS_MIN } else { CASE_MS_MAX / self.interval_ms() };
        wanted.min(most.max(EPOCHS_MIN))
    }

    /// The backup touches all of its memory, the primary's guest what it uses;
    /// pages are copied on both sides, and the delta cache has a bound.
    fn needed_mib(self) -> u64 {
        let memory = u64::from(self.memory_mib);
        memory + memory / 10 + self.dirty * 4 * 4 / 1024 + DAEMONS_MIB
    }

    fn cmdline(self) -> String {
        steady(self.dirty, self.interval_ms())
    }
}

/// Everything that was found of a case.
struct Found {
    case: Case,
    windows: Vec<Window>,
    naive: Vec<Vec<NaivePause>>,
}

/// Measures.
pub(super) fn run(arguments: &PauseArgs, progress: &Progress) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let (mut by_dirty, mut by_size) = (Vec::new(), Vec::new());
    for dirty in &arguments.dirty {
        by_dirty.push(Case { memory_mib: arguments.memory, dirty: *dirty });
    }
    for memory_mib in &arguments.sizes {
        by_size.push(Case { memory_mib: *memory_mib, dirty: arguments.sizes_dirty });
    }
    if options.quick {
        by_dirty.truncate(2);
        by_size.truncate(1);
    }
    let mut left_out = Vec::new();
    let by_dirty = fitting(by_dirty, &mut left_out);
    let by_size = fitting(by_size, &mut left_out);
    let steps = u64::from(options.repeats()) * (by_dirty.len() + by_size.len()) as u64;
    progress.expect(steps);
    let by_dirty = measure(by_dirty, arguments, progress)?;
    let by_size = measure(by_size, arguments, progress)?;
    Ok(report(arguments, &by_dirty, &by_size, &left_out))
}

/// The cases that this machine has the memory for; the others become sentences.
fn fitting(cases: Vec<Case>, left_out: &mut Vec<String>) -> Vec<Case> {
    let available = memory_mib("MemAvailable");
    let (fit, rest): (Vec<_>, Vec<_>) =
        cases.into_iter().partition(|case| case.needed_mib() <= available);
    for case in rest {
        let (memory, needed) = (case.memory_mib, case.needed_mib());
        left_out.push(format!(
            "A guest of {memory} MiB was left out: with its backup it needs {needed} MiB, and {available} MiB are free here."
        ));
    }
    fit
}

fn measure(
    cases: Vec<Case>,
    arguments: &PauseArgs,
    progress: &Progress,
) -> Result<Vec<Found>, BenchError> {
    let options = &arguments.options;
    let start = |case| Found { case, windows: Vec::new(), naive: Vec::new() };
    let mut all: Vec<Found> = cases.into_iter().map(start).collect();
    for repeat in 1..=options.repeats() {
        for found in &mut all {
            let Case { memory_mib, dirty } = found.case;
            progress.begin(&format!("{dirty} pages of {memory_mib} MiB, repeat {repeat}"));
            let epochs = found.case.epochs(arguments.count, options.quick);
            found.windows.push(protected(found.case, epochs, arguments.settings.clone())?);
            let interval = Duration::from_millis(found.case.interval_ms());
            let count = u32::try_from(epochs).unwrap_or(u32::MAX);
            let cmdline = found.case.cmdline();
            let naive = stop_copy_send::pauses(memory_mib, &cmdline, dirty, interval, count)?;
            found.naive.push(naive);
            progress.done();
        }
    }
    Ok(all)
}

/// So many epochs of a protected guest that nobody asks.
fn protected(case: Case, epochs: u64, settings: Vec<Setting>) -> Result<Window, BenchError> {
    let interval = case.interval_ms();
    let silence = 4 * interval + 4000;
    // Room for a few epochs of all these pages, so that nothing but the pause
    // is measured.
    let room_mib = 8 * case.dirty * 4 / 1024 + 256;
    let mut rig = Rig::start(&RigSettings {
        memory_mib: case.memory_mib,
        vcpus: VCPUS,
        cmdline: case.cmdline(),
        replication: format!(
            "epoch_ms = {interval}\nearly_epochs = false\nmtu_max = 65000\n\
             detection_ms = {silence}\ndrop_ms = {silence}\n\
             in_flight_mib_max = {room_mib}\nstaging_mib_max = {}",
            2 * room_mib
        ),
        settings,
    })?;
    rig.protect()?;
    rig.window(Duration::from_millis(interval * (epochs + 1)))
}

impl Found {
    fn pauses(&self) -> Vec<f64> {
        sorted(self.windows.iter().flat_map(|window| window.sorted(|epoch| epoch.pause_us)))
    }

    fn naive_pauses(&self) -> Vec<f64> {
        sorted(self.naive.iter().flatten().map(|pause| pause.pause))
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

const PROTECTED: &str = "romulus";
const NAIVE: &str = "stop-copy-send";
const PHASES: [&str; 6] = ["stop", "harvest", "save", "capture", "send", "resume"];

const NOTE: &str = "Quantiles over all epochs of all repeats; low and high are the medians of single repeats; phases are medians. Stop: until all vCPUs and devices stand. Save: what saving the state took longer than the harvest. Capture: copying and protecting pages (copying all with stop-copy-send). Early: pages copied before the pause, or sent ahead of it. Stalls: writes of the guest that waited for a protected page, without the time to deliver the fault.";

fn table(name: &str, caption: &str, all: &[Found]) -> Table {
    let table = Table::new(name, caption)
        .column("way", "")
        .column("memory", "MiB")
        .column("wanted", "pages/epoch")
        .column("dirty", "pages/epoch")
        .column("early", "pages/epoch")
        .column("epochs", "");
    let mut table = Spread::columns(table, "pause p50", "ms").column("pause p99", "ms");
    for phase in PHASES {
        table = table.column(phase, "ms");
    }
    let mut table = table
        .column("stalls", "1/epoch")
        .column("stalled", "ms/epoch")
        .column("stall mean", "ms")
        .note(NOTE);
    for found in all {
        table.push(protected_row(found));
        table.push(naive_row(found));
    }
    table
}

fn head(way: &str, case: Case, dirty: Option<f64>, early: Option<f64>) -> Vec<Cell> {
    vec![way.into(), case.memory_mib.into(), case.dirty.into(), dirty.into(), early.into()]
}

/// Epochs, quantiles of the pause and the range of the repeats' medians.
fn pause_cells(pauses: &[f64], medians: impl Iterator<Item = f64>) -> Vec<Cell> {
    let ms = |us: f64| us / 1000.0;
    let range = Spread::of(medians);
    let at = |part| Cell::from(quantile(pauses, part).map(ms));
    let low = Cell::from(range.map(|range| ms(range.low)));
    let high = Cell::from(range.map(|range| ms(range.high)));
    vec![(pauses.len() as u64).into(), at(0.5), low, high, at(0.99)]
}

fn protected_row(found: &Found) -> Vec<Cell> {
    let epochs = || found.windows.iter().flat_map(|window| &window.epochs);
    let median = |figure: fn(&crate::control::EpochRecord) -> u64| {
        quantile(&sorted(epochs().map(|epoch| figure(epoch) as f64)), 0.5)
    };
    let all =
        |epoch: &crate::control::EpochRecord| epoch.pages + epoch.pages_early + epoch.pages_ahead;
    let early = |epoch: &crate::control::EpochRecord| epoch.pages_early + epoch.pages_ahead;
    let mut row = head(PROTECTED, found.case, median(all), median(early));
    let medians = found.windows.iter();
    let medians = medians.filter_map(|window| quantile(&window.sorted(|e| e.pause_us), 0.5));
    row.extend(pause_cells(&found.pauses(), medians));
    let ms = |us: Option<f64>| Cell::from(us.map(|us| us / 1000.0));
    row.extend([
        ms(median(|e| e.stop_us)),
        ms(median(|e| e.harvest_us)),
        ms(median(|e| e.save_us)),
    ]);
    row.extend([ms(median(|e| e.capture_us)), Cell::Absent, ms(median(|e| e.resume_us))]);
    let count = epochs().count() as f64;
    let stalls: u64 = found.windows.iter().map(|window| window.stalls).sum();
    let stalled: Duration = found.windows.iter().map(|window| window.stalled).sum();
    let stalled_ms = stalled.as_secs_f64() * 1000.0;
    let mean = (stalls > 0).then(|| stalled_ms / stalls as f64);
    row.extend([(stalls as f64 / count).into(), (stalled_ms / count).into(), mean.into()]);
    row
}

fn naive_row(found: &Found) -> Vec<Cell> {
    let median = |figure: fn(&NaivePause) -> f64| {
        quantile(&sorted(found.naive.iter().flatten().map(figure)), 0.5)
    };
    let mut row = head(NAIVE, found.case, median(|pause| pause.pages as f64), None);
    let medians = found.naive.iter();
    let medians =
        medians.filter_map(|pauses| quantile(&sorted(pauses.iter().map(|pause| pause.pause)), 0.5));
    row.extend(pause_cells(&found.naive_pauses(), medians));
    let phases: [fn(&NaivePause) -> f64; 6] =
        [|p| p.stop, |p| p.harvest, |p| p.save, |p| p.copy, |p| p.send, |p| p.resume];
    row.extend(phases.map(|phase| Cell::from(median(phase).map(|us| us / 1000.0))));
    row.extend([Cell::Absent, Cell::Absent, Cell::Absent]);
    row
}

/// The phases of `by_dirty`'s medians, as parts of all of them.
fn phases(by_dirty: &Table) -> Table {
    let mut table =
        Table::new("phases", "Phases of the pause, as parts of their sum.").column("case", "");
    for phase in PHASES {
        table = table.column(phase, "%");
    }
    let of = |row: &[Cell], name: &str| by_dirty.index(name).map(|index| row[index].clone());
    for row in &by_dirty.rows {
        let ms = |phase: &str| of(row, phase).and_then(|cell| cell.number()).unwrap_or(0.0);
        let sum: f64 = PHASES.iter().map(|phase| ms(phase)).sum();
        let [way, wanted] =
            ["way", "wanted"].map(|name| of(row, name).map_or_else(String::new, |c| c.shown()));
        let mut cells = vec![Cell::from(format!("{way} {wanted}"))];
        cells.extend(PHASES.iter().map(|phase| Cell::from(100.0 * ms(phase) / sum)));
        table.push(cells);
    }
    table
}

/// How many times longer the naive way takes.
fn ratios(all: &[Found]) -> Table {
    let mut table = Table::new("ratios", "How many times longer stop-copy-send pauses.")
        .column("memory", "MiB")
        .column("wanted", "pages/epoch")
        .column("p50", "×")
        .column("p99", "×");
    for found in all {
        let ratio =
            |part| Some(quantile(&found.naive_pauses(), part)? / quantile(&found.pauses(), part)?);
        let Case { memory_mib, dirty } = found.case;
        table.push(vec![memory_mib.into(), dirty.into(), ratio(0.5).into(), ratio(0.99).into()]);
    }
    table
}

fn report(
    arguments: &PauseArgs,
    by_dirty: &[Found],
    by_size: &[Found],
    left_out: &[String],
) -> Report {
    let about =
        "How long the guest stands still at a checkpoint, and what it waits for afterwards.";
    let mut report = Report::new("pause", about)
        .option("repeats", arguments.options.repeats())
        .option("epochs", arguments.count)
        .option("vCPUs", VCPUS)
        .option("writes", "one word per page");
    let dirty = table("by-dirty", "Pause by dirty pages, and its phases.", by_dirty);
    let mut size = table("by-size", "Pause by the guest's memory.", by_size);
    let mut ratios = ratios(by_dirty);
    for sentence in left_out {
        size.note = format!("{} {sentence}", size.note);
        ratios.note = format!("{} {sentence}", ratios.note).trim().to_owned();
    }
    let phases = phases(&dirty);
    report.tables = vec![dirty, phases, ratios, size];
    report.charts = charts();
    report
}

fn charts() -> Vec<Chart> {
    let [low, high] = Spread::names("pause p50");
    let lines = |title: &str, table: &str, x: &str| {
        Chart::new(ChartKind::Lines, title, table, x)
            .y_within("pause p50", &low, &high)
            .y("pause p99")
            .by("way")
            .log(true, true)
    };
    let phases = PHASES.iter().fold(
        Chart::new(ChartKind::Stacks, "What a pause is made of", "phases", "case"),
        |chart, phase| chart.y(phase),
    );
    vec![
        lines("Pause by dirty pages", "by-dirty", "dirty"),
        phases,
        Chart::new(ChartKind::Lines, "The guest's waiting after the pause", "by-dirty", "dirty")
            .y("stalled")
            .by("way")
            .log(true, false),
        lines("Pause by the guest's memory", "by-size", "memory"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told() {
        let mut left_out = Vec::new();
        let huge = Case { memory_mib: 1 << 30, dirty: 1000 };
        let small = Case { memory_mib: 256, dirty: 1000 };
        // A machine that runs tests has room for a small guest, or is told so, too.
        let fit = fitting(vec![small, huge], &mut left_out);
        assert!(!fit.contains(&huge));
        assert!(
            left_out.iter().any(|sentence| sentence.contains("1073741824 MiB")),
            "{left_out:?}"
        );
    }

    #[test]
    fn long_epochs_are_few_and_short_ones_as_many_as_wanted() {
        let case = |dirty| Case { memory_mib: 1024, dirty };
        assert_eq!((case(100).interval_ms(), case(100).epochs(100, false)), (25, 100));
        assert_eq!((case(10_000).interval_ms(), case(10_000).epochs(100, false)), (400, 50));
        assert_eq!((case(100_000).interval_ms(), case(100_000).epochs(100, false)), (4000, 5));
        assert_eq!(case(1000).epochs(100, true), 3);
    }
}
