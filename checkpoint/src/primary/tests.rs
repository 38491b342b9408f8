//! The primary's machine in virtual time: each test is a sentence of the
//! protocol.

mod applied;
mod bench;
mod verification;

use std::{collections::VecDeque, time::Duration};

use arbiter::{ImageId, Operation, Outcome, Register, Term};

use super::{Action, Command, Ending, Event};
use crate::{
    Answer, Epoch, Question,
    message::{Close, HeldImage, ToBackup, ToPrimary},
};
use bench::{Bench, node, register};

fn releases(actions: &[Action]) -> Vec<u64> {
    let through = actions.iter().filter_map(|action| match action {
        Action::Release { through } => Some(through.get()),
        _ => None,
    });
    through.collect()
}

fn asked(actions: &[Action]) -> Option<&Question> {
    actions.iter().find_map(|action| match action {
        Action::Ask(question) => Some(question),
        _ => None,
    })
}

#[test]
fn a_seed_goes_round_until_little_is_left_and_all_of_it_is_verified() {
    let mut bench = Bench::new();
    bench.link_up(None);
    let begin = bench.begin();
    assert!(bench.take().contains(&begin));
    bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
    assert!(bench.take().contains(&Action::StartSeed { backup: node("b") }));
    bench.tell(Event::SeedRoundSent { backup: node("b"), chunks: 9, pages_left: 100 });
    assert!(bench.take().is_empty(), "the round has not arrived yet");
    bench.hear(1, ToPrimary::SeedAck { chunks: 9 });
    assert_eq!(bench.take(), [Action::SeedRound { backup: node("b") }]);
    bench.tell(Event::SeedRoundSent { backup: node("b"), chunks: 11, pages_left: 3 });
    assert!(bench.order().is_none(), "the last round has not arrived yet");
    bench.hear(1, ToPrimary::SeedAck { chunks: 11 });
    let order = bench.order().expect("the joining cut");
    assert_eq!(
        (order.epoch, order.joins, order.followers),
        (Epoch::new(1), vec![node("b")], false)
    );
}

#[test]
fn a_refused_chunk_of_a_seed_costs_that_chunk() {
    let mut bench = Bench::new();
    bench.link_up(None);
    let nack = |chunks: &[u32]| ToPrimary::Nack { epoch: Epoch::ZERO, chunks: chunks.to_vec() };
    bench.hear(1, nack(&[0]));
    bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
    assert!(bench.take().contains(&Action::StartSeed { backup: node("b") }));
    bench.hear(1, ToPrimary::SeedAck { chunks: 3 });
    bench.hear(1, nack(&[2, 3, 7]));
    let again = Action::ResendSeed { backup: node("b"), chunks: vec![3, 7] };
    assert_eq!(bench.take(), [again]);
    bench.tell(Event::SeedRoundSent { backup: node("b"), chunks: 9, pages_left: 0 });
    bench.hear(1, ToPrimary::SeedAck { chunks: 9 });
    assert_eq!(bench.order().expect("the joining cut").joins, [node("b")]);
    bench.take();
    bench.hear(1, nack(&[8]));
    assert_eq!(bench.take(), [], "it has all of it");
}

#[test]
fn a_seed_that_does_not_go_on_is_begun_again_and_waited_for_longer() {
    let mut bench = Bench::new();
    // Heartbeats come and go, but a chunk was lost: nobody sends it again.
    let stuck_after = |bench: &mut Bench| {
        bench.link_up(None);
        bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
        bench.tell(Event::SeedRoundSent { backup: node("b"), chunks: 9, pages_left: 0 });
        bench.hear(1, ToPrimary::SeedAck { chunks: 8 });
        let begun = bench.now;
        bench.take();
        for _ in 0..10_000 {
            bench.hear(1, ToPrimary::Heartbeat { pong: 0, steps: 0 });
            bench.pass(Duration::from_millis(9));
            if bench.take().contains(&Action::Disconnect { backup: node("b"), redial: true }) {
                return bench.now - begun;
            }
        }
        panic!("it is waited for in vain");
    };
    let first = stuck_after(&mut bench);
    assert!(first > Duration::from_secs(2), "a slow line is given time: {first:?}");
    assert!(stuck_after(&mut bench) > first * 3 / 2);
    bench.link_up(None);
    let begin = bench.begin();
    assert!(bench.take().contains(&begin));
}

