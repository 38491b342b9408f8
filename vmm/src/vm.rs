//! One virtual machine: memory, vCPUs, interrupt controllers and devices.
//!
//! ```text
//!            boot, restore            resume
//!   Shell ─────────────────▶ Paused ─────────▶ Running
//!     ▲                       │  ▲               │
//!     └── a restore or ───────┘  └──── pause ────┘
//!         a reset failed
//! ```
//!
//! A shell has everything but a guest: that is what a backup keeps ready.
//! State is saved and set only while paused; asking at another time is an
//! error, not a torn checkpoint. Dirty pages may be harvested at any time.
//!
//! A guest that restarts stays in its VM: [`Vm::reset`] sets the state that the
//! shell had when it was made, and boots. RAM stays as the guest left it, so
//! pages that change are found by the dirty log as always, and a backup follows
//! by the next epoch.
//!
//! A checkpoint is `pause`, [`Vm::capture`], copy the pages, `resume`.

mod clocks;

use std::{
    io,
    ops::Range,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use checkpoint::{PageSet, Section, SectionError, Sections};
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_irqchip,
    kvm_msi, kvm_msr_entry, kvm_pit_config,
};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;

use self::clocks::{Clocks, SavedClocks};
use crate::{
    acpi::Platform,
    boot::{self, BootConfig, BootError, BootProtocol},
    device::{DeviceConfig, DeviceError, Devices},
    dirty::{DirtyLog, DirtyLogError, DirtyTracking},
    event::VmEvent,
    host::{
        GuestCpu, Host, HostError, feature::Features, fingerprint::Fingerprint, model::CpuConfig,
    },
    memory::{
        GuestRam, MemoryError,
        guard::{GuardError, Userfault, WriteGuard},
    },
    openings::Openings,
    outlet::Outlet,
    state::{
        self, StateError, VcpuShape, VcpuState,
        clock::Moment,
        machine::{self, MachineState},
    },
    vcpu::{VcpuContext, VcpuError, Vcpus},
};

/// Most vCPUs of a guest.
pub const VCPUS_MAX: u8 = 64;
/// Three pages that Intel's real mode needs, above all RAM and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// What the guest may not use, as KVM does: the pages above.
pub(crate) const KVM_PAGES: Range<u64> = IDENTITY_MAP_ADDRESS..TSS_ADDRESS as u64 + 0x3000;

/// A message that interrupts one vCPU (Intel SDM volume 3A, section 11.11).
const MSI_ADDRESS: u32 = 0xfee0_0000;
const MSI_APIC_ID_SHIFT: u32 = 12;
const MSI_REMOTE_READ: u32 = 0x300;

/// What a VM is made of. Both hosts of a pair need the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// RAM, in bytes: a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Whether to ask for transparent huge pages.
    pub hugepages: bool,
    /// How to find dirty pages.
    pub dirty_tracking: DirtyTracking,
    /// What it is to see of the CPU.
    pub cpu: CpuConfig,
    /// What the guest has beside CPUs and memory.
    pub devices: DeviceConfig,
}

