//! The register: who is primary, under which term, with which backups in sync.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// The fencing number. It only rises; every change of the register raises it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Term(u64);

impl Term {
    /// Before anything was claimed: lower than every term of a register.
    pub const ZERO: Self = Self(0);
    /// The term that the first claim of a VM sets.
    pub const FIRST: Self = Self(1);

    /// A term from its number, as read from the wire or a file.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The term that a change of the register sets. Nobody lives to see the
    /// last term, but anybody may name it: `None`.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the arbiter knows of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Rises by one with every change.
    pub term: Term,
    /// The only node that may run the guest.
    pub primary: NodeId,
    /// The backups whose commit every output waits for, each with the image
    /// that it holds: exactly those that may be promoted, and with no other.
    pub in_sync: BTreeMap<NodeId, ImageId>,
}

impl Register {
    /// Whether this very image of a node may be promoted.
    #[must_use]
    pub fn counts_on(&self, node: &NodeId, image: ImageId) -> bool {
        self.in_sync.get(node) == Some(&image)
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}, primary {}, in sync {{", self.term, self.primary)?;
        for (index, node) in self.in_sync.keys().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{node}")?;
        }
        f.write_str("}")
    }
}

/// A random number that a process draws for every new request.
///
/// A repeated request carries the same stamp, so that an answer lost on the
/// way can be asked for again; two processes that ask for the same thing carry
/// different ones, so that only one of them is told that it won.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(u64);

impl Stamp {
    /// A stamp from its number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A random number that a primary draws for every image of its guest: for one
/// that it seeds, and for its own when it stands by after a handover.
///
/// A name is not enough: while one process of a node is frozen, another may
/// have taken its name, be seeded and be in sync, and the first may wake with an
/// image that the register does not mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(u64);

impl ImageId {
    /// An image from its number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
