//! One node: a machine, and a shell that is as thin as can be.

use std::collections::{BTreeMap, BTreeSet};

use arbiter::{NodeId, Register};
use checkpoint::{
    Epoch,
    backup::Backup,
    chunk::{Digest, epoch_digest},
    message::Close,
    primary::{CutOrder, Primary},
};

/// What a node is running.
#[derive(Debug)]
pub(super) enum Role {
    Primary(Box<Primary>, Guest),
    Backup(Box<Backup>, Image),
    /// Crashed, fenced or finished.
    Down,
}

/// A guest that counts its work.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// What it has done.
    pub(super) work: u64,
    pub(super) paused: bool,
    /// Output that waits: the epoch (none: still open) and the work it tells.
    pub(super) held: Vec<(Option<Epoch>, u64)>,
    pub(super) holding: bool,
    /// The work that each epoch in flight ended with.
    pub(super) cuts: BTreeMap<Epoch, u64>,
    /// A cut that is being taken.
    pub(super) cutting: Option<CutOrder>,
    /// To whom chunks of which later epochs go.
    pub(super) follows: BTreeMap<NodeId, Epoch>,
    /// Seed chunks sent to each backup.
    pub(super) seeds: BTreeMap<NodeId, u32>,
}

impl Guest {
    pub(super) fn new(work: u64) -> Self {
        Self {
            work,
            paused: false,
            held: Vec::new(),
            holding: false,
            cuts: BTreeMap::new(),
            cutting: None,
            follows: BTreeMap::new(),
            seeds: BTreeMap::new(),
        }
    }
}

/// What a backup holds.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// The work that each staged or committed epoch ended with.
    pub(super) staged: BTreeMap<Epoch, u64>,
    pub(super) committed: Option<(Epoch, u64)>,
    /// Seed chunks that were ordered to apply.
    pub(super) seed: u32,
}

/// A node of the cluster.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) role: Role,
    /// Bumped at every crash: what was under way for the old life is void.
    pub(super) life: u64,
    /// Frozen (SIGSTOP): events wait.
    pub(super) frozen: bool,
    /// The register that made it primary, for its frames' terms.
    pub(super) register: Option<Register>,
    /// Backups that the operator has named.
    pub(super) peers: BTreeSet<NodeId>,
}

/// How many chunks an epoch has, and their digests: functions of what it holds.
pub(super) fn chunk_digests(epoch: Epoch, work: u64) -> Vec<Digest> {
    let count = 1 + (epoch.get() + work) % 3;
    (0..count)
        .map(|index| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&epoch.get().to_le_bytes());
            digest[8..16].copy_from_slice(&work.to_le_bytes());
            digest[16..24].copy_from_slice(&index.to_le_bytes());
            digest
        })
        .collect()
}

pub(super) fn close_of(epoch: Epoch, work: u64) -> Close {
    let digests = chunk_digests(epoch, work);
    let chunks = digests.len() as u32;
    let pages = u64::from(chunks);
    Close { epoch, seed_chunks: None, chunks, pages, digest: epoch_digest(&digests) }
}
