//! Chunks: the unit in which an epoch is encoded, hashed, sent and staged.
//!
//! ```text
//!   Chunk   id (epoch, index)  kind  encoding  decoded_bytes  body  digest
//!
//!   decoded body of kind Pages, little-endian:
//!     run_count:u32  run*  page content of the data runs, in order
//!     run := first_frame:u64  count:u32  content:u8 (0 zero pages, 1 data)
//!   decoded body of kind Sections: `Sections::encode`
//!   decoded body of kind Outputs:  output*
//!     output := channel:u8 index:u8 len:u32 payload
//! ```
//!
//! The digest covers id, kind, encoding, decoded length and the body as sent,
//! and is checked before the body is decoded. Decoding is total: it yields
//! content that cannot fail to apply, or an error.

use thiserror::Error;

use crate::{
    Epoch, MemoryLayout, PAGE_BYTES, PageNumber, PageRun, SectionError, Sections,
    output::{Channel, Output},
};

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// Most pages in a chunk: 1 MiB of content.
pub const CHUNK_PAGES_MAX: usize = 256;
/// Largest decoded body, in bytes.
pub const DECODED_BYTES_MAX: usize = 17 << 20;
/// Largest body as sent, in bytes.
pub const BODY_BYTES_MAX: usize = DECODED_BYTES_MAX + 4096;

const RUN_BYTES: usize = 13;
const ZSTD_LEVEL: i32 = 1;

/// Which chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    /// Its epoch; [`Epoch::ZERO`] for a chunk of a seed.
    pub epoch: Epoch,
    /// Its place in the epoch, from 0.
    pub index: u32,
}

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkKind {
    /// Memory.
    Pages,
    /// vCPU, VM and device state.
    Sections,
    /// What the guest said in this epoch, to be said again after a promotion.
    Outputs,
}

/// How the body is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// A zstd frame.
    Zstd,
}

/// Why a chunk was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// The digest does not match: damaged on the way.
    #[error("chunk {} of epoch {} is damaged: its digest does not match", .0.index, .0.epoch)]
    Digest(ChunkId),
    /// The body is not what its kind says.
    #[error("chunk is malformed: {0}")]
    Malformed(&'static str),
    /// A page that the guest does not have.
    #[error("chunk has pages from {first} on ({count}) that are not guest memory")]
    OutsideMemory {
        /// The first page of the run.
        first: PageNumber,
        /// Its length in pages.
        count: u64,
    },
    /// The sections in it are malformed.
    #[error(transparent)]
    Sections(#[from] SectionError),
}

/// An encoded chunk, ready to send or just received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which one.
    pub id: ChunkId,
    /// What it holds.
    pub kind: ChunkKind,
    /// How its body is spelled.
    pub encoding: Encoding,
    /// Length of the decoded body, in bytes.
    pub decoded_bytes: u32,
    /// The body.
    pub body: Vec<u8>,
    /// BLAKE3 of all of the above.
    pub digest: Digest,
}

/// What a chunk says, verified and ready to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Memory.
    Pages(PageContent),
    /// vCPU, VM and device state.
    Sections(Sections),
    /// Outputs of the epoch.
    Outputs(Vec<Output>),
}

/// New content of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageContent {
    zero: Vec<PageRun>,
    data: Vec<PageRun>,
    bytes: Vec<u8>,
    bytes_from: usize,
}

impl PageContent {
    /// Runs of pages that are all zero.
    #[must_use]
    pub fn zero_runs(&self) -> &[PageRun] {
        &self.zero
    }

    /// Runs of other pages with their content, `count * PAGE_BYTES` each.
    pub fn data_runs(&self) -> impl Iterator<Item = (PageRun, &[u8])> {
        let mut rest = &self.bytes[self.bytes_from..];
        self.data.iter().map(move |run| {
            let (content, left) = rest.split_at(run.count as usize * PAGE_BYTES);
            rest = left;
            (*run, content)
        })
    }

    /// Bytes that it takes while staged.
    #[must_use]
    pub fn staged_bytes(&self) -> usize {
        self.bytes.len() + (self.zero.len() + self.data.len()) * size_of::<PageRun>()
    }
}

impl Chunk {
    /// Encodes pages: `runs` with their content in `bytes`, in the same order.
    ///
    /// # Panics
    ///
    /// If the lengths do not agree or exceed [`CHUNK_PAGES_MAX`].
    #[must_use]
    pub fn of_pages(id: ChunkId, runs: &[PageRun], bytes: &[u8]) -> Self {
        let count: u64 = runs.iter().map(|run| run.count).sum();
        assert!(count as usize <= CHUNK_PAGES_MAX, "{count} pages are too many for a chunk");
        assert_eq!(count as usize * PAGE_BYTES, bytes.len(), "runs and bytes disagree");
        Self::encode(id, ChunkKind::Pages, page_body(runs, bytes))
    }

