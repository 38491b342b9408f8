//! What the guest sees beside its CPUs and memory: a serial console, power
//! control, a panic port and virtio-mmio network devices.
//!
//! | device | where | interrupt | section |
//! |---|---|---|---|
//! | serial console | ports 0x3f8 to 0x3ff | GSI 4 | `serial` |
//! | power control | see [`power`] | GSI 13 | `power` |
//! | panic port | port 0x505 | | `pvpanic` |
//! | network device *n* | memory, 0xd000_0000 + *n* * 0x1000 | [`SLOT_GSIS`]`[n]` | `virtio-net.`*n* |
//!
//! Interrupts are pulses of an irqfd: describe them to the guest as
//! edge-triggered.
//!
//! vCPU threads call in at any time; each device has a lock of its own. All
//! devices begin parked, as a standby's do until it is promoted: their taps
//! are open, but nothing is read from them or written.

pub(crate) mod bus;
pub(crate) mod codec;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod panic_port;
pub mod power;
pub(crate) mod serial;
#[cfg(test)]
mod tests;
pub mod virtio;

use std::{
    fmt::Write as _,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use checkpoint::{Section, SectionError, Sections};
use kvm_ioctls::{IoEventAddress, VmFd};
use thiserror::Error;
use virtio_bindings::bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::EventFd;

use self::{
    bus::Bus,
    panic_port::PanicPort,
    power::{PowerControl, PowerRequest},
    serial::SerialPort,
    virtio::{
        net::{Net, NetStats, QUEUES, Worker},
        tap::{Tap, TapError},
        transport::state::VERSION,
    },
};
use crate::{
    acpi::Slot,
    outlet::{Outlet, SpeakError},
};

pub use self::panic_port::Panic;
pub use crate::memory::GuestMemory;

/// Where virtio-mmio devices begin.
pub const SLOTS_BASE: u64 = 0xd000_0000;
/// Bytes of address space for each.
pub const SLOT_BYTES: u64 = 0x1000;
/// Their interrupts: ISA lines that nothing else of ours uses.
pub const SLOT_GSIS: [u32; 6] = [5, 6, 7, 9, 10, 11];

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The tap interface.
    pub tap: String,
    /// Whether to make the interface if it is not there; without, it must exist.
    pub create: bool,
    /// The guest's MAC.
    pub mac: [u8; 6],
}

/// Which devices the guest has beside the serial console.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceConfig {
    /// Network devices, at most as many as [`SLOT_GSIS`].
    pub networks: Vec<NetworkConfig>,
}

/// Why devices could not be made, restored or used.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The configuration asks for too many.
    #[error("{0} network devices are configured, at most {max} are possible", max = SLOT_GSIS.len())]
    TooMany(usize),
    /// A MAC that is no station's.
    #[error(
        "the mac of tap `{0}` is a multicast or zero address: its first byte must be even, e.g. 52:54:00:00:00:01"
    )]
    Mac(String),
    /// A tap could not be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// KVM did not connect an interrupt or a notification.
    #[error(
        "KVM could not connect {what}: does the VM have its interrupt controllers? see `romulus doctor`"
    )]
    Kvm {
        /// What was to be connected.
        what: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A descriptor or thread could not be made.
    #[error(
        "a device thread or event could not be made: raise the limits of processes and open files"
    )]
    Resources(#[from] io::Error),
    /// Saved state does not fit this machine.
    #[error("device state does not fit this machine: compare the configurations of both hosts")]
    State(#[from] SectionError),
    /// The announcement was not sent.
    #[error("the guest's new place was not announced")]
    Announce(#[from] SpeakError),
}

/// What the devices did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceStats {
    /// By network device.
    pub networks: Vec<NetStats>,
    /// Accesses by the guest to addresses where nothing answers.
    pub unknown_accesses: u64,
}

/// What a write to a port means beyond its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEffect {
    /// The vCPU must not go on.
    Power(PowerRequest),
    /// The guest said that it has panicked.
    Panicked(Panic),
}

/// What answers at a port.
#[derive(Debug)]
enum PortDevice {
    Serial(Arc<SerialPort>),
    Power(Arc<PowerControl>),
    Panic(Arc<PanicPort>),
}

/// All devices of a guest.
#[derive(Debug)]
pub struct Devices {
    ports: Bus<PortDevice>,
    slots: Bus<Net>,
    serial: Arc<SerialPort>,
    power: Arc<PowerControl>,
    panic: Arc<PanicPort>,
    networks: Vec<Arc<Net>>,
    workers: Mutex<Vec<Worker>>,
    parked: AtomicBool,
    unknown_accesses: AtomicU64,
}

