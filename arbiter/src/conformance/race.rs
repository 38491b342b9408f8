//! Many threads change one register at once.
//!
//! Every change that won names the register that it replaced, so the changes
//! must form one chain: term after term, each won once, each expecting exactly
//! what the one before had set. A change whose answer was lost and that others
//! had built upon before it was asked for again is told a mismatch, although
//! it happened; it may stand for a term that nobody is known to have won.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use super::{Asked, Open, asked, load, node};
use crate::{ImageId, NodeId, Operation, Outcome, Register, Request, Stamp, Store, Term, VmId};

const THREADS: u64 = 6;
const NODES: [&str; 4] = ["a", "b", "c", "d"];
/// One request in so many expects a register that has been replaced.
const STALE_EVERY: u64 = 5;

/// Races until the register of `vm`, which must not exist yet, has `terms`
/// terms.
pub fn one_wins_each_term(open: &Open<'_>, vm: &VmId, terms: u64) {
    let highest = AtomicU64::new(0);
    let racers: Vec<Racer> = thread::scope(|scope| {
        let highest = &highest;
        let race = |number| move || Racer::new(number).race(open(), vm, terms, highest);
        let running: Vec<_> = (0..THREADS).map(|number| scope.spawn(race(number))).collect();
        running.into_iter().map(|racer| racer.join().expect("a racer fell")).collect()
    });
    let last = load(open().as_ref(), vm).expect("somebody claimed it");
    require_one_chain(&racers, &last.register);
    let wins: Vec<_> = racers.iter().map(|racer| racer.wins.len()).collect();
    let lost: usize = racers.iter().map(|racer| racer.lost).sum();
    let perhaps: usize = racers.iter().map(|racer| racer.perhaps.len()).sum();
    println!("race: wins of each thread {wins:?}, lost {lost}, overtaken in doubt {perhaps}");
    assert!(lost > 0, "nobody raced");
}

/// A request and the register that it set.
#[derive(Debug)]
struct Change {
    request: Request,
    set: Register,
}

#[derive(Debug)]
struct Racer {
    number: u64,
    draws: u64,
    requests: u64,
    wins: Vec<Change>,
    /// Changes that may have happened and were overtaken.
    perhaps: Vec<Change>,
    lost: usize,
    replaced: Option<Register>,
}

impl Racer {
    fn new(number: u64) -> Self {
        let (wins, perhaps) = (Vec::new(), Vec::new());
        Self { number, draws: number, requests: 0, wins, perhaps, lost: 0, replaced: None }
    }

    fn race(
        mut self,
        mut store: Box<dyn Store + Send>,
        vm: &VmId,
        terms: u64,
        highest: &AtomicU64,
    ) -> Self {
        loop {
            let known = highest.load(Ordering::SeqCst);
            if known >= terms {
                return self;
            }
            let current = load(store.as_ref(), vm).map(|record| record.register);
            let term = current.as_ref().map_or(Term::ZERO, |register| register.term);
            assert!(term.get() >= known, "term {term} was read after {known} was told");
            let stale = self.draw(STALE_EVERY) == 0 && self.replaced.is_some();
            let expected = if stale { self.replaced.clone() } else { current.clone() };
            let request = self.proposal(expected);
            let told = asked(store.as_mut(), vm, &request);
            assert!(!stale || matches!(told.outcome, Outcome::Mismatch(_)), "{request:?} won");
            if let Some(set) = self.judge(&request, told) {
                highest.fetch_max(set.term.get(), Ordering::SeqCst);
                self.ask_again(store.as_mut(), vm, &request, &set);
                self.replaced = current.or(self.replaced);
            }
        }
    }

