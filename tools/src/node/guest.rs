//! The guest of a configuration: the VM, its way out, and its shape.

use std::{
    io::Write,
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, Weak, mpsc},
    time::Duration,
};

use checkpoint::{
    MemoryLayout, Sections,
    chunk::Digest,
    message::Machine,
    output::{Mode, Output},
};
use thiserror::Error;
use vmm::{
    boot::{BootConfig, BootProtocol},
    device::{DeviceError, Devices, power::PowerRequest, virtio::blk::image::ImageError},
    dirty::DirtyTracking,
    event::VmEvent,
    host::{Backend, model::CpuConfig},
    memory::{
        GuestRam,
        guard::{GuardError, Userfault, WriteGuard},
    },
    outlet::{Outlet, OutletConfig, SpeakError},
    vm::{Vm, VmConfig, VmError},
};

use super::{
    GuestEvent, Openings,
    console_log::ConsoleLog,
    devices::{device_config, device_traits},
};
use crate::{
    config::{self, Kernel},
    jail::{self, ThreadKind},
    probe_guest::PROBE_GUEST,
    telemetry::ConsoleTail,
};

/// When the guest's place is announced after a promotion: at once, and again
/// for switches that were not listening.
const ANNOUNCE_AT_MS: [u64; 4] = [0, 50, 200, 1000];

/// Pages that are digested at once: a millisecond of work or two.
const DIGEST_RUN_PAGES: u64 = 256;

