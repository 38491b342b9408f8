//! A client lane against the guest's lanes: honest, lossy, and gone back in time.

use super::*;
use crate::service::{Lanes, Vitals};

struct Guest {
    lanes: Lanes,
    vitals: Vitals,
}

impl Guest {
    fn new() -> Self {
        Self {
            lanes: Lanes::new(),
            vitals: Vitals { vcpus: 2, tsc: 1000, kvm_clock_ns: 500, ..Vitals::default() },
        }
    }

    fn serve(&mut self, request: &[u8]) -> Message {
        self.vitals.tsc += 10;
        self.vitals.kvm_clock_ns += 1;
        self.vitals.vcpu[1].progress += 3;
        let Request::Ask(ask) = Request::decode(request).unwrap() else {
            unreachable!("only asks here")
        };
        Answer::Ask(self.lanes.on_ask(&ask, &self.vitals)).encode()
    }
}

fn run(guest: &mut Guest, lane: &mut ClientLane, steps: usize) {
    for _ in 0..steps {
        let answer = guest.serve(&lane.next_request());
        assert!(matches!(lane.on_answer(&answer), Ok(Verdict::New(_))));
    }
}

#[test]
fn an_honest_guest() {
    let (mut guest, mut lane) = (Guest::new(), ClientLane::new(3, 1));
    run(&mut guest, &mut lane, 100);
    assert_eq!(lane.acknowledged(), Some(99));
}

#[test]
fn a_lost_answer_is_repeated_and_a_late_one_is_harmless() {
    let (mut guest, mut lane) = (Guest::new(), ClientLane::new(3, 1));
    run(&mut guest, &mut lane, 5);
    let lost = guest.serve(&lane.next_request());
    let again = guest.serve(&lane.next_request());
    let Ok(Verdict::New(answer)) = lane.on_answer(&again) else { panic!("the retry must count") };
    assert_eq!(answer.status, AskStatus::Repeat);
    assert_eq!(lane.on_answer(&lost), Ok(Verdict::Duplicate));
    run(&mut guest, &mut lane, 1);
    assert_eq!(lane.on_answer(&lost), Ok(Verdict::Duplicate));
}

#[test]
fn a_late_opening_does_not_wipe_the_lane() {
    let (mut guest, mut lane) = (Guest::new(), ClientLane::new(3, 1));
    let opening = lane.next_request();
    run(&mut guest, &mut lane, 5);
    let late = guest.serve(&opening);
    assert_eq!(lane.on_answer(&late), Ok(Verdict::Duplicate));
    run(&mut guest, &mut lane, 5);
}

#[test]
fn a_new_session_opens_the_lane_anew() {
    let mut guest = Guest::new();
    run(&mut guest, &mut ClientLane::new(3, 1), 5);
    run(&mut guest, &mut ClientLane::new(3, 2), 5);
}

#[test]
fn a_guest_that_went_back_one_step_is_found() {
    let (mut guest, mut lane) = (Guest::new(), ClientLane::new(3, 1));
    run(&mut guest, &mut lane, 5);
    let mut restored = Guest::new();
    let mut shadow = ClientLane::new(3, 1);
    run(&mut restored, &mut shadow, 4);
    let answer = restored.serve(&lane.next_request());
    assert_eq!(lane.on_answer(&answer), Ok(Verdict::Lost { acknowledged: 4, guest_seq: 3 }));
}

#[test]
fn a_guest_with_another_history_of_the_same_length_is_found() {
    let (mut guest, mut lane) = (Guest::new(), ClientLane::new(3, 1));
    run(&mut guest, &mut lane, 5);
    let mut other = Guest::new();
    run(&mut other, &mut ClientLane::new(3, 99), 5);
    other.vitals = guest.vitals;
    let answer = other.serve(&lane.next_request());
    assert_eq!(lane.on_answer(&answer), Ok(Verdict::Lost { acknowledged: 4, guest_seq: 5 }));
}

#[test]
fn counters_that_go_back_are_named() {
    let (mut guest, mut lane) = (Guest::new(), ClientLane::new(3, 1));
    run(&mut guest, &mut lane, 5);
    guest.vitals.vcpu[1].progress = 0;
    let answer = guest.serve(&lane.next_request());
    let wanted = Verdict::WentBack { what: Counter::Progress { vcpu: 1 }, was: 15, now: 3 };
    assert_eq!(lane.on_answer(&answer), Ok(wanted));
}

#[test]
fn the_tsc_check_can_be_left_out() {
    for checks in [true, false] {
        let (mut guest, lane) = (Guest::new(), ClientLane::new(3, 1));
        let mut lane = if checks { lane } else { lane.without_tsc_check() };
        run(&mut guest, &mut lane, 2);
        guest.vitals.tsc = 0;
        let answer = guest.serve(&lane.next_request());
        let went_back =
            matches!(lane.on_answer(&answer), Ok(Verdict::WentBack { what: Counter::Tsc, .. }));
        assert_eq!(went_back, checks);
    }
}

#[test]
fn corruption_is_a_verdict_of_its_own() {
    let (mut guest, mut lane) = (Guest::new(), ClientLane::new(3, 1));
    run(&mut guest, &mut lane, 1);
    (guest.vitals.corrupt_pages, guest.vitals.first_bad) = (2, 0x1000);
    let answer = guest.serve(&lane.next_request());
    assert_eq!(lane.on_answer(&answer), Ok(Verdict::Corrupt { pages: 2, first_bad: 0x1000 }));
}

#[test]
fn other_clients_are_foreign() {
    let (mut guest, mut lane, mut other) =
        (Guest::new(), ClientLane::new(3, 1), ClientLane::new(4, 1));
    let answer = guest.serve(&other.next_request());
    lane.next_request();
    assert_eq!(lane.on_answer(&answer), Ok(Verdict::Foreign));
    assert!(lane.on_answer(b"noise").is_err());
}
