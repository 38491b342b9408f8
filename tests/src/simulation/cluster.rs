//! The cluster: nodes, register, network and faults, in virtual time.

mod backup_shell;
mod network;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use arbiter::{NodeId, Operation, Outcome, Record, Register, Request, Stamp, Term, VmId};
use checkpoint::{
    Answer, Epoch, MemoryLayout, PageNumber, PageRun, Question,
    backup::{self, Backup},
    chunk::{ChunkId, Digest},
    message::{Machine, Refusal, ToBackup, ToPrimary, Welcome},
    pacing::{Goal, Pace},
    primary::{self, Command, Ending, Primary},
};

use super::{
    chance::Chance,
    node::{Guest, Image, Node, Role, close_of},
    witness::Witness,
};

const HEARTBEAT: Duration = Duration::from_millis(20);
const DETECTION: Duration = Duration::from_millis(150);
const DROP_AFTER: Duration = Duration::from_millis(120);
const FREEZE_GAP: Duration = Duration::from_millis(60);
const RETRY: Duration = Duration::from_millis(30);
/// How long faults go on, and how long the cluster then has to heal.
const FAULTY: Duration = Duration::from_secs(6);
const HEALING: Duration = Duration::from_secs(4);

/// What may go wrong, each in events per thousand ticks of 5 ms.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// A node's process dies; it comes back as a backup later.
    pub crash: u64,
    /// A node's process stands still for a while.
    pub freeze: u64,
    /// The link between two nodes says nothing for a while, one way or both.
    pub cut: u64,
    /// The arbiter is away for a while.
    pub arbiter: u64,
    /// Of a thousand chunks so many are damaged.
    pub damage: u64,
    /// The operator asks for a handover.
    pub handover: u64,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Outputs that reached the world.
    pub outputs: u64,
    /// Times that a node took over.
    pub promotions: u64,
    /// Times that a node was fenced.
    pub fences: u64,
    /// The term at the end.
    pub term: u64,
    /// Whether the guest runs protected at the end.
    pub protected: bool,
    /// Whether every copy of the guest was lost: faults beyond what is
    /// promised, such as the crash of a solo primary.
    pub lost: bool,
}

#[derive(Debug, Clone)]
enum Happening {
    Tick,
    Wake(usize),
    ToPrimary { to: usize, from: usize, session: u64, term: Term, message: ToPrimary },
    ToBackup { to: usize, session: u64, term: Term, message: ToBackup },
    Chunk { to: usize, session: u64, term: Term, id: ChunkId, digest: Digest, work: u64 },
    Knock { to: usize, from: usize, session: u64, term: Term },
    Greeted { to: usize, from: usize, session: u64, reply: Result<Welcome, Refusal> },
    Broken { to: usize, peer: usize, session: u64 },
    Ask { from: usize, question: Question },
    Answer { to: usize, answer: Answer },
    CutDone { node: usize },
    Encoded { node: usize, epoch: Epoch },
    SeedRound { node: usize, backup: NodeId },
    Applied { node: usize, epoch: Epoch },
    Thaw(usize),
    Restart(usize),
    Heal(usize, usize),
    ArbiterBack,
}

/// A session between a primary and a backup.
#[derive(Debug, Clone, Copy)]
struct Session {
    primary: usize,
    backup: usize,
}

/// See the head of the module above.
pub struct Cluster {
    chance: Chance,
    faults: Faults,
    now: Duration,
    order: u64,
    queue: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    slots: Vec<Option<(Happening, u64)>>,
    nodes: Vec<Node>,
    record: Option<Record>,
    arbiter_up: bool,
    /// Directions that deliver nothing.
    cut: BTreeSet<(usize, usize)>,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    /// When the last control message of a direction arrives, to keep order.
    in_order: BTreeMap<(u64, bool), Duration>,
    /// What a frozen node has not taken yet.
    waiting: BTreeMap<usize, Vec<Happening>>,
    witness: Witness,
    report: Report,
    trace: bool,
}

fn vm() -> VmId {
    "guest".parse().expect("a name")
}

fn machine() -> Machine {
    let ram = PageRun { first: PageNumber::new(0), count: 16 };
    let layout = MemoryLayout::new(vec![ram]).expect("one region");
    Machine { layout, vcpus: 1, traits: BTreeMap::new() }
}

