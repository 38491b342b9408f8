//! The built binary: help, exit codes and answers.

mod machine;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use arbiter::{FileStore, ImageId, Operation, Outcome, Register, Request, Stamp, Store, VmId};
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
        "register",
        "register show",
        "register forget",
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
    assert!(stderr(&again).contains("already there") && stderr(&again).contains("`--force`"));
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

fn write_vm(folder: &Path, certificate: &str) -> String {
    let file = folder.join("vm.toml");
    let text = format!(
        r#"
        [vm]
        name = "web-1"
        memory_mib = 64
        kernel = "probe"
        [node]
        name = "node-a"
        listen = "127.0.0.1:7700"
        state_dir = "state"
        control = "web-1.sock"
        ca = "ca.pem"
        cert = "{certificate}.pem"
        key = "{certificate}.key"
        [arbiter]
        name = "arbiter"
        address = "127.0.0.1:7800"
    "#
    );
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_wrong_identity_is_a_wrong_configuration() {
    let folder = tempfile::tempdir().unwrap();
    issue_all(folder.path());
    let file = write_vm(folder.path(), "arbiter");
    for command in [&["config", "check", &file][..], &["run", &file], &["backup", &file]] {
        let output = romulus(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        let told = stderr(&output);
        assert!(told.contains("the certificate of `arbiter`, not of `node-a`"), "{told}");
    }
    let output = romulus(&["arbiter", &file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("this is a VM's file"), "{}", stderr(&output));
    assert!(!folder.path().join("state").exists(), "something was started");
}

/// An arbiter's configuration, and its register file's path.
fn write_arbiter(folder: &Path) -> (String, std::path::PathBuf) {
    issue_all(folder);
    let file = folder.join("arbiter.toml");
    let text = r#"
        [arbiter]
        name = "arbiter"
        listen = "127.0.0.1:7800"
        store = "register"
        ca = "ca.pem"
        cert = "arbiter.pem"
        key = "arbiter.key"
    "#;
    fs::write(&file, text).unwrap();
    (file.to_str().unwrap().to_owned(), folder.join("register"))
}

fn set(store: &mut FileStore, caller: &str, from: Option<Register>, what: Operation) -> Register {
    let vm: VmId = "web-1".parse().unwrap();
    let caller = caller.parse().unwrap();
    let request = Request { caller, expected: from, operation: what, stamp: Stamp::new(7) };
    match store.execute(&vm, &request).unwrap() {
        Outcome::Set(register) => register,
        Outcome::Mismatch(found) => panic!("the register holds {found:?}"),
    }
}

fn typing(arguments: &[&str], typed: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_register_is_forgotten_by_its_name_and_claimed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (file, path) = write_arbiter(folder.path());
    let show = ["register", "show", &file];
    let absent = romulus(&show);
    assert_eq!(absent.status.code(), Some(1));
    assert!(stderr(&absent).contains("there is no register file"), "{}", stderr(&absent));
    assert!(!folder.path().join("register.lock").exists(), "looking leaves nothing");

    let mut store = FileStore::open(&path).unwrap();
    let created = set(&mut store, "node-a", None, Operation::Create);
    let backup = "node-b".parse().unwrap();
    let admit = Operation::Admit { backup, image: ImageId::new(5) };
    set(&mut store, "node-a", Some(created), admit);
    for held in [&show[..], &["register", "forget", "web-1", &file, "--yes"]] {
        let output = romulus(held);
        assert_eq!(output.status.code(), Some(1), "{held:?}");
        assert!(stderr(&output).contains("an arbiter that runs holds"), "{}", stderr(&output));
    }
    drop(store);

    let line = "web-1: term 2, primary node-a, in sync {node-b}\n";
    let forget = ["register", "forget", "web-1", &file];
    let output = typing(&forget, "web-2\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`web-2` is not `web-1`"), "{}", stderr(&output));
    assert_eq!(stdout(&romulus(&show)), line);
    assert_eq!(romulus(&["register", "forget", "web-9", &file, "--yes"]).status.code(), Some(1));
    let output = typing(&forget, "web-1\n");
    assert!(output.status.success() && stderr(&output).contains(line), "{}", stderr(&output));
    assert!(stdout(&romulus(&show)).contains("has no registers"));

    let mut store = FileStore::open(&path).unwrap();
    assert_eq!(set(&mut store, "node-b", None, Operation::Create).primary.as_str(), "node-b");
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
