//! How outputs are spelled in a chunk.
//!
//! ```text
//!   body   := output*
//!   output := channel:u8 (0 console, 1 network)  index:u8  len:u32  payload[len]     little-endian
//! ```

use super::{CHUNK_PAGES_MAX, Chunk, ChunkError, ChunkId, ChunkKind, Encoder};
use crate::{
    PAGE_BYTES,
    output::{Channel, Output},
};

const HEAD_BYTES: usize = 6;
/// Most outputs of a chunk. An empty one costs six octets here and many times
/// that in memory, so that their number is bounded beside their length.
const OUTPUTS_MAX: usize = 1 << 16;

impl Chunk {
    /// Encodes as many of `outputs` as fit a chunk; returns how many.
    #[must_use]
    pub fn of_outputs(id: ChunkId, outputs: &[Output], encoder: &mut Encoder) -> (Self, usize) {
        let mut body = Vec::new();
        let mut taken = 0;
        for output in outputs {
            let is_full = body.len() + output.payload.len() > CHUNK_PAGES_MAX * PAGE_BYTES;
            if taken > 0 && is_full || taken == OUTPUTS_MAX {
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
        (encoder.octets(id, ChunkKind::Outputs, body), taken)
    }
}

pub(super) fn decode(body: &[u8]) -> Result<Vec<Output>, ChunkError> {
    let early = || ChunkError::Malformed("its output list ends early");
    let mut rest = body;
    let mut outputs = Vec::new();
    while !rest.is_empty() {
        let (head, left) = rest.split_first_chunk::<HEAD_BYTES>().ok_or_else(early)?;
        let len = u32::from_le_bytes(head[2..].try_into().expect("four octets")) as usize;
        let (payload, left) = left.split_at_checked(len).ok_or_else(early)?;
        rest = left;
        if outputs.len() == OUTPUTS_MAX {
            return Err(ChunkError::Malformed("it has too many outputs"));
        }
        let channel = match (head[0], head[1]) {
            (0, 0) => Channel::Console,
            (1, index) => Channel::Network(index),
            _ => return Err(ChunkError::Malformed("it has output of an unknown channel")),
        };
        outputs.push(Output { channel, payload: payload.into() });
    }
    Ok(outputs)
}
