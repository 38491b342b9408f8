//! How a member is, by its own account: for operators, never for decisions.
//!
//! A member that says that it knows a leader may be wrong a moment later; only
//! a read that a majority consents to proves anything.

use etcd_client::StatusResponse;

use crate::fault::MemberFault;

/// One member of the cluster, as it answers when it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    /// Its URL, as configured.
    pub endpoint: String,
    /// What it says of itself, or why it says nothing.
    pub health: Result<Health, MemberFault>,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Of its program.
    pub version: String,
    /// Whether it is the leader.
    pub leads: bool,
    /// Its database on disk, in bytes.
    pub database_bytes: u64,
    /// Alarms that any member has raised: while there is one, nothing can be
    /// changed.
    pub alarms: Vec<MemberFault>,
}

impl Health {
    pub(crate) fn new(endpoint: &str, status: &StatusResponse) -> Self {
        let own = status.header().map(etcd_client::ResponseHeader::member_id);
        Self {
            version: status.version().to_owned(),
            leads: own == Some(status.leader()),
            database_bytes: u64::try_from(status.db_size()).unwrap_or(0),
            alarms: status.errors().iter().map(|said| MemberFault::alarm(endpoint, said)).collect(),
        }
    }
}
