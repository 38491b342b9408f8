//! What happens to a cluster in one round of a soak, drawn from its seed.
//!
//! A round begins protected, so no single fault may cost the guest anything. It
//! has at most one fault of a host: two at once may take both copies, and
//! nothing is to be learnt from that. With two backups or more there are three, and
//! two hosts may die at the same moment. Trouble of those who decide comes on top,
//! and so does a busy machine or an operator.

use std::{fmt, time::Duration};

use rand::{Rng, RngExt, rngs::StdRng, seq::IteratorRandom};

use crate::rehearsal::netns::Direction;

/// Shortest and longest fault.
const LASTS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(4));
/// Longest time from the beginning of a round to that of a fault in it.
const DELAY_MAX: Duration = Duration::from_millis(800);

/// Whom a fault meets; who that is depends on who runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Primary,
    /// By number, from 0.
    Backup(u8),
    /// By number, from 0.
    Arbiter(u8),
    /// Of etcd, by number, from 0.
    Member(u8),
    /// All of them, and the operator.
    Machine,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// SIGKILL; started again when the fault ends.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Freeze,
    /// Its replication link.
    Cut(Direction),
    /// So many of a hundred frames that arrive over it, and as many that leave.
    Loss(u8),
    /// Nothing can be written where it keeps its state.
    FullDisk,
    /// So many of a hundred parts of the memory that is available are taken.
    Memory(u8),
    /// So many threads want all of the processors.
    Busy(u8),
    /// A planned switchover.
    HandOver,
}

/// One fault of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) victim: Victim,
    pub(super) kind: Kind,
    /// After the beginning of the round.
    pub(super) at: Duration,
    pub(super) lasts: Duration,
}

/// What a cluster is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) backups: u8,
    pub(super) arbiters: u8,
    /// Of etcd; 0 if the only arbiter has a file.
    pub(super) members: u8,
}

impl Kind {
    /// For counting.
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Freeze => "frozen",
            Self::Cut(Direction::Both) => "cut off",
            Self::Cut(Direction::Incoming) => "deaf",
            Self::Cut(Direction::Outgoing) => "mute",
            Self::Loss(_) => "lossy link",
            Self::FullDisk => "disk full",
            Self::Memory(_) => "memory short",
            Self::Busy(_) => "processors busy",
            Self::HandOver => "switchover by plan",
        }
    }
}

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup(_) => "backup",
            Self::Arbiter(_) => "arbiter",
            Self::Member(_) => "etcd member",
            Self::Machine => "machine",
        }
    }
}

impl Fault {
    /// Victim and kind, for counting.
    pub(super) fn name(&self) -> String {
        format!("{}: {}", self.victim.name(), self.kind.name())
    }

