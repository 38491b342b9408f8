//! Taking over: when a promotion is asked for, and what the answers change.

use arbiter::{Operation, Outcome, Register};

use super::{Asking, Backup, FIRST_CONTACT, Phase, Reason};
use crate::{Answer, Note, Question, backup::Action};

impl Backup {
    /// Asks the arbiter if the primary has been silent for too long.
    pub(super) fn suspect(&mut self) {
        let silent = self.now.saturating_sub(self.heard_at);
        let due = silent >= self.config.detection && self.now >= self.ask_not_before;
        if !due && !self.take_over || self.answer_due {
            return;
        }
        if let Some(link) = self.link.take() {
            let millis = silent.as_millis() as u64;
            self.note(Note::PrimarySilent { primary: link.primary, millis });
            // From here on nothing is acknowledged under the old term.
            self.act(Action::Disconnect { reason: "a promotion is being asked for".to_owned() });
        }
        self.note(Note::Asking { committed: self.committed });
        // Of a term before the one that it was fed under, it says nothing of who fed
        // it then.
        let known = self.register.clone().filter(|register| register.term >= self.term);
        let question = known.and_then(|register| self.promotion(&register));
        // Admitted or not: only the arbiter knows.
        self.put(question.unwrap_or(Question::Read), Reason::Silence);
    }

    /// The primary says that this node is its successor. That is for the arbiter
    /// to say: whoever has a session may claim it.
    pub(super) fn confirm_handover(&mut self) {
        if let Some(link) = self.link.take() {
            self.note(Note::SuccessorOf { primary: link.primary });
            self.act(Action::Disconnect { reason: "a handover is being confirmed".to_owned() });
        }
        // With another question under way, silence leads to the same.
        if !self.answer_due {
            self.put(Question::Read, Reason::HandOver);
        }
    }

    /// The question for this image's promotion, if `expected` counts on it.
    fn promotion(&mut self, expected: &Register) -> Option<Question> {
        let image = self.image.filter(|_| self.is_counted_by(expected))?;
        let promote = Operation::Promote { image };
        Some(Question::Change(self.stamps.request(&self.config.node, expected, promote)))
    }

    fn put(&mut self, question: Question, reason: Reason) {
        let asking = Asking { question: question.clone(), reason, uncertain: false };
        self.phase = Phase::Asking(asking);
        self.ask(question);
    }

    fn ask(&mut self, question: Question) {
        self.answer_due = true;
        self.act(Action::Ask(question));
    }

    pub(super) fn ask_again(&mut self) {
        if self.now < self.ask_not_before || self.answer_due {
            return;
        }
        if let Phase::Asking(asking) = &self.phase {
            self.ask(asking.question.clone());
        }
    }

    pub(super) fn on_answered(&mut self, answer: Answer) {
        let Phase::Asking(asking) = &mut self.phase else { return };
        let read = asking.question == Question::Read;
        match answer {
            Answer::Outcome(Outcome::Set(register)) if asking.question.asks_for(&register) => {
                self.promote(register);
            }
            Answer::Outcome(Outcome::Set(register)) => self.on_register(Some(register)),
            Answer::Outcome(Outcome::Mismatch(found)) | Answer::Register(found) => {
                self.on_register(found);
            }
            Answer::Unknown if !read => {
                asking.uncertain = true;
                self.ask_not_before = self.now + self.config.ask_retry;
                self.note(Note::ArbiterUnreachable);
            }
            Answer::Unsent | Answer::Refused(_) if asking.uncertain => {
                self.ask_not_before = self.now + self.config.ask_retry;
                self.note(Note::ArbiterUnreachable);
            }
            // Nothing was asked after all: stand by again.
            Answer::Unsent | Answer::Unknown => self.stand_again(Note::ArbiterUnreachable),
            Answer::Refused(why) => self.stand_again(Note::ArbiterRefused { why }),
        }
    }

    /// Nobody was promoted: go on as a backup, and ask again later if the
    /// primary stays silent.
    fn stand_again(&mut self, note: Note) {
        self.phase = Phase::Standing;
        self.take_over = false;
        self.ask_not_before = self.now + self.config.ask_retry;
        self.note(note);
    }

    fn on_register(&mut self, found: Option<Register>) {
        match found {
            Some(register) if register.term < self.term => {
                self.stand_again(Note::ArbiterForgot { known: self.term, found: Some(register) });
            }
            None => self.stand_again(Note::ArbiterForgot { known: self.term, found: None }),
            Some(register) if self.is_handed_to_us(&register) => self.promote(register),
            Some(register) => self.on_foreign_register(register),
        }
    }

    /// Another node's term, as far as this one knew it or not.
    fn on_foreign_register(&mut self, register: Register) {
        let silent = self.primary_of_term.clone();
        self.raise(register.term, &register.primary);
        let Some(question) = self.promotion(&register) else {
            // If it counts on this node, it means another process of it.
            let namesake = register.in_sync.contains_key(&self.config.node);
            self.discard();
            self.note(Note::NotPromoted { register, namesake });
            return;
        };
        let Phase::Asking(Asking { reason, .. }) = &self.phase else { return };
        match *reason {
            Reason::HandOver => self.stand_again(Note::HandOverRefuted { register }),
            // Nobody has been waiting for this one yet.
            Reason::Silence if !self.take_over && silent.as_ref() != Some(&register.primary) => {
                let (primary, term) = (register.primary.clone(), register.term);
                self.stand_again(Note::GoesOnUnder { primary, term });
                self.go_on_under(register);
            }
            Reason::Silence => self.put(question, Reason::Silence),
        }
    }

    /// `register` names a successor and counts on this image. The successor has its
    /// own role to change before it calls.
    pub(super) fn go_on_under(&mut self, register: Register) {
        self.primary_of_term = Some(register.primary.clone());
        self.register = Some(register);
        self.heard_at = self.now;
        self.ask_not_before = self.now + self.config.detection * FIRST_CONTACT;
    }

    /// Whether `register` counts on this very image.
    pub(super) fn is_counted_by(&self, register: &Register) -> bool {
        self.image.is_some_and(|image| register.counts_on(&self.config.node, image))
    }

    /// Whether `register` makes this node primary by a handover of this image:
    /// the term before it counted on just this one, so nobody else of this name
    /// can have been meant.
    pub(super) fn is_handed_to_us(&self, register: &Register) -> bool {
        let counted_before = |known: &Register| {
            known.term.next() == Some(register.term) && self.is_counted_by(known)
        };
        register.primary == self.config.node && self.register.as_ref().is_some_and(counted_before)
    }

    /// Whether `register` hands this node's guest to another, and counts on this
    /// image.
    pub(super) fn goes_on_under(&self, register: &Register) -> bool {
        register.primary != self.config.node && self.is_counted_by(register)
    }

    fn promote(&mut self, register: Register) {
        self.raise(register.term, &register.primary);
        self.phase = Phase::Promoting;
        let epoch = self.committed;
        self.note(Note::Promoting { register: register.clone(), epoch });
        self.act(Action::Promote { register, epoch });
    }
}