#[test]
fn a_seed_that_begins_while_another_joins_does_not_join() {
    let mut bench = Bench::new();
    bench.seed();
    // The cut takes long; the backup is lost and back before it is done.
    bench.tell(Event::LinkDown { backup: node("b") });
    bench.link_up(None);
    bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
    bench.take();
    bench.finish_cut(1);
    let actions = bench.take();
    assert!(actions.contains(&Action::Disconnect { backup: node("b"), redial: true }));
    assert!(!actions.iter().any(|action| matches!(action, Action::Follow { .. })), "{actions:?}");
}

#[test]
fn output_is_released_when_the_follower_has_committed() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    assert_eq!(bench.order().expect("due").epoch, Epoch::new(2));
    bench.finish_cut(2);
    assert_eq!(releases(&bench.take()), [] as [u64; 0]);
    bench.ack(2, 2);
    let actions = bench.take();
    assert_eq!(releases(&actions), [2]);
    assert!(actions.contains(&Action::Forget { through: Epoch::new(2) }));
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_ends_the_session() {
    let mut bench = Bench::in_sync();
    bench.ack(2, 9);
    let actions = bench.take();
    assert!(actions.contains(&Action::Disconnect { backup: node("b"), redial: true }));
    assert!(releases(&actions).is_empty());
}

#[test]
fn an_acknowledgement_under_a_stale_term_does_not_count() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    bench.take();
    bench.ack(1, 2);
    assert!(releases(&bench.take()).is_empty());
    bench.ack(2, 2);
    assert_eq!(releases(&bench.take()), [2]);
}

#[test]
fn a_silent_backup_is_dropped_before_output_goes_on() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(200));
    let actions = bench.take();
    assert!(matches!(asked(&actions), Some(Question::Change(_))), "{actions:?}");
    assert!(!actions.contains(&Action::PassOutput));
    bench.finish_cut(2);
    bench.answer(Answer::Outcome(Outcome::Set(register(3, &[]))));
    // A cut that is being taken would hold output again: it is waited for.
    bench.finish_cut(3);
    assert!(bench.take().contains(&Action::PassOutput));
}

#[test]
fn nothing_is_said_while_a_member_is_silent() {
    let mut bench = Bench::two_in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(4);
    // What c has acknowledged it may have been promoted with, and said more.
    bench.ack_from("c", 3, 4);
    for _ in 0..8 {
        bench.pass(Duration::from_millis(19));
        bench.hear(3, ToPrimary::Heartbeat { pong: 0, steps: 0 });
    }
    assert!(matches!(asked(&bench.take()), Some(Question::Change(_))), "c is to be dropped");
    bench.ack(3, 4);
    assert!(!bench.machine.in_doubt(), "nothing else holds it back");
    assert_eq!(releases(&bench.take()), [] as [u64; 0]);
    bench.answer(Answer::Outcome(Outcome::Set(register(4, &["b"]))));
    assert_eq!(releases(&bench.take()), [4]);
}

#[test]
fn an_unsent_repeat_says_nothing_of_the_copy_before_it() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(200));
    let first = asked(&bench.take()).cloned();
    bench.answer(Answer::Unknown);
    bench.pass(Duration::from_millis(40));
    assert_eq!(asked(&bench.take()).cloned(), first, "the same stamp");
    bench.answer(Answer::Unsent);
    assert!(bench.machine.asks(), "the first copy may have happened");
    bench.pass(Duration::from_millis(40));
    assert_eq!(asked(&bench.take()).cloned(), first);
}

#[test]
fn the_loser_of_a_race_is_fenced_and_says_nothing_more() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(200));
    bench.take();
    let other = Register { primary: node("b"), ..register(3, &[]) };
    bench.answer(Answer::Outcome(Outcome::Mismatch(Some(other.clone()))));
    let actions = bench.take();
    assert_eq!(actions, [Action::End(Ending::Fenced { register: Some(other) })]);
    bench.ack(2, 2);
    bench.pass(Duration::from_secs(1));
    assert!(bench.take().is_empty());
}

