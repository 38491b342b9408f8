//! What the guest sees beside its CPUs and memory: a serial console, power
//! control, a panic port and virtio-mmio devices.
//!
//! | device | where | interrupt | section |
//! |---|---|---|---|
//! | serial console | ports 0x3f8 to 0x3ff | GSI 4 | `serial` |
//! | power control | see [`power`] | GSI 13 | `power` |
//! | panic port | port 0x505 | | `pvpanic` |
//! | network device *n* | a slot | the slot's | `virtio-net.`*n* |
//! | disk *n* | a slot | the slot's | `virtio-blk.`*n* |
//! | entropy device | a slot | the slot's | `virtio-rng.0` |
//!
//! Slot *n* is in memory at 0xd000_0000 + *n* * 0x1000, and its interrupt is
//! [`SLOT_GSIS`]`[n]`. Slots are taken in the order of this table.
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
#[cfg(feature = "fuzz")]
pub mod loose;
pub(crate) mod panic_port;
pub mod power;
pub(crate) mod serial;
mod slot;
#[cfg(test)]
mod tests;
pub mod virtio;

use std::{
    fmt::Write as _,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use checkpoint::{Section, SectionError, Sections};
use kvm_ioctls::VmFd;
use thiserror::Error;

use self::{
    bus::Bus,
    panic_port::PanicPort,
    power::{PowerControl, PowerRequest},
    serial::SerialPort,
    slot::{Slots, interrupt},
    virtio::{
        blk::{
            Disk, DiskStats, SERIAL_BYTES_MAX,
            image::{Image, ImageError},
        },
        device::{Device, MmioDevice},
        net::{Net, NetStats},
        rng::{Rng, RngStats},
        tap::{Tap, TapError},
        transport::state::Restored,
        worker::Worker,
    },
};
use crate::{
    acpi::Slot,
    outlet::{Outlet, SpeakError},
};

pub use self::{
    panic_port::Panic,
    slot::{SLOT_BYTES, SLOT_GSIS, SLOTS_BASE},
};
pub use crate::memory::GuestMemory;

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

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its raw image.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// What the guest knows it by: at most [`SERIAL_BYTES_MAX`] visible bytes.
    pub serial: String,
}

/// Which devices the guest has beside the serial console: at most as many as
/// [`SLOT_GSIS`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceConfig {
    /// Network devices.
    pub networks: Vec<NetworkConfig>,
    /// Disks.
    pub disks: Vec<DiskConfig>,
    /// Whether there is an entropy device.
    pub rng: bool,
}

impl DeviceConfig {
    /// Opens the taps of the network devices, in their order.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] for an impossible configuration, or a tap that cannot be
    /// opened.
    pub fn open_taps(&self) -> Result<Vec<Arc<Tap>>, DeviceError> {
        self.check()?;
        let open = |network: &NetworkConfig| Tap::open(&network.tap, network.create);
        Ok(self
            .networks
            .iter()
            .map(|network| open(network).map(Arc::new))
            .collect::<Result<_, _>>()?)
    }

    fn slots(&self) -> usize {
        self.networks.len() + self.disks.len() + usize::from(self.rng)
    }

    fn check(&self) -> Result<(), DeviceError> {
        if self.slots() > SLOT_GSIS.len() {
            return Err(DeviceError::TooMany(self.slots()));
        }
        let impossible = |mac: &[u8; 6]| mac[0] & 1 == 1 || *mac == [0; 6];
        match self.networks.iter().find(|network| impossible(&network.mac)) {
            Some(network) => Err(DeviceError::Mac(network.tap.clone())),
            None => Ok(()),
        }
    }
}

/// Why devices could not be made, restored or used.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The configuration asks for too many.
    #[error(
        "{0} network devices, disks and the like are configured, at most {max} are possible",
        max = SLOT_GSIS.len()
    )]
    TooMany(usize),
    /// A MAC that is no station's.
    #[error(
        "the mac of tap `{0}` is a multicast or zero address: its first byte must be even, e.g. 52:54:00:00:00:01"
    )]
    Mac(String),
    /// A tap could not be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A disk's image is of no use.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A serial number that a disk cannot have.
    #[error("`{0}` is no disk's serial: use 1 to {SERIAL_BYTES_MAX} visible ASCII characters")]
    Serial(String),
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
    /// By disk.
    pub disks: Vec<DiskStats>,
    /// The entropy device, if there is one.
    pub rng: Option<RngStats>,
    /// Accesses by the guest to addresses where nothing answers.
    pub unknown_accesses: u64,
}

