//! Hosts, arbiters, etcd's members and a client as network namespaces on one
//! machine.
//!
//! ```text
//!   guests' network 10.77.0.0/24              replication 10.78.0.0/24
//!
//!    client ── lan0 ──┐                 ┌── repl0 ── arbiter  .2
//!     .2              │  switch         │
//!    host-1           ├─[br-lan]        │
//!     tap0 ─[br0]─ lan0     [br-repl] ──┼── repl0 ── host-1   .11
//!    host-2           │                 ├── repl0 ── host-2   .12
//!     tap0 ─[br0]─ lan0                 │
//!                                       ├── repl0 ── arbiter-2 .3     (if there are
//!                                       └── repl0 ── etcd-1   .201     several)
//! ```
//!
//! Namespaces are named `rom<pid>-<prefix>-<place>`, so that leftovers of a dead
//! owner can be told and removed ([`remove_leftovers`]); a [`Lab`] removes its
//! own when it is dropped, processes in them included.
//!
//! A link is cut by dropping frames where they arrive (nftables, netdev ingress):
//! the sender sees nothing of it, as with a real switch, and each direction is
//! cut by itself. Checksums need no care: a tap without `vnet_hdr` offers no
//! offload, so the kernel completes them before the guest sees a frame.

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use arbiter::NodeId;
use thiserror::Error;

/// The guest's address on the guests' network.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The client's address on it.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The arbiter's address on the replication network.
pub const ARBITER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// The tap device for the guest, in every host.
pub const TAP: &str = "tap0";
/// Most hosts in a lab.
pub const HOSTS_MAX: u8 = 32;
/// Most arbiters in a lab, and most members of etcd.
const DECIDERS_MAX: u8 = 7;

const SWITCH: &str = "switch";
const PREFIX_BYTES_MAX: usize = 16;
const NETNS_DIR: &str = "/run/netns";
const CUT_TABLE: &str = "romulus_cut";

/// Why there is no lab, or a link does not do what it should.
#[derive(Debug, Error)]
pub enum LabError {
    /// Namespaces are root's.
    #[error("network namespaces need root: run this with sudo")]
    NotRoot,
    /// A program is missing.
    #[error("cannot run `{program}` ({source}): install it with `apt-get install {package}`")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed: {said}: does this kernel have it? (`romulus doctor`)")]
    Failed {
        /// What was run.
        command: String,
        /// Its complaint.
        said: String,
    },
    /// No lab has so many hosts, or such a prefix.
    #[error(
        "a lab has 1 to {HOSTS_MAX} hosts, 1 to {DECIDERS_MAX} arbiters, at most {DECIDERS_MAX} members of etcd, and a prefix of 1 to {PREFIX_BYTES_MAX} of a-z and 0-9"
    )]
    Shape,
}

/// A namespace of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A host, from 1.
    Host(u8),
    /// The arbiter's.
    Arbiter,
    /// Another arbiter's, from 2.
    OtherArbiter(u8),
    /// That of a member of etcd, from 1.
    Etcd(u8),
    /// The client's.
    Client,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(number) => write!(f, "host-{number}"),
            Self::Arbiter => f.write_str("arbiter"),
            Self::OtherArbiter(number) => write!(f, "arbiter-{number}"),
            Self::Etcd(number) => write!(f, "etcd-{number}"),
            Self::Client => f.write_str("client"),
        }
    }
}

impl Place {
    /// Its name for certificates and configurations: `host-1`, `arbiter`, `client`.
    ///
    /// # Panics
    ///
    /// Never: these names are DNS labels.
    #[must_use]
    pub fn node(self) -> NodeId {
        self.to_string().parse().expect("places are named by DNS labels")
    }

