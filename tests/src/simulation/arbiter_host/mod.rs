//! The arbiter's process: the real register and the real file store, on a disk
//! whose power fails. Mirrors `tools/src/arbiter_daemon` and
//! `transport/src/register_service/server.rs`.

mod asker;
mod disk;

use std::time::Duration;

use arbiter::{FileError, FileStore, NodeId, Register, Request, Store, StoreError, Term, VmId};
use transport::wire::{self, Answer, Ask, Frame};

pub(super) use asker::Asker;
use disk::{Habit, SimulatedDisk, Trouble};

use super::{
    happening::{Happening, Letter, WorldHappening},
    mutation::Mutation,
    world::World,
};

/// See the module's head.
#[derive(Debug)]
pub(super) struct ArbiterHost {
    disk: SimulatedDisk,
    store: Option<FileStore<SimulatedDisk>>,
}

/// The only VM.
pub(super) fn vm() -> VmId {
    "guest".parse().expect("a name")
}

impl ArbiterHost {
    pub(super) fn new(world: &World) -> Self {
        let habits = [
            (Mutation::AnswerBeforeDurable, Habit::NoFlush),
            (Mutation::SkipFolderFlush, Habit::NoFolderFlush),
            (Mutation::WriteInPlace, Habit::InPlace),
        ];
        let habit = habits.into_iter().find(|(mutation, _)| world.mutated(*mutation));
        let disk = SimulatedDisk::new(habit.map_or(Habit::Sound, |(_, habit)| habit));
        Self { disk, store: None }
    }

    /// The register, as an operator reads it from the file.
    pub(super) fn register(&self) -> Option<Register> {
        let record = self.store.as_ref()?.load(&vm()).ok()??;
        Some(record.register)
    }

    /// The process is started.
    pub(super) fn start(&mut self, world: &mut World) {
        if self.store.is_some() {
            return;
        }
        self.disk.revive();
        match FileStore::on(self.disk.clone()) {
            Ok(store) => {
                self.store = Some(store);
                world.journal.line("arbiter", "starts");
                world.report.recoveries += 1;
            }
            Err(FileError::Damaged { .. }) if world.mutated(Mutation::WriteInPlace) => {
                self.disk.remove();
                self.store = FileStore::on(self.disk.clone()).ok();
            }
            Err(FileError::Io { .. }) => {
                world.later(Duration::from_millis(20), WorldHappening::ArbiterStart);
            }
            Err(error) => world.witness.damaged(&error),
        }
        world.arbiter_up = self.store.is_some();
        self.show(world);
    }

    /// The process dies, or its whole host.
    pub(super) fn die(&mut self, world: &mut World) {
        if self.store.take().is_none() {
            return;
        }
        world.arbiter_up = false;
        let power = world.chance.hits(500);
        world.journal.line("arbiter", if power { "loses power" } else { "dies" });
        if power {
            self.disk.lose_power(&mut world.chance);
        }
        self.show(world);
        let delay = world.chance.micros_of_any_size(2_000..300_000);
        world.later(delay, WorldHappening::ArbiterStart);
    }

    /// The next changes of the register will not go well.
    pub(super) fn plan_trouble(&self, world: &mut World, death: bool) {
        let steps = world.chance.below(5) as u32;
        self.disk.plan_trouble(steps, if death { Trouble::Death } else { Trouble::Error });
    }

    /// The witness looks at the file.
    fn show(&self, world: &mut World) {
        self.disk.look(|seen, _| world.witness.file(seen));
    }

    /// A request has come.
    pub(super) fn asked(&mut self, world: &mut World, letter: &Letter) {
        let Some(store) = &mut self.store else { return };
        let (term, frame) = wire::decode(&letter.octets).expect("requests are not damaged");
        let Frame::Ask(ask) = frame else { unreachable!("only requests are sent to the arbiter") };
        let answer = decide(store, world, &ask);
        let (now, mut new) = (world.now, false);
        self.disk.look(|seen, durable| {
            world.witness.file(seen);
            if let Some(told) = register_in(&answer) {
                new = world.witness.told(now, told, durable);
            }
        });
        world.report.terms += u64::from(new);
        if let Some(register) = register_in(&answer).filter(|_| new).flatten() {
            world.journal.line("arbiter", register);
        }
        if self.disk.is_dead() {
            return self.die(world);
        }
        reply(world, letter, term, answer);
    }
}

fn reply(world: &mut World, letter: &Letter, term: Term, answer: Answer) {
    let (from, to) = (world.arbiter(), usize::from(letter.from.host));
    let lost = world.faulty && world.chance.hits(world.plan.rates.ask_lost);
    if lost || world.network.cut_until(from, to, world.now).is_some() {
        return;
    }
    let octets = wire::encode(term, &Frame::Answer(answer)).expect("answers are within the limits");
    let delay = world.latency() + world.chance.micros(50..1_500);
    world.process_later(letter.from, delay, Happening::Answered(letter.ask, octets));
}

fn decide(store: &mut FileStore<SimulatedDisk>, world: &World, ask: &Ask) -> Answer {
    let answered = match ask {
        Ask::Load(vm) => store.load(vm).map(Answer::Record),
        Ask::Execute(vm, request) => {
            let request = compared(store, world, vm, request);
            store.execute(vm, &request).map(Answer::Outcome)
        }
        other => unreachable!("nodes do not ask {other:?}"),
    };
    answered.unwrap_or_else(|error| match &error {
        StoreError::Illegal(_) => Answer::Denied(error.to_string()),
        StoreError::Untouched { .. } => Answer::Unavailable(error.to_string()),
        StoreError::Unknown { .. } => Answer::Failed(error.to_string()),
    })
}

/// The request, with what it expects.
fn compared(
    store: &FileStore<SimulatedDisk>,
    world: &World,
    vm: &VmId,
    request: &Request,
) -> Request {
    let mut request = request.clone();
    if world.mutated(Mutation::SkipCompare)
        && let Ok(Some(record)) = store.load(vm)
    {
        request.expected = Some(record.register);
    }
    request
}

/// The register that an answer tells of, if it tells of one or of none.
fn register_in(answer: &Answer) -> Option<Option<&Register>> {
    use arbiter::Outcome;
    match answer {
        Answer::Record(record) => Some(record.as_ref().map(|record| &record.register)),
        Answer::Outcome(Outcome::Set(register)) => Some(Some(register)),
        Answer::Outcome(Outcome::Mismatch(register)) => Some(register.as_ref()),
        _ => None,
    }
}

/// Whether the register lets this node be started as primary with `run`, as
/// `tools/src/primary/claim.rs` judges it.
pub(super) fn restartable(register: &Register, caller: &NodeId) -> bool {
    register.primary == *caller && register.in_sync.is_empty()
}
