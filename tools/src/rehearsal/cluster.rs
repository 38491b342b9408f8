//! A whole cluster on one machine: arbiters, hosts and client as processes in a
//! [`Lab`], with certificates and configurations of their own.
//!
//! ```text
//!   folder/  pki/ …  arbiter.toml  arbiter.log
//!            host-1.toml  host-1.log  host-1.sock  host-1.console   (and so on)
//! ```

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};
use thiserror::Error;
use tokio::runtime::Runtime;
use transport::identity::pki::{self, PkiError};

use super::{
    etcd_member,
    netns::{GUEST_ADDRESS, Lab, LabError, Place, TAP},
    probe_report::ProbeReport,
};
use crate::{
    control::{ArbiterStatus, Client, ClientError, Protection, Role, Status},
    linux_guest::image::GuestImage,
};

const NODE_PORT: u16 = 7700;
const ARBITER_PORT: u16 = 7800;
const MAC: &str = "52:54:00:77:00:64";
/// The arbiter's folder, if it has one.
const REGISTERS: &str = "arbiter.state";
/// How often a state that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What the guests and their replication are like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Hosts, of which the first runs the guest first.
    pub hosts: u8,
    /// RAM.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u16,
    /// Added to what the probe is told on the command line.
    pub cmdline: String,
    /// The Linux that the probe runs in; without, it is the bare-metal one.
    pub linux: Option<GuestImage>,
    /// More lines of the section `[vm]`.
    pub vm: String,
    /// Lines of the section `[replication]`.
    pub replication: String,
}

impl Shape {
    /// The section `[vm]`. A Linux guest that restarts, or panics, has failed.
    fn guest(&self) -> String {
        let Self { memory_mib, vcpus, cmdline, linux, vm, .. } = self;
        let told = format!("probe.vcpus={vcpus} probe.ip={GUEST_ADDRESS}/24 {cmdline}");
        let files = match linux {
            None => format!("kernel = \"probe\"\ncmdline = \"{told}\"\n"),
            Some(GuestImage { kernel, initrd, .. }) => format!(
                "kernel = {kernel:?}\ninitrd = {initrd:?}\ncmdline = \"{}\"\n\
                 on_reboot = \"stop\"\non_triple_fault = \"stop\"\non_panic = \"stop\"\n",
                GuestImage::cmdline(&told)
            ),
        };
        format!("[vm]\nname = \"demo\"\nmemory_mib = {memory_mib}\nvcpus = {vcpus}\n{files}{vm}\n")
    }
}

/// Where the arbiters' registers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// In a file of the only arbiter.
    File,
    /// In etcd.
    Etcd {
        /// How many members.
        members: u8,
        /// How many arbiters in front of them.
        arbiters: u8,
    },
}

/// Why a rehearsal cannot go on.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// No namespaces.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// No certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Files or processes.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// A daemon does not answer or refuses.
    #[error("{place}: {source}")]
    Control {
        /// Whose daemon.
        place: Place,
        /// What it said.
        source: ClientError,
    },
    /// Something did not come about.
    #[error("waited {waited_s} s in vain until {what}; the end of its log:\n{log}")]
    Waited {
        /// For what.
        what: String,
        /// How long.
        waited_s: u64,
        /// The end of the log of who should have done it.
        log: String,
    },
    /// A process that something was waited for of is gone.
    #[error("waited in vain until {what}: it has ended ({how}); the end of its log:\n{log}")]
    Ended {
        /// For what.
        what: String,
        /// Its exit code, or what killed it.
        how: String,
        /// The end of its log.
        log: String,
    },
    /// The client ended without a report.
    #[error("the client ended without a report")]
    NoReport,
}

/// Processes in a lab; they end with it.
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    folder: PathBuf,
    program: PathBuf,
    shape: Shape,
    runtime: Runtime,
    children: Vec<(Place, Child)>,
}

impl Cluster {
    /// Makes lab, certificates and configurations in `folder`; starts nothing.
    /// `program` is the `romulus` binary.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]
    pub fn new(
        prefix: &str,
        folder: &Path,
        program: &Path,
        shape: Shape,
    ) -> Result<Self, ClusterError> {
        Self::with_registers(prefix, folder, program, shape, Registers::File)
    }

