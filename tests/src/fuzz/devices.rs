//! A hostile guest at its devices: registers, ports, rings in memory that it
//! fills, resets in the middle, and a pause with saved state now and then.
//!
//! ```text
//!   step := action:u8 ...     see [`Guest::step`]; all numbers little-endian
//! ```
//!
//! So that an input need not spell out a whole driver, some steps do what a
//! driver does: [`START`] takes a device through its status, its rings at
//! [`ring`], and [`CHAIN`] publishes descriptors of the input's choice.

use std::{
    io,
    path::Path,
    sync::{Arc, OnceLock},
};

use checkpoint::{Sections, output::Mode};
use vmm::{
    device::{
        SLOT_BYTES, SLOTS_BASE,
        loose::{LooseDevices, MEMORY_BYTES},
    },
    outlet::{Outlet, OutletConfig},
};

use super::{Verdict, scratch, script::Script};

const DISK_BYTES: usize = 64 << 10;
/// Ports that something answers at, and some where nothing does.
const PORTS: [u16; 16] = [
    0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x505, 0x600, 0x601, 0x602, 0xcf9,
    0x64, 0x80, 0xffff,
];
/// Descriptors of each ring.
const RING_SIZE: u16 = 8;
/// Descriptors of one [`CHAIN`] step.
const CHAIN_MAX: u8 = 8;
/// What a guest's accesses are wide.
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

// Steps.
pub(super) const WRITE_MEMORY: u8 = 0;
pub(super) const WRITE_REGISTER: u8 = 1;
pub(super) const READ_REGISTER: u8 = 2;
pub(super) const WRITE_PORT: u8 = 3;
pub(super) const READ_PORT: u8 = 4;
pub(super) const DELIVER: u8 = 5;
pub(super) const SERVE: u8 = 6;
pub(super) const MOVE: u8 = 7;
pub(super) const START: u8 = 8;
pub(super) const CHAIN: u8 = 9;
pub(super) const OUTSIDE: u8 = 10;
const STEPS: u8 = 11;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let folder = scratch::folder();
    let mut guest = Guest { loose: loose(folder.path()) };
    guest.loose.devices().unpark();
    let mut script = Script::new(bytes);
    while let Some(action) = script.step() {
        guest.step(action % STEPS, &mut script);
    }
    guest.loose.serve();
    let stats = guest.loose.devices().stats();
    let done = stats.networks[0].tx_frames
        + stats.networks[0].rx_frames
        + stats.disks[0].reads
        + stats.disks[0].writes
        + stats.rng.map_or(0, |rng| rng.bytes);
    guest.move_on();
    if done > 0 { Verdict::Taken } else { Verdict::Refused }
}

/// Devices with a disk in `folder`.
pub(super) fn loose(folder: &Path) -> LooseDevices {
    let disk = folder.join("disk");
    std::fs::write(&disk, vec![0xd1; DISK_BYTES]).expect("a folder of our own");
    LooseDevices::new(&disk, outlet()).expect("memory and descriptors")
}

/// Where what the guest says is lost.
fn outlet() -> &'static Arc<Outlet> {
    static OUTLET: OnceLock<Arc<Outlet>> = OnceLock::new();
    OUTLET.get_or_init(|| {
        let (sink, stale) = (Box::new(io::sink()), Box::new(|| ()));
        let outlet = Outlet::new(OutletConfig::default(), Mode::Passing, sink, stale);
        Arc::new(outlet.expect("two threads"))
    })
}

/// Where the descriptors of a queue lie; its rings follow in steps of 0x1000.
fn ring(slot: u64, queue: u64) -> u64 {
    0x10000 + slot * 0x8000 + queue * 0x4000
}

struct Guest {
    loose: LooseDevices,
}

