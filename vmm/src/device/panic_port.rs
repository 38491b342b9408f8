//! The port by which a kernel says that it has panicked: pvpanic, as QEMU has
//! it (QEMU `docs/specs/pvpanic.rst`). Linux's `pvpanic-mmio` finds it by ACPI
//! (`QEMU0001`) from Linux 5.12 on.
//!
//! What was said is part of the state, so that a host that takes the guest
//! over reacts to it, too. Section `pvpanic`, version 1: `said:u8`, bits as
//! written.

use std::sync::atomic::{AtomicU8, Ordering};

use checkpoint::{Section, SectionError, Sections};

use super::codec::Body;

/// The port.
pub(crate) const PORT: u16 = 0x505;
/// The saved state's name.
pub(crate) const SECTION: &str = "pvpanic";
const VERSION: u32 = 1;

const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;
/// What a guest may say, which it reads from the port first.
const KNOWN: u8 = PANICKED | CRASH_LOADED;

/// What a panicking guest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panic {
    /// The kernel has stopped.
    Stopped,
    /// The kernel runs its crash kernel (kdump), which will restart it.
    CrashKernel,
}

/// The port.
#[derive(Debug, Default)]
pub(crate) struct PanicPort {
    said: AtomicU8,
}

impl PanicPort {
    /// A vCPU reads it: what it may say.
    pub(crate) fn read(&self) -> u8 {
        KNOWN
    }

    /// A vCPU writes it. Only what was not said before is told: a guest that
    /// repeats itself for ever shall not fill its owner's memory and log.
    pub(crate) fn write(&self, value: u8) -> Option<Panic> {
        let before = self.said.fetch_or(value & KNOWN, Ordering::SeqCst);
        meaning(value & !before)
    }

    /// What was said since power-on.
    pub(crate) fn said(&self) -> Option<Panic> {
        meaning(self.said.load(Ordering::SeqCst))
    }

    pub(crate) fn save(&self) -> Section {
        let bytes = vec![self.said.load(Ordering::SeqCst)];
        Section { name: SECTION.into(), version: VERSION, bytes }
    }

    /// Reads what [`PanicPort::save`] wrote, without taking it over.
    pub(crate) fn decode(sections: &Sections) -> Result<u8, SectionError> {
        let mut body = Body::new(sections.body(SECTION, VERSION)?);
        let said = body.u8()?;
        body.finish()?;
        if said & !KNOWN == 0 { Ok(said) } else { Err(SectionError::Malformed("an unknown panic")) }
    }

    /// Takes over decoded state.
    pub(crate) fn adopt(&self, said: u8) {
        self.said.store(said, Ordering::SeqCst);
    }
}

fn meaning(said: u8) -> Option<Panic> {
    match said {
        said if said & CRASH_LOADED != 0 => Some(Panic::CrashKernel),
        said if said & PANICKED != 0 => Some(Panic::Stopped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_heard_and_remembered() {
        let port = PanicPort::default();
        assert_eq!((port.read(), port.said()), (3, None));
        assert_eq!(port.write(0x80), None);
        assert_eq!(port.write(1), Some(Panic::Stopped));
        let other = PanicPort::default();
        let sections = Sections::new(vec![port.save()]).unwrap();
        other.adopt(PanicPort::decode(&sections).unwrap());
        assert_eq!(other.said(), Some(Panic::Stopped));
        assert_eq!([port.write(1), other.write(1)], [None, None], "it is known");
        assert_eq!(other.write(2), Some(Panic::CrashKernel));
    }

    #[test]
    fn malformed_state_is_refused() {
        for bytes in [vec![], vec![4], vec![0, 0]] {
            let section = Section { name: SECTION.into(), version: VERSION, bytes };
            assert!(PanicPort::decode(&Sections::new(vec![section]).unwrap()).is_err());
        }
    }
}
