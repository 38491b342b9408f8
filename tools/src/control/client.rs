//! The control API's client: one HTTP request over the Unix socket at a time.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use super::{
    arbiter_status::{AnyStatus, ArbiterStatus},
    types::{
        Accepted, CONSOLE_FROM, CONSOLE_NEXT, CONSOLE_PROCESS, EpochPage, ErrorBody, EventPage,
        FailoverBody, ProtectBody, ShutdownBody, Status, Typed, UnprotectBody, VerifyReport,
    },
};
use crate::telemetry::ConsolePage;

/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long an answer may take beyond what the server itself waits for.
const PATIENCE: Duration = Duration::from_secs(10);
const FAILOVER_PATIENCE: Duration = Duration::from_secs(65);
const VERIFY_PATIENCE: Duration = Duration::from_secs(310);

/// Why the control API did not do what was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("nobody serves {path} ({source}): is its process running on this host, and does its configuration set `control` to this path?", path = path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// We may not.
    #[error("not allowed to use {path}: run this as the user that runs its process, usually root", path = path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The conversation broke.
    #[error("the control API at {path} broke off ({source}): see the process's log", path = path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("the control API at {path} does not answer: see the process's log", path = path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon refused, and says why.
    #[error("{}: {}", body.error, body.remedy)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        body: ErrorBody,
    },
}

/// A way to one daemon's control API.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `GET /status`.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; so do all the others.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/status", PATIENCE).await
    }

    /// `GET /status` of a node or an arbiter.
    pub async fn any_status(&self) -> Result<AnyStatus, ClientError> {
        let answer: serde_json::Value = self.get("/status", PATIENCE).await?;
        let is_arbiter = answer.get("store").is_some();
        let decoded = if is_arbiter {
            serde_json::from_value(answer).map(|status| AnyStatus::Arbiter(Box::new(status)))
        } else {
            serde_json::from_value(answer).map(|status| AnyStatus::Node(Box::new(status)))
        };
        decoded.map_err(|error| self.broken(error))
    }

    /// `GET /status` of an arbiter.
    pub async fn arbiter_status(&self) -> Result<ArbiterStatus, ClientError> {
        self.get("/status", PATIENCE).await
    }

    /// `GET /events`: those after `after`, waiting up to `wait` for one.
    pub async fn events(&self, after: u64, wait: Duration) -> Result<EventPage, ClientError> {
        let route = format!("/events?after={after}&wait_ms={}", wait.as_millis());
        self.get(&route, PATIENCE + wait).await
    }

    /// `GET /epochs`: those after `after`.
    pub async fn epochs(&self, after: u64) -> Result<EpochPage, ClientError> {
        self.get(&format!("/epochs?after={after}"), PATIENCE).await
    }

    /// `GET /metrics`, as text.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let bytes = self.exchange(Method::GET, "/metrics", Bytes::new(), PATIENCE).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// `GET /console`: released bytes from number `after` on, waiting up to
    /// `wait` for one.
    pub async fn console(&self, after: u64, wait: Duration) -> Result<ConsolePage, ClientError> {
        let route = format!("/console?after={after}&wait_ms={}", wait.as_millis());
        let answer = self.converse_within(Method::GET, &route, Bytes::new(), PATIENCE + wait);
        let (head, bytes) = answer.await?.into_parts();
        let number = |name: &str| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            let number = value.and_then(|text| text.parse().ok());
            number.ok_or_else(|| self.broken(format!("no header {name}")))
        };
        Ok(ConsolePage {
            process: number(CONSOLE_PROCESS)?,
            from: number(CONSOLE_FROM)?,
            next: number(CONSOLE_NEXT)?,
            bytes: bytes.to_vec(),
        })
    }

    /// `POST /console`: types `bytes`, of which the console may not take all.
    pub async fn console_input(&self, bytes: Vec<u8>) -> Result<Typed, ClientError> {
        let answer = self.exchange(Method::POST, "/console", bytes.into(), PATIENCE).await?;
        self.decode(&answer)
    }

    /// `POST /failover`.
    pub async fn failover(&self, body: &FailoverBody) -> Result<Accepted, ClientError> {
        self.post("/failover", body, FAILOVER_PATIENCE).await
    }

    /// `POST /protect`.
    pub async fn protect(&self, body: &ProtectBody) -> Result<Accepted, ClientError> {
        self.post("/protect", body, PATIENCE).await
    }

    /// `POST /unprotect`.
    pub async fn unprotect(&self, body: &UnprotectBody) -> Result<Accepted, ClientError> {
        self.post("/unprotect", body, PATIENCE).await
    }

    /// `POST /verify`.
    pub async fn verify(&self) -> Result<VerifyReport, ClientError> {
        self.post("/verify", &serde_json::json!({}), VERIFY_PATIENCE).await
    }

    /// `POST /shutdown`.
    pub async fn shutdown(&self, body: &ShutdownBody) -> Result<Accepted, ClientError> {
        self.post("/shutdown", body, PATIENCE).await
    }

    /// `POST /stop`.
    pub async fn stop(&self) -> Result<Accepted, ClientError> {
        self.post("/stop", &serde_json::json!({}), PATIENCE).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        route: &str,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let answer = self.exchange(Method::GET, route, Bytes::new(), patience).await?;
        self.decode(&answer)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        route: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        let answer = self.exchange(Method::POST, route, body.into(), patience).await?;
        self.decode(&answer)
    }

    fn decode<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(answer).map_err(|error| self.broken(error))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { path: self.path.clone(), source: source.into() }
    }

    async fn exchange(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Bytes, ClientError> {
        Ok(self.converse_within(method, route, body, patience).await?.into_body())
    }

    async fn converse_within(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Response<Bytes>, ClientError> {
        let talk = self.converse(method, route, body);
        match tokio::time::timeout(patience, talk).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Silent { path: self.path.clone() }),
        }
    }

    async fn converse(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> Result<Response<Bytes>, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|source| {
            let path = self.path.clone();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
                _ => ClientError::Absent { path, source },
            }
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        let pump = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header("host", "romulus")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        pump.abort();
        let bytes = body.map_err(|error| self.broken(error))?.to_bytes();
        let status = head.status;
        if status == StatusCode::OK {
            return Ok(Response::from_parts(head, bytes));
        }
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorBody {
            error: format!("the control API answered {status}"),
            remedy: "use the romulus of the same version as the process".to_owned(),
        });
        Err(ClientError::Refused { status: status.as_u16(), body })
    }
}
