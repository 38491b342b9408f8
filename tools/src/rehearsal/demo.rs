//! `romulus demo`: all of it on one machine, in less than a minute.
//!
//! Two hosts, an arbiter and a client; the primary is killed, the guest goes
//! on, a new backup is seeded while it runs, and the guest is handed back by
//! plan. Clients check every answer throughout.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use thiserror::Error;
use vmm::host::{Host, HostError};

use super::{
    cluster::{Cluster, ClusterError, LoadClient, Shape},
    netns::{GUEST_ADDRESS, Place},
    probe_report::ProbeReport,
};
use crate::{
    control::{Client, FailoverBody, Percentiles, Status, VerifyReport},
    linux_guest::{
        image::{GuestImage, ImageError},
        probe::READY,
    },
};

const FIRST: Place = Place::Host(1);
const SECOND: Place = Place::Host(2);
/// How long the guest serves between two events.
const PHASE: Duration = Duration::from_secs(3);
/// Clients that ask from the beginning to the end.
const LANES: u32 = 4;
/// Heartbeats within the time after which silence is noticed.
const HEARTBEATS: u32 = 6;
/// The most that a configuration takes.
const HEARTBEAT_MS_MAX: u32 = 10_000;
/// Silence after which a backup asks for promotion, and a primary to go on alone,
/// in ms.
const DETECTION_MS: u32 = 150;
const DROP_MS: u32 = 120;
/// Nobody is silent who speaks once an epoch.
const EPOCHS_OF_SILENCE: u32 = 3;
/// How long anything may take, and how many epochs longer: clients wait for their
/// answers' epochs.
const PATIENCE: Duration = Duration::from_secs(30);
const EPOCHS_OF_PATIENCE: u32 = 60;
/// Shortest time after which clients ask again, in ms, and how much shorter
/// than the detection it is.
const RETRANSMIT_MS_MIN: u32 = 20;
const RETRANSMITS: u32 = 8;
/// What a Linux kernel, and the initramfs with this program, need to boot.
const LINUX_MIB_MIN: u32 = 128;

/// Why the demo does not go on.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] HostError),
    /// KVM does not run Linux.
    #[error(
        "this host's KVM ({backend}) does not run stock Linux ({reason}): use a host with VT-x or AMD-V, or the demo without `--guest linux`"
    )]
    NoLinux {
        /// KVM's backend.
        backend: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// The guest is too small.
    #[error("a Linux guest needs {LINUX_MIB_MIN} MiB at least, not {mib}: raise --memory")]
    TooSmall {
        /// What it was to have.
        mib: u32,
    },
    /// There is nothing to boot.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestKind {
    /// The bare-metal probe guest.
    Probe,
    /// The probe in a stock Linux.
    Linux {
        /// A bzImage; `None`: this host's own.
        kernel: Option<PathBuf>,
    },
}

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct DemoSettings {
    /// What is protected.
    pub guest: GuestKind,
    /// Run interval between two checkpoints, in ms.
    pub epoch_ms: u32,
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// The guest's vCPUs.
    pub vcpus: u16,
    /// Pages that it dirties per second.
    pub dirty_rate: u64,
    /// Silence after which the backup asks for promotion, in ms; `None`: 150, or as
    /// many as the epochs need.
    pub detection_ms: Option<u32>,
    /// Silence after which the primary asks to go on alone, in ms; `None`: 120, or
    /// as many as the epochs need.
    pub drop_ms: Option<u32>,
    /// How long anything may take; `None`: 30 s, and longer with long epochs.
    pub patience: Option<Duration>,
    /// Leave everything running until Ctrl-C.
    pub keep: bool,
    /// Say nothing on the way.
    pub quiet: bool,
}

impl DemoSettings {
    fn detection_ms(&self) -> u32 {
        self.detection_ms.unwrap_or(DETECTION_MS.max(self.epoch_ms * EPOCHS_OF_SILENCE))
    }

    fn drop_ms(&self) -> u32 {
        self.drop_ms.unwrap_or(DROP_MS.max(self.epoch_ms * EPOCHS_OF_SILENCE))
    }

