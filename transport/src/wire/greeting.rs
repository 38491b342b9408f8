//! Hello, Welcome and Refusal, and the choice of a protocol version.

use std::collections::BTreeSet;

use arbiter::{ImageId, Term};
use checkpoint::{
    Epoch, MemoryLayout, PageNumber, PageRun, REGIONS_MAX,
    message::{HeldImage, Hello, Machine, Refusal, Trait, Traits, Welcome},
};

use super::{
    WireError,
    octets::{Reader, TEXT_BYTES_MAX, Writer},
};

/// The protocol versions that this build speaks, newest first.
pub const VERSIONS: &[&str] = &["romulus/3"];

/// Most versions in one offer.
pub const VERSIONS_MAX: usize = 16;
/// Longest name of a version, in bytes.
pub const VERSION_BYTES_MAX: usize = 64;
/// Most traits of a machine.
pub const TRAITS_MAX: usize = 1024;
/// Longest name of a trait, in bytes.
const TRAIT_NAME_BYTES_MAX: usize = 255;
/// Most words of one trait.
pub const WORDS_MAX: usize = 1024;
/// Longest word of a trait, in bytes.
const WORD_BYTES_MAX: usize = 255;

/// The newest version of ours that is among `offered`.
#[must_use]
pub fn negotiate(offered: &[String]) -> Option<&'static str> {
    VERSIONS.iter().copied().find(|ours| offered.iter().any(|theirs| theirs == ours))
}

pub(super) fn write_hello(writer: &mut Writer, hello: &Hello) -> Result<(), WireError> {
    write_versions(writer, &hello.versions)?;
    writer.id(hello.vm.as_str());
    write_machine(writer, &hello.machine)
}

pub(super) fn read_hello(reader: &mut Reader<'_>) -> Result<Hello, WireError> {
    Ok(Hello { versions: read_versions(reader)?, vm: reader.id()?, machine: read_machine(reader)? })
}

pub(super) fn write_welcome(writer: &mut Writer, welcome: &Welcome) -> Result<(), WireError> {
    writer.text("bytes of a version's name", &welcome.version, VERSION_BYTES_MAX)?;
    writer.flag(welcome.image.is_some());
    if let Some(held) = welcome.image {
        writer.u64(held.id.get());
        writer.u64(held.committed.get());
    }
    writer.u64(welcome.staging_bytes_max);
    Ok(())
}

pub(super) fn read_welcome(reader: &mut Reader<'_>) -> Result<Welcome, WireError> {
    let version = reader.text(VERSION_BYTES_MAX)?;
    let image = if reader.flag()? { Some(read_held_image(reader)?) } else { None };
    Ok(Welcome { version, image, staging_bytes_max: reader.u64()? })
}

fn read_held_image(reader: &mut Reader<'_>) -> Result<HeldImage, WireError> {
    let id = ImageId::new(reader.u64()?);
    Ok(HeldImage { id, committed: Epoch::new(reader.u64()?) })
}

pub(super) fn write_refusal(writer: &mut Writer, refusal: &Refusal) -> Result<(), WireError> {
    match refusal {
        Refusal::Version { spoken } => {
            writer.u8(1);
            write_versions(writer, spoken)?;
        }
        Refusal::Machine { difference } => {
            writer.u8(2);
            writer.words(difference);
        }
        Refusal::Stale { current } => {
            writer.u8(3);
            writer.u64(current.get());
        }
        Refusal::Promoting => writer.u8(4),
        Refusal::Unready { reason } => {
            writer.u8(5);
            writer.words(reason);
        }
    }
    Ok(())
}

pub(super) fn read_refusal(reader: &mut Reader<'_>) -> Result<Refusal, WireError> {
    match reader.u8()? {
        1 => Ok(Refusal::Version { spoken: read_versions(reader)? }),
        2 => Ok(Refusal::Machine { difference: reader.text(TEXT_BYTES_MAX)? }),
        3 => Ok(Refusal::Stale { current: Term::new(reader.u64()?) }),
        4 => Ok(Refusal::Promoting),
        5 => Ok(Refusal::Unready { reason: reader.text(TEXT_BYTES_MAX)? }),
        _ => Err(WireError::Value("an unknown reason for a refusal")),
    }
}

