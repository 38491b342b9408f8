//! The protocol as a model: the specification, to be read from top to bottom.
//!
//! A guest does steps, and says each. Every step is an epoch of its own, so "the
//! guest at step 3" and "the image of epoch 3" are the same number. Nodes are
//! numbered; node 0 runs the guest at first. Messages lie on the wire for ever:
//! they may arrive late, in any order, several times, or never. A node that does
//! nothing for long is one that is frozen or cut off. So there is no time here,
//! and none is needed.

use super::checker::Model;

/// A set of nodes, a bit each.
type Nodes = u8;
/// A step of the guest, and the epoch that it ends.
type Step = u8;
type Node = u8;

/// Most nodes.
pub const NODES_MAX: usize = 3;

/// What the arbiter keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register {
    /// Rises with every change.
    pub term: u8,
    /// Who may run the guest.
    pub primary: Node,
    /// Who may take over.
    pub in_sync: Nodes,
}

/// A compare-and-set, with a stamp unlike any other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// What the register must be.
    pub expected: Register,
    /// What it is to be.
    pub target: Register,
    /// Who asks, and which of its questions it is.
    pub stamp: (Node, u8),
}

/// What goes between a primary and a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    /// Its sender's.
    pub term: u8,
    /// Whose session it belongs to: a primary's, by the term that it began
    /// with, …
    pub reign: u8,
    /// … and a backup's process.
    pub backup: (Node, u8),
    /// What it is about.
    pub step: Step,
}

/// What is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    /// A seed and the first checkpoint, whole.
    Join(Frame),
    /// An epoch, whole.
    Epoch(Frame),
    /// Everything up to its step would be in a promotion.
    Ack(Frame),
    /// The guest stands at this step and is another's now, of the reign that
    /// begins with this register. Who has all of it goes on under that one.
    HandedOver(Frame, Register),
    /// To the arbiter.
    Ask(Request),
    /// From the arbiter: what the register holds, and whether by this request.
    Answer {
        /// Which question it answers.
        stamp: (Node, u8),
        /// The register is as asked for, by this request.
        granted: bool,
        /// What it holds.
        register: Register,
    },
}

/// What a node does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Stands by, perhaps with an image. While it asks for a promotion, it
    /// acknowledges nothing.
    Backup {
        /// What it has.
        image: Option<Image>,
        /// It asks for a promotion.
        asking: bool,
    },
    /// Runs the guest.
    Primary(Reign),
}

/// What a backup has: a step of the guest, by the seed of a reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image {
    reign: u8,
    step: Step,
}

/// A primary from its promotion to its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reign {
    /// The term that it began with: tells its seeds from those of others.
    term: u8,
    /// What the guest has done.
    step: Step,
    /// Backups that output waits for, and that are not admitted yet.
    joining: Nodes,
    /// The step of each one's seed, and the last that it has acknowledged.
    joined_at: [Step; NODES_MAX],
    acked: [Step; NODES_MAX],
    /// The process that was seeded.
    lives: [u8; NODES_MAX],
    /// For the checker only: another went on from this step.
    cut_off: Option<Step>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    role: Role,
    /// The register, as it knows it.
    knows: Register,
    asked: Option<Request>,
    /// Questions of this node so far.
    stamps: u8,
    /// Processes of this node so far.
    life: u8,
}

/// Everything at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    register: Register,
    /// Whose request set it.
    stamp: (Node, u8),
    peers: Vec<Peer>,
    /// Sorted.
    wire: Vec<Message>,
    /// The last step that the world was told of.
    told: Step,
    /// So many crashes may come.
    crashes: u8,
    /// Something was said that the guest, as it goes on, does not know.
    contradicted: bool,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The guest does a step. Without followers it says it at once.
    Work(Node),
    /// A backup is given a seed and the checkpoint that ends it.
    Seed(Node, Node),
    /// Every follower has committed up to this step: it is said.
    Release(Node, Step),
    /// What a follower has not acknowledged is sent again, under this term.
    Resend(Node, Node),
    /// The arbiter is asked.
    Asks(Node, Asks),
    /// A joining backup is given up.
    GiveUp(Node, Node),
    /// A message arrives.
    Arrives(Message),
    /// A node reads the register.
    Reads(Node),
    /// A process dies, and one with nothing takes its place.
    Crash(Node),
}

/// What a node wants of the arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// A joining backup has committed its first checkpoint.
    Admit(Node),
    /// A member is not heard of.
    Drop(Node),
    /// The primary is not heard of.
    Promote,
    /// All is committed and said, and the guest stands still.
    HandOver(Node),
}

