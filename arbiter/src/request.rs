//! The test-and-set: which changes of the register are legal, and what they set.
//!
//! | operation | compare | set |
//! |---|---|---|
//! | create | absent | `{1, P, {}}` |
//! | restart, by P | `{t, P, {}}` | `{t+1, P, {}}` |
//! | admit B's image i, by P | `{t, P, S}`, B not in S | `{t+1, P, S+B:i}` |
//! | drop B, by P | `{t, P, S}`, B in S | `{t+1, P, S-B}` |
//! | promote image i, by B | `{t, P, S}`, B:i in S | `{t+1, B, {}}` |
//! | switchover to B in S, by P, which stands by with image i | `{t, P, S}` | `{t+1, B, S-B+P:i}` |
//! | switchover to B in S, by P, which leaves | `{t, P, S}` | `{t+1, B, S-B}` |
//!
//! The caller names the whole register that it believes in; one that has moved
//! on is a [`Outcome::Mismatch`]. After a switchover everybody who was in sync
//! still is: all have the checkpoint that the successor begins with, the former
//! primary's paused guest included. [`Operation::Restart`] is not in the design's
//! table: it lets a primary that ran solo and lost its process boot the guest
//! afresh, under a term of its own so that two such processes cannot both win.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ImageId, NodeId, Register, Stamp, Term};

/// What a node asks of the register.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// Claim a VM that has never run.
    Create,
    /// Claim a VM again whose primary, this node, ran without a backup and
    /// lost its process: the guest boots afresh.
    Restart,
    /// Count a backup as in sync: its seed is committed, and the primary has
    /// been holding output since.
    Admit {
        /// The backup that may be promoted from now on …
        backup: NodeId,
        /// … and what it holds.
        image: ImageId,
    },
    /// No longer wait for a backup. With the last one gone the primary is solo.
    Drop {
        /// The backup that may not be promoted any more.
        backup: NodeId,
    },
    /// Take over, as a backup that is in sync.
    Promote {
        /// With this image, which the register must mean.
        image: ImageId,
    },
    /// Hand over: the guest is paused, and every backup in sync has committed
    /// all.
    Switchover {
        /// The backup that becomes primary.
        successor: NodeId,
        /// The caller keeps the guest as it is and stands by with it, as this
        /// image: it is in sync.
        stands_by: Option<ImageId>,
    },
}

/// One compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The node that asks. Transports check it against the certificate.
    pub caller: NodeId,
    /// The register that the caller believes in; `None` for an absent one.
    pub expected: Option<Register>,
    /// The change.
    pub operation: Operation,
    /// Drawn once per request and repeated with it.
    pub stamp: Stamp,
}

/// A register and the stamp of the request that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What is in force.
    pub register: Register,
    /// Whose request put it there.
    pub stamp: Stamp,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// Done, now or by an earlier copy of this very request: the register
    /// holds this.
    Set(Register),
    /// The register holds something else; nothing was changed.
    Mismatch(Option<Register>),
}

/// A request that no register could grant: the caller has a bug.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Illegal {
    /// Create names a register, or another operation names none.
    #[error("{operation:?} does not go with the expected register {expected:?}")]
    Expectation {
        /// What was asked.
        operation: Operation,
        /// What the caller believes in.
        expected: Option<Register>,
    },
    /// Somebody who is not the primary asked for the primary's operation.
    #[error("{caller} asked for {operation:?}, which only the primary {primary} may")]
    NotPrimary {
        /// Who asked.
        caller: NodeId,
        /// Who may.
        primary: NodeId,
        /// What was asked.
        operation: Operation,
    },
    /// No term is left after that of the register that the caller believes in.
    #[error("no term follows that of the expected register ({expected})")]
    LastTerm {
        /// What the caller believes in.
        expected: Register,
    },
    /// The backup that the operation is about is (not) in the set.
    #[error("{operation:?} by {caller} does not go with the in-sync set of: {expected}")]
    Membership {
        /// Who asked.
        caller: NodeId,
        /// What was asked.
        operation: Operation,
        /// What the caller believes in.
        expected: Register,
    },
    /// More backups would be in the set than a register has room for.
    #[error("{operation:?} would count more than {IN_SYNC_MAX} backups in sync")]
    Crowded {
        /// What was asked.
        operation: Operation,
    },
}

/// Most backups that a register counts in sync; the wire spells no more.
pub const IN_SYNC_MAX: usize = 64;