#[test]
fn a_register_that_went_back_is_not_believed() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(200));
    bench.take();
    bench.answer(Answer::Outcome(Outcome::Mismatch(None)));
    let actions = bench.take();
    assert!(!actions.iter().any(|action| matches!(action, Action::End(_) | Action::PassOutput)));
}

#[test]
fn a_member_that_begins_anew_does_not_confirm_the_right_to_run() {
    let mut bench = Bench::in_sync();
    bench.now += Duration::from_secs(1);
    bench.tell(Event::LinkDown { backup: node("b") });
    // It was promoted meanwhile, and has died; this is the process after it.
    bench.link_up(None);
    bench.hear(2, ToPrimary::Heartbeat { pong: u64::MAX, steps: 0 });
    assert!(bench.machine.in_doubt());
    assert!(!bench.take().contains(&Action::Confirm));
}

#[test]
fn who_stood_still_releases_nothing_until_its_right_is_confirmed() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    bench.take();
    // SIGSTOP, and an acknowledgement that was waiting in a socket.
    bench.now += Duration::from_secs(1);
    bench.ack(2, 2);
    let actions = bench.take();
    assert!(bench.machine.in_doubt() && releases(&actions).is_empty());
    assert_eq!(asked(&actions), Some(&Question::Read));
    bench.answer(Answer::Register(Some(register(2, &["b"]))));
    let actions = bench.take();
    assert!(actions.contains(&Action::Confirm));
    assert_eq!(releases(&actions), [2]);
}

#[test]
fn a_solo_primary_that_stood_still_asks_whether_it_was_replaced() {
    let mut bench = Bench::new();
    bench.pass(Duration::from_millis(100));
    assert!(asked(&bench.take()).is_none());
    bench.now += Duration::from_secs(1);
    bench.tell(Event::Timeout);
    assert!(matches!(asked(&bench.take()), Some(Question::Read)));
    bench.answer(Answer::Register(Some(register(2, &[]))));
    let fenced = |action: &Action| matches!(action, Action::End(Ending::Fenced { .. }));
    assert!(bench.take().iter().any(fenced));
}

#[test]
fn fresh_pongs_end_a_doubt_and_old_ones_do_not() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(25));
    bench.finish_cut(2);
    bench.take();
    bench.now += Duration::from_secs(1);
    bench.ack(2, 2);
    let pings = |actions: Vec<Action>| {
        actions.into_iter().find_map(|action| match action {
            Action::Send { message: ToBackup::Heartbeat { ping }, .. } => Some(ping),
            _ => None,
        })
    };
    let fresh = pings(bench.take()).expect("a ping at once");
    bench.hear(2, ToPrimary::Heartbeat { pong: fresh - 1, steps: 0 });
    assert!(bench.machine.in_doubt());
    bench.hear(2, ToPrimary::Heartbeat { pong: fresh, steps: 0 });
    assert!(!bench.machine.in_doubt());
    assert_eq!(releases(&bench.take()), [2]);
}

#[test]
fn after_a_blink_what_is_lacking_is_sent_again() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    bench.tell(Event::LinkDown { backup: node("b") });
    bench.take();
    bench.link_up(Some(1));
    let actions = bench.take();
    assert!(actions.contains(&Action::Follow {
        backup: node("b"),
        after: Epoch::new(1),
        joins: false
    }));
    let closes = |action: &Action| match action {
        Action::Send { message: ToBackup::Close(close), .. } => close.epoch == Epoch::new(2),
        _ => false,
    };
    assert!(actions.iter().any(closes) && asked(&actions).is_none(), "{actions:?}");
}

#[test]
fn a_member_without_its_image_is_dropped_then_seeded() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::LinkDown { backup: node("b") });
    bench.take();
    bench.link_up(None);
    let actions = bench.take();
    assert!(matches!(asked(&actions), Some(Question::Change(_))), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::StartSeed { .. })));
}

