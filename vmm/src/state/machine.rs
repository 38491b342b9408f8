//! The state around the vCPUs: interrupt controllers, timer, clock, shape.
//!
//! ```text
//!   vm.shape := vcpus:u8  memory_bytes:u64  tsc_khz:u32  xsave_bytes:u32  cpuid_digest:[u8; 32]
//! ```
//!
//! A TSC frequency within the kernel's tolerance is the same; another one is
//! refused here, because a guest that has measured its TSC keeps wrong time
//! on it (scaling it is set when vCPUs are made, not when state arrives).

use checkpoint::{Section, Sections};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;

use super::{
    StateError, VERSION,
    plain::{Plain, bytes_of, from_bytes},
};
use crate::host::fingerprint::{Fingerprint, tsc_matches};

const CHIPS: [(u32, &str); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, "vm.irqchip.0"),
    (KVM_IRQCHIP_PIC_SLAVE, "vm.irqchip.1"),
    (KVM_IRQCHIP_IOAPIC, "vm.irqchip.2"),
];
const PIT: &str = "vm.pit2";
const CLOCK: &str = "vm.clock";
const SHAPE: &str = "vm.shape";

/// The names of the machine's sections.
pub(crate) fn section_names() -> impl Iterator<Item = String> {
    let chips = CHIPS.iter().map(|(_, name)| *name);
    chips.chain([PIT, CLOCK, SHAPE]).map(str::to_owned)
}

/// Reads the machine's state; vCPUs must be parked.
pub(crate) fn save(vm: &VmFd, shape: &[u8]) -> Result<Vec<Section>, StateError> {
    let section = |name: &str, bytes| Section { name: name.to_owned(), version: VERSION, bytes };
    let mut sections = Vec::new();
    for (chip_id, name) in CHIPS {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(error("KVM_GET_IRQCHIP"))?;
        sections.push(section(name, bytes_of(&[chip])));
    }
    let pit = vm.get_pit2().map_err(error("KVM_GET_PIT2"))?;
    sections.push(section(PIT, bytes_of(&[pit])));
    let clock = vm.get_clock().map_err(error("KVM_GET_CLOCK"))?;
    sections.push(section(CLOCK, bytes_of(&[clock])));
    sections.push(section(SHAPE, shape.to_vec()));
    Ok(sections)
}

/// Sets the machine's state; vCPUs must be parked and are restored after it.
pub(crate) fn restore(vm: &VmFd, sections: &Sections) -> Result<(), StateError> {
    for (chip_id, name) in CHIPS {
        let chip: kvm_irqchip = one(sections, name)?;
        if chip.chip_id != chip_id {
            return Err(StateError::Shape("interrupt controllers"));
        }
        vm.set_irqchip(&chip).map_err(error("KVM_SET_IRQCHIP"))?;
    }
    vm.set_pit2(&one(sections, PIT)?).map_err(error("KVM_SET_PIT2"))?;
    let saved: kvm_clock_data = one(sections, CLOCK)?;
    // No flags: the clock goes on from here, not from what time it is now.
    let clock = kvm_clock_data { clock: saved.clock, ..Default::default() };
    vm.set_clock(&clock).map_err(error("KVM_SET_CLOCK"))
}

/// The body of `vm.shape`.
pub(crate) fn shape(vcpus: u8, memory_bytes: u64, fingerprint: &Fingerprint) -> Vec<u8> {
    let mut bytes = vec![vcpus];
    bytes.extend(memory_bytes.to_le_bytes());
    bytes.extend(fingerprint.tsc_khz.to_le_bytes());
    bytes.extend(fingerprint.xsave_bytes.to_le_bytes());
    bytes.extend(fingerprint.cpuid_digest);
    bytes
}

/// Whether state in `sections` fits a machine of shape `ours`.
pub(crate) fn check_shape(sections: &Sections, ours: &[u8]) -> Result<(), StateError> {
    let theirs = sections.body(SHAPE, VERSION)?;
    if theirs.len() != ours.len() {
        let (found, expected) = (theirs.len(), ours.len());
        return Err(StateError::Size { name: SHAPE.to_owned(), found, expected });
    }
    let differs = |range: std::ops::Range<usize>| theirs[range.clone()] != ours[range];
    let tsc_khz = |shape: &[u8]| u32::from_le_bytes(shape[9..13].try_into().expect("four bytes"));
    match () {
        () if differs(0..1) => Err(StateError::Shape("vcpus")),
        () if differs(1..9) => Err(StateError::Shape("memory size")),
        () if differs(13..17) => Err(StateError::Shape("extended state size (xsave)")),
        () if differs(17..49) => Err(StateError::Shape("cpu features")),
        () if !tsc_matches(tsc_khz(theirs), tsc_khz(ours)) => {
            Err(StateError::Shape("tsc frequency"))
        }
        () => Ok(()),
    }
}

fn one<T: Plain>(sections: &Sections, name: &str) -> Result<T, StateError> {
    let bytes = sections.body(name, VERSION)?;
    if bytes.len() != size_of::<T>() {
        let (found, expected) = (bytes.len(), size_of::<T>());
        return Err(StateError::Size { name: name.to_owned(), found, expected });
    }
    Ok(from_bytes(bytes).expect("its size was checked")[0])
}

fn error(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |error| StateError::kvm(call, "the machine")(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(tsc_khz: u32) -> Fingerprint {
        Fingerprint {
            cpu_vendor: "x".into(),
            cpuid_digest: [3; 32],
            xsave_bytes: 4096,
            msrs: vec![],
            tsc_khz,
            backend: "pvm",
        }
    }

    #[test]
    fn another_shape_is_refused_by_name() {
        let ours = shape(2, 1 << 30, &fingerprint(2_000_000));
        let cases = [
            (shape(2, 1 << 30, &fingerprint(2_000_100)), None),
            (shape(1, 1 << 30, &fingerprint(2_000_000)), Some("vcpus")),
            (shape(2, 1 << 31, &fingerprint(2_000_000)), Some("memory size")),
            (shape(2, 1 << 30, &fingerprint(2_100_000)), Some("tsc frequency")),
        ];
        for (bytes, expected) in cases {
            let section = Section { name: SHAPE.into(), version: VERSION, bytes };
            let sections = Sections::new(vec![section]).unwrap();
            let found = match check_shape(&sections, &ours) {
                Ok(()) => None,
                Err(StateError::Shape(what)) => Some(what),
                Err(other) => panic!("{other}"),
            };
            assert_eq!(found, expected);
        }
    }
}
