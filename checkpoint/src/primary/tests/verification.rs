//! Comparisons of memory: asked for once, answered once.

use std::time::Duration;

use super::{
    super::{Action, Command, Event},
    bench::{Bench, node},
};
use crate::{Epoch, message::ToBackup};

fn asks_for_digest(actions: &[Action], epoch: u64) -> bool {
    let verify = ToBackup::Verify { epoch: Epoch::new(epoch) };
    actions.contains(&Action::Send { backup: node("b"), message: verify })
}

#[test]
fn a_comparison_is_made_once() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::Verify));
    bench.pass(Duration::from_millis(12));
    assert!(bench.order().expect("due").digest);
    bench.finish_cut(2);
    assert!(asks_for_digest(&bench.take(), 2));
    bench.ack(2, 2);
    bench.pass(Duration::from_millis(12));
    assert!(!bench.order().expect("due").digest);
    bench.finish_cut(3);
    assert!(!asks_for_digest(&bench.take(), 3));
}

#[test]
fn a_comparison_outlives_a_failed_cut() {
    let mut bench = Bench::in_sync();
    bench.tell(Event::Commanded(Command::Verify));
    bench.pass(Duration::from_millis(12));
    let failed = bench.order().expect("due");
    assert!(failed.digest);
    bench.tell(Event::CutFailed { epoch: failed.epoch, why: "no memory".into() });
    bench.pass(Duration::from_millis(12));
    let again = bench.order().expect("due again");
    assert_eq!((again.epoch, again.digest), (failed.epoch, true), "the operator waits for it");
    bench.finish_cut(2);
    assert!(asks_for_digest(&bench.take(), 2));
}

#[test]
fn a_failed_cut_without_a_comparison_asks_for_none() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    let failed = bench.order().expect("due");
    bench.tell(Event::CutFailed { epoch: failed.epoch, why: "no memory".into() });
    bench.pass(Duration::from_millis(12));
    assert!(!bench.order().expect("due again").digest);
}
