//! Chunks: the unit in which an epoch is encoded, hashed, sent and staged.
//!
//! ```text
//!   Chunk   id (epoch, index)  kind  encoding  decoded_bytes  body  digest
//!
//!   decoded body, little-endian, by kind
//!     Pages          see `pages`
//!     Sections       `Sections::encode`
//!     SectionsDelta  a delta against the encoded sections of the epoch before
//!     Outputs        see `outputs`
//! ```
//!
//! The digest covers id, kind, encoding, decoded length and the body as sent,
//! and is checked before the body is decoded. Decoding is total: it yields
//! content that is well-formed for this guest, or an error.

mod body;
mod encoder;
mod outputs;
mod pages;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use body::Body;
pub use encoder::{Compression, Encoder, Places, Scan, SectionEncoder};
pub use pages::{News, PageContent};

use crate::{Epoch, MemoryLayout, PageNumber, Section, SectionError, Sections, output::Output};

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// Most pages in a chunk: 1 MiB of content.
pub const CHUNK_PAGES_MAX: usize = 256;
/// Largest decoded body, in bytes.
pub const DECODED_BYTES_MAX: usize = 17 << 20;
/// Largest body as sent, in bytes.
pub const BODY_BYTES_MAX: usize = DECODED_BYTES_MAX + 4096;

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
    /// What changed in vCPU, VM and device state since the epoch before.
    SectionsDelta,
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
    pub body: Body,
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
    /// What changed in the state since the epoch before: see [`crate::delta`].
    SectionsDelta(bytes::Bytes),
    /// Outputs of the epoch.
    Outputs(Vec<Output>),
}

impl Content {
    /// Pages that it names.
    #[must_use]
    pub fn pages(&self) -> u64 {
        match self {
            Self::Pages(pages) => pages.count(),
            Self::Sections(_) | Self::SectionsDelta(_) | Self::Outputs(_) => 0,
        }
    }

    /// Bytes that it takes while staged.
    #[must_use]
    pub fn staged_bytes(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.staged_bytes(),
            Self::Sections(sections) => sections.as_slice().iter().map(Section::held_bytes).sum(),
            Self::SectionsDelta(delta) => delta.len(),
            Self::Outputs(outputs) => outputs.iter().map(Output::held_bytes).sum(),
        }
    }
}

impl Chunk {
    /// A chunk with `body`, which is `decoded_bytes` long when decoded.
    fn new(id: ChunkId, kind: ChunkKind, encoding: Encoding, decoded: usize, body: Body) -> Self {
        assert!(decoded <= DECODED_BYTES_MAX, "a chunk of {decoded} bytes");
        let decoded_bytes = decoded as u32;
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
        for piece in self.body.pieces() {
            hasher.update(piece);
        }
        hasher.finalize().into()
    }

    /// Verifies the digest and decodes the body for a guest of `layout`.
    ///
    /// # Errors
    ///
    /// [`ChunkError`]; nothing of a chunk with an error may be used.
    pub fn decode(self, layout: &MemoryLayout) -> Result<Content, ChunkError> {
        if self.digest != self.expected_digest() {
            return Err(ChunkError::Digest(self.id));
        }
        let kind = self.kind;
        let decoded = self.decompress()?;
        match kind {
            ChunkKind::Pages => Ok(Content::Pages(pages::decode(decoded, layout)?)),
            ChunkKind::Sections => Ok(Content::Sections(Sections::decode(&decoded)?)),
            ChunkKind::SectionsDelta => Ok(Content::SectionsDelta(decoded)),
            ChunkKind::Outputs => Ok(Content::Outputs(outputs::decode(&decoded)?)),
        }
    }

    fn decompress(self) -> Result<bytes::Bytes, ChunkError> {
        let expected = self.decoded_bytes as usize;
        if expected > DECODED_BYTES_MAX {
            return Err(ChunkError::Malformed("its decoded length is beyond the limit"));
        }
        let body = self.body.into_contiguous();
        let decoded = match self.encoding {
            Encoding::Raw => body,
            // The capacity bounds what a hostile frame can make us allocate.
            Encoding::Zstd => zstd::bulk::decompress(&body, expected)
                .map_err(|_| ChunkError::Malformed("its zstd frame does not decompress"))?
                .into(),
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
            Self::SectionsDelta => 3,
        }
    }

    /// The kind that `code` stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Pages),
            1 => Some(Self::Sections),
            2 => Some(Self::Outputs),
            3 => Some(Self::SectionsDelta),
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