impl Cluster {
    /// A cluster of `nodes` nodes; the first one runs the guest.
    #[must_use]
    pub fn new(seed: u64, nodes: usize, faults: Faults, trace: bool) -> Self {
        let names = ["a", "b", "c", "d"];
        let ids: Vec<NodeId> = names[..nodes].iter().map(|n| n.parse().expect("a name")).collect();
        let nodes = ids
            .iter()
            .map(|id| Node {
                id: id.clone(),
                role: Role::Down,
                life: 0,
                frozen: false,
                register: None,
                peers: ids.iter().filter(|other| *other != id).cloned().collect(),
            })
            .collect();
        let mut cluster = Self {
            chance: Chance::new(seed),
            faults,
            now: Duration::ZERO,
            order: 0,
            queue: BinaryHeap::new(),
            slots: Vec::new(),
            nodes,
            record: None,
            arbiter_up: true,
            cut: BTreeSet::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            in_order: BTreeMap::new(),
            waiting: BTreeMap::new(),
            witness: Witness::default(),
            report: Report::default(),
            trace,
        };
        cluster.found();
        cluster
    }

    /// Runs faults, lets them heal, and tells what came of it.
    ///
    /// # Panics
    ///
    /// When an invariant is broken.
    pub fn run(mut self) -> Report {
        while let Some(Reverse((at, _, slot))) = self.queue.pop() {
            let (happening, life) = self.slots[slot].take().expect("queued once");
            self.now = at;
            if self.now > FAULTY + HEALING || self.report.lost {
                break;
            }
            self.happen(happening, life);
        }
        // A successor that crashed while the register was changing in its
        // favour takes the guest with it: handing over is not yet two-sided.
        self.report.lost |= !self.any_copy();
        self.report.outputs = self.witness.outputs();
        if let Some(record) = &self.record {
            self.report.term = record.register.term.get();
            self.report.protected = !record.register.in_sync.is_empty();
        }
        self.report
    }

    fn found(&mut self) {
        let request = Request {
            caller: self.nodes[0].id.clone(),
            expected: None,
            operation: Operation::Create,
            stamp: Stamp::new(0),
        };
        let Ok(Outcome::Set(register)) = request.decide(None) else { unreachable!() };
        self.record = Some(Record { register: register.clone(), stamp: request.stamp });
        self.run_primary(0, register, Epoch::FIRST, 0);
        for node in 1..self.nodes.len() {
            self.stand_by(node);
        }
        self.later(Duration::from_millis(5), 0, Happening::Tick);
    }

    fn run_primary(&mut self, node: usize, register: Register, first: Epoch, work: u64) {
        let random = self.chance.number();
        let config = primary::Config {
            node: self.nodes[node].id.clone(),
            pace: Pace {
                goal: Goal::Interval(Duration::from_millis(10)),
                interval_min: Duration::from_millis(1),
                interval_max: Duration::from_millis(100),
                early: true,
                gap_min: Duration::from_millis(2),
                early_bytes_max: 1 << 20,
                stretch_max: 4,
            },
            heartbeat: HEARTBEAT,
            drop_after: DROP_AFTER,
            freeze_gap: FREEZE_GAP,
            ask_retry: RETRY,
            epochs_in_flight_max: 4,
            bytes_in_flight_max: 1 << 20,
            held_output_bytes_max: 1000,
            seed_pages_left_max: 4,
            seed_rounds_max: 5,
        };
        let mut machine = Primary::new(config, register.clone(), first, random, self.now);
        for backup in self.nodes[node].peers.clone() {
            machine.handle(self.now, primary::Event::Commanded(Command::Protect { backup }));
        }
        self.nodes[node].register = Some(register);
        self.nodes[node].role = Role::Primary(Box::new(machine), Guest::new(work));
        self.act_primary(node);
    }

    fn stand_by(&mut self, node: usize) {
        let random = self.chance.number();
        let config = backup::Config {
            node: self.nodes[node].id.clone(),
            vm: vm(),
            machine: machine(),
            versions: vec!["romulus/1".to_owned()],
            detection: DETECTION,
            freeze_gap: FREEZE_GAP,
            ask_retry: RETRY,
            nack_after: Duration::from_millis(20),
            staging_bytes_max: 1 << 20,
        };
        let machine = Backup::new(config, Term::ZERO, random, self.now);
        self.nodes[node].role = Role::Backup(Box::new(machine), Image::default());
    }

    // --- Time -------------------------------------------------------------

    fn later(&mut self, delay: Duration, life_of: usize, happening: Happening) {
        self.at(self.now + delay, life_of, happening);
    }

