//! Small disks for what daemons keep, so that one can be full.

use std::{fs, io, path::PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const SIZE: &str = "size=1m,mode=700";
const BALLAST: &str = "ballast";

/// Mounted until it is dropped.
#[derive(Debug)]
pub(super) struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `folder`, which it makes.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(super) fn at(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some(SIZE))?;
        Ok(Self { folder })
    }

    /// Leaves no byte.
    ///
    /// # Errors
    ///
    /// If it cannot be filled for another reason than that it is full.
    pub(super) fn fill(&self) -> io::Result<()> {
        let mut ballast = fs::File::create(self.folder.join(BALLAST))?;
        loop {
            match io::Write::write_all(&mut ballast, &[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn relieve(&self) {
        let _ = fs::remove_file(self.folder.join(BALLAST));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}
