//! The control API's socket: ours alone, and removed only when nobody answers.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use thiserror::Error;
use tokio::net::UnixListener;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("{path} is served by a running process: stop that one first, or set another `control`", path = path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket lies there.
    #[error("{path} exists and is no socket: remove it, or set another `control`", path = path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}: check the folder and its permissions", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound control socket, mode 0600; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    file: SocketFile,
    listener: UnixListener,
}

/// Removes the socket's file when it is dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl ControlSocket {
    /// Binds `path`, making its folder. Needs a tokio runtime.
    ///
    /// The socket is bound under another name, restricted, and then renamed,
    /// so that nobody can connect to it before its mode is set.
    ///
    /// # Errors
    ///
    /// [`SocketError::InUse`] if a process answers on it.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let fail = |action| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        make_folder(path)?;
        refuse_occupied(path)?;
        let staged = staging_name(path);
        let _ = fs::remove_file(&staged);
        let listener = UnixListener::bind(&staged).map_err(fail("bind"))?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&staged, path))
            .map_err(fail("put in place"))?;
        Ok(Self { file: SocketFile(path.to_owned()), listener })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.0
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Makes the folder of the socket `path`, if it is not there.
///
/// # Errors
///
/// [`SocketError::Io`]
pub fn make_folder(path: &Path) -> Result<(), SocketError> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    if folder.is_dir() {
        return Ok(());
    }
    let fail = |source| {
        let (action, path) = ("make the folder of", path.to_owned());
        SocketError::Io { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(fail)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// `.<pid>` appended would lengthen the path beyond what a socket may have.
fn staging_name(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{:x}", std::process::id()))
}

fn refuse_occupied(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Io { action: "look at", path: path.to_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(SocketError::NotASocket { path: path.to_owned() })
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(source) if source.kind() != io::ErrorKind::WouldBlock => {
                Err(SocketError::Io { action: "try", path: path.to_owned(), source })
            }
            // Somebody listens, or has so much to do that connections wait.
            Ok(_) | Err(_) => Err(SocketError::InUse { path: path.to_owned() }),
        },
    }
}
