//! What operators ask of a running primary, and the answers.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use arbiter::{NodeId, Register};
use checkpoint::{
    Epoch,
    chunk::Digest,
    primary::{Command, Stage},
};
use tokio::sync::oneshot;

use super::{core::Core, troubles::Trouble};
use crate::{
    control::{
        Accepted, Behind, ControlRequest, EventKind, Features, GuestState, PeerState, PeerStatus,
        Protection, Refused, RefusedCounts, RefusedKind, Reply, Role, Severity, Status, Typed,
        VerifiedBackup, VerifyReport,
    },
    daemon::Telemetry,
    telemetry::Metrics,
};

/// Comparisons of memory that are under way.
#[derive(Debug, Default)]
pub(super) struct Verification {
    waiting: Vec<Reply<VerifyReport>>,
    expected: Vec<NodeId>,
    pages: u64,
    primary: Option<(Epoch, Digest)>,
    backups: BTreeMap<NodeId, Digest>,
}

impl Verification {
    fn ask(&mut self, reply: Reply<VerifyReport>, expected: Vec<NodeId>, pages: u64) -> bool {
        let first = self.waiting.is_empty();
        self.waiting.retain(|reply| !reply.is_closed());
        self.waiting.push(reply);
        let stale = !first && self.waiting.len() == 1;
        if first || stale {
            *self = Self {
                waiting: std::mem::take(&mut self.waiting),
                expected,
                pages,
                ..Self::default()
            };
        }
        first || stale
    }

    #[must_use]
    pub(super) fn of_primary(&mut self, epoch: Epoch, digest: Digest) -> Option<VerifyReport> {
        self.primary = Some((epoch, digest));
        self.answer()
    }

    #[must_use]
    pub(super) fn of_backup(
        &mut self,
        backup: NodeId,
        epoch: Epoch,
        digest: Digest,
    ) -> Option<VerifyReport> {
        self.primary.filter(|(compared, _)| *compared == epoch)?;
        self.backups.insert(backup, digest);
        self.answer()
    }

    /// A backup that was to be compared has gone.
    pub(super) fn lost(&mut self, backup: &NodeId) {
        if !self.expected.contains(backup) || self.backups.contains_key(backup) {
            return;
        }
        for reply in std::mem::take(self).waiting {
            let error = format!("{backup} was lost before its memory was compared");
            let remedy =
                "wait until `romulus status` says that the guest is protected, and try again";
            let _ = reply.send(Err(Refused::new(RefusedKind::Failed, error, remedy)));
        }
    }

    /// Answers everybody who waits, once all is there to compare.
    fn answer(&mut self) -> Option<VerifyReport> {
        let (epoch, digest) = self.primary?;
        if !self.expected.iter().all(|backup| self.backups.contains_key(backup)) {
            return None;
        }
        let hex = |digest: &Digest| digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let report = VerifyReport {
            equal: self.backups.values().all(|theirs| *theirs == digest),
            epoch: epoch.get(),
            pages: self.pages,
            digest: hex(&digest),
            backups: self
                .backups
                .iter()
                .map(|(node, digest)| VerifiedBackup { node: node.clone(), digest: hex(digest) })
                .collect(),
        };
        for reply in std::mem::take(self).waiting {
            let _ = reply.send(Ok(report.clone()));
        }
        Some(report)
    }
}

