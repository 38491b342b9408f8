//! Real failures of real processes: arbiter, hosts and clients in network
//! namespaces, the probe guest on KVM, and clients that check every answer.
//!
//! Every test makes a cluster of its own and holds the machine while it runs:
//! two guests at once would take each other's time.

mod drill;
mod machine;

use std::time::Duration;

use drill::{A, B, CALM, Drill, Hung, LANES, LONG, PATIENCE, assert_sound, promotions_as_cut};
use machine::{GUESTS, machine_for};
use nix::{
    errno::Errno,
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
};
use romulus::{
    control::{Client, FailoverBody, Protection, Role, Status},
    node::crash_point::{Moment, VARIABLE},
    rehearsal::netns::{Direction, Place},
};
use vmm::host::{Backend, Host};

/// Longer than a promotion is announced.
const ANNOUNCED: Duration = Duration::from_millis(1200);

/// The next entry into the guest fails on this host, for want of memory.
fn fail_to_enter(process: u32) {
    const KVM_RUN: u64 = 0xae80;
    let hung = Hung::threads(process, "vcpu-0");
    let vcpu = hung.0[0];
    ptrace::setoptions(vcpu, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    let next_stop = || {
        ptrace::syscall(vcpu, None).unwrap();
        match waitpid(vcpu, Some(WaitPidFlag::__WALL)) {
            Ok(stop) => matches!(stop, WaitStatus::PtraceSyscall(_)),
            // A kick: nix has no name for real-time signals. It is not delivered, but the
            // thread leaves the guest all the same.
            Err(error) => {
                assert_eq!(error, Errno::EINVAL);
                false
            }
        }
    };
    for _ in 0..1000 {
        if !next_stop() {
            continue;
        }
        let mut registers = ptrace::getregs(vcpu).unwrap();
        let enters = registers.orig_rax == nix::libc::SYS_ioctl as u64 && registers.rsi == KVM_RUN;
        // A call that has only begun says so in what it would return.
        let begins = registers.rax as i64 == -i64::from(nix::libc::ENOSYS);
        if enters && !begins {
            registers.rax = -i64::from(nix::libc::ENOMEM) as u64;
            ptrace::setregs(vcpu, registers).unwrap();
            return;
        }
    }
    panic!("vcpu-0 does not enter the guest");
}

#[test]
fn a_primary_killed_at_any_moment_loses_nothing() {
    let Some(_machine) = machine_for("a_primary_killed_at_any_moment_loses_nothing", GUESTS) else {
        return;
    };
    // Every page is captured after the pause, while the guest writes.
    let replication = format!("epoch_ms = 40\naudit = true\ncopy_us_max = 0\n{CALM}");
    let mut drill = Drill::idle("moments", &replication);
    let cluster = &mut drill.cluster;
    let counts = [7, 12, 20];
    let moments: Vec<(Moment, u64)> =
        counts.iter().flat_map(|count| Moment::ALL.map(|moment| (moment, *count))).collect();
    assert!(moments.len() >= 20);
    // Each life of a primary is told beforehand when it will die.
    let crash = |(moment, count): (Moment, u64)| format!("{}:{count}", moment.name());
    let (mut primary, mut standby) = (A, B);
    cluster.start_with(A, "run", &[(VARIABLE, &crash(moments[0]))]).unwrap();
    let mut client = cluster.client(LANES, &[]).unwrap();
    for (index, moment) in moments.iter().enumerate() {
        let next = moments.get(index + 1).map_or_else(|| "none:0".to_owned(), |m| crash(*m));
        cluster.start_with(standby, "backup", &[(VARIABLE, &next)]).unwrap();
        cluster.wait_primary(standby, PATIENCE).unwrap_or_else(|error| {
            panic!("killed at {moment:?}: {error}\nprimary:\n{}", cluster.log_end(primary))
        });
        client.wait_answers(20, PATIENCE).unwrap();
        (primary, standby) = (standby, primary);
    }
    assert_sound(&client.finish().unwrap());
    assert_eq!(promotions_as_cut(cluster.folder()), moments.len());
}

#[test]
fn a_successor_killed_at_any_moment_gives_the_guest_back() {
    let test = "a_successor_killed_at_any_moment_gives_the_guest_back";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let replication = format!("epoch_ms = 40\naudit = true\n{CALM}");
    let mut drill = Drill::idle("return", &replication);
    drill.cluster.start(A, "run").unwrap();
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    for moment in Moment::ALL {
        // It counts from the first epoch after the handover.
        let dies = format!("{}:1", moment.name());
        drill.cluster.start_with(B, "backup", &[(VARIABLE, &dies)]).unwrap();
        drill.hand_over_soon(A, B);
        drill.cluster.wait_primary(A, PATIENCE).unwrap_or_else(|error| {
            panic!("killed at {moment:?}: {error}\n{}", drill.cluster.log_end(A))
        });
        client.wait_answers(20, PATIENCE).unwrap();
    }
    assert_sound(&client.finish().unwrap());
    // To the successor, and back.
    assert_eq!(promotions_as_cut(drill.cluster.folder()), 2 * Moment::ALL.len());
}

#[test]
fn a_lost_backup_is_dropped_and_seeded_again() {
    let Some(_machine) = machine_for("a_lost_backup_is_dropped_and_seeded_again", GUESTS) else {
        return;
    };
    let mut drill = Drill::protected("lostb", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    for _ in 0..3 {
        client.wait_answers(50, PATIENCE).unwrap();
        drill.cluster.kill(B);
        let solo = |status: &Status| status.in_sync.is_empty();
        drill.cluster.wait_for(A, "runs solo", PATIENCE, solo).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        drill.cluster.start(B, "backup").unwrap();
        drill.cluster.wait_protected(A, PATIENCE).unwrap();
        drill.verify(A);
    }
    assert_sound(&client.finish().unwrap());
}

#[test]
fn a_backup_that_hangs_and_speaks_is_dropped() {
    let Some(_machine) = machine_for("a_backup_that_hangs_and_speaks_is_dropped", GUESTS) else {
        return;
    };
    let settings = format!("{CALM}\nlag_ms = 1500\nstaging_mib_max = 48");
    let drill = Drill::protected("hung", &settings);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    for threads in ["decode", "apply"] {
        client.wait_answers(50, PATIENCE).unwrap();
        let hung = Hung::threads(drill.cluster.pid(B).unwrap(), threads);
        let solo = |status: &Status| status.in_sync.is_empty();
        drill.cluster.wait_for(A, "runs solo", PATIENCE, solo).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        drop(hung);
        drill.cluster.wait_protected(A, PATIENCE).unwrap();
        drill.verify(A);
    }
    let log = drill.cluster.log_end(A);
    assert!(log.contains("got nothing done"), "{log}");
    assert_sound(&client.finish().unwrap());
}

#[test]
fn a_host_that_cannot_run_its_guest_leaves_it_to_the_backup() {
    let test = "a_host_that_cannot_run_its_guest_leaves_it_to_the_backup";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let mut drill = Drill::protected("broken", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    fail_to_enter(drill.cluster.pid(A).unwrap());
    drill.cluster.wait_primary(B, PATIENCE).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    assert_eq!(drill.cluster.exit_code(A, PATIENCE), Some(1), "{}", drill.cluster.log_end(A));
    let log = drill.cluster.log_end(A);
    assert!(log.contains("leaves the guest to its backups"), "{log}");
    assert_sound(&client.finish().unwrap());
}

#[test]
fn a_blinking_link_changes_nothing() {
    let Some(_machine) = machine_for("a_blinking_link_changes_nothing", GUESTS) else { return };
    let mut drill = Drill::protected("blink", "detection_ms = 3000\ndrop_ms = 3000");
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    let term = drill.cluster.status(A).unwrap().term;
    for direction in [Direction::Both, Direction::Incoming, Direction::Outgoing] {
        client.wait_answers(50, PATIENCE).unwrap();
        drill.cluster.lab().cut(B, direction).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        drill.cluster.lab().heal(B).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
    }
    let status = drill.cluster.wait_protected(A, PATIENCE).unwrap();
    assert_eq!(status.term, term, "nobody had a reason to ask the arbiter");
    drill.verify(A);
    assert_sound(&client.finish().unwrap());
    drill.cluster.kill(B);
}

#[test]
fn of_two_sides_of_a_cut_one_goes_on() {
    let Some(_machine) = machine_for("of_two_sides_of_a_cut_one_goes_on", GUESTS) else { return };
    for direction in [Direction::Both, Direction::Incoming, Direction::Outgoing] {
        let mut drill = Drill::protected("cut", CALM);
        let mut client = drill.cluster.client(LANES, &[]).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        // The backup's cable: it may still hear, or be heard, one way.
        drill.cluster.lab().cut(B, direction).unwrap();
        std::thread::sleep(LONG);
        drill.cluster.lab().heal(B).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        let winner = drill.settle();
        drill.verify(winner);
        assert_sound(&client.finish().unwrap());
    }
}

#[test]
fn an_isolated_primary_is_fenced() {
    let Some(_machine) = machine_for("an_isolated_primary_is_fenced", GUESTS) else { return };
    let mut drill = Drill::protected("isolated", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    // Neither backup nor arbiter can be reached from here.
    drill.cluster.lab().cut(A, Direction::Both).unwrap();
    drill.cluster.wait_primary(B, PATIENCE).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    assert_eq!(drill.cluster.exit_code(A, Duration::ZERO), None, "it cannot know its fate yet");
    drill.cluster.lab().heal(A).unwrap();
    assert_eq!(drill.cluster.exit_code(A, PATIENCE), Some(3), "{}", drill.cluster.log_end(A));
    drill.cluster.start(A, "backup").unwrap();
    drill.cluster.wait_protected(B, PATIENCE).unwrap();
    assert_sound(&client.finish().unwrap());
}

#[test]
fn a_frozen_primary_wakes_and_says_nothing() {
    let Some(_machine) = machine_for("a_frozen_primary_wakes_and_says_nothing", GUESTS) else {
        return;
    };
    let mut drill = Drill::protected("frozen", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    client.wait_answers(100, PATIENCE).unwrap();
    drill.cluster.signal(A, "STOP").unwrap();
    drill.cluster.wait_primary(B, PATIENCE).unwrap();
    client.wait_answers(100, PATIENCE).unwrap();
    let said = drill.tap_frames(A);
    drill.cluster.signal(A, "CONT").unwrap();
    assert_eq!(drill.cluster.exit_code(A, PATIENCE), Some(3), "{}", drill.cluster.log_end(A));
    assert_eq!(drill.tap_frames(A), said, "a former primary has spoken");
    assert_sound(&client.finish().unwrap());
}

/// What a stall of the whole machine looks like, which no test can order from
/// its hypervisor: every process stands still, and they wake one by one.
#[test]
fn a_machine_that_stood_still_goes_on() {
    let Some(_machine) = machine_for("a_machine_that_stood_still_goes_on", GUESTS) else { return };
    for woken in [[A, B, Place::Arbiter], [B, Place::Arbiter, A], [Place::Arbiter, B, A]] {
        let mut drill = Drill::protected("stall", CALM);
        let mut client = drill.cluster.client(LANES, &[]).unwrap();
        client.wait_answers(50, PATIENCE).unwrap();
        for place in woken.iter().rev() {
            drill.cluster.signal(*place, "STOP").unwrap();
        }
        std::thread::sleep(LONG);
        for place in woken {
            drill.cluster.signal(place, "CONT").unwrap();
        }
        client.wait_answers(50, PATIENCE).unwrap();
        let winner = drill.settle();
        drill.verify(winner);
        assert_sound(&client.finish().unwrap());
    }
}

#[test]
fn without_an_arbiter_nobody_takes_over() {
    let Some(_machine) = machine_for("without_an_arbiter_nobody_takes_over", GUESTS) else {
        return;
    };
    let mut drill = Drill::protected("arbiter", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    // Replication needs no arbiter, and the operator hears of it.
    drill.cluster.kill(Place::Arbiter);
    client.wait_answers(100, PATIENCE).unwrap();
    let warned = |status: &Status| match &status.protection {
        Protection::Unprotected { reason } => reason.contains("the arbiter does not answer"),
        Protection::Protected => false,
    };
    for place in [A, B] {
        drill.cluster.wait_for(place, "misses the arbiter", PATIENCE, warned).unwrap();
    }
    // A handover that nobody can decide is given up, and the guest runs on.
    let refused = drill.hand_over(A, B).unwrap_err();
    assert!(refused.to_string().contains("given up"), "{refused}");
    client.wait_answers(100, PATIENCE).unwrap();
    drill.cluster.start(Place::Arbiter, "arbiter").unwrap();
    client.wait_answers(100, PATIENCE).unwrap();
    // A failover does.
    drill.cluster.kill(Place::Arbiter);
    drill.cluster.kill(A);
    std::thread::sleep(LONG);
    let status = drill.cluster.status(B).unwrap();
    assert_ne!(status.role, Role::Primary);
    let Protection::Unprotected { reason } = status.protection else {
        panic!("protected without a primary and an arbiter");
    };
    assert!(reason.contains("arbiter") || reason.contains("primary"), "{reason}");
    drill.cluster.start(Place::Arbiter, "arbiter").unwrap();
    drill.cluster.wait_primary(B, PATIENCE).unwrap();
    client.wait_answers(100, PATIENCE).unwrap();
    assert_sound(&client.finish().unwrap());
}

/// Silence of everybody is no reason to stand aside: a backup whose question
/// did not get through follows its primary again.
#[test]
fn a_link_blinks_while_the_arbiter_stands_still() {
    let Some(_machine) = machine_for("a_link_blinks_while_the_arbiter_stands_still", GUESTS) else {
        return;
    };
    let drill = Drill::protected("still", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    let term = drill.cluster.status(A).unwrap().term;
    drill.cluster.signal(Place::Arbiter, "STOP").unwrap();
    drill.cluster.lab().cut(B, Direction::Both).unwrap();
    // Both sides ask, and are not answered.
    std::thread::sleep(LONG);
    drill.cluster.lab().heal(B).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    assert_eq!(drill.cluster.status(A).unwrap().term, term, "somebody decided");
    // It wakes to a primary that may just be asking to drop its backup, but no
    // promotion that it slept through comes true.
    drill.cluster.signal(Place::Arbiter, "CONT").unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    drill.cluster.wait_protected(A, PATIENCE).unwrap();
    drill.verify(A);
    assert_sound(&client.finish().unwrap());
}

#[test]
fn a_guest_is_handed_to_and_fro() {
    let Some(_machine) = machine_for("a_guest_is_handed_to_and_fro", GUESTS) else { return };
    let drill = Drill::protected("handover", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    let mut primary = A;
    for _ in 0..4 {
        client.wait_answers(50, PATIENCE).unwrap();
        let to = Drill::other(primary);
        let term = drill.cluster.status(primary).unwrap().term;
        drill.hand_over_soon(primary, to);
        // The old primary goes on as a backup by itself, with the guest that it
        // had: nobody was dropped and admitted again.
        let status = drill.cluster.wait_protected(to, PATIENCE).unwrap();
        assert_eq!(status.term, term + 1);
        drill.verify(to);
        primary = to;
    }
    // Who stands by was itself promoted a moment ago, and then announced that.
    let silent = Drill::other(primary);
    let spoken = drill.tap_frames(silent);
    std::thread::sleep(ANNOUNCED);
    assert_eq!(drill.tap_frames(silent), spoken, "frames from who stands by");
    let report = client.finish().unwrap();
    assert_sound(&report);
}

#[test]
fn a_backup_takes_over_by_order_only_if_that_is_said() {
    let Some(_machine) = machine_for("a_backup_takes_over_by_order_only_if_that_is_said", GUESTS)
    else {
        return;
    };
    let mut drill = Drill::protected("order", CALM);
    let term = drill.cluster.status(A).unwrap().term;
    let ask = |place: Place, take_over: bool| {
        let body = FailoverBody { to: None, take_over };
        drill.cluster.ask(place, async |control: Client| control.failover(&body).await)
    };
    let refused = ask(B, false).unwrap_err().to_string();
    assert!(refused.contains(&format!("run it on `{}`", A.node())), "{refused}");
    assert!(refused.contains("--take-over"), "{refused}");
    let refused = ask(A, true).unwrap_err().to_string();
    assert!(refused.contains("nothing to take over"), "{refused}");
    assert_eq!(drill.cluster.status(A).unwrap().term, term, "nobody asked the arbiter");
    ask(B, true).unwrap();
    let primary = |status: &Status| status.role == Role::Primary;
    drill.cluster.wait_for(B, "runs the guest", PATIENCE, primary).unwrap();
    assert_eq!(drill.cluster.exit_code(A, PATIENCE), Some(3), "it is fenced");
}

/// The start of a bzImage whose code asks for more than an emulator knows
/// (`cmpxchg16b`), and then ends with code 1. Offsets: Linux
/// `Documentation/arch/x86/boot.rst`.
fn bzimage() -> Vec<u8> {
    const ENTRY: usize = 0x200;
    let code = [0x48, 0x0f, 0xc7, 0x0e, 0xb0, 0x01, 0xba, 0xf4, 0, 0, 0, 0xee, 0xeb, 0xfe];
    let mut file = vec![0; 1024 + ENTRY + 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &((ENTRY as u32 + 512) / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &[1]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    put(1024 + ENTRY, &code);
    file
}

#[test]
fn what_is_missing_is_named() {
    let Some(_machine) = machine_for("what_is_missing_is_named", GUESTS) else { return };
    let mut drill = Drill::idle("missing", "");
    let path = drill.cluster.folder().join("host-1.toml");
    let sound = std::fs::read_to_string(&path).unwrap();
    let no_elf = drill.cluster.folder().join("no.elf");
    std::fs::write(&no_elf, "not a kernel").unwrap();
    let no_elf = format!("kernel = \"{}\"", no_elf.display());
    let linux = drill.cluster.folder().join("vmlinuz");
    std::fs::write(&linux, bzimage()).unwrap();
    let linux = format!("kernel = \"{}\"", linux.display());
    let interpreted: &[&str] = &[
        "too few instructions for stock Linux",
        "use a host with VMX or SVM",
        "cannot emulate the instruction at 0x1000200, bytes 48 0f c7 0e",
    ];
    let pvm = Host::open().unwrap().capabilities().backend == Backend::Pvm;
    let cases: [(&str, &str, i32, &[&str]); 6] = [
        ("tap = \"tap0\"", "tap = \"tap9\"", 1, &["tap9", "ip tuntap add"]),
        ("kernel = \"probe\"", &no_elf, 1, &["no.elf", "ELF"]),
        ("memory_mib = 64", "memory_mib = 1048576", 1, &["memory"]),
        ("memory_mib = 64", "memory_mib = 63", 2, &["memory_mib", "64"]),
        ("vcpus = 2", "vcpu = 2", 2, &["vcpu", "vcpus"]),
        ("kernel = \"probe\"", &linux, 1, if pvm { interpreted } else { &["ended with code 1"] }),
    ];
    for (before, after, code, words) in cases {
        std::fs::write(&path, sound.replace(before, after)).unwrap();
        drill.cluster.start(A, "run").unwrap();
        assert_eq!(drill.cluster.exit_code(A, PATIENCE), Some(code), "{after}");
        let log = drill.cluster.log_end(A);
        for word in words {
            assert!(log.contains(word), "{after}: `{word}` is not in\n{log}");
        }
    }
}
