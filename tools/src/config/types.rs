//! What a configuration means, in types that cannot be wrong.

use std::{
    fmt,
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32, NonZeroU64},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use arbiter::{NodeId, VmId};
use checkpoint::{
    choice::{Choice, Way},
    pacing::Pace,
};
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;
use transport::Identity;
use vmm::host::{feature::Feature, model::CpuModel};

use super::error::ConfigError;

/// Everything about one VM on one node: the content of `VM.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmConfig {
    /// The machine.
    pub vm: Vm,
    /// Its network device, if it has one.
    pub network: Option<Network>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Where its console goes.
    pub console: Console,
    /// This host.
    pub node: Node,
    /// The hosts that may stand by, or run the guest while this one stands by.
    pub peers: Vec<Peer>,
    /// Who settle the right to run: any of them, about the same registers. At
    /// least one.
    pub arbiters: Vec<ArbiterPeer>,
    /// How the guest is replicated.
    pub replication: Replication,
}

/// The machine. Must be equal on all nodes but for paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// Its name in the arbiter's register.
    pub name: VmId,
    /// RAM, in MiB.
    pub memory_mib: NonZeroU32,
    /// How many vCPUs.
    pub vcpus: NonZeroU16,
    /// What boots.
    pub kernel: Kernel,
    /// Its first file system.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub cmdline: String,
    /// How it is entered.
    pub boot: BootProtocol,
    /// What happens when it asks to be restarted.
    pub on_reboot: OnReboot,
    /// What happens when it triple-faults.
    pub on_triple_fault: OnReboot,
    /// What happens when its kernel says that it has panicked.
    pub on_panic: OnPanic,
    /// What the guest sees of the CPU.
    #[serde(serialize_with = "as_text")]
    pub cpu: CpuModel,
    /// CPU features that it goes without.
    #[serde(serialize_with = "as_texts")]
    pub cpu_without: Vec<Feature>,
    /// How written pages are found.
    pub dirty_tracking: DirtyTracking,
    /// Back guest RAM with huge pages where the host can.
    pub hugepages: bool,
    /// Whether it has an entropy device.
    pub rng: bool,
}

/// The guest's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// The probe guest that the binary carries.
    Probe,
    /// A bzImage or an ELF file.
    File(PathBuf),
}

/// How the guest's image is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootProtocol {
    /// As the image's content says.
    Auto,
    /// Linux's 64-bit boot protocol.
    Linux,
    /// The PVH entry of an ELF note.
    Pvh,
    /// The ELF entry point, in long mode.
    LongMode,
}

/// What happens when a guest restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// It restarts, in the same VM.
    Restart,
    /// It ends.
    Stop,
}

/// What happens when a guest's kernel panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPanic {
    /// It is reported; the guest does what its kernel is told by `panic=`.
    Report,
    /// The guest restarts at once.
    Restart,
    /// The guest ends as failed.
    Stop,
}

/// How written pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirtyTracking {
    /// The ring where it works, else the bitmap.
    Auto,
    /// KVM's dirty ring.
    Ring,
    /// KVM's dirty bitmap with manual protect.
    Bitmap,
}

/// The guest's network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// The host's tap device.
    pub tap: InterfaceName,
    /// The guest's address on the link.
    pub mac: MacAddress,
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Its raw image, a file or block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// What the guest knows it by.
    pub serial: DiskSerial,
    /// How much of it is compared with the other nodes' images.
    pub digest: DiskDigest,
}

/// How much of a disk's image is compared between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskDigest {
    /// All of an image up to 1 GiB, samples of a larger one.
    Auto,
    /// All of it.
    All,
    /// 64 MiB of it.
    Samples,
}

/// Where console bytes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Console {
    /// A file that released console bytes are appended to; a second one beside
    /// it is used in turn.
    pub log: Option<PathBuf>,
    /// Most bytes of both, in MiB.
    pub log_mib_max: NonZeroU32,
}

