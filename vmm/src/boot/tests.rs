//! Whole guests put into RAM, without KVM.

use super::*;
use crate::acpi::Slot;

const MIB: u64 = 1 << 20;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn config(&self, kernel: &[u8], initrd: Option<&[u8]>) -> BootConfig {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.0.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        BootConfig {
            kernel: write("kernel", kernel),
            initrd: initrd.map(|bytes| write("initrd", bytes)),
            cmdline: "console=ttyS0".into(),
            protocol: BootProtocol::Auto,
        }
    }
}

fn ram() -> GuestRam {
    GuestRam::new(64 * MIB, false).unwrap()
}

fn load_into(ram: &GuestRam, config: &BootConfig) -> Result<BootRegisters, BootError> {
    let slots = vec![Slot { address: 0xd000_0000, bytes: 0x1000, gsi: 5 }];
    load(ram, config, &Platform { vcpus: 1, slots }, "virtio_mmio.device=4K@0xd0000000:5")
}

fn read(ram: &GuestRam, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

#[test]
fn a_bzimage_gets_its_initrd_and_no_parameters_of_devices() {
    let (folder, ram) = (Folder::new(), ram());
    let kernel = bzimage::fake(&[0xf4; 600], 16 * MIB, 4 << 20);
    load_into(&ram, &folder.config(&kernel, Some(b"0707"))).unwrap();
    assert_eq!(read(&ram, CMDLINE, 14), b"console=ttyS0\0");
    assert_eq!(read(&ram, 16 * MIB + 0x200, 1), [0xf4]);
    assert_eq!(read(&ram, 64 * MIB - 4096, 5), b"0707\0");
    assert_eq!(read(&ram, 0xe_0000, 8), b"RSD PTR ");
    assert_eq!(read(&ram, 0xf_fff0, 6), b"\xb0\x06\xba\xf9\x0c\xee");
    assert_eq!(read(&ram, 0x7218, 8), [0, 0xf0, 0xff, 3, 4, 0, 0, 0]);
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_before_anything_is_written() {
    let (folder, ram) = (Folder::new(), ram());
    let kernel = bzimage::fake(&[0xf4; 600], 16 * MIB, 40 << 20);
    let config = folder.config(&kernel, Some(&vec![1; 9 << 20]));
    let error = load_into(&ram, &config).unwrap_err();
    assert!(matches!(error, BootError::Initrd { .. }), "{error}");
    assert!(error.to_string().contains("0x3800000 and 0x4000000"), "{error}");
    assert_eq!(read(&ram, 16 * MIB, 1), [0]);
    let gone = BootConfig { initrd: Some(folder.0.path().join("gone")), ..config.clone() };
    assert!(matches!(load_into(&ram, &gone), Err(BootError::Read { .. })));
    let empty = folder.config(&kernel, Some(b""));
    assert!(matches!(load_into(&ram, &empty), Err(BootError::InitrdEmpty { .. })));
}

#[test]
fn a_protocol_that_the_image_has_not_is_refused() {
    let (folder, ram) = (Folder::new(), ram());
    let config = folder.config(&bzimage::fake(&[0xf4; 600], 16 * MIB, 0), None);
    for protocol in [BootProtocol::Pvh, BootProtocol::LongMode] {
        let config = BootConfig { protocol, ..config.clone() };
        assert!(matches!(load_into(&ram, &config), Err(BootError::BzImageByOther { .. })));
    }
    let config = folder.config(b"\x7fELF", None);
    let config = BootConfig { protocol: BootProtocol::Linux, ..config };
    assert!(matches!(load_into(&ram, &config), Err(BootError::ElfByLinux { .. })));
}

#[test]
fn a_command_line_is_as_long_as_the_kernel_takes() {
    let (folder, ram) = (Folder::new(), ram());
    let config = folder.config(&bzimage::fake(&[0xf4; 600], 16 * MIB, 0), None);
    let with = |cmdline: String| BootConfig { cmdline, ..config.clone() };
    assert!(load_into(&ram, &with("x".repeat(2047))).is_ok());
    for cmdline in ["x".repeat(2048), "a\0b".into()] {
        let error = load_into(&ram, &with(cmdline)).unwrap_err();
        assert!(matches!(error, BootError::Cmdline { bytes_max: 2047, .. }), "{error}");
    }
}

#[test]
fn what_an_earlier_guest_left_in_low_memory_is_gone() {
    let (folder, ram) = (Folder::new(), ram());
    ram.memory().write_slice(&[0xff; 0x9_f000], GuestAddress(0)).unwrap();
    let config = folder.config(&bzimage::fake(&[0xf4; 600], 16 * MIB, 0), None);
    load_into(&ram, &config).unwrap();
    // The second entry of the top page table, and behind the GDT.
    assert_eq!(read(&ram, 0x9008, 8), [0; 8]);
    assert_eq!(read(&ram, 0x528, 8), [0; 8]);
}

/// An ELF file whose segments have nothing in the file: (address, bytes).
fn elf(segments: &[(u64, u64)]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[20] = 1;
    file[24..32].copy_from_slice(&(2 * MIB).to_le_bytes());
    file[32] = 64;
    file[52..58].copy_from_slice(&[64, 0, 56, 0, segments.len() as u8, 0]);
    for (address, bytes) in segments {
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        for number in [0, *address, *address, 0, *bytes, 1] {
            file.extend(number.to_le_bytes());
        }
    }
    file
}

#[test]
fn what_is_not_in_an_elf_file_is_zero_and_no_more_than_the_ram() {
    let (folder, ram) = (Folder::new(), ram());
    let end = 42 * MIB + 5;
    ram.memory().write_slice(&[7; 6], GuestAddress(end - 5)).unwrap();
    let once = folder.config(&elf(&[(2 * MIB, end - 2 * MIB)]), None);
    load_into(&ram, &once).unwrap();
    assert_eq!(read(&ram, end - 5, 6), [0, 0, 0, 0, 0, 7]);
    let again = folder.config(&elf(&[(2 * MIB, 40 * MIB), (2 * MIB, 40 * MIB)]), None);
    assert!(matches!(load_into(&ram, &again), Err(BootError::DoesNotFit { .. })));
}
