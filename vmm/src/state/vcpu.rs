//! One vCPU's state. Called on the vCPU's own thread, out of the guest.

use checkpoint::{Section, Sections};
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::{
    StateError, VERSION,
    clock::{self, MSR_TSC_DEADLINE, Moment, Rate, Tsc, TscShift},
    plain::{Plain, bytes_of, from_bytes},
};
use crate::{
    host::{Capabilities, GuestCpu},
    ioctl,
};

const PARTS: [&str; 10] =
    ["mp_state", "regs", "sregs", "xsave", "xcrs", "debugregs", "events", "lapic", "msrs", "tsc"];

/// What vCPUs of this host have to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VcpuShape {
    pub(crate) sregs2: bool,
    pub(crate) xsave2: bool,
    /// Bytes that KVM reads and writes.
    pub(crate) xsave_area_bytes: usize,
    /// Bytes of these that a guest can change.
    pub(crate) xsave_bytes: usize,
    /// State components that a guest can have, a bit each.
    pub(crate) xsave_components: u64,
    /// Rising.
    pub(crate) msrs: Vec<u32>,
}

impl VcpuShape {
    pub(crate) fn new(capabilities: &Capabilities, cpu: &GuestCpu) -> Self {
        Self {
            sregs2: capabilities.sregs2,
            xsave2: capabilities.xsave2,
            xsave_area_bytes: capabilities.xsave_bytes,
            xsave_bytes: cpu.xsave_bytes,
            xsave_components: cpu.xsave_components,
            msrs: cpu.msrs.clone(),
        }
    }
}

/// The names of vCPU `index`'s sections.
pub(crate) fn section_names(index: u8) -> impl Iterator<Item = String> {
    PARTS.iter().map(move |part| name(index, part))
}

fn name(index: u8, part: &str) -> String {
    format!("vcpu.{index:02}.{part}")
}

/// The section of vCPU `index`'s TSC.
pub(crate) fn tsc_section(index: u8) -> String {
    name(index, "tsc")
}

/// Whether vCPU `index` of `sections` is neither halted nor waits to be started.
pub(crate) fn runs(sections: &Sections, index: u8) -> bool {
    let saved: Result<kvm_mp_state, _> = Saved { index, sections }.one("mp_state");
    saved.is_ok_and(|state| state.mp_state == KVM_MP_STATE_RUNNABLE)
}

/// Reads all state, with the TSC as it was at `moment`. The order matters
/// twice: `mp_state` first, as asking for it lets KVM take pending INIT and
/// start-up IPIs; the timer's deadline before the APIC, so that a timer that
/// fires in between comes twice rather than never.
pub(crate) fn save(
    vcpu: &VcpuFd,
    index: u8,
    shape: &VcpuShape,
    moment: Moment,
    rate: Rate,
) -> Result<Vec<Section>, StateError> {
    let mut sections = Vec::with_capacity(PARTS.len());
    let mut add = |part, bytes| {
        sections.push(Section { name: name(index, part), version: VERSION, bytes });
    };
    let at = |call| move |error: kvm_ioctls::Error| kvm_error(call, index)(error.into());
    add("mp_state", bytes_of(&[vcpu.get_mp_state().map_err(at("KVM_GET_MP_STATE"))?]));
    add("regs", bytes_of(&[vcpu.get_regs().map_err(at("KVM_GET_REGS"))?]));
    add("sregs", save_sregs(vcpu, index, shape)?);
    let mut xsave = vec![0; shape.xsave_area_bytes];
    // SAFETY: the shape has the size that KVM told.
    unsafe { ioctl::get_xsave(vcpu, shape.xsave2, &mut xsave) }
        .map_err(kvm_error("KVM_GET_XSAVE", index))?;
    xsave.truncate(shape.xsave_bytes);
    keep_components(&mut xsave, shape.xsave_components);
    add("xsave", xsave);
    add("xcrs", bytes_of(&[vcpu.get_xcrs().map_err(at("KVM_GET_XCRS"))?]));
    let debug = vcpu.get_debug_regs().map_err(at("KVM_GET_DEBUGREGS"))?;
    add("debugregs", bytes_of(&[debug]));
    add("msrs", save_msrs(vcpu, index, &shape.msrs)?);
    add("lapic", bytes_of(&[vcpu.get_lapic().map_err(at("KVM_GET_LAPIC"))?]));
    add("events", bytes_of(&[vcpu.get_vcpu_events().map_err(at("KVM_GET_VCPU_EVENTS"))?]));
    add("tsc", Tsc::at(vcpu, index, moment.host_tsc, &rate)?.save());
    Ok(sections)
}

