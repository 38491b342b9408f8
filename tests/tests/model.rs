//! The protocol's model, in every state that it can come to.

use romulus_tests::model::{
    checker::check,
    protocol::{
        Bug, CAME_BACK, FORMER_PRIMARY, HANDED_OVER, PROMOTED_WITH_ALL_TOLD, Protocol,
        SOLO_AFTER_DROP,
    },
};

/// More than any of these sizes has.
const STATES_MAX: usize = 3_000_000;

fn sized(nodes: u8, steps: u8, terms: u8, crashes: u8) -> Protocol {
    Protocol { nodes, steps, terms, crashes, bug: None }
}

/// Visits all states; returns what was seen somewhere.
fn holds(protocol: Protocol) -> u32 {
    match check(&protocol, STATES_MAX) {
        Ok(checked) => {
            println!("{protocol:?}: {checked:?}");
            checked.seen
        }
        Err(wrong) => panic!("{}\n{:#?}\n{:#?}", wrong.what, wrong.way, wrong.state),
    }
}

#[test]
fn two_nodes_hold_in_every_state() {
    let seen = holds(sized(2, 3, 4, 1)) & holds(sized(2, 4, 4, 1)) & holds(sized(2, 3, 5, 1));
    let all = PROMOTED_WITH_ALL_TOLD | HANDED_OVER | SOLO_AFTER_DROP | FORMER_PRIMARY | CAME_BACK;
    assert_eq!(seen, all, "the model does everything that it is to show");
}

#[test]
fn three_nodes_hold_in_every_state() {
    holds(sized(3, 2, 2, 1));
}

#[test]
fn every_bug_in_the_model_is_found() {
    let bugs = [
        Bug::ReleaseBeforeAck,
        Bug::ReleaseOnFirstAck,
        Bug::PassBeforeDropped,
        Bug::PromoteBeforeGranted,
        Bug::AckWhileAsking,
        Bug::AdmitBeforeAck,
        Bug::PassWhileJoining,
        Bug::NoCompare,
        Bug::PassAfterHandOver,
    ];
    for bug in bugs {
        // Who waits for the first of several needs several.
        let nodes = if bug == Bug::ReleaseOnFirstAck { 3 } else { 2 };
        let protocol = Protocol { bug: Some(bug), ..sized(nodes, 3, 4, 1) };
        match check(&protocol, STATES_MAX) {
            Ok(checked) => panic!("{bug:?} is not found in {} states", checked.states),
            Err(wrong) => println!("{bug:?}: {}, after {:?}", wrong.what, wrong.way),
        }
    }
}
