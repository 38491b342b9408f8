//! A primary's process: the real machine, and a shell that carries out its
//! actions. Mirrors `tools/src/primary/core.rs`; the files beside it mirror
//! those of the same names there.

mod claim;
mod copier;
mod cutter;
mod encoder;
mod flights;
mod orders;
mod outlet;
mod peers;
mod seeder;
mod tracker;
mod verification;

use std::time::Duration;

use arbiter::{NodeId, Register, Term};
use checkpoint::{
    Answer, Epoch, Sections,
    message::{HeldImage, Hello, Refusal, ToPrimary},
    output::Output,
    primary::{Action, Command, Config, Ending, Event, Primary},
};
use transport::wire::Frame;

use self::{
    cutter::{Cutter, Done, Tools},
    encoder::Encoders,
    flights::{Complete, Flights},
    outlet::Outlet,
    peers::Peers,
    seeder::{Seed, Step},
    tracker::Tracker,
    verification::Verification,
};
use super::{
    arbiter_host::{Asker, vm},
    clock::Clock,
    guest::{Guest, Memory, Request, layout},
    happening::{Happening, ProcessId, WorldHappening},
    inbox::Inbox,
    mutation::Mutation,
    network::SessionId,
    world::World,
};

pub(super) use self::{
    claim::{Claim, ClaimEnd},
    encoder::Published,
    orders::granted,
};

const SEED_ROUNDS_MAX: u32 = 4;

/// What the core is told.
#[derive(Debug)]
enum Input {
    CutDone(cutter::Cut),
    CutFailed(Epoch),
    Encoded(Complete),
    LinkUp { backup: NodeId, image: Option<HeldImage>, staging_bytes_max: u64 },
    LinkRefused { backup: NodeId, refusal: Refusal },
    LinkDown { backup: NodeId },
    Heard { backup: NodeId, term: Term, message: ToPrimary },
    SeedRoundSent { backup: NodeId, chunks: u32, pages_left: u64 },
    Answered(Answer),
    Command(Command),
    Stop,
    StaleRelease,
    OutputWaits,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct PrimaryShell {
    me: ProcessId,
    id: NodeId,
    clock: Clock,
    machine: Primary,
    guest: Guest,
    outlet: Outlet,
    tracker: Tracker,
    cutter: Cutter,
    encoders: Encoders,
    flights: Flights,
    seeds: Vec<Seed>,
    seed_count: u32,
    peers: Peers,
    asker: Asker,
    verification: Verification,
    inbox: Inbox<Input>,
    wake_at: Option<Duration>,
    held_bytes: u64,
    stopping: bool,
    ending: Option<Ending>,
    /// The guest is kept as it stands, for the time after a handover.
    stays: bool,
}

/// A guest that its former primary has handed over, and keeps as it stands.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) register: Register,
    pub(super) epoch: Epoch,
    pub(super) memory: Memory,
    pub(super) sections: Sections,
}

/// The right to run, and where the guest is.
#[derive(Debug)]
pub(super) struct Promoted {
    pub(super) register: Register,
    pub(super) first: Epoch,
    /// What the last committed epoch said.
    pub(super) outputs: Vec<Output>,
}

/// What all nodes say at a handshake.
pub(super) fn hello(world: &World) -> Hello {
    Hello {
        versions: transport::wire::VERSIONS.iter().map(|v| (*v).to_owned()).collect(),
        vm: vm(),
        machine: machine(world),
    }
}

/// The shape of the VM.
pub(super) fn machine(world: &World) -> checkpoint::message::Machine {
    let layout = layout(world.plan.shape.pages);
    checkpoint::message::Machine { layout, vcpus: 1, traits: [].into() }
}