fn write_versions(writer: &mut Writer, versions: &[String]) -> Result<(), WireError> {
    writer.count("protocol versions", versions.len(), VERSIONS_MAX)?;
    for version in versions {
        writer.text("bytes of a version's name", version, VERSION_BYTES_MAX)?;
    }
    Ok(())
}

fn read_versions(reader: &mut Reader<'_>) -> Result<Vec<String>, WireError> {
    let count = reader.count(VERSIONS_MAX)?;
    (0..count).map(|_| reader.text(VERSION_BYTES_MAX)).collect()
}

fn write_machine(writer: &mut Writer, machine: &Machine) -> Result<(), WireError> {
    let regions = machine.layout.regions();
    writer.u8(regions.len() as u8);
    for region in regions {
        writer.u64(region.first.get());
        writer.u64(region.count);
    }
    writer.u16(machine.vcpus);
    writer.count("traits of a machine", machine.traits.len(), TRAITS_MAX)?;
    for (name, value) in &machine.traits {
        writer.text("bytes of a trait's name", name, TRAIT_NAME_BYTES_MAX)?;
        write_trait(writer, value)?;
    }
    Ok(())
}

fn write_trait(writer: &mut Writer, value: &Trait) -> Result<(), WireError> {
    match value {
        Trait::Text(text) => {
            writer.u8(1);
            writer.text("bytes of a trait", text, TEXT_BYTES_MAX)?;
        }
        Trait::Words(words) => {
            writer.u8(2);
            write_words(writer, words)?;
        }
        Trait::Needs(words) => {
            writer.u8(3);
            write_words(writer, words)?;
        }
        Trait::Number { value, least, most } => {
            writer.u8(4);
            [value, least, most].into_iter().for_each(|number| writer.u64(*number));
        }
    }
    Ok(())
}

fn write_words(writer: &mut Writer, words: &BTreeSet<String>) -> Result<(), WireError> {
    writer.count("words of a trait", words.len(), WORDS_MAX)?;
    words.iter().try_for_each(|word| writer.text("bytes of a word", word, WORD_BYTES_MAX))
}

fn read_machine(reader: &mut Reader<'_>) -> Result<Machine, WireError> {
    let region_count = usize::from(reader.u8()?);
    if region_count > REGIONS_MAX {
        return Err(WireError::Value("too many memory regions"));
    }
    let mut regions = Vec::with_capacity(region_count);
    for _ in 0..region_count {
        let first = PageNumber::new(reader.u64()?);
        regions.push(PageRun { first, count: reader.u64()? });
    }
    let layout = MemoryLayout::new(regions)
        .map_err(|_| WireError::Value("a memory layout that no guest can have"))?;
    let vcpus = reader.u16()?;
    let mut traits = Traits::new();
    for _ in 0..reader.count(TRAITS_MAX)? {
        let name = reader.text(TRAIT_NAME_BYTES_MAX)?;
        if traits.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err(WireError::Value("traits that do not rise by name"));
        }
        traits.insert(name, read_trait(reader)?);
    }
    Ok(Machine { layout, vcpus, traits })
}

fn read_trait(reader: &mut Reader<'_>) -> Result<Trait, WireError> {
    match reader.u8()? {
        1 => Ok(Trait::Text(reader.text(TEXT_BYTES_MAX)?)),
        2 => Ok(Trait::Words(read_words(reader)?)),
        3 => Ok(Trait::Needs(read_words(reader)?)),
        4 => {
            let (value, least) = (reader.u64()?, reader.u64()?);
            Ok(Trait::Number { value, least, most: reader.u64()? })
        }
        _ => Err(WireError::Value("an unknown kind of trait")),
    }
}

fn read_words(reader: &mut Reader<'_>) -> Result<BTreeSet<String>, WireError> {
    let mut words = BTreeSet::new();
    for _ in 0..reader.count(WORDS_MAX)? {
        let word = reader.text(WORD_BYTES_MAX)?;
        if words.last().is_some_and(|last| *last >= word) {
            return Err(WireError::Value("words that do not rise"));
        }
        words.insert(word);
    }
    Ok(words)
}
