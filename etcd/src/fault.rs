//! What etcd says, and what an operator can do about it.
//!
//! Nothing here decides whether a request may have happened: that follows from
//! when something failed, never from the words of a failure.

use std::{error::Error, time::Duration};

use arbiter::VmId;
use thiserror::Error;

/// Why one member gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemberFault {
    /// It said nothing.
    #[error(
        "{endpoint} did not answer within {} ms: check that it runs and reaches the other members, or raise etcd.timeout_ms",
        .after.as_millis()
    )]
    Silent {
        /// Whom.
        endpoint: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// There is no conversation with it.
    #[error(
        "{endpoint} cannot be talked to ({said}): check that it runs, the address, the firewall and the TLS files"
    )]
    Unreachable {
        /// Whom.
        endpoint: String,
        /// What failed.
        said: String,
    },
    /// It is cut off from the majority, or there is none.
    #[error(
        "{endpoint} has no majority of members behind it ({said}): start or reconnect the others (`etcdctl endpoint status --cluster`); the arbiter goes on by itself"
    )]
    NoMajority {
        /// Whom.
        endpoint: String,
        /// What it said.
        said: String,
    },
    /// Its database has reached its quota.
    #[error(
        "{endpoint} is full ({said}): compact and defragment etcd, then `etcdctl alarm disarm`; raise --quota-backend-bytes or set --auto-compaction-retention so that it does not come back"
    )]
    Full {
        /// Whom.
        endpoint: String,
        /// What it said.
        said: String,
    },
    /// Its data differ from other members'.
    #[error(
        "{endpoint} has damaged data ({said}): replace that member (`etcdctl member remove`, then add it anew with an empty folder), then `etcdctl alarm disarm`"
    )]
    Corrupt {
        /// Whom.
        endpoint: String,
        /// What it said.
        said: String,
    },
    /// It does not take the user or the password.
    #[error(
        "{endpoint} does not accept who the arbiter is ({said}): check etcd.user and etcd.password_file"
    )]
    Credentials {
        /// Whom.
        endpoint: String,
        /// What it said.
        said: String,
    },
    /// The user may not do what an arbiter does.
    #[error(
        "{endpoint} does not let the arbiter's user in ({said}): grant its role read and write on the prefix (`etcdctl role grant-permission ROLE --prefix=true readwrite PREFIX`)"
    )]
    Permission {
        /// Whom.
        endpoint: String,
        /// What it said.
        said: String,
    },
    /// It refused for another reason.
    #[error("{endpoint} refused ({said}): see its log and `etcdctl endpoint status --cluster`")]
    Refused {
        /// Whom.
        endpoint: String,
        /// What it said.
        said: String,
    },
}

/// Why etcd gave no outcome.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EtcdError {
    /// Each member that was asked, and why it was in vain.
    #[error("etcd gave no answer: {}", sentence(.0))]
    Members(Vec<MemberFault>),
    /// A value that no arbiter wrote.
    #[error(
        "the etcd key {key} holds what this arbiter did not write ({what}): update the arbiter if it is older than others, restore the key, or make sure that no node of that VM runs and delete it"
    )]
    Foreign {
        /// Under which key.
        key: String,
        /// What is wrong with the value.
        what: String,
    },
    /// The key changes again and again without the term that it should have.
    #[error("the register of {vm} in etcd is changed by others than arbiters: find and stop them")]
    Disturbed {
        /// Whose register.
        vm: VmId,
    },
}

fn sentence(faults: &[MemberFault]) -> String {
    let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
    faults.join("; ")
}

/// What etcd says to one that it does not know or let in (`rpctypes/error.go`).
const CREDENTIALS: [&str; 5] = [
    "authentication failed",
    "invalid auth token",
    "user name is empty",
    "user name not found",
    "authentication is not enabled",
];
/// What a member without a majority says, at once or after its own timeout.
const NO_MAJORITY: [&str; 4] =
    ["no leader", "leader changed", "request timed out", "raft proposal dropped"];

impl MemberFault {
    pub(crate) fn new(endpoint: &str, error: &etcd_client::Error) -> Self {
        let endpoint = endpoint.to_owned();
        let etcd_client::Error::GRpcStatus(status) = error else {
            return Self::Unreachable { endpoint, said: error.to_string() };
        };
        let said = status.message().to_owned();
        // What does not come from etcd comes from the way to it.
        if !said.starts_with("etcdserver: ") && !said.starts_with("auth: ") {
            return Self::Unreachable { endpoint, said: with_sources(&said, status) };
        }
        let is_one_of = |phrases: &[&str]| phrases.iter().any(|phrase| said.contains(phrase));
        if said.contains("database space exceeded") {
            Self::Full { endpoint, said }
        } else if said.contains("corrupt") {
            Self::Corrupt { endpoint, said }
        } else if said.contains("permission denied") {
            Self::Permission { endpoint, said }
        } else if is_one_of(&CREDENTIALS) {
            Self::Credentials { endpoint, said }
        } else if is_one_of(&NO_MAJORITY) {
            Self::NoMajority { endpoint, said }
        } else {
            Self::Refused { endpoint, said }
        }
    }

    /// An alarm in a member's words, such as `memberID:7 alarm:NOSPACE`.
    pub(crate) fn alarm(endpoint: &str, said: &str) -> Self {
        let (endpoint, said) = (endpoint.to_owned(), said.trim().to_owned());
        if said.contains("NOSPACE") {
            Self::Full { endpoint, said }
        } else if said.contains("CORRUPT") {
            Self::Corrupt { endpoint, said }
        } else if said.contains("no leader") {
            Self::NoMajority { endpoint, said }
        } else {
            Self::Refused { endpoint, said }
        }
    }
}

/// The words of an error and of what caused it, each once.
fn with_sources(said: &str, error: &dyn Error) -> String {
    let mut words = said.to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}
