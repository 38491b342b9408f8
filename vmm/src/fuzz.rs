//! Doors for the fuzz targets of `romulus-tests`, beside
//! [`crate::device::loose`]: what otherwise needs a VM.

use checkpoint::Sections;

use crate::{
    acpi::{Platform, Slot},
    boot::{self, BootConfig, BootError},
    memory::GuestRam,
    state::{
        self, StateError, VcpuShape, VcpuState,
        clock::{self, Moment, Rate, Tsc, TscShift},
        machine::{self, MachineState},
    },
};

/// vCPUs of the machine whose state is read.
pub const VCPUS: u8 = 2;
/// The TSC of the host that reads it.
const HOST_KHZ: u32 = 2_500_000;

/// Puts a guest into `ram`, as a boot does.
///
/// # Errors
///
/// [`BootError`]
pub fn load_kernel(ram: &GuestRam, config: &BootConfig) -> Result<(), BootError> {
    let slots = vec![Slot { address: 0xd000_0000, bytes: 0x1000, gsi: 5 }];
    let platform = Platform { vcpus: 1, slots };
    boot::load(ram, config, &platform, "virtio_mmio.device=4K@0xd0000000:5").map(drop)
}

/// The names of what [`read_machine_state`] reads.
pub fn machine_section_names() -> impl Iterator<Item = String> {
    machine::section_names().chain((0..VCPUS).flat_map(state::vcpu_section_names))
}

/// Reads the state of a machine and its vCPUs, as a restore does before it
/// gives it to KVM, and computes where its clocks go on. `shape` is the body of
/// this machine's `vm.shape`, `xsave_bytes` what its vCPUs save of `xsave`.
///
/// # Errors
///
/// [`StateError`]
pub fn read_machine_state(
    sections: &Sections,
    shape: &[u8],
    xsave_bytes: usize,
) -> Result<(), StateError> {
    machine::check_shape(sections, shape)?;
    let (then, guest_khz) = clock::saved(sections)?;
    let first = Tsc::saved(sections, &state::tsc_section(0))?;
    MachineState::decode(sections)?.moved(then);
    let rate = Rate { guest_khz, host_khz: HOST_KHZ, native: guest_khz == HOST_KHZ, offset: true };
    let now = Moment { kvm_ns: 1 << 40, host_tsc: 1 << 50, monotonic_ns: 1 << 41 };
    let shell = Tsc { value: 1 << 49, offset: 7 };
    let _ = TscShift::new(rate, then, first, now, shell);
    for sregs2 in [false, true] {
        let shape = VcpuShape {
            sregs2,
            xsave2: true,
            xsave_area_bytes: xsave_bytes,
            xsave_bytes,
            msrs: Vec::new(),
        };
        for index in 0..VCPUS {
            let _ = VcpuState::decode(index, &shape, sections)?;
        }
    }
    Ok(())
}
