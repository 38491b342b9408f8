//! What the guest does while it is measured.

use clap::ValueEnum;

/// A way of dirtying memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Nothing but its timer
    Idle,
    /// A word in each of 8,192 pages a second
    Sparse,
    /// 8,192 whole pages a second, half of what they hold compressible
    Pages,
    /// Whole pages that no codec makes smaller, as fast as it can
    Busy,
}

impl Workload {
    /// As `probe.dirty=` says it; nothing for an idle guest.
    #[must_use]
    pub fn cmdline(self) -> &'static str {
        match self {
            Self::Idle => "",
            Self::Sparse => "probe.dirty=pages:8192,rate:8192,write:sparse,content:random",
            Self::Pages => "probe.dirty=pages:8192,rate:8192,write:page,content:compressible",
            Self::Busy => "probe.dirty=pages:16384,rate:100000000,write:page,content:random",
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Sparse => "sparse",
            Self::Pages => "pages",
            Self::Busy => "busy",
        }
    }

    /// Whether it does work whose rate tells how much the guest is slowed.
    #[must_use]
    pub fn works(self) -> bool {
        self != Self::Idle
    }
}

/// `pages` distinct pages in every `interval_ms`, one word each, with a fifth to
/// spare, as `probe.dirty=` and `probe.wsmax=` say it.
#[must_use]
pub fn steady(pages: u64, interval_ms: u64) -> String {
    let rate = pages * 1200 / interval_ms;
    format!("probe.wsmax={pages} probe.dirty=pages:{pages},rate:{rate},write:sparse,content:random")
}
