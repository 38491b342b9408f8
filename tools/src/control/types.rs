//! What the control API says, as it is spelled in JSON.
//!
//! These types are for readers: nothing in the daemons computes with them.
//! Fields are only ever added.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use arbiter::{NodeId, VmId};
use serde::{Deserialize, Serialize};

use crate::config::JailMode;

/// How a protected VM is, answering the operator's first question first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether a failure now would lose nothing.
    pub protection: Protection,
    /// The VM.
    pub vm: VmId,
    /// The node that answers.
    pub node: NodeId,
    /// What the node does for the VM.
    pub role: Role,
    /// The guest on this node.
    pub guest: GuestState,
    /// The fencing number in force, as far as this node knows; 0 for none.
    pub term: u64,
    /// The epoch that runs (primary), or the same as `committed` (backup).
    pub epoch: u64,
    /// The last epoch that all backups have committed, so that its output could
    /// leave (primary), or that this one has (backup).
    pub committed: u64,
    /// The last epoch in the image of all backups, as they told with their last
    /// acknowledgement, 0 without one (primary); in this one's image (backup).
    pub applied: u64,
    /// How far the slowest backup is behind (primary), or this one's image (backup).
    pub behind: Behind,
    /// Backups whose commit all output waits for.
    pub in_sync: Vec<NodeId>,
    /// The other nodes, as this one sees them.
    pub peers: Vec<PeerStatus>,
    /// Output that waits for a commit, in bytes.
    pub held_bytes: u64,
    /// The arbiter, as this node sees it.
    pub arbiter: ArbiterState,
    /// Time in which no vCPU ran, per epoch.
    pub pause_us: Percentiles,
    /// From the resume to the commit of an epoch.
    pub commit_us: Percentiles,
    /// Mean bytes of an epoch's chunks as they are sent, counted once for all backups.
    pub wire_bytes_per_epoch: u64,
    /// Epochs ended by this process.
    pub epochs: u64,
    /// What was refused.
    pub refused: Refused,
    /// What is in force on this host.
    pub features: Features,
}

/// Whether a failure now would lose nothing, and if not, why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Protection {
    /// A backup is in sync, and the arbiter answers.
    Protected,
    /// Not, for this reason.
    Unprotected {
        /// In words for an operator.
        reason: String,
    },
}

/// What a node does for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs the guest.
    Primary,
    /// It stands by.
    Backup,
    /// It has asked the arbiter whether it may take over.
    Promoting,
    /// It asks the arbiter whether it may boot the guest.
    Claiming,
}

/// The guest on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped until something comes back: see `protection`.
    Paused,
    /// An image without execution: a standby.
    Standby,
    /// It is not booted: the arbiter is still asked.
    Stopped,
}

/// A distance between primary and backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Behind {
    /// Epochs ended and not committed (primary), or committed and not in the
    /// image yet (backup).
    pub epochs: u64,
    /// Age of the oldest of them (primary); always 0 at a backup.
    pub ms: u64,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is to this node.
    pub state: PeerState,
    /// Why it has no session, in words, if it is to have one.
    #[serde(default)]
    pub reason: Option<String>,
    /// How far its seed is, while it is seeded.
    pub seed: Option<SeedProgress>,
}

/// What a peer is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// Named in the configuration only.
    Idle,
    /// Nobody answers there yet: see `reason`.
    Connecting,
    /// It answers, and could not stage an epoch: it is seeded later.
    LeftAlone,
    /// It receives its first full copy.
    Seeding,
    /// It has its seed, and is not admitted yet.
    Joining,
    /// It would lose nothing.
    InSync,
    /// It was, and is silent.
    Silent,
    /// It refused the session: see `reason`.
    Refused,
    /// It runs the guest.
    Primary,
}

/// How far a seed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedProgress {
    /// Pages of this round that were sent.
    pub sent_pages: u64,
    /// Pages of this round: all of memory in the first.
    pub total_pages: u64,
    /// From 1; later rounds send what was dirtied in the meantime.
    pub round: u32,
}

/// The arbiter, as a node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArbiterState {
    /// Nothing has been asked yet.
    Unknown,
    /// The last question was answered.
    Reachable,
    /// The last question was not: a failover would wait.
    Unreachable,
}

/// A distribution, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// What was refused, counted since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Refused {
    /// Frames of an older term.
    pub stale_frames: u64,
    /// Chunks and epochs whose digest did not match, at the backup.
    pub corrupt_chunks: u64,
}

/// What is in force on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// `ring` or `bitmap`.
    pub dirty_tracking: String,
    /// `vmx`, `svm`, `pvm` or `unknown`.
    pub kvm_backend: String,
    /// What the process has given up.
    pub jail: Jail,
}

/// What a process has given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail {
    /// As configured.
    pub mode: JailMode,
    /// Capabilities that it has.
    pub capabilities: Vec<String>,
    /// The version of landlock that restricts its files and networks; 0 for none.
    pub landlock: u32,
    /// System calls that were refused since it began.
    pub refused_calls: u64,
}

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Info,
    /// Somebody should look.
    Warning,
    /// Protection or the guest is lost.
    Error,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are the vocabulary of docs/operations.md")]
