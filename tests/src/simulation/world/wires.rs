//! Frames onto the network and off it, and how sessions end.

use std::{rc::Rc, time::Duration};

use arbiter::Term;
use checkpoint::chunk::Chunk;
use transport::wire::{self, Frame};

use super::World;
use crate::simulation::{
    happening::WorldHappening,
    network::{Parcel, Pipe, SessionId, Side},
};

impl World {
    /// How long a message takes.
    pub(in crate::simulation) fn latency(&mut self) -> Duration {
        let range = self.plan.latency.clone();
        self.chance.micros(range)
    }

    /// A control frame or a greeting, on its stream.
    pub(in crate::simulation) fn send(
        &mut self,
        session: SessionId,
        pipe: Pipe,
        term: Term,
        frame: Frame,
    ) {
        let octets = wire::encode(term, &frame).expect("small frames are within the limits");
        self.journal.mix_octets(&octets);
        self.put(session, pipe, octets);
    }

    fn put(&mut self, session: SessionId, pipe: Pipe, octets: Vec<u8>) {
        let ends = self.network.session(session);
        if ends.is_broken() {
            return;
        }
        let mut at = self.now + self.latency();
        if self.faulty && self.chance.hits(self.plan.rates.loss) {
            at += self.chance.micros(5_000..60_000);
        }
        let parcel = Parcel { at, octets };
        if let Some(at) = self.network.session_mut(session).push(pipe, parcel) {
            self.at(at, WorldHappening::Deliver(session, pipe));
        }
    }

    /// Queues a chunk for a session, behind those before it.
    pub(in crate::simulation) fn queue_chunk(&mut self, session: SessionId, chunk: Rc<Chunk>) {
        self.network.session_mut(session).queue.push_back(chunk);
        self.pump(session);
    }

    /// Whether a chunk sent now would be on its way at once.
    pub(in crate::simulation) fn has_window(&self, session: SessionId) -> bool {
        let session = self.network.session(session);
        session.in_window < self.plan.shape.window && session.queue.is_empty()
    }

    /// A chunk has left the window: others may follow.
    pub(in crate::simulation) fn free_window(&mut self, session: SessionId) {
        self.network.session_mut(session).in_window -= 1;
        self.pump(session);
    }

    /// Sends queued chunks as far as the window is open, under the term that
    /// the primary's frames carry now.
    fn pump(&mut self, id: SessionId) {
        loop {
            let window = self.plan.shape.window;
            let session = self.network.session_mut(id);
            if session.process(Side::Primary).is_none() || session.in_window >= window {
                return;
            }
            let Some(chunk) = session.queue.pop_front() else { return };
            session.in_window += 1;
            let (pipe, primary) = (session.next_data(), session.primary());
            let term = self.machine(primary).term;
            let frame = Frame::Chunk((*chunk).clone());
            let mut octets = wire::encode(term, &frame).expect("chunks are within the limits");
            self.journal.mix_octets(&chunk.digest[..8]);
            if self.faulty && self.chance.hits(self.plan.rates.damage) {
                self.flip(&mut octets);
                self.report.damaged_chunks += 1;
            }
            self.put(id, pipe, octets);
        }
    }

    /// Flips a bit behind what a stream's reader needs to find the next frame:
    /// of epoch, index, head or content.
    fn flip(&mut self, octets: &mut [u8]) {
        let first = 16;
        let at = first + self.chance.index(octets.len() - first);
        octets[at] ^= 1 << self.chance.below(8);
    }

    /// One end lets go of a session. The other is told, if that gets through.
    pub(in crate::simulation) fn close(&mut self, id: SessionId, side: Side) {
        if !self.network.session_mut(id).shut(side) || self.network.session(id).is_broken() {
            return;
        }
        let session = self.network.session(id);
        let (from, to) = (session.host(side).into(), session.host(side.other()).into());
        let arrived = self.now + self.plan.latency_max();
        let cut = self.network.cut_until(from, to, self.now).is_some();
        let heard_out = !cut && self.chance.hits(500);
        let by = if heard_out { arrived } else { Duration::ZERO };
        self.network.session_mut(id).keep_until(side, by);
        let told_at = if cut {
            self.now + self.plan.timing.idle_timeout
        } else if heard_out {
            arrived + Duration::from_micros(1)
        } else {
            self.now + self.latency()
        };
        self.at(told_at, WorldHappening::Lost(id, side.other()));
    }

    /// Both ends find, each in its own time, that nothing gets through.
    pub(in crate::simulation) fn break_session(&mut self, id: SessionId, within: Duration) {
        self.network.session_mut(id).break_off();
        for side in [Side::Primary, Side::Backup] {
            let delay = self.chance.micros(1..within.as_micros() as u64 + 2);
            self.later(delay, WorldHappening::Lost(id, side));
        }
    }

    /// The process at one end is no more.
    pub(in crate::simulation) fn orphan(&mut self, id: SessionId, side: Side) {
        self.network.session_mut(id).shut(side);
        let arrived = self.now + self.plan.latency_max();
        self.network.session_mut(id).keep_until(side, arrived);
        let idle = self.plan.timing.idle_timeout;
        let delay = self.plan.latency_max() + self.chance.micros(1..idle.as_micros() as u64);
        self.later(delay, WorldHappening::Lost(id, side.other()));
    }

    /// Nothing gets through for a while, from one machine to another.
    pub(in crate::simulation) fn cut(&mut self, from: usize, to: usize, length: Duration) {
        self.network.cut(from, to, self.now, self.now + length);
        for id in self.network.live() {
            let session = self.network.session(id);
            let ends = [Side::Primary, Side::Backup].map(|side| usize::from(session.host(side)));
            if ends == [from, to] || ends == [to, from] {
                self.later(self.plan.timing.idle_timeout, WorldHappening::IdleCheck(id));
            }
        }
    }

    /// Ends a session over which nothing has come for too long.
    pub(in crate::simulation) fn check_idle(&mut self, id: SessionId) {
        let session = self.network.session(id);
        if session.is_broken() {
            return;
        }
        let hosts = [session.host(Side::Primary), session.host(Side::Backup)].map(usize::from);
        let cut_for = |from, to| self.network.cut_for(from, to, self.now);
        let frozen_for = |host: usize| {
            self.machines[host].frozen_since.map_or(Duration::ZERO, |since| self.now - since)
        };
        let silences = [
            cut_for(hosts[0], hosts[1]),
            cut_for(hosts[1], hosts[0]),
            frozen_for(hosts[0]),
            frozen_for(hosts[1]),
        ];
        if silences.into_iter().any(|silence| silence >= self.plan.timing.idle_timeout) {
            self.break_session(id, Duration::from_millis(5));
        }
    }
}
