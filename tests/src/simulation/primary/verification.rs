//! An operator compares memory. Mirrors the comparison of
//! `tools/src/primary/status.rs`: the digests of an epoch must be equal.

use checkpoint::{Epoch, chunk::Digest};

use crate::simulation::{witness::Rule, world::World};

/// The last digest of the guest's own memory.
#[derive(Debug, Default)]
pub(super) struct Verification {
    own: Option<(Epoch, Digest)>,
}

impl Verification {
    pub(super) fn of_primary(&mut self, epoch: Epoch, digest: Digest) {
        self.own = Some((epoch, digest));
    }

    pub(super) fn of_backup(&self, world: &mut World, epoch: Epoch, digest: Digest) {
        let Some((_, own)) = self.own.filter(|(compared, _)| *compared == epoch) else { return };
        world.report.verifications += 1;
        if own != digest {
            world.witness.object(Rule::NothingForgotten, || {
                format!("an operator finds that memory at epoch {epoch} differs")
            });
        }
    }
}
