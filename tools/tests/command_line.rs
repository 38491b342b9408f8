//! The built binary: help, exit codes and answers.

mod machine;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use machine::{Need, skip};

fn romulus(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(arguments)
        .env("ROMULUS_RUN_DIR", "/nowhere")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_has_help() {
    let commands = [
        "",
        "run",
        "backup",
        "arbiter",
        "status",
        "events",
        "console",
        "failover",
        "protect",
        "unprotect",
        "verify",
        "shutdown",
        "pki",
        "pki init",
        "pki issue",
        "pki show",
        "doctor",
        "demo",
        "config",
        "config check",
        "internal probe-client",
    ];
    for command in commands {
        let mut arguments: Vec<_> = command.split_ascii_whitespace().collect();
        arguments.push("--help");
        let output = romulus(&arguments);
        assert_eq!(output.status.code(), Some(0), "{command}");
        let text = stdout(&output);
        assert!(text.contains("Usage: romulus") && text.contains("--json"), "{text}");
    }
    let text = stdout(&romulus(&["--help"]));
    assert!(text.contains("3  fenced"), "{text}");
}

#[test]
fn usage_is_2_and_failure_is_1() {
    for (arguments, code, words) in [
        (&["frobnicate"][..], 2, "unrecognized subcommand"),
        (&["status"], 2, "<VM|ARBITER>"),
        (&["status", "Not A Name"], 2, "neither a configuration"),
        (&["run", "/nowhere/vm.toml"], 2, "cannot read /nowhere/vm.toml"),
        (&["demo", "--memory", "1"], 2, "1 is not in 64..="),
        (&["failover", "web-1", "--to", "NODE"], 2, "is no name"),
        (&["protect", "web-1", "--address", "10.0.0.1:1"], 2, "--backup"),
        (&["status", "web-1"], 1, "nobody serves /nowhere/web-1.sock"),
        (&["pki", "issue", "node-a", "--dir", "/nowhere"], 1, "/nowhere/ca.key"),
    ] {
        let output = romulus(arguments);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
}

#[test]
fn errors_in_json_have_a_remedy() {
    let output = romulus(&["status", "web-1", "--json"]);
    let body: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(body["error"].as_str().unwrap().contains("nobody serves"), "{body}");
    assert!(body["remedy"].as_str().unwrap().contains("running on this host"), "{body}");
}

fn issue_all(folder: &Path) {
    let dir = folder.to_str().unwrap();
    assert!(romulus(&["pki", "init", "--dir", dir]).status.success());
    for node in ["node-a", "arbiter"] {
        assert!(romulus(&["pki", "issue", node, "--dir", dir]).status.success());
    }
}

#[test]
fn certificates_are_made_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    issue_all(folder.path());
    let dir = folder.path().to_str().unwrap();
    let again = romulus(&["pki", "issue", "node-a", "--dir", dir]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("already there"));
    let output = romulus(&["pki", "show", dir, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes: Vec<_> = shown.as_array().unwrap().iter().map(|it| it["node"].as_str()).collect();
    assert_eq!(nodes, [Some("arbiter"), None, Some("node-a")]);
}

#[test]
fn a_configuration_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    issue_all(folder.path());
    let file = folder.path().join("vm.toml");
    let text = r#"
        [vm]
        name = "web-1"
        memory_mib = 512
        kernel = "probe"
        [node]
        name = "node-a"
        listen = "10.1.0.1:7700"
        state_dir = "state"
        control = "web-1.sock"
        ca = "ca.pem"
        cert = "node-a.pem"
        key = "node-a.key"
        [arbiter]
        name = "arbiter"
        address = "10.1.0.9:7800"
    "#;
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let output = romulus(&["config", "check", file]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("replication.epoch_ms = 25"), "{}", stdout(&output));
    let output = romulus(&["config", "check", file, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["vm"]["memory_mib"], 512);
    // The VM's file leads to its socket, where nobody is.
    let told = stderr(&romulus(&["status", file]));
    assert!(told.contains("nobody serves") && told.contains("web-1.sock"), "{told}");
}

#[test]
fn the_doctor_answers_in_json() {
    let output = romulus(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let code = if report["ready"] == true { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code));
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.len() >= 8);
    let named = |name| findings.iter().find(|finding| finding["name"] == name);
    if named("/dev/kvm").unwrap()["verdict"] != "ok" {
        skip("the_doctor_answers_in_json", Need::Kvm, &format!("KVM cannot be used: {report}"));
        return;
    }
    let text = stdout(&romulus(&["doctor"]));
    for name in ["bare-metal guests", "stock Linux guests", "CPU models"] {
        let finding = named(name).unwrap_or_else(|| panic!("no {name} in {report}"));
        let found = finding["found"].as_str().unwrap();
        assert!(text.contains(name) && text.contains(found), "{finding} is not in\n{text}");
    }
}