/// Why a VM does not do what it should.
#[derive(Debug, Error)]
pub enum VmError {
    /// KVM cannot be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// vCPUs failed.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The dirty log failed.
    #[error(transparent)]
    Dirty(#[from] DirtyLogError),
    /// State was not saved or restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// Devices failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The guest does not boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// More vCPUs than possible.
    #[error("{asked} vcpus are not possible: choose 1 to {max}")]
    VcpuCount {
        /// How many were asked for.
        asked: u8,
        /// How many are possible here.
        max: usize,
    },
    /// KVM did not make a part of the machine.
    #[error("kvm refused {call} for a new VM; `romulus doctor` tells what this host can do")]
    Create {
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A call came at the wrong time.
    #[error("cannot {act} a VM that is {now}")]
    Phase {
        /// What was asked.
        act: &'static str,
        /// What the VM is doing.
        now: &'static str,
    },
}

/// How long the parts of a pause took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseTimings {
    /// From the first kick until the last vCPU was out of the guest.
    pub vcpus: Duration,
    /// Until all devices were parked, after that.
    pub devices: Duration,
}

/// What ends an epoch, except for the pages' content.
#[derive(Debug)]
pub struct Captured {
    /// The state of vCPUs, machine and devices.
    pub sections: Sections,
    /// Pages that KVM's log named.
    pub guest_pages: u64,
    /// Pages that the VMM had written.
    pub vmm_pages: u64,
    /// How long the harvest took (vCPUs save their state meanwhile).
    pub harvest: Duration,
    /// How long all of it took.
    pub total: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Shell,
    Paused,
    Running,
}

/// A virtual machine. Dropping it ends its threads.
pub struct Vm {
    // Fields are dropped in this order: first those that run the guest.
    vcpus: Vcpus,
    devices: Arc<Devices>,
    dirty: Arc<DirtyLog>,
    fd: Arc<VmFd>,
    ram: Arc<GuestRam>,
    fingerprint: Fingerprint,
    /// The body of the section that describes the machine.
    shape: Vec<u8>,
    section_names: Vec<String>,
    vcpu_shape: Arc<VcpuShape>,
    clocks: Clocks,
    platform: Platform,
    /// The state of a shell, which a reset sets again.
    power_on: Arc<Sections>,
    events: mpsc::Sender<VmEvent>,
    /// The guest was taken over, and may have asked for something that its
    /// former host did not do.
    taken_over: bool,
    phase: Phase,
}

impl Vm {
    /// As [`Vm::from_openings`], with all that it needs opened.
    ///
    /// # Errors
    ///
    /// [`VmError`]
    pub fn new(
        config: &VmConfig,
        outlet: Arc<Outlet>,
        events: mpsc::Sender<VmEvent>,
    ) -> Result<Self, VmError> {
        Self::from_openings(config, &Openings::open(&config.devices)?, outlet, events)
    }

    /// Makes a shell: memory mapped, vCPUs created and parked, devices parked.
    /// `openings` are of the same devices. The guest's output goes to `outlet`,
    /// what happens to it to `events`.
    ///
    /// # Errors
    ///
    /// [`VmError`]
    pub fn from_openings(
        config: &VmConfig,
        openings: &Openings,
        outlet: Arc<Outlet>,
        events: mpsc::Sender<VmEvent>,
    ) -> Result<Self, VmError> {
        let host = openings.host();
        let max = host.capabilities().vcpus_max.min(usize::from(VCPUS_MAX));
        if config.vcpus == 0 || usize::from(config.vcpus) > max {
            return Err(VmError::VcpuCount { asked: config.vcpus, max });
        }
        let ram = Arc::new(GuestRam::new(config.memory_bytes, config.hugepages)?);
        let memory_end = ram.layout().frame_end() * checkpoint::PAGE_BYTES as u64;
        let cpu = host.guest_cpu(&config.cpu, memory_end)?;
        let fd = Arc::new(create_machine(host)?);
        let capabilities = *host.capabilities();
        let dirty = DirtyLog::new(Arc::clone(&fd), &ram, &capabilities, config.dirty_tracking)?;
        let dirty = Arc::new(dirty);
        let fds = create_vcpus(&cpu, &fd, &dirty, config.vcpus)?;
        let fingerprint = host.fingerprint(&cpu, config.vcpus);
        let memory = ram.memory().clone();
        let (taps, of_devices) = (openings.taps(), Arc::clone(&fd));
        let devices = Devices::new(&config.devices, taps, of_devices, memory, outlet)?;
        let devices = Arc::new(devices);
        let vcpu_shape = Arc::new(VcpuShape::new(&capabilities, &cpu));
        let context = VcpuContext {
            devices: Arc::clone(&devices),
            dirty: Arc::clone(&dirty),
            shape: Arc::clone(&vcpu_shape),
            ram: Arc::clone(&ram),
            backend: capabilities.backend,
            events: events.clone(),
        };
        let vcpus = Vcpus::start(&fd, fds, &context)?;
        let mut vm = Self {
            vcpus,
            shape: machine::shape(config.vcpus, config.memory_bytes, &fingerprint),
            section_names: section_names(config.vcpus, &devices),
            vcpu_shape,
            platform: Platform { vcpus: config.vcpus, slots: devices.slots() },
            power_on: Arc::default(),
            devices,
            dirty,
            fd,
            ram,
            fingerprint,
            clocks: Clocks::new(capabilities),
            events,
            taken_over: false,
            phase: Phase::Shell,
        };
        vm.power_on = Arc::new(vm.save_all()?);
        Ok(vm)
    }

