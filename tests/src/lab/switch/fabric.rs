//! What a switch decides for every frame: where it goes, when, and whether it
//! gets lost. Sans-IO: time is an argument, and chance comes from a seed.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Octets of an Ethernet address.
const MAC_BYTES: usize = 6;
/// Octets before an Ethernet frame's payload (IEEE 802.3): to, from, type.
const HEADER_BYTES: usize = 14;

/// A port's number.
pub(super) type Port = usize;
type Mac = [u8; MAC_BYTES];

/// What happens to frames of one port in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Impairment {
    /// All are lost.
    pub cut: bool,
    /// So many of a thousand are lost, by chance.
    pub loss_per_mille: u32,
    /// They arrive so much later.
    pub delay: Duration,
}

/// What a port has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Frames that its machine sent, lost ones included.
    pub sent: u64,
    /// Frames handed to its machine.
    pub delivered: u64,
    /// Frames to or from its machine that an impairment swallowed.
    pub lost: u64,
}

/// A frame's way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// To whose machine.
    pub(super) port: Port,
    /// Not before then.
    pub(super) due: Instant,
}

#[derive(Debug, Default)]
struct PortState {
    /// What its machine sends.
    outgoing: Impairment,
    /// What is sent to its machine.
    incoming: Impairment,
    /// Frames stay in order: none is due before the one before it.
    last_due: Option<Instant>,
    counts: Counts,
}

/// The switch's mind.
#[derive(Debug)]
pub(super) struct Fabric {
    ports: Vec<PortState>,
    /// Behind which port an address was last heard.
    learnt: HashMap<Mac, Port>,
    chance: StdRng,
}

impl Fabric {
    /// A switch without ports.
    #[must_use]
    pub(super) fn new(seed: u64) -> Self {
        Self { ports: Vec::new(), learnt: HashMap::new(), chance: StdRng::seed_from_u64(seed) }
    }

    /// Adds a port.
    pub(super) fn add_port(&mut self) -> Port {
        self.ports.push(PortState::default());
        self.ports.len() - 1
    }

    /// What happens from now on to what `port`'s machine sends.
    pub(super) fn impair_outgoing(&mut self, port: Port, impairment: Impairment) {
        self.ports[port].outgoing = impairment;
    }

    /// What happens from now on to what is sent to `port`'s machine.
    pub(super) fn impair_incoming(&mut self, port: Port, impairment: Impairment) {
        self.ports[port].incoming = impairment;
    }

    /// What a port has seen.
    #[must_use]
    pub(super) fn counts(&self, port: Port) -> Counts {
        self.ports[port].counts
    }

    /// A cable was pulled, or its machine is gone: what was learnt of it is
    /// forgotten, as a switch does when a link goes down.
    pub(super) fn link_down(&mut self, port: Port) {
        self.learnt.retain(|_, behind| *behind != port);
        self.ports[port].last_due = None;
    }

    /// Where a frame goes that `from`'s machine sends `now`.
    pub(super) fn forward(&mut self, from: Port, frame: &[u8], now: Instant) -> Vec<Delivery> {
        self.ports[from].counts.sent += 1;
        let Some((to, source)) = addresses(frame) else { return Vec::new() };
        let outgoing = self.ports[from].outgoing;
        if self.swallows(&outgoing) {
            self.ports[from].counts.lost += 1;
            return Vec::new();
        }
        if !is_group(&source) {
            self.learnt.insert(source, from);
        }
        let known = if is_group(&to) { None } else { self.learnt.get(&to).copied() };
        let ports: Vec<Port> = match known {
            Some(port) => vec![port],
            None => (0..self.ports.len()).collect(),
        };
        let leaves = now + outgoing.delay;
        let others = ports.into_iter().filter(|port| *port != from);
        others.filter_map(|port| self.deliver(port, leaves)).collect()
    }

    fn deliver(&mut self, port: Port, leaves: Instant) -> Option<Delivery> {
        let incoming = self.ports[port].incoming;
        let lost = self.swallows(&incoming);
        let state = &mut self.ports[port];
        if lost {
            state.counts.lost += 1;
            return None;
        }
        let due = leaves + incoming.delay;
        let due = state.last_due.map_or(due, |last| last.max(due));
        state.last_due = Some(due);
        state.counts.delivered += 1;
        Some(Delivery { port, due })
    }

    fn swallows(&mut self, impairment: &Impairment) -> bool {
        let Impairment { cut, loss_per_mille, .. } = *impairment;
        cut || loss_per_mille > 0 && self.chance.random_range(0..1000) < loss_per_mille
    }
}

/// To whom and from whom a frame is.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    if frame.len() < HEADER_BYTES {
        return None;
    }
    let at = |begin: usize| frame[begin..begin + MAC_BYTES].try_into().expect("six octets");
    Some((at(0), at(MAC_BYTES)))
}

