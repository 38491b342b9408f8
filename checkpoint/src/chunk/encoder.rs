//! From captured pages to chunks: what costs least is sent.
//!
//! ```text
//!            scan (with the history)            finish
//!   pages ──────────────────────────▶ Scan ──────────────▶ Chunk
//!           zero? as before? a delta?         zstd? BLAKE3
//! ```
//!
//! The two steps are apart because the history is shared between encoders and
//! compression takes long. Page content stays where it was captured: pages that
//! need no content are closed up over, and the rest is lent to the chunk.

use bytes::Bytes;

use super::{
    Body, CHUNK_PAGES_MAX, Chunk, ChunkId, ChunkKind, Encoding,
    pages::{HeadBuilder, Spelling},
};
use crate::{
    PAGE_BYTES, PageRun, Sections,
    delta::{self, Comparison},
    history::History,
};

/// Longest delta of a page. A longer one saves little, and the page itself
/// compresses better.
const DELTA_BYTES_MAX: usize = PAGE_BYTES / 4;
/// Shortest body that is worth a compressor's while.
const COMPRESSED_BYTES_MIN: usize = 512;
/// Most chunks that are sent raw after some that did not compress.
const SKIPS_MAX: u32 = 15;

/// Whether bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Never: the network is faster than the compressor.
    Off,
    /// With zstd at this level, where it saves an eighth. After chunks that did
    /// not compress, some are not tried.
    Zstd {
        /// -7 (fast) to 19 (small).
        level: i32,
    },
}

/// Pages of a chunk by their place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Places([u64; CHUNK_PAGES_MAX / 64]);

impl Places {
    /// Adds place `index`.
    ///
    /// # Panics
    ///
    /// If a chunk has no such place.
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Whether place `index` is among them.
    ///
    /// # Panics
    ///
    /// If a chunk has no such place.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }
}

/// What one thread encodes with.
pub struct Encoder {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    head: HeadBuilder,
    scratch: Vec<u8>,
    /// Chunks that compression is not tried for.
    skips: u32,
    /// How many will be skipped after the next failure.
    skips_next: u32,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("skips", &self.skips).finish_non_exhaustive()
    }
}

/// Pages that were looked at: what stands before their content, and how much
/// content there is.
#[derive(Debug)]
pub struct Scan {
    head: Vec<u8>,
    content_bytes: usize,
    pages: u64,
}

impl Scan {
    /// How many pages the chunk will name.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How long the chunk's body will be before compression, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.head.len() + self.content_bytes
    }
}