impl Guest {
    fn step(&mut self, action: u8, script: &mut Script<'_>) {
        match action {
            WRITE_MEMORY => {
                let address = u64::from(script.u32()) % MEMORY_BYTES;
                self.loose.write_memory(address, script.counted());
            }
            WRITE_REGISTER => {
                let (address, width) = register(script);
                let value = script.u64().to_le_bytes();
                self.loose.devices().mmio_write(address, &value[..width]);
            }
            READ_REGISTER => {
                let (address, width) = register(script);
                self.loose.devices().mmio_read(address, &mut [0; 8][..width]);
            }
            WRITE_PORT => {
                let port = PORTS[usize::from(script.u8()) % PORTS.len()];
                let _ = self.loose.devices().pio_write(port, script.counted());
            }
            READ_PORT => {
                let port = PORTS[usize::from(script.u8()) % PORTS.len()];
                let len = usize::from(script.u8());
                self.loose.devices().pio_read(port, &mut vec![0; len]);
            }
            DELIVER => self.loose.deliver(script.counted()),
            SERVE => self.loose.serve(),
            MOVE => self.move_on(),
            START => self.start(script),
            CHAIN => self.chain(script),
            OUTSIDE => match script.u8() % 3 {
                0 => drop(self.loose.devices().console_input(script.counted())),
                1 => self.loose.devices().press_power_button(),
                _ => drop(self.loose.devices().announce()),
            },
            _ => unreachable!("steps are below {STEPS}"),
        }
    }

    fn set(&self, slot: u64, register: u64, value: u32) {
        let address = SLOTS_BASE + slot * SLOT_BYTES + register;
        self.loose.devices().mmio_write(address, &value.to_le_bytes());
    }

    /// As a driver begins, with the features of the input's choice.
    fn start(&self, script: &mut Script<'_>) {
        let slot = u64::from(script.u8() % 3);
        let features = script.u32();
        for status in [0, 1, 3] {
            self.set(slot, 0x70, status);
        }
        for (select, features) in [(0, features), (1, 1)] {
            self.set(slot, 0x24, select);
            self.set(slot, 0x20, features);
        }
        self.set(slot, 0x70, 11);
        for queue in 0..2 {
            let ring = ring(slot, queue);
            self.loose.write_memory(ring, &[0; 0x3000]);
            self.set(slot, 0x30, queue as u32);
            self.set(slot, 0x38, u32::from(RING_SIZE));
            for (register, address) in [(0x80, ring), (0x90, ring + 0x1000), (0xa0, ring + 0x2000)]
            {
                self.set(slot, register, address as u32);
                self.set(slot, register + 4, 0);
            }
            self.set(slot, 0x44, 1);
        }
        self.set(slot, 0x70, 15);
    }

    /// Writes descriptors from the first on, publishes one and notifies:
    /// `slot:u8 queue:u8 head:u8 count:u8 (address:u64 len:u32 flags:u16 next:u16)*`
    fn chain(&self, script: &mut Script<'_>) {
        let (slot, queue) = (u64::from(script.u8() % 3), u64::from(script.u8() & 1));
        let head = u16::from(script.u8());
        let ring = ring(slot, queue);
        for index in 0..script.u8() % (CHAIN_MAX + 1) {
            self.loose.write_memory(ring + 16 * u64::from(index), script.slice(16));
        }
        let available = ring + 0x1000;
        let index = u16::from_le_bytes(self.loose.read_memory(available + 2));
        let entry = available + 4 + 2 * u64::from(index % RING_SIZE);
        self.loose.write_memory(entry, &head.to_le_bytes());
        self.loose.write_memory(available + 2, &index.wrapping_add(1).to_le_bytes());
        self.set(slot, 0x50, queue as u32);
    }

    /// A pause in which the state goes through its saved form.
    fn move_on(&mut self) {
        let devices = self.loose.devices();
        devices.park();
        let saved = Sections::new(devices.save()).expect("state of our own");
        devices.restore(&saved).expect("state of our own");
        assert_eq!(Sections::new(devices.save()), Ok(saved), "state that changes by itself");
        devices.unpark();
    }
}

/// The address of an access and its width: `slot:u8 offset:u16 width:u8`.
fn register(script: &mut Script<'_>) -> (u64, usize) {
    let slot = u64::from(script.u8() % 4);
    let offset = u64::from(script.u16()) % SLOT_BYTES;
    let width = WIDTHS[usize::from(script.u8()) % WIDTHS.len()];
    (SLOTS_BASE + slot * SLOT_BYTES + offset, width)
}
