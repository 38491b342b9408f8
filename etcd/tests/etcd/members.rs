//! The store against real etcd: what every store must hold, while members die,
//! stand still and come back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::cluster::{Cluster, PATIENCE, etcd_for, wait_until};
use arbiter::{
    NodeId, Operation, Outcome, Record, Register, Request, Stamp, Store, StoreError, StoreId, Term,
    VmId, conformance,
};
use romulus_etcd::{MemberFault, Settings};

fn vm(name: &str) -> VmId {
    name.parse().unwrap()
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn create(stamp: u64) -> Request {
    let stamp = Stamp::new(stamp);
    Request { caller: node("a"), expected: None, operation: Operation::Create, stamp }
}

fn first() -> Register {
    Register { term: Term::FIRST, primary: node("a"), in_sync: [].into() }
}

#[test]
fn three_members_hold_what_every_store_must() {
    if !etcd_for("three_members_hold_what_every_store_must") {
        return;
    }
    let cluster = Cluster::start(3);
    // Every handle prefers another member, and has connections of its own.
    let opened = AtomicUsize::new(0);
    let open = || {
        let first = opened.fetch_add(1, Ordering::Relaxed);
        let order = [first % 3, (first + 1) % 3, (first + 2) % 3];
        Box::new(cluster.store(&cluster.settings(&order))) as Box<dyn Store + Send>
    };
    conformance::all(&open, 300);
}

#[test]
fn one_wins_each_term_while_leaders_are_killed() {
    if !etcd_for("one_wins_each_term_while_leaders_are_killed") {
        return;
    }
    let mut cluster = Cluster::start(3);
    let stores = [[0, 1, 2], [1, 2, 0], [2, 0, 1]];
    let stores = stores.map(|order| cluster.store(&cluster.settings(&order)));
    let opened = AtomicUsize::new(0);
    let open = || {
        let number = opened.fetch_add(1, Ordering::Relaxed);
        Box::new(stores[number % 3].clone()) as Box<dyn Store + Send>
    };
    let vm = vm("race");
    let over = AtomicBool::new(false);
    let mut killed = 0;
    std::thread::scope(|scope| {
        let racing = scope.spawn(|| {
            conformance::race::one_wins_each_term(&open, &vm, 100);
            over.store(true, Ordering::Relaxed);
        });
        while !over.load(Ordering::Relaxed) && !racing.is_finished() {
            let leader = cluster.leader(0);
            cluster.kill(leader);
            killed += 1;
            let term = || open().load(&vm).ok().flatten().map(|record| record.register.term);
            let before = term();
            // The rest elects a leader and goes on.
            wait_until("the register moves on without its leader", || {
                over.load(Ordering::Relaxed) || racing.is_finished() || term() > before
            });
            cluster.begin(leader);
            wait_until("the killed member is back", || {
                cluster.runtime.block_on(cluster.admin(leader).get("health", None)).is_ok()
            });
        }
    });
    println!("{killed} leaders were killed during the race");
    assert!(over.into_inner(), "the race failed");
    assert!(killed > 0);
}

#[test]
fn without_a_majority_nothing_happens_and_it_is_certain() {
    if !etcd_for("without_a_majority_nothing_happens_and_it_is_certain") {
        return;
    }
    let mut cluster = Cluster::start(3);
    let mut store = cluster.store(&cluster.settings(&[0, 1, 2]));
    assert_eq!(store.execute(&vm("web"), &create(1)).unwrap(), Outcome::Set(first()));
    // A killed one and one that stands still: nobody there, and nobody who answers.
    cluster.kill(1);
    cluster.signal(2, "STOP");
    let restart = Request {
        caller: node("a"),
        expected: Some(first()),
        operation: Operation::Restart,
        stamp: Stamp::new(2),
    };
    let told = store.execute(&vm("web"), &restart).unwrap_err();
    assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
    let words = told.to_string();
    for expected in ["did not answer within 1000 ms", "cannot be talked to", "Connection refused"] {
        assert!(words.contains(expected), "`{expected}` is not in {words}");
    }
    // When the member knows that it has no leader, it says so.
    wait_until("a member without a majority tells", || {
        let words = store.load(&vm("web")).unwrap_err().to_string();
        words.contains("has no majority of members behind it (etcdserver: no leader)")
    });
    let told = store.execute(&vm("web"), &restart).unwrap_err();
    assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
    // The one that stood still comes back, and everything goes on by itself.
    cluster.signal(2, "CONT");
    wait_until("a majority decides", || store.load(&vm("web")).is_ok());
    let record = Record { register: first(), stamp: Stamp::new(1) };
    assert_eq!(store.load(&vm("web")).unwrap(), Some(record), "an untouched register was changed");
    let mut outcome = None;
    wait_until("the restart is granted", || {
        outcome = store.execute(&vm("web"), &restart).ok();
        outcome.is_some()
    });
    assert!(matches!(outcome, Some(Outcome::Set(register)) if register.term == Term::new(2)));
}

#[test]
fn a_member_that_missed_something_is_believed_only_with_a_majority() {
    if !etcd_for("a_member_that_missed_something_is_believed_only_with_a_majority") {
        return;
    }
    let mut cluster = Cluster::start(3);
    let mut store = cluster.store(&cluster.settings(&[0, 1]));
    let mut alone = cluster.store(&cluster.settings(&[2]));
    assert_eq!(alone.execute(&vm("web"), &create(1)).unwrap(), Outcome::Set(first()));
    cluster.signal(2, "STOP");
    let mut register = first();
    for stamp in 2..20 {
        let expected = Some(register.clone());
        let operation = Operation::Restart;
        let stamp = Stamp::new(stamp);
        let request = Request { caller: node("a"), expected, operation, stamp };
        wait_until("the majority decides", || match store.execute(&vm("web"), &request) {
            Ok(Outcome::Set(set)) => {
                register = set;
                true
            }
            Ok(Outcome::Mismatch(found)) => panic!("{found:?}"),
            Err(_) => false,
        });
    }
    // It wakes into a world without the others: what it knows is old, and not told.
    cluster.kill(0);
    cluster.signal(1, "STOP");
    cluster.signal(2, "CONT");
    assert!(matches!(alone.load(&vm("web")), Err(StoreError::Untouched { .. })));
    let stale = Request { stamp: Stamp::new(99), ..create(99) };
    assert!(matches!(alone.execute(&vm("web"), &stale), Err(StoreError::Untouched { .. })));
    // With another member it learns what it missed before it answers.
    cluster.signal(1, "CONT");
    let mut told = None;
    wait_until("the two decide", || {
        told = alone.load(&vm("web")).ok();
        told.is_some()
    });
    assert_eq!(told.flatten().map(|record| record.register), Some(register));
}

#[test]
fn members_tell_how_they_are() {
    if !etcd_for("members_tell_how_they_are") {
        return;
    }
    let mut cluster = Cluster::start(3);
    let store = cluster.store(&cluster.settings(&[0, 1, 2]));
    let tell = || cluster.runtime.block_on(store.members(PATIENCE));
    let leads = || -> Vec<bool> {
        let members = tell();
        assert_eq!(members[2].endpoint, cluster.endpoint(2));
        let health = members.into_iter().map(|member| member.health.unwrap());
        health
            .map(|health| {
                assert!(health.version.starts_with("3.") && health.database_bytes > 0);
                assert_eq!(health.alarms, []);
                health.leads
            })
            .collect()
    };
    let mut leading = vec![false; 3];
    leading[cluster.leader(0)] = true;
    assert_eq!(leads(), leading);
    // One that is gone, one that stands still, and one that misses both.
    cluster.kill(1);
    cluster.signal(2, "STOP");
    let tell = || cluster.runtime.block_on(store.members(PATIENCE));
    wait_until("the last member misses the others", || {
        matches!(tell()[0].health, Err(MemberFault::NoMajority { .. }))
    });
    let members = tell();
    assert!(matches!(members[1].health, Err(MemberFault::Unreachable { .. })), "{members:?}");
    assert!(matches!(members[2].health, Err(MemberFault::Silent { .. })), "{members:?}");
}

#[test]
fn registers_have_one_number_whoever_asks_first() {
    if !etcd_for("registers_have_one_number_whoever_asks_first") {
        return;
    }
    let cluster = Cluster::start(1);
    let settings = cluster.settings(&[0]);
    let ids: Vec<StoreId> = std::thread::scope(|scope| {
        let ask = || cluster.store(&settings).id().unwrap();
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(matches!(ids[0], StoreId::Shared(_)));
    let elsewhere = cluster.settings(&[0]);
    let elsewhere = cluster.store(&Settings { prefix: "/other/".into(), ..elsewhere });
    assert_ne!(elsewhere.id().unwrap(), ids[0]);
    // Nor are their registers the same.
    let mut store = cluster.store(&settings);
    store.execute(&vm("web"), &create(1)).unwrap();
    assert_eq!(elsewhere.load(&vm("web")).unwrap(), None);
    assert_eq!(elsewhere.list().unwrap(), []);
}