    /// Loads a guest into a shell; it is then paused at its entry. Returns how
    /// it is entered.
    ///
    /// # Errors
    ///
    /// [`VmError::Boot`], or [`VmError::Phase`] if there is a guest already.
    pub fn boot(&mut self, config: &BootConfig) -> Result<BootProtocol, VmError> {
        self.require(self.phase == Phase::Shell, "boot")?;
        let registers = boot::load(&self.ram, config, &self.platform, &self.devices.cmdline())?;
        let protocol = registers.protocol();
        self.vcpus.boot(registers)?;
        self.set_paused();
        Ok(protocol)
    }

    /// Restarts the guest: everything but RAM is as after power-on, and it
    /// boots. What it had asked for is done. The files are read again.
    ///
    /// # Errors
    ///
    /// [`VmError::Boot`] if it does not boot: the guest is then paused as
    /// before, though its RAM may be damaged. After any other error the VM is
    /// a shell again and does not resume.
    pub fn reset(&mut self, config: &BootConfig) -> Result<BootProtocol, VmError> {
        self.require(self.phase == Phase::Paused, "restart")?;
        let registers = boot::load(&self.ram, config, &self.platform, &self.devices.cmdline())?;
        let protocol = registers.protocol();
        self.phase = Phase::Shell;
        let power_on = Arc::clone(&self.power_on);
        // Its backups have agreed to the frequency that it has.
        let saved = self.clocks.check(&power_on)?.at(self.clocks.rate());
        self.set_all(&power_on, &saved)?;
        self.vcpus.boot(registers)?;
        self.set_paused();
        Ok(protocol)
    }

    /// Takes over saved state; the guest is then paused where it was saved.
    /// Memory must already be that of the same checkpoint.
    ///
    /// # Errors
    ///
    /// [`VmError`]. State that [`Vm::check`] does not take is refused before
    /// anything is set; after any other error the VM is a shell again and does
    /// not resume.
    pub fn restore(&mut self, sections: &Sections) -> Result<(), VmError> {
        self.require(self.phase != Phase::Running, "restore")?;
        let saved = self.read(sections)?;
        self.phase = Phase::Shell;
        self.set_all(&Arc::new(sections.clone()), &saved)?;
        self.kick_again(sections);
        self.taken_over = true;
        self.set_paused();
        Ok(())
    }

    /// Whether `sections` are state that a guest can go on from here, as far as
    /// that is known without asking KVM. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`VmError`]: it is of another shape, sections are missing, unknown or
    /// malformed, or the guest's TSC runs at a frequency that is not possible
    /// here.
    pub fn check(&self, sections: &Sections) -> Result<(), VmError> {
        self.read(sections).map(drop)
    }

    /// Lets the guest run. What a guest that was taken over had asked for, or
    /// said, is told again. After a long pause its clocks go on from where they
    /// stopped.
    ///
    /// # Errors
    ///
    /// [`VmError::Phase`] if it is not paused, or [`VmError::State`] if its
    /// clocks cannot be set.
    pub fn resume(&mut self) -> Result<(), VmError> {
        self.require(self.phase == Phase::Paused, "resume")?;
        self.clocks.resume(&self.fd, &self.vcpus)?;
        if std::mem::take(&mut self.taken_over) {
            self.tell_again();
        }
        self.devices.unpark();
        self.vcpus.run()?;
        self.phase = Phase::Running;
        Ok(())
    }

