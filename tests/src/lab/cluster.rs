//! A whole lab: hosts, the office with arbiter and clients, and two networks.
//!
//! ```text
//!   guests' network 10.77.0.0/24              replication 10.78.0.0/24
//!
//!    office ── eth0 ──┐                 ┌── eth1 ── office   .2 (arbiter)
//!     .2              │                 │
//!    host-1           ├─[lan switch]    │
//!     tap0 ─[br0]─ eth0     [switch] ───┼── eth1 ── host-1   .11
//!    host-2           │                 │
//!     tap0 ─[br0]─ eth0                 └── eth1 ── host-2   .12
//! ```
//!
//! Arbiter and clients share a machine, which costs a boot less; they use
//! different networks, so either can be cut off by itself. Addresses are those
//! of `romulus::rehearsal::netns`.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use romulus::{
    control::{FailoverBody, Protection, Role, Status, VerifyReport},
    rehearsal::netns::{ARBITER_ADDRESS, CLIENT_ADDRESS, Direction, GUEST_ADDRESS, Place, TAP},
};
use thiserror::Error;
use transport::identity::pki::{self, PkiError};

use super::{
    client::LoadClient,
    folder::Folder,
    guest::{DISK, Guest},
    image::ImageError,
    machine::{Machine, MachineError, Nic, Outcome, Spec},
    materials::{Boot, Materials},
    switch::Switch,
};

const VM: &str = "guest";
/// Where a host keeps what the guest said.
const CONSOLE: &str = "/run/romulus/console";
const NODE_PORT: u16 = 7700;
const ARBITER_PORT: u16 = 7800;
const GUEST_MAC: &str = "52:54:00:77:00:64";
const REDIS_PORT: u16 = 6379;
/// RAM of the office's machine, and of a host beside what its guest takes.
const OFFICE_MIB: u32 = 384;
const HOST_MIB: u32 = 448;
/// Bound on an order that does next to nothing, and on a boot.
const ORDER: Duration = Duration::from_secs(60);
const BOOT: Duration = Duration::from_secs(120);
/// How often a state that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Settings of the section `[replication]` that go with emulated hosts, which
/// stand still for a while now and then.
pub const PATIENT: &str =
    "epoch_ms = 100\nheartbeat_ms = 500\ndetection_ms = 4000\ndrop_ms = 4000\n";

/// Why a lab does not go on.
#[derive(Error)]
pub enum LabError {
    /// No images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Files and sockets of the lab.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something did not come about.
    #[error("waited {waited_s} s in vain until {what}; at last: {last}")]
    Waited {
        /// For what.
        what: String,
        /// How long.
        waited_s: u64,
        /// What was seen instead.
        last: String,
    },
    /// An answer is not what it should be.
    #[error("{place} answered `{said}`, which is not understood: {source}")]
    Answer {
        /// Who.
        place: Place,
        /// What.
        said: String,
        /// Why not.
        source: serde_json::Error,
    },
}

/// As a person reads it: tests unwrap.
impl fmt::Debug for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let action = action.into();
    move |source| LabError::System { action, source }
}

/// What a lab is for.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Hosts, of which the first runs the guest first.
    pub hosts: u8,
    /// The guest.
    pub guest: Guest,
    /// The section `[replication]`: [`PATIENT`], or what a test is about.
    pub replication: String,
    /// Of the switches' chance.
    pub seed: u64,
}

/// Machines and networks; they end with it.
#[derive(Debug)]
pub struct Lab {
    machines: BTreeMap<Place, Machine>,
    /// A guest that runs as a machine, unprotected.
    bare: Option<Machine>,
    /// The guests' network.
    lan: Switch,
    /// Between nodes and arbiter.
    replication: Switch,
    folder: Folder,
    shape: Shape,
    begun: Instant,
}

