//! `romulus soak`: random faults of real processes, for as long as wanted.
//!
//! ```text
//!   round:  faults begin and end as drawn ── who has ended comes back ── protected again
//!           │                                                              │
//!           clients ask and check every answer, the switch counts voices ──┘  memory compared
//! ```
//!
//! The seed draws the faults; when they meet what is the machine's. A round that
//! does not end protected within its patience ends the soak: coming back is part
//! of what is promised.

mod burden;
mod disks;
mod fault;
mod report;
mod voices;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

pub use self::report::{SoakReport, render};
use self::{
    burden::Burden,
    disks::SmallDisk,
    fault::{Fault, Kind, Parts, Victim},
    voices::Voices,
};
use super::{
    cluster::{Cluster, ClusterError, LoadClient, Registers, Shape},
    leftovers,
    netns::{Direction, Place},
};
use crate::{
    control::{Client, Protection, Role, Status},
    exit::Exit,
};

/// Detection that a busy machine does not set off by itself.
const CALM: &str = "mtu_max = 65000\ndetection_ms = 400\ndrop_ms = 300";
/// What a hostile guest does, between answers to its clients.
const HOSTILE: &str = "chains+resets+registers+races+ports+space+net";
/// Clients that ask from the beginning to the end.
const LANES: u32 = 4;
/// How long protection may take to come back.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a sound backup may take for an epoch.
const BACKUP_PATIENCE: Duration = Duration::from_secs(3);
/// A daemon that is away is looked after so often.
const LOOK: Duration = Duration::from_millis(100);
/// Every so many rounds the memory of all hosts is compared.
const VERIFY_EVERY: u64 = 4;

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct SoakSettings {
    /// No round begins after it.
    pub length: Duration,
    /// Draws the faults.
    pub seed: u64,
    /// How many copies of the guest stand by, at least one.
    pub backups: u8,
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// The guest's vCPUs.
    pub vcpus: u16,
    /// Pages that it dirties per second.
    pub dirty_rate: u64,
    /// The registers are in three members of etcd, behind two arbiters.
    pub etcd: bool,
    /// The guest attacks its devices all the time.
    pub hostile: bool,
    /// Say nothing on the way.
    pub quiet: bool,
}

impl SoakSettings {
    fn registers(&self) -> Registers {
        if self.etcd { Registers::Etcd { members: 3, arbiters: 2 } } else { Registers::File }
    }

    fn parts(&self) -> Parts {
        let backups = self.backups;
        match self.registers() {
            Registers::File => Parts { backups, arbiters: 1, members: 0 },
            Registers::Etcd { members, arbiters } => Parts { backups, arbiters, members },
        }
    }

    fn hosts(&self) -> u8 {
        1 + self.backups
    }

    /// Whether who says so runs a guest that is protected, by all its backups.
    fn is_protected(&self, status: &Status) -> bool {
        status.role == Role::Primary
            && status.protection == Protection::Protected
            && status.in_sync.len() == usize::from(self.backups)
    }

    fn shape(&self) -> Shape {
        let pages = self.dirty_rate.clamp(1, u64::from(self.memory_mib) * 64);
        let rate = self.dirty_rate;
        let mut cmdline =
            format!("probe.dirty=pages:{pages},rate:{rate},write:sparse,content:random");
        if self.hostile {
            let _ = write!(cmdline, " probe.attack=seed:{},kinds:{HOSTILE}", self.seed);
        }
        Shape {
            hosts: self.hosts(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            cmdline,
            linux: None,
            vm: String::new(),
            replication: CALM.to_owned(),
        }
    }
}

/// Soaks, in a folder that is kept if something must not be.
///
/// # Errors
///
/// [`ClusterError`] if there is no protected guest to begin with. What goes wrong
/// later is in the report.
pub fn run(settings: &SoakSettings) -> Result<SoakReport, ClusterError> {
    let folder = std::env::temp_dir().join(format!("romulus-soak-{}", std::process::id()));
    let program = std::env::current_exe().map_err(system("find this program"))?;
    let report = Soak::begin(settings, &folder, &program)?.run();
    if report.sound() {
        let _ = std::fs::remove_dir_all(folder);
    } else {
        let kept = leftovers::keep_folder(folder);
        eprintln!("logs and configurations are in {}", kept.display());
    }
    Ok(report)
}

fn system(action: &str) -> impl Fn(io::Error) -> ClusterError {
    move |source| ClusterError::System { action: action.to_owned(), source }
}

struct Soak<'a> {
    settings: &'a SoakSettings,
    program: PathBuf,
    begun: Instant,
    rng: StdRng,
    hosts: Vec<Place>,
    primary: Place,
    client: LoadClient,
    voices: Voices,
    cluster: Cluster,
    /// After the cluster, whose processes use them.
    disks: BTreeMap<Place, SmallDisk>,
    report: SoakReport,
}

