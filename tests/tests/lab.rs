//! Power cuts of whole hosts: see `romulus_tests::lab`.
//!
//! Every test holds the machine while it runs: emulated computers at once would
//! take each other's time.

#![forbid(unsafe_code)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use romulus::{
    control::Status,
    rehearsal::{ProbeReport, TcpReport},
};
use romulus_tests::lab::{
    CONSOLE, Direction, Guest, Lab, LoadClient, Materials, PATIENT, Place, Rehearsal, Series,
    Shape, obstacle, switch::Impairment,
};

/// The project's program, as Cargo built it with this test.
const ROMULUS: &str = env!("CARGO_BIN_EXE_romulus-in-lab");
const A: Place = Place::Host(1);
const B: Place = Place::Host(2);
/// A bound on failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(480);
/// How long a machine is frozen that is to miss nothing but time.
const STANDSTILL: Duration = Duration::from_millis(1500);

/// Pages are captured after the pause, behind userfaultfd: no other KVM that
/// tests run on stands it.
const WITHOUT_COPIES: &str = "copy_us_max = 0\n";
/// What a stock kernel says when its clock or its processors were not as they
/// should be.
const COMPLAINTS: [&str; 9] = [
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls",
    "hung_task",
    "Marking TSC unstable",
    "timekeeping watchdog",
    "clocksource: Long readout",
    "CORRUPT",
];

/// The exit code of a daemon that lost the right to run.
const FENCED: i32 = 3;

static MACHINE: Mutex<()> = Mutex::new(());

/// Says why a test is skipped, or fails where `ROMULUS_REQUIRE` wants it run.
fn machine_for(test: &str) -> Option<MutexGuard<'static, ()>> {
    let Some(reason) = obstacle() else {
        return Some(MACHINE.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|need| need == "lab"), "{test}: {reason}");
    println!("skipped: {test}: {reason}");
    None
}

/// Beside Cargo's other products; `cargo clean` removes it.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("lab")
}

fn materials() -> Materials {
    Materials::gather(&cache()).unwrap()
}

/// A lab of `hosts` that differ in nothing, with CPUs of their own each.
fn lab(materials: &Materials, name: &str, (hosts, cpus): (u8, u16), guest: Guest) -> Lab {
    let replication = format!("{PATIENT}{WITHOUT_COPIES}");
    let shape = Shape { hosts, guest, replication, seed: 1, cpus, more: Vec::new() };
    Lab::new(materials, name, Path::new(ROMULUS), shape).unwrap()
}

/// A protected guest, and what has become of it.
struct Drill {
    lab: Lab,
    primary: Place,
    standby: Place,
}

impl Drill {
    /// The guest boots solo: what a boot dirties goes into the seed once.
    fn protected(mut lab: Lab) -> Self {
        lab.start(Place::Arbiter, "arbiter").unwrap();
        lab.start(A, "run").unwrap();
        lab.wait_serving(A, PATIENCE).unwrap();
        lab.say("the guest serves");
        lab.start(B, "backup").unwrap();
        lab.wait_protected(A, PATIENCE).unwrap();
        lab.say("protected");
        Self { lab, primary: A, standby: B }
    }

    fn goes_on(&mut self, client: &LoadClient) {
        client.wait_answers(&mut self.lab, 50, PATIENCE).unwrap();
    }

    /// The standby has taken over.
    fn failed_over(&mut self, client: &LoadClient) {
        self.lab.wait_primary(self.standby, PATIENCE).unwrap();
        (self.primary, self.standby) = (self.standby, self.primary);
        self.goes_on(client);
        self.lab.say(&format!("{} has taken over", self.primary));
    }

    /// A fresh backup is seeded at the place of the lost one.
    fn reprotected(&mut self, client: &LoadClient) {
        self.lab.start(self.standby, "backup").unwrap();
        self.lab.wait_protected(self.primary, PATIENCE).unwrap();
        self.goes_on(client);
        self.lab.say("protected again");
    }