    /// Its address on the replication network; the client has none.
    #[must_use]
    pub fn replication_address(self) -> Option<Ipv4Addr> {
        match self {
            Self::Host(number) => Some(Ipv4Addr::new(10, 78, 0, 10 + number)),
            Self::Arbiter => Some(ARBITER_ADDRESS),
            Self::OtherArbiter(number) => Some(Ipv4Addr::new(10, 78, 0, 1 + number)),
            Self::Etcd(number) => Some(Ipv4Addr::new(10, 78, 0, 200 + number)),
            Self::Client => None,
        }
    }
}

/// Which frames of a place's replication link are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What others send to it.
    Incoming,
    /// What it sends.
    Outgoing,
    /// All.
    Both,
}

/// Namespaces of this process; they go with it.
#[derive(Debug)]
pub struct Lab {
    stem: String,
    hosts: u8,
    arbiters: u8,
    members: u8,
}

impl Lab {
    /// Makes the namespaces and networks of `hosts` hosts, an arbiter and a client.
    ///
    /// # Errors
    ///
    /// [`LabError`]; what was made until then is removed.
    pub fn new(prefix: &str, hosts: u8) -> Result<Self, LabError> {
        Self::with_etcd(prefix, hosts, 1, 0)
    }

    /// As [`Lab::new`], with several arbiters and places for members of etcd.
    ///
    /// # Errors
    ///
    /// [`LabError`]; what was made until then is removed.
    pub fn with_etcd(prefix: &str, hosts: u8, arbiters: u8, members: u8) -> Result<Self, LabError> {
        require_root()?;
        let named = prefix.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let sized = (1..=PREFIX_BYTES_MAX).contains(&prefix.len());
        let counted = (1..=HOSTS_MAX).contains(&hosts)
            && (1..=DECIDERS_MAX).contains(&arbiters)
            && members <= DECIDERS_MAX;
        if !named || !sized || !counted {
            return Err(LabError::Shape);
        }
        remove_leftovers()?;
        let lab =
            Self { stem: format!("rom{}-{prefix}", std::process::id()), hosts, arbiters, members };
        lab.build()?;
        Ok(lab)
    }