#[test]
fn who_is_lost_while_its_admission_is_asked_for_may_have_been_admitted() {
    let mut bench = Bench::new();
    bench.seed();
    bench.finish_cut(1);
    bench.ack(1, 1);
    assert!(matches!(asked(&bench.take()), Some(Question::Change(_))));
    // It comes back without its image.
    for _ in 0..2 {
        bench.tell(Event::LinkDown { backup: node("b") });
        bench.link_up(None);
        bench.tell(Event::OutputHeld { bytes: 10 });
        let actions = bench.take();
        assert!(!actions.contains(&Action::PassOutput), "it may be a member");
        let begin = bench.begin();
        assert!(!actions.contains(&begin), "it is not seeded while it may be one");
    }
    bench.answer(Answer::Outcome(Outcome::Set(register(2, &["b"]))));
    let actions = bench.take();
    assert!(!actions.contains(&Action::PassOutput), "it is a member");
    assert!(matches!(asked(&actions), Some(Question::Change(_))), "it is to be dropped");
    bench.answer(Answer::Outcome(Outcome::Set(register(3, &[]))));
    bench.finish_cut(2);
    assert!(bench.take().contains(&Action::PassOutput));
}

#[test]
fn nobody_joins_with_an_epoch_that_had_begun_before_its_seed() {
    let mut bench = Bench::in_sync();
    let c = || node("c");
    bench.tell(Event::Commanded(Command::Protect { backup: c() }));
    bench.tell(Event::LinkUp { backup: c(), image: None, staging_bytes_max: 1 << 20 });
    let hear = |bench: &mut Bench, chunks| {
        let message = ToPrimary::SeedAck { chunks };
        bench.tell(Event::Heard { backup: c(), term: Term::new(2), message });
    };
    // The guest is in epoch 2, and pages of it may have been sent already.
    hear(&mut bench, 0);
    bench.tell(Event::SeedRoundSent { backup: c(), chunks: 1, pages_left: 0 });
    hear(&mut bench, 1);
    for (epoch, joins) in [(2, vec![]), (3, vec![c()])] {
        bench.pass(Duration::from_millis(10));
        let order = bench.order().expect("due");
        let none_ahead = !joins.is_empty();
        assert_eq!((order.epoch, order.joins), (Epoch::new(epoch), joins));
        assert_eq!(order.ahead_bytes_max == 0, none_ahead, "its next epochs are not known yet");
        bench.finish_cut(epoch);
    }
}

#[test]
fn what_is_sent_ahead_leaves_room_for_twice_the_largest_epoch() {
    const STAGING: u64 = 1 << 20;
    let mut bench = Bench::in_sync();
    let mut next = |epoch: u64, bytes: u64| {
        bench.pass(Duration::from_millis(10));
        let ahead_bytes_max = bench.order().expect("due").ahead_bytes_max;
        let epoch = Epoch::new(epoch);
        bench.tell(Event::CutDone { epoch, bytes, pause: Duration::from_micros(100) });
        let close = Close { epoch, seed_chunks: None, chunks: 1, pages: 1, digest: [0; 32] };
        bench.tell(Event::Encoded { close, wire_bytes: 4096 });
        bench.ack(2, epoch.get());
        ahead_bytes_max
    };
    assert_eq!(next(2, 4096), STAGING - 2 * 4096);
    assert_eq!(next(3, STAGING / 4), STAGING - 2 * 4096);
    assert_eq!(next(4, STAGING), STAGING / 2);
    assert_eq!(next(5, 4096), 0, "the next may be so large again");
    let later: Vec<u64> = (6..26).map(|epoch| next(epoch, 4096)).collect();
    assert!(later.is_sorted() && later[19] > STAGING / 2, "{later:?}");
}

#[test]
fn epochs_in_flight_are_bounded() {
    let mut bench = Bench::in_sync();
    let mut cut = 0;
    for epoch in 2..20 {
        bench.hear(2, ToPrimary::Heartbeat { pong: 0, steps: 0 });
        bench.pass(Duration::from_millis(12));
        if bench.order().is_some() {
            bench.finish_cut(epoch);
            cut += 1;
        }
    }
    assert_eq!(cut, 3);
}

