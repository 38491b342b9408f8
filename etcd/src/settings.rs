//! How an etcd cluster is reached.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use serde::{Serialize, Serializer};
use thiserror::Error;

/// What connecting may take longer than a request: TLS, and a password that
/// etcd checks with bcrypt.
const CONNECT_FACTOR: u32 = 4;
/// etcd closes connections that are probed more often than every 5 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// How an etcd cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// URLs of its members, the nearest first: `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// What the names of all keys begin with.
    pub prefix: String,
    /// Files for `https://`.
    pub tls: Option<TlsFiles>,
    /// Who the arbiter is to etcd, if etcd wants to know.
    pub credentials: Option<Credentials>,
    /// How long a member may take to answer before the next one is asked.
    #[serde(rename = "timeout_ms", serialize_with = "as_millis")]
    pub timeout: Duration,
}

/// PEM files for TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// The authority that issued the members' certificates.
    pub ca: PathBuf,
    /// The arbiter's certificate and key, for members that demand one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A user of etcd's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Credentials {
    /// Its name.
    pub user: String,
    /// A file whose first line is its password.
    pub password_file: PathBuf,
}

/// Why etcd cannot be reached with these settings, whatever it answers.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("cannot read {path}: check the path and its permissions", path = .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A secret is none.
    #[error("{path} can be read by others than its owner: chmod 600 {path}", path = .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// Endpoints or certificates are not what they should be.
    #[error(
        "etcd's endpoints or TLS files cannot be used ({said}): endpoints are URLs, the files PEM"
    )]
    Malformed {
        /// What the client said.
        said: String,
    },
}

impl Settings {
    /// What the client needs to connect.
    pub(crate) fn options(&self) -> Result<ConnectOptions, SettingsError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout())
            .with_keep_alive(PROBE_INTERVAL, self.connect_timeout())
            .with_auto_token_refresh(true)
            // A member without a leader says so at once instead of waiting for one.
            .with_require_leader(true);
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.options()?);
        }
        if let Some(Credentials { user, password_file }) = &self.credentials {
            let text = read_secret(password_file)?;
            let text = String::from_utf8_lossy(&text);
            options = options.with_user(user, text.lines().next().unwrap_or_default());
        }
        Ok(options)
    }

    /// How long connecting may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.timeout * CONNECT_FACTOR
    }
}

impl TlsFiles {
    fn options(&self) -> Result<TlsOptions, SettingsError> {
        let authority = Certificate::from_pem(read(&self.ca)?);
        let mut options = TlsOptions::new().ca_certificate(authority);
        if let Some((certificate, key)) = &self.identity {
            options = options.identity(Identity::from_pem(read(certificate)?, read_secret(key)?));
        }
        Ok(options)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SettingsError> {
    fs::read(path).map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })
}

fn read_secret(path: &Path) -> Result<Vec<u8>, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SettingsError::Exposed { path: path.to_owned() });
    }
    read(path)
}

fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_millis())
}
