//! The console's log: two files, used in turn.
//!
//! Invariant: together they have at most so many bytes as are allowed, whatever
//! the guest says; the newest half of those is always there. Both are opened
//! before the jail, which lets nobody rename them, so each is emptied when its
//! turn comes.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The files, open. Copies share them, and must not write at the same time.
#[derive(Debug)]
pub(super) struct ConsoleLog {
    files: [File; 2],
    /// Which of them is written.
    current: usize,
    /// How much is in that one.
    bytes: u64,
    /// Of each.
    bytes_max: u64,
}

impl ConsoleLog {
    /// Opens `path` and `path.1`, which may have `bytes_max` together, and goes
    /// on where the last process stopped.
    pub(super) fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let open = |path: &Path| {
            // What a guest says may be a secret.
            File::options().create(true).append(true).mode(0o600).open(path)
        };
        Self::resume([open(path)?, open(&second(path))?], bytes_max / 2)
    }

    /// The same files, for another guest.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let [first, second] = &self.files;
        Self::resume([first.try_clone()?, second.try_clone()?], self.bytes_max)
    }

    fn resume(files: [File; 2], bytes_max: u64) -> io::Result<Self> {
        let [first, second] = [files[0].metadata()?, files[1].metadata()?];
        let current = usize::from(second.len() > 0 && second.modified()? > first.modified()?);
        let bytes = [first, second][current].len();
        Ok(Self { files, current, bytes, bytes_max })
    }
}

fn second(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl Write for ConsoleLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes >= self.bytes_max && !bytes.is_empty() {
            let next = 1 - self.current;
            self.files[next].set_len(0)?;
            (self.current, self.bytes) = (next, 0);
        }
        let room = usize::try_from(self.bytes_max - self.bytes).unwrap_or(usize::MAX);
        let written = self.files[self.current].write(&bytes[..bytes.len().min(room)])?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.files[self.current].flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_guest_that_says_much_fills_two_files_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.console");
        let read = || [&path, &second(&path)].map(|path| fs::read_to_string(path).unwrap());
        let mut log = ConsoleLog::open(&path, 20).unwrap();
        log.write_all(b"0123").unwrap();
        assert_eq!(read(), ["0123", ""]);
        log.write_all(b"456789abcdefghijKLM").unwrap();
        assert_eq!(read(), ["KLM", "abcdefghij"]);
        // Who comes next, in this process or in another one, goes on.
        log.try_clone().unwrap().write_all(b"NOPQRST").unwrap();
        assert_eq!(read(), ["KLMNOPQRST", "abcdefghij"]);
        let mut log = ConsoleLog::open(&path, 20).unwrap();
        log.write_all(b"u").unwrap();
        assert_eq!(read(), ["KLMNOPQRST", "u"]);
        let second = fs::metadata(second(&path)).unwrap();
        assert_eq!(second.permissions().mode() & 0o777, 0o600);
        // A smaller bound counts from the next file on.
        let mut log = ConsoleLog::open(&path, 8).unwrap();
        log.write_all(&[b'-'; 1000]).unwrap();
        assert!(read().iter().all(|text| text.len() <= 10), "{:?}", read());
    }
}