#[test]
fn output_that_waits_ends_a_quiet_epoch_early() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(8));
    assert_eq!(bench.order().expect("it is due").epoch, Epoch::new(2));
    bench.finish_cut(2);
    bench.take();
    bench.pass(Duration::from_millis(3));
    assert!(bench.order().is_none(), "its interval is not over");
    bench.tell(Event::OutputWaits);
    assert_eq!(bench.order().expect("at once").epoch, Epoch::new(3));
    bench.finish_cut(3);
    bench.take();
    bench.pass(Duration::from_millis(7));
    assert!(bench.order().is_none(), "nothing waits in the next");
}

#[test]
fn a_guest_whose_backups_lag_is_slowed() {
    let mut bench = Bench::in_sync();
    for epoch in 2..5 {
        bench.hear(2, ToPrimary::Heartbeat { pong: 0, steps: 0 });
        bench.pass(Duration::from_millis(12));
        bench.order().expect("there is room");
        bench.finish_cut(epoch);
    }
    bench.hear(2, ToPrimary::Heartbeat { pong: 0, steps: 0 });
    bench.pass(Duration::from_millis(20));
    assert!(!bench.take().contains(&Action::HoldGuest), "the epoch is stretched first");
    bench.pass(Duration::from_millis(30));
    assert!(bench.take().contains(&Action::HoldGuest));
    bench.ack(2, 2);
    let actions = bench.take();
    assert!(actions.contains(&Action::FreeGuest), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Cut(_))), "{actions:?}");
}

/// How many epochs of 10 ms are cut in a second over a line on which commits are known
/// after 60 ms, and how often the guest is held.
fn over_a_long_line(epochs_in_flight_max: usize) -> (u64, usize) {
    let mut bench = Bench::with_in_flight(epochs_in_flight_max).brought_in_sync();
    let (mut cut, mut held) = (0, 0);
    let mut commits = VecDeque::<(Duration, u64)>::new();
    let (begun, mut beat) = (bench.now, bench.now);
    while bench.now < begun + Duration::from_secs(1) {
        bench.pass(Duration::from_millis(1));
        if bench.now >= beat {
            beat = bench.now + Duration::from_millis(20);
            bench.hear(2, ToPrimary::Heartbeat { pong: 0, steps: 0 });
        }
        while commits.front().is_some_and(|(due, _)| *due <= bench.now) {
            let (_, epoch) = commits.pop_front().expect("looked at above");
            bench.ack(2, epoch);
        }
        for action in bench.take() {
            match action {
                Action::Cut(order) => {
                    cut += 1;
                    bench.finish_cut(order.epoch.get());
                    commits.push_back((bench.now + Duration::from_millis(60), order.epoch.get()));
                }
                Action::HoldGuest => held += 1,
                _ => {}
            }
        }
    }
    (cut, held)
}

#[test]
fn epochs_in_flight_for_a_round_trip_keep_the_pace_of_a_long_line() {
    // The round trip over the interval, and one.
    let (all, held) = over_a_long_line(7);
    assert_eq!(held, 0);
    let (some, held) = over_a_long_line(2);
    assert!(held > 0, "two in flight are too few");
    assert!(all > 2 * some, "{all} epochs in a second, {some} with two in flight");
}

#[test]
fn too_much_held_output_pauses_the_guest() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::OutputHeld { bytes: 1000 });
    assert!(bench.take().contains(&Action::HoldGuest));
    bench.tell(Event::OutputHeld { bytes: 600 });
    assert!(!bench.take().contains(&Action::FreeGuest));
    bench.tell(Event::OutputHeld { bytes: 400 });
    assert!(bench.take().contains(&Action::FreeGuest));
}

