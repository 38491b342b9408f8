//! A guest that attacks its devices, on real KVM: the machine lives and goes on
//! serving, or ends that guest with a reason; replication stays exact meanwhile.
//!
//! The attack is `probe.attack=` (`guest/README.md`). The guest itself judges
//! what it can see: a device that serves no more, that writes after its reset, or
//! a page that changed by itself ends the run with a code of its own.

mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use machine::{GUESTS, machine_for};
use romulus::{
    control::Client,
    rehearsal::{
        cluster::{Cluster, Shape},
        netns::Place,
    },
};

const A: Place = Place::Host(1);
const B: Place = Place::Host(2);
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);
const LANES: u32 = 4;
const CALM: &str = "detection_ms = 1000\ndrop_ms = 800";
/// Rounds of the attack between two events.
const ROUNDS: u64 = 15;
/// What a daemon may use beside the guest's memory, whatever the guest does.
const OWN_MEMORY_KIB_MAX: u64 = 192 << 10;
/// What a daemon may write to its log meanwhile.
const LOG_BYTES_MAX: u64 = 256 << 10;

/// A cluster whose guest has a network, a disk that is only read, and an
/// entropy device; of it the arbiter runs.
struct Siege {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Siege {
    fn lay(prefix: &str, vcpus: u16, attack: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dirty = "probe.dirty=pages:1000,rate:2000,write:sparse,content:random";
        let shape = Shape {
            hosts: 2,
            memory_mib: 64,
            vcpus,
            cmdline: format!("{dirty} probe.attack={attack}"),
            linux: None,
            vm: String::new(),
            replication: CALM.into(),
        };
        let program = Path::new(env!("CARGO_BIN_EXE_romulus"));
        let mut cluster = Cluster::new(prefix, folder.path(), program, shape).unwrap();
        for host in [A, B] {
            let image = format!("{host}.img");
            fs::write(folder.path().join(&image), vec![7; 1 << 20]).unwrap();
            let path = folder.path().join(format!("{host}.toml"));
            let mut text = fs::read_to_string(&path).unwrap();
            text += &format!("\n[[disks]]\npath = \"{image}\"\nread_only = true\n");
            fs::write(path, text).unwrap();
        }
        cluster.start(Place::Arbiter, "arbiter").unwrap();
        Self { cluster, folder }
    }

    fn file(&self, place: Place, kind: &str) -> PathBuf {
        self.folder.path().join(format!("{place}.{kind}"))
    }