impl Core {
    pub(super) fn on_control(&mut self, request: ControlRequest) {
        request.record(&self.host.telemetry.events);
        match request {
            ControlRequest::Status(reply) => drop(reply.send(Ok(self.status()))),
            ControlRequest::Failover { take_over: true, reply, .. } => {
                let remedy = "leave out `--take-over`: the guest is handed over by plan";
                let error = "this node is the primary, it has nothing to take over";
                let _ = reply.send(Err(Refused::new(RefusedKind::State, error, remedy)));
            }
            ControlRequest::Failover { to, reply, .. } => self.on_failover(to, reply),
            ControlRequest::Protect { backup, address, reply } => {
                self.on_protect(backup, address, reply);
            }
            ControlRequest::Unprotect { backup, reply } => self.on_unprotect(backup, reply),
            ControlRequest::Verify(reply) => self.on_verify(reply),
            ControlRequest::ConsoleInput { bytes, reply } => {
                let taken = self.guest.console_input(&bytes);
                let message = format!("the console took {taken} of {} bytes", bytes.len());
                let _ = reply.send(Ok(Typed { taken, message }));
            }
            ControlRequest::Shutdown { force, reply } => self.on_shutdown(force, reply),
            ControlRequest::Stop { reason, reply } => self.on_stop(&reason, reply),
        }
    }

    fn in_sync(&self) -> Vec<NodeId> {
        self.machine
            .backups()
            .filter(|(_, stage, _, connected)| *stage == Stage::InSync && *connected)
            .map(|(node, ..)| node.clone())
            .collect()
    }

    fn on_failover(&mut self, to: Option<NodeId>, reply: Reply<Accepted>) {
        if self.machine.draining() {
            let remedy = "see `romulus events` for how it ends";
            let error = "the guest is already being handed over, or has ended";
            let _ = reply.send(Err(Refused::new(RefusedKind::State, error, remedy)));
            return;
        }
        let in_sync = self.in_sync();
        let best = to.clone().or_else(|| in_sync.first().cloned());
        match best.filter(|to| in_sync.contains(to)) {
            Some(to) => {
                self.handover = Some(reply);
                self.command(Command::HandOver { to, stand_by: true });
            }
            None => {
                let error = match to {
                    Some(to) => format!("backup {to} is not in sync"),
                    None => "no backup is in sync".to_owned(),
                };
                let remedy = "wait until `romulus status` says that the guest is protected";
                let _ = reply.send(Err(Refused::new(RefusedKind::State, error, remedy)));
            }
        }
    }

    pub(super) fn on_handover_given_up(&mut self, text: &str) {
        if let Some(reply) = self.handover.take() {
            let remedy =
                "wait until `romulus status` says that the guest is protected, and try again";
            let _ = reply.send(Err(Refused::new(RefusedKind::Failed, text, remedy)));
        }
    }

    /// Tells who waits for a handover how this primary ended.
    pub(super) fn answer_handover(&mut self, end: Result<&Register, &str>) {
        let Some(reply) = self.handover.take() else { return };
        let _ = reply.send(match end {
            Ok(register) => {
                let Register { primary, term, .. } = register;
                Ok(Accepted { message: format!("{primary} runs the guest as of term {term}") })
            }
            Err(why) => {
                let remedy = "see `romulus status` on the other nodes";
                Err(Refused::new(RefusedKind::Failed, why, remedy))
            }
        });
    }

    fn on_protect(
        &mut self,
        backup: Option<NodeId>,
        address: Option<std::net::SocketAddr>,
        reply: Reply<Accepted>,
    ) {
        if let Some(disk) = self.host.config.disks.iter().find(|disk| !disk.read_only) {
            let error = format!(
                "the guest may write disk {}, and writes are not replicated yet",
                disk.serial
            );
            let remedy = "start the guest with `read_only = true` for all of its [[disks]]";
            let _ = reply.send(Err(Refused::new(RefusedKind::State, error, remedy)));
            return;
        }
        if let (Some(backup), Some(address)) = (&backup, address) {
            self.addresses.insert(backup.clone(), address);
        }
        let chosen: Vec<NodeId> = match backup {
            Some(backup) => vec![backup],
            None => self.addresses.keys().cloned().collect(),
        };
        if let Some(unknown) = chosen.iter().find(|backup| !self.addresses.contains_key(*backup)) {
            let error = format!("no address is known for {unknown}");
            let remedy = "name it with --address, or in [[peers]]";
            let _ = reply.send(Err(Refused::new(RefusedKind::Unknown, error, remedy)));
            return;
        }
        if chosen.is_empty() {
            let remedy = "name a backup with --backup and --address, or in [[peers]]";
            let refused = Refused::new(RefusedKind::Unknown, "no backup is configured", remedy);
            let _ = reply.send(Err(refused));
            return;
        }
        let names: Vec<_> = chosen.iter().map(NodeId::as_str).collect();
        accept(reply, format!("seeding {} as soon as it answers", names.join(", ")));
        for backup in chosen {
            self.command(Command::Protect { backup });
        }
    }

