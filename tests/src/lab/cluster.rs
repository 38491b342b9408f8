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
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use romulus::rehearsal::netns::{Direction, Place};
use thiserror::Error;
use transport::identity::pki::{self, PkiError};

use super::{
    configuration::{self, CONSOLE, GUEST_MAC, VM},
    folder::Folder,
    guest::Guest,
    image::ImageError,
    machine::{Machine, MachineError, Nic, Spec},
    materials::{Boot, Materials},
    switch::Switch,
};

/// RAM of the office's machine, and of a host beside what its guest takes.
const OFFICE_MIB: u32 = 384;
const HOST_MIB: u32 = 448;
/// Bound on an order that does next to nothing, and on a boot.
pub(super) const ORDER: Duration = Duration::from_secs(60);
/// What a machine is asked when something went wrong.
const INQUEST: &str = include_str!("inquest.sh");
const BOOT: Duration = Duration::from_secs(120);

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
    /// The section `[replication]`: [`super::PATIENT`], or what a test is about.
    pub replication: String,
    /// Of the switches' chance.
    pub seed: u64,
    /// CPUs of a machine.
    pub cpus: u16,
    /// More files for the machines' disk, and where they are there.
    pub more: Vec<(PathBuf, PathBuf)>,
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

    /// What it is for.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
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
        write("arbiter.toml".to_owned(), configuration::arbiter())?;
        for host in 1..=self.shape.hosts {
            let text = configuration::host(host, &self.shape);
            write(format!("{}.toml", Place::Host(host)), text)?;
        }
        if let Some(boot) = self.shape.guest.boot() {
            let folder = content.join("guest");
            fs::create_dir_all(&folder).map_err(system("make the guest's folder"))?;
            for (from, to) in [(&boot.kernel, "vmlinuz"), (&boot.initrd, "initrd")] {
                fs::copy(from, folder.join(to)).map_err(system(format!("copy the {to}")))?;
            }
        }
        for (from, to) in &self.shape.more {
            let to = content.join(to);
            let folder = to.parent().expect("it is below the disk's root");
            fs::create_dir_all(folder).map_err(system("make the disk's folders"))?;
            fs::copy(from, &to).map_err(system(format!("copy {}", from.display())))?;
        }
        Ok(content)
    }

    fn add_machine(&mut self, place: Place, boot: &Boot, disk: &Path) -> Result<(), LabError> {
        let (number, memory_mib) = match place {
            Place::Host(number) => (number, HOST_MIB + self.shape.guest.memory_mib),
            Place::Arbiter | Place::OtherArbiter(_) | Place::Etcd(_) | Place::Client => {
                (0, OFFICE_MIB)
            }
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
            cpus: self.shape.cpus,
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
                configuration::host_networks(&address.to_string())
            }
            Place::Arbiter | Place::OtherArbiter(_) | Place::Etcd(_) | Place::Client => {
                configuration::office_networks()
            }
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
                let script = format!("CONSOLE={CONSOLE}\n{INQUEST}");
                match machine.order(&script, Duration::from_secs(30)) {
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
