//! A witness who knows nothing of the implementation.
//!
//! It sees what can be seen from outside: which guest runs where, what its
//! memory is at a pause, what leaves a host, which content a backup is made to
//! keep, what its image is, what the register file says and what the arbiter
//! tells. From that alone it judges:
//!
//! | rule | as the witness sees it |
//! |---|---|
//! | output rule | what was said is known to every node that the register would let take over |
//! | one voice | a guest starts once for each grant of the right to run; who has lost it falls silent; nothing is said that a later guest does not know |
//! | all or nothing | a backup's image between two epochs is what the guest was at one pause, byte for byte |
//! | nothing forgotten | … all of it, whatever was tracked as dirty |
//! | order | commits rise by one; who takes over goes on from its last commit; a channel's output keeps its order |
//! | register | terms rise, are never told twice for different registers, and are durable when told |
//! | clients | are never told of something that was forgotten |
//! | liveness | after the faults the guest is protected again, within a bound |
//!
//! The first thing that is wrong is kept; the run ends with it.

mod images;
mod register;
mod voices;

use std::{fmt, time::Duration};

pub(super) use register::Durable;

use self::{images::Images, register::RegisterWatch, voices::Voices};
use super::plan::Plan;

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Output left before it was known to everybody who might take over.
    OutputRule,
    /// Two guests, or one without the right.
    OneVoice,
    /// An image that is no epoch.
    AllOrNothing,
    /// An image that lacks something.
    NothingForgotten,
    /// Something came before what goes before it.
    Order,
    /// The register went back, or was told too early.
    Register,
    /// A client was told of something that is forgotten.
    Client,
    /// Protection did not come back.
    Liveness,
}

/// A broken rule, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// What was seen.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.text)
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Witness {
    violation: Option<Violation>,
    register: RegisterWatch,
    voices: Voices,
    images: Images,
    /// How long somebody who has lost the right to run may still say what is
    /// known: the network could have delayed it as long.
    grace: Duration,
}

impl Witness {
    pub(super) fn new(plan: &Plan) -> Self {
        let timing = &plan.timing;
        // The longest way of an acknowledgement that was sent before the right
        // was lost, through a process that is slow but does not notice it.
        let silent = timing.drop_after.max(timing.detection) * 3 / 2;
        let unnoticed = timing.freeze_gap() + timing.release_age_max();
        Self {
            violation: None,
            register: RegisterWatch::default(),
            voices: Voices::default(),
            images: Images::default(),
            grace: silent + unnoticed * 3 / 2 + 4 * plan.latency_max(),
        }
    }

    pub(super) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub(super) fn object(&mut self, rule: Rule, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, text: text() });
        }
    }

    fn require(&mut self, holds: bool, rule: Rule, text: impl FnOnce() -> String) {
        if !holds {
            self.object(rule, text);
        }
    }

    /// Every image that the register would let take over must know all that was
    /// said.
    fn check_members(&mut self) {
        let Some(register) = self.register.in_file() else { return };
        let told = self.voices.told();
        let ignorant = self.images.replicas().find(|replica| {
            let member = register.counts_on(&replica.node, replica.image);
            member && !self.voices.knows(replica.source, replica.steps, told)
        });
        if let Some((node, steps)) = ignorant.map(|replica| (replica.node.clone(), replica.steps)) {
            self.object(Rule::OutputRule, || {
                format!("step {told} was told; {node} may take over and knows of step {steps}")
            });
        }
    }
}