    fn on_unprotect(&mut self, backup: Option<NodeId>, reply: Reply<Accepted>) {
        let known: Vec<NodeId> = self.machine.backups().map(|(node, ..)| node.clone()).collect();
        let chosen: Vec<NodeId> = match backup {
            Some(backup) if known.contains(&backup) => vec![backup],
            Some(unknown) => {
                let error = format!("{unknown} is no backup of this guest");
                let remedy = "`romulus status` lists its backups";
                let _ = reply.send(Err(Refused::new(RefusedKind::Unknown, error, remedy)));
                return;
            }
            None => known,
        };
        accept(reply, "asking the arbiter to go on without".to_owned());
        for backup in chosen {
            self.command(Command::Unprotect { backup });
        }
    }

    fn on_verify(&mut self, reply: Reply<VerifyReport>) {
        if self.machine.draining() {
            // The machine would not take it up, and nobody would ever answer.
            let remedy = "ask the node that runs the guest afterwards";
            let error = "the guest is being handed over, or has ended";
            let _ = reply.send(Err(Refused::new(RefusedKind::State, error, remedy)));
            return;
        }
        let in_sync = self.in_sync();
        if in_sync.is_empty() {
            let remedy = "wait until `romulus status` says that the guest is protected";
            let refused = Refused::new(RefusedKind::State, "no backup is in sync", remedy);
            let _ = reply.send(Err(refused));
            return;
        }
        if self.verification.ask(reply, in_sync, self.guest.layout().page_count()) {
            self.command(Command::Verify);
        }
    }

    /// An operator wants the guest to be off, on all nodes.
    fn on_shutdown(&mut self, force: bool, reply: Reply<Accepted>) {
        if force {
            accept(reply, "turning the guest off; its backups stand down".to_owned());
            self.finish("turned off by its operator".to_owned(), false);
        } else {
            self.guest.press_power_button();
            let message = "the power button is pressed; the guest decides what to do about it";
            accept(reply, message.to_owned());
        }
    }

    /// A signal or an operator ends the process: by handing over, if somebody
    /// can take the guest.
    fn on_stop(&mut self, reason: &str, reply: Reply<Accepted>) {
        let successor = self.in_sync().into_iter().next();
        if self.machine.draining() || successor.is_some() {
            accept(reply, "stopping as soon as the guest is handed over".to_owned());
            self.stopping = true;
            self.stop_if_possible();
        } else {
            accept(reply, "stopping the guest".to_owned());
            self.command(Command::Finish { reason: format!("stopped: {reason}") });
        }
    }

    /// Hands over to whoever is in sync, again if a try was given up: a guest
    /// that somebody could take is not lost to a signal. A second signal ends
    /// the process at once.
    pub(super) fn stop_if_possible(&mut self) {
        if self.stopping
            && !self.machine.draining()
            && let Some(to) = self.in_sync().into_iter().next()
        {
            self.command(Command::HandOver { to, stand_by: false });
        }
    }

    pub(super) fn record_start(&self) {
        let (epoch, term) = (self.machine.epoch(), self.machine.register().term);
        self.event(EventKind::GuestStarted, format!("the guest runs, epoch {epoch}, term {term}"));
    }

