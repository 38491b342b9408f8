//! A node's way to the arbiter. Mirrors `tools/src/node/asker.rs` and
//! `transport/src/register_service/client.rs`: a question is put again and
//! again until there is an answer or its time is over, and "unsent" is said
//! only if no copy of it may have left.

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
    until: Duration,
    /// A copy may have left.
    sent: bool,
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
        let (term, ask) = match question {
            Question::Read => (Term::ZERO, Ask::Load(vm)),
            Question::Change(request) => {
                let term = request.expected.as_ref().map_or(Term::ZERO, |register| register.term);
                (term, Ask::Execute(vm, request))
            }
        };
        let octets = wire::encode(term, &Frame::Ask(ask)).expect("requests are within the limits");
        world.journal.mix_octets(&octets);
        // Unlike any other's, also of the process's role before this one.
        world.asks += 1;
        let number = world.asks;
        let until = world.now + world.plan.timing.request_timeout;
        self.asked.insert(number, Asked { octets, until, sent: false });
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
            let asked = self.asked.remove(&number).expect("looked at above");
            return Some(if asked.sent { Answer::Unknown } else { Answer::Unsent });
        }
        let (from, to) = (usize::from(me.host), world.arbiter());
        let reachable = world.arbiter_up
            && world.network.cut_until(from, to, world.now).is_none()
            && world.network.cut_until(to, from, world.now).is_none();
        if reachable {
            asked.sent = true;
            let letter = || Letter { from: me, ask: number, octets: asked.octets.clone() };
            if !(world.faulty && world.chance.hits(world.plan.rates.ask_lost)) {
                let delay = world.latency();
                world.later(delay, WorldHappening::Asked(Box::new(letter())));
            }
            if world.faulty && world.chance.hits(world.plan.rates.ask_doubled) {
                let delay = world.chance.micros_of_any_size(100..400_000);
                world.later(delay, WorldHappening::Asked(Box::new(letter())));
            }
        } else {
            // A warm connection takes a request that will not arrive.
            asked.sent |= world.chance.hits(400);
        }
        let next = (world.now + world.plan.timing.request_timeout / 4).min(asked.until);
        world.at(next, WorldHappening::Process(me, Happening::AskAttempt(number)));
        None
    }

    /// Takes what the arbiter says; returns it if it was waited for.
    pub(in crate::simulation) fn answered(&mut self, number: u32, octets: &[u8]) -> Option<Answer> {
        self.asked.remove(&number)?;
        let (_, frame) = wire::decode(octets).expect("answers are not damaged");
        let Frame::Answer(answer) = frame else { unreachable!("the arbiter only answers") };
        Some(match answer {
            wire::Answer::Record(record) => Answer::Register(record.map(|record| record.register)),
            wire::Answer::Outcome(outcome) => Answer::Outcome(outcome),
            wire::Answer::Denied(why) => Answer::Refused(why),
            wire::Answer::Failed(_) => Answer::Unknown,
            other => unreachable!("nobody asked for {other:?}"),
        })
    }
}