    /// Stops the guest: all vCPUs are out of it and their I/O is complete,
    /// then all devices are at a request boundary.
    ///
    /// # Errors
    ///
    /// [`VmError::Phase`] if it does not run.
    pub fn pause(&mut self) -> Result<PauseTimings, VmError> {
        self.require(self.phase == Phase::Running, "pause")?;
        let start = Instant::now();
        self.vcpus.park()?;
        let vcpus = start.elapsed();
        self.set_paused();
        self.devices.park();
        Ok(PauseTimings { vcpus, devices: start.elapsed() - vcpus })
    }

    /// The state of vCPUs, machine and devices.
    ///
    /// # Errors
    ///
    /// [`VmError::Phase`] if it is not paused, or [`VmError::State`].
    pub fn save(&self) -> Result<Sections, VmError> {
        self.require(self.phase == Phase::Paused, "save")?;
        self.save_all()
    }

    /// [`Vm::save`] and [`Vm::harvest`] at the same time.
    ///
    /// # Errors
    ///
    /// [`VmError`]; `pages` then still has everything that was cleared.
    pub fn capture(&self, pages: &mut PageSet) -> Result<Captured, VmError> {
        self.require(self.phase == Phase::Paused, "capture")?;
        let start = Instant::now();
        let moment = Moment::now(&self.fd)?;
        let vcpus = self.vcpus.begin_save(moment, self.clocks.rate())?;
        let guest_pages = self.dirty.harvest(pages);
        let vmm_pages = self.ram.harvest_vmm_writes(pages);
        let harvest = start.elapsed();
        let machine = self.save_machine(moment);
        let mut sections = vcpus.finish()?;
        sections.extend(machine?);
        let sections = Sections::new(sections).map_err(StateError::from)?;
        let total = start.elapsed();
        Ok(Captured { sections, guest_pages: guest_pages?, vmm_pages, harvest, total })
    }

    /// Adds the pages written since the last harvest, by the guest or by the
    /// VMM, to `pages`. Returns how many there were (a page that both wrote
    /// counts twice). May be called while the guest runs.
    ///
    /// # Errors
    ///
    /// [`VmError::Dirty`]
    ///
    /// # Panics
    ///
    /// If `pages` is smaller than this guest.
    pub fn harvest(&self, pages: &mut PageSet) -> Result<u64, VmError> {
        let vmm_pages = self.ram.harvest_vmm_writes(pages);
        Ok(self.dirty.harvest(pages)? + vmm_pages)
    }

    /// As [`Vm::harvest`], but only pages that the guest wrote, and without
    /// those of `hot` where the log can keep them. For a guest that runs.
    ///
    /// # Errors
    ///
    /// [`VmError::Dirty`]
    ///
    /// # Panics
    ///
    /// As [`Vm::harvest`].
    pub fn harvest_cold(&self, pages: &mut PageSet, hot: &PageSet) -> Result<u64, VmError> {
        Ok(self.dirty.harvest_cold(pages, hot)?)
    }

    /// Begins to log dirty pages; what was written before is in no harvest.
    ///
    /// # Errors
    ///
    /// [`VmError::Dirty`]
    pub fn start_dirty_log(&self) -> Result<(), VmError> {
        self.ram.harvest_vmm_writes(&mut PageSet::new(self.ram.layout().frame_end()));
        Ok(self.dirty.start()?)
    }

    /// Ends logging.
    ///
    /// # Errors
    ///
    /// [`VmError::Dirty`]
    pub fn stop_dirty_log(&self) -> Result<(), VmError> {
        Ok(self.dirty.stop()?)
    }

    /// The guest's RAM.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Write protection of the guest's memory, by way of `userfault`.
    ///
    /// # Errors
    ///
    /// [`GuardError`], saying what is missing.
    pub fn write_guard(&self, userfault: &Userfault) -> Result<WriteGuard, GuardError> {
        WriteGuard::new(userfault, &self.ram)
    }

