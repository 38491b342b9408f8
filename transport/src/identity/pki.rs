//! Making certificates: one authority per cluster, one certificate per node.
//!
//! ```text
//!   <dir>/ca.pem          goes to every node
//!   <dir>/ca.key          stays where certificates are made        mode 0600
//!   <dir>/<node>.pem      goes to that node
//!   <dir>/<node>.key      goes to that node, and nowhere else      mode 0600
//! ```
//!
//! Nothing is overwritten unless it is asked for: a lost authority key means
//! new certificates for the whole cluster.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use arbiter::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

use super::{CertificateDetails, CertificateError, dns_name};

/// How long an authority is valid unless told otherwise: 10 years, in days.
pub const CA_DAYS: u32 = 3650;
/// How long a node's certificate is valid unless told otherwise: 2 years, in
/// days.
pub const NODE_DAYS: u32 = 730;

const CA_NAME: &str = "ca";
/// Nodes whose clock is behind take a fresh certificate, too.
const BACKDATED: Duration = Duration::hours(1);

/// Why certificates could not be made or read.
#[derive(Debug, Error)]
pub enum PkiError {
    /// The file is there.
    #[error("{path} is already there: remove it, or replace it with `--force`", path = .0.display())]
    Exists(PathBuf),
    /// A file could not be read or written.
    #[error("cannot {action} {path}: check the folder and its permissions", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The authority's files cannot be used.
    #[error("{path} is no authority's: make one with `romulus pki init`", path = .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rcgen::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {name}")]
    Make {
        /// Whose.
        name: String,
        /// What is wrong.
        source: rcgen::Error,
    },
    /// A certificate cannot be read.
    #[error("{path} is no certificate in PEM form", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// A node would take the authority's files.
    #[error("a node cannot be called `{CA_NAME}`: its files would be the authority's")]
    Reserved,
    /// Out of range.
    #[error("{0} days are out of range: use 1 to 36500")]
    Days(u32),
}

/// A certificate and its key, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, in PEM form.
    pub certificate: PathBuf,
    /// The key, in PEM form.
    pub key: PathBuf,
}

impl Files {
    /// The files of the authority in `dir`.
    #[must_use]
    pub fn of_authority(dir: &Path) -> Self {
        Self::named(dir, CA_NAME)
    }

    /// The files of `node` in `dir`.
    #[must_use]
    pub fn of_node(dir: &Path, node: &NodeId) -> Self {
        Self::named(dir, node.as_str())
    }

    fn named(dir: &Path, name: &str) -> Self {
        let file = |ending| dir.join(format!("{name}.{ending}"));
        Self { certificate: file("pem"), key: file("key") }
    }
}

/// Makes an authority in `dir`, which is made if need be, valid for `days`.
///
/// # Errors
///
/// [`PkiError::Exists`] unless `force`, for which the remedy is a new
/// certificate for every node; or another [`PkiError`].
pub fn create_authority(dir: &Path, days: u32, force: bool) -> Result<Files, PkiError> {
    fs::create_dir_all(dir).map_err(|source| PkiError::Io {
        action: "make",
        path: dir.to_owned(),
        source,
    })?;
    let files = Files::of_authority(dir);
    let fail = |source| PkiError::Make { name: CA_NAME.to_owned(), source };
    let key = KeyPair::generate().map_err(fail)?;
    // Authorities of different clusters must differ by name: TLS tells them
    // apart by it, and so do operators.
    let mark = blake3::hash(key.public_key_raw()).to_hex();
    let mut params = parameters(Vec::new(), &format!("Romulus cluster {}", &mark[..8]), days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(fail)?;
    write_pair(&files, &certificate.pem(), &key.serialize_pem(), force)?;
    Ok(files)
}

/// Makes a certificate for `node` with the authority in `dir`, in `dir`, valid
/// for `days`.
///
/// # Errors
///
/// [`PkiError`].
pub fn issue(dir: &Path, node: &NodeId, days: u32, force: bool) -> Result<Files, PkiError> {
    if node.as_str() == CA_NAME {
        return Err(PkiError::Reserved);
    }
    let issuer = load_authority(&Files::of_authority(dir))?;
    let files = Files::of_node(dir, node);
    let fail = |source| PkiError::Make { name: node.to_string(), source };
    let mut params = parameters(vec![dns_name(node)], node.as_str(), days)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().map_err(fail)?;
    let certificate = params.signed_by(&key, &issuer).map_err(fail)?;
    write_pair(&files, &certificate.pem(), &key.serialize_pem(), force)?;
    Ok(files)
}

/// What stands in the certificate at `path`.
///
/// # Errors
///
/// [`PkiError::Io`] or [`PkiError::Certificate`].
pub fn inspect(path: &Path) -> Result<CertificateDetails, PkiError> {
    let bad = |source| PkiError::Certificate { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(|source| PkiError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let der = CertificateDer::from_pem_slice(&bytes)
        .map_err(|error| bad(CertificateError::Malformed(error.to_string())))?;
    CertificateDetails::parse(&der).map_err(bad)
}

/// Every certificate (`*.pem`) in `dir`, by rising file name.
///
/// # Errors
///
/// [`PkiError`] for the first that cannot be read.
pub fn list(dir: &Path) -> Result<Vec<(PathBuf, CertificateDetails)>, PkiError> {
    let fail = |source| PkiError::Io { action: "list", path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|ending| ending == "pem") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().map(|path| inspect(&path).map(|details| (path, details))).collect()
}

fn parameters(names: Vec<String>, subject: &str, days: u32) -> Result<CertificateParams, PkiError> {
    if !(1..=36500).contains(&days) {
        return Err(PkiError::Days(days));
    }
    let fail = |source| PkiError::Make { name: subject.to_owned(), source };
    let mut params = CertificateParams::new(names).map_err(fail)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, subject);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(i64::from(days));
    Ok(params)
}

fn load_authority(files: &Files) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| PkiError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })
    };
    let key = KeyPair::from_pem(&read(&files.key)?)
        .map_err(|source| PkiError::Authority { path: files.key.clone(), source })?;
    Issuer::from_ca_cert_pem(&read(&files.certificate)?, key)
        .map_err(|source| PkiError::Authority { path: files.certificate.clone(), source })
}

fn write_pair(files: &Files, certificate: &str, key: &str, force: bool) -> Result<(), PkiError> {
    for path in [&files.key, &files.certificate] {
        if !force && path.exists() {
            return Err(PkiError::Exists(path.clone()));
        }
    }
    write(&files.key, key, 0o600, force)?;
    write(&files.certificate, certificate, 0o644, force)
}

/// Writes beside `path` and renames, so that a reader sees a whole file and no
/// looser permissions of an older one are kept.
fn write(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), PkiError> {
    let fail = |action| move |source| PkiError::Io { action, path: path.to_owned(), source };
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let _ = fs::remove_file(&staged);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&staged)
        .map_err(fail("make"))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail("write"))?;
    if force {
        return fs::rename(&staged, path).map_err(fail("replace"));
    }
    // A link fails where a rename would overwrite.
    let linked = fs::hard_link(&staged, path);
    let _ = fs::remove_file(&staged);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(PkiError::Exists(path.to_owned()))
        }
        other => other.map_err(fail("write")),
    }
}