    /// Whether a copy of the guest is gone with it.
    pub(super) fn takes_a_copy(&self) -> bool {
        self.kind == Kind::Kill && matches!(self.victim, Victim::Primary | Victim::Backup(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.victim.name())?;
        if let Victim::Backup(number) | Victim::Arbiter(number) | Victim::Member(number) =
            self.victim
        {
            write!(f, " {}", number + 1)?;
        }
        write!(f, " {}", self.kind.name())?;
        if let Kind::Loss(percent) | Kind::Memory(percent) = self.kind {
            write!(f, " ({percent} %)")?;
        }
        write!(f, " for {:.2} s", self.lasts.as_secs_f64())
    }
}

/// The faults of one round, in the order of their beginnings; at least one.
pub(super) fn draw(rng: &mut StdRng, parts: Parts) -> Vec<Fault> {
    let mut faults = Vec::new();
    while faults.is_empty() {
        let two_die = parts.backups > 1 && rng.random_ratio(1, 4);
        if two_die {
            faults.extend(two_deaths(rng, parts));
        } else if rng.random_ratio(9, 10) {
            faults.push(of_a_host(rng, parts));
        }
        if rng.random_ratio(4, 10) {
            faults.push(of_a_decider(rng, parts));
        }
        // A guest that just changes hands may have fewer copies than three.
        if !two_die && rng.random_ratio(1, 6) {
            faults.push(of_the_machine(rng));
        }
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn fault(rng: &mut StdRng, victim: Victim, kind: Kind) -> Fault {
    let (least, most) = (LASTS.0.as_secs_f64().ln(), LASTS.1.as_secs_f64().ln());
    let lasts = Duration::from_secs_f64(rng.random_range(least..most).exp());
    let at = DELAY_MAX.mul_f64(rng.random::<f64>());
    Fault { victim, kind, at, lasts }
}

fn direction(rng: &mut StdRng) -> Direction {
    [Direction::Both, Direction::Incoming, Direction::Outgoing][rng.random_range(0..3)]
}

fn two_deaths(rng: &mut StdRng, parts: Parts) -> [Fault; 2] {
    let all = std::iter::once(Victim::Primary).chain((0..parts.backups).map(Victim::Backup));
    let victims = all.sample(rng, 2);
    let mut faults = [victims[0], victims[1]].map(|victim| fault(rng, victim, Kind::Kill));
    faults[1].at = faults[0].at;
    faults
}

fn of_a_host(rng: &mut StdRng, parts: Parts) -> Fault {
    let victim = match rng.random_ratio(7, 10) {
        true => Victim::Primary,
        false if parts.backups == 1 => Victim::Backup(0),
        false => Victim::Backup(rng.random_range(0..parts.backups)),
    };
    let kind = match rng.random_range(0..10) {
        0..4 => Kind::Kill,
        4..6 => Kind::Freeze,
        6..8 => Kind::Cut(direction(rng)),
        8 => Kind::Loss(rng.random_range(1..=30)),
        _ => Kind::FullDisk,
    };
    fault(rng, victim, kind)
}

fn of_a_decider(rng: &mut StdRng, parts: Parts) -> Fault {
    let chosen = rng.next_u32();
    let of_etcd = parts.members > 0 && rng.random();
    let victim = if of_etcd {
        Victim::Member((chosen % u32::from(parts.members)) as u8)
    } else {
        Victim::Arbiter((chosen % u32::from(parts.arbiters)) as u8)
    };
    let kind = match rng.random_range(0..8) {
        0..3 => Kind::Kill,
        3..5 => Kind::Freeze,
        5 => Kind::Cut(direction(rng)),
        6 => Kind::Loss(rng.random_range(1..=30)),
        // Members of etcd have no small disk of their own.
        _ if of_etcd => Kind::Freeze,
        _ => Kind::FullDisk,
    };
    fault(rng, victim, kind)
}

fn of_the_machine(rng: &mut StdRng) -> Fault {
    let kind = match rng.random_range(0..4) {
        0 => Kind::Memory(rng.random_range(40..=80)),
        1 => Kind::Busy(rng.random_range(1..=8)),
        _ => Kind::HandOver,
    };
    fault(rng, Victim::Machine, kind)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const FILE: Parts = Parts { backups: 1, arbiters: 1, members: 0 };
    const ETCD: Parts = Parts { backups: 1, arbiters: 2, members: 3 };

    #[test]
    fn a_seed_tells_all_of_a_soak() {
        let rounds = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..50).map(|_| draw(&mut rng, ETCD)).collect::<Vec<_>>()
        };
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn one_host_at_a_time_and_everything_at_some_time() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut names = std::collections::BTreeSet::new();
        let mut killed_at_a_switchover = 0;
        for round in 0..2000 {
            let faults = draw(&mut rng, if round % 2 == 0 { FILE } else { ETCD });
            let host = |fault: &&Fault| matches!(fault.victim, Victim::Primary | Victim::Backup(_));
            assert!(faults.iter().filter(host).count() <= 1, "{faults:?}");
            assert!(faults.is_sorted_by_key(|fault| fault.at) && !faults.is_empty());
            let hands_over = faults.iter().any(|fault| fault.kind == Kind::HandOver);
            let kills = faults.iter().filter(host).any(|fault| fault.kind == Kind::Kill);
            killed_at_a_switchover += u32::from(hands_over && kills);
            for fault in faults {
                assert!(fault.lasts >= LASTS.0 && fault.lasts <= LASTS.1, "{fault}");
                assert!(round % 2 == 1 || !matches!(fault.victim, Victim::Member(_)));
                names.insert(fault.name());
            }
        }
        assert_eq!(names.len(), 7 + 7 + 7 + 6 + 3, "{names:?}");
        assert!(killed_at_a_switchover > 20, "{killed_at_a_switchover}");
    }

    #[test]
    fn of_three_copies_two_may_die_at_once_and_one_is_left_alone() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut pairs = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let faults = draw(&mut rng, Parts { backups: 2, ..FILE });
            let host = |fault: &&Fault| matches!(fault.victim, Victim::Primary | Victim::Backup(_));
            let hosts: Vec<_> = faults.iter().filter(host).collect();
            let [first, second] = hosts[..] else {
                assert!(hosts.len() <= 1, "{faults:?}");
                continue;
            };
            assert!(first.takes_a_copy() && second.takes_a_copy(), "{faults:?}");
            assert!(first.at == second.at && first.victim != second.victim, "{faults:?}");
            assert!(faults.iter().all(|fault| fault.kind != Kind::HandOver), "{faults:?}");
            pairs.insert(format!("{:?} {:?}", first.victim, second.victim));
        }
        assert!(pairs.len() >= 3, "{pairs:?}");
    }
}
