//! Files that a configuration names: found, and of the right kind, before use.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use super::{
    error::Fault,
    section::{Found, Section},
    types::IdentityFiles,
};

/// Longest path of a Unix socket, in bytes (`sun_path` in unix(7), less its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where relative paths begin.
#[derive(Debug)]
pub(super) struct HostFiles {
    base: PathBuf,
}

impl HostFiles {
    /// Paths from the folder of `file`.
    pub(super) fn beside(file: &Path) -> Self {
        Self { base: file.parent().map(Path::to_owned).unwrap_or_default() }
    }

    /// The path without any demand on it.
    pub(super) fn resolve(&self, found: &Found<PathBuf>) -> PathBuf {
        self.base.join(&found.value)
    }

    /// A file that can be read.
    pub(super) fn readable(&self, found: &Found<PathBuf>, make: &str) -> Result<PathBuf, Fault> {
        let path = self.resolve(found);
        match File::open(&path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => Ok(path),
            Ok(_) => Err(found.fault(format!("{} is no file", path.display()), make)),
            Err(error) => {
                let problem = format!("cannot read {}: {error}", path.display());
                Err(found.fault(problem, make))
            }
        }
    }

    /// A file or block device that can be read and, if so wished, written.
    pub(super) fn image(&self, found: &Found<PathBuf>, read_only: bool) -> Result<PathBuf, Fault> {
        let path = self.resolve(found);
        let opened = OpenOptions::new().read(true).write(!read_only).open(&path);
        match opened.and_then(|file| file.metadata()).map(|metadata| metadata.file_type()) {
            Ok(kind) if kind.is_file() || kind.is_block_device() => Ok(path),
            Ok(_) => Err(found.fault(
                format!("{} is neither a file nor a block device", path.display()),
                "name a raw image",
            )),
            Err(error) => {
                let wish = if read_only { "read" } else { "read and write" };
                let problem = format!("cannot {wish} {}: {error}", path.display());
                Err(found.fault(problem, "name a raw image, and check its permissions"))
            }
        }
    }

    /// A folder that is there or can be made: some folder above it is one.
    pub(super) fn folder(&self, found: &Found<PathBuf>) -> Result<PathBuf, Fault> {
        let path = self.resolve(found);
        let existing = path.ancestors().find(|path| path.exists());
        match existing {
            Some(existing) if !existing.is_dir() => Err(found.fault(
                format!("{} is no folder", existing.display()),
                "name a folder, or one that can be created",
            )),
            _ => Ok(path),
        }
    }

    /// A path that a Unix socket can have.
    pub(super) fn socket(&self, found: &Found<PathBuf>) -> Result<PathBuf, Fault> {
        let path = self.resolve(found);
        let bytes = path.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            return Err(found.fault(
                format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes, not {bytes}"),
                "use a shorter path, for example under /run/romulus",
            ));
        }
        Ok(path)
    }

    /// The keys `ca`, `cert` and `key` of a section.
    pub(super) fn identity(&self, section: &mut Section<'_>) -> Result<IdentityFiles, Fault> {
        let make = "name a readable PEM file, made by `romulus pki init` and `romulus pki issue`";
        let mut file = |key, example| {
            let found = section.path_required(key, example)?;
            self.readable(&found, make)
        };
        Ok(IdentityFiles {
            ca: file("ca", "ca = \"/etc/romulus/ca.pem\"")?,
            cert: file("cert", "cert = \"/etc/romulus/node-a.pem\"")?,
            key: file("key", "key = \"/etc/romulus/node-a.key\"")?,
        })
    }
}
