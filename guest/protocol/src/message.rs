//! Requests and answers of the probe service: one UDP datagram each, little-endian, fixed layouts.
//!
//! ```text
//! header, 8 octets   magic "RPRB" | version 1 | kind | status | 0
//! kind               1 ask, 2 pattern, 3 verify, 4 stats; an answer has bit 7 set
//! ```
//! The bodies are drawn as octet tables in `guest/README.md` and pinned by golden bytes below.
//! Invariant: decoding never panics and consumes everything, so what decodes re-encodes to the
//! same bytes (reserved octets must be zero).

use core::ops::Deref;

pub use crate::answer::{
    Answer, AskAnswer, AskStatus, PatternAnswer, StatsAnswer, VcpuCounters, VerifyAnswer,
    VerifyState,
};
use crate::content::Content;
use crate::pattern::{Pattern, Write};
use crate::wire::{Reader, Writer};

/// The longest message.
pub const MESSAGE_BYTES_MAX: usize = 512;

const MAGIC: [u8; 4] = *b"RPRB";
const VERSION: u8 = 1;
pub(crate) const ANSWER_BIT: u8 = 0x80;
pub(crate) const KIND_ASK: u8 = 1;
pub(crate) const KIND_PATTERN: u8 = 2;
pub(crate) const KIND_VERIFY: u8 = 3;
pub(crate) const KIND_STATS: u8 = 4;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter or longer than its layout.
    #[error("a message of {got} octets has the wrong length for its kind")]
    Length {
        /// Octets received.
        got: usize,
    },
    /// Not of this service.
    #[error("not a probe message")]
    Magic,
    /// Of another version of it.
    #[error("probe message of version {got}, this side speaks {VERSION}")]
    Version {
        /// Version received.
        got: u8,
    },
    /// Unknown kind, or a request where an answer belongs.
    #[error("unexpected message kind {got:#x}")]
    Kind {
        /// Kind received.
        got: u8,
    },
    /// A field outside its range.
    #[error("field {0} is out of range")]
    Field(&'static str),
}

/// An encoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    bytes: [u8; MESSAGE_BYTES_MAX],
    len: usize,
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Message {
    pub(crate) fn build(kind: u8, status: u8, body: impl FnOnce(&mut Writer<'_>)) -> Self {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut writer = Writer::new(&mut bytes);
        writer.put(&MAGIC);
        writer.put(&[VERSION, kind, status, 0]);
        body(&mut writer);
        let len = writer.len();
        Self { bytes, len }
    }
}

/// One step of a client's history. `seq` 0 opens the lane (forgets what it held), then 1, 2, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Client id, below [`crate::LANES_MAX`].
    pub client: u32,
    /// Number of the request.
    pub seq: u64,
    /// Chosen by the client; enters the history digest.
    pub nonce: u64,
}

/// Parts of memory that a verification covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyScope {
    /// Every page of the working set that was ever written.
    pub working_set: bool,
    /// The fill area.
    pub fill: bool,
}

impl VerifyScope {
    /// Everything.
    pub const ALL: Self = Self { working_set: true, fill: true };

    pub(crate) const fn bits(self) -> u8 {
        self.working_set as u8 | (self.fill as u8) << 1
    }

    pub(crate) const fn from_bits(bits: u8) -> Option<Self> {
        if bits > 3 { None } else { Some(Self { working_set: bits & 1 != 0, fill: bits & 2 != 0 }) }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Advance a lane.
    Ask(Ask),
    /// Which pattern runs.
    PatternGet,
    /// Run this pattern from now on.
    PatternSet(Pattern),
    /// Start verification `run` (chosen by the client); asking again for the same run polls it.
    VerifyStart {
        /// Name of the run, not 0.
        run: u64,
        /// What to check.
        scope: VerifyScope,
    },
    /// How far the latest verification is.
    VerifyPoll,
    /// Counters.
    Stats,
}

impl Request {
    /// To bytes.
    pub fn encode(&self) -> Message {
        match *self {
            Self::Ask(ask) => Message::build(KIND_ASK, 0, |w| {
                w.u32(ask.client);
                w.u32(0);
                w.u64(ask.seq);
                w.u64(ask.nonce);
            }),
            Self::PatternGet => {
                Message::build(KIND_PATTERN, 0, |w| put_pattern(w, 0, &Pattern::default()))
            }
            Self::PatternSet(pattern) => {
                Message::build(KIND_PATTERN, 0, |w| put_pattern(w, 1, &pattern))
            }
            Self::VerifyStart { run, scope } => Message::build(KIND_VERIFY, 0, |w| {
                w.put(&[1, scope.bits(), 0, 0, 0, 0, 0, 0]);
                w.u64(run);
            }),
            Self::VerifyPoll => Message::build(KIND_VERIFY, 0, |w| w.put(&[0; 16])),
            Self::Stats => Message::build(KIND_STATS, 0, |_| {}),
        }
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let (kind, status) = header(&mut reader)?;
        in_range(status == 0, "status")?;
        let request = match kind {
            KIND_ASK => {
                let client = reader.u32()?;
                in_range(reader.u32()? == 0, "reserved")?;
                Self::Ask(Ask { client, seq: reader.u64()?, nonce: reader.u64()? })
            }
            KIND_PATTERN => match get_pattern(&mut reader)? {
                (0, _) => Self::PatternGet,
                (1, pattern) => Self::PatternSet(pattern),
                _ => return Err(DecodeError::Field("operation")),
            },
            KIND_VERIFY => {
                let [operation, scope, reserved @ ..] = reader.array::<8>()?;
                let run = reader.u64()?;
                in_range(reserved == [0; 6], "reserved")?;
                let scope = VerifyScope::from_bits(scope).ok_or(DecodeError::Field("scope"))?;
                match operation {
                    0 => Self::VerifyPoll,
                    1 => Self::VerifyStart { run, scope },
                    _ => return Err(DecodeError::Field("operation")),
                }
            }
            KIND_STATS => Self::Stats,
            got => return Err(DecodeError::Kind { got }),
        };
        reader.finish()?;
        Ok(request)
    }
}

pub(crate) fn header(reader: &mut Reader<'_>) -> Result<(u8, u8), DecodeError> {
    if reader.array::<4>()? != MAGIC {
        return Err(DecodeError::Magic);
    }
    let [version, kind, status, reserved] = reader.array()?;
    if version != VERSION {
        return Err(DecodeError::Version { got: version });
    }
    in_range(reserved == 0, "reserved")?;
    Ok((kind, status))
}

pub(crate) fn in_range(holds: bool, field: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::Field(field)) }
}

pub(crate) fn put_pattern(w: &mut Writer<'_>, operation: u8, pattern: &Pattern) {
    w.put(&[operation, pattern.write as u8, pattern.content as u8, 0, 0, 0, 0, 0]);
    w.u64(pattern.pages);
    w.u64(pattern.rate_per_s);
}

pub(crate) fn get_pattern(r: &mut Reader<'_>) -> Result<(u8, Pattern), DecodeError> {
    let [operation, write, content, reserved @ ..] = r.array::<8>()?;
    in_range(reserved == [0; 5], "reserved")?;
    let pattern = Pattern {
        write: Write::from_u8(write).ok_or(DecodeError::Field("write"))?,
        content: Content::from_u8(content).ok_or(DecodeError::Field("content"))?,
        pages: r.u64()?,
        rate_per_s: r.u64()?,
    };
    Ok((operation, pattern))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
