//! A cluster's certificates for two nodes on this machine, in a folder that goes with
//! them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use transport::identity::{
    Identity,
    pki::{self, Files},
};

use super::WireError;

/// The node that sends.
pub(super) const SENDER: &str = "sender";
/// The node that receives.
pub(super) const RECEIVER: &str = "receiver";

/// See the module's head.
#[derive(Debug)]
pub(super) struct Certificates {
    folder: PathBuf,
    pub(super) authority: PathBuf,
    pub(super) sender: Files,
    pub(super) receiver: Files,
}

impl Certificates {
    /// Makes them in a new folder of the temporary one.
    pub(super) fn new() -> Result<Self, WireError> {
        let folder = std::env::temp_dir().join(format!("romulus-wire-{}", std::process::id()));
        let authority = pki::create_authority(&folder, 1, true)?.certificate;
        let issue = |name: &str| {
            let node = name.parse().expect("a node's name");
            pki::issue(&folder, &node, 1, true)
        };
        let (sender, receiver) = (issue(SENDER)?, issue(RECEIVER)?);
        Ok(Self { folder, authority, sender, receiver })
    }

    /// The identity of the node with these `files`.
    pub(super) fn identity(&self, files: &Files) -> Result<Identity, WireError> {
        Ok(Identity::load(&self.authority, &files.certificate, &files.key)?)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "certificates were left over");
        }
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    fs::remove_dir_all(folder)
}
