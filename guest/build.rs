//! Passes the link arguments of a freestanding static program.
//!
//! They stand here and not in `.cargo/config.toml`, because Cargo looks that file up from the
//! current folder: `cargo build --manifest-path guest/Cargo.toml` would miss it.

use std::env;

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = format!("{folder}/guest.ld");
    println!("cargo:rerun-if-changed={script}");
    for file in ["boot.s", "stubs.s", "compute.s"] {
        println!("cargo:rerun-if-changed={folder}/src/{file}");
    }
    // `-no-pie` and `-fuse-ld=bfd` come after rustc's own choices and win over them.
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-fuse-ld=bfd"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{script}");
    println!(
        "cargo:rustc-link-arg-bins=-Wl,--build-id=none,-z,noexecstack,-z,norelro,--no-warn-rwx-segments"
    );
}