/// This host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name in certificates and in the register.
    pub name: NodeId,
    /// Where a standby waits for the primary.
    pub listen: SocketAddr,
    /// What must outlive a process.
    pub state_dir: PathBuf,
    /// The control API's socket.
    pub control: PathBuf,
    /// What its process gives up after its start.
    pub jail: JailMode,
    /// Its certificate and key.
    pub identity: IdentityFiles,
}

/// What a daemon gives up after its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JailMode {
    /// Rights, files, networks and system calls that it does not need.
    Strict,
    /// Nothing, but the kernel logs the system calls that would be refused.
    Log,
    /// Nothing.
    Off,
}

impl fmt::Display for JailMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Files that prove who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityFiles {
    /// The authority's certificate, PEM.
    pub ca: PathBuf,
    /// The node's certificate, PEM.
    pub cert: PathBuf,
    /// The node's private key, PEM.
    pub key: PathBuf,
}

impl IdentityFiles {
    /// Whether the files are those of `node`, fit each other and may be used.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Identity`] and [`ConfigError::Misnamed`], with the remedy.
    pub fn check(&self, node: &NodeId) -> Result<(), ConfigError> {
        let identity = Identity::load(&self.ca, &self.cert, &self.key)?;
        if identity.node() == node {
            return Ok(());
        }
        Err(ConfigError::Misnamed {
            certificate: self.cert.clone(),
            certified: identity.node().clone(),
            configured: node.clone(),
        })
    }
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its name, as in its certificate.
    pub name: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Where an arbiter is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArbiterPeer {
    /// Its name, as in its certificate.
    pub name: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
}

/// How dirty pages are captured at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Capture {
    /// All are copied while the guest is paused.
    Copy,
    /// Some are copied; the others are write-protected and copied when the guest
    /// runs, where the kernel can do that.
    Protect,
}

/// How pages are sent that build on nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Compressed or not, whatever costs less time.
    Auto,
    /// Compressed with zstd.
    Zstd,
    /// As they are.
    Off,
}

impl Codec {
    /// Who chooses for it.
    pub(crate) fn choice(self) -> Choice {
        match self {
            Self::Auto => Choice::by_cost(),
            Self::Zstd => Choice::always(Way::Compressed),
            Self::Off => Choice::always(Way::Raw),
        }
    }
}

/// How the guest is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replication {
    /// When epochs end.
    #[serde(flatten, serialize_with = "super::pace::serialize")]
    pub pace: Pace,
    /// How often a node says that it lives.
    #[serde(rename = "heartbeat_ms", serialize_with = "as_millis")]
    pub heartbeat: Duration,
    /// Silence after which a backup asks the arbiter for promotion.
    #[serde(rename = "detection_ms", serialize_with = "as_millis")]
    pub detection: Duration,
    /// Silence after which a primary asks the arbiter to go on without a backup.
    #[serde(rename = "drop_ms", serialize_with = "as_millis")]
    pub drop: Duration,
    /// Time in which a backup gets nothing done, though an epoch waits for it,
    /// after which a primary asks the arbiter to go on without it.
    #[serde(rename = "lag_ms", serialize_with = "as_millis")]
    pub lag: Duration,
    /// Most epochs that wait for their commit.
    pub in_flight_epochs_max: NonZeroU32,
    /// Most MiB that wait for their commit.
    pub in_flight_mib_max: NonZeroU32,
    /// Most MiB of what backups have, kept as the base of deltas; 0 for none.
    pub delta_cache_mib: u64,
    /// How pages are captured.
    pub capture: Capture,
    /// How long copying may take of a pause, where pages can be protected instead.
    #[serde(rename = "copy_us_max", serialize_with = "as_micros")]
    pub copy_max: Duration,
    /// Whether pages are compressed.
    pub compression: Codec,
    /// Most MiB of held output before the guest is paused.
    pub held_output_mib_max: NonZeroU32,
    /// Record the digest of all memory at every epoch: for tests, costs much.
    pub audit: bool,
    /// Send the last committed epoch's output again after a promotion.
    pub resend_outputs: bool,
    /// How long one question to the arbiters may take, repeats included.
    #[serde(rename = "arbiter_timeout_ms", serialize_with = "as_millis")]
    pub arbiter_timeout: Duration,
    /// Encoder threads.
    pub encode_threads: NonZeroU16,
    /// Parallel streams for chunks.
    pub data_streams: NonZeroU16,
    /// Largest UDP payload that the path is tried with, in bytes.
    pub mtu_max: NonZeroU16,
    /// Most MiB of an uncommitted epoch that a backup keeps.
    pub staging_mib_max: NonZeroU32,
    /// Bound on the seed's rate in MiB/s; `None`: as fast as the link takes it.
    pub seed_mib_per_s_max: Option<NonZeroU64>,
}