impl Request {
    /// Decides this request against `current`, the record in force.
    ///
    /// Pure; the caller makes the record of [`Outcome::Set`] durable before it
    /// answers.
    ///
    /// # Errors
    ///
    /// [`Illegal`] if no register whatsoever could grant it.
    pub fn decide(&self, current: Option<&Record>) -> Result<Outcome, Illegal> {
        let target = self.target()?;
        let register = current.map(|record| &record.register);
        if register == self.expected.as_ref() {
            return Ok(Outcome::Set(target));
        }
        let repeated =
            current.is_some_and(|record| record.register == target && record.stamp == self.stamp);
        if repeated { Ok(Outcome::Set(target)) } else { Ok(Outcome::Mismatch(register.cloned())) }
    }

    /// The register that this request asks for.
    ///
    /// # Errors
    ///
    /// As [`Request::decide`].
    pub fn target(&self) -> Result<Register, Illegal> {
        let Some(expected) = &self.expected else {
            return match self.operation {
                Operation::Create => Ok(Register {
                    term: Term::FIRST,
                    primary: self.caller.clone(),
                    in_sync: [].into(),
                }),
                Operation::Restart
                | Operation::Admit { .. }
                | Operation::Drop { .. }
                | Operation::Promote { .. }
                | Operation::Switchover { .. } => Err(self.unexpected()),
            };
        };
        let mut target = expected.clone();
        let last = || Illegal::LastTerm { expected: expected.clone() };
        target.term = expected.term.next().ok_or_else(last)?;
        let member = match &self.operation {
            Operation::Create => return Err(self.unexpected()),
            Operation::Restart => {
                self.require_primary(expected)?;
                expected.in_sync.is_empty()
            }
            Operation::Admit { backup, image } => {
                self.require_primary(expected)?;
                *backup != expected.primary
                    && target.in_sync.insert(backup.clone(), *image).is_none()
            }
            Operation::Drop { backup } => {
                self.require_primary(expected)?;
                target.in_sync.remove(backup).is_some()
            }
            Operation::Promote { image } => {
                let member = expected.counts_on(&self.caller, *image);
                target.primary = self.caller.clone();
                target.in_sync.clear();
                member
            }
            Operation::Switchover { successor, stands_by } => {
                self.require_primary(expected)?;
                let member = target.in_sync.remove(successor).is_some();
                target.primary = successor.clone();
                if let Some(image) = stands_by {
                    target.in_sync.insert(self.caller.clone(), *image);
                }
                member
            }
        };
        if !member {
            return Err(Illegal::Membership {
                caller: self.caller.clone(),
                operation: self.operation.clone(),
                expected: expected.clone(),
            });
        }
        if target.in_sync.len() > IN_SYNC_MAX {
            return Err(Illegal::Crowded { operation: self.operation.clone() });
        }
        Ok(target)
    }

    fn unexpected(&self) -> Illegal {
        Illegal::Expectation { operation: self.operation.clone(), expected: self.expected.clone() }
    }

