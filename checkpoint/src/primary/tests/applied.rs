//! What the images of backups have, as they tell it.

use std::time::Duration;

use super::bench::Bench;
use crate::{Epoch, message::ToPrimary};

fn ack(committed: u64, applied: u64) -> ToPrimary {
    ToPrimary::Ack { committed: Epoch::new(committed), applied: Epoch::new(applied) }
}

#[test]
fn what_is_released_is_not_applied_yet() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    bench.hear(2, ack(2, 1));
    assert_eq!(bench.machine.released(), Epoch::new(2));
    assert_eq!(bench.machine.applied_by_all(), Some(Epoch::new(1)));
    bench.hear(2, ack(2, 2));
    assert_eq!(bench.machine.applied_by_all(), Some(Epoch::new(2)));
    bench.hear(2, ack(1, 1));
    assert_eq!(bench.machine.applied_by_all(), Some(Epoch::new(2)), "it does not go back");
}

#[test]
fn nobody_applies_what_it_has_not_committed() {
    let mut bench = Bench::in_sync();
    bench.pass(Duration::from_millis(12));
    bench.finish_cut(2);
    bench.hear(2, ack(2, 9));
    assert_eq!(bench.machine.applied_by_all(), Some(Epoch::new(2)));
}

#[test]
fn without_a_follower_there_is_no_image() {
    assert_eq!(Bench::new().machine.applied_by_all(), None);
}