/// Data of the CMOS clock. There is none, and ACPI says so, but Linux before
/// 5.17 without kvm-clock reads it nevertheless, and waits for ever while all
/// ones say "update in progress". From zeros it takes the time to be the end of
/// November 1999, until its NTP client has another.
const CMOS_DATA_PORT: u16 = 0x71;

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
    slots: Bus<dyn MmioDevice>,
    serial: Arc<SerialPort>,
    power: Arc<PowerControl>,
    panic: Arc<PanicPort>,
    /// All that are in slots, in their order.
    in_slots: Vec<Arc<dyn MmioDevice>>,
    networks: Vec<Arc<Device<Net>>>,
    disks: Vec<Arc<Device<Disk>>>,
    rng: Option<Arc<Device<Rng>>>,
    workers: Mutex<Vec<Worker>>,
    parked: AtomicBool,
    unknown_accesses: AtomicU64,
}

impl Devices {
    /// Makes the devices, parked. `vm` must have its interrupt controllers,
    /// `taps` are those of [`DeviceConfig::open_taps`].
    ///
    /// # Errors
    ///
    /// [`DeviceError`] for an impossible configuration, an image that cannot be
    /// opened, or something that KVM or the host does not give.
    ///
    /// # Panics
    ///
    /// If there is not a tap for each network device.
    pub fn new(
        config: &DeviceConfig,
        taps: &[Arc<Tap>],
        vm: Arc<VmFd>,
        memory: GuestMemory,
        outlet: Arc<Outlet>,
    ) -> Result<Self, DeviceError> {
        config.check()?;
        assert_eq!(taps.len(), config.networks.len(), "a tap for each network device");
        let irq = interrupt(&vm, serial::GSI)?;
        let serial = Arc::new(SerialPort::new(irq, Arc::clone(&outlet)));
        let power = Arc::new(PowerControl::new(interrupt(&vm, power::GSI)?));
        let panic = Arc::default();
        let mut slots = Slots::new(&vm, &memory);
        let mut networks = Vec::new();
        for (index, (network, tap)) in (0..).zip(config.networks.iter().zip(taps)) {
            outlet.attach(index, Arc::clone(tap));
            let device = Net::new(index, network.mac, Arc::clone(tap), Arc::clone(&outlet));
            networks.push(slots.plug(index, device)?);
        }
        let mut disks = Vec::new();
        for (index, disk) in (0..).zip(&config.disks) {
            disks.push(slots.plug(index, attach(disk)?)?);
        }
        let rng = config.rng.then(|| slots.plug(0, Rng::new())).transpose()?;
        let Slots { devices: in_slots, workers, .. } = slots;
        Ok(Self {
            ports: port_bus(&serial, &power, &panic),
            slots: slot_bus(&in_slots),
            serial,
            power,
            panic,
            in_slots,
            networks,
            disks,
            rng,
            workers: Mutex::new(workers),
            parked: AtomicBool::new(true),
            unknown_accesses: AtomicU64::new(0),
        })
    }

