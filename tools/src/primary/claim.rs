//! Claims the right to run a guest that is about to boot.
//!
//! No arbiter may answer for long. So operators and signals are heard all the
//! while: `status` tells what is waited for, and a stop ends the process.

use std::{fmt::Display, pin::pin, time::Duration};

use arbiter::{NodeId, Operation, Outcome, Register, Request, Stamp, VmId};
use checkpoint::{Answer, Question};
use rand::Rng;

use crate::{
    control::{
        Accepted, ArbiterState, Behind, ControlRequest, ControlRequests, EventKind, Features,
        GuestState, PeerState, PeerStatus, Protection, Refused, RefusedCounts, RefusedKind, Reply,
        Role, Severity, Status,
    },
    daemon::Telemetry,
    node::{Asker, Guest, Host, NodeError},
};

const RETRY: Duration = Duration::from_millis(300);

/// How a claim ended.
#[derive(Debug)]
pub(super) enum Claim {
    /// This node may run the guest.
    Granted(Register),
    /// The process was stopped before it was known.
    Stopped,
}

/// Asks until the arbiter has decided, or the process is stopped. A VM that
/// never ran is created; one that ran here without a backup is restarted.
///
/// # Errors
///
/// [`NodeError::Claim`] if the register names others, saying which and what
/// to do.
pub(super) fn claim(host: &mut Host, guest: &Guest) -> Result<Claim, NodeError> {
    let asker = Asker::new(host);
    let at: Vec<_> =
        host.config.arbiters.iter().map(|arbiter| arbiter.address.to_string()).collect();
    let config = &host.config;
    let peers = config.peers.iter().map(|peer| PeerStatus {
        name: peer.name.clone(),
        address: peer.address,
        state: PeerState::Idle,
        reason: None,
        seed: None,
    });
    let jail = &host.jail;
    let mut claimant = Claimant {
        vm: config.vm.name.clone(),
        node: config.node.name.clone(),
        peers: peers.collect(),
        arbiters: at.join(" or "),
        features: || Features {
            dirty_tracking: guest.dirty_tracking(),
            kvm_backend: guest.backend(),
            jail: jail.status(),
        },
        telemetry: host.telemetry.clone(),
        requests: &mut host.requests,
        trouble: None,
    };
    host.runtime.block_on(claimant.claim(&asker))
}

/// Who waits for the right to run.
struct Claimant<'a, F> {
    vm: VmId,
    node: NodeId,
    peers: Vec<PeerStatus>,
    /// Where the arbiters are, in words.
    arbiters: String,
    features: F,
    telemetry: Telemetry,
    requests: &'a mut ControlRequests,
    /// Why the last question was not answered.
    trouble: Option<String>,
}

impl<F: Fn() -> Features> Claimant<'_, F> {
    async fn claim(&mut self, asker: &Asker) -> Result<Claim, NodeError> {
        let current = match self.ask(asker, Question::Read).await {
            None => return Ok(Claim::Stopped),
            Some(Answer::Register(register)) => register,
            Some(other) => unreachable!("a read tells the register, not {other:?}"),
        };
        let operation = match &current {
            None => Operation::Create,
            Some(register) => {
                restartable(register, &self.node).map_err(NodeError::Claim)?;
                Operation::Restart
            }
        };
        let stamp = Stamp::new(rand::rng().next_u64());
        let request = Request { caller: self.node.clone(), expected: current, operation, stamp };
        match self.ask(asker, Question::Change(request)).await {
            None => Ok(Claim::Stopped),
            Some(Answer::Outcome(Outcome::Set(register))) => Ok(Claim::Granted(register)),
            Some(Answer::Outcome(Outcome::Mismatch(found))) => {
                let found = found.map_or("nothing".to_owned(), |register| register.to_string());
                Err(NodeError::Claim(format!(
                    "another node claimed `{}` at the same time (the register holds: {found}): look at `romulus status` there",
                    self.vm
                )))
            }
            Some(Answer::Refused(why)) => {
                Err(NodeError::Claim(format!("the arbiter denies the claim: {why}")))
            }
            Some(other) => unreachable!("a change has an outcome, not {other:?}"),
        }
    }

    /// Asks until there is an answer; `None` if the process is to end. Reading is
    /// tried again even if it is refused.
    async fn ask(&mut self, asker: &Asker, question: Question) -> Option<Answer> {
        loop {
            match self.attend(asker.ask_with_reason(question.clone())).await? {
                (answer, None) => {
                    self.on_answer();
                    return Some(answer);
                }
                (answer @ Answer::Refused(_), _) if question != Question::Read => {
                    return Some(answer);
                }
                (_, Some(why)) => self.on_trouble(why),
            }
            self.attend(tokio::time::sleep(RETRY)).await?;
        }
    }

    /// What `work` comes to, while operators are answered; `None` if the process
    /// is to end.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                Some(request) = self.requests.recv() => {
                    if self.on_control(request) {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether the process is to end.
    fn on_control(&mut self, request: ControlRequest) -> bool {
        request.record(&self.telemetry.events);
        match request {
            ControlRequest::Status(reply) => drop(reply.send(Ok(self.status()))),
            ControlRequest::Failover { reply, .. }
            | ControlRequest::Protect { reply, .. }
            | ControlRequest::Unprotect { reply, .. }
            | ControlRequest::Shutdown { reply, .. } => self.not_yet(reply),
            ControlRequest::Verify(reply) => self.not_yet(reply),
            ControlRequest::ConsoleInput { reply, .. } => self.not_yet(reply),
            ControlRequest::Stop { reason, reply } => {
                let text =
                    "the process ends before the arbiter has decided: the guest was not started";
                self.record(
                    Severity::Info,
                    EventKind::GuestStopped,
                    format!("stopped ({reason}): {text}"),
                );
                let _ = reply.send(Ok(Accepted { message: text.to_owned() }));
                return true;
            }
        }
        false
    }

    fn not_yet<T>(&self, reply: Reply<T>) {
        let error = format!("the guest is not started: {}", self.waits());
        let remedy = "try again when `romulus status` says that the guest runs";
        let _ = reply.send(Err(Refused::new(RefusedKind::Unavailable, error, remedy)));
    }

    fn waits(&self) -> String {
        let at = &self.arbiters;
        match &self.trouble {
            Some(why) => format!("waits for the arbiter at {at}: {why}"),
            None => format!("the arbiter at {at} is asked whether this node may run it"),
        }
    }

    fn on_trouble(&mut self, why: String) {
        if self.trouble.as_ref() != Some(&why) {
            self.trouble = Some(why);
            self.record(Severity::Warning, EventKind::ArbiterLost, self.waits());
        }
    }

    fn on_answer(&mut self) {
        if self.trouble.take().is_some() {
            self.record(Severity::Info, EventKind::ArbiterBack, "the arbiter answers");
        }
    }

    fn record(&self, severity: Severity, kind: EventKind, text: impl Display) {
        let nothing = serde_json::Value::Null;
        self.telemetry.events.record(severity, kind, text.to_string(), nothing);
    }

    fn status(&self) -> Status {
        let metrics = &self.telemetry.metrics;
        Status {
            protection: Protection::Unprotected { reason: self.waits() },
            vm: self.vm.clone(),
            node: self.node.clone(),
            role: Role::Claiming,
            guest: GuestState::Stopped,
            term: 0,
            epoch: 0,
            committed: 0,
            applied: 0,
            behind: Behind::default(),
            in_sync: Vec::new(),
            peers: self.peers.clone(),
            held_bytes: 0,
            arbiter: match &self.trouble {
                Some(_) => ArbiterState::Unreachable,
                None => ArbiterState::Unknown,
            },
            pause_us: metrics.pause.percentiles(),
            commit_us: metrics.commit.percentiles(),
            wire_bytes_per_epoch: metrics.wire_bytes_per_epoch(),
            epochs: metrics.epochs.get(),
            refused: RefusedCounts::default(),
            features: (self.features)(),
        }
    }
}