    /// The primary's host loses its power, and comes back as a backup.
    fn power_cut(&mut self, client: &LoadClient) {
        let lost = self.primary;
        self.lab.wait_protected(lost, PATIENCE).unwrap();
        self.lab.power_cut(lost);
        self.failed_over(client);
        self.lab.power_on(lost).unwrap();
        self.reprotected(client);
    }

    /// The primary's host stands still until it is no primary any more, and
    /// wakes.
    fn standstill(&mut self, client: &LoadClient) {
        let frozen = self.primary;
        self.lab.wait_protected(frozen, PATIENCE).unwrap();
        self.lab.machine(frozen).freeze().unwrap();
        self.lab.say(&format!("{frozen} is frozen"));
        self.failed_over(client);
        self.lab.machine(frozen).thaw().unwrap();
        let code = self.lab.exit_code(frozen, PATIENCE).unwrap();
        assert_eq!(code, FENCED, "the daemon at {frozen} is fenced");
        self.reprotected(client);
    }

    /// Replication over a bad line, without a failover.
    fn bad_line(&mut self, client: &LoadClient) {
        let term = self.lab.status(self.primary).unwrap().unwrap().term;
        let delay = Duration::from_millis(5);
        let bad = Impairment { loss_per_mille: 10, delay, ..Impairment::default() };
        self.lab.replication().impair(&self.standby.to_string(), Direction::Both, bad);
        self.goes_on(client);
        self.lab.heal(self.standby);
        let status = self.lab.wait_protected(self.primary, PATIENCE).unwrap();
        assert_eq!(status.term, term, "nobody had a reason to ask the arbiter");
        self.lab.say("a bad line changes nothing");
    }

    fn switch_back(&mut self, client: &LoadClient) {
        self.lab.hand_over(self.primary, self.standby).unwrap();
        (self.primary, self.standby) = (self.standby, self.primary);
        self.lab.wait_protected(self.primary, PATIENCE).unwrap();
        self.goes_on(client);
        self.lab.say(&format!("handed over to {} by plan", self.primary));
    }

    /// What the guest said at the node that runs it, and that it was content.
    fn console(&mut self) -> String {
        let said = self.lab.run(self.primary, &format!("cat {CONSOLE}")).unwrap();
        for complaint in COMPLAINTS {
            let line = said.lines().find(|line| line.contains(complaint));
            assert_eq!(line, None, "the guest complains");
        }
        said
    }

    fn verify(&mut self) {
        let report = self.lab.verify(self.primary).unwrap();
        assert!(report.equal && report.backups.len() == 1, "{report:?}");
    }
}

/// What a host is, before anything runs there.
fn assert_host(lab: &mut Lab, release: &str) {
    assert_eq!(lab.run(A, "uname -r").unwrap(), release);
    lab.run(A, "test -c /dev/kvm").unwrap();
    let outcome = lab.ask(A, "doctor").unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.text());
    assert!(outcome.text().contains("\"found\":\"svm\""), "{}", outcome.text());
    lab.machine(A).write("/run/file", b"in\0and out", PATIENCE).unwrap();
    assert_eq!(lab.machine(A).read("/run/file", PATIENCE).unwrap(), b"in\0and out");
    let missing = lab.machine(A).read("/run/none", PATIENCE).unwrap_err().to_string();
    assert!(missing.contains("host-1") && missing.contains("No such file"), "{missing}");
}

/// A test that fails shows what its machines said, and leaves nothing of them.
fn fail_on_purpose(mut lab: Lab) {
    // Who is off is not asked, which would take a while.
    lab.power_cut(A);
    lab.power_cut(B);
    let folder = lab.folder().to_owned();
    assert!(folder.join("host-1.console").exists());
    let qemu = lab.machine(Place::Client).pid().unwrap();
    let failed = catch_unwind(AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("on purpose: what follows is the lab's report of it");
    }));
    assert!(failed.is_err());
    assert!(!folder.exists(), "{} is left", folder.display());
    assert!(!Path::new(&format!("/proc/{qemu}")).exists(), "QEMU runs on as {qemu}");
}

