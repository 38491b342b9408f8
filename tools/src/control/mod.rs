//! The control API: HTTP and JSON on a Unix socket, and its client.
//!
//! | route | is |
//! |---|---|
//! | `GET /status` | [`Status`] |
//! | `GET /events?after=N&wait_ms=M` | [`EventPage`]; waits for news up to `M` |
//! | `GET /epochs?after=N` | [`EpochPage`]: what each of the last epochs cost |
//! | `GET /metrics` | Prometheus text |
//! | `GET /console?after=N&wait_ms=M` | bytes said, from number `N` on; waits for one up to `M` |
//! | `POST /console` | bytes typed; [`Typed`] |
//! | `POST /failover`, `/protect`, `/unprotect` | [`Accepted`] |
//! | `POST /verify` | [`VerifyReport`] |
//! | `POST /shutdown`, `/stop` | [`Accepted`] |
//!
//! An arbiter's has `GET /status`, which is an [`ArbiterStatus`], and
//! `GET /metrics`.
//!
//! Errors are [`ErrorBody`]. The daemons' cores know only [`ControlRequest`].

mod arbiter_status;
mod client;
mod request;
mod server;
mod socket;
mod types;

pub(crate) use self::server::{ApiError, prometheus_text};
pub use self::{
    arbiter_status::{
        AnyStatus, ArbiterStatus, EtcdMember, EtcdMemberState, Readiness, RegisterStatus,
        RegisterStore,
    },
    client::{Client, ClientError},
    request::{ControlRequest, ControlRequests, Refused, RefusedKind, Reply, WAITING_MAX},
    server::{Surface, routes, serve, serve_on},
    socket::{ControlSocket, SocketError, make_folder},
    types::{
        Accepted, ArbiterState, Behind, EpochPage, EpochRecord, ErrorBody, EventKind, EventPage,
        EventRecord, FailoverBody, Features, GuestState, Jail, PeerState, PeerStatus, Percentiles,
        ProtectBody, Protection, Refused as RefusedCounts, Role, SeedProgress, Severity,
        ShutdownBody, Status, Typed, UnprotectBody, VerifiedBackup, VerifyReport,
    },
};

#[cfg(test)]
pub(crate) mod tests;
