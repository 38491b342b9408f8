//! Builds the probe guest, so that the binary can carry it.
//!
//! `guest/` is a freestanding program with link flags and profiles of its own
//! and therefore no member of the workspace. It is built here by the same
//! Cargo, into a target folder of its own below `OUT_DIR`, and its path is
//! handed to the compiler as `ROMULUS_PROBE_GUEST`.
//!
//! Flags and settings that are meant for the outer build must not reach it:
//! see `guest/README.md`. `cargo clippy` and `cargo check` build it, too,
//! because `include_bytes!` needs the file.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The one target that the guest is written for, whatever the host builds.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the guest's image depends on, below the workspace's root.
const SOURCES: [&str; 9] = [
    "Cargo.toml",
    "guest/Cargo.lock",
    "guest/Cargo.toml",
    "guest/build.rs",
    "guest/guest.ld",
    "guest/protocol/Cargo.toml",
    "guest/protocol/src",
    "guest/src",
    "tools/build.rs",
];

/// Settings of the outer build that would change the guest.
const OUTER_SETTINGS: [&str; 7] = [
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

fn main() {
    let root = workspace_root();
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    let guest = build_guest(&root);
    println!("cargo:rustc-env=ROMULUS_PROBE_GUEST={}", guest.display());
}

fn workspace_root() -> PathBuf {
    let tools = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    tools.parent().expect("tools/ lies in the workspace").to_owned()
}

/// Builds the guest and returns the path of its ELF file.
fn build_guest(root: &Path) -> PathBuf {
    // OUT_DIR is absolute even if CARGO_TARGET_DIR is not.
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("guest");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--release", "--locked", "--target", TARGET, "--manifest-path"])
        .arg(root.join("guest/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "");
    for setting in OUTER_SETTINGS {
        cargo.env_remove(setting);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            cargo.env_remove(name);
        }
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "the probe guest does not build ({status}): its errors are above; \
             it needs the stable toolchain with target {TARGET} and GNU ld (package binutils)"
        ),
        Err(error) => panic!("cannot run {:?}: {error}", cargo.get_program()),
    }
    let guest = target_dir.join(TARGET).join("release/probe-guest");
    assert!(guest.is_file(), "cargo built no {}", guest.display());
    guest
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}
