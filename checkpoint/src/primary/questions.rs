//! What the primary asks the arbiter, and what the answers change.
//!
//! | when | question |
//! |---|---|
//! | in doubt | read, to confirm the register |
//! | a member is silent, outdated or not wanted | drop it |
//! | a joining backup has committed its first checkpoint | admit it |
//! | the last epoch of a handover is committed and released, and the successor knows the register | switch over |

use std::time::Duration;

use arbiter::{NodeId, Operation, Outcome, Register};

use super::{
    Action, Ending, Primary,
    link::Stage,
    machine::{Drain, DrainPurpose, Phase},
};
use crate::{Answer, Note, Question, message::ToBackup};

/// A question and when it was put.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) purpose: Purpose,
    question: Question,
    at: Duration,
    /// Nothing has come back for it yet; otherwise it is to be repeated.
    waiting: bool,
    /// A copy of it went unanswered: it may have happened, and only an outcome
    /// can tell.
    uncertain: bool,
    /// It takes back a handover that may have happened: the register is then
    /// this.
    pub(super) takes_back: Option<Register>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    Admit(NodeId),
    Drop(NodeId),
    HandOver { to: NodeId, stand_by: bool },
    Confirm,
}

impl Primary {
    /// When a question is due (again).
    pub(super) fn retry_at(&self) -> Option<Duration> {
        match &self.asked {
            Some(asked) => (!asked.waiting).then_some(self.ask_not_before),
            None => self.due().is_some().then_some(self.ask_not_before),
        }
    }

    /// Puts the question that is due, or repeats the one that got no answer.
    pub(super) fn ask(&mut self) {
        if self.phase == Phase::Ended || self.now < self.ask_not_before {
            return;
        }
        self.take_back_handover();
        if let Some(asked) = &mut self.asked {
            if !asked.waiting {
                asked.waiting = true;
                let question = asked.question.clone();
                self.act(Action::Ask(question));
            }
            return;
        }
        let Some(purpose) = self.due() else { return };
        let operation = match &purpose {
            Purpose::Admit(backup) => {
                let image = self.links[backup].image.expect("a backup that has joined");
                Some(Operation::Admit { backup: backup.clone(), image })
            }
            Purpose::Drop(backup) => Some(Operation::Drop { backup: backup.clone() }),
            Purpose::HandOver { to, stand_by } => {
                let stands_by = stand_by.then(|| self.stamps.image());
                Some(Operation::Switchover { successor: to.clone(), stands_by })
            }
            Purpose::Confirm => None,
        };
        let question = match operation {
            Some(operation) => {
                Question::Change(self.stamps.request(&self.config.node, &self.register, operation))
            }
            None => Question::Read,
        };
        let at = self.now;
        self.asked = Some(Asked {
            purpose,
            question: question.clone(),
            at,
            waiting: true,
            uncertain: false,
            takes_back: None,
        });
        self.act(Action::Ask(question));
    }

    /// A handover that went unanswered and whose successor is lost meanwhile:
    /// dropping the successor is asked instead. Both name the same register,
    /// so at most one of them happens, and the outcome tells which.
    fn take_back_handover(&mut self) {
        let Some(Asked {
            purpose: Purpose::HandOver { to, .. },
            question: Question::Change(handover),
            waiting: false,
            ..
        }) = &self.asked
        else {
            return;
        };
        let (to, takes_back) = (to.clone(), handover.target().ok());
        let lost = self.links.get(&to).is_none_or(|link| {
            let silent = !link.connected && self.now >= link.heard_at + self.config.drop_after;
            silent || link.stage == Stage::Outdated
        });
        if lost {
            let operation = Operation::Drop { backup: to.clone() };
            let request = self.stamps.request(&self.config.node, &self.register, operation);
            self.asked = Some(Asked {
                purpose: Purpose::Drop(to),
                question: Question::Change(request),
                at: self.now,
                waiting: false,
                uncertain: true,
                takes_back,
            });
        }
    }

    fn due(&self) -> Option<Purpose> {
        if self.doubt.is_some() {
            return Some(Purpose::Confirm);
        }
        let members = self.register.in_sync.keys();
        let mut lost = members.filter(|node| {
            self.links.get(*node).is_none_or(|link| {
                let silent = self.now >= link.heard_at + self.config.drop_after;
                !link.wanted || silent || link.stage == Stage::Outdated
            })
        });
        if let Some(backup) = lost.next() {
            return Some(Purpose::Drop(backup.clone()));
        }
        let handover = self.drained_for();
        if handover.is_some() {
            return handover;
        }
        let admissible = self.links.iter().find(|(node, link)| {
            matches!(link.stage, Stage::Joining { epoch, .. } if link.committed >= epoch)
                && link.connected
                && link.wanted
                && !self.register.in_sync.contains_key(*node)
        });
        admissible.map(|(node, _)| Purpose::Admit(node.clone()))
    }

