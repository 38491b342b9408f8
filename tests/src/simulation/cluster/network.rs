//! The network between nodes: sessions, latencies, cut links, lost chunks.
//!
//! Control messages of a session arrive in their order or the session breaks;
//! chunks arrive in any order, or not at all.

use std::time::Duration;

use arbiter::{NodeId, Term};
use checkpoint::{
    Epoch, backup,
    chunk::{ChunkId, Digest},
    message::{Hello, Refusal, Welcome},
    primary,
};

use super::{Cluster, Happening, Session, machine, vm};
use crate::simulation::node::{Role, chunk_digests};

impl Cluster {
    /// When something sent now arrives; later if the link is cut.
    pub(super) fn arrival(&mut self, from: usize, to: usize) -> Option<Duration> {
        if self.cut.contains(&(from, to)) {
            return None;
        }
        Some(self.now + self.chance.between(50..2_000))
    }

    pub(super) fn session_of(&self, primary: usize, backup: usize) -> Option<u64> {
        let wanted = |session: &Session| session.primary == primary && session.backup == backup;
        self.sessions.iter().find(|(_, session)| wanted(session)).map(|(id, _)| *id)
    }

    pub(super) fn index(&self, id: &NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == *id).expect("a known node")
    }

    /// An ordered, reliable stream: what a cut link swallows breaks the
    /// session, as a transport would notice after its time-out.
    pub(super) fn ordered(&mut self, session: u64, from: usize, to: usize, happening: Happening) {
        match self.arrival(from, to) {
            Some(at) => {
                let key = (session, from < to);
                let last = self.in_order.get(&key).copied().unwrap_or_default();
                let at = at.max(last + Duration::from_micros(1));
                self.in_order.insert(key, at);
                self.at(at, to, happening);
            }
            None => self.break_session(session),
        }
    }

    pub(super) fn break_session(&mut self, id: u64) {
        let Some(session) = self.sessions.remove(&id) else { return };
        for (to, peer) in [(session.primary, session.backup), (session.backup, session.primary)] {
            let delay = self.chance.between(100..400_000);
            self.later(delay, to, Happening::Broken { to, peer, session: id });
        }
    }

    pub(super) fn dial(&mut self, primary: usize, backup: usize) {
        let Role::Primary(machine, _) = &self.nodes[primary].role else { return };
        let term = machine.register().term;
        let session = self.next_session;
        self.next_session += 1;
        let knock = Happening::Knock { to: backup, from: primary, session, term };
        match self.arrival(primary, backup) {
            Some(at) if !matches!(self.nodes[backup].role, Role::Down) => {
                self.at(at, backup, knock);
            }
            Some(_) | None => {
                let failed = Happening::Broken { to: primary, peer: backup, session };
                self.later(Duration::from_millis(25), primary, failed);
            }
        }
    }

    pub(super) fn knock(&mut self, to: usize, from: usize, session: u64, term: Term) {
        let hello = Hello { versions: vec!["romulus/1".into()], vm: vm(), machine: machine() };
        let peer = self.nodes[from].id.clone();
        let Role::Backup(machine, _) = &mut self.nodes[to].role else {
            let reply = Err(Refusal::Promoting);
            self.later(
                Duration::from_micros(500),
                from,
                Happening::Greeted { to: from, from: to, session, reply },
            );
            return;
        };
        machine.handle(self.now, backup::Event::Knock { peer, term, hello });
        self.act_backup(to, Some((from, session)));
    }

    pub(super) fn greeted(
        &mut self,
        to: usize,
        from: usize,
        session: u64,
        reply: Result<Welcome, Refusal>,
    ) {
        let backup = self.nodes[from].id.clone();
        match reply {
            Ok(welcome) => {
                if self.sessions.contains_key(&session) {
                    let event = primary::Event::LinkUp {
                        backup,
                        committed: welcome.committed,
                        staging_bytes_max: welcome.staging_bytes_max,
                    };
                    self.tell_primary(to, event);
                }
            }
            Err(refusal) => {
                self.tell_primary(to, primary::Event::LinkRefused { backup, refusal });
                let again = Happening::Broken { to, peer: from, session };
                self.later(Duration::from_millis(25), to, again);
            }
        }
    }

    pub(super) fn broken(&mut self, to: usize, peer: usize, session: u64) {
        if matches!(self.nodes[to].role, Role::Backup(..)) {
            let newer = self.sessions.iter().any(|(id, s)| *id > session && s.backup == to);
            if !newer {
                self.tell_backup(to, backup::Event::LinkDown);
            }
        } else if matches!(self.nodes[to].role, Role::Primary(..))
            && self.session_of(to, peer).is_none()
        {
            let backup = self.nodes[peer].id.clone();
            if let Role::Primary(_, guest) = &mut self.nodes[to].role {
                guest.follows.remove(&backup);
            }
            self.tell_primary(to, primary::Event::LinkDown { backup });
            self.dial(to, peer);
        }
    }

    pub(super) fn send_chunk(
        &mut self,
        from: usize,
        to: usize,
        id: ChunkId,
        digest: Digest,
        work: u64,
    ) {
        let Some(session) = self.session_of(from, to) else { return };
        let Role::Primary(machine, _) = &self.nodes[from].role else { return };
        let term = machine.register().term;
        match self.arrival(from, to) {
            Some(at) => self.at(at, to, Happening::Chunk { to, session, term, id, digest, work }),
            None => self.break_session(session),
        }
    }

    pub(super) fn send_epoch(
        &mut self,
        from: usize,
        to: usize,
        epoch: Epoch,
        only: Option<&[u32]>,
    ) {
        let Role::Primary(_, guest) = &self.nodes[from].role else { return };
        let Some(work) = guest.cuts.get(&epoch).copied() else { return };
        for (index, digest) in chunk_digests(epoch, work).into_iter().enumerate() {
            let index = index as u32;
            if only.is_none_or(|only| only.contains(&index)) {
                self.send_chunk(from, to, ChunkId { epoch, index }, digest, work);
            }
        }
    }
}
