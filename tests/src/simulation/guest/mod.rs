//! A fake guest and its VM: memory, registers, a network device and clients'
//! counters. Its disk will stand here when disks are replicated.
//!
//! The guest is a server. For every client it keeps in memory the number of
//! the last request that it served and a digest of all of them; it answers with
//! both, so a client finds out when something that it was told is forgotten.
//! Besides it writes pages all the time, in ways that make all spellings of a
//! page come about, and says on its console how many steps it has done. What it
//! does next follows from its registers alone, and they are saved state.
//!
//! ```text
//!   page 0   steps done          page 1   clients: (requests, digest) each
//!   page 2   received frames, written by the VMM
//!   page 3   used ring of the transmit queue, written by the VMM
//!   others   the guest's work
//! ```

mod dirty_log;
mod guard;
mod memory;

use std::rc::Rc;

use checkpoint::{
    PAGE_BYTES, Section, Sections,
    output::{Channel, Output},
};

pub(super) use dirty_log::DirtyLog;
pub(super) use guard::WriteGuard;
pub(super) use memory::{ImageMemory, Memory, layout};

use super::{chance::Chance, plan::Shape};

const CLIENTS_PAGE: usize = 1;
const RECEIVED_PAGE: usize = 2;
const USED_PAGE: usize = 3;
const FIRST_WORK_PAGE: usize = 4;
const REGISTERS: &str = "vcpu.00.regs";
const DEVICE: &str = "virtio-net.0";

/// A client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) client: u8,
    pub(super) number: u64,
}

/// What the guest says of a client's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) client: u8,
    /// The request that this answers.
    pub(super) to: u64,
    /// The last request that was served.
    pub(super) number: u64,
    /// A digest of all requests up to it.
    pub(super) digest: u64,
}

/// The digest that follows `digest` when request `number` is served.
pub(super) fn next_digest(digest: u64, client: u8, number: u64) -> u64 {
    Chance::new(digest ^ number.rotate_left(20) ^ u64::from(client)).number()
}

/// A guest in its VM.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) memory: Memory,
    pub(super) log: DirtyLog,
    pub(super) guard: WriteGuard,
    /// Steps done: rises with everything that the guest does.
    steps: u64,
    chance: Chance,
    received: u64,
    sent: u64,
    writes_max: u64,
}

impl Guest {
    /// A guest that boots.
    pub(super) fn boot(shape: &Shape, random: u64) -> Self {
        let memory = Memory::new(shape.pages);
        Self {
            log: DirtyLog::new(layout(shape.pages).frame_end(), shape.keeps_hot),
            guard: WriteGuard::new(layout(shape.pages).frame_end()),
            memory,
            steps: 0,
            chance: Chance::new(random),
            received: 0,
            sent: 0,
            writes_max: shape.writes_max,
        }
    }

    /// A guest that goes on from saved state.
    pub(super) fn restore(shape: &Shape, memory: Memory, sections: &Sections) -> Option<Self> {
        let word = |bytes: &[u8], index: usize| {
            let word = bytes.get(8 * index..8 * index + 8)?;
            Some(u64::from_le_bytes(word.try_into().expect("eight octets")))
        };
        let registers = sections.body(REGISTERS, 1).ok()?;
        let device = sections.body(DEVICE, 1).ok()?;
        Some(Self {
            log: DirtyLog::new(layout(shape.pages).frame_end(), shape.keeps_hot),
            guard: WriteGuard::new(layout(shape.pages).frame_end()),
            memory,
            steps: word(registers, 0)?,
            chance: Chance::new(word(registers, 1)?),
            received: word(device, 0)?,
            sent: word(device, 1)?,
            writes_max: shape.writes_max,
        })
    }