/// A bug that is put in, to see that the checker finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Output does not wait for anybody.
    ReleaseBeforeAck,
    /// Output waits for one follower only.
    ReleaseOnFirstAck,
    /// Who asks for a drop goes on as if it were granted.
    PassBeforeDropped,
    /// Who asks for a promotion takes over as if it were granted.
    PromoteBeforeGranted,
    /// Who asks for a promotion goes on acknowledging.
    AckWhileAsking,
    /// A backup is admitted before it has committed anything.
    AdmitBeforeAck,
    /// Output does not wait for who joins.
    PassWhileJoining,
    /// The arbiter does not compare.
    NoCompare,
    /// A successor does not wait for those who are in sync with it.
    PassAfterHandOver,
}

/// The model: how large, and with which bug.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    /// Nodes; one of them runs the guest.
    pub nodes: u8,
    /// Steps of the guest.
    pub steps: Step,
    /// Terms.
    pub terms: u8,
    /// Crashes.
    pub crashes: u8,
    /// What is wrong, if something is.
    pub bug: Option<Bug>,
}

/// What [`Model::sometimes`] sees.
pub const PROMOTED_WITH_ALL_TOLD: u32 = 1;
/// A guest was handed over.
pub const HANDED_OVER: u32 = 2;
/// A guest went on alone after its backup was dropped.
pub const SOLO_AFTER_DROP: u32 = 4;
/// A former primary has not noticed yet.
pub const FORMER_PRIMARY: u32 = 8;
/// A guest went back to who had handed it over, because its successor was lost.
pub const CAME_BACK: u32 = 16;

fn has(set: Nodes, node: Node) -> bool {
    set >> node & 1 == 1
}

fn bit(node: Node) -> Nodes {
    1 << node
}

const NOTHING: Register = Register { term: 0, primary: 0, in_sync: 0 };

impl Reign {
    fn new(term: u8, step: Step) -> Self {
        let none = [0; NODES_MAX];
        Self { term, step, joining: 0, joined_at: none, acked: none, lives: none, cut_off: None }
    }

    /// Whether an acknowledgement is of a session of this reign, and news.
    fn takes(&self, frame: &Frame) -> bool {
        let (backup, life) = frame.backup;
        let place = usize::from(backup);
        (self.term, self.lives[place]) == (frame.reign, life) && self.acked[place] < frame.step
    }

    /// A frame to a backup's process that was seeded.
    fn frame(&self, term: u8, to: Node, step: Step) -> Frame {
        Frame { term, reign: self.term, backup: (to, self.lives[usize::from(to)]), step }
    }
}

impl Peer {
    /// A frame of this term came, and is not stale.
    fn hears(&mut self, term: u8) {
        if term > self.knows.term {
            self.knows = Register { term, ..NOTHING };
        }
    }

    /// Whose acknowledgement output waits for.
    fn followers(&self, reign: &Reign) -> Nodes {
        self.knows.in_sync | reign.joining
    }
}

impl State {
    fn send(&mut self, message: Message) {
        if let Err(place) = self.wire.binary_search(&message) {
            self.wire.insert(place, message);
        }
    }

    fn peer(&mut self, node: Node) -> &mut Peer {
        &mut self.peers[usize::from(node)]
    }

    fn reign(&mut self, node: Node) -> &mut Reign {
        match &mut self.peer(node).role {
            Role::Primary(reign) => reign,
            Role::Backup { .. } => unreachable!("asked of a primary"),
        }
    }

    /// A process with nothing takes the place of what was there.
    fn empty(&mut self, node: Node, knows: Register) {
        let peer = self.peer(node);
        peer.role = Role::Backup { image: None, asking: false };
        (peer.knows, peer.asked) = (knows, None);
        peer.life += 1;
    }

    /// The world hears of a step from this node.
    fn tell(&mut self, node: Node, step: Step) {
        let cut_off = self.reign(node).cut_off;
        self.contradicted |= cut_off.is_some_and(|known| step > known);
        self.told = self.told.max(step);
    }

