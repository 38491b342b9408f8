//! Saved state as a primary sends it: the encoding of sections, and what
//! devices, machine and vCPUs make of theirs.

use checkpoint::{Section, Sections};
use vmm::{
    device::loose::LooseDevices,
    fuzz::{machine_sections, read_machine_state},
};

use super::{Verdict, devices, scratch, script::Script};

/// Longest body that a step writes, in bytes.
const BODY_BYTES_MAX: usize = 4096;

pub(super) fn run_sections(bytes: &[u8]) -> Verdict {
    let decoded = Sections::decode(bytes);
    if let Ok(sections) = &decoded {
        assert_eq!(sections.encode(), bytes, "sections of two spellings");
        for section in sections.as_slice() {
            assert_eq!(sections.get(&section.name), Some(section));
        }
    }
    Verdict::of(&decoded)
}

/// Sound state, changed in steps, and restored.
///
/// ```text
///   step := action:u8  section:u8  ...
///           0 at:u16 octets    overwrite      3 version:u32      say so
///           1 len:u16          shorten        4                  empty
///           2 octets           append
/// ```
pub(super) fn run(bytes: &[u8]) -> Verdict {
    let folder = scratch::folder();
    let mut loose = devices::loose(folder.path());
    let mut sections = loose.devices().save();
    let of_devices = sections.len();
    sections.extend(machine_sections());
    change(&mut sections, &mut Script::new(bytes));
    let of_machine = sections.split_off(of_devices.min(sections.len()));
    let devices = Sections::new(sections).map(|sections| restore(&mut loose, &sections));
    let machine = Sections::new(of_machine).map(|sections| read_machine_state(&sections));
    if matches!((devices, machine), (Ok(true), Ok(Ok(())))) {
        Verdict::Taken
    } else {
        Verdict::Refused
    }
}

fn change(sections: &mut [Section], script: &mut Script<'_>) {
    while let Some(action) = script.step() {
        let index = usize::from(script.u8());
        let len = sections.len();
        let Some(section) = sections.get_mut(index % len.max(1)) else { return };
        match action % 5 {
            0 => {
                let at = usize::from(script.u16()).min(section.bytes.len());
                let octets = script.counted();
                let end = (at + octets.len()).min(section.bytes.len());
                section.bytes[at..end].copy_from_slice(&octets[..end - at]);
            }
            1 => section.bytes.truncate(usize::from(script.u16())),
            2 => {
                let octets = script.counted();
                section.bytes.extend(&octets[..octets.len().min(BODY_BYTES_MAX)]);
            }
            3 => section.version = script.u32(),
            _ => section.bytes.clear(),
        }
    }
}

/// Takes the state over, if it is sound; what is saved then is sound, too, and
/// the same.
fn restore(loose: &mut LooseDevices, sections: &Sections) -> bool {
    let before = loose.devices().save();
    if loose.devices().restore(sections).is_err() {
        assert_eq!(loose.devices().save(), before, "state that was taken over in part");
        return false;
    }
    let saved = Sections::new(loose.devices().save()).expect("state of our own");
    loose.devices().restore(&saved).expect("state of our own");
    assert_eq!(Sections::new(loose.devices().save()), Ok(saved), "state that changes by itself");
    loose.devices().unpark();
    loose.deliver(&[0xff; 60]);
    loose.serve();
    loose.devices().park();
    drop(Sections::new(loose.devices().save()).expect("state of our own"));
    true
}
