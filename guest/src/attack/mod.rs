//! A guest that is hostile to its machine, in rounds from a seed (`probe.attack=`).
//!
//! ```text
//!   round:  a kind, and a device if it strikes one ── blows ── the device must serve a sound
//!           driver again ── "probe: attack round=3 kind=races device=2 rolls=4711"
//! ```
//!
//! vCPU 0 strikes one blow between two looks at the network, so that clients are answered
//! meanwhile; the network device itself is attacked only if `net` is among the kinds, and brought
//! up again after each round. What is drawn, and what is spared, is `romulus_probe::attack`.

mod arena;
mod blow;
mod driver;

use romulus_probe::Params;
use romulus_probe::attack::{Attack, BLOWS, Dice, Ground, Kind, SLOTS};

use crate::console::{self, say};
use crate::cpu;
use crate::memory::Memory;
use crate::net::Net;
use crate::virtio::DEVICE_NET;
use driver::Device;

const DEVICES_MAX: usize = 16;

/// An attack under way.
pub(crate) struct Assault {
    attack: Attack,
    dice: Dice,
    ground: Ground,
    devices: [Option<Device>; DEVICES_MAX],
    device_count: usize,
    round: u64,
    kind: Kind,
    /// The device that this round strikes.
    target: Option<usize>,
    blows_left: u32,
    has_net: bool,
}

impl Assault {
    pub(crate) fn new(attack: Attack, params: &Params, memory: &Memory) -> Self {
        let spared = |device: &Device| device.id == DEVICE_NET && !attack.kinds.has_net();
        let mut devices = [None; DEVICES_MAX];
        let found = params.virtio_devices().filter_map(Device::find).filter(|one| !spared(one));
        let device_count =
            devices.iter_mut().zip(found).map(|(slot, device)| *slot = Some(device)).count();
        let slots_end = params.virtio_devices().map(|device| device.base + device.size).max();
        let ground = Ground {
            arena: arena::address(),
            ram_end: memory.low_end(),
            slots_end: slots_end.unwrap_or(SLOTS),
        };
        say!("attack {attack} devices={device_count}");
        Self {
            attack,
            dice: Dice::new(attack.seed),
            ground,
            devices,
            device_count,
            round: 0,
            kind: Kind::Ports,
            target: None,
            blows_left: 0,
            has_net: false,
        }
    }

    /// Whether the network device is under attack, and nobody else may touch it.
    pub(crate) fn has_net(&self) -> bool {
        self.has_net
    }

    /// One blow; false if the attack is over.
    pub(crate) fn strike(&mut self, net: &mut Option<Net>) -> bool {
        if self.blows_left == 0 {
            if self.round == self.attack.rounds && self.attack.rounds > 0 {
                return false;
            }
            self.begin_round(net);
        }
        let (dice, ground) = (&mut self.dice, &self.ground);
        match self.target.and_then(|target| self.devices[target].as_mut()) {
            Some(device) => blow::at_device(self.kind, dice, ground, device),
            None => blow::at_machine(self.kind, dice, ground),
        }
        self.blows_left -= 1;
        if self.blows_left == 0 {
            self.end_round(net);
        }
        true
    }

    fn begin_round(&mut self, net: &Option<Net>) {
        self.round += 1;
        self.blows_left = BLOWS;
        self.kind = self.attack.kinds.draw(&mut self.dice);
        self.target = None;
        if self.kind.has_device() && self.device_count > 0 {
            self.target = Some(self.dice.below(self.device_count as u64) as usize);
        }
        let registers = self.target.and_then(|target| self.devices[target]).map(|at| at.registers);
        self.has_net = registers.is_some() && registers == net.as_ref().map(Net::registers);
    }

    fn end_round(&mut self, net: &mut Option<Net>) {
        // A port's blow may have turned the console around.
        console::init();
        let mut id = 0;
        if let Some(device) = self.target.and_then(|target| self.devices[target].as_mut()) {
            id = device.id;
            device.prove();
        }
        if let Some(net) = net.as_mut().filter(|_| self.has_net) {
            net.reopen().unwrap_or_else(|error| panic!("the network is lost: {error:?}"));
            self.has_net = false;
        }
        let (round, kind, rolls) = (self.round, self.kind.name(), self.dice.rolls());
        say!("attack round={round} kind={kind} device={id} rolls={rolls}");
        if round == self.attack.rounds {
            say!("attack over rounds={round} rolls={rolls} last={:016x}", self.dice.roll());
            if self.attack.kinds.has_end() {
                say!("attack ends: code is fetched where nothing is");
                cpu::jump(self.ground.slots_end + 0x10000);
            }
        }
    }
}