impl Devices {
    /// Makes the devices, parked. `vm` must have its interrupt controllers.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] for an impossible configuration, a tap that cannot be
    /// opened, or something that KVM or the host does not give.
    pub fn new(
        config: &DeviceConfig,
        vm: Arc<VmFd>,
        memory: GuestMemory,
        outlet: Arc<Outlet>,
    ) -> Result<Self, DeviceError> {
        let count = config.networks.len();
        if count > SLOT_GSIS.len() {
            return Err(DeviceError::TooMany(count));
        }
        let irq = interrupt(&vm, serial::GSI)?;
        let serial = Arc::new(SerialPort::new(irq, Arc::clone(&outlet)));
        let power = Arc::new(PowerControl::new(interrupt(&vm, power::GSI)?));
        let mut networks = Vec::with_capacity(count);
        for (index, network) in config.networks.iter().enumerate() {
            networks.push(connect(index, network, &vm, &memory, &outlet)?);
        }
        Ok(Self::assemble(serial, power, networks)?)
    }

    fn assemble(
        serial: Arc<SerialPort>,
        power: Arc<PowerControl>,
        networks: Vec<Arc<Net>>,
    ) -> io::Result<Self> {
        let workers: io::Result<Vec<Worker>> =
            networks.iter().map(|net| Worker::start(Arc::clone(net))).collect();
        let slots = networks
            .iter()
            .enumerate()
            .map(|(index, net)| (slot_base(index), SLOT_BYTES, Arc::clone(net)))
            .collect();
        let panic = Arc::default();
        Ok(Self {
            ports: port_bus(&serial, &power, &panic),
            slots: Bus::new(slots),
            serial,
            power,
            panic,
            networks,
            workers: Mutex::new(workers?),
            parked: AtomicBool::new(true),
            unknown_accesses: AtomicU64::new(0),
        })
    }

