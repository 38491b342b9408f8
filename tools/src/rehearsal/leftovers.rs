//! Namespaces and folders of rehearsals and benchmarks: whose process has ended
//! without removing them, the next one does. Folders have private keys in them.
//!
//! Folders are named `romulus-<kind>-<pid>`, perhaps with more behind it; one that
//! is kept for somebody to read is named otherwise ([`keep_folder`]).

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, umount2},
    unistd::geteuid,
};

use super::netns;

const STEM: &str = "romulus-";
const KINDS: [&str; 5] = ["bench", "demo", "peer", "soak", "wire"];
const KEPT: &str = "romulus-kept-";
/// Namespaces may come and go while they are removed.
const TRIES: usize = 3;

/// Removes what processes that are gone have left, their daemons first.
pub(super) fn remove_of_the_dead() {
    // Without root there are no namespaces; who needs some is told by them.
    if let Err(error) = netns::remove_leftovers() {
        tracing::debug!(%error, "namespaces were not looked through");
    }
    remove_folders(&std::env::temp_dir(), |pid| {
        !fs::exists(format!("/proc/{pid}")).unwrap_or(true)
    });
}

/// Removes what this process has made, while other threads still use it.
pub(super) fn remove_own() {
    let own = std::process::id();
    let mut tries = 0..TRIES;
    while tries.next().is_some() && netns::remove_of(own).is_err() {}
    remove_folders(&std::env::temp_dir(), |pid| pid == own);
}

/// Renames `folder` so that nobody removes it, and returns where it is now.
pub(super) fn keep_folder(folder: PathBuf) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let rest = name.strip_prefix(STEM).unwrap_or(&name);
    let kept = folder.with_file_name(format!("{KEPT}{rest}"));
    if fs::rename(&folder, &kept).is_ok() { kept } else { folder }
}

fn remove_folders(place: &Path, unwanted: impl Fn(u32) -> bool) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if owner(&entry.file_name().to_string_lossy()).is_some_and(&unwanted) {
            remove(&entry.path());
        }
    }
}

/// The process that made a folder, if a rehearsal or a benchmark did.
fn owner(name: &str) -> Option<u32> {
    let (kind, rest) = name.strip_prefix(STEM)?.split_once('-')?;
    let pid = rest.split('-').next()?.parse().ok()?;
    KINDS.contains(&kind).then_some(pid)
}

fn remove(path: &Path) {
    let Ok(found) = fs::symlink_metadata(path) else { return };
    // Others may make such names, and change what is behind them at any time.
    if found.uid() != geteuid().as_raw() {
        return;
    }
    if !found.is_dir() {
        let _ = fs::remove_file(path);
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        // A soak mounts small disks; nothing happens where none is mounted.
        let _ = umount2(&entry.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    let _ = fs::remove_dir_all(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No pid is as large: see proc(5), `pid_max`.
    const DEAD: u32 = u32::MAX;

    #[test]
    fn folders_of_the_dead_are_removed_and_no_others() {
        let place = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let path = |name: String| place.path().join(name);
        let gone =
            ["romulus-demo", "romulus-bench", "romulus-soak", "romulus-peer", "romulus-wire"]
                .map(|name| path(format!("{name}-{DEAD}")));
        let numbered = path(format!("romulus-bench-{DEAD}-3"));
        let left = [
            format!("romulus-demo-{own}"),
            format!("romulus-lab-{DEAD}-x"),
            "romulus-demo-mine".to_owned(),
            format!("other-{DEAD}"),
        ]
        .map(path);
        for folder in gone.iter().chain([&numbered]).chain(&left) {
            fs::create_dir_all(folder.join("pki")).unwrap();
        }
        let file = path(format!("romulus-bench-{DEAD}-probe.elf"));
        fs::write(&file, "").unwrap();
        remove_folders(place.path(), |pid| pid == DEAD);
        for path in gone.iter().chain([&numbered, &file]) {
            assert!(!path.exists(), "{path:?}");
        }
        for folder in &left {
            assert!(folder.join("pki").exists(), "{folder:?}");
        }
    }

    #[test]
    fn what_is_kept_is_removed_by_nobody() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join(format!("romulus-soak-{DEAD}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("host-1.log"), "words").unwrap();
        let kept = keep_folder(folder);
        remove_folders(place.path(), |_| true);
        assert_eq!(fs::read_to_string(kept.join("host-1.log")).unwrap(), "words");
    }
}
