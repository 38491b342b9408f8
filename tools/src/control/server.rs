//! The control API's server: routes to a [`Surface`].
//!
//! What the core must answer goes through its bounded channel; a full channel
//! or a late answer is 503. Events, metrics and the console's tail are read
//! beside the core, so that they can be read while it is busy or stuck.

use std::{fmt, future::Future, io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, State},
    http::{StatusCode, header},
    response::{AppendHeaders, IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::{mpsc, oneshot};

use super::{
    request::{ControlRequest, Refused, RefusedKind, Reply},
    socket::ControlSocket,
    types::{
        Accepted, CONSOLE_FROM, CONSOLE_NEXT, CONSOLE_PROCESS, EpochPage, ErrorBody, EventPage,
        FailoverBody, ProtectBody, ShutdownBody, Status, Typed, UnprotectBody, VerifyReport,
    },
};
use crate::telemetry::{ConsoleTail, EpochLog, EventLog, Metrics};

/// How long the core may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a handover may take: it ends when the arbiter has decided.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to compare the memory of all sides.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest wait of one `GET /events` or `GET /console`.
const WAIT_MS_MAX: u64 = 30_000;
/// Largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long open connections may keep a process that ends.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// What the server shows and whom it asks.
#[derive(Debug, Clone)]
pub struct Surface {
    /// To the core; [`super::WAITING_MAX`] long.
    pub requests: mpsc::Sender<ControlRequest>,
    /// What happened.
    pub events: Arc<EventLog>,
    /// What the last epochs cost.
    pub epochs: Arc<EpochLog>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// The last console bytes that were released.
    pub console: Arc<ConsoleTail>,
}

/// Serves `routes` until `shutdown` resolves.
///
/// # Errors
///
/// If the socket fails.
pub async fn serve(
    socket: ControlSocket,
    routes: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (listener, _file) = socket.into_parts();
    serve_on(listener, routes, shutdown).await
}

/// Serves `routes` to whoever comes by `listener`, until `shutdown` resolves.
///
/// # Errors
///
/// If serving fails, which it does not for want of callers.
pub async fn serve_on<L>(
    listener: L,
    routes: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()>
where
    L: Listener,
    L::Addr: fmt::Debug,
{
    let (ending, ended) = oneshot::channel();
    let graceful = async move {
        shutdown.await;
        let _ = ending.send(());
    };
    let serving = axum::serve(listener, routes).with_graceful_shutdown(graceful);
    let overtime = async move {
        let _ = ended.await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = serving => result,
        () = overtime => Ok(()),
    }
}

/// A node's routes.
pub fn routes(surface: Surface) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/events", get(events))
        .route("/epochs", get(epochs))
        .route("/metrics", get(metrics))
        .route("/console", get(console).post(console_input))
        .route("/failover", post(failover))
        .route("/protect", post(protect))
        .route("/unprotect", post(unprotect))
        .route("/verify", post(verify))
        .route("/shutdown", post(shutdown))
        .route("/stop", post(stop))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(surface)
}

async fn status(State(surface): State<Surface>) -> Result<Json<Status>, ApiError> {
    surface.ask(ANSWER_TIMEOUT, ControlRequest::Status).await
}

/// What comes after a number, and how long to wait for it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

impl PageQuery {
    fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms.min(WAIT_MS_MAX))
    }
}

async fn events(
    State(surface): State<Surface>,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<EventPage>, ApiError> {
    let Query(query) = query.map_err(|error| {
        ApiError::bad_request(error.body_text(), "ask like /events?after=0&wait_ms=1000")
    })?;
    let _ = tokio::time::timeout(query.wait(), surface.events.wait_beyond(query.after)).await;
    Ok(Json(surface.events.after(query.after)))
}

/// Which epochs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EpochQuery {
    #[serde(default)]
    after: u64,
}

async fn epochs(
    State(surface): State<Surface>,
    query: Result<Query<EpochQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<EpochPage>, ApiError> {
    let Query(query) = query
        .map_err(|error| ApiError::bad_request(error.body_text(), "ask like /epochs?after=0"))?;
    Ok(Json(surface.epochs.after(query.after)))
}

async fn metrics(State(surface): State<Surface>) -> Response {
    prometheus_text(surface.metrics.render())
}

/// Figures as an answer.
pub(crate) fn prometheus_text(figures: String) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], figures).into_response()
}

