//! Rehearsals that do not come to their end: a daemon that dies at once is told
//! of, and a signal leaves nothing behind.

#![forbid(unsafe_code)]

mod machine;

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use machine::{GUESTS, Need, machine_for};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use romulus::rehearsal::{
    cluster::{Cluster, ClusterError, Shape},
    netns::Place,
};

const ROMULUS: &str = env!("CARGO_BIN_EXE_romulus");
const A: Place = Place::Host(1);
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than the test may take: who waits for it to pass has not looked.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

/// What `found` finds, as soon as it finds something.
fn await_some<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_daemon_that_ends_at_once_is_told_of_and_not_waited_for() {
    let test = "a_daemon_that_ends_at_once_is_told_of_and_not_waited_for";
    let Some(_machine) = machine_for(test, &[Need::Tun]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape {
        hosts: 1,
        memory_mib: 64,
        vcpus: 1,
        cmdline: String::new(),
        linux: None,
        vm: String::new(),
        replication: "nope = 1".into(),
    };
    let mut cluster = Cluster::new("ended", folder.path(), Path::new(ROMULUS), shape).unwrap();
    cluster.start(A, "run").unwrap();
    let told = [
        cluster.wait_primary(A, FOR_EVER).unwrap_err(),
        cluster.wait_protected(A, FOR_EVER).unwrap_err(),
        cluster.wait_console(A, "ready", FOR_EVER).unwrap_err(),
    ];
    for error in told {
        let ClusterError::Ended { how, log, .. } = &error else { panic!("{error}") };
        assert_eq!(how, "exit code 2");
        assert!(log.contains("nope"), "{log}");
        assert!(error.to_string().contains(log.as_str()), "{error}");
    }
    // Who looks for its exit code still finds it.
    assert_eq!(cluster.exit_code(A, PATIENCE), Some(2));
}

/// What the process has made.
fn traces(pid: u32, temporary: &Path) -> Vec<String> {
    let of = |folder: &Path, begin: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(begin)).collect::<Vec<_>>()
    };
    let mut found = of(Path::new("/run/netns"), &format!("rom{pid}-"));
    found.extend(of(temporary, "romulus-"));
    found
}

/// Its daemons and clients.
fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")));
    let children: Vec<String> = children.map(Result::unwrap_or_default).collect();
    children
        .iter()
        .flat_map(|pids| pids.split_whitespace())
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn begin(temporary: &Path) -> Child {
    Command::new(ROMULUS)
        .args(["demo", "--memory", "64", "--vcpus", "1"])
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_signal_takes_everything_with_it() {
    let Some(_machine) = machine_for("a_signal_takes_everything_with_it", GUESTS) else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let temporary = tempfile::tempdir().unwrap();
        let mut demo = begin(temporary.path());
        let pid = demo.id();
        // Arbiter and host, at least.
        let started = await_some("daemons have started", || {
            Some(descendants(pid)).filter(|children| children.len() >= 2)
        });
        assert!(traces(pid, temporary.path()).len() > 4);
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
        let status = await_some("it ends", || demo.try_wait().unwrap());
        let mut words = String::new();
        demo.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        assert_eq!(status.code(), Some(128 + signal as i32), "{words}");
        assert_eq!(traces(pid, temporary.path()), Vec::<String>::new(), "{words}");
        let is_gone = |pid: &u32| {
            let program = fs::read_link(format!("/proc/{pid}/exe"));
            !program.is_ok_and(|program| program.ends_with("romulus"))
        };
        await_some("its daemons are gone", || started.iter().all(is_gone).then_some(()));
    }
}

/// A killed process can remove nothing, so the next one does.
#[test]
fn what_a_killed_rehearsal_leaves_goes_with_the_next() {
    let test = "what_a_killed_rehearsal_leaves_goes_with_the_next";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let temporary = tempfile::tempdir().unwrap();
    let mut first = begin(temporary.path());
    let dead = first.id();
    await_some("daemons have started", || {
        Some(descendants(dead)).filter(|children| children.len() >= 2)
    });
    first.kill().unwrap();
    first.wait().unwrap();
    let key = temporary.path().join(format!("romulus-demo-{dead}/pki/host-1.key"));
    assert!(key.exists());
    let mut second = begin(temporary.path());
    await_some("the next one has its own", || {
        temporary.path().join(format!("romulus-demo-{}/pki", second.id())).exists().then_some(())
    });
    assert!(!temporary.path().join(format!("romulus-demo-{dead}")).exists());
    assert!(!traces(dead, temporary.path()).iter().any(|name| name.contains(&dead.to_string())));
    kill(Pid::from_raw(second.id().cast_signed()), Signal::SIGTERM).unwrap();
    await_some("it ends", || second.try_wait().unwrap());
}
