//! From the command line's words to the clients' settings.

use std::time::Duration;

use super::{ProbeSettings, TcpSettings};
use crate::cli::{ProbeClientArgs, TcpClientArgs};

impl From<&ProbeClientArgs> for ProbeSettings {
    fn from(arguments: &ProbeClientArgs) -> Self {
        Self {
            target: arguments.target,
            lanes: arguments.first_lane..arguments.first_lane + arguments.lanes,
            rate_per_s: arguments.rate,
            retransmit: Duration::from_millis(arguments.retransmit_ms),
            duration: arguments.duration_ms.map(Duration::from_millis),
            checks_tsc: !arguments.no_tsc_check,
        }
    }
}

impl From<&TcpClientArgs> for TcpSettings {
    fn from(arguments: &TcpClientArgs) -> Self {
        Self {
            target: arguments.target,
            value_bytes: arguments.value_bytes as usize,
            rate_per_s: arguments.rate,
            duration: arguments.duration_ms.map(Duration::from_millis),
        }
    }
}
