//! The DSDT: devices as AML. (ACPI 6.5, sections 5.6.9, 6 and 19; device ids:
//! `LNRO0005` virtio-mmio, `QEMU0001` pvpanic.)

use acpi_tables::{
    Aml,
    aml::{
        And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
        IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion,
        OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
    },
    sdt::Sdt,
};

use super::{OEM, OEM_REVISION, OEM_TABLE, Platform, Slot};
use crate::device::{panic_port, power, serial};

const HEADER_BYTES: u32 = 36;
/// Integers are 64 bits wide from revision 2 on.
const REVISION: u8 = 2;
/// The notification of a pressed power button.
const STATUS_CHANGE: u8 = 0x80;

pub(super) fn table(platform: &Platform) -> Vec<u8> {
    let mut system_bus = Vec::new();
    (0..platform.vcpus).for_each(|vcpu| processor(vcpu, &mut system_bus));
    serial_port(&mut system_bus);
    platform.slots.iter().zip(0..).for_each(|(slot, index)| virtio(slot, index, &mut system_bus));
    power_button(&mut system_bus);
    panic_device(&mut system_bus);
    let mut aml = Scope::raw(path("_SB_"), system_bus);
    let sleep_type = power::SLEEP_TYPE_OFF;
    Name::new(path("_S5_"), &Package::new(vec![&sleep_type, &ZERO, &ZERO, &ZERO]))
        .to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

fn processor(vcpu: u8, aml: &mut Vec<u8>) {
    Device::new(
        path(&format!("C{vcpu:03X}")),
        vec![&Name::new(path("_HID"), &"ACPI0007"), &Name::new(path("_UID"), &vcpu)],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    let port = serial::PORT as u16;
    Device::new(
        path("COM1"),
        vec![
            &Name::new(path("_HID"), &EISAName::new("PNP0501")),
            &Name::new(path("_UID"), &ZERO),
            &Name::new(
                path("_CRS"),
                &ResourceTemplate::new(vec![
                    &interrupt(serial::GSI),
                    &IO::new(port, port, 1, serial::PORTS as u8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn virtio(slot: &Slot, index: u32, aml: &mut Vec<u8>) {
    let (address, bytes) = (slot.address as u32, slot.bytes as u32);
    Device::new(
        path(&format!("V{index:03X}")),
        vec![
            &Name::new(path("_HID"), &"LNRO0005"),
            &Name::new(path("_UID"), &index),
            // Its memory accesses are coherent with the processors'.
            &Name::new(path("_CCA"), &ONE),
            &Name::new(
                path("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, address, bytes),
                    &interrupt(slot.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The button, and the event device that tells of it: its method asks which
/// events are pending, which also takes them.
fn power_button(aml: &mut Vec<u8>) {
    Device::new(
        path("PWRB"),
        vec![&Name::new(path("_HID"), &EISAName::new("PNP0C0C")), &Name::new(path("_UID"), &ZERO)],
    )
    .to_aml_bytes(aml);
    Device::new(
        path("GED_"),
        vec![
            &Name::new(path("_HID"), &"ACPI0013"),
            &Name::new(path("_UID"), &ZERO),
            &Name::new(path("_CRS"), &ResourceTemplate::new(vec![&interrupt(power::GSI)])),
            &OpRegion::new(path("EVRG"), OpRegionSpace::SystemIO, &power::EVENTS_PORT, &ONE),
            &Field::new(
                path("EVRG"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new(
                path("_EVT"),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &path("EVTS")),
                    &And::new(&Local(0), &Local(0), &power::BUTTON_PRESSED),
                    &If::new(&Local(0), vec![&Notify::new(&path("PWRB"), &STATUS_CHANGE)]),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn panic_device(aml: &mut Vec<u8>) {
    let port = panic_port::PORT;
    Device::new(
        path("PEVT"),
        vec![
            &Name::new(path("_HID"), &"QEMU0001"),
            &Name::new(path("_UID"), &ZERO),
            &Name::new(path("_CRS"), &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)])),
        ],
    )
    .to_aml_bytes(aml);
}

/// Edge-triggered, active high, not shared.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn path(name: &str) -> Path {
    Path::new(name)
}