    /// Encodes saved state.
    #[must_use]
    pub fn of_sections(id: ChunkId, sections: &Sections) -> Self {
        Self::encode(id, ChunkKind::Sections, sections.encode())
    }

    /// Encodes as many of `outputs` as fit a chunk; returns how many.
    #[must_use]
    pub fn of_outputs(id: ChunkId, outputs: &[Output]) -> (Self, usize) {
        let mut body = Vec::new();
        let mut taken = 0;
        for output in outputs {
            if taken > 0 && body.len() + output.payload.len() > CHUNK_PAGES_MAX * PAGE_BYTES {
                break;
            }
            let (channel, index) = match output.channel {
                Channel::Console => (0, 0),
                Channel::Network(index) => (1, index),
            };
            body.extend([channel, index]);
            body.extend((output.payload.len() as u32).to_le_bytes());
            body.extend(&*output.payload);
            taken += 1;
        }
        (Self::encode(id, ChunkKind::Outputs, body), taken)
    }

    fn encode(id: ChunkId, kind: ChunkKind, decoded: Vec<u8>) -> Self {
        assert!(decoded.len() <= DECODED_BYTES_MAX, "a chunk of {} bytes", decoded.len());
        let decoded_bytes = decoded.len() as u32;
        let compressed = zstd::bulk::compress(&decoded, ZSTD_LEVEL)
            .expect("compressing in memory needs nothing that could fail");
        // Decompressing costs the backup time: only where it saves an eighth.
        let (encoding, body) = if compressed.len() + compressed.len() / 8 < decoded.len() {
            (Encoding::Zstd, compressed)
        } else {
            (Encoding::Raw, decoded)
        };
        let mut chunk = Self { id, kind, encoding, decoded_bytes, body, digest: [0; 32] };
        chunk.digest = chunk.expected_digest();
        chunk
    }

    /// The digest that this chunk must have.
    #[must_use]
    pub fn expected_digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.id.epoch.get().to_le_bytes());
        hasher.update(&self.id.index.to_le_bytes());
        hasher.update(&[self.kind.code(), self.encoding.code()]);
        hasher.update(&self.decoded_bytes.to_le_bytes());
        hasher.update(&self.body);
        hasher.finalize().into()
    }

    /// Verifies the digest and decodes the body for a guest of `layout`.
    ///
    /// # Errors
    ///
    /// [`ChunkError`]; nothing of a chunk with an error may be used.
    pub fn decode(&self, layout: &MemoryLayout) -> Result<Content, ChunkError> {
        if self.digest != self.expected_digest() {
            return Err(ChunkError::Digest(self.id));
        }
        let decoded = self.decompress()?;
        match self.kind {
            ChunkKind::Pages => Ok(Content::Pages(pages(decoded, layout)?)),
            ChunkKind::Sections => Ok(Content::Sections(Sections::decode(&decoded)?)),
            ChunkKind::Outputs => Ok(Content::Outputs(outputs(&decoded)?)),
        }
    }

    fn decompress(&self) -> Result<Vec<u8>, ChunkError> {
        let expected = self.decoded_bytes as usize;
        if expected > DECODED_BYTES_MAX {
            return Err(ChunkError::Malformed("its decoded length is beyond the limit"));
        }
        let decoded = match self.encoding {
            Encoding::Raw => self.body.clone(),
            // The capacity bounds what a hostile frame can make us allocate.
            Encoding::Zstd => zstd::bulk::decompress(&self.body, expected)
                .map_err(|_| ChunkError::Malformed("its zstd frame does not decompress"))?,
        };
        if decoded.len() != expected {
            return Err(ChunkError::Malformed("its decoded length is not as announced"));
        }
        Ok(decoded)
    }
}

impl ChunkKind {
    /// The code that stands for it on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Pages => 0,
            Self::Sections => 1,
            Self::Outputs => 2,
        }
    }

    /// The kind that `code` stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Pages),
            1 => Some(Self::Sections),
            2 => Some(Self::Outputs),
            _ => None,
        }
    }
}