    /// The log of pages that the guest writes, for a harvester's thread.
    #[must_use]
    pub fn dirty_log(&self) -> &Arc<DirtyLog> {
        &self.dirty
    }

    /// The devices: console input, announcements.
    #[must_use]
    pub fn devices(&self) -> &Arc<Devices> {
        &self.devices
    }

    /// What must match on a host that takes this guest over.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Tells the network where the guest is now.
    ///
    /// # Errors
    ///
    /// [`VmError::Device`]
    pub fn announce(&self) -> Result<(), VmError> {
        Ok(self.devices.announce()?)
    }

    fn set_paused(&mut self) {
        self.phase = Phase::Paused;
        self.clocks.stop();
    }

    fn tell_again(&self) {
        let panicked = self.devices.panicked().map(|panic| VmEvent::Panicked { panic });
        let request = self.devices.requested_power();
        let request = request.map(|request| VmEvent::of_request(0, request));
        for event in panicked.into_iter().chain(request) {
            // An owner that has gone asks for nothing.
            let _ = self.events.send(event);
        }
    }

    fn save_all(&self) -> Result<Sections, VmError> {
        let moment = Moment::now(&self.fd)?;
        let vcpus = self.vcpus.begin_save(moment, self.clocks.rate())?;
        let mut sections = self.save_machine(moment)?;
        sections.extend(vcpus.finish()?);
        Ok(Sections::new(sections).map_err(StateError::from)?)
    }

    fn set_all(&mut self, sections: &Arc<Sections>, saved: &SavedClocks) -> Result<(), VmError> {
        machine::restore(&self.fd, sections)?;
        let shift = self.clocks.restore(&self.fd, &self.vcpus, saved)?;
        self.fingerprint.tsc_khz = self.clocks.rate().guest_khz;
        self.vcpus.restore(sections, shift)?;
        Ok(self.devices.restore(sections)?)
    }

    /// Kicks all vCPUs that run, as a guest's spinlock does whose waiter may
    /// halt (`KVM_HC_KICK_CPU`): KVM keeps a kick for the next HLT and tells of
    /// it only when the vCPU has halted already, so one may be lost. Nothing
    /// comes of a kick too many: that HLT ends at once, and who waits looks
    /// again. vCPUs that wait to be started would never rest. All vCPUs have
    /// their state: KVM finds them by their APICs, and a new one forgets kicks.
    fn kick_again(&self, sections: &Sections) {
        if !self.fingerprint.features().contain(&Features::named("kvm_pv_unhalt")) {
            return;
        }
        for vcpu in 0..self.platform.vcpus {
            if !state::vcpu_runs(sections, vcpu) {
                continue;
            }
            // KVM takes this delivery mode, "remote read", for a kick, and a
            // vCPU's number is its APIC id.
            let address_lo = MSI_ADDRESS | u32::from(vcpu) << MSI_APIC_ID_SHIFT;
            let msi = kvm_msi { address_lo, data: MSI_REMOTE_READ, ..Default::default() };
            if let Err(error) = self.fd.signal_msi(msi) {
                tracing::debug!(vcpu, %error, "a kick that may be lost was not repeated");
            }
        }
    }

    fn save_machine(&self, moment: Moment) -> Result<Vec<Section>, StateError> {
        let mut sections = machine::save(&self.fd, &self.shape)?;
        sections.push(moment.save(self.fingerprint.tsc_khz));
        sections.extend(self.devices.save());
        Ok(sections)
    }

    /// Reads all of `sections`; the clocks are needed first.
    fn read(&self, sections: &Sections) -> Result<SavedClocks, VmError> {
        self.check_sections(sections)?;
        MachineState::decode(sections)?;
        let clocks = self.clocks.check(sections)?;
        for vcpu in 0..self.platform.vcpus {
            VcpuState::decode(vcpu, &self.vcpu_shape, sections)?;
        }
        self.devices.check(sections)?;
        Ok(clocks)
    }

