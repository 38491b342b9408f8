//! A folder in memory for one input: a target that reads files does so without
//! a disk, and leaves none behind.

use tempfile::TempDir;

/// Where Linux keeps files in memory.
const IN_MEMORY: &str = "/dev/shm";

/// An empty folder, which goes with its handle.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("romulus-fuzz-").tempdir_in(IN_MEMORY);
    folder.or_else(|_| tempfile::tempdir()).expect("a temporary folder can be made")
}