    pub(super) fn on_answered(&mut self, answer: Answer) {
        let Some(asked) = &mut self.asked else { return };
        asked.waiting = false;
        let retry_at = self.now + self.config.ask_retry;
        match answer {
            Answer::Outcome(Outcome::Set(register)) if !asked.question.asks_for(&register) => {
                self.on_other_register(Some(register), retry_at);
            }
            Answer::Outcome(Outcome::Set(register)) => {
                let asked = self.asked.take().expect("asked");
                self.on_set(asked.purpose, register);
            }
            // It could not be taken back: it had happened. Nobody but this process
            // could have put that there.
            Answer::Outcome(Outcome::Mismatch(Some(found)))
                if asked.takes_back.as_ref() == Some(&found) =>
            {
                self.handed_over(found);
            }
            Answer::Outcome(Outcome::Mismatch(found)) => self.on_other_register(found, retry_at),
            Answer::Register(Some(register)) if register == self.register => {
                let asked = self.asked.take().expect("asked");
                // An answer from before the last doubt confirms nothing.
                if self.doubt.is_some_and(|doubt| doubt.since <= asked.at) {
                    self.resolve_doubt();
                    self.refute_later_terms();
                }
            }
            Answer::Register(found) => self.on_other_register(found, retry_at),
            Answer::Unsent => {
                self.forget_certainly_unasked("the arbiter does not answer");
                self.ask_not_before = retry_at;
                self.note(Note::ArbiterUnreachable);
            }
            Answer::Unknown => {
                asked.uncertain = true;
                if asked.purpose == Purpose::Confirm {
                    self.asked = None;
                }
                self.ask_not_before = retry_at;
                self.note(Note::ArbiterUnreachable);
            }
            Answer::Refused(why) => {
                self.forget_certainly_unasked("the arbiter refuses");
                self.ask_not_before = retry_at;
                self.note(Note::ArbiterRefused { why });
            }
        }
    }

    /// The copy of the question that was answered did not happen. If none
    /// before it may have, whether it is still wanted is seen afresh; a guest
    /// is not kept paused for a handover that nobody can decide.
    fn forget_certainly_unasked(&mut self, why: &str) {
        if self.asked.take_if(|asked| !asked.uncertain).is_none() {
            return;
        }
        if let Phase::Draining(Drain { purpose: DrainPurpose::HandOver { to, .. }, .. }) =
            &self.phase
        {
            self.give_up_handover(to.clone(), why);
        }
    }

    /// The register holds something that this node did not put there.
    fn on_other_register(&mut self, found: Option<Register>, retry_at: Duration) {
        match found {
            Some(register) if register.term >= self.register.term => {
                self.end(Ending::Fenced { register: Some(register) });
            }
            // Terms never fall: an arbiter that has forgotten is not believed.
            found => {
                self.ask_not_before = retry_at;
                if matches!(&self.asked, Some(asked) if asked.purpose == Purpose::Confirm) {
                    self.asked = None;
                }
                self.note(Note::ArbiterForgot { known: self.register.term, found });
            }
        }
    }

    fn on_set(&mut self, purpose: Purpose, register: Register) {
        let term = register.term;
        self.register = register.clone();
        match purpose {
            Purpose::Admit(backup) => {
                let link = self.links.get_mut(&backup).expect("a joining backup");
                // If it has lost its image meanwhile, it is dropped again.
                link.stage = if link.follows() { Stage::InSync } else { Stage::Outdated };
                self.note(Note::Admitted { backup, term });
                self.tell_membership();
            }
            Purpose::Drop(backup) => {
                let solo = self.register.in_sync.is_empty();
                let finishes = self.finishes();
                self.note(Note::Dropped { backup: backup.clone(), term, solo });
                if let Some(link) = self.links.get_mut(&backup) {
                    link.stage = Stage::Away;
                    link.committed = crate::Epoch::ZERO;
                    // A session of its own for the seed that follows.
                    if link.connected && !finishes {
                        self.disconnect(&backup);
                    }
                }
                self.tell_membership();
            }
            Purpose::HandOver { .. } => self.handed_over(register),
            Purpose::Confirm => unreachable!("a read sets nothing"),
        }
    }

    /// Everybody who is in sync hears whose guest it is now: they have all of it,
    /// and go on under the successor.
    fn handed_over(&mut self, register: Register) {
        let epoch = self.last_cut();
        self.register = register.clone();
        let (to, term) = (register.primary.clone(), register.term);
        let told = self.links.iter().filter(|(node, link)| {
            link.connected && (**node == to || register.in_sync.contains_key(*node))
        });
        for node in told.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            self.send(&node, ToBackup::HandOver { epoch, register: register.clone() });
        }
        self.note(Note::HandedOver { to, term });
        self.end(Ending::HandedOver { register, epoch });
    }

    fn tell_membership(&mut self) {
        let told: Vec<NodeId> = self
            .links
            .iter()
            .filter(|(_, link)| link.connected)
            .map(|(node, _)| node.clone())
            .collect();
        for backup in told {
            self.send(&backup, ToBackup::Membership(self.register.clone()));
        }
    }
}
