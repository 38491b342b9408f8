//! A cluster that tests break, and what they look at afterwards.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use romulus::{
    control::{Accepted, Client, FailoverBody},
    rehearsal::{
        ProbeReport,
        cluster::{Cluster, ClusterError, Shape},
        netns::{Place, TAP},
    },
};

pub(crate) const A: Place = Place::Host(1);
pub(crate) const B: Place = Place::Host(2);
pub(crate) const C: Place = Place::Host(3);
/// Those that a cluster may have.
const HOSTS: [Place; 3] = [A, B, C];
/// A bound on failure, not a measure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const LANES: u32 = 4;
/// Patient enough for a machine that others use as well: a test waits for the
/// failures that it makes, and for no others.
pub(crate) const CALM: &str = "detection_ms = 1000\ndrop_ms = 800";
/// Longer than detection and drop with those settings, by far.
pub(crate) const LONG: Duration = Duration::from_millis(2500);

pub(crate) struct Drill {
    pub(crate) cluster: Cluster,
    _folder: tempfile::TempDir,
}

/// Whatever a test does to them: daemons ask for nothing that their jail refuses.
impl Drop for Drill {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for place in HOSTS.into_iter().chain([Place::Arbiter]) {
            let log = self.cluster.folder().join(format!("{place}.log"));
            let log = std::fs::read_to_string(log).unwrap_or_default();
            assert!(!log.contains("which its jail refuses"), "{place}:\n{log}");
        }
    }
}

impl Drill {
    /// A cluster that runs a protected guest on `A`, backed by `B`.
    pub(crate) fn protected(prefix: &str, replication: &str) -> Self {
        let mut drill = Self::idle(prefix, replication);
        drill.cluster.start(A, "run").unwrap();
        drill.cluster.start(B, "backup").unwrap();
        drill.cluster.wait_protected(A, PATIENCE).unwrap();
        drill
    }

    /// A cluster of two hosts of which only the arbiter runs.
    pub(crate) fn idle(prefix: &str, replication: &str) -> Self {
        Self::of(2, prefix, replication)
    }

    /// A cluster of so many hosts of which only the arbiter runs.
    pub(crate) fn of(hosts: u8, prefix: &str, replication: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape {
            hosts,
            memory_mib: 64,
            vcpus: 2,
            cmdline: "probe.dirty=pages:2000,rate:4000,write:sparse,content:random".into(),
            linux: None,
            vm: String::new(),
            replication: replication.into(),
        };
        let program = Path::new(env!("CARGO_BIN_EXE_romulus"));
        let mut cluster = Cluster::new(prefix, folder.path(), program, shape).unwrap();
        cluster.start(Place::Arbiter, "arbiter").unwrap();
        Self { cluster, _folder: folder }
    }

    pub(crate) fn other(place: Place) -> Place {
        if place == A { B } else { A }
    }

    pub(crate) fn tap_frames(&self, place: Place) -> u64 {
        let path = format!("/sys/class/net/{TAP}/statistics/rx_packets");
        let output = self.cluster.lab().command(place, "cat").arg(path).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a count")
    }

    /// Waits until somebody runs the guest, protected; who was fenced comes
    /// back as a backup. Returns who runs it.
    pub(crate) fn settle(&mut self) -> Place {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for place in [A, B] {
                if let Some(code) = self.cluster.exit_code(place, Duration::ZERO) {
                    assert_eq!(code, 3, "{}", self.cluster.log_end(place));
                    self.cluster.start(place, "backup").unwrap();
                } else if self.cluster.wait_protected(place, Duration::from_millis(100)).is_ok() {
                    return place;
                }
            }
        }
        panic!("nobody runs the guest:\n{}\n{}", self.cluster.log_end(A), self.cluster.log_end(B));
    }

    /// Hands the guest from `from` to `to` by plan.
    pub(crate) fn hand_over(&self, from: Place, to: Place) -> Result<Accepted, ClusterError> {
        let body = FailoverBody { to: Some(to.node()), ..FailoverBody::default() };
        self.cluster.ask(from, async |control: Client| control.failover(&body).await)
    }

    /// As [`Drill::hand_over`], once the guest is protected. A machine that stalls
    /// may break the session: the guest then runs on, the operator is told, and
    /// tries again.
    pub(crate) fn hand_over_soon(&self, from: Place, to: Place) {
        let deadline = Instant::now() + PATIENCE;
        self.cluster.wait_protected(from, PATIENCE).unwrap();
        while let Err(given_up) = self.hand_over(from, to) {
            assert!(Instant::now() < deadline, "{given_up}");
            self.cluster.wait_protected(from, PATIENCE).unwrap();
        }
    }

    pub(crate) fn verify(&self, primary: Place) {
        self.verify_all(primary, 1);
    }

    /// The memory of so many backups is their primary's, soon: who has just become
    /// primary has their word, and not yet all their sessions.
    pub(crate) fn verify_all(&self, primary: Place, backups: usize) {
        let deadline = Instant::now() + PATIENCE;
        let verify = async |control: Client| control.verify().await;
        loop {
            let verified = self.cluster.ask(primary, verify);
            if let Ok(report) = &verified {
                assert!(report.equal, "{report:?}");
                if report.backups.len() == backups {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "{verified:?}");
            std::thread::sleep(LONG / 50);
        }
    }
}

/// Threads of a process that stand still, while its others go on.
pub(crate) struct Hung(pub(crate) Vec<Pid>);

impl Hung {
    /// Stops those whose names begin with `name`.
    pub(crate) fn threads(process: u32, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let named = |path: &Path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with(name))
        };
        let paths = tasks.map(|task| task.unwrap().path()).filter(|path| named(path));
        let number = |path: &Path| path.file_name()?.to_str()?.parse().ok();
        let threads: Vec<Pid> =
            paths.map(|path| Pid::from_raw(number(&path).expect("a thread's number"))).collect();
        assert!(!threads.is_empty(), "nobody is called {name}");
        for thread in &threads {
            ptrace::seize(*thread, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(*thread).unwrap();
            waitpid(*thread, Some(WaitPidFlag::__WALL)).unwrap();
        }
        Self(threads)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        for thread in &self.0 {
            let _ = ptrace::detach(*thread, None);
        }
    }
}

pub(crate) fn assert_sound(report: &ProbeReport) {
    assert!(report.sound(), "{report:#?}");
}

/// Digests by epoch, of every primary that cut it.
pub(crate) type Cuts = BTreeMap<u64, Vec<String>>;

/// What was cut, and what promotions began with.
pub(crate) fn audits(folder: &Path) -> (Cuts, Vec<(u64, String)>) {
    let (mut cuts, mut promotions) = (Cuts::new(), Vec::new());
    for host in HOSTS {
        let path = folder.join(format!("{host}.state/demo.{host}.audit"));
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let [what, epoch, digest] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("not an audit line: {line}");
            };
            let epoch = epoch.parse().unwrap();
            if what == "cut" {
                cuts.entry(epoch).or_default().push(digest.to_owned());
            } else {
                promotions.push((epoch, digest.to_owned()));
            }
        }
    }
    (cuts, promotions)
}

/// How many promotions there were; each went on from what was cut.
pub(crate) fn promotions_as_cut(folder: &Path) -> usize {
    let (cuts, promotions) = audits(folder);
    for (epoch, digest) in &promotions {
        let cut = cuts.get(epoch).unwrap_or_else(|| panic!("epoch {epoch} was never cut"));
        assert!(cut.contains(digest), "the image of epoch {epoch} is not what was cut");
    }
    promotions.len()
}