    fn patience(&self) -> Duration {
        let epoch = Duration::from_millis(self.epoch_ms.into());
        self.patience.unwrap_or(PATIENCE + epoch * EPOCHS_OF_PATIENCE)
    }

    /// The section `[replication]`.
    fn replication(&self) -> String {
        let (epoch_ms, detection_ms, drop_ms) =
            (self.epoch_ms, self.detection_ms(), self.drop_ms());
        let heartbeat_ms = (detection_ms.min(drop_ms) / HEARTBEATS).clamp(1, HEARTBEAT_MS_MAX);
        format!(
            "epoch_ms = {epoch_ms}\nheartbeat_ms = {heartbeat_ms}\n\
             detection_ms = {detection_ms}\ndrop_ms = {drop_ms}\nmtu_max = 65000"
        )
    }
}

/// What came of it. `lost` must be 0.
#[derive(Debug, Clone, Serialize)]
pub struct DemoReport {
    /// What was protected: `probe`, or `Linux` and its release.
    pub guest: String,
    /// Epochs ended by all primaries.
    pub epochs: u64,
    /// Time in which no vCPU ran, per epoch of the first primary.
    pub pause_us: Percentiles,
    /// From the resume to the release of an epoch's output, as above.
    pub commit_us: Percentiles,
    /// Mean, as above.
    pub wire_bytes_per_epoch: u64,
    /// Kill: last answer before to first answer after, as the client saw it.
    pub failover_ms: f64,
    /// The same for the planned switchover.
    pub switchover_ms: f64,
    /// New answers.
    pub answers: u64,
    /// Answers once given and later forgotten.
    pub lost: u64,
    /// Counters and clocks that went back.
    pub went_back: u64,
    /// Answers that told of pages without the content that the guest wrote.
    pub corrupt: u64,
    /// Answers that came twice: harmless.
    pub duplicates: u64,
    /// From a request to its answer, while the guest was protected and nothing
    /// happened.
    pub latency_us: Percentiles,
    /// Whether primary and backup had the same memory at the end.
    pub verified: bool,
    /// The term at the end.
    pub term: u64,
    /// How long it took, in ms.
    pub elapsed_ms: u64,
}

impl DemoReport {
    /// Whether the guest kept its word.
    #[must_use]
    pub fn sound(&self) -> bool {
        self.answers > 0
            && self.lost == 0
            && self.went_back == 0
            && self.corrupt == 0
            && self.verified
    }
}

/// Plays the demo, in a folder of its own that is removed afterwards.
///
/// # Errors
///
/// [`DemoError`]
pub fn play(settings: &DemoSettings) -> Result<DemoReport, DemoError> {
    let linux = match &settings.guest {
        GuestKind::Probe => None,
        GuestKind::Linux { kernel } => {
            require_linux(settings.memory_mib)?;
            Some(kernel.as_deref())
        }
    };
    let folder = std::env::temp_dir().join(format!("romulus-demo-{}", std::process::id()));
    let system = |action: &str| {
        let action = action.to_owned();
        move |source| ClusterError::System { action, source }
    };
    let program = std::env::current_exe().map_err(system("find this program"))?;
    std::fs::create_dir_all(&folder).map_err(system("make the demo's folder"))?;
    let image = linux.map(|kernel| GuestImage::make(kernel, &folder)).transpose();
    let result = image
        .map_err(DemoError::from)
        .and_then(|image| Ok(Demo::new(settings, &folder, &program, image)?.play()?));
    let _ = std::fs::remove_dir_all(folder);
    result
}

/// Before anything starts: whether this host can do it.
fn require_linux(mib: u32) -> Result<(), DemoError> {
    let backend = Host::open()?.capabilities().backend;
    let guests = backend.guests();
    if !guests.stock_linux {
        return Err(DemoError::NoLinux { backend: backend.name(), reason: guests.reason });
    }
    if mib < LINUX_MIB_MIN {
        return Err(DemoError::TooSmall { mib });
    }
    Ok(())
}

struct Demo<'a> {
    settings: &'a DemoSettings,
    cluster: Cluster,
    linux: Option<GuestImage>,
    begun: Instant,
}

/// What clients saw.
struct Seen {
    throughout: ProbeReport,
    calm: Percentiles,
    failover_ms: f64,
    switchover_ms: f64,
}

