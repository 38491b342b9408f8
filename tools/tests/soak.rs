//! A short soak: what `romulus soak` does for as long as an operator wants.

#![forbid(unsafe_code)]

use std::{path::Path, process::Command};

use serde_json::Value;

/// One round at least, whatever the machine.
#[test]
fn a_short_soak_survives_and_says_so() {
    let missing = ["/dev/kvm", "/dev/net/tun"].into_iter().find(|path| !Path::new(path).exists());
    if missing.is_some() || !nix::unistd::geteuid().is_root() {
        let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
        assert!(!required.contains("kvm") && !required.contains("tun"), "{missing:?}, or not root");
        println!("skipped: a soak needs KVM, a tap and root");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(["soak", "--json", "--seconds", "15", "--seed", "4", "--memory", "64"])
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
