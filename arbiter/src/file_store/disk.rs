//! Where a register file lies, step by step.
//!
//! The steps in which a file is replaced are apart, because a host may die
//! between any two of them; the store's order of steps is what makes it safe.
//! [`OsDisk`] is a folder of this host; the simulator has another disk, whose
//! power fails.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::FileError;

/// A file that is replaced as a whole, by one that is written beside it.
pub trait Disk {
    /// The file, for messages.
    fn path(&self) -> &Path;

    /// The file's length in bytes; `None` if there is no file.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn bytes(&self) -> io::Result<Option<u64>>;

    /// All of the file, which is there.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Begins a new file beside it, in place of one that was left there.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn begin_beside(&mut self) -> io::Result<()>;

    /// Writes all of the new file.
    ///
    /// # Errors
    ///
    /// What the system says: some of it may have been written.
    fn write_beside(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the new file's content durable.
    ///
    /// # Errors
    ///
    /// What the system says: nothing is known of what is durable then.
    fn flush_beside(&mut self) -> io::Result<()>;

    /// Puts the new file in the place of the old one, for every reader at
    /// once, and durably only with the folder.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn rename(&mut self) -> io::Result<()>;

    /// Makes durable which file is in place.
    ///
    /// # Errors
    ///
    /// What the system says: nothing is known of what is durable then.
    fn flush_folder(&mut self) -> io::Result<()>;
}

/// A file in a folder of this host, locked against other arbiters.
#[derive(Debug)]
pub struct OsDisk {
    path: PathBuf,
    beside: Option<File>,
    /// Held for its lock.
    _lock: File,
}

impl OsDisk {
    /// The file at `path`, for this process alone.
    ///
    /// # Errors
    ///
    /// [`FileError::InUse`] if another process has it.
    pub fn lock(path: &Path) -> Result<Self, FileError> {
        Ok(Self { path: path.to_owned(), beside: None, _lock: lock(path)? })
    }

    fn written(&self) -> io::Result<&File> {
        self.beside.as_ref().ok_or_else(|| io::Error::other("no file was begun"))
    }
}

impl Disk for OsDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> io::Result<Option<u64>> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        fs::read(&self.path)
    }

    fn begin_beside(&mut self) -> io::Result<()> {
        self.beside = Some(File::create(beside(&self.path, "new"))?);
        Ok(())
    }

    fn write_beside(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written()?.write_all(bytes)
    }

    fn flush_beside(&mut self) -> io::Result<()> {
        self.written()?.sync_all()
    }

    fn rename(&mut self) -> io::Result<()> {
        fs::rename(beside(&self.path, "new"), &self.path)
    }

    fn flush_folder(&mut self) -> io::Result<()> {
        File::open(folder(&self.path))?.sync_all()
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn lock(path: &Path) -> Result<File, FileError> {
    let lock_path = beside(path, "lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    let file = opened.map_err(|source| FileError::Io {
        action: "open",
        path: lock_path.clone(),
        source,
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(FileError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => {
            Err(FileError::Io { action: "lock", path: lock_path, source })
        }
    }
}