    /// A vCPU reads `port`: each byte of `data` is one access.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        match self.ports.find(u64::from(port), 1) {
            Some((PortDevice::Serial(serial), offset)) => serial.read(offset, data),
            Some((PortDevice::Power(power), _)) => {
                data.iter_mut().for_each(|byte| *byte = power.read(port));
            }
            Some((PortDevice::Panic(panic), _)) => data.fill(panic.read()),
            None => {
                data.fill(0xff);
                self.count_unknown();
            }
        }
    }

    /// A vCPU writes `port`: each byte of `data` is one access. The first
    /// effect counts.
    pub fn pio_write(&self, port: u16, data: &[u8]) -> Option<PortEffect> {
        match self.ports.find(u64::from(port), 1) {
            Some((PortDevice::Serial(serial), offset)) => {
                serial.write(offset, data);
                None
            }
            Some((PortDevice::Power(power), _)) => {
                let requests = data.iter().map(|byte| power.write(port, *byte));
                requests.fold(None, Option::or).map(PortEffect::Power)
            }
            Some((PortDevice::Panic(panic), _)) => {
                let said = data.iter().map(|byte| panic.write(*byte));
                said.fold(None, Option::or).map(PortEffect::Panicked)
            }
            None => {
                self.count_unknown();
                None
            }
        }
    }

    /// A vCPU reads `address`. Where nothing answers it reads all ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.slots.find(address, data.len()) {
            Some((net, offset)) => net.read(offset, data),
            None => {
                data.fill(0xff);
                self.count_unknown();
            }
        }
    }

    /// A vCPU writes `address`. Where nothing answers it is ignored.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.slots.find(address, data.len()) {
            Some((net, offset)) => net.write(offset, data),
            None => self.count_unknown(),
        }
    }

    fn count_unknown(&self) {
        self.unknown_accesses.fetch_add(1, Ordering::Relaxed);
    }

    /// Stops every device at a request boundary: once this returns, no device
    /// thread touches guest memory, queues or interrupts. vCPUs must be
    /// paused first, as they serve their own register accesses.
    pub fn park(&self) {
        self.serial.park();
        self.power.park();
        self.networks.iter().for_each(|net| net.park());
        self.parked.store(true, Ordering::SeqCst);
    }

    /// Lets the devices go on, and look at everything that came meanwhile.
    pub fn unpark(&self) {
        self.parked.store(false, Ordering::SeqCst);
        self.serial.unpark();
        self.power.unpark();
        self.networks.iter().for_each(|net| net.unpark());
    }

    /// The names of the sections of [`Devices::save`].
    #[must_use]
    pub fn section_names(&self) -> Vec<String> {
        let networks = self.networks.iter().map(|net| net.section());
        let ports = [power::SECTION, panic_port::SECTION, serial::SECTION].map(str::to_owned);
        ports.into_iter().chain(networks).collect()
    }

    /// The state of all devices.
    ///
    /// # Panics
    ///
    /// If the devices are not parked.
    #[must_use]
    pub fn save(&self) -> Vec<Section> {
        assert!(self.parked.load(Ordering::SeqCst), "devices are saved while they run");
        let networks = self.networks.iter().map(|net| Section {
            name: net.section(),
            version: VERSION,
            bytes: net.save(),
        });
        let ports = [self.power.save(), self.panic.save(), self.serial.save()];
        ports.into_iter().chain(networks).collect()
    }

    /// Takes over the state of all devices, or of none. It takes effect at
    /// the next [`Devices::unpark`], which looks at every queue again and
    /// repeats interrupts that the guest has not acknowledged.
    ///
    /// # Errors
    ///
    /// [`DeviceError::State`] if a section is missing, malformed, or of a
    /// machine of another shape.
    ///
    /// # Panics
    ///
    /// If the devices are not parked.
    pub fn restore(&self, sections: &Sections) -> Result<(), DeviceError> {
        assert!(self.parked.load(Ordering::SeqCst), "devices are restored while they run");
        let serial = SerialPort::decode(sections)?;
        let power = PowerControl::decode(sections)?;
        let panic = PanicPort::decode(sections)?;
        let mut states = Vec::with_capacity(self.networks.len());
        for net in &self.networks {
            states.push(net.decode(sections.body(&net.section(), VERSION)?)?);
        }
        self.serial.adopt(serial);
        self.power.adopt(power);
        self.panic.adopt(panic);
        for (net, state) in self.networks.iter().zip(states) {
            net.adopt(state);
        }
        Ok(())
    }

    /// Tells the networks where the guest is now, once. Allowed while parked;
    /// refused once the outlet is fenced.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Announce`]; the other networks have been told.
    pub fn announce(&self) -> Result<(), DeviceError> {
        let told: Vec<_> = self.networks.iter().map(|net| net.announce()).collect();
        Ok(told.into_iter().collect::<Result<(), SpeakError>>()?)
    }

    /// Types `bytes` on the console; returns how many of them were taken.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    /// Presses the power button; what happens then is the guest's decision.
    pub fn press_power_button(&self) {
        self.power.press_button();
    }

    /// Notes that the guest asks for its machine to be restarted or turned off.
    pub(crate) fn request_power(&self, request: PowerRequest) {
        self.power.request(request);
    }

    /// What the guest asks to be done with its machine and nobody has done.
    #[must_use]
    pub fn requested_power(&self) -> Option<PowerRequest> {
        self.power.requested()
    }

    /// Whether the guest has panicked since power-on.
    #[must_use]
    pub fn panicked(&self) -> Option<Panic> {
        self.panic.said()
    }

    /// Where the virtio-mmio devices are, for the ACPI tables.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        let slot = |(index, gsi): (usize, &u32)| Slot {
            address: slot_base(index),
            bytes: SLOT_BYTES,
            gsi: *gsi,
        };
        SLOT_GSIS.iter().enumerate().take(self.networks.len()).map(slot).collect()
    }

    /// What to append to the kernel's command line, for kernels that take
    /// virtio-mmio devices from there.
    #[must_use]
    pub fn cmdline(&self) -> String {
        let mut line = String::new();
        for (index, gsi) in SLOT_GSIS.iter().enumerate().take(self.networks.len()) {
            let space = if index == 0 { "" } else { " " };
            let _ = write!(line, "{space}virtio_mmio.device=4K@{:#x}:{gsi}", slot_base(index));
        }
        line
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> DeviceStats {
        DeviceStats {
            networks: self.networks.iter().map(|net| net.stats()).collect(),
            unknown_accesses: self.unknown_accesses.load(Ordering::Relaxed),
        }
    }

    /// Ends all device threads, as dropping the devices does.
    pub fn stop(&self) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Where slot `index` begins.
const fn slot_base(index: usize) -> u64 {
    SLOTS_BASE + index as u64 * SLOT_BYTES
}

fn port_bus(
    serial: &Arc<SerialPort>,
    power: &Arc<PowerControl>,
    panic: &Arc<PanicPort>,
) -> Bus<PortDevice> {
    let serial = Arc::new(PortDevice::Serial(Arc::clone(serial)));
    let panic = Arc::new(PortDevice::Panic(Arc::clone(panic)));
    let mut ranges =
        vec![(serial::PORT, serial::PORTS, serial), (u64::from(panic_port::PORT), 1, panic)];
    for (first, count) in power::PORTS {
        ranges.push((first.into(), count, Arc::new(PortDevice::Power(Arc::clone(power)))));
    }
    Bus::new(ranges)
}

/// A network device, connected to KVM, its tap and the outlet.
fn connect(
    index: usize,
    config: &NetworkConfig,
    vm: &VmFd,
    memory: &GuestMemory,
    outlet: &Arc<Outlet>,
) -> Result<Arc<Net>, DeviceError> {
    if config.mac[0] & 1 == 1 || config.mac == [0; 6] {
        return Err(DeviceError::Mac(config.tap.clone()));
    }
    let tap = Arc::new(Tap::open(&config.tap, config.create)?);
    let irq = interrupt(vm, SLOT_GSIS[index])?;
    let number = index as u8;
    outlet.attach(number, Arc::clone(&tap));
    let net = Net::new(number, config.mac, irq, tap, memory.clone(), Arc::clone(outlet))?;
    let register = slot_base(index) + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
    for queue in 0..QUEUES {
        vm.register_ioevent(net.kick(queue), &IoEventAddress::Mmio(register), queue as u32)
            .map_err(|source| DeviceError::Kvm { what: "a queue's notification", source })?;
    }
    Ok(Arc::new(net))
}

/// An event that pulses `gsi`.
fn interrupt(vm: &VmFd, gsi: u32) -> Result<Arc<EventFd>, DeviceError> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    vm.register_irqfd(&event, gsi)
        .map_err(|source| DeviceError::Kvm { what: "an interrupt", source })?;
    Ok(Arc::new(event))
}
