//! All devices of a guest without a machine around them: no KVM, no threads.
//! The door by which the fuzz targets of `romulus-tests` come in.
//!
//! ```text
//!   caller ──registers, ports──▶ Devices ◀──serve── caller, as every worker
//!          ──guest memory──────▶    │
//!          ──frames────────────▶  cable (a pair of sockets)
//! ```
//!
//! What a vCPU and a worker do at the same time in a machine, the caller does
//! one after the other, so that a run repeats. Interrupts go nowhere. What the
//! guest sends goes to the outlet, which should have no tap.

use std::{
    fmt, io,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64},
    },
};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{
    DeviceError, Devices, DiskConfig, GuestMemory, attach, port_bus,
    power::PowerControl,
    serial::SerialPort,
    slot_bus,
    virtio::{
        device::{Backend, Device, MmioDevice, Served},
        net::Net,
        rng::Rng,
        tap::Tap,
    },
};
use crate::outlet::Outlet;

/// RAM of the guest, from address 0, in bytes.
pub const MEMORY_BYTES: u64 = 1 << 20;
/// Batches that a worker is given at a time.
const BATCHES_MAX: usize = 64;

/// A worker without a thread: serves one batch.
type Hand = Box<dyn FnMut() -> Served + Send>;

/// One device of each kind: slot 0 has the network device, slot 1 a disk that
/// may be written, slot 2 the entropy device.
pub struct LooseDevices {
    devices: Devices,
    memory: GuestMemory,
    cable: UnixDatagram,
    hands: Vec<Hand>,
}

impl fmt::Debug for LooseDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LooseDevices").field("devices", &self.devices).finish_non_exhaustive()
    }
}

impl LooseDevices {
    /// Devices as after power-on, parked. `disk` is the image of the disk.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] for an image of no use, or too few descriptors.
    pub fn new(disk: &Path, outlet: &Arc<Outlet>) -> Result<Self, DeviceError> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)])
            .map_err(|_| {
                DeviceError::Resources(io::Error::other("a mebibyte of memory cannot be mapped"))
            })?;
        let (cable, tap) = UnixDatagram::pair()?;
        cable.set_nonblocking(true)?;
        let mac = [0x52, 0x54, 0, 0, 0, 1];
        let net = Net::new(0, mac, Arc::new(Tap::from_socket(tap)), Arc::clone(outlet));
        let image = DiskConfig { path: disk.into(), read_only: false, serial: "disk-0".into() };
        let mut hands = Vec::new();
        let net = plug(net, &memory, &mut hands)?;
        let disk = plug(attach(&image)?, &memory, &mut hands)?;
        let rng = plug(Rng::new(), &memory, &mut hands)?;
        let in_slots: Vec<Arc<dyn MmioDevice>> =
            vec![Arc::clone(&net) as _, Arc::clone(&disk) as _, Arc::clone(&rng) as _];
        let serial = Arc::new(SerialPort::new(interrupt()?, Arc::clone(outlet)));
        let power = Arc::new(PowerControl::new(interrupt()?));
        let panic = Arc::default();
        let devices = Devices {
            ports: port_bus(&serial, &power, &panic),
            slots: slot_bus(&in_slots),
            serial,
            power,
            panic,
            in_slots,
            networks: vec![net],
            disks: vec![disk],
            rng: Some(rng),
            workers: Mutex::default(),
            parked: AtomicBool::new(true),
            unknown_accesses: AtomicU64::new(0),
        };
        Ok(Self { devices, memory, cable, hands })
    }

    /// Registers, ports, parking and state.
    #[must_use]
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The guest writes its memory; what lies beyond it is left out.
    pub fn write_memory(&self, address: u64, bytes: &[u8]) {
        let room = MEMORY_BYTES.saturating_sub(address).min(bytes.len() as u64) as usize;
        if room > 0 {
            let written = self.memory.write_slice(&bytes[..room], GuestAddress(address));
            written.expect("it lies within memory");
        }
    }

    /// The guest reads its memory.
    ///
    /// # Panics
    ///
    /// If it is not memory.
    #[must_use]
    pub fn read_memory<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("guest memory");
        bytes
    }

    /// A frame arrives for the network device, unless the cable is full.
    pub fn deliver(&self, frame: &[u8]) {
        let _ = self.cable.send(frame);
    }

    /// Lets every worker serve, for a bounded number of batches.
    pub fn serve(&mut self) {
        for hand in &mut self.hands {
            for _ in 0..BATCHES_MAX {
                if !hand().more {
                    break;
                }
            }
        }
    }
}

fn plug<B: Backend>(
    backend: B,
    memory: &GuestMemory,
    hands: &mut Vec<Hand>,
) -> Result<Arc<Device<B>>, DeviceError> {
    let device = Arc::new(Device::new(0, backend, interrupt()?, memory.clone())?);
    let served = Arc::clone(&device);
    let mut in_hand = B::Hand::default();
    hands.push(Box::new(move || B::serve(&served, &mut in_hand)));
    Ok(device)
}

/// An interrupt that reaches nobody.
fn interrupt() -> io::Result<Arc<EventFd>> {
    Ok(Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?))
}