/// The drill that needs no operating system, on hosts of so many CPUs.
fn drill_the_probe(cpus: u16) -> Lab {
    let work = "probe.dirty=pages:500,rate:1000,write:sparse,content:random";
    let materials = materials();
    let mut lab = lab(&materials, "cut", (2, cpus), Guest::probe(64, 2, work));
    assert_host(&mut lab, &materials.kernel.release);
    let mut drill = Drill::protected(lab);
    let client = drill.lab.probe_client("probe").unwrap();
    drill.goes_on(&client);
    drill.power_cut(&client);
    drill.bad_line(&client);
    drill.switch_back(&client);
    drill.standstill(&client);
    drill.verify();
    let report: ProbeReport = client.finish(&mut drill.lab, PATIENCE).unwrap();
    drill.lab.say(&format!("{report:?}"));
    assert!(report.sound(), "{report:#?}");
    drill.lab
}

/// It begins with a look at the hosts and ends as a lab that fails: machines take
/// long to boot.
#[test]
fn power_cuts_and_standstills_of_a_host_lose_nothing() {
    let test = "power_cuts_and_standstills_of_a_host_lose_nothing";
    let Some(_machine) = machine_for(test) else { return };
    fail_on_purpose(drill_the_probe(1));
}

/// Where vCPUs, devices and copiers of one host truly run at once: what waits
/// for a protected page meets its release.
#[test]
#[ignore = "QEMU before 10.0 emulates SVM well on one CPU only: name it, with --ignored"]
fn hosts_with_two_cpus_lose_nothing() {
    let test = "hosts_with_two_cpus_lose_nothing";
    let Some(_machine) = machine_for(test) else { return };
    drill_the_probe(2);
    a_server_outlives_its_hosts(Series::Newer, 2, 2);
    a_server_outlives_its_hosts(Series::Stock, 2, 1);
}

/// Each stock kernel as a protected guest with a real server in it: over one
/// connection, every acknowledged write is there in the end, although the host
/// of the guest lost its power.
fn a_server_outlives_its_hosts(series: Series, cpus: u16, vcpus: u16) {
    let mut materials = materials();
    let guest = Guest::linux(materials.guest(series).unwrap(), 160, vcpus, "lab.check=4");
    let release = guest.boot().unwrap().release.clone();
    let mut drill = Drill::protected(lab(&materials, "linux", (2, cpus), guest));
    drill.lab.say(&format!("{release}, {vcpus} vCPUs on {cpus} CPUs a host"));
    let client = drill.lab.tcp_client("redis").unwrap();
    drill.goes_on(&client);
    drill.console();
    drill.power_cut(&client);
    drill.console();
    drill.switch_back(&client);
    let enough = |status: &Status| status.committed >= 200;
    drill.lab.wait_for(drill.primary, "has committed 200 epochs", PATIENCE, enough).unwrap();
    drill.verify();
    let checked = |said: &str| said.matches("check: ").count();
    let (passes, primary) = (checked(&drill.console()), drill.primary);
    drill
        .lab
        .wait("the guest checks its memory again", PATIENCE, |lab| {
            let said = lab.run(primary, &format!("cat {CONSOLE}"))?;
            Ok(if checked(&said) > passes { Ok(()) } else { Err(format!("{passes} checks")) })
        })
        .unwrap();
    drill.console();
    let report: TcpReport = client.finish(&mut drill.lab, PATIENCE).unwrap();
    drill.lab.say(&format!("{report:?}"));
    assert!(report.sound(), "{report:#?}");
}

#[test]
fn a_server_on_the_newer_kernel_outlives_its_hosts() {
    let test = "a_server_on_the_newer_kernel_outlives_its_hosts";
    let Some(_machine) = machine_for(test) else { return };
    a_server_outlives_its_hosts(Series::Newer, 1, 2);
}

#[test]
#[ignore = "takes minutes, and `make lab` runs it: the newer kernel has more to go wrong"]
fn a_server_on_the_stock_kernel_outlives_its_hosts() {
    let test = "a_server_on_the_stock_kernel_outlives_its_hosts";
    let Some(_machine) = machine_for(test) else { return };
    a_server_outlives_its_hosts(Series::Stock, 1, 1);
}

