//! The client's checker: a sans-IO machine that proves that the guest forgot nothing it told us
//! and that no vCPU and no clock of it went back in time.
//!
//! ```text
//!            next_request()                 on_answer(bytes)
//!   idle ------------------> pending(seq) ------------------> idle, seq + 1      New
//!                             |    ^                          (or a verdict that says what broke)
//!                             +----+ next_request() again: the same bytes, for a retry
//! ```
//! One request is outstanding at a time. What an answer said is remembered; every later answer is
//! held against it. Invariant: `digest` is the chain over all requests up to `acknowledged()`.

use crate::VCPUS_MAX;
use crate::content::Prng;
use crate::history;
use crate::message::{Answer, Ask, AskAnswer, AskStatus, DecodeError, Message, Request};

/// Something in the guest that must never go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Advances of all lanes.
    Answers,
    /// Work steps of a vCPU.
    Progress {
        /// Which vCPU.
        vcpu: usize,
    },
    /// Timer interrupts of a vCPU.
    Ticks {
        /// Which vCPU.
        vcpu: usize,
    },
    /// Corrupt pages found.
    CorruptPages,
    /// Time-stamp counter.
    Tsc,
    /// kvm-clock.
    KvmClock,
}

/// What an answer proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and the crate has no heap")]
pub enum Verdict {
    /// The pending request was answered, and everything agrees.
    New(AskAnswer),
    /// An answer that was already known, or a late one to an old request: harmless.
    Duplicate,
    /// The guest has not the history that it acknowledged to us.
    Lost {
        /// The last number that it acknowledged to us.
        acknowledged: u64,
        /// The last number that it says it has.
        guest_seq: u64,
    },
    /// The history is there, yet a counter or clock went back.
    WentBack {
        /// Which.
        what: Counter,
        /// What it was.
        was: u64,
        /// What it is now.
        now: u64,
    },
    /// The guest found pages of its own that do not hold what it wrote.
    Corrupt {
        /// How many.
        pages: u64,
        /// Address of the first.
        first_bad: u64,
    },
    /// An answer to another client or of another kind.
    Foreign,
}

/// One client's lane.
#[derive(Clone, Debug)]
pub struct ClientLane {
    client: u32,
    nonces: Prng,
    acknowledged: Option<u64>,
    digest: u64,
    pending: Option<Ask>,
    last: Option<AskAnswer>,
    checks_tsc: bool,
}

impl ClientLane {
    /// A lane that opens itself with its first request. `seed` chooses the nonces and must differ
    /// between sessions of the same client id.
    pub fn new(client: u32, seed: u64) -> Self {
        Self {
            client,
            nonces: Prng::new(seed),
            acknowledged: None,
            digest: history::EMPTY,
            pending: None,
            last: None,
            checks_tsc: true,
        }
    }

    /// Does not compare the TSC: it may go back between hosts where KVM cannot offset it.
    pub fn without_tsc_check(mut self) -> Self {
        self.checks_tsc = false;
        self
    }

    /// The bytes to send: the pending request again, or the next one.
    pub fn next_request(&mut self) -> Message {
        let ask = match self.pending {
            Some(ask) => ask,
            None => {
                let seq = self.acknowledged.map_or(0, |seq| seq + 1);
                Ask { client: self.client, seq, nonce: self.nonces.next_u64() }
            }
        };
        self.pending = Some(ask);
        Request::Ask(ask).encode()
    }

    /// Whether a request waits for its answer.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// The last number that the guest acknowledged (0 is the opening).
    pub fn acknowledged(&self) -> Option<u64> {
        self.acknowledged
    }

    /// The latest new answer.
    pub fn last_answer(&self) -> Option<&AskAnswer> {
        self.last.as_ref()
    }

    /// Judges a datagram from the guest.
    pub fn on_answer(&mut self, bytes: &[u8]) -> Result<Verdict, DecodeError> {
        let Answer::Ask(answer) = Answer::decode(bytes)? else {
            return Ok(Verdict::Foreign);
        };
        if answer.client != self.client {
            return Ok(Verdict::Foreign);
        }
        let pending =
            self.pending.filter(|ask| ask.seq == answer.asked_seq && ask.nonce == answer.nonce);
        Ok(match pending {
            Some(ask) => self.on_pending(ask, answer),
            None => self.on_unexpected(&answer),
        })
    }

    fn on_pending(&mut self, ask: Ask, answer: AskAnswer) -> Verdict {
        let before = if ask.seq == 0 { history::EMPTY } else { self.digest };
        let digest = history::advance(before, self.client, ask.seq, ask.nonce);
        // A repeat is as good as the first: the first answer may have been lost on the way.
        let agrees = matches!(answer.status, AskStatus::Advanced | AskStatus::Repeat)
            && answer.seq == ask.seq
            && answer.digest == digest;
        if !agrees {
            return self.lost(&answer);
        }
        if let Some(went_back) = self.last.and_then(|last| self.compare(&last, &answer)) {
            return went_back;
        }
        self.pending = None;
        self.acknowledged = Some(ask.seq);
        self.digest = digest;
        self.last = Some(answer);
        if answer.corrupt_pages > 0 {
            return Verdict::Corrupt { pages: answer.corrupt_pages, first_bad: answer.first_bad };
        }
        Verdict::New(answer)
    }

    /// A late answer is harmless, unless it contradicts what was acknowledged.
    fn on_unexpected(&self, answer: &AskAnswer) -> Verdict {
        let is_latest = self.acknowledged == Some(answer.seq)
            && matches!(answer.status, AskStatus::Advanced | AskStatus::Repeat)
            && self.last.is_some_and(|last| last.nonce == answer.nonce);
        if is_latest && answer.digest != self.digest {
            self.lost(answer)
        } else {
            Verdict::Duplicate
        }
    }

    fn lost(&self, answer: &AskAnswer) -> Verdict {
        Verdict::Lost { acknowledged: self.acknowledged.unwrap_or(0), guest_seq: answer.seq }
    }

    fn compare(&self, last: &AskAnswer, now: &AskAnswer) -> Option<Verdict> {
        let went_back = |what, was, now, strictly: bool| {
            (now < was || (strictly && now == was)).then_some(Verdict::WentBack { what, was, now })
        };
        let vcpus = (last.vcpus as usize).min(VCPUS_MAX);
        went_back(Counter::Answers, last.answers, now.answers, true)
            .or_else(|| {
                went_back(Counter::CorruptPages, last.corrupt_pages, now.corrupt_pages, false)
            })
            .or_else(|| went_back(Counter::KvmClock, last.kvm_clock_ns, now.kvm_clock_ns, false))
            .or_else(|| {
                went_back(Counter::Tsc, last.tsc, now.tsc, false).filter(|_| self.checks_tsc)
            })
            .or_else(|| {
                (0..vcpus).find_map(|vcpu| {
                    let (was, is) = (last.vcpu[vcpu], now.vcpu[vcpu]);
                    went_back(Counter::Progress { vcpu }, was.progress, is.progress, false)
                        .or_else(|| went_back(Counter::Ticks { vcpu }, was.ticks, is.ticks, false))
                })
            })
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
