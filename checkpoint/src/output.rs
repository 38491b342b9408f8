//! Output commit: what the guest said, held until its epoch is committed.
//!
//! ```text
//!            emit                 seal(e)                release(e)
//!   guest ─────────▶ open epoch ──────────▶ epochs ≤ e ─────────────▶ ready ─▶ world
//!                                                       fence: all of it is dropped
//! ```
//!
//! Without a backup ([`Mode::Passing`]) output is ready at once, behind
//! whatever was ready before. Order is kept throughout.
//!
//! Invariant: nothing of epoch *e* is ready before `release` was called with
//! an epoch of at least *e*, or before the mode changed to passing, which the
//! primary does only by right of the arbiter.

use std::{collections::VecDeque, sync::Arc};

use crate::Epoch;

/// Through which device output leaves the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The serial console.
    Console,
    /// The network device of this index.
    Network(u8),
}

/// One packet, or some console bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where it leaves.
    pub channel: Channel,
    /// What it says.
    pub payload: Arc<[u8]>,
}

/// What an output costs beside its payload, roughly. A guest may say a byte at a
/// time, and be stopped by a bound all the same.
const OUTPUT_BYTES: usize = 64;

impl Output {
    /// Bytes that it takes while it is held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.payload.len() + OUTPUT_BYTES
    }
}

/// What happens to output that the guest emits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It leaves at once: no backup has to know of it.
    Passing,
    /// It waits for the commit of its epoch.
    Holding,
    /// It is dropped: this node may not speak any more.
    Fenced,
}

/// The queue between the guest and the world.
#[derive(Debug)]
pub struct HeldOutput {
    mode: Mode,
    /// Emitted since the last seal.
    open: Vec<Output>,
    /// Sealed and not yet released, epochs rising.
    sealed: VecDeque<(Epoch, Vec<Output>)>,
    ready: VecDeque<Output>,
    held_bytes: usize,
}

impl HeldOutput {
    /// An empty queue.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            open: Vec::new(),
            sealed: VecDeque::new(),
            ready: VecDeque::new(),
            held_bytes: 0,
        }
    }

    /// The mode in force.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Bytes of what waits for a commit.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Takes what the guest says. Returns whether something is ready to leave.
    pub fn emit(&mut self, output: Output) -> bool {
        match self.mode {
            Mode::Passing => self.ready.push_back(output),
            Mode::Holding => {
                self.held_bytes += output.held_bytes();
                self.open.push(output);
            }
            Mode::Fenced => {}
        }
        !self.ready.is_empty()
    }

    /// Whether nothing was emitted since the last seal.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.open.is_empty()
    }

    /// Ends `epoch`: what was emitted since the last seal belongs to it.
    /// Called while the guest is paused. Returns what it said.
    ///
    /// # Panics
    ///
    /// If epochs do not rise.
    pub fn seal(&mut self, epoch: Epoch) -> &[Output] {
        if let Some((last, _)) = self.sealed.back() {
            assert!(*last < epoch, "epoch {epoch} was sealed after epoch {last}");
        }
        self.sealed.push_back((epoch, std::mem::take(&mut self.open)));
        &self.sealed.back().expect("pushed above").1
    }

    /// Every in-sync backup has committed `through`: its output, and that of
    /// the epochs before it, is ready.
    pub fn release(&mut self, through: Epoch) {
        while self.sealed.front().is_some_and(|(epoch, _)| *epoch <= through) {
            let (_, outputs) = self.sealed.pop_front().expect("looked at above");
            self.make_ready(outputs);
        }
    }

    /// From now on output waits for its epoch's commit.
    pub fn hold(&mut self) {
        if self.mode == Mode::Passing {
            self.mode = Mode::Holding;
        }
    }

    /// The arbiter has said that this node runs alone: everything held is
    /// ready, and what comes leaves at once.
    pub fn pass(&mut self) {
        if self.mode == Mode::Holding {
            self.mode = Mode::Passing;
            while let Some((_, outputs)) = self.sealed.pop_front() {
                self.make_ready(outputs);
            }
            let open = std::mem::take(&mut self.open);
            self.make_ready(open);
        }
    }

    /// This node may not speak any more: everything is dropped, for good.
    pub fn fence(&mut self) {
        *self = Self::new(Mode::Fenced);
    }

    /// The next output that may leave.
    pub fn take_ready(&mut self) -> Option<Output> {
        self.ready.pop_front()
    }

    fn make_ready(&mut self, outputs: Vec<Output>) {
        self.held_bytes -= outputs.iter().map(Output::held_bytes).sum::<usize>();
        self.ready.extend(outputs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Output {
        Output { channel: Channel::Console, payload: text.as_bytes().into() }
    }

    fn ready(held: &mut HeldOutput) -> String {
        let all = std::iter::from_fn(|| held.take_ready());
        all.map(|output| String::from_utf8(output.payload.to_vec()).unwrap()).collect()
    }

    #[test]
    fn output_waits_for_its_epoch() {
        let mut held = HeldOutput::new(Mode::Holding);
        held.emit(word("a"));
        assert_eq!(held.seal(Epoch::new(5)).len(), 1);
        held.emit(word("b"));
        held.seal(Epoch::new(6));
        held.emit(word("c"));
        held.release(Epoch::new(4));
        assert_eq!(ready(&mut held), "");
        held.release(Epoch::new(5));
        assert_eq!(ready(&mut held), "a");
        held.release(Epoch::new(6));
        assert_eq!(ready(&mut held), "b");
        assert_eq!(held.held_bytes(), word("c").held_bytes());
    }

    #[test]
    fn a_byte_at_a_time_counts_as_what_it_costs() {
        let mut held = HeldOutput::new(Mode::Holding);
        for _ in 0..1000 {
            held.emit(word("\n"));
        }
        let costs = 1000 * (size_of::<Output>() + 1);
        assert!(held.held_bytes() >= costs, "{} bytes", held.held_bytes());
        held.seal(Epoch::new(1));
        held.release(Epoch::new(1));
        assert_eq!(held.held_bytes(), 0);
    }

    #[test]
    fn going_solo_keeps_the_order() {
        let mut held = HeldOutput::new(Mode::Holding);
        held.emit(word("a"));
        held.seal(Epoch::new(1));
        held.emit(word("b"));
        held.pass();
        assert!(held.emit(word("c")));
        assert_eq!(ready(&mut held), "abc");
        assert_eq!(held.held_bytes(), 0);
    }

    #[test]
    fn a_fenced_node_says_nothing_more() {
        let mut held = HeldOutput::new(Mode::Passing);
        held.emit(word("a"));
        held.hold();
        held.emit(word("b"));
        held.fence();
        held.pass();
        held.emit(word("c"));
        held.seal(Epoch::new(1));
        held.release(Epoch::new(9));
        assert_eq!(ready(&mut held), "");
        assert_eq!(held.mode(), Mode::Fenced);
    }
}
