//! Claims the right to run a guest that is about to boot. Mirrors
//! `tools/src/primary/claim.rs`.

use arbiter::{NodeId, Operation, Outcome, Register, Request, Stamp};
use checkpoint::{Answer, Question};

use crate::simulation::{
    arbiter_host::{Asker, restartable},
    happening::{Happening, ProcessId},
    world::World,
};

/// A process that was started with `run` and may not run yet.
#[derive(Debug)]
pub(in crate::simulation) struct Claim {
    me: ProcessId,
    id: NodeId,
    asker: Asker,
    request: Option<Request>,
}

/// How a claim ended.
#[derive(Debug)]
pub(in crate::simulation) enum ClaimEnd {
    /// The guest may boot.
    Granted(Register),
    /// The process ends.
    Denied,
}

impl Claim {
    pub(in crate::simulation) fn start(world: &mut World, me: ProcessId) -> Self {
        let id = world.machine(me).id.clone();
        world.journal.line(&id, "claims the guest");
        let mut claim = Self { me, id, asker: Asker::default(), request: None };
        claim.ask(world);
        claim
    }

    /// A second process of the same name, that has read the same register.
    pub(in crate::simulation) fn twin(&self, world: &mut World, me: ProcessId) -> Option<Self> {
        let request = Request { stamp: Stamp::new(world.random()), ..self.request.clone()? };
        world.journal.line(&self.id, "is started twice");
        let mut claim =
            Self { me, id: self.id.clone(), asker: Asker::default(), request: Some(request) };
        claim.ask(world);
        Some(claim)
    }

    /// Whether it has read the register.
    pub(in crate::simulation) fn has_read(&self) -> bool {
        self.request.is_some()
    }

    fn ask(&mut self, world: &mut World) {
        let question = match &self.request {
            Some(request) => Question::Change(request.clone()),
            None => Question::Read,
        };
        self.asker.ask(world, self.me, question);
    }

    pub(in crate::simulation) fn happens(
        &mut self,
        world: &mut World,
        happening: Happening,
    ) -> Option<ClaimEnd> {
        let answer = match happening {
            Happening::AskAttempt(number) => self.asker.attempt(world, self.me, number)?,
            Happening::Answered(number, octets) => {
                self.asker.answered(world, self.me, number, &octets)?
            }
            Happening::Claim => {
                self.ask(world);
                return None;
            }
            other => unreachable!("{other:?} does not happen to a claim"),
        };
        self.answered(world, answer)
    }

    fn answered(&mut self, world: &mut World, answer: Answer) -> Option<ClaimEnd> {
        match answer {
            Answer::Register(current) => {
                let operation = match &current {
                    None => Operation::Create,
                    Some(register) if restartable(register, &self.id) => Operation::Restart,
                    Some(_) => return Some(ClaimEnd::Denied),
                };
                let (caller, stamp) = (self.id.clone(), Stamp::new(world.random()));
                self.request = Some(Request { caller, expected: current, operation, stamp });
                self.ask(world);
                None
            }
            Answer::Outcome(Outcome::Set(register)) => Some(ClaimEnd::Granted(register)),
            Answer::Outcome(Outcome::Mismatch(_)) => Some(ClaimEnd::Denied),
            // A claim may be repeated: it carries its stamp.
            Answer::Refused(_) if self.request.is_some() => Some(ClaimEnd::Denied),
            Answer::Refused(_) | Answer::Unsent | Answer::Unknown => {
                let delay = world.plan.timing.ask_retry * 2;
                world.process_later(self.me, delay, Happening::Claim);
                None
            }
        }
    }
}
