//! A guest with two backups, on real processes: whoever is left goes on, and the
//! two never both do.

mod drill;
mod machine;

use drill::{A, B, C, CALM, Drill, Hung, LANES, LONG, PATIENCE, assert_sound, promotions_as_cut};
use machine::{GUESTS, machine_for};
use nix::sys::ptrace;
use romulus::{
    control::{Role, Status},
    rehearsal::netns::{Direction, Place},
};

/// A cluster of three that runs a guest on `A`, with two backups.
fn doubly_protected(prefix: &str, replication: &str) -> Drill {
    let mut drill = Drill::of(3, prefix, replication);
    drill.cluster.start(A, "run").unwrap();
    drill.cluster.start(B, "backup").unwrap();
    drill.cluster.start(C, "backup").unwrap();
    wait_in_sync(&drill, A, &[B, C]);
    drill
}

/// Waits until these are in sync with `primary`, and nobody else.
fn wait_in_sync(drill: &Drill, primary: Place, backups: &[Place]) -> Status {
    let backups: Vec<_> = backups.iter().map(|place| place.node()).collect();
    let all = |status: &Status| {
        let mut in_sync = status.in_sync.clone();
        in_sync.sort();
        in_sync == backups
    };
    drill.cluster.wait_for(primary, "has its backups", PATIENCE, all).unwrap()
}

/// Which of two runs the guest, once one does, and the other one.
fn successor(drill: &Drill, of: [Place; 2]) -> [Place; 2] {
    let runs =
        |place: Place| drill.cluster.status(place).is_ok_and(|status| status.role == Role::Primary);
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < deadline {
        for [it, other] in [of, [of[1], of[0]]] {
            if runs(it) {
                return [it, other];
            }
        }
        std::thread::sleep(LONG / 100);
    }
    panic!("nobody:\n{}\n{}", drill.cluster.log_end(of[0]), drill.cluster.log_end(of[1]));
}

fn others(of: Place) -> [Place; 2] {
    match of {
        A => [B, C],
        B => [A, C],
        _ => [A, B],
    }
}

#[test]
fn one_of_two_backups_goes_on_and_the_other_follows_it() {
    let test = "one_of_two_backups_goes_on_and_the_other_follows_it";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let mut drill = doubly_protected("oneoftwo", &format!("audit = true\n{CALM}"));
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    let mut primary = A;
    for _ in 0..3 {
        client.wait_answers(50, PATIENCE).unwrap();
        drill.cluster.kill(primary);
        let [winner, other] = successor(&drill, others(primary));
        wait_in_sync(&drill, winner, &[other]);
        client.wait_answers(50, PATIENCE).unwrap();
        drill.verify(winner);
        drill.cluster.start(primary, "backup").unwrap();
        wait_in_sync(&drill, winner, &others(winner));
        drill.verify_all(winner, 2);
        primary = winner;
    }
    // The last copy goes on when the other two are gone.
    drill.cluster.kill(primary);
    let [winner, other] = successor(&drill, others(primary));
    wait_in_sync(&drill, winner, &[other]);
    drill.cluster.kill(winner);
    drill.cluster.wait_primary(other, PATIENCE).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    assert_sound(&client.finish().unwrap());
    assert_eq!(promotions_as_cut(drill.cluster.folder()), 5, "one promotion for each death");
}

#[test]
fn the_backup_that_stands_by_follows_a_switchover() {
    let test = "the_backup_that_stands_by_follows_a_switchover";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let drill = doubly_protected("standby", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    let mut primary = A;
    for to in [B, C, A] {
        client.wait_answers(50, PATIENCE).unwrap();
        let term = drill.cluster.status(primary).unwrap().term;
        drill.hand_over_soon(primary, to);
        wait_in_sync(&drill, to, &others(to));
        drill.verify_all(to, 2);
        let status = drill.cluster.status(to).unwrap();
        assert_eq!(status.term, term + 1, "somebody was dropped and admitted again");
        primary = to;
    }
    assert_sound(&client.finish().unwrap());
}

#[test]
fn either_backup_may_be_lost() {
    let Some(_machine) = machine_for("either_backup_may_be_lost", GUESTS) else { return };
    let mut drill = doubly_protected("either", CALM);
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    for lost in [B, C] {
        let [kept] = others(A).into_iter().filter(|place| *place != lost).collect::<Vec<_>>()[..]
        else {
            unreachable!("it is one of two");
        };
        client.wait_answers(50, PATIENCE).unwrap();
        drill.cluster.lab().cut(lost, Direction::Both).unwrap();
        wait_in_sync(&drill, A, &[kept]);
        client.wait_answers(50, PATIENCE).unwrap();
        drill.cluster.lab().heal(lost).unwrap();
        wait_in_sync(&drill, A, &[B, C]);
        drill.verify_all(A, 2);
    }
    // Who was dropped has no say: the one that is in sync goes on.
    drill.cluster.lab().cut(C, Direction::Both).unwrap();
    wait_in_sync(&drill, A, &[B]);
    drill.cluster.kill(A);
    drill.cluster.lab().heal(C).unwrap();
    drill.cluster.wait_primary(B, PATIENCE).unwrap();
    wait_in_sync(&drill, B, &[C]);
    client.wait_answers(50, PATIENCE).unwrap();
    assert_sound(&client.finish().unwrap());
}

/// The thread that takes checkpoints, caught while it computes: with a digest of
/// every epoch that is in a pause.
fn hang_within_a_pause(drill: &Drill) -> Hung {
    for _ in 0..1000 {
        let hung = Hung::threads(drill.cluster.pid(A).unwrap(), "epoch");
        let calls_the_kernel = ptrace::getregs(hung.0[0]).unwrap().orig_rax as i64 != -1;
        if !calls_the_kernel {
            return hung;
        }
        drop(hung);
        std::thread::sleep(LONG / 500);
    }
    panic!("it never computes");
}

#[test]
fn a_backup_that_comes_during_a_long_pause_disturbs_nobody() {
    let test = "a_backup_that_comes_during_a_long_pause_disturbs_nobody";
    let Some(_machine) = machine_for(test, GUESTS) else { return };
    let mut drill = Drill::of(3, "longpause", &format!("audit = true\n{CALM}"));
    drill.cluster.start(A, "run").unwrap();
    drill.cluster.start(B, "backup").unwrap();
    let term = wait_in_sync(&drill, A, &[B]).term;
    let mut client = drill.cluster.client(LANES, &[]).unwrap();
    client.wait_answers(50, PATIENCE).unwrap();
    let hung = hang_within_a_pause(&drill);
    drill.cluster.start(C, "backup").unwrap();
    // The primary is alive all the time, and whoever asks it hears that.
    std::thread::sleep(LONG);
    let status = drill.cluster.status(A).unwrap();
    assert_eq!((status.role, status.term), (Role::Primary, term));
    drop(hung);
    let status = wait_in_sync(&drill, A, &[B, C]);
    assert_eq!(status.role, Role::Primary);
    drill.verify_all(A, 2);
    client.wait_answers(50, PATIENCE).unwrap();
    assert_sound(&client.finish().unwrap());
}
