//! The arbiter's registers in an etcd cluster.
//!
//! ```text
//!   key                    value
//!   <prefix>id             a random number: which registers these are
//!   <prefix>vm/<VM>        romulus-register 2 {"register":{..},"stamp":7}
//! ```
//!
//! A change is a read and one transaction:
//!
//! ```text
//!   read, linearizable ──▶ decide ──▶ transaction: is the value still the one that was
//!        │                   ▲                     decided on? then put, else read
//!        │                   └── no, it holds ◀────────┤
//!        ▼                                             ▼
//!   failed: nothing happened                      failed: it may have happened
//! ```
//!
//! A read proves that a majority was there a moment ago, and changes nothing.
//! So whatever goes wrong before the transaction leaves certainty, and whatever
//! goes wrong in it does not, in whichever words etcd puts it: a timeout, a lost
//! leader, even "database space exceeded", which etcd also answers when it has
//! carried out the very transaction that exceeded it.
//!
//! Reads are never served by one member from memory (etcd calls that
//! serializable), and never at an old revision, so compaction cannot hurt them.

#![forbid(unsafe_code)]

mod fault;
mod health;
mod member;
mod settings;
pub mod spelling;
mod store;

pub use fault::{EtcdError, MemberFault};
pub use health::{Health, MemberHealth};
pub use settings::{Credentials, Settings, SettingsError, TlsFiles};
pub use store::EtcdStore;
