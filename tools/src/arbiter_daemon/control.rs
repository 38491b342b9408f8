//! What an operator sees of an arbiter: its control socket, and a watch that
//! logs when it can decide no more, or loses a member of etcd.
//!
//! ```text
//!   watch, every few seconds ─┐
//!   GET /status ──────────────┴─▶ look at all registers and members ─▶ gauges
//!   GET /metrics ─────────────────▶ figures: counted requests, gauges
//! ```
//!
//! Neither asks in the way of nodes: a look reads, and waits for nobody but the
//! store.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use arbiter::{NodeId, Record, VmId};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::Response,
    routing::{MethodRouter, get},
};
use etcd::MemberHealth;

use super::{
    figures::Figures,
    registers::{Registers, Sight},
};
use crate::{
    control::{
        ApiError, ArbiterStatus, EtcdMember, EtcdMemberState, Readiness, RegisterStatus,
        RegisterStore, prometheus_text,
    },
    jail::InForce,
};

/// Between two looks of the watch.
const INTERVAL: Duration = Duration::from_secs(5);

/// What is shown, and who is asked for it.
#[derive(Clone)]
pub(super) struct Surface {
    pub(super) name: NodeId,
    pub(super) address: SocketAddr,
    pub(super) registers: Registers,
    pub(super) figures: Arc<Figures>,
    pub(super) jail: InForce,
}

/// An arbiter's routes.
pub(super) fn routes(surface: Surface) -> Router {
    let read = |route: MethodRouter<Surface>| route.fallback(wrong_method);
    Router::new()
        .route("/status", read(get(status)))
        .route("/metrics", read(get(metrics)))
        .fallback(unknown_route)
        .with_state(surface)
}

async fn status(State(surface): State<Surface>) -> Json<ArbiterStatus> {
    Json(surface.look().await)
}

async fn metrics(State(surface): State<Surface>) -> Response {
    prometheus_text(surface.figures.render())
}

async fn unknown_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no such route of an arbiter", "use /status or /metrics")
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong method for this route",
        "an arbiter's control API only reads: use GET",
    )
}

impl Surface {
    async fn look(&self) -> ArbiterStatus {
        let status = self.describe(self.registers.look().await);
        self.publish(&status);
        status
    }

    fn describe(&self, sight: Sight) -> ArbiterStatus {
        let members: Vec<_> = sight.members.into_iter().map(member).collect();
        let readiness = match (&sight.records, first_alarm(&members)) {
            (Err(reason), _) => Readiness::NotReady { reason: reason.clone() },
            (Ok(_), Some(alarm)) => Readiness::NotReady { reason: alarm.clone() },
            (Ok(_), None) => Readiness::Ready,
        };
        let store = match &self.registers {
            Registers::File { path, .. } => RegisterStore::File { path: path.clone() },
            Registers::Etcd { settings, .. } => RegisterStore::Etcd {
                prefix: settings.prefix.clone(),
                id: sight.id.map(|id| id.to_string()),
                members,
            },
        };
        ArbiterStatus {
            readiness,
            arbiter: self.name.clone(),
            address: self.address,
            store,
            registers: sight
                .records
                .ok()
                .map(|records| records.into_iter().map(register).collect()),
            jail: self.jail.status(),
        }
    }

    fn publish(&self, status: &ArbiterStatus) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let figures = &self.figures;
        figures.ready.set(i64::from(status.readiness == Readiness::Ready));
        // What cannot be read has not changed.
        if let Some(registers) = &status.registers {
            figures.registers.set(count(registers.len()));
        }
        if let RegisterStore::Etcd { members, .. } = &status.store {
            let answering = members
                .iter()
                .filter(|member| matches!(member.state, EtcdMemberState::Answers { .. }));
            figures.members.set(count(members.len()));
            figures.members_answering.set(count(answering.count()));
        }
    }

    /// Looks now and then, as long as it is polled, and logs what changes.
    pub(super) async fn watch(self) {
        let mut told = Told::default();
        loop {
            told.of(&self.look().await);
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// What the log was told last.
#[derive(Default)]
struct Told {
    ready: Option<bool>,
    faulty: BTreeMap<String, bool>,
}

impl Told {
    fn of(&mut self, status: &ArbiterStatus) {
        let ready = status.readiness == Readiness::Ready;
        if self.ready.replace(ready) != Some(ready) {
            match &status.readiness {
                Readiness::Ready => {
                    let vms = status.registers.as_ref().map_or(0, Vec::len);
                    tracing::info!(vms, "the registers can be read: the arbiter decides");
                }
                Readiness::NotReady { reason } => {
                    tracing::error!(%reason, "the arbiter cannot decide: failovers wait");
                }
            }
        }
        let RegisterStore::Etcd { members, .. } = &status.store else { return };
        for EtcdMember { endpoint, state } in members {
            let is_faulty = matches!(state, EtcdMemberState::Faulty { .. });
            let was_faulty = self.faulty.insert(endpoint.clone(), is_faulty).unwrap_or(false);
            match state {
                EtcdMemberState::Faulty { reason } if !was_faulty => {
                    tracing::warn!(%reason, "a member of etcd is lost");
                }
                EtcdMemberState::Answers { version, .. } if was_faulty => {
                    tracing::info!(endpoint, version, "a member of etcd is back");
                }
                EtcdMemberState::Faulty { .. } | EtcdMemberState::Answers { .. } => {}
            }
        }
    }
}

fn member(member: MemberHealth) -> EtcdMember {
    let state = match member.health {
        Ok(health) => EtcdMemberState::Answers {
            leads: health.leads,
            version: health.version,
            database_bytes: health.database_bytes,
            alarms: health.alarms.iter().map(ToString::to_string).collect(),
        },
        Err(fault) => EtcdMemberState::Faulty { reason: fault.to_string() },
    };
    EtcdMember { endpoint: member.endpoint, state }
}

/// While there is one, etcd can be read and not be changed.
fn first_alarm(members: &[EtcdMember]) -> Option<&String> {
    members.iter().find_map(|member| match &member.state {
        EtcdMemberState::Answers { alarms, .. } => alarms.first(),
        EtcdMemberState::Faulty { .. } => None,
    })
}

fn register((vm, Record { register, .. }): (VmId, Record)) -> RegisterStatus {
    RegisterStatus {
        vm,
        term: register.term.get(),
        primary: register.primary,
        in_sync: register.in_sync.into_keys().collect(),
    }
}
