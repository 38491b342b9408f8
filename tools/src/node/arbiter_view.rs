//! The arbiter as a node sees it: what its status says of it, and whether a
//! failover could be decided now.

use arbiter::Outcome;
use checkpoint::{Answer, Note};

use super::Sight;
use crate::control::ArbiterState;

/// What was last seen of the arbiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArbiterView {
    state: ArbiterState,
    /// It has lost the register, in words.
    lost: Option<String>,
    /// What the machine noted last of questions in vain.
    told: Option<Note>,
}

impl Default for ArbiterView {
    fn default() -> Self {
        Self { state: ArbiterState::Unknown, lost: None, told: None }
    }
}

impl ArbiterView {
    /// A look at it found this.
    pub fn on_sight(&mut self, sight: Sight) {
        if sight == Sight::Sound && self.hindrance().is_some() {
            self.told = None;
        }
        (self.state, self.lost) = match sight {
            Sight::Sound => (ArbiterState::Reachable, None),
            Sight::Lost(why) => (ArbiterState::Reachable, Some(why)),
            // What it lost does not come back with silence.
            Sight::Silent(_) => (ArbiterState::Unreachable, self.lost.take()),
        };
    }

    /// A question of the machine's was answered so.
    pub fn on_answer(&mut self, answer: &Answer) {
        self.state = match answer {
            Answer::Unsent | Answer::Unknown => ArbiterState::Unreachable,
            Answer::Outcome(_) | Answer::Register(_) | Answer::Refused(_) => {
                ArbiterState::Reachable
            }
        };
        if matches!(answer, Answer::Outcome(Outcome::Set(_))) {
            (self.lost, self.told) = (None, None);
        }
    }

    /// Whether `note` says only once more that a question was in vain. The
    /// machines note every try.
    #[must_use]
    pub fn is_told(&mut self, note: &Note) -> bool {
        match note {
            Note::ArbiterUnreachable | Note::ArbiterRefused { .. } | Note::ArbiterForgot { .. } => {
                self.told.replace(note.clone()).as_ref() == Some(note)
            }
            _ => false,
        }
    }

    /// Whether it answers.
    #[must_use]
    pub fn state(&self) -> ArbiterState {
        self.state
    }

    /// Why nobody could take over now, if that is the arbiter's doing.
    #[must_use]
    pub fn hindrance(&self) -> Option<&str> {
        let silent = (self.state == ArbiterState::Unreachable)
            .then_some("the arbiter does not answer: a failover would wait for it");
        self.lost.as_deref().or(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_arbiter_with_the_register_can_decide() {
        let mut view = ArbiterView::default();
        assert_eq!((view.state(), view.hindrance()), (ArbiterState::Unknown, None));
        view.on_sight(Sight::Lost("it is gone".to_owned()));
        assert_eq!((view.state(), view.hindrance()), (ArbiterState::Reachable, Some("it is gone")));
        view.on_answer(&Answer::Refused("no".to_owned()));
        view.on_sight(Sight::Silent("timed out".to_owned()));
        assert_eq!(
            (view.state(), view.hindrance()),
            (ArbiterState::Unreachable, Some("it is gone"))
        );
        view.on_sight(Sight::Sound);
        assert_eq!((view.state(), view.hindrance()), (ArbiterState::Reachable, None));
        view.on_answer(&Answer::Unsent);
        assert!(view.hindrance().is_some_and(|why| why.contains("does not answer")));
    }

    #[test]
    fn what_is_asked_in_vain_is_told_when_the_reason_changes() {
        let mut view = ArbiterView::default();
        let refused = Note::ArbiterRefused { why: "not you".to_owned() };
        assert!(!view.is_told(&Note::ArbiterUnreachable));
        assert!(view.is_told(&Note::ArbiterUnreachable));
        assert!(!view.is_told(&refused));
        assert!(view.is_told(&refused));
        assert!(!view.is_told(&Note::DoubtResolved) && !view.is_told(&Note::DoubtResolved));
        view.on_sight(Sight::Sound);
        assert!(view.is_told(&refused), "reading was never the trouble");
        view.on_answer(&Answer::Unsent);
        view.on_sight(Sight::Sound);
        assert!(!view.is_told(&refused), "it was away and is back");
    }
}
