//! A node's way to the arbiter. Mirrors `tools/src/node/asker.rs` and
//! `transport/src/register_service/client.rs`: a read goes ahead of every
//! change; a question is put again and again until there is an answer or its
//! time is over, and "unsent" is said only if no copy of it may happen.

use std::{collections::BTreeMap, time::Duration};

use arbiter::{Term, VmId};
use checkpoint::{Answer, Question};
use transport::wire::{self, Ask, Frame};

use super::vm;
use crate::simulation::{
    happening::{Happening, Letter, ProcessId, WorldHappening},
    world::World,
};

#[derive(Debug)]
struct Asked {
    octets: Vec<u8>,
    /// The change that this read goes ahead of.
    change: Option<Vec<u8>>,
    until: Duration,
    /// Copies that may have left, and those of which nothing will come.
    copies: u32,
    settled: u32,
    /// A copy failed in a way that leaves open what happened.
    doubt: bool,
    /// Asking again cannot help.
    is_final: bool,
}

impl Asked {
    fn new(octets: Vec<u8>, change: Option<Vec<u8>>, until: Duration) -> Self {
        let (copies, settled) = (0, 0);
        Self { octets, change, until, copies, settled, doubt: false, is_final: false }
    }

    /// What is said when nothing more is waited for.
    fn in_vain(&self) -> Answer {
        // A read changes nothing, answered or not.
        let read_ahead = self.change.is_some();
        let open = self.doubt || self.settled < self.copies;
        if open && !read_ahead { Answer::Unknown } else { Answer::Unsent }
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Asker {
    asked: BTreeMap<u32, Asked>,
}

impl Asker {
    pub(in crate::simulation) fn ask(
        &mut self,
        world: &mut World,
        me: ProcessId,
        question: Question,
    ) {
        let vm: VmId = vm();
        let encode = |term, ask| {
            wire::encode(term, &Frame::Ask(ask)).expect("requests are within the limits")
        };
        let read = encode(Term::ZERO, Ask::Load(vm.clone()));
        let change = match question {
            Question::Read => None,
            Question::Change(request) => {
                let term = request.expected.as_ref().map_or(Term::ZERO, |register| register.term);
                Some(encode(term, Ask::Execute(vm, request)))
            }
        };
        self.put(world, me, read, change);
    }

    fn put(&mut self, world: &mut World, me: ProcessId, octets: Vec<u8>, change: Option<Vec<u8>>) {
        world.journal.mix_octets(&octets);
        // Unlike any other's, also of the process's role before this one.
        world.asks += 1;
        let number = world.asks;
        let until = world.now + world.plan.timing.request_timeout;
        self.asked.insert(number, Asked::new(octets, change, until));
        self.attempt(world, me, number);
    }

    /// Puts a question (again); returns the answer if its time is over.
    pub(in crate::simulation) fn attempt(
        &mut self,
        world: &mut World,
        me: ProcessId,
        number: u32,
    ) -> Option<Answer> {
        let asked = self.asked.get_mut(&number)?;
        if world.now >= asked.until {
            return self.asked.remove(&number).map(|asked| asked.in_vain());
        }
        if !asked.is_final {
            asked.send(world, me, number);
        }
        let next = (world.now + world.plan.timing.request_timeout / 4).min(asked.until);
        world.at(next, WorldHappening::Process(me, Happening::AskAttempt(number)));
        None
    }

    /// Takes what the arbiter says; returns it if it was waited for.
    pub(in crate::simulation) fn answered(
        &mut self,
        world: &mut World,
        me: ProcessId,
        number: u32,
        octets: &[u8],
    ) -> Option<Answer> {
        let asked = self.asked.get_mut(&number)?;
        let (_, frame) = wire::decode(octets).expect("answers are not damaged");
        let Frame::Answer(answer) = frame else { unreachable!("the arbiter only answers") };
        let said = match answer {
            wire::Answer::Record(record) => Answer::Register(record.map(|record| record.register)),
            wire::Answer::Outcome(outcome) => Answer::Outcome(outcome),
            wire::Answer::Denied(why) => Answer::Refused(why),
            wire::Answer::Failed(_) | wire::Answer::Unavailable(_) => {
                asked.settled += 1;
                asked.doubt |= matches!(answer, wire::Answer::Failed(_));
                asked.is_final = true;
                // Whoever takes its time is listened to.
                if asked.settled < asked.copies {
                    return None;
                }
                return self.asked.remove(&number).map(|asked| asked.in_vain());
            }
            other => unreachable!("nobody asked for {other:?}"),
        };
        match self.asked.remove(&number)?.change {
            Some(change) if matches!(said, Answer::Register(_)) => {
                self.put(world, me, change, None);
                None
            }
            Some(_) | None => Some(said),
        }
    }
}

impl Asked {
    fn send(&mut self, world: &mut World, me: ProcessId, number: u32) {
        let (from, to) = (usize::from(me.host), world.arbiter());
        let reachable = world.arbiter_up
            && world.network.cut_until(from, to, world.now).is_none()
            && world.network.cut_until(to, from, world.now).is_none();
        if !reachable {
            // A warm connection takes a request that will not arrive.
            self.copies += u32::from(world.chance.hits(400));
            return;
        }
        self.copies += 1;
        let letter = || Letter { from: me, ask: number, octets: self.octets.clone() };
        if !(world.faulty && world.chance.hits(world.plan.rates.ask_lost)) {
            let delay = world.latency();
            world.later(delay, WorldHappening::Asked(Box::new(letter())));
        }
        if world.faulty && world.chance.hits(world.plan.rates.ask_doubled) {
            let delay = world.chance.micros_of_any_size(100..400_000);
            world.later(delay, WorldHappening::Asked(Box::new(letter())));
            self.copies += 1;
        }
    }
}
