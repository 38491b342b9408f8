//! The cluster: processes on their hosts, driven from one happening to the next.

mod clients;
mod faults;
mod operator;
mod processes;

use std::{collections::VecDeque, time::Duration};

use self::clients::Clients;
use super::{
    arbiter_host::ArbiterHost,
    backup::BackupShell,
    happening::{Happening, ProcessId, WorldHappening},
    mutation::Mutation,
    network::{Pipe, SessionId, Side},
    plan::Plan,
    primary::{Claim, PrimaryShell},
    report::Report,
    witness::{Rule, Violation},
    world::World,
};

/// After the faults have ended, protection is back within this.
const HEALED_WITHIN: Duration = Duration::from_millis(3_000);
/// More than any sound run takes.
const STEPS_MAX: u64 = 200_000;

/// What a host's process is.
#[derive(Debug)]
enum Role {
    /// There is none.
    Down,
    Claiming(Box<Claim>),
    Primary(Box<PrimaryShell>),
    Backup(Box<BackupShell>),
}

/// A host's process.
#[derive(Debug)]
struct Process {
    role: Role,
    /// What happens to it when it goes on, if it stands still.
    held: VecDeque<WorldHappening>,
    /// It will go on in another role soon.
    turning: bool,
    /// When an operator asks it next to protect the guest by all backups.
    look_after_at: Duration,
}

/// See the module's head.
#[derive(Debug)]
pub struct Cluster {
    world: World,
    processes: Vec<Process>,
    arbiter: ArbiterHost,
    clients: Clients,
    over: bool,
}

impl Cluster {
    /// The cluster of a seed, with a bug if one is wanted; `tells` prints what
    /// happens.
    #[must_use]
    pub fn new(seed: u64, plan: Plan, mutation: Option<Mutation>, tells: bool) -> Self {
        let world = World::new(seed, plan, mutation, tells);
        let process = || Process {
            role: Role::Down,
            held: VecDeque::new(),
            turning: false,
            look_after_at: Duration::ZERO,
        };
        let processes = world.machines.iter().map(|_| process()).collect();
        let arbiter = ArbiterHost::new(&world);
        let clients = Clients::new(world.plan.shape.clients);
        let mut cluster = Self { world, processes, arbiter, clients, over: false };
        cluster.found();
        cluster
    }

    /// Lets things go wrong, heals them, and tells what came of it.
    ///
    /// # Errors
    ///
    /// The first [`Violation`] that the witness saw.
    pub fn run(mut self) -> Result<Report, Violation> {
        while !self.over
            && let Some(happening) = self.world.next()
        {
            self.happen(happening);
            self.freeze_who_is_to();
            if let Some(violation) = self.world.witness.violation() {
                return Err(violation.clone());
            }
            if self.world.report.steps > STEPS_MAX {
                let text = format!("more than {STEPS_MAX} steps");
                return Err(Violation { rule: Rule::Liveness, text });
            }
        }
        self.world.report.digest = self.world.journal.digest();
        Ok(self.world.report)
    }

    fn happen(&mut self, happening: WorldHappening) {
        match happening {
            WorldHappening::Process(process, what) => self.happen_to(process, what),
            WorldHappening::Deliver(session, pipe) => self.deliver(session, pipe),
            WorldHappening::Lost(session, side) => self.lose(session, side),
            WorldHappening::IdleCheck(session) => self.world.check_idle(session),
            WorldHappening::Fault(index) => self.fault(index),
            WorldHappening::Thaw(process) => self.thaw(process),
            WorldHappening::Start(host) => self.start(host),
            WorldHappening::Asked(letter) => self.arbiter.asked(&mut self.world, &letter),
            WorldHappening::ArbiterStart => self.arbiter.start(&mut self.world),
            WorldHappening::Heal => self.heal(),
            WorldHappening::OperatorLooks => self.operator_looks(),
            WorldHappening::ClientAsks(client) => self.clients.ask(&mut self.world, client),
            WorldHappening::Request(host, request) => {
                let process = &mut self.processes[usize::from(host)];
                let frozen = self.world.machines[usize::from(host)].frozen_since.is_some();
                if let Role::Primary(shell) = &mut process.role
                    && !frozen
                {
                    shell.request(&mut self.world, request);
                }
                self.turn(host);
            }
            WorldHappening::Reply(reply) => self.clients.hear(&mut self.world, reply),
        }
    }