async fn console(
    State(surface): State<Surface>,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| {
        ApiError::bad_request(error.body_text(), "ask like /console?after=0&wait_ms=1000")
    })?;
    let mut page = surface.console.after(query.after);
    if page.next == query.after {
        let _ = tokio::time::timeout(query.wait(), surface.console.wait_beyond(query.after)).await;
        page = surface.console.after(query.after);
    }
    let numbers = [
        (CONSOLE_PROCESS, page.process.to_string()),
        (CONSOLE_FROM, page.from.to_string()),
        (CONSOLE_NEXT, page.next.to_string()),
    ];
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, AppendHeaders(numbers), page.bytes).into_response())
}

async fn console_input(
    State(surface): State<Surface>,
    body: Bytes,
) -> Result<Json<Typed>, ApiError> {
    let bytes = body.to_vec();
    surface.ask(ANSWER_TIMEOUT, |reply| ControlRequest::ConsoleInput { bytes, reply }).await
}

async fn failover(State(surface): State<Surface>, body: Bytes) -> Result<Json<Accepted>, ApiError> {
    let FailoverBody { to, take_over } =
        parse(&body, "{\"to\": \"node-b\"}, {\"take_over\": true}, or nothing")?;
    surface.ask(FAILOVER_TIMEOUT, |reply| ControlRequest::Failover { to, take_over, reply }).await
}

async fn protect(State(surface): State<Surface>, body: Bytes) -> Result<Json<Accepted>, ApiError> {
    let hint = "{\"backup\": \"node-b\", \"address\": \"10.1.0.2:7700\"}, or nothing";
    let ProtectBody { backup, address } = parse(&body, hint)?;
    surface.ask(ANSWER_TIMEOUT, |reply| ControlRequest::Protect { backup, address, reply }).await
}

async fn unprotect(
    State(surface): State<Surface>,
    body: Bytes,
) -> Result<Json<Accepted>, ApiError> {
    let UnprotectBody { backup } = parse(&body, "{\"backup\": \"node-b\"}, or nothing")?;
    surface.ask(ANSWER_TIMEOUT, |reply| ControlRequest::Unprotect { backup, reply }).await
}

async fn verify(State(surface): State<Surface>) -> Result<Json<VerifyReport>, ApiError> {
    surface.ask(VERIFY_TIMEOUT, ControlRequest::Verify).await
}

async fn shutdown(State(surface): State<Surface>, body: Bytes) -> Result<Json<Accepted>, ApiError> {
    let ShutdownBody { force } = parse(&body, "{\"force\": true}, or nothing")?;
    surface.ask(ANSWER_TIMEOUT, |reply| ControlRequest::Shutdown { force, reply }).await
}

async fn stop(State(surface): State<Surface>) -> Result<Json<Accepted>, ApiError> {
    let reason = "asked by the control API".to_owned();
    surface.ask(ANSWER_TIMEOUT, |reply| ControlRequest::Stop { reason, reply }).await
}

async fn unknown_route() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no such route",
        "use /status, /events, /metrics, /console, /failover, /protect, /unprotect, /verify, /shutdown or /stop",
    )
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong method for this route",
        "GET reads (/status, /events, /metrics, /console), POST acts",
    )
}

/// A body in JSON; an empty one stands for all defaults.
fn parse<T: DeserializeOwned + Default>(body: &[u8], example: &str) -> Result<T, ApiError> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(error.to_string(), format!("send {example}")))
}

impl Surface {
    async fn ask<T>(
        &self,
        timeout: Duration,
        request: impl FnOnce(Reply<T>) -> ControlRequest,
    ) -> Result<Json<T>, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ApiError::unavailable("too many requests wait"),
            mpsc::error::TrySendError::Closed(_) => ApiError::unavailable("the process is ending"),
        })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(Ok(answer))) => Ok(Json(answer)),
            Ok(Ok(Err(refused))) => Err(refused.into()),
            Ok(Err(_)) => Err(ApiError::unavailable("the process let go of the request")),
            Err(_) => Err(ApiError::unavailable("the process does not answer in time")),
        }
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        error: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { status, body: ErrorBody { error: error.into(), remedy: remedy.into() } }
    }

    fn bad_request(error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, remedy)
    }

    fn unavailable(error: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error,
            "try again; if it lasts, see /events and the process's log",
        )
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let status = match refused.kind {
            RefusedKind::State => StatusCode::CONFLICT,
            RefusedKind::Unknown => StatusCode::NOT_FOUND,
            RefusedKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            RefusedKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, refused.error, refused.remedy)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
