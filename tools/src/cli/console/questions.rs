//! Questions to a terminal among what a guest said before.
//!
//! A shell may ask for the cursor's place (`ESC [ 6 n`) or for the kind of
//! terminal (`ESC [ c`), and the terminal answers as if somebody typed. What
//! was asked before a session began has been answered or forgotten: an answer
//! now would be typed at whatever runs there. So the past is shown without
//! questions (ECMA-48, sections 5.4 and 8.3.24, 8.3.35).

const ESCAPE: u8 = 0x1b;

/// `said` without control sequences that end in `n` or `c`.
pub(super) fn without_questions(said: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(said.len());
    let mut rest = said;
    while let Some(at) = rest.iter().position(|byte| *byte == ESCAPE) {
        shown.extend(&rest[..at]);
        rest = &rest[at..];
        let len = sequence_len(rest);
        let (sequence, after) = rest.split_at(len);
        if !(len > 2 && matches!(sequence.last(), Some(b'n' | b'c'))) {
            shown.extend(sequence);
        }
        rest = after;
    }
    shown.extend(rest);
    shown
}

/// Bytes of the control sequence that `bytes` begin with; 1 if it is none.
fn sequence_len(bytes: &[u8]) -> usize {
    if bytes.get(1) != Some(&b'[') {
        return 1;
    }
    let parameters = bytes[2..].iter().take_while(|byte| (0x20..0x40).contains(*byte)).count();
    (2 + parameters + 1).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_go_and_the_rest_stays() {
        for (said, shown) in [
            (&b"/ # \x1b[6n"[..], &b"/ # "[..]),
            (b"\x1b[c\x1b[>0cx", b"x"),
            (b"\x1b[31mred\x1b[0m", b"\x1b[31mred\x1b[0m"),
            (b"cut off \x1b[6", b"cut off \x1b[6"),
            (b"\x1b", b"\x1b"),
            (b"\x1b[", b"\x1b["),
            (b"\x1bc and \x1b\x1b[6n", b"\x1bc and \x1b"),
            (b"nc\n", b"nc\n"),
        ] {
            assert_eq!(without_questions(said), shown, "{said:?}");
        }
    }
}
