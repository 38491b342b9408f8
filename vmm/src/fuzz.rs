//! Doors for the fuzz targets of `romulus-tests`, beside
//! [`crate::device::loose`]: what otherwise needs a VM.

use checkpoint::{Section, Sections};

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
const VCPUS: u8 = 2;
/// The TSC of the host that reads it.
const HOST_KHZ: u32 = 2_500_000;
/// What its vCPUs save of `xsave`, and what KVM reads.
const XSAVE_BYTES: usize = 832;
const XSAVE_AREA_BYTES: usize = 4096;
/// The body of its `vm.shape`.
const SHAPE: [u8; 45] = [7; 45];

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

/// State of a machine and its vCPUs that [`read_machine_state`] takes: all of
/// it zero, but for what must not be.
#[must_use]
pub fn machine_sections() -> Vec<Section> {
    let then = Moment { kvm_ns: 1 << 39, host_tsc: 1 << 48 };
    let mut sections = machine::zeroed();
    sections.push(then.save(HOST_KHZ));
    sections.push(machine::shape_section(&SHAPE));
    sections.extend((0..VCPUS).flat_map(|index| state::zeroed_vcpu(index, &shape(true))));
    sections
}

/// Reads the state of a machine and its vCPUs, as a restore does before it
/// gives it to KVM, and computes where its clocks go on.
///
/// # Errors
///
/// [`StateError`]
pub fn read_machine_state(sections: &Sections) -> Result<(), StateError> {
    machine::check_shape(sections, &SHAPE)?;
    let (then, guest_khz) = clock::saved(sections)?;
    let first = Tsc::saved(sections, &state::tsc_section(0))?;
    MachineState::decode(sections)?;
    let rate = Rate { guest_khz, host_khz: HOST_KHZ, native: guest_khz == HOST_KHZ, offset: true };
    let now = Moment { kvm_ns: 1 << 40, host_tsc: 1 << 50 };
    let shell = Tsc { value: 1 << 49, offset: 7 };
    let _ = TscShift::new(rate, then, first, now, shell);
    for index in 0..VCPUS {
        // On a host with the older call, and on one with the newer.
        VcpuState::decode(index, &shape(false), sections)?;
        VcpuState::decode(index, &shape(true), sections)?;
    }
    Ok(())
}

fn shape(sregs2: bool) -> VcpuShape {
    VcpuShape {
        sregs2,
        xsave2: true,
        xsave_area_bytes: XSAVE_AREA_BYTES,
        xsave_bytes: XSAVE_BYTES,
        xsave_components: u64::MAX,
        msrs: Vec::new(),
    }
}
