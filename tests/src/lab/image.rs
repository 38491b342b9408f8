//! What machines boot from: initial file systems and the project's disk.
//!
//! Initial file systems are kept in the cache under a name that says what they
//! were made of; the disk is made anew for every lab, because it has the
//! project's binary on it.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use thiserror::Error;

use super::{
    kernel::Kernel,
    packages::{Package, PackageError},
    program::{self, Program},
    tool::{CPIO, MKSQUASHFS, STRIP, ToolError},
};

const HOST_INIT: &str = include_str!("host-init.sh");
const GUEST_INIT: &str = include_str!("guest-init.sh");
/// What a lab's machine needs: its devices, the project's disk, KVM, a bridge
/// with a tap, and what a rehearsal in it makes its networks of.
const HOST_MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "squashfs",
    "kvm-amd",
    "tun",
    "bridge",
    "veth",
];
/// What the protected guest needs, on virtio-mmio or on PCI.
const GUEST_MODULES: [&str; 5] =
    ["virtio_mmio", "virtio_pci", "virtio_net", "virtio_blk", "virtio_rng"];

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A package is not as expected.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A library is missing.
    #[error("{program} needs {library}, which is in none of the packages that it depends on")]
    Library {
        /// Who needs it.
        program: String,
        /// Its name.
        library: String,
    },
    /// Files.
    #[error("cannot {action}: {source}: is there room and permission?")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
    let action = action.into();
    move |source| ImageError::System { action, source }
}

/// Makes images, and keeps those that will be the same again.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    busybox: Package,
}

impl Images {
    /// Images in `cache`, with the shell and tools of `busybox`.
    ///
    /// # Errors
    ///
    /// [`ImageError::System`]
    pub fn open(cache: &Path, busybox: Package) -> Result<Self, ImageError> {
        let folder = cache.join("images");
        fs::create_dir_all(&folder).map_err(system("make the images' folder"))?;
        Ok(Self { folder, busybox })
    }

    /// What a lab's machine boots into.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn host(&self, kernel: &Kernel) -> Result<PathBuf, ImageError> {
        let parts = [HOST_INIT.to_owned(), HOST_MODULES.join(" ")];
        self.kept("host", kernel, &parts, |tree| {
            self.base(tree, kernel, HOST_INIT, &HOST_MODULES)?;
            tree.link("/lab/lib/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2")?;
            tree.link("/lab/bin/romulus", "bin/romulus")?;
            tree.folders(&["lab"])
        })
    }

    /// What the protected guest boots into: `redis` is its server's packages,
    /// libraries included.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn guest(&self, kernel: &Kernel, redis: &[Package]) -> Result<PathBuf, ImageError> {
        let mut parts = vec![GUEST_INIT.to_owned(), GUEST_MODULES.join(" ")];
        parts.extend(redis.iter().map(Package::id));
        self.kept("guest", kernel, &parts, |tree| {
            self.base(tree, kernel, GUEST_INIT, &GUEST_MODULES)?;
            // Debian's server is a link from another package to this program,
            // which asks its own name what it shall be.
            let server = Program::in_packages(redis, "usr/bin/redis-check-rdb")?;
            tree.copy(&server.file, "bin/redis-server")?;
            tree.copy(&server.loader, program::LOADER)?;
            for library in &server.libraries {
                tree.copy(library, &format!("lib/x86_64-linux-gnu/{}", program::name(library)))?;
            }
            Ok(())
        })
    }

    /// A read-only disk with `romulus` in `bin`, its libraries and the loader
    /// in `lib`, and the content of `folder`. Written to `disk`.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn disk(&self, romulus: &Path, folder: &Path, disk: &Path) -> Result<(), ImageError> {
        let program = Program::of_this_machine(romulus)?;
        let tree = Tree::new(&self.folder)?;
        tree.folders(&["bin", "lib"])?;
        let stripped = tree.root().join("bin/romulus");
        STRIP.run(&["-o".as_ref(), stripped.as_os_str(), romulus.as_os_str()])?;
        for library in program.libraries.iter().chain([&program.loader]) {
            tree.copy(library, &format!("lib/{}", program::name(library)))?;
        }
        let sources = [tree.root(), folder];
        let options = ["-comp", "lz4", "-noappend", "-quiet", "-no-progress", "-all-root"];
        // Of several sources, the folders' contents are what is at the root.
        let mut command = MKSQUASHFS.command();
        for source in sources {
            for entry in fs::read_dir(source).map_err(system("list the disk's content"))? {
                command.arg(entry.map_err(system("list the disk's content"))?.path());
            }
        }
        command.arg(disk).args(options);
        MKSQUASHFS.finish(&mut command)?;
        Ok(())
    }

    /// The initial file system made of `kernel` and `parts`, from the cache or
    /// made with `fill`.
    fn kept(
        &self,
        what: &str,
        kernel: &Kernel,
        parts: &[String],
        fill: impl FnOnce(&Tree) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let mut digest = blake3::Hasher::new();
        for part in parts.iter().chain([&self.busybox.id(), &kernel.package.id()]) {
            digest.update(&part.len().to_le_bytes());
            digest.update(part.as_bytes());
        }
        let digest = digest.finalize().to_hex();
        let file = self.folder.join(format!("{what}-{}-{}.cpio", kernel.release, &digest[..16]));
        if file.exists() {
            return Ok(file);
        }
        let tree = Tree::new(&self.folder)?;
        fill(&tree)?;
        tree.archive(&file)?;
        Ok(file)
    }

    /// A shell, its tools, the modules, and `init`.
    fn base(
        &self,
        tree: &Tree,
        kernel: &Kernel,
        init: &str,
        modules: &[&str],
    ) -> Result<(), ImageError> {
        tree.folders(&["bin", "dev", "lib", "lib64", "modules", "proc", "run", "sys", "tmp"])?;
        let busybox = self.busybox.file("bin/busybox")?;
        tree.copy(&busybox, "bin/busybox")?;
        for applet in program::applets(&busybox)?.iter().filter(|applet| *applet != "busybox") {
            tree.link("busybox", &format!("bin/{applet}"))?;
        }
        let modules = kernel.modules(modules)?;
        let order: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        tree.write("modules/order", order.join("\n").as_bytes(), 0o644)?;
        for module in &modules {
            tree.write(&format!("modules/{}.ko", module.name), &module.bytes, 0o644)?;
        }
        tree.write("init", init.as_bytes(), 0o755)
    }
}

