//! What a core is told while it gets no time: it waits, in order.

use std::{collections::VecDeque, time::Duration};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    waiting: VecDeque<T>,
    stalled_until: Duration,
}

impl<T> Inbox<T> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), stalled_until: Duration::ZERO }
    }

    /// The core gets no time until then.
    pub(super) fn stall(&mut self, until: Duration) {
        self.stalled_until = until;
    }

    pub(super) fn is_stalled(&self, now: Duration) -> bool {
        self.stalled_until > now
    }

    /// Gives the input back if the core may take it now.
    pub(super) fn offer(&mut self, now: Duration, input: T) -> Option<T> {
        if self.is_stalled(now) || !self.waiting.is_empty() {
            self.waiting.push_back(input);
            return None;
        }
        Some(input)
    }

    /// The next input that waited.
    pub(super) fn next(&mut self, now: Duration) -> Option<T> {
        if self.is_stalled(now) { None } else { self.waiting.pop_front() }
    }
}
