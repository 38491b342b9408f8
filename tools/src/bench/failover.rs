//! `romulus bench failover`: how long nobody answers when the primary is killed.
//!
//! ```text
//!   SIGKILL ── detection ── arbiter ── apply ── state ── resume ── first answer
//!      │       silence is   may this    finish   vCPUs,   epoch      a client
//!      │       noticed      node run?   staged   devices  thread …   hears
//!   the bench's clock         the new primary's events                 the client's
//! ```
//!
//! All clocks are `CLOCK_MONOTONIC` of one machine. Hosts take turns: who was
//! killed comes back as the backup, and is seeded before the next kill.

use std::time::Duration;

use clap::Args;

use super::{
    BenchError, BenchOptions, Report, Table,
    progress::Progress,
    report::{Chart, ChartKind},
    rig::{FIRST, Rig, RigSettings, SECOND},
    setting::Setting,
    statistics::{Spread, quantile},
    workload::Workload,
};
use crate::{
    control::{Client, EventKind, EventRecord},
    rehearsal::{Gap, netns::Place},
    telemetry::monotonic_us,
};

/// Clients; they ask as soon as they are answered.
const LANES: u32 = 4;
/// Bounds what asking again adds to the time until the first answer.
const RETRANSMIT_MS: u32 = 5;
/// Answers before a kill, and after it.
const ANSWERS: u64 = 50;

/// Arguments of `bench failover`.
#[derive(Debug, Clone, Args)]
pub struct FailoverArgs {
    /// Options of all benchmarks.
    #[command(flatten)]
    pub options: BenchOptions,
    /// Kills within every repeat
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// What the guest does
    #[arg(long, value_enum, default_value = "sparse")]
    pub workload: Workload,
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

/// The parts of a failover, one after the other.
const PARTS: [&str; 6] = ["detection", "arbiter", "apply", "state", "resume", "first answer"];

/// One kill, in ms.
#[derive(Debug, Clone, Copy)]
struct Outage {
    victim: Place,
    parts: [f64; 6],
    /// Between two answers, as clients saw it.
    gap: f64,
}

impl Outage {
    fn total(&self) -> f64 {
        self.parts.iter().sum()
    }

    /// From the grant to the guest that runs.
    fn promotion(&self) -> f64 {
        self.parts[2..5].iter().sum()
    }
}

/// Kills.
pub(super) fn run(arguments: &FailoverArgs, progress: &Progress) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let runs = if options.quick { arguments.runs.min(2) } else { arguments.runs };
    progress.expect(u64::from(options.repeats() * runs));
    let mut outages = Vec::new();
    for repeat in 1..=options.repeats() {
        let mut rig = Rig::start(&RigSettings {
            memory_mib: arguments.memory,
            vcpus: arguments.vcpus,
            cmdline: arguments.workload.cmdline().to_owned(),
            // As the daemons choose by themselves.
            replication: String::new(),
            settings: arguments.settings.clone(),
        })?;
        rig.protect()?;
        let (mut victim, mut heir) = (FIRST, SECOND);
        for number in 1..=runs {
            progress.begin(&format!("kill {number} of {runs}, repeat {repeat}"));
            outages.push(kill(&mut rig, victim, heir)?);
            progress.done();
            if number < runs {
                rig.cluster.start(victim, "backup")?;
                rig.wait_protected(heir)?;
                std::mem::swap(&mut victim, &mut heir);
            }
        }
    }
    Ok(report(arguments, &outages))
}

fn kill(rig: &mut Rig, victim: Place, heir: Place) -> Result<Outage, BenchError> {
    let mut client = rig.client(LANES, 0, RETRANSMIT_MS)?;
    client.wait_answers(ANSWERS, rig.patience)?;
    let last_event = rig.cluster.ask(heir, async |control: Client| {
        Ok(control.events(0, Duration::ZERO).await?.next_after)
    })?;
    let killed = monotonic_us();
    rig.cluster.kill(victim);
    rig.cluster.wait_primary(heir, rig.patience)?;
    client.wait_answers(ANSWERS, rig.patience)?;
    let seen = client.finish()?;
    if !seen.sound() {
        let complaint = seen.complaints.first().cloned().unwrap_or_default();
        return Err(BenchError::Unsound(complaint));
    }
    let page = rig
        .cluster
        .ask(heir, async |control: Client| control.events(last_event, Duration::ZERO).await)?;
    let outage =
        times(killed, &page.events, &seen.gaps).map(|(parts, gap)| Outage { victim, parts, gap });
    outage.ok_or_else(|| BenchError::Untold(rig.cluster.log_end(heir)))
}

/// The parts and the gap that they are of, in ms, if the events tell all of
/// them, in order. A busy machine has other gaps, too.
fn times(killed: u64, events: &[EventRecord], gaps: &[Gap]) -> Option<([f64; 6], f64)> {
    let promoted = events.iter().position(|event| event.kind == EventKind::Promoted)?;
    let at = |kind: EventKind| {
        let after = events[promoted..].iter().find(|event| event.kind == kind);
        after.map(|event| event.monotonic_us)
    };
    let asked = events[..promoted].iter().rfind(|e| e.kind == EventKind::PromotionAsked)?;
    let restored = &events[promoted..].iter().find(|e| e.kind == EventKind::GuestRestored)?;
    let apply_us = restored.fields.get("applied_us")?.as_u64()?;
    let granted = events[promoted].monotonic_us;
    let spans = |gap: &&Gap| gap.from_monotonic_us <= granted && granted <= gap.until_monotonic_us;
    let gap = gaps.iter().find(spans)?;
    let started = at(EventKind::GuestStarted)?;
    let moments =
        [killed, asked.monotonic_us, granted, granted + apply_us, restored.monotonic_us, started];
    let mut parts = [0.0; 6];
    for (part, pair) in parts.iter_mut().zip(moments.windows(2)) {
        *part = pair[1].checked_sub(pair[0])? as f64 / 1000.0;
    }
    // The output of the last committed epoch goes out again before the guest
    // runs, and may be an answer.
    parts[5] = (gap.until_monotonic_us as f64 - started as f64) / 1000.0;
    Some((parts, gap.ms))
}