    /// The register names this node: it runs the guest from its image on. Who is
    /// in sync has all of it, by a handover.
    fn promote(&mut self, node: Node, register: Register) {
        let Role::Backup { image: Some(image), .. } = self.peer(node).role else {
            return self.empty(node, register);
        };
        let mut reign = Reign::new(register.term, image.step);
        if register.term < self.register.term {
            // Handed to it, and somebody in sync has gone on before it began: it
            // may say nothing.
            reign.cut_off = Some(image.step);
        } else {
            self.goes_on(image.step);
        }
        for (place, peer) in self.peers.iter().enumerate() {
            if has(register.in_sync, place as Node) {
                (reign.acked[place], reign.lives[place]) = (image.step, peer.life);
            }
        }
        let peer = self.peer(node);
        peer.role = Role::Primary(reign);
        (peer.knows, peer.asked) = (register, None);
    }

    /// Who takes over must know all that was told; whoever ran the guest before
    /// may not speak of what is not known there.
    fn goes_on(&mut self, step: Step) {
        self.contradicted |= step < self.told;
        for peer in &mut self.peers {
            if let Role::Primary(former) = &mut peer.role {
                let known = former.cut_off.unwrap_or(Step::MAX).min(step);
                former.cut_off = Some(known);
            }
        }
    }

    /// A primary has handed its guest over and stands by with it.
    fn handed_over(&mut self, node: Node, register: Register) {
        let reign = self.reign(node).clone();
        for to in (0..NODES_MAX as Node).filter(|to| *to != node) {
            if to == register.primary || has(register.in_sync, to) {
                let frame = reign.frame(register.term, to, reign.step);
                self.send(Message::HandedOver(frame, register));
            }
        }
        let image = Some(Image { reign: register.term, step: reign.step });
        let peer = self.peer(node);
        peer.role = Role::Backup { image, asking: false };
        (peer.knows, peer.asked) = (register, None);
    }
}