/// A fault at work: what its end has to undo.
struct AtWork {
    fault: Fault,
    place: Option<Place>,
    until: Instant,
    burden: Option<Burden>,
}

impl<'a> Soak<'a> {
    fn begin(
        settings: &'a SoakSettings,
        folder: &Path,
        program: &Path,
    ) -> Result<Self, ClusterError> {
        let begun = Instant::now();
        let registers = settings.registers();
        let mut cluster =
            Cluster::with_registers("soak", folder, program, settings.shape(), registers)?;
        let mut disks = BTreeMap::new();
        for place in cluster.lab().places() {
            if let Some(path) = cluster.state_folder(place) {
                disks.insert(place, SmallDisk::at(path).map_err(system("mount a small disk"))?);
            }
        }
        let (members, arbiters): (Vec<_>, Vec<_>) =
            (cluster.lab().members().collect(), cluster.lab().arbiters().collect());
        members.into_iter().try_for_each(|member| cluster.start_member(member))?;
        arbiters.into_iter().try_for_each(|arbiter| cluster.start(arbiter, "arbiter"))?;
        let hosts: Vec<_> = (1..=settings.hosts()).map(Place::Host).collect();
        let primary = hosts[0];
        cluster.start(primary, "run")?;
        hosts[1..].iter().try_for_each(|backup| cluster.start(*backup, "backup"))?;
        let all = |status: &Status| settings.is_protected(status);
        let term = cluster.wait_for(primary, "is protected", PATIENCE, all)?.term;
        let voices =
            Voices::of(&cluster.lab().switch_path()).map_err(system("watch the switch"))?;
        let mut client = cluster.client(LANES, &[])?;
        client.wait_answers(1, PATIENCE)?;
        let report = SoakReport {
            seed: settings.seed,
            backups: settings.backups,
            elapsed_ms: 0,
            rounds: 0,
            faults: BTreeMap::new(),
            moves: 0,
            voice_changes: 0,
            double_voices: 0,
            verified: 0,
            different: 0,
            term,
            clients: None,
            failure: None,
        };
        let (rng, program) = (StdRng::seed_from_u64(settings.seed), program.to_owned());
        Ok(Self {
            settings,
            program,
            begun,
            rng,
            hosts,
            primary,
            client,
            voices,
            cluster,
            disks,
            report,
        })
    }

    fn say(&self, text: &str) {
        if !self.settings.quiet {
            eprintln!("{:7.1} s  {text}", self.begun.elapsed().as_secs_f64());
        }
    }

    fn run(mut self) -> SoakReport {
        self.say(&format!("protected; seed {}", self.settings.seed));
        while self.report.failure.is_none() && self.begun.elapsed() < self.settings.length {
            if let Err(error) = self.round() {
                let failure = format!("round {}: {error}", self.report.rounds + 1);
                self.report.failure = Some(failure);
            }
        }
        self.report.elapsed_ms = self.begun.elapsed().as_millis() as u64;
        match self.client.finish() {
            Ok(clients) => self.report.clients = Some(clients),
            Err(error) => drop(self.report.failure.get_or_insert(error.to_string())),
        }
        self.report
    }

    fn round(&mut self) -> Result<(), ClusterError> {
        let faults = fault::draw(&mut self.rng, self.settings.parts());
        let words: Vec<_> = faults.iter().map(ToString::to_string).collect();
        self.say(&format!("#{} {}", self.report.rounds + 1, words.join("; ")));
        let (term, heard) = (self.report.term, self.voices.heard());
        self.suffer(faults)?;
        let settled = Instant::now();
        let primary = self.settle()?;
        self.client.wait_answers(50, PATIENCE)?;
        self.report.term = self.cluster.status(primary)?.term;
        self.listen(term, heard.changes);
        self.report.moves += u64::from(primary != self.primary);
        self.primary = primary;
        self.report.rounds += 1;
        if self.report.rounds.is_multiple_of(VERIFY_EVERY) {
            self.verify()?;
        }
        let answers = self.client.answers();
        self.say(&format!(
            "   {primary} runs it in term {}, protected again after {:.1} s; {answers} answers",
            self.report.term,
            settled.elapsed().as_secs_f64(),
        ));
        Ok(())
    }

