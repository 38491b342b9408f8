//! A cluster for tests: an authority, nodes, and what they say to each other.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use arbiter::{ImageId, NodeId, Term};
use checkpoint::{
    Epoch, MemoryLayout, PAGE_BYTES, PageNumber, PageRun,
    chunk::{Chunk, ChunkId, Compression, Encoder},
    message::{HeldImage, Hello, Machine, Welcome},
};
use romulus_transport::{
    BackupSession, Endpoint, Identity, Options, PrimarySession,
    identity::pki::{self, Files},
    wire,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tempfile::TempDir;

/// Bounds every wait; only a failure ever takes so long.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what).await.expect("it hangs")
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub(crate) const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
pub(crate) const TERM: Term = Term::new(5);

/// An authority in a folder that goes with it.
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pki::create_authority(dir.path(), pki::CA_DAYS, false).unwrap();
        Self { dir }
    }

    pub(crate) fn files(&self, name: &str) -> Files {
        let files = Files::of_node(self.dir.path(), &node(name));
        if !files.key.exists() {
            pki::issue(self.dir.path(), &node(name), pki::NODE_DAYS, false).unwrap();
        }
        files
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        let files = self.files(name);
        let ca = Files::of_authority(self.dir.path()).certificate;
        Identity::load(&ca, &files.certificate, &files.key).unwrap()
    }

    pub(crate) fn endpoint(&self, name: &str) -> Endpoint {
        self.endpoint_at(name, ANYWHERE, &Options::default())
    }

    pub(crate) fn endpoint_at(
        &self,
        name: &str,
        address: SocketAddr,
        options: &Options,
    ) -> Endpoint {
        Endpoint::bind(address, &self.identity(name), options).unwrap()
    }

    /// A session between `primary` and `backup`.
    pub(crate) async fn session(
        &self,
        primary: &Endpoint,
        backup: &Endpoint,
        backup_name: &str,
    ) -> (PrimarySession, BackupSession) {
        let (hello, backup_node) = (hello(), node(backup_name));
        let dialled = primary.dial(backup.local_address(), &backup_node, TERM, &hello);
        let accepted = async {
            let knock = backup.accept().await.unwrap().unwrap();
            knock.welcome(TERM, welcome()).unwrap()
        };
        let (dialled, accepted) = within(async { tokio::join!(dialled, accepted) }).await;
        (dialled.unwrap().1, accepted)
    }

    /// A QUIC connection of a client that follows no rule of ours but has the
    /// certificate in `files`.
    pub(crate) async fn raw(&self, files: &Files, to: SocketAddr, name: &str) -> quinn::Connection {
        self.raw_attempt(files, to, name).await.unwrap()
    }

    pub(crate) async fn raw_attempt(
        &self,
        files: &Files,
        to: SocketAddr,
        name: &str,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        self.raw_of(files, to, name, "romulus-node").await
    }

    /// As [`Cluster::raw_attempt`], in the `protocol` of its choice.
    pub(crate) async fn raw_of(
        &self,
        files: &Files,
        to: SocketAddr,
        name: &str,
        protocol: &str,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let ca = Files::of_authority(self.dir.path()).certificate;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&files.certificate).unwrap()],
                PrivateKeyDer::from_pem_file(&files.key).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![protocol.into()];
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let endpoint = quinn::Endpoint::client(ANYWHERE).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        let mut transport = quinn::TransportConfig::default();
        // How long it may say nothing is the other side's to decide.
        transport.max_idle_timeout(None);
        config.transport_config(Arc::new(transport));
        let name = format!("{name}.romulus.internal");
        within(endpoint.connect_with(config, to, &name).unwrap()).await
    }
}

pub(crate) fn hello() -> Hello {
    let layout = MemoryLayout::new(vec![PageRun { first: PageNumber::new(0), count: 4096 }]);
    Hello {
        versions: wire::VERSIONS.iter().map(|version| (*version).to_owned()).collect(),
        vm: "web-1".parse().unwrap(),
        machine: Machine {
            layout: layout.unwrap(),
            vcpus: 2,
            traits: [("disk.0".to_owned(), "virtio".into())].into(),
        },
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        version: wire::VERSIONS[0].to_owned(),
        image: Some(HeldImage { id: ImageId::new(5), committed: Epoch::new(9) }),
        staging_bytes_max: 1 << 30,
    }
}

/// A chunk of `pages` pages that do not compress.
pub(crate) fn chunk(index: u32, pages: u64) -> Chunk {
    let mut state = u64::from(index) + 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(pages as usize * PAGE_BYTES);
    while bytes.len() < pages as usize * PAGE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    let run = PageRun { first: PageNumber::new(0), count: pages };
    let id = ChunkId { epoch: Epoch::new(3), index };
    Encoder::new(Compression::Off).pages(id, &[run], bytes)
}

pub(crate) fn path_of(dir: &TempDir, name: &str) -> std::path::PathBuf {
    Path::new(dir.path()).join(name)
}
