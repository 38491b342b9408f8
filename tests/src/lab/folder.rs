//! A lab's folder: short, because paths of sockets are; gone with its lab, and
//! gone at the next lab if its process was killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const STEM: &str = "romulus-lab-";

/// A folder that is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// A new folder for the lab called `name`.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let place = std::env::temp_dir();
        remove_leftovers(&place);
        let folder = place.join(format!("{STEM}{}-{name}", std::process::id()));
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes folders whose process is gone. Their machines went with it.
fn remove_leftovers(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(STEM).and_then(|rest| rest.split('-').next());
        let owner = owner.and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_go_with_their_labs_or_after_them() {
        let place = tempfile::tempdir().unwrap();
        // No pid is as large: see proc(5), pid_max.
        let dead = place.path().join(format!("{STEM}4294967295-old"));
        let alive = place.path().join(format!("{STEM}{}-new", std::process::id()));
        let foreign = place.path().join("other");
        for folder in [&dead, &alive, &foreign] {
            fs::create_dir(folder).unwrap();
        }
        remove_leftovers(place.path());
        assert_eq!([&dead, &alive, &foreign].map(|folder| folder.exists()), [false, true, true]);
        drop(Folder(alive.clone()));
        assert!(!alive.exists());
    }
}
