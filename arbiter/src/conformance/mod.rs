//! What every [`Store`] must hold, as checks that panic where one does not.
//!
//! Each check takes a way to open one more handle of the same registers, and
//! uses VMs of its own, so that all of them can run on one store, one after
//! the other. A store that fails is asked again, as nodes do it: the checks
//! hold while members of a cluster die.
//!
//! | check | holds |
//! |---|---|
//! | [`each_operation_of_the_table`] | what is set is what [`Request::decide`](crate::Request::decide) sets, and is durable |
//! | [`a_repeated_request_is_recognised`] | an answer lost on the way can be asked for again |
//! | [`a_stale_expectation_changes_nothing`] | the caller is told what is in force |
//! | [`a_twin_does_not_win`] | another stamp is another process |
//! | [`the_impossible_is_told_from_the_failed`] | [`StoreError::Illegal`](crate::StoreError::Illegal), and nothing happened |
//! | [`vms_do_not_disturb_each_other`] | and are listed in order |
//! | [`race::one_wins_each_term`] | compare-and-sets of many threads form one chain; no read is stale |

pub mod race;

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    ImageId, NodeId, Operation, Outcome, Record, Register, Request, Stamp, Store, StoreError, Term,
    VmId,
};

/// Opens one more handle of the same registers.
pub type Open<'a> = dyn Fn() -> Box<dyn Store + Send> + Sync + 'a;

/// How long a store may fail before a check fails. A bound, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two copies of a request that failed.
const PAUSE: Duration = Duration::from_millis(10);

/// Every check, the race with `terms` terms.
pub fn all(open: &Open<'_>, terms: u64) {
    each_operation_of_the_table(open);
    a_repeated_request_is_recognised(open);
    a_stale_expectation_changes_nothing(open);
    a_twin_does_not_win(open);
    the_impossible_is_told_from_the_failed(open);
    vms_do_not_disturb_each_other(open);
    race::one_wins_each_term(open, &vm("race"), terms);
}

/// Walks through all operations; a second handle sees each at once.
pub fn each_operation_of_the_table(open: &Open<'_>) {
    let (mut store, other) = (open(), open());
    let vm = vm("table");
    assert_eq!(load(other.as_ref(), &vm), None);
    let b = || node("b");
    let switchover = |to, stands: bool| Operation::Switchover {
        successor: node(to),
        stands_by: stands.then_some(IMAGE),
    };
    let walk = [
        ("a", Operation::Create, register(1, "a", &[])),
        ("a", Operation::Restart, register(2, "a", &[])),
        ("a", admit("b"), register(3, "a", &["b"])),
        ("a", admit("c"), register(4, "a", &["b", "c"])),
        ("a", Operation::Drop { backup: b() }, register(5, "a", &["c"])),
        ("c", PROMOTE, register(6, "c", &[])),
        ("c", admit("b"), register(7, "c", &["b"])),
        ("c", switchover("b", true), register(8, "b", &["c"])),
        ("b", switchover("c", false), register(9, "c", &[])),
    ];
    let mut expected = None;
    for (number, (caller, operation, target)) in (1..).zip(walk) {
        let request = request(caller, expected, operation, number);
        let decided = request.decide(load(store.as_ref(), &vm).as_ref()).unwrap();
        assert_eq!(decided, Outcome::Set(target.clone()));
        assert_eq!(asked(store.as_mut(), &vm, &request).outcome, decided);
        let record = Record { register: target.clone(), stamp: Stamp::new(number) };
        assert_eq!(load(other.as_ref(), &vm), Some(record));
        expected = Some(target);
    }
}

/// By any handle, as often as one likes, until the register has moved on.
pub fn a_repeated_request_is_recognised(open: &Open<'_>) {
    let (mut store, mut other) = (open(), open());
    let vm = vm("repeat");
    let create = request("a", None, Operation::Create, 1);
    let first = Outcome::Set(register(1, "a", &[]));
    for _ in 0..3 {
        assert_eq!(asked(store.as_mut(), &vm, &create).outcome, first);
        assert_eq!(asked(other.as_mut(), &vm, &create).outcome, first);
    }
    let restart = request("a", Some(register(1, "a", &[])), Operation::Restart, 2);
    let second = register(2, "a", &[]);
    assert_eq!(asked(store.as_mut(), &vm, &restart).outcome, Outcome::Set(second.clone()));
    let late = asked(other.as_mut(), &vm, &create).outcome;
    assert_eq!(late, Outcome::Mismatch(Some(second)));
}