    /// Lets `faults` begin and end at their times.
    fn suffer(&mut self, faults: Vec<Fault>) -> Result<(), ClusterError> {
        let begun = Instant::now();
        let deaths = faults.iter().filter(|fault| fault.takes_a_copy()).count();
        let mut to_come = faults.into_iter().peekable();
        let mut at_work: Vec<AtWork> = Vec::new();
        let mut commands: Vec<Child> = Vec::new();
        loop {
            let now = Instant::now();
            while let Some(fault) = to_come.next_if(|fault| begun + fault.at <= now) {
                if fault.takes_a_copy() && self.takes_the_last_copy(fault.victim, deaths) {
                    self.say("   not protected at the moment: nobody is killed");
                    continue;
                }
                *self.report.faults.entry(fault.name()).or_default() += 1;
                if fault.kind == Kind::HandOver {
                    commands.push(self.hand_over()?);
                }
                at_work.push(self.inflict(fault)?);
            }
            if let Some(index) = at_work.iter().position(|fault| fault.until <= now) {
                let over = at_work.swap_remove(index);
                self.undo(over)?;
                continue;
            }
            let begins = to_come.peek().map(|fault| begun + fault.at);
            let ends = at_work.iter().map(|fault| fault.until);
            let Some(next) = ends.chain(begins).min() else { break };
            std::thread::sleep(next.saturating_duration_since(now));
        }
        // A daemon carries it out or gives it up in bounded time, once it is let.
        let mut ended = commands.iter_mut().map(Child::wait);
        ended.try_for_each(|ended| ended.map(drop)).map_err(system("wait for a switchover"))
    }

    /// Whether the death of `victim`, one of so many, may take it. A busy machine
    /// may have cost the guest its backup, and a switchover may have changed who
    /// that is; it is safe again soon.
    fn takes_the_last_copy(&self, victim: Victim, deaths: usize) -> bool {
        let Some(place) = self.place(victim) else { return false };
        match self.cluster.status(place) {
            Ok(status) if status.role == Role::Backup => false,
            Ok(status) => {
                status.protection != Protection::Protected || status.in_sync.len() < deaths
            }
            Err(_) => true,
        }
    }

    fn place(&self, victim: Victim) -> Option<Place> {
        match victim {
            Victim::Primary => Some(self.primary),
            Victim::Backup(number) => self.others(self.primary).nth(usize::from(number)),
            Victim::Arbiter(number) => self.cluster.lab().arbiters().nth(usize::from(number)),
            Victim::Member(number) => self.cluster.lab().members().nth(usize::from(number)),
            Victim::Machine => None,
        }
    }

    /// The hosts that do not run the guest if `primary` does.
    fn others(&self, primary: Place) -> impl Iterator<Item = Place> {
        self.hosts.iter().copied().filter(move |host| *host != primary)
    }

    fn inflict(&mut self, fault: Fault) -> Result<AtWork, ClusterError> {
        let place = self.place(fault.victim);
        let mut burden = None;
        match (fault.kind, place) {
            (Kind::Kill, Some(place)) => self.cluster.kill(place),
            (Kind::Freeze, Some(place)) => self.cluster.signal(place, "STOP")?,
            (Kind::Cut(direction), Some(place)) => self.cluster.lab().cut(place, direction)?,
            (Kind::Loss(percent), Some(place)) => {
                self.cluster.lab().lose(place, Direction::Both, percent)?;
            }
            (Kind::FullDisk, Some(place)) => {
                if let Some(disk) = self.disks.get(&place) {
                    disk.fill().map_err(system("fill a disk"))?;
                }
            }
            (Kind::Memory(percent), _) => burden = Some(Burden::memory(percent)),
            (Kind::Busy(threads), _) => burden = Some(Burden::processors(threads)),
            (Kind::HandOver, _) => {}
            (Kind::Kill | Kind::Freeze | Kind::Cut(_) | Kind::Loss(_) | Kind::FullDisk, None) => {
                unreachable!("faults of a process have one")
            }
        }
        Ok(AtWork { fault, place, until: Instant::now() + fault.lasts, burden })
    }