#[test]
fn a_handover_ends_when_everything_is_committed_and_the_arbiter_agrees() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::HandOver { to: node("b"), stand_by: true }));
    let actions = bench.take();
    assert!(actions.contains(&Action::HoldGuest));
    let last = actions.iter().find_map(|action| match action {
        Action::Cut(order) => Some(order.clone()),
        _ => None,
    });
    assert!(last.expect("the last epoch").stay_paused);
    bench.finish_cut(2);
    assert!(asked(&bench.take()).is_none());
    bench.ack(2, 2);
    assert!(matches!(asked(&bench.take()), Some(Question::Change(_))));
    let successor = Register { primary: node("b"), ..register(3, &["a"]) };
    bench.answer(Answer::Outcome(Outcome::Set(successor.clone())));
    let (successor, epoch) = (bench.meant(successor), Epoch::new(2));
    let message = ToBackup::HandOver { epoch, register: successor.clone() };
    let told = Action::Send { backup: node("b"), message };
    let ending = Ending::HandedOver { register: successor, epoch };
    assert_eq!(bench.take(), [told, Action::End(ending)]);
}

#[test]
fn a_handover_that_had_happened_is_not_taken_back() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::HandOver { to: node("b"), stand_by: true }));
    bench.finish_cut(2);
    bench.ack(2, 2);
    bench.take();
    bench.answer(Answer::Unknown);
    bench.tell(Event::LinkDown { backup: node("b") });
    bench.pass(Duration::from_millis(200));
    // The copy that was put meanwhile.
    bench.answer(Answer::Unknown);
    bench.pass(Duration::from_millis(100));
    let actions = bench.take();
    let asks = actions.iter().rposition(|action| matches!(action, Action::Ask(_)));
    let Some(Question::Change(request)) = asks.and_then(|last| asked(&actions[last..])) else {
        panic!("{actions:?}")
    };
    assert_eq!(request.operation, Operation::Drop { backup: node("b") });
    assert!(!actions.contains(&Action::FreeGuest), "the guest may be another's");
    let register = Register { primary: node("b"), ..register(3, &["a"]) };
    bench.answer(Answer::Outcome(Outcome::Mismatch(Some(register.clone()))));
    let ending = Ending::HandedOver { register: bench.meant(register), epoch: Epoch::new(2) };
    assert_eq!(bench.take(), [Action::End(ending)]);
}

#[test]
fn a_successor_waits_for_who_was_in_sync_before_it() {
    let new = || Bench::begun(3, register(4, &["b"]), Epoch::new(8));
    let mut bench = new();
    bench.link_up(Some(7));
    let follow = Action::Follow { backup: node("b"), after: Epoch::new(7), joins: false };
    assert!(bench.take().contains(&follow), "it goes on without a seed");
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(8);
    assert_eq!(releases(&bench.take()), [0; 0]);
    bench.ack(4, 8);
    assert_eq!(releases(&bench.take()), [8]);
    // One that does not come is dropped before anything is said.
    let mut bench = new();
    bench.pass(Duration::from_millis(500));
    let actions = bench.take();
    assert!(!actions.contains(&Action::PassOutput));
    let Some(Question::Change(request)) = asked(&actions) else { panic!("{actions:?}") };
    assert_eq!(request.operation, Operation::Drop { backup: node("b") });
}

#[test]
fn a_successor_knows_the_register_before_it_is_asked_for() {
    let mut bench = Bench::with_c_joining();
    bench.tell(Event::Commanded(Command::HandOver { to: node("b"), stand_by: true }));
    for epoch in [4, 5] {
        bench.finish_cut(epoch);
        bench.ack(2, epoch);
        bench.ack_from("c", 2, epoch);
    }
    assert_eq!(releases(&bench.take()), [2, 3, 4, 5]);
    // All is committed and released when the register changes once more.
    bench.answer(Answer::Outcome(Outcome::Set(register(3, &["b", "c"]))));
    assert!(asked(&bench.take()).is_none(), "it may not have heard of that yet");
    bench.ack(3, 5);
    assert!(matches!(asked(&bench.take()), Some(Question::Change(_))));
}

