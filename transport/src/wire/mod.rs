//! Frames: how everything between nodes is spelled.
//!
//! ```text
//!   0        2      3      4            8            16           24         28
//!   ┌────────┬──────┬──────┬────────────┬────────────┬────────────┬──────────┬──────
//!   │ "Ro"   │ kind │ 0    │ body bytes │ term       │ epoch      │ index    │ body
//!   └────────┴──────┴──────┴────────────┴────────────┴────────────┴──────────┴──────
//!     2        1      1      4            8            8            4   little-endian
//! ```
//!
//! Epoch and index name a chunk and are zero in every other frame, so that a
//! frame of a stale term can be refused, and named, before its body is read.
//! The layouts of the bodies are in `docs/protocol.md`.
//!
//! Invariants: decoding is total (any bytes give a frame or a [`WireError`]);
//! the body's length is checked against its kind before anything is allocated;
//! everything is consumed; and every frame has exactly one spelling.
//!
//! No I/O happens here: the simulator uses this module as it is.

mod chunk;
mod control;
mod greeting;
mod kind;
mod octets;
mod registry;

use arbiter::Term;
use checkpoint::{
    Epoch,
    chunk::{Chunk, ChunkId},
    message::{Hello, Refusal, ToBackup, ToPrimary, Welcome},
};
use thiserror::Error;

pub use chunk::{CHUNK_HEAD_BYTES, ChunkHead};
pub use greeting::{TRAITS_MAX, VERSION_BYTES_MAX, VERSIONS, VERSIONS_MAX, WORDS_MAX, negotiate};
pub use kind::Kind;
pub use octets::TEXT_BYTES_MAX;
pub use registry::{Answer, Ask, LIST_RECORDS_MAX, MEMBERS_MAX};

use octets::{Reader, Writer};

/// Length of the header that begins every frame.
pub const HEADER_BYTES: usize = 28;

/// The first two octets of every frame.
pub const MAGIC: [u8; 2] = *b"Ro";

/// Why bytes are no frame, or something cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The header does not begin with [`MAGIC`].
    #[error("frame begins with {0:02x?}: the peer does not speak Romulus's protocol")]
    Magic([u8; 2]),
    /// A kind that this version does not know.
    #[error("frame has the unknown kind {0:#04x}: update the older of the two nodes")]
    Kind(u8),
    /// The body is longer than its kind allows.
    #[error("a {kind} frame of {bytes} bytes is beyond its limit of {max}")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// Length of its body.
        bytes: u64,
        /// What its kind allows.
        max: u32,
    },
    /// The frame ends before what it announces.
    #[error("frame ends early")]
    Early,
    /// The frame goes on after what its kind holds.
    #[error("frame has {0} bytes too many")]
    Trailing(usize),
    /// Octets that must be zero are not.
    #[error("frame uses reserved octets: update the older of the two nodes")]
    Reserved,
    /// A field holds what it may not hold.
    #[error("frame has {0}")]
    Value(&'static str),
    /// A frame that does not belong where it came.
    #[error("a {0} frame has no place here")]
    Unexpected(Kind),
    /// Something of ours is too large to be said.
    #[error("{count} {what} are more than the {max} that the protocol carries: configure fewer")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// Everything that nodes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The primary asks for a session.
    Hello(Hello),
    /// The backup takes it.
    Welcome(Welcome),
    /// The backup does not.
    Refusal(Refusal),
    /// From the primary, on the control stream.
    ToBackup(ToBackup),
    /// From the backup, on the control stream.
    ToPrimary(ToPrimary),
    /// A part of an epoch or a seed, on a data stream.
    Chunk(Chunk),
    /// To the arbiter.
    Ask(Ask),
    /// From the arbiter.
    Answer(Answer),
}

