//! The tables of fixed layout: RSDP, XSDT, FADT, MADT. (ACPI 6.5, section 5.2.)

use acpi_tables::{
    Aml,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::device::power;

/// Bytes of the RSDP.
pub(super) const RSDP_BYTES: u64 = 36;
/// Where KVM's interrupt controllers are.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
/// FADT, `IAPC_BOOT_ARCH`: there is no VGA and no CMOS clock; as bit 1 is
/// clear, there is no keyboard controller either.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;
/// MADT header, before its structures.
const MADT_HEADER_BYTES: u32 = 44;
/// Every processor, in a structure that names one.
const ALL_PROCESSORS: u8 = 0xff;

pub(super) fn rsdp(xsdt: u64) -> Vec<u8> {
    bytes(&Rsdp::new(OEM, xsdt))
}

pub(super) fn xsdt(entries: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    entries.iter().for_each(|entry| xsdt.add_entry(*entry));
    bytes(&xsdt)
}

/// Hardware-reduced; the power button is a device, and there is none to sleep.
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(power::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS_PORT);
    bytes(&fadt.finalize())
}

/// Local APICs and the IOAPIC, without overrides: see the module above.
pub(super) fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", MADT_HEADER_BYTES, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.write_u32(36, LOCAL_APIC);
    let mut structures = Vec::new();
    for vcpu in 0..vcpus {
        ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled).to_aml_bytes(&mut structures);
    }
    IoApic::new(0, IOAPIC, 0).to_aml_bytes(&mut structures);
    // Local APIC NMI (section 5.2.12.7): LINT1, polarity and trigger as usual.
    structures.extend([4, 6, ALL_PROCESSORS, 0, 0, 1]);
    madt.append_slice(&structures);
    madt.as_slice().to_vec()
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