/// Why there is no guest.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The VM could not be made, booted or restored.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A disk cannot be compared with the other nodes'.
    #[error(transparent)]
    Disk(#[from] ImageError),
    /// The console's log cannot be written.
    #[error("cannot write the console's log {path}: check the folder and its permissions", path = .path.display())]
    Console {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The built-in guest could not be put where KVM's loader reads it.
    #[error("cannot write the probe guest to {path}: check node.state_dir", path = .path.display())]
    Probe {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// More RAM than this host has.
    #[error(
        "the guest needs {needed_mib} MiB of memory, this host has {total_mib}: lower vm.memory_mib, or use a larger host"
    )]
    TooLarge {
        /// The guest's RAM.
        needed_mib: u64,
        /// The host's.
        total_mib: u64,
    },
    /// The outlet's threads could not be started.
    #[error("cannot start a thread: raise the limit of processes (`romulus doctor`)")]
    Thread(#[source] std::io::Error),
}

type Callback = Box<dyn Fn() + Send + Sync>;
type OnEvent = Box<dyn Fn(GuestEvent) + Send>;

/// A guest, or the shell for one.
pub struct Guest {
    vm: Mutex<Vm>,
    ram: Arc<GuestRam>,
    devices: Arc<Devices>,
    outlet: Arc<Outlet>,
    /// Whom to tell of what: this changes with the node's role.
    stale_release: Arc<Mutex<Option<Callback>>>,
    happened: Arc<Mutex<Option<OnEvent>>>,
    /// Until somebody is told of what comes by it.
    events: Mutex<Option<mpsc::Receiver<VmEvent>>>,
    machine: Mutex<Machine>,
    userfault: Option<Userfault>,
    tracking: String,
    backend: &'static str,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Guest {
    /// Makes the VM of `config` of what is open, without a guest in it; its
    /// output passes. One at a time.
    ///
    /// # Errors
    ///
    /// [`GuestError`]
    pub fn new(
        config: &config::VmConfig,
        openings: &Openings,
        tail: Arc<ConsoleTail>,
    ) -> Result<Self, GuestError> {
        require_memory(u64::from(config.vm.memory_mib.get()))?;
        let stale_release: Arc<Mutex<Option<Callback>>> = Arc::default();
        let on_stale = stale_release.clone();
        let replication = &config.replication;
        let outlet_config = OutletConfig {
            release_age_max: replication.detection / 2,
            held_bytes_max: (replication.held_output_mib_max.get() as usize) << 20,
        };
        let log = openings.console_log.as_ref().map(ConsoleLog::try_clone).transpose();
        let log = log.map_err(|source| GuestError::Console {
            path: config.console.log.clone().unwrap_or_default(),
            source,
        })?;
        let console = Box::new(Console { tail, log });
        let tell = Box::new(move || {
            if let Some(tell) = &*on_stale.lock().expect("no holder panics") {
                tell();
            }
        });
        let outlet = Outlet::new(outlet_config, Mode::Passing, console, tell);
        let outlet = outlet.map_err(GuestError::Thread)?;
        let outlet = Arc::new(outlet);
        let (events, received) = mpsc::channel();
        let (of_vm, way_out) = (vm_config(config), outlet.clone());
        let vm = Vm::from_openings(&of_vm, &openings.vm, way_out, events)?;
        let mut machine = machine(config, &vm);
        machine.traits.extend(device_traits(config, vm.devices())?);
        Ok(Self {
            ram: vm.memory().clone(),
            devices: vm.devices().clone(),
            tracking: vm.dirty_log().kind().to_string(),
            backend: vm.fingerprint().backend,
            vm: Mutex::new(vm),
            outlet,
            stale_release,
            happened: Arc::default(),
            events: Mutex::new(Some(received)),
            machine: Mutex::new(machine),
            userfault: openings.userfault.clone(),
        })
    }

    /// Loads the configured kernel; the guest is paused at its entry.
    ///
    /// # Errors
    ///
    /// [`GuestError`]
    pub fn boot(&self, config: &config::VmConfig) -> Result<(), GuestError> {
        let boot = boot_config(config)?;
        let protocol = self.vm().boot(&boot)?;
        if protocol == BootProtocol::Linux && self.backend == Backend::Pvm.name() {
            tracing::warn!(
                "this host's kvm (pvm) interprets guest kernels and knows too few instructions for stock Linux: the guest will stop at the first other one; use a host with VMX or SVM"
            );
        }
        Ok(())
    }

    /// Restarts the guest, which is paused, if it still wants to be: it may
    /// have been restarted since it said so.
    ///
    /// # Errors
    ///
    /// [`GuestError`]; the guest stays paused.
    pub fn restart(&self, config: &config::VmConfig) -> Result<bool, GuestError> {
        let wanted = matches!(self.devices.requested_power(), Some(PowerRequest::Reset(_)))
            || self.devices.panicked().is_some();
        if wanted {
            self.vm().reset(&boot_config(config)?)?;
        }
        Ok(wanted)
    }

    /// Presses the guest's power button.
    pub fn press_power_button(&self) {
        self.devices.press_power_button();
    }

    /// Touches all memory, so that no first touch falls into a promotion.
    pub fn touch(&self) {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if let Err(error) = self.ram.touch(threads) {
            tracing::warn!(%error, "memory is not touched beforehand: applying will be slower");
        }
    }

    /// Sets the state that `sections` and the image in memory are, says again
    /// what the last epoch said, and announces the guest's place. The guest is
    /// then paused where it was saved. If it is `followed`, all that is held, and
    /// writes are logged, from before the first of them.
    ///
    /// # Errors
    ///
    /// [`GuestError::Vm`]
    pub fn take_over(
        &self,
        sections: &Sections,
        outputs: Vec<Output>,
        followed: bool,
    ) -> Result<(), GuestError> {
        let mut vm = self.vm();
        self.outlet.reopen();
        if followed {
            self.outlet.hold();
            vm.start_dirty_log()?;
        }
        vm.restore(sections)?;
        // What belongs to the guest came with it: its TSC's frequency.
        self.machine.lock().expect("no holder panics").traits.extend(vm.fingerprint().traits());
        drop(vm);
        self.announce();
        self.outlet.inject(outputs);
        Ok(())
    }

    /// Announces the guest's place now and a few times again, from a thread.
    fn announce(&self) {
        // Whoever takes the guest away does not wait for this.
        let devices: Weak<Devices> = Arc::downgrade(&self.devices);
        let announce = move || {
            let mut slept = 0;
            for at in ANNOUNCE_AT_MS {
                std::thread::sleep(Duration::from_millis(at - slept));
                slept = at;
                let Some(devices) = devices.upgrade() else { return };
                match devices.announce() {
                    Ok(()) => {}
                    // Somebody else has the guest, and announces.
                    Err(DeviceError::Announce(SpeakError::Fenced)) => return,
                    Err(DeviceError::Announce(error)) => {
                        tracing::warn!(%error, "the guest's place was not announced");
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "the guest's place was not announced"),
                }
            }
        };
        if let Err(error) = self.devices.announce() {
            tracing::warn!(%error, "the guest's place was not announced");
        }
        let spawned = jail::spawn(ThreadKind::Output, "announce", announce);
        if let Err(error) = spawned {
            tracing::warn!(%error, "the guest's place is announced only once");
        }
    }

    /// The VM. Whoever also needs the tracker locks that first.
    pub fn vm(&self) -> MutexGuard<'_, Vm> {
        self.vm.lock().expect("no holder panics")
    }

    /// The guest, which is paused for good and fenced, was handed over: what is here
    /// is an image and a shell, as of any node that stands by.
    ///
    /// # Errors
    ///
    /// [`GuestError::Vm`]
    pub fn stand_by(&self) -> Result<(), GuestError> {
        Ok(self.vm().stop_dirty_log()?)
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestRam {
        &self.ram
    }

    /// Write protection of its memory, if the kernel has it for this process.
    ///
    /// # Errors
    ///
    /// [`GuardError`], saying what is missing.
    pub fn write_guard(&self) -> Result<Option<WriteGuard>, GuardError> {
        let Some(userfault) = &self.userfault else { return Ok(None) };
        self.vm().write_guard(userfault).map(Some)
    }

    /// The guest's way out.
    #[must_use]
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Where RAM lies.
    #[must_use]
    pub fn layout(&self) -> MemoryLayout {
        self.ram.layout().clone()
    }

    /// What must be equal on both sides.
    #[must_use]
    pub fn machine(&self) -> Machine {
        self.machine.lock().expect("no holder panics").clone()
    }

    /// How dirty pages are found.
    #[must_use]
    pub fn dirty_tracking(&self) -> String {
        self.tracking.clone()
    }

    /// KVM's backend.
    #[must_use]
    pub fn backend(&self) -> String {
        self.backend.to_owned()
    }

    /// Types `bytes` at the console; returns how many it took.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        self.devices.console_input(bytes)
    }

    /// BLAKE3 over the pages' digests, rising: meaningful while nothing writes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest_while(&self.ram, || true).expect("it is wanted to the end")
    }

    /// As [`Guest::digest`], as long as it is `wanted`, which is asked between
    /// runs of pages: a large memory takes seconds.
    #[must_use]
    pub fn digest_while(&self, wanted: impl Fn() -> bool) -> Option<Digest> {
        digest_while(&self.ram, wanted)
    }

    /// Calls `tell`, and nobody else, whenever a release was found too old to act
    /// upon.
    pub fn on_stale_release(&self, tell: impl Fn() + Send + Sync + 'static) {
        *self.stale_release.lock().expect("no holder panics") = Some(Box::new(tell));
    }

    /// Calls `tell`, and nobody else, with everything that happens to the guest.
    ///
    /// # Errors
    ///
    /// If the thread `vm-events` cannot be started.
    pub fn on_event(&self, tell: impl Fn(GuestEvent) + Send + 'static) -> std::io::Result<()> {
        *self.happened.lock().expect("no holder panics") = Some(Box::new(tell));
        let Some(events) = self.events.lock().expect("no holder panics").take() else {
            return Ok(());
        };
        let happened = self.happened.clone();
        jail::spawn(ThreadKind::Pages, "vm-events", move || {
            while let Ok(event) = events.recv() {
                match (GuestEvent::of(&event), &*happened.lock().expect("no holder panics")) {
                    (Some(event), Some(tell)) => tell(event),
                    (Some(_), None) | (None, _) => tracing::warn!("{event}"),
                }
            }
        })?;
        Ok(())
    }
}