    fn at(&mut self, at: Duration, life_of: usize, happening: Happening) {
        let life = self.nodes[life_of].life;
        self.slots.push(Some((happening, life)));
        self.order += 1;
        self.queue.push(Reverse((at, self.order, self.slots.len() - 1)));
    }

    /// The node that a happening is for.
    fn target(happening: &Happening) -> Option<usize> {
        match happening {
            Happening::Wake(to)
            | Happening::ToPrimary { to, .. }
            | Happening::ToBackup { to, .. }
            | Happening::Chunk { to, .. }
            | Happening::Knock { to, .. }
            | Happening::Greeted { to, .. }
            | Happening::Broken { to, .. }
            | Happening::Answer { to, .. }
            | Happening::CutDone { node: to }
            | Happening::Encoded { node: to, .. }
            | Happening::SeedRound { node: to, .. }
            | Happening::Applied { node: to, .. } => Some(*to),
            Happening::Tick
            | Happening::Ask { .. }
            | Happening::Thaw(_)
            | Happening::Restart(_)
            | Happening::Heal(..)
            | Happening::ArbiterBack => None,
        }
    }

    fn happen(&mut self, happening: Happening, life: u64) {
        if let Some(to) = Self::target(&happening) {
            if self.nodes[to].life != life {
                self.unheard(&happening);
                return;
            }
            if self.nodes[to].frozen {
                self.waiting.entry(to).or_default().push(happening);
                return;
            }
        }
        if self.trace && !matches!(happening, Happening::Tick | Happening::Wake(_)) {
            println!("{:>9} us  {happening:?}", self.now.as_micros());
        }
        match happening {
            Happening::Tick => self.tick(),
            Happening::Wake(node) => self.wake(node),
            Happening::Thaw(node) => self.thaw(node),
            Happening::Restart(node) => {
                self.stop(node);
                self.stand_by(node);
            }
            Happening::Heal(from, to) => {
                self.cut.remove(&(from, to));
            }
            Happening::ArbiterBack => self.arbiter_up = true,
            Happening::Ask { from, question } => self.decide(from, question, life),
            other => self.deliver(other),
        }
    }

    /// Who knocks at the door of a process that has died meets a time-out.
    fn unheard(&mut self, happening: &Happening) {
        if let Happening::Knock { to, from, session, .. } = *happening {
            let failed = Happening::Broken { to: from, peer: to, session };
            self.later(Duration::from_millis(25), from, failed);
        }
    }

    fn deliver(&mut self, happening: Happening) {
        match happening {
            Happening::Knock { to, from, session, term } => self.knock(to, from, session, term),
            Happening::Greeted { to, from, session, reply } => {
                self.greeted(to, from, session, reply);
            }
            Happening::Broken { to, peer, session } => self.broken(to, peer, session),
            Happening::ToPrimary { to, from, session, term, message } => {
                if self.sessions.contains_key(&session) {
                    let backup = self.nodes[from].id.clone();
                    self.tell_primary(to, primary::Event::Heard { backup, term, message });
                }
            }
            Happening::ToBackup { to, session, term, message } => {
                if self.sessions.contains_key(&session) {
                    self.tell_backup(to, backup::Event::Heard { term, message });
                }
            }
            Happening::Chunk { to, session, term, id, digest, work } => {
                if self.sessions.contains_key(&session) {
                    self.take_chunk(to, term, id, digest, work);
                }
            }
            Happening::Answer { to, answer } => {
                if matches!(self.nodes[to].role, Role::Primary(..)) {
                    self.tell_primary(to, primary::Event::Answered(answer));
                } else {
                    self.tell_backup(to, backup::Event::Answered(answer));
                }
            }
            Happening::CutDone { node } => self.cut_done(node),
            Happening::Encoded { node, epoch } => self.encoded(node, epoch),
            Happening::SeedRound { node, backup } => self.seed_round(node, &backup),
            Happening::Applied { node, epoch } => {
                self.tell_backup(node, backup::Event::Applied { epoch });
            }
            Happening::Tick
            | Happening::Wake(_)
            | Happening::Ask { .. }
            | Happening::Thaw(_)
            | Happening::Restart(_)
            | Happening::Heal(..)
            | Happening::ArbiterBack => unreachable!("handled before"),
        }
    }

