//! The network: links that are cut and heal, and the sessions over them.
//!
//! What a packet carries is never lost within a session: it comes later, after
//! what was before it on its stream. What does not come at all ends the
//! session, at each end in its own time.

mod session;

use std::time::Duration;

pub(super) use session::{Parcel, Pipe, Session, SessionId, Side};

use super::happening::ProcessId;

/// Links and sessions.
#[derive(Debug)]
pub(super) struct Network {
    machines: usize,
    /// From each machine to each other.
    links: Vec<Link>,
    sessions: Vec<Session>,
    /// Sessions of which an end may still be open.
    live: Vec<SessionId>,
}

/// One direction between two machines.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    cut_since: Duration,
    cut_until: Duration,
}

impl Network {
    pub(super) fn new(machines: usize) -> Self {
        let links = vec![Link::default(); machines * machines];
        Self { machines, links, sessions: Vec::new(), live: Vec::new() }
    }

    fn link(&self, from: usize, to: usize) -> Link {
        self.links[from * self.machines + to]
    }

    /// Nothing gets through from here on until then.
    pub(super) fn cut(&mut self, from: usize, to: usize, now: Duration, until: Duration) {
        let link = &mut self.links[from * self.machines + to];
        if link.cut_until <= now {
            link.cut_since = now;
        }
        link.cut_until = link.cut_until.max(until);
    }

    /// Everything gets through again.
    pub(super) fn heal(&mut self) {
        self.links.fill(Link::default());
    }

    /// Until when nothing gets through, if that is so now.
    pub(super) fn cut_until(&self, from: usize, to: usize, now: Duration) -> Option<Duration> {
        let until = self.link(from, to).cut_until;
        (until > now).then_some(until)
    }

    /// For how long nothing has got through.
    pub(super) fn cut_for(&self, from: usize, to: usize, now: Duration) -> Duration {
        self.cut_until(from, to, now)
            .map_or(Duration::ZERO, |_| now - self.link(from, to).cut_since)
    }

    /// A session that `primary` begins with a machine.
    pub(super) fn open(&mut self, primary: ProcessId, backup: u8, streams: usize) -> SessionId {
        let id = SessionId::new(self.sessions.len());
        self.sessions.push(Session::new(primary, backup, streams));
        self.live.push(id);
        id
    }

    pub(super) fn session(&self, id: SessionId) -> &Session {
        &self.sessions[id.index()]
    }

    pub(super) fn session_mut(&mut self, id: SessionId) -> &mut Session {
        &mut self.sessions[id.index()]
    }

    /// The sessions of which an end is open.
    pub(super) fn live(&mut self) -> Vec<SessionId> {
        let sessions = &self.sessions;
        self.live.retain(|id| sessions[id.index()].is_live());
        self.live.clone()
    }
}
