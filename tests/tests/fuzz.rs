//! Every fuzz target over its corpus, and over mutations of it: bounded, the
//! same every time, and on the stable toolchain. `make fuzz` goes on from here.
//!
//! All memory is counted. Whatever comes in, a reader may not allocate by a
//! length that it has not bounded.

#![forbid(unsafe_code)]

use std::{
    fmt::Write,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use peak_alloc::PeakAlloc;
use romulus_tests::fuzz::{
    self, Target, Verdict,
    mutation::{INPUT_BYTES_MAX, Mutator},
};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What one input of at most [`INPUT_BYTES_MAX`] may cost. The largest content
/// of a chunk is 17 MiB, and some of it lies twice for a moment.
const ALLOCATED_BYTES_MAX: usize = 64 << 20;
/// One target at a time, as memory is counted for all of the process.
static ALONE: Mutex<()> = Mutex::new(());
/// All the corpora together, in bytes.
const CORPORA_BYTES_MAX: u64 = 1 << 20;

macro_rules! short_runs {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                short_run(fuzz::target(stringify!($name)));
            }
        )*

        #[test]
        fn no_target_is_forgotten() {
            let run = [$(stringify!($name)),*];
            assert_eq!(run.to_vec(), fuzz::TARGETS.iter().map(|t| t.name).collect::<Vec<_>>());
            for target in fuzz::TARGETS {
                let path = fuzz::corpus(target).join("../../fuzz_targets");
                let path = path.join(format!("{}.rs", target.name));
                assert!(path.is_file(), "{} has no {}", target.name, path.display());
            }
        }
    };
}

short_runs! {
    backup certificate chunk config control delta devices etcd_value frame kernel primary probe
    register register_file sections state
}

#[test]
fn corpora_are_small() {
    let sizes = fuzz::TARGETS.iter().flat_map(files).map(|file| fs::metadata(file).unwrap().len());
    let bytes: u64 = sizes.sum();
    assert!(bytes <= CORPORA_BYTES_MAX, "{bytes} bytes of corpora: minimise them");
}

fn short_run(target: &Target) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let files = files(target);
    let mut corpus = Vec::new();
    let mut taken = 0;
    for file in &files {
        let input = fs::read(file).unwrap();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        taken += u32::from(feed(target, &input, &name) == Verdict::Taken);
        corpus.push(input);
    }
    assert!(
        taken > 0,
        "none of the {} inputs of {} is taken: see fuzz/README.md",
        files.len(),
        target.name
    );
    // Each target is fed otherwise than its neighbours.
    let mut mutator = Mutator::new(target.name.bytes().map(u64::from).sum());
    for number in 0..target.mutations {
        let input = mutator.input(&corpus);
        feed(target, &input, &format!("mutation {number}"));
    }
}

/// Feeds one input; a failure names it and shows its bytes.
fn feed(target: &Target, input: &[u8], name: &str) -> Verdict {
    assert!(input.len() <= INPUT_BYTES_MAX, "{name} is too long");
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let fed = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let allocated = MEMORY.peak_usage().saturating_sub(before);
    let Ok(verdict) = fed else { panic!("{}: {name} panicked: {}", target.name, hex(input)) };
    assert!(
        allocated <= ALLOCATED_BYTES_MAX,
        "{}: {name} allocated {allocated} bytes: {}",
        target.name,
        hex(input)
    );
    verdict
}

fn hex(input: &[u8]) -> String {
    input.iter().fold(String::new(), |mut hex, octet| {
        write!(hex, "{octet:02x}").expect("strings take all");
        hex
    })
}

/// The corpus of a target, in the order of its names.
fn files(target: &Target) -> Vec<PathBuf> {
    let folder = fuzz::corpus(target);
    let listed = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
