//! This very program, as a file that runs in a guest: what of it is loaded,
//! and the libraries that this process has loaded for it.

use std::{collections::BTreeSet, path::Path};

use elf::{ElfBytes, abi, endian::LittleEndian};

use super::{ImageError, read};

/// The program that runs.
const OWN_FILE: &str = "/proc/self/exe";
const OWN_MAPPINGS: &str = "/proc/self/maps";
/// Offsets in the ELF header (System V ABI, "ELF Header"): where the table of
/// sections is, and how many it has and which of them has their names.
const SECTIONS_AT: std::ops::Range<usize> = 0x28..0x30;
const SECTION_COUNTS: std::ops::Range<usize> = 0x3c..0x40;
/// Where the ABI has the loader; libraries are put beside it.
const LOADER_FOLDERS: [&str; 2] = ["/lib64", "/lib"];

/// A program and its libraries, the loader among them, by file name.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) bytes: Vec<u8>,
    pub(super) libraries: Vec<(String, Vec<u8>)>,
}

impl Program {
    /// The program that runs.
    pub(super) fn own() -> Result<Self, ImageError> {
        let own = Path::new(OWN_FILE);
        let bytes = loaded_part(read(own)?)?;
        check_loader(&bytes)?;
        let mappings = read(Path::new(OWN_MAPPINGS))?;
        let mut libraries = Vec::new();
        for path in libraries_in(&String::from_utf8_lossy(&mappings)) {
            let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
            libraries.push((name, read(Path::new(&path))?));
        }
        Ok(Self { bytes, libraries })
    }
}

/// `file` without what only debuggers read, which is most of it.
fn loaded_part(mut file: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    let segments = parse(&file)?.segments().ok_or_else(|| damaged(&"it has no segments"))?;
    let loaded = segments.iter().filter(|segment| segment.p_type == abi::PT_LOAD);
    let end = loaded.map(|segment| segment.p_offset + segment.p_filesz).max().unwrap_or(0);
    if end == 0 || end > file.len() as u64 {
        return Err(damaged(&"it is cut off"));
    }
    file.truncate(end as usize);
    for gone in [SECTIONS_AT, SECTION_COUNTS] {
        file[gone].fill(0);
    }
    Ok(file)
}

fn check_loader(file: &[u8]) -> Result<(), ImageError> {
    let parsed = parse(file)?;
    let mut segments = parsed.segments().into_iter().flat_map(|segments| segments.iter());
    let Some(named) = segments.find(|segment| segment.p_type == abi::PT_INTERP) else {
        return Ok(());
    };
    let loader = parsed.segment_data(&named).map_err(|error| damaged(&error))?;
    let loader = String::from_utf8_lossy(loader).trim_end_matches('\0').to_owned();
    let folder = loader.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    match folder {
        Some(folder) if LOADER_FOLDERS.contains(&folder.as_str()) => Ok(()),
        _ => Err(ImageError::Loader { loader }),
    }
}

/// Shared objects in the table of a process's mappings: address, permissions,
/// offset, device, inode, path. (proc_pid_maps(5))
fn libraries_in(mappings: &str) -> BTreeSet<String> {
    let path = |line: &str| {
        let start = line.find('/')?;
        let path = &line[start..];
        let name = path.rsplit('/').next()?;
        (name.ends_with(".so") || name.contains(".so.")).then(|| path.to_owned())
    };
    mappings.lines().filter_map(path).collect()
}

fn parse(file: &[u8]) -> Result<ElfBytes<'_, LittleEndian>, ImageError> {
    ElfBytes::minimal_parse(file).map_err(|error| damaged(&error))
}

fn damaged(reason: &dyn std::fmt::Display) -> ImageError {
    ImageError::Damaged { path: OWN_FILE.into(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_loaded_is_kept() {
        let whole = std::fs::read(OWN_FILE).unwrap();
        let part = loaded_part(whole.clone()).unwrap();
        assert!(part.len() < whole.len(), "this test has its symbols behind what is loaded");
        assert!(parse(&part).unwrap().section_headers().is_none_or(|table| table.is_empty()));
        assert_eq!(loaded_part(part.clone()).unwrap(), part);
        assert!(loaded_part(part[..part.len() - 1].to_vec()).is_err());
        assert!(loaded_part(b"#!/bin/sh\n".to_vec()).is_err());
    }

    #[test]
    fn libraries_are_found_among_mappings() {
        let text = "55d0-55d1 r--p 00000000 fe:00 11 /usr/bin/romulus\n\
                    7f00-7f01 r-xp 00026000 fe:00 12 /lab/lib/libc.so.6\n\
                    7f01-7f02 r--p 00026000 fe:00 12 /lab/lib/libc.so.6\n\
                    7f02-7f03 r--p 00000000 fe:00 13 /usr/lib/ld-linux-x86-64.so.2\n\
                    7f03-7f04 rw-p 00000000 00:00 0\n\
                    7f04-7f05 rw-s 00000000 00:01 7 /memfd:guest (deleted)\n\
                    7fff-8000 r-xp 00000000 00:00 0 [vdso]\n";
        let found: Vec<_> = libraries_in(text).into_iter().collect();
        assert_eq!(found, ["/lab/lib/libc.so.6", "/usr/lib/ld-linux-x86-64.so.2"]);
    }
}
