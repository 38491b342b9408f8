//! Dying on purpose, at a chosen moment of an epoch: for tests and drills.
//!
//! With `ROMULUS_CRASH_AT=captured:12` in its environment, a primary sends
//! itself SIGKILL when it reaches that moment for the 12th time after its guest
//! was first protected, or handed to it: before that a kill loses the guest by
//! right. Without the variable this is one load of a flag.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use nix::sys::signal::{Signal, raise};

/// Moments in the life of an epoch, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The vCPUs and devices stand still.
    Paused,
    /// State and pages are copied; the guest is still paused.
    Captured,
    /// The guest runs again; nothing is encoded.
    Resumed,
    /// A chunk is encoded, and perhaps sent.
    Encoded,
    /// All is encoded; the close is about to be sent.
    Closing,
    /// The close is sent.
    Closed,
    /// Every backup has committed; nothing is released.
    Committed,
    /// Output was released.
    Released,
}

impl Moment {
    /// Every moment, in their order.
    pub const ALL: [Self; 8] = [
        Self::Paused,
        Self::Captured,
        Self::Resumed,
        Self::Encoded,
        Self::Closing,
        Self::Closed,
        Self::Committed,
        Self::Released,
    ];

    /// Its name in the variable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Captured => "captured",
            Self::Resumed => "resumed",
            Self::Encoded => "encoded",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Committed => "committed",
            Self::Released => "released",
        }
    }
}

/// The variable that names moment and count.
pub const VARIABLE: &str = "ROMULUS_CRASH_AT";

static CHOSEN: OnceLock<Option<(Moment, u64)>> = OnceLock::new();
static REACHED: AtomicU64 = AtomicU64::new(0);
static COUNTS: AtomicBool = AtomicBool::new(false);

/// The guest is protected: moments count from here on.
pub fn begin() {
    COUNTS.store(true, Ordering::Relaxed);
}

fn parse(text: &str) -> Option<(Moment, u64)> {
    let (name, count) = text.split_once(':')?;
    let moment = Moment::ALL.into_iter().find(|moment| moment.name() == name)?;
    Some((moment, count.parse().ok()?))
}

/// Dies here if this is the chosen moment.
pub fn reached(moment: Moment) {
    let chosen = CHOSEN.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let chosen = parse(&text);
        if chosen.is_none() {
            tracing::error!("{VARIABLE}={text} names no moment: it is ignored");
        }
        chosen
    });
    if let Some((wanted, count)) = chosen
        && *wanted == moment
        && COUNTS.load(Ordering::Relaxed)
        && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    {
        // Nothing can keep SIGKILL from arriving.
        let _ = raise(Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_and_a_count() {
        assert_eq!(parse("captured:12"), Some((Moment::Captured, 12)));
        for wrong in ["captured", "captured:", "never:1", ":1", ""] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
