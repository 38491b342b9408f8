//! What the jail forbids is refused, to every kind of thread; and daemons live
//! in it through failovers and handovers without missing anything.

mod machine;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use clap::ValueEnum;
use machine::{GUESTS, Need, has, machine_for};
use nix::sys::signal::Signal;
use romulus::{
    config::JailMode,
    control::{Client, FailoverBody},
    jail::{ThreadKind, landlock_available},
    rehearsal::{
        cluster::{Cluster, Shape},
        netns::Place,
    },
};
use transport::identity::pki;

const ROMULUS: &str = env!("CARGO_BIN_EXE_romulus");
/// What a refused call is told with.
const TOLD: &str = "which its jail refuses";
const A: Place = Place::Host(1);
const B: Place = Place::Host(2);
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);
const CALM: &str = "detection_ms = 1000\ndrop_ms = 800";

fn attempt(kind: ThreadKind, what: &str) -> Output {
    let kind = kind.to_possible_value().unwrap();
    Command::new(ROMULUS)
        .args(["internal", "attempt", "--kind", kind.get_name(), "--what", what])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn whoever_becomes_another_program_ends_the_process() {
    for kind in ThreadKind::ALL {
        let output = attempt(kind, "program");
        let words = words(&output);
        assert_eq!(output.status.signal(), Some(Signal::SIGSYS as i32), "{kind:?}: {words}");
        let name = format!("{kind:?}").to_lowercase();
        let told = format!("thread `{name}` asked for system call execve (59), {TOLD}");
        assert!(words.contains(&told), "{words}");
    }
}

#[test]
fn a_log_of_json_lines_has_no_others() {
    let output = Command::new(ROMULUS)
        .args(["--log", "json", "internal", "attempt", "--kind", "vcpu", "--what", "program"])
        .output()
        .unwrap();
    let words = words(&output);
    let lines: Vec<serde_json::Value> =
        words.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let told = |line: &serde_json::Value| line["message"].as_str().unwrap_or("").contains(TOLD);
    let line = lines.iter().find(|line| told(line)).expect(&words);
    assert_eq!(
        (line["level"].as_str(), line["target"].as_str()),
        (Some("ERROR"), Some("vmm::refusal"))
    );
    assert!(line["unix_ms"].as_u64().unwrap() > 1_700_000_000_000);
}

#[test]
fn what_a_thread_does_not_need_fails_and_is_told() {
    let talks = |kind| matches!(kind, ThreadKind::Process | ThreadKind::Network);
    for kind in ThreadKind::ALL {
        let name = format!("{kind:?}").to_lowercase();
        let no_process = attempt(kind, "process");
        assert_eq!(no_process.status.code(), Some(1), "{kind:?}");
        let told = words(&no_process);
        assert!(told.contains("refused: Operation not permitted"), "{told}");
        let socket = attempt(kind, "socket");
        let told = words(&socket);
        assert_eq!(socket.status.success(), talks(kind), "{kind:?}: {told}");
        let words = format!("thread `{name}` asked for system call socket (41), {TOLD}");
        assert_eq!(told.contains(&words), !talks(kind), "{told}");
    }
}

#[test]
fn files_and_networks_of_others_are_out_of_reach() {
    if !has("files_and_networks_of_others_are_out_of_reach", &[Need::Landlock]) {
        return;
    }
    for kind in [ThreadKind::Process, ThreadKind::Network] {
        for what in ["write", "read", "tcp"] {
            let output = attempt(kind, what);
            let words = words(&output);
            assert_eq!(output.status.code(), Some(1), "{kind:?} {what}: {words}");
            assert!(words.contains("refused: Permission denied"), "{kind:?} {what}: {words}");
        }
    }
}

/// A panic prints a backtrace and aborts: nothing of that may be refused.
#[test]
fn a_panic_ends_in_good_order() {
    for kind in ThreadKind::ALL {
        let output = attempt(kind, "panic");
        let words = words(&output);
        assert_eq!(output.status.signal(), Some(Signal::SIGABRT as i32), "{kind:?}: {words}");
        assert!(words.contains("it was asked for"), "{kind:?}: {words}");
        assert!(words.contains("romulus::jail::attempt"), "{kind:?} has no backtrace: {words}");
        assert!(!words.contains(TOLD), "{kind:?}: {words}");
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    pki::create_authority(dir, pki::CA_DAYS, false).unwrap();
    let files = pki::issue(dir, &"node-a".parse().unwrap(), pki::NODE_DAYS, false).unwrap();
    let mode = fs::metadata(&files.key).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "it is made for its owner alone");
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    let config = dir.join("vm.toml");
    let text = "[vm]\nname = \"web-1\"\nmemory_mib = 64\nkernel = \"probe\"\n\n\
         [node]\nname = \"node-a\"\nlisten = \"127.0.0.1:7700\"\nstate_dir = \"state\"\n\
         control = \"web-1.sock\"\nca = \"ca.pem\"\ncert = \"node-a.pem\"\nkey = \"node-a.key\"\n\n\
         [arbiter]\nname = \"arbiter\"\naddress = \"127.0.0.1:7800\"\n";
    fs::write(&config, text).unwrap();
    let output = Command::new(ROMULUS).arg("backup").arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let words = words(&output);
    assert!(words.contains("mode 644") && words.contains("chmod 600"), "{words}");
}

fn cluster(prefix: &str, folder: &Path) -> Cluster {
    let shape = Shape {
        hosts: 2,
        memory_mib: 64,
        vcpus: 2,
        cmdline: "probe.dirty=pages:2000,rate:4000,write:sparse,content:random".into(),
        linux: None,
        vm: String::new(),
        replication: CALM.into(),
    };
    Cluster::new(prefix, folder, Path::new(ROMULUS), shape).unwrap()
}

/// The fields of every thread of a process, by the thread's name.
fn threads(pid: u32) -> BTreeMap<String, BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let fields = |text: String| {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    tasks
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok())
        .map(fields)
        .map(|fields: BTreeMap<_, _>| (fields["Name"].clone(), fields))
        .collect()
}