    /// The state of vCPU and devices.
    pub(super) fn save(&self) -> Sections {
        let section = |name: &str, words: [u64; 2], padding: usize| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(bytes.len() + padding, 0);
            Section { name: name.to_owned(), version: 1, bytes }
        };
        let registers = section(REGISTERS, [self.steps, self.chance.state()], 64);
        let device = section(DEVICE, [self.received, self.sent], 3);
        Sections::new(vec![registers, device]).expect("two small sections")
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Works; returns what it says, if it says something.
    pub(super) fn work(&mut self) -> Option<Output> {
        self.step();
        let work_pages = self.memory.len() - FIRST_WORK_PAGE;
        for _ in 0..=self.chance.below(self.writes_max) {
            let among = if self.chance.hits(600) { work_pages.min(3) } else { work_pages };
            let place = FIRST_WORK_PAGE + self.chance.index(among);
            self.write_somehow(place);
        }
        self.chance.hits(250).then(|| {
            let mut payload = self.steps.to_le_bytes().to_vec();
            payload.extend(b"console\n");
            Output { channel: Channel::Console, payload: payload.into() }
        })
    }

    /// Serves a request; returns the reply.
    pub(super) fn serve(&mut self, request: Request) -> Output {
        self.step();
        let Request { client, number } = request;
        self.received += 1;
        let at = (self.received % 200) as usize * 16;
        self.vmm_writes(RECEIVED_PAGE, at, number);
        let at = usize::from(client) * 16;
        let (mut served, mut digest) =
            (self.word(CLIENTS_PAGE, at), self.word(CLIENTS_PAGE, at + 8));
        if number == served + 1 {
            served = number;
            digest = next_digest(digest, client, number);
            self.write_word(CLIENTS_PAGE, at, served);
            self.write_word(CLIENTS_PAGE, at + 8, digest);
        }
        self.sent += 1;
        self.vmm_writes(USED_PAGE, (self.sent % 400) as usize * 8, self.sent);
        let mut payload = Vec::with_capacity(40);
        for word in [self.steps, u64::from(client), served, digest, number] {
            payload.extend(word.to_le_bytes());
        }
        Output { channel: Channel::Network(0), payload: payload.into() }
    }

    fn step(&mut self) {
        self.steps += 1;
        self.write_word(0, 0, self.steps);
    }

    /// One of the things that guests do to pages.
    fn write_somehow(&mut self, place: usize) {
        self.before_write(place);
        let word = self.chance.number();
        let at = (word >> 40) as usize % (PAGE_BYTES / 8) * 8;
        match self.chance.below(24) {
            0 => self.memory.set_zero(place),
            1 => {
                let (few, page) = (word | 1, self.memory.page_mut(place));
                for (index, octets) in page.chunks_exact_mut(8).enumerate() {
                    let word = few.wrapping_mul(1 + (index as u64 & 7));
                    octets.copy_from_slice(&word.to_le_bytes());
                }
            }
            // Written, but with what was there.
            2..=4 => {}
            _ => {
                self.memory.page_mut(place)[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        self.log.guest_writes(self.memory.number(place));
    }

    fn word(&self, place: usize, at: usize) -> u64 {
        u64::from_le_bytes(self.memory.page(place)[at..at + 8].try_into().expect("eight octets"))
    }

    /// Whoever writes a page that is protected waits until it is copied.
    fn before_write(&mut self, place: usize) {
        self.guard.fault(self.memory.number(place), || Rc::new(*self.memory.page(place)));
    }

    fn write_word(&mut self, place: usize, at: usize, word: u64) {
        self.before_write(place);
        self.memory.page_mut(place)[at..at + 8].copy_from_slice(&word.to_le_bytes());
        self.log.guest_writes(self.memory.number(place));
    }

    fn vmm_writes(&mut self, place: usize, at: usize, word: u64) {
        self.before_write(place);
        self.memory.page_mut(place)[at..at + 8].copy_from_slice(&word.to_le_bytes());
        self.log.vmm_writes(self.memory.number(place));
    }
}

/// The guest's steps when it said this.
pub(super) fn steps_of(output: &Output) -> u64 {
    u64::from_le_bytes(output.payload[..8].try_into().expect("output begins with the steps"))
}

/// The reply in a frame, if it is one.
pub(super) fn reply_of(output: &Output) -> Option<Reply> {
    let word = |index: usize| {
        let octets = output.payload[8 * index..8 * index + 8].try_into().expect("eight octets");
        u64::from_le_bytes(octets)
    };
    match output.channel {
        Channel::Network(_) => {
            let (client, number) = (word(1) as u8, word(2));
            Some(Reply { client, number, digest: word(3), to: word(4) })
        }
        Channel::Console => None,
    }
}
