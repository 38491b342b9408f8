//! Lives of the two machines, as they go when all is well, and some turns.

use super::Add;
use crate::fuzz::{
    backup,
    primary::{
        ANSWERED, COMMANDED, CUT_DONE, ENCODED, HEARD, LINK_DOWN, LINK_UP, MEDDLE, OUTPUT_HELD,
        OUTPUT_WAITS, SEED_ROUND, STALLED, TIMEOUT, WELL,
    },
};

/// Own node, and a peer, by their places among the names.
const B: u8 = 1;
/// `number_near`: just this number.
const NEAR: u8 = 0x40;

/// A step, so many quarters of a millisecond after the last.
pub(super) fn step(step: u8, quarters: u8, rest: &[u8]) -> Vec<u8> {
    [&[step, quarters][..], rest].concat()
}

/// An epoch of a primary, to its close.
fn epoch() -> Vec<u8> {
    let cut = step(CUT_DONE, 4, &[100, 0, 0, 0x10, 0, 0]);
    [step(TIMEOUT, 44, &[]), cut, step(ENCODED, 4, &[0, 0, 2, 0, 0])].concat()
}

/// The backup says that it has all.
fn ack() -> Vec<u8> {
    step(WELL, 4, &[B, 2])
}

/// A primary that takes a backup and then two epochs.
pub(super) fn protected() -> Vec<u8> {
    let joined = [
        step(COMMANDED, 4, &[B, 0]),
        step(LINK_UP, 4, &[0, NEAR, B]),
        step(WELL, 4, &[B, 1, 0]),
        step(SEED_ROUND, 4, &[3, 2]),
        step(WELL, 4, &[B, 1, 3]),
    ];
    let admitted = [epoch(), ack(), step(ANSWERED, 4, &[0])];
    [joined.concat(), admitted.concat(), epoch(), ack(), epoch(), ack()].concat()
}

pub(super) fn primary(add: &mut Add<'_>) {
    let served = protected();
    add("primary", "protected", served.clone());
    let lost = [step(LINK_DOWN, 4, &[B]), step(TIMEOUT, 0xe0, &200_u16.to_le_bytes())].concat();
    let solo = [served.clone(), lost.clone(), step(ANSWERED, 4, &[0])].concat();
    add("primary", "solo", solo);
    let fenced = [served.clone(), step(MEDDLE, 4, &[B]), lost, step(ANSWERED, 4, &[0])];
    add("primary", "fenced", fenced.concat());
    let handed = [
        served.clone(),
        step(COMMANDED, 4, &[B, 5]),
        epoch(),
        ack(),
        step(TIMEOUT, 4, &[]),
        step(ANSWERED, 4, &[0]),
    ];
    add("primary", "handed-over", handed.concat());
    let resumed = [
        served.clone(),
        step(LINK_DOWN, 4, &[B]),
        step(LINK_UP, 4, &[1, NEAR, NEAR, B, 0]),
        epoch(),
        ack(),
    ];
    add("primary", "resumed", resumed.concat());
    let doubtful = [
        served,
        step(OUTPUT_WAITS, 4, &[]),
        step(STALLED, 4, &[]),
        step(OUTPUT_HELD, 4, &2_000_u16.to_le_bytes()),
        step(TIMEOUT, 0xe0, &700_u16.to_le_bytes()),
        step(HEARD, 4, &[0, 0, 0xff, B]),
        step(WELL, 4, &[B, 0]),
    ];
    add("primary", "in-doubt", doubtful.concat());
}

pub(super) fn backup(add: &mut Add<'_>) {
    use backup::{
        ANSWERED, APPLIED, DIGEST, EPOCH, HEARD, KNOCK, LINK_DOWN, MEDDLE, SEED, STAGED, TAKE_OVER,
        TIMEOUT,
    };
    // Own membership is bit 0 of a register's members, and each has an image.
    let (own, image) = (1, 0);
    let seed = step(SEED, 4, &[B, own, image, 0, B, image]);
    let epoch = step(EPOCH, 4, &[NEAR, 3, 1]);
    let heard = |message: &[u8]| step(HEARD, 4, &[&[0, NEAR][..], message].concat());
    let whole = [
        seed.clone(),
        epoch.clone(),
        epoch.clone(),
        step(APPLIED, 4, &[]),
        heard(&[5]),
        epoch.clone(),
        step(DIGEST, 4, &[7]),
    ]
    .concat();
    add("backup", "whole", whole.clone());
    let silent = step(TIMEOUT, 0xe0, &300_u16.to_le_bytes());
    let promoted =
        [whole.clone(), silent.clone(), step(ANSWERED, 4, &[0]), step(ANSWERED, 4, &[0])];
    add("backup", "promoted", promoted.concat());
    let dropped = [
        whole.clone(),
        step(MEDDLE, 4, &[B, 0, 1]),
        silent,
        step(ANSWERED, 4, &[0]),
        step(ANSWERED, 4, &[0]),
    ];
    add("backup", "dropped", dropped.concat());
    // To this node, of the last committed epoch, by the next term.
    let hand_over = step(HEARD, 4, &[0, NEAR - 1, 4, 0, 0, 0xc0, NEAR + 1]);
    let handed = [whole.clone(), hand_over];
    add("backup", "handed-over", handed.concat());
    let again = [
        whole.clone(),
        step(LINK_DOWN, 4, &[]),
        step(KNOCK, 4, &[1, 1, 1, 0, B]),
        step(STAGED, 4, &[0, NEAR + 1, NEAR, 0, 1, 0]),
        heard(&[3, B, own, image, 0]),
        epoch,
    ];
    add("backup", "again", again.concat());
    let ordered = [whole, step(TAKE_OVER, 4, &[]), step(ANSWERED, 4, &[0xf0])];
    add("backup", "ordered-to-take-over", ordered.concat());
}
