//! What operators ask of a primary, and the two ways to its planned end: a
//! handover, and the end of the guest. Both pause the guest and wait until its
//! last epoch is committed and released.

use arbiter::NodeId;

use super::{
    Action, Command, Ending, Primary,
    link::{Link, Stage},
    machine::{Drain, DrainPurpose, Phase},
    questions::Purpose,
};
use crate::{Epoch, Note, message::ToBackup};

impl Primary {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Protect { backup } => {
                let now = self.now;
                let link = self.links.entry(backup.clone()).or_insert_with(|| Link::new(now));
                link.wanted = true;
                self.act(Action::Connect { backup });
            }
            Command::Unprotect { backup } => self.unprotect(&backup),
            Command::HandOver { to, stand_by } => {
                let ready = self.links.get(&to).is_some_and(|link| {
                    link.connected && link.stage == Stage::InSync && link.wanted
                });
                if ready {
                    self.note(Note::HandOverBegun { to: to.clone() });
                    self.begin_drain(DrainPurpose::HandOver { to, stand_by });
                } else {
                    let why = "it is not in sync".to_owned();
                    self.note(Note::HandOverAborted { to, why });
                }
            }
            Command::Verify => self.verify_next = true,
            Command::Finish { reason } => self.begin_drain(DrainPurpose::Finish(reason)),
        }
    }

    pub(super) fn on_command_while_draining(&mut self, command: Command) {
        match command {
            // The guest's end outranks a handover that is not asked for yet.
            Command::Finish { reason } if self.asked.is_none() => {
                self.begin_drain(DrainPurpose::Finish(reason));
            }
            Command::HandOver { to, stand_by: _ } => {
                let why = "the guest is already being drained".to_owned();
                self.note(Note::HandOverAborted { to, why });
            }
            Command::Finish { .. }
            | Command::Protect { .. }
            | Command::Unprotect { .. }
            | Command::Verify => {}
        }
    }

    fn begin_drain(&mut self, purpose: DrainPurpose) {
        self.phase = Phase::Draining(Drain { purpose, last: None });
        self.act(Action::HoldGuest);
    }

    /// The guest runs on here.
    pub(super) fn give_up_handover(&mut self, to: NodeId, why: &str) {
        self.note(Note::HandOverAborted { to, why: why.to_owned() });
        self.phase = Phase::Running;
        if !self.guest_held {
            self.act(Action::FreeGuest);
        }
    }

    pub(super) fn unprotect(&mut self, backup: &NodeId) {
        let Some(link) = self.links.get_mut(backup) else { return };
        link.wanted = false;
        if !link.follows() && link.stage != Stage::Outdated {
            self.disconnect(backup);
        }
    }

    pub(super) fn send(&mut self, backup: &NodeId, message: ToBackup) {
        self.act(Action::Send { backup: backup.clone(), message });
    }

    pub(super) fn advance_drain(&mut self) {
        let Phase::Draining(drain) = self.phase.clone() else { return };
        let followed = self.followers().next().is_some();
        let drained = drain.last.is_some_and(|last| self.released >= last);
        match drain.purpose {
            DrainPurpose::HandOver { to, stand_by: _ } => {
                let lost = !self.register.in_sync.contains_key(&to)
                    || self.links.get(&to).is_none_or(|link| link.stage != Stage::InSync)
                    || (!self.links[&to].connected && !self.asks_about(&to));
                if lost && !self.asks_handover() {
                    self.give_up_handover(to, "its connection was lost");
                }
            }
            DrainPurpose::Finish(reason) if !followed && self.asked.is_none() => {
                for (backup, link) in &self.links {
                    if link.connected {
                        let message = ToBackup::Farewell { reason: reason.clone() };
                        self.actions.push_back(Action::Send { backup: backup.clone(), message });
                    }
                }
                self.end(Ending::Finished { reason });
            }
            // They are dropped first. Told before, they would give up images that the
            // register counts on: nobody could start the guest again.
            DrainPurpose::Finish(_) if drained => {
                for link in self.links.values_mut() {
                    link.wanted = false;
                }
            }
            DrainPurpose::Finish(_) => {}
        }
    }

    /// Whether the guest is at its end.
    pub(super) fn finishes(&self) -> bool {
        let purpose = |drain: &Drain| matches!(drain.purpose, DrainPurpose::Finish(_));
        matches!(&self.phase, Phase::Draining(drain) if purpose(drain))
    }

    /// A handover whose last epoch every follower has, and whose successor knows
    /// the register before it: that it counted on its image is how it will know
    /// that the handover means it, should it only read of it.
    pub(super) fn drained_for(&self) -> Option<Purpose> {
        match &self.phase {
            Phase::Draining(Drain {
                purpose: DrainPurpose::HandOver { to, stand_by },
                last: Some(last),
            }) if self.released >= *last && self.knows_the_register(to) => {
                Some(Purpose::HandOver { to: to.clone(), stand_by: *stand_by })
            }
            Phase::Draining(_) | Phase::Running | Phase::Ended => None,
        }
    }

    fn knows_the_register(&self, node: &NodeId) -> bool {
        self.links.get(node).is_some_and(|link| link.heard_term == self.register.term)
    }

    pub(super) fn asks_about(&self, node: &NodeId) -> bool {
        self.asked.as_ref().is_some_and(|asked| match &asked.purpose {
            Purpose::Admit(about)
            | Purpose::Drop(about)
            | Purpose::HandOver { to: about, stand_by: _ } => about == node,
            Purpose::Confirm => false,
        })
    }

    /// Whether a handover may have happened, or be about to.
    fn asks_handover(&self) -> bool {
        self.asked.as_ref().is_some_and(|asked| {
            matches!(asked.purpose, Purpose::HandOver { .. }) || asked.takes_back.is_some()
        })
    }

    /// The last epoch that was cut.
    pub(super) fn last_cut(&self) -> Epoch {
        self.flights.last().unwrap_or(self.released)
    }
}
