//! A client of a redis server in the guest, over one TCP connection.
//!
//! ```text
//!   write key 1 ─▶ acknowledged ─▶ write key 2 ─▶ …  until told to end
//!   read every acknowledged key ─▶ its value, nothing (lost), another (corrupt)
//! ```
//!
//! One write is under way at a time, so what was acknowledged is exactly keys
//! 1 to N. A connection that breaks is made again and counted: a guest that was
//! failed over properly breaks none.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use thiserror::Error;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Interval, MissedTickBehavior, timeout},
};

use super::{
    Progress,
    probe_client::{PROGRESS_INTERVAL, end},
    probe_report::{Count, Tally},
    resp::{self, Reply},
    tcp_report::{Findings, TcpReport, TcpSettings, report as put_together},
};

/// One attempt at a connection.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Between two attempts.
const BREATH: Duration = Duration::from_millis(100);
/// How long a server may be away that is connected to or read from at the end.
const PATIENCE: Duration = Duration::from_secs(90);
/// Keys that are read in one go.
const BATCH: u64 = 128;

/// Why the client could not go on.
#[derive(Debug, Error)]
pub enum TcpClientError {
    /// No connection.
    #[error("cannot connect to {target} within {} s: {source}: does the server run in the guest?", PATIENCE.as_secs())]
    Connect {
        /// The server.
        target: SocketAddr,
        /// What the system said last.
        source: io::Error,
    },
    /// The server does not do what it is asked.
    #[error(
        "the server at {target} answered a {command} with {said}: it must be a redis that takes writes"
    )]
    Server {
        /// The server.
        target: SocketAddr,
        /// What was asked.
        command: &'static str,
        /// What it said.
        said: String,
    },
    /// The server fell silent when the writes were to be read again.
    #[error("the server at {target} was silent for {} s at the end: {verified} of {acknowledged} writes were read again", PATIENCE.as_secs())]
    Silent {
        /// The server.
        target: SocketAddr,
        /// How many were read.
        verified: u64,
        /// Of how many.
        acknowledged: u64,
    },
    /// Nobody reads the report.
    #[error("cannot report: {0}: check where stdout leads")]
    Report(#[from] io::Error),
}

/// A line of the client's report.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpLine {
    /// On the way; an answer is an acknowledged write.
    Progress(Progress),
    /// At the end.
    Report(TcpReport),
}

/// Writes until the time is over, reads all of it again, and gives every
/// [`TcpLine`] to `report`.
///
/// # Errors
///
/// [`TcpClientError`]
pub async fn run(
    settings: &TcpSettings,
    report: impl Fn(&TcpLine) -> io::Result<()>,
) -> Result<TcpReport, TcpClientError> {
    run_until(end(settings.duration), settings, report).await
}

async fn run_until(
    end: impl Future<Output = ()>,
    settings: &TcpSettings,
    report: impl Fn(&TcpLine) -> io::Result<()>,
) -> Result<TcpReport, TcpClientError> {
    let mut client = Client::new(settings).await?;
    client.write_until(end, &report).await?;
    let findings = client.verify(&report).await?;
    let elapsed = client.began.elapsed();
    let outcome = put_together(client.tally, findings, client.reconnects, elapsed);
    report(&TcpLine::Report(outcome.clone()))?;
    Ok(outcome)
}

struct Client<'a> {
    settings: &'a TcpSettings,
    /// Tells this client's keys from others'.
    run: u64,
    connection: Connection,
    began: Instant,
    acknowledged: u64,
    reconnects: u64,
    tally: Tally,
    progress: Interval,
}