impl PrimaryShell {
    /// Runs the guest, which the witness knows of already.
    pub(super) fn start(
        world: &mut World,
        me: ProcessId,
        guest: Guest,
        promoted: Promoted,
    ) -> Self {
        let clock = world.clock(me);
        let id = world.machine(me).id.clone();
        let layout = layout(world.plan.shape.pages);
        let config = config(world, id.clone());
        let random = world.random();
        let Promoted { register, first, outputs } = promoted;
        let place = &mut world.machines[usize::from(me.host)];
        (place.term, place.has_guest) = (register.term, true);
        let mut shell = Self {
            me,
            id,
            machine: Primary::new(config, register, first, random, clock.shows(world.now)),
            outlet: Outlet::new(me, clock),
            clock,
            tracker: Tracker::new(&layout),
            cutter: Cutter::new(me),
            encoders: Encoders::new(&world.plan.shape, layout.frame_end()),
            flights: Flights::new(world.plan.shape.codec.choice()),
            seeds: Vec::new(),
            seed_count: 0,
            peers: Peers::new(me, hello(world)),
            asker: Asker::default(),
            verification: Verification::default(),
            inbox: Inbox::new(),
            wake_at: None,
            held_bytes: 0,
            stopping: false,
            ending: None,
            stays: false,
            guest,
        };
        if shell.machine.backups().next().is_some() {
            shell.tracker.log_writes(&mut shell.guest);
            if !world.mutated(Mutation::PassAfterHandover) {
                shell.outlet.hold(world);
            }
        }
        shell.outlet.inject(world, outputs);
        for backup in world.peers_of(me) {
            shell.take(world, Input::Command(Command::Protect { backup }));
        }
        let pace = world.plan.shape.pace.clone();
        let delay = world.chance.micros(pace);
        world.process_later(me, delay, Happening::GuestWorks);
        shell
    }

    /// Whether it has handed the guest over, and keeps it.
    pub(super) fn keeps_guest(&self) -> bool {
        match &self.ending {
            Some(Ending::HandedOver { register, .. }) => {
                register.in_sync.contains_key(&self.id) && !self.stopping
            }
            Some(Ending::Fenced { .. } | Ending::Finished { .. }) | None => false,
        }
    }

    /// The guest as it was handed over.
    ///
    /// # Panics
    ///
    /// If it was not.
    pub(super) fn into_kept(mut self, world: &World) -> Kept {
        let Some(Ending::HandedOver { register, epoch }) = self.ending else {
            unreachable!("asked of who has handed over")
        };
        if world.mutated(Mutation::RunOnAfterHandover) {
            self.guest.work();
        }
        let sections = self.guest.save();
        Kept { register, epoch, memory: self.guest.memory, sections }
    }

