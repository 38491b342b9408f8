//! Sessions with backups: one dialing task per peer. Mirrors
//! `tools/src/primary/peers.rs`.

use std::{collections::BTreeMap, time::Duration};

use arbiter::{NodeId, Term};
use checkpoint::message::{Hello, ToBackup};
use transport::wire::Frame;

use crate::simulation::{
    happening::{Happening, ProcessId},
    network::{Pipe, SessionId, Side},
    world::World,
};

const BACK_OFF_MIN: Duration = Duration::from_millis(4);
const BACK_OFF_MAX: Duration = Duration::from_millis(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Until the dial that is planned.
    Waiting,
    Dialing(SessionId),
    Up(SessionId),
}

#[derive(Debug)]
struct Peer {
    state: State,
    back_off: Duration,
    /// The dial that is planned.
    dial: u32,
}

/// All peers that are dialed.
#[derive(Debug)]
pub(super) struct Peers {
    me: ProcessId,
    hello: Hello,
    peers: BTreeMap<NodeId, Peer>,
    dials: u32,
}

impl Peers {
    pub(super) fn new(me: ProcessId, hello: Hello) -> Self {
        Self { me, hello, peers: BTreeMap::new(), dials: 0 }
    }

    /// Keeps dialing `name` from now on.
    pub(super) fn connect(&mut self, world: &mut World, name: &NodeId) {
        if world.host_of(name).is_none() || self.peers.contains_key(name) {
            return;
        }
        let peer = Peer { state: State::Waiting, back_off: BACK_OFF_MIN, dial: 0 };
        self.peers.insert(name.clone(), peer);
        self.plan(world, name, Duration::ZERO);
    }

    /// Ends the session; without `redial`, dialing as well.
    pub(super) fn disconnect(&mut self, world: &mut World, name: &NodeId, redial: bool) {
        let Some(peer) = self.peers.get(name) else { return };
        match (peer.state, redial) {
            // A handshake under way is as good as a new one.
            (State::Dialing(_), true) => {}
            (State::Dialing(session) | State::Up(session), _) => {
                world.close(session, Side::Primary);
                if redial {
                    let delay = world.chance.micros(10..300);
                    self.wait(world, name, delay);
                } else {
                    self.peers.remove(name);
                }
            }
            (State::Waiting, true) => self.plan(world, name, Duration::ZERO),
            (State::Waiting, false) => drop(self.peers.remove(name)),
        }
    }

    /// The session is over; dials again after `delay`.
    fn wait(&mut self, world: &mut World, name: &NodeId, delay: Duration) {
        let peer = self.peers.get_mut(name).expect("a peer");
        peer.state = State::Waiting;
        peer.back_off = BACK_OFF_MIN;
        self.plan(world, name, delay);
    }

    fn plan(&mut self, world: &mut World, name: &NodeId, delay: Duration) {
        self.dials += 1;
        let dial = self.dials;
        self.peers.get_mut(name).expect("a peer").dial = dial;
        world.process_later(self.me, delay, Happening::Dial(dial));
    }

    /// Waits longer from try to try.
    fn back_off(&mut self, world: &mut World, name: &NodeId, factor: u32) {
        let peer = self.peers.get_mut(name).expect("a peer");
        peer.state = State::Waiting;
        peer.back_off = (peer.back_off * factor).min(BACK_OFF_MAX);
        let delay = peer.back_off;
        self.plan(world, name, delay);
    }

    /// A planned dial.
    pub(super) fn dial(&mut self, world: &mut World, number: u32, term: Term) {
        let planned = |peer: &Peer| peer.dial == number && peer.state == State::Waiting;
        let named = |(_, peer): &(&NodeId, &mut Peer)| planned(peer);
        let Some((name, peer)) = self.peers.iter_mut().find(named) else { return };
        // A name may have moved to another host since.
        let host = world.host_of(name).expect("somebody has that name");
        let session = world.network.open(self.me, host, world.plan.shape.data_streams);
        peer.state = State::Dialing(session);
        world.send(session, Pipe::Down, term, Frame::Hello(self.hello.clone()));
        let patience = world.plan.timing.connect_timeout;
        world.process_later(self.me, patience, Happening::DialGivesUp(session));
    }

    /// A handshake has taken too long.
    pub(super) fn give_up(&mut self, world: &mut World, session: SessionId) {
        if let Some(name) = self.in_state(State::Dialing(session)) {
            world.close(session, Side::Primary);
            self.back_off(world, &name, 2);
        }
    }

    /// The backup takes the session; who it is, if it is still waited for.
    pub(super) fn welcomed(&mut self, session: SessionId) -> Option<NodeId> {
        let name = self.in_state(State::Dialing(session))?;
        let peer = self.peers.get_mut(&name).expect("found above");
        peer.state = State::Up(session);
        peer.back_off = BACK_OFF_MIN;
        Some(name)
    }

    /// The backup does not take the session.
    pub(super) fn refused(&mut self, world: &mut World, session: SessionId) -> Option<NodeId> {
        let name = self.in_state(State::Dialing(session))?;
        world.close(session, Side::Primary);
        self.back_off(world, &name, 4);
        Some(name)
    }

    /// A session is over; whose, if it stood.
    pub(super) fn lost(&mut self, world: &mut World, session: SessionId) -> Option<NodeId> {
        if let Some(name) = self.in_state(State::Dialing(session)) {
            self.back_off(world, &name, 2);
            return None;
        }
        let name = self.in_state(State::Up(session))?;
        let delay = self.peers[&name].back_off;
        self.wait(world, &name, delay);
        Some(name)
    }

    fn in_state(&self, state: State) -> Option<NodeId> {
        self.peers.iter().find(|(_, peer)| peer.state == state).map(|(name, _)| name.clone())
    }

    /// The session with `name`, if one stands.
    pub(super) fn session(&self, name: &NodeId) -> Option<SessionId> {
        match self.peers.get(name)?.state {
            State::Up(session) => Some(session),
            State::Waiting | State::Dialing(_) => None,
        }
    }

    /// Who is at the other end of a session that stands.
    pub(super) fn peer_of(&self, session: SessionId) -> Option<NodeId> {
        self.in_state(State::Up(session))
    }

    /// Sends a control message, if there is a session.
    pub(super) fn send(&self, world: &mut World, name: &NodeId, term: Term, message: ToBackup) {
        if let Some(session) = self.session(name) {
            if let ToBackup::BeginSeed { image } = message {
                world.network.session_mut(session).seeds = Some(image);
            }
            world.send(session, Pipe::Down, term, Frame::ToBackup(message));
        }
    }
}
