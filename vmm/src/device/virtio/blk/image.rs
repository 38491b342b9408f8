//! A disk's image: a file or block device of the host, as raw sectors.
//!
//! An image that guests may write is locked for this process; one that they
//! only read may be shared with others that do the same (`flock(2)`).
//!
//! **Comparing images.** Both hosts of a pair must show the guest the same
//! disk. [`Image::digest`] says what there is to compare: all bytes, or samples
//! of a large image, and which of the two. Samples tell apart images that were
//! built or written separately (superblocks and tables differ); they do not
//! find one changed block between them.

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
};

use thiserror::Error;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

/// Bytes of a sector, whatever the host's disk has (VIRTIO 1.2, section 5.2.2).
pub const SECTOR_BYTES: u64 = 512;
/// Largest image of which all bytes are compared if nothing else is said.
pub const DIGEST_ALL_BYTES_MAX: u64 = 1 << 30;
/// Bytes of a sample.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Samples: the first, the last, and others evenly between them.
const SAMPLES: u64 = 1024;

/// Why an image is of no use.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("disk image {} cannot be opened for {access}: check its path and permissions", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What it was opened for.
        access: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("disk image {} is neither a file nor a block device: name a raw image", .0.display())]
    Kind(PathBuf),
    /// It is no whole number of sectors, or none at all.
    #[error(
        "disk image {} has {bytes} bytes, which are no whole sectors: make it longer with `truncate -s %512`",
        path.display()
    )]
    Size {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another process has it.
    #[error("disk image {} is in use by another process: stop that process, or name another image", .0.display())]
    InUse(PathBuf),
    /// The host's disk failed.
    #[error("disk image {} cannot be read: check the host's disk", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// How much of an image is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coverage {
    /// All of it up to [`DIGEST_ALL_BYTES_MAX`], else samples.
    #[default]
    Auto,
    /// All of it.
    All,
    /// 64 MiB of it.
    Samples,
}

/// What there is to compare of an image. Its text is equal for equal images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageDigest {
    bytes: u64,
    all: bool,
    blake3: [u8; 32],
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.all { "all" } else { "samples" };
        write!(f, "{} bytes, blake3 of {of} ", self.bytes)?;
        self.blake3[..16].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    bytes: u64,
    read_only: bool,
}

impl Image {
    /// Opens the image at `path`.
    ///
    /// # Errors
    ///
    /// [`ImageError`], saying what is wrong with it.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let access = if read_only { "reading" } else { "reading and writing" };
        let open = |source| ImageError::Open { path: path.to_owned(), access, source };
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(open)?;
        let kind = file.metadata().map_err(open)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::Kind(path.to_owned()));
        }
        // A block device has no size among its metadata.
        let bytes = file.seek(SeekFrom::End(0)).map_err(open)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(ImageError::Size { path: path.to_owned(), bytes });
        }
        lock(&file, path, read_only)?;
        Ok(Self { file, path: path.to_owned(), bytes, read_only })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How large it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether guests may only read it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What there is to compare with another host's image.
    ///
    /// # Errors
    ///
    /// [`ImageError::Read`]
    pub fn digest(&self, coverage: Coverage) -> Result<ImageDigest, ImageError> {
        let all = match coverage {
            Coverage::Auto => self.bytes <= DIGEST_ALL_BYTES_MAX,
            Coverage::All => true,
            Coverage::Samples => false,
        };
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; SAMPLE_BYTES as usize];
        let mut hash = |offset: u64| {
            let len = SAMPLE_BYTES.min(self.bytes - offset) as usize;
            self.read(offset, &mut buffer[..len])?;
            hasher.update(&buffer[..len]);
            Ok(())
        };
        let hashed = if all {
            (0..self.bytes.div_ceil(SAMPLE_BYTES)).try_for_each(|index| hash(index * SAMPLE_BYTES))
        } else {
            samples(self.bytes).try_for_each(hash)
        };
        hashed.map_err(|source| ImageError::Read { path: self.path.clone(), source })?;
        Ok(ImageDigest { bytes: self.bytes, all, blake3: hasher.finalize().into() })
    }

    pub(super) fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, offset)
    }

    pub(super) fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, offset)
    }

    /// Makes what was written survive a loss of power.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the bytes' storage back; they read as zeros.
    ///
    /// # Errors
    ///
    /// Of the kind `Unsupported` where the host's file system cannot.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(|| FallocateMode::PunchHole, offset, len)
    }

    /// Makes bytes zero; if `may_discard`, without storage where that can be.
    pub(super) fn zero(&self, offset: u64, len: u64, may_discard: bool) -> io::Result<()> {
        if may_discard && self.discard(offset, len).is_ok() {
            return Ok(());
        }
        if self.allocate(|| FallocateMode::ZeroRange, offset, len).is_ok() {
            return Ok(());
        }
        let zeros = [0; SAMPLE_BYTES as usize];
        let mut done = 0;
        while done < len {
            let count = (len - done).min(SAMPLE_BYTES);
            self.write(offset + done, &zeros[..count as usize])?;
            done += count;
        }
        Ok(())
    }

    fn allocate(&self, mode: impl Fn() -> FallocateMode, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match fallocate(&self.file, mode(), true, offset, len) {
                Err(error) if error.errno() == libc::EINTR => {}
                done => return done.map_err(io::Error::from),
            }
        }
    }
}