impl<'a> Demo<'a> {
    fn new(
        settings: &'a DemoSettings,
        folder: &Path,
        program: &Path,
        linux: Option<GuestImage>,
    ) -> Result<Self, ClusterError> {
        let begun = Instant::now();
        let pages = settings.dirty_rate.clamp(1, u64::from(settings.memory_mib) * 64);
        let dirty = match settings.dirty_rate {
            0 => String::new(),
            rate => format!("probe.dirty=pages:{pages},rate:{rate},write:sparse,content:random"),
        };
        let shape = Shape {
            hosts: 2,
            memory_mib: settings.memory_mib,
            vcpus: settings.vcpus,
            cmdline: dirty,
            linux: linux.clone(),
            vm: String::new(),
            replication: settings.replication(),
        };
        let cluster = Cluster::new("demo", folder, program, shape)?;
        Ok(Self { settings, cluster, linux, begun })
    }

    fn say(&self, text: &str) {
        if !self.settings.quiet {
            eprintln!("{:6.2} s  {text}", self.begun.elapsed().as_secs_f64());
        }
    }

    fn play(mut self) -> Result<DemoReport, ClusterError> {
        self.begin()?;
        let mut client = self.client(0)?;
        client.wait_answers(1, self.settings.patience())?;
        self.say("clients ask, and check every answer");
        let calm = self.calm()?;
        let (killed, failover_ms) = self.kill(&mut client)?;
        self.reprotect()?;
        let (handed, switchover_ms) = self.hand_back(&mut client)?;
        let (last, verify) = self.verify()?;
        let throughout = client.finish()?;
        self.keep();
        let seen = Seen { throughout, calm: calm.latency_us, failover_ms, switchover_ms };
        Ok(self.report(&[&killed, &handed, &last], &verify, &seen))
    }

    fn begin(&mut self) -> Result<(), ClusterError> {
        self.say("two hosts, an arbiter and a client, each in a network namespace");
        self.cluster.start(Place::Arbiter, "arbiter")?;
        self.cluster.start(FIRST, "run")?;
        if let Some(image) = &self.linux {
            // What a boot dirties goes into the seed once.
            self.cluster.wait_console(FIRST, READY, self.settings.patience())?;
            self.say(&format!("Linux {} has booted at {FIRST}", image.release));
        }
        self.cluster.start(SECOND, "backup")?;
        self.cluster.wait_protected(FIRST, self.settings.patience())?;
        self.say(&format!(
            "{FIRST} runs a guest of {} MiB and {} vCPUs, {SECOND} is its backup: protected",
            self.settings.memory_mib, self.settings.vcpus
        ));
        Ok(())
    }

    /// A client on lanes of its own.
    fn client(&self, first_lane: u32) -> Result<LoadClient, ClusterError> {
        let retransmit_ms = (self.settings.detection_ms() / RETRANSMITS).max(RETRANSMIT_MS_MIN);
        let (lane, ms) = (first_lane.to_string(), retransmit_ms.to_string());
        self.cluster.client(LANES, &["--first-lane", &lane, "--retransmit-ms", &ms])
    }

    /// What clients of a protected guest see while nothing happens.
    fn calm(&self) -> Result<ProbeReport, ClusterError> {
        let client = self.client(3 * LANES)?;
        std::thread::sleep(PHASE);
        client.finish()
    }

    /// A client that measures one interruption.
    fn observer(&self, first_lane: u32) -> Result<LoadClient, ClusterError> {
        let mut observer = self.client(first_lane)?;
        observer.wait_answers(100, self.settings.patience())?;
        Ok(observer)
    }

    fn kill(&mut self, client: &mut LoadClient) -> Result<(Status, f64), ClusterError> {
        let mut observer = self.observer(LANES)?;
        let before = self.cluster.status(FIRST)?;
        self.cluster.kill(FIRST);
        self.say(&format!("{FIRST} is killed (SIGKILL) in epoch {}", before.epoch));
        let status = self.cluster.wait_primary(SECOND, self.settings.patience())?;
        observer.wait_answers(100, self.settings.patience())?;
        client.wait_answers(100, self.settings.patience())?;
        let gap = observer.finish()?.longest_gap.ms;
        self.say(&format!(
            "{SECOND} has taken over (term {}); the client waited {gap:.0} ms",
            status.term
        ));
        Ok((before, gap))
    }

