//! What both machines are told, drawn from a script: nodes, registers,
//! messages and answers. Well-typed, and otherwise whatever a peer may send.

use std::collections::BTreeMap;

use arbiter::{Illegal, ImageId, NodeId, Outcome, Record, Register, Term};
use checkpoint::{Answer, Epoch, Question, chunk::Digest, message::ToPrimary};

use super::script::Script;

/// All nodes. The first is the machine's own.
pub(super) const NODES: [&str; 4] = ["a", "b", "c", "d"];
/// Most chunks of one list.
const CHUNKS_MAX: u8 = 16;
/// Longest time between two events: beyond every patience.
const STEP_MS_MAX: u64 = 2_000;

pub(super) fn node(script: &mut Script<'_>) -> NodeId {
    name(NODES[usize::from(script.u8()) % NODES.len()])
}

pub(super) fn name(text: &str) -> NodeId {
    text.parse().expect("a name")
}

pub(super) fn epoch(script: &mut Script<'_>, near: Epoch) -> Epoch {
    Epoch::new(script.number_near(near.get()))
}

pub(super) fn term(script: &mut Script<'_>, near: Term) -> Term {
    // Mostly the one in force: all else is soon refused.
    match script.u8() {
        0..=0xbf => near,
        _ => Term::new(script.number_near(near.get())),
    }
}

pub(super) fn register(script: &mut Script<'_>, near: Term) -> Register {
    let primary = node(script);
    let members = script.u8();
    let in_sync: BTreeMap<NodeId, ImageId> = NODES
        .iter()
        .enumerate()
        .filter(|(index, _)| members >> index & 1 == 1)
        .map(|(_, member)| (name(member), image(script)))
        .collect();
    Register { term: term(script, near), primary, in_sync }
}

/// One of a few: machines are to meet the same again.
pub(super) fn image(script: &mut Script<'_>) -> ImageId {
    ImageId::new(u64::from(script.u8() % 4))
}

/// The image of `node` that a register counts on, or any.
pub(super) fn image_of(
    script: &mut Script<'_>,
    register: Option<&Register>,
    node: &NodeId,
) -> ImageId {
    let counted = register.and_then(|register| register.in_sync.get(node)).copied();
    counted.unwrap_or_else(|| image(script))
}

pub(super) fn digest(script: &mut Script<'_>) -> Digest {
    [script.u8(); 32]
}

/// Milliseconds until the next event.
pub(super) fn pause_ms(script: &mut Script<'_>) -> u64 {
    match script.u8() {
        short @ 0..=0xdf => u64::from(short) / 4,
        _ => u64::from(script.u16()) % STEP_MS_MAX,
    }
}

pub(super) fn to_primary(script: &mut Script<'_>, near: Epoch) -> ToPrimary {
    match script.u8() % 5 {
        0 => {
            let pong = script.number_near(0x50);
            ToPrimary::Heartbeat { pong, steps: script.number_near(0) }
        }
        1 => ToPrimary::SeedAck { chunks: script.number_near(0x40) as u32 },
        2 => ToPrimary::Ack { committed: epoch(script, near), applied: epoch(script, near) },
        3 => {
            let epoch = epoch(script, near);
            let chunks = (0..script.u8() % CHUNKS_MAX).map(|_| script.u32()).collect();
            ToPrimary::Nack { epoch, chunks }
        }
        _ => ToPrimary::Verified { epoch: epoch(script, near), digest: digest(script) },
    }
}

/// An arbiter. Asked in order, it decides by the real test-and-set; it may
/// also be away, forget, or say what never was.
#[derive(Debug)]
pub(super) struct Oracle {
    record: Option<Record>,
}

impl Oracle {
    pub(super) fn new(record: Option<Record>) -> Self {
        Self { record }
    }

    /// Another node changes the register, if it may.
    pub(super) fn meddle(&mut self, request: &arbiter::Request) {
        if let Ok(Outcome::Set(register)) = request.decide(self.record.as_ref()) {
            self.record = Some(Record { register, stamp: request.stamp });
        }
    }

    /// What the register holds.
    pub(super) fn register(&self) -> Option<&Register> {
        self.record.as_ref().map(|record| &record.register)
    }

    /// The answer to `question`.
    pub(super) fn answer(&mut self, question: &Question, script: &mut Script<'_>) -> Answer {
        let fate = script.u8();
        match (fate, question) {
            (0xf0..=0xf3, _) => Answer::Unsent,
            (0xf4..=0xf5, _) => Answer::Unknown,
            (0xf6..=0xf7, _) => Answer::Refused("words".to_owned()),
            (0xf8, Question::Read) => Answer::Register(None),
            (0xf9.., Question::Read) => Answer::Register(Some(self.lie(script))),
            (0xf8..=0xf9, Question::Change(_)) => Answer::Outcome(Outcome::Mismatch(None)),
            (0xfa..=0xfb, Question::Change(_)) => {
                Answer::Outcome(Outcome::Mismatch(Some(self.lie(script))))
            }
            (0xfc.., Question::Change(_)) => Answer::Outcome(Outcome::Set(self.lie(script))),
            (_, Question::Read) => Answer::Register(self.register().cloned()),
            (_, Question::Change(request)) => {
                let outcome = request.decide(self.record.as_ref());
                let outcome = match outcome {
                    Ok(outcome) => outcome,
                    // A liar has told it of the last term.
                    Err(illegal @ Illegal::LastTerm { .. }) => {
                        return Answer::Refused(illegal.to_string());
                    }
                    Err(illegal) => panic!("a machine asks for what nobody may: {illegal}"),
                };
                if let Outcome::Set(register) = &outcome {
                    let (register, stamp) = (register.clone(), request.stamp);
                    self.record = Some(Record { register, stamp });
                }
                match fate {
                    0xe0..=0xef => Answer::Unknown,
                    _ => Answer::Outcome(outcome),
                }
            }
        }
    }

    fn lie(&self, script: &mut Script<'_>) -> Register {
        let near = self.register().map_or(Term::FIRST, |register| register.term);
        register(script, near)
    }
}
