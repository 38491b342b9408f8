//! The last console bytes that the guest said and that were released.
//!
//! Bytes are numbered from the beginning of the process. The number of the
//! process tells readers when numbers begin anew.

use std::{collections::VecDeque, sync::Mutex};

use tokio::sync::watch;

/// Bytes that are kept.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Console bytes, and where they are among all that were said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePage {
    /// The process that was asked; another one numbers anew.
    pub process: u64,
    /// The number of the first byte.
    pub from: u64,
    /// What to ask for next: the number behind the last byte.
    pub next: u64,
    /// What was said.
    pub bytes: Vec<u8>,
}

/// A bounded tail of bytes. Held output must not be pushed before its release.
#[derive(Debug)]
pub struct ConsoleTail {
    process: u64,
    bytes: Mutex<VecDeque<u8>>,
    /// Bytes ever pushed.
    total: watch::Sender<u64>,
}

impl Default for ConsoleTail {
    fn default() -> Self {
        Self { process: rand::random(), bytes: Mutex::default(), total: watch::Sender::new(0) }
    }
}

impl ConsoleTail {
    /// Adds released bytes, forgetting the oldest.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock().expect("no holder panics");
        let new = &bytes[bytes.len().saturating_sub(KEPT_BYTES_MAX)..];
        let excess = (kept.len() + new.len()).saturating_sub(KEPT_BYTES_MAX);
        kept.drain(..excess);
        kept.extend(new);
        // Under the lock, so that numbers and bytes agree.
        self.total.send_modify(|total| *total += bytes.len() as u64);
    }

    /// What is kept from byte number `after` on.
    #[must_use]
    pub fn after(&self, after: u64) -> ConsolePage {
        let kept = self.bytes.lock().expect("no holder panics");
        let next = *self.total.borrow();
        let from = after.clamp(next - kept.len() as u64, next);
        let unread = (next - from) as usize;
        let bytes = kept.range(kept.len() - unread..).copied().collect();
        ConsolePage { process: self.process, from, next, bytes }
    }

    /// Resolves when there is a byte with number `after`.
    pub async fn wait_beyond(&self, after: u64) {
        // Fails only when the sender is gone, and we hold it.
        let _ = self.total.subscribe().wait_for(|total| *total > after).await;
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
        let page = tail.after(0);
        let last = &page.bytes;
        assert_eq!(last.len(), KEPT_BYTES_MAX);
        assert_eq!((last[0], last[KEPT_BYTES_MAX - 1]), (b'n', b'z'));
        assert_eq!((page.from, page.next), (4, KEPT_BYTES_MAX as u64 + 4));
        tail.push(&vec![b'y'; KEPT_BYTES_MAX + 9]);
        let page = tail.after(7);
        assert!(page.bytes.iter().all(|byte| *byte == b'y'));
        assert_eq!(page.next - page.from, KEPT_BYTES_MAX as u64);
        assert_eq!(page.next, 2 * KEPT_BYTES_MAX as u64 + 13);
    }

    #[tokio::test]
    async fn readers_go_on_where_they_were() {
        let tail = std::sync::Arc::new(ConsoleTail::default());
        tail.push(b"one ");
        let first = tail.after(0);
        let waiting = tokio::spawn({
            let tail = tail.clone();
            async move { tail.wait_beyond(first.next).await }
        });
        tail.push(b"two");
        waiting.await.unwrap();
        assert_eq!(tail.after(first.next).bytes, b"two");
        let beyond = tail.after(999);
        assert_eq!((beyond.from, beyond.bytes.len()), (7, 0));
        assert_ne!(ConsoleTail::default().process, first.process);
    }
}