#[test]
fn a_handover_is_taken_back_from_who_has_lost_its_image() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::HandOver { to: node("b"), stand_by: false }));
    bench.finish_cut(2);
    bench.ack(2, 2);
    assert!(matches!(asked(&bench.take()), Some(Question::Change(_))));
    // It may have happened; the successor's process dies, and another one answers.
    bench.answer(Answer::Unknown);
    bench.tell(Event::LinkDown { backup: node("b") });
    bench.link_up(None);
    bench.pass(Duration::from_millis(40));
    let actions = bench.take();
    let Some(Question::Change(request)) = asked(&actions) else { panic!("{actions:?}") };
    assert_eq!(request.operation, Operation::Drop { backup: node("b") });
    bench.answer(Answer::Outcome(Outcome::Set(register(3, &[]))));
    assert!(bench.take().contains(&Action::FreeGuest), "it had not happened");
}

#[test]
fn nothing_is_said_while_another_answers_to_a_members_name() {
    let mut bench = Bench::two_in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(4);
    bench.ack(3, 4);
    // "b" stands still, and may be promoted when it wakes; its name is another's.
    bench.tell(Event::LinkDown { backup: node("b") });
    bench.link_up(None);
    bench.take();
    bench.ack_from("c", 3, 4);
    assert_eq!(releases(&bench.take()), [0; 0]);
    bench.answer(Answer::Outcome(Outcome::Set(register(4, &["c"]))));
    assert_eq!(releases(&bench.take()), [4], "it cannot be promoted any more");
}

#[test]
fn another_process_of_a_members_name_is_no_follower() {
    let back_with = |held: fn(&Bench) -> HeldImage| {
        let mut bench = Bench::in_sync();
        bench.tell(Event::LinkDown { backup: node("b") });
        let image = Some(held(&bench));
        bench.take();
        bench.tell(Event::LinkUp { backup: node("b"), image, staging_bytes_max: 1 << 20 });
        bench.take()
    };
    let goes_on = back_with(|bench| bench.held("b", 1));
    assert!(goes_on.iter().any(|action| matches!(action, Action::Follow { .. })));
    let twins = back_with(|_| HeldImage { id: ImageId::new(99), committed: Epoch::new(1) });
    assert!(!twins.iter().any(|action| matches!(action, Action::Follow { .. })), "{twins:?}");
    let Some(Question::Change(request)) = asked(&twins) else { panic!("{twins:?}") };
    assert_eq!(request.operation, Operation::Drop { backup: node("b") });
}

#[test]
fn a_backup_that_cannot_stage_an_epoch_is_left_alone_for_longer_and_longer() {
    let mut bench = Bench::in_sync();
    // How long after its drop the next seed begins, in term `term` + 1.
    let mut left_alone = |term: u64| {
        bench.pass(Duration::from_millis(12));
        let epoch = bench.order().expect("due").epoch;
        let (bytes, pause) = (2 << 20, Duration::from_micros(100));
        bench.tell(Event::CutDone { epoch, bytes, pause });
        bench.answer(Answer::Outcome(Outcome::Set(register(term + 1, &[]))));
        bench.take();
        let begun = bench.now;
        bench.link_up(None);
        while !bench.take().contains(&bench.begin()) {
            bench.hear(term + 1, ToPrimary::Heartbeat { pong: 0, steps: 0 });
            bench.pass(Duration::from_millis(9));
        }
        let after = bench.now - begun;
        bench.hear(term + 1, ToPrimary::SeedAck { chunks: 0 });
        bench.tell(Event::SeedRoundSent { backup: node("b"), chunks: 2, pages_left: 0 });
        bench.hear(term + 1, ToPrimary::SeedAck { chunks: 2 });
        let epoch = bench.order().expect("the join").epoch.get();
        bench.finish_cut(epoch);
        bench.ack(term + 1, epoch);
        bench.answer(Answer::Outcome(Outcome::Set(register(term + 2, &["b"]))));
        bench.take();
        after
    };
    let first = left_alone(2);
    assert!(first > Duration::from_secs(2), "{first:?}");
    let second = left_alone(4);
    assert!(second > first * 3 / 2, "{second:?} after {first:?}");
}

