//! What happens to the guest, and what the configuration says to do about it.
//!
//! | event | setting | by default |
//! |---|---|---|
//! | it asks for a restart | `vm.on_reboot` | it restarts in its VM; epochs go on |
//! | a triple fault | `vm.on_triple_fault` | the same, as on a PC; again and again is a failure |
//! | its kernel panics | `vm.on_panic` | an event; the guest does what `panic=` tells it |
//! | it turns itself off | | it ends, and everybody stands down |

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use vmm::device::{Panic, power::ResetCause};

use super::core::Core;
use crate::{
    config::{OnPanic, OnReboot},
    control::{EventKind, Severity},
    node::GuestEvent,
};

/// A guest that triple-faults so often within [`FAULTS_WITHIN`] does nothing else.
const FAULTS_MAX: usize = 5;
const FAULTS_WITHIN: Duration = Duration::from_secs(60);

/// So many checkpoints fail in a row before the guest is left to its backups: half a
/// minute, as the machine waits longer and longer between them.
const CUTS_FAILED_MAX: u32 = 30;

impl Core {
    pub(super) fn on_guest_event(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Ended { reason, failed } => self.finish(reason, failed),
            GuestEvent::HostFailed { reason } => self.on_host_failure(reason),
            GuestEvent::WantsRestart { cause: ResetCause::TripleFault } => self.on_triple_fault(),
            GuestEvent::WantsRestart { cause } => {
                self.tell_of(Severity::Info, EventKind::GuestRestarting, restarting(cause));
                match self.host.config.vm.on_reboot {
                    OnReboot::Restart => self.cutter.restart(),
                    OnReboot::Stop => self.finish("it asked for a restart".into(), false),
                }
            }
            GuestEvent::Panicked { panic } => self.on_panic(panic),
        }
    }

    fn on_triple_fault(&mut self) {
        let cause = ResetCause::TripleFault;
        self.tell_of(Severity::Warning, EventKind::GuestRestarting, restarting(cause));
        if self.host.config.vm.on_triple_fault == OnReboot::Stop {
            return self.finish("a triple fault".into(), true);
        }
        if self.faults.are_too_many(self.received) {
            let seconds = FAULTS_WITHIN.as_secs();
            let reason = format!(
                "{FAULTS_MAX} triple faults within {seconds} s: the guest does nothing but restart"
            );
            return self.finish(reason, true);
        }
        self.cutter.restart();
    }

    fn on_panic(&mut self, panic: Panic) {
        let next = match panic {
            Panic::Stopped => "",
            Panic::CrashKernel => "; its crash kernel takes over",
        };
        let text = format!("the guest's kernel has panicked{next}");
        self.tell_of(Severity::Error, EventKind::GuestPanicked, text);
        match (self.host.config.vm.on_panic, panic) {
            // A crash kernel has work to do, and restarts by itself.
            (OnPanic::Report, _) | (_, Panic::CrashKernel) => {}
            (OnPanic::Restart, Panic::Stopped) => self.cutter.restart(),
            (OnPanic::Stop, Panic::Stopped) => self.finish("its kernel has panicked".into(), true),
        }
    }

    pub(super) fn on_restarted(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                let text = "the guest begins anew, in the same VM".to_owned();
                self.tell_of(Severity::Info, EventKind::GuestStarted, text);
            }
            Err(why) => self.finish(format!("it cannot be restarted: {why}"), true),
        }
    }

    /// This host cannot run the guest any more, or cannot tell how it stands. With
    /// backups in sync that is no end of the guest.
    pub(super) fn on_host_failure(&mut self, why: String) {
        if self.machine.register().in_sync.is_empty() {
            self.finish(why, true);
        } else {
            self.host_failure = Some(why);
        }
    }

    pub(super) fn on_cut_failed(&mut self, why: &str) {
        self.cuts_failed += 1;
        if self.cuts_failed >= CUTS_FAILED_MAX {
            let reason = format!("{CUTS_FAILED_MAX} checkpoints in a row have failed: {why}");
            self.on_host_failure(reason);
        }
    }

    /// Stops, and tells the backups nothing: what they have committed is all that
    /// the guest has said, and silence is what they take over after.
    pub(super) fn leave_to_backups(&mut self, why: &str) {
        self.guest.outlet().fence();
        if let Some(copier) = &self.copier {
            copier.abandon();
        }
        let _ = self.cutter.stop();
        self.answer_handover(Err("this host cannot run the guest any more"));
        let text = format!("this host has failed, and leaves the guest to its backups: {why}");
        self.tell_of(Severity::Error, EventKind::GuestStopped, text);
    }

    fn tell_of(&self, severity: Severity, kind: EventKind, text: String) {
        self.host.telemetry.events.record(severity, kind, text, serde_json::Value::Null);
    }
}

fn restarting(cause: ResetCause) -> String {
    format!("the guest restarts, by {cause}")
}

/// When the guest has triple-faulted of late.
#[derive(Debug, Default)]
pub(super) struct RecentFaults(VecDeque<Instant>);

impl RecentFaults {
    /// Notes one more, and tells whether the guest should be given up.
    fn are_too_many(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        while self.0.front().is_some_and(|at| now.duration_since(*at) > FAULTS_WITHIN) {
            self.0.pop_front();
        }
        self.0.len() >= FAULTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_many_faults_in_a_short_time_are_too_many() {
        let (mut faults, begin) = (RecentFaults::default(), Instant::now());
        let mut at = |second| faults.are_too_many(begin + Duration::from_secs(second));
        assert!((0..20).all(|n| !at(n * 16)), "every 16 s");
        assert_eq!([400, 401, 402, 403, 404].map(at), [false, false, false, false, true]);
    }
}
