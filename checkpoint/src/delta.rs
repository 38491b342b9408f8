//! What changed between two byte strings of one length.
//!
//! ```text
//!   delta := check:u64  op*  tail           little-endian
//!   op    := skip:varint  take:varint  word[take]
//! ```
//!
//! `check` is XXH3-64 of the old string. Words are 8 octets; an op passes over
//! `skip` words that are as before and replaces the `take` words after them.
//! Ops go on to the end of the delta but for `tail`, the octets beyond the last
//! whole word, which are always there. A varint is LEB128 of at most 3 octets.
//!
//! A delta is applied to the string that it was made from or not at all: a
//! difference there means that a page was lost before, and must not be hidden
//! by patching over it. The check is against mistakes, not against malice:
//! what comes over the wire has a BLAKE3 digest and a certificate behind it.

use thiserror::Error;
use twox_hash::XxHash3_64;

const WORD_BYTES: usize = 8;
/// Words that are compared at once: a cache line.
const LINE_BYTES: usize = 64;
const CHECK_BYTES: usize = 8;
const VARINT_MAX: usize = 1 << 21;

/// How a comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The strings are equal.
    Same,
    /// The delta has been appended.
    Differs,
    /// The delta would be longer than allowed; nothing was appended.
    DiffersMuch,
}

/// Why a delta was not applied; the string is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeltaError {
    /// It is not well-formed for a string of this length.
    #[error("a delta is malformed")]
    Malformed,
    /// It was made from another string.
    #[error("a delta builds on other content than is here")]
    OtherBase,
}

/// Compares `new` with `old` and appends what changed to `delta`, if that takes
/// at most `bytes_max`.
///
/// # Panics
///
/// If the strings differ in length or are longer than 16 MiB.
pub fn compare(old: &[u8], new: &[u8], bytes_max: usize, delta: &mut Vec<u8>) -> Comparison {
    assert_eq!(old.len(), new.len(), "a delta is between strings of one length");
    assert!(old.len() / WORD_BYTES < VARINT_MAX, "a string that is too long for a delta");
    if old == new {
        return Comparison::Same;
    }
    let begun = delta.len();
    let whole = old.len() / WORD_BYTES * WORD_BYTES;
    delta.extend(XxHash3_64::oneshot(old).to_le_bytes());
    let mut from = 0;
    while let Some(start) = next_difference(&old[..whole], &new[..whole], from) {
        let end = end_of_difference(&old[..whole], &new[..whole], start);
        if delta.len() - begun + (end - start) > bytes_max {
            delta.truncate(begun);
            return Comparison::DiffersMuch;
        }
        push_varint(delta, (start - from) / WORD_BYTES);
        push_varint(delta, (end - start) / WORD_BYTES);
        delta.extend_from_slice(&new[start..end]);
        from = end;
    }
    delta.extend_from_slice(&new[whole..]);
    if delta.len() - begun > bytes_max {
        delta.truncate(begun);
        return Comparison::DiffersMuch;
    }
    Comparison::Differs
}

/// Where the next word that differs begins.
fn next_difference(old: &[u8], new: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    // Up to a line's beginning word by word, then line by line.
    while at < old.len() {
        let line = LINE_BYTES.min(old.len() - at);
        if at.is_multiple_of(LINE_BYTES) && old[at..at + line] == new[at..at + line] {
            at += line;
        } else if old[at..at + WORD_BYTES] == new[at..at + WORD_BYTES] {
            at += WORD_BYTES;
        } else {
            return Some(at);
        }
    }
    None
}

fn end_of_difference(old: &[u8], new: &[u8], start: usize) -> usize {
    let words = old[start..].chunks_exact(WORD_BYTES).zip(new[start..].chunks_exact(WORD_BYTES));
    start + words.take_while(|(old, new)| old != new).count() * WORD_BYTES
}

/// Whether `delta` is well-formed for a string of `len` octets.
#[must_use]
pub fn is_sound(delta: &[u8], len: usize) -> bool {
    ops(delta, len).is_some_and(|mut ops| ops.all(|op| op.is_some()))
}

/// Changes `string` from the old to the new one.
///
/// # Errors
///
/// [`DeltaError`]; the string is then as it was.
pub fn apply(delta: &[u8], string: &mut [u8]) -> Result<(), DeltaError> {
    if !is_sound(delta, string.len()) {
        return Err(DeltaError::Malformed);
    }
    let (check, _) = delta.split_first_chunk::<CHECK_BYTES>().expect("it is sound");
    if u64::from_le_bytes(*check) != XxHash3_64::oneshot(string) {
        return Err(DeltaError::OtherBase);
    }
    for op in ops(delta, string.len()).into_iter().flatten().flatten() {
        string[op.at..op.at + op.new.len()].copy_from_slice(op.new);
    }
    let tail = string.len() % WORD_BYTES;
    let (whole, rest) = (string.len() - tail, delta.len() - tail);
    string[whole..].copy_from_slice(&delta[rest..]);
    Ok(())
}

