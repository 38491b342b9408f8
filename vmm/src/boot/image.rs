//! What a kernel's file is, by its first bytes.

use std::path::Path;

use super::BootError;

/// The setup header's magic (Linux `Documentation/arch/x86/boot.rst`).
const SETUP_MAGIC_AT: usize = 0x202;
const SETUP_MAGIC: &[u8] = b"HdrS";

/// Formats that kernels are packed in: first bytes, name, how to unpack.
const COMPRESSIONS: [(&[u8], &str, &str); 6] = [
    (&[0x1f, 0x8b], "gzip", "gunzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "unxz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "unzstd"),
    (&[0x04, 0x22, 0x4d, 0x18], "lz4", "unlz4"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4 (legacy)", "unlz4"),
    (b"BZh", "bzip2", "bunzip2"),
];

/// A kernel's file.
#[derive(Debug)]
pub(super) enum Image {
    /// Linux with its setup header.
    BzImage(Vec<u8>),
    /// An ELF file.
    Elf(Vec<u8>),
}

impl Image {
    pub(super) fn read(path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { path: path.to_owned(), source };
        Self::recognise(path, std::fs::read(path).map_err(read)?)
    }

    fn recognise(path: &Path, file: Vec<u8>) -> Result<Self, BootError> {
        // A bzImage with an EFI stub is an EFI program, too: this comes first.
        if file.get(SETUP_MAGIC_AT..SETUP_MAGIC_AT + 4) == Some(SETUP_MAGIC) {
            return Ok(Self::BzImage(file));
        }
        if file.starts_with(b"\x7fELF") {
            return Ok(Self::Elf(file));
        }
        let path = path.to_owned();
        if let Some((_, format, command)) =
            COMPRESSIONS.into_iter().find(|(magic, ..)| file.starts_with(magic))
        {
            return Err(BootError::Compressed { path, format, command });
        }
        if file.starts_with(b"MZ") {
            return Err(BootError::Efi { path });
        }
        Err(BootError::NoKernel { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognise(file: &[u8]) -> Result<Image, String> {
        let error = |error: BootError| error.to_string();
        Image::recognise(Path::new("k"), file.to_vec()).map_err(error)
    }

    #[test]
    fn the_content_decides() {
        let mut bzimage = vec![0; 0x206];
        bzimage[..2].copy_from_slice(b"MZ");
        bzimage[0x202..].copy_from_slice(b"HdrS");
        assert!(matches!(recognise(&bzimage), Ok(Image::BzImage(_))));
        assert!(matches!(recognise(b"\x7fELF..."), Ok(Image::Elf(_))));
    }

    #[test]
    fn what_is_no_kernel_is_named_with_its_remedy() {
        for (file, words) in [
            (&[0x28, 0xb5, 0x2f, 0xfd, 9][..], ["zstd", "unzstd"]),
            (&[0x1f, 0x8b, 8], ["gzip", "gunzip"]),
            (b"MZ..", ["EFI", "objcopy"]),
            (b"#!/bin/sh\n", ["neither", "vmlinuz"]),
            (b"", ["neither", "vmlinuz"]),
        ] {
            let told = recognise(file).unwrap_err();
            assert!(words.iter().all(|word| told.contains(word)), "{told}");
        }
    }
}