    pub(super) fn record_verification(&self, report: Option<VerifyReport>) {
        let Some(report) = report else { return };
        let VerifyReport { epoch, pages, .. } = report;
        let (severity, kind, verdict) = if report.equal {
            (Severity::Info, EventKind::VerifyFinished, "equal on all sides")
        } else {
            (Severity::Error, EventKind::VerifyFailed, "DIFFERENT on a backup")
        };
        let text = format!("memory at epoch {epoch} ({pages} pages) is {verdict}");
        self.host.telemetry.events.record(severity, kind, text, serde_json::Value::Null);
    }

    fn event(&self, kind: EventKind, text: String) {
        let events = &self.host.telemetry.events;
        events.record(Severity::Info, kind, text, serde_json::Value::Null);
    }

    /// Keeps the gauges current.
    pub(super) fn gauge(&mut self) {
        let metrics: &Metrics = &self.host.telemetry.metrics;
        let register = self.machine.register();
        metrics.term.set(register.term.get() as i64);
        metrics.epoch.set(self.machine.epoch().get() as i64);
        metrics.committed.set(self.machine.released().get() as i64);
        metrics.behind_epochs.set(self.machine.in_flight() as i64);
        metrics.in_flight.set(self.machine.bytes_in_flight() as i64);
        let released_frames = self.guest.outlet().stats().released_frames;
        metrics.released.inc_by(released_frames - self.released_frames);
        self.released_frames = released_frames;
        metrics.in_sync.set(register.in_sync.len() as i64);
        let protected = matches!(self.protection(), Protection::Protected);
        metrics.protected.set(i64::from(protected));
    }

    fn protection(&self) -> Protection {
        let unprotected = |reason: &str| Protection::Unprotected { reason: reason.to_owned() };
        if self.machine.in_doubt() {
            return unprotected("this process stood still; its right to run is being confirmed");
        }
        if let Some(why) = self.arbiter.hindrance() {
            return unprotected(why);
        }
        if !self.in_sync().is_empty() {
            return Protection::Protected;
        }
        if !self.machine.register().in_sync.is_empty() {
            return unprotected(
                "no backup in sync is connected; the arbiter is asked to go on without",
            );
        }
        let seeding = self.machine.backups().find(|(_, stage, ..)| {
            matches!(stage, Stage::Seeding { .. } | Stage::Preparing | Stage::Joining { .. })
        });
        match seeding {
            Some((node, ..)) => unprotected(&format!("solo: backup {node} is being seeded")),
            None if self.addresses.is_empty() => unprotected("solo: no backup is configured"),
            None if self.machine.backups().any(|(.., connected)| connected) => {
                unprotected("solo: no backup stages the guest's epochs: see `romulus events`")
            }
            None => match self.troubles.words() {
                Some(words) => unprotected(&format!("solo: {words}")),
                None => unprotected("solo: no backup answers"),
            },
        }
    }

    fn status(&self) -> Status {
        let register = self.machine.register();
        let metrics = &self.host.telemetry.metrics;
        let oldest = self.in_flight.front().map(|cut| cut.since.elapsed()).unwrap_or_default();
        let outlet = self.guest.outlet().stats();
        Status {
            protection: self.protection(),
            vm: self.host.config.vm.name.clone(),
            node: self.host.config.node.name.clone(),
            role: Role::Primary,
            guest: if self.guest_held { GuestState::Paused } else { GuestState::Running },
            term: register.term.get(),
            epoch: self.machine.epoch().get(),
            committed: self.machine.released().get(),
            applied: self.machine.applied_by_all().unwrap_or(Epoch::ZERO).get(),
            behind: Behind {
                epochs: self.machine.in_flight() as u64,
                ms: oldest.as_millis() as u64,
            },
            in_sync: register.in_sync.keys().cloned().collect(),
            peers: self.peer_statuses(),
            held_bytes: outlet.held_bytes as u64,
            arbiter: self.arbiter.state(),
            pause_us: metrics.pause.percentiles(),
            commit_us: metrics.commit.percentiles(),
            wire_bytes_per_epoch: metrics.wire_bytes_per_epoch(),
            epochs: metrics.epochs.get(),
            refused: RefusedCounts {
                stale_frames: metrics.stale_frames.get(),
                corrupt_chunks: metrics.corrupt_chunks.get(),
            },
            features: Features {
                dirty_tracking: self.guest.dirty_tracking(),
                kvm_backend: self.guest.backend(),
                jail: self.host.jail.status(),
            },
        }
    }

