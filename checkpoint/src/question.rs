//! What a machine asks of the arbiter, and what may come back.

use arbiter::{ImageId, NodeId, Operation, Outcome, Register, Request, Stamp};

/// A question that the shell carries to the arbiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Compare and set.
    Change(Request),
    /// What does the register hold?
    Read,
}

impl Question {
    /// Whether it asks for just this register to be set. An arbiter that sets
    /// another one is not believed.
    pub(crate) fn asks_for(&self, register: &Register) -> bool {
        match self {
            Self::Change(request) => request.target().as_ref() == Ok(register),
            Self::Read => false,
        }
    }
}

/// What the shell brings back: exactly one for every question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Question::Change`].
    Outcome(Outcome),
    /// To [`Question::Read`].
    Register(Option<Register>),
    /// The question certainly never left: nothing happened.
    Unsent,
    /// No answer: it may have happened.
    Unknown,
    /// The arbiter refuses to decide, and says why: nothing happened.
    Refused(String),
}

/// Draws a fresh stamp for every request of a process, and a fresh number for
/// every image.
#[derive(Debug, Clone)]
pub(crate) struct Stamps {
    next: u64,
}

impl Stamps {
    /// Stamps from a random number of this process.
    pub(crate) fn new(random: u64) -> Self {
        Self { next: random }
    }

    pub(crate) fn request(
        &mut self,
        caller: &NodeId,
        expected: &Register,
        operation: Operation,
    ) -> Request {
        let stamp = Stamp::new(self.draw());
        Request { caller: caller.clone(), expected: Some(expected.clone()), operation, stamp }
    }

    pub(crate) fn image(&mut self) -> ImageId {
        ImageId::new(self.draw())
    }

    fn draw(&mut self) -> u64 {
        let drawn = self.next;
        self.next = self.next.wrapping_add(1);
        drawn
    }
}
