//! The last console bytes that the guest said and that were released.

use std::{collections::VecDeque, sync::Mutex};

/// Bytes that are kept.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A bounded tail of bytes. Held output must not be pushed before its release.
#[derive(Debug, Default)]
pub struct ConsoleTail {
    bytes: Mutex<VecDeque<u8>>,
}

impl ConsoleTail {
    /// Adds released bytes, forgetting the oldest.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock().expect("no holder panics");
        let new = &bytes[bytes.len().saturating_sub(KEPT_BYTES_MAX)..];
        let excess = (kept.len() + new.len()).saturating_sub(KEPT_BYTES_MAX);
        kept.drain(..excess);
        kept.extend(new);
    }

    /// What is kept, oldest first.
    #[must_use]
    pub fn last(&self) -> Vec<u8> {
        self.bytes.lock().expect("no holder panics").iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_end() {
        let tail = ConsoleTail::default();
        tail.push(b"begin");
        tail.push(&vec![b'x'; KEPT_BYTES_MAX - 2]);
        tail.push(b"z");
        let last = tail.last();
        assert_eq!(last.len(), KEPT_BYTES_MAX);
        assert_eq!((last[0], last[KEPT_BYTES_MAX - 1]), (b'n', b'z'));
        tail.push(&vec![b'y'; KEPT_BYTES_MAX + 9]);
        assert!(tail.last().iter().all(|byte| *byte == b'y'));
    }
}
