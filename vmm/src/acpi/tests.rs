//! The tables, read back as a guest reads them.

use super::*;

fn platform(vcpus: u8, slots: u64) -> Platform {
    let slot = |index| Slot { address: 0xd000_0000 + index * 0x1000, bytes: 0x1000, gsi: 5 };
    Platform { vcpus, slots: (0..slots).map(slot).collect() }
}

struct Guest {
    ram: GuestRam,
}

impl Guest {
    fn with(platform: &Platform) -> Self {
        let ram = GuestRam::new(64 << 20, false).unwrap();
        assert_eq!(write(&ram, platform), RSDP);
        Self { ram }
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    /// The whole table at `address`, with a good signature, length and checksum.
    fn table(&self, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        assert_eq!(self.bytes(address, 4), signature);
        let len = u32::from_le_bytes(self.bytes(address + 4, 4).try_into().unwrap());
        let table = self.bytes(address, len as usize);
        assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(signature));
        table
    }

    fn tables_by_root(&self) -> [Vec<u8>; 3] {
        let rsdp = self.bytes(RSDP, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp), rsdp[15]), (0, 0, 2));
        let root = self.u64(RSDP + 24);
        let xsdt = self.table(root, b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = self.table(self.u64(root + 36), b"FACP");
        let madt = self.table(self.u64(root + 44), b"APIC");
        let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
        [fadt, madt, self.table(dsdt, b"DSDT")]
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn has(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

/// Offsets: ACPI 6.5, table 5.9.
#[test]
fn the_fadt_names_reset_and_sleep_ports() {
    let [fadt, ..] = Guest::with(&platform(1, 1)).tables_by_root();
    let u32_at = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
    assert_eq!(fadt.len(), 276);
    assert_eq!(u32_at(112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "hardware-reduced, reset");
    let port = |at: usize| {
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1], "a byte-wide port");
        u64::from_le_bytes(fadt[at + 4..at + 12].try_into().unwrap())
    };
    assert_eq!((port(116), fadt[128]), (0xcf9, 6));
    assert_eq!((port(244), port(256)), (0x600, 0x601));
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 1 << 2 | 1 << 5);
}

#[test]
fn the_madt_lists_every_vcpu_and_one_ioapic() {
    for vcpus in [1, 2, 64] {
        let [_, madt, _] = Guest::with(&platform(vcpus, 0)).tables_by_root();
        assert_eq!(madt[36..40], 0xfee0_0000_u32.to_le_bytes());
        let mut rest = &madt[44..];
        let mut apics = Vec::new();
        let mut others = Vec::new();
        while let [kind, len, ..] = *rest {
            let (structure, behind) = rest.split_at(usize::from(len));
            match kind {
                0 => {
                    assert_eq!(structure[4..8], [1, 0, 0, 0], "enabled");
                    assert_eq!(structure[2], structure[3]);
                    apics.push(structure[3]);
                }
                _ => others.push(structure.to_vec()),
            }
            rest = behind;
        }
        assert_eq!(apics, (0..vcpus).collect::<Vec<_>>());
        let ioapic = [&[1, 12, 0, 0][..], &0xfec0_0000_u32.to_le_bytes(), &[0; 4]].concat();
        assert_eq!(others, [ioapic, vec![4, 6, 0xff, 0, 0, 1]]);
    }
}

#[test]
fn the_dsdt_has_a_device_for_every_slot() {
    let [.., dsdt] = Guest::with(&platform(2, 3)).tables_by_root();
    assert_eq!(has(&dsdt, b"LNRO0005\0"), 3);
    assert_eq!(has(&dsdt, b"ACPI0007\0"), 2);
    for name in [&b"ACPI0013\0"[..], b"QEMU0001\0", b"COM1", b"GED_", b"_EVT", b"_S5_"] {
        assert_eq!(has(&dsdt, name), 1, "{}", String::from_utf8_lossy(name));
    }
    // Memory32Fixed, writable, with the slot's range; then its interrupt:
    // consumer, edge, active high, exclusive.
    let range = |base: u32| [&[0x86, 9, 0, 1][..], &base.to_le_bytes(), &[0, 0x10, 0, 0]].concat();
    let interrupt = [0x89, 6, 0, 0b0011, 1, 5, 0, 0, 0];
    for base in [0xd000_0000, 0xd000_1000, 0xd000_2000] {
        assert_eq!(has(&dsdt, &[&range(base)[..], &interrupt].concat()), 1, "{base:#x}");
    }
}

/// Names in the namespace must differ, whatever there are.
#[test]
fn the_largest_machine_has_room() {
    let [.., dsdt] = Guest::with(&platform(64, 32)).tables_by_root();
    for name in [&b"C03F"[..], b"V01F"] {
        assert_eq!(has(&dsdt, name), 1, "{}", String::from_utf8_lossy(name));
    }
}

#[test]
fn tables_lie_apart() {
    let tables = tables(&platform(64, 32));
    for pair in tables.windows(2) {
        assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
        assert_eq!(pair[1].0 % 16, 0);
    }
}