    fn reprotect(&mut self) -> Result<(), ClusterError> {
        self.cluster.start(FIRST, "backup")?;
        let begun = Instant::now();
        self.cluster.wait_protected(SECOND, self.settings.patience())?;
        self.say(&format!(
            "{FIRST} is back as a backup, seeded in {:.1} s while the guest ran: protected",
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    fn hand_back(&mut self, client: &mut LoadClient) -> Result<(Status, f64), ClusterError> {
        std::thread::sleep(PHASE);
        let mut observer = self.observer(2 * LANES)?;
        let before = self.cluster.status(SECOND)?;
        let to = FailoverBody { to: Some(FIRST.node()), ..FailoverBody::default() };
        self.cluster.ask(SECOND, async |control: Client| control.failover(&to).await)?;
        self.cluster.wait_primary(FIRST, self.settings.patience())?;
        observer.wait_answers(100, self.settings.patience())?;
        client.wait_answers(100, self.settings.patience())?;
        let gap = observer.finish()?.longest_gap.ms;
        self.say(&format!("handed back to {FIRST} by plan; the client waited {gap:.0} ms"));
        self.cluster.wait_protected(FIRST, self.settings.patience())?;
        self.say(&format!("{SECOND} stands by again: protected"));
        Ok((before, gap))
    }

    fn verify(&self) -> Result<(Status, VerifyReport), ClusterError> {
        let verify = self.cluster.ask(FIRST, async |control: Client| control.verify().await)?;
        let same = if verify.equal { "the same" } else { "NOT the same" };
        self.say(&format!("memory of both hosts at epoch {}: {same}", verify.epoch));
        Ok((self.cluster.status(FIRST)?, verify))
    }

    fn keep(&self) {
        if !self.settings.keep {
            return;
        }
        let folder: PathBuf = self.cluster.folder().to_owned();
        let socket = folder.join(format!("{FIRST}.sock"));
        let client = self.cluster.lab().namespace(Place::Client);
        eprintln!("left running. Try:");
        eprintln!("  curl --unix-socket {} http://romulus/status", socket.display());
        eprintln!("  ip netns exec {client} ping {GUEST_ADDRESS}");
        eprintln!("  kill -9 {}", self.cluster.pid(FIRST).unwrap_or(0));
        eprintln!("logs and configurations are in {}", folder.display());
        if std::io::stdin().is_terminal() {
            eprintln!("press Enter to end it");
            let _ = std::io::stdin().read_line(&mut String::new());
        } else {
            loop {
                std::thread::park();
            }
        }
    }

    fn report(&self, primaries: &[&Status; 3], verify: &VerifyReport, seen: &Seen) -> DemoReport {
        let [first, _, last] = primaries;
        let guest = self.linux.as_ref().map(|image| format!("Linux {}", image.release));
        let client = &seen.throughout;
        DemoReport {
            guest: guest.unwrap_or_else(|| "probe".to_owned()),
            epochs: primaries.iter().map(|status| status.epochs).sum(),
            pause_us: first.pause_us,
            commit_us: first.commit_us,
            wire_bytes_per_epoch: first.wire_bytes_per_epoch,
            failover_ms: seen.failover_ms,
            switchover_ms: seen.switchover_ms,
            answers: client.answers,
            lost: client.lost,
            went_back: client.went_back,
            corrupt: client.corrupt,
            duplicates: client.duplicates,
            latency_us: seen.calm,
            verified: verify.equal && !verify.backups.is_empty(),
            term: last.term,
            elapsed_ms: self.begun.elapsed().as_millis() as u64,
        }
    }
}

/// The report, as a person likes to read it.
#[must_use]
pub fn render(report: &DemoReport) -> String {
    let row = |name: &str, value: String| format!("  {name:<22} {value}\n");
    let percentiles = |p: &Percentiles| {
        format!("p50 {:.2} ms   p99 {:.2} ms   max {:.2} ms", ms(p.p50), ms(p.p99), ms(p.max))
    };
    let word =
        if report.sound() { "Nothing was lost." } else { "THE GUEST DID NOT KEEP ITS WORD." };
    let verified = if report.verified { "equal on both hosts" } else { "DIFFERENT" };
    [
        format!("\n{word}\n\n"),
        row("guest", report.guest.clone()),
        row(
            "answers",
            format!("{} ({} twice, which is harmless)", report.answers, report.duplicates),
        ),
        row("lost answers", report.lost.to_string()),
        row("memory", verified.to_owned()),
        row("failover (SIGKILL)", format!("{:.0} ms without an answer", report.failover_ms)),
        row("planned switchover", format!("{:.0} ms without an answer", report.switchover_ms)),
        row(
            "epochs",
            format!("{} ({} bytes on the wire each)", report.epochs, report.wire_bytes_per_epoch),
        ),
        row("pause", percentiles(&report.pause_us)),
        row("until released", percentiles(&report.commit_us)),
        row("request to answer", percentiles(&report.latency_us)),
        row("term", report.term.to_string()),
        row("elapsed", format!("{:.1} s", ms(report.elapsed_ms))),
    ]
    .concat()
}

fn ms(thousandths: u64) -> f64 {
    thousandths as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use transport::identity::pki;

    use super::*;
    use crate::config::{self, Replication};

    fn settings(epoch_ms: u32) -> DemoSettings {
        DemoSettings {
            guest: GuestKind::Probe,
            epoch_ms,
            memory_mib: 64,
            vcpus: 1,
            dirty_rate: 0,
            detection_ms: None,
            drop_ms: None,
            patience: None,
            keep: false,
            quiet: true,
        }
    }

    /// Writes `settings` as the demo does, into a host's configuration.
    fn understood(settings: &DemoSettings) -> Replication {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("host-1.toml");
        pki::create_authority(folder.path(), pki::CA_DAYS, true).unwrap();
        pki::issue(folder.path(), &"host-1".parse().unwrap(), pki::NODE_DAYS, true).unwrap();
        let text = format!(
            "[vm]\nname = \"demo\"\nmemory_mib = 64\nkernel = \"probe\"\n\n\
             [node]\nname = \"host-1\"\nlisten = \"127.0.0.1:7700\"\nstate_dir = \"s\"\n\
             control = \"s.sock\"\nca = \"ca.pem\"\ncert = \"host-1.pem\"\nkey = \"host-1.key\"\n\n\
             [arbiter]\nname = \"arbiter\"\naddress = \"127.0.0.1:7800\"\n\n\
             [replication]\n{}\n",
            settings.replication()
        );
        std::fs::write(&file, text).unwrap();
        config::read_vm(&file).unwrap_or_else(|error| panic!("{error}")).replication
    }

    #[test]
    fn every_epoch_that_may_be_chosen_can_be_configured() {
        for epoch_ms in [1, 25, 40, 50, 51, 120, 150, 200, 10_000] {
            let replication = understood(&settings(epoch_ms));
            let epochs = |silence: Duration| silence.as_millis() / u128::from(epoch_ms);
            assert!(epochs(replication.detection) >= 3, "{epoch_ms} ms");
            assert!(epochs(replication.drop) >= 3, "{epoch_ms} ms");
        }
        let usual = understood(&settings(25));
        assert_eq!((usual.detection.as_millis(), usual.drop.as_millis()), (150, 120));
    }

    #[test]
    fn what_the_operator_says_of_silence_holds() {
        let chosen = DemoSettings { detection_ms: Some(250), drop_ms: Some(230), ..settings(200) };
        let replication = understood(&chosen);
        assert_eq!((replication.detection.as_millis(), replication.drop.as_millis()), (250, 230));
    }

    #[test]
    fn long_epochs_are_waited_for() {
        assert!(settings(25).patience() >= PATIENCE);
        assert!(settings(10_000).patience() >= Duration::from_secs(600));
        let chosen = DemoSettings { patience: Some(Duration::from_secs(5)), ..settings(10_000) };
        assert_eq!(chosen.patience(), Duration::from_secs(5));
    }
}
