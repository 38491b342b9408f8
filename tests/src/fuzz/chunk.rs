//! Chunks as a primary sends them, decoded for a guest and applied to an image.
//!
//! ```text
//!   input := chunk*
//!   chunk := kind:u8  encoding:u8  decoded_bytes:u32  len:u16  body[len]
//! ```
//!
//! Digests are made right, so that what is behind them is reached.

use std::cell::RefCell;

use checkpoint::{
    Epoch, MemoryLayout, PAGE_BYTES, PageNumber, PageRun,
    chunk::{Chunk, ChunkId, ChunkKind, Encoding},
    delta::{self, Comparison},
    image::{Image, PageStore},
    staging::content_bytes,
};

use super::{Verdict, script::Script};

/// RAM of the guest: two regions of so many pages, the second behind a hole.
const REGIONS: [(u64, u64); 2] = [(0, 16), (64, 16)];
/// Longest string that a delta is tried on, in bytes.
const STRING_BYTES_MAX: usize = 4096 + 8;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let memory = Memory::new();
    let mut image = Image::default();
    let mut verdict = Verdict::Refused;
    let mut script = Script::new(bytes);
    let mut index = 0;
    while let Some(kind) = script.step() {
        let Some(chunk) = chunk(kind, index, &mut script) else { continue };
        index += 1;
        let Ok(content) = chunk.decode(&memory.layout) else { continue };
        assert!(content.pages() <= checkpoint::chunk::CHUNK_PAGES_MAX as u64);
        let staged = [(0, content.clone())].into();
        assert!(content_bytes(&staged) <= 2 * checkpoint::chunk::DECODED_BYTES_MAX);
        if image.apply(content, &memory).is_err() {
            // A broken image is given up.
            image = Image::default();
        } else {
            verdict = Verdict::Taken;
        }
    }
    verdict
}

/// The next chunk, with the digest that it must have.
fn chunk(kind: u8, index: u32, script: &mut Script<'_>) -> Option<Chunk> {
    let kind = ChunkKind::from_code(kind)?;
    let encoding = Encoding::from_code(script.u8())?;
    let decoded_bytes = script.u32();
    let body = script.counted().to_vec().into();
    let id = ChunkId { epoch: Epoch::FIRST, index };
    let mut chunk = Chunk { id, kind, encoding, decoded_bytes, body, digest: [0; 32] };
    chunk.digest = chunk.expected_digest();
    Some(chunk)
}

/// A delta on a string that the input brings: `len:u16 string[len] delta`.
pub(super) fn run_delta(bytes: &[u8]) -> Verdict {
    let mut script = Script::new(bytes);
    let len = usize::from(script.u16()).min(STRING_BYTES_MAX);
    let old = script.slice(len).to_vec();
    // The check is of the string, and would rarely be hit by chance.
    let rest = script.rest();
    let mut delta = Vec::new();
    let flipped: Vec<u8> = old.iter().map(|octet| !octet).collect();
    delta::compare(&old, &flipped, usize::MAX, &mut delta);
    delta.truncate(8);
    delta.extend(rest);
    let mut new = old.clone();
    let applied = delta::apply(&delta, &mut new);
    assert_eq!(
        applied.is_ok(),
        !old.is_empty() && delta::is_sound(&delta, old.len()),
        "{applied:?}"
    );
    if applied.is_err() {
        assert_eq!(new, old, "a delta that was half applied");
    }
    there_and_back(&old, &new);
    Verdict::of(&applied)
}

fn there_and_back(old: &[u8], new: &[u8]) {
    let mut delta = Vec::new();
    match delta::compare(old, new, usize::MAX, &mut delta) {
        Comparison::Same => assert_eq!(old, new),
        Comparison::Differs => {
            let mut patched = old.to_vec();
            delta::apply(&delta, &mut patched).expect("a delta of our own");
            assert_eq!(patched, new);
        }
        Comparison::DiffersMuch => unreachable!("nothing is too much"),
    }
}

/// The memory of a small guest.
struct Memory {
    layout: MemoryLayout,
    bytes: RefCell<Vec<u8>>,
}

impl Memory {
    fn new() -> Self {
        let runs = REGIONS.map(|(first, count)| PageRun { first: PageNumber::new(first), count });
        let layout = MemoryLayout::new(runs.to_vec()).expect("two regions, rising and apart");
        let bytes = vec![0; layout.frame_end() as usize * PAGE_BYTES];
        Self { layout, bytes: bytes.into() }
    }

    fn range(&self, run: PageRun) -> std::ops::Range<usize> {
        assert!(self.layout.contains(run), "{run:?} is no RAM");
        let first = run.first.address() as usize;
        first..first + run.count as usize * PAGE_BYTES
    }
}

impl PageStore for Memory {
    fn read(&self, run: PageRun, to: &mut [u8]) {
        to.copy_from_slice(&self.bytes.borrow()[self.range(run)]);
    }

    fn write(&self, run: PageRun, from: &[u8]) {
        self.bytes.borrow_mut()[self.range(run)].copy_from_slice(from);
    }

    fn zero(&self, run: PageRun) {
        self.bytes.borrow_mut()[self.range(run)].fill(0);
    }
}
