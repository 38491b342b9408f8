//! Where registers are kept, and what a failure to keep them means.
//!
//! What matters about a failure is whether the request may have happened. A
//! store that is not certain says [`StoreError::Unknown`]: the node then holds
//! its output and asks again, with the same stamp, until it is told an outcome.

use std::{error::Error, fmt};

use thiserror::Error;

use crate::{Illegal, Outcome, Record, Request, VmId};

/// Where registers are kept.
///
/// A store answers only after the change is durable, and serialises requests
/// for the same VM, those of its other users included.
pub trait Store {
    /// Which registers these are.
    fn id(&self) -> Result<StoreId, StoreError>;

    /// The record of `vm`, or `None` if no primary ever claimed it. Never older
    /// than any answer that was given, by whomever, before this was called.
    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError>;

    /// Decides `request` against the register of `vm` and makes the result
    /// durable.
    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError>;

    /// Every VM that has a register, in the order of their ids.
    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError>;
}

/// Which registers a store has. Nodes that know several arbiters make sure by
/// it that all of them decide about the same registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreId {
    /// Registers that no other arbiter has.
    Own,
    /// Registers that several arbiters may share: those with the same number.
    Shared(u64),
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("its own"),
            Self::Shared(number) => write!(f, "{number:016x}"),
        }
    }
}

/// Why a store gave no outcome. The source says what to do.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The request makes no sense: nothing happened, and never will.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// Nothing happened by this copy of the request. It may be asked again.
    #[error("{source}")]
    Untouched {
        /// What failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The request may or may not have happened.
    #[error("{source}")]
    Unknown {
        /// What failed.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    /// Nothing happened, because of `source`.
    pub fn untouched(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Untouched { source: Box::new(source) }
    }

    /// Whether something happened is not known, because of `source`.
    pub fn unknown(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Unknown { source: Box::new(source) }
    }
}