/// Nor does one that never was.
pub fn a_stale_expectation_changes_nothing(open: &Open<'_>) {
    let mut store = open();
    let vm = vm("stale");
    let pair = register(2, "a", &["b"]);
    let promote = request("b", Some(pair.clone()), PROMOTE, 1);
    assert_eq!(asked(store.as_mut(), &vm, &promote).outcome, Outcome::Mismatch(None));
    assert_eq!(load(store.as_ref(), &vm), None);

    let admit = admit("b");
    asked(store.as_mut(), &vm, &request("a", None, Operation::Create, 2));
    asked(store.as_mut(), &vm, &request("a", Some(register(1, "a", &[])), admit, 3));
    let before = load(store.as_ref(), &vm);
    assert_eq!(before.as_ref().map(|record| &record.register), Some(&pair));
    let stale = [
        request("z", None, Operation::Create, 4),
        request("a", Some(register(1, "a", &[])), Operation::Restart, 5),
        // The right term with another set, and with another primary.
        request("c", Some(register(2, "a", &["b", "c"])), PROMOTE, 6),
        request("b", Some(register(2, "d", &["b"])), PROMOTE, 7),
        request("b", Some(register(3, "a", &["b"])), PROMOTE, 8),
    ];
    for request in stale {
        let told = asked(store.as_mut(), &vm, &request).outcome;
        assert_eq!(told, Outcome::Mismatch(Some(pair.clone())), "{request:?}");
        assert_eq!(load(store.as_ref(), &vm), before, "{request:?}");
    }
}

/// A second process that asks for the very same change is not told that it won.
pub fn a_twin_does_not_win(open: &Open<'_>) {
    let (mut store, mut other) = (open(), open());
    let vm = vm("twin");
    let first = register(1, "a", &[]);
    let create = request("a", None, Operation::Create, 1);
    assert_eq!(asked(store.as_mut(), &vm, &create).outcome, Outcome::Set(first.clone()));
    let twin = Request { stamp: Stamp::new(2), ..create.clone() };
    for store in [&mut store, &mut other] {
        let told = asked(store.as_mut(), &vm, &twin).outcome;
        assert_eq!(told, Outcome::Mismatch(Some(first.clone())));
    }
    assert_eq!(asked(other.as_mut(), &vm, &create).outcome, Outcome::Set(first));
}

/// What no register could grant is the caller's mistake, and certain.
pub fn the_impossible_is_told_from_the_failed(open: &Open<'_>) {
    let mut store = open();
    let vm = vm("impossible");
    let alone = register(1, "a", &[]);
    asked(store.as_mut(), &vm, &request("a", None, Operation::Create, 1));
    let before = load(store.as_ref(), &vm);
    let impossible = [
        request("a", Some(alone.clone()), Operation::Create, 2),
        request("a", None, PROMOTE, 3),
        request("b", Some(alone.clone()), PROMOTE, 4),
        request("b", Some(alone), Operation::Restart, 5),
    ];
    for request in impossible {
        let told = store.execute(&vm, &request);
        assert!(matches!(told, Err(StoreError::Illegal(_))), "{request:?}: {told:?}");
        assert_eq!(load(store.as_ref(), &vm), before);
    }
}

/// One VM's name may begin with another's.
pub fn vms_do_not_disturb_each_other(open: &Open<'_>) {
    let mut store = open();
    let vms = ["list", "list-1", "list-10", "list-2", "list1"].map(vm);
    for vm in vms.iter().rev() {
        asked(store.as_mut(), vm, &request("a", None, Operation::Create, 1));
    }
    let listed = again(|| store.list());
    assert!(listed.is_sorted_by(|(first, _), (second, _)| first < second), "{listed:?}");
    let record = Record { register: register(1, "a", &[]), stamp: Stamp::new(1) };
    for vm in vms {
        assert_eq!(load(store.as_ref(), &vm).as_ref(), Some(&record));
        assert!(listed.contains(&(vm, record.clone())));
    }
}

/// An outcome, and whether a copy of the request went unanswered before.
pub(crate) struct Asked {
    pub(crate) outcome: Outcome,
    pub(crate) uncertain: bool,
}

/// Asks until there is an outcome.
fn asked(store: &mut dyn Store, vm: &VmId, request: &Request) -> Asked {
    let mut uncertain = false;
    let outcome = again(|| {
        let answer = store.execute(vm, request);
        uncertain |= matches!(answer, Err(StoreError::Unknown { .. }));
        answer
    });
    Asked { outcome, uncertain }
}

fn load(store: &dyn Store, vm: &VmId) -> Option<Record> {
    again(|| store.load(vm))
}

/// # Panics
///
/// At what no repeat can mend, and when patience ends.
fn again<T>(mut ask: impl FnMut() -> Result<T, StoreError>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(StoreError::Untouched { .. } | StoreError::Unknown { .. })
                if Instant::now() < deadline =>
            {
                thread::sleep(PAUSE);
            }
            Err(error) => panic!("the store gives no answer: {error}"),
        }
    }
}

const IMAGE: ImageId = ImageId::new(5);
const PROMOTE: Operation = Operation::Promote { image: IMAGE };

fn admit(backup: &str) -> Operation {
    Operation::Admit { backup: node(backup), image: IMAGE }
}

fn node(name: &str) -> NodeId {
    name.parse().expect("a name")
}

fn vm(name: &str) -> VmId {
    name.parse().expect("a name")
}

fn register(term: u64, primary: &str, in_sync: &[&str]) -> Register {
    Register {
        term: Term::new(term),
        primary: node(primary),
        in_sync: in_sync.iter().map(|name| (node(name), IMAGE)).collect(),
    }
}

fn request(caller: &str, expected: Option<Register>, operation: Operation, stamp: u64) -> Request {
    Request { caller: node(caller), expected, operation, stamp: Stamp::new(stamp) }
}
