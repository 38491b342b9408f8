//! A short soak: what `romulus soak` does for as long as an operator wants.

#![forbid(unsafe_code)]

mod machine;

use std::process::Command;

use machine::{GUESTS, machine_for};
use serde_json::Value;

/// One round at least, whatever the machine.
fn survives(seed: &str, backups: u8) {
    let output = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(["soak", "--json", "--seconds", "15", "--seed", seed, "--memory", "64"])
        .args(["--backups", &backups.to_string()])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).expect(&words);
    assert!(output.status.success(), "{report:#}\n{words}");
    assert_eq!(report["double_voices"], 0);
    assert_eq!(report["clients"]["lost"], 0);
    assert!(report["rounds"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["failure"].is_null(), "{report:#}");
    let faults = report["faults"].as_object().unwrap();
    assert!(faults.values().all(|count| count.as_u64().unwrap() > 0), "{report:#}");
}

#[test]
fn a_short_soak_survives_and_says_so() {
    let Some(_machine) = machine_for("a_short_soak_survives_and_says_so", GUESTS) else { return };
    survives("4", 1);
}

#[test]
fn with_two_backups_two_hosts_may_die_at_once() {
    let test = "with_two_backups_two_hosts_may_die_at_once";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    survives("5", 2);
}
