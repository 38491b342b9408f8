//! `romulus console`: the guest's serial console, from a terminal or a pipe.
//!
//! ```text
//!   stdin ─▶ thread `stdin` ─▶ pieces ─▶ POST /console     what has no room is sent again
//!                        └─▶ Ctrl-] ─▶ the end
//!   stdout ◀── GET /console, waiting for more
//!   stderr ◀── where the guest is, when that changes ◀── GET /status, every second
//! ```
//!
//! What is shown was released: in a protected guest, every in-sync backup has
//! the state that it was said from. The session outlives processes: whoever
//! serves the socket next is asked, and says whether the guest is here.

mod input;
mod questions;
mod terminal;

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

use self::{input::Input, questions::without_questions, terminal::RawTerminal};
use super::{args::ConsoleArgs, control_commands::wait, failure::Failure, target};
use crate::{
    control::{Client, ClientError, PeerState, Role, Status},
    daemon::ShellError,
    exit::Exit,
};

/// How long one question for more waits.
const FOLLOW_WAIT: Duration = Duration::from_secs(20);
/// How often the guest's place is looked at, and a silent socket is tried.
const LOOK: Duration = Duration::from_secs(1);
/// How soon bytes for which the guest had no room are sent again.
const NO_ROOM_WAIT: Duration = Duration::from_millis(20);
/// How long a guest without room can keep a session that is being left.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(500);

/// Where the guest is, as the process at the socket says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whereabouts {
    Here(String),
    Elsewhere(String),
    Unknown(String),
}

impl Whereabouts {
    fn of(answer: Result<Status, ClientError>) -> Self {
        let status = match answer {
            Ok(status) => status,
            Err(error) => return Self::Unknown(format!("{error}; waiting")),
        };
        let Status { vm, node, peers, .. } = &status;
        match status.role {
            Role::Primary => Self::Here(format!("{vm} on {node}")),
            Role::Promoting => Self::Elsewhere(format!("{node} is about to take {vm} over")),
            Role::Claiming => Self::Elsewhere(format!("{node} waits for the right to boot {vm}")),
            Role::Backup => {
                let primary = peers.iter().find(|peer| peer.state == PeerState::Primary);
                let place = primary.map_or_else(
                    || "no primary is connected".to_owned(),
                    |peer| format!("{vm} runs on {}: attach there", peer.name),
                );
                Self::Elsewhere(format!("{node} stands by and {place}, or wait here"))
            }
        }
    }

    fn words(&self) -> &str {
        match self {
            Self::Here(words) | Self::Elsewhere(words) | Self::Unknown(words) => words,
        }
    }
}

pub(super) fn console(arguments: &ConsoleArgs, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.vm.vm)?;
    if arguments.no_follow {
        let page = wait(client.console(0, Duration::ZERO))??;
        Screen { json, raw: false }.show(&page.bytes)?;
        return Ok(Exit::Done);
    }
    wait(attach(&client, arguments.no_input, json))?
}

/// Runs a session, with the terminal raw if stdin is one.
async fn attach(client: &Client, no_input: bool, json: bool) -> Result<Exit, Failure> {
    // Nothing is done to the terminal if nobody serves the socket, and nothing
    // before signals are caught.
    let place = Whereabouts::of(Ok(client.status().await?));
    let signals = Signals::catch()?;
    let on_terminal = !no_input && io::stdin().is_terminal();
    let terminal = if on_terminal { Some(RawTerminal::begin()?) } else { None };
    let input = if no_input { None } else { Some(Input::begin(on_terminal)?) };
    let screen = Screen { json, raw: on_terminal };
    let ended = session(client, screen, place, input, signals.ended(terminal.as_ref())).await;
    drop(terminal);
    if on_terminal {
        eprintln!();
    }
    ended
}

async fn session(
    client: &Client,
    screen: Screen,
    place: Whereabouts,
    input: Option<Input>,
    signalled: impl Future<Output = Result<Exit, Failure>>,
) -> Result<Exit, Failure> {
    let leave = if screen.raw { "; Ctrl-] leaves" } else { "" };
    screen.notice(&format!("{}{leave}", place.words()))?;
    let typing = async {
        let Some(Input { pieces, detached }) = input else {
            return std::future::pending().await;
        };
        tokio::select! {
            () = send(client, pieces) => {}
            () = left(detached) => {}
        }
        if !screen.raw {
            // The pipe has ended; the guest goes on.
            std::future::pending().await
        }
    };
    tokio::select! {
        () = typing => Ok(Exit::Done),
        ended = show(client, screen) => ended,
        ended = look(client, screen, place) => ended,
        ended = signalled => ended,
    }
}

