//! The backup's shell: carries its machine's actions out on an image that is a
//! number.

use std::time::Duration;

use arbiter::{Register, Term};
use checkpoint::{
    Epoch, backup,
    chunk::{ChunkId, Digest},
};

use super::{Cluster, Happening, Session};
use crate::simulation::node::{Image, Role};

impl Cluster {
    pub(super) fn tell_backup(&mut self, node: usize, event: backup::Event) {
        if let Role::Backup(machine, _) = &mut self.nodes[node].role {
            machine.handle(self.now, event);
            self.act_backup(node, None);
        }
    }

    pub(super) fn take_chunk(
        &mut self,
        node: usize,
        term: Term,
        id: ChunkId,
        digest: Digest,
        work: u64,
    ) {
        let damage = self.faults.damage;
        let damaged = self.chance.hits(damage);
        let Role::Backup(machine, image) = &mut self.nodes[node].role else { return };
        if damaged || term < machine.term() {
            self.tell_backup(node, backup::Event::Refused { id });
            return;
        }
        if id.epoch > Epoch::ZERO {
            image.staged.insert(id.epoch, work);
        }
        self.tell_backup(node, backup::Event::Staged { term, id, digest, pages: 1 });
    }

    pub(super) fn act_backup(&mut self, node: usize, knocking: Option<(usize, u64)>) {
        loop {
            let Role::Backup(machine, _) = &mut self.nodes[node].role else { return };
            let Some(action) = machine.poll_action() else { break };
            let term = machine.term();
            self.do_backup(node, term, knocking, action);
        }
        self.schedule_wake(node);
    }

    fn do_backup(
        &mut self,
        node: usize,
        term: Term,
        knocking: Option<(usize, u64)>,
        action: backup::Action,
    ) {
        use backup::Action;
        match action {
            Action::Welcome(welcome) => {
                let (from, session) = knocking.expect("somebody knocked");
                self.sessions.insert(session, Session { primary: from, backup: node });
                let greeted =
                    Happening::Greeted { to: from, from: node, session, reply: Ok(welcome) };
                self.ordered(session, node, from, greeted);
            }
            Action::Refuse(refusal) => {
                let (from, session) = knocking.expect("somebody knocked");
                let greeted =
                    Happening::Greeted { to: from, from: node, session, reply: Err(refusal) };
                self.later(Duration::from_millis(1), from, greeted);
            }
            Action::Disconnect { .. } => self.leave(node, knocking),
            Action::Send(message) => {
                let session = self.sessions.iter().rev().find(|(_, s)| s.backup == node);
                if let Some((id, session)) = session.map(|(id, session)| (*id, *session)) {
                    let to = session.primary;
                    let happening =
                        Happening::ToPrimary { to, from: node, session: id, term, message };
                    self.ordered(id, node, to, happening);
                }
            }
            Action::Discard => *self.image(node) = Image::default(),
            Action::ApplySeed { chunks } => self.image(node).seed = chunks,
            Action::Unstage { epoch } => {
                self.image(node).staged.remove(&epoch);
            }
            Action::Apply { epoch } => {
                let image = self.image(node);
                let work = image.staged.remove(&epoch).expect("a committed epoch was staged");
                if let Some((before, _)) = image.committed {
                    assert_eq!(before.next(), epoch, "epochs are applied in their order");
                }
                image.committed = Some((epoch, work));
                self.later(Duration::from_millis(1), node, Happening::Applied { node, epoch });
            }
            Action::Ask(question) => {
                let delay = self.chance.between(50..2_000);
                self.later(delay, node, Happening::Ask { from: node, question });
            }
            Action::Promote { register, epoch } => self.promote(node, register, epoch),
            Action::Floor(_) | Action::DigestImage { .. } => {}
            Action::Note(note) => {
                if self.trace {
                    let id = &self.nodes[node].id;
                    println!("{:>9} us  {id}: {note}", self.now.as_micros());
                }
            }
        }
    }

    /// Ends the session that this node had before somebody knocked.
    fn leave(&mut self, node: usize, knocking: Option<(usize, u64)>) {
        let session = self.sessions.iter().find(|(id, session)| {
            session.backup == node && knocking.is_none_or(|(_, new)| **id != new)
        });
        if let Some((id, session)) = session.map(|(id, session)| (*id, *session)) {
            self.sessions.remove(&id);
            let to = session.primary;
            let broken = Happening::Broken { to, peer: node, session: id };
            self.later(Duration::from_millis(1), to, broken);
        }
    }

    fn promote(&mut self, node: usize, register: Register, epoch: Epoch) {
        let (committed, work) = self.image(node).committed.expect("an image");
        assert_eq!(committed, epoch, "a promotion goes on from the committed epoch");
        let id = self.nodes[node].id.clone();
        self.witness.promoted(&id, work);
        self.report.promotions += 1;
        self.run_primary(node, register, epoch.next(), work);
    }

    fn image(&mut self, node: usize) -> &mut Image {
        match &mut self.nodes[node].role {
            Role::Backup(_, image) => image,
            Role::Primary(..) | Role::Down => unreachable!("only a backup has an image"),
        }
    }
}