fn restartable(register: &Register, caller: &NodeId) -> Result<(), String> {
    if register.primary != *caller {
        return Err(format!(
            "the register names `{0}` as primary (term {1}): if `{0}` runs, start this node with `romulus backup`; if it never will again, see docs/failover.md, \"The solo primary's host is gone\", or \"All copies are lost\"",
            register.primary, register.term
        ));
    }
    if register.in_sync.is_empty() {
        return Ok(());
    }
    let backups: Vec<_> = register.in_sync.keys().map(NodeId::as_str).collect();
    Err(format!(
        "the guest of this node's last life is in the hands of {} (term {}): let it take over, and start this node with `romulus backup`; if no process there has the guest any more, see `romulus register forget` and docs/failover.md, \"All copies are lost\"",
        backups.join(", "),
        register.term
    ))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::control::tests::sample_status;

    fn claimant(requests: &mut ControlRequests) -> Claimant<'_, impl Fn() -> Features> {
        Claimant {
            vm: "web-1".parse().unwrap(),
            node: "node-a".parse().unwrap(),
            peers: Vec::new(),
            arbiters: "10.1.0.9:7800".to_owned(),
            features: || sample_status().features,
            telemetry: Telemetry::default(),
            requests,
            trouble: None,
        }
    }

    #[tokio::test]
    async fn who_waits_for_the_arbiter_can_be_asked_and_stopped() {
        let (sender, mut requests) = mpsc::channel(8);
        let mut claimant = claimant(&mut requests);
        claimant.on_trouble("timed out".to_owned());
        let (status, told) = oneshot::channel();
        sender.send(ControlRequest::Status(status)).await.unwrap();
        let (verify, refused) = oneshot::channel();
        sender.send(ControlRequest::Verify(verify)).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let reason = "SIGTERM".to_owned();
        sender.send(ControlRequest::Stop { reason, reply: stop }).await.unwrap();
        assert_eq!(claimant.attend(pending::<()>()).await, None, "it is to end");

        let status = told.await.unwrap().unwrap();
        let reason = "waits for the arbiter at 10.1.0.9:7800: timed out".to_owned();
        assert_eq!(status.protection, Protection::Unprotected { reason });
        assert_eq!((status.role, status.guest), (Role::Claiming, GuestState::Stopped));
        assert_eq!(refused.await.unwrap().unwrap_err().kind, RefusedKind::Unavailable);
        assert!(stopped.await.unwrap().unwrap().message.contains("was not started"));
    }

    #[tokio::test]
    async fn who_waits_is_told_of_a_reason_once() {
        let (_sender, mut requests) = mpsc::channel(1);
        let mut claimant = claimant(&mut requests);
        let why = ["timed out", "timed out", "the certificate has expired"];
        why.iter().for_each(|why| claimant.on_trouble((*why).to_owned()));
        claimant.on_answer();
        claimant.on_answer();
        let events = claimant.telemetry.events.after(0).events;
        let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::ArbiterLost, EventKind::ArbiterLost, EventKind::ArbiterBack]);
        assert_eq!(claimant.attend(async { 7 }).await, Some(7));
    }
}