    /// A vCPU reads `port`: each byte of `data` is one access. Where nothing
    /// answers it reads all ones.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        match self.ports.find(u64::from(port), 1) {
            Some((PortDevice::Serial(serial), offset)) => serial.read(offset, data),
            Some((PortDevice::Power(power), _)) => {
                data.iter_mut().for_each(|byte| *byte = power.read(port));
            }
            Some((PortDevice::Panic(panic), _)) => data.fill(panic.read()),
            None if port == CMOS_DATA_PORT => data.fill(0),
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
            Some((device, offset)) => device.read(offset, data),
            None => {
                data.fill(0xff);
                self.count_unknown();
            }
        }
    }

    /// A vCPU writes `address`. Where nothing answers it is ignored.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.slots.find(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
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
        self.in_slots.iter().for_each(|device| device.park());
        self.parked.store(true, Ordering::SeqCst);
    }

    /// Lets the devices go on, and look at everything that came meanwhile.
    pub fn unpark(&self) {
        self.parked.store(false, Ordering::SeqCst);
        self.serial.unpark();
        self.power.unpark();
        self.in_slots.iter().for_each(|device| device.unpark());
    }

    /// The names of the sections of [`Devices::save`].
    #[must_use]
    pub fn section_names(&self) -> Vec<String> {
        let in_slots = self.in_slots.iter().map(|device| device.section());
        let ports = [power::SECTION, panic_port::SECTION, serial::SECTION].map(str::to_owned);
        ports.into_iter().chain(in_slots).collect()
    }

    /// The state of all devices.
    ///
    /// # Panics
    ///
    /// If the devices are not parked.
    #[must_use]
    pub fn save(&self) -> Vec<Section> {
        assert!(self.parked.load(Ordering::SeqCst), "devices are saved while they run");
        let in_slots = self.in_slots.iter().map(|device| device.save());
        let ports = [self.power.save(), self.panic.save(), self.serial.save()];
        ports.into_iter().chain(in_slots).collect()
    }

    /// Whether [`Devices::restore`] would take this state. Changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Devices::restore`].
    pub fn check(&self, sections: &Sections) -> Result<(), DeviceError> {
        Ok(self.decode(sections).map(drop)?)
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
        let decoded = self.decode(sections)?;
        self.serial.adopt(decoded.serial);
        self.power.adopt(decoded.power);
        self.panic.adopt(decoded.panic);
        for (device, state) in self.in_slots.iter().zip(decoded.in_slots) {
            device.adopt(state);
        }
        Ok(())
    }

    fn decode(&self, sections: &Sections) -> Result<Decoded, SectionError> {
        let in_slots = self.in_slots.iter().map(|device| device.decode(sections));
        Ok(Decoded {
            serial: SerialPort::decode(sections)?,
            power: PowerControl::decode(sections)?,
            panic: PanicPort::decode(sections)?,
            in_slots: in_slots.collect::<Result<_, _>>()?,
        })
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
        (0..self.in_slots.len()).map(slot::place).collect()
    }

    /// Which devices are where: equal on hosts between which a guest can move.
    #[must_use]
    pub fn inventory(&self) -> String {
        let mut line = String::new();
        for (Slot { address, gsi, .. }, device) in self.slots().iter().zip(&self.in_slots) {
            let comma = if line.is_empty() { "" } else { ", " };
            let _ = write!(line, "{comma}{} at {address:#x}:{gsi}", device.kind());
        }
        line
    }

    /// What to append to the kernel's command line, for kernels that take
    /// virtio-mmio devices from there.
    #[must_use]
    pub fn cmdline(&self) -> String {
        let mut line = String::new();
        for Slot { address, gsi, .. } in self.slots() {
            let space = if line.is_empty() { "" } else { " " };
            let _ = write!(line, "{space}virtio_mmio.device=4K@{address:#x}:{gsi}");
        }
        line
    }

    /// The images of the disks, in their order.
    #[must_use]
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.disks.iter().map(|disk| disk.image()).collect()
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> DeviceStats {
        DeviceStats {
            networks: self.networks.iter().map(|net| net.stats()).collect(),
            disks: self.disks.iter().map(|disk| disk.stats()).collect(),
            rng: self.rng.as_ref().map(|rng| rng.stats()),
            unknown_accesses: self.unknown_accesses.load(Ordering::Relaxed),
        }
    }

    /// Ends all device threads, as dropping the devices does.
    pub fn stop(&self) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The state of all devices, read from its sections.
struct Decoded {
    serial: serial::Restored,
    power: power::State,
    panic: u8,
    in_slots: Vec<Restored>,
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

fn slot_bus(in_slots: &[Arc<dyn MmioDevice>]) -> Bus<dyn MmioDevice> {
    let ranges = in_slots
        .iter()
        .enumerate()
        .map(|(index, device)| (slot::place(index).address, SLOT_BYTES, Arc::clone(device)));
    Bus::new(ranges.collect())
}

/// A disk, its image opened.
fn attach(config: &DiskConfig) -> Result<Disk, DeviceError> {
    let serial = &config.serial;
    let visible = serial.bytes().all(|byte| byte.is_ascii_graphic());
    if serial.is_empty() || serial.len() > SERIAL_BYTES_MAX || !visible {
        return Err(DeviceError::Serial(serial.clone()));
    }
    let image = Arc::new(Image::open(&config.path, config.read_only)?);
    Ok(Disk::new(image, serial))
}
