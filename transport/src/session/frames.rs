//! Reading frames from a QUIC stream.
//!
//! A frame is read in steps, so that nothing is allocated for one that is
//! refused by its header, and a chunk's content is copied once: from QUIC's
//! packets into the buffer that the chunk keeps.

use arbiter::Term;
use bytes::BufMut;
use checkpoint::chunk::Chunk;
use quinn::RecvStream;
use tokio::io::AsyncReadExt;

use crate::wire::{CHUNK_HEAD_BYTES, ChunkHead, Frame, HEADER_BYTES, Header, Kind, WireError};

/// Why no frame came.
#[derive(Debug)]
pub(crate) enum ReadFault {
    /// The bytes are no frame.
    Malformed(WireError),
    /// The stream or its connection is gone.
    Lost,
}

impl From<WireError> for ReadFault {
    fn from(error: WireError) -> Self {
        Self::Malformed(error)
    }
}

/// The frames of one stream.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: RecvStream,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream }
    }

    /// The next header; `None` if the stream ended between two frames.
    pub(crate) async fn header(&mut self) -> Result<Option<Header>, ReadFault> {
        let mut bytes = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < HEADER_BYTES {
            match self.stream.read(&mut bytes[filled..]).await {
                Ok(Some(count)) => filled += count,
                Ok(None) if filled == 0 => return Ok(None),
                Ok(None) => return Err(WireError::Early.into()),
                Err(_) => return Err(ReadFault::Lost),
            }
        }
        Ok(Some(Header::decode(&bytes)?))
    }

    /// The body that follows `header`, which must not be a chunk's.
    pub(crate) async fn body(&mut self, header: &Header) -> Result<Frame, ReadFault> {
        let body = self.content(header.body_bytes as usize).await?;
        Ok(header.decode_body(&body)?)
    }

    /// A whole frame of few bytes; `None` if the stream ended before it.
    pub(crate) async fn frame(&mut self) -> Result<Option<(Term, Frame)>, ReadFault> {
        let Some(header) = self.header().await? else { return Ok(None) };
        if header.kind == Kind::Chunk {
            return Err(WireError::Unexpected(header.kind).into());
        }
        Ok(Some((header.term, self.body(&header).await?)))
    }

    /// The chunk that follows `header`.
    pub(crate) async fn chunk(&mut self, header: &Header) -> Result<Chunk, ReadFault> {
        let id = header.chunk.ok_or(WireError::Unexpected(header.kind))?;
        let body_bytes = header.body_bytes as usize;
        let content_bytes = body_bytes.checked_sub(CHUNK_HEAD_BYTES).ok_or(WireError::Early)?;
        let mut bytes = [0; CHUNK_HEAD_BYTES];
        self.stream.read_exact(&mut bytes).await.map_err(exact_fault)?;
        let head = ChunkHead::decode(id, &bytes)?;
        Ok(head.into_chunk(self.content(content_bytes).await?)?)
    }

    /// Passes over the body that follows `header`: none of it is kept.
    pub(crate) async fn pass(&mut self, header: &Header) -> Result<(), ReadFault> {
        let mut left = header.body_bytes as usize;
        while left > 0 {
            match self.stream.read_chunk(left, true).await {
                Ok(Some(passed)) => left -= passed.bytes.len(),
                Ok(None) => return Err(WireError::Early.into()),
                Err(_) => return Err(ReadFault::Lost),
            }
        }
        Ok(())
    }

    async fn content(&mut self, len: usize) -> Result<Vec<u8>, ReadFault> {
        let mut content = Vec::with_capacity(len);
        while content.len() < len {
            let left = len - content.len();
            match self.stream.read_buf(&mut (&mut content).limit(left)).await {
                Ok(0) => return Err(WireError::Early.into()),
                Ok(_) => {}
                Err(_) => return Err(ReadFault::Lost),
            }
        }
        Ok(content)
    }
}

fn exact_fault(error: quinn::ReadExactError) -> ReadFault {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => WireError::Early.into(),
        quinn::ReadExactError::ReadError(_) => ReadFault::Lost,
    }
}