/// The state of one vCPU, read from its sections: of the right sizes, and
/// otherwise for KVM to judge.
pub(crate) struct VcpuState {
    tsc: Tsc,
    xcrs: kvm_xcrs,
    sregs: SpecialRegisters,
    regs: kvm_regs,
    xsave: Vec<u8>,
    msrs: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    debug_regs: kvm_debugregs,
    events: kvm_vcpu_events,
}

/// As the host's KVM takes them.
#[cfg_attr(test, derive(Debug, PartialEq))]
enum SpecialRegisters {
    Old(kvm_sregs),
    New(kvm_sregs2),
}

impl SpecialRegisters {
    /// Hosts before Linux 5.14 save the older structure, and have no call for
    /// the newer. What only the older has, the interrupt under way, is in
    /// `events` too; what only the newer has, the page-directory pointers of a
    /// PAE guest, KVM then reads from memory.
    fn decode(saved: &Saved<'_>, shape: &VcpuShape) -> Result<Self, StateError> {
        const PART: &str = "sregs";
        let bytes = saved.body(PART)?;
        match (bytes.len(), shape.sregs2) {
            (len, _) if len == size_of::<kvm_sregs>() => Ok(Self::Old(saved.one(PART)?)),
            (_, true) => Ok(Self::New(saved.one(PART)?)),
            (_, false) => Ok(Self::Old(older(&saved.one(PART)?))),
        }
    }
}

