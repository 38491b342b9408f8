//! The guest's way out. Mirrors `vmm/src/outlet.rs`: the real queue of held
//! output, a tap that may be full, and the guard against acting on a decision
//! that has become too old.

use std::{collections::VecDeque, time::Duration};

use checkpoint::{
    Epoch,
    output::{Channel, HeldOutput, Mode, Output},
};

use crate::simulation::{
    clock::Clock,
    guest::reply_of,
    happening::{Happening, ProcessId, WorldHappening},
    mutation::Mutation,
    world::World,
};

/// See the module's head. Times are those of the process's clock.
#[derive(Debug)]
pub(super) struct Outlet {
    me: ProcessId,
    clock: Clock,
    held: HeldOutput,
    ready: VecDeque<Output>,
    decided: Option<Duration>,
    stale: bool,
    /// The first packet of an epoch is held, and nobody was told.
    first_held: bool,
    /// A look at the queue is planned.
    planned: bool,
}

impl Outlet {
    pub(super) fn new(me: ProcessId, clock: Clock) -> Self {
        Self {
            me,
            clock,
            held: HeldOutput::new(Mode::Passing),
            ready: VecDeque::new(),
            decided: None,
            stale: false,
            first_held: false,
            planned: false,
        }
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held.held_bytes() as u64
    }

    /// Takes what the guest says. Returns whether a decision was found too old,
    /// as do the others.
    pub(super) fn emit(&mut self, world: &mut World, output: Output) -> bool {
        let packet = matches!(output.channel, Channel::Network(_));
        let silent = self.held.is_silent();
        self.held.emit(output);
        self.first_held |= packet && silent && !self.held.is_silent();
        self.take_ready();
        self.drain(world)
    }

    /// Whether the first packet of an epoch is held since this was asked last.
    pub(super) fn take_first_held(&mut self) -> bool {
        std::mem::take(&mut self.first_held)
    }

    /// Ends an epoch; returns what it said.
    pub(super) fn seal(&mut self, epoch: Epoch) -> Vec<Output> {
        match self.held.mode() {
            Mode::Holding => self.held.seal(epoch).to_vec(),
            Mode::Passing | Mode::Fenced => Vec::new(),
        }
    }

    pub(super) fn hold(&mut self, world: &World) {
        if self.held.mode() == Mode::Passing {
            self.decided = Some(self.clock.shows(world.now));
        }
        self.held.hold();
    }

    pub(super) fn release(&mut self, world: &mut World, through: Epoch, decided: Duration) -> bool {
        if self.ready.is_empty() && self.held.mode() == Mode::Holding {
            self.decided = Some(decided);
        }
        self.held.release(through);
        self.take_ready();
        if world.faulty && world.chance.hits(world.plan.rates.freeze_at_release) {
            // It stands still here, and wakes here.
            world.freezing.push(self.me);
            self.plan(world, Duration::ZERO);
            return false;
        }
        self.drain(world)
    }

    pub(super) fn confirm(&mut self, world: &mut World) -> bool {
        let now = self.clock.shows(world.now);
        self.stale = false;
        self.decided = self.decided.map(|decided| decided.max(now));
        self.drain(world)
    }

    pub(super) fn pass(&mut self, world: &mut World) -> bool {
        if self.held.mode() == Mode::Fenced {
            return false;
        }
        self.held.pass();
        self.take_ready();
        self.decided = None;
        self.stale = false;
        self.drain(world)
    }

    pub(super) fn fence(&mut self, world: &mut World) {
        if world.mutated(Mutation::SpeakWhenFenced) {
            self.pass(world);
        }
        self.held.fence();
        self.ready.clear();
        self.decided = None;
        self.stale = false;
    }

    /// Says again what the last committed epoch said.
    pub(super) fn inject(&mut self, world: &mut World, outputs: Vec<Output>) {
        for output in outputs {
            self.emit(world, output);
        }
    }

    /// The look that was planned.
    pub(super) fn look(&mut self, world: &mut World) -> bool {
        self.planned = false;
        self.drain(world)
    }

    fn plan(&mut self, world: &mut World, delay: Duration) {
        if !std::mem::replace(&mut self.planned, true) {
            world.process_later(self.me, delay, Happening::Drain);
        }
    }

    fn take_ready(&mut self) {
        while let Some(output) = self.held.take_ready() {
            self.ready.push_back(output);
        }
    }

    /// Writes what is ready.
    fn drain(&mut self, world: &mut World) -> bool {
        if world.freezing.contains(&self.me) {
            self.plan(world, Duration::ZERO);
            return false;
        }
        let now = self.clock.shows(world.now);
        let guarded = !world.mutated(Mutation::SkipDoubt);
        while !self.ready.is_empty() && !self.stale {
            let age = self.decided.map(|decided| now.saturating_sub(decided));
            if guarded && age.is_some_and(|age| age > world.plan.timing.release_age_max()) {
                self.stale = true;
                return true;
            }
            let full_until = world.machine(self.me).tap_full_until;
            if full_until > world.now {
                self.plan(world, full_until - world.now);
                return false;
            }
            let output = self.ready.pop_front().expect("looked at above");
            leave(world, self.me, &output);
        }
        false
    }
}

/// An output leaves the host.
fn leave(world: &mut World, from: ProcessId, output: &Output) {
    world.report.outputs += 1;
    world.journal.mix_octets(&output.payload);
    world.witness.hears(world.now, from, output);
    let Some(reply) = reply_of(output) else { return };
    if world.faulty && world.chance.hits(world.plan.rates.client_lost) {
        return;
    }
    let copies = 1 + u64::from(world.chance.hits(world.plan.rates.client_doubled));
    for _ in 0..copies {
        let delay = world.latency();
        world.later(delay, WorldHappening::Reply(reply));
    }
}