    fn wake(&mut self, node: usize) {
        let due = match &self.nodes[node].role {
            Role::Primary(machine, _) => machine.poll_timeout(),
            Role::Backup(machine, _) => machine.poll_timeout(),
            Role::Down => None,
        };
        if due.is_some_and(|due| due <= self.now) {
            match self.nodes[node].role {
                Role::Primary(..) => self.tell_primary(node, primary::Event::Timeout),
                Role::Backup(..) => self.tell_backup(node, backup::Event::Timeout),
                Role::Down => {}
            }
        }
    }

    fn schedule_wake(&mut self, node: usize) {
        let due = match &self.nodes[node].role {
            Role::Primary(machine, _) => machine.poll_timeout(),
            Role::Backup(machine, _) => machine.poll_timeout(),
            Role::Down => None,
        };
        if let Some(due) = due {
            // A machine that wants to be woken in the past would spin.
            let at = due.max(self.now + Duration::from_micros(1));
            self.at(at, node, Happening::Wake(node));
        }
    }

    fn thaw(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].frozen, false) {
            return;
        }
        for happening in self.waiting.remove(&node).unwrap_or_default() {
            self.later(Duration::from_micros(1), node, happening);
        }
    }

    // --- The guest's work, the operator and the faults --------------------

    fn tick(&mut self) {
        self.later(Duration::from_millis(5), 0, Happening::Tick);
        for node in 0..self.nodes.len() {
            if !self.nodes[node].frozen {
                self.work(node);
            }
        }
        if self.now < FAULTY {
            for node in 0..self.nodes.len() {
                self.fault(node);
            }
        }
    }

    /// The guest does something and says so.
    fn work(&mut self, node: usize) {
        let Role::Primary(machine, guest) = &mut self.nodes[node].role else { return };
        if guest.paused || guest.cutting.is_some() {
            return;
        }
        guest.work += 1;
        let work = guest.work;
        if guest.holding {
            guest.held.push((None, work));
            let bytes = guest.held.len() as u64;
            self.tell_primary(node, primary::Event::OutputHeld { bytes });
        } else {
            let term = machine.register().term;
            let id = self.nodes[node].id.clone();
            self.witness.hear(&id, term, work);
        }
    }

    fn fault(&mut self, node: usize) {
        let Faults { crash, freeze, cut, arbiter, damage: _, handover } = self.faults;
        if self.chance.hits(crash) && !matches!(self.nodes[node].role, Role::Down) {
            self.crash(node);
        }
        if self.chance.hits(freeze) && !self.nodes[node].frozen {
            self.nodes[node].frozen = true;
            let length = self.chance.between(1_000..600_000);
            self.later(length, node, Happening::Thaw(node));
        }
        if self.chance.hits(cut) {
            let other = self.chance.below(self.nodes.len() as u64) as usize;
            let length = self.chance.between(1_000..500_000);
            for (from, to) in [(node, other), (other, node)] {
                if self.chance.hits(700) {
                    self.cut.insert((from, to));
                    self.later(length, 0, Happening::Heal(from, to));
                }
            }
        }
        if self.chance.hits(arbiter) && self.arbiter_up {
            self.arbiter_up = false;
            let length = self.chance.between(1_000..800_000);
            self.later(length, 0, Happening::ArbiterBack);
        }
        if self.chance.hits(handover) && matches!(self.nodes[node].role, Role::Primary(..)) {
            let to = self.chance.below(self.nodes.len() as u64) as usize;
            let to = self.nodes[to].id.clone();
            self.tell_primary(node, primary::Event::Commanded(Command::HandOver { to }));
        }
    }

    fn crash(&mut self, node: usize) {
        self.stop(node);
        let sole = self.record.as_ref().is_some_and(|record| {
            record.register.primary == self.nodes[node].id && record.register.in_sync.is_empty()
        });
        // With the last copy of the guest gone there is nothing more to see.
        self.report.lost |= sole || !self.any_copy();
        let delay = self.chance.between(10_000..300_000);
        self.later(delay, node, Happening::Restart(node));
    }

    /// Whether somebody could still run the guest.
    fn any_copy(&self) -> bool {
        let Some(record) = &self.record else { return true };
        self.nodes.iter().any(|node| match &node.role {
            Role::Primary(..) => node.id == record.register.primary,
            Role::Backup(_, image) => {
                let named = record.register.in_sync.contains(&node.id)
                    || record.register.primary == node.id;
                named && image.committed.is_some()
            }
            Role::Down => false,
        })
    }

    fn stop(&mut self, node: usize) {
        self.nodes[node].role = Role::Down;
        self.nodes[node].life += 1;
        self.nodes[node].frozen = false;
        for happening in self.waiting.remove(&node).unwrap_or_default() {
            self.unheard(&happening);
        }
        let over: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.primary == node || session.backup == node)
            .map(|(id, _)| *id)
            .collect();
        for session in over {
            self.break_session(session);
        }
    }

    // --- The primary's shell ----------------------------------------------

    fn tell_primary(&mut self, node: usize, event: primary::Event) {
        if let Role::Primary(machine, _) = &mut self.nodes[node].role {
            machine.handle(self.now, event);
            self.act_primary(node);
        }
    }

    fn act_primary(&mut self, node: usize) {
        loop {
            let Role::Primary(machine, _) = &mut self.nodes[node].role else { return };
            let Some(action) = machine.poll_action() else { break };
            let term = machine.register().term;
            self.do_primary(node, term, action);
        }
        self.schedule_wake(node);
    }

    fn do_primary(&mut self, node: usize, term: Term, action: primary::Action) {
        use primary::Action;
        match action {
            Action::Connect { backup } => {
                let to = self.index(&backup);
                self.dial(node, to);
            }
            Action::Disconnect { backup, redial } => self.hang_up(node, &backup, redial),
            Action::Send { backup, message } => {
                let to = self.index(&backup);
                if let Some(session) = self.session_of(node, to) {
                    let happening = Happening::ToBackup { to, session, term, message };
                    self.ordered(session, node, to, happening);
                }
            }
            Action::StartSeed { backup } => {
                self.guest(node).seeds.insert(backup.clone(), 0);
                self.later(Duration::from_millis(1), node, Happening::SeedRound { node, backup });
            }
            Action::SeedRound { backup } => {
                self.later(Duration::from_millis(1), node, Happening::SeedRound { node, backup });
            }
            Action::StopSeed { backup } => {
                self.guest(node).seeds.remove(&backup);
            }
            Action::Cut(order) => {
                let guest = self.guest(node);
                assert!(guest.cutting.is_none(), "two cuts at once");
                guest.cutting = Some(order);
                let delay = self.chance.between(200..3_000);
                self.later(delay, node, Happening::CutDone { node });
            }
            Action::Follow { backup, after } => self.follow(node, backup, after),
            Action::Resend { backup, epoch, chunks } => {
                let to = self.index(&backup);
                self.send_epoch(node, to, epoch, Some(&chunks));
            }
            Action::Forget { through } => {
                self.guest(node).cuts.retain(|epoch, _| *epoch > through);
            }
            Action::Release { through } => self.speak(node, Some(through)),
            Action::PassOutput => {
                self.speak(node, None);
                self.guest(node).holding = false;
            }
            Action::HoldGuest => self.guest(node).paused = true,
            Action::FreeGuest => self.guest(node).paused = false,
            Action::Ask(question) => {
                let delay = self.chance.between(50..2_000);
                self.later(delay, node, Happening::Ask { from: node, question });
            }
            Action::End(ending) => self.end(node, ending),
            Action::Verified { .. } | Action::Confirm => {}
            Action::Note(note) => {
                if self.trace {
                    let id = &self.nodes[node].id;
                    println!("{:>9} us  {id}: {note}", self.now.as_micros());
                }
            }
        }
    }

    fn hang_up(&mut self, node: usize, backup: &NodeId, redial: bool) {
        let to = self.index(backup);
        if let Some(session) = self.session_of(node, to) {
            self.sessions.remove(&session);
            let broken = Happening::Broken { to, peer: node, session };
            self.later(Duration::from_millis(1), to, broken);
        }
        self.guest(node).follows.remove(backup);
        if redial {
            self.dial(node, to);
        }
    }

    /// Sends every epoch after `after`, those that are stored and those to come.
    fn follow(&mut self, node: usize, backup: NodeId, after: Epoch) {
        let to = self.index(&backup);
        let guest = self.guest(node);
        guest.follows.insert(backup, after);
        let stored: Vec<Epoch> =
            guest.cuts.keys().copied().filter(|epoch| *epoch > after).collect();
        for epoch in stored {
            self.send_epoch(node, to, epoch, None);
        }
    }

    fn guest(&mut self, node: usize) -> &mut Guest {
        match &mut self.nodes[node].role {
            Role::Primary(_, guest) => guest,
            Role::Backup(..) | Role::Down => unreachable!("only a primary has a guest"),
        }
    }

    /// Lets output leave: up to an epoch, or all of it.
    fn speak(&mut self, node: usize, through: Option<Epoch>) {
        let Role::Primary(machine, guest) = &mut self.nodes[node].role else { return };
        let term = machine.register().term;
        let leaves = |(epoch, _): &(Option<Epoch>, u64)| match through {
            None => true,
            Some(through) => epoch.is_some_and(|epoch| epoch <= through),
        };
        let (leaving, staying) = guest.held.drain(..).partition(leaves);
        guest.held = staying;
        let leaving: Vec<(Option<Epoch>, u64)> = leaving;
        let held = guest.held.len() as u64;
        let id = self.nodes[node].id.clone();
        for (_, work) in leaving {
            self.witness.hear(&id, term, work);
        }
        self.tell_primary(node, primary::Event::OutputHeld { bytes: held });
    }

    fn end(&mut self, node: usize, ending: Ending) {
        if matches!(ending, Ending::Fenced { .. }) {
            self.report.fences += 1;
        }
        // The last control messages of a handover are on their way already.
        self.nodes[node].role = Role::Down;
        self.nodes[node].life += 1;
        self.later(Duration::from_millis(50), node, Happening::Restart(node));
    }

    fn cut_done(&mut self, node: usize) {
        let guest = self.guest(node);
        let order = guest.cutting.take().expect("being taken");
        let work = guest.work;
        guest.cuts.insert(order.epoch, work);
        for (epoch, _) in guest.held.iter_mut().filter(|(epoch, _)| epoch.is_none()) {
            *epoch = Some(order.epoch);
        }
        guest.holding = true;
        if order.stay_paused {
            guest.paused = true;
        }
        for backup in &order.joins {
            guest.seeds.remove(backup);
        }
        self.tell_primary(
            node,
            primary::Event::CutDone {
                epoch: order.epoch,
                bytes: 4096,
                pause: Duration::from_micros(200),
            },
        );
        let delay = self.chance.between(200..4_000);
        self.later(delay, node, Happening::Encoded { node, epoch: order.epoch });
    }

    fn encoded(&mut self, node: usize, epoch: Epoch) {
        let guest = self.guest(node);
        let Some(work) = guest.cuts.get(&epoch).copied() else { return };
        let followers: Vec<NodeId> = guest
            .follows
            .iter()
            .filter(|(_, after)| epoch > **after)
            .map(|(backup, _)| backup.clone())
            .collect();
        for backup in followers {
            let to = self.index(&backup);
            self.send_epoch(node, to, epoch, None);
        }
        self.tell_primary(
            node,
            primary::Event::Encoded { close: close_of(epoch, work), wire_bytes: 4096 },
        );
    }

    fn seed_round(&mut self, node: usize, backup: &NodeId) {
        let to = self.index(backup);
        let count = self.chance.below(4) as u32;
        let Some(sent) = self.guest(node).seeds.get_mut(backup) else { return };
        let first = *sent;
        *sent += count;
        for index in first..first + count {
            let id = ChunkId { epoch: Epoch::ZERO, index };
            self.send_chunk(node, to, id, [0; 32], 0);
        }
        let pages_left = self.chance.below(10);
        let event = primary::Event::SeedRoundSent {
            backup: backup.clone(),
            chunks: first + count,
            pages_left,
        };
        self.tell_primary(node, event);
    }

    // --- The arbiter ------------------------------------------------------

    fn decide(&mut self, from: usize, question: Question, life: u64) {
        // Asked before a crash: it may still be decided, but nobody listens.
        let fate = self.chance.below(100);
        let answer = if !self.arbiter_up {
            if fate < 60 { Answer::Unsent } else { Answer::Unknown }
        } else if fate < 3 && self.now < FAULTY {
            Answer::Unknown
        } else {
            let decided = match question {
                Question::Read => {
                    Answer::Register(self.record.as_ref().map(|record| record.register.clone()))
                }
                Question::Change(request) => self.change(&request),
            };
            if fate < 6 && self.now < FAULTY { Answer::Unknown } else { decided }
        };
        if self.nodes[from].life == life {
            let delay = self.chance.between(50..3_000);
            self.later(delay, from, Happening::Answer { to: from, answer });
        }
    }

    fn change(&mut self, request: &Request) -> Answer {
        match request.decide(self.record.as_ref()) {
            Ok(outcome) => {
                if let Outcome::Set(register) = &outcome {
                    let record = Record { register: register.clone(), stamp: request.stamp };
                    self.record = Some(record);
                }
                Answer::Outcome(outcome)
            }
            Err(illegal) => panic!("a machine asked for what nobody may: {illegal}"),
        }
    }
}
