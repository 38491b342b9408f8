//! Who a node is: its certificate, and what it demands of others'.
//!
//! A cluster has one certificate authority. Every node and the arbiter hold a
//! certificate of it whose only DNS name is `<node>.romulus.internal`; the
//! [`NodeId`] of a peer is read from there and nowhere else.
//!
//! ```text
//!   ca.pem ──────────┬─ signs ─▶ node-a.pem  (DNS: node-a.romulus.internal)
//!   ca.key (offline) └─ signs ─▶ node-b.pem  (DNS: node-b.romulus.internal)
//! ```
//!
//! TLS 1.3 only, with certificates both ways. Whoever dials demands the name
//! that it expects; whoever accepts takes any name of the cluster and is told
//! which one it was.

mod certificate;
pub mod pki;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arbiter::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    client::WebPkiServerVerifier,
    client::danger::ServerCertVerifier,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use thiserror::Error;

pub use certificate::{CertificateDetails, CertificateError, DOMAIN};

/// Protocol name (ALPN, RFC 7301) between nodes.
pub(crate) const ALPN_NODE: &[u8] = b"romulus-node";
/// Protocol name between a node and the arbiter.
pub(crate) const ALPN_ARBITER: &[u8] = b"romulus-arbiter";

/// Why a node's identity cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {path}: make it with `romulus pki` or correct the path", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner may read the key.
    #[error("key {path} can be read by others (mode {mode:03o}): run `chmod 600 {path}`", path = .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {expected} in PEM form: make it again with `romulus pki`", path = .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A certificate cannot be understood, or names no node.
    #[error("certificate {path} is no node's: make it with `romulus pki`", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The certificate's time is not now.
    #[error(
        "certificate {path} is valid from {not_before} to {not_after}, not now: renew it with `romulus pki`, or set the clock",
        path = .path.display()
    )]
    OutOfDate {
        /// The file.
        path: PathBuf,
        /// From when, in words.
        not_before: String,
        /// Until when, in words.
        not_after: String,
    },
    /// The key belongs to another certificate.
    #[error("key {key} does not belong to certificate {certificate}: give the pair that was made together", key = .key.display(), certificate = .certificate.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The certificate is not of this cluster.
    #[error("certificate {certificate} was not issued by {ca}: give the authority of the node's own cluster", certificate = .certificate.display(), ca = .ca.display())]
    OtherAuthority {
        /// The certificate's file.
        certificate: PathBuf,
        /// The authority's file.
        ca: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
    /// TLS does not take the authority or the key.
    #[error("{path} cannot be used for TLS: make it again with `romulus pki`", path = .path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
}

/// A node's certificate and key, with the authority of its cluster.
#[derive(Clone)]
pub struct Identity {
    node: NodeId,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads an identity from PEM files: the cluster's authority `ca`, and the
    /// node's `certificate` and `key`.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] names the file and the remedy.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(read_roots(ca)?);
        let chain = read_chain(certificate)?;
        let details = details_of(&chain[0], certificate)?;
        let node = details.node.ok_or_else(|| IdentityError::Certificate {
            path: certificate.to_owned(),
            source: CertificateError::NoNode,
        })?;
        if !details.valid_now {
            return Err(IdentityError::OutOfDate {
                path: certificate.to_owned(),
                not_before: details.not_before,
                not_after: details.not_after,
            });
        }
        let key_der = read_key(key)?;
        let signing = provider
            .key_provider
            .load_private_key(key_der.clone_key())
            .map_err(|source| IdentityError::Tls { path: key.to_owned(), source })?;
        if CertifiedKey::new(chain.clone(), signing).keys_match().is_err() {
            return Err(IdentityError::KeyMismatch {
                key: key.to_owned(),
                certificate: certificate.to_owned(),
            });
        }
        let identity = Self { node, chain, key: Arc::new(key_der), roots, provider };
        identity.require_own_authority(ca, certificate)?;
        Ok(identity)
    }

    /// The node that this identity proves to be.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    fn require_own_authority(&self, ca: &Path, certificate: &Path) -> Result<(), IdentityError> {
        let verifier = self
            .server_verifier()
            .map_err(|source| IdentityError::Tls { path: ca.to_owned(), source })?;
        verifier
            .verify_server_cert(
                &self.chain[0],
                &self.chain[1..],
                &server_name(&self.node),
                &[],
                UnixTime::now(),
            )
            .map_err(|source| IdentityError::OtherAuthority {
                certificate: certificate.to_owned(),
                ca: ca.to_owned(),
                source,
            })?;
        Ok(())
    }

    fn server_verifier(&self) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        WebPkiServerVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    /// TLS for dialling peers that speak `alpn`.
    pub(crate) fn client(&self, alpn: &[u8]) -> Result<QuicClientConfig, rustls::Error> {
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(self.server_verifier()?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_owned()];
        // A resumed handshake would not show the certificate again.
        config.resumption = rustls::client::Resumption::disabled();
        QuicClientConfig::try_from(config)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    /// TLS for accepting peers that speak `alpn`.
    pub(crate) fn server(&self, alpn: &[u8]) -> Result<QuicServerConfig, rustls::Error> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_owned()];
        config.send_tls13_tickets = 0;
        QuicServerConfig::try_from(config)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    /// A secret that stays the same over restarts, for `purpose`.
    pub(crate) fn secret(&self, purpose: &str) -> [u8; 32] {
        let context = format!("romulus transport 2026-11 {purpose}");
        blake3::derive_key(&context, self.key.secret_der())
    }
}

/// The name that TLS checks in the certificate of `node`.
pub(crate) fn dns_name(node: &NodeId) -> String {
    format!("{node}.{DOMAIN}")
}

fn server_name(node: &NodeId) -> ServerName<'static> {
    ServerName::try_from(dns_name(node)).expect("a node's name is a DNS label")
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let fail =
        |source| IdentityError::NotPem { path: path.to_owned(), expected: "certificate", source };
    let bytes = read(path)?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(fail)?;
    if chain.is_empty() { Err(fail(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn read_roots(path: &Path) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(path)? {
        let details = details_of(&certificate, path)?;
        if !details.valid_now {
            return Err(IdentityError::OutOfDate {
                path: path.to_owned(),
                not_before: details.not_before,
                not_after: details.not_after,
            });
        }
        roots
            .add(certificate)
            .map_err(|source| IdentityError::Tls { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let unreadable = |source| IdentityError::Unreadable { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| IdentityError::NotPem {
        path: path.to_owned(),
        expected: "private key",
        source,
    })
}

fn details_of(
    certificate: &CertificateDer<'_>,
    path: &Path,
) -> Result<CertificateDetails, IdentityError> {
    CertificateDetails::parse(certificate)
        .map_err(|source| IdentityError::Certificate { path: path.to_owned(), source })
}

pub(crate) use certificate::node_of;