/// The content of `arbiter.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArbiterConfig {
    /// Its name in its certificate.
    pub name: NodeId,
    /// Where nodes ask.
    pub listen: SocketAddr,
    /// Where the registers are.
    pub store: StoreConfig,
    /// The control API's socket, if it is to have one.
    pub control: Option<PathBuf>,
    /// What its process gives up after its start.
    pub jail: JailMode,
    /// Its certificate and key.
    pub identity: IdentityFiles,
}

/// Where an arbiter keeps the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreConfig {
    /// In a file of its own.
    File(PathBuf),
    /// In an etcd cluster, which other arbiters may share.
    Etcd(etcd::Settings),
}

fn as_micros<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_micros())
}

fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_millis())
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_texts<S: Serializer>(values: &[impl fmt::Display], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

/// An Ethernet address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Its octets.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

/// A text that is no Ethernet address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidMac {
    /// Not six pairs of hex digits.
    #[error("no Ethernet address, which has six pairs of hex digits")]
    Shape,
    /// The lowest bit of the first octet is set, or all are zero.
    #[error("a group's address or none, where one station's is needed")]
    Group,
}

impl FromStr for MacAddress {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(InvalidMac::Shape)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(InvalidMac::Shape);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| InvalidMac::Shape)?;
        }
        if parts.next().is_some() {
            return Err(InvalidMac::Shape);
        }
        if octets[0] & 1 != 0 || octets == [0; 6] {
            return Err(InvalidMac::Group);
        }
        Ok(Self(octets))
    }
}

/// The name of a network interface: 1 to 15 bytes (`IFNAMSIZ` in `<net/if.h>`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no interface name, which has 1 to 15 of letters, digits, `-`, `_` and `.`")]
pub struct InvalidInterfaceName;

impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(text: &str) -> Result<Self, InvalidInterfaceName> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let shaped = (1..=15).contains(&text.len()) && text.bytes().all(inner);
        let named = text != "." && text != "..";
        if shaped && named { Ok(Self(text.to_owned())) } else { Err(InvalidInterfaceName) }
    }
}

/// Longest serial number of a disk, in bytes.
const DISK_SERIAL_BYTES_MAX: usize = 20;

/// What a guest knows a disk by (`/dev/disk/by-id/virtio-SERIAL`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct DiskSerial(String);

impl DiskSerial {
    /// The serial of disk `index`, if none is given.
    #[must_use]
    pub fn of_disk(index: usize) -> Self {
        Self(format!("disk-{index}"))
    }

    /// The serial as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no disk's serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no serial, which has 1 to {DISK_SERIAL_BYTES_MAX} of letters, digits, `-`, `_` and `.`")]
pub struct InvalidDiskSerial;

impl FromStr for DiskSerial {
    type Err = InvalidDiskSerial;

    fn from_str(text: &str) -> Result<Self, InvalidDiskSerial> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let shaped = (1..=DISK_SERIAL_BYTES_MAX).contains(&text.len()) && text.bytes().all(inner);
        if shaped { Ok(Self(text.to_owned())) } else { Err(InvalidDiskSerial) }
    }
}