/// Both kernels that a guest may have, and the server in it, without KVM: what
/// a failover must carry over works by itself. Nothing of this project runs here
/// but its client, so it is for the day on which the drills fail.
#[test]
#[ignore = "takes minutes, and `make lab` runs it"]
fn a_stock_guest_serves_over_one_connection_whatever_the_network_does() {
    let test = "a_stock_guest_serves_over_one_connection_whatever_the_network_does";
    let Some(_machine) = machine_for(test) else { return };
    let mut materials = materials();
    let guests = [Series::Stock, Series::Newer]
        .map(|series| Guest::linux(materials.guest(series).unwrap(), 256, 1, "lab.check=4"));
    let releases = guests.each_ref().map(|guest| guest.boot().unwrap().release.clone());
    assert_ne!(releases[0], releases[1], "two kernels");
    let mut lab = lab(&materials, "stock", (0, 1), guests[0].clone());
    for guest in &guests {
        lab.boot_bare(guest).unwrap();
        lab.bare().wait_console(guest.ready, PATIENCE).unwrap();
        lab.say(&format!("{} serves", guest.boot().unwrap().release));
        let client = lab.tcp_client("redis").unwrap();
        client.wait_answers(&mut lab, 200, PATIENCE).unwrap();
        let delay = Duration::from_millis(5);
        let rough = Impairment { loss_per_mille: 50, delay, ..Impairment::default() };
        lab.lan().impair("guest", Direction::Both, rough);
        client.wait_answers(&mut lab, 50, PATIENCE).unwrap();
        lab.lan().heal("guest");
        assert!(lab.lan().counts("guest").lost > 0, "the network was rough");
        lab.bare().freeze().unwrap();
        std::thread::sleep(STANDSTILL);
        lab.bare().thaw().unwrap();
        client.wait_answers(&mut lab, 100, PATIENCE).unwrap();
        lab.bare().wait_console("check: 2 passes", PATIENCE).unwrap();
        let report: TcpReport = client.finish(&mut lab, PATIENCE).unwrap();
        lab.say(&format!("{report:?}"));
        assert!(report.sound(), "{report:#?}");
        assert!(report.longest_gap.ms >= STANDSTILL.as_secs_f64() * 1e3, "{report:#?}");
        assert!(!lab.bare().console().contains("CORRUPT"));
    }
}

/// All of it on one emulated host: its own kernel is the guest, and the guest's
/// only program is the project's. Two hosts share its CPU, so all is slow.
#[test]
#[ignore = "takes minutes: name it, with --ignored"]
fn the_demo_protects_a_linux_guest() {
    let test = "the_demo_protects_a_linux_guest";
    let Some(_machine) = machine_for(test) else { return };
    let materials = materials();
    let rehearsal = Rehearsal::new(&materials.kernel).unwrap();
    // A host that has room for two guests.
    let guest = Guest::probe(640, 1, "");
    let more = rehearsal.files().to_vec();
    let shape = Shape { hosts: 1, guest, replication: PATIENT.to_owned(), seed: 1, cpus: 1, more };
    let mut lab = Lab::new(&materials, "demo", Path::new(ROMULUS), shape).unwrap();
    let script = rehearsal.script(
        "--memory 128 --epoch 100 --dirty-rate 100 --detection 20000 --drop 20000 --patience 600",
    );
    let outcome = lab.machine(A).order(&script, 10 * PATIENCE).unwrap();
    lab.say(&outcome.text());
    assert_eq!(outcome.code, 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    let report: serde_json::Value = serde_json::from_str(&outcome.text()).unwrap();
    assert_eq!(report["guest"], format!("Linux {}", materials.kernel.release));
    assert!(report["answers"].as_u64() > Some(300), "{report}");
    for none in ["lost", "went_back", "corrupt"] {
        assert_eq!(report[none], 0, "{report}");
    }
    assert_eq!(report["verified"], true, "{report}");
    // Seeded, promoted, seeded, handed back, seeded.
    assert!(report["term"].as_u64() >= Some(6), "{report}");
}