pub enum EventKind {
    ProcessStarted,
    ProcessStopping,
    GuestStarted,
    GuestRestored,
    GuestPaused,
    GuestResumed,
    GuestStopped,
    GuestRestarting,
    GuestPanicked,
    PeerConnected,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    SeedStarted,
    SeedFinished,
    BackupAdmitted,
    BackupDropped,
    WentSolo,
    BackPressure,
    PromotionAsked,
    Promoted,
    SwitchoverStarted,
    SwitchoverFinished,
    Fenced,
    ArbiterLost,
    ArbiterBack,
    RegisterChanged,
    ChunkCorrupt,
    FrameStale,
    VerifyFinished,
    VerifyFailed,
    CommandReceived,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Rises by one; from 1 in every process.
    pub sequence: u64,
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// `CLOCK_MONOTONIC` in microseconds: comparable between processes of one host.
    pub monotonic_us: u64,
    /// How bad.
    pub severity: Severity,
    /// What about.
    pub kind: EventKind,
    /// In words.
    pub text: String,
    /// Figures and names.
    pub fields: BTreeMap<String, serde_json::Value>,
}

/// Answer to `GET /events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventPage {
    /// Events after the asked number, rising.
    pub events: Vec<EventRecord>,
    /// What to ask for next, as `after`.
    pub next_after: u64,
    /// Events after the asked number that are no longer kept.
    pub forgotten: u64,
}

/// What one epoch cost. Durations are in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Its number.
    pub epoch: u64,
    /// `CLOCK_MONOTONIC` when the guest went on, in microseconds.
    pub resumed_monotonic_us: u64,
    /// Dirty pages that were left to the pause.
    pub pages: u64,
    /// Of these, pages copied within it; the others were write-protected.
    pub pages_copied: u64,
    /// Pages copied before the pause.
    pub pages_early: u64,
    /// Pages sent before the epoch's end.
    pub pages_ahead: u64,
    /// Time in which no vCPU ran. The five parts that follow make it up, but for
    /// a few microseconds.
    pub pause_us: u64,
    /// Until all vCPUs and devices stood.
    pub stop_us: u64,
    /// Reading and clearing the dirty log; vCPUs save their state meanwhile.
    pub harvest_us: u64,
    /// What saving the state took longer than the harvest.
    pub save_us: u64,
    /// Sealing the output, copying pages and protecting others.
    pub capture_us: u64,
    /// Until the vCPUs were told to run.
    pub resume_us: u64,
    /// Bytes of its chunks as they are sent, counted once for all backups; `None`
    /// until it is encoded.
    pub wire_bytes: Option<u64>,
    /// From the resume to the commit; `None` until it is committed.
    pub commit_us: Option<u64>,
}

/// Answer to `GET /epochs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EpochPage {
    /// The kept epochs after the asked number, rising.
    pub epochs: Vec<EpochRecord>,
}

/// What a comparison of the images found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether all compared backups hold exactly the primary's memory.
    pub equal: bool,
    /// The epoch that was compared.
    pub epoch: u64,
    /// Pages compared.
    pub pages: u64,
    /// BLAKE3 of the primary's memory at that epoch, hex.
    pub digest: String,
    /// What each backup holds.
    pub backups: Vec<VerifiedBackup>,
}

/// One backup's part of a [`VerifyReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedBackup {
    /// Which.
    pub node: NodeId,
    /// BLAKE3 of its image, hex.
    pub digest: String,
}

/// A command was taken up; events and status tell how it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// What will happen, in words.
    pub message: String,
}

/// Answer to `POST /console`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    /// How many of the bytes the console took: send the rest again later.
    pub taken: usize,
    /// The same in words.
    pub message: String,
}

/// Header of `GET /console`: the process that answers. Another process numbers
/// its bytes anew.
pub(super) const CONSOLE_PROCESS: &str = "romulus-console-process";
/// Header of `GET /console`: the number of the first byte.
pub(super) const CONSOLE_FROM: &str = "romulus-console-from";
/// Header of `GET /console`: the number behind the last byte.
pub(super) const CONSOLE_NEXT: &str = "romulus-console-next";

/// Body of `POST /failover`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverBody {
    /// The new primary; the best in-sync backup if absent.
    #[serde(default)]
    pub to: Option<NodeId>,
    /// To a backup: take over now, though a primary that lives is fenced.
    #[serde(default)]
    pub take_over: bool,
}

/// Body of `POST /protect`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectBody {
    /// The new backup; every configured peer if absent.
    #[serde(default)]
    pub backup: Option<NodeId>,
    /// Where it listens, if not where the configuration says.
    #[serde(default)]
    pub address: Option<SocketAddr>,
}

/// Body of `POST /unprotect`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnprotectBody {
    /// The backup to let go; all of them if absent.
    #[serde(default)]
    pub backup: Option<NodeId>,
}

/// Body of `POST /shutdown`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownBody {
    /// Turn the guest off without asking it.
    #[serde(default)]
    pub force: bool,
}

/// Body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: String,
    /// What to do about it.
    pub remedy: String,
}