    /// As an operator would, who does not wait for faults to end first.
    fn hand_over(&self) -> Result<Child, ClusterError> {
        let socket = self.cluster.folder().join(format!("{}.sock", self.primary));
        std::process::Command::new(&self.program)
            .arg("failover")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(system("hand the guest over"))
    }

    fn undo(&mut self, over: AtWork) -> Result<(), ClusterError> {
        let AtWork { fault, place, burden, .. } = over;
        drop(burden);
        let Some(place) = place else { return Ok(()) };
        match (fault.kind, fault.victim) {
            (Kind::Kill, Victim::Member(_)) => self.cluster.start_member(place),
            (Kind::Kill, Victim::Arbiter(_)) => self.cluster.start(place, "arbiter"),
            (Kind::Kill, _) => self.cluster.start(place, "backup"),
            (Kind::Freeze, _) => self.cluster.signal(place, "CONT"),
            (Kind::Cut(_) | Kind::Loss(_), _) => Ok(self.cluster.lab().heal(place)?),
            (Kind::FullDisk, _) => {
                if let Some(disk) = self.disks.get(&place) {
                    disk.relieve();
                }
                Ok(())
            }
            (Kind::Memory(_) | Kind::Busy(_) | Kind::HandOver, _) => Ok(()),
        }
    }

    /// Waits until somebody runs the guest, protected; who was fenced comes
    /// back as a backup. Returns who runs it.
    fn settle(&mut self) -> Result<Place, ClusterError> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for place in self.hosts.clone() {
                if let Some(code) = self.cluster.exit_code(place, Duration::ZERO) {
                    if code != i32::from(Exit::Fenced.code()) {
                        return Err(self.in_vain(&format!("ended by itself with {code}"), place));
                    }
                    self.cluster.start(place, "backup")?;
                } else if let Ok(status) = self.wait_protected(place)
                    && self.backups_have(place, status.epoch)
                    && self.wait_protected(place).is_ok()
                {
                    return Ok(place);
                }
            }
            for place in self.cluster.lab().arbiters().chain(self.cluster.lab().members()) {
                if let Some(code) = self.cluster.exit_code(place, Duration::ZERO) {
                    return Err(self.in_vain(&format!("ended by itself with {code}"), place));
                }
            }
        }
        let log_of = |host: &Place| format!("{host}:\n{}\n", self.cluster.log_end(*host));
        let log = self.hosts.iter().map(log_of).collect();
        Err(ClusterError::Waited {
            what: "somebody runs a protected guest".to_owned(),
            waited_s: PATIENCE.as_secs(),
            log,
        })
    }

    /// Soon, or not now.
    fn wait_protected(&self, place: Place) -> Result<Status, ClusterError> {
        let all = |status: &Status| self.settings.is_protected(status);
        self.cluster.wait_for(place, "is protected", LOOK, all)
    }

    /// Whether the backups have what `primary` does now: who has just lost one does
    /// not know it yet.
    fn backups_have(&self, primary: Place, epoch: u64) -> bool {
        let has = |status: &Status| status.role == Role::Backup && status.committed >= epoch;
        self.others(primary).all(|backup| {
            self.cluster.wait_for(backup, "has the epoch", BACKUP_PATIENCE, has).is_ok()
        })
    }

    fn in_vain(&self, what: &str, place: Place) -> ClusterError {
        let log = self.cluster.log_end(place);
        ClusterError::Waited { what: format!("{place}, which {what}, is back"), waited_s: 0, log }
    }

    /// Another host speaks only after the register made it the primary.
    fn listen(&mut self, term_before: u64, changes_before: u64) {
        let changes = self.voices.heard().changes;
        let granted = self.report.term - term_before;
        if changes - changes_before > granted {
            self.report.double_voices += 1;
            self.say(&format!(
                "   TWO VOICES: {} changes of who speaks in {granted} terms",
                changes - changes_before
            ));
        }
        self.report.voice_changes = changes;
    }

    fn verify(&mut self) -> Result<(), ClusterError> {
        let primary = self.primary;
        let verified = self.cluster.ask(primary, async |control: Client| control.verify().await)?;
        self.report.verified += 1;
        if !verified.equal || verified.backups.is_empty() {
            self.report.different += 1;
            self.say(&format!("   DIFFERENT MEMORY at epoch {}: {verified:?}", verified.epoch));
        }
        Ok(())
    }
}
