//! A stock kernel: its file, which release it is, and where its modules are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{ImageError, read};

/// Linux `Documentation/arch/x86/boot.rst`: the setup header's magic, and the
/// field that points to the release, less [`VERSION_FROM`].
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
const VERSION_AT: usize = 0x20e;
const VERSION_FROM: usize = 0x200;

/// A bzImage.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) path: PathBuf,
    /// As `uname -r` says.
    pub(super) release: String,
    /// The folder of its modules, if there is one.
    pub(super) modules: Option<PathBuf>,
}

impl Kernel {
    /// The kernel that this host runs.
    pub(super) fn of_this_host() -> Result<Self, ImageError> {
        let own = Path::new("/proc/sys/kernel/osrelease");
        let release = String::from_utf8_lossy(&read(own)?).trim().to_owned();
        let places =
            [format!("/boot/vmlinuz-{release}"), format!("/lib/modules/{release}/vmlinuz")];
        let tried = places.map(PathBuf::from);
        match tried.iter().find(|path| path.exists()) {
            Some(path) => Self::read(path),
            None => Err(ImageError::NoKernel { tried: tried.to_vec() }),
        }
    }

    /// The kernel in the file at `path`.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        if !path.exists() {
            return Err(ImageError::NoKernel { tried: vec![path.to_owned()] });
        }
        let release = release(&read(path)?);
        let release = release.ok_or_else(|| ImageError::NotBzImage { path: path.to_owned() })?;
        // The file may be a link to where it was installed.
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let modules = module_folders(&real, &release).into_iter().find(|folder| folder.is_dir());
        Ok(Self { path: real, release, modules })
    }
}

/// Where modules may be: on this host; as in the package that the kernel came
/// with, two folders up; or beside the kernel.
fn module_folders(kernel: &Path, release: &str) -> Vec<PathBuf> {
    let installed = Path::new("/lib/modules").join(release);
    let unpacked = kernel.ancestors().nth(2).map(|root| root.join("lib/modules").join(release));
    let beside = kernel.parent().map(|folder| folder.join(release));
    [installed].into_iter().chain(unpacked).chain(beside).collect()
}

/// The release that a bzImage names; the text goes on with who built it.
fn release(file: &[u8]) -> Option<String> {
    if file.get(MAGIC_AT..MAGIC_AT + MAGIC.len())? != MAGIC {
        return None;
    }
    let pointer = file.get(VERSION_AT..VERSION_AT + 2)?.try_into().ok()?;
    let text = file.get(usize::from(u16::from_le_bytes(pointer)) + VERSION_FROM..)?;
    let end = text.iter().position(|byte| b" \0".contains(byte))?;
    let release = std::str::from_utf8(&text[..end]).ok()?;
    let named = release.starts_with(|first: char| first.is_ascii_digit()) && !release.contains('/');
    named.then(|| release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(version: &str) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        file[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        file[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        file
    }

    #[test]
    fn a_kernel_says_which_it_is() {
        let text = "6.1.0-30-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP\0";
        assert_eq!(release(&bzimage(text)).unwrap(), "6.1.0-30-cloud-amd64");
        assert_eq!(release(&bzimage("../../etc #1\0")), None);
        let mut other = bzimage(text);
        other[MAGIC_AT] = 0;
        for file in [&other[..], b"", &bzimage(text)[..0x210]] {
            assert_eq!(release(file), None);
        }
    }

    #[test]
    fn modules_are_found_in_the_kernels_own_package() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("boot/vmlinuz-6.99.0-test");
        fs::create_dir_all(kernel.parent().unwrap()).unwrap();
        fs::write(&kernel, bzimage("6.99.0-test #1\0")).unwrap();
        assert_eq!(Kernel::read(&kernel).unwrap().modules, None);
        let modules = folder.path().join("lib/modules/6.99.0-test");
        fs::create_dir_all(&modules).unwrap();
        let found = Kernel::read(&kernel).unwrap().modules.unwrap();
        assert_eq!(found, fs::canonicalize(modules).unwrap());
    }

    #[test]
    fn what_is_no_kernel_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        let told = Kernel::read(&path).unwrap_err().to_string();
        assert!(told.contains("vmlinux") && told.contains("--kernel"), "{told}");
        fs::write(&path, b"\x7fELF").unwrap();
        let told = Kernel::read(&path).unwrap_err().to_string();
        assert!(told.contains("no bzImage") && told.contains("--kernel"), "{told}");
    }
}