impl Encoder {
    /// An encoder.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        let compressor = match compression {
            Compression::Off => None,
            Compression::Zstd { level } => Some(
                zstd::bulk::Compressor::new(level).expect("a compressor needs nothing but memory"),
            ),
        };
        Self {
            compressor,
            head: HeadBuilder::default(),
            scratch: Vec::new(),
            skips: 0,
            skips_next: 1,
        }
    }

    /// Looks at pages: `runs` with their content at the start of `block`, in
    /// the same order. Those at the places of `skipped` are left out. `block`
    /// then has the content of those that need it. Without a `history` no page
    /// builds on what was sent before.
    ///
    /// # Panics
    ///
    /// If there are more than [`CHUNK_PAGES_MAX`] pages, or `block` is too
    /// small for them.
    pub fn scan(
        &mut self,
        runs: &[PageRun],
        block: &mut [u8],
        skipped: &Places,
        mut history: Option<&mut History>,
    ) -> Scan {
        let count: u64 = runs.iter().map(|run| run.count).sum();
        assert!(count as usize <= CHUNK_PAGES_MAX, "{count} pages are too many for a chunk");
        assert!(count as usize * PAGE_BYTES <= block.len(), "a block that is too small");
        self.head.clear();
        let mut kept = 0;
        let pages = runs.iter().flat_map(|run| run.pages()).enumerate();
        for (place, page) in pages.filter(|(place, _)| !skipped.contains(*place)) {
            let at = place * PAGE_BYTES;
            let content = &block[at..at + PAGE_BYTES];
            if is_zero(content) {
                if let Some(history) = &mut history {
                    history.forget(page);
                }
                self.head.push(page, Spelling::Zero);
                continue;
            }
            let comparison = match &mut history {
                None => Comparison::DiffersMuch,
                Some(history) => self.head.push_delta(|deltas| {
                    let comparison = history.offer(page, content, DELTA_BYTES_MAX, deltas);
                    (comparison == Comparison::Differs, comparison)
                }),
            };
            match comparison {
                Comparison::Same => {}
                Comparison::Differs => self.head.push(page, Spelling::Delta),
                Comparison::DiffersMuch => {
                    self.head.push(page, Spelling::Data);
                    if kept != at {
                        block.copy_within(at..at + PAGE_BYTES, kept);
                    }
                    kept += PAGE_BYTES;
                }
            }
        }
        Scan { head: self.head.build(), content_bytes: kept, pages: self.head.pages() }
    }

    /// Makes the chunk of what was scanned; `block` is that of the scan.
    #[must_use]
    pub fn finish<B>(&mut self, id: ChunkId, scan: Scan, block: B) -> Chunk
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let decoded = scan.bytes();
        let content = &block.as_ref()[..scan.content_bytes];
        if let Some(body) = self.compressed(&scan.head, content) {
            return Chunk::new(id, ChunkKind::Pages, Encoding::Zstd, decoded, body.into());
        }
        let content = if scan.content_bytes == 0 {
            Bytes::new()
        } else {
            Bytes::from_owner(block).slice(..scan.content_bytes)
        };
        let body = Body::new(scan.head, content);
        Chunk::new(id, ChunkKind::Pages, Encoding::Raw, decoded, body)
    }

    /// [`Encoder::scan`] and [`Encoder::finish`] of pages that build on nothing.
    #[must_use]
    pub fn pages(&mut self, id: ChunkId, runs: &[PageRun], mut block: Vec<u8>) -> Chunk {
        let scan = self.scan(runs, &mut block, &Places::default(), None);
        self.finish(id, scan, block)
    }

    /// A chunk of other octets.
    pub(super) fn octets(&mut self, id: ChunkId, kind: ChunkKind, octets: Vec<u8>) -> Chunk {
        let decoded = octets.len();
        match self.compressed(&octets, &[]) {
            Some(body) => Chunk::new(id, kind, Encoding::Zstd, decoded, body.into()),
            None => Chunk::new(id, kind, Encoding::Raw, decoded, octets.into()),
        }
    }

    /// The two pieces in one zstd frame, if that is worth it.
    fn compressed(&mut self, head: &[u8], content: &[u8]) -> Option<Vec<u8>> {
        let len = head.len() + content.len();
        let compressor = self.compressor.as_mut().filter(|_| len >= COMPRESSED_BYTES_MIN)?;
        if self.skips > 0 {
            self.skips -= 1;
            return None;
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(head);
        self.scratch.extend_from_slice(content);
        let body = compressor
            .compress(&self.scratch)
            .expect("compressing in memory needs nothing that could fail");
        // Decompressing costs the backup time: only where it saves an eighth.
        if body.len() + body.len() / 8 < len {
            self.skips_next = 1;
            return Some(body);
        }
        self.skips = self.skips_next;
        self.skips_next = (self.skips_next * 2 + 1).min(SKIPS_MAX);
        None
    }
}

/// Encodes saved state, against that of the epoch before where there is one.
#[derive(Debug, Default)]
pub struct SectionEncoder {
    previous: Vec<u8>,
}

impl SectionEncoder {
    /// The chunk of `sections`. With `fresh` it builds on nothing, as a backup
    /// that joins with this epoch needs it.
    #[must_use]
    pub fn chunk(
        &mut self,
        id: ChunkId,
        sections: &Sections,
        fresh: bool,
        encoder: &mut Encoder,
    ) -> Chunk {
        let octets = sections.encode();
        if !fresh && octets.len() == self.previous.len() {
            let mut delta = Vec::new();
            let longest = octets.len() / 2;
            match delta::compare(&self.previous, &octets, longest, &mut delta) {
                // An empty delta would be none: there is always a check in it.
                Comparison::Same | Comparison::DiffersMuch => {}
                Comparison::Differs => {
                    self.previous = octets;
                    return encoder.octets(id, ChunkKind::SectionsDelta, delta);
                }
            }
        }
        self.previous.clone_from(&octets);
        encoder.octets(id, ChunkKind::Sections, octets)
    }
}

fn is_zero(page: &[u8]) -> bool {
    // By 64 octets: leaves at the first line that differs, and vectorises.
    page.chunks(64).all(|line| line.iter().fold(0, |any, octet| any | octet) == 0)
}
