//! A kernel's modules, in the order in which they load.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use elf::{ElfBytes, endian::LittleEndian};
use lzma_rust2::XzReader;

use super::{ImageError, read};

/// Largest module that is unpacked: a damaged file shall not fill memory.
const MODULE_BYTES_MAX: u64 = 256 << 20;

/// A loadable module, unpacked.
#[derive(Debug)]
pub struct Module {
    /// Its name, `_` for `-`.
    pub name: String,
    /// Where it is, perhaps packed.
    pub file: PathBuf,
    /// Its ELF file.
    pub bytes: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug, Clone)]
pub struct Modules {
    release: String,
    folder: PathBuf,
    /// Files by name, `_` for `-`.
    files: BTreeMap<String, PathBuf>,
    /// What other kernels have as modules.
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Those of the kernel `release`, in `folder` (`/lib/modules/RELEASE`).
    ///
    /// # Errors
    ///
    /// [`ImageError::File`]
    pub fn open(release: &str, folder: &Path) -> Result<Self, ImageError> {
        let list = read(&folder.join("modules.builtin"))?;
        let list = String::from_utf8_lossy(&list);
        let builtin = list.lines().filter_map(|line| name(Path::new(line))).collect();
        let mut files = BTreeMap::new();
        collect(&folder.join("kernel"), &mut files)?;
        Ok(Self { release: release.to_owned(), folder: folder.to_owned(), files, builtin })
    }

    /// Whether the kernel has it, loadable or built in.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.builtin.contains(&name) || self.files.contains_key(&name)
    }

    /// The modules `wanted` and what they need, each after what it needs. What
    /// is built in is left out.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if one is missing or broken.
    pub fn in_order<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Module>, ImageError> {
        let (mut seen, mut ordered) = (BTreeSet::new(), Vec::new());
        for name in wanted {
            self.add(&canonical(name), &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<Module>,
    ) -> Result<(), ImageError> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self.files.get(name).ok_or_else(|| ImageError::NoModule {
            release: self.release.clone(),
            module: name.to_owned(),
            folder: self.folder.clone(),
        })?;
        let bytes = unpack(file)?;
        for needed in needs(file, &bytes)? {
            self.add(&needed, seen, ordered)?;
        }
        ordered.push(Module { name: name.to_owned(), file: file.clone(), bytes });
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    let error = |source| ImageError::File { action: "list", path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kvm_amd` of `…/kvm-amd.ko.xz`.
fn name(path: &Path) -> Option<String> {
    let (name, packing) = path.file_name()?.to_str()?.split_once(".ko")?;
    (packing.is_empty() || packing.starts_with('.')).then(|| canonical(name))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module in `path`, whatever it is packed with.
fn unpack(path: &Path) -> Result<Vec<u8>, ImageError> {
    let packed = read(path)?;
    let mut bytes = Vec::new();
    let unpacked = match path.extension().and_then(OsStr::to_str) {
        Some("ko") => return Ok(packed),
        Some("xz") => {
            XzReader::new(&packed[..], false).take(MODULE_BYTES_MAX).read_to_end(&mut bytes)
        }
        Some("zst") => zstd::Decoder::new(&packed[..])
            .and_then(|decoder| decoder.take(MODULE_BYTES_MAX).read_to_end(&mut bytes)),
        _ => return Err(ImageError::Packed { path: path.to_owned() }),
    };
    match unpacked {
        Ok(_) => Ok(bytes),
        Err(error) => Err(damaged(path, &error)),
    }
}

/// The modules that one names in its section `.modinfo`: strings of the form
/// `key=value`, each ended by a zero byte.
fn needs(path: &Path, module: &[u8]) -> Result<Vec<String>, ImageError> {
    let error = |error: elf::ParseError| damaged(path, &error);
    let file = ElfBytes::<LittleEndian>::minimal_parse(module).map_err(error)?;
    let section = file.section_header_by_name(".modinfo").map_err(error)?;
    let section = section.ok_or_else(|| damaged(path, &"it is no module"))?;
    let (info, _) = file.section_data(&section).map_err(error)?;
    let mut lines = info.split(|byte| *byte == 0);
    let Some(names) = lines.find_map(|line| line.strip_prefix(b"depends=")) else {
        return Ok(Vec::new());
    };
    let names = String::from_utf8_lossy(names);
    Ok(names.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

fn damaged(path: &Path, reason: &dyn std::fmt::Display) -> ImageError {
    ImageError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF file with the sections `.modinfo` and `.shstrtab` and no others.
    fn module(depends: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let (names_at, info_at) = (64, 64 + names.len());
        let sections_at = info_at + info.len();
        let mut file = vec![0; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..20].copy_from_slice(&[1, 0, 62, 0]);
        file[20] = 1;
        file[0x28..0x30].copy_from_slice(&(sections_at as u64).to_le_bytes());
        file[0x34..0x40].copy_from_slice(&[64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
        file.extend_from_slice(names);
        file.extend_from_slice(info.as_bytes());
        let section = |name: u32, kind: u32, at: usize, bytes: usize| {
            let words = [0, 0, at as u64, bytes as u64, 0, 1, 0];
            let words = words.into_iter().flat_map(u64::to_le_bytes);
            [name, kind].into_iter().flat_map(u32::to_le_bytes).chain(words).collect::<Vec<u8>>()
        };
        file.extend(section(0, 0, 0, 0));
        file.extend(section(1, 1, info_at, info.len()));
        file.extend(section(10, 3, names_at, names.len()));
        file
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    /// A kernel's folder with files below `kernel/`, and `virtio_ring` built in.
    fn modules(folder: &Path, files: &[(&str, Vec<u8>)]) -> Modules {
        fs::write(folder.join("modules.builtin"), "kernel/lib/virtio-ring.ko\n").unwrap();
        fs::create_dir_all(folder.join("kernel/net")).unwrap();
        for (name, bytes) in files {
            fs::write(folder.join("kernel/net").join(name), bytes).unwrap();
        }
        Modules::open("6.0-test", folder).unwrap()
    }

    #[test]
    fn modules_come_after_what_they_need_however_they_are_packed() {
        let folder = tempfile::tempdir().unwrap();
        let modules = modules(
            folder.path(),
            &[
                ("virtio_net.ko", module("net-failover,virtio_ring")),
                ("net_failover.ko.xz", xz(&module("failover"))),
                ("failover.ko.zst", zstd::encode_all(&module("")[..], 1).unwrap()),
            ],
        );
        assert!(modules.has("virtio-ring") && modules.has("failover") && !modules.has("none"));
        let ordered = modules.in_order(["virtio_ring", "virtio-net", "failover"]).unwrap();
        let names: Vec<&str> = ordered.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
        assert_eq!(ordered[1].bytes, module("failover"));
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cut = xz(&module(""));
        let modules = modules(
            folder.path(),
            &[
                ("gz.ko.gz", vec![0x1f, 0x8b]),
                ("cut.ko.xz", cut[..cut.len() / 2].to_vec()),
                ("odd.ko", b"not a module".to_vec()),
                ("needy.ko", module("gone")),
            ],
        );
        for (name, words) in [
            ("none", ["6.0-test has no none", "--kernel"]),
            ("gz", ["gz.ko.gz is packed", "unpack it"]),
            ("cut", ["cut.ko.xz is damaged", "install it again"]),
            ("odd", ["odd.ko is damaged", "install it again"]),
            ("needy", ["has no gone", "kernel"]),
        ] {
            let told = modules.in_order([name]).unwrap_err().to_string();
            assert!(words.iter().all(|word| told.contains(word)), "{name}: {told}");
        }
    }
}