/// Octets that take the place of those from `at` on.
struct Op<'a> {
    at: usize,
    new: &'a [u8],
}

/// The ops of a delta for a string of `len` octets; the first that is malformed
/// is `None` and the last.
fn ops(delta: &[u8], len: usize) -> Option<impl Iterator<Item = Option<Op<'_>>>> {
    let whole = len / WORD_BYTES * WORD_BYTES;
    let end = delta.len().checked_sub(len - whole)?;
    let mut rest = delta.get(CHECK_BYTES..end)?;
    let mut at = 0;
    Some(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let op = next_op(&mut rest, &mut at, whole);
        if op.is_none() {
            rest = &[];
        }
        Some(op)
    }))
}

fn next_op<'a>(rest: &mut &'a [u8], at: &mut usize, whole: usize) -> Option<Op<'a>> {
    let skip = take_varint(rest)? * WORD_BYTES;
    let take = take_varint(rest)? * WORD_BYTES;
    let start = *at + skip;
    let (new, left) = rest.split_at_checked(take)?;
    if take == 0 || start + take > whole {
        return None;
    }
    *rest = left;
    *at = start + take;
    Some(Op { at: start, new })
}

fn push_varint(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in [0, 7, 14] {
        let (octet, left) = rest.split_first()?;
        *rest = left;
        value |= usize::from(octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_of_a_page_costs_some_twenty_octets() {
        let old = [7; 4096];
        let mut new = old;
        new[2048..2056].copy_from_slice(&1_u64.to_le_bytes());
        let mut delta = Vec::new();
        assert_eq!(compare(&old, &new, 1024, &mut delta), Comparison::Differs);
        assert_eq!(delta.len(), CHECK_BYTES + 2 + 1 + 8);
        let mut patched = old;
        apply(&delta, &mut patched).unwrap();
        assert_eq!(patched, new);
    }

    #[test]
    fn golden_bytes() {
        let old = *b"the quick brown fox!";
        let new = *b"the quick black fox?";
        let mut delta = vec![0xaa];
        assert_eq!(compare(&old, &new, 100, &mut delta), Comparison::Differs);
        let check = XxHash3_64::oneshot(&old).to_le_bytes();
        let expected = [&[0xaa][..], &check, &[1, 1], b"k black ", b"fox?"].concat();
        assert_eq!(delta, expected);
    }

    #[test]
    fn what_changed_much_is_no_delta() {
        let mut delta = vec![1, 2, 3];
        assert_eq!(compare(&[0; 4096], &[1; 4096], 1024, &mut delta), Comparison::DiffersMuch);
        assert_eq!(delta, [1, 2, 3]);
    }

    #[test]
    fn another_base_is_refused_and_left_alone() {
        let mut delta = Vec::new();
        compare(&[0; 64], &[1; 64], 1024, &mut delta);
        let mut other = [2; 64];
        assert_eq!(apply(&delta, &mut other), Err(DeltaError::OtherBase));
        assert_eq!(other, [2; 64]);
    }

    proptest::proptest! {
        #[test]
        fn applied_to_its_base_it_gives_the_new_string(
            old in proptest::collection::vec(0_u8..4, 0..700),
            changes in proptest::collection::vec((0_usize..700, 0_u8..4), 0..40),
        ) {
            let mut new = old.clone();
            for (at, octet) in changes {
                if let Some(place) = new.get_mut(at) {
                    *place = octet;
                }
            }
            let mut delta = Vec::new();
            match compare(&old, &new, usize::MAX, &mut delta) {
                Comparison::Same => proptest::prop_assert_eq!(&old, &new),
                Comparison::Differs => {
                    proptest::prop_assert!(is_sound(&delta, old.len()));
                    let mut patched = old.clone();
                    apply(&delta, &mut patched).unwrap();
                    proptest::prop_assert_eq!(&patched, &new);
                    if old.len() >= 8 {
                        proptest::prop_assert!(delta.len() < 3 * old.len() + 32);
                    }
                }
                Comparison::DiffersMuch => proptest::prop_assert!(false, "nothing is too much"),
            }
        }

        #[test]
        fn any_bytes_apply_or_err(delta: Vec<u8>, len in 0_usize..300) {
            let mut string = vec![0; len];
            let before = string.clone();
            if apply(&delta, &mut string).is_err() {
                proptest::prop_assert_eq!(string, before);
            }
        }
    }
}
