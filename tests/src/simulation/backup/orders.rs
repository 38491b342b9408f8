//! The machine's actions, carried out; and what mutations make of them.

use arbiter::{Operation, Outcome, Term};
use checkpoint::{
    Answer, Question,
    backup::{Action, Event, Standing},
    message::{ToBackup, ToPrimary},
};
use transport::wire::Frame;

use super::BackupShell;
use crate::simulation::{
    mutation::Mutation,
    network::{Pipe, Side},
    primary::granted,
    world::World,
};

impl BackupShell {
    pub(super) fn carry_out(&mut self, world: &mut World, action: Action) {
        match action {
            Action::Welcome(welcome) => {
                let (session, term) = self.knock.take().expect("somebody knocked");
                self.sessions += 1;
                let _ = self.staging.begin(self.sessions);
                self.session = Some((self.sessions, session));
                world.network.session_mut(session).take(self.me, term);
                self.greet(world, session, Frame::Welcome(welcome));
                self.stage_waiting(world);
            }
            Action::Refuse(refusal) => {
                let (session, _) = self.knock.take().expect("somebody knocked");
                self.greet(world, session, Frame::Refusal(refusal));
            }
            Action::Disconnect { .. } => self.disconnect(world),
            Action::Floor(term) => {
                if let Some((_, session)) = self.session {
                    let floor = &mut world.network.session_mut(session).floor;
                    *floor = term.max(*floor);
                }
            }
            Action::Send(message) => self.send(world, message),
            Action::Discard => {
                let _ = self.staging.discard();
                self.applier.forget(world);
                world.witness.gives_up(self.me);
            }
            Action::ApplySeed { chunks } => {
                let content = self.staging.take_seed(chunks);
                self.applier.seed(world, content);
            }
            Action::Unstage { epoch } => drop(self.staging.unstage(epoch)),
            Action::Apply { epoch } => {
                let content = self.staging.take(epoch);
                let (_, session) = self.session.expect("epochs come by a session");
                let (primary, image) = {
                    let session = world.network.session(session);
                    (session.primary(), session.seeds)
                };
                let number = world.witness.keeps(self.me, &self.id, primary, epoch.get(), image);
                self.applier.epoch(world, epoch, content, number);
                world.report.commits += 1;
            }
            Action::DigestImage { epoch } => self.applier.digest(world, epoch),
            Action::Ask(question) => self.ask(world, question),
            Action::Promote { register, epoch } => self.promotion = Some((register, epoch)),
            Action::Note(note) => world.journal.line(&self.id, note),
        }
    }

    fn greet(
        &self,
        world: &mut World,
        session: crate::simulation::network::SessionId,
        frame: Frame,
    ) {
        world.send(session, Pipe::Up, self.machine.term(), frame);
    }

    pub(super) fn send(&self, world: &mut World, message: ToPrimary) {
        if let Some((_, session)) = self.session {
            world.send(session, Pipe::Up, self.machine.term(), Frame::ToPrimary(message));
        }
    }

    fn disconnect(&mut self, world: &mut World) {
        // It goes on listening, and answering.
        if world.mutated(Mutation::AckWhileAsking) {
            return;
        }
        if let Some((_, session)) = self.session.take() {
            world.close(session, Side::Backup);
        }
    }

    fn ask(&mut self, world: &mut World, question: Question) {
        if world.mutated(Mutation::PromoteWithoutRegister)
            && let Question::Change(request) = &question
            && matches!(request.operation, Operation::Promote { .. })
            && let Some(answer) = granted(request)
        {
            return self.tell(world, Event::Answered(answer));
        }
        self.asker.ask(world, self.me, self.as_meant(question));
    }

    /// What a mutated backup reads in an answer: that its image is meant.
    pub(super) fn take_for_own(&mut self, answer: &mut Answer) {
        let (Answer::Outcome(Outcome::Mismatch(Some(found))) | Answer::Register(Some(found))) =
            answer
        else {
            return;
        };
        if let (Some(image), Some(meant)) = (self.image(), found.in_sync.get_mut(&self.id)) {
            self.meant = Some(std::mem::replace(meant, image));
        }
    }

    /// What it asks for then.
    fn as_meant(&self, question: Question) -> Question {
        match (question, self.meant) {
            (Question::Change(mut request), Some(image)) => {
                let expected = request.expected.as_mut();
                if let Some(of) = expected.and_then(|register| register.in_sync.get_mut(&self.id)) {
                    *of = image;
                    request.operation = Operation::Promote { image };
                }
                Question::Change(request)
            }
            (question, _) => question,
        }
    }

    pub(super) fn believed(&self, world: &World, term: Term) -> Term {
        if world.mutated(Mutation::AcceptStaleTerm) { self.machine.term().max(term) } else { term }
    }

    pub(super) fn on_heard(&mut self, world: &mut World, term: Term, message: ToBackup) {
        let term = self.believed(world, term);
        let asking = self.machine.standing() == Standing::Asking;
        let early =
            world.mutated(Mutation::AckBeforeDigest) && self.machine.standing() == Standing::Whole;
        if let ToBackup::Close(close) = &message
            && (early || asking && world.mutated(Mutation::AckWhileAsking))
        {
            let committed = close.epoch;
            self.send(world, ToPrimary::Ack { committed, applied: committed });
        }
        self.tell(world, Event::Heard { term, message });
    }
}