fn older(sregs: &kvm_sregs2) -> kvm_sregs {
    kvm_sregs {
        cs: sregs.cs,
        ds: sregs.ds,
        es: sregs.es,
        fs: sregs.fs,
        gs: sregs.gs,
        ss: sregs.ss,
        tr: sregs.tr,
        ldt: sregs.ldt,
        gdt: sregs.gdt,
        idt: sregs.idt,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

impl VcpuState {
    /// Reads the sections of vCPU `index`.
    pub(crate) fn decode(
        index: u8,
        shape: &VcpuShape,
        sections: &Sections,
    ) -> Result<Self, StateError> {
        let saved = Saved { index, sections };
        let mut xsave = saved.bytes("xsave", shape.xsave_bytes)?.to_vec();
        xsave.resize(shape.xsave_area_bytes, 0);
        Ok(Self {
            tsc: Tsc::saved(sections, &tsc_section(index))?,
            xcrs: saved.one("xcrs")?,
            sregs: SpecialRegisters::decode(&saved, shape)?,
            regs: saved.one("regs")?,
            xsave,
            msrs: without_orders(saved.all("msrs")?),
            lapic: saved.one("lapic")?,
            mp_state: saved.one("mp_state")?,
            debug_regs: saved.one("debugregs")?,
            events: saved.one("events")?,
        })
    }
}

/// Sets all state, in the order that works on every backend tried. The TSC
/// comes before the registers, as the timer's deadline is measured by it.
pub(crate) fn restore(
    vcpu: &VcpuFd,
    index: u8,
    shape: &VcpuShape,
    sections: &Sections,
    shift: &TscShift,
) -> Result<(), StateError> {
    let state = VcpuState::decode(index, shape, sections)?;
    shift.apply(vcpu, index, state.tsc)?;
    let at = |call| move |error: kvm_ioctls::Error| kvm_error(call, index)(error.into());
    vcpu.set_xcrs(&state.xcrs).map_err(at("KVM_SET_XCRS"))?;
    match &state.sregs {
        SpecialRegisters::New(sregs) => {
            ioctl::set_sregs2(vcpu, sregs).map_err(kvm_error("KVM_SET_SREGS2", index))?;
        }
        SpecialRegisters::Old(sregs) => vcpu.set_sregs(sregs).map_err(at("KVM_SET_SREGS"))?,
    }
    vcpu.set_regs(&state.regs).map_err(at("KVM_SET_REGS"))?;
    // SAFETY: `decode` gives it the size that KVM told.
    unsafe { ioctl::set_xsave(vcpu, &state.xsave) }.map_err(kvm_error("KVM_SET_XSAVE", index))?;
    set_msrs(vcpu, index, &state.msrs)?;
    vcpu.set_lapic(&state.lapic).map_err(at("KVM_SET_LAPIC"))?;
    let deadline: Vec<_> =
        state.msrs.iter().filter(|msr| msr.index == MSR_TSC_DEADLINE).copied().collect();
    set_msrs(vcpu, index, &deadline)?;
    vcpu.set_mp_state(state.mp_state).map_err(at("KVM_SET_MP_STATE"))?;
    vcpu.set_debug_regs(&state.debug_regs).map_err(at("KVM_SET_DEBUGREGS"))?;
    vcpu.set_vcpu_events(&state.events).map_err(at("KVM_SET_VCPU_EVENTS"))?;
    clock::tell_of_stop(vcpu);
    Ok(())
}

/// The sections of a vCPU all of whose state is zero.
#[cfg(feature = "fuzz")]
pub(crate) fn zeroed(index: u8, shape: &VcpuShape) -> Vec<Section> {
    let sregs = if shape.sregs2 { size_of::<kvm_sregs2>() } else { size_of::<kvm_sregs>() };
    let sizes = [
        size_of::<kvm_mp_state>(),
        size_of::<kvm_regs>(),
        sregs,
        shape.xsave_bytes,
        size_of::<kvm_xcrs>(),
        size_of::<kvm_debugregs>(),
        size_of::<kvm_vcpu_events>(),
        size_of::<kvm_lapic_state>(),
        size_of::<kvm_msr_entry>() * shape.msrs.len(),
        size_of::<Tsc>(),
    ];
    let section = |(part, bytes): (&&str, usize)| {
        let name = name(index, part);
        Section { name, version: VERSION, bytes: vec![0; bytes] }
    };
    PARTS.iter().zip(sizes).map(section).collect()
}

fn save_sregs(vcpu: &VcpuFd, index: u8, shape: &VcpuShape) -> Result<Vec<u8>, StateError> {
    if shape.sregs2 {
        let sregs = ioctl::get_sregs2(vcpu).map_err(kvm_error("KVM_GET_SREGS2", index))?;
        return Ok(bytes_of(&[sregs]));
    }
    let sregs = vcpu.get_sregs().map_err(|e| kvm_error("KVM_GET_SREGS", index)(e.into()))?;
    Ok(bytes_of(&[sregs]))
}

/// Takes components that the guest does not have out of `XSTATE_BV` (Intel SDM
/// volume 1, section 13.4.2). KVM before Linux 5.17 tells what the *host* has in
/// use, and a later one refuses that.
fn keep_components(xsave: &mut [u8], components: u64) {
    const XSTATE_BV: std::ops::Range<usize> = 512..520;
    let in_use = u64::from_le_bytes(xsave[XSTATE_BV].try_into().expect("eight"));
    xsave[XSTATE_BV].copy_from_slice(&(in_use & components).to_le_bytes());
}

fn save_msrs(vcpu: &VcpuFd, index: u8, msrs: &[u32]) -> Result<Vec<u8>, StateError> {
    let entries: Vec<_> =
        msrs.iter().map(|msr| kvm_msr_entry { index: *msr, ..Default::default() }).collect();
    let mut read =
        Msrs::from_entries(&entries).expect("KVM's own list and a few more fit KVM's own limit");
    let count = vcpu.get_msrs(&mut read).map_err(|e| kvm_error("KVM_GET_MSRS", index)(e.into()))?;
    if let Some(msr) = msrs.get(count) {
        return Err(StateError::Msr { vcpu: index, msr: *msr, act: "read" });
    }
    Ok(bytes_of(read.as_slice()))
}

/// Makes zero of registers that are orders rather than state: KVM writes the
/// wall clock to memory where a value says, which the guest has long used for
/// something else. A guest that wants the time orders it anew and never reads
/// the register. (Linux `Documentation/virt/kvm/x86/msr.rst`.)
fn without_orders(mut msrs: Vec<kvm_msr_entry>) -> Vec<kvm_msr_entry> {
    const MSR_KVM_WALL_CLOCK: u32 = 0x11;
    const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
    for msr in &mut msrs {
        if matches!(msr.index, MSR_KVM_WALL_CLOCK | MSR_KVM_WALL_CLOCK_NEW) {
            msr.data = 0;
        }
    }
    msrs
}

fn set_msrs(vcpu: &VcpuFd, index: u8, msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    let too_many = |_| StateError::Shape("model-specific registers");
    let written = Msrs::from_entries(msrs).map_err(too_many)?;
    let count = vcpu.set_msrs(&written).map_err(|e| kvm_error("KVM_SET_MSRS", index)(e.into()))?;
    match msrs.get(count) {
        Some(msr) => Err(StateError::Msr { vcpu: index, msr: msr.index, act: "written" }),
        None => Ok(()),
    }
}

fn kvm_error(call: &'static str, index: u8) -> impl FnOnce(std::io::Error) -> StateError {
    StateError::kvm(call, format!("vcpu {index}"))
}

/// The sections of one vCPU.
struct Saved<'a> {
    index: u8,
    sections: &'a Sections,
}

impl Saved<'_> {
    fn one<T: Plain>(&self, part: &str) -> Result<T, StateError> {
        let bytes = self.bytes(part, size_of::<T>())?;
        Ok(from_bytes(bytes).expect("its size was checked")[0])
    }

    fn all<T: Plain>(&self, part: &str) -> Result<Vec<T>, StateError> {
        let bytes = self.body(part)?;
        let expected = bytes.len().next_multiple_of(size_of::<T>());
        let (name, found) = (name(self.index, part), bytes.len());
        from_bytes(bytes).ok_or(StateError::Size { name, found, expected })
    }

    fn bytes(&self, part: &str, expected: usize) -> Result<&[u8], StateError> {
        let bytes = self.body(part)?;
        if bytes.len() != expected {
            let (name, found) = (name(self.index, part), bytes.len());
            return Err(StateError::Size { name, found, expected });
        }
        Ok(bytes)
    }

    fn body(&self, part: &str) -> Result<&[u8], StateError> {
        Ok(self.sections.body(&name(self.index, part), VERSION)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(sregs2: bool) -> VcpuShape {
        VcpuShape {
            sregs2,
            xsave2: true,
            xsave_area_bytes: 4096,
            xsave_bytes: 4096,
            xsave_components: u64::MAX,
            msrs: Vec::new(),
        }
    }

    #[test]
    fn components_of_the_host_alone_are_not_passed_on() {
        let mut xsave = vec![0xff; 576];
        keep_components(&mut xsave, 0x8000_0000_0000_0007);
        assert_eq!(xsave[512..520], [7, 0, 0, 0, 0, 0, 0, 0x80]);
        assert!(xsave[..512].iter().chain(&xsave[520..]).all(|byte| *byte == 0xff));
    }

    /// Reads a section `sregs` of these bytes.
    fn decode(bytes: Vec<u8>, sregs2: bool) -> Result<SpecialRegisters, StateError> {
        let section = Section { name: name(0, "sregs"), version: VERSION, bytes };
        let sections = Sections::new(vec![section]).unwrap();
        SpecialRegisters::decode(&Saved { index: 0, sections: &sections }, &shape(sregs2))
    }

    #[test]
    fn special_registers_of_older_and_newer_hosts_are_taken_by_both() {
        // Each byte another one, up to where the structures part.
        let common: Vec<u8> = (0..280).map(|n| n as u8).collect();
        let bytes_of_old = [&common[..], &[7; 32]].concat();
        let bytes_of_new = [&common[..], &[8; 40]].concat();
        let old = from_bytes::<kvm_sregs>(&bytes_of_old).unwrap()[0];
        let new = from_bytes::<kvm_sregs2>(&bytes_of_new).unwrap()[0];
        for sregs2 in [false, true] {
            let taken = decode(bytes_of_old.clone(), sregs2).unwrap();
            assert_eq!(taken, SpecialRegisters::Old(old));
        }
        assert_eq!(decode(bytes_of_new.clone(), true).unwrap(), SpecialRegisters::New(new));
        let SpecialRegisters::Old(older) = decode(bytes_of_new, false).unwrap() else {
            panic!("a host without the newer call was given its structure")
        };
        let expected = [&common[..], &[0; 32]].concat();
        assert_eq!(bytes_of(&[older]), expected, "all but the interrupt, which is in `events`");
        for bytes in [0, 280, 311, 313, 321] {
            assert!(matches!(decode(vec![0; bytes], true), Err(StateError::Size { .. })));
            assert!(matches!(decode(vec![0; bytes], false), Err(StateError::Size { .. })));
        }
    }
}