fn digest_while(ram: &GuestRam, wanted: impl Fn() -> bool) -> Option<Digest> {
    let mut hasher = blake3::Hasher::new();
    let whole = ram.digest_pages(DIGEST_RUN_PAGES, |_, digests| {
        for digest in digests {
            hasher.update(digest);
        }
        if wanted() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    whole.is_continue().then(|| hasher.finalize().into())
}

/// What to boot, with the built-in guest put where it can be read.
fn boot_config(config: &config::VmConfig) -> Result<BootConfig, GuestError> {
    let kernel = match &config.vm.kernel {
        Kernel::File(path) => path.clone(),
        Kernel::Probe => {
            let name = format!("{}.{}.probe.elf", config.vm.name, config.node.name);
            let path = config.node.state_dir.join(name);
            std::fs::write(&path, PROBE_GUEST)
                .map_err(|source| GuestError::Probe { path: path.clone(), source })?;
            path
        }
    };
    let protocol = match config.vm.boot {
        config::BootProtocol::Auto => BootProtocol::Auto,
        config::BootProtocol::Linux => BootProtocol::Linux,
        config::BootProtocol::Pvh => BootProtocol::Pvh,
        config::BootProtocol::LongMode => BootProtocol::LongMode,
    };
    let (initrd, cmdline) = (config.vm.initrd.clone(), config.vm.cmdline.clone());
    Ok(BootConfig { kernel, initrd, cmdline, protocol })
}

/// Memory is mapped without being reserved: a guest that does not fit would
/// start, and be killed with its host's memory exhausted.
fn require_memory(needed_mib: u64) -> Result<(), GuestError> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mib = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
    };
    if let Some(total_mib) = mib("MemTotal:").filter(|total| *total < needed_mib) {
        return Err(GuestError::TooLarge { needed_mib, total_mib });
    }
    if let Some(available_mib) = mib("MemAvailable:").filter(|free| *free < needed_mib) {
        tracing::warn!(needed_mib, available_mib, "the guest may exhaust this host's memory");
    }
    Ok(())
}

