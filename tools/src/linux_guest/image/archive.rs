//! An initramfs: a cpio archive as Linux unpacks it (`newc`; Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

/// Major and minor number of `/dev/console`.
const CONSOLE: (u32, u32) = (5, 1);

/// An archive in the making, in memory.
#[derive(Debug)]
pub(super) struct Archive(Vec<u8>);

impl Archive {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// A folder; those above it come before it.
    pub(super) fn folder(&mut self, path: &str) {
        self.add(Builder::new(path).mode(0o755).set_mode_file_type(ModeFileType::Directory), &[]);
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.add(Builder::new(path).mode(mode).set_mode_file_type(ModeFileType::Regular), bytes);
    }

    /// A symbolic link to `target`.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        let builder = Builder::new(path).mode(0o777).set_mode_file_type(ModeFileType::Symlink);
        self.add(builder, target.as_bytes());
    }

    /// The device that the first process speaks at.
    pub(super) fn console(&mut self, path: &str) {
        let (major, minor) = CONSOLE;
        let builder = Builder::new(path).mode(0o600).rdev_major(major).rdev_minor(minor);
        self.add(builder.set_mode_file_type(ModeFileType::Char), &[]);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        trailer(self.0).expect(IN_MEMORY)
    }

    fn add(&mut self, builder: Builder, bytes: &[u8]) {
        let size = u32::try_from(bytes.len()).expect("files of a guest are below 4 GiB");
        let write = || -> io::Result<()> {
            let mut writer = builder.write(&mut self.0, size);
            writer.write_all(bytes)?;
            writer.finish().map(drop)
        };
        write().expect(IN_MEMORY);
    }
}

const IN_MEMORY: &str = "memory takes what is written";
