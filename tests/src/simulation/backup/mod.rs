//! A backup's process: the real machine and the real staging, and a shell that
//! carries out its actions. Mirrors `tools/src/backup/core.rs`, `decoder.rs`
//! and `session.rs`.

mod applier;
mod orders;

use std::{collections::VecDeque, time::Duration};

use arbiter::{ImageId, NodeId, Register, Term};
use checkpoint::{
    Answer, Epoch,
    backup::{Backup, Config, Event, Standing},
    chunk::{ChunkId, Digest},
    image::BrokenImage,
    message::ToBackup,
    output::Output,
    staging::{Placed, Staging},
};
use transport::wire::{ChunkHead, Frame, HEADER_BYTES, Header};

use self::applier::{Applier, Done};
use super::{
    arbiter_host::{Asker, vm},
    clock::Clock,
    guest::{Guest, layout},
    happening::{Arrival, Happening, ProcessId, WorldHappening},
    inbox::Inbox,
    mutation::Mutation,
    network::{SessionId, Side},
    primary::{Kept, Promoted, machine},
    world::World,
};

/// What the core is told.
#[derive(Debug)]
enum Input {
    Knock { session: SessionId, term: Term, hello: checkpoint::message::Hello },
    LinkDown { session: u64 },
    Heard { session: u64, term: Term, message: ToBackup },
    Staged { session: u64, term: Term, id: ChunkId, digest: Digest, pages: u64 },
    Refused { session: u64, id: ChunkId },
    PassedOver { session: u64, id: ChunkId },
    Excess { session: u64 },
    Applied(Epoch),
    ImageBroken(BrokenImage),
    ImageDigest(Epoch, Digest),
    Answered(Answer),
    TakeOver,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct BackupShell {
    me: ProcessId,
    id: NodeId,
    clock: Clock,
    machine: Backup,
    staging: Staging,
    applier: Applier,
    /// Chunks that wait for room in the staging area.
    waiting: VecDeque<Arrival>,
    /// The session that was taken last, by its number here.
    session: Option<(u64, SessionId)>,
    sessions: u64,
    knock: Option<(SessionId, Term)>,
    asker: Asker,
    inbox: Inbox<Input>,
    wake_at: Option<Duration>,
    promotion: Option<(Register, Epoch)>,
    /// For a mutation: the image that the register meant, of another process.
    meant: Option<ImageId>,
}

/// A guest that this node takes over.
#[derive(Debug)]
pub(super) struct TakenOver {
    pub(super) guest: Guest,
    pub(super) promoted: Promoted,
}

impl BackupShell {
    pub(super) fn start(world: &mut World, me: ProcessId) -> Self {
        let (config, random) = (config(world, me), world.random());
        let now = world.clock(me).shows(world.now);
        let machine = Backup::new(config, Term::ZERO, random, now);
        let applier = Applier::new(world, me);
        Self::stand_by(world, me, machine, applier)
    }

    /// With the guest that this node has handed over; `number` is the witness's.
    pub(super) fn with_image(world: &mut World, me: ProcessId, kept: Kept, number: u64) -> Self {
        let Kept { register, epoch, memory, sections } = kept;
        world.witness.image(number, epoch.get(), &memory, u64::MAX, &sections);
        let (config, random) = (config(world, me), world.random());
        let now = world.clock(me).shows(world.now);
        let machine = Backup::with_image(config, register, epoch, random, now);
        let applier = Applier::with_image(me, memory, sections);
        let mut shell = Self::stand_by(world, me, machine, applier);
        shell.plan_wake(world);
        shell
    }

    fn stand_by(world: &mut World, me: ProcessId, machine: Backup, applier: Applier) -> Self {
        let id = world.machine(me).id.clone();
        world.journal.line(&id, "stands by");
        Self {
            me,
            id,
            clock: world.clock(me),
            machine,
            staging: Staging::new(staging_bytes_max(world) as usize),
            applier,
            waiting: VecDeque::new(),
            session: None,
            sessions: 0,
            knock: None,
            asker: Asker::default(),
            inbox: Inbox::new(),
            wake_at: None,
            promotion: None,
            meant: None,
        }
    }

    pub(super) fn is_promoted(&self) -> bool {
        self.promotion.is_some()
    }

    pub(super) fn standing(&self) -> Standing {
        self.machine.standing()
    }

    /// What the register calls its image, or will.
    pub(super) fn image(&self) -> Option<ImageId> {
        self.machine.image()
    }

    // --- What happens -----------------------------------------------------

    pub(super) fn happens(&mut self, world: &mut World, happening: Happening) {
        match happening {
            Happening::Wake => self.wake(world),
            Happening::StallOver => self.catch_up(world),
            Happening::Decode(arrival) => self.decode(world, *arrival),
            Happening::Applied => self.applier_steps(world),
            Happening::AskAttempt(number) => {
                let answer = self.asker.attempt(world, self.me, number);
                self.answered(world, answer);
            }
            Happening::Answered(number, octets) => {
                let answer = self.asker.answered(world, self.me, number, &octets);
                self.answered(world, answer);
            }
            other => unreachable!("{other:?} does not happen to a backup"),
        }
    }

