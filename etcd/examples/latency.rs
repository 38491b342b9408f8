//! How long one change of a register takes: in a file, and in three members of
//! etcd, on this machine's disk.
//!
//! `cargo run --release -p romulus-etcd --example latency -- [changes] [folder]`
//!
//! Members and file share one disk here, and members one kernel: what a network
//! adds is not in it. An arbiter answers after the change is durable, so the
//! disk's flushes (one for the file and one for its folder; one for each of two
//! members, side by side) are most of it.

#![forbid(unsafe_code)]

#[path = "../tests/etcd/cluster.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod cluster;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use arbiter::{FileStore, NodeId, Operation, Outcome, Register, Request, Stamp, Store, Term, VmId};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let changes: u64 = arguments.next().map_or(500, |text| text.parse().expect("a number"));
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).expect("a folder that can be written");

    println!("{changes} changes and as many reads each, microseconds");
    println!("{:28} {:>8} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99", "max");
    let mut file = FileStore::open(&folder.path().join("register")).expect("a store");
    measure("file", &mut file, changes);
    for members in [1, 3] {
        let shape = cluster::Shape { members, ..cluster::Shape::default() };
        let etcd = cluster::Cluster::shaped_in(folder.path(), shape);
        let all: Vec<usize> = (0..members).collect();
        // From the leader's side, and from another's, which asks the leader.
        let leader = etcd.leader(0);
        for (name, first) in [("leader", leader), ("follower", (leader + 1) % members)] {
            if members == 1 && name == "follower" {
                continue;
            }
            let mut order = all.clone();
            order.rotate_left(first);
            let mut store = etcd.store(&etcd.settings(&order));
            measure(&format!("etcd, {members} members, {name}"), &mut store, changes);
        }
    }
}

fn measure(name: &str, store: &mut dyn Store, changes: u64) {
    let vm: VmId = "latency".parse().expect("a name");
    let (mut sets, mut reads) = (Vec::new(), Vec::new());
    let mut register = None;
    for _ in 0..changes {
        let begun = Instant::now();
        let found = store.load(&vm).expect("an answer");
        reads.push(begun.elapsed());
        // Another measurement may have left its register there.
        let expected = register.or(found.map(|record| record.register));
        let request = claim(expected);
        let begun = Instant::now();
        let outcome = store.execute(&vm, &request).expect("an answer");
        sets.push(begun.elapsed());
        let Outcome::Set(set) = outcome else { panic!("{outcome:?}") };
        register = Some(set);
    }
    row(&format!("{name}: change"), sets);
    row(&format!("{name}: read"), reads);
}

fn claim(expected: Option<Register>) -> Request {
    let operation = if expected.is_some() { Operation::Restart } else { Operation::Create };
    let caller: NodeId = "node-a".parse().expect("a name");
    let term = expected.as_ref().map_or(Term::ZERO, |register| register.term);
    Request { caller, expected, operation, stamp: Stamp::new(term.get()) }
}

fn row(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_micros();
    println!("{name:28} {:>8} {:>8} {:>8} {:>8}", at(0.5), at(0.9), at(0.99), at(1.0));
}