fn assert_jailed(cluster: &Cluster, place: Place, expected: &[&str]) {
    let pid = cluster.pid(place).unwrap();
    let threads = threads(pid);
    for name in expected {
        assert!(threads.contains_key(*name), "{place}: {name} is not in {:?}", threads.keys());
    }
    for (thread, fields) in &threads {
        for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
            assert_eq!(fields[set].trim_matches('0'), "", "{place}, {thread}: {set}");
        }
        assert_eq!(fields["NoNewPrivs"], "1", "{place}, {thread}");
        assert_eq!(fields["Seccomp"], "2", "{place}, {thread}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

fn assert_nothing_missed(cluster: &Cluster, place: Place) {
    let jail = cluster.status(place).unwrap().features.jail;
    assert_eq!((jail.mode, jail.refused_calls), (JailMode::Strict, 0), "{place}");
    assert_eq!(jail.capabilities, Vec::<String>::new(), "{place}");
    assert_eq!(jail.landlock, landlock_available(), "{place}");
}

fn assert_nothing_told(cluster: &Cluster) {
    for place in [Place::Arbiter, A, B] {
        let log = fs::read_to_string(cluster.folder().join(format!("{place}.log"))).unwrap();
        assert!(!log.contains(TOLD), "{log}");
    }
}

#[test]
fn daemons_live_in_the_jail_whatever_their_role() {
    let Some(_machine) = machine_for("daemons_live_in_the_jail_whatever_their_role", GUESTS) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster("jail", folder.path());
    cluster.start(Place::Arbiter, "arbiter").unwrap();
    cluster.start(A, "run").unwrap();
    cluster.start(B, "backup").unwrap();
    cluster.wait_protected(A, PATIENCE).unwrap();
    let primary =
        ["romulus", "romulus-net", "vcpu-0", "net-0", "outlet", "console", "epoch", "encode-0"];
    let backup = ["romulus", "romulus-net", "vcpu-0", "net-0", "outlet", "apply", "decode-0"];
    assert_jailed(&cluster, Place::Arbiter, &["romulus", "register-0"]);
    assert_jailed(&cluster, A, &primary);
    assert_jailed(&cluster, B, &backup);
    let mut client = cluster.client(4, &[]).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    // A failover: the primary's threads begin in what was a backup.
    cluster.kill(A);
    cluster.wait_primary(B, PATIENCE).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    assert_jailed(&cluster, B, &primary);
    // Handovers: what was a primary makes a backup's guest of what it has open.
    cluster.start(A, "backup").unwrap();
    cluster.wait_protected(B, PATIENCE).unwrap();
    for (from, to) in [(B, A), (A, B), (B, A)] {
        let pids = [A, B].map(|place| cluster.pid(place));
        let body = FailoverBody { to: Some(to.node()), ..FailoverBody::default() };
        cluster.ask(from, async |control: Client| control.failover(&body).await).unwrap();
        cluster.wait_protected(to, PATIENCE).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        assert_eq!(pids, [A, B].map(|place| cluster.pid(place)));
        assert_jailed(&cluster, from, &backup);
        assert_jailed(&cluster, to, &primary);
    }
    let report = client.finish().unwrap();
    assert!(report.sound(), "{report:#?}");
    for place in [A, B] {
        assert_nothing_missed(&cluster, place);
    }
    assert_nothing_told(&cluster);
}

#[test]
fn the_jail_is_a_setting() {
    let Some(_machine) = machine_for("the_jail_is_a_setting", GUESTS) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster("jailset", folder.path());
    for (place, mode) in [(A, "log"), (B, "off")] {
        let path = cluster.folder().join(format!("{place}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("[node]\n", &format!("[node]\njail = \"{mode}\"\n")))
            .unwrap();
    }
    cluster.start(Place::Arbiter, "arbiter").unwrap();
    cluster.start(A, "run").unwrap();
    cluster.start(B, "backup").unwrap();
    cluster.wait_protected(A, PATIENCE).unwrap();
    for (place, mode, seccomp) in [(A, JailMode::Log, "2"), (B, JailMode::Off, "0")] {
        let jail = cluster.status(place).unwrap().features.jail;
        assert_eq!((jail.mode, jail.landlock), (mode, 0));
        assert!(!jail.capabilities.is_empty(), "{jail:?}");
        for (thread, fields) in threads(cluster.pid(place).unwrap()) {
            assert_eq!(fields["Seccomp"], seccomp, "{place}, {thread}");
        }
    }
}