    /// Whether this very process stands still; what happens to it waits then.
    fn hold_if_frozen(&mut self, process: ProcessId, happening: WorldHappening) -> bool {
        let frozen = self.world.machine(process).frozen_since.is_some();
        if frozen {
            self.processes[usize::from(process.host)].held.push_back(happening);
        }
        frozen
    }

    fn happen_to(&mut self, process: ProcessId, what: Happening) {
        if !self.world.is_alive(process) {
            return;
        }
        if self.world.machine(process).frozen_since.is_some() {
            self.hold_if_frozen(process, WorldHappening::Process(process, what));
            return;
        }
        if matches!(what, Happening::NextRole) {
            return self.next_role(process);
        }
        match &mut self.processes[usize::from(process.host)].role {
            Role::Down => {}
            Role::Claiming(claim) => {
                let end = claim.happens(&mut self.world, what);
                self.claimed(process, end);
            }
            Role::Primary(shell) => shell.happens(&mut self.world, what),
            Role::Backup(shell) => shell.happens(&mut self.world, what),
        }
        self.turn(process.host);
    }

    // --- The network ------------------------------------------------------

    /// The first frame of a stream has come, unless the link is cut.
    fn deliver(&mut self, id: SessionId, pipe: Pipe) {
        let session = self.world.network.session(id);
        let (from, to) = (session.host(pipe.from()), session.host(pipe.from().other()));
        let process = match (pipe, session.process(pipe.from().other())) {
            (_, Some(process)) => Some(process),
            // Nobody has taken the session yet: whoever keeps the door.
            (Pipe::Down, None) => self.doorkeeper(to, id),
            (Pipe::Up | Pipe::Data(_), None) => None,
        };
        if let Some(process) = process.filter(|process| self.world.is_alive(*process)) {
            if self.hold_if_frozen(process, WorldHappening::Deliver(id, pipe)) {
                return;
            }
            let now = self.world.now;
            if let Some(until) = self.world.network.cut_until(from.into(), to.into(), now) {
                // Sent again when the link is back, or a little later.
                let again = until + self.world.latency() * 2;
                return self.world.at(again, WorldHappening::Deliver(id, pipe));
            }
        }
        let (parcel, next) = self.world.network.session_mut(id).pop(pipe);
        if let Some(at) = next {
            let at = at.max(self.world.now + Duration::from_micros(1));
            self.world.at(at, WorldHappening::Deliver(id, pipe));
        }
        let (Some(parcel), Some(process)) = (parcel, process) else { return };
        if self.world.is_alive(process) {
            self.hand_over(process, id, pipe, &parcel.octets);
        }
    }

    /// The process that answers at a host's door, if the session is new to it.
    fn doorkeeper(&self, host: u8, id: SessionId) -> Option<ProcessId> {
        let machine = &self.world.machines[usize::from(host)];
        let is_new = self.world.network.session(id).is_new();
        let process = ProcessId { host, life: machine.life };
        (machine.alive && is_new).then_some(process)
    }

    fn hand_over(&mut self, process: ProcessId, id: SessionId, pipe: Pipe, octets: &[u8]) {
        let world = &mut self.world;
        match (&mut self.processes[usize::from(process.host)].role, pipe) {
            (Role::Primary(shell), Pipe::Up) => {
                let (term, frame) =
                    transport::wire::decode(octets).expect("control is not damaged");
                shell.frame(world, id, term, frame);
            }
            (Role::Backup(shell), Pipe::Down) => shell.frame(world, id, octets),
            (Role::Backup(shell), Pipe::Data(_)) => shell.data(world, id, octets),
            // Nobody keeps the door.
            (Role::Down | Role::Claiming(_) | Role::Primary(_) | Role::Backup(_), _) => {}
        }
        self.turn(process.host);
    }

    /// One end of a session finds that it is over.
    fn lose(&mut self, id: SessionId, side: Side) {
        let Some(process) = self.world.network.session(id).process(side) else { return };
        if !self.world.is_alive(process)
            || self.hold_if_frozen(process, WorldHappening::Lost(id, side))
        {
            return;
        }
        self.world.network.session_mut(id).shut(side);
        match (&mut self.processes[usize::from(process.host)].role, side) {
            (Role::Primary(shell), Side::Primary) => shell.lost(&mut self.world, id),
            (Role::Backup(shell), Side::Backup) => shell.lost(&mut self.world, id),
            (Role::Down | Role::Claiming(_) | Role::Primary(_) | Role::Backup(_), _) => {}
        }
        self.turn(process.host);
    }
}
