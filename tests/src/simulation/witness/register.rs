//! What the register file says, and what the arbiter tells.

use std::{collections::BTreeMap, time::Duration};

use arbiter::{FileError, NodeId, Record, Register, Term, VmId};

use super::{Rule, Violation, Witness};

/// What may be in the register file after a loss of power right now.
#[derive(Debug)]
pub(in crate::simulation) struct Durable<'a> {
    /// `None`: no file.
    pub(in crate::simulation) octets: Option<&'a [u8]>,
}

/// The right to run, given to a node.
#[derive(Debug)]
pub(super) struct Grant {
    to: NodeId,
    pub(super) at: Duration,
    /// A guest was started by it.
    pub(super) used: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct RegisterWatch {
    in_file: Option<Register>,
    told: Option<Register>,
    grant: Option<Grant>,
    /// Those before it that were not used.
    late: Vec<NodeId>,
}

impl RegisterWatch {
    /// The register that the file holds now, durable or not.
    pub(super) fn in_file(&self) -> Option<&Register> {
        self.in_file.as_ref()
    }

    /// The last grant.
    pub(super) fn grant(&self) -> Option<&Grant> {
        self.grant.as_ref()
    }

    fn take(&mut self, now: Duration, register: Register) -> Result<bool, Violation> {
        let broken = |text: String| Err(Violation { rule: Rule::Register, text });
        let granted = match &self.told {
            None => true,
            Some(before) if register.term < before.term => {
                return broken(format!("told {register}, after {before}"));
            }
            Some(before) if register.term == before.term => {
                if *before != register {
                    return broken(format!("told {register} and {before}"));
                }
                return Ok(false);
            }
            // A new primary, or the same one anew; everything else changes the set.
            Some(before) => {
                let anew = before.in_sync.is_empty() && register.in_sync.is_empty();
                before.primary != register.primary || anew
            }
        };
        if granted {
            let to = register.primary.clone();
            let unused = self.grant.take().filter(|grant| !grant.used);
            self.late.extend(unused.map(|grant| grant.to));
            self.grant = Some(Grant { to, at: now, used: false });
        }
        self.told = Some(register);
        Ok(true)
    }
}

impl Witness {
    /// The register file is this now.
    pub(in crate::simulation) fn file(&mut self, octets: Option<&[u8]>) {
        self.register.in_file = octets.and_then(parse);
        self.check_members();
    }

    /// The arbiter tells somebody of this register; `durable` is all that a
    /// loss of power could leave. Returns whether the register is new.
    pub(in crate::simulation) fn told(
        &mut self,
        now: Duration,
        register: Option<&Register>,
        durable: &[Durable<'_>],
    ) -> bool {
        let term = register.map_or(Term::ZERO, |register| register.term);
        for possible in durable {
            let left = possible.octets.and_then(parse).map_or(Term::ZERO, |left| left.term);
            self.require(left >= term, Rule::Register, || {
                format!("told of term {term}, but a loss of power could leave term {left}")
            });
        }
        let Some(register) = register else {
            let before = self.register.told.clone();
            self.require(before.is_none(), Rule::Register, || {
                format!("told that there is no register, after {before:?}")
            });
            return false;
        };
        let before = self.register.told.as_ref().map(|before| before.in_sync.clone());
        match self.register.take(now, register.clone()) {
            Ok(new) => {
                let before = before.unwrap_or_default();
                for (node, image) in &register.in_sync {
                    if before.get(node) != Some(image) {
                        self.admitted(node, *image);
                    }
                }
                new
            }
            Err(violation) => {
                self.object(violation.rule, || violation.text);
                false
            }
        }
    }

    /// A register file was found damaged after its arbiter had died.
    pub(in crate::simulation) fn damaged(&mut self, error: &FileError) {
        self.object(Rule::Register, || format!("found after a death: {error}"));
    }

    /// A guest goes on at a node by a grant that was not the last any more when it
    /// did, once.
    pub(super) fn use_late_grant(&mut self, node: &NodeId) -> bool {
        let RegisterWatch { grant, late, .. } = &mut self.register;
        if grant.as_ref().is_some_and(|grant| grant.to == *node && !grant.used) {
            return false;
        }
        let place = late.iter().position(|to| to == node);
        place.map(|place| late.remove(place)).is_some()
    }

    /// A guest is started on a node: by the last grant, once.
    pub(super) fn use_grant(&mut self, node: &NodeId) {
        let right = match &mut self.register.grant {
            Some(grant) if grant.to == *node => !std::mem::replace(&mut grant.used, true),
            Some(_) | None => false,
        };
        let grant = &self.register.grant;
        if !right {
            let text = format!("{node} starts a guest; the last grant is {grant:?}");
            self.object(Rule::OneVoice, || text);
        }
    }
}

/// Reads a register file, whether its digest matches or not.
fn parse(octets: &[u8]) -> Option<Register> {
    let head = octets.iter().position(|octet| *octet == b'\n')?;
    let records: BTreeMap<VmId, Record> = serde_json::from_slice(&octets[head + 1..]).ok()?;
    records.into_values().next().map(|record| record.register)
}