    fn peer_statuses(&self) -> Vec<PeerStatus> {
        self.addresses
            .iter()
            .map(|(name, address)| {
                let backup = self.machine.backups().find(|(node, ..)| *node == name);
                let trouble = self.troubles.of(name);
                let state = backup.map_or(PeerState::Idle, |(_, stage, _, connected)| {
                    peer_state(stage, connected, trouble)
                });
                let address = self.peers.address(name).unwrap_or(*address);
                let seed = self.seeds.get(name).map(|seed| seed.progress.get());
                let reason = trouble.map(|trouble| trouble.reason().to_owned());
                PeerStatus { name: name.clone(), address, state, reason, seed }
            })
            .collect()
    }
}

/// Between two sessions there may be `trouble` with the next.
fn peer_state(stage: Stage, connected: bool, trouble: Option<&Trouble>) -> PeerState {
    match (stage, connected) {
        (_, false) if matches!(trouble, Some(Trouble::Refused(_))) => PeerState::Refused,
        (Stage::Away, false) => PeerState::Connecting,
        (Stage::Away, true) => PeerState::LeftAlone,
        (Stage::Preparing | Stage::Seeding { .. }, _) => PeerState::Seeding,
        (Stage::Joining { .. }, _) => PeerState::Joining,
        (Stage::InSync, true) => PeerState::InSync,
        (Stage::InSync | Stage::Outdated, _) => PeerState::Silent,
    }
}

fn accept(reply: oneshot::Sender<Result<Accepted, Refused>>, message: String) {
    let _ = reply.send(Ok(Accepted { message }));
}

pub(super) fn record_fence(telemetry: &Telemetry, register: Option<&Register>) {
    let holds = register.map_or("nothing".to_owned(), ToString::to_string);
    telemetry.events.record(
        Severity::Error,
        EventKind::Fenced,
        format!(
            "fenced: this node has lost the right to run the guest (the register holds: {holds}); start it again as a backup"
        ),
        serde_json::json!({ "register": holds }),
    );
}

pub(super) fn record_finish(telemetry: &Telemetry, reason: &str, failed: bool) {
    let severity = if failed { Severity::Error } else { Severity::Info };
    let text = format!("the guest has ended: {reason}");
    telemetry.events.record(severity, EventKind::GuestStopped, text, serde_json::Value::Null);
}

/// How often the gauges are brought up to date.
pub(super) const GAUGE_INTERVAL: Duration = Duration::from_millis(100);

/// When something periodic is due.
#[derive(Debug)]
pub(super) struct Beat {
    at: Instant,
}

impl Beat {
    pub(super) fn new() -> Self {
        Self { at: Instant::now() }
    }

    /// `true` once in `interval`.
    pub(super) fn due(&mut self, now: Instant, interval: Duration) -> bool {
        let due = now >= self.at;
        if due {
            self.at = now + interval;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_refuses_is_not_merely_silent() {
        let refused = Trouble::Refused("vcpus differ".to_owned());
        let unreachable = Trouble::Unreachable("nobody is there".to_owned());
        let state = |stage, trouble| peer_state(stage, false, trouble);
        assert_eq!(state(Stage::Away, Some(&refused)), PeerState::Refused);
        assert_eq!(state(Stage::InSync, Some(&refused)), PeerState::Refused);
        assert_eq!(state(Stage::Away, Some(&unreachable)), PeerState::Connecting);
        assert_eq!(state(Stage::InSync, Some(&unreachable)), PeerState::Silent);
        assert_eq!(state(Stage::Away, None), PeerState::Connecting);
        assert_eq!(peer_state(Stage::InSync, true, None), PeerState::InSync);
    }
}
