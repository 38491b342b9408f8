//! A guest on two hosts, and what is read of it while it is measured.
//!
//! ```text
//!   start: arbiter, primary ── the guest answers, unprotected ── protect: backup, in sync
//!                                     │                               │
//!                                  windows                         windows
//! ```
//!
//! A window is a span of time with what happened in it: epochs, processor time,
//! bytes on the link, stalls. Nothing of the time before or after it counts.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use super::{
    BenchError,
    host_cost::{CpuTime, cpu_time, link_bytes, memory_beside_mib},
    setting::{Setting, with_settings},
};
use crate::{
    control::{Client, EpochRecord},
    rehearsal::{
        ProbeReport,
        cluster::{Cluster, ClusterError, LoadClient, Shape},
        netns::Place,
    },
    telemetry::monotonic_us,
};

/// Runs the guest first.
pub(super) const FIRST: Place = Place::Host(1);
/// Stands by first.
pub(super) const SECOND: Place = Place::Host(2);
/// The device of the replication network.
const LINK: &str = "repl0";
/// Epochs that pass between protection and the first window: the first ones
/// carry what the seed left over.
const EPOCHS_SETTLING: u64 = 5;
/// How long anything may take, and how much longer for every GiB of guest.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_PER_GIB: Duration = Duration::from_secs(30);

/// How the guest is made, and how it is replicated.
#[derive(Debug, Clone)]
pub(super) struct RigSettings {
    pub(super) memory_mib: u32,
    pub(super) vcpus: u16,
    pub(super) cmdline: String,
    /// Lines of the section `[replication]`.
    pub(super) replication: String,
    /// What an operator wants otherwise.
    pub(super) settings: Vec<Setting>,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) cluster: Cluster,
    pub(super) patience: Duration,
    memory_mib: u32,
    /// Dropped after the cluster, whose processes write into it until they end.
    _folder: Folder,
}

/// What happened in a span of time.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    pub(super) length: Duration,
    /// Those whose pause ended in it.
    pub(super) epochs: Vec<EpochRecord>,
    pub(super) primary: CpuTime,
    pub(super) backup: CpuTime,
    pub(super) link_bytes: u64,
    /// Memory of the daemons beside the guest's at its end, in MiB.
    pub(super) primary_mib: f64,
    pub(super) backup_mib: Option<f64>,
    /// Writes of the guest that waited, and how long together.
    pub(super) stalls: u64,
    pub(super) stalled: Duration,
}

impl Window {
    /// One figure of all epochs in it, rising.
    pub(super) fn sorted(&self, figure: impl Fn(&EpochRecord) -> u64) -> Vec<f64> {
        let mut values: Vec<f64> = self.epochs.iter().map(|epoch| figure(epoch) as f64).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// `amount` per second of it.
    pub(super) fn per_s(&self, amount: f64) -> f64 {
        amount / self.length.as_secs_f64()
    }

    /// A part of one core, in percent.
    pub(super) fn core_percent(&self, spent: Duration) -> f64 {
        100.0 * self.per_s(spent.as_secs_f64())
    }

    /// Mean bytes on the wire of the epochs that are encoded.
    pub(super) fn wire_bytes_per_epoch(&self) -> Option<f64> {
        let bytes: Vec<u64> = self.epochs.iter().filter_map(|epoch| epoch.wire_bytes).collect();
        (!bytes.is_empty()).then(|| bytes.iter().sum::<u64>() as f64 / bytes.len() as f64)
    }
}

/// Counters at one moment.
struct Reading {
    at: Instant,
    monotonic_us: u64,
    primary: CpuTime,
    backup: CpuTime,
    link_bytes: u64,
    stalls: (f64, f64),
}

impl Rig {
    /// Starts arbiter and primary; the guest answers, and nobody stands by.
    ///
    /// # Errors
    ///
    /// [`BenchError`]
    pub(super) fn start(settings: &RigSettings) -> Result<Self, BenchError> {
        static RIGS: AtomicU32 = AtomicU32::new(0);
        let number = RIGS.fetch_add(1, Ordering::Relaxed);
        let name = format!("romulus-bench-{}-{number}", std::process::id());
        let folder = Folder(std::env::temp_dir().join(name));
        let program = std::env::current_exe().map_err(system("find this program"))?;
        let shape = Shape {
            hosts: 2,
            memory_mib: settings.memory_mib,
            vcpus: settings.vcpus,
            cmdline: settings.cmdline.clone(),
            linux: None,
            vm: with_settings("vm", "", &settings.settings),
            replication: with_settings("replication", &settings.replication, &settings.settings),
        };
        let cluster = Cluster::new("bench", &folder.0, &program, shape)?;
        let patience = PATIENCE + PATIENCE_PER_GIB * (settings.memory_mib / 1024);
        let mut rig = Self { cluster, patience, memory_mib: settings.memory_mib, _folder: folder };
        rig.cluster.start(Place::Arbiter, "arbiter")?;
        rig.cluster.start(FIRST, "run")?;
        rig.cluster.wait_primary(FIRST, patience)?;
        let mut client = rig.client(1, 0, 100)?;
        client.wait_answers(1, patience)?;
        Ok(rig)
    }