/// Shows what the guest says. Ends when nobody reads it.
async fn show(client: &Client, screen: Screen) -> Result<Exit, Failure> {
    let mut process = None;
    let mut after = 0;
    let mut is_past = true;
    loop {
        let Ok(page) = client.console(after, FOLLOW_WAIT).await else {
            // Who that is, or why nobody, is told by `look`.
            tokio::time::sleep(LOOK / 4).await;
            continue;
        };
        if process.replace(page.process).is_some_and(|before| before != page.process) {
            // Another process: what it said is all new.
            after = 0;
            continue;
        }
        after = page.next;
        let shown = if is_past && screen.raw { without_questions(&page.bytes) } else { page.bytes };
        is_past = false;
        match screen.show(&shown) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            shown => shown?,
        }
    }
}

/// Tells where the guest is, when that changes.
async fn look(client: &Client, screen: Screen, mut place: Whereabouts) -> Result<Exit, Failure> {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Whereabouts::of(client.status().await);
        if now != place {
            screen.notice(now.words())?;
            place = now;
        }
    }
}

/// Sends what is typed, in order. What is typed while the guest is elsewhere
/// is lost, as on a cable that is not plugged in.
async fn send(client: &Client, mut pieces: mpsc::Receiver<Vec<u8>>) {
    while let Some(mut piece) = pieces.recv().await {
        while !piece.is_empty() {
            match client.console_input(piece.clone()).await {
                Ok(typed) => drop(piece.drain(..typed.taken.min(piece.len()))),
                // It is busy.
                Err(ClientError::Refused { status: 503, .. }) => {}
                Err(error) => {
                    tracing::debug!(%error, "what was typed is lost");
                    break;
                }
            }
            if !piece.is_empty() {
                tokio::time::sleep(NO_ROOM_WAIT).await;
            }
        }
    }
}

/// Resolves soon after the detaching key: what was typed before it is given a
/// moment to arrive.
async fn left(detached: oneshot::Receiver<()>) {
    if detached.await.is_err() {
        // A pipe has no keys.
        return std::future::pending().await;
    }
    tokio::time::sleep(LAST_WORDS_WAIT).await;
}

/// Signals that end the session in good order, and the one after a stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resumed: Signal,
}

impl Signals {
    fn catch() -> Result<Self, Failure> {
        let catch = |kind| {
            signal(kind).map_err(|source| ShellError::System { action: "catch signals", source })
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
            quit: catch(SignalKind::quit())?,
            resumed: catch(SignalKind::from_raw(nix::sys::signal::Signal::SIGCONT as i32))?,
        })
    }

    /// Resolves when the process is told to end.
    async fn ended(mut self, terminal: Option<&RawTerminal>) -> Result<Exit, Failure> {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return Ok(Exit::Done),
                _ = self.terminate.recv() => return Ok(Exit::Done),
                _ = self.hangup.recv() => return Ok(Exit::Done),
                _ = self.quit.recv() => return Ok(Exit::Done),
                _ = self.resumed.recv() => if let Some(terminal) = terminal { terminal.again()? },
            }
        }
    }
}

/// Where things are shown.
#[derive(Debug, Clone, Copy)]
struct Screen {
    json: bool,
    /// Lines need a carriage return, too.
    raw: bool,
}

impl Screen {
    fn show(self, said: &[u8]) -> io::Result<()> {
        if said.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", json!({ "said": String::from_utf8_lossy(said) }))?;
        } else {
            out.write_all(said)?;
        }
        out.flush()
    }

    fn notice(self, words: &str) -> io::Result<()> {
        if self.json {
            let mut out = io::stdout().lock();
            writeln!(out, "{}", json!({ "notice": words }))?;
            return out.flush();
        }
        let mut out = io::stderr().lock();
        if self.raw {
            write!(out, "\r\n[romulus: {words}]\r\n")?;
        } else {
            writeln!(out, "romulus: {words}")?;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_place_is_told_in_words() {
        let status = |role, state| {
            let mut status = crate::control::tests::sample_status();
            status.role = role;
            status.peers[0].state = state;
            Whereabouts::of(Ok(status))
        };
        assert_eq!(
            status(Role::Primary, PeerState::InSync),
            Whereabouts::Here("web-1 on node-a".to_owned())
        );
        assert_eq!(
            status(Role::Backup, PeerState::Primary).words(),
            "node-a stands by and web-1 runs on node-b: attach there, or wait here"
        );
        assert_eq!(
            status(Role::Backup, PeerState::Idle).words(),
            "node-a stands by and no primary is connected, or wait here"
        );
        let gone = Whereabouts::of(Err(ClientError::Silent { path: "/run/x.sock".into() }));
        assert_eq!(
            gone.words(),
            "the control API at /run/x.sock does not answer: see the process's log; waiting"
        );
    }
}
