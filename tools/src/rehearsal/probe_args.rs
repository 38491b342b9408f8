//! From the command line's words to the client's settings.

use std::time::Duration;

use super::ProbeSettings;
use crate::cli::ProbeClientArgs;

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