    /// Every place, hosts first.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let hosts = (1..=self.hosts).map(Place::Host);
        hosts.chain([Place::Client]).chain(self.arbiters()).chain(self.members())
    }

    /// The places of arbiters.
    pub fn arbiters(&self) -> impl Iterator<Item = Place> + use<> {
        [Place::Arbiter].into_iter().chain((2..=self.arbiters).map(Place::OtherArbiter))
    }

    /// The places of etcd's members.
    pub fn members(&self) -> impl Iterator<Item = Place> + use<> {
        (1..=self.members).map(Place::Etcd)
    }

    /// A place's namespace, as `ip netns` knows it.
    #[must_use]
    pub fn namespace(&self, place: Place) -> String {
        format!("{}-{place}", self.stem)
    }

    /// A command that runs `program` at `place`. The caller adds arguments,
    /// spawns it and ends it; what is left is killed with the lab.
    #[must_use]
    pub fn command(&self, place: Place, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(place)]).arg(program);
        command
    }

    /// Drops frames on `place`'s replication link. Cuts add up until
    /// [`Lab::heal`].
    ///
    /// # Errors
    ///
    /// [`LabError`] if nftables cannot.
    pub fn cut(&self, place: Place, direction: Direction) -> Result<(), LabError> {
        self.filter(place, direction, "drop", "")
    }

    /// Loses `percent` of a hundred frames of `place`'s replication link, at
    /// random and in each of `direction`'s ways, until [`Lab::heal`].
    ///
    /// # Errors
    ///
    /// [`LabError`] if nftables cannot.
    pub fn lose(&self, place: Place, direction: Direction, percent: u8) -> Result<(), LabError> {
        self.filter(place, direction, "accept", &format!("numgen random mod 100 < {percent} drop"))
    }

    /// Lets all frames of `place`'s replication link pass again.
    ///
    /// # Errors
    ///
    /// [`LabError`] if nftables cannot.
    pub fn heal(&self, place: Place) -> Result<(), LabError> {
        for (namespace, device) in
            [(self.namespace(place), "repl0".to_owned()), (self.switch(), port("repl", place))]
        {
            let table = cut_table(&device);
            // Adding it first makes its removal succeed whether it was there or not.
            let rules = format!("add table netdev {table}\ndelete table netdev {table}\n");
            nft(&namespace, &rules)?;
        }
        Ok(())
    }

    /// Frames arrive at the other end of a link that they leave by.
    fn filter(
        &self,
        place: Place,
        direction: Direction,
        policy: &str,
        rule: &str,
    ) -> Result<(), LabError> {
        if matches!(direction, Direction::Incoming | Direction::Both) {
            filter_arriving(&self.namespace(place), "repl0", policy, rule)?;
        }
        if matches!(direction, Direction::Outgoing | Direction::Both) {
            filter_arriving(&self.switch(), &port("repl", place), policy, rule)?;
        }
        Ok(())
    }

    /// The file of the switch's namespace, whose ports `lan-1`, `lan-2` … are
    /// the hosts' on the guests' network.
    #[must_use]
    pub fn switch_path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(self.switch())
    }

    fn switch(&self) -> String {
        format!("{}-{SWITCH}", self.stem)
    }

    fn build(&self) -> Result<(), LabError> {
        let switch = self.switch();
        add_namespace(&switch)?;
        for bridge in ["br-lan", "br-repl"] {
            add_bridge(&switch, bridge)?;
        }
        for place in self.places() {
            let namespace = self.namespace(place);
            add_namespace(&namespace)?;
            if let Some(address) = place.replication_address() {
                self.wire(place, "repl")?;
                ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "repl0"])?;
            }
            match place {
                Place::Host(_) => self.build_host(place)?,
                Place::Client => {
                    self.wire(place, "lan")?;
                    let address = format!("{CLIENT_ADDRESS}/24");
                    ip(&["-n", &namespace, "addr", "add", &address, "dev", "lan0"])?;
                }
                Place::Arbiter | Place::OtherArbiter(_) | Place::Etcd(_) => {}
            }
        }
        Ok(())
    }

    fn build_host(&self, place: Place) -> Result<(), LabError> {
        let namespace = self.namespace(place);
        self.wire(place, "lan")?;
        add_bridge(&namespace, "br0")?;
        ip(&["-n", &namespace, "tuntap", "add", "dev", TAP, "mode", "tap"])?;
        for device in ["lan0", TAP] {
            ip(&["-n", &namespace, "link", "set", device, "master", "br0", "up"])?;
        }
        Ok(())
    }

    /// A cable from `<network>0` at `place` to the switch's bridge.
    fn wire(&self, place: Place, network: &str) -> Result<(), LabError> {
        let (namespace, switch) = (self.namespace(place), self.switch());
        let (near, far) = (format!("{network}0"), port(network, place));
        let bridge = format!("br-{network}");
        ip(&[
            "link", "add", &near, "netns", &namespace, "type", "veth", "peer", "name", &far,
            "netns", &switch,
        ])?;
        ip(&["-n", &namespace, "link", "set", &near, "up"])?;
        ip(&["-n", &switch, "link", "set", &far, "master", &bridge, "up"])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = remove_all(|name| name.starts_with(&format!("{}-", self.stem))) {
            tracing::warn!(%error, "a lab was not removed whole");
        }
    }
}

/// Removes namespaces of labs whose process has ended. Returns their names.
///
/// # Errors
///
/// [`LabError`] if `ip` cannot.
pub fn remove_leftovers() -> Result<Vec<String>, LabError> {
    require_root()?;
    remove_all(|name| {
        owner(name).is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
    })
}

/// Removes the namespaces of all labs of the process `pid`.
///
/// # Errors
///
/// [`LabError`] if `ip` cannot.
pub(super) fn remove_of(pid: u32) -> Result<Vec<String>, LabError> {
    remove_all(|name| owner(name) == Some(pid))
}

