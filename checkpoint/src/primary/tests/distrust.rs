//! What backups say of themselves, and how far they are believed.

use std::time::Duration;

use arbiter::{Operation, Outcome, Term};

use super::{Action, Answer, Command, Ending, Event, Question, asked, releases};
use super::{Bench, node, register};
use crate::message::{Refusal, ToBackup, ToPrimary};

const HEARTBEAT: ToPrimary = ToPrimary::Heartbeat { pong: 0, steps: 0 };

fn dropped(actions: &[Action]) -> Option<&str> {
    match asked(actions) {
        Some(Question::Change(request)) => match &request.operation {
            Operation::Drop { backup } => Some(backup.as_str()),
            _ => None,
        },
        _ => None,
    }
}

#[test]
fn a_member_that_speaks_of_a_later_term_is_asked_about_once_and_dropped() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    bench.ack(2, 2);
    assert_eq!(releases(&bench.take()), [2]);
    bench.hear(9, HEARTBEAT);
    let actions = bench.take();
    assert_eq!(asked(&actions), Some(&Question::Read));
    assert!(actions.contains(&Action::Disconnect { backup: node("b"), redial: true }));
    // However often it says so: what is asked already counts.
    bench.link_up(Some(2));
    bench.hear(9, HEARTBEAT);
    assert!(asked(&bench.take()).is_none());
    bench.answer(Answer::Register(Some(register(2, &["b"]))));
    let actions = bench.take();
    assert!(actions.contains(&Action::Confirm) && !bench.machine.in_doubt());
    assert_eq!(dropped(&actions), Some("b"));
}

#[test]
fn who_does_not_count_holds_no_output_by_speaking_of_a_later_term() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::Protect { backup: node("c") }));
    let refusal = Refusal::Stale { current: Term::new(9) };
    bench.tell(Event::LinkRefused { backup: node("c"), refusal: refusal.clone() });
    bench.tell(Event::LinkUp { backup: node("c"), image: None, staging_bytes_max: 1 << 20 });
    bench.hear_from("c", 9, HEARTBEAT);
    assert!(!bench.machine.in_doubt() && asked(&bench.take()).is_none());
    // Alone, the guest says what it likes anyway, and may have been replaced.
    let mut bench = Bench::new();
    bench.tell(Event::LinkRefused { backup: node("b"), refusal });
    assert_eq!(asked(&bench.take()), Some(&Question::Read));
}

#[test]
fn who_moves_for_ever_and_commits_nothing_is_dropped_in_the_end() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    let begun = bench.now;
    for steps in 0..20_000 {
        bench.pass(Duration::from_millis(9));
        bench.hear(2, ToPrimary::Heartbeat { pong: 0, steps });
        if dropped(&bench.take()).is_some() {
            assert!(bench.now - begun > Duration::from_secs(60), "it moves");
            return;
        }
    }
    panic!("it holds output for ever");
}

#[test]
fn more_room_brings_no_seed_to_who_was_left_alone_for_another_reason() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    while dropped(&bench.take()).is_none() {
        bench.pass(Duration::from_millis(9));
        bench.hear(2, ToPrimary::Heartbeat { pong: 0, steps: 1 });
    }
    bench.answer(Answer::Outcome(Outcome::Set(register(3, &[]))));
    bench.take();
    let staging_bytes_max = 2 << 20;
    bench.tell(Event::LinkUp { backup: node("b"), image: None, staging_bytes_max });
    let begin = bench.begin();
    assert!(!bench.take().contains(&begin), "it did not lack room");
}

#[test]
fn nobody_joins_while_the_arbiter_is_asked_who_runs_the_guest() {
    let mut bench = Bench::new();
    bench.link_up(None);
    bench.hear(1, ToPrimary::SeedAck { chunks: 0 });
    bench.now += Duration::from_secs(1);
    bench.tell(Event::SeedRoundSent { backup: node("b"), chunks: 2, pages_left: 0 });
    bench.hear(1, ToPrimary::SeedAck { chunks: 2 });
    assert!(bench.machine.in_doubt() && bench.order().is_none(), "output would be held");
    bench.answer(Answer::Register(Some(register(1, &[]))));
    assert_eq!(bench.order().expect("the join").joins, [node("b")]);
}

#[test]
fn what_a_lost_member_had_acknowledged_is_not_said_at_anothers_late_word() {
    let mut bench = Bench::two_in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(4);
    bench.ack(3, 4);
    bench.take();
    // It ends its session before it asks for a promotion; and may be promoted, die
    // and begin the guest anew before it counts as silent.
    bench.tell(Event::LinkDown { backup: node("b") });
    bench.ack_from("c", 3, 4);
    assert!(releases(&bench.take()).is_empty());
    bench.link_up(Some(4));
    assert_eq!(releases(&bench.take()), [4], "it was a blink");
}

#[test]
fn backups_keep_their_images_until_the_register_lets_them_go() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::Finish { reason: "it powered off".into() }));
    let epoch = bench.order().expect("the last").epoch.get();
    bench.finish_cut(epoch);
    bench.ack(2, epoch);
    let farewell = |actions: &[Action]| {
        let says = |action: &&Action| {
            matches!(action, Action::Send { message: ToBackup::Farewell { .. }, .. })
        };
        actions.iter().filter(says).count()
    };
    let actions = bench.take();
    assert_eq!((dropped(&actions), farewell(&actions)), (Some("b"), 0));
    bench.answer(Answer::Outcome(Outcome::Set(register(3, &[]))));
    let actions = bench.take();
    assert_eq!(farewell(&actions), 1);
    assert!(matches!(actions.last(), Some(Action::End(Ending::Finished { .. }))));
}

#[test]
fn a_checkpoint_that_fails_again_and_again_is_tried_more_and_more_rarely() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::Finish { reason: "it powered off".into() }));
    let mut tries = 0;
    let end = bench.now + Duration::from_secs(3);
    while bench.now < end {
        bench.hear(2, HEARTBEAT);
        if let Some(order) = bench.order() {
            tries += 1;
            bench.tell(Event::CutFailed { epoch: order.epoch, why: "no memory".into() });
        }
        bench.pass(Duration::from_millis(1));
    }
    assert!((5..15).contains(&tries), "{tries} tries");
}

#[test]
fn a_handover_is_given_up_when_the_arbiter_answers_nothing() {
    let mut bench = Bench::two_in_sync();
    let command = Command::HandOver { to: node("b"), stand_by: false };
    bench.tell(Event::Commanded(command));
    assert!(bench.take().contains(&Action::HoldGuest));
    bench.tell(Event::LinkDown { backup: node("c") });
    for _ in 0..20 {
        bench.pass(Duration::from_millis(9));
        bench.hear(3, HEARTBEAT);
    }
    assert_eq!(dropped(&bench.take()), Some("c"));
    bench.answer(Answer::Unsent);
    assert!(bench.take().contains(&Action::FreeGuest), "the guest does not wait for the arbiter");
}
