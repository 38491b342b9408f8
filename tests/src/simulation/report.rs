//! What a run came to.

use std::{collections::BTreeMap, fmt, ops::AddAssign};

macro_rules! counts {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Counts of a run, or of several.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Report {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Faults by kind.
            pub faults: BTreeMap<&'static str, u64>,
            /// The journal's digest.
            pub digest: u64,
        }

        impl AddAssign for Report {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
                for (fault, count) in other.faults {
                    *self.faults.entry(fault).or_default() += count;
                }
                self.digest ^= other.digest;
            }
        }

        impl fmt::Display for Report {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(f, "{} {}, ", self.$name, stringify!($name).replace('_', " "))?;)*
                write!(f, "faults:")?;
                for (fault, count) in &self.faults {
                    write!(f, " {count} {fault}")?;
                }
                Ok(())
            }
        }
    };
}

counts! {
    /// Things that happened.
    steps,
    /// Virtual time, in milliseconds.
    millis,
    /// Epochs that were cut.
    epochs,
    /// Epochs that a backup committed.
    commits,
    /// Pages sent ahead of their epoch's end.
    pages_ahead,
    /// Pages copied before their epoch's pause that were still right then.
    pages_early,
    /// Pages copied after their epoch's pause.
    pages_protected,
    /// Pages copied because somebody waited to write them.
    pages_rescued,
    /// Images compared with what the guest's memory was.
    images,
    /// Outputs that left.
    outputs,
    /// Replies that clients had waited for.
    replies,
    /// Guests that were started at a backup.
    promotions,
    /// Guests that booted afresh after the first.
    reboots,
    /// Planned handovers that were done.
    handovers,
    /// Nodes that were fenced.
    fences,
    /// Changes of the register.
    terms,
    /// Times that a process doubted its right to run.
    doubts,
    /// Chunks that were damaged.
    damaged_chunks,
    /// Times that a register file was found after its arbiter had died.
    recoveries,
    /// Memory digests that were compared by an operator.
    verifications,
    /// Runs at whose end the guest was protected.
    protected,
    /// Runs that lost every copy of the guest, by more faults than are promised
    /// to be survived.
    lost,
}