impl Lab {
    /// Makes a lab and boots its machines. `romulus` is the project's binary.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn new(
        materials: &Materials,
        name: &str,
        romulus: &Path,
        shape: Shape,
    ) -> Result<Self, LabError> {
        let folder = Folder::new(name).map_err(system("make the lab's folder"))?;
        let mut lab = Self {
            machines: BTreeMap::new(),
            bare: None,
            lan: Switch::new(shape.seed),
            replication: Switch::new(shape.seed.wrapping_add(1)),
            folder,
            shape,
            begun: Instant::now(),
        };
        let content = lab.content()?;
        let disk = lab.path("disk.squashfs");
        materials.disk(romulus, &content, &disk)?;
        let boot = materials.host()?;
        for place in lab.places() {
            lab.add_machine(place, &boot, &disk)?;
        }
        for machine in lab.machines.values_mut() {
            machine.start()?;
        }
        for place in lab.places() {
            lab.settle(place)?;
        }
        lab.say("all machines are up");
        Ok(lab)
    }

    /// Every place that is a machine of its own, hosts first.
    fn places(&self) -> Vec<Place> {
        (1..=self.shape.hosts).map(Place::Host).chain([Place::Client]).collect()
    }

    /// Where its files are: consoles and logs, as [`Machine`] names them.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Says on stdout what happens, with the time since the lab began.
    pub fn say(&self, text: &str) {
        println!("{:7.2} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    /// What is on the machines' disk beside the program: certificates,
    /// configurations, the guest's kernel.
    fn content(&self) -> Result<PathBuf, LabError> {
        let content = self.path("content");
        let keys = content.join("pki");
        fs::create_dir_all(&content).map_err(system("make the disk's content"))?;
        pki::create_authority(&keys, pki::CA_DAYS, true)?;
        for place in self.places().into_iter().chain([Place::Arbiter]) {
            pki::issue(&keys, &place.node(), pki::NODE_DAYS, true)?;
        }
        let write = |name: String, text: String| {
            fs::write(content.join(&name), text).map_err(system(format!("write {name}")))
        };
        write("arbiter.toml".to_owned(), arbiter_config())?;
        for host in 1..=self.shape.hosts {
            write(format!("{}.toml", Place::Host(host)), self.host_config(host))?;
        }
        if let Some(boot) = self.shape.guest.boot() {
            let folder = content.join("guest");
            fs::create_dir_all(&folder).map_err(system("make the guest's folder"))?;
            for (from, to) in [(&boot.kernel, "vmlinuz"), (&boot.initrd, "initrd")] {
                fs::copy(from, folder.join(to)).map_err(system(format!("copy the {to}")))?;
            }
        }
        Ok(content)
    }

    fn host_config(&self, host: u8) -> String {
        let place = Place::Host(host);
        let address = |host| Place::Host(host).replication_address().expect("hosts have one");
        let mut text = format!(
            "{}\n[network]\ntap = \"{TAP}\"\nmac = \"{GUEST_MAC}\"\n\n\
             [console]\nlog = \"{CONSOLE}\"\n\n\
             [node]\nname = \"{place}\"\nlisten = \"{}:{NODE_PORT}\"\n\
             state_dir = \"/run/romulus\"\ncontrol = \"/run/romulus/{VM}.sock\"\n{}\n\
             [arbiter]\nname = \"arbiter\"\naddress = \"{ARBITER_ADDRESS}:{ARBITER_PORT}\"\n\n\
             [replication]\n{}\n",
            self.shape.guest.section(VM),
            address(host),
            identity(place),
            self.shape.replication,
        );
        for peer in (1..=self.shape.hosts).filter(|peer| *peer != host) {
            let (name, address) = (Place::Host(peer), address(peer));
            let _ = write!(
                text,
                "\n[[peers]]\nname = \"{name}\"\naddress = \"{address}:{NODE_PORT}\"\n"
            );
        }
        text
    }

    fn add_machine(&mut self, place: Place, boot: &Boot, disk: &Path) -> Result<(), LabError> {
        let (number, memory_mib) = match place {
            Place::Host(number) => (number, HOST_MIB + self.shape.guest.memory_mib),
            Place::Arbiter | Place::Client => (0, OFFICE_MIB),
        };
        let mut nics = Vec::new();
        let folder = self.folder.path().to_owned();
        let networks = [(&mut self.lan, "lan"), (&mut self.replication, "repl")];
        for (index, (switch, network)) in networks.into_iter().enumerate() {
            let socket = folder.join(format!("{place}.{network}"));
            switch
                .add_port(&place.to_string(), &socket)
                .map_err(system(format!("open a port for {place}")))?;
            nics.push(Nic { socket, mac: format!("52:54:00:01:{index:02x}:{number:02x}") });
        }
        let spec = Spec {
            name: place.to_string(),
            kernel: boot.kernel.clone(),
            initrd: boot.initrd.clone(),
            cmdline: String::new(),
            memory_mib,
            cpus: 1,
            disk: Some(disk.to_owned()),
            nics,
            obeys: true,
        };
        self.machines.insert(place, Machine::new(spec, &folder));
        Ok(())
    }

    /// Boots `guest` as a machine of its own on the guests' network, where
    /// nothing protects it: what its images are worth can be seen without KVM.
    /// Its port is called `guest`. A machine that was there is replaced.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    ///
    /// # Panics
    ///
    /// If the guest has no kernel of its own: the probe guest needs KVM.
    pub fn boot_bare(&mut self, guest: &Guest) -> Result<&mut Machine, LabError> {
        let boot = guest.boot().expect("a guest with a kernel of its own");
        let socket = self.path("guest.lan");
        if self.bare.take().is_none() {
            self.lan.add_port(VM, &socket).map_err(system("open a port for the guest"))?;
        }
        let spec = Spec {
            name: format!("{VM}-{}", boot.release),
            kernel: boot.kernel.clone(),
            initrd: boot.initrd.clone(),
            cmdline: guest.cmdline.clone(),
            memory_mib: guest.memory_mib,
            cpus: guest.vcpus,
            disk: None,
            nics: vec![Nic { socket, mac: GUEST_MAC.to_owned() }],
            obeys: false,
        };
        let machine = self.bare.insert(Machine::new(spec, self.folder.path()));
        machine.start()?;
        Ok(machine)
    }

    /// The machine of [`Lab::boot_bare`].
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn bare(&mut self) -> &mut Machine {
        self.bare.as_mut().expect("a guest was booted as a machine")
    }

    /// Waits until a machine has booted, and gives it its networks.
    fn settle(&mut self, place: Place) -> Result<(), LabError> {
        let script = match place {
            Place::Host(_) => {
                let address = place.replication_address().expect("hosts have one");
                host_networks(&address.to_string())
            }
            Place::Arbiter | Place::Client => office_networks(),
        };
        let machine = self.machine(place);
        machine.wait_ready(BOOT)?;
        machine.run(&script, ORDER)?;
        Ok(())
    }

    /// The machine at `place`.
    ///
    /// # Panics
    ///
    /// If the lab has no such place.
    pub fn machine(&mut self, place: Place) -> &mut Machine {
        let place = if place == Place::Arbiter { Place::Client } else { place };
        self.machines.get_mut(&place).unwrap_or_else(|| panic!("no {place} in this lab"))
    }

    /// Runs a shell script at `place` that has to succeed.
    ///
    /// # Errors
    ///
    /// [`LabError::Machine`]
    pub fn run(&mut self, place: Place, script: &str) -> Result<String, LabError> {
        Ok(self.machine(place).run(script, ORDER)?)
    }

    /// Cuts the power of `place`: what is in its memory is gone.
    pub fn power_cut(&mut self, place: Place) {
        self.machine(place).kill();
        self.say(&format!("{place} has no power any more"));
    }

    /// Boots `place` afresh, and waits until it is up.
    ///
    /// # Errors
    ///
    /// [`LabError::Machine`]
    pub fn power_on(&mut self, place: Place) -> Result<(), LabError> {
        self.machine(place).start()?;
        self.settle(place)?;
        self.say(&format!("{place} has booted"));
        Ok(())
    }

    /// The guests' network. Its ports are called as the places are; the
    /// arbiter's is the client's.
    #[must_use]
    pub fn lan(&self) -> &Switch {
        &self.lan
    }

    /// The network between nodes and arbiter, with the same names.
    #[must_use]
    pub fn replication(&self) -> &Switch {
        &self.replication
    }

    /// Cuts the replication network's cable of `place`.
    pub fn cut(&self, place: Place, direction: Direction) {
        self.replication.cut(&port(place), direction);
    }

    /// Mends it.
    pub fn heal(&self, place: Place) {
        self.replication.heal(&port(place));
    }

    /// Starts the daemon `role` (`arbiter`, `run` or `backup`) at `place`.
    /// What it logs goes out of the machine at once, and outlives it.
    ///
    /// # Errors
    ///
    /// [`LabError::Machine`]
    pub fn start(&mut self, place: Place, role: &str) -> Result<(), LabError> {
        let file = format!("{DISK}/{place}.toml");
        let script = format!(
            "mkdir -p /run/romulus; rm -f /run/{place}.code\n\
             (romulus {role} {file} >/dev/null 2>&4 & echo $! >/run/{place}.pid; \
             wait $!; echo $? >/run/{place}.code) >/dev/null 2>&1 &\n"
        );
        self.run(place, &script).map(drop)
    }

    /// The exit code of the daemon at `place`, as soon as it has ended.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`] if it goes on.
    pub fn exit_code(&mut self, place: Place, patience: Duration) -> Result<i32, LabError> {
        let what = format!("the daemon at {place} ends");
        self.wait(&what, patience, |lab| {
            let code = lab.run(place, &format!("cat /run/{place}.code 2>/dev/null || true"))?;
            Ok(code.parse().map_err(|_| "it goes on".to_owned()))
        })
    }

    /// Runs a `romulus` command at `place` that answers in JSON.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn ask(&mut self, place: Place, arguments: &str) -> Result<Outcome, LabError> {
        let script = format!("romulus --json {arguments}");
        Ok(self.machine(place).order(&script, ORDER)?)
    }

    /// The status of the daemon at `place`; the inner error is what it said
    /// instead.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn status(&mut self, place: Place) -> Result<Result<Status, String>, LabError> {
        let outcome = self.ask(place, &format!("status /run/romulus/{VM}.sock"))?;
        let said = outcome.text();
        if outcome.code != 0 {
            return Ok(Err(said));
        }
        let status = serde_json::from_str(&said);
        Ok(Ok(status.map_err(|source| LabError::Answer { place, said, source })?))
    }

    /// Waits until the daemon at `place` has a status that `holds`.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_for(
        &mut self,
        place: Place,
        what: &str,
        patience: Duration,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status, LabError> {
        self.wait(&format!("{place} {what}"), patience, |lab| {
            Ok(match lab.status(place)? {
                Ok(status) if holds(&status) => Ok(status),
                Ok(status) => Err(format!("{status:?}")),
                Err(said) => Err(said),
            })
        })
    }

    /// Waits until `place` runs the guest, protected.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_protected(&mut self, place: Place, patience: Duration) -> Result<Status, LabError> {
        let protected = |status: &Status| {
            status.role == Role::Primary && status.protection == Protection::Protected
        };
        self.wait_for(place, "runs a protected guest", patience, protected)
    }

    /// Waits until `place` runs the guest.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_primary(&mut self, place: Place, patience: Duration) -> Result<Status, LabError> {
        let primary = |status: &Status| status.role == Role::Primary;
        self.wait_for(place, "runs the guest", patience, primary)
    }

    /// Waits until the guest at `place` serves, by its own word.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait_serving(&mut self, place: Place, patience: Duration) -> Result<(), LabError> {
        let words = self.shape.guest.ready;
        self.wait("the guest serves", patience, |lab| {
            let found = lab.machine(place).order(&format!("grep -q '{words}' {CONSOLE}"), ORDER)?;
            if found.code == 0 {
                return Ok(Ok(()));
            }
            let last = lab.machine(place).order(&format!("tail -n 1 {CONSOLE}"), ORDER)?;
            Ok(Err(last.text()))
        })
    }

    /// Looks again and again until `look` finds what it wants; its inner error
    /// says what there is instead.
    ///
    /// # Errors
    ///
    /// [`LabError::Waited`]
    pub fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Result<T, String>, LabError>,
    ) -> Result<T, LabError> {
        let deadline = Instant::now() + patience;
        loop {
            let last = match look(self)? {
                Ok(found) => return Ok(found),
                Err(last) => last,
            };
            if Instant::now() >= deadline {
                let (what, waited_s) = (what.to_owned(), patience.as_secs());
                return Err(LabError::Waited { what, waited_s, last });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Hands the guest from `place` to `to` by plan.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn hand_over(&mut self, place: Place, to: Place) -> Result<(), LabError> {
        let FailoverBody { to } = FailoverBody { to: Some(to.node()) };
        let to = to.expect("it was just given");
        let command = format!("romulus failover /run/romulus/{VM}.sock --to {to}");
        self.run(place, &command).map(drop)
    }

    /// Compares the guest's memory on all sides.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn verify(&mut self, place: Place) -> Result<VerifyReport, LabError> {
        let said = self.ask(place, &format!("verify /run/romulus/{VM}.sock"))?.text();
        serde_json::from_str(&said).map_err(|source| LabError::Answer { place, said, source })
    }

    /// Starts a client in the office: `romulus internal ARGUMENTS`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn client(&mut self, name: &str, arguments: &str) -> Result<LoadClient, LabError> {
        LoadClient::start(self, name, arguments)
    }

    /// Starts a client in the office that writes to the guest's redis over one
    /// connection; it reports a `TcpReport`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn tcp_client(&mut self, name: &str) -> Result<LoadClient, LabError> {
        let target = format!("{GUEST_ADDRESS}:{REDIS_PORT}");
        self.client(name, &format!("tcp-client --target {target}"))
    }

    /// Starts a client in the office that asks the probe guest; it reports a
    /// `ProbeReport`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn probe_client(&mut self, name: &str) -> Result<LoadClient, LabError> {
        let target = format!("{GUEST_ADDRESS}:{}", romulus_probe::SERVICE_PORT);
        // TCG has no TSC scaling: hosts' counters differ.
        let options = "--lanes 4 --retransmit-ms 500 --no-tsc-check";
        self.client(name, &format!("probe-client --target {target} {options}"))
    }

    /// All that can be known when something went wrong.
    fn show(&mut self) {
        println!("\nlab: what its machines said at last, hosts first");
        if let Some(guest) = &self.bare {
            println!("\n=== the guest as a machine\n{}", guest.said());
        }
        for (place, machine) in &mut self.machines {
            println!("\n=== {place}{}", if machine.is_on() { "" } else { " (off)" });
            print!("{}", machine.said());
            // A thawed, booted machine answers at once; another one costs this once.
            if machine.is_on() {
                let script = "tail -n 60 /run/romulus/console 2>/dev/null; \
                              for file in /run/*.jsonl; do echo \"--- $file\"; tail -n 3 $file; done; \
                              free; ps | grep -v '\\['";
                match machine.order(script, Duration::from_secs(10)) {
                    Ok(outcome) => {
                        println!("--- its guest, clients and processes\n{}", outcome.text())
                    }
                    Err(error) => println!("--- it does not answer: {error}"),
                }
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show();
        }
    }
}