impl<'a> Client<'a> {
    async fn new(settings: &'a TcpSettings) -> Result<Self, TcpClientError> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            settings,
            run: rand::random(),
            connection: Connection::open(settings.target).await?,
            began: Instant::now(),
            acknowledged: 0,
            reconnects: 0,
            tally: Tally::new(u64::try_from(unix.as_millis()).unwrap_or(u64::MAX)),
            progress,
        })
    }

    fn key(&self, number: u64) -> String {
        format!("romulus:{:016x}:{number}", self.run)
    }

    /// A value that says for which write it is, all over.
    fn value(&self, number: u64) -> Vec<u8> {
        let mut value = vec![0; self.settings.value_bytes];
        let mut digest = blake3::Hasher::new();
        digest.update(self.key(number).as_bytes()).finalize_xof().fill(&mut value);
        value
    }

    async fn write_until(
        &mut self,
        end: impl Future<Output = ()>,
        report: &impl Fn(&TcpLine) -> io::Result<()>,
    ) -> Result<(), TcpClientError> {
        tokio::pin!(end);
        let mut ending = false;
        while !ending {
            let begun = Instant::now();
            let number = self.acknowledged + 1;
            let (key, value) = (self.key(number), self.value(number));
            let write = resp::command(&[b"SET", key.as_bytes(), &value]);
            self.tally.count(self.began.elapsed(), Count::Sent { again: false });
            // The last write is waited for: its answer would be taken for one to
            // what is read at the end.
            let mut sent = self.connection.send(&write).await;
            loop {
                let reply = match sent {
                    Ok(()) => tokio::select! {
                        biased;
                        () = &mut end, if !ending => { ending = true; continue }
                        reply = self.connection.reply() => reply,
                        _ = self.progress.tick() => { self.tell(report)?; continue }
                    },
                    Err(error) => Err(error),
                };
                match reply {
                    Ok(Reply::Done) => break,
                    Ok(other) => return Err(self.complaint("SET", &other)),
                    Err(_) => {
                        self.reconnects += 1;
                        self.connection = Connection::open(self.settings.target).await?;
                        self.tally.count(self.began.elapsed(), Count::Sent { again: true });
                        sent = self.connection.send(&write).await;
                    }
                }
            }
            self.acknowledged = number;
            self.tally.count(self.began.elapsed(), Count::Answer { latency: begun.elapsed() });
            ending = ending || self.rest(begun, &mut end, report).await?;
        }
        Ok(())
    }

    /// Waits until the next write is due. Returns whether the time is over.
    async fn rest(
        &mut self,
        begun: Instant,
        end: &mut (impl Future<Output = ()> + Unpin),
        report: &impl Fn(&TcpLine) -> io::Result<()>,
    ) -> Result<bool, TcpClientError> {
        let interval = match self.settings.rate_per_s {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        loop {
            let wait = interval.saturating_sub(begun.elapsed());
            if wait.is_zero() {
                return Ok(false);
            }
            tokio::select! {
                biased;
                () = &mut *end => return Ok(true),
                _ = self.progress.tick() => self.tell(report)?,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn tell(&self, report: &impl Fn(&TcpLine) -> io::Result<()>) -> io::Result<()> {
        report(&TcpLine::Progress(self.tally.progress(self.began.elapsed())))
    }

    fn complaint(&self, command: &'static str, reply: &Reply) -> TcpClientError {
        let said = match reply {
            Reply::Refused(words) => format!("\"{words}\""),
            Reply::Done => "\"OK\"".to_owned(),
            Reply::Value(_) | Reply::Nothing | Reply::Strange => "something else".to_owned(),
        };
        TcpClientError::Server { target: self.settings.target, command, said }
    }

    /// Reads every acknowledged write again.
    async fn verify(
        &mut self,
        report: &impl Fn(&TcpLine) -> io::Result<()>,
    ) -> Result<Findings, TcpClientError> {
        let mut findings = Findings::default();
        let mut first = 1;
        while first <= self.acknowledged {
            let last = self.acknowledged.min(first + BATCH - 1);
            match timeout(PATIENCE, self.read_batch(first, last)).await {
                Err(_) => {
                    return Err(TcpClientError::Silent {
                        target: self.settings.target,
                        verified: findings.verified,
                        acknowledged: self.acknowledged,
                    });
                }
                Ok(Err(_)) => {
                    self.reconnects += 1;
                    self.connection = Connection::open(self.settings.target).await?;
                }
                Ok(Ok(replies)) => {
                    for (number, reply) in (first..).zip(&replies) {
                        self.judge(number, reply, &mut findings)?;
                    }
                    first = last + 1;
                    self.tell(report)?;
                }
            }
        }
        Ok(findings)
    }

    async fn read_batch(&mut self, first: u64, last: u64) -> io::Result<Vec<Reply>> {
        let read = |number| resp::command(&[b"GET", self.key(number).as_bytes()]);
        let commands: Vec<u8> = (first..=last).flat_map(read).collect();
        self.connection.send(&commands).await?;
        let mut replies = Vec::new();
        for _ in first..=last {
            replies.push(self.connection.reply().await?);
        }
        Ok(replies)
    }

    fn judge(
        &self,
        number: u64,
        reply: &Reply,
        findings: &mut Findings,
    ) -> Result<(), TcpClientError> {
        match reply {
            Reply::Value(value) if *value == self.value(number) => findings.verified += 1,
            Reply::Value(_) => findings.corrupt += 1,
            Reply::Nothing => findings.lost += 1,
            Reply::Done | Reply::Refused(_) | Reply::Strange => {
                return Err(self.complaint("GET", reply));
            }
        }
        Ok(())
    }
}

/// A connection, and what came on it that is no whole reply yet.
struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Tries for a while: a guest may be on its way to another host.
    async fn open(target: SocketAddr) -> Result<Self, TcpClientError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let attempt = timeout(ATTEMPT, TcpStream::connect(target)).await;
            let source = match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Self { stream, received: Vec::new() });
                }
                Err(source) => source,
            };
            if Instant::now() >= deadline {
                return Err(TcpClientError::Connect { target, source });
            }
            tokio::time::sleep(BREATH).await;
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next reply. What has come is kept if the caller waits no longer.
    async fn reply(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = resp::take_reply(&mut self.received) {
                return Ok(reply);
            }
            self.stream.readable().await?;
            let mut bytes = [0; 4096];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
