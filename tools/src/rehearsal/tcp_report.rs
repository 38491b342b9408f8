//! What the TCP client measures.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Gap, probe_report::Tally};
use crate::control::Percentiles;

/// What to write, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSettings {
    /// The redis server.
    pub target: SocketAddr,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Writes per second; 0: as soon as the one before is acknowledged.
    pub rate_per_s: u32,
    /// When to end; `None`: at SIGTERM, SIGINT or the end of stdin.
    pub duration: Option<Duration>,
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpReport {
    /// How long it ran, in milliseconds.
    pub elapsed_ms: u64,
    /// Writes that the server acknowledged.
    pub acknowledged: u64,
    /// Of these, those whose value was read again at the end.
    pub verified: u64,
    /// Acknowledged writes that the server does not know at the end. Must be 0.
    pub lost: u64,
    /// Acknowledged writes that have another value at the end. Must be 0.
    pub corrupt: u64,
    /// Connections beyond the first. Must be 0.
    pub reconnects: u64,
    /// From a write to its acknowledgement.
    pub latency_us: Percentiles,
    /// The longest time without an acknowledgement, between two of them.
    pub longest_gap: Gap,
}

impl TcpReport {
    /// Whether the server kept its word over one connection.
    #[must_use]
    pub fn sound(&self) -> bool {
        let whole = self.acknowledged > 0 && self.verified == self.acknowledged;
        whole && self.lost == 0 && self.corrupt == 0 && self.reconnects == 0
    }
}

/// What was found of the acknowledged writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Findings {
    pub(super) verified: u64,
    pub(super) lost: u64,
    pub(super) corrupt: u64,
}

pub(super) fn report(
    tally: Tally,
    findings: Findings,
    reconnects: u64,
    elapsed: Duration,
) -> TcpReport {
    let measured = tally.finish(elapsed);
    TcpReport {
        elapsed_ms: measured.elapsed_ms,
        acknowledged: measured.answers,
        verified: findings.verified,
        lost: findings.lost,
        corrupt: findings.corrupt,
        reconnects,
        latency_us: measured.latency_us,
        longest_gap: measured.longest_gap,
    }
}