    /// Starts the backup and waits until it is in sync and epochs are as usual.
    ///
    /// # Errors
    ///
    /// [`BenchError`]
    pub(super) fn protect(&mut self) -> Result<(), BenchError> {
        self.cluster.start(SECOND, "backup")?;
        self.wait_protected(FIRST)
    }

    /// Waits until the guest at `place` is protected and epochs are as usual.
    ///
    /// # Errors
    ///
    /// [`BenchError`]
    pub(super) fn wait_protected(&self, place: Place) -> Result<(), BenchError> {
        let status = self.cluster.wait_protected(place, self.patience)?;
        let settled = status.epoch + EPOCHS_SETTLING;
        let what = "commits its first epochs";
        self.cluster.wait_for(place, what, self.patience, |status| status.committed >= settled)?;
        Ok(())
    }

    /// Clients that ask `rate_per_s` times each, or as soon as they are answered
    /// if that is 0, and ask again after `retransmit_ms`.
    ///
    /// # Errors
    ///
    /// [`BenchError`]
    pub(super) fn client(
        &self,
        lanes: u32,
        rate_per_s: u32,
        retransmit_ms: u32,
    ) -> Result<LoadClient, BenchError> {
        let (rate, retransmit) = (rate_per_s.to_string(), retransmit_ms.to_string());
        Ok(self.cluster.client(lanes, &["--rate", &rate, "--retransmit-ms", &retransmit])?)
    }

    /// What happens in a span of time, without clients.
    ///
    /// # Errors
    ///
    /// [`BenchError`]
    pub(super) fn window(&self, length: Duration) -> Result<Window, BenchError> {
        let before = self.read()?;
        // The span is what is measured.
        std::thread::sleep(length);
        self.since(&before)
    }

    /// What happens in a span of time, and what clients see in it.
    ///
    /// # Errors
    ///
    /// [`BenchError`]; also if the guest did not keep its word.
    pub(super) fn asked(
        &self,
        length: Duration,
        client: LoadClient,
    ) -> Result<(Window, ProbeReport), BenchError> {
        let window = self.window(length)?;
        let report = client.finish()?;
        if !report.sound() {
            let complaint = report.complaints.first().cloned();
            return Err(BenchError::Unsound(complaint.unwrap_or_else(|| "no answers".to_owned())));
        }
        Ok((window, report))
    }

    fn since(&self, before: &Reading) -> Result<Window, BenchError> {
        let after = self.read()?;
        let page = self.cluster.ask(FIRST, async |control: Client| control.epochs(0).await)?;
        let within = before.monotonic_us..after.monotonic_us;
        let epochs = page.epochs.into_iter();
        let epochs = epochs.filter(|epoch| within.contains(&epoch.resumed_monotonic_us)).collect();
        let beside = |place| match self.cluster.pid(place) {
            Some(pid) => memory_beside_mib(pid, self.memory_mib).map(Some),
            None => Ok(None),
        };
        let cannot = |source| system("read what the daemons cost")(source);
        Ok(Window {
            primary_mib: beside(FIRST).map_err(cannot)?.unwrap_or_default(),
            backup_mib: beside(SECOND).map_err(cannot)?,
            length: after.at - before.at,
            epochs,
            primary: after.primary - before.primary,
            backup: after.backup - before.backup,
            link_bytes: after.link_bytes - before.link_bytes,
            stalls: (after.stalls.0 - before.stalls.0) as u64,
            stalled: Duration::from_secs_f64((after.stalls.1 - before.stalls.1).max(0.0)),
        })
    }

    fn read(&self) -> Result<Reading, BenchError> {
        let pid = self.cluster.pid(FIRST).expect("the primary was started");
        let metrics = self.cluster.ask(FIRST, async |control: Client| control.metrics().await)?;
        let figure = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
        };
        let read = || -> io::Result<Reading> {
            Ok(Reading {
                primary: cpu_time(pid)?,
                backup: self.cluster.pid(SECOND).map(cpu_time).transpose()?.unwrap_or_default(),
                link_bytes: link_bytes(pid, LINK)?,
                stalls: (
                    figure("romulus_write_stall_seconds_count"),
                    figure("romulus_write_stall_seconds_sum"),
                ),
                at: Instant::now(),
                monotonic_us: monotonic_us(),
            })
        };
        read().map_err(|source| system("read what the daemons cost")(source).into())
    }
}

/// A folder that goes with its owner.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn system(action: &str) -> impl FnOnce(io::Error) -> ClusterError {
    let action = action.to_owned();
    move |source| ClusterError::System { action, source }
}