/// The process that made a namespace, if a lab did.
fn owner(namespace: &str) -> Option<u32> {
    namespace.strip_prefix("rom")?.split_once('-')?.0.parse().ok()
}

fn remove_all(unwanted: impl Fn(&str) -> bool) -> Result<Vec<String>, LabError> {
    let mut removed = Vec::new();
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Ok(removed) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if unwanted(&name) {
            kill_inhabitants(&name)?;
            match ip(&["netns", "del", &name]) {
                // Others sweep, too.
                Err(_) if !Path::new(NETNS_DIR).join(&name).exists() => {}
                deleted => {
                    deleted?;
                    removed.push(name);
                }
            }
        }
    }
    Ok(removed)
}

/// Only what was started in our own namespace is in it.
fn kill_inhabitants(namespace: &str) -> Result<(), LabError> {
    let pids = output("ip", "iproute2", &["netns", "pids", namespace], None)?;
    for pid in String::from_utf8_lossy(&pids.stdout).split_ascii_whitespace() {
        if let Ok(pid) = pid.parse() {
            // It may have ended by itself in the meantime.
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
    Ok(())
}

fn require_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

/// The switch's end of a cable: at most 15 bytes.
fn port(network: &str, place: Place) -> String {
    match place {
        Place::Host(number) => format!("{network}-{number}"),
        Place::Arbiter => format!("{network}-arb"),
        Place::OtherArbiter(number) => format!("{network}-arb{number}"),
        Place::Etcd(number) => format!("{network}-etcd{number}"),
        Place::Client => format!("{network}-cli"),
    }
}

fn filter_arriving(
    namespace: &str,
    device: &str,
    policy: &str,
    rule: &str,
) -> Result<(), LabError> {
    let table = cut_table(device);
    let rules = format!(
        "table netdev {table} {{\nchain arriving {{\ntype filter hook ingress device \"{device}\" priority 0; policy {policy};\n{rule}\n}}\n}}\n"
    );
    nft(namespace, &rules)
}

fn cut_table(device: &str) -> String {
    format!("{CUT_TABLE}_{}", device.replace('-', "_"))
}

fn add_namespace(name: &str) -> Result<(), LabError> {
    ip(&["netns", "add", name])?;
    // Without it the kernel's own announcements are in every capture.
    let disable = ["netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"];
    let _ = output("ip", "iproute2", &disable, None)?;
    ip(&["-n", name, "link", "set", "lo", "up"])
}

fn add_bridge(namespace: &str, name: &str) -> Result<(), LabError> {
    // A port forwards at once, and the table learns only from frames.
    let kind = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"];
    let add = ["-n", namespace, "link", "add", name];
    ip(&[&add[..], &kind[..]].concat())?;
    ip(&["-n", namespace, "link", "set", name, "up"])
}

fn ip(arguments: &[&str]) -> Result<(), LabError> {
    succeed("ip", "iproute2", arguments, None)
}

fn nft(namespace: &str, rules: &str) -> Result<(), LabError> {
    let nft = match Command::new("nft").arg("--version").output() {
        Ok(_) => ["netns", "exec", namespace, "nft", "-f", "-"],
        Err(source) => {
            return Err(LabError::Missing { program: "nft", package: "nftables", source });
        }
    };
    succeed("ip", "iproute2", &nft, Some(rules))
}

fn succeed(
    program: &'static str,
    package: &'static str,
    arguments: &[&str],
    input: Option<&str>,
) -> Result<(), LabError> {
    let output = output(program, package, arguments, input)?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Failed {
        command: format!("{program} {}", arguments.join(" ")),
        said: String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", "),
    })
}

fn output(
    program: &'static str,
    package: &'static str,
    arguments: &[&str],
    input: Option<&str>,
) -> Result<Output, LabError> {
    let missing = |source| LabError::Missing { program, package, source };
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).map_err(missing)?;
    }
    child.wait_with_output().map_err(missing)
}

#[cfg(test)]
mod tests;