    /// As [`Cluster::new`], with the registers elsewhere than in a file.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]
    pub fn with_registers(
        prefix: &str,
        folder: &Path,
        program: &Path,
        shape: Shape,
        registers: Registers,
    ) -> Result<Self, ClusterError> {
        let lab = match registers {
            Registers::File => Lab::new(prefix, shape.hosts)?,
            Registers::Etcd { members, arbiters } => {
                Lab::with_etcd(prefix, shape.hosts, arbiters, members)?
            }
        };
        let system = |action: &str| {
            let action = action.to_owned();
            move |source| ClusterError::System { action, source }
        };
        fs::create_dir_all(folder).map_err(system("make the rehearsal's folder"))?;
        let pki_folder = folder.join("pki");
        pki::create_authority(&pki_folder, pki::CA_DAYS, true)?;
        for place in lab.places() {
            pki::issue(&pki_folder, &place.node(), pki::NODE_DAYS, true)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("start a runtime"))?;
        let cluster = Self {
            lab,
            folder: folder.to_owned(),
            program: program.to_owned(),
            shape,
            runtime,
            children: Vec::new(),
        };
        fs::create_dir_all(folder.join(REGISTERS)).map_err(system("make the arbiter's folder"))?;
        for place in cluster.lab.arbiters() {
            cluster.write(&format!("{place}.toml"), &cluster.arbiter_config(place))?;
        }
        for host in 1..=cluster.shape.hosts {
            let name = format!("{}.toml", Place::Host(host));
            cluster.write(&name, &cluster.host_config(host))?;
        }
        Ok(cluster)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ClusterError> {
        let action = format!("write {name}");
        fs::write(self.folder.join(name), text)
            .map_err(|source| ClusterError::System { action, source })
    }

    fn identity(place: Place) -> String {
        format!("ca = \"pki/ca.pem\"\ncert = \"pki/{place}.pem\"\nkey = \"pki/{place}.key\"\n")
    }

    fn arbiter_config(&self, place: Place) -> String {
        let endpoints: Vec<_> = self.lab.members().map(etcd_member::endpoint).collect();
        let (file, section) = if endpoints.is_empty() {
            (format!("store = \"{REGISTERS}/register\"\n"), String::new())
        } else {
            (String::new(), format!("\n[arbiter.etcd]\nendpoints = {endpoints:?}\n"))
        };
        format!(
            "[arbiter]\nname = \"{place}\"\nlisten = \"{}\"\n\
             control = \"{place}.sock\"\n{file}{}{section}",
            Self::arbiter_address(place),
            Self::identity(place)
        )
    }

    fn arbiter_address(place: Place) -> String {
        format!("{}:{ARBITER_PORT}", place.replication_address().expect("arbiters have one"))
    }

    fn host_config(&self, host: u8) -> String {
        let Shape { hosts, replication, .. } = &self.shape;
        let place = Place::Host(host);
        let address = |host| Place::Host(host).replication_address().expect("hosts have one");
        let mut text = format!(
            "{}\n\
             [network]\ntap = \"{TAP}\"\nmac = \"{MAC}\"\n\n\
             [console]\nlog = \"{place}.console\"\n\n\
             [node]\nname = \"{place}\"\nlisten = \"{}:{NODE_PORT}\"\nstate_dir = \"{place}.state\"\n\
             control = \"{place}.sock\"\n{}\n\
             [replication]\n{replication}\n",
            self.shape.guest(),
            address(host),
            Self::identity(place),
        );
        let table = if self.lab.arbiters().count() == 1 { "[arbiter]" } else { "[[arbiters]]" };
        for arbiter in self.lab.arbiters() {
            let address = Self::arbiter_address(arbiter);
            let _ = write!(text, "\n{table}\nname = \"{arbiter}\"\naddress = \"{address}\"\n");
        }
        for peer in (1..=*hosts).filter(|peer| *peer != host) {
            let name = Place::Host(peer);
            let _ = write!(
                text,
                "\n[[peers]]\nname = \"{name}\"\naddress = \"{}:{NODE_PORT}\"\n",
                address(peer)
            );
        }
        text
    }

    /// The network that it runs in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the daemon at `place` keeps what must outlive it; etcd and clients
    /// have no such folder.
    #[must_use]
    pub fn state_folder(&self, place: Place) -> Option<PathBuf> {
        match place {
            Place::Host(_) => Some(self.folder.join(format!("{place}.state"))),
            Place::Arbiter if self.lab.members().next().is_none() => {
                Some(self.folder.join(REGISTERS))
            }
            Place::Arbiter | Place::OtherArbiter(_) | Place::Etcd(_) | Place::Client => None,
        }
    }

    /// Starts the daemon `role` (`arbiter`, `run` or `backup`) at `place`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::System`]
    pub fn start(&mut self, place: Place, role: &str) -> Result<(), ClusterError> {
        self.start_with(place, role, &[])
    }

    /// As [`Cluster::start`], with variables in the process's environment.
    ///
    /// # Errors
    ///
    /// [`ClusterError::System`]
    pub fn start_with(
        &mut self,
        place: Place,
        role: &str,
        variables: &[(&str, &str)],
    ) -> Result<(), ClusterError> {
        let mut command = self.lab.command(place, &self.program);
        command
            .envs(variables.iter().copied())
            .arg(role)
            .arg(self.folder.join(format!("{place}.toml")));
        self.spawn(place, command)
    }

    /// Starts the member of etcd at `place`, anew or with what it knew.
    ///
    /// # Errors
    ///
    /// [`ClusterError::System`]
    pub fn start_member(&mut self, place: Place) -> Result<(), ClusterError> {
        let members: Vec<_> = self.lab.members().collect();
        let mut command = self.lab.command(place, etcd_member::PROGRAM);
        command.args(etcd_member::arguments(place, &members, &self.folder));
        self.spawn(place, command)
    }

    fn spawn(&mut self, place: Place, mut command: Command) -> Result<(), ClusterError> {
        self.reap(place);
        let log = self.folder.join(format!("{place}.log"));
        let system =
            |source| ClusterError::System { action: format!("start what is at {place}"), source };
        let log = File::options().create(true).append(true).open(log).map_err(system)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.children.push((place, command.spawn().map_err(system)?));
        Ok(())
    }

    /// The process at `place`. `ip netns exec` becomes the program that it
    /// starts, so this is the daemon's own pid.
    #[must_use]
    pub fn pid(&self, place: Place) -> Option<u32> {
        self.children.iter().find(|(at, _)| *at == place).map(|(_, child)| child.id())
    }

    /// Sends a signal, named as for kill(1), to the process at `place`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::System`]
    pub fn signal(&self, place: Place, signal: &str) -> Result<(), ClusterError> {
        let Some(pid) = self.pid(place) else { return Ok(()) };
        let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
        let action = format!("send SIG{signal} to {place}");
        status.map(drop).map_err(|source| ClusterError::System { action, source })
    }

    /// Kills the process at `place` (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self, place: Place) {
        if let Some((_, child)) = self.children.iter_mut().find(|(at, _)| *at == place) {
            let _ = child.kill();
        }
        self.reap(place);
    }

