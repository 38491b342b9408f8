//! What the world saw, and the invariants that it holds the cluster to.
//!
//! Knows nothing of the machines: only which node said what, and which work
//! every incarnation of the guest began with.

use arbiter::{NodeId, Term};

/// The world's memory.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// The most work that any output spoke of.
    told: u64,
    outputs: u64,
    /// The highest term under which anybody spoke, and who did.
    voice: Option<(Term, NodeId)>,
}

impl Witness {
    /// `node` says, under `term`, that it knows of `work`.
    ///
    /// # Panics
    ///
    /// If somebody with a higher term, or somebody else with the same term,
    /// has spoken before: two voices.
    pub(super) fn hear(&mut self, node: &NodeId, term: Term, work: u64) {
        if let Some((highest, voice)) = &self.voice {
            assert!(term >= *highest, "{node} spoke under term {term} after term {highest}");
            assert!(term > *highest || node == voice, "{node} and {voice} spoke under {term}");
        }
        self.voice = Some((term, node.clone()));
        self.told = self.told.max(work);
        self.outputs += 1;
    }

    /// `node` goes on with a guest that knows of `work`.
    ///
    /// # Panics
    ///
    /// If the world was told of more: something is forgotten.
    pub(super) fn promoted(&self, node: &NodeId, work: u64) {
        assert!(work >= self.told, "{node} knows of work {work}, but {} was told", self.told);
    }

    pub(super) fn outputs(&self) -> u64 {
        self.outputs
    }
}
