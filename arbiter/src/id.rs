//! Names of nodes and VMs: parsed once, valid ever after.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest name of a node or a VM, in bytes: what fits a DNS label, because
/// node names stand in certificates.
const ID_BYTES_MAX: usize = 63;

/// A name that is not a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{given}` is no name: use 1 to {ID_BYTES_MAX} of a-z, 0-9 and `-`, beginning and ending with a letter or digit"
)]
pub struct InvalidId {
    given: String,
}

fn parse(given: &str) -> Result<String, InvalidId> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = given.as_bytes();
    let shaped = !bytes.is_empty()
        && bytes.len() <= ID_BYTES_MAX
        && bytes.iter().copied().all(inner)
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-';
    if shaped {
        Ok(given.to_owned())
    } else {
        let given = given.chars().take(2 * ID_BYTES_MAX).collect();
        Err(InvalidId { given })
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(given: &str) -> Result<Self, InvalidId> {
                parse(given).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(given: String) -> Result<Self, InvalidId> {
                parse(&given).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A host that can run or stand by for VMs, as its certificate names it.
    NodeId
}

id! {
    /// A protected virtual machine.
    VmId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "node-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<NodeId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a b", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<VmId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn deserialising_checks_the_name() {
        assert!(serde_json::from_str::<VmId>("\"web-1\"").is_ok());
        assert!(serde_json::from_str::<VmId>("\"../web\"").is_err());
    }
}
