//! Failovers with the registers in etcd: three members and two arbiters in
//! network namespaces, hosts with the probe guest on KVM, and clients that
//! check every answer.

#![forbid(unsafe_code)]

mod machine;

use std::{path::Path, time::Duration};

use machine::{Need, machine_for};
use romulus::{
    control::{ArbiterStatus, Client, Protection, Readiness, Role},
    rehearsal::{
        ProbeReport,
        cluster::{Cluster, LoadClient, Registers, Shape},
        netns::{Direction, Place},
    },
};

const A: Place = Place::Host(1);
const B: Place = Place::Host(2);
const ARBITERS: [Place; 2] = [Place::Arbiter, Place::OtherArbiter(2)];
const MEMBERS: [Place; 3] = [Place::Etcd(1), Place::Etcd(2), Place::Etcd(3)];
const NEEDS: &[Need] = &[Need::Kvm, Need::Tun, Need::Etcd];
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);
const LANES: u32 = 4;
/// Longer than detection and drop, and than an election in etcd, by far.
const LONG: Duration = Duration::from_secs(3);

struct Drill {
    cluster: Cluster,
    _folder: tempfile::TempDir,
}

impl Drill {
    /// A protected guest on `A`, backed by `B`.
    fn new(prefix: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape {
            hosts: 2,
            memory_mib: 64,
            vcpus: 2,
            cmdline: "probe.dirty=pages:2000,rate:4000,write:sparse,content:random".into(),
            linux: None,
            vm: String::new(),
            replication: String::new(),
        };
        let program = Path::new(env!("CARGO_BIN_EXE_romulus"));
        let registers = Registers::Etcd { members: 3, arbiters: 2 };
        let cluster =
            Cluster::with_registers(prefix, folder.path(), program, shape, registers).unwrap();
        let mut drill = Self { cluster, _folder: folder };
        MEMBERS.into_iter().for_each(|member| drill.cluster.start_member(member).unwrap());
        // Arbiters wait for etcd, and nodes for arbiters.
        ARBITERS.into_iter().for_each(|place| drill.cluster.start(place, "arbiter").unwrap());
        drill.cluster.start(A, "run").unwrap();
        drill.cluster.start(B, "backup").unwrap();
        drill.cluster.wait_protected(A, PATIENCE).unwrap();
        drill
    }

    fn client(&self) -> LoadClient {
        let mut client = self.cluster.client(LANES, &[]).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        client
    }

    /// `primary` has died: waits until the other one serves, and brings the
    /// former one back as its backup.
    fn taken_over(&mut self, primary: Place, client: &mut LoadClient) -> Place {
        let other = if primary == A { B } else { A };
        self.cluster.wait_primary(other, PATIENCE).unwrap_or_else(|error| {
            panic!(
                "{error}\nthe arbiters:\n{}",
                ARBITERS.map(|at| self.cluster.log_end(at)).join("\n")
            )
        });
        client.wait_answers(50, PATIENCE).unwrap();
        self.cluster.start(primary, "backup").unwrap();
        self.cluster.wait_protected(other, PATIENCE).unwrap();
        other
    }

    fn term(&self, place: Place) -> u64 {
        self.cluster.status(place).unwrap().term
    }

    fn verify(&self, primary: Place) {
        let report =
            self.cluster.ask(primary, async |control: Client| control.verify().await).unwrap();
        assert!(report.equal && report.backups.len() == 1, "{report:?}");
    }
}

fn assert_sound(report: &ProbeReport) {
    assert!(report.sound(), "{report:#?}");
}

#[test]
fn a_member_is_killed_during_a_failover() {
    let Some(_machine) = machine_for("a_member_is_killed_during_a_failover", NEEDS) else { return };
    let mut drill = Drill::new("member");
    let mut client = drill.client();
    let mut primary = A;
    // Each once: whoever leads when this begins leads until it is killed.
    for member in MEMBERS {
        drill.cluster.kill(primary);
        drill.cluster.kill(member);
        primary = drill.taken_over(primary, &mut client);
        drill.cluster.start_member(member).unwrap();
    }
    drill.verify(primary);
    assert_sound(&client.finish().unwrap());
}

