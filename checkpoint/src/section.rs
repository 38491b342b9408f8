//! Saved vCPU, VM and device state: named, versioned, and sorted by name.
//!
//! ```text
//!   sections := count:u16  section*
//!   section  := name_len:u8 name  version:u32  body_len:u32 body     little-endian
//! ```
//!
//! What a section's body means is the business of the device that wrote it.

use thiserror::Error;

/// Most sections of a checkpoint.
pub const SECTIONS_MAX: usize = 1024;
/// Longest section name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Largest section body, in bytes.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Largest encoded set of sections, in bytes.
pub const ENCODED_BYTES_MAX: usize = 16 << 20;

/// The state of one part of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Which part, e.g. `vcpu.00.regs` or `virtio-net.0`.
    pub name: String,
    /// The layout of `bytes`.
    pub version: u32,
    /// The state.
    pub bytes: Vec<u8>,
}

impl Section {
    /// Bytes that it takes, roughly.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.name.len() + self.bytes.len()
    }
}

/// Why sections were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SectionError {
    /// The bytes end early, go on too long, or a length is beyond its limit.
    #[error("saved state is malformed: {0}")]
    Malformed(&'static str),
    /// Names do not rise.
    #[error("saved state has section `{0}` twice or out of order")]
    Unordered(String),
    /// A section that the machine needs is not there.
    #[error("saved state lacks section `{0}`: it comes from a machine of another shape")]
    Missing(String),
    /// A section that no part of the machine wants.
    #[error("saved state has section `{0}`, which this machine does not know")]
    Unknown(String),
    /// A section of a version that this build cannot read.
    #[error("section `{name}` has version {found}, this build reads {expected}")]
    Version {
        /// Which section.
        name: String,
        /// The version that came.
        found: u32,
        /// The version that is read.
        expected: u32,
    },
}

/// The sections of one checkpoint, sorted by name, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections {
    sorted: Vec<Section>,
}

impl Sections {
    /// Sorts `sections` by name.
    ///
    /// # Errors
    ///
    /// [`SectionError`] for a name that comes twice, or anything beyond the
    /// limits of this module.
    pub fn new(mut sections: Vec<Section>) -> Result<Self, SectionError> {
        sections.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = sections.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(SectionError::Unordered(pair[0].name.clone()));
        }
        if sections.len() > SECTIONS_MAX {
            return Err(SectionError::Malformed("too many sections"));
        }
        if sections.iter().any(|s| s.name.is_empty() || s.name.len() > NAME_BYTES_MAX) {
            return Err(SectionError::Malformed("a name is empty or too long"));
        }
        if sections.iter().any(|section| section.bytes.len() > BODY_BYTES_MAX) {
            return Err(SectionError::Malformed("a body is too long"));
        }
        Ok(Self { sorted: sections })
    }

    /// The sections, rising by name.
    #[must_use]
    pub fn as_slice(&self) -> &[Section] {
        &self.sorted
    }

    /// The section called `name`, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Section> {
        let index = self.sorted.binary_search_by(|section| section.name.as_str().cmp(name));
        index.ok().map(|index| &self.sorted[index])
    }

    /// The body of section `name`, which must have version `version`.
    ///
    /// # Errors
    ///
    /// [`SectionError::Missing`] or [`SectionError::Version`].
    pub fn body(&self, name: &str, version: u32) -> Result<&[u8], SectionError> {
        let section = self.get(name).ok_or_else(|| SectionError::Missing(name.to_owned()))?;
        if section.version != version {
            return Err(SectionError::Version {
                name: name.to_owned(),
                found: section.version,
                expected: version,
            });
        }
        Ok(&section.bytes)
    }

    /// The bytes of all sections, as drawn at the module's head.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bodies: usize = self.sorted.iter().map(|section| section.bytes.len() + 80).sum();
        let mut bytes = Vec::with_capacity(bodies + 2);
        bytes.extend((self.sorted.len() as u16).to_le_bytes());
        for section in &self.sorted {
            bytes.push(section.name.len() as u8);
            bytes.extend(section.name.as_bytes());
            bytes.extend(section.version.to_le_bytes());
            bytes.extend((section.bytes.len() as u32).to_le_bytes());
            bytes.extend(&section.bytes);
        }
        bytes
    }

    /// Reads what [`Sections::encode`] wrote, all of it.
    ///
    /// # Errors
    ///
    /// [`SectionError::Malformed`] or [`SectionError::Unordered`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SectionError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(SectionError::Malformed("too many bytes"));
        }
        let mut rest = bytes;
        let count = u16::from_le_bytes(take(&mut rest)?);
        let mut sorted: Vec<Section> = Vec::with_capacity(usize::from(count).min(SECTIONS_MAX));
        for _ in 0..count {
            let [name_len] = take(&mut rest)?;
            let name = take_slice(&mut rest, usize::from(name_len))?;
            let name = std::str::from_utf8(name)
                .map_err(|_| SectionError::Malformed("a name is not text"))?
                .to_owned();
            let version = u32::from_le_bytes(take(&mut rest)?);
            let body_len = u32::from_le_bytes(take(&mut rest)?) as usize;
            let bytes = take_slice(&mut rest, body_len)?.to_vec();
            if sorted.last().is_some_and(|last| last.name >= name) {
                return Err(SectionError::Unordered(name));
            }
            sorted.push(Section { name, version, bytes });
        }
        if !rest.is_empty() {
            return Err(SectionError::Malformed("bytes are left over"));
        }
        Self::new(sorted)
    }
}

fn take_slice<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], SectionError> {
    let (taken, left) =
        rest.split_at_checked(len).ok_or(SectionError::Malformed("it ends early"))?;
    *rest = left;
    Ok(taken)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], SectionError> {
    let (taken, left) = rest.split_first_chunk().ok_or(SectionError::Malformed("it ends early"))?;
    *rest = left;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str, bytes: &[u8]) -> Section {
        Section { name: name.into(), version: 3, bytes: bytes.into() }
    }

    #[test]
    fn golden_bytes() {
        let sections = Sections::new(vec![section("b", &[9]), section("a", &[])]).unwrap();
        let golden = b"\x02\x00\x01a\x03\0\0\0\0\0\0\0\x01b\x03\0\0\0\x01\0\0\0\x09";
        assert_eq!(sections.encode(), golden);
        assert_eq!(Sections::decode(golden), Ok(sections));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = Sections::new(vec![section("a", &[1, 2]), section("b", &[3])]).unwrap();
        let bytes = whole.encode();
        for cut in 0..bytes.len() {
            assert!(Sections::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Sections::decode(&longer).is_err());
    }

    #[test]
    fn names_come_once_and_in_order() {
        assert!(Sections::new(vec![section("a", &[]), section("a", &[])]).is_err());
        let swapped = b"\x02\x00\x01b\x03\0\0\0\0\0\0\0\x01a\x03\0\0\0\0\0\0\0";
        assert_eq!(Sections::decode(swapped), Err(SectionError::Unordered("a".into())));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_sections_or_an_error(bytes: Vec<u8>) {
            if let Ok(sections) = Sections::decode(&bytes) {
                proptest::prop_assert_eq!(sections.encode(), bytes);
            }
        }
    }
}
