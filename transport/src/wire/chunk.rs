//! Chunk frames.
//!
//! ```text
//!   0      1          2          4               8         40
//!   ┌──────┬──────────┬──────────┬───────────────┬─────────┬──────────
//!   │ kind │ encoding │ 0  0     │ decoded bytes │ digest  │ content
//!   └──────┴──────────┴──────────┴───────────────┴─────────┴──────────
//! ```
//!
//! The head is read on its own so that the content goes straight into the
//! buffer that the chunk keeps.

use checkpoint::chunk::{
    BODY_BYTES_MAX, Chunk, ChunkId, ChunkKind, DECODED_BYTES_MAX, Digest, Encoding,
};

use arbiter::Term;

use super::{
    HEADER_BYTES, Header, Kind, WireError,
    octets::{Reader, Writer},
};

/// Length of what precedes a chunk's content in the frame's body.
pub const CHUNK_HEAD_BYTES: usize = 40;

/// A chunk but for its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    /// Which chunk, as the frame's header says.
    pub id: ChunkId,
    /// What it holds.
    pub kind: ChunkKind,
    /// How its content is spelled.
    pub encoding: Encoding,
    /// Length of the decoded content, in bytes.
    pub decoded_bytes: u32,
    /// BLAKE3, as [`Chunk::expected_digest`].
    pub digest: Digest,
}

impl ChunkHead {
    /// The head of `chunk`.
    #[must_use]
    pub fn of(chunk: &Chunk) -> Self {
        Self {
            id: chunk.id,
            kind: chunk.kind,
            encoding: chunk.encoding,
            decoded_bytes: chunk.decoded_bytes,
            digest: chunk.digest,
        }
    }

    /// Reads the head of chunk `id`.
    ///
    /// # Errors
    ///
    /// [`WireError`] for unknown codes, reserved octets or a decoded length
    /// beyond [`DECODED_BYTES_MAX`].
    pub fn decode(id: ChunkId, bytes: &[u8; CHUNK_HEAD_BYTES]) -> Result<Self, WireError> {
        Self::read(id, &mut Reader::new(bytes))
    }

    /// The frame's header and the head: what is sent before the content, so
    /// that the content need not be copied.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLong`] for content beyond [`BODY_BYTES_MAX`].
    pub fn preface(term: Term, chunk: &Chunk) -> Result<Vec<u8>, WireError> {
        let body_bytes = Kind::Chunk.require_fits((CHUNK_HEAD_BYTES + chunk.body.len()) as u64)?;
        let header = Header { kind: Kind::Chunk, body_bytes, term, chunk: Some(chunk.id) };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + CHUNK_HEAD_BYTES);
        bytes.extend(header.encode());
        let mut writer = Writer::new(bytes);
        Self::of(chunk).write(&mut writer);
        Ok(writer.into_bytes())
    }

    /// The chunk with this head and `body` as its content.
    ///
    /// # Errors
    ///
    /// [`WireError`] for content beyond [`BODY_BYTES_MAX`].
    pub fn into_chunk(self, body: Vec<u8>) -> Result<Chunk, WireError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(WireError::Value("a chunk beyond its limit"));
        }
        let Self { id, kind, encoding, decoded_bytes, digest } = self;
        Ok(Chunk { id, kind, encoding, decoded_bytes, body: body.into(), digest })
    }

    pub(super) fn read(id: ChunkId, reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let kind = ChunkKind::from_code(reader.u8()?)
            .ok_or(WireError::Value("a chunk of an unknown kind"))?;
        let encoding = Encoding::from_code(reader.u8()?)
            .ok_or(WireError::Value("a chunk of an unknown encoding"))?;
        reader.zeros::<2>()?;
        let decoded_bytes = reader.u32()?;
        if decoded_bytes as usize > DECODED_BYTES_MAX {
            return Err(WireError::Value("a chunk whose decoded length is beyond its limit"));
        }
        Ok(Self { id, kind, encoding, decoded_bytes, digest: reader.array()? })
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u8(self.kind.code());
        writer.u8(self.encoding.code());
        writer.slice(&[0; 2]);
        writer.u32(self.decoded_bytes);
        writer.slice(&self.digest);
    }
}
