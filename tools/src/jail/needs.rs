//! What a configuration makes a daemon reach after it has entered the jail.

use std::path::{Path, PathBuf};

use super::folders::folders_of;
use crate::config::{ArbiterConfig, Kernel, StoreConfig, VmConfig};

/// What getaddrinfo(3) may read.
const RESOLVING: [&str; 6] = ["/etc", "/run", "/lib", "/lib64", "/usr/lib", "/usr/lib64"];
/// Long answers of a name server come by TCP.
const DNS_PORT: u16 = 53;

/// Files, folders and ports.
#[derive(Debug, Default)]
pub struct Needs {
    /// Files, or all in a folder, that are read.
    pub(super) read: Vec<PathBuf>,
    /// Files that are written.
    pub(super) write: Vec<PathBuf>,
    /// Folders in which files are made, written and removed.
    pub(super) folders: Vec<PathBuf>,
    /// Folders of Unix sockets.
    pub(super) socket_folders: Vec<PathBuf>,
    /// Ports that are dialled by TCP.
    pub(super) tcp_ports: Vec<u16>,
    /// Where packets are awaited.
    pub(super) listen_port: u16,
}

impl Needs {
    /// Those of a node, in either role and after every change of it.
    #[must_use]
    pub fn of_node(config: &VmConfig) -> Self {
        let mut needs = Self::of_any(config.node.listen.port());
        needs.folders.push(config.node.state_dir.clone());
        needs.socket_folders.extend(folder(&config.node.control));
        if let Kernel::File(path) = &config.vm.kernel {
            needs.read.extend(folders_of(path));
        }
        if let Some(path) = &config.vm.initrd {
            needs.read.extend(folders_of(path));
        }
        for disk in &config.disks {
            let of_kind = if disk.read_only { &mut needs.read } else { &mut needs.write };
            of_kind.push(disk.path.clone());
        }
        needs
    }

    /// Those of an arbiter.
    #[must_use]
    pub fn of_arbiter(config: &ArbiterConfig) -> Self {
        let mut needs = Self::of_any(config.listen.port());
        if let Some(control) = &config.control {
            needs.socket_folders.extend(folder(control));
        }
        match &config.store {
            StoreConfig::File(path) => needs.folders.extend(folder(path)),
            StoreConfig::Etcd(settings) => needs.add_etcd(settings),
        }
        needs
    }

    /// A cluster that is called by TCP, perhaps by names: looking those up reads
    /// much of `/etc`, plug-ins of libc's, and what services keep below `/run`.
    fn add_etcd(&mut self, settings: &etcd::Settings) {
        self.read.extend(RESOLVING.map(PathBuf::from));
        if let Some(tls) = &settings.tls {
            self.read.push(tls.ca.clone());
            let identity = tls.identity.iter();
            self.read.extend(identity.flat_map(|(cert, key)| [cert.clone(), key.clone()]));
        }
        self.read.extend(settings.credentials.iter().map(|of| of.password_file.clone()));
        let port = |url: &String| url.trim_end_matches('/').rsplit_once(':')?.1.parse::<u16>().ok();
        self.tcp_ports.extend(settings.endpoints.iter().filter_map(port));
        self.tcp_ports.push(DNS_PORT);
    }

    /// What the kernel tells, and what a panic's backtrace reads.
    pub(super) fn of_any(listen_port: u16) -> Self {
        let mut read = vec!["/proc".into(), "/sys/devices/system".into()];
        read.extend(std::env::current_exe());
        Self { read, listen_port, ..Self::default() }
    }
}

fn folder(path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?;
    Some(if folder.as_os_str().is_empty() { ".".into() } else { folder.to_owned() })
}
