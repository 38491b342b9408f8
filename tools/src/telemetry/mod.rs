//! What the daemons say of themselves: logs, events, metrics, the console's tail.
//!
//! [`init`] sets up `tracing` on stderr. [`EventLog`] keeps the last events for
//! the control API and writes each to the log. [`EpochLog`] keeps what the last
//! epochs cost. [`Metrics`] are the figures of `/metrics` and the percentiles of
//! `/status`. All are shared by `Arc` and cheap
//! to touch from the epoch's path.

mod console_tail;
mod epoch_log;
mod event_log;
mod logging;
mod metrics;

pub use self::{
    console_tail::{ConsolePage, ConsoleTail},
    epoch_log::{EPOCHS_KEPT_MAX, EpochLog},
    event_log::{EVENTS_KEPT_MAX, EventLog, monotonic_us},
    logging::{LogFormat, init},
    metrics::{Metrics, Timing},
};