impl Encoding {
    /// The code that stands for it on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The encoding that `code` stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The digest of an epoch: BLAKE3 over its chunks' digests in their order.
#[must_use]
pub fn epoch_digest<'a>(chunks: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for digest in chunks {
        hasher.update(digest);
    }
    hasher.finalize().into()
}

fn page_body(runs: &[PageRun], bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + runs.len() * RUN_BYTES + bytes.len());
    let mut data = Vec::with_capacity(bytes.len());
    let mut run_count = 0_u32;
    body.extend([0; 4]);
    let mut push = |first: PageNumber, count: u64, is_data: bool| {
        body.extend(first.get().to_le_bytes());
        body.extend((count as u32).to_le_bytes());
        body.push(u8::from(is_data));
        run_count += 1;
    };
    let mut rest = bytes;
    for run in runs {
        let mut begun = (run.first, 0_u64, false);
        for page in run.pages() {
            let (content, left) = rest.split_at(PAGE_BYTES);
            rest = left;
            let is_data = !is_zero(content);
            if is_data {
                data.extend_from_slice(content);
            }
            if begun.1 > 0 && begun.2 != is_data {
                push(begun.0, begun.1, begun.2);
                begun = (page, 0, is_data);
            }
            begun = (begun.0, begun.1 + 1, is_data);
        }
        if begun.1 > 0 {
            push(begun.0, begun.1, begun.2);
        }
    }
    body[..4].copy_from_slice(&run_count.to_le_bytes());
    body.append(&mut data);
    body
}

fn is_zero(page: &[u8]) -> bool {
    // By 64 bytes: leaves at the first line that differs, and vectorises.
    page.chunks(64).all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
}

fn pages(decoded: Vec<u8>, layout: &MemoryLayout) -> Result<PageContent, ChunkError> {
    let early = ChunkError::Malformed("its page list ends early");
    let (count, mut rest) = decoded.split_first_chunk().ok_or(early.clone())?;
    let run_count = u32::from_le_bytes(*count) as usize;
    if run_count > CHUNK_PAGES_MAX {
        return Err(ChunkError::Malformed("it has more runs than a chunk has pages"));
    }
    let (mut zero, mut data) = (Vec::new(), Vec::new());
    let mut page_count = 0;
    let mut data_count = 0;
    for _ in 0..run_count {
        let (head, left) = rest.split_first_chunk::<RUN_BYTES>().ok_or(early.clone())?;
        rest = left;
        let run = checked_run(head, layout)?;
        page_count += run.count;
        match head[12] {
            0 => zero.push(run),
            1 => {
                data_count += run.count;
                data.push(run);
            }
            _ => return Err(ChunkError::Malformed("a run is neither zero nor data")),
        }
    }
    if page_count as usize > CHUNK_PAGES_MAX {
        return Err(ChunkError::Malformed("it has too many pages"));
    }
    if rest.len() != data_count as usize * PAGE_BYTES {
        return Err(ChunkError::Malformed("its page content has the wrong length"));
    }
    let bytes_from = decoded.len() - rest.len();
    Ok(PageContent { zero, data, bytes: decoded, bytes_from })
}

fn checked_run(head: &[u8; RUN_BYTES], layout: &MemoryLayout) -> Result<PageRun, ChunkError> {
    let first = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
    let count = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
    let run = PageRun { first: PageNumber::new(first), count: u64::from(count) };
    if run.count == 0 {
        return Err(ChunkError::Malformed("a run has no page"));
    }
    if run.count > CHUNK_PAGES_MAX as u64 || !layout.contains(run) {
        return Err(ChunkError::OutsideMemory { first: run.first, count: run.count });
    }
    Ok(run)
}

