//! A stock kernel: its image, and its modules in the order in which they load.

use std::{
    fs,
    path::{Path, PathBuf},
};

use romulus::linux_guest::image::{
    ImageError,
    modules::{Module, Modules},
};

use super::packages::{Package, PackageError};

/// A kernel out of a Debian package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The package that it is from.
    pub package: Package,
    modules: Modules,
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
        let modules = Modules::open(&release, &folder.join(&release))
            .map_err(|error| lacking(&package, &error))?;
        Ok(Self { release, image, package, modules })
    }

    /// The modules `wanted` and what they need, each after what it needs.
    /// What is built in is left out.
    ///
    /// # Errors
    ///
    /// [`PackageError`] if one is missing or broken.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<Module>, PackageError> {
        let wanted = wanted.iter().copied();
        self.modules.in_order(wanted).map_err(|error| lacking(&self.package, &error))
    }
}

fn lacking(package: &Package, error: &ImageError) -> PackageError {
    PackageError::Content { package: package.id(), what: error.to_string() }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("lib/modules/6.0");
        fs::create_dir_all(modules.join("kernel")).unwrap();
        fs::create_dir_all(folder.path().join("boot")).unwrap();
        fs::write(folder.path().join("boot/vmlinuz-6.0"), "").unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/lib/virtio_ring.ko\n").unwrap();
        let (name, version) = ("linux".to_owned(), "1".to_owned());
        let kernel = Kernel::new(Package { name, version, folder: folder.path().into() }).unwrap();
        assert_eq!(kernel.release, "6.0");
        assert!(kernel.modules(&["virtio-ring"]).unwrap().is_empty(), "it is built in");
        let said = kernel.modules(&["kvm-amd"]).unwrap_err().to_string();
        assert!(said.contains("kvm_amd") && said.contains("linux_1"), "{said}");
    }
}