#[test]
fn a_member_that_speaks_and_does_nothing_is_dropped() {
    let dropped = |mut does: Box<dyn FnMut(u64) -> ToPrimary>| {
        let mut bench = Bench::in_sync();
        bench.pass(Duration::from_millis(12));
        bench.finish_cut(2);
        for round in 0..250 {
            bench.pass(Duration::from_millis(10));
            bench.hear(2, does(round));
            if let Some(Question::Change(request)) = asked(&bench.take()) {
                assert_eq!(request.operation, Operation::Drop { backup: node("b") });
                return Some(bench.now);
            }
        }
        None
    };
    let waited = dropped(Box::new(|_| ToPrimary::Heartbeat { pong: 0, steps: 7 }));
    assert!(waited.expect("a laggard") > Duration::from_millis(900));
    let slow = dropped(Box::new(|round| ToPrimary::Heartbeat { pong: 0, steps: round / 50 }));
    assert_eq!(slow, None, "it goes on");
    let done =
        dropped(Box::new(|_| ToPrimary::Ack { committed: Epoch::new(2), applied: Epoch::ZERO }));
    assert_eq!(done, None, "nothing waits for it");
}

#[test]
fn a_backup_that_never_commits_what_it_joins_with_is_given_up() {
    let mut bench = Bench::new();
    bench.seed();
    bench.finish_cut(1);
    let mut actions = Vec::new();
    for _ in 0..200 {
        bench.pass(Duration::from_millis(10));
        bench.hear(1, ToPrimary::Heartbeat { pong: 0, steps: 2 });
        let acted = bench.take();
        for action in &acted {
            if let Action::Cut(order) = action {
                bench.finish_cut(order.epoch.get());
            }
        }
        actions.extend(acted);
    }
    assert!(actions.contains(&Action::Disconnect { backup: node("b"), redial: true }));
    assert!(actions.contains(&Action::PassOutput), "nobody is waited for");
}

#[test]
fn a_backup_that_begins_its_seed_anew_is_seeded_anew() {
    let ends = Action::Disconnect { backup: node("b"), redial: true };
    let mut bench = Bench::new();
    bench.link_up(None);
    bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
    bench.tell(Event::SeedRoundSent { backup: node("b"), chunks: 9, pages_left: 100 });
    bench.hear(1, ToPrimary::SeedAck { chunks: 5 });
    bench.take();
    bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
    assert!(bench.take().contains(&ends), "while it is seeded");
    let mut bench = Bench::new();
    bench.seed();
    bench.finish_cut(1);
    bench.hear(1, ToPrimary::SeedAck { chunks: 2 });
    assert!(!bench.take().contains(&ends), "it says again what it has");
    bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
    assert!(bench.take().contains(&ends), "while it joins");
}

#[test]
fn a_handover_to_a_lost_successor_is_given_up() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::HandOver { to: node("b"), stand_by: true }));
    bench.finish_cut(2);
    bench.take();
    bench.tell(Event::LinkDown { backup: node("b") });
    assert!(bench.take().contains(&Action::FreeGuest));
}

#[test]
fn a_handover_that_nobody_decides_is_given_up_unless_it_may_have_happened() {
    let asked_to_hand_over = || {
        let mut bench = Bench::in_sync();
        bench.tell(Event::Commanded(Command::HandOver { to: node("b"), stand_by: true }));
        bench.finish_cut(2);
        bench.ack(2, 2);
        assert!(matches!(asked(&bench.take()), Some(Question::Change(_))));
        bench
    };
    for nothing_happened in [Answer::Unsent, Answer::Refused("disk full".into())] {
        let mut bench = asked_to_hand_over();
        bench.answer(nothing_happened);
        assert!(bench.take().contains(&Action::FreeGuest));
    }
    let mut bench = asked_to_hand_over();
    bench.answer(Answer::Unknown);
    bench.answer(Answer::Unsent);
    assert!(!bench.take().contains(&Action::FreeGuest), "the first copy may have happened");
}

#[test]
fn a_failed_cut_gives_its_number_back() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    let failed = bench.order().expect("due").epoch;
    bench.tell(Event::CutFailed { epoch: failed, why: "no memory".into() });
    bench.pass(Duration::from_millis(12));
    assert_eq!(bench.order().expect("due again").epoch, failed);
}