fn port(place: Place) -> String {
    if place == Place::Arbiter { Place::Client.to_string() } else { place.to_string() }
}

fn identity(place: Place) -> String {
    format!("ca = \"pki/ca.pem\"\ncert = \"pki/{place}.pem\"\nkey = \"pki/{place}.key\"\n")
}

fn arbiter_config() -> String {
    format!(
        "[arbiter]\nname = \"arbiter\"\nlisten = \"{ARBITER_ADDRESS}:{ARBITER_PORT}\"\n\
         store = \"/run/romulus/register\"\n{}",
        identity(Place::Arbiter)
    )
}

/// A bridge with tap and uplink, which forwards at once, and the replication
/// network's address.
fn host_networks(address: &str) -> String {
    format!(
        "set -e\n{QUIET}\n\
         brctl addbr br0; cd /sys/class/net/br0/bridge; \
         echo 0 >forward_delay; echo 0 >multicast_snooping; cd /\n\
         tunctl -t {TAP} >/dev/null\n\
         for port in eth0 {TAP}; do brctl addif br0 $port; ip link set $port up; done\n\
         ip link set br0 up\n\
         ip addr add {address}/24 dev eth1; ip link set eth1 up\n"
    )
}

fn office_networks() -> String {
    format!(
        "set -e\n{QUIET}\n\
         ip addr add {CLIENT_ADDRESS}/24 dev eth0; ip link set eth0 up\n\
         ip addr add {ARBITER_ADDRESS}/24 dev eth1; ip link set eth1 up\n"
    )
}

/// Without it the kernel's own announcements are on every cable.
const QUIET: &str = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true";