impl Protocol {
    fn has_bug(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Whether a message can still change anything. What cannot is taken off the
    /// wire, so that states that differ in nothing else are one.
    fn matters(&self, state: &State, message: &Message) -> bool {
        match message {
            Message::Join(frame) | Message::Epoch(frame) => {
                let peer = &state.peers[usize::from(frame.backup.0)];
                let newer = match &peer.role {
                    Role::Backup { image, .. } => image
                        .is_none_or(|image| image.reign != frame.reign || image.step <= frame.step),
                    Role::Primary(_) => false,
                };
                newer && peer.life == frame.backup.1 && peer.knows.term <= frame.term
            }
            Message::HandedOver(frame, _) => {
                let peer = &state.peers[usize::from(frame.backup.0)];
                let counts = |image: Image| (image.reign, image.step) == (frame.reign, frame.step);
                matches!(peer.role, Role::Backup { image: Some(image), asking: false } if counts(image))
                    && peer.life == frame.backup.1
                    && peer.knows.term <= frame.term
            }
            Message::Ack(frame) => state.peers.iter().any(|peer| match &peer.role {
                Role::Primary(reign) => peer.knows.term <= frame.term && reign.takes(frame),
                Role::Backup { .. } => false,
            }),
            Message::Ask(request) => {
                let late = request.expected.term < state.register.term;
                let waited = state.peers[usize::from(request.stamp.0)].asked == Some(*request);
                waited || !late || self.has_bug(Bug::NoCompare)
            }
            Message::Answer { stamp, .. } => {
                let asked = state.peers[usize::from(stamp.0)].asked;
                asked.is_some_and(|asked| asked.stamp == *stamp)
            }
        }
    }

    // --- A primary --------------------------------------------------------

    fn primary(&self, state: &State, node: Node, next: &mut Vec<(Action, State)>) {
        let peer = &state.peers[usize::from(node)];
        let Role::Primary(reign) = &peer.role else { return };
        let followers = peer.followers(reign);
        let hands_over = peer.asked.is_some_and(|asked| asked.target.primary != node);
        if reign.step < self.steps && !hands_over {
            next.push((Action::Work(node), self.work(state.clone(), node, followers)));
        }
        let acked = (0..self.nodes).filter(|f| has(followers, *f));
        let acked = acked.map(|follower| reign.acked[usize::from(follower)]);
        let released = if self.has_bug(Bug::ReleaseOnFirstAck) { acked.max() } else { acked.min() };
        if let Some(step) = released.filter(|step| *step > 0) {
            let mut then = state.clone();
            then.tell(node, step);
            next.push((Action::Release(node, step), then));
        }
        for other in (0..self.nodes).filter(|other| *other != node) {
            self.primary_with(state, node, other, next);
        }
        if peer.asked.is_none() && state.register != peer.knows {
            let mut then = state.clone();
            then.empty(node, state.register);
            next.push((Action::Reads(node), then));
        }
    }

    /// The guest does a step. Solo it is said at once; otherwise it is an epoch.
    fn work(&self, mut then: State, node: Node, followers: Nodes) -> State {
        let term = then.peer(node).knows.term;
        let reign = then.reign(node);
        reign.step += 1;
        let step = reign.step;
        for to in (0..self.nodes).filter(|to| has(followers, *to)) {
            let frame = then.reign(node).frame(term, to, step);
            then.send(Message::Epoch(frame));
        }
        let members = then.peer(node).knows.in_sync;
        let waits = if self.has_bug(Bug::PassWhileJoining) { members } else { followers };
        let handed = term == then.reign(node).term;
        let waits = if handed && self.has_bug(Bug::PassAfterHandOver) { 0 } else { waits };
        if waits == 0 || self.has_bug(Bug::ReleaseBeforeAck) {
            then.tell(node, step);
        }
        then
    }

    /// What a primary may do about another node.
    fn primary_with(
        &self,
        state: &State,
        node: Node,
        other: Node,
        next: &mut Vec<(Action, State)>,
    ) {
        let peer = &state.peers[usize::from(node)];
        let Role::Primary(reign) = &peer.role else { return };
        let (followers, place) = (peer.followers(reign), usize::from(other));
        if !has(followers, other) {
            let mut then = state.clone();
            let life = then.peer(other).life;
            let begun = then.reign(node);
            begun.joining |= bit(other);
            begun.lives[place] = life;
            (begun.joined_at[place], begun.acked[place]) = (begun.step, 0);
            let frame = begun.frame(peer.knows.term, other, begun.step);
            then.send(Message::Join(frame));
            next.push((Action::Seed(node, other), then));
            return;
        }
        next.push((Action::Resend(node, other), resent(state.clone(), node, other)));
        let Some(request) = peer.asked else {
            return self.primary_asks(state, node, other, next);
        };
        // Who may have been admitted is waited for.
        if has(reign.joining, other) && !has(request.target.in_sync, other) {
            next.push((Action::GiveUp(node, other), given_up(state.clone(), node, other)));
        }
    }

    fn primary_asks(
        &self,
        state: &State,
        node: Node,
        other: Node,
        next: &mut Vec<(Action, State)>,
    ) {
        let peer = &state.peers[usize::from(node)];
        let Role::Primary(reign) = &peer.role else { return };
        let (place, members) = (usize::from(other), peer.knows.in_sync);
        let mut ask = |what, primary, in_sync| {
            let then = self.asked(state.clone(), node, primary, in_sync);
            next.extend(then.map(|then| (Action::Asks(node, what), then)));
        };
        if has(reign.joining, other) {
            let joined = reign.acked[place] >= reign.joined_at[place];
            if joined || self.has_bug(Bug::AdmitBeforeAck) {
                ask(Asks::Admit(other), node, members | bit(other));
            }
            next.push((Action::GiveUp(node, other), given_up(state.clone(), node, other)));
            return;
        }
        ask(Asks::Drop(other), node, members & !bit(other));
        let all = (0..self.nodes).filter(|f| has(peer.followers(reign), *f));
        let committed = all.clone().all(|f| reign.acked[usize::from(f)] == reign.step);
        if committed && state.told >= reign.step {
            ask(Asks::HandOver(other), other, members & !bit(other) | bit(node));
        }
    }

    /// A question is put: this register, instead of the one that is known.
    fn asked(&self, mut then: State, node: Node, primary: Node, in_sync: Nodes) -> Option<State> {
        let expected = then.peer(node).knows;
        if expected.term >= self.terms {
            return None;
        }
        let target = Register { term: expected.term + 1, primary, in_sync };
        let peer = then.peer(node);
        peer.stamps += 1;
        let request = Request { expected, target, stamp: (node, peer.stamps) };
        peer.asked = Some(request);
        if self.has_bug(Bug::PassBeforeDropped) && in_sync < expected.in_sync && primary == node {
            peer.knows = target;
        }
        then.send(Message::Ask(request));
        Some(then)
    }

    // --- A backup ---------------------------------------------------------

    fn backup(&self, state: &State, node: Node, next: &mut Vec<(Action, State)>) {
        let peer = &state.peers[usize::from(node)];
        let Role::Backup { image, asking: false } = peer.role else { return };
        if state.register.term > peer.knows.term {
            let mut then = state.clone();
            let (known, register) = (peer.knows, state.register);
            // With others in sync it is a handover, from the register that counted
            // on this image, or of a life before this one.
            let handed = register.term == known.term + 1 && has(known.in_sync, node);
            if register.primary != node {
                then.peer(node).knows = register;
            } else if register.in_sync == 0 || handed {
                then.promote(node, register);
            } else {
                then.empty(node, register);
            }
            next.push((Action::Reads(node), then));
        }
        if image.is_some() && has(peer.knows.in_sync, node) {
            let Some(mut then) = self.asked(state.clone(), node, node, 0) else { return };
            then.peer(node).role = Role::Backup { image, asking: true };
            if self.has_bug(Bug::PromoteBeforeGranted) {
                let target = then.peer(node).asked.expect("asked above").target;
                then.promote(node, target);
            }
            next.push((Action::Asks(node, Asks::Promote), then));
        }
    }

    // --- The wire ---------------------------------------------------------

    fn arrive(&self, mut then: State, message: Message) -> State {
        match message {
            Message::Join(frame) => self.join(&mut then, frame),
            Message::Epoch(frame) => self.epoch(&mut then, frame),
            Message::Ack(frame) => self.acknowledged(&mut then, frame),
            Message::HandedOver(frame, register) => taken_over(&mut then, frame, register),
            Message::Ask(request) => self.decide(&mut then, &request),
            Message::Answer { stamp, granted, register } => {
                let asked = then.peer(stamp.0).asked;
                if asked.is_some_and(|asked| asked.stamp == stamp) {
                    answered(&mut then, stamp.0, granted, register);
                }
            }
        }
        then
    }

    fn join(&self, then: &mut State, frame: Frame) {
        let (node, life) = frame.backup;
        let peer = then.peer(node);
        let Role::Backup { image, asking: false } = &mut peer.role else { return };
        // An image that the register may count on is not given up.
        let counted_on = peer.knows.term == frame.term && has(peer.knows.in_sync, node);
        if peer.life != life || frame.term < peer.knows.term || counted_on {
            return;
        }
        let begun = image.is_some_and(|image| image.reign == frame.reign);
        if !begun || image.is_some_and(|image| image.step < frame.step) {
            *image = Some(Image { reign: frame.reign, step: frame.step });
        }
        let step = image.expect("set above").step;
        peer.hears(frame.term);
        then.send(Message::Ack(Frame { step, ..frame }));
    }

    fn epoch(&self, then: &mut State, frame: Frame) {
        let (node, life) = frame.backup;
        let peer = then.peer(node);
        let Role::Backup { image: Some(image), asking } = &mut peer.role else { return };
        if peer.life != life || frame.term < peer.knows.term || image.reign != frame.reign {
            return;
        }
        if *asking {
            if self.has_bug(Bug::AckWhileAsking) {
                then.send(Message::Ack(frame));
            }
            return;
        }
        if image.step + 1 == frame.step {
            image.step = frame.step;
        }
        let step = image.step;
        peer.hears(frame.term);
        then.send(Message::Ack(Frame { step, ..frame }));
    }

    fn acknowledged(&self, then: &mut State, frame: Frame) {
        let (backup, _) = frame.backup;
        for peer in &mut then.peers {
            let current = peer.knows.term == frame.term;
            let members = peer.knows.in_sync;
            if let Role::Primary(reign) = &mut peer.role
                && has(reign.joining | members, backup)
                && reign.takes(&frame)
                && current
            {
                reign.acked[usize::from(backup)] = frame.step;
            }
        }
    }

    /// The arbiter's compare-and-set.
    fn decide(&self, then: &mut State, request: &Request) {
        let Request { expected, target, stamp } = *request;
        let granted = if then.register == expected || self.has_bug(Bug::NoCompare) {
            (then.register, then.stamp) = (target, stamp);
            true
        } else {
            then.register == target && then.stamp == stamp
        };
        let register = then.register;
        then.send(Message::Answer { stamp, granted, register });
    }
}

fn resent(mut then: State, node: Node, other: Node) -> State {
    let term = then.peer(node).knows.term;
    let reign = then.reign(node).clone();
    let (joined_at, acked) = (reign.joined_at[usize::from(other)], reign.acked[usize::from(other)]);
    if acked < joined_at {
        then.send(Message::Join(reign.frame(term, other, joined_at)));
    }
    for step in acked.max(joined_at) + 1..=reign.step {
        then.send(Message::Epoch(reign.frame(term, other, step)));
    }
    then
}

fn given_up(mut then: State, node: Node, other: Node) -> State {
    then.reign(node).joining &= !bit(other);
    then
}

/// A backup hears that the guest is another's, perhaps its own.
fn taken_over(then: &mut State, frame: Frame, register: Register) {
    let (node, life) = frame.backup;
    let peer = then.peer(node);
    let Role::Backup { image: Some(image), asking: false } = &mut peer.role else { return };
    let has_all = (image.reign, image.step) == (frame.reign, frame.step);
    if !has_all || peer.life != life || frame.term < peer.knows.term {
        return;
    }
    if register.primary == node {
        return then.promote(node, register);
    }
    image.reign = register.term;
    peer.knows = register;
}

/// A node is told how its question ended.
fn answered(then: &mut State, node: Node, granted: bool, register: Register) {
    let peer = then.peer(node);
    peer.asked = None;
    match &mut peer.role {
        Role::Primary(reign) if granted && register.primary == node => {
            reign.joining &= !register.in_sync;
            peer.knows = register;
        }
        Role::Primary(_) if granted => then.handed_over(node, register),
        // Somebody else has won: it is over here.
        Role::Primary(_) => then.empty(node, register),
        Role::Backup { .. } if register.primary == node => then.promote(node, register),
        Role::Backup { asking, .. } if has(register.in_sync, node) => {
            *asking = false;
            peer.knows = register;
        }
        Role::Backup { .. } => then.empty(node, register),
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        let register = Register { term: 1, primary: 0, in_sync: 0 };
        let backup = Role::Backup { image: None, asking: false };
        let peer = Peer { role: backup, knows: NOTHING, asked: None, stamps: 0, life: 0 };
        let mut peers = vec![peer; usize::from(self.nodes)];
        peers[0].role = Role::Primary(Reign::new(1, 1));
        peers[0].knows = register;
        State {
            register,
            stamp: (0, 0),
            peers,
            wire: Vec::new(),
            told: 1,
            crashes: self.crashes,
            contradicted: false,
        }
    }

    fn next(&self, state: &State, next: &mut Vec<(Action, State)>) {
        for node in 0..self.nodes {
            self.primary(state, node, next);
            self.backup(state, node, next);
            if state.crashes > 0 {
                let mut then = state.clone();
                then.crashes -= 1;
                then.empty(node, NOTHING);
                next.push((Action::Crash(node), then));
            }
        }
        for message in &state.wire {
            next.push((Action::Arrives(*message), self.arrive(state.clone(), *message)));
        }
        for (_, then) in next {
            let mut wire = std::mem::take(&mut then.wire);
            wire.retain(|message| self.matters(then, message));
            then.wire = wire;
        }
    }

    fn always(&self, state: &State) -> Result<(), String> {
        if state.contradicted {
            return Err("something was said that is forgotten".to_owned());
        }
        for (node, peer) in (0..).zip(&state.peers) {
            match &peer.role {
                Role::Backup { image: Some(image), .. } => {
                    if has(state.register.in_sync, node) && image.step < state.told {
                        return Err(format!("{node} may take over and does not know all"));
                    }
                }
                Role::Primary(reign) if peer.followers(reign) == 0 && peer.asked.is_none() => {
                    if state.register != peer.knows {
                        return Err(format!("{node} speaks freely without the right to"));
                    }
                }
                Role::Backup { image: None, .. } | Role::Primary(_) => {}
            }
        }
        Ok(())
    }

    fn sometimes(&self, state: &State) -> u32 {
        let runs = |node: Node| matches!(state.peers[usize::from(node)].role, Role::Primary(_));
        let Register { term, primary, in_sync } = state.register;
        let mut seen = 0;
        if primary != 0 && runs(primary) && state.told == self.steps {
            seen |= PROMOTED_WITH_ALL_TOLD;
        }
        if (0..self.nodes).any(|node| node != primary && runs(node)) {
            seen |= FORMER_PRIMARY;
        }
        if term >= 3 && primary == 0 && in_sync == 0 && state.told == self.steps {
            seen |= SOLO_AFTER_DROP;
        }
        let handed = |message: &Message| match message {
            Message::Answer { stamp, granted: true, register } => stamp.0 != register.primary,
            _ => false,
        };
        if state.wire.iter().any(handed) && primary != 0 && runs(primary) {
            seen |= HANDED_OVER;
        }
        let back = term == 4 && primary == 0 && in_sync == 0;
        if back && runs(0) && state.peers[0].life == 0 {
            seen |= CAME_BACK;
        }
        seen
    }
}