fn outputs(decoded: &[u8]) -> Result<Vec<Output>, ChunkError> {
    let early = || ChunkError::Malformed("its output list ends early");
    let mut rest = decoded;
    let mut outputs = Vec::new();
    while !rest.is_empty() {
        let (head, left) = rest.split_first_chunk::<6>().ok_or_else(early)?;
        let len = u32::from_le_bytes(head[2..].try_into().expect("four bytes")) as usize;
        let (payload, left) = left.split_at_checked(len).ok_or_else(early)?;
        rest = left;
        let channel = match (head[0], head[1]) {
            (0, 0) => Channel::Console,
            (1, index) => Channel::Network(index),
            _ => return Err(ChunkError::Malformed("it has output of an unknown channel")),
        };
        outputs.push(Output { channel, payload: payload.into() });
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ChunkId = ChunkId { epoch: Epoch::new(7), index: 3 };

    fn layout() -> MemoryLayout {
        MemoryLayout::new(vec![run(0, 300), run(1000, 24)]).unwrap()
    }

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first: PageNumber::new(first), count }
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut reader = blake3::Hasher::new().finalize_xof();
        let mut noise = vec![0; bytes];
        reader.fill(&mut noise);
        noise
    }

    fn decoded_pages(chunk: &Chunk) -> Vec<(u64, Vec<u8>)> {
        let Content::Pages(content) = chunk.decode(&layout()).unwrap() else {
            panic!("not pages");
        };
        let zero = content.zero_runs().iter().flat_map(|run| run.pages());
        let mut pages: Vec<_> = zero.map(|page| (page.get(), vec![0; PAGE_BYTES])).collect();
        for (run, bytes) in content.data_runs() {
            pages.extend(
                run.pages().zip(bytes.chunks(PAGE_BYTES)).map(|(p, b)| (p.get(), b.to_vec())),
            );
        }
        pages.sort();
        pages
    }

    #[test]
    fn pages_come_back_as_they_were() {
        let mut bytes = noise(6 * PAGE_BYTES);
        bytes[PAGE_BYTES..3 * PAGE_BYTES].fill(0);
        bytes[3 * PAGE_BYTES..4 * PAGE_BYTES].fill(7);
        bytes[5 * PAGE_BYTES..].fill(0);
        let runs = [run(298, 2), run(1000, 4)];
        let chunk = Chunk::of_pages(ID, &runs, &bytes);
        let expected: Vec<_> = runs
            .iter()
            .flat_map(|run| run.pages())
            .zip(bytes.chunks(PAGE_BYTES))
            .map(|(page, content)| (page.get(), content.to_vec()))
            .collect();
        assert_eq!(decoded_pages(&chunk), expected);
    }

    #[test]
    fn what_compresses_is_compressed_and_what_does_not_is_not() {
        let text = b"fault tolerance ".repeat(PAGE_BYTES / 16);
        assert_eq!(Chunk::of_pages(ID, &[run(0, 1)], &text).encoding, Encoding::Zstd);
        let chunk = Chunk::of_pages(ID, &[run(0, 1)], &noise(PAGE_BYTES));
        assert_eq!(chunk.encoding, Encoding::Raw);
        let zero = Chunk::of_pages(ID, &[run(0, 256)], &[0; 256 * PAGE_BYTES]);
        assert!(zero.body.len() < 32, "{} bytes for nothing", zero.body.len());
    }

    #[test]
    fn outputs_and_sections_come_back() {
        let outputs = vec![
            Output { channel: Channel::Console, payload: b"login:"[..].into() },
            Output { channel: Channel::Network(1), payload: noise(60).into() },
        ];
        let (chunk, taken) = Chunk::of_outputs(ID, &outputs);
        assert_eq!(taken, 2);
        assert_eq!(chunk.decode(&layout()), Ok(Content::Outputs(outputs)));
        let sections = Sections::default();
        let chunk = Chunk::of_sections(ID, &sections);
        assert_eq!(chunk.decode(&layout()), Ok(Content::Sections(sections)));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let chunk = Chunk::of_pages(ID, &[run(0, 1)], &b"guest".repeat(820)[..PAGE_BYTES]);
        for bit in 0..chunk.body.len() * 8 {
            let mut flipped = chunk.clone();
            flipped.body[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(flipped.decode(&layout()), Err(ChunkError::Digest(ID)));
        }
        let mut moved = chunk;
        moved.id.index += 1;
        assert!(moved.decode(&layout()).is_err(), "a chunk moved to another place");
    }

    #[test]
    fn pages_outside_memory_are_refused() {
        for outside in [run(299, 2), run(400, 1), run(1023, 2)] {
            let bytes = vec![1; outside.count as usize * PAGE_BYTES];
            let chunk = Chunk::of_pages(ID, &[outside], &bytes);
            assert!(matches!(chunk.decode(&layout()), Err(ChunkError::OutsideMemory { .. })));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_body_decodes_or_errs(
            kind in 0_u8..3,
            zstd: bool,
            decoded_bytes in 0_u32..100_000,
            body: Vec<u8>,
        ) {
            let mut chunk = Chunk {
                id: ID,
                kind: ChunkKind::from_code(kind).unwrap(),
                encoding: if zstd { Encoding::Zstd } else { Encoding::Raw },
                decoded_bytes: if zstd { decoded_bytes } else { body.len() as u32 },
                body,
                digest: [0; 32],
            };
            chunk.digest = chunk.expected_digest();
            let _ = chunk.decode(&layout());
        }
    }
}
