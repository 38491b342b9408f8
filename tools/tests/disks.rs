//! Guests with disks, between real processes: nodes compare what must be
//! equal, and the disk moves with the guest.

mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use machine::{GUESTS, machine_for};
use romulus::{
    control::{Client, ClientError, FailoverBody, ProtectBody},
    rehearsal::{
        cluster::{Cluster, ClusterError, Shape},
        netns::Place,
    },
};

const A: Place = Place::Host(1);
const B: Place = Place::Host(2);
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two hosts and an arbiter; each host has `HOST.img` as a disk.
fn cluster(prefix: &str, folder: &Path, disk: &str) -> Cluster {
    let shape = Shape {
        hosts: 2,
        memory_mib: 64,
        vcpus: 1,
        cmdline: "probe.dirty=pages:500,rate:1000,write:sparse,content:random".into(),
        linux: None,
        vm: String::new(),
        replication: String::new(),
    };
    let program = Path::new(env!("CARGO_BIN_EXE_romulus"));
    let mut cluster = Cluster::new(prefix, folder, program, shape).unwrap();
    for host in [A, B] {
        fs::write(image(folder, host), vec![7; 1 << 20]).unwrap();
        let path = folder.join(format!("{host}.toml"));
        let mut text = fs::read_to_string(&path).unwrap();
        text += &format!("\n[[disks]]\npath = \"{host}.img\"\n{disk}\n");
        fs::write(path, text).unwrap();
    }
    cluster.start(Place::Arbiter, "arbiter").unwrap();
    cluster
}

fn image(folder: &Path, host: Place) -> PathBuf {
    folder.join(format!("{host}.img"))
}

fn await_event(cluster: &Cluster, place: Place, words: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let asked = cluster.ask(place, async |control: Client| {
            control.events(0, Duration::from_millis(500)).await
        });
        let events = asked.map(|page| page.events).unwrap_or_default();
        if events.iter().any(|event| event.text.contains(words)) {
            return;
        }
        assert!(Instant::now() < end, "`{words}` is no event of {place}: {events:#?}");
    }
}

#[test]
fn a_disk_that_is_only_read_moves_with_its_guest_to_an_equal_image() {
    let test = "a_disk_that_is_only_read_moves_with_its_guest_to_an_equal_image";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster("disks", folder.path(), "read_only = true");
    let mut other = vec![7; 1 << 20];
    other[600_000] = 8;
    fs::write(image(folder.path(), B), other).unwrap();
    cluster.start(A, "run").unwrap();
    cluster.start(B, "backup").unwrap();
    await_event(&cluster, A, "disk disk-0 differs: 1048576 bytes, blake3 of all ");
    cluster.kill(B);
    fs::copy(image(folder.path(), A), image(folder.path(), B)).unwrap();
    cluster.start(B, "backup").unwrap();
    cluster.wait_protected(A, PATIENCE).unwrap();

    let mut client = cluster.client(2, &[]).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    let console = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(["console", "--no-input"])
        .arg(folder.path().join(format!("{B}.sock")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(folder.path().join("console.err")).unwrap())
        .spawn()
        .unwrap();
    let told = |words: &str| {
        let end = Instant::now() + PATIENCE;
        let path = folder.path().join("console.err");
        while !fs::read_to_string(&path).unwrap().contains(words) {
            assert!(Instant::now() < end, "the console does not tell `{words}`");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    told("host-2 stands by and demo runs on host-1: attach there, or wait here");
    cluster.kill(A);
    cluster.wait_primary(B, PATIENCE).unwrap();
    told("demo on host-2");
    client.wait_answers(50, PATIENCE).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(console.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let output = console.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));

    cluster.start(A, "backup").unwrap();
    cluster.wait_protected(B, PATIENCE).unwrap();
    let back = FailoverBody { to: Some(A.node()), ..FailoverBody::default() };
    cluster.ask(B, async |control: Client| control.failover(&back).await).unwrap();
    cluster.wait_protected(A, PATIENCE).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    let report = client.finish().unwrap();
    assert!(report.sound(), "{report:#?}");
}

#[test]
fn a_guest_that_writes_a_disk_is_not_protected() {
    let Some(_machine) = machine_for("a_guest_that_writes_a_disk_is_not_protected", GUESTS) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster("writes", folder.path(), "read_only = false");
    cluster.start(A, "run").unwrap();
    assert_eq!(cluster.exit_code(A, PATIENCE), Some(2), "{}", cluster.log_end(A));
    let log = cluster.log_end(A);
    assert!(log.contains("writes are not replicated yet"), "{log}");

    let path = folder.path().join(format!("{A}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("[[peers]]").unwrap();
    let (_, disks) = rest.split_once("[[disks]]").unwrap();
    fs::write(&path, format!("{before}[[disks]]{disks}")).unwrap();
    cluster.start(A, "run").unwrap();
    cluster.wait_primary(A, PATIENCE).unwrap();
    let address = B.replication_address().unwrap();
    let body = ProtectBody {
        backup: Some(B.node()),
        address: Some(format!("{address}:7700").parse().unwrap()),
    };
    let refused = cluster.ask(A, async |control: Client| control.protect(&body).await);
    let Err(ClusterError::Control { source: ClientError::Refused { status, body }, .. }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(status, 409);
    assert_eq!(body.error, "the guest may write disk disk-0, and writes are not replicated yet");
}
