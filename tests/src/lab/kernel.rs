//! A stock kernel: its image, and its modules in the order in which they load.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    packages::{Package, PackageError},
    tool::{ToolError, XZ},
};

/// A kernel out of a Debian package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The package that it is from.
    pub package: Package,
    /// Module files by name, `_` for `-`.
    modules: BTreeMap<String, PathBuf>,
    /// Names of what other kernels have as modules, `_` for `-`.
    builtin: BTreeSet<String>,
}

/// A loadable module, not compressed.
#[derive(Debug)]
pub struct Module {
    /// Its name, `_` for `-`.
    pub name: String,
    /// Its ELF file.
    pub bytes: Vec<u8>,
}

impl Kernel {
    /// The kernel in `package`.
    ///
    /// # Errors
    ///
    /// [`PackageError::Content`] if it has none.
    pub fn new(package: Package) -> Result<Self, PackageError> {
        let lacks =
            |what: &str| PackageError::Content { package: package.id(), what: what.to_owned() };
        let folder = package.file("lib/modules")?;
        let mut releases = entries(&folder);
        let release = releases.pop().ok_or_else(|| lacks("modules"))?;
        let release = release.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let image = package.file(&format!("boot/vmlinuz-{release}"))?;
        let folder = folder.join(&release);
        let list = fs::read_to_string(folder.join("modules.builtin"))
            .map_err(|_| lacks("list of what is built in"))?;
        let mut modules = BTreeMap::new();
        collect(&folder.join("kernel"), &mut modules);
        let builtin = list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { release, image, package, modules, builtin })
    }

    /// The modules `wanted` and what they need, each after what it needs.
    /// What is built in is left out.
    ///
    /// # Errors
    ///
    /// [`PackageError`] if one is missing or broken.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<Module>, PackageError> {
        let (mut seen, mut ordered) = (BTreeSet::new(), Vec::new());
        for name in wanted {
            self.add(&canonical(name), &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<Module>,
    ) -> Result<(), PackageError> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let lacks = |what: String| PackageError::Content { package: self.package.id(), what };
        let file = self.modules.get(name).ok_or_else(|| lacks(format!("module {name}")))?;
        let bytes = read_module(file).map_err(|error| lacks(format!("module {name} ({error})")))?;
        for needed in needs(&bytes) {
            self.add(&needed, seen, ordered)?;
        }
        ordered.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn collect(folder: &Path, modules: &mut BTreeMap<String, PathBuf>) {
    for path in entries(folder) {
        if path.is_dir() {
            collect(&path, modules);
        } else if let Some(name) = module_name(&path) {
            modules.insert(name, path);
        }
    }
}

/// `kvm_amd` of `…/kvm-amd.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let (name, ending) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(ending, "" | ".xz").then(|| canonical(name))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read_module(file: &Path) -> Result<Vec<u8>, ToolError> {
    if file.extension().is_some_and(|ending| ending == "xz") {
        return XZ.run(&["--decompress".as_ref(), "--stdout".as_ref(), file.as_os_str()]);
    }
    fs::read(file).map_err(|error| ToolError::Failed {
        command: format!("read {}", file.display()),
        said: error.to_string(),
    })
}

/// The modules that a module names in its section `.modinfo`: strings of the
/// form `key=value`, each ended by a zero byte.
fn needs(module: &[u8]) -> Vec<String> {
    let key = b"depends=";
    let mut strings = module.split(|byte| *byte == 0);
    let Some(line) = strings.find(|line| line.starts_with(key)) else { return Vec::new() };
    let names = String::from_utf8_lossy(&line[key.len()..]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(folder: &Path) -> Kernel {
        let modules = folder.join("lib/modules/6.0/kernel/net");
        fs::create_dir_all(&modules).unwrap();
        fs::create_dir_all(folder.join("boot")).unwrap();
        fs::write(folder.join("boot/vmlinuz-6.0"), "").unwrap();
        let builtin = "kernel/lib/virtio_ring.ko\n";
        fs::write(folder.join("lib/modules/6.0/modules.builtin"), builtin).unwrap();
        let module = |name: &str, needs: &str| {
            let info = format!("ELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(modules.join(format!("{name}.ko")), info).unwrap();
        };
        module("virtio_net", "net-failover,virtio_ring");
        module("net-failover", "failover");
        module("failover", "");
        let package = Package { name: "linux".into(), version: "1".into(), folder: folder.into() };
        Kernel::new(package).unwrap()
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = kernel(folder.path());
        assert_eq!(kernel.release, "6.0");
        let modules = kernel.modules(&["virtio-ring", "virtio_net", "failover"]).unwrap();
        let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let said = kernel(folder.path()).modules(&["kvm-amd"]).unwrap_err().to_string();
        assert!(said.contains("kvm_amd") && said.contains("linux_1"), "{said}");
    }
}
