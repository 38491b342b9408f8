//! Register and epoch protocol as an explicit-state model.
//!
//! [`protocol`] is the specification: what nodes may do and what must never be,
//! short enough to be read. [`checker`] visits every state of it. What the model
//! leaves out (pages, chunks, sessions, time, two processes of one name, which the
//! numbers of images tell apart) the simulator has; what the
//! simulator leaves to chance (every order of every message) the model has, for
//! small sizes.

pub mod checker;
pub mod protocol;
