//! Power cuts of whole hosts: see `romulus_tests::lab`.
//!
//! Every test holds the machine while it runs: emulated computers at once would
//! take each other's time.

#![forbid(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use romulus_tests::lab::{Guest, Lab, Materials, Place, Shape, obstacle};

/// The project's program, as Cargo built it with this test.
const ROMULUS: &str = env!("CARGO_BIN_EXE_romulus-in-lab");
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(90);

static MACHINE: Mutex<()> = Mutex::new(());

/// Says why a test is skipped, or fails where `ROMULUS_REQUIRE` wants it run.
fn machine_for(test: &str) -> Option<MutexGuard<'static, ()>> {
    let Some(reason) = obstacle() else {
        return Some(MACHINE.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|need| need == "lab"), "{test}: {reason}");
    println!("skipped {test}: {reason}");
    None
}

/// Beside Cargo's other products; `cargo clean` removes it.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("lab")
}

#[test]
fn hosts_have_a_kvm_of_their_own() {
    let Some(_machine) = machine_for("hosts_have_a_kvm_of_their_own") else { return };
    let materials = Materials::gather(&cache()).unwrap();
    let shape =
        Shape { hosts: 1, guest: Guest::probe(64, 1, ""), replication: String::new(), seed: 1 };
    let mut lab = Lab::new(&materials, "kvm", Path::new(ROMULUS), shape).unwrap();
    let release = lab.run(Place::Host(1), "uname -r").unwrap();
    assert_eq!(release, materials.kernel.release);
    lab.run(Place::Host(1), "test -c /dev/kvm").unwrap();
    let outcome = lab.ask(Place::Host(1), "doctor").unwrap();
    println!("{}", outcome.text());
    assert_eq!(outcome.code, 0, "{}", outcome.text());
}

#[test]
fn a_power_cut_loses_nothing() {
    let Some(_machine) = machine_for("a_power_cut_loses_nothing") else { return };
    let materials = Materials::gather(&cache()).unwrap();
    let work = "probe.dirty=pages:500,rate:1000,write:sparse,content:random";
    let shape =
        Shape { hosts: 2, guest: Guest::probe(64, 2, work), replication: String::new(), seed: 2 };
    let (first, second) = (Place::Host(1), Place::Host(2));
    let mut lab = Lab::new(&materials, "cut", Path::new(ROMULUS), shape).unwrap();
    lab.start(Place::Arbiter, "arbiter").unwrap();
    lab.start(second, "backup").unwrap();
    lab.start(first, "run").unwrap();
    lab.wait_protected(first, PATIENCE).unwrap();
    lab.say("protected");
    let target = "--target 10.77.0.100:7000 --lanes 4 --retransmit-ms 500 --no-tsc-check";
    let client = lab.client("probe", &format!("probe-client {target}")).unwrap();
    client.wait_answers(&mut lab, 50, PATIENCE).unwrap();
    lab.power_cut(first);
    lab.wait_primary(second, PATIENCE).unwrap();
    lab.say("taken over");
    client.wait_answers(&mut lab, 50, PATIENCE).unwrap();
    lab.say("answers go on");
    lab.power_on(first).unwrap();
    lab.start(first, "backup").unwrap();
    lab.wait_protected(second, PATIENCE).unwrap();
    lab.say("protected again");
    client.wait_answers(&mut lab, 50, PATIENCE).unwrap();
    lab.hand_over(second, first).unwrap();
    lab.wait_protected(first, PATIENCE).unwrap();
    lab.say("handed back");
    client.wait_answers(&mut lab, 50, PATIENCE).unwrap();
    let report: romulus::rehearsal::ProbeReport = client.finish(&mut lab, PATIENCE).unwrap();
    println!("{report:#?}");
    assert!(report.sound(), "{report:#?}");
    let verified = lab.verify(first).unwrap();
    assert!(verified.equal && verified.backups.len() == 1, "{verified:?}");
}
