//! Everything but the processes themselves: time, chance, the network, the
//! machines that processes run on, and the witness.
//!
//! Shells get it lent for every event, so that what they do is seen and timed
//! in one place.

mod wires;

use std::time::Duration;

use arbiter::{NodeId, Term};

use super::{
    agenda::Agenda,
    chance::Chance,
    clock::Clock,
    happening::{Happening, ProcessId, WorldHappening},
    journal::Journal,
    mutation::Mutation,
    network::Network,
    plan::Plan,
    report::Report,
    witness::Witness,
};

/// A host.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: NodeId,
    /// Another host has the same name, and its peers know that one, unless the
    /// name has moved.
    pub(super) twin: bool,
    /// Which process runs, if one does; otherwise the last.
    pub(super) life: u32,
    pub(super) alive: bool,
    pub(super) frozen_since: Option<Duration>,
    /// Until when its threads are slow.
    pub(super) slow_until: Duration,
    /// Until when they do nothing, but for the core.
    pub(super) hangs_until: Duration,
    pub(super) tap_full_until: Duration,
    /// It runs a guest, or did a moment ago.
    pub(super) has_guest: bool,
    /// The term that the process's frames carry.
    pub(super) term: Term,
    /// Thousandths of the true rate.
    clock_rate: u64,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) chance: Chance,
    pub(super) plan: Plan,
    pub(super) network: Network,
    pub(super) machines: Vec<Machine>,
    pub(super) witness: Witness,
    pub(super) journal: Journal,
    pub(super) report: Report,
    /// Two machines with one backup's name, the first of which has it at first.
    pub(super) namesakes: Option<[u8; 2]>,
    /// The other one has it now.
    pub(super) moved: bool,
    /// Things go wrong.
    pub(super) faulty: bool,
    pub(super) arbiter_up: bool,
    /// Questions that were put to it.
    pub(super) asks: u32,
    /// Processes that stand still when what is happening has happened.
    pub(super) freezing: Vec<ProcessId>,
    mutation: Option<Mutation>,
    agenda: Agenda,
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan, mutation: Option<Mutation>, tells: bool) -> Self {
        let mut chance = Chance::new(seed);
        let machines = machines(&plan, &mut chance);
        Self {
            now: Duration::ZERO,
            network: Network::new(machines.len() + 1),
            witness: Witness::new(&plan),
            journal: Journal::new(tells),
            report: Report::default(),
            faulty: true,
            namesakes: plan.moves_a_name().then(|| [NAMESAKE as u8, machines.len() as u8 - 1]),
            moved: false,
            arbiter_up: false,
            asks: 0,
            freezing: Vec::new(),
            agenda: Agenda::default(),
            mutation,
            chance,
            plan,
            machines,
        }
    }

    /// Whether this bug was put in.
    pub(super) fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// The arbiter's place in the network.
    pub(super) fn arbiter(&self) -> usize {
        self.machines.len()
    }

    pub(super) fn machine(&self, process: ProcessId) -> &Machine {
        &self.machines[usize::from(process.host)]
    }

    /// Whether this very process runs, or stands still.
    pub(super) fn is_alive(&self, process: ProcessId) -> bool {
        let machine = self.machine(process);
        machine.alive && machine.life == process.life
    }

    /// Where a node is, as everybody's configuration says.
    pub(super) fn host_of(&self, id: &NodeId) -> Option<u8> {
        let place = self.machines.iter().position(|machine| machine.id == *id)? as u8;
        match self.namesakes {
            Some([first, second]) if self.moved && first == place => Some(second),
            Some(_) | None => Some(place),
        }
    }

    /// The other machine with the name of a host.
    pub(super) fn twin_of(&self, host: u8) -> Option<usize> {
        let id = &self.machines[usize::from(host)].id;
        self.machines.iter().position(|machine| machine.twin && machine.id == *id)
    }

    /// The names of the nodes but for this one.
    pub(super) fn peers_of(&self, process: ProcessId) -> Vec<NodeId> {
        let own = &self.machine(process).id;
        let named = self.machines.iter().filter(|machine| !machine.twin && machine.id != *own);
        named.map(|machine| machine.id.clone()).collect()
    }

    /// A clock for a process that begins now.
    pub(super) fn clock(&self, process: ProcessId) -> Clock {
        Clock::new(self.now, self.machine(process).clock_rate)
    }

    /// A number unlike that of any other process.
    pub(super) fn random(&mut self) -> u64 {
        if self.mutated(Mutation::ReuseStamps) { 7 } else { self.chance.number() }
    }

    /// Goes on to the next thing that happens.
    pub(super) fn next(&mut self) -> Option<WorldHappening> {
        let (at, happening) = self.agenda.next()?;
        self.now = at;
        self.report.steps += 1;
        self.report.millis = at.as_millis() as u64;
        self.journal.begin_step(at, happening.number());
        Some(happening)
    }

    pub(super) fn at(&mut self, at: Duration, happening: WorldHappening) {
        self.agenda.plan(at.max(self.now), happening);
    }

    pub(super) fn later(&mut self, delay: Duration, happening: WorldHappening) {
        self.at(self.now + delay, happening);
    }

    /// Something that a process's threads come to.
    pub(super) fn process_later(&mut self, to: ProcessId, delay: Duration, what: Happening) {
        self.later(delay, WorldHappening::Process(to, what));
    }

    /// Work of a thread, in microseconds; longer on a slow machine.
    pub(super) fn work_later(
        &mut self,
        of: ProcessId,
        micros: std::ops::Range<u64>,
        what: Happening,
    ) {
        let mut delay = self.chance.micros(micros);
        if self.machine(of).slow_until > self.now {
            delay = delay * 8 + Duration::from_millis(2);
        }
        delay += self.machine(of).hangs_until.saturating_sub(self.now);
        self.process_later(of, delay, what);
    }
}

/// The host whose name moves.
const NAMESAKE: usize = 1;

fn machines(plan: &Plan, chance: &mut Chance) -> Vec<Machine> {
    let mut names = ["a", "b", "c", "d"][..=plan.backups].to_vec();
    if plan.rates.twin > 0 {
        names.push("a");
    }
    if plan.moves_a_name() {
        names.push(names[NAMESAKE]);
    }
    let named = names.iter().enumerate().map(|(place, name)| Machine {
        id: name.parse().expect("a name"),
        twin: place > plan.backups,
        life: 0,
        alive: false,
        frozen_since: None,
        slow_until: Duration::ZERO,
        hangs_until: Duration::ZERO,
        tap_full_until: Duration::ZERO,
        has_guest: false,
        term: Term::ZERO,
        clock_rate: chance.within(&plan.clocks),
    });
    named.collect()
}
