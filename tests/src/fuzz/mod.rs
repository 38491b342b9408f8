//! Fuzz targets: everything that a peer, a guest, an operator or a file can
//! feed, as functions of some bytes.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs   libFuzzer, as long as you like ─┐
//!                                                               ├─▶ Target::run(bytes)
//!   tests/tests/fuzz.rs         corpus and mutations, bounded  ─┘        panics on a bug
//! ```
//!
//! A target must not panic, and must give back what it allocates. It tells
//! whether its input was taken, so that a test can see that the corpus still
//! gets behind the first check. The same input always does the same.
//!
//! What a target needs of the world it makes anew for each input, in a folder
//! in memory, and leaves nothing behind.

mod arbiter;
mod backup;
mod certificate;
mod chunk;
mod configuration;
mod control;
mod devices;
mod frame;
mod kernel;
pub mod mutation;
mod primary;
mod probe;
mod scratch;
mod script;
pub mod seeds;
mod state;
mod words;

use std::path::{Path, PathBuf};

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was what its reader wants, to its end.
    Taken,
    /// It was refused.
    Refused,
}

impl Verdict {
    /// Of a reader's result.
    fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Taken } else { Self::Refused }
    }
}

/// One thing that is fed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its binary and its corpus.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]) -> Verdict,
    /// How many mutations of the corpus are a short run.
    pub mutations: u32,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "backup", run: backup::run, mutations: 4_000 * 2 },
    Target { name: "certificate", run: certificate::run, mutations: 10_000 * 2 },
    Target { name: "chunk", run: chunk::run, mutations: 10_000 * 2 },
    Target { name: "config", run: configuration::run, mutations: 2_000 * 2 },
    Target { name: "control", run: control::run, mutations: 1_000 * 2 },
    Target { name: "delta", run: chunk::run_delta, mutations: 20_000 * 2 },
    Target { name: "devices", run: devices::run, mutations: 3_000 * 2 },
    Target { name: "etcd_value", run: arbiter::run_etcd_value, mutations: 20_000 * 2 },
    Target { name: "frame", run: frame::run, mutations: 40_000 * 2 },
    Target { name: "kernel", run: kernel::run, mutations: 2_000 * 2 },
    Target { name: "primary", run: primary::run, mutations: 4_000 * 2 },
    Target { name: "probe", run: probe::run, mutations: 40_000 * 2 },
    Target { name: "register", run: arbiter::run, mutations: 10_000 * 2 },
    Target { name: "register_file", run: arbiter::run_file, mutations: 2_000 * 2 },
    Target { name: "sections", run: state::run_sections, mutations: 20_000 * 2 },
    Target { name: "state", run: state::run, mutations: 3_000 * 2 },
];

/// The target called `name`.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn target(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("there is no fuzz target `{name}`"))
}

/// The folder of the corpus of `target`.
#[must_use]
pub fn corpus(target: &Target) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.join("../fuzz/corpus").join(target.name)
}
