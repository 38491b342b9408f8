//! What a lab's machine needs to rehearse failures in itself, with
//! `romulus demo --guest linux`: namespaces and cables, and a stock kernel with
//! modules for the guest, where a host has its own.

use std::path::{Path, PathBuf};

use super::{
    guest::DISK,
    image::ImageError,
    kernel::Kernel,
    program::{self, Program},
    tool::IP,
};

/// Modules of the guest's kernel.
const GUEST_MODULES: [&str; 4] = ["virtio_mmio", "virtio_net", "virtio_rng", "pvpanic_mmio"];

/// Files for the machine's disk, and how to use them.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    files: Vec<(PathBuf, PathBuf)>,
}

impl Rehearsal {
    /// A rehearsal with `kernel` as the guest's.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn new(kernel: &Kernel) -> Result<Self, ImageError> {
        let release = &kernel.release;
        let mut files = Vec::new();
        let mut add = |from: &Path, to: String| files.push((from.to_owned(), PathBuf::from(to)));
        let ip = IP.path().unwrap_or_else(|| IP.program.into());
        let ip = Program::of_this_machine(&ip)?;
        add(&ip.file, "rehearsal/bin/ip".to_owned());
        for library in &ip.libraries {
            add(library, format!("rehearsal/lib/{}", program::name(library)));
        }
        add(&kernel.image, format!("rehearsal/boot/vmlinuz-{release}"));
        let folder = kernel.package.file(&format!("lib/modules/{release}"))?;
        let modules = kernel.modules(&GUEST_MODULES)?;
        let modules = modules.into_iter().map(|module| module.file);
        for file in modules.chain([folder.join("modules.builtin")]) {
            let place = file.strip_prefix(&folder).expect("it is the kernel's own");
            add(&file, format!("rehearsal/lib/modules/{release}/{}", place.display()));
        }
        Ok(Self { files })
    }

    /// For the machine's disk: from, to.
    #[must_use]
    pub fn files(&self) -> &[(PathBuf, PathBuf)] {
        &self.files
    }

    /// A shell script that runs `romulus --json demo --guest linux` with
    /// `arguments`, in a machine whose own kernel is the guest's, too.
    #[must_use]
    pub fn script(&self, arguments: &str) -> String {
        let place = format!("{DISK}/rehearsal");
        format!(
            "set -e\n\
             mkdir -p /var /lib; ln -sfn /run /var/run\n\
             ln -sfn {place}/boot /boot; ln -sfn {place}/lib/modules /lib/modules\n\
             export PATH={place}/bin:$PATH LD_LIBRARY_PATH={place}/lib:$LD_LIBRARY_PATH\n\
             romulus --json demo --guest linux {arguments}\n"
        )
    }
}