fn report(arguments: &FailoverArgs, outages: &[Outage]) -> Report {
    let about = "How long nobody answers when the primary's process is killed (SIGKILL).";
    let mut report = Report::new("failover", about)
        .option("workload", arguments.workload.name())
        .option("memory", format!("{} MiB", arguments.memory))
        .option("vCPUs", arguments.vcpus)
        .option("kills", outages.len())
        .option("replication", "default settings");
    report.tables = vec![summary(outages), distribution(outages), runs(outages)];
    let stacks = PARTS.iter().fold(
        Chart::new(
            ChartKind::Stacks,
            "Every kill, from SIGKILL to the first answer",
            "runs",
            "run",
        ),
        |chart, part| chart.y(part),
    );
    report.charts = vec![
        Chart::new(
            ChartKind::Lines,
            "Part of the kills that are over by then",
            "distribution",
            "time",
        )
        .y("to the first answer")
        .y("promotion"),
        stacks,
    ];
    report
}

fn summary(outages: &[Outage]) -> Table {
    let table =
        Table::new("parts", "The parts of a failover, one after the other.").column("part", "");
    let mut table = Spread::columns(table, "median", "ms").column("p90", "ms").note(
        "Detection: from SIGKILL to the question for promotion. Arbiter: to its answer. Apply: what was committed and not in the image yet. State: vCPUs and devices set. Resume: the epoch thread and the guest started. First answer: at the client; less than nothing where the output of the last committed epoch, which goes out again before the guest runs, brought it. Promotion: apply, state and resume together. Gap: between two answers, as clients saw it; the last answer may be older than the kill.",
    );
    let mut push = |name: &str, of: &dyn Fn(&Outage) -> f64| {
        let mut values: Vec<f64> = outages.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let [median, low, high] = Spread::cells(Spread::of(values.iter().copied()));
        table.push(vec![name.into(), median, low, high, quantile(&values, 0.9).into()]);
    };
    for (index, part) in PARTS.iter().enumerate() {
        push(part, &|outage| outage.parts[index]);
    }
    push("promotion", &Outage::promotion);
    push("to the first answer", &Outage::total);
    push("gap", &|outage| outage.gap);
    table
}

fn distribution(outages: &[Outage]) -> Table {
    let mut table = Table::new("distribution", "How many kills are over after how long.")
        .column("time", "ms")
        .column("to the first answer", "%")
        .column("promotion", "%");
    let part = |over: &dyn Fn(&Outage) -> bool| {
        100.0 * outages.iter().filter(|outage| over(outage)).count() as f64 / outages.len() as f64
    };
    let mut times: Vec<f64> =
        outages.iter().flat_map(|outage| [outage.total(), outage.promotion()]).collect();
    times.sort_by(f64::total_cmp);
    times.dedup();
    for time in times {
        let total = part(&|outage| outage.total() <= time);
        let promotion = part(&|outage| outage.promotion() <= time);
        table.push(vec![time.into(), total.into(), promotion.into()]);
    }
    table
}

fn runs(outages: &[Outage]) -> Table {
    let mut table = Table::new("runs", "Every kill.").column("run", "").column("victim", "");
    for part in PARTS {
        table = table.column(part, "ms");
    }
    let mut table = table.column("total", "ms").column("gap", "ms");
    for (index, outage) in outages.iter().enumerate() {
        let mut row = vec![(index as u64 + 1).into(), outage.victim.to_string().into()];
        row.extend(outage.parts.map(Into::into));
        row.extend([outage.total().into(), outage.gap.into()]);
        table.push(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Severity;

    fn event(kind: EventKind, monotonic_us: u64) -> EventRecord {
        EventRecord {
            sequence: 1,
            unix_ms: 0,
            monotonic_us,
            severity: Severity::Info,
            kind,
            text: String::new(),
            fields: [("applied_us".to_owned(), 500.into())].into(),
        }
    }

    #[test]
    fn parts_follow_each_other() {
        let mut events = vec![
            event(EventKind::PromotionAsked, 50),
            event(EventKind::PeerLost, 150_900),
            event(EventKind::PromotionAsked, 151_000),
            event(EventKind::Promoted, 153_000),
            event(EventKind::GuestRestored, 156_000),
            event(EventKind::GuestStarted, 160_000),
        ];
        let gap = |ms, from_monotonic_us, until_monotonic_us| Gap {
            ms,
            from_monotonic_us,
            until_monotonic_us,
            ..Gap::default()
        };
        let before = gap(200.0, 100, 300);
        let gaps = [before, gap(162.5, 500, 163_000), gap(1.0, 163_000, 164_000)];
        let parts = times(1000, &events, &gaps);
        assert_eq!(parts, Some(([150.0, 2.0, 0.5, 2.5, 4.0, 3.0], 162.5)));
        let again = [gap(158.0, 500, 158_500)];
        let parts = times(1000, &events, &again);
        assert_eq!(parts, Some(([150.0, 2.0, 0.5, 2.5, 4.0, -1.5], 158.0)), "output sent again");
        assert_eq!(times(1000, &events, &[before]), None, "no gap in which it was promoted");
        events.remove(4);
        assert_eq!(times(1000, &events, &gaps), None, "a part is not told");
    }
}