/// A file system in the making, in a folder that goes with it.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(beside: &Path) -> Result<Self, ImageError> {
        let folder = tempfile::Builder::new().prefix("tree-").tempdir_in(beside);
        Ok(Self(folder.map_err(system("make a folder for an image"))?))
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    /// The place of `path`, whose folder is made if need be.
    fn place(&self, path: &str) -> Result<PathBuf, ImageError> {
        let place = self.root().join(path);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).map_err(system(format!("make the folder of {path}")))?;
        }
        Ok(place)
    }

    fn folders(&self, paths: &[&str]) -> Result<(), ImageError> {
        for path in paths {
            fs::create_dir_all(self.root().join(path)).map_err(system(format!("make {path}")))?;
        }
        Ok(())
    }

    fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), ImageError> {
        let place = self.place(path)?;
        fs::write(&place, bytes).map_err(system(format!("write {path}")))?;
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(&place, mode).map_err(system(format!("set the mode of {path}")))
    }

    fn copy(&self, from: &Path, path: &str) -> Result<(), ImageError> {
        let place = self.place(path)?;
        fs::copy(from, place).map_err(system(format!("copy {}", from.display())))?;
        Ok(())
    }

    fn link(&self, target: &str, path: &str) -> Result<(), ImageError> {
        symlink(target, self.place(path)?).map_err(system(format!("link {path}")))
    }

    /// Packs it as the kernel's buffer format has it (newc). `file` is there
    /// whole or not at all.
    fn archive(&self, file: &Path) -> Result<(), ImageError> {
        let mut names = String::from(".\n");
        list(self.root(), Path::new("."), &mut names)?;
        let packed = self.root().with_extension("cpio");
        let output = File::create(&packed).map_err(system("make an archive"))?;
        let mut command = CPIO.command();
        command.args(["--quiet", "-o", "-H", "newc", "-R", "0:0"]).current_dir(self.root());
        command.stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(system("run cpio"))?;
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(names.as_bytes()).map_err(system("tell cpio what to pack"))?;
        drop(stdin);
        let output = child.wait_with_output().map_err(system("wait for cpio"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ToolError::Failed { command: "cpio -o".to_owned(), said }.into());
        }
        fs::rename(&packed, file).map_err(system("keep an archive"))
    }
}

/// Every path below `folder`, each after the folder that it is in.
fn list(root: &Path, folder: &Path, names: &mut String) -> Result<(), ImageError> {
    let entries = fs::read_dir(root.join(folder)).map_err(system("list an image's files"))?;
    let mut entries: Vec<_> =
        entries.collect::<io::Result<_>>().map_err(system("list an image's files"))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = folder.join(entry.file_name());
        names.push_str(&path.to_string_lossy());
        names.push('\n');
        if entry.file_type().map_err(system("look at a file"))?.is_dir() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}