/// Released console bytes: kept for the control API, and logged.
struct Console {
    tail: Arc<ConsoleTail>,
    log: Option<ConsoleLog>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.tail.push(bytes);
        if let Some(log) = &mut self.log {
            log.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Write::flush)
    }
}

fn vm_config(config: &config::VmConfig) -> VmConfig {
    VmConfig {
        memory_bytes: u64::from(config.vm.memory_mib.get()) << 20,
        vcpus: u8::try_from(config.vm.vcpus.get()).unwrap_or(u8::MAX),
        hugepages: config.vm.hugepages,
        dirty_tracking: match config.vm.dirty_tracking {
            config::DirtyTracking::Auto => DirtyTracking::Auto,
            config::DirtyTracking::Ring => DirtyTracking::Ring,
            config::DirtyTracking::Bitmap => DirtyTracking::Bitmap,
        },
        devices: device_config(config),
        cpu: CpuConfig { model: config.vm.cpu, without: config.vm.cpu_without.clone() },
    }
}

fn machine(config: &config::VmConfig, vm: &Vm) -> Machine {
    let traits = vm.fingerprint().traits();
    let layout = vm.memory().layout().clone();
    Machine { layout, vcpus: config.vm.vcpus.get(), traits }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_digest_that_is_not_wanted_any_more_stops() {
        let ram = GuestRam::new(64 << 20, false).unwrap();
        let asked = Cell::new(0);
        let wanted_for = |times: u32| {
            asked.set(0);
            digest_while(&ram, || {
                asked.set(asked.get() + 1);
                asked.get() < times
            })
        };
        assert!(wanted_for(3).is_none());
        assert_eq!(asked.get(), 3, "nothing is read when it has been told to stop");
        assert!(wanted_for(u32::MAX).is_some());
        assert_eq!(u64::from(asked.get()), ram.layout().page_count() / DIGEST_RUN_PAGES);
    }
}