/// What is known of a frame before its body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Length of its body; at most [`Kind::body_bytes_max`].
    pub body_bytes: u32,
    /// The term of its sender.
    pub term: Term,
    /// Which chunk it is, if it is one.
    pub chunk: Option<ChunkId>,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    ///
    /// [`WireError`] for a wrong magic, an unknown kind, a length beyond the
    /// kind's limit or reserved octets that are not zero.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.array()?;
        if magic != MAGIC {
            return Err(WireError::Magic(magic));
        }
        let code = reader.u8()?;
        let kind = Kind::from_code(code).ok_or(WireError::Kind(code))?;
        reader.zeros::<1>()?;
        let body_bytes = reader.u32()?;
        kind.require_fits(u64::from(body_bytes))?;
        let term = Term::new(reader.u64()?);
        let (epoch, index) = (reader.u64()?, reader.u32()?);
        let chunk = match kind {
            Kind::Chunk => Some(ChunkId { epoch: Epoch::new(epoch), index }),
            _ if epoch == 0 && index == 0 => None,
            _ => return Err(WireError::Reserved),
        };
        Ok(Self { kind, body_bytes, term, chunk })
    }

    /// The octets of this header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (epoch, index) = self.chunk.map_or((0, 0), |id| (id.epoch.get(), id.index));
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = self.kind.code();
        bytes[4..8].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.term.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&epoch.to_le_bytes());
        bytes[24..].copy_from_slice(&index.to_le_bytes());
        bytes
    }

    /// Reads the body that follows this header.
    ///
    /// # Errors
    ///
    /// [`WireError`] if `body` is not exactly what the header announces.
    pub fn decode_body(&self, body: &[u8]) -> Result<Frame, WireError> {
        let announced = self.body_bytes as usize;
        if body.len() < announced {
            return Err(WireError::Early);
        }
        if body.len() > announced {
            return Err(WireError::Trailing(body.len() - announced));
        }
        let mut reader = Reader::new(body);
        let frame = self.read(&mut reader)?;
        reader.finish()?;
        Ok(frame)
    }

    fn read(&self, reader: &mut Reader<'_>) -> Result<Frame, WireError> {
        match self.kind {
            Kind::Hello => greeting::read_hello(reader).map(Frame::Hello),
            Kind::Welcome => greeting::read_welcome(reader).map(Frame::Welcome),
            Kind::Refusal => greeting::read_refusal(reader).map(Frame::Refusal),
            Kind::PrimaryHeartbeat
            | Kind::BeginSeed
            | Kind::Close
            | Kind::Membership
            | Kind::HandOver
            | Kind::Verify
            | Kind::Farewell => control::read_to_backup(self.kind, reader).map(Frame::ToBackup),
            Kind::BackupHeartbeat | Kind::SeedAck | Kind::Ack | Kind::Nack | Kind::Verified => {
                control::read_to_primary(self.kind, reader).map(Frame::ToPrimary)
            }
            Kind::Chunk => {
                let id = self.chunk.expect("a header of a chunk names it");
                let head = ChunkHead::read(id, reader)?;
                head.into_chunk(reader.rest().to_vec()).map(Frame::Chunk)
            }
            Kind::Load | Kind::Execute | Kind::List | Kind::Identify => {
                registry::read_ask(self.kind, reader).map(Frame::Ask)
            }
            Kind::Record
            | Kind::Outcome
            | Kind::Records
            | Kind::Denied
            | Kind::Failed
            | Kind::Unavailable
            | Kind::Registers => registry::read_answer(self.kind, reader).map(Frame::Answer),
        }
    }
}

impl Frame {
    /// The kind that stands in its header.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Refusal(_) => Kind::Refusal,
            Self::ToBackup(message) => control::to_backup_kind(message),
            Self::ToPrimary(message) => control::to_primary_kind(message),
            Self::Chunk(_) => Kind::Chunk,
            Self::Ask(ask) => registry::ask_kind(ask),
            Self::Answer(answer) => registry::answer_kind(answer),
        }
    }
}

/// Spells a whole frame, header and body.
///
/// Words for an operator are cut at [`TEXT_BYTES_MAX`].
///
/// # Errors
///
/// [`WireError::TooMany`] or [`WireError::TooLong`] for what the protocol
/// cannot carry; it would be refused on the other side.
pub fn encode(term: Term, frame: &Frame) -> Result<Vec<u8>, WireError> {
    let mut writer = Writer::new(vec![0; HEADER_BYTES]);
    match frame {
        Frame::Hello(hello) => greeting::write_hello(&mut writer, hello)?,
        Frame::Welcome(welcome) => greeting::write_welcome(&mut writer, welcome)?,
        Frame::Refusal(refusal) => greeting::write_refusal(&mut writer, refusal)?,
        Frame::ToBackup(message) => control::write_to_backup(&mut writer, message)?,
        Frame::ToPrimary(message) => control::write_to_primary(&mut writer, message)?,
        Frame::Chunk(chunk) => {
            ChunkHead::of(chunk).write(&mut writer);
            for piece in chunk.body.pieces() {
                writer.slice(piece);
            }
        }
        Frame::Ask(ask) => registry::write_ask(&mut writer, ask)?,
        Frame::Answer(answer) => registry::write_answer(&mut writer, answer)?,
    }
    let mut bytes = writer.into_bytes();
    let kind = frame.kind();
    let body_bytes = kind.require_fits((bytes.len() - HEADER_BYTES) as u64)?;
    let chunk = if let Frame::Chunk(chunk) = frame { Some(chunk.id) } else { None };
    let header = Header { kind, body_bytes, term, chunk };
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    Ok(bytes)
}

/// Reads a whole frame, and nothing after it.
///
/// # Errors
///
/// [`WireError`]; see the module's head.
pub fn decode(bytes: &[u8]) -> Result<(Term, Frame), WireError> {
    let (head, body) = bytes.split_first_chunk().ok_or(WireError::Early)?;
    let header = Header::decode(head)?;
    Ok((header.term, header.decode_body(body)?))
}
