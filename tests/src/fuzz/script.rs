//! Reads an input as a script: steps, and numbers for them. Every input is a
//! script, and numbers beyond its end are zero.

/// What is left of a script.
#[derive(Debug)]
pub(super) struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next step; `None` at the end.
    pub(super) fn step(&mut self) -> Option<u8> {
        let (step, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*step)
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.step().unwrap_or(0)
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(super) fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number near `near`, near 0 or near the largest: what breaks sums.
    pub(super) fn number_near(&mut self, near: u64) -> u64 {
        match self.u8() {
            0xff => u64::MAX,
            0xfe => u64::MAX - 1,
            0xfd => self.u64(),
            0xfc => 0,
            0xfb => 1 << 63,
            offset => near.wrapping_add(u64::from(offset)).wrapping_sub(0x40),
        }
    }

    /// Up to `len` bytes.
    pub(super) fn slice(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Bytes with their number before them, as a `u16`.
    pub(super) fn counted(&mut self) -> &'a [u8] {
        let len = self.u16();
        self.slice(usize::from(len))
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.slice(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}
