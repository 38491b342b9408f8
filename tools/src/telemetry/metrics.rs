//! Figures: counters and gauges for Prometheus, percentiles for the status.
//!
//! Every handle is atomic or behind a short lock. Names are `romulus_*`, units
//! last; `docs/operations.md` lists them.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram as Distribution;
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::control::Percentiles;

/// Longest duration that a distribution tells apart, in microseconds: a minute.
const TIMING_US_MAX: u64 = 60_000_000;

/// A distribution of durations: a Prometheus histogram, and exact percentiles.
#[derive(Debug)]
pub struct Timing {
    buckets: Histogram,
    distribution: Mutex<Distribution<u64>>,
}

impl Timing {
    fn new() -> Self {
        // 10 us to 5 s in steps of 1.6.
        let buckets = Histogram::new(exponential_buckets(1e-5, 1.6, 28));
        let distribution = Distribution::new_with_max(TIMING_US_MAX, 3).expect("bounds are sound");
        Self { buckets, distribution: Mutex::new(distribution) }
    }

    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        self.buckets.observe(duration.as_secs_f64());
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.distribution.lock().expect("no holder panics").saturating_record(us);
    }

    /// What was counted since the process began.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let distribution = self.distribution.lock().expect("no holder panics");
        Percentiles {
            p50: distribution.value_at_quantile(0.5),
            p99: distribution.value_at_quantile(0.99),
            max: distribution.max(),
        }
    }
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident $prom:literal $($unit:ident)?;)*) => {
        /// All figures of a daemon.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $name: metrics!(@type $kind),)*
            /// Epochs whose bytes were counted: the divisor of the mean.
            shipped_epochs: AtomicU64,
            registry: Registry,
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("romulus");
                $(
                    let $name = metrics!(@new $kind);
                    let help = concat!($($help),+).trim().trim_end_matches('.');
                    metrics!(@register registry $kind $name $prom help $($unit)?);
                )*
                Self { $($name,)* shipped_epochs: AtomicU64::new(0), registry }
            }
        }
    };
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type timing) => { Timing };
    (@new counter) => { Counter::default() };
    (@new gauge) => { Gauge::default() };
    (@new timing) => { Timing::new() };
    (@register $registry:ident timing $name:ident $prom:literal $help:ident) => {
        $registry.register_with_unit($prom, $help, Unit::Seconds, $name.buckets.clone())
    };
    (@register $registry:ident $kind:ident $name:ident $prom:literal $help:ident) => {
        $registry.register($prom, $help, $name.clone())
    };
    (@register $registry:ident $kind:ident $name:ident $prom:literal $help:ident bytes) => {
        $registry.register_with_unit($prom, $help, Unit::Bytes, $name.clone())
    };
}

metrics! {
    /// Whether a failure now would lose nothing: 1 or 0.
    gauge protected "protected";
    /// The term in force.
    gauge term "term";
    /// The epoch that runs.
    gauge epoch "epoch";
    /// The last committed epoch.
    gauge committed "committed_epoch";
    /// Epochs ended and not committed.
    gauge behind_epochs "behind_epochs";
    /// Backups in sync.
    gauge in_sync "in_sync_backups";
    /// Output that waits for a commit.
    gauge held "held_output" bytes;
    /// Page content of uncommitted epochs in memory.
    gauge in_flight "in_flight" bytes;
    /// Epochs ended.
    counter epochs "epochs";
    /// Dirty pages captured in a pause.
    counter dirty_pages "dirty_pages";
    /// Dirty pages captured ahead of the pause.
    counter pages_ahead "pages_ahead";
    /// Bytes of the chunks of epochs as they are sent, counted once for all backups.
    counter wire "wire" bytes;
    /// Bytes of the chunks of seeds as they are sent, for each backup.
    counter seed_wire "seed_wire" bytes;
    /// Packets and console writes released.
    counter released "released_outputs";
    /// Frames of an older term that were refused.
    counter stale_frames "stale_frames";
    /// Chunks and epochs whose digest did not match, at the backup.
    counter corrupt_chunks "corrupt_chunks";
    /// Chunks that were asked for again, at the primary.
    counter chunks_resent "chunks_resent";
    /// Times that the guest was slowed because a bound was reached.
    counter back_pressure "back_pressure";
    /// Lost sessions with peers.
    counter sessions_lost "sessions_lost";
    /// Promotions of this node.
    counter promotions "promotions";
    /// Time in which no vCPU ran, per epoch.
    timing pause "pause";
    /// Time from the resume of the guest to the commit of the epoch.
    timing commit "commit";
    /// Time to harvest the dirty log, within the pause.
    timing harvest "harvest";
    /// What saving vCPU and device state took longer than the harvest, within the pause.
    timing save "save";
    /// Time to copy the dirty pages, within the pause.
    timing capture "capture";
    /// How long a write of the guest waited because its page was being captured.
    timing stall "write_stall";
    /// Time to encode an epoch, outside the pause.
    timing encode "encode";
    /// Time to apply an epoch to the image, at the backup.
    timing apply "apply";
    /// Time from the decision to promote to the running guest.
    timing promotion "promotion";
}

impl Metrics {
    /// This node is no primary any more: what only a primary has is zero.
    pub fn stand_by(&self) {
        let Self { epoch, behind_epochs, in_sync, held, in_flight, .. } = self;
        for gauge in [epoch, behind_epochs, in_sync, held, in_flight] {
            gauge.set(0);
        }
    }

    /// Counts the bytes of one epoch's chunks.
    pub fn record_wire(&self, bytes: u64) {
        self.wire.inc_by(bytes);
        self.shipped_epochs.fetch_add(1, Ordering::Relaxed);
    }

    /// Mean bytes of the chunks of an epoch.
    #[must_use]
    pub fn wire_bytes_per_epoch(&self) -> u64 {
        let epochs = self.shipped_epochs.load(Ordering::Relaxed);
        self.wire.get().checked_div(epochs).unwrap_or(0)
    }

    /// All figures in Prometheus' text form.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rendered_with_units_last() {
        let metrics = Metrics::default();
        metrics.record_wire(1000);
        metrics.record_wire(3000);
        metrics.held.set(77);
        metrics.chunks_resent.inc_by(5);
        metrics.pause.record(Duration::from_micros(250));
        metrics.pause.record(Duration::from_micros(750));
        assert_eq!(metrics.wire_bytes_per_epoch(), 2000);
        let percentiles = metrics.pause.percentiles();
        assert!((249..=251).contains(&percentiles.p50), "{percentiles:?}");
        assert!((749..=751).contains(&percentiles.max), "{percentiles:?}");
        let text = metrics.render();
        for line in [
            "romulus_wire_bytes_total 4000",
            "romulus_held_output_bytes 77",
            "romulus_pause_seconds_count 2",
            "romulus_chunks_resent_total 5",
            "# HELP romulus_protected Whether a failure now would lose nothing: 1 or 0.",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn without_epochs_there_is_no_mean() {
        assert_eq!(Metrics::default().wire_bytes_per_epoch(), 0);
    }
}