    /// How it ended, once it has.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Whether the operator stopped the process.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    pub(super) fn register(&self) -> &Register {
        self.machine.register()
    }

    // --- What happens -----------------------------------------------------

    pub(super) fn happens(&mut self, world: &mut World, happening: Happening) {
        match happening {
            Happening::Wake => self.wake(world),
            Happening::StallOver => self.catch_up(world),
            Happening::GuestWorks => self.guest_works(world),
            Happening::Drain => {
                let stale = self.outlet.look(world);
                self.stale_release(world, stale);
            }
            Happening::Cutter => self.cutter_steps(world),
            Happening::Ahead(epoch) => {
                let (cutter, mut tools) = self.tools(world);
                cutter.take_ahead(&mut tools, epoch);
            }
            Happening::TakenCopied => {
                let (cutter, mut tools) = self.tools(world);
                let group = cutter.copy_taken(&mut tools);
                self.submit(world, group);
            }
            Happening::Copy => {
                let (cutter, tools) = self.tools(world);
                let group = cutter.copier.step(tools.world, tools.guest);
                self.submit(world, group);
            }
            Happening::Encode => self.encode(world),
            Happening::Publish(published) => self.publish(world, *published),
            Happening::SeedStep(number) => self.seed_steps(world, number),
            Happening::Dial(number) => {
                let term = self.machine.register().term;
                self.peers.dial(world, number, term);
            }
            Happening::DialGivesUp(session) => self.peers.give_up(world, session),
            Happening::AskAttempt(number) => {
                let answer = self.asker.attempt(world, self.me, number);
                self.answered(world, answer);
            }
            Happening::Answered(number, octets) => {
                let answer = self.asker.answered(world, self.me, number, &octets);
                self.answered(world, answer);
            }
            // Of what this process was before.
            Happening::Decode(_) | Happening::Applied | Happening::Claim | Happening::NextRole => {}
        }
    }

    fn answered(&mut self, world: &mut World, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.take(world, Input::Answered(answer));
        }
    }

    fn tools<'a>(&'a mut self, world: &'a mut World) -> (&'a mut Cutter, Tools<'a>) {
        let Self { cutter, guest, tracker, outlet, .. } = self;
        (cutter, Tools { world, guest, tracker, outlet })
    }

    fn guest_works(&mut self, world: &mut World) {
        let pace = world.plan.shape.pace.clone();
        let delay = world.chance.micros(pace);
        world.process_later(self.me, delay, Happening::GuestWorks);
        if self.runs()
            && let Some(output) = self.guest.work()
        {
            self.emit(world, output);
        }
    }

    /// A client's request reaches the tap.
    pub(super) fn request(&mut self, world: &mut World, request: Request) {
        if self.runs() {
            let reply = self.guest.serve(request);
            self.emit(world, reply);
        }
    }

    fn runs(&self) -> bool {
        !self.cutter.is_held() && self.ending.is_none()
    }

    fn emit(&mut self, world: &mut World, output: Output) {
        let stale = self.outlet.emit(world, output);
        self.stale_release(world, stale);
        if self.outlet.take_first_held() {
            self.take(world, Input::OutputWaits);
        }
    }

    fn stale_release(&mut self, world: &mut World, stale: bool) {
        if stale {
            self.take(world, Input::StaleRelease);
        }
    }

    fn cutter_steps(&mut self, world: &mut World) {
        let (cutter, mut tools) = self.tools(world);
        match cutter.step(&mut tools) {
            Done::Nothing => {}
            // The core hears of the cut before it hears of its chunks.
            Done::Cut(cut, group) => {
                self.take(world, Input::CutDone(cut));
                self.submit(world, Some(group));
            }
            Done::CutFailed(epoch) => self.take(world, Input::CutFailed(epoch)),
        }
    }

    fn submit(&mut self, world: &mut World, group: Option<encoder::Group>) {
        if group.is_some_and(|group| self.encoders.submit(group)) {
            world.work_later(self.me, 20..800, Happening::Encode);
        }
    }

    fn encode(&mut self, world: &mut World) {
        let Some((epoch, chunks, ends)) = self.encoders.encode(world, &mut self.flights) else {
            return;
        };
        if self.encoders.has_group() {
            world.work_later(self.me, 20..800, Happening::Encode);
        }
        let slow = world.plan.shape.slow_codecs;
        let mut now = Vec::new();
        for published in chunks {
            if slow {
                let publish = Happening::Publish(Box::new(published));
                world.work_later(self.me, 10..2_000, publish);
            } else {
                now.push(published);
            }
        }
        if ends && let Some(complete) = self.flights.close(world, epoch) {
            self.take(world, Input::Encoded(complete));
        }
        for published in now {
            self.publish(world, published);
        }
    }

    fn publish(&mut self, world: &mut World, published: Published) {
        let Published { place, chunk, pages } = published;
        if let Some(complete) = self.flights.publish(world, &place, chunk, pages) {
            self.take(world, Input::Encoded(complete));
        }
    }

    fn seed_steps(&mut self, world: &mut World, number: u32) {
        let Some(index) = self.seeds.iter().position(|seed| seed.number() == number) else {
            return;
        };
        let seed = &mut self.seeds[index];
        match seed.step(world, self.me, &mut self.tracker, &mut self.guest) {
            Step::GoesOn => {}
            Step::RoundSent { chunks, pages_left } => {
                let backup = seed.backup.clone();
                self.take(world, Input::SeedRoundSent { backup, chunks, pages_left });
            }
            Step::Over => drop(self.seeds.remove(index)),
        }
    }

    /// A frame of a backup.
    pub(super) fn frame(
        &mut self,
        world: &mut World,
        session: SessionId,
        term: Term,
        frame: Frame,
    ) {
        match frame {
            Frame::Welcome(welcome) => {
                if let Some(backup) = self.peers.welcomed(session) {
                    let (image, staging_bytes_max) = (welcome.image, welcome.staging_bytes_max);
                    self.take(world, Input::LinkUp { backup, image, staging_bytes_max });
                }
            }
            Frame::Refusal(refusal) => {
                if let Some(backup) = self.peers.refused(world, session) {
                    self.take(world, Input::LinkRefused { backup, refusal });
                }
            }
            Frame::ToPrimary(message) => {
                if let Some(backup) = self.peers.peer_of(session) {
                    self.take(world, Input::Heard { backup, term, message });
                }
            }
            other => unreachable!("a backup does not say {other:?}"),
        }
    }

    /// A session is over.
    pub(super) fn lost(&mut self, world: &mut World, session: SessionId) {
        if let Some(backup) = self.peers.lost(world, session) {
            self.take(world, Input::LinkDown { backup });
        }
    }

    /// An operator's word.
    pub(super) fn command(&mut self, world: &mut World, command: Command) {
        self.take(world, Input::Command(command));
    }

    /// An operator, or a signal, stops the process.
    pub(super) fn stop(&mut self, world: &mut World) {
        self.take(world, Input::Stop);
    }

    // --- The core's loop --------------------------------------------------

    /// The core gets no time until then.
    pub(super) fn stall(&mut self, world: &mut World, until: Duration) {
        self.inbox.stall(until);
        world.at(until, WorldHappening::Process(self.me, Happening::StallOver));
    }

    fn catch_up(&mut self, world: &mut World) {
        while let Some(input) = self.inbox.next(world.now) {
            self.handle(world, input);
        }
        self.wake_at = None;
        self.plan_wake(world);
    }

    fn wake(&mut self, world: &mut World) {
        if self.wake_at.is_some_and(|at| at > world.now) || self.inbox.is_stalled(world.now) {
            return;
        }
        self.wake_at = None;
        let now = self.clock.shows(world.now);
        if self.machine.poll_timeout().is_some_and(|due| due <= now) {
            self.tell(world, Event::Timeout);
            self.act(world);
            self.look_at_outlet(world);
            self.stop_if_possible(world);
        }
        self.plan_wake(world);
    }

    fn plan_wake(&mut self, world: &mut World) {
        let Some(due) = self.machine.poll_timeout().filter(|_| self.ending.is_none()) else {
            return;
        };
        let at = self.clock.true_time(due).max(world.now + Duration::from_micros(1));
        if self.wake_at.is_none_or(|planned| at < planned) {
            self.wake_at = Some(at);
            world.at(at, WorldHappening::Process(self.me, Happening::Wake));
        }
    }

    fn take(&mut self, world: &mut World, input: Input) {
        if let Some(input) = self.inbox.offer(world.now, input) {
            self.handle(world, input);
            self.plan_wake(world);
        }
    }

    fn handle(&mut self, world: &mut World, input: Input) {
        if self.ending.is_some() {
            return;
        }
        match input {
            Input::CutDone(cut) => {
                if let Some(digest) = cut.digest {
                    self.verification.of_primary(cut.epoch, digest);
                }
                if world.mutated(Mutation::ReleaseBeforeCommit) {
                    self.release(world, cut.epoch);
                }
                self.tell(
                    world,
                    Event::CutDone { epoch: cut.epoch, bytes: cut.bytes(), pause: cut.pause },
                );
            }
            Input::CutFailed(epoch) => {
                let why = "simulated".to_owned();
                self.tell(world, Event::CutFailed { epoch, why });
            }
            Input::Encoded(complete) => self.on_encoded(world, complete),
            Input::LinkUp { backup, mut image, staging_bytes_max } => {
                if let (Some(held), true) = (&mut image, world.mutated(Mutation::AcceptStaleTerm)) {
                    let counted = self.machine.register().in_sync.get(&backup);
                    held.id = counted.copied().unwrap_or(held.id);
                }
                self.tell(world, Event::LinkUp { backup, image, staging_bytes_max });
            }
            Input::LinkRefused { backup, refusal } => {
                self.tell(world, Event::LinkRefused { backup, refusal });
            }
            Input::LinkDown { backup } => {
                self.flights.unfollow(&backup);
                self.tell(world, Event::LinkDown { backup });
            }
            Input::Heard { backup, term, message } => self.on_heard(world, backup, term, message),
            Input::SeedRoundSent { backup, chunks, pages_left } => {
                self.tell(world, Event::SeedRoundSent { backup, chunks, pages_left });
            }
            Input::Answered(answer) => self.tell(world, Event::Answered(answer)),
            Input::Command(command) => self.tell(world, Event::Commanded(command)),
            Input::Stop => self.on_stop(world),
            Input::StaleRelease => self.tell(world, Event::Stalled),
            Input::OutputWaits => self.tell(world, Event::OutputWaits),
        }
        self.act(world);
        self.look_at_outlet(world);
    }

    fn tell(&mut self, world: &mut World, event: Event) {
        let now = self.clock.shows(world.now);
        self.machine.handle(now, event);
        world.machines[usize::from(self.me.host)].term = self.machine.register().term;
    }

    fn act(&mut self, world: &mut World) {
        while self.ending.is_none()
            && let Some(action) = self.machine.poll_action()
        {
            match action {
                Action::End(ending) => self.end(world, ending),
                action => self.carry_out(world, action),
            }
        }
    }

    /// Tells the machine when the held output has changed much.
    fn look_at_outlet(&mut self, world: &mut World) {
        let bytes = self.outlet.held_bytes();
        let bound = world.plan.shape.held_output_bytes_max;
        if bytes.abs_diff(self.held_bytes) > bound / 16 || bytes == 0 && self.held_bytes > 0 {
            self.held_bytes = bytes;
            self.tell(world, Event::OutputHeld { bytes });
            self.act(world);
        }
    }

    fn end(&mut self, world: &mut World, ending: Ending) {
        world.journal.line(&self.id, format_args!("ends: {ending:?}"));
        match &ending {
            Ending::Fenced { .. } => world.report.fences += 1,
            Ending::HandedOver { .. } => world.report.handovers += 1,
            Ending::Finished { .. } => {}
        }
        if !matches!(ending, Ending::Finished { .. }) {
            self.outlet.fence(world);
        }
        if matches!(ending, Ending::Fenced { .. }) {
            self.gives_up(world);
            self.cutter.copier.abandon(&mut self.guest);
        }
        self.ending = Some(ending);
    }
}

fn config(world: &World, node: NodeId) -> Config {
    let (timing, shape) = (&world.plan.timing, &world.plan.shape);
    Config {
        node,
        pace: timing.pace,
        heartbeat: timing.heartbeat,
        drop_after: timing.drop_after,
        lag_max: timing.lag_max,
        freeze_gap: if world.mutated(Mutation::SkipDoubt) {
            Duration::MAX
        } else {
            timing.freeze_gap()
        },
        ask_retry: timing.ask_retry,
        epochs_in_flight_max: shape.epochs_in_flight_max,
        bytes_in_flight_max: 1 << 20,
        held_output_bytes_max: shape.held_output_bytes_max,
        seed_pages_left_max: shape.seed_pages_left_max,
        seed_rounds_max: SEED_ROUNDS_MAX,
    }
}