/// Broadcast and multicast addresses have the lowest bit of their first octet.
fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const ALL: Mac = [0xff; MAC_BYTES];

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        [&to[..], &from[..], &[0x08, 0x00, 1, 2, 3]].concat()
    }

    fn fabric(seed: u64) -> Fabric {
        let mut fabric = Fabric::new(seed);
        for _ in 0..3 {
            fabric.add_port();
        }
        fabric
    }

    fn ports(deliveries: &[Delivery]) -> Vec<Port> {
        deliveries.iter().map(|delivery| delivery.port).collect()
    }

    #[test]
    fn addresses_are_learnt_moved_and_forgotten() {
        let (mut fabric, now) = (fabric(1), Instant::now());
        assert_eq!(ports(&fabric.forward(0, &frame(B, A), now)), [1, 2], "B is unknown");
        assert_eq!(ports(&fabric.forward(1, &frame(A, B), now)), [0], "A was heard at 0");
        assert_eq!(ports(&fabric.forward(0, &frame(ALL, A), now)), [1, 2], "all but itself");
        // B moves, as a guest does at a failover: its own frame shows where.
        assert_eq!(ports(&fabric.forward(2, &frame(ALL, B), now)), [0, 1]);
        assert_eq!(ports(&fabric.forward(0, &frame(B, A), now)), [2]);
        fabric.link_down(2);
        assert_eq!(ports(&fabric.forward(0, &frame(B, A), now)), [1, 2]);
        assert_eq!(ports(&fabric.forward(1, &frame(B, B), now)), Vec::<Port>::new());
    }

    #[test]
    fn stunted_frames_go_nowhere() {
        let (mut fabric, now) = (fabric(1), Instant::now());
        assert!(fabric.forward(0, &frame(ALL, A)[..13], now).is_empty());
        assert_eq!(fabric.counts(0).sent, 1);
    }

    #[test]
    fn each_direction_is_cut_by_itself() {
        let (mut fabric, now) = (fabric(1), Instant::now());
        let cut = Impairment { cut: true, ..Impairment::default() };
        fabric.impair_incoming(0, cut);
        assert_eq!(ports(&fabric.forward(0, &frame(ALL, A), now)), [1, 2], "it still speaks");
        assert_eq!(ports(&fabric.forward(1, &frame(ALL, B), now)), [2], "and hears nothing");
        fabric.impair_incoming(0, Impairment::default());
        fabric.impair_outgoing(0, cut);
        assert!(fabric.forward(0, &frame(ALL, A), now).is_empty());
        assert_eq!(ports(&fabric.forward(1, &frame(ALL, B), now)), [0, 2]);
        assert_eq!(fabric.counts(0), Counts { sent: 2, delivered: 1, lost: 2 });
    }

    #[test]
    fn what_is_cut_is_not_learnt() {
        let (mut fabric, now) = (fabric(1), Instant::now());
        fabric.impair_outgoing(0, Impairment { cut: true, ..Impairment::default() });
        fabric.forward(0, &frame(ALL, A), now);
        assert_eq!(ports(&fabric.forward(1, &frame(A, B), now)), [0, 2], "A was never heard");
    }

    #[test]
    fn delays_add_up_and_keep_the_order() {
        let (mut fabric, now) = (fabric(1), Instant::now());
        let ms = Duration::from_millis;
        let late = |ms_late| Impairment { delay: ms(ms_late), ..Impairment::default() };
        fabric.impair_outgoing(0, late(5));
        fabric.impair_incoming(1, late(20));
        let due = |deliveries: Vec<Delivery>| {
            deliveries.iter().find(|delivery| delivery.port == 1).expect("delivered").due
        };
        assert_eq!(due(fabric.forward(0, &frame(ALL, A), now)), now + ms(25));
        fabric.impair_outgoing(0, late(0));
        fabric.impair_incoming(1, late(0));
        let overtaking = due(fabric.forward(0, &frame(ALL, A), now + ms(1)));
        assert_eq!(overtaking, now + ms(25), "behind the one before");
        assert_eq!(due(fabric.forward(0, &frame(ALL, A), now + ms(40))), now + ms(40));
    }

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let lost = |seed: u64| {
            let (mut fabric, now) = (fabric(seed), Instant::now());
            let lossy = Impairment { loss_per_mille: 300, ..Impairment::default() };
            fabric.impair_outgoing(0, lossy);
            let fate = |_| fabric.forward(0, &frame(ALL, A), now).is_empty();
            (0..1000).map(fate).collect::<Vec<bool>>()
        };
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(7), lost(8));
        let count = lost(7).iter().filter(|lost| **lost).count();
        assert!((200..400).contains(&count), "{count} of 1000 at 300 per mille");
    }
}