    fn console(&self, place: Place) -> String {
        let bytes = fs::read(self.file(place, "console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the guest at `place` said of its attack.
    fn rounds(&self, place: Place) -> Vec<String> {
        let console = self.console(place);
        // A port's blow says whatever it likes, in the middle of a line, too.
        let told = console.split("probe: attack ").skip(1);
        told.map(|text| text.split(['\r', '\n']).next().unwrap_or_default().to_owned()).collect()
    }

    /// The last round that the guest has told of at `place`.
    fn last_round(&self, place: Place) -> u64 {
        let number =
            |line: &String| line.strip_prefix("round=")?.split(' ').next()?.parse::<u64>().ok();
        self.rounds(place).iter().filter_map(number).max().unwrap_or(0)
    }

    /// Waits until the guest at `place` has ended so many rounds more than it
    /// has told of anywhere.
    fn wait_rounds(&self, place: Place, more: u64) {
        let goal = self.last_round(A).max(self.last_round(B)) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.last_round(place) < goal {
            let said = self.rounds(place);
            let log = self.cluster.log_end(place);
            assert!(Instant::now() < deadline, "{place}: no round {goal}: {said:#?}\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn verify(&self, primary: Place) {
        let verified = self.cluster.ask(primary, async |control: Client| control.verify().await);
        let report = verified.unwrap();
        assert!(report.equal && report.backups.len() == 1, "{report:?}");
    }

    /// The daemon at `place` uses what it may, asks for nothing that its jail
    /// refuses, and says no more than somebody can read.
    fn assert_modest(&self, place: Place) {
        let pid = self.cluster.pid(place).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let own_kib: u64 = own.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(own_kib < OWN_MEMORY_KIB_MAX, "{place} uses {own_kib} KiB");
        let log = fs::read_to_string(self.file(place, "log")).unwrap();
        assert!((log.len() as u64) < LOG_BYTES_MAX, "{place} logged {} bytes", log.len());
        assert!(!log.contains("which its jail refuses"), "{log}");
        assert!(!log.contains("panicked at"), "{log}");
        println!("{place}: {own_kib} KiB of its own, {} bytes of log", log.len());
    }

    /// Whoever runs the guest is killed, and the other goes on with the attack.
    fn fail_over(&mut self, from: Place, to: Place) {
        self.cluster.wait_protected(from, PATIENCE).unwrap();
        self.cluster.kill(from);
        self.cluster.wait_primary(to, PATIENCE).unwrap();
        self.cluster.start(from, "backup").unwrap();
        self.cluster.wait_protected(to, PATIENCE).unwrap();
    }
}

/// The guest attacks while it is seeded, compared, killed with its host and
/// taken over, and a client is answered all the time.
fn survive(prefix: &str, vcpus: u16, seed: u64, kinds: &str) {
    let attack = format!("seed:{seed},rounds:0,kinds:{kinds}");
    let mut siege = Siege::lay(prefix, vcpus, &attack);
    siege.cluster.start(A, "run").unwrap();
    let mut client = siege.cluster.client(LANES, &[]).unwrap();
    client.wait_answers(20, PATIENCE).unwrap();
    siege.cluster.start(B, "backup").unwrap();
    siege.cluster.wait_protected(A, PATIENCE).unwrap();
    for _ in 0..3 {
        siege.verify(A);
        client.wait_answers(20, PATIENCE).unwrap();
    }
    siege.wait_rounds(A, ROUNDS);
    siege.assert_modest(A);
    siege.fail_over(A, B);
    client.wait_answers(20, PATIENCE).unwrap();
    siege.verify(B);
    siege.wait_rounds(B, ROUNDS);
    siege.assert_modest(B);
    siege.fail_over(B, A);
    client.wait_answers(20, PATIENCE).unwrap();
    siege.wait_rounds(A, ROUNDS);
    siege.verify(A);
    siege.assert_modest(A);
    siege.assert_modest(B);
    let report = client.finish().unwrap();
    assert!(report.sound(), "seed {seed}: {report:#?}");
}

#[test]
fn a_guest_at_war_with_its_devices_stays_exact() {
    let Some(_machine) = machine_for("a_guest_at_war_with_its_devices_stays_exact", GUESTS) else {
        return;
    };
    let kinds = "chains+resets+registers+races+ports+space";
    for (seed, vcpus) in [(1, 2), (2, 1)] {
        survive("siege", vcpus, seed, kinds);
    }
}

#[test]
fn a_guest_at_war_with_its_network_stays_exact() {
    let Some(_machine) = machine_for("a_guest_at_war_with_its_network_stays_exact", GUESTS) else {
        return;
    };
    survive("siegenet", 2, 3, "chains+resets+registers+races+net");
}

/// What no machine can go on from ends that guest, and says why; and the same
/// seed is the same attack.
#[test]
fn a_guest_that_ends_itself_is_ended_with_a_reason() {
    let test = "a_guest_that_ends_itself_is_ended_with_a_reason";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let attacks: Vec<_> = (0..2)
        .map(|_| {
            let kinds = "chains+resets+registers+races+ports+space+end";
            let mut siege = Siege::lay("siegeend", 1, &format!("seed:4,rounds:6,kinds:{kinds}"));
            siege.cluster.start(A, "run").unwrap();
            siege.cluster.start(B, "backup").unwrap();
            let code = siege.cluster.exit_code(A, PATIENCE);
            let log = fs::read_to_string(siege.file(A, "log")).unwrap();
            assert_eq!(code, Some(1), "{log}");
            assert!(log.contains("cannot emulate the instruction at 0x"), "{log}");
            assert!(!log.contains("panicked at"), "{log}");
            siege.rounds(A)
        })
        .collect();
    assert!(attacks[0].iter().any(|line| line.starts_with("over rounds=6 ")), "{attacks:#?}");
    assert_eq!(attacks[0], attacks[1]);
}

#[test]
fn a_flood_of_panics_is_told_once() {
    let Some(_machine) = machine_for("a_flood_of_panics_is_told_once", GUESTS) else { return };
    let mut siege = Siege::lay("siegeport", 1, "seed:5,rounds:40,kinds:ports");
    siege.cluster.start(A, "run").unwrap();
    siege.cluster.wait_console(A, "attack over", PATIENCE).unwrap();
    let end = Instant::now() + PATIENCE;
    let panics = loop {
        let asked = siege
            .cluster
            .ask(A, async |control: Client| control.events(0, Duration::from_millis(500)).await);
        let events = asked.map(|page| page.events).unwrap_or_default();
        let panics = events.iter().filter(|event| event.text.contains("kernel has panicked"));
        let count = panics.count();
        if count > 0 || Instant::now() > end {
            break count;
        }
    };
    // Stopped, and with a crash kernel.
    assert!((1..=2).contains(&panics), "told {panics} times");
    siege.assert_modest(A);
}
