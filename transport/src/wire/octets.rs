//! Octets in and out: the primitives of which every frame body is made.
//!
//! All numbers are little-endian. Lengths come before what they measure. A
//! [`Reader`] never reads beyond its slice, never allocates more than the slice
//! is long, and ends only when everything was consumed.

use std::str::FromStr;

use arbiter::InvalidId;

use super::WireError;

/// Longest text for an operator, in bytes; longer ones are cut when sent.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Reads a body from its beginning to its end.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, left) = self.rest.split_first_chunk().ok_or(WireError::Early)?;
        self.rest = left;
        Ok(*taken)
    }

    pub(super) fn slice(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, left) = self.rest.split_at_checked(len).ok_or(WireError::Early)?;
        self.rest = left;
        Ok(taken)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// An octet that says whether something follows.
    pub(super) fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Value("a flag that is neither 0 nor 1")),
        }
    }

    /// Octets that must be zero in this version.
    pub(super) fn zeros<const N: usize>(&mut self) -> Result<(), WireError> {
        if self.array::<N>()? == [0; N] { Ok(()) } else { Err(WireError::Reserved) }
    }

    /// A count of at most `max` things.
    pub(super) fn count(&mut self, max: usize) -> Result<usize, WireError> {
        let count = usize::from(self.u16()?);
        if count <= max { Ok(count) } else { Err(WireError::Value("a count beyond its limit")) }
    }

    pub(super) fn text(&mut self, bytes_max: usize) -> Result<String, WireError> {
        let len = self.count(bytes_max)?;
        let bytes = self.slice(len)?;
        let text = std::str::from_utf8(bytes);
        Ok(text.map_err(|_| WireError::Value("text that is not UTF-8"))?.to_owned())
    }

    /// The name of a node or a VM.
    pub(super) fn id<Id: FromStr<Err = InvalidId>>(&mut self) -> Result<Id, WireError> {
        let len = usize::from(self.u8()?);
        let text = std::str::from_utf8(self.slice(len)?);
        text.map_err(|_| WireError::Value("a name that is not UTF-8"))?
            .parse()
            .map_err(|_| WireError::Value("a name that is none"))
    }

    pub(super) fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.rest.len())) }
    }
}

/// Appends to a frame.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn slice(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.slice(&value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// A count of `what`, which `max` bounds (and a `u16` holds).
    pub(super) fn count(
        &mut self,
        what: &'static str,
        count: usize,
        max: usize,
    ) -> Result<(), WireError> {
        match u16::try_from(count) {
            Ok(short) if count <= max => {
                self.u16(short);
                Ok(())
            }
            _ => Err(WireError::TooMany { what, count, max }),
        }
    }

    /// Text that must arrive whole.
    pub(super) fn text(
        &mut self,
        what: &'static str,
        text: &str,
        bytes_max: usize,
    ) -> Result<(), WireError> {
        self.count(what, text.len(), bytes_max)?;
        self.slice(text.as_bytes());
        Ok(())
    }

    /// Words for an operator: cut if they are longer than [`TEXT_BYTES_MAX`].
    pub(super) fn words(&mut self, words: &str) {
        let cut = &words[..words.floor_char_boundary(TEXT_BYTES_MAX)];
        self.u16(cut.len() as u16);
        self.slice(cut.as_bytes());
    }

    /// A name, which is at most 63 bytes long by its type.
    pub(super) fn id(&mut self, id: &str) {
        self.u8(id.len() as u8);
        self.slice(id.as_bytes());
    }
}