    fn check_sections(&self, sections: &Sections) -> Result<(), StateError> {
        machine::check_shape(sections, &self.shape)?;
        let names = &self.section_names;
        if let Some(missing) = names.iter().find(|name| sections.get(name).is_none()) {
            return Err(SectionError::Missing(missing.clone()).into());
        }
        let mut all = sections.as_slice().iter().map(|section| &section.name);
        match all.find(|name| names.binary_search(name).is_err()) {
            Some(unknown) => Err(SectionError::Unknown(unknown.clone()).into()),
            None => Ok(()),
        }
    }

    fn require(&self, holds: bool, act: &'static str) -> Result<(), VmError> {
        let now = match self.phase {
            Phase::Shell => "a shell without a guest",
            Phase::Paused => "paused",
            Phase::Running => "running",
        };
        if holds { Ok(()) } else { Err(VmError::Phase { act, now }) }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // vCPUs out of the guest first: nothing calls devices any more. Their
        // threads end when the fields are dropped. An error means that they
        // have ended already.
        let _ = self.vcpus.park();
        self.devices.stop();
    }
}

fn create_machine(host: &Host) -> Result<VmFd, VmError> {
    let fd = host.kvm().create_vm().map_err(create_error("KVM_CREATE_VM"))?;
    fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(create_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    fd.set_tss_address(TSS_ADDRESS).map_err(create_error("KVM_SET_TSS_ADDR"))?;
    fd.create_irq_chip().map_err(create_error("KVM_CREATE_IRQCHIP"))?;
    mask_pics(&fd).map_err(create_error("KVM_SET_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    fd.create_pit2(pit).map_err(create_error("KVM_CREATE_PIT2"))?;
    Ok(fd)
}

/// Leaves the PICs as firmware does, with all lines masked: a guest that does
/// without them never programs them, and their vectors would be exceptions.
fn mask_pics(fd: &VmFd) -> Result<(), kvm_ioctls::Error> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        fd.get_irqchip(&mut chip)?;
        // A write to a union field of plain integers.
        chip.chip.pic.imr = 0xff;
        fd.set_irqchip(&chip)?;
    }
    Ok(())
}

fn create_vcpus(
    cpu: &GuestCpu,
    fd: &VmFd,
    dirty: &DirtyLog,
    vcpus: u8,
) -> Result<Vec<VcpuFd>, VmError> {
    let mut fds = Vec::new();
    for vcpu in 0..vcpus {
        let error = |call| {
            move |error: kvm_ioctls::Error| VcpuError::Create { vcpu, call, source: error.into() }
        };
        let vcpu_fd = fd.create_vcpu(u64::from(vcpu)).map_err(error("KVM_CREATE_VCPU"))?;
        vcpu_fd.set_cpuid2(&cpu.cpuid(vcpu, vcpus)).map_err(error("KVM_SET_CPUID2"))?;
        set_memory_type(&vcpu_fd).map_err(error("KVM_SET_MSRS"))?;
        dirty.add_vcpu(&vcpu_fd)?;
        fds.push(vcpu_fd);
    }
    Ok(fds)
}

/// Leaves memory write-back, as firmware does: Linux does not use its page
/// attribute table on a processor whose range registers are off.
fn set_memory_type(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    const ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;
    let entry =
        kvm_msr_entry { index: MTRR_DEFAULT_TYPE, data: ENABLE_WRITE_BACK, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).expect("one entry is below KVM's limit");
    // A KVM without the register returns 0: then there is nothing to leave.
    vcpu.set_msrs(&msrs).map(drop)
}

/// All sections that this machine's state has, sorted.
fn section_names(vcpus: u8, devices: &Devices) -> Vec<String> {
    let mut names: Vec<String> = machine::section_names().collect();
    names.extend((0..vcpus).flat_map(state::vcpu_section_names));
    names.extend(devices.section_names());
    names.sort_unstable();
    names
}

fn create_error(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |error| VmError::Create { call, source: error.into() }
}
