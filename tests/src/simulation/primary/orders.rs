//! The machine's actions, carried out; and what mutations make of them.

use arbiter::{NodeId, Operation, Outcome, Request};
use checkpoint::{
    Answer, Epoch, Note, Question,
    message::ToPrimary,
    primary::{Action, Command, Event, Stage},
};

use super::{PrimaryShell, Seed, flights::Complete};
use crate::simulation::{mutation::Mutation, world::World};

impl PrimaryShell {
    pub(super) fn carry_out(&mut self, world: &mut World, action: Action) {
        match action {
            Action::Connect { backup } => self.peers.connect(world, &backup),
            Action::Disconnect { backup, redial } => {
                self.flights.unfollow(&backup);
                self.peers.disconnect(world, &backup, redial);
            }
            Action::Send { backup, message } => {
                let term = self.machine.register().term;
                self.peers.send(world, &backup, term, message);
            }
            Action::StartSeed { backup } => self.start_seed(world, backup),
            Action::SeedRound { backup } => {
                let me = self.me;
                if let Some(seed) = self.seeds.iter_mut().find(|seed| seed.backup == backup) {
                    seed.order(world, me);
                }
            }
            Action::ResendSeed { backup, chunks } => {
                let me = self.me;
                if let Some(seed) = self.seeds.iter_mut().find(|seed| seed.backup == backup) {
                    seed.resend(world, me, chunks);
                }
            }
            Action::StopSeed { backup } => {
                self.seeds.retain(|seed| seed.backup != backup);
                self.tracker.end_seed(&backup);
            }
            Action::Cut(order) => {
                self.seeds.retain(|seed| !order.joins.contains(&seed.backup));
                self.cutter.cut(world, order);
            }
            Action::Follow { backup, after, joins } => {
                if let Some(session) = self.peers.session(&backup) {
                    self.flights.follow(world, backup, after, joins, session);
                }
            }
            Action::Resend { backup, epoch, chunks } => {
                self.flights.resend(world, &backup, epoch, &chunks);
            }
            Action::Verified { backup: _, epoch, digest } => {
                self.verification.of_backup(world, epoch, digest);
            }
            Action::Forget { through } => self.flights.forget(world, through),
            Action::Release { through } => self.release(world, through),
            Action::Confirm => {
                let stale = self.outlet.confirm(world);
                self.stale_release(world, stale);
            }
            Action::PassOutput => self.pass(world),
            Action::HoldGuest => self.cutter.hold(world),
            Action::FreeGuest => self.cutter.free(world),
            Action::Ask(question) => self.ask(world, question),
            Action::Note(note) => {
                world.report.doubts += u64::from(matches!(note, Note::Doubt { .. }));
                if matches!(note, Note::HandOverAborted { .. }) && !self.machine.draining() {
                    self.gives_up(world);
                }
                world.journal.line(&self.id, note);
            }
            Action::End(_) => unreachable!("taken before"),
        }
    }

    fn start_seed(&mut self, world: &mut World, backup: NodeId) {
        let Some(session) = self.peers.session(&backup) else { return };
        self.tracker.begin_seed(&mut self.guest, backup.clone());
        self.seed_count += 1;
        let seed = Seed::start(world, self.me, self.seed_count, backup, session);
        self.seeds.push(seed);
    }

    pub(super) fn release(&mut self, world: &mut World, through: Epoch) {
        let decided = self.clock.shows(world.now);
        let stale = self.outlet.release(world, through, decided);
        self.stale_release(world, stale);
    }

    fn pass(&mut self, world: &mut World) {
        let stale = self.outlet.pass(world);
        self.stale_release(world, stale);
        self.flights.forget_all();
        self.tracker.rest(&mut self.guest);
    }

    /// The guest is not kept as it stood at a handover: it runs on, or is over.
    pub(super) fn gives_up(&mut self, world: &mut World) {
        if std::mem::take(&mut self.stays) {
            world.witness.gives_up(self.me);
        }
    }

    fn ask(&mut self, world: &mut World, question: Question) {
        if let Question::Change(request) = &question
            && let Operation::Switchover { stands_by: Some(image), .. } = request.operation
            && !std::mem::replace(&mut self.stays, true)
        {
            let epoch = self.machine.released().get();
            world.witness.stays(self.me, &self.id, epoch, image);
        }
        if world.mutated(Mutation::PassBeforeDropped)
            && let Question::Change(request) = &question
            && let (Operation::Drop { .. }, Ok(target)) = (&request.operation, request.target())
            && target.in_sync.is_empty()
        {
            self.asker.ask(world, self.me, question);
            return self.tell(world, Event::Answered(Answer::Outcome(Outcome::Set(target))));
        }
        self.asker.ask(world, self.me, question);
    }

    pub(super) fn on_encoded(&mut self, world: &mut World, complete: Complete) {
        let Complete { close, wire_bytes } = complete;
        let epoch = close.epoch;
        self.tell(world, Event::Encoded { close, wire_bytes });
        self.act(world);
        if world.mutated(Mutation::AdmitBeforeCommit) {
            let joining = |stage| matches!(stage, Stage::Joining { epoch: e, .. } if e == epoch);
            let joins: Vec<NodeId> = self
                .machine
                .backups()
                .filter(|(_, stage, ..)| joining(*stage))
                .map(|(backup, ..)| backup.clone())
                .collect();
            let term = self.machine.register().term;
            for backup in joins {
                let message = ToPrimary::Ack { committed: epoch, applied: epoch };
                self.tell(world, Event::Heard { backup, term, message });
            }
        }
    }

    pub(super) fn on_heard(
        &mut self,
        world: &mut World,
        backup: NodeId,
        mut term: arbiter::Term,
        message: ToPrimary,
    ) {
        if world.mutated(Mutation::AcceptStaleTerm) {
            term = self.machine.register().term;
        }
        if world.mutated(Mutation::ReleaseOnFirstAck)
            && let ToPrimary::Ack { committed, .. } = message
        {
            self.release(world, committed);
        }
        self.tell(world, Event::Heard { backup, term, message });
    }

    // --- The operator -----------------------------------------------------

    /// Backups in sync and connected.
    pub(super) fn in_sync(&self) -> Vec<NodeId> {
        self.machine
            .backups()
            .filter(|(_, stage, _, connected)| *stage == Stage::InSync && *connected)
            .map(|(node, ..)| node.clone())
            .collect()
    }

    pub(super) fn on_stop(&mut self, world: &mut World) {
        if self.machine.draining() || !self.in_sync().is_empty() {
            self.stopping = true;
        } else {
            let reason = "stopped".to_owned();
            self.tell(world, Event::Commanded(Command::Finish { reason }));
        }
    }

    /// Hands over to whoever is in sync, again if a try was given up.
    pub(super) fn stop_if_possible(&mut self, world: &mut World) {
        if self.stopping
            && self.ending.is_none()
            && !self.machine.draining()
            && let Some(to) = self.in_sync().into_iter().next()
        {
            self.tell(world, Event::Commanded(Command::HandOver { to, stand_by: false }));
            self.act(world);
        }
    }
}

/// What a request asks for, for a mutation that does not ask.
pub(in crate::simulation) fn granted(request: &Request) -> Option<Answer> {
    let target = request.target().ok()?;
    Some(Answer::Outcome(Outcome::Set(target)))
}
