//! A client of the probe guest's service over UDP.
//!
//! One task and one socket for all lanes: answers carry their client's number.
//! Progress goes out every 100 ms, the report at the end.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use romulus_probe::{LANES_MAX, message::MESSAGE_BYTES_MAX};
use serde::Serialize;
use thiserror::Error;
use tokio::{
    io::AsyncReadExt,
    net::UdpSocket,
    signal::unix::{SignalKind, signal},
    time::{Interval, MissedTickBehavior},
};

use super::{ProbeReport, ProbeSettings, Progress, probe_lane::TimedLane, probe_report::Tally};

pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Why the client could not go on.
#[derive(Debug, Error)]
pub enum ProbeClientError {
    /// Lanes beyond what the guest remembers.
    #[error("lanes {first} to {last} are too many: use numbers below {LANES_MAX}")]
    Lanes {
        /// The first.
        first: u32,
        /// The last.
        last: u32,
    },
    /// No socket.
    #[error("cannot open a socket towards {target}: {source}: is there a route in this namespace?")]
    Socket {
        /// The guest's service.
        target: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody reads the report.
    #[error("cannot report: {0}: check where stdout leads")]
    Report(#[from] io::Error),
}

/// A line of the client's report.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// On the way.
    Progress(Progress),
    /// At the end.
    Report(ProbeReport),
}

/// Writes a line of JSON on stdout.
///
/// # Errors
///
/// If stdout is closed.
pub fn print_line(line: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Asks until the time is over, and gives every [`Line`] to `report`.
///
/// # Errors
///
/// [`ProbeClientError`]; silence of the guest is none.
pub async fn run(
    settings: &ProbeSettings,
    report: impl Fn(&Line) -> io::Result<()>,
) -> Result<ProbeReport, ProbeClientError> {
    if settings.lanes.end as usize > LANES_MAX {
        let (first, last) = (settings.lanes.start, settings.lanes.end - 1);
        return Err(ProbeClientError::Lanes { first, last });
    }
    let fail = |source| ProbeClientError::Socket { target: settings.target, source };
    let socket = UdpSocket::bind(unspecified(settings.target)).await.map_err(fail)?;
    socket.connect(settings.target).await.map_err(fail)?;
    let mut client = Client::new(settings, socket);
    client.ask_until(end(settings.duration), &report).await?;
    let now = client.now();
    let outcome = client.tally.finish(now);
    report(&Line::Report(outcome.clone()))?;
    Ok(outcome)
}

fn unspecified(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    }
}

struct Client {
    socket: UdpSocket,
    began: Instant,
    first_lane: u32,
    lanes: Vec<TimedLane>,
    tally: Tally,
    progress: Interval,
}

impl Client {
    fn new(settings: &ProbeSettings, socket: UdpSocket) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lane = |client| TimedLane::new(client, rand::random(), settings);
        Self {
            socket,
            began: Instant::now(),
            first_lane: settings.lanes.start,
            lanes: settings.lanes.clone().map(lane).collect(),
            tally: Tally::new(u64::try_from(unix.as_millis()).unwrap_or(u64::MAX)),
            progress,
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn ask_until(
        &mut self,
        end: impl Future<Output = ()>,
        report: &impl Fn(&Line) -> io::Result<()>,
    ) -> io::Result<()> {
        tokio::pin!(end);
        let mut bytes = [0; MESSAGE_BYTES_MAX + 1];
        loop {
            self.send_due().await;
            let due = self.lanes.iter().filter_map(TimedLane::due).min();
            let wait = due.map_or(PROGRESS_INTERVAL, |due| due.saturating_sub(self.now()));
            tokio::select! {
                biased;
                () = &mut end => return Ok(()),
                // An error is a network that is away just now: the guest's
                // silence will show it.
                received = self.socket.recv(&mut bytes) => match received {
                    Ok(length) => self.deliver(&bytes[..length]),
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                },
                _ = self.progress.tick() => {
                    report(&Line::Progress(self.tally.progress(self.now())))?;
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn send_due(&mut self) {
        for lane in &mut self.lanes {
            let now = self.began.elapsed();
            if let Some(message) = lane.send(now, &mut self.tally) {
                // What does not go out is sent again like what gets lost.
                let _ = self.socket.send(&message).await;
            }
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        let now = self.now();
        let client = match romulus_probe::Answer::decode(bytes) {
            Ok(romulus_probe::Answer::Ask(answer)) => answer.client,
            _ => self.first_lane,
        };
        let index = client.checked_sub(self.first_lane).map_or(usize::MAX, |index| index as usize);
        match self.lanes.get_mut(index) {
            Some(lane) => lane.receive(now, bytes, &mut self.tally),
            None => self.tally.count(now, super::probe_report::Count::Foreign),
        }
    }
}

/// Resolves when the client has to end.
pub(super) async fn end(duration: Option<Duration>) {
    let Some(duration) = duration else { return stopped().await };
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        () = signalled() => {}
    }
}

async fn stopped() {
    let mut stdin = tokio::io::stdin();
    let mut bytes = [0; 64];
    let closed = async { while !matches!(stdin.read(&mut bytes).await, Ok(0) | Err(_)) {} };
    tokio::select! {
        () = closed => {}
        () = signalled() => {}
    }
}

async fn signalled() {
    let caught = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = caught else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use romulus_probe::{
        Answer, Request,
        service::{Lanes, Vitals},
    };

    use super::*;

    fn settings(target: SocketAddr) -> ProbeSettings {
        ProbeSettings {
            target,
            lanes: 2..5,
            rate_per_s: 0,
            retransmit: Duration::from_millis(20),
            duration: Some(Duration::from_millis(300)),
            checks_tsc: true,
        }
    }

    /// A guest that forgets everything after `memory` answers.
    async fn guest(socket: UdpSocket, memory: u64) {
        let mut lanes = Lanes::new();
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        for answered in 1_u64.. {
            let (length, client) = socket.recv_from(&mut bytes).await.unwrap();
            let Ok(Request::Ask(ask)) = Request::decode(&bytes[..length]) else { continue };
            let answer = Answer::Ask(lanes.on_ask(&ask, &Vitals::default())).encode();
            socket.send_to(&answer, client).await.unwrap();
            if answered == memory {
                lanes = Lanes::new();
            }
        }
    }

    async fn outcome(memory: u64) -> (ProbeReport, usize) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = socket.local_addr().unwrap();
        tokio::spawn(guest(socket, memory));
        let lines = Mutex::new(Vec::new());
        let note = |line: &Line| {
            lines.lock().unwrap().push(line.clone());
            Ok(())
        };
        let report = run(&settings(target), note).await.unwrap();
        let lines = lines.into_inner().unwrap();
        (report, lines.len())
    }

    #[tokio::test]
    async fn a_sound_guest_is_sound() {
        let (report, lines) = outcome(u64::MAX).await;
        assert!(report.sound(), "{report:?}");
        assert!(report.answers > 3 && lines >= 2, "{report:?}");
    }

    #[tokio::test]
    async fn a_forgetful_guest_is_not() {
        let (report, _) = outcome(30).await;
        assert_eq!((report.lost + report.went_back, report.sound()), (3, false), "{report:?}");
    }

    #[tokio::test]
    async fn a_silent_guest_is_not() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let report = run(&settings(socket.local_addr().unwrap()), |_| Ok(())).await.unwrap();
        assert_eq!((report.answers, report.sound()), (0, false));
        assert!(report.retransmissions > 0);
    }

    #[tokio::test]
    async fn more_lanes_than_the_guest_has_are_refused() {
        let mut settings = settings("127.0.0.1:9".parse().unwrap());
        settings.lanes = 60..65;
        let refused = run(&settings, |_| Ok(())).await;
        assert!(matches!(refused, Err(ProbeClientError::Lanes { first: 60, last: 64 })));
    }
}
