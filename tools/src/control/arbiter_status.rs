//! What an arbiter's control API says, as it is spelled in JSON.
//!
//! As with [`super::Status`], these types are for readers, and fields are only
//! ever added.

use std::{net::SocketAddr, path::PathBuf};

use arbiter::{NodeId, VmId};
use serde::{Deserialize, Serialize};

use super::types::{Jail, Status};

/// How an arbiter is, answering the operator's first question first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterStatus {
    /// Whether it can decide.
    pub readiness: Readiness,
    /// The arbiter that answers.
    pub arbiter: NodeId,
    /// Where nodes ask it.
    pub address: SocketAddr,
    /// Where its registers are.
    pub store: RegisterStore,
    /// Every VM's register, in the order of their names; absent if they could
    /// not be read.
    pub registers: Option<Vec<RegisterStatus>>,
    /// What its process has given up.
    pub jail: Jail,
}

/// Whether an arbiter can decide, and if not, why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Readiness {
    /// The registers could be read just now, and nothing is known that would
    /// keep them from being changed.
    Ready,
    /// Not, for this reason: failovers wait, unless another arbiter can.
    NotReady {
        /// In words for an operator.
        reason: String,
    },
}

/// Where an arbiter's registers are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum RegisterStore {
    /// In a file of its own.
    File {
        /// Which.
        path: PathBuf,
    },
    /// In an etcd cluster.
    Etcd {
        /// What the keys begin with.
        prefix: String,
        /// Their number, which arbiters with the same registers share; absent
        /// if etcd has not told it yet.
        id: Option<String>,
        /// The members, as configured.
        members: Vec<EtcdMember>,
    },
}

/// A member of an etcd cluster, as the arbiter sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdMember {
    /// Its URL.
    pub endpoint: String,
    /// What it says of itself.
    #[serde(flatten)]
    pub state: EtcdMemberState,
}

/// What a member of etcd says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum EtcdMemberState {
    /// It answers, and knows a leader.
    Answers {
        /// Whether it is the leader.
        leads: bool,
        /// Of its program.
        version: String,
        /// Its database on disk.
        database_bytes: u64,
        /// Alarms that any member has raised, with what to do.
        alarms: Vec<String>,
    },
    /// It does not answer, or cannot decide.
    Faulty {
        /// Why, and what to do.
        reason: String,
    },
}

/// The register of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterStatus {
    /// Whose.
    pub vm: VmId,
    /// The fencing number in force.
    pub term: u64,
    /// The only node that may run the guest.
    pub primary: NodeId,
    /// The backups that may be promoted.
    pub in_sync: Vec<NodeId>,
}

/// What answers at a control socket.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum AnyStatus {
    /// A node of a VM.
    Node(Box<Status>),
    /// An arbiter.
    Arbiter(Box<ArbiterStatus>),
}
