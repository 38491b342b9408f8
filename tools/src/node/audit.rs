//! A file of memory digests, one line an epoch: for proving that a promoted
//! guest goes on with exactly the memory of the epoch that it was promoted at.
//!
//! ```text
//!   cut 17 <BLAKE3, hex>          the primary's memory when epoch 17 was cut
//!   promoted 17 <BLAKE3, hex>     the image when this node took over at it
//! ```
//!
//! Taking a digest reads all of memory within the pause: not for production.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
    sync::Mutex,
};

use checkpoint::{Epoch, chunk::Digest};

use crate::config::VmConfig;

/// The file, if the configuration wants it.
#[derive(Debug)]
pub struct Audit {
    file: Option<Mutex<File>>,
}

impl Audit {
    /// Opens `NODE.audit` in the state folder, if `replication.audit` is set.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn open(config: &VmConfig) -> std::io::Result<Self> {
        let open = |path: PathBuf| OpenOptions::new().create(true).append(true).open(path);
        let name = format!("{}.{}.audit", config.vm.name, config.node.name);
        let file = config
            .replication
            .audit
            .then(|| open(config.node.state_dir.join(name)).map(Mutex::new))
            .transpose()?;
        Ok(Self { file })
    }

    /// Whether digests are wanted.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.file.is_some()
    }

    /// Writes a line.
    pub fn record(&self, what: &str, epoch: Epoch, digest: &Digest) {
        let Some(file) = &self.file else { return };
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut file = file.lock().expect("no holder panics");
        if let Err(error) = writeln!(file, "{what} {epoch} {hex}") {
            tracing::warn!(%error, "the audit has a gap");
        }
    }
}