    /// What was set by `request`, if it is known to have won.
    fn judge(&mut self, request: &Request, told: Asked) -> Option<Register> {
        let target = request.target().expect("proposals are legal");
        match told.outcome {
            Outcome::Set(set) => {
                assert_eq!(set, target);
                self.wins.push(Change { request: request.clone(), set: set.clone() });
                Some(set)
            }
            Outcome::Mismatch(found) => {
                let found = found.expect("registers are never removed");
                let expected = request.expected.as_ref().map_or(Term::ZERO, |it| it.term);
                assert!(found.term > expected, "{request:?} lost against {found}");
                if told.uncertain && found.term > target.term {
                    self.perhaps.push(Change { request: request.clone(), set: target });
                }
                self.lost += 1;
                None
            }
        }
    }

    /// A winner that asks again is told so, unless it has been overtaken.
    fn ask_again(&self, store: &mut dyn Store, vm: &VmId, request: &Request, set: &Register) {
        match asked(store, vm, request).outcome {
            Outcome::Set(again) => assert_eq!(again, *set),
            Outcome::Mismatch(Some(found)) => assert!(found.term > set.term, "{found} is not new"),
            Outcome::Mismatch(None) => panic!("{set} was forgotten"),
        }
    }

    /// Any change that is legal against `expected`.
    fn proposal(&mut self, expected: Option<Register>) -> Request {
        let legal = legal(expected.as_ref());
        let count = u64::try_from(legal.len()).expect("few");
        let index = usize::try_from(self.draw(count)).expect("few");
        let (caller, operation) = legal[index].clone();
        self.requests += 1;
        let stamp = Stamp::new((self.number << 32) + self.requests);
        Request { caller, expected, operation, stamp }
    }

    /// A number below `bound`; a linear congruence (Knuth's MMIX) is random
    /// enough for this.
    fn draw(&mut self, bound: u64) -> u64 {
        self.draws = self
            .draws
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.draws >> 33) % bound
    }
}

fn legal(expected: Option<&Register>) -> Vec<(NodeId, Operation)> {
    let nodes = NODES.map(node);
    let Some(register) = expected else {
        return nodes.map(|caller| (caller, Operation::Create)).into();
    };
    let (primary, fresh) = (&register.primary, ImageId::new(register.term.get()));
    let mut legal = Vec::new();
    if register.in_sync.is_empty() {
        legal.push((primary.clone(), Operation::Restart));
    }
    for other in nodes.into_iter().filter(|other| other != primary) {
        if let Some(&image) = register.in_sync.get(&other) {
            let successor = other.clone();
            legal.push((primary.clone(), Operation::Drop { backup: other.clone() }));
            let stands_by = register.term.get().is_multiple_of(2).then_some(fresh);
            legal.push((primary.clone(), Operation::Switchover { successor, stands_by }));
            legal.push((other, Operation::Promote { image }));
        } else {
            legal.push((primary.clone(), Operation::Admit { backup: other, image: fresh }));
        }
    }
    legal
}

fn require_one_chain(racers: &[Racer], last: &Register) {
    let mut won: BTreeMap<Term, &Change> = BTreeMap::new();
    for change in racers.iter().flat_map(|racer| &racer.wins) {
        if let Some(rival) = won.insert(change.set.term, change) {
            panic!("two won term {}: {rival:?} and {change:?}", change.set.term);
        }
    }
    // Backwards, because what came after tells what a lost answer had set.
    let mut after = Some(last.clone());
    for number in (1..=last.term.get()).rev() {
        let term = Term::new(number);
        let set = after.expect("a change after the first expects a register");
        let change = won.get(&term).copied().unwrap_or_else(|| {
            let mut perhaps = racers.iter().flat_map(|racer| &racer.perhaps);
            let found = perhaps.find(|change| change.set == set);
            found.unwrap_or_else(|| panic!("nobody set term {term}: {set}"))
        });
        assert_eq!(change.set, set, "the change after term {term} expected something else");
        after = change.request.expected.clone();
    }
    assert_eq!(after, None, "the first change did not create the register");
    assert!(won.keys().all(|term| *term <= last.term), "a term beyond the last was won");
}
