//! Claims the right to run a guest that is about to boot.

use std::time::Duration;

use arbiter::{NodeId, Operation, Outcome, Register, Request, Stamp};
use checkpoint::{Answer, Question};
use rand::Rng;

use crate::{
    control::{EventKind, Severity},
    node::{Asker, Host, NodeError},
};

const RETRY: Duration = Duration::from_millis(300);

/// Asks until the arbiter has decided. A VM that never ran is created; one
/// that ran here without a backup is restarted.
///
/// # Errors
///
/// [`NodeError::Claim`] if the register names others, saying which and what
/// to do.
pub(super) fn claim(host: &Host) -> Result<Register, NodeError> {
    let vm = host.config.vm.name.clone();
    let asker = Asker::new(host);
    let caller = &host.config.node.name;
    let current = loop {
        match asker.ask_blocking(Question::Read) {
            Answer::Register(register) => break register,
            other => wait(host, &other),
        }
    };
    let operation = match &current {
        None => Operation::Create,
        Some(register) => {
            restartable(register, caller).map_err(NodeError::Claim)?;
            Operation::Restart
        }
    };
    let stamp = Stamp::new(rand::rng().next_u64());
    let request = Request { caller: caller.clone(), expected: current, operation, stamp };
    loop {
        match asker.ask_blocking(Question::Change(request.clone())) {
            Answer::Outcome(Outcome::Set(register)) => return Ok(register),
            Answer::Outcome(Outcome::Mismatch(found)) => {
                let found = found.map_or("nothing".to_owned(), |register| register.to_string());
                return Err(NodeError::Claim(format!(
                    "another node claimed `{vm}` at the same time (the register holds: {found}): look at `romulus status` there"
                )));
            }
            Answer::Refused(why) => {
                return Err(NodeError::Claim(format!("the arbiter denies the claim: {why}")));
            }
            other => wait(host, &other),
        }
    }
}

fn restartable(register: &Register, caller: &NodeId) -> Result<(), String> {
    if register.primary != *caller {
        return Err(format!(
            "the register names `{0}` as primary (term {1}): if `{0}` runs, start this node with `romulus backup`; if it never will again, see docs/failover.md, \"The solo primary's host is gone\", or \"All copies are lost\"",
            register.primary, register.term
        ));
    }
    if register.in_sync.is_empty() {
        return Ok(());
    }
    let backups: Vec<_> = register.in_sync.keys().map(NodeId::as_str).collect();
    Err(format!(
        "the guest of this node's last life is in the hands of {} (term {}): let it take over, and start this node with `romulus backup`; if no process there has the guest any more, see `romulus register forget` and docs/failover.md, \"All copies are lost\"",
        backups.join(", "),
        register.term
    ))
}

fn wait(host: &Host, answer: &Answer) {
    let text = match answer {
        Answer::Refused(why) => format!("the arbiter refuses: {why}; asking again"),
        Answer::Unsent | Answer::Unknown | Answer::Outcome(_) | Answer::Register(_) => {
            let at: Vec<_> =
                host.config.arbiters.iter().map(|arbiter| arbiter.address.to_string()).collect();
            format!("the arbiter at {} does not answer: asking again", at.join(" or "))
        }
    };
    let events = &host.telemetry.events;
    events.record(Severity::Warning, EventKind::ArbiterLost, text, serde_json::Value::Null);
    std::thread::sleep(RETRY);
}
