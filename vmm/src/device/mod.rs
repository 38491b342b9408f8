//! What the guest sees beside its CPUs and memory.