#[test]
fn an_arbiter_is_killed_during_a_failover() {
    let Some(_machine) = machine_for("an_arbiter_is_killed_during_a_failover", NEEDS) else {
        return;
    };
    let mut drill = Drill::new("arbiters");
    let mut client = drill.client();
    let mut primary = A;
    for arbiter in ARBITERS {
        drill.cluster.kill(primary);
        drill.cluster.kill(arbiter);
        primary = drill.taken_over(primary, &mut client);
        drill.cluster.start(arbiter, "arbiter").unwrap();
    }
    // One that stands still answers nobody, and does what it was asked when it wakes.
    for arbiter in ARBITERS {
        drill.cluster.signal(arbiter, "STOP").unwrap();
        drill.cluster.kill(primary);
        primary = drill.taken_over(primary, &mut client);
        drill.cluster.signal(arbiter, "CONT").unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        drill.cluster.wait_protected(primary, PATIENCE).unwrap();
    }
    drill.verify(primary);
    assert_sound(&client.finish().unwrap());
}

#[test]
fn without_a_majority_nobody_takes_over() {
    let Some(_machine) = machine_for("without_a_majority_nobody_takes_over", NEEDS) else { return };
    let mut drill = Drill::new("majority");
    let mut client = drill.client();
    let term = drill.term(A);
    // Replication needs no majority.
    drill.cluster.kill(MEMBERS[0]);
    drill.cluster.signal(MEMBERS[1], "STOP").unwrap();
    client.wait_answers(200, PATIENCE).unwrap();
    // Both sides ask, nobody is told anything, and it certainly did not happen:
    // with the link back, the guest goes on where it stopped.
    drill.cluster.lab().cut(B, Direction::Both).unwrap();
    std::thread::sleep(LONG);
    drill.cluster.lab().heal(B).unwrap();
    client.wait_answers(200, PATIENCE).unwrap();
    assert_eq!(drill.term(A), term, "somebody decided");
    // A failover waits for the majority.
    drill.cluster.kill(A);
    std::thread::sleep(LONG);
    let status = drill.cluster.status(B).unwrap();
    assert_ne!(status.role, Role::Primary);
    assert!(matches!(status.protection, Protection::Unprotected { .. }), "{status:?}");
    let unready = |status: &ArbiterStatus| match &status.readiness {
        Readiness::NotReady { reason } => reason.contains("has no majority of members behind it"),
        Readiness::Ready => false,
    };
    for arbiter in ARBITERS {
        drill.cluster.wait_arbiter(arbiter, "misses the majority", PATIENCE, unready).unwrap();
    }
    let told = drill.cluster.log_end(B);
    assert!(told.contains("cannot decide now, nothing happened"), "{told}");
    // And goes on by itself.
    drill.cluster.signal(MEMBERS[1], "CONT").unwrap();
    let ready = |status: &ArbiterStatus| status.readiness == Readiness::Ready;
    for arbiter in ARBITERS {
        drill.cluster.wait_arbiter(arbiter, "has a majority", PATIENCE, ready).unwrap();
    }
    drill.taken_over(A, &mut client);
    drill.verify(B);
    assert_sound(&client.finish().unwrap());
}

#[test]
fn a_member_is_cut_off_and_comes_back() {
    let Some(_machine) = machine_for("a_member_is_cut_off_and_comes_back", NEEDS) else { return };
    let mut drill = Drill::new("cutoff");
    let mut client = drill.client();
    let mut primary = A;
    for member in MEMBERS {
        drill.cluster.lab().cut(member, Direction::Both).unwrap();
        drill.cluster.kill(primary);
        primary = drill.taken_over(primary, &mut client);
        drill.cluster.lab().heal(member).unwrap();
    }
    // The one that was cut off last is one of a majority of two by now, and its
    // register is not the one that it remembers.
    drill.cluster.kill(MEMBERS[0]);
    drill.cluster.kill(primary);
    primary = drill.taken_over(primary, &mut client);
    drill.verify(primary);
    assert_sound(&client.finish().unwrap());
}