    fn reap(&mut self, place: Place) {
        if let Some(index) = self.children.iter().position(|(at, _)| *at == place) {
            let (_, mut child) = self.children.swap_remove(index);
            let _ = child.wait();
        }
    }

    /// The exit code of the process at `place`, if it has ended by itself
    /// within `patience`.
    pub fn exit_code(&mut self, place: Place, patience: Duration) -> Option<i32> {
        let (_, child) = self.children.iter_mut().find(|(at, _)| *at == place)?;
        let deadline = Instant::now() + patience;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return status.code(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// How the process at `place` has ended, if it has by itself. It stays to be
    /// waited for.
    fn ended(&self, place: Place) -> Option<String> {
        let pid = Pid::from_raw(self.pid(place)?.cast_signed());
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(pid), look).ok()? {
            WaitStatus::Exited(_, code) => Some(format!("exit code {code}")),
            WaitStatus::Signaled(_, signal, _) => Some(signal.to_string()),
            _ => None,
        }
    }

    /// A client of the control API at `place`.
    #[must_use]
    pub fn control(&self, place: Place) -> Client {
        Client::new(self.folder.join(format!("{place}.sock")))
    }

    /// Runs one exchange with the control API at `place`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Control`]
    pub fn ask<T>(
        &self,
        place: Place,
        ask: impl AsyncFnOnce(Client) -> Result<T, ClientError>,
    ) -> Result<T, ClusterError> {
        let control = self.control(place);
        self.runtime
            .block_on(ask(control))
            .map_err(|source| ClusterError::Control { place, source })
    }

    /// The status of the daemon at `place`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Control`]
    pub fn status(&self, place: Place) -> Result<Status, ClusterError> {
        self.ask(place, async |control| control.status().await)
    }

    /// Waits until the arbiter at `place` has a status that `holds`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Waited`] or [`ClusterError::Ended`], with the end of its log.
    pub fn wait_arbiter(
        &self,
        place: Place,
        what: &str,
        patience: Duration,
        holds: impl Fn(&ArbiterStatus) -> bool,
    ) -> Result<ArbiterStatus, ClusterError> {
        let ask = async |control: Client| control.arbiter_status().await;
        self.wait_told(place, what, patience, || self.ask(place, ask), holds)
    }

    /// Waits until the daemon at `place` has a status that `holds`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Waited`] or [`ClusterError::Ended`], with the end of its log.
    pub fn wait_for(
        &self,
        place: Place,
        what: &str,
        patience: Duration,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status, ClusterError> {
        self.wait_told(place, what, patience, || self.status(place), holds)
    }

    fn wait_told<T>(
        &self,
        place: Place,
        what: &str,
        patience: Duration,
        ask: impl Fn() -> Result<T, ClusterError>,
        holds: impl Fn(&T) -> bool,
    ) -> Result<T, ClusterError> {
        let what = format!("{place} {what}");
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Ok(status) = ask()
                && holds(&status)
            {
                return Ok(status);
            }
            if let Some(how) = self.ended(place) {
                return Err(ClusterError::Ended { what, how, log: self.log_end(place) });
            }
            std::thread::sleep(LOOK);
        }
        Err(ClusterError::Waited { what, waited_s: patience.as_secs(), log: self.log_end(place) })
    }

    /// Waits until `place` runs the guest, protected.
    ///
    /// # Errors
    ///
    /// As [`Cluster::wait_for`].
    pub fn wait_protected(&self, place: Place, patience: Duration) -> Result<Status, ClusterError> {
        self.wait_for(place, "runs a protected guest", patience, |status| {
            status.role == Role::Primary && status.protection == Protection::Protected
        })
    }

    /// Waits until `place` runs the guest.
    ///
    /// # Errors
    ///
    /// As [`Cluster::wait_for`].
    pub fn wait_primary(&self, place: Place, patience: Duration) -> Result<Status, ClusterError> {
        self.wait_for(place, "runs the guest", patience, |status| status.role == Role::Primary)
    }

    /// Waits until the guest at `place` has said `words` on its console.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Waited`] or [`ClusterError::Ended`], with the end of log and
    /// console.
    pub fn wait_console(
        &self,
        place: Place,
        words: &str,
        patience: Duration,
    ) -> Result<(), ClusterError> {
        let console = self.folder.join(format!("{place}.console"));
        let said = || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
        let what = || format!("the guest at {place} says `{words}`");
        let log = || format!("{}\n{}", self.log_end(place), last_lines(&said()));
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.ended(place);
            if said().contains(words) {
                return Ok(());
            }
            if let Some(how) = ended {
                return Err(ClusterError::Ended { what: what(), how, log: log() });
            }
            if Instant::now() >= deadline {
                let waited_s = patience.as_secs();
                return Err(ClusterError::Waited { what: what(), waited_s, log: log() });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The last lines of the log at `place`.
    #[must_use]
    pub fn log_end(&self, place: Place) -> String {
        let path = self.folder.join(format!("{place}.log"));
        last_lines(&fs::read_to_string(path).unwrap_or_default())
    }

    /// Starts the probe's client with `lanes` lanes and `arguments`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::System`]
    pub fn client(&self, lanes: u32, arguments: &[&str]) -> Result<LoadClient, ClusterError> {
        let target = format!("{GUEST_ADDRESS}:{}", romulus_probe::SERVICE_PORT);
        let mut command = self.lab.command(Place::Client, &self.program);
        command
            .args(["internal", "probe-client", "--target", &target, "--lanes", &lanes.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        LoadClient::start(&mut command)
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The probe's client, at work.
#[derive(Debug)]
pub struct LoadClient {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<serde_json::Value>,
    answers: u64,
}

impl LoadClient {
    fn start(command: &mut Command) -> Result<Self, ClusterError> {
        let system =
            |source| ClusterError::System { action: "start the client".to_owned(), source };
        let mut child = command.spawn().map_err(system)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::Builder::new()
            .name("client-lines".into())
            .spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Ok(value) = serde_json::from_str(&line) {
                        let _ = sender.send(value);
                    }
                }
            })
            .map_err(system)?;
        Ok(Self { child, stdin, lines, answers: 0 })
    }

    /// New answers so far.
    pub fn answers(&mut self) -> u64 {
        while let Ok(line) = self.lines.try_recv() {
            if let Some(answers) = line["progress"]["answers"].as_u64() {
                self.answers = answers;
            }
        }
        self.answers
    }

    /// Waits until `more` answers have come beyond those so far.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Waited`]
    pub fn wait_answers(&mut self, more: u64, patience: Duration) -> Result<(), ClusterError> {
        let deadline = Instant::now() + patience;
        let wanted = self.answers() + more;
        while self.answers() < wanted {
            if Instant::now() >= deadline {
                return Err(ClusterError::Waited {
                    what: format!("the guest gives {more} more answers"),
                    waited_s: patience.as_secs(),
                    log: String::new(),
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Ends the client and takes its report.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NoReport`]
    pub fn finish(mut self) -> Result<ProbeReport, ClusterError> {
        drop(self.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Ok(report) = serde_json::from_value(line["report"].clone()) {
                        return Ok(report);
                    }
                }
                Err(_) => return Err(ClusterError::NoReport),
            }
        }
    }
}

impl Drop for LoadClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
