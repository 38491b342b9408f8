//! The guest's side of the lanes: what it remembers of every client, as a sans-IO machine.
//!
//! A request advances its lane only if it is the next one; a repeat gets the stored answer. So a
//! lane's digest covers exactly the requests `1..=seq` since its opening, in order.

use crate::LANES_MAX;
use crate::VCPUS_MAX;
use crate::history;
use crate::message::{Ask, AskAnswer, AskStatus, VcpuCounters};

/// What the guest says of itself in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// vCPUs that run.
    pub vcpus: u32,
    /// Corrupt pages found so far.
    pub corrupt_pages: u64,
    /// Address of the first of them.
    pub first_bad: u64,
    /// TSC now.
    pub tsc: u64,
    /// kvm-clock now, or 0.
    pub kvm_clock_ns: u64,
    /// Counters now.
    pub vcpu: [VcpuCounters; VCPUS_MAX],
}

/// All lanes of the guest.
#[derive(Debug)]
pub struct Lanes {
    /// The stored answer is the whole state of a lane: last number, nonce and digest are in it.
    last: [Option<AskAnswer>; LANES_MAX],
    opening_nonce: [u64; LANES_MAX],
    answers: u64,
}

impl Lanes {
    /// Lanes that know nobody.
    pub const fn new() -> Self {
        Self { last: [None; LANES_MAX], opening_nonce: [0; LANES_MAX], answers: 0 }
    }

    /// Answers a request.
    pub fn on_ask(&mut self, ask: &Ask, vitals: &Vitals) -> AskAnswer {
        let index = ask.client as usize;
        if index >= LANES_MAX {
            return answer(AskStatus::NoLane, ask, 0, history::EMPTY, self.answers, vitals);
        }
        if ask.seq == 0 {
            return self.on_open(ask, vitals);
        }
        let Some(last) = self.last[index] else {
            return answer(AskStatus::Gap, ask, 0, history::EMPTY, self.answers, vitals);
        };
        if ask.seq == last.seq + 1 {
            return self.advance(ask, last.digest, vitals);
        }
        if ask.seq == last.seq && ask.nonce == last.nonce {
            return AskAnswer { status: AskStatus::Repeat, ..last };
        }
        let status = match ask.seq {
            seq if seq > last.seq => AskStatus::Gap,
            seq if seq < last.seq => AskStatus::Stale,
            _ => AskStatus::Conflict,
        };
        answer(status, ask, last.seq, last.digest, self.answers, vitals)
    }

    /// A late copy of the opening must not wipe what followed it, so openings are told apart by
    /// their nonce.
    fn on_open(&mut self, ask: &Ask, vitals: &Vitals) -> AskAnswer {
        let index = ask.client as usize;
        match self.last[index] {
            Some(last) if self.opening_nonce[index] == ask.nonce => {
                if last.seq == 0 {
                    return AskAnswer { status: AskStatus::Repeat, ..last };
                }
                answer(AskStatus::Stale, ask, last.seq, last.digest, self.answers, vitals)
            }
            _ => {
                self.opening_nonce[index] = ask.nonce;
                self.advance(ask, history::EMPTY, vitals)
            }
        }
    }

    fn advance(&mut self, ask: &Ask, before: u64, vitals: &Vitals) -> AskAnswer {
        self.answers += 1;
        let digest = history::advance(before, ask.client, ask.seq, ask.nonce);
        let answer = answer(AskStatus::Advanced, ask, ask.seq, digest, self.answers, vitals);
        self.last[ask.client as usize] = Some(answer);
        answer
    }
}

impl Default for Lanes {
    fn default() -> Self {
        Self::new()
    }
}

fn answer(
    status: AskStatus,
    ask: &Ask,
    seq: u64,
    digest: u64,
    answers: u64,
    vitals: &Vitals,
) -> AskAnswer {
    AskAnswer {
        status,
        client: ask.client,
        vcpus: vitals.vcpus,
        asked_seq: ask.seq,
        nonce: ask.nonce,
        seq,
        digest,
        answers,
        corrupt_pages: vitals.corrupt_pages,
        first_bad: vitals.first_bad,
        tsc: vitals.tsc,
        kvm_clock_ns: vitals.kvm_clock_ns,
        vcpu: vitals.vcpu,
    }
}