    fn require_primary(&self, expected: &Register) -> Result<(), Illegal> {
        if self.caller == expected.primary {
            return Ok(());
        }
        Err(Illegal::NotPrimary {
            caller: self.caller.clone(),
            primary: expected.primary.clone(),
            operation: self.operation.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn register(term: u64, primary: &str, in_sync: &[&str]) -> Register {
        Register {
            term: Term::new(term),
            primary: node(primary),
            in_sync: in_sync.iter().map(|name| (node(name), IMAGE)).collect(),
        }
    }

    const IMAGE: ImageId = ImageId::new(5);
    const PROMOTE: Operation = Operation::Promote { image: IMAGE };

    fn admit(backup: &str) -> Operation {
        Operation::Admit { backup: node(backup), image: IMAGE }
    }

    fn request(caller: &str, expected: Option<Register>, operation: Operation) -> Request {
        Request { caller: node(caller), expected, operation, stamp: Stamp::new(7) }
    }

    fn record(register: Register, stamp: u64) -> Record {
        Record { register, stamp: Stamp::new(stamp) }
    }

    #[test]
    fn each_row_of_the_table() {
        let solo = register(3, "p", &[]);
        let pair = register(3, "p", &["b"]);
        let three = register(3, "p", &["b", "c"]);
        let backup = node("b");
        let switchover = |stands: bool| Operation::Switchover {
            successor: node("b"),
            stands_by: stands.then_some(IMAGE),
        };
        let rows = [
            (request("p", None, Operation::Create), register(1, "p", &[])),
            (request("p", Some(solo.clone()), Operation::Restart), register(4, "p", &[])),
            (request("p", Some(solo), admit("b")), register(4, "p", &["b"])),
            (request("p", Some(pair.clone()), Operation::Drop { backup }), register(4, "p", &[])),
            (request("b", Some(pair.clone()), PROMOTE), register(4, "b", &[])),
            (request("p", Some(pair.clone()), switchover(true)), register(4, "b", &["p"])),
            (request("p", Some(pair), switchover(false)), register(4, "b", &[])),
            (request("p", Some(three.clone()), switchover(true)), register(4, "b", &["c", "p"])),
            (request("p", Some(three), switchover(false)), register(4, "b", &["c"])),
        ];
        for (request, target) in rows {
            let current = request.expected.clone().map(|register| record(register, 1));
            assert_eq!(request.decide(current.as_ref()), Ok(Outcome::Set(target)));
        }
    }

    #[test]
    fn one_of_two_rivals_wins() {
        let current = register(3, "p", &["b"]);
        let promote = request("b", Some(current.clone()), PROMOTE);
        let solo = request("p", Some(current), Operation::Drop { backup: node("b") });
        let after = record(promote.target().unwrap(), promote.stamp.get());
        let lost = Outcome::Mismatch(Some(after.register.clone()));
        assert_eq!(solo.decide(Some(&after)), Ok(lost));
        // The winner may ask again.
        assert_eq!(promote.decide(Some(&after)), Ok(Outcome::Set(after.register.clone())));
    }

    #[test]
    fn a_twin_with_another_stamp_does_not_win() {
        let first = request("p", Some(register(3, "p", &[])), Operation::Restart);
        let twin = Request { stamp: Stamp::new(8), ..first.clone() };
        let after = record(first.target().unwrap(), first.stamp.get());
        assert!(matches!(twin.decide(Some(&after)), Ok(Outcome::Mismatch(Some(_)))));
    }

    #[test]
    fn nobody_promotes_who_is_not_in_sync() {
        let current = register(3, "p", &["b"]);
        for caller in ["c", "p"] {
            let asked = request(caller, Some(current.clone()), PROMOTE);
            assert!(matches!(
                asked.decide(Some(&record(current.clone(), 1))),
                Err(Illegal::Membership { .. })
            ));
        }
    }

    #[test]
    fn a_name_with_another_image_is_not_promoted() {
        let current = register(3, "p", &["b"]);
        let other = Operation::Promote { image: ImageId::new(6) };
        let asked = request("b", Some(current.clone()), other);
        let told = asked.decide(Some(&record(current, 1)));
        assert!(matches!(told, Err(Illegal::Membership { .. })), "{told:?}");
    }

    #[test]
    fn nothing_follows_the_last_term() {
        let current = register(u64::MAX, "p", &["b"]);
        let asked = request("b", Some(current.clone()), PROMOTE);
        let told = Illegal::LastTerm { expected: current };
        assert_eq!(asked.decide(None), Err(told));
    }

    #[test]
    fn a_register_has_room_for_so_many_backups() {
        let mut current = register(3, "p", &[]);
        for number in 1..=IN_SYNC_MAX {
            let asked = request("p", Some(current), admit(&format!("b-{number}")));
            current = asked.target().unwrap();
        }
        let asked = request("p", Some(current.clone()), admit("one-more"));
        assert_eq!(asked.target(), Err(Illegal::Crowded { operation: admit("one-more") }));
        let successor = node("b-1");
        let operation = Operation::Switchover { successor, stands_by: Some(IMAGE) };
        let handed_over = request("p", Some(current), operation).target().unwrap();
        assert_eq!(handed_over.in_sync.len(), IN_SYNC_MAX);
    }

    #[test]
    fn only_the_primary_changes_the_set() {
        let current = register(3, "p", &["b"]);
        for operation in [
            Operation::Restart,
            admit("c"),
            Operation::Drop { backup: node("b") },
            Operation::Switchover { successor: node("b"), stands_by: Some(IMAGE) },
        ] {
            let asked = request("b", Some(current.clone()), operation);
            assert!(matches!(
                asked.decide(Some(&record(current.clone(), 1))),
                Err(Illegal::NotPrimary { .. })
            ));
        }
    }

    proptest::proptest! {
        #[test]
        fn a_granted_request_raises_the_term_by_one(
            term in 1_u64..1_000,
            members in proptest::collection::btree_set("[a-c]", 0..3),
            caller in "[a-d]",
            about in "[a-d]",
            which in 0_u8..6,
        ) {
            let expected = Register {
                term: Term::new(term),
                primary: node("d"),
                in_sync: members.iter().map(|name| (node(name), IMAGE)).collect(),
            };
            let about = node(&about);
            let operation = match which {
                0 => Operation::Restart,
                1 => Operation::Admit { backup: about, image: IMAGE },
                2 => Operation::Drop { backup: about },
                3 => PROMOTE,
                _ => Operation::Switchover {
                    successor: about,
                    stands_by: (which == 5).then_some(IMAGE),
                },
            };
            let asked = request(&caller, Some(expected.clone()), operation);
            if let Ok(target) = asked.target() {
                proptest::prop_assert_eq!(Some(target.term), expected.term.next());
                proptest::prop_assert!(!target.in_sync.contains_key(&target.primary));
            }
        }
    }
}