    fn answered(&mut self, world: &mut World, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.take(world, Input::Answered(answer));
        }
    }

    /// A control frame, or a greeting.
    pub(super) fn frame(&mut self, world: &mut World, session: SessionId, octets: &[u8]) {
        let (term, frame) = transport::wire::decode(octets).expect("control is not damaged");
        match frame {
            Frame::Hello(hello) => self.take(world, Input::Knock { session, term, hello }),
            Frame::ToBackup(message) => {
                let Some(number) = self.number_of(session) else { return };
                if !self.is_stale(world, session, term) {
                    self.take(world, Input::Heard { session: number, term, message });
                }
            }
            other => unreachable!("a primary does not say {other:?}"),
        }
    }

    /// A data frame: its header first, then its body.
    pub(super) fn data(&mut self, world: &mut World, session: SessionId, octets: &[u8]) {
        let Some(number) = self.number_of(session) else {
            return world.free_window(session);
        };
        let (head, body) = octets.split_first_chunk::<HEADER_BYTES>().expect("a whole frame");
        let header = Header::decode(head).expect("headers are not damaged beyond chunk's name");
        let id = header.chunk.expect("only chunks go over data streams");
        if self.is_stale(world, session, header.term) {
            world.free_window(session);
            return self.take(world, Input::PassedOver { session: number, id });
        }
        let (head, content) = body.split_first_chunk().expect("a whole frame");
        let chunk = ChunkHead::decode(id, head).and_then(|head| head.into_chunk(content.to_vec()));
        match chunk {
            Ok(chunk) => {
                let arrival = Arrival { session: number, term: header.term, chunk };
                let machine = world.machine(self.me);
                let late = machine.slow_until.max(machine.hangs_until) > world.now;
                if world.plan.shape.slow_codecs || late {
                    let decode = Happening::Decode(Box::new(arrival));
                    world.work_later(self.me, 10..1_500, decode);
                } else {
                    self.decode(world, arrival);
                }
            }
            // The stream's reader ends the session.
            Err(_) => {
                world.close(session, Side::Backup);
                self.lost(world, session);
            }
        }
    }

    fn is_stale(&self, world: &World, session: SessionId, term: Term) -> bool {
        let floor = world.network.session(session).floor;
        term < floor && !world.mutated(Mutation::AcceptStaleTerm)
    }

    /// The number of a session, if it is the one that was taken last.
    fn number_of(&self, session: SessionId) -> Option<u64> {
        self.session.filter(|(_, current)| *current == session).map(|(number, _)| number)
    }

    /// A decoder takes a chunk, when there is room for it.
    fn decode(&mut self, world: &mut World, arrival: Arrival) {
        let over = self.staging.is_over(arrival.session);
        if !over && (!self.staging.has_room() || !self.waiting.is_empty()) {
            self.waiting.push_back(arrival);
            return;
        }
        self.stage(world, arrival);
    }

    fn stage(&mut self, world: &mut World, arrival: Arrival) {
        let Arrival { session, term, mut chunk } = arrival;
        if let Some((number, current)) = self.session
            && number == session
        {
            world.free_window(current);
        }
        let (id, digest) = (chunk.id, chunk.digest);
        if world.mutated(Mutation::AcceptDamagedChunk) {
            chunk.digest = chunk.expected_digest();
        }
        let input = match chunk.decode(&layout(world.plan.shape.pages)) {
            Ok(content) => {
                let pages = content.pages();
                if self.staging.is_over(session) {
                    return;
                }
                match self.staging.stage(session, id, digest, content) {
                    Placed::Staged => Input::Staged { session, term, id, digest, pages },
                    Placed::Passed => return,
                    Placed::Excess => Input::Excess { session },
                }
            }
            Err(_) => Input::Refused { session, id },
        };
        self.take(world, input);
    }

    /// There may be room for chunks that wait, or their session may be over.
    fn stage_waiting(&mut self, world: &mut World) {
        while let Some(arrival) = self.waiting.front() {
            if !self.staging.is_over(arrival.session) && !self.staging.has_room() {
                return;
            }
            let arrival = self.waiting.pop_front().expect("looked at above");
            self.stage(world, arrival);
        }
    }

    fn applier_steps(&mut self, world: &mut World) {
        let (done, bytes) = self.applier.step(world);
        self.staging.applied(bytes);
        match done {
            Done::Nothing => {}
            Done::Applied(epoch) => self.take(world, Input::Applied(epoch)),
            Done::Broken(broken) => self.take(world, Input::ImageBroken(broken)),
            Done::Digest(epoch, digest) => self.take(world, Input::ImageDigest(epoch, digest)),
        }
        self.stage_waiting(world);
    }

