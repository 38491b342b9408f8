//! The same guest under Romulus: two hosts and an arbiter in network namespaces, with
//! default settings but for the interval.
//!
//! Pauses are what the primary's `/metrics` counted between two looks: their mean is
//! exact, their 99th percentile is the upper bound of its bucket (steps of 1.6).

use std::{fs, path::Path, time::Duration};

use crate::{
    control::Client,
    rehearsal::{
        cluster::{Cluster, ClusterError, Shape},
        netns::Place,
    },
};

use super::qemu::Machine;

const PRIMARY: Place = Place::Host(1);
const BACKUP: Place = Place::Host(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// What epochs cost in a while.
#[derive(Debug, PartialEq)]
pub(super) struct Epochs {
    pub(super) pauses: f64,
    pub(super) mean_ms: f64,
    /// At most.
    pub(super) p99_ms: f64,
    /// Mean, captured in and ahead of the pause.
    pub(super) dirty_pages: f64,
}

/// Protects the guest of `machine` with an epoch every `interval`, and looks for so
/// long.
pub(super) fn run(
    folder: &Path,
    machine: &Machine,
    interval: Duration,
    look: Duration,
) -> Result<Epochs, ClusterError> {
    let failed = |action: &str| {
        let action = action.to_owned();
        |source| ClusterError::System { action, source }
    };
    let program = std::env::current_exe().map_err(failed("find this program"))?;
    // Registers and state of a run before it would be those of this guest.
    let folder = folder.join("ours");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).map_err(failed("make a folder for the daemons"))?;
    let shape = Shape {
        hosts: 2,
        memory_mib: machine.memory_mib,
        vcpus: 1,
        cmdline: machine.cmdline.clone(),
        linux: None,
        vm: String::new(),
        // Nobody is to be taken for dead because this machine is busy.
        replication: format!(
            "epoch_ms = {}\ndetection_ms = 10000\ndrop_ms = 8000",
            interval.as_millis()
        ),
    };
    let mut cluster = Cluster::new("peer", &folder, &program, shape)?;
    cluster.start(Place::Arbiter, "arbiter")?;
    cluster.start(PRIMARY, "run")?;
    cluster.start(BACKUP, "backup")?;
    cluster.wait_protected(PRIMARY, PATIENCE)?;
    std::thread::sleep(interval * 4);
    let metrics = || cluster.ask(PRIMARY, async |control: Client| control.metrics().await);
    let before = metrics()?;
    std::thread::sleep(look);
    Ok(between(&before, &metrics()?))
}

/// What happened between two looks at `/metrics`.
fn between(before: &str, after: &str) -> Epochs {
    let grown = |name: &str| value(after, name) - value(before, name);
    let pauses = grown("romulus_pause_seconds_count");
    let pages = grown("romulus_dirty_pages_total") + grown("romulus_pages_ahead_total");
    let bound = buckets(after)
        .find(|(_, name)| grown(name) >= 0.99 * pauses)
        .map_or(f64::INFINITY, |(bound, _)| bound);
    Epochs {
        pauses,
        mean_ms: grown("romulus_pause_seconds_sum") / pauses * 1000.0,
        p99_ms: bound * 1000.0,
        dirty_pages: pages / grown("romulus_epochs_total"),
    }
}

/// Upper bounds of pauses in seconds, rising, and the names of their counts.
fn buckets(text: &str) -> impl Iterator<Item = (f64, &str)> {
    text.lines().filter_map(|line| {
        let (name, _) = line.rsplit_once(' ')?;
        let bound = name.strip_prefix("romulus_pause_seconds_bucket{le=\"")?.strip_suffix("\"}")?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        Some((bound, name))
    })
}

fn value(text: &str, name: &str) -> f64 {
    let of_line = |line: &str| {
        let (found, value) = line.rsplit_once(' ')?;
        (found == name).then(|| value.parse().ok())?
    };
    text.lines().find_map(of_line).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn only_what_happened_in_between_counts() {
        let metrics = Metrics::default();
        metrics.pause.record(Duration::from_secs(1));
        metrics.epochs.inc();
        metrics.dirty_pages.inc_by(1_000_000);
        let before = metrics.render();
        for _ in 0..100 {
            metrics.pause.record(Duration::from_micros(250));
            metrics.epochs.inc();
            metrics.dirty_pages.inc_by(30);
            metrics.pages_ahead.inc_by(10);
        }
        let Epochs { pauses, mean_ms, p99_ms, dirty_pages } = between(&before, &metrics.render());
        assert_eq!((pauses, dirty_pages), (100.0, 40.0));
        assert!((mean_ms - 0.25).abs() < 1e-6, "{mean_ms}");
        assert!((0.25..0.25 * 1.6).contains(&p99_ms), "{p99_ms}");
    }
}
