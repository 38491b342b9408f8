//! What the Linux guest boots: a stock kernel, and an initramfs that is made
//! of this program.
//!
//! ```text
//!   /init                     this program, as much of it as is loaded
//!   /lib64, /lib → lib64      its loader and its libraries
//!   /modules/00-virtio.ko …   what the kernel needs for its devices, in order
//!   /dev/console, and folders for what is mounted
//! ```

mod archive;
mod kernel;
pub mod modules;
mod program;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use self::{
    archive::Archive,
    kernel::Kernel,
    modules::{Module, Modules},
    program::Program,
};

/// What the guest cannot do without, and what is welcome.
const MODULES_NEEDED: [&str; 2] = ["virtio_mmio", "virtio_net"];
const MODULES_WELCOME: [&str; 2] = ["virtio_rng", "pvpanic_mmio"];
const PROGRAM: u32 = 0o755;
const FILE: u32 = 0o644;

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// There is no kernel where it should be.
    #[error("no kernel at {}: name a bzImage with --kernel", tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or "))]
    NoKernel {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// The kernel is none that says what it is.
    #[error("{} is no bzImage: name one (`vmlinuz`) with --kernel", path.display())]
    NotBzImage {
        /// Which file.
        path: PathBuf,
    },
    /// The kernel lacks a driver.
    #[error("Linux {release} has no {module}, neither built in nor in {}: name another kernel with --kernel", folder.display())]
    NoModule {
        /// Which kernel.
        release: String,
        /// The driver.
        module: String,
        /// Where modules are.
        folder: PathBuf,
    },
    /// A module is packed in a way that is not known.
    #[error("{} is packed in an unknown way: unpack it, or name another kernel with --kernel", path.display())]
    Packed {
        /// Which file.
        path: PathBuf,
    },
    /// A module or a program is no sound ELF file.
    #[error("{} is damaged ({reason}): install it again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In which way.
        reason: String,
    },
    /// This program has its loader elsewhere than programs of Linux have.
    #[error("this program's loader is {loader}: build it for x86_64-unknown-linux-gnu")]
    Loader {
        /// Where.
        loader: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}: check permissions and room", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A kernel and its initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// What `uname -r` says of the kernel.
    pub release: String,
}

impl GuestImage {
    /// Makes the initramfs for `kernel`, or for this host's own, in `folder`.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn make(kernel: Option<&Path>, folder: &Path) -> Result<Self, ImageError> {
        let kernel = match kernel {
            Some(path) => Kernel::read(path)?,
            None => Kernel::of_this_host()?,
        };
        let modules = modules(&kernel)?;
        let initrd = folder.join("initramfs.cpio");
        write(&initrd, &initramfs(&Program::own()?, &modules))?;
        Ok(Self { kernel: kernel.path, initrd, release: kernel.release })
    }

    /// The guest's command line, with what `parameters` tell the probe.
    #[must_use]
    pub fn cmdline(parameters: &str) -> String {
        format!("console=ttyS0 quiet panic=-1 {parameters} -- internal linux-probe")
    }
}

/// The modules of `kernel` that the guest loads. A kernel without a folder of
/// modules is taken to have everything built in.
fn modules(kernel: &Kernel) -> Result<Vec<Module>, ImageError> {
    let Some(folder) = &kernel.modules else { return Ok(Vec::new()) };
    let modules = Modules::open(&kernel.release, folder)?;
    let welcome = MODULES_WELCOME.into_iter().filter(|name| modules.has(name));
    modules.in_order(MODULES_NEEDED.into_iter().chain(welcome))
}

fn initramfs(program: &Program, modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::new();
    for folder in ["dev", "lib64", "modules", "proc", "sys"] {
        archive.folder(folder);
    }
    archive.console("dev/console");
    archive.link("lib", "lib64");
    archive.file("init", PROGRAM, &program.bytes);
    for (name, bytes) in &program.libraries {
        archive.file(&format!("lib64/{name}"), PROGRAM, bytes);
    }
    for (index, module) in modules.iter().enumerate() {
        archive.file(&format!("modules/{index:02}-{}.ko", module.name), FILE, &module.bytes);
    }
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let error = |source| ImageError::File { action: "read", path: path.to_owned(), source };
    fs::read(path).map_err(error)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let error = |source| ImageError::File { action: "write", path: path.to_owned(), source };
    fs::write(path, bytes).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    fn unpacked(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let (mut rest, mut files) = (bytes, BTreeMap::new());
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return files;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            files.insert(name, (mode, content));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_initramfs_has_this_program_and_all_that_it_needs() {
        let program = Program::own().unwrap();
        let module =
            |name: &str| Module { name: name.into(), file: name.into(), bytes: name.into() };
        let files = unpacked(&initramfs(&program, &[module("virtio"), module("virtio_mmio")]));
        assert_eq!(files["init"].0, 0o100_755);
        assert!(files["init"].1.starts_with(b"\x7fELF"));
        assert_eq!(files["dev/console"].0, 0o020_600);
        assert_eq!(files["lib"], (0o120_777, b"lib64".to_vec()));
        assert_eq!(files["modules/01-virtio_mmio.ko"].1, b"virtio_mmio");
        for library in ["ld-linux-x86-64.so.2", "libc.so.6"] {
            let (mode, bytes) = &files[&format!("lib64/{library}")];
            assert!(*mode == 0o100_755 && bytes.starts_with(b"\x7fELF"), "{library}");
        }
        // What a guest of 64 MiB could not unpack is no use.
        assert!(files["init"].1.len() < 40 << 20, "{} bytes", files["init"].1.len());
    }

    #[test]
    fn the_program_in_the_initramfs_runs() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let program = Program::own().unwrap();
        for (name, bytes) in program.libraries.iter().chain([&("init".into(), program.bytes)]) {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(PROGRAM)).unwrap();
        }
        // Its own loader, with these libraries and no others.
        let output = std::process::Command::new(folder.path().join("ld-linux-x86-64.so.2"))
            .args(["--inhibit-cache", "--library-path"])
            .arg(folder.path())
            .arg(folder.path().join("init"))
            .args(["--list", "--format", "terse", "the_program_in_the_initramfs"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("the_program_in_the_initramfs_runs: test"), "{output:?}");
    }

    #[test]
    fn init_is_told_what_to_do_behind_the_parameters() {
        let line = GuestImage::cmdline("probe.vcpus=2 probe.ip=10.0.0.2/24");
        assert!(line.ends_with("probe.ip=10.0.0.2/24 -- internal linux-probe"), "{line}");
        assert!(romulus_probe::Params::parse(&line).is_ok());
    }
}