    /// A session is over.
    pub(super) fn lost(&mut self, world: &mut World, session: SessionId) {
        if let Some(number) = self.number_of(session) {
            self.take(world, Input::LinkDown { session: number });
        }
    }

    /// An operator wants this node to take over.
    pub(super) fn take_over(&mut self, world: &mut World) {
        self.take(world, Input::TakeOver);
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
        }
        self.plan_wake(world);
    }

    fn plan_wake(&mut self, world: &mut World) {
        let Some(due) = self.machine.poll_timeout().filter(|_| self.promotion.is_none()) else {
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

    fn tell(&mut self, world: &World, event: Event) {
        self.machine.handle(self.clock.shows(world.now), event);
    }

    fn act(&mut self, world: &mut World) {
        while let Some(action) = self.machine.poll_action() {
            self.carry_out(world, action);
        }
    }

    /// Whether `session` is the one that was taken last.
    fn current(&self, session: u64) -> bool {
        self.session.is_some_and(|(number, _)| number == session)
    }

    fn handle(&mut self, world: &mut World, input: Input) {
        if self.promotion.is_some() {
            return;
        }
        match input {
            Input::Knock { session, mut term, hello } => {
                let primary = world.network.session(session).primary();
                let mut peer = world.machine(primary).id.clone();
                if world.mutated(Mutation::AcceptStaleTerm) && term < self.machine.term() {
                    // As if it were the later term's own primary.
                    let current = self.machine.register().map(|known| known.primary.clone());
                    (term, peer) = (self.machine.term(), current.unwrap_or(peer));
                }
                self.knock = Some((session, term));
                self.tell(world, Event::Knock { peer, term, hello });
            }
            Input::LinkDown { session } if self.current(session) => {
                self.session = None;
                self.tell(world, Event::LinkDown);
            }
            Input::Heard { session, term, message } if self.current(session) => {
                self.on_heard(world, term, message);
            }
            Input::Staged { session, term, id, digest, pages } if self.current(session) => {
                let term = self.believed(world, term);
                self.tell(world, Event::Staged { term, id, digest, pages });
            }
            Input::Refused { session, id } if self.current(session) => {
                self.tell(world, Event::Refused { id });
            }
            Input::PassedOver { session, id } if self.current(session) => {
                self.tell(world, Event::PassedOver { id });
            }
            Input::Excess { session } if self.current(session) => self.tell(world, Event::Excess),
            // Of a session that is over.
            Input::LinkDown { .. }
            | Input::Heard { .. }
            | Input::Staged { .. }
            | Input::Refused { .. }
            | Input::PassedOver { .. }
            | Input::Excess { .. } => {}
            Input::Applied(epoch) => self.tell(world, Event::Applied { epoch }),
            Input::ImageBroken(broken) => {
                let why = broken.to_string();
                self.tell(world, Event::ImageBroken { why });
            }
            Input::ImageDigest(epoch, digest) => {
                self.tell(world, Event::ImageDigest { epoch, digest });
            }
            Input::Answered(mut answer) => {
                if world.mutated(Mutation::PromoteByName) {
                    self.take_for_own(&mut answer);
                }
                self.tell(world, Event::Answered(answer));
            }
            Input::TakeOver => self.tell(world, Event::TakeOver),
        }
        self.act(world);
    }

    /// Finishes applying, and hands out the guest where it was saved; `None` if
    /// the image is broken.
    pub(super) fn into_guest(self, world: &mut World) -> Option<TakenOver> {
        let (register, epoch) = self.promotion?;
        if let Some((_, session)) = self.session {
            world.close(session, Side::Backup);
        }
        let (image, memory) = self.applier.finish(world);
        let image = image.ok()?;
        let shape = world.plan.shape.clone();
        let guest = Guest::restore(&shape, memory.into_memory(), image.sections())?;
        let (now, sections) = (world.now, image.sections());
        world.witness.takes_over(now, self.me, &self.id, &guest, sections);
        world.report.promotions += 1;
        let outputs: Vec<Output> = image.outputs().to_vec();
        let promoted = Promoted { register, first: epoch.next(), outputs };
        Some(TakenOver { guest, promoted })
    }
}

fn staging_bytes_max(world: &World) -> u64 {
    world.plan.shape.staging_pages_max * checkpoint::PAGE_BYTES as u64
}

fn config(world: &World, me: ProcessId) -> Config {
    let timing = &world.plan.timing;
    Config {
        node: world.machine(me).id.clone(),
        vm: vm(),
        machine: machine(world),
        versions: transport::wire::VERSIONS.iter().map(|v| (*v).to_owned()).collect(),
        detection: timing.detection,
        freeze_gap: timing.freeze_gap(),
        ask_retry: timing.ask_retry,
        nack_after: timing.nack_after,
        staging_bytes_max: staging_bytes_max(world),
    }
}
