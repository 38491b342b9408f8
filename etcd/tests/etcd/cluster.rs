//! Real etcd members on loopback, with folders and ports of their own.
//!
//! Members are killed (SIGKILL), stood still (SIGSTOP) and started again; all
//! of them end with the cluster.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use etcd_client::{Client, ConnectOptions};
use romulus_etcd::{EtcdStore, Settings};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A bound on failure, not a measure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// Between choosing a free port and using it, another process may take it.
const BEGINNINGS_MAX: usize = 5;

/// Whether etcd is here; if not, says so, or fails if `ROMULUS_REQUIRE` has
/// `etcd` in it.
pub(crate) fn etcd_for(test: &str) -> bool {
    let found = Command::new("etcd").arg("--version").output();
    let reason = match found {
        Ok(output) if output.status.success() => return true,
        Ok(output) => format!("`etcd --version` ended with {}", output.status),
        Err(error) => format!("etcd cannot be run ({error}): apt-get install etcd-server"),
    };
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|need| need == "etcd"), "{test}: {reason}");
    println!("skipped: {test}: {reason}");
    false
}

/// What is unusual about a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    /// How many members.
    pub(crate) members: usize,
    /// Added to each member's command line.
    pub(crate) arguments: Vec<String>,
    /// CA, certificate and key; clients must show a certificate, too.
    pub(crate) tls: Option<[PathBuf; 3]>,
}

/// Members, from 0.
pub(crate) struct Cluster {
    pub(crate) folder: TempDir,
    pub(crate) runtime: Runtime,
    shape: Shape,
    ports: Vec<[u16; 2]>,
    processes: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts `members` members and waits until they have a leader.
    pub(crate) fn start(members: usize) -> Self {
        Self::shaped(Shape { members, ..Shape::default() })
    }

    /// Starts a cluster and waits until it has a leader.
    pub(crate) fn shaped(shape: Shape) -> Self {
        Self::shaped_in(&std::env::temp_dir(), shape)
    }

    /// As [`Cluster::shaped`], with its files below `folder`.
    pub(crate) fn shaped_in(folder: &Path, shape: Shape) -> Self {
        for _ in 0..BEGINNINGS_MAX {
            let mut cluster = Self {
                folder: tempfile::tempdir_in(folder).unwrap(),
                runtime: runtime(),
                ports: (0..shape.members).map(|_| free_ports()).collect(),
                processes: (0..shape.members).map(|_| None).collect(),
                shape: shape.clone(),
            };
            (0..shape.members).for_each(|member| cluster.begin(member));
            if cluster.wait_leader() {
                return cluster;
            }
        }
        panic!("no cluster came up in {BEGINNINGS_MAX} beginnings");
    }

    /// Starts a member, anew or with what it knew.
    pub(crate) fn begin(&mut self, member: usize) {
        let name = format!("m{member}");
        let peers = self.ports.iter().enumerate();
        let peers: Vec<_> =
            peers.map(|(number, [_, peer])| format!("m{number}=http://127.0.0.1:{peer}")).collect();
        let client_url = self.endpoint(member);
        let peer_url = format!("http://127.0.0.1:{}", self.ports[member][1]);
        let log = self.folder.path().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &name, "--initial-cluster-state", "new"])
            .arg("--data-dir")
            .arg(self.folder.path().join(&name))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &peers.join(",")])
            .args(&self.shape.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some([ca, certificate, key]) = &self.shape.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        self.processes[member] = Some(command.spawn().unwrap());
    }

    /// Kills a member and waits until it is gone.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.processes[member].take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Lets a member stand still (`STOP`) or go on (`CONT`).
    pub(crate) fn signal(&self, member: usize, signal: &str) {
        let process = self.processes[member].as_ref().expect("a running member");
        let mut kill = Command::new("kill");
        kill.arg(format!("-{signal}")).arg(process.id().to_string());
        assert!(kill.status().unwrap().success());
    }

    pub(crate) fn endpoint(&self, member: usize) -> String {
        let scheme = if self.shape.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports[member][0])
    }

    /// Settings that name the members, in this order.
    pub(crate) fn settings(&self, members: &[usize]) -> Settings {
        Settings {
            endpoints: members.iter().map(|member| self.endpoint(*member)).collect(),
            prefix: "/romulus/".to_owned(),
            tls: None,
            credentials: None,
            timeout: Duration::from_millis(1000),
        }
    }

    pub(crate) fn store(&self, settings: &Settings) -> EtcdStore {
        EtcdStore::new(settings, self.runtime.handle().clone()).unwrap()
    }

    /// etcd's own client, for what arbiters do not do.
    pub(crate) fn admin(&self, member: usize) -> Client {
        let options = ConnectOptions::new().with_timeout(Duration::from_secs(10));
        self.runtime.block_on(Client::connect([self.endpoint(member)], Some(options))).unwrap()
    }

    /// The member that leads, as `asked` knows it.
    pub(crate) fn leader(&self, asked: usize) -> usize {
        let id_of = |member| {
            let status = self.runtime.block_on(self.admin(member).status()).unwrap();
            (status.header().unwrap().member_id(), status.leader())
        };
        let (_, leader) = id_of(asked);
        let mut members =
            (0..self.shape.members).filter(|member| self.processes[*member].is_some());
        members.find(|member| id_of(*member).0 == leader).expect("a leader among the members")
    }

    /// Whether a majority came about; not, if a member has ended by itself.
    fn wait_leader(&mut self) -> bool {
        if self.shape.tls.is_some() {
            return self.wait_listening();
        }
        let deadline = Instant::now() + PATIENCE;
        for member in 0..self.shape.members {
            let mut client = self.admin(member);
            while self.runtime.block_on(client.get("health", None)).is_err() {
                if self.has_fallen() {
                    return false;
                }
                assert!(Instant::now() < deadline, "no leader:\n{}", self.log(member));
                std::thread::sleep(LOOK);
            }
        }
        true
    }

    /// What can be known of members that demand a certificate.
    fn wait_listening(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        for member in 0..self.shape.members {
            let address = ("127.0.0.1", self.ports[member][0]);
            while std::net::TcpStream::connect(address).is_err() {
                if self.has_fallen() {
                    return false;
                }
                assert!(Instant::now() < deadline, "nobody listens:\n{}", self.log(member));
                std::thread::sleep(LOOK);
            }
        }
        true
    }

    fn has_fallen(&mut self) -> bool {
        let mut running = self.processes.iter_mut().flatten();
        running.any(|process| process.try_wait().unwrap().is_some())
    }

    pub(crate) fn log(&self, member: usize) -> String {
        let path = self.folder.path().join(format!("m{member}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Waits until `holds`.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(LOOK);
    }
}

/// A file that only its owner reads.
pub(crate) fn secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
