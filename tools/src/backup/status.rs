//! What operators ask of a backup, and the answers.

use checkpoint::backup::{Event, Standing};

use super::core::Core;
use crate::control::{
    Accepted, Behind, ControlRequest, Features, GuestState, PeerState, PeerStatus, Protection,
    Refused, RefusedCounts, RefusedKind, Reply, Role, Status,
};

impl Core {
    pub(super) fn on_control(&mut self, request: ControlRequest) {
        request.record(&self.host.telemetry.events);
        match request {
            ControlRequest::Status(reply) => drop(reply.send(Ok(self.status()))),
            ControlRequest::Failover { to, take_over, reply } => {
                self.on_failover(to, take_over, reply);
            }
            ControlRequest::Protect { reply, .. } => on_the_primary(reply, "protect"),
            ControlRequest::Unprotect { reply, .. } => on_the_primary(reply, "unprotect"),
            ControlRequest::Verify(reply) => on_the_primary(reply, "verify"),
            ControlRequest::ConsoleInput { reply, .. } => on_the_primary(reply, "console input"),
            ControlRequest::Shutdown { reply, .. } => on_the_primary(reply, "shutdown"),
            ControlRequest::Stop { reason, reply } => {
                tracing::info!(reason, "stopping");
                let _ = reply.send(Ok(Accepted { message: "stopping".to_owned() }));
                self.stop = true;
            }
        }
    }

    /// An operator on the backup's host wants it to take over: the arbiter is
    /// asked at once, and the primary is fenced if it lives. Who does not say
    /// that may have wanted a handover, and is on the wrong host.
    fn on_failover(
        &mut self,
        to: Option<arbiter::NodeId>,
        take_over: bool,
        reply: Reply<Accepted>,
    ) {
        if to.is_some_and(|to| to != self.host.config.node.name) {
            return on_the_primary(reply, "a switchover to another node");
        }
        if !take_over {
            let registered = self.machine.register().map(|register| &register.primary);
            let primary = self.machine.primary().or(registered);
            let _ = reply.send(Err(not_by_plan(primary)));
            return;
        }
        if self.machine.standing() != Standing::Whole {
            let remedy = "wait until `romulus status` says that the guest is protected";
            let refused =
                Refused::new(RefusedKind::State, "this backup has no whole image", remedy);
            let _ = reply.send(Err(refused));
            return;
        }
        let message = "asking the arbiter whether this node may take over".to_owned();
        let _ = reply.send(Ok(Accepted { message }));
        self.tell(Event::TakeOver);
    }

    /// Keeps the gauges current.
    pub(super) fn gauge(&self) {
        let metrics = &self.host.telemetry.metrics;
        let (committed, _) = self.machine.epochs();
        metrics.term.set(self.machine.term().get() as i64);
        metrics.committed.set(committed.get() as i64);
        metrics.protected.set(i64::from(self.protection() == Protection::Protected));
    }

    fn protection(&self) -> Protection {
        let unprotected = |reason: &str| Protection::Unprotected { reason: reason.to_owned() };
        let (member, hindrance) = (self.machine.in_sync(), self.arbiter.hindrance());
        match self.machine.standing() {
            Standing::Waiting => unprotected("this backup waits for a primary"),
            Standing::Seeding => unprotected("this backup is being seeded"),
            Standing::Whole => match (hindrance, self.machine.primary()) {
                (Some(why), _) => unprotected(why),
                (None, None) => unprotected("the primary is not connected"),
                (None, Some(_)) if member => Protection::Protected,
                (None, Some(_)) => unprotected("this backup is not admitted yet"),
            },
            Standing::Asking => unprotected("the primary is lost; the arbiter is being asked"),
            Standing::Promoting => unprotected("this node is taking over"),
        }
    }

    fn status(&self) -> Status {
        let (committed, applied) = self.machine.epochs();
        let metrics = &self.host.telemetry.metrics;
        let standing = self.machine.standing();
        Status {
            protection: self.protection(),
            vm: self.host.config.vm.name.clone(),
            node: self.host.config.node.name.clone(),
            role: match standing {
                Standing::Asking | Standing::Promoting => Role::Promoting,
                Standing::Waiting | Standing::Seeding | Standing::Whole => Role::Backup,
            },
            guest: GuestState::Standby,
            term: self.machine.term().get(),
            epoch: committed.get(),
            committed: committed.get(),
            applied: applied.get(),
            behind: Behind { epochs: committed.get().saturating_sub(applied.get()), ms: 0 },
            in_sync: self
                .machine
                .register()
                .map(|register| register.in_sync.keys().cloned().collect())
                .unwrap_or_default(),
            peers: self.peer_statuses(),
            held_bytes: 0,
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
        let primary = self.machine.primary();
        let state = |name| match primary {
            Some(primary) if primary == name => PeerState::Primary,
            Some(_) | None => PeerState::Idle,
        };
        self.host
            .config
            .peers
            .iter()
            .map(|peer| PeerStatus {
                name: peer.name.clone(),
                address: peer.address,
                state: state(&peer.name),
                reason: None,
                seed: None,
            })
            .collect()
    }
}

/// A backup is asked for a handover, which only a primary can do.
fn not_by_plan(primary: Option<&arbiter::NodeId>) -> Refused {
    let node = primary.map_or("the primary".to_owned(), |node| format!("`{node}`"));
    let remedy = format!(
        "run it on {node} for a handover without loss; --take-over promotes this node now and fences {node}"
    );
    Refused::new(RefusedKind::State, "this node is the backup", remedy)
}

fn on_the_primary<T>(reply: Reply<T>, what: &str) {
    let error = format!("{what} is the primary's business, and this node is a backup");
    let refused = Refused::new(RefusedKind::State, error, "ask the node that runs the guest");
    let _ = reply.send(Err(refused));
}
