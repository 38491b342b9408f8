//! The state around the vCPUs: interrupt controllers, timer, shape.
//!
//! ```text
//!   vm.shape := vcpus:u8  memory_bytes:u64  xsave_bytes:u32  cpuid_digest:[u8; 32]
//! ```

use checkpoint::{Section, Sections};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use super::{
    StateError, VERSION,
    clock::CLOCK,
    plain::{Plain, bytes_of, from_bytes},
};
use crate::host::fingerprint::Fingerprint;

const CHIPS: [(u32, &str); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, "vm.irqchip.0"),
    (KVM_IRQCHIP_PIC_SLAVE, "vm.irqchip.1"),
    (KVM_IRQCHIP_IOAPIC, "vm.irqchip.2"),
];
const PIT: &str = "vm.pit2";
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
    sections.push(section(SHAPE, shape.to_vec()));
    Ok(sections)
}

/// The machine's state, read from its sections: of the right sizes, and
/// otherwise for KVM to judge.
pub(crate) struct MachineState {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

impl MachineState {
    /// Reads the machine's sections.
    pub(crate) fn decode(sections: &Sections) -> Result<Self, StateError> {
        let mut chips = Vec::new();
        for (chip_id, name) in CHIPS {
            let chip: kvm_irqchip = one(sections, name)?;
            if chip.chip_id != chip_id {
                return Err(StateError::Shape("interrupt controllers"));
            }
            chips.push(chip);
        }
        Ok(Self { chips, pit: one(sections, PIT)? })
    }
}

/// Sets the machine's state; vCPUs must be parked and are restored after it.
///
/// KVM lets all counts of the timer begin anew (since Linux 4.4), whatever the
/// state says of when they were loaded, which is the other host's time. A guest
/// that waits for a count to run out waits longer, once.
pub(crate) fn restore(vm: &VmFd, sections: &Sections) -> Result<(), StateError> {
    let state = MachineState::decode(sections)?;
    for chip in &state.chips {
        vm.set_irqchip(chip).map_err(error("KVM_SET_IRQCHIP"))?;
    }
    vm.set_pit2(&state.pit).map_err(error("KVM_SET_PIT2"))
}

/// Interrupt controllers and timer of a machine that was never run.
#[cfg(feature = "fuzz")]
pub(crate) fn zeroed() -> Vec<Section> {
    let section = |name: &str, bytes| Section { name: name.to_owned(), version: VERSION, bytes };
    let mut sections = vec![section(PIT, bytes_of(&[kvm_pit_state2::default()]))];
    for (chip_id, name) in CHIPS {
        sections.push(section(name, bytes_of(&[kvm_irqchip { chip_id, ..Default::default() }])));
    }
    sections
}

/// `vm.shape` with this body.
#[cfg(feature = "fuzz")]
pub(crate) fn shape_section(body: &[u8]) -> Section {
    Section { name: SHAPE.to_owned(), version: VERSION, bytes: body.to_vec() }
}

/// The body of `vm.shape`.
pub(crate) fn shape(vcpus: u8, memory_bytes: u64, fingerprint: &Fingerprint) -> Vec<u8> {
    let mut bytes = vec![vcpus];
    bytes.extend(memory_bytes.to_le_bytes());
    bytes.extend(fingerprint.xsave_bytes.to_le_bytes());
    bytes.extend(fingerprint.cpuid_digest());
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
    match () {
        () if differs(0..1) => Err(StateError::Shape("vcpus")),
        () if differs(1..9) => Err(StateError::Shape("memory size")),
        () if differs(9..13) => Err(StateError::Shape("extended state size (xsave)")),
        () if differs(13..45) => Err(StateError::Shape("cpu features")),
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

    #[test]
    fn another_shape_is_refused_by_name() {
        let part = |range: std::ops::Range<usize>| {
            let mut bytes = vec![7; 45];
            bytes[range].fill(8);
            bytes
        };
        let ours = part(0..0);
        let cases = [
            (part(0..0), None),
            (part(0..1), Some("vcpus")),
            (part(8..9), Some("memory size")),
            (part(12..13), Some("extended state size (xsave)")),
            (part(13..14), Some("cpu features")),
            (part(44..45), Some("cpu features")),
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