/// Where samples of an image of so many bytes begin.
fn samples(bytes: u64) -> impl Iterator<Item = u64> {
    let count = bytes.div_ceil(SAMPLE_BYTES).min(SAMPLES);
    let last = bytes.saturating_sub(SAMPLE_BYTES);
    (0..count).map(move |index| {
        let share = u128::from(last) * u128::from(index) / u128::from(count.max(2) - 1);
        share as u64
    })
}

fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), ImageError> {
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(ImageError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => {
            tracing::warn!(
                path = %path.display(), %error,
                "this file system has no locks: see that no other process uses the disk image"
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::device::fixture::eventually;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let open = |path: &Path| Image::open(path, true).unwrap_err();
        assert!(matches!(open(Path::new("/nowhere/x")), ImageError::Open { .. }));
        assert!(matches!(open(Path::new("/dev/null")), ImageError::Kind(_)));
        assert!(matches!(open(Path::new("/tmp")), ImageError::Kind(_)));
        for bytes in [0, 511, 513] {
            let odd = file(&vec![1; bytes]);
            let error = open(odd.path());
            assert!(matches!(error, ImageError::Size { bytes: b, .. } if b == bytes as u64));
        }
    }

    #[test]
    fn readers_share_an_image_and_writers_do_not() {
        let file = file(&[7; 1024]);
        let reader = Image::open(file.path(), true).unwrap();
        let other = Image::open(file.path(), true).unwrap();
        assert!(matches!(Image::open(file.path(), false), Err(ImageError::InUse(_))));
        drop((reader, other));
        let mut writer = None;
        // A child process of another test may hold the lock until it has begun.
        eventually("the lock", || {
            writer = Image::open(file.path(), false).ok();
            writer.is_some()
        });
        for read_only in [true, false] {
            assert!(matches!(Image::open(file.path(), read_only), Err(ImageError::InUse(_))));
        }
        drop(writer);
        eventually("the lock", || Image::open(file.path(), true).is_ok());
    }

    #[test]
    fn a_digest_tells_size_content_and_coverage() {
        let of = |bytes: &[u8], coverage| {
            let file = file(bytes);
            Image::open(file.path(), true).unwrap().digest(coverage).unwrap().to_string()
        };
        let mut bytes = vec![3; 1 << 20];
        let all = of(&bytes, Coverage::All);
        assert!(all.starts_with("1048576 bytes, blake3 of all "), "{all}");
        assert_eq!(of(&bytes, Coverage::Auto), all);
        let sampled = of(&bytes, Coverage::Samples);
        assert!(sampled.contains("blake3 of samples"), "{sampled}");
        bytes.extend([3; 512]);
        assert_ne!(of(&bytes, Coverage::All), all);
        bytes.truncate(1 << 20);
        bytes[700_000] = 4;
        assert_ne!(of(&bytes, Coverage::All), all);
        // As small as this, an image is its samples.
        assert_ne!(of(&bytes, Coverage::Samples), sampled);
    }

    #[test]
    fn samples_are_of_both_ends_and_between() {
        for bytes in [512, SAMPLE_BYTES, SAMPLE_BYTES + 512, 100 << 20, 1 << 40] {
            let samples: Vec<u64> = samples(bytes).collect();
            assert_eq!(samples[0], 0, "{bytes}");
            let last = samples.last().unwrap();
            assert_eq!(last + SAMPLE_BYTES.min(bytes), bytes, "{bytes}");
            assert!(samples.len() as u64 <= SAMPLES);
            assert!(samples.is_sorted());
        }
    }

    #[test]
    fn discarded_and_zeroed_bytes_read_as_zeros() {
        let file = file(&[9; 64 << 10]);
        let image = Image::open(file.path(), false).unwrap();
        image.zero(512, 1024, false).unwrap();
        image.zero(8192, 4096, true).unwrap();
        let discarded = image.discard(32 << 10, 8192);
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 64 << 10);
        let zeros = |range: std::ops::Range<usize>| bytes[range].iter().all(|byte| *byte == 0);
        assert!(zeros(512..1536) && zeros(8192..12288));
        assert_eq!((bytes[511], bytes[1536], bytes[8191], bytes[12288]), (9, 9, 9, 9));
        match discarded {
            Ok(()) => assert!(zeros(32 << 10..40 << 10)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
    }
}
