//! Little-endian reading of saved device state: bounded, and all of it.

use checkpoint::SectionError;

/// What is left of a section's body.
pub(crate) struct Body<'a> {
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, SectionError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, SectionError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, SectionError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, SectionError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes with their number before them, as a `u16`.
    pub(crate) fn counted(&mut self) -> Result<&'a [u8], SectionError> {
        let len = usize::from(self.u16()?);
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or(SectionError::Malformed("it ends early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), SectionError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(SectionError::Malformed("bytes are left over"))
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SectionError> {
        let (taken, rest) =
            self.rest.split_first_chunk().ok_or(SectionError::Malformed("it ends early"))?;
        self.rest = rest;
        Ok(*taken)
    }
}
